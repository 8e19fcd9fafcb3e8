"""Connections: few, safe behind a real PgBouncer, named, limited in time, and made anew when the server was lost."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from and_platform import db
from and_platform.config import Settings
from and_platform.embedded import EmbeddedServer
from and_platform.errors import ConfigError, DatabaseError, DatabaseUnreachableError, QueryError
from and_platform.services import ask, locks
from tests import tiny
from tests.db.test_connect import fake_server
from tests.homes import new_home

Andp = Callable[..., CompletedProcess[str]]

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SERVER_CONNECTIONS = 3


def made(url: URL, role: str | None = None, **settings: Any) -> sa.Engine:
    return db.make_engine(url, Settings.model_validate(settings), role)


def value(engine: sa.Engine, query: str) -> Any:
    with db.reading(engine) as session:
        return session.scalar(sa.text(query))


# ---------------------------------------------------------------------- PgBouncer


def password_of(url: URL) -> str:
    """The password that libpq finds for the user of an embedded server's URL."""
    lines = Path(str(url.query["passfile"])).read_text().splitlines()
    return next(line.rpartition(":")[2] for line in lines if f":{url.username}:" in line)


@pytest.fixture(scope="module")
def pooler(server_url: URL) -> Iterator[Path]:
    """Folder of the socket of a real PgBouncer in transaction mode before the session's server, at port 6432."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    # It refuses to run as root; the server's own user may reach the server's socket.
    user = "pgserver" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="andpb"))
    config = folder / "pgbouncer.ini"
    config.write_text(
        "[databases]\n"
        f"* = host={server_url.query['host']} user={server_url.username} password={password_of(server_url)}\n"
        "[pgbouncer]\n"
        f"listen_addr =\nlisten_port = 6432\nunix_socket_dir = {folder}\nauth_type = any\npool_mode = transaction\n"
        f"default_pool_size = {SERVER_CONNECTIONS}\nmax_client_conn = 50\nlogfile = {folder}/log\n"
    )
    folder.chmod(0o755)
    if user:
        shutil.chown(folder, user)
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(config)], user=user, group=user, extra_groups=[] if user else None, cwd="/",
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not (folder / ".s.PGSQL.6432").exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield folder
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


@pytest.fixture
def pooled_url(pooler: Path, database_url: URL) -> URL:
    return database_url.set(query={"host": str(pooler), "port": "6432"})


@pytest.fixture
def pooled(pooled_url: URL) -> Iterator[sa.Engine]:
    engine = made(pooled_url, pooler=True, statement_timeout=30, lock_timeout=20, idle_timeout=40)
    yield engine
    engine.dispose()


def test_without_the_setting_one_line_names_it(pooled_url: URL) -> None:
    with pytest.raises(DatabaseUnreachableError, match=r"^a pooler stands before the server; set ANDP_POOLER=true$"):
        value(made(pooled_url), "SELECT 1")


def test_each_transaction_sets_what_it_needs_and_leaves_nothing(pooled: sa.Engine, pooled_url: URL) -> None:
    query = "SELECT concat_ws(' ', {})".format(
        ", ".join(
            f"current_setting('{name}')"
            for name in ("TimeZone", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        )
    )
    assert value(pooled, query) == "UTC 30s 20s 40s"
    plain = pooled_url.set(drivername="postgresql").render_as_string(hide_password=False)
    # Whoever comes next may get the same session of the server.
    with psycopg.connect(plain, autocommit=True, prepare_threshold=None) as other:
        for _ in range(5):
            assert other.execute(query.replace("'TimeZone'", "'DateStyle'")).fetchone() == ("ISO, MDY 0 0 0",)


def test_statements_are_not_prepared(pooled: sa.Engine) -> None:
    for i in range(20):  # the driver prepares what comes for the sixth time
        assert value(pooled, f"SELECT count(*) FROM pg_prepared_statements WHERE {i} = {i}") == 0
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda i: value(pooled, "SELECT 1") + i, range(100))
        assert list(found) == list(range(1, 101))


def test_a_lock_holds_across_the_sessions_of_a_pooler(pooled: sa.Engine, pooled_url: URL) -> None:
    other = made(pooled_url, pooler=True)
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with locks.held(other, "thing", waiting.set):
            order.append("second")

    with locks.held(pooled, "thing"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(20)
        for _ in range(5):  # transactions beside it, on other sessions
            assert value(pooled, "SELECT 1") == 1
        time.sleep(0.5)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert value(pooled, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    other.dispose()


def test_a_question_leaves_nothing_in_the_session(pooled: sa.Engine) -> None:
    for query in ("PREPARE kept AS SELECT 1", "SET DateStyle = 'German'"):
        ask.sql(pooled, query)
    for query in ("SELECT pg_advisory_lock(1)", "SELECT pg_advisory_lock(2), n / 0 FROM generate_series(1, 2) n"):
        with pytest.raises(QueryError, match="permission denied for function pg_advisory_lock"):
            ask.sql(pooled, query)
    ask.sql(pooled, "SELECT pg_advisory_lock(3)", write=True)  # the owner may
    for _ in range(5):
        assert value(pooled, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        assert value(pooled, "SELECT count(*) FROM pg_prepared_statements WHERE name = 'kept'") == 0
        assert value(pooled, "SELECT current_setting('DateStyle')") == "ISO, MDY"


@pytest.mark.parametrize("query", ["SELECT 1; SELECT 2", "COMMIT; CREATE TABLE mine (n int)"])
def test_one_statement_at_a_time_without_preparing_too(pooled: sa.Engine, query: str) -> None:
    with pytest.raises(QueryError, match="more than one statement"):
        ask.sql(pooled, query)


def test_a_whole_dissection_behind_a_pooler(andp: Andp, pooled_url: URL, pooled: sa.Engine, tmp_path: Path) -> None:
    tiny.sounds(tmp_path / "tones", 3)
    tiny.network(tmp_path / "network")
    through = {
        "ANDP_DATABASE_URL": pooled_url.set(drivername="postgresql").render_as_string(hide_password=False),
        "ANDP_POOLER": "true",
    }
    andp("ingest", "folder", str(tmp_path / "tones"), "--processes", "1", env=through)
    andp("networks", "add", "tiny", str(tmp_path / "network"), env=through)
    andp("dissect", "tiny", "--dataset", "tones", env=through)
    found = json.loads(andp("neurons", "--concept", "noise", "--strategy", "closed_db", "--json", env=through).stdout)
    assert found and {"network", "neuron"} <= set(found[0])
    assert json.loads(andp("search", "a noise", "--json", env=through).stdout)
    [row] = json.loads(andp("sql", "SELECT count(*) AS n FROM neuron_descriptions", "--json", env=through).stdout)
    assert row["n"] > 0
    assert "ok" in andp("runs", "list", env=through).stdout
    # Commands came and went; the server saw no more sessions than the pool has.
    n = value(pooled, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    assert n <= SERVER_CONNECTIONS


# ---------------------------------------------------------------------- how many, and what they are called


def test_connections_are_few_and_have_names(database_url: URL) -> None:
    engine = made(database_url, "worker gpu", pool_size=2)
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda _: value(engine, "SELECT pg_sleep(0.02)"), range(60)))
    names = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'andp worker gpu'"
    deadline = time.monotonic() + 10  # the server takes a moment to forget one that was closed
    while value(engine, names) > 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert value(engine, names) == 2
    engine.dispose()
    assert value(made(database_url, application_name="study"), "SELECT current_setting('application_name')") == "study"


def test_a_process_that_needs_more_than_it_has_is_told(database_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made(database_url, pool_size=1)
    monkeypatch.setattr(engine.pool, "_timeout", 0.1)
    with engine.connect(), engine.connect(), pytest.raises(DatabaseError, match="raise ANDP_POOL_SIZE"):
        value(engine, "SELECT 1")
    engine.dispose()


# ---------------------------------------------------------------------- limits in time


def test_a_lock_that_another_holds(database_url: URL) -> None:
    engine = made(database_url, lock_timeout=0.1)
    with db.transaction(engine) as holder:
        holder.execute(sa.text("LOCK TABLE runs"))
        with pytest.raises(DatabaseError, match="longer than ANDP_LOCK_TIMEOUT") as caught:
            value(engine, "SELECT count(*) FROM runs")
    assert not caught.value.passing
    engine.dispose()


def test_a_transaction_in_which_nothing_happens(database_url: URL) -> None:
    engine = made(database_url, idle_timeout=0.2)
    with pytest.raises(DatabaseError, match="ANDP_IDLE_TIMEOUT"), db.transaction(engine) as session:
        session.execute(sa.text("SELECT 1"))
        time.sleep(1)
        session.execute(sa.text("SELECT 1"))
    with locks.held(engine, "long"):  # it is not work that is held up: somebody else works meanwhile
        time.sleep(0.6)
        assert value(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 1
    engine.dispose()


def test_what_a_standby_says(engine: sa.Engine) -> None:
    with (
        pytest.raises(DatabaseError, match="target_session_attrs=read-write") as caught,
        db.transaction(engine) as session,
    ):
        session.execute(sa.text("SET TRANSACTION READ ONLY"))
        session.execute(sa.text("DELETE FROM runs"))
    assert caught.value.passing


def test_a_server_that_is_full(engine: sa.Engine) -> None:
    with (
        pytest.raises(DatabaseUnreachableError, match="no connection left") as caught,
        db.transaction(engine) as session,
    ):
        session.execute(
            sa.text("DO $$ BEGIN RAISE EXCEPTION 'too many' USING ERRCODE = 'too_many_connections'; END $$")
        )
    assert caught.value.passing


# ---------------------------------------------------------------------- several servers


@pytest.mark.parametrize(
    ("given", "hosts", "ports"),
    [
        ("postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write", "h1,h2", "5432,5433"),
        ("postgresql://u:p@h1,h2/db?target_session_attrs=read-write", "h1,h2", ","),
        ("postgresql://u:p@[::1]:5432,h2/db?target_session_attrs=read-write", "::1,h2", "5432,"),
    ],
)
def test_several_hosts_as_libpq_writes_them(given: str, hosts: str, ports: str) -> None:
    url = db.database_url(Settings.model_validate({"database_url": given}))
    assert (url.username, url.password, url.database) == ("u", "p", "db")
    assert dict(url.query) == {"host": hosts, "port": ports, "target_session_attrs": "read-write"}
    # What `andp db url` prints is libpq's too.
    told = psycopg.conninfo.conninfo_to_dict(url.set(drivername="postgresql").render_as_string(hide_password=False))
    assert (told["host"], told["port"], told["user"], told["password"]) == (hosts, ports, "u", "p")


def test_several_hosts_with_a_port_that_is_none() -> None:
    with pytest.raises(ConfigError, match="is not a URL"):
        db.database_url(Settings.model_validate({"database_url": "postgresql://h1:x,h2:1/db"}))


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[EmbeddedServer, int]]:
    """A server of the test's own that can be killed, and that listens at a TCP port."""
    home = new_home("andpk")
    server = EmbeddedServer(home)
    server.ensure_running()
    server.stop()
    with fake_server(b"") as port:
        pass
    with (server.data / "andp.conf").open("a") as conf:
        conf.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nfsync = off\n")
    # A port of its own changes the name of the socket: it is asked for at TCP.
    try:
        _start(server, port)
        yield server, port
    finally:
        server._run("pg_ctl", "-D", str(server.data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(home, ignore_errors=True)


def _start(server: EmbeddedServer, port: int) -> None:
    (server.data / "postmaster.pid").unlink(missing_ok=True)
    server._end_orphans()
    server._run(
        "pg_ctl",
        "-D",
        str(server.data),
        "-l",
        "/dev/null",  # the log belongs to who starts it, not to the server's user
        "-w",
        "-o",
        f"-k {server.socket_dir} -p {port}",
        "start",
    )


def test_a_server_that_was_killed_and_started_again(listening: tuple[EmbeddedServer, int]) -> None:
    server, port = listening
    with fake_server(b"") as closed:
        pass
    # The first of the two answers nobody: libpq goes on to the second, and finds out that it is the one that writes.
    url = f"postgresql://postgres@127.0.0.1:{closed},127.0.0.1:{port}/andp?target_session_attrs=read-write"
    url += f"&passfile={server.passwords}"
    engine = db.connect(Settings.model_validate({"database_url": url, "connect_timeout": 3}))
    with db.transaction(engine) as session:
        session.execute(sa.text("INSERT INTO texts (text) VALUES ('before')"))
    tries = []

    def work() -> int:
        tries.append(1)
        with db.transaction(engine) as session:
            session.execute(sa.text("INSERT INTO texts (text) VALUES ('after')"))
            if len(tries) == 1:
                _kill(server)
                threading.Timer(1.0, _start, (server, port)).start()
            return session.scalars(sa.text("SELECT count(*) FROM texts")).one()

    assert db.patiently(work, seconds=60) == 2  # neither lost nor doubled
    assert len(tries) > 1
    engine.dispose()


def _kill(server: EmbeddedServer) -> None:
    import psutil

    pid = server._running_pid()
    assert pid is not None
    process = psutil.Process(pid)
    children = process.children()
    process.kill()
    for child in children:
        child.kill()
    psutil.wait_procs([process, *children], timeout=20)


# ---------------------------------------------------------------------- trying again


def test_a_session_that_was_ended_is_begun_anew(engine: sa.Engine) -> None:
    tries = []

    def work() -> int:
        tries.append(1)
        with db.transaction(engine) as session:
            session.execute(sa.text("INSERT INTO texts (text) VALUES ('once')"))
            if len(tries) == 1:
                session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return len(tries)

    assert db.patiently(work, seconds=20) == 2
    assert value(engine, "SELECT count(*) FROM texts") == 1


def test_the_victim_of_a_deadlock_goes_again(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        session.execute(sa.text("INSERT INTO texts (text) VALUES ('a'), ('b')"))
    tries = []
    both = threading.Barrier(2)

    def crossing(names: tuple[str, str]) -> None:
        def work() -> None:
            tries.append(names)
            with db.transaction(engine) as session:
                for n, name in enumerate(names):
                    session.execute(sa.text("SELECT FROM texts WHERE text = :name FOR UPDATE"), {"name": name})
                    if n == 0 and tries.count(names) == 1:
                        both.wait(20)

        db.patiently(work, seconds=30)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(crossing, [("a", "b"), ("b", "a")]))
    assert len(tries) == 3


def test_what_cannot_pass_is_not_tried_again(engine: sa.Engine, database_url: URL) -> None:
    tries = []

    def refused() -> None:
        tries.append(1)
        with db.transaction(engine) as session:
            session.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'disk_full'; END $$"))

    with pytest.raises(DatabaseError, match="disk is full"):
        db.patiently(refused, seconds=20)
    nowhere = made(database_url.set(database="nowhere"))

    def missing() -> None:
        tries.append(1)
        value(nowhere, "SELECT 1")

    with pytest.raises(DatabaseUnreachableError, match="no database"):
        db.patiently(missing, seconds=20)
    assert len(tries) == 2


def test_patience_ends() -> None:
    with fake_server(b"") as port:
        pass
    engine = made(make_url(f"postgresql+psycopg://{getpass.getuser()}@127.0.0.1:{port}/db"))
    began = time.monotonic()
    with pytest.raises(DatabaseUnreachableError, match="cannot reach the database"):
        db.patiently(lambda: value(engine, "SELECT 1"), seconds=1)
    assert 0.5 < time.monotonic() - began < 15
