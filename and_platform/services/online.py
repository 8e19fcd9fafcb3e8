"""Statements that do not keep others waiting: they run outside a transaction, and only the tables' owner may run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.config import settings


@contextmanager
def online(engine: sa.Engine, lock_timeout: float = 0.0) -> Iterator[sa.Connection]:
    """A connection outside of transactions, for `CREATE INDEX CONCURRENTLY`, `DETACH PARTITION … CONCURRENTLY`, `VACUUM`.

    They take as long as they take: the statement timeout is off.

    Parameters
    ----------
    lock_timeout
        Seconds to wait for a lock; 0: for ever. Behind a pooler nothing can be set outside a transaction: for ever.
    """
    with db.translated(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if settings().pooler:
            yield connection
            return
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql(f"SET lock_timeout = {int(lock_timeout * 1000)}")
        try:
            yield connection
        finally:
            if not (connection.closed or connection.invalidated):
                connection.exec_driver_sql("RESET statement_timeout")
                connection.exec_driver_sql("RESET lock_timeout")


def vacuum(connection: sa.Connection, table: str, options: str) -> bool:
    """VACUUM a table, on a connection of `online`; False if it was dropped meanwhile. `options`: ANALYZE, SKIP_LOCKED."""
    try:
        connection.exec_driver_sql(f"VACUUM ({options}) {table}")
    except sa.exc.ProgrammingError as exc:
        if isinstance(exc.orig, psycopg.errors.UndefinedTable):
            return False
        raise
    return True


def owner_if_other(session: Session, table: str) -> str | None:
    """Who owns a table, where that is someone whose rights the connection's user does not have; else None."""
    owner: str | None = session.scalar(
        sa.text(
            "SELECT pg_get_userbyid(relowner) FROM pg_class"
            " WHERE oid = to_regclass(:table) AND NOT pg_has_role(relowner, 'USAGE')"
        ),
        {"table": table},
    )
    return owner
