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
OBJECTS: tuple[str, ...] = (
    "neuron_descriptions_v02",  # first: what comes after may build on it
    "adjective_counts_v01",
    "neuron_word_counts_v01",
    "neuron_acoustics_v01",
    "study_results_v01",
    "ablation_classes_v01",
    "ablation_overview_v01",
    "neuron_agreement_v01",
    "uninterpretable_neurons_v01",
)


def upgrade() -> None:
    # The driver's own connection: SQLAlchemy would take colons and percent signs in the text for parameters.
    connection = op.get_bind().connection.driver_connection
    for name in OBJECTS:
        connection.execute(resource(f"sql/objects/{name}.sql").read_text("utf-8"))


def downgrade() -> None:
    op.execute("DROP FUNCTION uninterpretable_neurons, neuron_agreement")
    op.execute("DROP VIEW ablation_overview, ablation_classes")
    op.execute("DROP VIEW study_results")
    op.execute("DROP VIEW neuron_acoustics")
    op.execute("DROP VIEW neuron_word_counts")
    op.execute("DROP VIEW adjective_counts")
    op.execute("DROP VIEW current_neuron_descriptions, neuron_descriptions")
    connection = op.get_bind().connection.driver_connection
    connection.execute(resource("sql/objects/neuron_descriptions_v01.sql").read_text("utf-8"))
