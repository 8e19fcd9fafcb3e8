"""A dissection that somebody disturbs: at given moments a process is killed, and whoever ended is started again.

Who is started again: workers and brokers by this module, as a supervisor does (systemd, Kubernetes); the embedded Postgres
too; the client by its own command, or by `andp runs watch`. A backend of Postgres and a worker's child are left to the
server and to the worker.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

from tests.workers.cluster import Cluster, Process

VICTIMS = ("child", "worker", "broker", "postgres", "backend", "client")
MOST_DOWN_S = 3.0
"""Seconds for which a broker or Postgres is gone at most."""


@dataclass
class Storm:
    """What has happened so far."""

    cluster: Cluster
    draw: random.Random
    hang_s: float = 240.0
    """Seconds without a finished unit after which a run counts as hanging."""
    tell: Callable[[str], None] = lambda _: None
    kills: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    """Steps that were at work when something was killed."""
    restarts: int = 0
    """Workers that had ended: killed, or because they could not start without what was killed."""
    clients: int = 0
    """Clients begun."""
    _deck: list[str] = field(default_factory=list)

    def victim(self) -> str:
        """The next one: all kinds come before one comes again."""
        there = [kind for kind in VICTIMS if kind != "broker" or self.cluster.broker is not None]
        self._deck = self._deck or self.draw.sample(there, len(there))
        return self._deck.pop()

    def dissect(self, command: Sequence[str], moments: Sequence[int], victims: Sequence[str] = ()) -> None:
        """Do `andp COMMAND` to its end; when as many units are done as the next moment says, something is killed.

        Parameters
        ----------
        moments
            Numbers of units, in order. Those that the run does not come to are passed over.
        victims
            Who is killed at each moment; where they end, chance says.

        Raises
        ------
        AssertionError
            Nothing goes on any more.
        """
        cluster = self.cluster
        moments, victims = list(moments), list(victims)
        before = self._done() or 0
        client = cluster.start(*command)
        self.clients += 1
        last, heard = -1, time.monotonic()
        while client.running or client.popen.returncode:
            self.restarts += cluster.mend()
            if not client.running:
                client = self._attach(command)
                self.clients += 1
            done = self._done()
            if done is not None and done != last:
                last, heard = done, time.monotonic()
            assert time.monotonic() - heard < self.hang_s, (
                f"no unit in {self.hang_s:.0f} s\n{self.state()}\n{cluster.logs()}"
            )
            if moments and last - before >= moments[0]:
                time.sleep(self.draw.random())
                victim = victims[0] if victims else self.victim()
                if self.kill(victim, client):
                    del moments[0], victims[:1]
            time.sleep(0.05)

    def kill(self, victim: str, client: Process) -> bool:
        """SIGKILL to one of a kind; False if there is none at the moment."""
        cluster, draw = self.cluster, self.draw
        at_work = sorted({step for step, _ in self._at_work()})
        match victim:
            case "child":
                children = {child.pid: child for worker in cluster.workers for child in worker.children()}
                busy = [pid for _, pid in self._at_work() if pid in children]
                if not children:
                    return False
                children[draw.choice(busy or sorted(children))].kill()
            case "worker":
                draw.choice([worker for worker in cluster.workers if worker.running]).kill(children=draw.random() < 0.5)
            case "broker":
                assert cluster.broker is not None
                cluster.broker.kill()
                time.sleep(MOST_DOWN_S * draw.random())
                cluster.broker.start()
            case "postgres":
                cluster.kill_postgres()
                time.sleep(MOST_DOWN_S * draw.random())
                cluster.start_postgres()
            case "backend":
                backends = self._rows(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'test'"
                )
                if not backends:
                    return False
                cluster.kill_backend(draw.choice(backends)[0])
            case _:
                if not client.running:
                    return False
                client.kill()
        self.kills[victim] += 1
        self.steps.update(at_work or ["between steps"])
        self.tell(f"killed: {victim}, at {', '.join(at_work) or 'nothing'}")
        return True

    def _attach(self, command: Sequence[str]) -> Process:
        """The client again: by the same command, or by watching the run where there is one."""
        running = self._rows("SELECT id FROM runs WHERE distributed AND outcome = 'running' ORDER BY id DESC LIMIT 1")
        if running and self.draw.random() < 0.5:
            return self.cluster.start("runs", "watch", str(running[0][0]))
        return self.cluster.start(*command)

    # ------------------------------------------------------------------ looking

    def _rows(self, query: str) -> list[tuple[object, ...]]:
        """Rows, or none where the database does not answer."""
        try:
            return self.cluster.ask(query)
        except psycopg.Error:
            return []

    def _done(self) -> int | None:
        """Units done, of all runs."""
        found = self._rows("SELECT count(*) FILTER (WHERE state = 'done') FROM work_units")
        return int(str(found[0][0])) if found else None

    def _at_work(self) -> list[tuple[object, ...]]:
        """Step and process of each unit at work."""
        return self._rows("SELECT step, pid FROM work_units WHERE state = 'running' ORDER BY id")

    def state(self) -> str:
        """How things stand, for who looks for the cause of a hang."""
        queries = (
            "SELECT id, outcome, error FROM runs ORDER BY id DESC LIMIT 2",
            "SELECT step, state, count(*), min(id), max(attempts), min(reason), max(sent_at), max(started_at), max(not_before)"
            " FROM work_units WHERE state <> 'done' GROUP BY 1, 2",
            "SELECT id, step, state, attempts, doing, pid, reason, left(traceback, 2000) FROM work_units"
            " WHERE state IN ('failed', 'running') ORDER BY id LIMIT 5",
            "SELECT id, name, pid, seen_at, stopped_at, now() FROM workers ORDER BY id DESC LIMIT 4",
            "SELECT application_name, state, wait_event, left(query, 80) FROM pg_stat_activity"
            " WHERE datname = current_database()",
        )  # fmt: skip
        return "\n".join(str(row) for query in queries for row in self._rows(query))
