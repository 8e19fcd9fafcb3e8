"""Work that is shared out to workers: the steps of a run, their units, and who works.

The broker says to a worker which unit is next; what there is to do, and what became of it, is here.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from and_platform.schema.base import Base, Json, Timestamp, identity, reference

OPEN = ("waiting", "sent", "running")
"""States of units that are still to be done."""


class RunStep(Base):
    __tablename__ = "run_steps"
    __table_args__ = ({"comment": "The steps of a run that is shared out to workers, as far as they are known."},)

    run_id: Mapped[int] = reference("runs.id", "The run.", cascade=True, key=True)
    step: Mapped[str] = mapped_column(primary_key=True, comment="record, fold, exemplars, caption, encode_captions …")
    ordinal: Mapped[int] = mapped_column(sa.Integer, comment="Order in which steps are shown.")
    stage: Mapped[str] = mapped_column(comment="The stage of the dissection that it belongs to.")
    queue: Mapped[str] = mapped_column(comment="cpu, gpu, llm or db: the workers that can do it.")
    unit: Mapped[str] = mapped_column(comment="What sizes count: clips, neurons, prompts, texts …")
    planned_at: Mapped[datetime | None] = mapped_column(comment="When all its units were known; NULL: not yet.")
    finished_at: Mapped[datetime | None] = mapped_column(comment="When none of its units was open any more.")


class WorkUnit(Base):
    __tablename__ = "work_units"
    __table_args__ = (
        sa.UniqueConstraint("run_id", "step", "key"),
        sa.ForeignKeyConstraint(["run_id", "step"], ["run_steps.run_id", "run_steps.step"], ondelete="CASCADE"),
        sa.CheckConstraint("state IN ('waiting', 'sent', 'running', 'done', 'failed', 'cancelled')", name="state"),
        sa.Index(
            "ix_work_units_open", "run_id", "step", postgresql_where=sa.text("state IN ('waiting', 'sent', 'running')")
        ),
        sa.Index("ix_work_units_waiting", "run_id", "queue", "id", postgresql_where=sa.text("state = 'waiting'")),
        sa.Index("ix_work_units_sent", "run_id", "queue", "sent_at", postgresql_where=sa.text("state = 'sent'")),
        sa.Index("ix_work_units_running", "worker_id", postgresql_where=sa.text("state = 'running'")),
        sa.Index("ix_work_units_open_key", "key", postgresql_where=sa.text("state IN ('waiting', 'sent', 'running')")),
        {
            "comment": "Units of work, short and safe to do twice. A broker's message names one; this says what came of it."
        },
    )

    id: Mapped[int] = identity("Surrogate key: all that a message holds.")
    run_id: Mapped[int] = mapped_column(comment="The run.")
    step: Mapped[str] = mapped_column(comment="The step.")
    queue: Mapped[str] = mapped_column(comment="cpu, gpu, llm or db, as its step.")
    key: Mapped[str] = mapped_column(comment="What is done, the same in every run that needs it.")
    payload: Mapped[Json] = mapped_column(comment="Ids that say what is to be done.")
    size: Mapped[int] = mapped_column(sa.Integer, comment="How much it is, in the step's unit.")
    state: Mapped[str] = mapped_column(
        server_default="waiting",
        comment="waiting, sent (a message is with the broker), running, done, failed, cancelled.",
    )
    attempts: Mapped[int] = mapped_column(sa.Integer, server_default="0", comment="How often a worker has begun it.")
    not_before: Mapped[datetime | None] = mapped_column(comment="When it may be tried again; NULL: now.")
    worker_id: Mapped[int | None] = mapped_column(
        sa.BigInteger, sa.ForeignKey("workers.id", ondelete="SET NULL"), index=True, comment="Who began it last."
    )
    pid: Mapped[int | None] = mapped_column(comment="Process that began it last, on the worker's host.")
    doing: Mapped[str | None] = mapped_column(
        comment="The clip it is at, where a worker has died at the unit before; NULL: not watched."
    )
    sent_at: Mapped[datetime | None] = mapped_column(comment="When its message was last sent.")
    started_at: Mapped[datetime | None] = mapped_column(comment="When it was last begun.")
    finished_at: Mapped[datetime | None] = mapped_column(comment="When it was done, failed or cancelled.")
    seconds: Mapped[float | None] = mapped_column(comment="Time of the last try.")
    counts: Mapped[Json] = mapped_column(server_default="{}", comment="What it came to: clips, neurons, tokens …")
    reason: Mapped[str | None] = mapped_column(comment="Why the last try failed, in one line.")
    traceback: Mapped[str | None] = mapped_column(comment="Traceback of the last try that failed.")


class Worker(Base):
    __tablename__ = "workers"
    __table_args__ = (
        sa.Index("ix_workers_seen_at", "seen_at"),
        {"comment": "Worker processes: who they are, and when they were last heard of."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    name: Mapped[str] = mapped_column(comment="Its name with the broker: queues@host.")
    host: Mapped[str] = mapped_column(comment="Host it runs on.")
    pid: Mapped[int] = mapped_column(comment="Process that takes the messages.")
    queues: Mapped[list[str]] = mapped_column(comment="Queues it listens to.")
    concurrency: Mapped[int] = mapped_column(sa.Integer, comment="Units it does at a time.")
    device: Mapped[str] = mapped_column(comment="Where its models run.")
    version: Mapped[str] = mapped_column(comment="Version of the platform.")
    packages: Mapped[list[str]] = mapped_column(comment="Optional packages that it has.")
    started_at: Mapped[Timestamp] = mapped_column(comment="When it started.")
    seen_at: Mapped[Timestamp] = mapped_column(comment="When it was last heard of.")
    stopped_at: Mapped[datetime | None] = mapped_column(comment="When it stopped; NULL: it runs, or was killed.")
