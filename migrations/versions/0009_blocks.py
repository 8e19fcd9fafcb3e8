"""A recording says how many clips it records at a time.

Why: 250 clips of a network of published size take seconds on a GPU and several minutes on a CPU, where a unit of work
should take less than one. Units of recording now name their stretch, which no longer follows from the number of a block.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_USUAL = 250


def upgrade() -> None:
    op.add_column(
        "recordings",
        sa.Column(
            "block_clips",
            sa.Integer(),
            server_default=str(_USUAL),
            nullable=False,
            comment="Clips that are recorded at a time.",
        ),
    )
    op.alter_column("recordings", "block_clips", server_default=None)
    op.create_check_constraint(op.f("ck_recordings_block_clips"), "recordings", "block_clips > 0")
    op.execute(
        "UPDATE work_units SET payload = payload || jsonb_build_object('stretch',"
        f" CAST(payload ->> 'block' AS int) * {_USUAL} / 2000) WHERE step = 'record'"
    )


def downgrade() -> None:
    # Blocks that are not folded are of a size that the older version does not know.
    op.execute(
        f"DELETE FROM activation_blocks WHERE recording_id IN (SELECT id FROM recordings WHERE block_clips <> {_USUAL})"
    )
    op.drop_constraint(op.f("ck_recordings_block_clips"), "recordings", type_="check")
    op.drop_column("recordings", "block_clips")
