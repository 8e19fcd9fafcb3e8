"""What summaries are made of: a neuron's exemplars, and the sentences of their captions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from and_platform.core.ragged import Ints, Ragged
from and_platform.errors import IncompleteError
from and_platform.schema import Caption, CaptionSentence, Layer, ProbingSetClip, Text
from and_platform.services import embed

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CaptionTable:
    """The captions of a probing set by position, and their sentences as rows of one matrix.

    `captions[position]` is None where a clip has no caption; `sentences.ids` index `text_ids` and `texts`.
    """

    captions: list[str | None]
    sentences: Ragged
    text_ids: Ints
    texts: list[str]

    def embeddings(self, session: Session, encoder_id: int) -> Floats:
        """Unit vectors of the sentences, [len(text_ids), dim]."""
        return embed.text_vectors(session, encoder_id, self.text_ids.tolist())


def read_captions(
    session: Session, probing_set_id: int, n_clips: int, caption_recipe_id: int, positions: Ints | None = None
) -> CaptionTable:
    """The captions of one recipe: all of them, or those at some positions, as if there were no others."""
    chosen = [ProbingSetClip.probing_set_id == probing_set_id, Caption.recipe_id == caption_recipe_id]
    if positions is not None:
        chosen.append(ProbingSetClip.position == sa.any_(sa.cast(positions.tolist(), ARRAY(sa.BigInteger))))
    rows = session.execute(
        sa.select(ProbingSetClip.position, Caption.text)
        .join(Caption, Caption.clip_id == ProbingSetClip.clip_id)
        .where(*chosen)
    )
    captions: list[str | None] = [None] * n_clips
    for position, text in rows:
        captions[position] = text
    found = session.execute(
        sa.select(ProbingSetClip.position, CaptionSentence.text_id)
        .join(Caption, Caption.clip_id == ProbingSetClip.clip_id)
        .join(CaptionSentence, CaptionSentence.caption_id == Caption.id)
        .where(*chosen)
        .order_by(ProbingSetClip.position, CaptionSentence.ordinal)
    ).all()
    positions = np.fromiter((row.position for row in found), np.int64, len(found))
    text_ids, rows_of_texts = np.unique(
        np.fromiter((row.text_id for row in found), np.int64, len(found)), return_inverse=True
    )
    lengths = np.bincount(positions, minlength=n_clips)
    sentences = Ragged(rows_of_texts.astype(np.int64), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    # One array, not a parameter for each: a statement has room for 65,535.
    wanted = sa.cast(text_ids.tolist(), ARRAY(sa.BigInteger))
    texts = dict(session.execute(sa.select(Text.id, Text.text).where(Text.id == sa.any_(wanted))).all())
    return CaptionTable(captions, sentences, text_ids, [texts[int(identity)] for identity in text_ids])


def read_exemplars(
    session: Session, recording_id: int, layer: Layer, side: str, k: int, units: tuple[int, int] | None = None
) -> Ints:
    """Positions of the k exemplars of one side, [units, k], most extreme first.

    `units`: of those from the first to before the second; default: all of the layer.

    -1 where there are fewer clips, and throughout for a neuron with the same activation on every clip: it prefers none.

    Raises
    ------
    IncompleteError
        The layer has not been recorded.
    """
    first, end = units or (0, layer.n_units)
    rows = session.execute(
        sa.text(
            "SELECT CASE WHEN s.min < s.max THEN e.positions[1:CAST(:k AS int)] ELSE '{}' END"
            " FROM neurons n JOIN exemplars e ON e.neuron_id = n.id AND e.recording_id = :recording AND e.side = :side"
            " JOIN neuron_statistics s ON s.neuron_id = n.id AND s.recording_id = :recording"
            " WHERE n.layer_id = :layer AND n.unit >= :first AND n.unit < :end ORDER BY n.unit"
        ),
        {"recording": recording_id, "side": side, "layer": layer.id, "k": k, "first": first, "end": end},
    ).scalars()
    lists = list(rows)
    if len(lists) != end - first:
        raise IncompleteError(f"layer {layer.name} is not recorded yet; run: andp dissect")
    return np.array([[*found, *[-1] * (k - len(found))] for found in lists], np.int64).reshape(end - first, k)
