"""What real models bring along: where weights came from, which texts an encoder cut, how training went.

Why: a result is traced to a published checkpoint, not only to a hash; an encoder's window is short of some captions, which
has to be seen; and a long training run is followed, and taken up again, from the database.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "recipes",
        sa.Column(
            "origin",
            sa.Text(),
            nullable=True,
            comment="Where its weights were first taken from: hub id and commit, or a path; not part of the hash.",
        ),
    )
    op.alter_column(
        "networks",
        "source",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="How it is loaded: transformers, beats, factory, or sample.",
        existing_comment="How it is loaded: transformers, factory, or sample.",
    )
    op.add_column(
        "networks",
        sa.Column(
            "origin",
            sa.Text(),
            nullable=True,
            comment="Hub id and commit of its weights; NULL for files and factories.",
        ),
    )
    op.add_column(
        "text_embeddings",
        sa.Column(
            "truncated",
            sa.Boolean(),
            nullable=True,
            comment="True where the text was longer than the encoder's window and was cut; NULL: not known.",
        ),
    )
    op.create_table(
        "training_epochs",
        sa.Column("run_id", sa.BigInteger(), nullable=False, comment="The run that trains."),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False, comment="From 1."),
        sa.Column("loss", sa.Double(), nullable=False, comment="Mean loss over the clips trained on, as varied."),
        sa.Column("learning_rate", sa.Double(), nullable=False, comment="Learning rate of the head at its end."),
        sa.Column(
            "validation_accuracy",
            sa.Double(),
            nullable=True,
            comment="Accuracy on the validation fold, which early stopping looks at; NULL: there is none.",
        ),
        sa.Column(
            "test_accuracy",
            sa.Double(),
            nullable=True,
            comment="Accuracy on the fold held out, which chooses nothing; NULL: not measured.",
        ),
        sa.Column("seconds", sa.Double(), nullable=False, comment="Time it took."),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it ended.",
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_training_epochs_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "epoch", name=op.f("pk_training_epochs")),
        comment="Epochs of `andp networks train`, as they end.",
    )


def downgrade() -> None:
    op.drop_table("training_epochs")
    op.drop_column("text_embeddings", "truncated")
    op.drop_column("networks", "origin")
    op.alter_column(
        "networks",
        "source",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="How it is loaded: transformers, factory, or sample.",
        existing_comment="How it is loaded: transformers, beats, factory, or sample.",
    )
    op.drop_column("recipes", "origin")
