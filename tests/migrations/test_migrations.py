"""The schema as migrations make it: there and back, nothing left out, everything commented and named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess

import alembic.command
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform import db
from and_platform.config import Settings
from and_platform.errors import SchemaVersionError
from and_platform.schema import Base, Recording
from and_platform.services import activations, datasets
from tests import factories

OURS = "n.nspname = 'public' AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.objid = o.oid AND x.deptype = 'e')"
"""Not of an extension."""


@pytest.fixture
def empty(server_url: URL) -> Iterator[sa.Engine]:
    """A database without the schema."""
    plain = server_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS andp_empty WITH (FORCE)")
        connection.execute("CREATE DATABASE andp_empty")
    engine = db.make_engine(server_url.set(database="andp_empty"), Settings())
    yield engine
    engine.dispose()


def rows(engine: sa.Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def objects(engine: sa.Engine) -> set[tuple[object, ...]]:
    """Relations, functions, constraints and indexes of the schema, by name and definition."""
    return {
        *rows(
            engine, f"SELECT relkind, relname FROM pg_class o JOIN pg_namespace n ON n.oid = relnamespace WHERE {OURS}"
        ),
        *rows(
            engine,
            "SELECT conname, pg_get_constraintdef(o.oid) FROM pg_constraint o"
            f" JOIN pg_namespace n ON n.oid = connamespace WHERE {OURS}",
        ),
        *rows(engine, "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"),
        *rows(
            engine,
            f"SELECT pg_get_functiondef(o.oid), 'f' FROM pg_proc o JOIN pg_namespace n ON n.oid = pronamespace WHERE {OURS}",
        ),
        *rows(engine, "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'"),
    }


def check(engine: sa.Engine) -> None:
    """`alembic check`: raises where the model and the database differ."""
    alembic.command.check(db._alembic_config(engine.url))


def test_upgrade_downgrade_upgrade_then_check(empty: sa.Engine) -> None:
    db.upgrade(empty)
    check(empty)
    first = objects(empty)
    assert db.schema_revision(empty) == db.newest_revision()
    assert {table.name for table in Base.metadata.sorted_tables} <= {name for _, name in first}

    db.downgrade(empty, "base")
    assert db.schema_revision(empty) is None
    # Alembic's own table stays, and so does the extension, which may have been there before.
    assert {about for about in objects(empty) if "alembic_version" not in "".join(map(str, about))} == set()

    db.upgrade(empty)
    check(empty)
    assert objects(empty) == first


def test_every_step_goes_back(empty: sa.Engine) -> None:
    for revision in ("0001", "head"):
        db.upgrade(empty, revision)
    db.downgrade(empty, "0001")
    assert db.schema_revision(empty) == "0001"
    assert rows(empty, "SELECT viewname FROM pg_views WHERE schemaname = 'public'") == []
    db.upgrade(empty)
    check(empty)


def test_downgrade_takes_data_and_partitions_away(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        factories.world(session)
    db.downgrade(engine, "base")
    assert [name for _, name in objects(engine) if str(name).startswith(db.RUNTIME_PREFIX)] == []


def test_what_was_recorded_before_blocks_had_a_size_is_gone_on_with(engine: sa.Engine) -> None:
    values = factories.random_values({"b00.ff_in": 3, "head": 2}, 300)
    with db.transaction(engine) as session:
        network = factories.network(session, layers={"b00.ff_in": 3, "head": 2})
        probing = datasets.snapshot(session, factories.dataset(session, n_clips=300).id)
        recording = factories.begin_recording(session, network, probing)
        layer = factories.layers_of(session, network)["head"]
        factories.land(session, recording, {layer.id: values["head"]}, 300, blocks=[0])
        number = recording.id
    db.downgrade(engine, "0008")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO runs (command, arguments, versions, machine, outcome) VALUES ('dissect', '{}', '{}', '{}', 'running');"
            " INSERT INTO run_steps (run_id, step, ordinal, stage, queue, unit)"
            " SELECT id, 'record', 1, 'record', 'gpu', 'clips' FROM runs;"
            " INSERT INTO work_units (run_id, step, queue, key, payload, size, state)"
            " SELECT id, 'record', 'gpu', 'a key', '{\"block\": 9}', 250, 'waiting' FROM runs"
        )
    db.upgrade(engine)
    assert rows(engine, "SELECT payload ->> 'stretch' FROM work_units") == [("1",)]
    with db.transaction(engine) as session:
        recording = session.get_one(Recording, number)
        assert recording.block_clips == 250
        assert activations.missing_layers(session, number, 0, [layer.id]) == set()
        factories.land(session, recording, {layer.id: values["head"]}, 300, blocks=[1])
        assert activations.fold(session, number, layer, activations.stretches(300)[0])


def test_check_passes_over_what_was_made_at_run_time(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session)
        encoder = factories.encoder(session, dim=3)
        calibrations = factories.calibrations_of(session, world.dissection)
        factories.embed_summaries(session, encoder, 3, {calibrations[world.neurons["head#0"]]: [1, 0, 0]})
    names = {name for _, name in objects(engine)}
    assert f"andp_activations_{world.recording.id}" in names
    assert f"andp_hnsw_summaries_{encoder}" in names
    check(engine)


def test_check_sees_a_difference(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE clips ADD COLUMN unforeseen int")
    with pytest.raises(alembic.util.CommandError, match="unforeseen"):
        check(engine)


def test_every_table_view_and_column_has_a_comment(engine: sa.Engine) -> None:
    bare = rows(
        engine,
        "SELECT o.relname, a.attname FROM pg_class o JOIN pg_namespace n ON n.oid = o.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped"
        f" WHERE o.relkind IN ('r', 'p', 'v', 'm') AND o.relname <> 'alembic_version' AND {OURS}"
        " AND (col_description(o.oid, a.attnum) IS NULL OR obj_description(o.oid, 'pg_class') IS NULL)",
    )
    assert bare == []


def test_every_function_has_a_comment(engine: sa.Engine) -> None:
    found = rows(
        engine,
        "SELECT o.proname, obj_description(o.oid, 'pg_proc') IS NOT NULL FROM pg_proc o"
        f" JOIN pg_namespace n ON n.oid = o.pronamespace WHERE {OURS} ORDER BY 1",
    )
    assert found == [
        ("andp_analyse_partitions", True), ("andp_make_partitions", True),
        ("match_concepts", True), ("neuron_agreement", True), ("neurons_for_concept", True), ("uninterpretable_neurons", True),
    ]  # fmt: skip


def test_constraints_and_indexes_are_named_by_the_convention(engine: sa.Engine) -> None:
    found = rows(
        engine,
        "SELECT t.relname, o.contype::text, o.conname FROM pg_constraint o JOIN pg_namespace n ON n.oid = o.connamespace"
        f" JOIN pg_class t ON t.oid = o.conrelid WHERE t.relname <> 'alembic_version' AND o.contype <> 'n' AND {OURS}",
    )
    prefix = {"p": "pk_", "f": "fk_", "u": "uq_", "c": "ck_"}
    assert found
    assert [row for row in found if not str(row[2]).startswith(f"{prefix[str(row[1])]}{row[0]}")] == []
    indexes = rows(
        engine,
        "SELECT tablename, indexname FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
    )
    assert [
        row for row in indexes if not str(row[1]).startswith((f"pk_{row[0]}", f"uq_{row[0]}", f"ix_{row[0]}"))
    ] == []


def test_partitions_are_made_like_their_parents(engine: sa.Engine) -> None:
    """LIKE … INCLUDING ALL: storage, comments, keys and checks come along. Foreign keys would keep a drop from the others."""
    with db.transaction(engine) as session:
        number = factories.world(session).recording.id
    for table, column, storage in (
        ("activations", "values", "p"), ("activation_cubes", "values", "p"), ("activation_blocks", "data", "e"),
    ):  # fmt: skip
        partition = f"andp_{table}_{number}"
        assert rows(
            engine,
            f"SELECT attstorage::text, col_description(attrelid, attnum) IS NOT NULL FROM pg_attribute"
            f" WHERE attrelid = '{partition}'::regclass AND attname = '{column}'",
        ) == [(storage, True)]  # fmt: skip
    kinds = rows(
        engine,
        f"SELECT DISTINCT contype::text FROM pg_constraint WHERE conrelid = 'andp_exemplars_{number}'::regclass",
    )
    assert {"p", "c"} <= {kind for (kind,) in kinds}
    assert ("f",) not in kinds
    # The primary key's index of a partition hangs on the parent's: it is the one that queries by the parent use.
    assert rows(engine, f"SELECT count(*) FROM pg_inherits WHERE inhrelid IN (SELECT indexrelid FROM pg_index"
                f" WHERE indrelid = 'andp_concept_matches_{number}'::regclass)") == [(2,)]  # fmt: skip


def test_vectors_of_any_dimension_can_be_stored(engine: sa.Engine) -> None:
    """A page holds 2,000 values inline; an encoder with more goes out of line."""
    with db.transaction(engine) as session:
        encoder = factories.encoder(session, dim=4096)
        factories.embed_text(session, encoder, "a bark", [1.0] * 4096)
    with db.reading(engine) as session:
        read = db.read_vectors(session, "SELECT embedding FROM text_embeddings", ())
    assert read.shape == (1, 4096)
    assert read[0, 0] == pytest.approx(1 / 64)


def test_two_upgrades_at_once_both_end_well(empty: sa.Engine) -> None:
    start = threading.Barrier(2)

    def upgrade(_: int) -> str | None:
        mine = db.make_engine(empty.url, Settings())
        start.wait()
        db.upgrade(mine)
        return db.schema_revision(mine)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(upgrade, range(2))) == [db.newest_revision()] * 2


def test_two_commands_make_the_schema_at_once(empty: sa.Engine, andp: Callable[..., CompletedProcess[str]]) -> None:
    """As processes, from nothing."""
    url = {"ANDP_DATABASE_URL": empty.url.set(drivername="postgresql").render_as_string(hide_password=False)}
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: andp("db", "upgrade", env=url), range(2)))
    assert [run.returncode for run in runs] == [0, 0]
    assert db.schema_revision(empty) == db.newest_revision()


def set_revision(engine: sa.Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :it"), {"it": revision})


def settings_for(engine: sa.Engine) -> Settings:
    return Settings.model_validate({"database_url": engine.url.render_as_string(hide_password=False)})


def test_connect_makes_the_schema_where_there_is_none(empty: sa.Engine) -> None:
    made = db.connect(settings_for(empty))
    assert db.schema_revision(made) == db.newest_revision()
    with made.connect() as connection:  # the extension's types are known to new connections
        assert connection.exec_driver_sql("SELECT '[1,2]'::vector").scalar_one() is not None


def test_connect_refuses_an_older_schema(engine: sa.Engine) -> None:
    set_revision(engine, "0001")
    with pytest.raises(SchemaVersionError, match=r"the schema is at 0001, .* needs \w+; run: andp db upgrade"):
        db.connect(settings_for(engine))


def test_a_newer_schema_is_refused_by_connect_upgrade_and_downgrade(engine: sa.Engine) -> None:
    set_revision(engine, "9999")
    for act in (
        lambda: db.connect(settings_for(engine)), lambda: db.upgrade(engine), lambda: db.downgrade(engine, "base"),
    ):  # fmt: skip
        with pytest.raises(SchemaVersionError, match="9999, which this program does not know; install a newer"):
            act()


def test_upgrade_to_an_unknown_revision_names_the_known_ones(engine: sa.Engine) -> None:
    with pytest.raises(SchemaVersionError, match="0001, 0002"):
        db.upgrade(engine, "nonsense")
