"""The ledger of units: who does which, how often it was tried, and what became of it.

A message may be delivered twice, late, or never. So nothing is taken from it but an id: whether the unit is still to be
done is asked here, under a lock on its row. Every step down this module's road (`add_units`, `top_up`, `claim`, `finish` or
`release` or `fail`, `follow`) may be interrupted and done again:

- killed before `claim` commits: the message comes back, nothing has happened;
- killed at work: the message comes back, or `sweep` finds the worker silent; the next claim counts a second try;
- killed between `finish` and `follow`: the message comes back, the unit is over, and `follow` is done again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import psutil
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.config import settings
from and_platform.schema import OPEN
from and_platform.services.provenance import storable

_BUSY_ELSEWHERE_S = 3.0


def silent_s() -> float:
    """Seconds after which a worker that is not heard of is taken for dead."""
    return settings().silent_after


def lost_s() -> float:
    """Seconds after which a message that is neither waiting in its queue nor at work is taken for lost."""
    return settings().silent_after * 2 / 3


class Messenger(Protocol):
    """Who sends messages. A message may be sent twice; it must not be lost without an error."""

    def unit(self, queue: str, unit_id: int) -> None:
        """Tell a worker of a queue to do a unit."""
        ...

    def advance(self, run_id: int) -> None:
        """Tell a worker to see what a run needs next."""
        ...


class NewUnit(NamedTuple):
    """A unit to be added. `key` says what is done in terms that are the same in every run."""

    key: str
    payload: dict[str, Any]
    size: int


@dataclass(frozen=True)
class Unit:
    """A unit that this process is to do, or that is over."""

    id: int
    run_id: int
    step: str
    queue: str
    key: str
    payload: dict[str, Any]
    size: int
    attempts: int
    """Tries, this one included."""
    doing: str | None = None
    """The clip that the last try was at when its worker died."""


class Claim(NamedTuple):
    """What is to be done with a unit that a message names.

    `todo`: it is this process's now. `over`: it is done, failed or cancelled; all that may be missing is what follows.
    `spent`: it has been tried as often as is allowed, and its worker died each time. `elsewhere`: somebody is at it, or
    there is no such unit.
    """

    verdict: str
    unit: Unit | None = None


@dataclass(frozen=True)
class Me:
    """The process that does units: its worker's row, and the units it has in work (threads share a process)."""

    worker_id: int
    in_work: set[int]


def add_units(session: Session, run_id: int, step: str, queue: str, units: Iterable[NewUnit]) -> int:
    """Add what is to be done in a step; returns how many units were new.

    Units that are there already stay as they are, but for those that were done or cancelled: what is asked for again is
    missing again.
    """
    by_key = {
        unit.key: unit for unit in units
    }  # one encoder may serve two methods, and have the same texts to do for both
    return db.insert_new(
        session,
        "work_units",
        {"run_id": "int8", "step": "text", "queue": "text", "key": "text", "payload": "jsonb", "size": "int4"},
        ((run_id, step, queue, unit.key, _json(unit.payload), unit.size) for unit in by_key.values()),
        "(run_id, step, key) DO UPDATE SET state = 'waiting', attempts = 0, not_before = NULL, reason = NULL,"
        " traceback = NULL, counts = '{}', finished_at = NULL WHERE work_units.state = 'done'"
        " OR work_units.state = 'cancelled' AND work_units.reason IS DISTINCT FROM 'split'",
    )


def _json(value: Mapping[str, Any]) -> Any:
    from psycopg.types.json import Jsonb

    return Jsonb(dict(value))


def top_up(
    engine: sa.Engine, run_id: int, messenger: Messenger, *, window: int, queue: str | None = None, patient: bool = True
) -> int:
    """Send messages of waiting units, until `window` of this run are with the broker in each queue.

    So queues stay short whatever there is to do, and a slow database slows workers instead of filling the broker. Messages go
    out before the commit: killed in between, they are sent again, which does no harm; the other way round they would be lost.

    Parameters
    ----------
    patient
        Wait for another process that does the same for this run. If not, what it leaves is for the next one who comes by: a
        broker that is slow to answer holds up one process, and not all.

    Returns
    -------
    int
        Messages sent.
    """
    sent = 0
    with db.transaction(engine) as session:
        # One at a time counts what is with the broker: two at once would both fill the same gap.
        lock = "SELECT pg_advisory_xact_lock" if patient else "SELECT pg_try_advisory_xact_lock"
        if session.scalar(sa.text(f"{lock}(hashtextextended('top up', :run))"), {"run": run_id}) is False:
            return 0
        queues = session.scalars(
            sa.text(
                "SELECT DISTINCT s.queue FROM run_steps s WHERE s.run_id = :run AND s.finished_at IS NULL"
                " AND (CAST(:queue AS text) IS NULL OR s.queue = :queue) ORDER BY 1"
            ),
            {"run": run_id, "queue": queue},
        ).all()
        for name in queues:
            rows = session.execute(_NEXT, {"run": run_id, "queue": name, "window": window}).scalars().all()
            for unit_id in rows:
                messenger.unit(name, unit_id)
            sent += len(rows)
    return sent


_NEXT = sa.text(
    "UPDATE work_units SET state = 'sent', sent_at = now() WHERE id = ANY (ARRAY("
    " SELECT id FROM work_units WHERE run_id = :run AND queue = :queue AND state = 'waiting'"
    " AND (not_before IS NULL OR not_before <= now())"
    " AND (SELECT outcome = 'running' FROM runs WHERE id = :run)"
    " ORDER BY id LIMIT greatest(:window - (SELECT count(*) FROM work_units"
    "   WHERE run_id = :run AND queue = :queue AND state = 'sent'), 0)"
    " FOR UPDATE SKIP LOCKED)) RETURNING id"
)


def claim(engine: sa.Engine, unit_id: int, me: Me, most_attempts: int) -> Claim:
    """Take a unit, or learn why it is not to be done. See `Claim`."""
    with db.transaction(engine) as session:
        # The lock first, and then what it is about: a row that was waited for would stand beside older ones of its run.
        locked = sa.text("SELECT FROM work_units WHERE id = :id FOR UPDATE")
        if session.execute(locked, {"id": unit_id}).one_or_none() is None:
            return Claim("elsewhere")
        row = session.execute(_LOCKED, {"id": unit_id, "silent": silent_s()}).one()
        unit = Unit(
            row.id, row.run_id, row.step, row.queue, row.key, row.payload, row.size, row.attempts + 1
        )  # fmt: skip
        if row.state not in OPEN:
            return Claim("over", unit)
        if row.outcome != "running":
            session.execute(
                sa.text("UPDATE work_units SET state = 'cancelled', finished_at = now() WHERE id = :id"),
                {"id": unit_id},
            )
            return Claim("over", unit)
        if row.state == "running" and _alive(row, me):
            return Claim("elsewhere")
        # The last try is watched. A worker may die of anything at any clip: only one that dies at the same clip twice
        # dies of it. So the first time there is one try more.
        died_at = row.counts.get("died_at")
        if row.attempts >= most_attempts and (row.doing is None or died_at is not None):
            return Claim("spent", replace(unit, doing=row.doing if row.doing == died_at else None))
        # Two that take the same work of two runs at once: the second one sees the first at it.
        session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": row.key})
        twin = session.execute(_TWIN, {"key": row.key, "id": unit_id, "silent": silent_s()}).one_or_none()
        if twin is not None and _alive(twin, me):
            # The same work for another run: when that is done, this is done with it.
            session.execute(
                sa.text(
                    "UPDATE work_units SET state = 'waiting', not_before = now() + make_interval(secs => :wait) WHERE id = :id"
                ),
                {"id": unit_id, "wait": _BUSY_ELSEWHERE_S},
            )
            return Claim("elsewhere")
        session.execute(
            sa.text(
                "UPDATE work_units SET state = 'running', attempts = attempts + 1, started_at = now(), doing = NULL,"
                " worker_id = :worker, pid = :pid,"
                " counts = CASE WHEN doing IS NULL THEN '{}' ELSE jsonb_build_object('died_at', doing) END WHERE id = :id"
            ),
            {"id": unit_id, "worker": me.worker_id, "pid": os.getpid()},
        )
        return Claim("todo", unit)


_WHO = (
    "u.id, u.pid, u.worker_id, w.host,"
    " w.stopped_at IS NULL AND w.seen_at > now() - make_interval(secs => :silent) AS heard_of"
)
_LOCKED = sa.text(
    "SELECT u.run_id, u.step, u.queue, u.key, u.payload, u.size, u.state, u.attempts, u.doing, u.counts,"
    f" r.outcome, {_WHO} FROM work_units u JOIN runs r ON r.id = u.run_id LEFT JOIN workers w ON w.id = u.worker_id"
    " WHERE u.id = :id"
)
_TWIN = sa.text(
    f"SELECT {_WHO} FROM work_units u LEFT JOIN workers w ON w.id = u.worker_id"
    " WHERE u.key = :key AND u.id <> :id AND u.state = 'running' LIMIT 1"
)


def _alive(row: Any, me: Me) -> bool:
    """Whether somebody is still at a running unit. A child that was killed leaves a worker that still beats."""
    if row.host == socket.gethostname():
        if row.pid == os.getpid():
            return row.id in me.in_work
        return bool(row.heard_of) and psutil.pid_exists(row.pid)
    return bool(row.heard_of)


def finish(
    engine: sa.Engine, unit: Unit, seconds: float, counts: Mapping[str, Any], *, alone: bool = False
) -> list[tuple[int, str]]:
    """Say that a unit is done, and with it those of other runs that are the same work.

    Parameters
    ----------
    alone
        Those of other runs are not done with it: it came to nothing that they could use.

    Returns
    -------
    list of (run id, step)
        Where a unit has ended: give them to `follow`.
    """
    with db.transaction(engine) as session:
        # In one order, whoever does it: two that end the same work at once do not wait for each other for ever.
        ids = session.scalars(
            sa.text(
                "SELECT id FROM work_units WHERE key = (SELECT key FROM work_units WHERE id = :id)"
                " AND (state IN ('waiting', 'sent', 'running') AND NOT :alone OR id = :id) ORDER BY id FOR UPDATE"
            ),
            {"id": unit.id, "alone": alone},
        ).all()
        rows = session.execute(
            sa.text(
                "UPDATE work_units SET state = 'done', finished_at = now(), doing = NULL, reason = NULL, traceback = NULL,"
                " started_at = coalesce(started_at, now()),"
                " seconds = CASE WHEN id = :id THEN :seconds END,"
                " counts = CASE WHEN id = :id THEN CAST(:counts AS jsonb) ELSE '{}' END"
                " WHERE id = ANY (:ids) RETURNING run_id, step"
            ),
            {"id": unit.id, "ids": list(ids), "seconds": seconds, "counts": _dumps(counts)},
        )
        return sorted({(row.run_id, row.step) for row in rows})


def _dumps(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value))


def release(engine: sa.Engine, unit: Unit, reason: str, traceback: str | None, wait: float) -> None:
    """Put a unit back after a try that failed; it is sent again in `wait` seconds."""
    with db.transaction(engine) as session:
        session.execute(
            sa.text(
                "UPDATE work_units SET state = 'waiting', not_before = now() + make_interval(secs => :wait), doing = NULL,"
                " reason = :reason, traceback = :traceback WHERE id = :id AND state IN ('sent', 'running')"
            ),
            {"id": unit.id, "reason": storable(reason), "traceback": _stored(traceback), "wait": wait},
        )


def _stored(text: str | None) -> str | None:
    return None if text is None else storable(text)


def count_try(session: Session, unit_id: int, reason: str, me: Me | None = None) -> Unit | None:
    """Count a try of a unit whose message could not be used: it waits to be sent again.

    Parameters
    ----------
    me
        The process that failed at it before it could begin; without one only a unit that nobody is at is meant.

    Returns
    -------
    Unit or None
        None where there is no such unit, it is over, or somebody else is at it.
    """
    row = session.execute(
        sa.text(
            "UPDATE work_units SET state = 'waiting', not_before = NULL, attempts = attempts + 1, reason = :reason"
            " WHERE id = :id AND (state = 'sent' OR state = 'running' AND worker_id = :worker AND pid = :pid)"
            " RETURNING id, run_id, step, queue, key, payload, size, attempts"
        ),
        {"id": unit_id, "reason": storable(reason), "worker": me and me.worker_id, "pid": os.getpid()},
    ).one_or_none()
    return None if row is None else Unit(**row._mapping)


def put_back(engine: sa.Engine, unit: Unit, reason: str, wait: float) -> None:
    """Put a unit back that this worker cannot do: no try is counted."""
    with db.transaction(engine) as session:
        session.execute(
            sa.text(
                "UPDATE work_units SET state = 'waiting', not_before = now() + make_interval(secs => :wait),"
                " attempts = greatest(attempts - 1, 0), reason = :reason WHERE id = :id AND state = 'running'"
            ),
            {"id": unit.id, "reason": reason, "wait": wait},
        )


def fail(session: Session, unit: Unit, reason: str, traceback: str | None) -> bool:
    """Give a unit up; False if it is over already."""
    given_up = session.execute(
        sa.text(
            "UPDATE work_units SET state = 'failed', finished_at = now(), reason = :reason, traceback = :traceback"
            " WHERE id = :id AND state IN ('waiting', 'sent', 'running') RETURNING id"
        ),
        {"id": unit.id, "reason": storable(reason), "traceback": _stored(traceback)},
    )
    return given_up.one_or_none() is not None


def split(session: Session, unit: Unit, parts: Iterable[NewUnit], attempts: int) -> None:
    """Put smaller units in the place of one that kills its workers; `attempts` are those they begin with."""
    session.execute(
        sa.text("UPDATE work_units SET state = 'cancelled', finished_at = now(), reason = 'split' WHERE id = :id"),
        {"id": unit.id},
    )
    new = list(parts)
    add_units(session, unit.run_id, unit.step, unit.queue, new)
    session.execute(
        sa.text(
            "UPDATE work_units SET attempts = :attempts WHERE run_id = :run AND step = :step AND key = ANY (:keys)"
            " AND state = 'waiting'"
        ),
        {"run": unit.run_id, "step": unit.step, "keys": [part.key for part in new], "attempts": attempts},
    )


def next_of(engine: sa.Engine, queues: Sequence[str]) -> Unit | None:
    """The unit that is next in some queues, without taking it."""
    with db.reading(engine) as session:
        row = session.execute(
            sa.text(
                "SELECT u.id, u.run_id, u.step, u.queue, u.key, u.payload, u.size, u.attempts FROM work_units u"
                " JOIN runs r ON r.id = u.run_id AND r.outcome = 'running'"
                " WHERE u.state IN ('waiting', 'sent') AND u.queue = ANY (:queues) ORDER BY u.id LIMIT 1"
            ),
            {"queues": list(queues)},
        ).one_or_none()
    return None if row is None else Unit(**row._mapping)


def mark(engine: sa.Engine, unit: Unit, doing: str | None) -> None:
    """Write down what a unit is at, so that it is known if its worker dies of it."""
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE work_units SET doing = :doing WHERE id = :id"), {"id": unit.id, "doing": doing})


def follow(engine: sa.Engine, ended: Iterable[tuple[int, str]], messenger: Messenger, window: int) -> None:
    """After units have ended: the next ones are sent, and where a step has none left its run is told to go on."""
    for run_id, step in ended:
        with db.reading(engine) as session:
            row = session.execute(
                sa.text(
                    "SELECT queue, EXISTS (SELECT FROM work_units u WHERE u.run_id = s.run_id AND u.step = s.step"
                    " AND u.state IN ('waiting', 'sent', 'running')) AS open FROM run_steps s"
                    " WHERE run_id = :run AND step = :step"
                ),
                {"run": run_id, "step": step},
            ).one_or_none()
        if row is None:
            continue
        if row.open:
            top_up(engine, run_id, messenger, window=window, queue=row.queue, patient=False)
        else:
            messenger.advance(run_id)


# ---------------------------------------------------------------------- what was lost


class Swept(NamedTuple):
    """What `sweep` has put right."""

    abandoned: int
    """Units whose worker is silent."""
    unsent: int
    """Units whose message is not with the broker any more."""
    sent: int
    """Messages sent."""
    nudged: int
    """Runs that were told to go on."""


_SWEEP_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(hashtext('and_platform:sweep'))")


def sweep(
    engine: sa.Engine, messenger: Messenger, depths: Callable[[], Mapping[str, int]], *, window: int
) -> Swept | None:
    """Put right what no message will: units of workers that are silent, messages that the broker has lost, runs that wait.

    One of the workers does this every few seconds; None is what another one gets that does it at the same time.

    Parameters
    ----------
    depths
        Messages that wait in each queue. Asked for only where a message may be lost.
    """
    with db.transaction(engine) as session:
        if not session.scalar(_SWEEP_LOCK):
            return None
        abandoned = session.execute(_ABANDONED, {"silent": silent_s()}).scalars().all()
        stale = session.execute(
            sa.text(
                "SELECT DISTINCT queue FROM work_units WHERE state = 'sent' AND sent_at < now() - make_interval(secs => :lost)"
            ),
            {"lost": lost_s()},
        ).scalars()
        queues = set(stale)
        unsent: Collection[int] = []
        if queues:
            waiting = depths()
            empty = [queue for queue in queues if not waiting.get(queue)]
            unsent = (
                session.execute(
                    sa.text(
                        "UPDATE work_units SET state = 'waiting', not_before = NULL WHERE id IN (SELECT id FROM work_units"
                        " WHERE state = 'sent' AND queue = ANY (:queues)"
                        " AND sent_at < now() - make_interval(secs => :lost) ORDER BY id FOR UPDATE SKIP LOCKED) RETURNING id"
                    ),
                    {"queues": empty, "lost": lost_s()},
                )
                .scalars()
                .all()
            )
        runs = session.scalars(sa.text("SELECT id FROM runs WHERE distributed AND outcome = 'running'")).all()
    sent, nudged = 0, 0
    for run_id in runs:
        sent += top_up(engine, run_id, messenger, window=window, patient=False)
        with db.reading(engine) as session:
            still = session.scalar(_STILL, {"run": run_id, "lost": lost_s()})
        if still and not depths().get("db"):  # what waits there may be the very message
            messenger.advance(run_id)
            nudged += 1
    return Swept(len(abandoned), len(unsent), sent, nudged)


_ABANDONED = sa.text(
    "UPDATE work_units SET state = 'waiting', not_before = NULL,"
    " reason = coalesce(reason, 'the worker died at it, or its machine is out of reach') WHERE id IN ("
    " SELECT u.id FROM work_units u LEFT JOIN workers w ON w.id = u.worker_id WHERE u.state = 'running'"
    " AND (w.id IS NULL OR w.stopped_at IS NOT NULL OR w.seen_at < now() - make_interval(secs => :silent))"
    " ORDER BY u.id FOR UPDATE OF u SKIP LOCKED) RETURNING id"
)

# A run of which nothing is open, or a step that is over and not marked so: the message to go on was lost.
_STILL = sa.text(
    "SELECT NOT EXISTS (SELECT FROM work_units WHERE run_id = :run AND state IN ('waiting', 'sent', 'running'))"
    " AND coalesce((SELECT max(finished_at) FROM work_units WHERE run_id = :run),"
    "  (SELECT started_at FROM runs WHERE id = :run)) < now() - make_interval(secs => :lost)"
    " OR EXISTS (SELECT FROM run_steps s WHERE s.run_id = :run AND s.finished_at IS NULL"
    "  AND s.planned_at < now() - make_interval(secs => :lost) AND NOT EXISTS ("
    "   SELECT FROM work_units u WHERE u.run_id = s.run_id AND u.step = s.step AND"
    "   (u.state IN ('waiting', 'sent', 'running') OR u.finished_at > now() - make_interval(secs => :lost))))"
)


def children_lost(engine: sa.Engine, worker_id: int) -> int:
    """Put back the units of children of this worker that are gone, where no message has come back for them.

    Only the worker's own host can know it: called by the worker itself. Returns how many there were.
    """
    with db.transaction(engine) as session:
        rows = session.execute(
            sa.text(
                "SELECT id, pid FROM work_units WHERE worker_id = :worker AND state = 'running'"
                " AND started_at < now() - make_interval(secs => :lost)"
            ),
            {"worker": worker_id, "lost": lost_s()},
        ).all()
        gone = [row.id for row in rows if not psutil.pid_exists(row.pid)]
        if gone:
            session.execute(
                sa.text(
                    "UPDATE work_units SET state = 'waiting', not_before = NULL,"
                    " reason = coalesce(reason, 'the process that did it died') WHERE id IN (SELECT id FROM work_units"
                    " WHERE id = ANY (:ids) AND state = 'running' ORDER BY id FOR UPDATE SKIP LOCKED)"
                ),
                {"ids": gone},
            )
    return len(gone)
