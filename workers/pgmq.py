"""The broker that needs no server of its own: pgmq, a queue in plain SQL, in the platform's database.

The transport is Kombu's. It would run `CREATE EXTENSION pgmq`; the SQL that comes with the package `pgmq` makes the same
schema on any Postgres, and may be run once only. The queues are made with it, so that workers need no right to make any.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import psycopg
from kombu.transport import pgmq as kombu_pgmq
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from and_platform import db
from and_platform.config import Settings
from and_platform.errors import ConfigError, DatabaseError, MessageError, MissingExtraError
from workers.queues import QUEUES, broker_name
from workers.settling import Settling
from workers.validation import MOST_BYTES, Refused, check_envelope, parsed, refuse

log = logging.getLogger(__name__)

SCHEME = "pgmq://"
IDLE_S, BUSY_S = 0.2, 0.01
_CARRIED = ("host", "port", "dbname", "user", "password")
_PASSWORDS = "passfile"  # libpq reads it here, and the password that it found is carried
_LOCK = 0x414E4451  # any constant, the same in all workers: one of them makes the schema


# As text, and no more of it than a message of ours may have: the client would build objects of hundreds of megabytes, and
# raise at numbers of thousands of digits, with the message still in its queue. `pg_column_size` does not unpack.
_READ = (
    "SELECT msg_id, CASE WHEN pg_column_size(message) <= %(most)s THEN left(message::text, %(most)s + 1) END"
    " FROM pgmq.read(%(queue)s, %(vt)s, %(qty)s)"
)
_MOST = 4 * MOST_BYTES


class Channel(Settling, kombu_pgmq.Channel):
    """Kombu's channel, which reads on although it could not acknowledge, and hands on only what was checked.

    Other messages go into pgmq's archive, the table `pgmq.a_andp_QUEUE`.
    """

    def _receive_messages(self, queue: str, qty: int = 1, **_: Any) -> list[Any]:
        name = self._queue_name(queue)
        asked = {"queue": name, "vt": self.visibility_timeout, "qty": qty, "most": _MOST}
        pool = self.pgmq.pool
        assert pool is not None
        with pool.connection() as connection:
            rows = connection.execute(_READ, asked).fetchall()
        taken = []
        for msg_id, text in rows:
            found = _checked(text, queue)
            if isinstance(found, Refused):
                refuse(found, queue)
                self._archive(name, msg_id)
            else:
                taken.append(SimpleNamespace(msg_id=msg_id, read_ct=0, message=found))
        return taken

    def _archive(self, name: str, msg_id: int) -> None:
        try:
            self.pgmq.archive(name, msg_id)
        except (psycopg.ProgrammingError, psycopg.IntegrityError) as exc:  # its archive is not this user's, or is gone
            log.error("cannot archive a message of the queue %s, and delete it: %s", name, exc)
            self.pgmq.delete(name, msg_id)

    def mend(self) -> None:
        pool = self.pgmq.pool
        assert pool is not None
        pool.check()


def _checked(text: str | None, queue: str) -> dict[str, Any] | Refused:
    if text is None or len(text) > _MOST:
        return Refused(f"it is longer than {MOST_BYTES:,} bytes", text or "", None)
    try:
        payload = parsed(text, most=_MOST)
    except MessageError as exc:
        return Refused(str(exc), text, None)
    return check_envelope(payload, queue)


class Transport(kombu_pgmq.Transport):
    """Kombu's transport, which looks for messages at one interval; ours is short where looking costs nothing."""

    Channel = Channel

    @property
    def polling_interval(self) -> float:  # type: ignore[override]
        """Seconds between two looks. While units are in work nobody asks the server: what ends is seen at once."""
        return IDLE_S if any(channel.qos.can_consume() for channel in self.channels or ()) else BUSY_S


def broker(url: str, config: Settings) -> tuple[str, dict[str, Any]]:
    """URL and transport options for Celery; the queue's schema is there when this returns.

    Parameters
    ----------
    url
        `pgmq://` for the platform's database, `pgmq://user:password@host/database` for another one.

    Raises
    ------
    ConfigError
        The URL has an option that the transport would drop silently.
    DatabaseError
        The database cannot be reached, or its user may not make the schema.
    """
    conninfo = connection_string(url, config)
    with db.translated(), psycopg.connect(conninfo, connect_timeout=config.connect_timeout) as connection:
        _install(connection)
        info = connection.info  # what libpq made of the URL, the environment and its password file
        parts = (info.host, str(info.port), info.dbname, info.user, info.password)
    given = {name: value for name, value in zip(_CARRIED, parts, strict=True) if value}
    options = {
        "init_extension": False,
        "conn_string": _twice_quoted(given),
        # Queues are read in turn: to wait at an empty one would hold up the messages of the others.
        "wait_time_seconds": 0,
        "pool_size": 2,  # one reads while another acknowledges
        "pool_timeout": config.connect_timeout,
    }
    host = "localhost" if parts[0].startswith("/") else parts[0]  # for the log; conn_string has the socket's folder
    return f"{SCHEME}{host}:{parts[1]}/{quote(parts[2])}", options


def connection_string(url: str, config: Settings) -> str:
    """What libpq needs to reach the broker's database.

    Raises
    ------
    ConfigError
        As `broker`.
    """
    if url == SCHEME:
        if config.pooler:
            raise ConfigError(
                "pgmq:// prepares statements, which ANDP_POOLER rules out; give the server itself in ANDP_BROKER_URL, as "
                "pgmq://user:password@host:5432/database"
            )
        conninfo = db.database_url(config).set(drivername="postgresql").render_as_string(hide_password=False)
    else:
        conninfo = "postgresql://" + url.removeprefix(SCHEME)
    if dropped := sorted(set(_parsed(conninfo)) - {*_CARRIED, _PASSWORDS}):
        raise ConfigError(
            f"pgmq:// cannot carry the connection option '{dropped[0]}'; "
            f"give it as PG{dropped[0].upper()} in the environment, or set ANDP_BROKER_URL to another broker"
        )
    return conninfo


def installed(connection: psycopg.Connection[Any]) -> bool:
    """Whether the schema is there, with all queues."""
    return _schema_made(connection) and not _missing(connection)


def depths(connection: psycopg.Connection[Any], queues: Iterable[str] = QUEUES) -> dict[str, tuple[int, int]]:
    """Queue -> messages that wait, messages that a worker has. Queues that are not made yet hold none."""
    wanted = {queue: _table_name(queue) for queue in queues}
    made = set(wanted) - (set(_missing(connection)) if _schema_made(connection) else set(wanted))
    found = dict.fromkeys(wanted, (0, 0))
    if made:
        count = sql.SQL(
            "SELECT {queue}, count(*) FILTER (WHERE vt <= clock_timestamp()), count(*) FILTER (WHERE vt > clock_timestamp()) "
            "FROM pgmq.{table}"
        )
        query = sql.SQL(" UNION ALL ").join(
            count.format(queue=queue, table=sql.Identifier("q_" + wanted[queue])) for queue in sorted(made)
        )
        found |= {queue: (waiting, taken) for queue, waiting, taken in connection.execute(query)}
    return found


def _table_name(queue: str) -> str:
    return broker_name(queue).replace(".", "_")  # as Kombu's transport does


def _schema_made(connection: psycopg.Connection[Any]) -> bool:
    return connection.execute("SELECT to_regclass('pgmq.meta') IS NOT NULL").fetchone() == (True,)


def _missing(connection: psycopg.Connection[Any]) -> list[str]:
    made = {name for (name,) in connection.execute("SELECT queue_name FROM pgmq.meta")}
    return [queue for queue in QUEUES if _table_name(queue) not in made]


def _parsed(conninfo: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(conninfo))
    except psycopg.ProgrammingError as exc:
        raise ConfigError("ANDP_BROKER_URL is not a URL; give pgmq://user:password@host:5432/database") from exc


def _install(connection: psycopg.Connection[Any]) -> None:
    try:
        from pgmq import PGMQInstallError, install_pgmq_from_sql
    except ImportError as exc:
        raise MissingExtraError("pgmq", "workers") from exc

    # First of all: what a session has looked up before it waits, it would not look up again.
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    if installed(connection):
        return
    try:
        if not _schema_made(connection):
            install_pgmq_from_sql(conn=connection)
        for queue in _missing(connection):
            connection.execute("SELECT pgmq.create(%s)", [_table_name(queue)])
    except (PGMQInstallError, psycopg.errors.InsufficientPrivilege) as exc:
        raise DatabaseError(
            f"{str(exc).splitlines()[0]}; let the owner of the database start the first worker, or set ANDP_BROKER_URL to "
            "another broker"
        ) from exc


def _twice_quoted(parts: dict[str, str]) -> str:
    """A connection string for pgmq, which takes it apart and joins the values again without quoting them."""
    return make_conninfo(**{name: make_conninfo(**{name: value}).partition("=")[2] for name, value in parts.items()})
