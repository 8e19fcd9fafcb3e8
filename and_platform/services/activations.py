"""Storing activations: blocks land, stretches are folded, and whole layers are read back.

A block is some clips of a layer, the unit of resumption: 250, or fewer where workers without a GPU have begun a recording.
A stretch is 2,000 clips, the most that a page holds of a `halfvec` or of a float32 `vector` kept inline. A stretch is whole
blocks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import psycopg
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.config import settings
from and_platform.core.exemplars import (
    EXEMPLARS_KEPT,
    ExemplarAccumulator,
    Exemplars,
    Statistics,
    StatisticsAccumulator,
)
from and_platform.core.similarity import cos_cubed
from and_platform.errors import IncompleteError, NotFoundError
from and_platform.schema import ActivationBlock, Layer, Neuron, ProbingSet, RecordedLayer, Recording
from and_platform.services import locks
from and_platform.services.online import online, owner_if_other

BLOCK = 250
"""Clips of a block."""
SLOW_BLOCK = 25
"""The same for workers on a CPU, where a network of published size takes a second or two for a clip."""
LEAST_BLOCK = 10
"""However small units of work are to be: each block is a transaction, and a row for each layer."""
STRETCH = 2000
_TILE_CELLS = 1 << 24

PARTITIONED = (
    "activation_blocks",
    "activations",
    "activation_cubes",
    "exemplars",
    "neuron_statistics",
    "concept_matches",
)

Half = NDArray[np.float16]


@dataclass(frozen=True)
class Stretch:
    """Positions [first, first + n_clips) of a probing set."""

    index: int
    first: int
    n_clips: int

    def blocks(self, size: int) -> range:
        """The blocks of `size` clips that it consists of."""
        return range(self.first // size, (self.first + self.n_clips + size - 1) // size)


def stretches(n_clips: int) -> list[Stretch]:
    """The stretches of a probing set of `n_clips`."""
    return [Stretch(i, first, min(STRETCH, n_clips - first)) for i, first in enumerate(range(0, n_clips, STRETCH))]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a recording: `size` clips each of `n_clips`, the last one what is left."""

    size: int
    n_clips: int

    def __len__(self) -> int:
        return -(-self.n_clips // self.size)

    def bounds(self, block: int) -> tuple[int, int]:
        """First position and number of clips."""
        first = block * self.size
        return first, min(self.size, self.n_clips - first)

    def stretch(self, block: int) -> int:
        """The stretch that it is part of."""
        return block * self.size // STRETCH

    def ends_stretch(self, block: int) -> bool:
        """Whether it is the last one of its stretch."""
        return block + 1 == len(self) or self.stretch(block + 1) != self.stretch(block)


def block_size(device: str) -> int:
    """Clips of a block where a worker with this device begins a recording: a divisor of `STRETCH`.

    There a block is a unit of work, which is to take less than a minute, times `ANDP_UNIT_SIZE`.
    """
    usual = min(BLOCK, SLOW_BLOCK) if device == "cpu" else BLOCK
    wanted = max(min(LEAST_BLOCK, BLOCK), round(usual * settings().unit_size))
    return max(size for size in range(1, STRETCH + 1) if STRETCH % size == 0 and size <= wanted)


def blocks_of(session: Session, recording_id: int) -> Blocks:
    """How a recording is cut into blocks."""
    recording = session.get_one(Recording, recording_id)
    return Blocks(recording.block_clips, session.get_one(ProbingSet, recording.probing_set_id).n_clips)


def make_partitions(session: Session, recording_id: int) -> None:
    """The partitions of a recording, made by the schema's owner whoever asks."""
    session.execute(sa.text("SELECT andp_make_partitions(:id)"), {"id": recording_id})


def analyse_partitions(session: Session, recording_id: int) -> None:
    """The planner knows nothing of fresh partitions; autovacuum would come too late for the next stage."""
    session.execute(sa.text("SELECT andp_analyse_partitions(:id)"), {"id": recording_id})


def drop_partitions(
    engine: sa.Engine,
    recording_id: int,
    *,
    waiting: Callable[[str], None] = lambda _who: None,
    patience: float = math.inf,
) -> int:
    """Take away the partitions of a recording whose row is gone already, and keep nobody else waiting.

    Each is detached first, which waits for the transactions that are at work on any recording and lets new ones begin;
    then it is a table of its own, and its end concerns nobody. Killed half-way, the next call finishes it.

    Parameters
    ----------
    waiting
        Told whom it waits for, once for each of them.
    patience
        Seconds to wait for each transaction that is in the way; after that the rest stays for `andp db vacuum`.

    Returns
    -------
    int
        Bytes on disk that were freed.
    """
    freed = 0
    # One at a time: a parent has at most one partition that is on its way out.
    with locks.held(engine, "drop partitions"), online(engine, lock_timeout=_LOCK_PATIENCE) as connection:
        for table in PARTITIONED:
            _finish_detaching(connection, table, waiting, patience)
            name = f"{db.RUNTIME_PREFIX}{table}_{recording_id}"
            if connection.scalar(
                sa.text("SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(:name))"), {"name": name}
            ):
                try:
                    connection.exec_driver_sql(f"ALTER TABLE {table} DETACH PARTITION {name} CONCURRENTLY")
                except sa.exc.OperationalError as exc:
                    if not isinstance(exc.orig, psycopg.errors.LockNotAvailable):
                        raise
                    _finish_detaching(connection, table, waiting, patience)
            size = connection.scalar(sa.text("SELECT pg_total_relation_size(to_regclass(:name))"), {"name": name})
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
            freed += size or 0
    return freed


def leftover(session: Session) -> list[int]:
    """Recordings that are gone, but for partitions that a killed drop, or a worker who is not their owner, left."""
    return list(
        session.scalars(
            sa.text(
                "SELECT DISTINCT x.id FROM pg_class c"
                " CROSS JOIN LATERAL (SELECT substring(c.relname FROM '[0-9]+$')::bigint) AS x (id)"
                " WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(:parent))"
                " AND c.relkind = 'r' AND c.relname ~ :pattern"
                " AND NOT EXISTS (SELECT FROM recordings r WHERE r.id = x.id) ORDER BY x.id"
            ),
            {"parent": PARTITIONED[0], "pattern": f"^{db.RUNTIME_PREFIX}({'|'.join(PARTITIONED)})_[0-9]+$"},
        )
    )


def _finish_detaching(connection: sa.Connection, table: str, waiting: Callable[[str], None], patience: float) -> None:
    """End the detaching that was begun and killed, or that gave way to a long transaction."""
    told: set[int] = set()
    began = time.monotonic()
    while pending := connection.scalar(
        sa.text(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:table) AND inhdetachpending"
        ),
        {"table": table},
    ):
        try:
            connection.exec_driver_sql(f"ALTER TABLE {table} DETACH PARTITION {pending} FINALIZE")
        except sa.exc.OperationalError as exc:
            if not isinstance(exc.orig, psycopg.errors.LockNotAvailable) or time.monotonic() - began > patience:
                raise
            for pid, who in connection.execute(_AT_WORK_ON, {"table": table}):
                if pid not in told:
                    waiting(who)
                    told.add(pid)


_LOCK_PATIENCE = 2.0
"""Seconds after which one looks who is in the way."""

_AT_WORK_ON = sa.text(
    "SELECT a.pid, format('process %s (%s), at work since %s', a.pid, coalesce(nullif(a.application_name, ''), '?'),"
    " to_char(a.xact_start, 'HH24:MI:SS')) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.relation = to_regclass(:table) AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL"
    " GROUP BY a.pid, a.application_name, a.xact_start ORDER BY a.xact_start LIMIT 1"
)


def tidy_landing(engine: sa.Engine, recording_id: int) -> None:
    """Empty the file of the landing place where all that landed is folded, so that it stays as large as a stretch.

    Where others land meanwhile, or the user is not the owner, autovacuum makes room: later, and for twice the WAL.
    """
    name = f"{db.RUNTIME_PREFIX}activation_blocks_{recording_id}"
    empty = sa.text(f"SELECT NOT EXISTS (SELECT FROM {name})")
    with db.transaction(engine) as session:
        if owner_if_other(session, "activation_blocks"):
            return
        try:
            if session.scalar(empty):
                session.execute(sa.text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT"))
                if session.scalar(empty):
                    session.execute(sa.text(f"TRUNCATE {name}"))
        except sa.exc.DBAPIError as exc:
            # Someone has just begun to land, or to drop the recording.
            if not isinstance(exc.orig, psycopg.errors.LockNotAvailable | psycopg.errors.UndefinedTable):
                raise
            session.rollback()


def lock_recording(session: Session, recording_id: int) -> None:
    """Wait until nobody lands, folds or completes anything of a recording, and let nobody begin."""
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('recording'), :id)"), {"id": recording_id})


def _join(session: Session, recording_id: int, part: str) -> None:
    """Take part in a recording: beside everyone who is at another part of it, after whoever is at the same one."""
    session.execute(
        sa.text(
            "SELECT pg_advisory_xact_lock_shared(hashtext('recording'), :id),"
            " pg_advisory_xact_lock(hashtextextended(:part, :id))"
        ),
        {"id": recording_id, "part": part},
    )
    if session.scalar(sa.select(Recording.id).where(Recording.id == recording_id)) is None:
        raise NotFoundError(f"recording {recording_id} was dropped meanwhile; run the same command again")


# ---------------------------------------------------------------------- landing and folding


def land(session: Session, recording_id: int, block: int, values: dict[int, Half]) -> None:
    """Store one block of several layers; layers that were folded meanwhile, or landed already, are passed over.

    Parameters
    ----------
    values
        Layer id -> float16 [clips of the block, units].
    """
    # A block that has landed already is there, or is folded: folding takes it away and puts it in place in one moment,
    # and `missing_layers` looks in this order.
    _join(session, recording_id, f"block {block}")
    first, n = blocks_of(session, recording_id).bounds(block)
    wanted = set(values) & missing_layers(session, recording_id, block, list(values))
    db.copy_rows(
        session,
        "activation_blocks",
        {
            "recording_id": "int8",
            "layer_id": "int8",
            "block": "int4",
            "first_clip": "int4",
            "n_clips": "int4",
            "data": "bytea",
        },
        (
            (recording_id, layer, block, first, n, np.ascontiguousarray(values[layer], "<f2").tobytes())
            for layer in sorted(wanted)
        ),
    )


def missing_layers(session: Session, recording_id: int, block: int, layer_ids: list[int]) -> set[int]:
    """Which of the layers have neither this block nor the stretch it belongs to."""
    landed = session.scalars(
        sa.select(ActivationBlock.layer_id).where(
            ActivationBlock.recording_id == recording_id,
            ActivationBlock.block == block,
            ActivationBlock.layer_id.in_(layer_ids),
        )
    )
    stretch = blocks_of(session, recording_id).stretch(block)
    return set(layer_ids) - set(landed) - folded_layers(session, recording_id, stretch, layer_ids)


def folded_layers(session: Session, recording_id: int, stretch: int, layer_ids: list[int]) -> set[int]:
    """Which of the layers have this stretch folded."""
    rows = session.execute(
        sa.text(
            "SELECT l.id FROM unnest(CAST(:layers AS bigint[])) AS l (id) WHERE EXISTS ("
            " SELECT FROM activations a WHERE a.recording_id = :recording AND a.stretch = :stretch"
            " AND a.neuron_id = (SELECT n.id FROM neurons n WHERE n.layer_id = l.id AND n.unit = 0))"
        ),
        {"layers": layer_ids, "recording": recording_id, "stretch": stretch},
    )
    return set(rows.scalars())


def fold(session: Session, recording_id: int, layer: Layer, stretch: Stretch) -> bool:
    """Turn the blocks of a stretch of a layer into one row per neuron, if all of them have landed.

    Returns
    -------
    bool
        True if it was folded now.
    """
    _join(session, recording_id, f"layer {layer.id}")
    if folded_layers(session, recording_id, stretch.index, [layer.id]):
        return False
    blocks = stretch.blocks(blocks_of(session, recording_id).size)
    of_stretch = (
        ActivationBlock.recording_id == recording_id,
        ActivationBlock.layer_id == layer.id,
        ActivationBlock.block.in_(blocks),
    )
    landed = session.scalars(sa.select(ActivationBlock.block).where(*of_stretch).order_by(ActivationBlock.block)).all()
    if len(landed) < len(blocks):
        return False
    values = np.empty((stretch.n_clips, layer.n_units), "<f2")
    filled = 0
    for block in landed:  # one at a time: a block of a wide layer takes tens of MB, and twice that on the wire
        data = session.scalars(
            sa.select(ActivationBlock.data).where(*of_stretch[:2], ActivationBlock.block == block)
        ).one()
        part = np.frombuffer(data, "<f2").reshape(-1, layer.n_units)
        values[filled : filled + len(part)] = part[: stretch.n_clips - filled]
        filled += len(part)
    if filled != stretch.n_clips:
        raise IncompleteError(
            f"the blocks of layer {layer.name} hold {filled} clips, not {stretch.n_clips}; record it again"
        )
    db.copy_columns(
        session,
        "activations",
        {
            "recording_id": ("int8", recording_id),
            "neuron_id": ("int8", np.asarray(neuron_ids(session, layer.id))),
            "stretch": ("int4", stretch.index),
            "values": ("halfvec", values.T),
        },
    )
    session.execute(sa.delete(ActivationBlock).where(*of_stretch))
    return True


def complete_layer(
    session: Session, recording_id: int, layer: Layer, pooling: str, n_clips: int, *, cubes: bool
) -> bool:
    """Exemplars, statistics and cubes of a layer whose stretches are all folded.

    Returns
    -------
    bool
        True if it was completed now; False if a stretch is missing or it was complete already.
    """
    _join(session, recording_id, f"layer {layer.id}")
    if session.get(RecordedLayer, (recording_id, layer.id)) is not None:
        return False
    parts = stretches(n_clips)
    if any(not folded_layers(session, recording_id, part.index, [layer.id]) for part in parts):
        return False
    ids = np.asarray(neuron_ids(session, layer.id))
    for units in _tiles(layer.n_units, min(n_clips, STRETCH)):
        n_units = units.stop - units.start
        exemplars, statistics = ExemplarAccumulator(n_units, EXEMPLARS_KEPT), StatisticsAccumulator(n_units)
        for part in parts:
            values = _read(session, recording_id, layer, part.index, units)
            exemplars.update(values.T, part.first)
            statistics.update(values.T)
        _write_exemplars(session, recording_id, ids[units], exemplars.result())
        _write_statistics(session, recording_id, ids[units], statistics.result())
    if cubes:
        _write_cubes(session, recording_id, layer, ids, parts)
    session.add(RecordedLayer(recording_id=recording_id, layer_id=layer.id, pooling=pooling))
    session.flush()
    return True


def _write_exemplars(session: Session, recording_id: int, ids: NDArray[np.int64], found: Exemplars) -> None:
    for side, positions, values in (
        ("high", found.high_positions, found.high_values),
        ("low", found.low_positions, found.low_values),
    ):
        db.copy_columns(
            session,
            "exemplars",
            {
                "recording_id": ("int8", recording_id),
                "neuron_id": ("int8", ids),
                "side": ("text", side),
                "positions": ("int4[]", positions),
                "activations": ("float4[]", values),
            },
        )


def _write_statistics(session: Session, recording_id: int, ids: NDArray[np.int64], found: Statistics) -> None:
    columns = {name: ("float4", values) for name, values in found._asdict().items()}
    db.copy_columns(
        session, "neuron_statistics", {"recording_id": ("int8", recording_id), "neuron_id": ("int8", ids), **columns}
    )


def _write_cubes(
    session: Session, recording_id: int, layer: Layer, ids: NDArray[np.int64], parts: list[Stretch]
) -> None:
    mean, norm = np.zeros(layer.n_units), np.zeros(layer.n_units)
    n = sum(part.n_clips for part in parts)
    for part in parts:
        mean += _read(session, recording_id, layer, part.index).sum(axis=1, dtype=np.float64) / n
    for part in parts:
        values = _read(session, recording_id, layer, part.index)
        for rows in _tiles(layer.n_units, part.n_clips):
            norm[rows] += np.square((values[rows] - mean[rows, None]) ** 3).sum(axis=1)
    norm = np.maximum(np.sqrt(norm), cos_cubed.min_norm)
    for part in parts:
        values = _read(session, recording_id, layer, part.index)
        cubed = np.empty(values.shape, np.float32)
        for rows in _tiles(layer.n_units, part.n_clips):
            cubed[rows] = (values[rows] - mean[rows, None]) ** 3 / norm[rows, None]
        db.copy_columns(
            session,
            "activation_cubes",
            {
                "recording_id": ("int8", recording_id),
                "neuron_id": ("int8", ids),
                "stretch": ("int4", part.index),
                "values": ("vector", cubed),
            },
        )


def _tiles(n_units: int, n_clips: int) -> Iterator[slice]:
    """Units in slices of `_TILE_CELLS` cells: what is made of them, in float64 or at once in memory, stays small."""
    step = max(1, _TILE_CELLS // n_clips)
    return (slice(start, min(start + step, n_units)) for start in range(0, n_units, step))


# ---------------------------------------------------------------------- reading


def neuron_ids(session: Session, layer_id: int) -> list[int]:
    """Ids of a layer's neurons, by unit."""
    return list(session.scalars(sa.select(Neuron.id).where(Neuron.layer_id == layer_id).order_by(Neuron.unit)))


def read_layer(session: Session, recording_id: int, layer: Layer, n_clips: int) -> Half:
    """Activations of a complete layer.

    Returns
    -------
    float16 [units, clips]
        In order of unit and of position.

    Raises
    ------
    IncompleteError
        The layer has not been recorded in full.
    """
    if session.get(RecordedLayer, (recording_id, layer.id)) is None:
        raise IncompleteError(f"layer {layer.name} is not recorded yet; run: andp dissect")
    values = np.empty((layer.n_units, n_clips), np.float16)
    for part in stretches(n_clips):
        values[:, part.first : part.first + part.n_clips] = _read(session, recording_id, layer, part.index)
    return values


def read_layers(session: Session, recording_id: int, layers: list[Layer], n_clips: int) -> Iterator[tuple[Layer, Half]]:
    """Layer by layer, so that memory holds one at a time."""
    for layer in layers:
        yield layer, read_layer(session, recording_id, layer, n_clips)


def read_tiles(session: Session, recording_id: int, layer: Layer, n_clips: int) -> Iterator[Half]:
    """As `read_layer`, some units at a time with all their clips: float16 [some units, clips]; a tile is about 32 MB."""
    if session.get(RecordedLayer, (recording_id, layer.id)) is None:
        raise IncompleteError(f"layer {layer.name} is not recorded yet; run: andp dissect")
    for units in _tiles(layer.n_units, n_clips):
        tile = np.empty((units.stop - units.start, n_clips), np.float16)
        for part in stretches(n_clips):
            tile[:, part.first : part.first + part.n_clips] = _read(session, recording_id, layer, part.index, units)
        yield tile


def _read(session: Session, recording_id: int, layer: Layer, stretch: int, units: slice | None = None) -> Half:
    """One stretch of a layer, or of some units, float16 [units, clips], by binary COPY: the vectors' bytes as they come."""
    units = units or slice(0, layer.n_units)
    values = db.read_vectors(
        session,
        # One look-up a neuron, whatever the planner believes of a partition that has just been filled: it would scan
        # the whole of it for every layer.
        "SELECT x.values FROM neurons n CROSS JOIN LATERAL (SELECT a.values FROM activations a"
        " WHERE a.recording_id = %s AND a.neuron_id = n.id AND a.stretch = %s LIMIT 1) x"
        " WHERE n.layer_id = %s AND n.unit >= %s AND n.unit < %s ORDER BY n.unit",
        (recording_id, stretch, layer.id, units.start, units.stop),
        half=True,
    )
    if len(values) != units.stop - units.start:
        raise IncompleteError(f"layer {layer.name} has not one vector per neuron; record it again")
    return values


def recorded(session: Session, recording: Recording) -> set[int]:
    """Ids of the layers that are complete in a recording."""
    return set(session.scalars(sa.select(RecordedLayer.layer_id).where(RecordedLayer.recording_id == recording.id)))
