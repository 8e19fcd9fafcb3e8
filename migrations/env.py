"""Runs the migrations in one transaction, one process at a time, on the database that the platform uses."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context

from and_platform import db
from and_platform.schema import Base

# Any constant: two processes that upgrade at once must agree on it.
_LOCK = 0x414E4450

_OWNER = sa.text(
    "SELECT quote_ident(r.rolname) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner"
    " WHERE c.oid = to_regclass('alembic_version') AND r.rolname <> current_user AND pg_has_role(r.oid, 'MEMBER')"
)
"""The owner of the schema, where that is a role that the user is a member of."""


def include_name(name: str | None, type_: str, _parents: Any) -> bool:
    """What was made at run time (partitions, per-encoder indexes) is not part of the model."""
    return not (type_ in ("table", "index") and name is not None and name.startswith(db.RUNTIME_PREFIX))


def run() -> None:
    url = context.config.attributes.get("url") or db.database_url()
    engine = db.make_engine(url)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            include_name=include_name,
            compare_type=True,
            compare_server_default=False,
            transaction_per_migration=False,
        )
        with context.begin_transaction():
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            if owner := connection.scalar(_OWNER):
                # What a later migration makes belongs to whom the rest belongs to, and has his default privileges.
                connection.exec_driver_sql(f"SET LOCAL ROLE {owner}")
            context.run_migrations()
    engine.dispose()


if context.is_offline_mode():
    raise SystemExit("write SQL to a file with: pg_dump --schema-only; migrations here need a connection")
run()
