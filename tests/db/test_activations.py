"""Landing, folding, completing and reading activations."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
import torch

from and_platform import db
from and_platform.config import Settings
from and_platform.core.exemplars import EXEMPLARS_KEPT, exemplars, statistics
from and_platform.core.similarity import SIMILARITIES
from and_platform.errors import AndpError, DatabaseError, IncompleteError
from and_platform.schema import ActivationBlock, Layer, Network, ProbingSet, RecordedLayer, Recording
from and_platform.services import activations, datasets, record
from and_platform.services.activations import Blocks, Stretch, stretches
from and_platform.services.provenance import RecipePlan
from tests import factories

LAYERS = {"b00.ff_in": 3, "head": 2}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 clips, stretches of 4."""
    monkeypatch.setattr(activations, "BLOCK", 2)
    monkeypatch.setattr(activations, "STRETCH", 4)


def begin(engine: sa.Engine, n_clips: int) -> tuple[Network, ProbingSet, Recording, dict[str, Layer]]:
    with db.transaction(engine) as session:
        sounds = factories.dataset(session, n_clips=n_clips)
        probing = datasets.snapshot(session, sounds.id)
        network = factories.network(session, layers=LAYERS)
        recording = factories.begin_recording(session, network, probing)
        return network, probing, recording, factories.layers_of(session, network)


def count(engine: sa.Engine, table: str) -> int:
    with db.reading(engine) as session:
        return int(session.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one())


# ---------------------------------------------------------------------- cutting


@pytest.mark.parametrize(
    ("n_clips", "expected"),
    [
        (1, [Stretch(0, 0, 1)]),
        (2000, [Stretch(0, 0, 2000)]),
        (2001, [Stretch(0, 0, 2000), Stretch(1, 2000, 1)]),
        (4500, [Stretch(0, 0, 2000), Stretch(1, 2000, 2000), Stretch(2, 4000, 500)]),
    ],
)
def test_stretches_cover_all_clips(n_clips: int, expected: list[Stretch]) -> None:
    assert stretches(n_clips) == expected


def test_a_stretch_is_whole_blocks() -> None:
    assert [list(part.blocks(250)) for part in stretches(4500)] == [list(range(8)), list(range(8, 16)), [16, 17]]
    assert [len(part.blocks(25)) for part in stretches(4501)] == [80, 80, 21]
    blocks = Blocks(250, 4251)
    assert len(blocks) == 18 and [blocks.bounds(i) for i in (0, 17)] == [(0, 250), (4250, 1)]
    assert [blocks.stretch(i) for i in (0, 7, 8, 16, 17)] == [0, 0, 1, 2, 2]
    assert [i for i in range(18) if blocks.ends_stretch(i)] == [7, 15, 17]


@pytest.mark.parametrize(
    ("device", "unit_size", "expected"),
    [
        ("cuda", 1, 250), ("cuda:1", 0.5, 125), ("mps", 2, 500), ("cuda", 100, 2000), ("cuda", 0.3, 50), ("cuda", 0.001, 10),
        ("cpu", 1, 25), ("cpu", 2, 50), ("cpu", 10, 250), ("cpu", 0.5, 10), ("cpu", 0.01, 10),
    ],
)  # fmt: skip
def test_a_block_is_a_unit_of_work(
    monkeypatch: pytest.MonkeyPatch, device: str, unit_size: float, expected: int
) -> None:
    monkeypatch.setattr(activations, "settings", lambda: Settings(unit_size=unit_size))
    assert activations.block_size(device) == expected
    assert activations.STRETCH % expected == 0


# ---------------------------------------------------------------------- round trip


def test_every_half_value_survives(engine: sa.Engine) -> None:
    """Bits in, the same bits out: subnormals, the largest, negative zero."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = bits[np.isfinite(bits)]
    n_clips = 1000
    values = np.resize(finite, (LAYERS["head"] * 32, n_clips))  # 64,000 of the 63,488 finite values
    assert len(np.unique(values.view(np.uint16))) == len(finite)
    layers = {"head": len(values)}
    with db.transaction(engine) as session:
        world = factories.world(session, layers=layers, n_clips=n_clips, values={"head": values}, told={})
    with db.reading(engine) as session:
        read = activations.read_layer(session, world.recording.id, world.layers["head"], n_clips)
    assert read.dtype == np.float16
    np.testing.assert_array_equal(read.view(np.uint16), values.view(np.uint16))


@pytest.mark.parametrize("n_clips", [1, 2, 3, 4, 5, 8, 11])
def test_several_stretches_come_back_whole(engine: sa.Engine, small_blocks: None, n_clips: int) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session, layers=LAYERS, n_clips=n_clips, told={})
    assert count(engine, "activation_blocks") == 0
    assert count(engine, "activations") == sum(LAYERS.values()) * len(stretches(n_clips))
    with db.reading(engine) as session:
        for layer, values in activations.read_layers(session, world.recording.id, list(world.layers.values()), n_clips):
            np.testing.assert_array_equal(values, world.values[layer.name])


def test_exemplars_and_statistics_are_those_of_the_stored_values(engine: sa.Engine, small_blocks: None) -> None:
    rng = np.random.default_rng(3)
    # A few distinct values, so that ties abound, over many stretches; one neuron is constant.
    values = {name: rng.integers(-3, 4, (units, 57)).astype(np.float16) for name, units in LAYERS.items()}
    values["head"][1] = 0.1
    with db.transaction(engine) as session:
        world = factories.world(session, layers=LAYERS, n_clips=57, values=values, told={})
    for name, stored in world.values.items():
        ids = [world.neurons[f"{name}#{unit}"] for unit in range(LAYERS[name])]
        expected = exemplars(stored)
        with db.reading(engine) as session:
            rows = session.execute(
                sa.text(
                    "SELECT side, positions, activations FROM exemplars WHERE neuron_id = ANY (:ids) ORDER BY side, neuron_id"
                ),
                {"ids": ids},
            ).all()
            found = session.execute(
                sa.text(
                    "SELECT mean, sd, min, max, sparsity FROM neuron_statistics WHERE neuron_id = ANY (:ids) ORDER BY neuron_id"
                ),
                {"ids": ids},
            ).all()
        high, low = rows[: len(ids)], rows[len(ids) :]
        assert {row.side for row in high} == {"high"}
        assert {row.side for row in low} == {"low"}
        assert [len(row.positions) for row in rows] == [EXEMPLARS_KEPT] * len(rows)
        np.testing.assert_array_equal([row.positions for row in high], expected.high_positions)
        np.testing.assert_array_equal([row.positions for row in low], expected.low_positions)
        np.testing.assert_array_equal(np.array([row.activations for row in high], np.float32), expected.high_values)
        np.testing.assert_array_equal(np.array([row.activations for row in low], np.float32), expected.low_values)
        np.testing.assert_allclose(np.asarray(found).T, np.stack(statistics(stored)), rtol=1e-6, atol=1e-7)


def test_cubes_are_centred_cubed_and_of_unit_length(engine: sa.Engine, small_blocks: None) -> None:
    values = factories.random_values(LAYERS, 11, seed=5)
    values["head"][0] = 7  # constant
    values["head"][1] = values["head"][1] / 1000  # below the smallest norm: not blown up
    with db.transaction(engine) as session:
        world = factories.world(session, layers=LAYERS, n_clips=11, values=values, told={})
    with db.reading(engine) as session:
        rows = session.execute(
            sa.text("SELECT neuron_id, stretch, vector_to_float4(values, -1, true) AS cube FROM activation_cubes")
        ).all()
    found: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(row.neuron_id, {})[row.stretch] = row.cube
    for name, stored in world.values.items():
        wide = stored.astype(np.float64)
        cubes = (wide - wide.mean(axis=1, keepdims=True)) ** 3
        cubes /= np.maximum(np.linalg.norm(cubes, axis=1, keepdims=True), 1e-3)
        for unit, expected in enumerate(cubes):
            parts = found[world.neurons[f"{name}#{unit}"]]
            np.testing.assert_allclose(np.concatenate([parts[i] for i in sorted(parts)]), expected, atol=1e-6)
    # The same as the function's own vectors: its score of a neuron with itself is the squared length.
    hidden = torch.from_numpy(world.values["b00.ff_in"].astype(np.float32))
    self_scores = SIMILARITIES["cos_cubed"](hidden, hidden.T).diagonal().numpy()
    lengths = [sum(x * x for part in found[world.neurons[f"b00.ff_in#{i}"]].values() for x in part) for i in range(3)]
    np.testing.assert_allclose(lengths, self_scores, rtol=1e-4)


def test_without_cubes_none_are_kept(engine: sa.Engine) -> None:
    network, probing, _, _ = begin(engine, 4)
    with db.transaction(engine) as session:
        factories.recording(session, network, probing, factories.random_values(LAYERS, 4), cubes=False)
    assert count(engine, "activation_cubes") == 0
    assert count(engine, "neuron_statistics") == sum(LAYERS.values())


# ---------------------------------------------------------------------- units done twice, or not all done


def test_landing_twice_doubles_nothing(engine: sa.Engine, small_blocks: None) -> None:
    _, _, recording, layers = begin(engine, 6)
    values = factories.random_values(LAYERS, 6)
    by_id = {layers[name].id: value for name, value in values.items()}
    for _ in range(2):
        with db.transaction(engine) as session:
            factories.land(session, recording, by_id, 6, blocks=[0, 1])
    assert count(engine, "activation_blocks") == 4
    with db.transaction(engine) as session:
        assert activations.fold(session, recording.id, layers["head"], stretches(6)[0])
    with db.transaction(engine) as session:  # a worker that was late: its stretch of the head is folded already
        factories.land(session, recording, by_id, 6, blocks=[0, 1])
    assert count(engine, "activation_blocks") == 2
    with db.reading(engine) as session:
        both = list(by_id)
        assert activations.missing_layers(session, recording.id, 0, both) == set()
        assert activations.missing_layers(session, recording.id, 2, both) == set(both)


def test_folding_waits_for_all_blocks(engine: sa.Engine, small_blocks: None) -> None:
    _, _, recording, layers = begin(engine, 7)
    head, values = layers["head"], factories.random_values(LAYERS, 7)["head"]
    first, second = stretches(7)
    for landed, (folds_first, folds_second) in (
        ([1], (False, False)), ([0], (True, False)), ([3], (False, False)), ([2], (False, True)),
    ):  # fmt: skip
        with db.transaction(engine) as session:
            factories.land(session, recording, {head.id: values}, 7, blocks=landed)
            assert activations.fold(session, recording.id, head, first) is folds_first
            assert activations.fold(session, recording.id, head, second) is folds_second
    assert count(engine, "activation_blocks") == 0


def test_a_layer_is_complete_only_with_all_its_stretches(engine: sa.Engine, small_blocks: None) -> None:
    _, _, recording, layers = begin(engine, 6)
    head, values = layers["head"], factories.random_values(LAYERS, 6)["head"]
    with db.transaction(engine) as session:
        factories.land(session, recording, {head.id: values}, 6)
        activations.fold(session, recording.id, head, stretches(6)[0])
        assert not activations.complete_layer(session, recording.id, head, "mean", 6, cubes=True)
        with pytest.raises(IncompleteError, match="layer head is not recorded yet"):
            activations.read_layer(session, recording.id, head, 6)
        activations.fold(session, recording.id, head, stretches(6)[1])
        assert activations.complete_layer(session, recording.id, head, "mean", 6, cubes=True)
        assert not activations.complete_layer(session, recording.id, head, "mean", 6, cubes=True)
        assert activations.recorded(session, recording) == {head.id}
    assert count(engine, "exemplars") == 2 * LAYERS["head"]


def test_a_failed_transaction_leaves_nothing_of_a_fold(engine: sa.Engine, small_blocks: None) -> None:
    _, _, recording, layers = begin(engine, 4)
    head, values = layers["head"], factories.random_values(LAYERS, 4)["head"]
    with db.transaction(engine) as session:
        factories.land(session, recording, {head.id: values}, 4)
    with pytest.raises(RuntimeError, match="pulled"), db.transaction(engine) as session:
        assert activations.fold(session, recording.id, head, stretches(4)[0])
        raise RuntimeError("the plug was pulled")
    assert (count(engine, "activation_blocks"), count(engine, "activations")) == (2, 0)
    with db.transaction(engine) as session:
        assert activations.fold(session, recording.id, head, stretches(4)[0])


def test_a_block_of_the_wrong_size_is_not_folded(engine: sa.Engine, small_blocks: None) -> None:
    _, _, recording, layers = begin(engine, 4)
    head = layers["head"]
    with db.transaction(engine) as session:
        for block, n in ((0, 2), (1, 1)):
            session.add(
                ActivationBlock(
                    recording_id=recording.id, layer_id=head.id, block=block, first_clip=2 * block, n_clips=n,
                    data=bytes(2 * n * head.n_units),
                )
            )  # fmt: skip
    with pytest.raises(IncompleteError, match="head"), db.transaction(engine) as session:
        activations.fold(session, recording.id, head, stretches(4)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_never_reach_the_table(engine: sa.Engine, value: float) -> None:
    _, _, recording, layers = begin(engine, 4)
    head, values = layers["head"], factories.random_values(LAYERS, 4)["head"]
    values[1, 2] = value
    with pytest.raises((psycopg.Error, AndpError)), db.transaction(engine) as session:
        factories.land(session, recording, {head.id: values}, 4)
        activations.fold(session, recording.id, head, stretches(4)[0])
    assert count(engine, "activations") == 0


# ---------------------------------------------------------------------- several at once


def test_two_threads_that_fold_do_it_once(engine: sa.Engine, small_blocks: None) -> None:
    _, _, recording, layers = begin(engine, 40)
    values = factories.random_values(LAYERS, 40)
    with db.transaction(engine) as session:
        factories.land(session, recording, {layers[name].id: value for name, value in values.items()}, 40)
    start = threading.Barrier(2)

    def work(_: int) -> tuple[int, int]:
        folded = completed = 0
        start.wait()
        for layer in layers.values():
            for stretch in stretches(40):
                with db.transaction(engine) as session:
                    folded += activations.fold(session, recording.id, layer, stretch)
            with db.transaction(engine) as session:
                completed += activations.complete_layer(session, recording.id, layer, "mean", 40, cubes=True)
        return folded, completed

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(work, range(2)))
    assert tuple(map(sum, zip(*done, strict=True))) == (20, 2)
    with db.reading(engine) as session:
        for layer, read in activations.read_layers(session, recording.id, list(layers.values()), 40):
            np.testing.assert_array_equal(read, values[layer.name])


def test_two_threads_that_land_the_same_blocks_store_them_once(engine: sa.Engine, small_blocks: None) -> None:
    _, _, recording, layers = begin(engine, 20)
    values = factories.random_values(LAYERS, 20)
    by_id = {layers[name].id: value for name, value in values.items()}
    start = threading.Barrier(2)

    def work(blocks: range) -> None:
        start.wait()
        for block in blocks:
            with db.transaction(engine) as session:
                factories.land(session, recording, by_id, 20, blocks=[block])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [range(10), range(9, -1, -1)]))
    assert count(engine, "activation_blocks") == 20


# ---------------------------------------------------------------------- partitions


def test_recordings_lie_apart_and_one_goes_alone(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        one, two = factories.world(session, name="one"), factories.world(session, name="two", seed=1)
    assert activations.drop_partitions(engine, one.recording.id) > 0
    assert activations.drop_partitions(engine, one.recording.id) == 0  # again: nothing to do
    with db.reading(engine) as session:
        for table in activations.PARTITIONED:
            kept = session.scalars(sa.text(f"SELECT DISTINCT recording_id FROM {table}")).all()
            assert set(kept) <= {two.recording.id}
        read = activations.read_layer(session, two.recording.id, two.layers["head"], 8)
    np.testing.assert_array_equal(read, two.values["head"])


def test_two_recordings_begun_at_once_do_not_block_each_other(engine: sa.Engine) -> None:
    """Two networks, two commands: attaching partitions takes a lock that an insert before it would turn into a deadlock."""
    with db.transaction(engine) as session:
        probing = datasets.snapshot(session, factories.dataset(session).id)
        networks = [factories.network(session, f"net {i}").id for i in range(2)]
    start = threading.Barrier(2)

    def begin_one(network: int) -> None:
        start.wait()
        for i in range(5):
            recipe = RecipePlan("record", "test", "1", {"network": network, "number": i})
            with db.transaction(engine) as session:
                made = record.ensure_recording(session, network, probing.id, recipe)
            with db.transaction(engine) as session:
                assert record.ensure_recording(session, network, probing.id, recipe) == made

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(begin_one, networks))
    assert count(engine, "recordings") == 10


def test_readers_of_other_recordings_do_not_keep_a_new_one_waiting(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session)
    with db.reading(engine) as reader, db.transaction(engine) as session:
        reader.execute(sa.text("SELECT count(*) FROM activations")).all()  # holds its locks until it ends
        session.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
        factories.begin_recording(session, session.merge(world.network), session.merge(world.probing))


# ---------------------------------------------------------------------- db.read_vectors


def test_read_vectors(engine: sa.Engine) -> None:
    with db.reading(engine) as session:
        none = db.read_vectors(session, "SELECT values FROM activations WHERE recording_id = %s", (1,), half=True)
        assert none.shape == (0, 0)
        assert none.dtype == np.float16
        two = db.read_vectors(session, "SELECT v::vector FROM unnest(ARRAY['[1,-2.5,3e-9]', '[4,5,6]']) AS v", ())
        np.testing.assert_array_equal(two, np.array([[1, -2.5, 3e-9], [4, 5, 6]], np.float32))
        assert two.dtype == np.float32
        with pytest.raises(DatabaseError, match="different lengths"):
            db.read_vectors(session, "SELECT v::vector FROM unnest(ARRAY['[1]', '[4,5]']) AS v", ())


def test_recorded_layer_keeps_its_pooling(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session)
    with db.reading(engine) as session:
        poolings = session.execute(sa.select(RecordedLayer.layer_id, RecordedLayer.pooling)).all()
    assert {tuple(row) for row in poolings} == {(layer.id, "mean") for layer in world.layers.values()}
