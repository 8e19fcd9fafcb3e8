"""The tasks: an id in, one unit of work, rows in the database out. Delivered twice, late, or to two workers, they do no harm.

`unit` takes a unit from the ledger, does it, and sends what comes next; `advance` looks what a run needs when a step of it is
over. What is to be done is decided in `and_platform.services.distribution`; here is only what a process adds: its
connection, its models, its log.
"""

from __future__ import annotations

import logging
import os
import time
import traceback as tracebacks
from functools import cache
from typing import Any

import sqlalchemy as sa

from and_platform import db, logs
from and_platform.config import settings
from and_platform.errors import (
    ActivationError,
    AndpError,
    ConfigError,
    ConflictError,
    DatabaseError,
    InputError,
    NotFoundError,
    SchemaVersionError,
    WeightsMissingError,
)
from and_platform.schema import Run
from and_platform.services.distribution import ledger, runs, settled, steps, work
from and_platform.services.distribution.ledger import Me, Unit
from and_platform.services.distribution.models import Models
from and_platform.services.distribution.workers import packages, who_has
from workers import metrics, pulse, tracing
from workers.app import app
from workers.messages import MESSENGER

log = logging.getLogger(__name__)

HOPELESS = (
    ActivationError, ConfigError, ConflictError, InputError, NotFoundError, SchemaVersionError, WeightsMissingError,
)  # fmt: skip
"""Errors that another try will meet again."""

_MOST_WAIT_S = 60.0
_OTHERS_HAVE_IT_S, _NOBODY_HAS_IT_S = 1.0, 15.0

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


@app.task(name="andp.unit", bind=True)
def unit(self: Any, unit_id: int) -> None:
    """Do a unit, if it is still to be done."""
    config = settings()
    me = Me(pulse.worker_id(), _in_work)
    claim = db.patiently(lambda: ledger.claim(engine(), unit_id, me, config.most_attempts))
    if claim.unit is None or claim.verdict == "elsewhere":
        return
    found = claim.unit
    with (
        logs.bound(run=found.run_id, stage=found.step, unit=found.id),
        tracing.unit(
            self.request.headers, run=found.run_id, stage=found.step, unit=found.id, queue=found.queue, size=found.size,
            attempt=found.attempts,
        ) as span,
    ):  # fmt: skip
        match claim.verdict:
            case "spent":
                reason = f"the process that does it died {config.most_attempts} times"
                log.error("given up: %s", reason)
                metrics.failed(found.queue, found.step, "died")
                db.patiently(lambda: work.give_up(engine(), found, reason, None, died=True))
                _follow([(found.run_id, found.step)])
            case "over":  # all that may be missing is what comes after it
                _follow([(found.run_id, found.step)])
            case _:
                _in_work.add(found.id)
                try:
                    _try(found, span)
                finally:
                    _in_work.discard(found.id)


def _try(found: Unit, span: tracing.Mark) -> None:
    if _refused(found):
        return
    config, began = settings(), time.monotonic()
    # The last try is watched: if its worker dies too, it is known of which clip.
    watched = found.attempts > 1 and found.attempts >= config.most_attempts
    mark = (lambda key: ledger.mark(engine(), found, key)) if watched else None
    try:
        with metrics.unit(found.queue, found.step):
            done = db.patiently(lambda: work.do(engine(), models(), found, mark))
    except Exception as exc:  # noqa: BLE001 (whatever it is: it is kept with the unit, and the worker goes on to the next)
        span.failed(exc)
        _failed(found, exc)
        return
    seconds = time.monotonic() - began
    if done.unreadable:
        log.warning("%d clips cannot be read: the run begins again without them", len(done.unreadable))
        recording_id = _recording_of(found.run_id)
        db.patiently(lambda: runs.again(engine(), found.run_id, recording_id))
    ended = db.patiently(lambda: ledger.finish(engine(), found, seconds, done.counts))
    log.info("done in %.2f s", seconds)
    count = {name: int(done.counts.get(name, 0)) for name in ("clips", "neurons", "tokens")}
    metrics.done(found.queue, found.step, seconds, **count)
    _follow(ended or [(found.run_id, "plan")])
    if found.step == "record" and _stretch_over(found):
        MESSENGER.advance(found.run_id)


def _recording_of(run_id: int) -> int:
    with db.reading(engine()) as session:
        plan = session.get_one(Run, run_id).plan
    return int(plan["recording"]) if plan else 0


def _stretch_over(found: Unit) -> bool:
    with db.reading(engine()) as session:
        return steps.stretch_over(session, found.run_id, int(found.payload["block"]))


def _follow(ended: list[tuple[int, str]]) -> None:
    db.patiently(lambda: ledger.follow(engine(), ended, MESSENGER, settings().queue_window))


def _refused(found: Unit) -> bool:
    """Whether this worker lacks what a unit needs: it is put back for one that has it."""
    if found.step == "plan":
        return False
    with db.reading(engine()) as session:
        options = settled.options_of(session.get_one(Run, found.run_id))
    package = work.needs(options, found.step, found.payload)
    if not package or package in packages():
        return False
    others = who_has(engine(), found.queue, package)
    reason = (
        f"this worker has no package '{package}'; {others[0]} has it"
        if others
        else f"no worker of the queue {found.queue} has the package '{package}'; install it there, and start that worker again"
    )
    log.warning("put back: %s", reason)
    wait = _OTHERS_HAVE_IT_S if others else _NOBODY_HAS_IT_S
    db.patiently(lambda: ledger.put_back(engine(), found, reason, wait))
    return True


def _failed(found: Unit, exc: Exception) -> None:
    config = settings()
    told = str(exc) if isinstance(exc, AndpError) else f"{type(exc).__name__}: {exc}"
    reason = logs.mask(told.splitlines()[0])
    trace = logs.mask("".join(tracebacks.format_exception(exc)))
    metrics.failed(found.queue, found.step, type(exc).__name__)
    if "out of memory" in str(exc).lower() or isinstance(exc, MemoryError):
        models().clear()  # the next try, or the next unit, begins with all the memory there is
    if found.attempts >= config.most_attempts or isinstance(exc, HOPELESS):
        log.error("given up after %d tries: %s", found.attempts, reason, exc_info=exc)
        db.patiently(lambda: work.give_up(engine(), found, reason, trace, died=False))
        _follow([(found.run_id, found.step)])
        return
    wait = 0.0 if isinstance(exc, DatabaseError) else min(2.0**found.attempts, _MOST_WAIT_S)
    log.warning("tried again in %.0f s: %s", wait, reason)
    metrics.retried(found.queue, found.step)
    db.patiently(lambda: ledger.release(engine(), found, reason, trace, wait))


@app.task(name="andp.advance")
def advance(run_id: int) -> None:
    """See what a run needs next."""
    with logs.bound(run=run_id):
        db.patiently(lambda: runs.advance(engine(), run_id, MESSENGER, window=settings().queue_window))


def warm_up(queues: list[str]) -> None:
    """Load what the next unit of these queues needs, before the first is taken."""
    with db.reading(engine()) as session:
        row = session.execute(
            sa.text(
                "SELECT u.id, u.run_id, u.step, u.queue, u.key, u.payload, u.size FROM work_units u"
                " JOIN runs r ON r.id = u.run_id AND r.outcome = 'running'"
                " WHERE u.state IN ('waiting', 'sent') AND u.queue = ANY (:queues) ORDER BY u.id LIMIT 1"
            ),
            {"queues": queues},
        ).one_or_none()
    if row is not None:
        try:
            work.model_of(engine(), models(), Unit(**row._mapping, attempts=0))
        except Exception as exc:  # noqa: BLE001 (the unit itself will say so, where it is kept)
            log.warning("cannot load what unit %d needs: %s", row.id, exc)
