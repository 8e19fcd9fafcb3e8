"""Dissections by real workers while anything is killed, every command that computes killed, and what became of their rows.

    PYTHONPATH=. python benchmarks/faults.py --kills 100 --brokers pgmq,rabbitmq,redis --seed 0
    PYTHONPATH=. python benchmarks/faults.py --kills 10 --brokers redis --results faults.json
    PYTHONPATH=. python benchmarks/faults.py --commands all --kills 336 --results commands.json
    PYTHONPATH=. python benchmarks/faults.py --commands ingest,report --kills 20

For each broker: Postgres in a temporary folder, the broker, two workers with two children each, a client that waits for its
dissection. A victim drawn by chance (a worker's child, a worker with or without its children, the broker, Postgres, one
backend of it, the client) is killed by SIGKILL after a number of finished units drawn by chance, and up to a second more;
what ended is started again as a supervisor would, and the client attaches anew. So on with one data set after the other.
Then all rows are compared with those of the same dissections done by the same workers, undisturbed: `tests/workers/rows.py`
says how.

A unit may be tried 30 times here instead of 3, for kills every few seconds are no sign that a unit is to blame, and a worker
is taken for dead after 6 seconds instead of 30, so that more kills go into an hour.

With `--commands`: each command is killed at moments and at statements drawn by chance, once or twice, from the database that
it finds in an undisturbed run of all of them; then the same command is run again, and rows, tables, indexes and files are
compared. `tests/workers/commands.py` says how. With `--results` it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from and_platform.api import Platform
from tests.workers import backends, commands, rows
from tests.workers.cluster import Cluster
from tests.workers.servers import RabbitMQ, Redis, Server
from tests.workers.storm import VICTIMS, Storm

BROKERS: dict[str, Callable[[], Server | None]] = {"pgmq": lambda: None, "rabbitmq": RabbitMQ, "redis": Redis}
SETTINGS = {
    "ANDP_UNIT_SIZE": "0.004", "ANDP_MOST_ATTEMPTS": "30", "ANDP_SILENT_AFTER": "6", "ANDP_QUEUE_WINDOW": "20",
    "ANDP_BATCH_SIZE": "64", "ANDP_DECODE_PROCESSES": "1",
}  # fmt: skip
WORKERS = (("--concurrency", "2"), ("--concurrency", "2"))


@dataclass
class Told:
    """What came of a broker."""

    broker: str
    kills: Counter[str]
    steps: Counter[str]
    restarts: int
    clients: int
    runs: int
    units: int
    retries: int
    deadlocks: int
    seconds: float
    undisturbed: float
    difference: rows.Difference = field(default_factory=rows.Difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, shared out evenly between the brokers")
    parser.add_argument("--brokers", default="pgmq,rabbitmq,redis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=600, help="clips of a data set")
    parser.add_argument("--each", type=int, default=12, help="kills for each dissection")
    parser.add_argument("--results", type=Path, help="write what was found (JSON)")
    parser.add_argument("--commands", help="kill these commands, or all of them, instead of dissections")
    options = parser.parse_args()
    if options.commands:
        wanted = () if options.commands == "all" else options.commands.split(",")
        sys.exit(kill_commands(wanted, options.kills, options.seed, options.results))
    brokers = options.brokers.split(",")
    share = [len(part) for part in np.array_split(range(options.kills), len(brokers))]
    n_sets = -(-max(share) // options.each)
    found = []
    with Cluster(environment=SETTINGS) as cluster:
        prepare(cluster, n_sets, options.clips)
        units, took = undisturbed(cluster, n_sets)
        expected = rows.read(cluster.engine("undisturbed"))
        for name, kills in zip(brokers, share, strict=True):
            told = disturbed(cluster, name, kills, options.each, units, random.Random(f"{options.seed} {name}"))
            told.undisturbed = took
            told.difference = rows.compare(expected, rows.read(cluster.engine(name)))
            cluster.engine(name).dispose()
            note(f"{name}: {told.difference.told()}")
            found.append(told)
    show(found)
    if options.results:
        options.results.write_text(json.dumps([as_json(told) for told in found], indent=1) + "\n")
    sys.exit(any(told.difference for told in found))


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- what is dissected


def prepare(cluster: Cluster, n_sets: int, n_clips: int) -> None:
    """The database `base`: data sets set0, set1 … of short noises and tones, and a tiny network."""
    cluster.new_database("base")
    cluster.run("db", "upgrade")
    platform = Platform(cluster.engine("base"))
    for number in range(n_sets):
        platform.ingest(backends.sounds(cluster.folder / f"set{number}", n_clips, number), processes=1)
    platform.add_network("tiny", backends.NETWORK)
    cluster.engine("base").dispose()


def dissection(number: int) -> tuple[str, ...]:
    """The command for a data set: neighbours are not the same."""
    return (
        "dissect", "tiny", "--dataset", f"set{number}", "--captioner", ("describer", "joined")[number % 2],
        "--top-k", str(3 + number % 4), "--sentence-encoder", "letters", "--text-encoder", "letters", "--threshold", "0.9",
        "--distributed",
    )  # fmt: skip


# ---------------------------------------------------------------------- runs


def undisturbed(cluster: Cluster, n_sets: int) -> tuple[list[int], float]:
    """Units of each dissection where nobody is killed, and seconds of all."""
    cluster.new_database("undisturbed", "base")
    for arguments in WORKERS:
        cluster.start_worker(*arguments)
    units, began = [], time.monotonic()
    for number in range(n_sets):
        cluster.run(*dissection(number), seconds=900)
        latest = "SELECT count(*) FROM work_units WHERE run_id = (SELECT max(run_id) FROM work_units)"
        units.append(int(cluster.ask(latest)[0][0]))
        note(f"undisturbed: set{number}, {units[-1]} units, {time.monotonic() - began:.0f} s")
    took = time.monotonic() - began
    cluster.stop_workers()
    return units, took


def disturbed(cluster: Cluster, name: str, kills: int, each: int, units: list[int], draw: random.Random) -> Told:
    """The same with kills."""
    cluster.broker = BROKERS[name]()
    cluster.new_database(name, "base")
    storm = Storm(cluster, draw)
    try:
        if cluster.broker is not None:
            cluster.broker.start()
        for arguments in WORKERS:
            cluster.start_worker(*arguments)
        began = time.monotonic()
        for number, n in enumerate(units):
            # Those that came too late for one dissection are for the next.
            due = min((number + 1) * each, kills) - storm.kills.total()
            storm.tell = lambda line, number=number: note(
                f"{name}, set{number}, {time.monotonic() - began:.0f} s: {line}"
            )
            storm.dissect(dissection(number), sorted(draw.randrange(n) for _ in range(due)))
        seconds = time.monotonic() - began
        ((done, retries, deadlocks),) = cluster.ask(
            "SELECT count(*), sum(attempts - 1)::int, (SELECT deadlocks FROM pg_stat_database"
            " WHERE datname = current_database()) FROM work_units WHERE state = 'done' AND attempts > 0"
        )
    finally:
        cluster.stop_workers()
        if cluster.broker is not None:
            cluster.broker.close()
        cluster.broker = None
    return Told(
        name, storm.kills, storm.steps, storm.restarts, storm.clients, len(units), done, retries, deadlocks, seconds, 0.0
    )  # fmt: skip


# ---------------------------------------------------------------------- commands


def kill_commands(wanted: Sequence[str], kills: int, seed: int, results: Path | None) -> bool:
    """Kill commands; returns whether anything was wrong."""
    found: dict[str, commands.Told] = {}
    if results is not None and results.exists():
        found = {name: commands.Told(**told) for name, told in json.loads(results.read_text()).items()}
    with Cluster(environment=commands.SETTINGS) as cluster:
        script = commands.Script(cluster, wanted)
        script.undisturbed(lambda line: note(f"undisturbed: {line}"))
        each = -(-kills // len(script.wanted))
        for step in script.wanted:
            told = found.setdefault(step.name, commands.Told())
            while told.kills < each:
                draw = random.Random(f"{seed} {step.name} {told.kills + told.late}")
                script.kill(step, script.moments(step, draw.choice((1, 1, 2)), draw), told)
                if results is not None:
                    results.write_text(json.dumps({name: vars(one) for name, one in found.items()}, indent=1) + "\n")
            note(f"{step.name}: {told.kills} kills, {told.rows:,} rows compared, {told.wrong} wrong")
    show_commands(found)
    return any(told.wrong for told in found.values())


def show_commands(found: Mapping[str, commands.Told]) -> None:
    columns = ("kills", "again", "stuck", "rows", "duplicates", "losses", "different", "files")
    print("| command | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, told in found.items():
        print(f"| {name} | " + " | ".join(f"{getattr(told, column):,}" for column in columns) + " |")
    print(
        "| all | "
        + " | ".join(f"{sum(getattr(told, column) for told in found.values()):,}" for column in columns)
        + " |"
    )
    for name, told in found.items():
        for line in told.examples:
            print(f"{name}: {line}")


# ---------------------------------------------------------------------- telling


def show(found: list[Told]) -> None:
    head = (
        "broker", "runs", *VICTIMS, "kills", "units", "more tries", "worker restarts", "clients", "rows", "duplicates",
        "losses", "different", "deadlocks", "seconds", "undisturbed",
    )  # fmt: skip
    lines = [
        (
            told.broker, told.runs, *(told.kills[victim] for victim in VICTIMS), told.kills.total(), told.units,
            told.retries, told.restarts, told.clients, told.difference.rows, told.difference.duplicates.total(),
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
    main()
