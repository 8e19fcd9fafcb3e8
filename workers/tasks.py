"""The tasks: an id in, one unit of work, rows in the database out. Delivered twice, late, or to two workers, they do no harm.

What a unit is, and what comes after it, is decided in `and_platform.services.distribution`; here is only what a process
adds: its connections, its models, its messages, its measurements.
"""

from __future__ import annotations

import logging
import os
import time
import traceback as tracebacks
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from celery.exceptions import Reject

from and_platform import db
from and_platform.config import settings
from and_platform.errors import BrokerError, DatabaseError
from and_platform.services.distribution import handling, ledger, work
from and_platform.services.distribution.ledger import Me, Unit
from and_platform.services.distribution.models import Models
from workers import metrics, pulse, tracing
from workers.app import app
from workers.messages import MESSENGER
from workers.queues import PREFIX

log = logging.getLogger(__name__)

_BREATH_S = 2.0
"""Before a message goes back to the broker, so that it does not go round and round."""

_MOST_REASON, _MOST_TRACE = 500, 20_000
"""Characters that are kept of an error that nobody expected, and of its traceback."""

_in_work: set[int] = set()


@cache
def _engine_of(_pid: int) -> sa.Engine:
    return db.connect(role="worker")


def engine() -> sa.Engine:
    """This process's connections: a child must not use those that it was forked with."""
    return _engine_of(os.getpid())


@cache
def models() -> Models:
    """What this process keeps loaded."""
    return Models(settings().models_loaded, metrics.loaded)


def station() -> handling.Station:
    """What this process does units with."""
    return handling.Station(engine(), models(), MESSENGER, Me(pulse.worker_id(), _in_work))


@app.task(name="andp.unit", bind=True)
def unit(self: Any, unit_id: int) -> None:
    """Do a unit, if it is still to be done."""
    with _kept(self.request, unit_id):
        handling.unit(station(), unit_id, _Observed(self.request.headers))


@app.task(name="andp.advance", bind=True)
def advance(self: Any, run_id: int) -> None:
    """See what a run needs next."""
    with _kept(self.request), tracing.through(self.request.headers):
        handling.advance(station(), run_id)


@contextmanager
def _kept(request: Any, unit_id: int | None = None) -> Iterator[None]:
    """Settle a message at which its task raised: Celery would take it for done, and the unit would be at work for ever.

    Where the database or the broker is away it goes back to the broker. Anything else would be met at the next delivery, too:
    then the message is kept among the failures, and a try of its unit is counted.
    """
    try:
        yield
    except (BrokerError, DatabaseError) as exc:
        log.error("goes back to the broker: %s", exc)
        time.sleep(_BREATH_S)
        raise Reject(exc, requeue=True) from exc
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}"[:_MOST_REASON]
        log.error("the message is given up: %s", reason, exc_info=exc)
        queue, name = str(request.delivery_info.get("routing_key")).removeprefix(PREFIX), str(request.id)
        trace = "".join(tracebacks.format_exception(exc))[-_MOST_TRACE:]
        try:
            handling.refuse(engine(), queue, name, reason, trace, unit_id, Me(pulse.worker_id(), _in_work))
        except (BrokerError, DatabaseError) as lost:
            log.error("goes back to the broker: %s", lost)
            time.sleep(_BREATH_S)
            raise Reject(lost, requeue=True) from lost
        raise Reject(exc, requeue=False) from exc


class _Observed:
    """Metrics and traces of units. `headers`: those of the message."""

    def __init__(self, headers: Mapping[str, Any] | None) -> None:
        self._headers = headers
        self._span = tracing.Mark()

    @contextmanager
    def unit(self, unit: Unit) -> Iterator[None]:
        with (
            tracing.unit(
                self._headers, run=unit.run_id, stage=unit.step, unit=unit.id, queue=unit.queue, size=unit.size,
                attempt=unit.attempts,
            ) as self._span,
            metrics.unit(unit.queue, unit.step),
        ):  # fmt: skip
            yield

    def done(self, unit: Unit, seconds: float, counts: Mapping[str, Any]) -> None:
        if unit.step == "plan":  # it counts clips and layers, and has done nothing with them
            counts = {}
        held = {name: int(counts.get(name, 0)) for name in ("clips", "neurons", "tokens")}
        metrics.done(unit.queue, unit.step, seconds, **held)

    def failed(self, unit: Unit, kind: str, error: Exception | None) -> None:
        metrics.failed(unit.queue, unit.step, kind)
        if error is not None:
            self._span.failed(error)

    def retried(self, unit: Unit) -> None:
        metrics.retried(unit.queue, unit.step)


def warm_up(queues: list[str]) -> None:
    """Load what the next unit of these queues needs, before the first is taken."""
    found = ledger.next_of(engine(), queues)
    if found is not None:
        try:
            work.model_of(engine(), models(), found)
        except Exception as exc:  # noqa: BLE001 (the unit itself will say so, where it is kept)
            log.warning("cannot load what unit %d needs: %s", found.id, exc)
