"""The sample data set: brought in when it is first named."""

from __future__ import annotations

import sqlalchemy as sa

from and_platform import db
from and_platform.backends.datasets import Source
from and_platform.schema import Dataset, Run
from and_platform.services import networks, provenance
from and_platform.services.ingest import ingest
from and_platform.services.progress import SILENT, Progress

DATASET = "sample"


def ensure(engine: sa.Engine, network: str, dataset: str, progress: Progress = SILENT) -> None:
    """What travels with the platform is there for whoever names it; another network has to be there already."""
    if network == networks.SAMPLE:
        networks.ensure_sample(engine)
    else:
        with db.reading(engine) as session:
            networks.find(session, network)
    if dataset == DATASET:
        ensure_dataset(engine, progress)


def ensure_dataset(engine: sa.Engine, progress: Progress = SILENT) -> None:
    """Ingest the sounds that travel with the platform, unless an ingest has brought all of them in."""
    with db.reading(engine) as session:
        there = session.scalars(sa.select(Dataset).where(Dataset.name == DATASET)).one_or_none()
        # The data set is there from its first clip on, also where the ingest is still at work or was killed.
        whole = there is not None and session.scalar(
            sa.select(
                sa.exists().where(
                    Run.command == "ingest sample", Run.outcome == "ok", Run.finished_at >= there.created_at
                )
            )
        )
    if there is None or (there.kind == "sample" and not whole):
        with provenance.run(engine, "ingest sample", {}) as run:
            ingest(engine, Source.sample(), progress=progress, run=run)
