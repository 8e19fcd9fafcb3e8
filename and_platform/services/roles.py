"""Roles of the server: who may do what in the platform's database. The script is `sql/roles.sql`."""

from __future__ import annotations

import psycopg
import sqlalchemy as sa

from and_platform import db
from and_platform.errors import DatabaseError
from and_platform.resources import resource

ROLES = ("andp_owner", "andp_worker", "andp_reader")


def script() -> str:
    """SQL that makes the roles and gives them their rights; it may be run again at any time."""
    files = ("sql/roles.sql", "sql/objects/public_functions_v01.sql")
    return "\n".join(resource(file).read_text("utf-8") for file in files)


def apply(engine: sa.Engine) -> None:
    """Make the roles, or bring them up to date.

    Raises
    ------
    DatabaseError
        The user may not make roles, or does not own the schema.
    """
    with db.translated(), engine.begin() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        try:
            driver.execute(script(), prepare=False)
        except psycopg.errors.InsufficientPrivilege as exc:
            raise DatabaseError(
                f"this user may not make the roles ({exc.diag.message_primary}); run it as the owner of the database, who "
                "needs CREATEROLE, or let a superuser run: andp db roles | psql"
            ) from exc
