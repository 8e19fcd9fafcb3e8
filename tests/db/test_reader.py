"""Who asks cannot do anything else: attacks by real `andp sql`, on the embedded server and on one's own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform import api, db
from and_platform.config import Settings
from and_platform.embedded import READER, EmbeddedServer
from and_platform.errors import DatabaseError, QueryError
from and_platform.services import ask, locks, roles
from tests import forked
from tests.homes import new_home

Andp = Callable[..., CompletedProcess[str]]
Owner = psycopg.Connection[tuple[object, ...]]

TARGET = "/tmp/andp-escaped"

IN_DO = "DO $$ BEGIN {} END $$"
COPIES = f"EXECUTE $q$COPY (SELECT 1) TO '{TARGET}'$q$"
WRITABLE = "COMMIT; SET default_transaction_read_only = off; COMMIT;"

ATTACKS = (
    # files and programs of the server
    f"COPY (SELECT 1) TO '{TARGET}'",
    f"COPY (SELECT 1) TO PROGRAM 'tee {TARGET}'",
    f"COPY texts FROM PROGRAM 'tee {TARGET}'",
    "COPY texts FROM '/etc/passwd'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_ls_dir('.')",
    "SELECT * FROM pg_ls_logdir()",
    "SELECT pg_stat_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    f"SELECT lo_export(1, '{TARGET}')",
    # large objects
    "SELECT lo_create(7)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(7, 'x')",
    # other sessions, the server
    "SELECT pg_terminate_backend({pid})",
    "SELECT pg_cancel_backend({pid})",
    "SELECT pg_terminate_backend(pg_backend_pid())",  # other readers are the same role
    "SELECT pg_cancel_backend(pg_backend_pid())",
    "SELECT pg_reload_conf()",
    "SELECT pg_rotate_logfile()",
    "SELECT pg_switch_wal()",
    "SELECT pg_logical_emit_message(false, 'x', 'y')",
    "ALTER SYSTEM SET fsync = off",
    "CHECKPOINT",
    "SELECT pg_stat_reset()",
    # locks
    "LOCK TABLE texts",
    "LOCK TABLE texts IN EXCLUSIVE MODE",
    "LOCK TABLE texts IN SHARE MODE",
    "LOCK TABLE texts IN ROW SHARE MODE",
    "SELECT id FROM texts FOR UPDATE",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_lock(1, 2)",
    "SELECT pg_try_advisory_xact_lock_shared(1)",
    "SELECT pg_advisory_lock_shared(hashtextextended('and_platform:texts', 0))",
    # to be somebody else
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "SELECT set_config('role', 'postgres', true)",
    "SELECT set_config('session_authorization', 'postgres', true)",
    IN_DO.format(f"RESET ROLE; {COPIES};"),
    IN_DO.format("SET ROLE postgres;"),
    IN_DO.format(f"SET ROLE NONE; {COPIES};"),
    IN_DO.format("SET SESSION AUTHORIZATION postgres;"),
    IN_DO.format(f"RESET SESSION AUTHORIZATION; {COPIES};"),
    IN_DO.format(f"COMMIT; {COPIES};"),
    "SELECT rolpassword FROM pg_authid",
    "SELECT * FROM pg_hba_file_rules",
    # what writes
    "CREATE TEMP TABLE mine (n int)",
    "SELECT 1 AS n INTO TEMP mine",
    "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "SELECT nextval('texts_id_seq')",
    "SELECT setval('texts_id_seq', 900)",
    IN_DO.format("COMMIT; SET TRANSACTION READ WRITE; DELETE FROM texts;"),
    IN_DO.format(f"{WRITABLE} DELETE FROM texts;"),
    IN_DO.format(f"{WRITABLE} PERFORM lo_create(7);"),
    IN_DO.format(f"{WRITABLE} PERFORM nextval('texts_id_seq');"),
    "SELECT andp_make_partitions(1)",
    # other databases
    "CREATE EXTENSION dblink",
    "SELECT * FROM dblink('dbname=postgres', 'SELECT 1') AS t (n int)",
    "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE EXTENSION file_fdw",
    "LOAD 'dblink'",
    "CREATE LANGUAGE plpython3u",
    "CREATE SUBSCRIPTION s CONNECTION 'dbname=postgres' PUBLICATION p",
)


@pytest.fixture
def kept(engine: sa.Engine) -> Iterator[Owner]:
    """A session of the owner of the database, in which there is something to lose."""
    Path(TARGET).unlink(missing_ok=True)
    with db.transaction(engine) as session:
        session.execute(sa.text("INSERT INTO texts (text) VALUES ('kept')"))
    plain = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        yield connection
    assert not Path(TARGET).exists()


def unchanged(owner: Owner) -> None:
    assert owner.execute("SELECT text FROM texts").fetchall() == [("kept",)]
    assert owner.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone() == (0,)
    assert owner.execute("SELECT last_value FROM texts_id_seq").fetchone() == (1,)
    assert owner.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_andp_sql_does_not_get_out(andp: Andp, kept: Owner) -> None:
    who = andp("sql", "SELECT session_user::text AS session, current_user::text AS now", "--json").stdout
    assert json.loads(who) == [{"session": READER, "now": READER}]
    for attack in ATTACKS:
        done = andp("sql", attack.replace("{pid}", str(kept.info.backend_pid)), check=False)
        assert (done.returncode, done.stdout) == (2, ""), (attack, done)
        assert done.stderr.startswith("andp: ") and done.stderr.count("\n") == 1, (attack, done.stderr)
        assert "connection broke" not in done.stderr
    unchanged(kept)


def test_python_goes_the_same_way(kept: Owner, database_url: URL) -> None:
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with api.open(url) as platform:
        assert platform.sql("SELECT session_user::text AS name")["name"].tolist() == [READER]
        assert platform.sql("SELECT session_user::text AS name", write=True)["name"].tolist() == ["postgres"]
        for attack in ATTACKS:
            with pytest.raises(QueryError):
                platform.sql(attack.replace("{pid}", str(kept.info.backend_pid)))
    unchanged(kept)


def test_the_reader_reads_all_that_there_is(engine: sa.Engine) -> None:
    """Tables, views and partitions; those that are made later, by migrations, at run time or by the user."""
    ask.sql(engine, "CREATE TABLE my_notes AS SELECT 1 AS n", write=True)
    ask.sql(engine, "CREATE TABLE andp_activations_7 (n int)", write=True)
    _, names = ask.sql(
        engine,
        "SELECT c.oid::regclass::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p', 'v')",
    )
    assert len(names) > 40 and ("my_notes",) in names
    for (name,) in names:
        ask.sql(engine, f"SELECT * FROM {name} LIMIT 1")
    with pytest.raises(QueryError, match="no complete dissection"):  # says the function, which it may call
        ask.sql(engine, "SELECT * FROM neurons_for_concept('water', 'closed_db')")
    roles.apply(engine)  # which gives the tables to another owner
    ask.sql(engine, "SELECT * FROM my_notes, runs")
    assert ask.sql(engine, "SELECT session_user::text")[1] == [(READER,)]


def test_it_ends_in_time(engine: sa.Engine) -> None:
    begun = time.monotonic()
    with pytest.raises(QueryError, match=r"cancelled after 0\.3 s"):
        ask.sql(engine, "DO $$ BEGIN SET statement_timeout = 0; PERFORM pg_sleep(60); END $$", timeout=0.3)
    with engine.begin() as holder:
        holder.execute(sa.text("LOCK TABLE texts"))
        with pytest.raises(DatabaseError, match=r"^canceling statement due to lock timeout: another command holds it"):
            ask.sql(engine, "SELECT * FROM texts")
    assert time.monotonic() - begun < 50


def test_workers_keep_the_locks_that_a_reader_is_refused(engine: sa.Engine, database_url: URL) -> None:
    roles.apply(engine)
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as admin:
        admin.execute("CREATE ROLE locking LOGIN IN ROLE andp_worker")
        admin.execute("CREATE ROLE reading LOGIN IN ROLE andp_reader")
        try:
            worker = db.make_engine(database_url.set(username="locking"), Settings())
            with locks.held(worker, "thing"), db.transaction(worker) as session:
                session.execute(sa.text("CREATE TEMPORARY TABLE mine (n int)"))
            worker.dispose()
            # A member of the role with any client, in a transaction that may write.
            url = database_url.set(username="reading", drivername="postgresql").render_as_string(hide_password=False)
            for query in ("SELECT pg_advisory_lock(1)", "SELECT lo_create(1)", "CREATE TEMP TABLE mine (n int)"):
                with psycopg.connect(url) as reader, pytest.raises(psycopg.errors.InsufficientPrivilege):
                    reader.execute(query.encode())
        finally:
            admin.execute("DROP ROLE locking")
            admin.execute("DROP ROLE reading")


# ---------------------------------------------------------------------- the embedded server, from nothing


def test_the_embedded_server_by_commands(environment: dict[str, str]) -> None:
    home = new_home("andp-r")
    given = {**environment, "ANDP_HOME": str(home), "ANDP_DATABASE_URL": ""}

    def sql(query: str) -> CompletedProcess[str]:
        return forked.run("sql", query, "--csv", environment=given)

    try:
        assert sql("SELECT session_user::text AS name").stdout.split() == ["name", READER]
        for query in (
            f"COPY (SELECT 1) TO '{TARGET}'", "CREATE TEMP TABLE t (n int)", "SELECT pg_advisory_lock(1)",
            IN_DO.format(f"RESET ROLE; {COPIES};"), IN_DO.format(f"{WRITABLE} CREATE TEMP TABLE t (n int);"),
        ):  # fmt: skip
            done = sql(query)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), (query, done)
        # The schema as an earlier version left it, in a cluster without the role.
        down = forked.run("db", "upgrade", "0010", "--down", environment=given, given="y\n")
        assert down.returncode == 0, down.stderr
        server = EmbeddedServer(home)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("INSERT INTO texts (text) VALUES ('kept')")
            connection.execute(f"DROP OWNED BY {READER}, andp_reader")
            connection.execute(f"DROP ROLE {READER}, andp_reader")
        server.stop()
        server.passwords.unlink()
        (server.data / "pg_hba.conf").write_text("local all all trust\n")
        assert "andp db upgrade" in sql("SELECT text FROM texts").stderr
        assert forked.run("db", "upgrade", environment=given).returncode == 0
        assert sql("SELECT text, session_user AS name FROM texts").stdout.split() == ["text,name", f"kept,{READER}"]
        assert sql("SELECT pg_advisory_lock(1)").returncode == 2
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


# ---------------------------------------------------------------------- a server of one's own


def test_a_reader_of_ones_own(andp: Andp, engine: sa.Engine, database_url: URL) -> None:
    roles.apply(engine)
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as admin:
        admin.execute("CREATE ROLE alice LOGIN IN ROLE andp_reader")
        try:
            alice = database_url.set(drivername="postgresql", username="alice").render_as_string(hide_password=False)
            given = {"ANDP_READER_URL": alice}
            asked = ("sql", "SELECT session_user::text", "--csv")
            assert andp(*asked, env=given).stdout.split()[-1] == "alice"
            assert andp(*asked, "--write", env=given).stdout.split()[-1] == "postgres"
            with api.open(plain, reader_url=alice) as platform:
                assert platform.sql("SELECT session_user::text AS name")["name"].tolist() == ["alice"]
        finally:
            admin.execute("DROP ROLE alice")


def test_a_reader_that_cannot_be_reached_is_told_by_its_own_setting(andp: Andp, database_url: URL) -> None:
    nobody = database_url.set(drivername="postgresql", username="no_such").render_as_string(hide_password=False)
    done = andp("sql", "SELECT 1", env={"ANDP_READER_URL": nobody}, check=False)
    assert done.returncode == 4 and "the user or password in ANDP_READER_URL" in done.stderr
    done = andp("sql", "SELECT 1", env={"ANDP_READER_URL": "mysql://h/d"}, check=False)
    assert done.returncode == 2 and "ANDP_READER_URL names 'mysql'" in done.stderr
