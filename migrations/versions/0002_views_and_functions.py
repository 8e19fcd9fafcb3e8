"""Views, functions and storage that users see and queries rely on.

Why: the tables are made for writing once and joining; people ask by name. The statements lie in `sql/objects/`, one
object a file; a released file never changes, its successor is `_v02.sql` with a migration of its own.
"""

from __future__ import annotations

from alembic import op

from and_platform.resources import resource

revision = "0002"
down_revision = "0001"

OBJECTS = (
    "storage",
    "dissection_overview",
    "exemplar_clips",
    "closed_concepts",
    "open_concepts",
    "neuron_descriptions",
    "calibrated_summary_points",
    "layer_overview",
    "neurons_for_concept",
    "match_concepts",
)


def upgrade() -> None:
    # The driver's own connection: SQLAlchemy would take colons and percent signs in the text for parameters.
    connection = op.get_bind().connection.driver_connection
    for name in OBJECTS:
        connection.execute(resource(f"sql/objects/{name}_v01.sql").read_text("utf-8"))


def downgrade() -> None:
    op.execute("DROP FUNCTION match_concepts, neurons_for_concept")
    op.execute(
        "DROP VIEW layer_overview, calibrated_summary_points, current_neuron_descriptions, neuron_descriptions,"
        " open_concepts, closed_concepts, exemplar_clips, dissection_overview"
    )
