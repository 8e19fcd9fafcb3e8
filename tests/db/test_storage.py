"""Recordings dropped beside others, indexes built online, sizes, and space given back."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform import db
from and_platform.config import Settings
from and_platform.errors import DatabaseError, NotFoundError
from and_platform.resources import resource
from and_platform.schema import ActivationBlock, Failure, Recording, Worker
from and_platform.services import activations, embed, locks, match, record, storage
from and_platform.services.provenance import RecipePlan
from tests import factories
from tests.factories import World

LAYERS = {"b00.ff_in": 40, "head": 3}
N_CLIPS = 24


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 clips, stretches of 8."""
    monkeypatch.setattr(activations, "BLOCK", 4)
    monkeypatch.setattr(activations, "STRETCH", 8)


@pytest.fixture
def wide(database_url: URL) -> Iterator[sa.Engine]:
    """An engine with a connection for each thread of a test."""
    engine = db.make_engine(database_url, Settings(pool_size=12))
    yield engine
    engine.dispose()


def begun(engine: sa.Engine, name: str = "net", n_clips: int = N_CLIPS) -> tuple[World, Recording]:
    """A world, and an empty recording beside the one in it."""
    with db.transaction(engine) as session:
        world = factories.world(session, name=name, layers=LAYERS, n_clips=n_clips, told={})
        return world, factories.begin_recording(session, world.network, world.probing)


def partitions(engine: sa.Engine, recording: int) -> list[str]:
    """Tables that are there for a recording, attached or not."""
    with db.reading(engine) as session:
        return [table.name for table in storage.tables(session) if table.partition and table.partition[1] == recording]


def one(engine: sa.Engine, query: str, **values: object) -> object:
    with db.reading(engine) as session:
        return session.execute(sa.text(query), values).scalar_one()


@contextmanager
def open_transaction(engine: sa.Engine, query: str) -> Iterator[sa.Connection]:
    """Someone who has asked something, and does not end the transaction."""
    with engine.connect() as connection:
        connection.exec_driver_sql(query)
        yield connection


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come about"
        time.sleep(0.02)


# ---------------------------------------------------------------------- dropping


def test_drops_beside_others_end_nobody_and_keep_nobody_waiting(wide: sa.Engine, small_blocks: None) -> None:
    """Three threads record, fold and match new recordings, one reads all of them, two drop what is done, at once."""
    with db.transaction(wide) as session:
        world = factories.world(session, layers=LAYERS, n_clips=N_CLIPS, told={})
        layers, probing = list(world.layers.values()), world.probing
        concepts = factories.concept_set(session, name="others")
        p = np.random.default_rng(0).random((N_CLIPS, len(factories.LABELS)))
        scoring = factories.scoring(session, probing, concepts, p)
    values = {world.layers[name].id: value for name, value in world.values.items()}
    done: list[int] = []
    over = threading.Event()
    waited = [0.0]
    made = dropped = 0
    recorders: list[Future[int]] = []

    def recorder(thread: int) -> int:
        n = 0
        while not over.is_set():
            plan = RecipePlan("record", "test", "1", {"thread": thread, "n": n})
            with db.transaction(wide) as session:
                recording = record.ensure_recording(session, world.network.id, probing.id, plan)
            for block in range(N_CLIPS // activations.BLOCK):
                with db.transaction(wide) as session:
                    factories.land(session, session.get_one(Recording, recording), values, N_CLIPS, blocks=[block])
            for layer in layers:
                for stretch in activations.stretches(N_CLIPS):
                    with db.transaction(wide) as session:
                        assert activations.fold(session, recording, layer, stretch)
                with db.transaction(wide) as session:
                    assert activations.complete_layer(session, recording, layer, "mean", N_CLIPS, cubes=True)
            score = match.ScorePlan("db", None, RecipePlan("score", "x", "1", {}), None)  # type: ignore[arg-type]
            recipes = {"cos": match.plan_match(plan, score, "cos", None)}
            assert match.match(wide, recording, scoring, layers, recipes) == len(layers)
            done.append(recording)
            n += 1
        return n

    def reader() -> None:
        while not over.is_set():
            with db.reading(wide) as session:  # without a recording: all partitions are looked at
                session.execute(sa.text("SELECT recording_id, count(*) FROM activations GROUP BY 1")).all()

    def dropper() -> int:
        n = 0
        while done or not all(future.done() for future in recorders):
            if done:
                assert record.drop(wide, done.pop()) > 0
                n += 1
            else:
                time.sleep(0.01)
        return n

    def watcher() -> None:
        with wide.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not over.is_set():
                longest = connection.scalar(
                    sa.text(
                        "SELECT max(extract(epoch FROM clock_timestamp() - waitstart)) FROM pg_locks"
                        " WHERE NOT granted AND locktype IN ('relation', 'tuple', 'transactionid')"
                    )
                )
                waited[0] = max(waited[0], float(longest or 0))
                time.sleep(0.02)

    with ThreadPoolExecutor(8) as pool:
        try:
            recorders += [pool.submit(recorder, i) for i in range(3)]
            others = [pool.submit(reader), pool.submit(watcher)]
            droppers = [pool.submit(dropper) for _ in range(2)]
            time.sleep(8)
        finally:
            over.set()
        made = sum(future.result() for future in recorders)
        dropped = sum(future.result() for future in droppers)
        for future in others:
            future.result()
    assert made == dropped > 5
    assert waited[0] < 1
    assert one(wide, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert one(wide, "SELECT count(*) FROM recordings") == 1
    with db.reading(wide) as session:
        assert activations.leftover(session) == []


def test_a_drop_waits_for_a_long_reader_and_others_do_not(wide: sa.Engine) -> None:
    world, empty = begun(wide)
    told: list[str] = []

    def drop() -> int:
        return activations.drop_partitions(wide, empty.id, waiting=told.append)

    with db.transaction(wide) as session:
        session.delete(session.get_one(Recording, empty.id))
    with ThreadPoolExecutor(1) as pool:
        with open_transaction(wide, "SELECT count(*) FROM activation_blocks"):
            dropping = pool.submit(drop)
            until(lambda: one(wide, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"))
            with db.transaction(wide) as session:
                session.execute(sa.text("SET LOCAL lock_timeout = '500ms'"))
                other = factories.begin_recording(session, session.merge(world.network), session.merge(world.probing))
                values = {world.layers[name].id: value for name, value in world.values.items()}
                factories.land(session, other, values, N_CLIPS)
            until(lambda: told)
            assert not dropping.done()
        assert dropping.result(20) > 0
    assert len(told) == 1
    assert "process" in told[0]
    assert partitions(wide, empty.id) == []
    assert len(partitions(wide, other.id)) == len(activations.PARTITIONED)


def test_patience_ends(engine: sa.Engine) -> None:
    _, empty = begun(engine)
    with db.transaction(engine) as session:
        session.delete(session.get_one(Recording, empty.id))
    with open_transaction(engine, "SELECT count(*) FROM activation_blocks"), pytest.raises(DatabaseError, match="lock"):
        activations.drop_partitions(engine, empty.id, patience=0)
    with db.reading(engine) as session:
        assert activations.leftover(session) == [empty.id]
    assert activations.drop_partitions(engine, empty.id) > 0


@pytest.mark.parametrize("how", ["again", "vacuum"])
def test_a_killed_drop_is_finished(wide: sa.Engine, how: str) -> None:
    """Ended by the server while it detaches: the recording is gone, its partitions are not."""
    world, empty = begun(wide)
    with ThreadPoolExecutor(1) as pool:
        with open_transaction(wide, "SELECT count(*) FROM exemplars") as reader:
            dropping = pool.submit(record.drop, wide, empty.id)
            until(lambda: one(wide, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"))
            reader.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^ALTER TABLE.*CONCURRENTLY$'"
            )
            with pytest.raises(DatabaseError):
                dropping.result(20)
        assert 0 < len(partitions(wide, empty.id)) < len(activations.PARTITIONED)
        with db.reading(wide) as session:
            assert activations.leftover(session) == [empty.id]
        assert any("left of recording" in row["what"] for row in storage.sizes(wide))
        if how == "again":
            assert record.unused(wide) == [empty.id]
            assert record.drop(wide, empty.id) > 0
        else:
            assert storage.vacuum(wide)[0]["count"] == 1
    assert partitions(wide, empty.id) == []
    with pytest.raises(NotFoundError):
        record.drop(wide, empty.id)
    with db.reading(wide) as session:
        np.testing.assert_array_equal(
            activations.read_layer(session, world.recording.id, world.layers["head"], N_CLIPS), world.values["head"]
        )


def test_nothing_lands_in_a_recording_that_is_gone(engine: sa.Engine) -> None:
    world, empty = begun(engine)
    record.drop(engine, empty.id)
    values = {world.layers[name].id: value for name, value in world.values.items()}
    with pytest.raises(NotFoundError, match="dropped meanwhile"), db.transaction(engine) as session:
        factories.land(session, empty, values, N_CLIPS)
    stretch = activations.stretches(N_CLIPS)[0]
    with pytest.raises(NotFoundError, match="dropped meanwhile"), db.transaction(engine) as session:
        activations.fold(session, empty.id, world.layers["head"], stretch)


def test_workers_at_one_recording_do_not_wait_for_each_other(wide: sa.Engine, small_blocks: None) -> None:
    """One lands a block and another folds a layer while a third has not committed its block."""
    world, empty = begun(wide)
    values = {world.layers[name].id: value for name, value in world.values.items()}
    with db.transaction(wide) as session:
        factories.land(session, empty, values, N_CLIPS, blocks=[0, 1])
    with db.transaction(wide) as slow:
        factories.land(slow, empty, values, N_CLIPS, blocks=[2])
        with db.transaction(wide) as session:
            session.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            factories.land(session, empty, values, N_CLIPS, blocks=[3])
            assert activations.fold(session, empty.id, world.layers["head"], activations.stretches(N_CLIPS)[0])
        with pytest.raises(DatabaseError, match="lock"), db.transaction(wide) as session:
            session.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            factories.land(session, empty, values, N_CLIPS, blocks=[2])  # the same block: one of the two writes it


def test_the_landing_place_is_emptied_when_all_is_folded(wide: sa.Engine, small_blocks: None) -> None:
    world, empty = begun(wide)
    layers = list(world.layers.values())
    values = {world.layers[name].id: value for name, value in world.values.items()}

    def size() -> object:
        return one(wide, f"SELECT pg_relation_size('andp_activation_blocks_{empty.id}')")

    with db.transaction(wide) as session:
        factories.land(session, empty, values, N_CLIPS, blocks=[0, 1])
    with db.transaction(wide) as slow:  # someone lands at the next stretch: nobody waits, and nothing of his is lost
        factories.land(slow, empty, values, N_CLIPS, blocks=[2])
        assert record.fold_stretch(wide, empty.id, layers, 0, N_CLIPS) == len(layers)
        assert size() != 0
    with db.transaction(wide) as session:
        factories.land(session, empty, values, N_CLIPS, blocks=[3, 4, 5])
    assert record.fold_stretch(wide, empty.id, layers, 1, N_CLIPS) == len(layers)
    assert size() != 0  # blocks 4 and 5 are there
    assert record.fold_stretch(wide, empty.id, layers, 2, N_CLIPS) == len(layers)
    assert size() == 0
    assert record.complete_layers(wide, empty.id, layers, dict.fromkeys(world.layers, "mean"), N_CLIPS) == len(layers)
    with db.reading(wide) as session:
        for layer, read in activations.read_layers(session, empty.id, layers, N_CLIPS):
            np.testing.assert_array_equal(read, world.values[layer.name])
    record.drop(wide, empty.id)
    activations.tidy_landing(wide, empty.id)  # gone meanwhile: nothing to do


def test_read_tiles_are_the_layer(engine: sa.Engine, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_TILE_CELLS", 7 * N_CLIPS)
    with db.transaction(engine) as session:
        world = factories.world(session, layers=LAYERS, n_clips=N_CLIPS, told={})
    with db.reading(engine) as session:
        tiles = list(activations.read_tiles(session, world.recording.id, world.layers["b00.ff_in"], N_CLIPS))
    assert [len(tile) for tile in tiles] == [7, 7, 7, 7, 7, 5]
    np.testing.assert_array_equal(np.concatenate(tiles), world.values["b00.ff_in"])


def test_who_is_not_the_owner_is_told_so(engine: sa.Engine, database_url: URL) -> None:
    world, empty = begun(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS someone_else")
        connection.exec_driver_sql("CREATE ROLE someone_else LOGIN")
        connection.exec_driver_sql(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO someone_else"
        )
        # Who was let in by hand: the owner applies the roles again, and whoever writes runs has the platform's locks.
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute(resource("sql/objects/public_functions_v01.sql").read_text("utf-8"))
    other = db.make_engine(database_url.set(username="someone_else"), Settings())
    try:
        for refused in (
            lambda: record.drop(other, empty.id),
            lambda: storage.vacuum(other),
            lambda: storage.build_indexes(other),
        ):
            with pytest.raises(DatabaseError, match=r"only the owner of the .* connect as 'postgres'"):
                refused()
        # A worker may give a recording up; its partitions stay for the owner.
        with db.transaction(other) as session:
            assert not record.drop_abandoned(session, world.recording.id)  # it has complete layers
            assert record.drop_abandoned(session, empty.id)
        assert record.free_partitions(other, empty.id) == 0
        with db.transaction(engine) as session:
            encoder, calibrations = factories.encoder(session), factories.calibrations_of(session, world.dissection)
            factories.embed_summaries(session, encoder, 3, {key: [1, 0, 0] for key in calibrations.values()})
            session.execute(sa.text(f"DROP INDEX {embed.index_name(encoder)}"))
        assert not embed.ensure_summary_index(other, encoder)
    finally:
        other.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP OWNED BY someone_else")
            connection.exec_driver_sql("DROP ROLE someone_else")
    assert storage.vacuum(engine)[0]["count"] == 1


# ---------------------------------------------------------------------- indexes


@pytest.fixture
def encoder(engine: sa.Engine) -> int:
    """An encoder with vectors of summaries, not indexed."""
    with db.transaction(engine) as session:
        world = factories.world(session)
        encoder = factories.encoder(session)
        calibrations = factories.calibrations_of(session, world.dissection).values()
        factories.embed_summaries(session, encoder, 3, {key: [1, i, 0] for i, key in enumerate(calibrations)})
        session.execute(sa.text(f"DROP INDEX {embed.index_name(encoder)}"))
    return encoder


def state(engine: sa.Engine, encoder: int) -> embed.SummaryIndex:
    with db.reading(engine) as session:
        (found,) = embed.summary_indexes(session, encoder)
    return found


def test_missing_indexes_are_built_once(engine: sa.Engine, encoder: int) -> None:
    assert state(engine, encoder).valid is None
    (row,) = [row for row in storage.build_indexes(engine) if row["summaries"]]
    assert (row["state"], row["index"]) == ("built now", f"andp_hnsw_summaries_{encoder}")
    assert row["size_mb"] >= 0
    assert state(engine, encoder).valid
    (row,) = [row for row in storage.build_indexes(engine) if row["summaries"]]
    assert (row["state"], row["seconds"]) == ("there", None)
    assert not embed.ensure_summary_index(engine, encoder)


def test_one_process_builds(engine: sa.Engine, encoder: int) -> None:
    with locks.held(engine, "build an index"):
        assert not embed.ensure_summary_index(engine, encoder)
        assert [row["state"] for row in storage.build_indexes(engine)] == ["another process is building"]
    assert embed.ensure_summary_index(engine, encoder)


def test_what_a_killed_build_left_is_built_anew(wide: sa.Engine, engine: sa.Engine, encoder: int) -> None:
    """The build waits for someone who writes, and is ended; rows that come meanwhile are found as ever."""
    writing = "DELETE FROM summary_embeddings WHERE false"
    with ThreadPoolExecutor(1) as pool, open_transaction(wide, writing) as writer:
        building = pool.submit(embed.ensure_summary_index, wide, encoder)
        until(lambda: state(engine, encoder).valid is False)
        writer.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^CREATE INDEX CONCURRENTLY'"
        )
        with pytest.raises(DatabaseError):
            building.result(20)
    assert state(engine, encoder).valid is False
    assert embed.ensure_summary_index(engine, encoder)
    assert state(engine, encoder).valid


def test_an_encoder_with_too_many_dimensions_is_scanned(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session)
        encoder = factories.encoder(session, dim=2001)
        calibration = next(iter(factories.calibrations_of(session, world.dissection).values()))
        session.execute(
            sa.text("INSERT INTO summary_embeddings VALUES (:e, :c, array_fill(1, ARRAY[2001])::vector)"),
            {"e": encoder, "c": calibration},
        )
    assert not embed.ensure_summary_index(engine, encoder)
    assert [row["state"] for row in storage.build_indexes(engine)] == ["none: too many dimensions, scanned"]


# ---------------------------------------------------------------------- sizes and vacuum


def test_sizes_add_up(engine: sa.Engine) -> None:
    world, empty = begun(engine)
    storage.vacuum(engine)  # rows are counted now
    for by_table in (False, True):
        rows = storage.sizes(engine, by_table=by_table)
        assert rows[-1]["what"] == "database"
        assert sum(row["total_mb"] for row in rows[:-1]) == pytest.approx(rows[-1]["total_mb"], abs=0.05 * len(rows))
        for row in rows[:-2]:
            parts = row["table_mb"] + row["toast_mb"] + row["index_mb"]
            assert parts == pytest.approx(row["total_mb"], abs=0.2)
    whats = [row["what"] for row in storage.sizes(engine)]
    assert f"recording {world.recording.id} (net, sounds of net)" in whats
    assert f"recording {empty.id} (net, sounds of net)" in whats
    found = {row["what"]: row for row in storage.sizes(engine, by_table=True)}
    assert found["activations"]["rows"] == sum(LAYERS.values())
    assert not any(what.startswith(db.RUNTIME_PREFIX) for what in found)


def test_vacuum_gives_back_what_nobody_needs(engine: sa.Engine, small_blocks: None) -> None:
    world, empty = begun(engine)
    head = world.layers["head"]
    with db.transaction(engine) as session:
        values = {world.layers[name].id: value for name, value in world.values.items()}
        factories.land(session, empty, values, N_CLIPS)
        for stretch in activations.stretches(N_CLIPS)[:2]:
            activations.fold(session, empty.id, head, stretch)
        session.add_all(  # as if they had been copied from elsewhere after the fold
            ActivationBlock(recording_id=recording, layer_id=head.id, block=block, first_clip=0, n_clips=4, data=b"x")
            for recording, block in ((empty.id, 0), (empty.id, 3), (world.recording.id, 5))
        )
        for name, age in (("old", "8 days"), ("new", "1 hour")):
            session.add(
                Worker(name=name, host="h", pid=1, queues=["db"], concurrency=1, device="cpu", version="1", packages=[],
                       seen_at=sa.func.now() - sa.cast(age, sa.Interval))
            )  # fmt: skip
        for name, stage, age in (("a", "message", "8 days"), ("b", "message", "1 hour"), ("c", "ingest", "8 days")):
            happened = sa.func.now() - sa.cast(age, sa.Interval)
            session.add(Failure(stage=stage, scope="queue:cpu", unit=name, reason="no", happened_at=happened))
    blocks = sa.select(sa.func.count()).select_from(ActivationBlock)
    with db.reading(engine) as session:
        assert session.scalar(blocks) == 6 + 2 + 3  # the layer that is not folded; the last stretch of the head; those
    gone = {row["what"]: row["count"] for row in storage.vacuum(engine, empty.id)}
    assert gone["landed blocks that are folded"] == 2
    assert gone["workers not heard of for 7 days"] == 0
    gone = {row["what"]: row["count"] for row in storage.vacuum(engine)}
    assert gone["landed blocks that are folded"] == 1
    assert gone["workers not heard of for 7 days"] == 1
    assert gone["messages refused more than 7 days ago"] == 1
    with db.transaction(engine) as session:
        assert session.scalars(sa.select(Failure.unit).order_by(Failure.unit)).all() == ["b", "c"]
        assert session.scalar(blocks) == 8
        assert session.scalars(sa.select(Worker.name)).all() == ["new"]
        assert activations.fold(session, empty.id, head, activations.stretches(N_CLIPS)[2])  # nothing it needs is gone
    with pytest.raises(NotFoundError):
        storage.vacuum(engine, 999)


def test_vacuum_gives_disk_back(engine: sa.Engine) -> None:
    """What has landed and was folded leaves the landing place as large as it was."""
    n_clips = 500
    world, empty = begun(engine, n_clips=n_clips)
    values = {world.layers[name].id: np.tile(value, (40, 1)) for name, value in world.values.items()}
    with db.transaction(engine) as session:
        factories.land(session, empty, values, n_clips)
        session.execute(sa.text("DELETE FROM activation_blocks"))

    def landing() -> int:
        with db.reading(engine) as session:
            name = f"andp_activation_blocks_{empty.id}"
            return next(table.total_bytes for table in storage.tables(session) if table.name == name)

    before = landing()
    assert before > 1e6
    (*_, dead) = storage.vacuum(engine, empty.id)
    assert landing() < 0.1e6
    assert dead["freed_mb"] == pytest.approx((before - landing()) / 1e6, abs=0.1)


# ---------------------------------------------------------------------- commands


def test_commands(engine: sa.Engine, andp: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    world, empty = begun(engine)
    rows = json.loads(andp("db", "size", "--json").stdout)
    assert {"what", "rows", "dead_rows", "table_mb", "toast_mb", "index_mb", "total_mb"} == rows[0].keys()
    assert andp("recordings", "drop", check=False).returncode == 2
    assert "not confirmed" in andp("recordings", "drop", "--unused", check=False, given="n\n").stderr
    assert len(partitions(engine, empty.id)) == len(activations.PARTITIONED)
    assert f"dropped recording {empty.id}: 0.1 MB" in andp("recordings", "drop", "--unused", "--yes").stderr
    assert partitions(engine, empty.id) == []
    refused = andp("recordings", "drop", str(world.recording.id), "--yes", check=False)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith(f"andp dissections drop {world.dissection.id}")
    assert len(json.loads(andp("db", "vacuum", "--json").stdout)) == 5
    assert json.loads(andp("db", "index", "--json").stdout) == []
