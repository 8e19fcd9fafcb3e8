"""The clips on which a network may be judged: those that it was not trained on, with a label that is one of its classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform.backends.base import Clip
from and_platform.core.names import normalise
from and_platform.errors import InputError
from and_platform.schema import Network
from and_platform.services import provenance
from and_platform.services.experiments import Subject


class HeldOutClip(NamedTuple):
    """A clip, where it lies, and the unit of the head that is its true class."""

    position: int
    clip_id: int
    path: Path
    key: str
    sha256: str
    unit: int


@dataclass(frozen=True)
class HeldOut:
    """The clips to evaluate on, in order of position, and what is known of the choice."""

    clips: list[HeldOutClip]
    classes: list[str]
    fold: int | None
    """The fold they are; None: all folds."""
    without_class: dict[str, int] = field(default_factory=dict)
    """Label -> clips that were left out, since the network has no such class."""
    caution: str | None = None
    """What a reader must know, e.g. that the network may have been trained on these clips."""

    @property
    def sha256(self) -> str:
        """Hash of which clips they are and of their classes: folds and labels may change when files are ingested again."""
        return provenance.sha256_of([[clip.position, clip.unit] for clip in self.clips])

    @property
    def n_clips(self) -> list[int]:
        """Clips of each class, in order of the head's units."""
        counts = [0] * len(self.classes)
        for clip in self.clips:
            counts[clip.unit] += 1
        return counts


def held_out(session: Session, about: Subject, *, fold: int | None = None) -> HeldOut:
    """The clips of the probing set on which the network is evaluated.

    Those of the fold that it was not trained on, if it was trained on this data set; all clips if it was trained on
    another. Only the first label of a clip counts, compared with the class names without case, `_` and `-`.

    Parameters
    ----------
    fold
        Evaluate on this fold instead.

    Raises
    ------
    InputError
        The network has no class names, no clip carries one of them, the fold has no clips, or the network was trained
        on all folds of this data set.
    """
    network = session.get_one(Network, about.network_id)
    if not network.classes:
        raise InputError(
            f"'{network.name}' has no class names, so logits, accuracy and unlearning cannot be computed; "
            "add it with them under a new name: id2label in its configuration, or the option 'classes'; an encoder gets "
            "its classes by fine-tuning: andp networks train DIRECTORY --from LOCATION"
        )
    same = network.trained_on == about.dataset
    caution = None
    if fold is None and same:
        fold = network.held_out_fold
        if fold is None:
            raise InputError(
                f"'{network.name}' says it was trained on '{about.dataset}' and names no held-out fold; give the fold that "
                "it was not trained on with --fold"
            )
    if network.trained_on is None:
        caution = f"it is not known what '{network.name}' was trained on: it may have seen these clips"
    elif same and network.held_out_fold is None:
        caution = f"it is not recorded which fold '{network.name}' was not trained on: it may have seen these clips"
    elif same and fold != network.held_out_fold:
        caution = f"'{network.name}' was trained on fold {fold}"
    from and_platform.backends import audio

    units = {normalise(name): unit for unit, name in enumerate(network.classes)}
    rows = session.execute(
        sa.text(
            "SELECT m.position, c.id, s.root, c.path, c.sha256, c.labels[1] AS label FROM probing_set_clips m"
            " JOIN clips c ON c.id = m.clip_id JOIN datasets s ON s.id = c.dataset_id"
            " WHERE m.probing_set_id = :probing AND (CAST(:fold AS int) IS NULL OR c.fold = :fold) ORDER BY m.position"
        ),
        {"probing": about.probing_set_id, "fold": fold},
    ).all()
    if not rows:
        raise InputError(f"no clip of '{about.dataset}' is in fold {fold}; see: andp datasets show {about.dataset}")
    clips: list[HeldOutClip] = []
    without: dict[str, int] = {}
    for row in rows:
        unit = units.get(normalise(row.label)) if row.label else None
        if unit is None:
            without[row.label or "(no label)"] = without.get(row.label or "(no label)", 0) + 1
        else:
            clips.append(HeldOutClip(row.position, row.id, audio.at(row.root, row.path), row.path, row.sha256, unit))
    if not clips:
        raise InputError(
            f"no clip of '{about.dataset}' carries a class of '{network.name}' as its first label "
            f"(labels: {', '.join(list(without)[:3])}; classes: {', '.join(network.classes[:3])}), "
            "so nothing can be evaluated on it"
        )
    return HeldOut(clips, list(network.classes), fold, without, caution)


def decoded(chosen: HeldOut, rate: int) -> Iterator[Clip]:
    """The clips as sound at the network's rate, in order.

    Raises
    ------
    AudioError
        A file cannot be read, or has changed since it was ingested.
    """
    from and_platform.backends import audio
    from and_platform.errors import AudioError

    for clip in chosen.clips:
        try:
            waveform, rate = audio.load(clip.path, rate, clip.sha256)
        except AudioError as error:
            raise AudioError(
                f"cannot use '{clip.key}': {error}; bring the file back, or ingest the data set again"
            ) from error
        yield Clip(clip.key, waveform, rate)
