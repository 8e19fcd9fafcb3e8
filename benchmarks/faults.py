"""Dissections by real workers while anything is killed, and what became of their rows.

    PYTHONPATH=. python benchmarks/faults.py --kills 100 --brokers pgmq,rabbitmq,redis --seed 0
    PYTHONPATH=. python benchmarks/faults.py --kills 10 --brokers redis --results faults.json

For each broker: Postgres in a temporary folder, the broker, two workers with two children each, a client that waits for its
dissection. A victim drawn by chance (a worker's child, a worker, the broker, Postgres, one backend of it, the client) is
killed by SIGKILL after a number of finished units drawn by chance, and up to a second more; what ended is started again as
a supervisor would, and the client attaches anew. So on with one data set after the other until enough were killed. Then all
rows are compared with those of the same dissections done by the same workers, undisturbed: `tests/workers/rows.py` says how.

A unit may be tried 30 times here instead of 3, for kills every few seconds are no sign that a unit is to blame.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from and_platform.api import Platform
from and_platform.errors import AndpError
from tests.workers import backends, rows
from tests.workers.cluster import Cluster, Process
from tests.workers.servers import RabbitMQ, Redis, Server

VICTIMS = ("child", "worker", "broker", "postgres", "backend", "client")
HANG_S = 240.0
"""Seconds without a finished unit after which a run counts as hanging."""

SETTINGS = {
    "ANDP_UNIT_SIZE": "0.004", "ANDP_MOST_ATTEMPTS": "30", "ANDP_SILENT_AFTER": "6", "ANDP_QUEUE_WINDOW": "20",
    "ANDP_BATCH_SIZE": "64", "ANDP_DECODE_PROCESSES": "1",
}  # fmt: skip
WORKERS = (("--concurrency", "2"), ("--concurrency", "2"))


@dataclass
class Told:
    """What came of a broker."""

    broker: str
    runs: int = 0
    units: int = 0
    retries: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    """Steps that were at work when something was killed."""
    restarts: int = 0
    """Workers that had ended, killed or because they could not do without what was killed."""
    commands: int = 0
    """Clients begun."""
    seconds: float = 0.0
    undisturbed: float = 0.0
    deadlocks: int = 0
    difference: rows.Difference = field(default_factory=rows.Difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, shared out evenly between the brokers")
    parser.add_argument("--brokers", default="pgmq,rabbitmq,redis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=600, help="clips of a data set")
    parser.add_argument("--each", type=int, default=10, help="kills for each dissection")
    parser.add_argument("--results", type=Path, help="write what was found (JSON)")
    options = parser.parse_args()
    brokers = options.brokers.split(",")
    share = [len(part) for part in np.array_split(range(options.kills), len(brokers))]
    n_sets = -(-max(share) // options.each)
    with Cluster(environment=SETTINGS) as cluster:
        prepare(cluster, n_sets, options.clips)
        units, took = undisturbed(cluster, n_sets)
        expected = rows.read(cluster.engine("undisturbed"))
        found = []
        for name, kills in zip(brokers, share, strict=True):
            draw = random.Random(f"{options.seed} {name}")
            told = disturbed(cluster, name, kills, options.each, units, draw)
            told.undisturbed = sum(took)
            told.difference = rows.compare(expected, rows.read(cluster.engine(name)))
            cluster.engine(name).dispose()
            print(f"{name}: {told.difference.told()}", file=sys.stderr, flush=True)
            found.append(told)
    show(found)
    if options.results:
        options.results.write_text(json.dumps([as_json(told) for told in found], indent=1) + "\n")
    sys.exit(any(told.difference for told in found))


# ---------------------------------------------------------------------- what is dissected


def prepare(cluster: Cluster, n_sets: int, n_clips: int) -> None:
    """The database `base`: data sets set0, set1 … of short noises and tones, and a tiny network."""
    cluster.tell("CREATE DATABASE base", "postgres")
    cluster.database = "base"
    cluster.run("db", "upgrade")
    platform = Platform(cluster.engine("base"))
    for number in range(n_sets):
        platform.ingest(backends.sounds(cluster.folder / f"set{number}", n_clips, number), processes=1)
    platform.add_network("tiny", backends.NETWORK)
    cluster.engine("base").dispose()


def dissection(number: int) -> tuple[str, ...]:
    """The command for a data set: not two of them the same."""
    return (
        "dissect", "tiny", "--dataset", f"set{number}", "--captioner", ("describer", "joined")[number % 2],
        "--top-k", str(3 + number % 4), "--sentence-encoder", "letters", "--text-encoder", "letters", "--threshold", "0.9",
        "--distributed",
    )  # fmt: skip


def new_database(cluster: Cluster, name: str) -> None:
    """A copy of `base` for one broker."""
    cluster.tell(f"CREATE DATABASE {name} TEMPLATE base", "postgres")
    cluster.database = name


# ---------------------------------------------------------------------- runs


def undisturbed(cluster: Cluster, n_sets: int) -> tuple[list[int], list[float]]:
    """Units and seconds of each dissection where nobody is killed."""
    new_database(cluster, "undisturbed")
    for arguments in WORKERS:
        cluster.start_worker(*arguments)
    units, seconds = [], []
    for number in range(n_sets):
        began = time.monotonic()
        cluster.run(*dissection(number), seconds=600)
        seconds.append(time.monotonic() - began)
        units.append(done_units(cluster))
        print(f"undisturbed: set{number}, {units[-1]} units, {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    cluster.stop_workers()
    return units, seconds


def disturbed(cluster: Cluster, name: str, kills: int, each: int, units: list[int], draw: random.Random) -> Told:
    """The same with kills."""
    server: Server | None = {"pgmq": lambda: None, "rabbitmq": RabbitMQ, "redis": Redis}[name]()
    cluster.broker = server
    if server is not None:
        server.start()
    new_database(cluster, name)
    told = Told(name)
    try:
        for arguments in WORKERS:
            cluster.start_worker(*arguments)
        began = time.monotonic()
        for number in range(len(units)):
            # Those that came too late for one dissection are for the next.
            due = min((number + 1) * each, kills) - told.kills.total()
            one(cluster, number, sorted(draw.randrange(units[number]) for _ in range(due)), told, draw)
            told.runs += 1
        told.seconds = time.monotonic() - began
        ((told.units, told.retries),) = cluster.ask(
            "SELECT count(*) FILTER (WHERE state = 'done'), sum(greatest(attempts - 1, 0)) FILTER (WHERE state = 'done')"
            " FROM work_units"
        )
        ((told.deadlocks,),) = cluster.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    finally:
        cluster.stop_workers()
        if server is not None:
            server.close()
        cluster.broker = None
    return told


def one(cluster: Cluster, number: int, moments: list[int], told: Told, draw: random.Random) -> None:
    """One dissection to its end; something is killed whenever as many units are done as the next moment says."""
    before = done_units(cluster, new=False)
    client = cluster.start(*dissection(number))
    told.commands += 1
    deck: list[str] = []
    last, heard = -1, time.monotonic()
    while True:
        told.restarts += cluster.mend()
        if not client.running:
            if client.popen.returncode == 0:
                return
            client = attach(cluster, number, draw)
            told.commands += 1
        done = looked(cluster, before)
        if done is not None and done != last:
            last, heard = done, time.monotonic()
        if time.monotonic() - heard > HANG_S:
            raise SystemExit(f"{told.broker}, set{number}: no unit was done in {HANG_S:.0f} s\n{state(cluster)}\n{cluster.logs(30)}")
        if moments and done is not None and done >= moments[0]:
            moments.pop(0)
            time.sleep(draw.random())
            there = [victim for victim in VICTIMS if victim != "broker" or cluster.broker is not None]
            deck = deck or draw.sample(there, len(there))
            victim = deck.pop()
            at_work = steps_at_work(cluster)
            if kill(cluster, victim, client, draw):
                told.kills[victim] += 1
                told.steps.update(at_work or ["between steps"])
                print(f"{told.broker}, set{number}: {victim} at {done} units, {', '.join(at_work)}", file=sys.stderr, flush=True)
            else:
                moments.insert(0, done)  # there was none at that moment
        time.sleep(0.05)


def attach(cluster: Cluster, number: int, draw: random.Random) -> Process:
    """The client again: by the same command, or by watching the run where there is one."""
    try:
        running = cluster.ask("SELECT id FROM runs WHERE distributed AND outcome = 'running' ORDER BY id DESC LIMIT 1")
    except psycopg.Error:
        running = []
    if running and draw.random() < 0.5:
        return cluster.start("runs", "watch", str(running[0][0]))
    return cluster.start(*dissection(number))


def kill(cluster: Cluster, victim: str, client: Process, draw: random.Random) -> bool:
    """Kill one of a kind, and start it again where nobody else does; False if there is none."""
    match victim:
        case "child":
            running = [worker for worker in cluster.workers if worker.children()]
            busy = [child for worker in running for child in worker.children() if child.pid in pids_at_work(cluster)]
            every = busy or [child for worker in running for child in worker.children()]
            if not every:
                return False
            draw.choice(every).kill()
        case "worker":
            alive = [worker for worker in cluster.workers if worker.running]
            draw.choice(alive).kill(children=draw.random() < 0.5)
        case "broker":
            assert cluster.broker is not None
            cluster.broker.kill()
            time.sleep(3 * draw.random())
            cluster.broker.start()
        case "postgres":
            cluster.kill_postgres()
            time.sleep(3 * draw.random())
            cluster.start_postgres()
        case "backend":
            backends = backends_at_work(cluster)
            if not backends:
                return False
            cluster.kill_backend(draw.choice(backends))
        case _:
            if not client.running:
                return False
            client.kill()
    return True


# ---------------------------------------------------------------------- looking


def done_units(cluster: Cluster, *, new: bool = True) -> int:
    """Units done: of the latest run, or of all."""
    latest = " WHERE run_id = (SELECT max(run_id) FROM work_units)" if new else ""
    return int(cluster.ask(f"SELECT count(*) FILTER (WHERE state = 'done') FROM work_units{latest}")[0][0])


def looked(cluster: Cluster, before: int) -> int | None:
    """Units done since, or None where the database does not answer."""
    try:
        return done_units(cluster, new=False) - before
    except psycopg.Error:
        return None


def steps_at_work(cluster: Cluster) -> list[str]:
    """Steps of which a unit is at work."""
    try:
        return [row[0] for row in cluster.ask("SELECT DISTINCT step FROM work_units WHERE state = 'running' ORDER BY 1")]
    except psycopg.Error:
        return []


def pids_at_work(cluster: Cluster) -> set[int]:
    """Processes that do a unit."""
    try:
        return {row[0] for row in cluster.ask("SELECT pid FROM work_units WHERE state = 'running'")}
    except psycopg.Error:
        return set()


def backends_at_work(cluster: Cluster) -> list[int]:
    """Backends of workers."""
    try:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'test'"
        return [row[0] for row in cluster.ask(query)]
    except psycopg.Error:
        return []


def state(cluster: Cluster) -> str:
    """How things stand, for who looks for the cause of a hang."""
    queries = (
        "SELECT id, outcome, error FROM runs ORDER BY id DESC LIMIT 2",
        "SELECT step, state, count(*), min(id), max(attempts), min(reason), max(sent_at), max(started_at), max(not_before)"
        " FROM work_units WHERE state <> 'done' GROUP BY 1, 2",
        "SELECT id, name, pid, seen_at, stopped_at FROM workers ORDER BY id DESC LIMIT 4",
        "SELECT application_name, state, wait_event, left(query, 80) FROM pg_stat_activity WHERE datname = current_database()",
    )  # fmt: skip
    return "\n".join(str(row) for query in queries for row in cluster.ask(query))


# ---------------------------------------------------------------------- telling


def show(found: list[Told]) -> None:
    head = (
        "broker", "runs", *VICTIMS, "kills", "units", "more tries", "restarts", "clients", "rows", "duplicates", "losses",
        "different", "deadlocks", "seconds", "undisturbed",
    )  # fmt: skip
    lines = [
        (
            told.broker, told.runs, *(told.kills[victim] for victim in VICTIMS), told.kills.total(), told.units,
            told.retries, told.restarts, told.commands, told.difference.rows, told.difference.duplicates.total(),
            told.difference.lost.total(), told.difference.different.total(), told.deadlocks, round(told.seconds),
            round(told.undisturbed),
        )
        for told in found
    ]  # fmt: skip
    if len(lines) > 1:
        lines.append(("all", *(sum(column) for column in list(zip(*lines, strict=True))[1:])))
    print("| " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) - 1))
    for line in lines:
        print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line) + " |")
    steps: Counter[str] = sum((told.steps for told in found), Counter())
    print("\nat work when something was killed: " + ", ".join(f"{step} {n}" for step, n in steps.most_common()))


def as_json(told: Told) -> dict[str, Any]:
    difference = told.difference
    return {
        **{name: value for name, value in vars(told).items() if name != "difference"},
        "rows": difference.rows, "duplicates": difference.duplicates.total(), "losses": difference.lost.total(),
        "different": difference.different.total(), "examples": difference.examples,
    }  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except AndpError as error:
        raise SystemExit(str(error)) from error
