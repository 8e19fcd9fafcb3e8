"""Partitions of a recording no longer point to it.

Why: a partition is there only for a recording that is there, so the key says nothing new. But it is checked for each row
that is loaded, and whoever drops a partition's table with it waits for all who record anything, and keeps all others
waiting. Without it a recording comes and goes beside the others.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

_PARTITIONED = (
    "activation_blocks",
    "activations",
    "activation_cubes",
    "exemplars",
    "neuron_statistics",
    "concept_matches",
)


def upgrade() -> None:
    for table in _PARTITIONED:
        op.drop_constraint(op.f(f"fk_{table}_recording_id"), table, type_="foreignkey")


def downgrade() -> None:
    for table in _PARTITIONED:
        op.create_foreign_key(op.f(f"fk_{table}_recording_id"), table, "recordings", ["recording_id"], ["id"])
