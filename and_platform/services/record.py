"""Recording: a network's activations over a probing set, all chosen layers in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends import audio
from and_platform.backends.base import Clip
from and_platform.config import settings
from and_platform.core.exemplars import EXEMPLARS_KEPT
from and_platform.errors import AudioError, ConflictError, DatabaseError, InputError, NotFoundError
from and_platform.schema import (
    ActivationBlock,
    Dataset,
    Dissection,
    Layer,
    Network,
    ProbingSet,
    ProbingSetClip,
    Recording,
)
from and_platform.schema import Clip as ClipRow
from and_platform.services import activations, datasets, devices, networks, provenance
from and_platform.services.online import owner_if_other
from and_platform.services.progress import SILENT, Advance, Progress
from and_platform.services.provenance import RecipePlan

if TYPE_CHECKING:
    from and_platform.backends.networks.base import LoadedNetwork
    from and_platform.backends.networks.layers import LayerSpec

_DECODERS = 4
_MOST_MISSING = 0.1


@dataclass
class RecordReport:
    """What a recording came to. Layer counts are of this call."""

    recording_id: int
    probing_set_id: int
    layers_reused: int = 0
    layers_recorded: int = 0
    blocks_computed: int = 0
    failed_clips: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Member:
    position: int
    clip_id: int
    key: str
    path: Path
    root: str
    sha256: str


Mark = Callable[[str | None], None]
"""Is told which clip is next."""


class _ClipsFailedError(Exception):
    """Clips that could not be read: the snapshot has to do without them."""

    def __init__(self, failures: list[tuple[_Member, str]]) -> None:
        super().__init__(f"{len(failures)} clips")
        self.failures = failures


def choose_layers(loaded: LoadedNetwork, globs: Sequence[str] | None, pooling: str | None) -> list[LayerSpec]:
    """The layers named by patterns, or the default ones, with the pooling to use."""
    from and_platform.backends.networks.base import with_pooling

    chosen = loaded.select(globs) if globs else list(loaded.default_layers)
    return with_pooling(chosen, pooling) if pooling else chosen


def plan(network: Network, loaded: LoadedNetwork, dataset: str, probing: ProbingSet, pooling: str | None) -> RecipePlan:
    """The recipe of a recording: weights, configuration, pooling, probing set. Not which layers: more may be added.

    The names of network and data set are part of it: the same weights or the same files under two names have neurons
    and clips of their own, and so recordings of their own.
    """
    default = sorted({layer.pooling for layer in loaded.layers if layer.kind != "head"})
    return RecipePlan.of(
        "record", loaded.recipe,
        network=network.name, dataset=dataset, probing_set=probing.sha256, pooling=pooling or "+".join(default),
        dtype="float16", exemplars=EXEMPLARS_KEPT,
    )  # fmt: skip


def record(
    engine: sa.Engine,
    network: Network,
    loaded: LoadedNetwork,
    dataset: str,
    *,
    layers: Sequence[str] | None = None,
    pooling: str | None = None,
    progress: Progress = SILENT,
    run_id: int | None = None,
) -> RecordReport:
    """Record what is missing, and complete the layers.

    Killed at any point, the next call goes on: at most the block in work is lost. A clip that cannot be read is kept in
    `failures`, and the recording is made on a snapshot without it.

    Parameters
    ----------
    dataset
        Name of the data set; its live clips are the probing set.
    layers
        Patterns on layer names; default: the paper's choice.
    pooling
        `first`, `mean` or `max`; default: each layer's own.

    Raises
    ------
    NotFoundError
        The data set has no clips.
    ActivationError
        Activations that cannot be stored, with layer, unit and clip.
    """
    specs = choose_layers(loaded, layers, pooling)
    failed: list[str] = []
    copied_from: int | None = None
    abandoned: int | None = None
    while True:
        with db.transaction(engine) as session:
            probing = datasets.snapshot(session, datasets.find(session, dataset).id)
            if probing.n_clips == 0:
                raise NotFoundError(
                    f"the data set '{dataset}' has no usable clips; see: andp failures --dataset {dataset}"
                )
            recipe = plan(network, loaded, dataset, probing, pooling)
            recording_id = ensure_recording(session, network.id, probing.id, recipe, like=copied_from)
            if copied_from is not None and copied_from != recording_id:
                _take_over(session, copied_from, recording_id)
                abandoned = copied_from if drop_abandoned(session, copied_from) else None
        if abandoned is not None:
            free_partitions(engine, abandoned, progress)
        try:
            report = _record(engine, network, loaded, dataset, recording_id, probing, specs, progress)
        except _ClipsFailedError as exc:
            _keep_failures(engine, dataset, exc.failures, run_id)
            for member, reason in exc.failures:
                progress.note(f"left out: {member.key}: {reason}")
                failed.append(member.key)
            copied_from = recording_id
            continue
        report.failed_clips = failed
        return report


def ensure_recording(
    session: Session,
    network_id: int,
    probing_set_id: int,
    recipe: RecipePlan,
    *,
    block_clips: int | None = None,
    like: int | None = None,
) -> int:
    """The recording of this recipe, made with its partitions where it is new.

    Parameters
    ----------
    block_clips
        Clips of a block of a new one; default: 250.
    like
        A recording whose blocks a new one shares, if it is still there.
    """
    recipe_id = provenance.recipe_id(session, recipe)
    find = sa.select(Recording.id).where(Recording.recipe_id == recipe_id)
    there = session.scalars(find).one_or_none()
    if there is not None:
        return there
    old = session.get(Recording, like) if like is not None else None
    block_clips = old.block_clips if old else block_clips or activations.BLOCK
    made = session.scalars(
        insert(Recording)
        .values(network_id=network_id, probing_set_id=probing_set_id, recipe_id=recipe_id, block_clips=block_clips)
        .on_conflict_do_nothing(index_elements=["recipe_id"])
        .returning(Recording.id)
    ).one_or_none()
    if made is not None:
        activations.make_partitions(session, made)
        return made
    return session.scalars(find).one()


def _record(
    engine: sa.Engine,
    network: Network,
    loaded: LoadedNetwork,
    dataset: str,
    recording_id: int,
    probing: ProbingSet,
    specs: Sequence[LayerSpec],
    progress: Progress,
) -> RecordReport:
    n_clips = probing.n_clips
    report = RecordReport(recording_id, probing.id)
    with db.reading(engine) as session:
        recording = session.get_one(Recording, recording_id)
        by_name = {layer.name: layer for layer in networks.layers(session, network)}
        unknown = [spec.name for spec in specs if spec.name not in by_name]
        if unknown:
            raise ConflictError(
                f"the network '{network.name}' was added without the layers {', '.join(unknown[:3])}; "
                "the library that loads it has changed: add it again under a new name"
            )
        done = activations.recorded(session, recording)
        members = _members(session, probing.id)
        missing = [spec for spec in specs if by_name[spec.name].id not in done]
        report.layers_reused = len(specs) - len(missing)
        work: dict[int, list[LayerSpec]] = {}
        blocks = activations.blocks_of(session, recording_id)
        for block in range(len(blocks) if missing else 0):
            ids = [by_name[spec.name].id for spec in missing]
            lacking = activations.missing_layers(session, recording_id, block, ids)
            work[block] = [spec for spec in missing if by_name[spec.name].id in lacking]

    if any(work.values()):
        _check_files(members, dataset)
    total = sum(blocks.bounds(block)[1] for block, todo in work.items() if todo)
    with progress.stage("record activations", total, "clips") as advance:
        for block, todo in work.items():
            if todo:
                first, n = blocks.bounds(block)
                _land(engine, loaded, recording_id, by_name, todo, members[first : first + n], block, advance)
                report.blocks_computed += 1
            if blocks.ends_stretch(block):
                layers = [by_name[spec.name] for spec in missing]
                fold_stretch(engine, recording_id, layers, blocks.stretch(block), n_clips)
    with progress.stage("exemplars and statistics", len(missing), "layers") as advance:
        for spec in missing:
            complete_layers(engine, recording_id, [by_name[spec.name]], {spec.name: spec.pooling}, n_clips)
            report.layers_recorded += 1
            advance(1)
    if missing:
        analyze(engine, recording_id)
    return report


def _land(
    engine: sa.Engine,
    loaded: LoadedNetwork,
    recording_id: int,
    by_name: Mapping[str, Layer],
    specs: Sequence[LayerSpec],
    members: Sequence[_Member],
    block: int,
    advance: Advance,
    mark: Mark | None = None,
) -> None:
    """Compute one block of some layers and store it; `members` are its clips."""
    values = _compute(loaded, specs, members, advance, mark)
    with db.transaction(engine) as session:
        landed = {by_name[name].id: value for name, value in values.items()}
        activations.land(session, recording_id, block, landed)


def record_block(
    engine: sa.Engine,
    network: Network,
    loaded: LoadedNetwork,
    dataset: str,
    recording_id: int,
    block: int,
    layers: Sequence[str],
    pooling: str | None,
    *,
    mark: Mark | None = None,
    run_id: int | None = None,
) -> tuple[int, list[str]]:
    """One block of a recording, for the layers that lack it: a unit of work of its own.

    Parameters
    ----------
    layers
        Names of the layers.
    mark
        Called with each clip's key before it is decoded, and with None afterwards: a clip that kills the process is known then.

    Returns
    -------
    int, list of str
        Clips recorded now, and keys of those that cannot be read. Where there are any, nothing is stored, they are kept in
        `failures`, and the recording has to begin again on a snapshot without them.
    """
    with db.reading(engine) as session:
        recording = session.get(Recording, recording_id)
        if recording is None:  # another command met a clip that cannot be read, and gave it up
            return 0, ["the recording was given up for one without clips that cannot be read"]
        first, n = activations.blocks_of(session, recording_id).bounds(block)
        members = _members(session, recording.probing_set_id, first, n)
        by_name = {layer.name: layer for layer in networks.layers(session, network)}
        ids = [by_name[name].id for name in layers]
        missing = activations.missing_layers(session, recording_id, block, ids)
    specs = [spec for spec in choose_layers(loaded, list(layers), pooling) if by_name[spec.name].id in missing]
    if not specs:
        return 0, []
    if not all(member.path.exists() for member in members):
        with db.reading(engine) as session:  # whether the data set has moved is told by all of its files
            _check_files(_members(session, recording.probing_set_id), dataset)
    try:
        _land(engine, loaded, recording_id, by_name, specs, members, block, lambda _n: None, mark)
    except _ClipsFailedError as exc:
        _keep_failures(engine, dataset, exc.failures, run_id)
        return 0, [member.key for member, _ in exc.failures]
    return n, []


def restart(
    engine: sa.Engine, network: Network, loaded: LoadedNetwork, dataset: str, pooling: str | None, old: int
) -> int:
    """The recording that takes the place of one some of whose clips cannot be read; returns its id.

    What was recorded of the clips that stand where they stood is taken over. The old one stays, for those who are still at it.
    """
    with db.transaction(engine) as session:
        probing = datasets.snapshot(session, datasets.find(session, dataset).id)
        recording_id = ensure_recording(
            session, network.id, probing.id, plan(network, loaded, dataset, probing, pooling), like=old
        )
        if recording_id == old:
            return old
        _take_over(session, old, recording_id)
    return recording_id


def _keep_failures(
    engine: sa.Engine, dataset: str, failures: Sequence[tuple[_Member, str]], run_id: int | None
) -> None:
    with db.transaction(engine) as session:
        for member, reason in failures:
            provenance.record_failure(
                session, stage="record", scope=f"dataset:{dataset}", unit=member.key, reason=reason,
                run_id=run_id, clip_id=member.clip_id,
            )  # fmt: skip


def fold_stretch(engine: sa.Engine, recording_id: int, layers: Sequence[Layer], stretch: int, n_clips: int) -> int:
    """Fold a stretch of some layers, a layer a transaction; returns how many were folded now."""
    part = activations.stretches(n_clips)[stretch]
    folded = 0
    for layer in layers:
        with db.transaction(engine) as session:
            folded += activations.fold(session, recording_id, layer, part)
    if folded:
        activations.tidy_landing(engine, recording_id)
    return folded


def missing_blocks(engine: sa.Engine, recording_id: int, layers: Sequence[Layer], stretch: int) -> list[str]:
    """Names of layers of which a stretch is not folded: blocks of it have not landed."""
    with db.reading(engine) as session:
        done = activations.folded_layers(session, recording_id, stretch, [layer.id for layer in layers])
    return [layer.name for layer in layers if layer.id not in done]


def complete_layers(
    engine: sa.Engine, recording_id: int, layers: Sequence[Layer], poolings: Mapping[str, str], n_clips: int
) -> int:
    """Exemplars and statistics of layers that are folded, a layer a transaction; returns how many were completed now."""
    completed = 0
    for layer in layers:
        with db.transaction(engine) as session:
            completed += activations.complete_layer(
                session, recording_id, layer, poolings[layer.name], n_clips, cubes=settings().materialise_cubes
            )
    return completed


def analyze(engine: sa.Engine, recording_id: int) -> None:
    """The planner knows nothing of fresh partitions; autovacuum would come too late for the next stage."""
    with db.transaction(engine) as session:
        activations.analyse_partitions(session, recording_id)


def _compute(
    loaded: LoadedNetwork,
    specs: Sequence[LayerSpec],
    members: Sequence[_Member],
    advance: Advance,
    mark: Mark | None,
) -> dict[str, activations.Half]:
    from and_platform.backends.networks.record import record_batches

    parts: dict[str, list[activations.Half]] = {spec.name: [] for spec in specs}
    clips = _watched(members, loaded.rate, mark) if mark else _decoded(members, loaded.rate)
    for batch in record_batches(loaded, specs, clips, device=devices.device(), batch_size=settings().batch_size):
        for name, values in batch.items():
            parts[name].append(values)
        advance(len(next(iter(batch.values()))))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _decoded(members: Iterable[_Member], rate: int) -> Iterator[Clip]:
    """Clips in order, a few decoded ahead of the network. Every unreadable clip of the stretch is found before raising."""
    failures: list[tuple[_Member, str]] = []
    with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
        waiting = iter(members)
        ahead = [(member, pool.submit(_load, member, rate)) for member in islice(waiting, 4 * _DECODERS)]
        while ahead:
            member, future = ahead.pop(0)
            ahead += [(coming, pool.submit(_load, coming, rate)) for coming in islice(waiting, 1)]
            try:
                clip = future.result()
            except AudioError as exc:
                failures.append((member, str(exc)))
                continue
            if not failures:
                yield clip
    if failures:
        raise _ClipsFailedError(failures)


def _watched(members: Sequence[_Member], rate: int, mark: Mark) -> Iterator[Clip]:
    """As `_decoded`, but one clip at a time, each announced: if the process dies of one, it is known of which."""
    clips, failures = [], []
    for member in members:
        mark(member.key)
        try:
            clips.append(_load(member, rate))
        except AudioError as exc:
            failures.append((member, str(exc)))
    mark(None)
    if failures:
        raise _ClipsFailedError(failures)
    yield from clips


def _load(member: _Member, rate: int) -> Clip:
    waveform, rate = audio.load(audio.at(member.root, member.key), rate, member.sha256)
    return Clip(member.key, waveform, rate)


def _members(session: Session, probing_set_id: int, first: int = 0, n_clips: int | None = None) -> list[_Member]:
    """The clips of a probing set in order of position, or `n_clips` of them from `first` on."""
    rows = session.execute(
        sa.select(ProbingSetClip.position, ClipRow.id, Dataset.root, ClipRow.path, ClipRow.sha256)
        .join(ClipRow, ClipRow.id == ProbingSetClip.clip_id)
        .join(Dataset, Dataset.id == ClipRow.dataset_id)
        .where(ProbingSetClip.probing_set_id == probing_set_id, ProbingSetClip.position >= first)
        .order_by(ProbingSetClip.position)
        .limit(n_clips)
    )
    return [
        _Member(position, clip, path, Path(root) / path, root, sha256) for position, clip, root, path, sha256 in rows
    ]


def _take_over(session: Session, source: int, target: int) -> None:
    """Copy what was recorded of the clips that stand at the same positions in both snapshots, from the first one on.

    A snapshot is in order of clips: one that has gone, or has come back, moves all that stand behind it.
    """
    first = session.scalar(
        sa.text(
            "SELECT coalesce(min(o.position), max(p.n_clips)) FROM recordings s JOIN recordings t ON t.id = :target"
            " JOIN probing_sets p ON p.id = s.probing_set_id"
            " LEFT JOIN probing_set_clips o ON o.probing_set_id = s.probing_set_id AND NOT EXISTS ("
            "  SELECT FROM probing_set_clips n WHERE n.probing_set_id = t.probing_set_id AND n.position = o.position"
            "  AND n.clip_id = o.clip_id) WHERE s.id = :source"
        ),
        {"source": source, "target": target},
    )
    if first:  # NULL: the old recording is gone
        _copy_values(session, source, target, first)


def _copy_values(session: Session, source: int, target: int, first_changed: int) -> None:
    """Stretches and blocks that lie before the first clip that is gone are the same in the new snapshot."""
    activations.lock_recording(session, target)
    session.execute(
        sa.text(
            "INSERT INTO activations (recording_id, neuron_id, stretch, values)"
            " SELECT :target, neuron_id, stretch, values FROM activations"
            " WHERE recording_id = :source AND (stretch + 1) * :size <= :changed ON CONFLICT DO NOTHING"
        ),
        {"target": target, "source": source, "changed": first_changed, "size": activations.STRETCH},
    )
    columns = [column.name for column in ActivationBlock.__table__.columns if column.name != "recording_id"]
    session.execute(
        sa.text(
            f"INSERT INTO activation_blocks (recording_id, {', '.join(columns)})"
            f" SELECT :target, {', '.join(columns)} FROM activation_blocks"
            " WHERE recording_id = :source AND first_clip + n_clips <= :changed"
            " AND (SELECT count(DISTINCT block_clips) FROM recordings WHERE id IN (:source, :target)) = 1"
            " ON CONFLICT DO NOTHING"
        ),
        {"target": target, "source": source, "changed": first_changed},
    )


def drop_abandoned(session: Session, recording_id: int) -> bool:
    """Drop a recording that was given up for one on another snapshot, if nothing of it is complete and nobody is at it.

    Returns
    -------
    bool
        True if it is gone. Its partitions are still there: `free_partitions` takes them away, after this is committed.
    """
    activations.lock_recording(session, recording_id)
    return (
        session.execute(
            sa.text(
                "DELETE FROM recordings r WHERE r.id = :id"
                " AND NOT EXISTS (SELECT FROM recorded_layers l WHERE l.recording_id = r.id)"
                " AND NOT EXISTS (SELECT FROM dissections d WHERE d.recording_id = r.id)"
                " AND NOT EXISTS (SELECT FROM runs u WHERE u.distributed AND u.outcome = 'running'"
                "  AND CAST(u.plan ->> 'recording' AS bigint) = r.id) RETURNING r.id"
            ),
            {"id": recording_id},
        ).one_or_none()
        is not None
    )


def free_partitions(
    engine: sa.Engine, recording_id: int, progress: Progress = SILENT, patience: float = math.inf
) -> int:
    """Take away the partitions of a recording that is gone; returns the bytes freed.

    A user who does not own them leaves them for the owner's `andp db vacuum`, and so does one who has no more patience, in
    seconds, with the transactions that are in the way.
    """
    with db.reading(engine) as session:
        if owner_if_other(session, activations.PARTITIONED[0]):
            return 0
    return activations.drop_partitions(
        engine,
        recording_id,
        waiting=lambda who: progress.note(f"waiting for the transaction of {who} …"),
        patience=patience,
    )


def _check_files(members: Sequence[_Member], dataset: str) -> None:
    """A data set that has moved is one error, not a failure for each of its clips."""
    gone = [member.path for member in members if not member.path.exists()]
    if len(gone) > _MOST_MISSING * len(members):
        raise InputError(
            f"{len(gone):,} of the {len(members):,} files of '{dataset}' are not there any more, e.g. {gone[0]}; "
            f"if they moved: andp datasets relocate {dataset} NEW_ROOT"
        )


def overview(engine: sa.Engine) -> list[dict[str, object]]:
    """One row per recording, with its size on disk."""
    with db.reading(engine) as session:
        rows = session.execute(
            sa.text(
                "SELECT r.id AS recording, w.name AS network, s.name AS dataset, p.n_clips AS clips,"
                " (SELECT count(*) FROM recorded_layers l WHERE l.recording_id = r.id) AS layers,"
                " c.params ->> 'pooling' AS pooling, r.created_at,"
                " round((SELECT sum(pg_total_relation_size(to_regclass(:prefix || t || '_' || r.id)))"
                "        FROM unnest(CAST(:tables AS text[])) AS t) / 1e6, 1)::float AS size_mb"
                " FROM recordings r JOIN networks w ON w.id = r.network_id"
                " JOIN probing_sets p ON p.id = r.probing_set_id JOIN datasets s ON s.id = p.dataset_id"
                " JOIN recipes c ON c.id = r.recipe_id ORDER BY r.id"
            ),
            {"prefix": db.RUNTIME_PREFIX, "tables": list(activations.PARTITIONED)},
        )
        return [dict(row._mapping) for row in rows]


def unused(engine: sa.Engine) -> list[int]:
    """Ids of the recordings that no dissection reads, and of those that a killed drop left nothing of but partitions."""
    with db.reading(engine) as session:
        found = session.scalars(
            sa.text(
                "SELECT r.id FROM recordings r WHERE NOT EXISTS"
                " (SELECT FROM dissections d WHERE d.recording_id = r.id) ORDER BY r.id"
            )
        )
        return [*found, *activations.leftover(session)]


def drop(engine: sa.Engine, recording_id: int, *, progress: Progress = SILENT) -> int:
    """Drop a recording and its activations, beside others who record, fold and match, and keep none of them waiting.

    The recording's row goes first, its partitions follow: nobody begins to use what is half gone. Killed between the two,
    the same call, or `andp db vacuum`, drops the rest.

    Returns
    -------
    int
        Bytes on disk that were freed.

    Raises
    ------
    NotFoundError, ConflictError
        There is none, or dissections read it.
    DatabaseError
        Its tables are another user's.
    """
    with db.transaction(engine) as session:
        owner = owner_if_other(session, activations.PARTITIONED[0])
        if owner:
            raise DatabaseError(f"only the owner of the tables drops recordings; connect as '{owner}'")
        activations.lock_recording(session, recording_id)
        recording = session.get(Recording, recording_id)
        if recording is None and recording_id not in activations.leftover(session):
            raise NotFoundError(f"no recording {recording_id}; see: andp recordings list")
        users = session.scalars(sa.select(Dissection.id).where(Dissection.recording_id == recording_id)).all()
        if users:
            raise ConflictError(
                f"recording {recording_id} is read by dissections; drop them first: "
                + "; ".join(f"andp dissections drop {user}" for user in users)
            )
        if recording:
            session.delete(recording)
    return free_partitions(engine, recording_id, progress)
