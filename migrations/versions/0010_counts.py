"""The comment of `runs.counts` names what else is there.

Why: a run keeps, beside its stages, what the reader of its results should know; people who write SQL find it by the comment.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"

_BEFORE = "What was done: units by stage."
_NOW = "What was done: units by stage; and what to know of it: captions (and how many name the class), cut_texts, llm, open_failures."


def _comment(now: str, before: str) -> None:
    op.alter_column(
        "runs", "counts", existing_type=JSONB(), existing_nullable=False, existing_server_default=sa.text("'{}'"),
        comment=now, existing_comment=before,
    )  # fmt: skip


def upgrade() -> None:
    _comment(_NOW, _BEFORE)


def downgrade() -> None:
    _comment(_BEFORE, _NOW)
