"""Reading what provenance wrote: failures and runs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform.errors import NotFoundError
from and_platform.schema import Clip, Dataset, Failure, Run, WorkUnit
from and_platform.services import datasets
from and_platform.services.datasets import scope_of

Row = dict[str, Any]


def failures(
    session: Session, *, stage: str | None = None, dataset: str | None = None, resolved: bool = False
) -> list[Row]:
    """Failures, oldest first; with `resolved`, those too that were put right.

    `dataset` keeps those of the data set itself and those of its clips in later stages. A name for which there is
    nothing at all is an error; that of a data set of which no file could be used is not.

    Raises
    ------
    NotFoundError
        No such data set.
    """
    query = sa.select(
        Failure.stage, Failure.scope, Failure.unit, Failure.reason, Failure.happened_at, Failure.resolved_at,
        Failure.run_id,
    ).order_by(Failure.happened_at, Failure.id)  # fmt: skip
    if stage:
        query = query.where(Failure.stage == stage)
    if dataset:
        known = session.scalar(sa.select(sa.exists().where(Failure.scope == scope_of(dataset))))
        if not known:
            datasets.find(session, dataset)
        clips = sa.select(Clip.id).join(Dataset).where(Dataset.name == dataset)
        query = query.where(sa.or_(Failure.scope == scope_of(dataset), Failure.clip_id.in_(clips)))
    if not resolved:
        query = query.where(Failure.resolved_at.is_(None))
    return [dict(row) for row in session.execute(query).mappings()]


def runs(session: Session, limit: int) -> list[Row]:
    """The latest runs, the newest first. `by` says who does it; units are those of a run that workers do, NULL of others."""
    units = (
        sa.select(
            sa.func.count().label("units"),
            sa.func.count().filter(WorkUnit.state == "done").label("done"),
            sa.func.count().filter(WorkUnit.state == "failed").label("failed"),
        )
        .where(WorkUnit.run_id == Run.id, Run.distributed)
        .lateral()
    )
    query = (
        sa.select(
            Run.id, Run.command, sa.case((Run.distributed, "workers"), else_="itself").label("by"), Run.outcome,
            Run.started_at,
            sa.cast(
                sa.extract("epoch", sa.func.coalesce(Run.finished_at, sa.func.now()) - Run.started_at), sa.Double
            ).label("seconds"),
            *(sa.case((Run.distributed, column)).label(f"units_{name}" if name != "units" else name)
              for name, column in units.c.items()),
            Run.counts, Run.error,
        )
        .join(units, sa.true())
        .order_by(Run.id.desc())
        .limit(limit)
    )  # fmt: skip
    return [dict(row) for row in session.execute(query).mappings()]


def run(session: Session, run_id: int) -> Row:
    """Everything about one run.

    Raises
    ------
    NotFoundError
        No such run.
    """
    found = session.execute(sa.select(Run.__table__).where(Run.id == run_id)).mappings().one_or_none()
    if found is None:
        raise NotFoundError(f"no run {run_id}; see: andp runs list")
    n_failures = session.scalar(sa.select(sa.func.count()).where(Failure.run_id == run_id))
    return {**found, "failures": n_failures}
