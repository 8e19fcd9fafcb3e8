"""An app with one task, observed as the real one is; its messages lie in the folder OBSERVED_FOLDER."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from and_platform import logs
from tests.workers.folder_broker import made
from workers import metrics, observe, tracing

log = logging.getLogger("workers.observed")

app = made(Path(os.environ["OBSERVED_FOLDER"]))
observe.connect(lambda: {"cpu": 5, "gpu": 0}, {"gpu": 900})


@app.task(bind=True, name="observed.unit")
def unit(self: Any, number: int, seconds: float) -> None:
    """One unit: 10 clips; number 13 fails."""
    with (
        logs.bound(run=7, stage="record", unit=number),
        tracing.unit(
            self.request.headers, run=7, stage="record", unit=number, queue="gpu", size=10, attempt=2
        ) as mark,
        metrics.unit("gpu", "record"),
    ):  # fmt: skip
        log.info("begun, password=hunter2")
        time.sleep(seconds)
        if number < 10:  # it sends the next one
            unit.apply_async([number + 100, 0.0], headers=tracing.headers())
        if number == 13:
            try:
                raise ValueError("no luck")
            except ValueError as error:
                log.exception("failed")
                mark.failed(error)
                metrics.failed("gpu", "record", "ValueError")
                return
    metrics.done("gpu", "record", seconds, clips=10)
