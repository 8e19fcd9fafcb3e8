"""What workers do that only an owner may: partitions of a recording, made and analysed.

Why: a worker should own nothing. These functions run with the rights of the schema's owner, take a number and nothing else,
look names up in this schema alone, and are for whom `andp db roles` grants them to.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from and_platform.resources import resource

revision = "0007"
down_revision = "0006"

FUNCTIONS = ("andp_make_partitions", "andp_analyse_partitions")


def upgrade() -> None:
    bind = op.get_bind()
    # The driver's own connection: SQLAlchemy would take colons and percent signs in the text for parameters.
    connection = bind.connection.driver_connection
    connection.execute(resource("sql/objects/partitions_v01.sql").read_text("utf-8"))
    schema = bind.scalar(sa.text("SELECT quote_ident(current_schema())"))
    for name in FUNCTIONS:
        # Its own schema first, a caller's temporary tables last: nobody can put something else under a name.
        connection.execute(f"ALTER FUNCTION {name}(bigint) SET search_path = {schema}, pg_temp")
        connection.execute(f"REVOKE EXECUTE ON FUNCTION {name}(bigint) FROM PUBLIC")


def downgrade() -> None:
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}(bigint)")
