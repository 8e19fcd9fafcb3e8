"""Views and functions over the experiments.

Why: the tables keep arrays and keys; people read one row per class, per block, per word. What was released before and is
replaced here lies in `sql/objects/` under the next number.
"""

from __future__ import annotations

from alembic import op

from and_platform.resources import resource

revision = "0004"
down_revision = "0003"

# In order of creation; each file is frozen once released.
OBJECTS: tuple[str, ...] = ()


def upgrade() -> None:
    # The driver's own connection: SQLAlchemy would take colons and percent signs in the text for parameters.
    connection = op.get_bind().connection.driver_connection
    for name in OBJECTS:
        connection.execute(resource(f"sql/objects/{name}.sql").read_text("utf-8"))


def downgrade() -> None:
    pass
