"""Storing activations: blocks land, stretches are folded, and whole layers are read back.

A block is 250 clips of a layer, the unit of resumption. A stretch is 2,000 clips, the most that a page holds of a
`halfvec` or of a float32 `vector` kept inline. 250 divides 2,000, so a stretch is eight whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.exemplars import (
    EXEMPLARS_KEPT,
    ExemplarAccumulator,
    Exemplars,
    Statistics,
    StatisticsAccumulator,
)
from and_platform.core.similarity import cos_cubed
from and_platform.errors import IncompleteError
from and_platform.schema import ActivationBlock, Layer, Neuron, RecordedLayer, Recording

BLOCK = 250
STRETCH = 2000

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

    @property
    def blocks(self) -> range:
        return range(self.first // BLOCK, (self.first + self.n_clips + BLOCK - 1) // BLOCK)


def stretches(n_clips: int) -> list[Stretch]:
    """The stretches of a probing set of `n_clips`."""
    return [Stretch(i, first, min(STRETCH, n_clips - first)) for i, first in enumerate(range(0, n_clips, STRETCH))]


def block_bounds(block: int, n_clips: int) -> tuple[int, int]:
    """First position and number of clips of a block."""
    first = block * BLOCK
    return first, min(BLOCK, n_clips - first)


def make_partitions(session: Session, recording_id: int) -> None:
    """The partitions of a recording. Made aside and attached: the parents stay open to readers and writers."""
    for table in PARTITIONED:
        name = f"{db.RUNTIME_PREFIX}{table}_{recording_id}"
        session.execute(sa.text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
        session.execute(sa.text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES IN ({recording_id})"))


def drop_partitions(session: Session, recording_id: int) -> None:
    """Take the rows of a recording away at once."""
    for table in PARTITIONED:
        session.execute(sa.text(f"DROP TABLE IF EXISTS {db.RUNTIME_PREFIX}{table}_{recording_id}"))


def lock_recording(session: Session, recording_id: int) -> None:
    """Landing and folding of one recording happen one after the other, whoever does them."""
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('recording'), :id)"), {"id": recording_id})


# ---------------------------------------------------------------------- landing and folding


def land(session: Session, recording_id: int, block: int, n_clips: int, values: dict[int, Half]) -> None:
    """Store one block of several layers; layers that were folded meanwhile, or landed already, are passed over.

    Parameters
    ----------
    values
        Layer id -> float16 [clips of the block, units].
    """
    lock_recording(session, recording_id)
    first, n = block_bounds(block, n_clips)
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
    return set(layer_ids) - set(landed) - folded_layers(session, recording_id, block * BLOCK // STRETCH, layer_ids)


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
    lock_recording(session, recording_id)
    if folded_layers(session, recording_id, stretch.index, [layer.id]):
        return False
    blocks = session.execute(
        sa.select(ActivationBlock.block, ActivationBlock.data)
        .where(
            ActivationBlock.recording_id == recording_id,
            ActivationBlock.layer_id == layer.id,
            ActivationBlock.block.in_(stretch.blocks),
        )
        .order_by(ActivationBlock.block)
    ).all()
    if len(blocks) < len(stretch.blocks):
        return False
    values = np.concatenate([np.frombuffer(row.data, "<f2").reshape(-1, layer.n_units) for row in blocks])
    if len(values) != stretch.n_clips:
        raise IncompleteError(
            f"the blocks of layer {layer.name} hold {len(values)} clips, not {stretch.n_clips}; record it again"
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
    session.execute(
        sa.delete(ActivationBlock).where(
            ActivationBlock.recording_id == recording_id,
            ActivationBlock.layer_id == layer.id,
            ActivationBlock.block.in_(stretch.blocks),
        )
    )
    return True


def complete_layer(
    session: Session, recording_id: int, layer: Layer, pooling: str, n_clips: int, *, cubes: bool
) -> bool:
    """Exemplars, statistics and cubes of a layer whose stretches are all folded, in one pass over them.

    Returns
    -------
    bool
        True if it was completed now; False if a stretch is missing or it was complete already.
    """
    lock_recording(session, recording_id)
    if session.get(RecordedLayer, (recording_id, layer.id)) is not None:
        return False
    parts = stretches(n_clips)
    if any(not folded_layers(session, recording_id, part.index, [layer.id]) for part in parts):
        return False
    exemplars, statistics = ExemplarAccumulator(layer.n_units, EXEMPLARS_KEPT), StatisticsAccumulator(layer.n_units)
    for part in parts:
        values = _read(session, recording_id, layer, part.index)
        exemplars.update(values.T, part.first)
        statistics.update(values.T)
    ids = np.asarray(neuron_ids(session, layer.id))
    _write_exemplars(session, recording_id, ids, exemplars.result())
    _write_statistics(session, recording_id, ids, statistics.result())
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
        centred = _read(session, recording_id, layer, part.index) - mean[:, None]
        norm += np.square(centred**3).sum(axis=1)
    norm = np.maximum(np.sqrt(norm), cos_cubed.min_norm)
    for part in parts:
        cubed = (_read(session, recording_id, layer, part.index) - mean[:, None]) ** 3 / norm[:, None]
        db.copy_columns(
            session,
            "activation_cubes",
            {
                "recording_id": ("int8", recording_id),
                "neuron_id": ("int8", ids),
                "stretch": ("int4", part.index),
                "values": ("vector", cubed.astype(np.float32)),
            },
        )


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
    parts = [_read(session, recording_id, layer, part.index) for part in stretches(n_clips)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def read_layers(session: Session, recording_id: int, layers: list[Layer], n_clips: int) -> Iterator[tuple[Layer, Half]]:
    """Layer by layer, so that memory holds one at a time."""
    for layer in layers:
        yield layer, read_layer(session, recording_id, layer, n_clips)


def _read(session: Session, recording_id: int, layer: Layer, stretch: int) -> Half:
    """One stretch of a layer, float16 [units, clips], by binary COPY: the vectors' bytes as they come."""
    values = db.read_vectors(
        session,
        # One look-up a neuron, whatever the planner believes of a partition that has just been filled: it would scan
        # the whole of it for every layer.
        "SELECT x.values FROM neurons n CROSS JOIN LATERAL (SELECT a.values FROM activations a"
        " WHERE a.recording_id = %s AND a.neuron_id = n.id AND a.stretch = %s LIMIT 1) x"
        " WHERE n.layer_id = %s ORDER BY n.unit",
        (recording_id, stretch, layer.id),
        half=True,
    )
    if len(values) != layer.n_units:
        raise IncompleteError(f"layer {layer.name} has not one vector per neuron; record it again")
    return values


def recorded(session: Session, recording: Recording) -> set[int]:
    """Ids of the layers that are complete in a recording."""
    return set(session.scalars(sa.select(RecordedLayer.layer_id).where(RecordedLayer.recording_id == recording.id)))
