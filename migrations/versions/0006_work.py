"""Work that is shared out: the steps of a run, their units, the workers; runs that can be cancelled.

Why: a broker delivers messages and forgets them. How often a unit was tried, who is at it, why it failed and how long it
took must outlive the broker, and are asked for in SQL like everything else.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from and_platform.resources import resource

revision = "0006"
down_revision = "0005"

_OUTCOMES = ("running", "ok", "failed", "interrupted")


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("name", sa.Text(), nullable=False, comment="Its name with the broker: queues@host."),
        sa.Column("host", sa.Text(), nullable=False, comment="Host it runs on."),
        sa.Column("pid", sa.BigInteger(), nullable=False, comment="Process that takes the messages."),
        sa.Column("queues", postgresql.ARRAY(sa.Text()), nullable=False, comment="Queues it listens to."),
        sa.Column("concurrency", sa.Integer(), nullable=False, comment="Units it does at a time."),
        sa.Column("device", sa.Text(), nullable=False, comment="Where its models run."),
        sa.Column("version", sa.Text(), nullable=False, comment="Version of the platform."),
        sa.Column("packages", postgresql.ARRAY(sa.Text()), nullable=False, comment="Optional packages that it has."),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it started.",
        ),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was last heard of.",
        ),
        sa.Column(
            "stopped_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it stopped; NULL: it runs, or was killed.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        comment="Worker processes: who they are, and when they were last heard of.",
    )
    op.create_index("ix_workers_seen_at", "workers", ["seen_at"], unique=False)
    op.create_table(
        "run_steps",
        sa.Column("run_id", sa.BigInteger(), nullable=False, comment="The run."),
        sa.Column("step", sa.Text(), nullable=False, comment="record, fold, exemplars, caption, encode_captions …"),
        sa.Column("ordinal", sa.Integer(), nullable=False, comment="Order in which steps are shown."),
        sa.Column("stage", sa.Text(), nullable=False, comment="The stage of the dissection that it belongs to."),
        sa.Column("queue", sa.Text(), nullable=False, comment="cpu, gpu, llm or db: the workers that can do it."),
        sa.Column("unit", sa.Text(), nullable=False, comment="What sizes count: clips, neurons, prompts, texts …"),
        sa.Column(
            "planned_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When all its units were known; NULL: not yet.",
        ),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When none of its units was open any more.",
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_steps_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "step", name=op.f("pk_run_steps")),
        comment="The steps of a run that is shared out to workers, as far as they are known.",
    )
    op.create_table(
        "work_units",
        sa.Column(
            "id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="Surrogate key: all that a message holds.",
        ),
        sa.Column("run_id", sa.BigInteger(), nullable=False, comment="The run."),
        sa.Column("step", sa.Text(), nullable=False, comment="The step."),
        sa.Column("queue", sa.Text(), nullable=False, comment="cpu, gpu, llm or db, as its step."),
        sa.Column("key", sa.Text(), nullable=False, comment="What is done, the same in every run that needs it."),
        sa.Column(
            "payload",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Ids that say what is to be done.",
        ),
        sa.Column("size", sa.Integer(), nullable=False, comment="How much it is, in the step's unit."),
        sa.Column(
            "state",
            sa.Text(),
            server_default="waiting",
            nullable=False,
            comment="waiting, sent (a message is with the broker), running, done, failed, cancelled.",
        ),
        sa.Column(
            "attempts", sa.Integer(), server_default="0", nullable=False, comment="How often a worker has begun it."
        ),
        sa.Column(
            "not_before", sa.DateTime(timezone=True), nullable=True, comment="When it may be tried again; NULL: now."
        ),
        sa.Column("worker_id", sa.BigInteger(), nullable=True, comment="Who began it last."),
        sa.Column("pid", sa.BigInteger(), nullable=True, comment="Process that began it last, on the worker's host."),
        sa.Column(
            "doing",
            sa.Text(),
            nullable=True,
            comment="The clip it is at, where a worker has died at the unit before; NULL: not watched.",
        ),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True, comment="When its message was last sent."),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True, comment="When it was last begun."),
        sa.Column(
            "finished_at", sa.DateTime(timezone=True), nullable=True, comment="When it was done, failed or cancelled."
        ),
        sa.Column("seconds", sa.Double(), nullable=True, comment="Time of the last try."),
        sa.Column(
            "counts",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="What it came to: clips, neurons, tokens …",
        ),
        sa.Column("reason", sa.Text(), nullable=True, comment="Why the last try failed, in one line."),
        sa.Column("traceback", sa.Text(), nullable=True, comment="Traceback of the last try that failed."),
        sa.CheckConstraint(
            "state IN ('waiting', 'sent', 'running', 'done', 'failed', 'cancelled')", name=op.f("ck_work_units_state")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "step"],
            ["run_steps.run_id", "run_steps.step"],
            name=op.f("fk_work_units_run_id_step"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.id"], name=op.f("fk_work_units_worker_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_work_units")),
        sa.UniqueConstraint("run_id", "step", "key", name=op.f("uq_work_units_run_id_step_key")),
        comment="Units of work, short and safe to do twice. A broker's message names one; this says what came of it.",
    )
    op.create_index(
        "ix_work_units_open",
        "work_units",
        ["run_id", "step"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'sent', 'running')"),
    )
    op.create_index(
        "ix_work_units_waiting",
        "work_units",
        ["run_id", "queue", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_work_units_sent",
        "work_units",
        ["run_id", "queue", "sent_at"],
        unique=False,
        postgresql_where=sa.text("state = 'sent'"),
    )
    op.create_index(
        "ix_work_units_running",
        "work_units",
        ["worker_id"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_work_units_open_key",
        "work_units",
        ["key"],
        unique=False,
        postgresql_where=sa.text("state IN ('waiting', 'sent', 'running')"),
    )
    op.create_index(op.f("ix_work_units_worker_id"), "work_units", ["worker_id"], unique=False)
    op.add_column(
        "runs",
        sa.Column(
            "distributed",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="True: workers do it, not this process.",
        ),
    )
    op.add_column(
        "runs",
        sa.Column(
            "plan",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="What a distributed run has settled: recipes by stage, layers, recording …",
        ),
    )
    op.alter_column(
        "runs",
        "outcome",
        existing_type=sa.TEXT(),
        comment="running, ok, failed, interrupted or cancelled.",
        existing_comment="running, ok, failed or interrupted.",
        existing_nullable=False,
        existing_server_default=sa.text("'running'::text"),
    )
    op.drop_constraint(op.f("ck_runs_outcome"), "runs")
    op.create_check_constraint(op.f("ck_runs_outcome"), "runs", sa.column("outcome").in_([*_OUTCOMES, "cancelled"]))
    connection = op.get_bind().connection.driver_connection  # the driver's own: no "%" or ":" is taken for a parameter
    assert connection is not None
    connection.execute(resource("sql/objects/run_progress_v01.sql").read_text("utf-8"))


def downgrade() -> None:
    op.execute("DROP VIEW run_progress")
    op.execute("UPDATE runs SET outcome = 'interrupted' WHERE outcome = 'cancelled'")
    op.drop_constraint(op.f("ck_runs_outcome"), "runs")
    op.create_check_constraint(op.f("ck_runs_outcome"), "runs", sa.column("outcome").in_(_OUTCOMES))
    op.alter_column(
        "runs",
        "outcome",
        existing_type=sa.TEXT(),
        comment="running, ok, failed or interrupted.",
        existing_comment="running, ok, failed, interrupted or cancelled.",
        existing_nullable=False,
        existing_server_default=sa.text("'running'::text"),
    )
    op.drop_column("runs", "plan")
    op.drop_column("runs", "distributed")
    op.drop_index(op.f("ix_work_units_worker_id"), table_name="work_units")
    op.drop_index(
        "ix_work_units_open_key",
        table_name="work_units",
        postgresql_where=sa.text("state IN ('waiting', 'sent', 'running')"),
    )
    op.drop_index(
        "ix_work_units_open",
        table_name="work_units",
        postgresql_where=sa.text("state IN ('waiting', 'sent', 'running')"),
    )
    op.drop_table("work_units")
    op.drop_table("run_steps")
    op.drop_index("ix_workers_seen_at", table_name="workers")
    op.drop_table("workers")
