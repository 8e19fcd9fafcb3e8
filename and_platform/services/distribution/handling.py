"""What a message comes to: a unit is taken, done, and what follows from it is sent; or it is put back, tried again, given up.

Nothing here knows the broker, nor how many processes there are: a worker gives its connections, its models and its messenger,
and whoever likes to be told how units go.
"""

from __future__ import annotations

import logging
import time
import traceback as tracebacks
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from and_platform import db, logs, masking
from and_platform.config import settings
from and_platform.errors import (
    ActivationError,
    AndpError,
    BackendError,
    BrokerError,
    ConfigError,
    ConflictError,
    DatabaseError,
    IncompleteError,
    InputError,
    MissingExtraError,
    NotFoundError,
    SchemaVersionError,
    WeightsMissingError,
)
from and_platform.schema import Failure, Run
from and_platform.services import provenance
from and_platform.services.distribution import ledger, runs, settled, steps, work
from and_platform.services.distribution.ledger import Me, Messenger, Unit
from and_platform.services.distribution.models import Models
from and_platform.services.distribution.workers import packages, who_has

log = logging.getLogger(__name__)

HOPELESS = (
    ActivationError, ConfigError, ConflictError, IncompleteError, InputError, NotFoundError, SchemaVersionError,
    WeightsMissingError,
)  # fmt: skip
"""Errors that another try will meet again."""

_MOST_REFUSED = 1000
"""Messages that are kept at most; further ones are in the worker's log alone."""

_Result = TypeVar("_Result")

_MOST_WAIT_S, _BREATH_S = 60.0, 5.0
_OTHERS_HAVE_IT_S, _NOBODY_HAS_IT_S = 1.0, 15.0


class Witness(Protocol):
    """Is told how units go."""

    def unit(self, unit: Unit) -> AbstractContextManager[None]:
        """Around all that a message of a unit comes to."""
        ...

    def done(self, unit: Unit, seconds: float, counts: Mapping[str, Any]) -> None:
        """A unit was done."""
        ...

    def failed(self, unit: Unit, kind: str, error: Exception | None) -> None:
        """A try failed; `kind` is a word, and there is no error where the process died of it."""
        ...

    def retried(self, unit: Unit) -> None:
        """It will be sent once more."""
        ...


@dataclass(frozen=True)
class Station:
    """A process that does units: its connections, its models, where it sends messages, and who it is."""

    engine: sa.Engine
    models: Models
    messenger: Messenger
    me: Me

    def follow(self, ended: Sequence[tuple[int, str]]) -> None:
        """Send what comes after units that have ended."""
        db.patiently(lambda: ledger.follow(self.engine, ended, self.messenger, settings().queue_window))


def unit(station: Station, unit_id: int, witness: Witness) -> None:
    """Do a unit, if it is still to be done."""
    most = settings().most_attempts
    # Until it is known: a claim whose commit got no answer may hold, and only this process can take it up again.
    claim = _surely(lambda: ledger.claim(station.engine, unit_id, station.me, most))
    found = claim.unit
    if found is None or claim.verdict == "elsewhere":
        return
    with logs.bound(run=found.run_id, stage=found.step, unit=found.id), witness.unit(found):
        match claim.verdict:
            case "spent":
                reason = f"the process that does it died {found.attempts - 1} times"
                log.error("given up: %s", reason)
                witness.failed(found, "died", None)
                db.patiently(lambda: work.give_up(station.engine, found, reason, None, died=True))
                station.follow([(found.run_id, found.step)])
            case "over":  # all that may be missing is what comes after it
                _onward(station, found, [(found.run_id, found.step)])
            case _:
                station.me.in_work.add(found.id)
                try:
                    _try(station, found, witness)
                finally:
                    station.me.in_work.discard(found.id)


def advance(station: Station, run_id: int) -> None:
    """See what a run needs next. Where that cannot be told, the run ends with the reason, and can be taken up again."""
    with logs.bound(run=run_id):
        try:
            db.patiently(
                lambda: runs.advance(station.engine, run_id, station.messenger, window=settings().queue_window)
            )
        except Exception as exc:
            if isinstance(exc, BrokerError) or (isinstance(exc, DatabaseError) and exc.passing):
                raise  # the message goes back
            # Whatever else it is, it is kept with the run, which would wait for ever.
            reason = _told(exc)
            log.error("the run cannot go on: %s", reason, exc_info=exc)
            db.patiently(lambda: runs.break_off(station.engine, run_id, reason))


def refuse(
    engine: sa.Engine, queue: str, name: str, reason: str, detail: str, unit_id: int | None, me: Me | None = None
) -> None:
    """Keep that a message could not be used, among the failures of the stage `message`.

    Where it names a unit that waits for this message, a try of the unit is counted; after the last one it is given up. What
    comes after it is left to the next sweep.

    Parameters
    ----------
    name
        What tells the message from others: one that comes again is not kept twice.
    detail
        The beginning of it.
    me
        The process that failed at it, where it began.
    """
    told = f"a message was refused: {reason}"
    with db.transaction(engine) as session:
        found = None if unit_id is None else ledger.count_try(session, unit_id, told, me)
        open_ = sa.select(sa.func.count()).where(Failure.stage == provenance.MESSAGE, Failure.resolved_at.is_(None))
        if (session.scalar(open_) or 0) < _MOST_REFUSED:
            provenance.record_failure(
                session,
                stage=provenance.MESSAGE,
                scope=f"queue:{queue}",
                unit=name,
                reason=told,
                detail=detail,
                run_id=found.run_id if found else None,
            )
    if found is not None and found.attempts >= settings().most_attempts:
        work.give_up(engine, found, told, None, died=False)


def _try(station: Station, found: Unit, witness: Witness) -> None:
    most, began = settings().most_attempts, time.monotonic()
    # The last try is watched: if its worker dies too, it is known of which clip.
    watched = found.attempts > 1 and found.attempts >= most
    mark = (lambda key: ledger.mark(station.engine, found, key)) if watched else None
    try:
        if _refused(station, found):
            return
        done = db.patiently(lambda: work.do(station.engine, station.models, found, mark))
        seconds = time.monotonic() - began
        if done.unreadable:
            log.warning("%d clips cannot be read: the run begins again without them", len(done.unreadable))
            recording_id = int(found.payload["recording"])
            _surely(lambda: runs.again(station.engine, found.run_id, recording_id))
        # A run that was cancelled does not begin again; another one that waits for the same block still has to see for itself.
        alone = bool(done.unreadable)
        ended = _surely(lambda: ledger.finish(station.engine, found, seconds, done.counts, alone=alone))
    except MissingExtraError as exc:
        _put_back(station, found, exc.package)
        return
    except Exception as exc:  # noqa: BLE001 (whatever it is: it is kept with the unit, and the worker goes on to the next)
        _failed(station, found, exc, witness)
        return
    log.info("done in %.2f s", seconds)
    witness.done(found, seconds, done.counts)
    _onward(station, found, ended or [(found.run_id, "plan")])  # it is gone where the run begins again


def _surely(write: Callable[[], _Result]) -> _Result:
    """Write down what becomes of a unit of this process's, however long it takes: nobody else can while the process lives."""
    while True:
        try:
            return db.patiently(write)
        except DatabaseError as exc:
            log.error("cannot write down what becomes of the unit, and try again: %s", exc)
            time.sleep(_BREATH_S)


def _onward(station: Station, found: Unit, ended: Sequence[tuple[int, str]]) -> None:
    station.follow(ended)
    for run_id, step in ended:
        if step != "record":
            continue
        with db.reading(station.engine) as session:
            full = steps.stretch_over(session, run_id, int(found.payload["stretch"]))
        if full:
            station.messenger.advance(run_id)


def _refused(station: Station, found: Unit) -> bool:
    """Whether this worker lacks what a unit needs: it is put back for one that has it."""
    if found.step == "plan":
        return False
    with db.reading(station.engine) as session:
        options = settled.options_of(session.get_one(Run, found.run_id))
    package = work.needs(options, found.step, found.payload)
    if not package or package in packages():
        return False
    _put_back(station, found, package)
    return True


def _put_back(station: Station, found: Unit, package: str) -> None:
    others = who_has(station.engine, found.queue, package)
    reason = (
        f"this worker has no package '{package}'; {others[0]} has it"
        if others
        else f"no worker of the queue {found.queue} has the package '{package}'; install it there, and start that worker again"
    )
    log.warning("put back: %s", reason)
    wait = _OTHERS_HAVE_IT_S if others else _NOBODY_HAS_IT_S
    _surely(lambda: ledger.put_back(station.engine, found, reason, wait))


def _told(exc: Exception) -> str:
    """An error in one line, without secrets."""
    told = str(exc) if isinstance(exc, AndpError) else f"{type(exc).__name__}: {exc}"
    return masking.reason_of(told.partition("\n")[0])


def _failed(station: Station, found: Unit, exc: Exception, witness: Witness) -> None:
    reason, trace = _told(exc), masking.reason_of("".join(tracebacks.format_exception(exc)), masking.LONGEST_DETAIL)
    witness.failed(found, type(exc).__name__, exc)
    if "out of memory" in str(exc).lower() or isinstance(exc, MemoryError):
        station.models.clear()  # the next try, or the next unit, begins with all the memory there is
    if found.attempts >= settings().most_attempts or isinstance(exc, HOPELESS):
        log.error("given up after %d tries: %s", found.attempts, reason, exc_info=exc)
        # One clip may be at fault, and the others of the unit not; of a model that is away, all of them tell the same.
        divide = steps.BY_NAME[found.step].soft and not isinstance(exc, (BackendError, DatabaseError, *HOPELESS))
        _surely(lambda: work.give_up(station.engine, found, reason, trace, died=False, divide=divide))
        station.follow([(found.run_id, found.step)])
        return
    wait = 0.0 if isinstance(exc, DatabaseError) else min(2.0**found.attempts, _MOST_WAIT_S)
    log.warning("tried again in %.0f s: %s", wait, reason)
    witness.retried(found)
    _surely(lambda: ledger.release(station.engine, found, reason, trace, wait))
