"""Workers as rows: who they are, and when they were last heard of."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import sqlalchemy as sa

from and_platform import db
from and_platform.backends import registry
from and_platform.schema import Worker
from and_platform.services.distribution.ledger import silent_s
from and_platform.services.provenance import versions


def enlist(engine: sa.Engine, name: str, queues: Sequence[str], concurrency: int, device: str) -> int:
    """Write down that this process is a worker from now on; returns its id."""
    with db.transaction(engine) as session:
        worker = Worker(
            name=name, host=socket.gethostname(), pid=os.getpid(), queues=list(queues), concurrency=concurrency,
            device=device, version=versions().get("and-platform", "unknown"), packages=packages(),
        )  # fmt: skip
        session.add(worker)
        session.flush()
        return worker.id


def beat(engine: sa.Engine, worker_id: int) -> None:
    """Say that a worker is alive."""
    with db.transaction(engine) as session:
        session.execute(sa.update(Worker).where(Worker.id == worker_id).values(seen_at=sa.func.now(), stopped_at=None))


def discharge(engine: sa.Engine, worker_id: int) -> None:
    """Say that a worker has stopped."""
    with db.transaction(engine) as session:
        session.execute(sa.update(Worker).where(Worker.id == worker_id).values(stopped_at=sa.func.now()))


@cache
def packages() -> list[str]:
    """Optional packages of backends that are installed here."""
    needed = {needs for role in registry.ROLES for needs in registry.needs(role).values() if needs}
    return sorted(name for name in needed if find_spec(name) is not None)


def alive(engine: sa.Engine) -> list[dict[str, object]]:
    """The workers that are heard of, one row each."""
    with db.reading(engine) as session:
        rows = session.execute(
            sa.text(
                "SELECT w.id AS worker, w.name, w.host, w.pid, w.queues, w.concurrency, w.device, w.version, w.packages,"
                " w.started_at, w.seen_at, (SELECT count(*) FROM work_units u WHERE u.worker_id = w.id"
                " AND u.state = 'running') AS running FROM workers w"
                " WHERE w.stopped_at IS NULL AND w.seen_at > now() - make_interval(secs => :silent) ORDER BY w.id"
            ),
            {"silent": silent_s()},
        )
        return [dict(row._mapping) for row in rows]


def eldest(engine: sa.Engine) -> int | None:
    """The id of the worker that is heard of and has been there for longest."""
    with db.reading(engine) as session:
        found: int | None = session.scalar(
            sa.text(
                "SELECT min(id) FROM workers WHERE stopped_at IS NULL AND seen_at > now() - make_interval(secs => :silent)"
            ),
            {"silent": silent_s()},
        )
        return found


def who_has(engine: sa.Engine, queue: str, package: str) -> list[str]:
    """Names of live workers of a queue that have a package."""
    return [
        str(row["name"])
        for row in alive(engine)
        if queue in list(row["queues"]) and package in list(row["packages"])  # type: ignore[call-overload]
    ]
