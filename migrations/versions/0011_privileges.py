"""Who may read, lock and name code: rights on what is there already.

Why: `andp sql` connects to the embedded server as a role that only reads, which needs rights on the tables and views, and
must reach neither the platform's locks nor large objects. And the text of `networks.location` may name a function that the
next command imports: a worker could have put any there.

On a server of one's own `andp db roles --apply` does the same for readers.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from and_platform.resources import resource

revision = "0011"
down_revision = "0010"

# The embedded server alone has this role; its user is a superuser.
_EMBEDDED = sa.text(
    "SELECT to_regrole('andp_sql') IS NOT NULL AND (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)"
)

_READING = """
DO $$
DECLARE
    home text := current_schema();
    maker record;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO andp_reader', home);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO andp_reader', home);
    FOR maker IN
        SELECT session_user::text AS name
        UNION
        SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('alembic_version')
    LOOP
        EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT SELECT ON TABLES TO andp_reader',
                       maker.name, home);
    END LOOP;
END $$
"""

_NETWORKS = """
DO $$
BEGIN
    IF to_regrole('andp_worker') IS NOT NULL AND has_table_privilege('andp_worker', 'networks', 'INSERT') THEN
        REVOKE INSERT, UPDATE ON networks FROM andp_worker;
    END IF;
END $$
"""

_OPEN = """
DO $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT p.oid::regprocedure AS name
        FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace
          AND (p.proname ~ '^pg_(try_)?advisory_(xact_)?lock(_shared)?$'
               OR p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_open', 'lo_put', 'lo_truncate', 'lo_truncate64',
                                'lo_unlink', 'lowrite', 'pg_logical_emit_message', 'pg_export_snapshot', 'pg_cancel_backend',
                                'pg_terminate_backend'))
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', item.name);
    END LOOP;
END $$
"""


def upgrade() -> None:
    op.execute(_NETWORKS)
    if op.get_bind().scalar(_EMBEDDED):
        _as_superuser(_READING, resource("sql/objects/public_functions_v01.sql").read_text("utf-8"))


def downgrade() -> None:
    if op.get_bind().scalar(_EMBEDDED):
        _as_superuser(_OPEN)


def _as_superuser(*statements: str) -> None:
    """Run as the user of the session, where migrations run as the owner of the schema."""
    bind = op.get_bind()
    owner = bind.scalar(sa.text("SELECT current_setting('role')"))
    bind.execute(sa.text("SELECT set_config('role', 'none', true)"))
    # The driver's own connection: SQLAlchemy would take colons and percent signs in the text for parameters.
    driver = bind.connection.driver_connection
    for statement in statements:
        driver.execute(statement)
    bind.execute(sa.text("SELECT set_config('role', :owner, true)"), {"owner": owner})
