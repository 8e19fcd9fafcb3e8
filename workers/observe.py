"""Logs, metrics and traces, tied to the life of a Celery worker through Celery's signals.

observe.connect(depths)   # once, where the app is made
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from and_platform import logs
from and_platform.config import settings
from and_platform.errors import AndpError
from workers import metrics, tracing

_depths: metrics.Depths | None = None
_timeouts: Mapping[str, float] = {}
_worker: str | None = None


def connect(depths: metrics.Depths | None = None, timeouts: Mapping[str, float] | None = None) -> None:
    """Have each worker of this process log, count and trace as the settings say.

    Parameters
    ----------
    depths
        Gives the number of messages that wait in each queue; see `workers.metrics.serve`.
    timeouts
        Visibility timeout of each queue, in seconds.
    """
    global _depths, _timeouts
    from celery import signals

    _depths, _timeouts = depths, timeouts or {}
    signals.celeryd_init.connect(_named)
    signals.setup_logging.connect(_log)
    signals.celeryd_after_setup.connect(_serve)
    signals.worker_process_init.connect(_begin)
    signals.worker_process_shutdown.connect(_end)
    signals.worker_shutdown.connect(_end)


def _named(sender: str, **_: Any) -> None:
    global _worker
    _worker = sender


def _log(loglevel: int | str | None = None, **_: Any) -> None:
    """Celery leaves the log alone where this signal has a receiver; it would set up handlers of its own otherwise."""
    from billiard.util import get_logger

    logs.configure(loglevel or settings().log_level, settings().log_format, worker=_worker)
    pool = get_logger()  # it keeps its lines to itself unless told otherwise; those of a child that died are wanted
    pool.propagate = True
    pool.setLevel(logging.ERROR)


def _serve(sender: str, instance: Any, **_: Any) -> None:
    """In the parent, after logs and queues are settled and before it forks."""
    config = settings()
    queues = [name.removeprefix("andp.").removeprefix("andp_") for name in instance.app.amqp.queues.consume_from]
    try:
        metrics.serve(
            config.metrics_port, config.metrics_address,
            worker=sender, queues=queues, depths=_depths, timeouts=_timeouts,
        )  # fmt: skip
    except AndpError as exc:
        sys.exit(f"andp: {exc}")  # an exception of another kind would be logged by Celery, and the worker start without


def _begin(**_: Any) -> None:
    metrics.join()


def _end(**_: Any) -> None:
    tracing.close()
