"""Module B, second half: calibration, and how well the captions support what is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import TextEncoder
from and_platform.core import calibration
from and_platform.core.facets import REVISION as FACETS_REVISION
from and_platform.core.facets import facets
from and_platform.core.ragged import Ints, Ragged
from and_platform.schema import Layer
from and_platform.services import embed, provenance
from and_platform.services.exemplar_captions import read_captions, read_exemplars
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan
from and_platform.services.summarise import Job, point_texts

SUPPORT_TAU = 0.7
"""Cosine from which a caption's sentence says what a point says."""


@dataclass(frozen=True)
class Rules:
    """How to calibrate: t of the paper, and whether opposites ("loud", "quiet") may remove each other.

    Sentence encoders put short sentences that name opposites close together, so `facets` keeps them apart where points
    are sentences of captions; an LLM's own words are compared as in the paper.
    """

    threshold: float
    facets: bool


def plan(summaries: RecipePlan, encoder: TextEncoder, rules: Rules) -> RecipePlan:
    """The recipe of calibrated summaries."""
    params = {
        "threshold": rules.threshold, "facets": FACETS_REVISION if rules.facets else None, "support_tau": SUPPORT_TAU,
    }  # fmt: skip
    return RecipePlan("calibrate", "cosine", "1", params, (summaries, embed.plan(encoder)))


def calibrate(
    engine: sa.Engine, encoder: TextEncoder, rules: Rules, job: Job, recipe: RecipePlan, *, progress: Progress = SILENT
) -> int:
    """Calibrate the summaries of the layers that lack it, a layer a transaction; returns how many layers."""
    with db.transaction(engine) as session:
        recipe_id = provenance.recipe_id(session, recipe)
        summary_id = provenance.recipe_id(session, job.plan)
        done = provenance.finished_layers(session, recipe_id)
        ready = provenance.finished_layers(session, summary_id)
        todo = [layer for layer in job.layers if layer.id not in done]
        if not todo:
            return 0
        table = read_captions(
            session, job.probing.id, job.probing.n_clips, provenance.recipe_id(session, job.caption_plan)
        )
        points = point_texts(session, summary_id, [layer.id for layer in todo])
    text_ids = sorted({*points, *table.text_ids.tolist()})
    encoder_id = embed.embed_texts(engine, encoder, text_ids, name="embed points", progress=progress)
    with db.reading(engine) as session:
        matrix = embed.text_vectors(session, encoder_id, text_ids)
    row_of = {identity: row for row, identity in enumerate(text_ids)}
    texts = {**points, **dict(zip(table.text_ids.tolist(), table.texts, strict=True))}
    sides = facets([texts[identity] for identity in text_ids]) if rules.facets else None
    sentences = Ragged(
        np.array([row_of[int(i)] for i in table.text_ids], np.int64)[table.sentences.ids], table.sentences.offsets
    )
    with progress.stage("calibrate", sum(layer.n_units for layer in todo), "neurons") as advance:
        for layer in todo:
            with db.transaction(engine) as session:
                session.execute(
                    sa.text("SELECT pg_advisory_xact_lock(hashtextextended('calibrate:' || :layer, :recipe))"),
                    {"layer": str(layer.id), "recipe": recipe_id},
                )
                exemplars = read_exemplars(session, job.recording_id, layer, "high", job.k)
                _calibrate_layer(
                    session, recipe_id, summary_id, layer, exemplars, matrix, sides, row_of, sentences, texts, rules
                )
                if layer.id in ready:  # else some summaries failed: their neurons come with the next run
                    provenance.finish_layer(session, recipe_id, layer.id)
            advance(layer.n_units)
    return len(todo)


def _calibrate_layer(
    session: Session,
    recipe_id: int,
    summary_recipe_id: int,
    layer: Layer,
    exemplars: Ints,
    matrix: NDArray[np.float32],
    sides: NDArray[np.int64] | None,
    row_of: dict[int, int],
    sentences: Ragged,
    texts: dict[int, str],
    rules: Rules,
) -> None:
    rows = session.execute(
        sa.text(
            "SELECT n.id AS neuron_id, n.unit, h.id AS high_id, l.id AS low_id,"
            " ARRAY(SELECT p.text_id FROM summary_points p WHERE p.summary_id = h.id ORDER BY p.ordinal) AS high,"
            " ARRAY(SELECT p.text_id FROM summary_points p WHERE p.summary_id = l.id ORDER BY p.ordinal) AS low"
            " FROM neurons n"
            " JOIN summaries h ON h.neuron_id = n.id AND h.recipe_id = :summaries AND h.side = 'high'"
            " JOIN summaries l ON l.neuron_id = n.id AND l.recipe_id = :summaries AND l.side = 'low'"
            " WHERE n.layer_id = :layer AND NOT EXISTS ("
            "   SELECT FROM calibrations c WHERE c.recipe_id = :recipe AND c.neuron_id = n.id)"
            " ORDER BY n.unit"
        ),
        {"summaries": summary_recipe_id, "layer": layer.id, "recipe": recipe_id},
    ).all()
    # Summaries that another process has written since the points were embedded come with its own calibration.
    rows = [row for row in rows if all(text in row_of for text in (*row.high, *row.low))]
    high = Ragged.from_lists([[row_of[text] for text in row.high] for row in rows])
    low = Ragged.from_lists([[row_of[text] for text in row.low] for row in rows])
    found = calibration.calibrate(matrix, high, low, threshold=rules.threshold, facets=sides)
    chosen = exemplars[[row.unit for row in rows]] if rows else exemplars[:0]
    support = calibration.support(matrix, high, sentences, chosen, tau=SUPPORT_TAU, facets=sides)
    captioned = _captioned(sentences, chosen)

    values, points = [], []
    for i, row in enumerate(rows):
        span = slice(int(high.offsets[i]), int(high.offsets[i + 1]))
        kept = found.kept[span]
        said = [texts[text] for text, keep in zip(row.high, kept, strict=True) if keep]
        share = support[span][kept].mean() / captioned[i] if kept.any() and captioned[i] else None
        values.append(
            (recipe_id, row.neuron_id, row.high_id, row.low_id, "\n".join(said), len(said), len(kept) - len(said),
             None if share is None else float(share))
        )  # fmt: skip
        nearest = found.nearest[span]
        points.append(
            [
                (ordinal, bool(keep), None if near < 0 else int(near - low.offsets[i]),
                 None if np.isnan(cosine) else float(cosine), int(agreeing))
                for ordinal, (keep, near, cosine, agreeing) in enumerate(
                    zip(kept, nearest, found.cosine[span], support[span], strict=True)
                )
            ]
        )  # fmt: skip
    db.copy_rows(
        session,
        "calibrations",
        {
            "recipe_id": "int8", "neuron_id": "int8", "high_summary_id": "int8", "low_summary_id": "int8",
            "summary": "text", "n_kept": "int4", "n_dropped": "int4", "support": "float4",
        },
        values,
    )  # fmt: skip
    ids: dict[int, int] = dict(
        session.execute(
            sa.text("SELECT neuron_id, id FROM calibrations WHERE recipe_id = :recipe AND neuron_id = ANY (:neurons)"),
            {"recipe": recipe_id, "neurons": [row.neuron_id for row in rows]},
        ).all()
    )
    db.copy_rows(
        session,
        "calibrated_points",
        {
            "calibration_id": "int8", "ordinal": "int4", "kept": "bool", "nearest_low_ordinal": "int4",
            "cosine": "float4", "support": "int4",
        },
        ((ids[row.neuron_id], *point) for row, of_row in zip(rows, points, strict=True) for point in of_row),
    )  # fmt: skip


def _captioned(sentences: Ragged, exemplars: Ints) -> Ints:
    """How many of each neuron's exemplars have a caption."""
    told: Ints = np.append(sentences.lengths > 0, False)[exemplars].sum(axis=1)
    return told
