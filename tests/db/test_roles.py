"""The three roles: each can do its work, and nothing else."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import errors as refusals
from sqlalchemy.engine import URL

from and_platform import api, db
from and_platform.config import Settings
from and_platform.errors import DatabaseError, QueryError
from and_platform.services import activations, ask, roles
from tests import tiny

Andp = Callable[..., CompletedProcess[str]]
_numbers = itertools.count()


def plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def superuser(url: URL) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(plain(url), autocommit=True) as connection:
        yield connection


@pytest.fixture
def login(engine: sa.Engine, database_url: URL) -> Iterator[Callable[..., URL]]:
    """Make a user with a role; returns the URL that connects as it."""
    roles.apply(engine)
    made: list[str] = []

    def make(role: str, *settings: str) -> URL:
        name = f"{role}_{os.getpid()}_{next(_numbers)}"
        with superuser(database_url) as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN IN ROLE {role}")
            for setting in settings:
                connection.execute(f"ALTER ROLE {name} SET {setting}")
        made.append(name)
        return database_url.set(username=name)

    yield make
    with superuser(database_url) as connection:
        for name in made:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [name])
            connection.execute(f"DROP OWNED BY {name} CASCADE")
            connection.execute(f"DROP ROLE {name}")


@pytest.fixture
def material(tmp_path: Path) -> Path:
    tiny.sounds(tmp_path / "tones", 3)
    tiny.network(tmp_path / "network")
    return tmp_path


def refused(url: URL, *queries: str, error: type[Exception] = refusals.InsufficientPrivilege) -> None:
    for query in queries:
        with psycopg.connect(plain(url)) as connection, pytest.raises(error):
            connection.execute(query.encode())


def test_the_script_is_printed_and_runs_twice(andp: Andp, database_url: URL) -> None:
    printed = andp("db", "roles").stdout
    assert printed == roles.script() and "CREATE ROLE alice LOGIN" in printed
    for _ in range(2):
        assert "andp_owner, andp_worker, andp_reader" in andp("db", "roles", "--apply").stderr
    with superuser(database_url) as connection:
        owners = connection.execute(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchall()
        assert owners == [("andp_owner",)]


def test_a_worker_dissects_and_a_reader_asks(login: Callable[..., URL], material: Path, engine: sa.Engine) -> None:
    worker = login("andp_worker")
    with api.Platform(db.connect(Settings.model_validate({"database_url": plain(worker)}))) as andp_:
        andp_.ingest(material / "tones", processes=1)
        with pytest.raises(DatabaseError, match="permission denied for table networks; connect as a user that may"):
            andp_.add_network("tiny", material / "network")
        api.Platform(engine).add_network("tiny", material / "network")
        dissected = andp_.dissect("tiny", dataset="tones")
        assert not andp_.search("a noise", limit=2).empty  # stores the vector of the question
    with superuser(engine.url) as connection:
        owner = connection.execute(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname ~ '^andp_.*_[0-9]+$'"
        ).fetchall()
        analysed = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relname ~ '^andp_activations_[0-9]+$' AND reltuples > 0"
        ).fetchone()
    assert owner == [("andp_owner",)] and analysed == (1,)

    reader = login("andp_reader", "default_transaction_read_only = on", "statement_timeout = '5min'")
    with api.Platform(db.connect(Settings.model_validate({"database_url": plain(reader)}))) as andp_:
        assert not andp_.neurons("noise", strategy="closed_db").empty
        assert not andp_.sql("SELECT * FROM current_neuron_descriptions").empty
        matched = "SELECT * FROM match_concepts((SELECT recording_id FROM dissections), (SELECT name FROM concept_sets), 'cos')"
        assert not andp_.sql(matched).empty
        tables = andp_.sql(
            "SELECT c.oid::regclass::text AS name FROM pg_class c"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')"
        )["name"]
        for table in tables:  # partitions made at run time and views too
            andp_.sql(f"SELECT * FROM {table} LIMIT 1")
    assert dissected.dissection_id


def test_a_worker_makes_the_partitions_of_a_recording_and_cannot_drop_them(
    login: Callable[..., URL], material: Path, engine: sa.Engine
) -> None:
    worker = db.make_engine(login("andp_worker"), Settings())
    api.Platform(engine).add_network("tiny", material / "network")
    with api.Platform(worker) as andp_:
        andp_.ingest(material / "tones", processes=1)
        andp_.dissect("tiny", dataset="tones", stages="record")
        with db.reading(worker) as session:
            recording = session.scalars(sa.text("SELECT id FROM recordings")).one()
        with pytest.raises(sa.exc.DBAPIError, match="no recording 77"), worker.begin() as connection:
            connection.execute(sa.text("SELECT andp_make_partitions(77)"))
        made = [f"andp_{table}_{recording}" for table in activations.PARTITIONED]
        with db.reading(worker) as session:
            there = sa.text("SELECT count(*) FROM pg_class WHERE relname = ANY (:names)")
            assert session.scalar(there, {"names": made}) == len(made)
        with (
            pytest.raises(sa.exc.DBAPIError, match="must be owner of table"),
            worker.begin() as connection,
        ):
            connection.execute(sa.text(f"DROP TABLE {made[0]}"))


def test_what_a_worker_may_not(login: Callable[..., URL], engine: sa.Engine) -> None:
    with superuser(engine.url) as connection:
        connection.execute("CREATE SCHEMA elsewhere CREATE TABLE secrets (n int)")
    worker = login("andp_worker")
    refused(
        worker,
        "DROP TABLE runs",
        "ALTER TABLE runs ADD COLUMN n int",
        "TRUNCATE runs",
        "CREATE TABLE mine (n int)",
        "CREATE INDEX mine ON runs (command)",
        "DROP FUNCTION match_concepts",
        "CREATE OR REPLACE FUNCTION andp_make_partitions(recording bigint) RETURNS void LANGUAGE sql AS 'SELECT'",
        "UPDATE alembic_version SET version_num = '0000'",
        "DELETE FROM alembic_version",
        "SELECT * FROM elsewhere.secrets",
        "SET ROLE andp_owner",
        "COPY clips TO PROGRAM 'cat'",
        "SELECT pg_read_file('/etc/hostname')",
        "CREATE ROLE friend",
        # What it names is imported by the next command.
        "UPDATE networks SET location = 'evil:run'",
        "UPDATE networks SET location = location, source = 'factory'",
        "INSERT INTO networks (name, source, location, revision, architecture, sample_rate, n_parameters)"
        " VALUES ('n', 'factory', 'evil:run', 'r', 'a', 1, 1)",
        "COPY networks FROM STDIN",
        "MERGE INTO networks n USING (SELECT 1) AS s (x) ON false WHEN NOT MATCHED THEN"
        " INSERT (name, location) VALUES ('n', 'evil:run')",
        "ALTER TABLE networks DISABLE TRIGGER ALL",
    )
    refused(worker, "SELECT andp_make_partitions('1; DROP TABLE runs')", error=refusals.InvalidTextRepresentation)
    with psycopg.connect(plain(worker)) as connection:
        connection.execute("CREATE TEMP TABLE recordings (id bigint)")  # cannot stand before ours
        connection.execute("INSERT INTO pg_temp.recordings VALUES (5)")
        with pytest.raises(refusals.NoDataFound):
            connection.execute("SELECT andp_make_partitions(5)")


def test_what_a_reader_may_not(login: Callable[..., URL]) -> None:
    reader = login("andp_reader")
    refused(
        reader,
        "INSERT INTO texts (text) VALUES ('x')",
        "UPDATE runs SET command = ''",
        "DELETE FROM failures",
        "CREATE TABLE mine (n int)",
        "SELECT andp_make_partitions(1)",
        "SELECT andp_analyse_partitions(1)",
        "SELECT nextval('runs_id_seq')",
        "SET ROLE andp_worker",
        "COPY clips TO PROGRAM 'cat'",
        "COPY clips TO '/tmp/clips'",
        "SELECT lo_export(1, '/tmp/x')",
    )
    careful = login("andp_reader", "default_transaction_read_only = on")
    refused(careful, "CREATE TEMP TABLE mine (n int)", error=refusals.ReadOnlySqlTransaction)
    with pytest.raises(DatabaseError, match=r"^permission denied for table texts.*andp db roles"):
        db.patiently(lambda: _insert(reader))


def _insert(url: URL) -> None:
    with db.transaction(db.make_engine(url, Settings())) as session:
        session.execute(sa.text("INSERT INTO texts (text) VALUES ('x')"))


def test_an_owner_migrates_and_the_others_can_use_what_it_makes(login: Callable[..., URL]) -> None:
    owner = db.make_engine(login("andp_owner"), Settings())
    worker, reader = login("andp_worker"), login("andp_reader")
    newest = db.newest_revision()
    db.downgrade(owner, "0005")
    db.upgrade(owner)
    assert db.schema_revision(owner) == newest
    with psycopg.connect(plain(reader)) as connection:
        assert connection.execute("SELECT count(*) FROM work_units").fetchone() == (0,)
        assert connection.execute(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname IN ('work_units', 'runs')"
        ).fetchall() == [("andp_owner",)]
    with psycopg.connect(plain(worker)) as connection:
        connection.execute("DELETE FROM work_units")
    refused(worker, "SELECT andp_make_partitions(1)")  # made anew: granted by the script alone
    roles.apply(owner_of_roles := db.make_engine(owner.url.set(username="postgres"), Settings()))
    refused(worker, "SELECT andp_make_partitions(1)", error=refusals.NoDataFound)
    for engine in (owner, owner_of_roles):
        engine.dispose()


def test_the_owner_of_a_database_with_createrole_makes_them(server_url: URL) -> None:
    """Not a superuser: a managed server gives none."""
    boss, database = f"boss_{os.getpid()}", f"andp_boss_{os.getpid()}"
    others = server_url.set(database=database)
    with superuser(server_url) as admin:
        if _unused(admin):
            admin.execute("DROP ROLE andp_worker, andp_reader, andp_owner")
        known = admin.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'andp_owner'").fetchone() == (1,)
        admin.execute(f"CREATE ROLE {boss} LOGIN CREATEROLE")
        if known:  # made by somebody else: the superuser lets the boss give them on
            admin.execute(f"GRANT andp_owner, andp_worker, andp_reader TO {boss} WITH ADMIN OPTION")
        admin.execute(f"CREATE DATABASE {database} OWNER {boss}")
    try:
        with superuser(others) as connection:
            connection.execute("CREATE EXTENSION vector")
        engine = db.make_engine(others.set(username=boss), Settings())
        db.upgrade(engine)
        roles.apply(engine)
        roles.apply(engine)
        with db.reading(engine) as session:
            assert session.scalar(sa.text("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'runs'")) == (
                "andp_owner"
            )
        db.downgrade(engine, "0006")
        db.upgrade(engine)  # still the boss's to migrate
        engine.dispose()
    finally:
        with superuser(server_url) as admin:
            admin.execute(f"DROP DATABASE {database} WITH (FORCE)")
            admin.execute(f"DROP OWNED BY {boss}")
            if not known:
                admin.execute("DROP ROLE andp_worker, andp_reader, andp_owner")
            admin.execute(f"DROP ROLE {boss}")


def _unused(admin: psycopg.Connection[tuple[object, ...]]) -> bool:
    """Whether nothing in the server depends on the roles, so that they can be made again."""
    return admin.execute(
        "SELECT NOT EXISTS (SELECT FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid WHERE r.rolname LIKE 'andp\\_%')"
        " AND EXISTS (SELECT FROM pg_roles WHERE rolname = 'andp_owner')"
    ).fetchone() == (True,)


def test_who_may_not_make_roles_is_told(login: Callable[..., URL]) -> None:
    worker = db.make_engine(login("andp_worker"), Settings())
    with pytest.raises(DatabaseError, match=r"may not make the roles .*needs CREATEROLE"):
        roles.apply(worker)


def without_reader(engine: sa.Engine) -> sa.Engine:
    """An engine whose URL holds its password, as that of another server does."""
    password = next(
        line.rpartition(":")[2]
        for line in Path(str(engine.url.query["passfile"])).read_text().splitlines()
        if f":{engine.url.username}:" in line
    )
    return db.make_engine(engine.url.difference_update_query(["passfile"]).set(password=password), Settings())


def test_a_superusers_questions_run_as_the_reader(engine: sa.Engine) -> None:
    engine = without_reader(engine)  # as a server of one's own, with no ANDP_READER_URL
    roles.apply(engine)
    assert ask.sql(engine, "SELECT current_user::text")[1] == [("andp_reader",)]
    assert ask.sql(engine, "SELECT current_user::text", write=True)[1] == [("postgres",)]
    for query in (
        "COPY (SELECT 1) TO PROGRAM 'cat'", "COPY (SELECT 1) TO '/tmp/andp-escaped'", "SELECT pg_read_file('PG_VERSION')",
        "SELECT lo_export(1, '/tmp/andp-escaped')", "SELECT pg_ls_dir('.')",
        "SELECT set_config('role', 'none', true), pg_read_file('PG_VERSION')",
    ):  # fmt: skip
        with pytest.raises(QueryError, match=r"permission denied|must be superuser"):
            ask.sql(engine, query)
    assert not Path("/tmp/andp-escaped").exists()
