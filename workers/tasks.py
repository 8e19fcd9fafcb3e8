"""The tasks: plain JSON in, one service call, rows in the database out. Delivered twice, they do what is missing."""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa

from and_platform import db
from and_platform.services import provenance
from and_platform.services.dissect import Options, dissect
from workers.app import app


@cache
def _engine() -> sa.Engine:
    return db.connect()  # one a process, made in the child that runs the tasks


@app.task(name="andp.dissect_stages")
def dissect_stages(network: str, options: dict[str, Any], stages: list[str]) -> None:
    """Run stages of a dissection, all of them if none is named; `options` are those of a config file."""
    given = {**options, "stages": stages}
    settled = Options.from_mapping(given)
    with provenance.run(_engine(), "dissect", {"network": network, **given}) as run:
        dissect(_engine(), network, settled, run=run)
