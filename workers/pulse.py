"""A worker's pulse: it says every few seconds that it lives, and puts right what was lost.

A thread of the worker's own process, beside those of its children: it beats while they work, and notices when one of them is
gone without a message coming back for its unit.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from and_platform import db
from and_platform.config import settings
from and_platform.errors import AndpError, ConfigError
from and_platform.services.distribution import ledger, workers
from workers import brokers
from workers.messages import MESSENGER

log = logging.getLogger(__name__)

_BEATS_IN_SILENCE = 6
"""Beats that a worker misses before it is taken for dead."""
_SCHEMA_EVERY = 6
"""Beats between two looks at the schema's version."""


class _Pulse(threading.Thread):
    def __init__(self, name: str, queues: Sequence[str], concurrency: int) -> None:
        super().__init__(name="pulse", daemon=True)
        self.engine: sa.Engine = db.connect(role="pulse")
        self.worker_id = workers.enlist(self.engine, name, queues, concurrency, settings().device)
        self._over = threading.Event()
        self._pause = settings().silent_after / _BEATS_IN_SILENCE
        self._beats = 0

    def run(self) -> None:
        while not self._over.wait(self._pause):
            for duty in (self._check_schema, self._beat, self._sweep):
                try:
                    duty()
                except AndpError as exc:  # the database or the broker is away: the next beat may find it
                    log.warning("%s: %s", duty.__name__.strip("_"), exc)
                except Exception:  # a worker without a pulse counts as dead, and works on
                    log.exception("%s", duty.__name__.strip("_"))

    def _check_schema(self) -> None:
        self._beats += 1
        if self._beats % _SCHEMA_EVERY == 0:
            now, known = db.schema_revision(self.engine), db.newest_revision()
            if now != known:
                log.error(
                    "the schema is at %s now, and this worker works with %s: it stops; install that version", now, known
                )
                os.kill(os.getpid(), signal.SIGTERM)

    def _beat(self) -> None:
        workers.beat(self.engine, self.worker_id)
        ledger.children_lost(self.engine, self.worker_id)

    def _sweep(self) -> None:
        """One worker sweeps for all, that of the lowest number: a hundred would ask the same a hundred times."""
        if workers.eldest(self.engine) == self.worker_id:
            ledger.sweep(self.engine, MESSENGER, brokers.depths, window=settings().queue_window)

    def stop(self) -> None:
        self._over.set()
        self.join(self._pause)
        try:
            workers.discharge(self.engine, self.worker_id)
        except AndpError as exc:
            log.warning("cannot write down that this worker stops: %s", exc)
        self.engine.dispose()


_pulse: _Pulse | None = None


def worker_id() -> int:
    """The row of the worker that this process, or its parent, is."""
    if _pulse is None:
        raise ConfigError("this worker was not begun by andp worker, and nobody would know that it lives; begin it so")
    return _pulse.worker_id


def begin(name: str, queues: Sequence[str], concurrency: int, *, warm_up: bool) -> None:
    """Make this process a worker: it beats from when it is ready to its end, and its children begin with models loaded.

    Called before children are forked: they know by it whose they are.
    """
    global _pulse
    from celery import signals

    _pulse = _Pulse(name, queues, concurrency)
    signals.worker_ready.connect(_ready, weak=False)
    signals.worker_process_init.connect(lambda **_: _child(list(queues), warm_up), weak=False)
    signals.worker_shutdown.connect(_stop, weak=False)


def _ready(**_: Any) -> None:
    if _pulse is not None:
        _pulse.start()


def _child(queues: list[str], warm_up: bool) -> None:
    if _pulse is not None:
        _pulse.engine.dispose(close=False)  # the parent's connections are not this process's to close
    if warm_up:
        from workers import tasks

        tasks.warm_up(queues)


def _stop(**_: Any) -> None:
    if _pulse is not None and _pulse.is_alive():
        _pulse.stop()
