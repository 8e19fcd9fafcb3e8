"""A worker as a program: Celery's, told what our brokers need, and with one line for each thing that a user sees."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from celery import signals
from celery.apps.worker import (
    Worker,
    install_worker_int_handler,
    install_worker_term_handler,
    install_worker_term_hard_handler,
    on_cold_shutdown,
)
from celery.platforms import SecurityWarning

from and_platform.config import settings
from workers import brokers, observe, pulse
from workers.app import app
from workers.queues import broker_name, visibility_timeouts

_SHARED = ("torch", "scipy.signal", "scipy.ndimage")


class UnitWorker(Worker):  # type: ignore[misc]
    """Celery's worker; it says in one line that it stops, and how to stop it at once."""

    def install_platform_tweaks(self, worker: Any) -> None:
        super().install_platform_tweaks(worker)
        install_worker_int_handler(worker, callback=_warm, verbose=False, exitcode=0)
        install_worker_term_handler(worker, callback=_warm, verbose=False)


def _warm(worker: Any) -> None:
    told = b"andp: stopping after the units in work; Ctrl-C again stops at once, and they go to other workers\n"
    os.write(sys.stderr.fileno(), told)  # no buffer, no lock: this is a signal handler
    install_worker_term_hard_handler(worker, sig="SIGINT", callback=_cold, verbose=False)


def _cold(worker: Any) -> None:
    on_cold_shutdown(worker)
    worker.exitcode = 1  # the warm shutdown that this breaks off has said 0


def run(
    queues: Sequence[str],
    *,
    concurrency: int = 1,
    pool: str = "prefork",
    events: bool = False,
    name: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """Take units from these queues until a signal ends it.

    Parameters
    ----------
    queues
        Of `workers.queues.QUEUES`.
    pool
        `prefork`, or `solo` for one process that does everything itself.
    events
        Send Celery's events, for Flower.
    tell
        Takes a line when it is ready.

    Returns
    -------
    int
        The exit status: 0 after a warm shutdown, 1 after a cold one.

    Raises
    ------
    ConfigError, MissingExtraError, DatabaseError, BrokerUnreachableError
        It could not start.
    """
    config = settings()
    nodename = name or f"{'-'.join(queues)}.{os.getpid()}@{socket.gethostname()}"
    brokers.configure(config, queues)
    if pool == "solo":
        app.conf.broker_heartbeat = 0  # nothing beats while a unit runs: RabbitMQ would take the worker for lost
    observe.connect(brokers.depths, visibility_timeouts(config))
    pulse.begin(nodename, queues, concurrency, warm_up=config.warm_up and pool == "prefork")
    ready = f"{nodename} takes units from {', '.join(queues)} at {brokers.masked(config)}; Ctrl-C ends it"
    signals.worker_ready.connect(lambda **_: tell(ready), weak=False)
    # Messages are JSON and hold ids: as root, too, none of them can run code, which is what Celery warns of.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = UnitWorker(
        app=app, hostname=nodename, queues=[broker_name(queue) for queue in queues], concurrency=concurrency, pool=pool,
        loglevel=logging.getLogger().level, quiet=True, task_events=events,
        # They need broadcasts. Who lives is in the table of workers.
        without_gossip=True, without_mingle=True, without_heartbeat=not events,
    )  # fmt: skip
    if pool == "prefork":
        for library in _SHARED:  # imported once, before the children are forked, who share the memory
            importlib.import_module(library)
        gc.freeze()  # the collector of a child would write to what it goes through, and so copy it
    worker.start()
    return int(worker.exitcode or 0)
