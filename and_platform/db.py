"""Engine, sessions, schema version and bulk loading. No table is named here.

All connections are psycopg 3, with pgvector's types registered. Driver errors are translated once, in `translated`.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
import psycopg
import sqlalchemy as sa
import tenacity
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from psycopg import sql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from and_platform.config import Settings, settings
from and_platform.embedded import EmbeddedServer, reader_url
from and_platform.errors import (
    ConfigError,
    DatabaseError,
    DatabaseUnreachableError,
    ExtensionMissingError,
    SchemaVersionError,
)
from and_platform.resources import resource

OLDEST_POSTGRES = 150000
OLDEST_PGVECTOR = (0, 8)
RUNTIME_PREFIX = "andp_"
"""Indexes and partitions made at run time are named with it; `alembic check` passes over them."""

Result = TypeVar("Result")
_log = logging.getLogger(__name__)


class DatabaseStatus(NamedTuple):
    """What `andp db status` shows."""

    url: str
    embedded: bool
    server_version: str
    pgvector_version: str | None
    schema_revision: str | None
    newest_revision: str
    size_bytes: int


def database_url(config: Settings | None = None, tell: Callable[[str], None] | None = None) -> URL:
    """The URL of the database; starts the embedded server where no URL is set.

    Raises
    ------
    ConfigError
        If `ANDP_DATABASE_URL` is not a Postgres URL.
    EmbeddedServerError
        If the embedded server does not start.
    """
    config = config or settings()
    if config.database_url is None:
        raw = EmbeddedServer(config.home, config.start_timeout).ensure_running(tell)
    else:
        raw = config.database_url.get_secret_value()
    return _postgres_url(raw, "ANDP_DATABASE_URL")


def _postgres_url(raw: str, variable: str) -> URL:
    try:
        url = make_url(_several_hosts(raw))
    except (sa.exc.ArgumentError, ValueError) as exc:  # ValueError: a port that is no number
        raise ConfigError(f"{variable} is not a URL; give postgresql://user:password@host:5432/database") from exc
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigError(f"{variable} names '{url.drivername}'; only postgresql:// is supported")
    return _password_in_its_place(url).set(drivername="postgresql+psycopg")


_SECRET_OPTIONS = ("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def _password_in_its_place(url: URL) -> URL:
    """The URL with a password of its query, where it would be shown, before the host; libpq prefers the query's too."""
    if "password" not in url.query:
        return url
    # With a user: SQLAlchemy writes a URL without one without its password, which then is lost.
    user = _last(url.query.get("user")) or url.username or os.environ.get("PGUSER") or getpass.getuser()
    return url.difference_update_query(["user", "password"]).set(username=user, password=_last(url.query["password"]))


def _last(value: str | tuple[str, ...] | None) -> str | None:
    return value[-1] if isinstance(value, tuple) else value


def shown(url: URL) -> str:
    """The URL as it may be printed: no password, no other secret of its query."""
    hidden = dict.fromkeys(secret_options(url), "***")
    url = _password_in_its_place(url).update_query_dict(hidden)
    text = url.set(drivername="postgresql").render_as_string(hide_password=True)
    return text.replace("%2A%2A%2A", "***")


def secret_options(url: URL) -> list[str]:
    """Options of its query that are secrets, the password apart."""
    return [name for name in _SECRET_OPTIONS if name in url.query]


_HOSTS = re.compile(
    r"^(?P<scheme>[\w+]+://)(?P<user>[^/?#]*@)?(?P<hosts>[^/?#@]*,[^/?#@]*)(?P<rest>[/?#].*)?$", re.DOTALL
)
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::(\d*))?")


def _several_hosts(url: str) -> str:
    """libpq's way to name several servers, `h1:5432,h2:5433`, as parameters: SQLAlchemy knows only those.

    A URL that comes out is libpq's as well.
    """
    parts = _HOSTS.match(url)
    if parts is None:
        return url
    named = [_HOST.fullmatch(host) for host in parts["hosts"].split(",")]
    if None in named:
        raise ValueError("a host with a port that is no number")
    found = [host.groups() for host in named if host is not None]
    hosts, ports = ",".join(host.strip("[]") for host, _ in found), ",".join(port or "" for _, port in found)
    path, mark, query = (parts["rest"] or "").partition("?")
    several = f"host={quote(hosts, safe='')}&port={quote(ports, safe='')}"
    return f"{parts['scheme']}{parts['user'] or ''}{path or '/'}?{several}{'&' + query if mark and query else ''}"


def make_engine(url: URL, config: Settings | None = None, role: str | None = None) -> sa.Engine:
    """An engine whose connections know pgvector's types (once the extension is there).

    With `ANDP_POOLER` nothing outlives a transaction in the server: no statement is prepared, and what is set is set by
    each transaction for itself.

    Parameters
    ----------
    role
        What this process does, e.g. "worker gpu": shown behind the program's name in `pg_stat_activity`.
    """
    config = config or settings()
    engine = _engine(url, config, role)
    if config.reader_url is not None:
        _readers[engine] = _reader(_postgres_url(config.reader_url.get_secret_value(), "ANDP_READER_URL"), config)
    elif (found := reader_url(url.set(drivername="postgresql").render_as_string(hide_password=False))) is not None:
        _readers[engine] = _reader(make_url(found).set(drivername="postgresql+psycopg"), config)
    return engine


_readers: weakref.WeakKeyDictionary[sa.Engine, sa.Engine] = weakref.WeakKeyDictionary()
"""The engine of the role that only reads, for each engine that has one."""


def _reader(url: URL, config: Settings) -> sa.Engine:
    return _engine(url, config, "sql", poolclass=sa.pool.NullPool)


def reader_engine(engine: sa.Engine) -> sa.Engine | None:
    """An engine on the same database as a role that only reads; None where none is known.

    It is that of `ANDP_READER_URL`, or the embedded server's own. It keeps no connection open.
    """
    return _readers.get(engine)


def _engine(url: URL, config: Settings, role: str | None, poolclass: type[sa.Pool] | None = None) -> sa.Engine:
    name = f"{config.application_name} {role}" if role else config.application_name
    arguments: dict[str, Any] = {"connect_timeout": config.connect_timeout, "application_name": name}
    kept = {"TimeZone": "UTC"} | {
        setting: str(int(seconds * 1000))
        for setting, seconds in (
            ("statement_timeout", config.statement_timeout),
            ("lock_timeout", config.lock_timeout),
            ("idle_in_transaction_session_timeout", config.idle_timeout),
        )
        if seconds
    }
    if config.pooler:
        arguments["prepare_threshold"] = None
    else:
        arguments["options"] = " ".join(f"-c {setting}={value}" for setting, value in kept.items())
    pool: dict[str, Any] = {"poolclass": poolclass}
    if poolclass is None:
        # The overflow is for a moment: closed again when it is given back.
        pool = {"pool_pre_ping": True, "pool_size": config.pool_size, "max_overflow": config.pool_size}
    engine = sa.create_engine(
        url,
        hide_parameters=True,  # an error is a line, not the rows it was about
        connect_args=arguments,
        **pool,
    )

    @sa.event.listens_for(engine, "connect")
    def _register(connection: psycopg.Connection[Any], _record: object) -> None:
        # The extension may not be there yet: `upgrade` makes it, and asks for the types again.
        if psycopg.types.TypeInfo.fetch(connection, "vector") is not None:
            register_vector(connection)

    if config.pooler:
        told = sql.SQL("SELECT {}").format(
            sql.SQL(", ").join(sql.SQL("set_config({}, {}, true)").format(*pair) for pair in kept.items())
        )

        @sa.event.listens_for(engine, "begin")
        def _set(connection: sa.Connection) -> None:
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.execute(told)

    @sa.event.listens_for(engine, "handle_error")
    def _demoted(context: sa.engine.ExceptionContext) -> None:
        # After a fail-over the server that we knew may live on as a standby: the pool has to look for the new primary.
        if isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
            context.is_disconnect = True

    return engine


@contextmanager
def translated(*, writes: bool = True, setting: str = "ANDP_DATABASE_URL") -> Iterator[None]:
    """Turn driver errors about reaching or using the server into one clear line each.

    Parameters
    ----------
    writes
        Whether the block may write. If not, a refused write is a fault of the program, and stays what it is.
    setting
        The setting that says where the server is.
    """
    try:
        yield
    except sa.exc.TimeoutError as exc:
        raise DatabaseError("all connections of this process are in use; raise ANDP_POOL_SIZE", passing=True) from exc
    except (sa.exc.DBAPIError, psycopg.Error) as exc:
        error = _translation(exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc, writes, setting)
        if error is None:
            raise
        raise error from exc


def _translation(exc: BaseException | None, writes: bool, setting: str) -> DatabaseError | None:
    """One line for what the server, or the attempt to reach it, came back with; None: it is not about the server."""
    text = str(exc)
    match exc:
        case psycopg.errors.ForeignKeyViolation():
            return DatabaseError("what this belongs to was dropped meanwhile by another command; run this one again")
        case psycopg.errors.InsufficientPrivilege():
            return DatabaseError(f"{text.splitlines()[0]}; connect as a user that may (roles: andp db roles)")
        case psycopg.errors.ReadOnlySqlTransaction() if writes:
            return DatabaseError(
                "this server or user only reads; for a cluster with standbys name all its servers in ANDP_DATABASE_URL "
                "with target_session_attrs=read-write, else connect as a user that writes",
                passing=True,
            )
        case psycopg.errors.IdleInTransactionSessionTimeout():
            return DatabaseError(
                "the server ended a transaction in which nothing happened for ANDP_IDLE_TIMEOUT; raise it, or find out "
                "what held this process up"
            )
        case psycopg.errors.InvalidSqlStatementName() | psycopg.errors.DuplicatePreparedStatement():
            return DatabaseError("a pooler hands out other sessions for each transaction; set ANDP_POOLER=true")
        case psycopg.InterfaceError() if "clos" in text or "lost" in text:
            return _lost(text, setting)
        case psycopg.OperationalError():
            return _server_error(exc, setting)
    return None


def _server_error(exc: psycopg.OperationalError, setting: str) -> DatabaseError:
    text, state = str(exc), exc.sqlstate or ""
    if "password authentication failed" in text or "no password supplied" in text or _UNKNOWN_ROLE.search(text):
        return DatabaseUnreachableError(f"the database refuses the user or password in {setting}; correct it")
    if missing := _UNKNOWN_DATABASE.search(text):
        name = missing.group(1)
        return DatabaseUnreachableError(f'the server has no database "{name}"; create it with: createdb {name}')
    if "unsupported startup parameter" in text:
        return DatabaseUnreachableError("a pooler stands before the server; set ANDP_POOLER=true")
    if state == "53100" or "No space left on device" in text:
        return DatabaseError("the database's disk is full; free some space and run the same command again")
    if state == "53300" or _FULL.search(text):
        return DatabaseUnreachableError(
            "the server has no connection left; lower ANDP_POOL_SIZE or the number of workers, put a pooler before the "
            "server, or raise its max_connections",
            passing=True,
        )
    if state == "55P03":
        return DatabaseError(
            "another command holds a lock for longer than ANDP_LOCK_TIMEOUT; wait for its end and run this one again, or "
            "raise it"
        )
    if state == "57014":
        if "user request" in text:
            return DatabaseError("the statement was cancelled on the server; run the same command again")
        return DatabaseError("the statement took longer than ANDP_STATEMENT_TIMEOUT; raise it, or ask for less")
    if state in ("40001", "40P01"):
        return DatabaseError(
            "another command wrote to the same rows at the same moment; run this one again", passing=True
        )
    if state == "57P04":
        return DatabaseError(f"the database was dropped meanwhile; create it again, or name another one in {setting}")
    if state and not is_lost(state):
        return DatabaseError(f"the server could not do it: {text.splitlines()[0]}")
    return _lost(text, setting)


def _lost(text: str, setting: str) -> DatabaseUnreachableError:
    return DatabaseUnreachableError(
        f"cannot reach the database: {_cause(text)}; check {setting} and that the server runs", passing=True
    )


_FULL = re.compile("too many clients|remaining connection slots|too many connections|no more connections allowed")
_UNKNOWN_ROLE = re.compile(r'role "[^"]*" does not exist')
_UNKNOWN_DATABASE = re.compile(r'database "([^"]*)" does not exist')
_SHUTDOWN = ("57P01", "57P02", "57P03", "57P05")  # by an administrator, by a crash, at the start, after idling


def is_lost(state: str) -> bool:
    """Whether a SQLSTATE says that the connection is gone or was never there."""
    return state.startswith("08") or state in _SHUTDOWN


def _cause(text: str) -> str:
    """The telling line of libpq's several: the first with a reason; advice and attempts stand around it."""
    lines = [line.strip(" \t-") for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if "failed:" in line or "error:" in line), lines[0] if lines else "no answer")
    return line.removeprefix("connection failed: ").rstrip(".")


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[Session]:
    """One unit of work: committed at the end, rolled back on any exception."""
    with translated(), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def reading(engine: sa.Engine) -> Iterator[Session]:
    """A session for questions: nothing is written."""
    with translated(writes=False), Session(engine) as session:
        session.execute(sa.text("SET TRANSACTION READ ONLY"))
        yield session


def patiently(work: Callable[[], Result], seconds: float | None = None) -> Result:
    """Do a unit of work, and do it again where the server was lost or others wrote to the same rows at that moment.

    For units that may be done twice: a transaction whose commit got no answer may have been committed. It begins anew
    with a fresh session of its own (`with transaction(engine) …` inside `work`), never in the middle of one.

    Parameters
    ----------
    seconds
        How long to try; default: ANDP_RECONNECT_TIMEOUT. Waits grow to 5 s, with jitter.

    Raises
    ------
    DatabaseError
        The last one, when the time is up; at once, where trying again cannot help.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda exc: isinstance(exc, DatabaseError) and exc.passing),
        stop=tenacity.stop_after_delay(settings().reconnect_timeout if seconds is None else seconds),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        before_sleep=tenacity.before_sleep_log(_log, logging.WARNING),
        reraise=True,
    )
    return retrying(work)


# ---------------------------------------------------------------------- schema version


def _alembic_config(url: URL | None = None) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resource("migrations")))
    if url is not None:
        config.attributes["url"] = url
    return config


def newest_revision() -> str:
    """The schema revision this program works with."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert head is not None
    return head


def schema_revision(engine: sa.Engine) -> str | None:
    """The revision the database is at; None where the schema has not been made."""
    from alembic.runtime.migration import MigrationContext

    with translated(), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def check_server(engine: sa.Engine) -> None:
    """Refuse a server that is too old or lacks pgvector, in one line.

    Raises
    ------
    ExtensionMissingError, DatabaseError, DatabaseUnreachableError
    """
    with translated(), engine.connect() as connection:
        version = connection.scalar(sa.text("SELECT current_setting('server_version_num')::int"))
        if version is None or version < OLDEST_POSTGRES:
            raise DatabaseError(f"the server is Postgres {(version or 0) // 10000}; 15 or newer is needed")
        available = connection.scalar(
            sa.text(
                "SELECT coalesce(installed_version, default_version) FROM pg_available_extensions WHERE name = 'vector'"
            )
        )
    if available is None:
        raise ExtensionMissingError(
            "the server has no pgvector; install it there (package postgresql-NN-pgvector) and run this again"
        )
    if tuple(int(part) for part in available.split(".")[:2]) < OLDEST_PGVECTOR:
        raise ExtensionMissingError(
            f"the server's pgvector is {available}; 0.8 or newer is needed (then: ALTER EXTENSION vector UPDATE)"
        )


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Bring the schema to `revision`. Two commands at once: the second waits, then has nothing to do."""
    from alembic import command

    check_server(engine)
    with _revisions_known(engine):
        try:
            command.upgrade(_alembic_config(engine.url), revision)
        except DBAPIError as exc:
            if "permission denied to create extension" in str(exc.orig):
                raise ExtensionMissingError(
                    "this user may not create extensions; have a superuser run: CREATE EXTENSION vector"
                ) from exc
            if isinstance(exc.orig, psycopg.errors.InsufficientPrivilege):
                raise DatabaseError(
                    f"this user may not make the schema: {exc.orig.diag.message_primary}; use the owner of the database"
                ) from exc
            raise
    engine.dispose()  # connections made before the extension do not know its types


def downgrade(engine: sa.Engine, revision: str) -> None:
    """Take the schema back to `revision` ("base": remove it)."""
    from alembic import command

    with _revisions_known(engine):
        command.downgrade(_alembic_config(engine.url), revision)
    engine.dispose()


_one_at_a_time = threading.Lock()  # Alembic keeps its state in the module: threads take turns, processes need not


@contextmanager
def _revisions_known(engine: sa.Engine) -> Iterator[None]:
    """Alembic's complaints about revisions, and the driver's about the server, in our words."""
    from alembic.util import CommandError

    _check_known(schema_revision(engine))
    try:
        with _one_at_a_time, translated():
            yield
    except CommandError as exc:
        raise SchemaVersionError(f"{exc}; the revisions are: {', '.join(sorted(_revisions()))}") from exc


def _revisions() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}


def _check_known(current: str | None) -> None:
    if current is not None and current not in _revisions():
        raise SchemaVersionError(
            f"the schema is at {current}, which this program does not know; install a newer and-platform"
        )


def connect(
    config: Settings | None = None, tell: Callable[[str], None] | None = None, role: str | None = None
) -> sa.Engine:
    """The engine that commands use: server started where embedded, schema made where there is none, version checked.

    `role` as in `make_engine`.

    Raises
    ------
    SchemaVersionError
        If the schema is older (run `andp db upgrade`) or newer than this program.
    """
    config = config or settings()
    engine = _shared_engine(database_url(config, tell), config, role)
    current, newest = schema_revision(engine), newest_revision()
    if current == newest:
        return engine
    if current is None:
        upgrade(engine)
        return engine
    _check_known(current)
    raise SchemaVersionError(f"the schema is at {current}, this program needs {newest}; run: andp db upgrade")


_shared: weakref.WeakValueDictionary[tuple[Any, ...], sa.Engine] = weakref.WeakValueDictionary()
_sharing = threading.Lock()
_CONNECTION_SETTINGS = (
    "application_name", "connect_timeout", "statement_timeout", "lock_timeout", "idle_timeout", "pooler", "pool_size",
    "reader_url",
)  # fmt: skip


def _shared_engine(url: URL, config: Settings, role: str | None) -> sa.Engine:
    """The engine of this process for a database: one pool, however often it is connected to."""
    # A process that was forked must not use its parent's connections.
    key = (os.getpid(), url, role, *(getattr(config, name) for name in _CONNECTION_SETTINGS))
    with _sharing:
        engine = _shared.get(key)
        if engine is None:
            engine = _shared[key] = make_engine(url, config, role)
        return engine


def status(engine: sa.Engine, embedded: bool) -> DatabaseStatus:
    """Versions, size and schema revision."""
    with translated(), engine.connect() as connection:
        server, size = connection.execute(
            sa.text("SELECT current_setting('server_version'), pg_database_size(current_database())")
        ).one()
        vector = connection.scalar(sa.text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
    return DatabaseStatus(
        shown(engine.url),
        embedded, server, vector, schema_revision(engine), newest_revision(), size,
    )  # fmt: skip


# ---------------------------------------------------------------------- bulk


def copy_rows(session: Session, table: str, columns: dict[str, str], rows: Iterable[Sequence[Any]]) -> int:
    """Binary COPY in the session's own transaction: 20 to 60 times the rate of INSERT.

    Parameters
    ----------
    table
        Name of the table, ours, never a user's text.
    columns
        Column name -> Postgres type ("int8", "halfvec", "float4[]", "text" …).
    rows
        Values in the columns' order; vectors as pgvector objects or numpy arrays.

    Returns
    -------
    int
        Number of rows written.
    """
    connection = session.connection().connection.driver_connection
    assert connection is not None
    names = ", ".join(columns)
    n = 0
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(list(columns.values()))
        for row in rows:
            copy.write_row(row)
            n += 1
    return n


_SCALARS = {"int2": ">i2", "int4": ">i4", "int8": ">i8", "float4": ">f4"}
_ARRAYS = {"int4[]": (23, ">i4"), "float4[]": (700, ">f4")}  # with the server's number of the element type
_VECTORS = {"halfvec": ">f2", "vector": ">f4"}
_COPY_BYTES = 1 << 23


def copy_columns(session: Session, table: str, columns: Mapping[str, tuple[str, Any]]) -> int:
    """Binary COPY of whole columns, in the session's own transaction, without a loop over rows.

    All rows take the same number of bytes, so that numpy lays out the wire format: 5 to 10 times the rate of `copy_rows`.

    Parameters
    ----------
    columns
        Column name -> (Postgres type, values). Scalars (int2, int4, int8, float4) take an array [rows] or one number;
        arrays (int4[], float4[]) and vectors (halfvec, vector) an array [rows, width]; text one string for all rows.

    Returns
    -------
    int
        Number of rows written.
    """
    n_rows = max(len(values) for _, values in columns.values() if isinstance(values, np.ndarray))
    fields: list[tuple[Any, ...]] = [("fields", ">i2")]
    constants: dict[str, Any] = {"fields": len(columns)}
    data: dict[str, Any] = {}
    for name, (kind, values) in columns.items():
        size, head = f"{name}:size", f"{name}:head"
        fields.append((size, ">i4"))
        if kind in _SCALARS:
            fields.append((name, _SCALARS[kind]))
            constants[size], data[name] = np.dtype(_SCALARS[kind]).itemsize, values
        elif kind in _VECTORS:
            width = values.shape[1]
            fields += [(head, ">i2", 2), (name, _VECTORS[kind], width)]
            constants[size] = 4 + width * np.dtype(_VECTORS[kind]).itemsize
            constants[head], data[name] = (width, 0), values
        elif kind in _ARRAYS:
            number, item = _ARRAYS[kind]
            width = values.shape[1]
            fields += [(head, ">i4", 5), (name, [("size", ">i4"), ("value", item)], width)]
            constants[size] = 20 + 8 * width
            constants[head], data[name] = (1, 0, number, width, 1), values
        else:
            raw = str(values).encode()
            fields.append((name, f"S{len(raw)}"))
            constants[size], constants[name] = len(raw), raw
    of_row = np.dtype(fields)
    step = max(1, min(n_rows, _COPY_BYTES // of_row.itemsize))
    rows = np.zeros(step, of_row)
    for name, value in constants.items():
        rows[name] = value
    connection = session.connection().connection.driver_connection
    assert connection is not None
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN WITH (FORMAT BINARY)") as copy,
    ):
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for start in range(0, n_rows, step):
            part = rows[: min(step, n_rows - start)]
            for name, values in data.items():
                of_part = values[start : start + len(part)] if isinstance(values, np.ndarray) else values
                if columns[name][0] in _ARRAYS:
                    part[name]["size"], part[name]["value"] = 4, of_part
                else:
                    part[name] = of_part
            copy.write(part.tobytes())
        copy.write(b"\xff\xff")
    return n_rows


def insert_new(
    session: Session,
    table: str,
    columns: dict[str, str],
    rows: Iterable[Sequence[Any]],
    on_conflict: str = "DO NOTHING",
) -> int:
    """COPY into a temporary table, then insert what is not there yet: for units that may be done twice.

    Returns
    -------
    int
        Number of rows that were new (or changed, with `DO UPDATE`).
    """
    staging = f"andp_staging_{table}"
    names = ", ".join(columns)
    session.execute(
        sa.text(f"CREATE TEMPORARY TABLE {staging} ON COMMIT DROP AS SELECT {names} FROM {table} WITH NO DATA")
    )
    copy_rows(session, staging, columns, rows)
    result = session.execute(
        sa.text(f"INSERT INTO {table} ({names}) SELECT {names} FROM {staging} ON CONFLICT {on_conflict}")
    )
    session.execute(sa.text(f"DROP TABLE {staging}"))  # a second call in the same transaction makes its own
    return int(getattr(result, "rowcount", 0))


_COPY_HEADER, _COPY_TRAILER = 19, 2


def read_vectors(session: Session, query: str, params: Sequence[Any], *, half: bool = False) -> NDArray[Any]:
    """The one `vector` (or, with `half`, `halfvec`) column of a query, all rows of one dimension, by binary COPY.

    No loop over rows: the bytes are taken as they come. The format: a header of 19 bytes, then per row a field count
    (int16), the field's length (int32), pgvector's dimension (int16), unused (int16) and the values, big-endian; a
    trailer of 2 bytes.

    Returns
    -------
    float32 or float16 [rows, dim]
        [0, 0] where there is no row.

    Raises
    ------
    DatabaseError
        The rows are not of one dimension.
    """
    connection = session.connection().connection.driver_connection
    assert connection is not None
    with connection.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT WITH (FORMAT BINARY)", params) as copy:
        data = b"".join(copy)
    big, native = (">f2", np.float16) if half else (">f4", np.float32)
    if len(data) == _COPY_HEADER + _COPY_TRAILER:
        return np.empty((0, 0), native)
    width = 10 + int.from_bytes(data[25:27], "big") * np.dtype(big).itemsize
    n_rows, left = divmod(len(data) - _COPY_HEADER - _COPY_TRAILER, width)
    if left:
        raise DatabaseError("the stored vectors are of different lengths")
    rows = np.frombuffer(data, np.uint8, n_rows * width, _COPY_HEADER).reshape(n_rows, width)
    return rows[:, 10:].copy().view(big).astype(native)
