"""The broker that needs no server of its own: pgmq, a queue in plain SQL, in the platform's database.

The transport is Kombu's. It would run `CREATE EXTENSION pgmq`; the SQL that comes with the package `pgmq` makes the same
schema on any Postgres, and may be run once only.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from and_platform import db
from and_platform.config import Settings
from and_platform.errors import ConfigError, DatabaseError, MissingExtraError

SCHEME = "pgmq://"
_CARRIED = ("host", "port", "dbname", "user", "password")
_LOCK = 0x414E4451  # any constant, the same in all workers: one of them makes the schema


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
    if url == SCHEME:
        conninfo = db.database_url(config).set(drivername="postgresql").render_as_string(hide_password=False)
    else:
        conninfo = "postgresql://" + url.removeprefix(SCHEME)
    if dropped := sorted(set(_parsed(conninfo)) - set(_CARRIED)):
        raise ConfigError(
            f"pgmq:// cannot carry the connection option '{dropped[0]}'; "
            f"give it as PG{dropped[0].upper()} in the environment, or set ANDP_BROKER_URL to another broker"
        )
    with db.translated(), psycopg.connect(conninfo) as connection:
        _install(connection)
        info = connection.info  # what libpq made of the URL, the environment and its password file
        parts = (info.host, str(info.port), info.dbname, info.user, info.password)
    given = {name: value for name, value in zip(_CARRIED, parts, strict=True) if value}
    options = {"init_extension": False, "conn_string": _twice_quoted(given), "wait_time_seconds": 1}
    host = "localhost" if parts[0].startswith("/") else parts[0]  # for the log; conn_string has the socket's folder
    return f"{SCHEME}{host}:{parts[1]}/{quote(parts[2])}", options


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

    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    if connection.execute("SELECT to_regclass('pgmq.meta') IS NOT NULL").fetchone() == (True,):
        return
    try:
        install_pgmq_from_sql(conn=connection)
    except PGMQInstallError as exc:
        raise DatabaseError(
            f"{exc}; let the owner of the database start the first worker, or set ANDP_BROKER_URL to another broker"
        ) from exc


def _twice_quoted(parts: dict[str, str]) -> str:
    """A connection string for pgmq, which takes it apart and joins the values again without quoting them."""
    return make_conninfo(**{name: make_conninfo(**{name: value}).partition("=")[2] for name, value in parts.items()})
