"""Reaching a database: one clear line for each thing that can be wrong, and `andp db`."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from and_platform import api, db
from and_platform.config import Settings, settings
from and_platform.embedded import EmbeddedServer
from and_platform.errors import (
    ConfigError,
    DatabaseError,
    DatabaseUnreachableError,
    ExtensionMissingError,
    QueryError,
)
from and_platform.services import ask
from tests.homes import new_home

Andp = Callable[..., CompletedProcess[str]]


def configured(url: str, **more: Any) -> Settings:
    return Settings.model_validate({"database_url": url, **more})


def line(error: type[DatabaseError] | type[ConfigError], url: str, **more: Any) -> str:
    """The one line that connecting to `url` ends with."""
    with pytest.raises(error) as caught:
        db.connect(configured(url, **more))
    text = str(caught.value)
    assert text and "\n" not in text
    return text


@contextmanager
def fake_server(answer: bytes | None) -> Iterator[int]:
    """A port where something listens that is no Postgres; None: it never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def serve() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    kept.append(connection)
                    if answer is not None:
                        connection.recv(64)
                        connection.sendall(answer)
                        connection.close()
            except OSError:  # closed by the end of the test
                return

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


# ---------------------------------------------------------------------- the setting


@pytest.mark.parametrize("url", ["not a url", "localhost", "postgresql://host:port/db"])
def test_what_is_no_url(url: str) -> None:
    assert line(ConfigError, url) == (
        "ANDP_DATABASE_URL is not a URL; give postgresql://user:password@host:5432/database"
    )


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql+pymysql://host/db"])
def test_another_kind_of_database(url: str) -> None:
    named = url.partition(":")[0]
    assert line(ConfigError, url) == f"ANDP_DATABASE_URL names '{named}'; only postgresql:// is supported"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_any_spelling_of_postgres_is_taken(scheme: str) -> None:
    url = db.database_url(configured(f"{scheme}://me:secret@host:5433/sounds?sslmode=require"))
    assert url == make_url("postgresql+psycopg://me:secret@host:5433/sounds?sslmode=require")


def test_an_empty_setting_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDP_DATABASE_URL", "")
    assert settings().database_url is None


def test_a_password_is_not_shown(engine: sa.Engine) -> None:
    assert "secret" not in repr(configured("postgresql://me:secret@host/db"))
    with engine.begin() as connection:  # one who is let in with any password
        connection.execute(sa.text("CREATE ROLE shown LOGIN SUPERUSER"))
    shown = db.make_engine(engine.url.set(username="shown", password="secret"), Settings())
    try:
        assert "secret" not in db.status(shown, embedded=False).url
    finally:
        shown.dispose()
        with engine.begin() as connection:
            connection.execute(sa.text("DROP ROLE shown"))


# ---------------------------------------------------------------------- reaching the server


def test_nothing_listens_there() -> None:
    with fake_server(b"") as port:
        pass  # closed again: nothing listens
    assert line(DatabaseUnreachableError, f"postgresql://me@127.0.0.1:{port}/db") == (
        f'cannot reach the database: connection to server at "127.0.0.1", port {port} failed: Connection refused; '
        "check ANDP_DATABASE_URL and that the server runs"
    )
    # By a name with several addresses libpq lists its attempts.
    assert "Connection refused" in line(DatabaseUnreachableError, f"postgresql://me@localhost:{port}/db")


def test_no_such_host() -> None:
    text = line(DatabaseUnreachableError, "postgresql://me@no-such-host.invalid/db")
    assert text.startswith("cannot reach the database: ")
    assert "no-such-host.invalid" in text


def test_no_such_socket(tmp_path: Path) -> None:
    text = line(DatabaseUnreachableError, f"postgresql://me@/db?host={tmp_path}")
    assert "No such file or directory" in text


def test_something_else_listens_there() -> None:
    with fake_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        text = line(DatabaseUnreachableError, f"postgresql://me@127.0.0.1:{port}/db")
    assert "received invalid response" in text


def test_a_server_that_never_answers() -> None:
    with fake_server(None) as port:
        text = line(DatabaseUnreachableError, f"postgresql://me@127.0.0.1:{port}/db", connect_timeout=2)
    assert "timeout expired" in text


def test_no_such_database(server_url: URL) -> None:
    url = server_url.set(database="nowhere").render_as_string(hide_password=False)
    assert line(DatabaseUnreachableError, url) == (
        'the server has no database "nowhere"; create it with: createdb nowhere'
    )


def test_no_such_user(server_url: URL) -> None:
    url = server_url.set(username="nobody").render_as_string(hide_password=False)
    assert line(DatabaseUnreachableError, url) == (
        "the database refuses the user or password in ANDP_DATABASE_URL; correct it"
    )


@pytest.fixture
def guarded(server_home: Path, server_url: URL) -> Iterator[URL]:
    """A user of the session's server who has to give a password: sesame."""
    rules = EmbeddedServer(server_home).data / "pg_hba.conf"
    before = rules.read_text()
    plain = server_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'sesame'")
        rules.write_text("local all guarded scram-sha-256\n" + before)
        connection.execute("SELECT pg_reload_conf()")
        yield server_url.set(username="guarded")
        rules.write_text(before)
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("DROP OWNED BY guarded")
        connection.execute("DROP ROLE guarded")


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password(guarded: URL, password: str | None) -> None:
    url = guarded.set(password=password).render_as_string(hide_password=False)
    assert line(DatabaseUnreachableError, url) == (
        "the database refuses the user or password in ANDP_DATABASE_URL; correct it"
    )


def test_the_right_password_and_no_right_to_make_extensions(guarded: URL, server_url: URL) -> None:
    plain = server_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("GRANT CREATE ON SCHEMA public TO guarded")
    url = guarded.set(password="sesame").render_as_string(hide_password=False)
    assert line(ExtensionMissingError, url) == (
        "this user may not create extensions; have a superuser run: CREATE EXTENSION vector"
    )


def test_an_extension_without_the_right_to_make_tables(guarded: URL, server_url: URL) -> None:
    plain = server_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        try:
            text = line(DatabaseError, guarded.set(password="sesame").render_as_string(hide_password=False))
        finally:
            connection.execute("DROP EXTENSION vector")
    assert text == (
        "this user may not make the schema: permission denied for schema public; use the owner of the database"
    )


# ---------------------------------------------------------------------- what the server is


def test_a_server_that_is_too_old(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "OLDEST_POSTGRES", 990000)
    with pytest.raises(DatabaseError, match=r"^the server is Postgres 18; 15 or newer is needed$"):
        db.check_server(engine)


def test_a_pgvector_that_is_too_old(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "OLDEST_PGVECTOR", (99, 0))
    with pytest.raises(ExtensionMissingError, match=r"^the server's pgvector is 0\.\d+\.\d+; 0\.8 or newer is needed"):
        db.check_server(engine)


OTHER_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.mark.skipif(not OTHER_POSTGRES, reason="no Postgres of the system's, without pgvector, is installed")
def test_a_server_without_pgvector() -> None:
    binaries = OTHER_POSTGRES[-1].parent
    root = Path(tempfile.mkdtemp(prefix="andp-p"))
    try:
        root.chmod(0o777)
        user = "postgres"  # the package makes it; Postgres does not run as root
        data = root / "data"
        for command in (
            [binaries / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"],
            [
                binaries / "pg_ctl",
                "-D",
                data,
                "-w",
                "-l",
                root / "log",
                "-o",
                f"-c listen_addresses= -k {root}",
                "start",
            ],
        ):
            subprocess.run(list(map(str, command)), user=user, cwd="/", check=True, stdout=subprocess.DEVNULL)
        try:
            assert line(ExtensionMissingError, f"postgresql://postgres@/postgres?host={root}") == (
                "the server has no pgvector; install it there (package postgresql-NN-pgvector) and run this again"
            )
        finally:
            subprocess.run(
                [binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], user=user, cwd="/", check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
    finally:
        shutil.rmtree(root)


# ---------------------------------------------------------------------- while it is used


def test_a_lost_server(engine: sa.Engine) -> None:
    with (
        pytest.raises(DatabaseUnreachableError, match="cannot reach the database: "),
        db.transaction(engine) as session,
    ):
        session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_a_statement_that_takes_too_long(database_url: URL) -> None:
    engine = db.make_engine(database_url, Settings.model_validate({"statement_timeout": 0.1}))
    with pytest.raises(DatabaseError, match="longer than ANDP_STATEMENT_TIMEOUT"), db.reading(engine) as session:
        session.execute(sa.text("SELECT pg_sleep(5)"))
    engine.dispose()


def test_other_trouble_is_not_taken_for_a_lost_server(engine: sa.Engine) -> None:
    with pytest.raises(DatabaseError, match="another command wrote") as caught, db.transaction(engine) as session:
        session.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'deadlock_detected'; END $$"))
    assert not isinstance(caught.value, DatabaseUnreachableError)
    with pytest.raises(DatabaseError, match="disk is full"), db.transaction(engine) as session:
        session.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'disk_full'; END $$"))
    with (
        pytest.raises(DatabaseError, match=r"^the server could not do it: no locks left"),
        db.transaction(engine) as session,
    ):
        session.execute(
            sa.text(
                "DO $$ BEGIN RAISE EXCEPTION 'no locks left' USING ERRCODE = 'configuration_limit_exceeded'; END $$"
            )
        )


def test_reading_does_not_write(engine: sa.Engine) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="read-only"), db.reading(engine) as session:
        session.execute(sa.text("DELETE FROM runs"))


def test_copy_and_insert_new(engine: sa.Engine) -> None:
    columns = {"text": "text"}
    with db.transaction(engine) as session:
        assert db.copy_rows(session, "texts", columns, [("a",), ("b",)]) == 2
        assert db.insert_new(session, "texts", columns, [("b",), ("c",)]) == 1
        assert db.insert_new(session, "texts", columns, []) == 0  # again in the same transaction
    with db.reading(engine) as session:
        assert session.scalars(sa.text("SELECT text FROM texts ORDER BY 1")).all() == ["a", "b", "c"]


# ---------------------------------------------------------------------- andp db


def test_status_of_ones_own_server(andp: Andp, database_url: URL) -> None:
    result = andp("db", "status", "--json")
    [row] = json.loads(result.stdout)
    assert (row["server"], row["schema"], row["newest_schema"]) == ("yours", db.newest_revision(), db.newest_revision())
    assert str(database_url.query["host"]).replace("/", "%2F") in row["url"]
    assert (row["postgres"].split(".")[0], row["pgvector"][:2]) == ("18", "0.")
    assert row["size_mb"] > 1
    assert result.stderr == ""
    assert "pgvector" in andp("db", "status").stdout


def test_upgrade_and_back(andp: Andp) -> None:
    newest = db.newest_revision()
    assert f"schema: {newest} → {newest}" in andp("db", "upgrade").stderr
    down = andp("db", "upgrade", "base", "--down", given="y\n")
    assert f"schema: {newest} → none" in down.stderr
    assert json.loads(andp("db", "status", "--json").stdout)[0]["schema"] is None
    assert f"schema: none → {newest}" in andp("db", "upgrade").stderr
    refused = andp("db", "upgrade", "--down", check=False)
    assert refused.returncode == 2
    assert "--down needs a revision" in refused.stderr
    unknown = andp("db", "upgrade", "nonsense", check=False)
    assert unknown.returncode == 4
    assert unknown.stderr.startswith("andp: ")
    assert unknown.stderr.count("\n") == 1


def test_url_and_shell(andp: Andp, database_url: URL) -> None:
    url = andp("db", "url").stdout.strip()
    assert make_url(url).database == database_url.database
    assert (
        andp("db", "url", env={"ANDP_DATABASE_URL": "postgresql://me:secret@h/d"}).stdout == "postgresql://me:***@h/d\n"
    )
    shown = andp("db", "url", "--show-password", env={"ANDP_DATABASE_URL": "postgresql://me:secret@h/d"})
    assert shown.stdout == "postgresql://me:secret@h/d\n"
    assert andp("db", "shell", "-At", "-c", "SELECT current_database()").stdout.strip() == database_url.database
    wrong = andp("db", "shell", "-c", "SELECT nonsense", check=False)
    assert wrong.returncode == 1
    assert 'column "nonsense" does not exist' in wrong.stderr


def test_errors_are_one_line_and_a_status(andp: Andp) -> None:
    for url, status, said in (
        ("postgresql://me@127.0.0.1:9/db", 4, "port 9 failed: Connection refused"),
        ("mysql://h/d", 2, "only postgresql:// is supported"),
    ):
        result = andp("db", "status", env={"ANDP_DATABASE_URL": url}, check=False)
        assert (result.returncode, result.stdout) == (status, "")
        assert result.stderr.startswith("andp: ") and result.stderr.count("\n") == 1
        assert said in result.stderr
    result = andp("db", "status", env={"ANDP_START_TIMEOUT": "soon"}, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("andp: ANDP_START_TIMEOUT: ")
    result = andp("db", "stop", check=False)
    assert result.returncode == 1
    assert "that server is yours to stop" in result.stderr


def test_the_embedded_server_by_commands(andp: Andp) -> None:
    home = new_home("andp-c")
    env = {"ANDP_DATABASE_URL": "", "ANDP_HOME": str(home / "h")}

    def state() -> dict[str, Any]:
        [row] = json.loads(andp("db", "status", "--json", env=env).stdout)
        return dict(row)

    try:
        assert state()["state"].startswith("not made yet")
        assert not (home / "h").exists()  # asking starts nothing
        assert "schema: none →" in andp("db", "upgrade", env=env).stderr
        assert (state()["server"], state()["schema"]) == ("embedded", db.newest_revision())
        assert make_url(andp("db", "url", env=env).stdout.strip()).database == "andp"
        assert andp("db", "stop", env=env).stderr.strip() == "stopped"
        assert andp("db", "stop", env=env).stderr.strip() == "it was not running"
        assert state()["state"].startswith("stopped")
        # The next command starts it again.
        assert andp("db", "shell", "-At", "-c", "SELECT count(*) FROM clips", env=env).stdout.strip() == "0"
    finally:
        EmbeddedServer(home / "h").stop()
        shutil.rmtree(home, ignore_errors=True)


# ---------------------------------------------------------------------- passwords in the query of a URL


@pytest.mark.parametrize(
    "query", ["password=canary", "pass%77ord=canary", "sslmode=require&password=canary", "password=old&password=canary"]
)
def test_a_password_in_the_query_is_one_before_the_host(query: str) -> None:
    url = db.database_url(configured(f"postgresql://me@h/d?{query}"))
    assert url.password == "canary" and "password" not in url.query
    assert "canary" not in db.shown(url) and "canary" not in repr(db.make_engine(url, Settings()))
    assert "canary" not in db.shown(make_url(f"postgresql://me@h/d?{query}"))


def test_secrets_of_a_url_are_not_printed_nor_given_as_arguments(andp: Andp, database_url: URL, tmp_path: Path) -> None:
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    given = {"ANDP_DATABASE_URL": f"{plain}&password=canary"}
    for command in (("db", "url"), ("db", "status"), ("doctor",)):
        done = andp(*command, env=given, check=False)
        assert "canary" not in done.stdout + done.stderr
    assert andp("db", "url", env=given).stdout.startswith("postgresql://postgres:***@/")
    # psql as a program that tells what it was given, found where the platform's own is not.
    argv = andp("db", "shell", "-At", "-c", r"\! tr '\0' ' ' < /proc/$PPID/cmdline", env={
        "ANDP_DATABASE_URL": plain.replace("passfile=", "options=&password=" + password_in(database_url) + "&passfile="),
    }).stdout  # fmt: skip
    assert "psql" in argv and password_in(database_url) not in argv
    for option in ("sslpassword=canary", "oauth_client_secret=canary"):
        given = {"ANDP_DATABASE_URL": f"postgresql://me@h/d?{option}"}
        assert andp("db", "url", env=given).stdout == f"postgresql://me@h/d?{option.replace('canary', '***')}\n"
        done = andp("db", "shell", env=given, check=False)
        assert done.returncode == 1 and "canary" not in done.stderr and done.stderr.count("\n") == 1


def password_in(url: URL) -> str:
    lines = Path(str(url.query["passfile"])).read_text().splitlines()
    return next(line.rpartition(":")[2] for line in lines if f":{url.username}:" in line)


# ---------------------------------------------------------------------- many at once


def test_many_platforms_share_their_connections(database_url: URL) -> None:
    """More of them than the server has connections; each is used, and none is closed."""
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    opened = [api.open(plain) for _ in range(80)]
    for platform in opened:
        platform.dissections()
        assert platform.sql("SELECT 1 AS n")["n"].tolist() == [1]
    assert len({id(platform.engine) for platform in opened}) == 1
    opened[0].close()
    opened[1].dissections()
    assert api.open(plain, home="/nowhere").engine is opened[0].engine
    for platform in opened:
        platform.close()


# ---------------------------------------------------------------------- what the server says of a query


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("54000", QueryError), ("54001", QueryError), ("55000", QueryError), ("55006", QueryError), ("53400", QueryError),
        ("58P01", QueryError), ("55P03", DatabaseError), ("57014", DatabaseError), ("53100", DatabaseError),
        ("53200", DatabaseError), ("53300", DatabaseError), ("40001", DatabaseError), ("40P01", DatabaseError),
        ("58030", DatabaseError), ("22012", QueryError), ("XX000", QueryError),
    ],
)  # fmt: skip
def test_what_is_no_broken_connection_is_not_called_one(engine: sa.Engine, state: str, error: type[Exception]) -> None:
    query = f"DO $$ BEGIN RAISE EXCEPTION 'told by the server' USING ERRCODE = '{state}'; END $$"
    for write in (False, True):
        with pytest.raises(error) as caught:
            ask.sql(engine, query, write=write)
        assert type(caught.value) in (error, DatabaseUnreachableError)
        assert "connection broke" not in str(caught.value) and "cannot reach" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_errors_of_sql_that_psycopg_counts_as_operational(andp: Andp) -> None:
    deep = "(" * 30_000
    for arguments, status, said in (
        ((f"SELECT {deep}1{deep.replace('(', ')')}",), 2, "stack depth limit exceeded|memory exhausted"),
        (("COPY texts FROM '/no/such/file'", "--write"), 2, "could not open file"),
        (("SELECT currval('texts_id_seq')", "--write"), 2, "is not yet defined in this session"),
        (
            ("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(5)", "--write"),
            4,
            "the query was cancelled on the server",
        ),
        (("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(5)", "--write"), 4, "the connection broke: "),
    ):
        done = andp("sql", "-", *arguments[1:], given=arguments[0], check=False)
        assert done.returncode == status and done.stderr.count("\n") == 1, done.stderr
        assert re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("given", "user"),
    [
        ("postgresql:///d?host=h&user=me&password=canary", "me"),
        ("postgresql://other@/d?host=h&user=me&password=canary", "me"),
        ("postgresql:///d?host=h&password=canary", "from-the-environment"),
    ],
)
def test_a_password_among_the_parameters_is_not_lost(given: str, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGUSER", "from-the-environment")
    url = db.database_url(configured(given))
    told = psycopg.conninfo.conninfo_to_dict(url.set(drivername="postgresql").render_as_string(hide_password=False))
    assert (told["user"], told["password"], told["host"]) == (user, "canary", "h")
    assert "canary" not in db.shown(url) and "***" in db.shown(url)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("operator_intervention", "the server could not do it: told"),
        ("database_dropped", "the database was dropped meanwhile"),
        ("admin_shutdown", "cannot reach the database"),
        ("cannot_connect_now", "cannot reach the database"),
    ],
)
def test_only_a_lost_connection_is_called_one(engine: sa.Engine, state: str, said: str) -> None:
    raising = sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(DatabaseError, match=f"^{said}"), db.transaction(engine) as session:
        session.execute(raising)
