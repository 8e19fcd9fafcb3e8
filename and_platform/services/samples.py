"""The sample data set: brought in when it is first named."""

from __future__ import annotations

import sqlalchemy as sa

from and_platform import db
from and_platform.backends.datasets import Source
from and_platform.schema import Dataset
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
    """Ingest the sounds that travel with the platform, unless they are there."""
    with db.reading(engine) as session:
        there = session.scalars(sa.select(Dataset.id).where(Dataset.name == DATASET)).one_or_none()
    if there is None:
        with provenance.run(engine, "ingest sample", {}) as run:
            ingest(engine, Source.sample(), progress=progress, run=run)
