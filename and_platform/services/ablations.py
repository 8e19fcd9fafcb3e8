"""Ablating, and keeping what each class loses: what unlearning, sweeps and Figure 4 share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import Clip
from and_platform.config import settings
from and_platform.core.outcomes import by_class
from and_platform.queries import unlearning as queries
from and_platform.queries.unlearning import Key
from and_platform.schema import Ablation, Experiment, Network
from and_platform.services import locks, networks
from and_platform.services.experiments import Subject
from and_platform.services.held_out import HeldOut, decoded
from and_platform.services.progress import Progress

AT_ONCE = 32
"""Ablations evaluated together, and kept together: they share the features of the clips and every layer before the first
one that they touch; a kill costs what these take."""

_KEPT_BYTES = 1 << 30

Selection = Mapping[str, Sequence[int]]


class Unit(NamedTuple):
    """A row of `ablations`: the unit of work."""

    strategy: str
    target_unit: int | None = None
    size: int | None = None
    share: float | None = None
    seed: int | None = None
    plan_id: int | None = None

    @property
    def key(self) -> Key:
        """What it is found again by."""
        return self[:5]


class Task(NamedTuple):
    """Neurons to ablate, layer -> units, and the rows that their outcome fills."""

    selection: Selection
    units: Sequence[Unit]


def in_turn(engine: sa.Engine, experiment: int, progress: Progress) -> AbstractContextManager[None]:
    """Two runs of one experiment at a time would compute everything twice: the second waits, and finds it done."""
    return locks.held(
        engine, f"experiment:{experiment}", lambda: progress.note("waiting for another run of the same experiment")
    )


def missing(session: Session, experiment: int, units: Iterable[Unit]) -> list[Unit]:
    """Those that an experiment has not measured yet."""
    there = queries.measured_units(session, experiment=experiment)
    return [unit for unit in units if unit.key not in there]


def measure(
    engine: sa.Engine,
    about: Subject,
    experiment: int,
    chosen: HeldOut,
    tasks: Iterable[Task],
    n_tasks: int,
    *,
    device: str,
    progress: Progress,
) -> int:
    """Evaluate ablations on the held-out clips, and keep their outcomes, some at a time; returns how many.

    Parameters
    ----------
    tasks
        Taken as they are needed.
    n_tasks
        How many there will be.

    Raises
    ------
    ActivationError, AudioError, ConflictError
        The network cannot be ablated so, a clip is gone, or the weights have changed.
    """
    from and_platform.backends.networks.pruning import n_parameters_of
    from and_platform.backends.networks.shared_passes import ablated_logits

    if not n_tasks:
        return 0
    with db.transaction(engine) as session:
        session.execute(sa.update(Experiment).where(Experiment.id == experiment).values(status="running"))
        row = session.get_one(Network, about.network_id)
    loaded = networks.load(row)
    sounds = _Sounds(chosen, loaded.rate)
    true = np.array([clip.unit for clip in chosen.clips])
    stream, done = iter(tasks), 0
    with progress.stage("ablate", n_tasks * len(chosen.clips), "evaluations") as advance:
        while group := list(islice(stream, AT_ONCE)):
            parts = ablated_logits(
                loaded, [task.selection for task in group], sounds, device=device, batch_size=settings().batch_size,
                advance=advance,
            )  # fmt: skip
            means = by_class(np.concatenate(list(parts), axis=1), true)
            before = {f"{key}_before": _nullable(getattr(means, key)[0]) for key in means._fields}
            rows = [
                {
                    "experiment_id": experiment, "plan_id": unit.plan_id, "strategy": unit.strategy,
                    "target_unit": unit.target_unit, "size": unit.size, "share": unit.share, "seed": unit.seed,
                    "n_neurons": sum(map(len, task.selection.values())),
                    "n_parameters": n_parameters_of(loaded, task.selection), "n_clips": chosen.n_clips, **before,
                    **{f"{key}_after": _nullable(getattr(means, key)[place]) for key in means._fields},
                }
                for place, task in enumerate(group, start=1)
                for unit in task.units
            ]  # fmt: skip
            with db.transaction(engine) as session:
                session.execute(insert(Ablation).on_conflict_do_nothing(), rows)
            done += len(group)
    return done


def facts(chosen: HeldOut) -> dict[str, Any]:
    """What the row of an experiment says of the clips."""
    empty = [name for name, n in zip(chosen.classes, chosen.n_clips, strict=True) if not n]
    return {
        "held_out_clips": len(chosen.clips), "fold": chosen.fold, "caution": chosen.caution,
        "classes_without_clips": empty, "clips_without_class": chosen.without_class,
    }  # fmt: skip


def source(about: Subject, sha256: str, chosen_clips: int | None) -> dict[str, Any]:
    """What the footer of a figure says, for every row that it is made from."""
    return {
        "network": about.network, "dataset": about.dataset, "dissection": about.dissection_id, "recipe": sha256[:10],
        "held_out_clips": chosen_clips,
    }  # fmt: skip


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


class _Sounds:
    """The clips as sound, decoded once where they fit into memory."""

    def __init__(self, chosen: HeldOut, rate: int) -> None:
        self._chosen, self._rate = chosen, rate
        self._kept: list[Clip] | None = None

    def __iter__(self) -> Iterator[Clip]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Clip] = []
        size = 0
        for clip in decoded(self._chosen, self._rate):
            size += clip.waveform.nbytes
            if size <= _KEPT_BYTES:
                kept.append(clip)
            else:
                kept.clear()
            yield clip
        if size <= _KEPT_BYTES:
            self._kept = kept
