"""A task that leaves traces in a file, and a worker that knows it: what brokers deliver, without a dissection.

python -m tests.workers.probe --queues gpu,db --concurrency 2      # takes what `andp worker` takes
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from workers import validation
from workers.app import app

# A worker takes no task that is not named here.
validation.TASKS |= {"probe.trace": lambda args: None, "probe.nothing": lambda args: None}


@app.task(name="probe.trace")  # type: ignore[untyped-decorator]
def trace(path: str, text: str, seconds: float = 0.0) -> None:
    """Write `begin TEXT PID` to the file, wait, and write `end TEXT PID`."""
    _write(path, f"begin {text}")
    time.sleep(seconds)
    _write(path, f"end {text}")


@app.task(name="probe.nothing")  # type: ignore[untyped-decorator]
def nothing() -> None:
    """Do nothing."""


def _write(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{text} {os.getpid()}\n")


def main() -> None:
    """`andp worker`, in a process that knows the tasks above."""
    from and_platform.cli.worker import command

    command(obj={})
