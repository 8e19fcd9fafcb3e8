"""How fast workers are, against one process, and what a unit costs beside its work.

    PYTHONPATH=. python benchmarks/throughput.py
    PYTHONPATH=. python benchmarks/throughput.py --brokers pgmq,rabbitmq --workers 1,2,4 --network tiny --results out.json

Three series, each on a fresh database, with Postgres in a temporary folder and workers of one process each that are up
before the clock starts; the time is that of the run, from its row to its end:

- work: the sample dissected by one process without workers, then by workers. The arithmetic takes the machine's cores, so
  more workers than cores cannot be faster; each computes with one thread, and loads its own models.
- waiting: a small dissection whose summaries come from an LLM endpoint that takes a quarter of a second an answer, one at a
  time and worker, five answers a unit; the workers have dissected something smaller before, so that what they import is
  there.
- nothing: units whose texts all have their vectors already, so that all that is left is the ledger, the broker and the
  plan's rows: the least that a unit costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from and_platform import db
from and_platform.api import Platform
from and_platform.config import settings
from and_platform.schema import RunStep
from and_platform.services import networks, samples
from and_platform.services.distribution import ledger
from and_platform.services.distribution.ledger import NewUnit
from tests.db.test_dissect import LLMServer
from tests.workers import backends
from tests.workers.cluster import Cluster
from tests.workers.servers import RabbitMQ, Redis

BROKERS = {"pgmq": lambda: None, "rabbitmq": RabbitMQ, "redis": Redis}
LIGHT = ("--sentence-encoder", "letters", "--text-encoder", "letters", "--threshold", "0.9")
ANSWER_S = 0.25
IN_PROCESS = "in-process"
Row = dict[str, Any]


class SlowServer(LLMServer):
    """An endpoint that takes a while for each answer."""

    @staticmethod
    def answer(user: str) -> str:
        time.sleep(ANSWER_S)
        return LLMServer.answer(user)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="pgmq,rabbitmq,redis")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--series", default="work,waiting,nothing")
    parser.add_argument("--network", default="sample-ast", help="of the series 'work': sample-ast, or tiny")
    parser.add_argument("--clips", type=int, default=600, help="clips of the tiny network's data set")
    parser.add_argument("--units", type=int, default=400, help="units of the series 'nothing'")
    parser.add_argument("--results", type=Path, help="write what was measured (JSON)")
    options = parser.parse_args()
    brokers, workers = options.brokers.split(","), [int(n) for n in options.workers.split(",")]
    found: list[Row] = []
    with Cluster(environment={"ANDP_SILENT_AFTER": "30"}) as cluster:
        prepare(cluster, options.clips)
        llm = SlowServer()
        small = ("dissect", "tiny", "--dataset", "tones", *LIGHT)
        waiting = (*small, "--llm", llm.spec, "--llm-option", "concurrency=1", "--captioner", "describer")
        commands = {
            "work": ("dissect", "sample-ast")
            if options.network == "sample-ast"
            else (*small, "--captioner", "describer"),
            "waiting": waiting,
        }
        for series in options.series.split(","):
            if series == "nothing":
                cluster.new_database("dissected", "base")
                cluster.run(*small, "--captioner", "describer")
            else:
                for threads in (1, os.cpu_count() or 1) if series == "work" else (1,):
                    found.append(alone(cluster, series, commands[series], threads))
            for broker in brokers:
                for n in workers:
                    if series == "nothing":
                        found.append(nothing(cluster, broker, n, options.units))
                    else:
                        found.append(shared(cluster, series, commands[series], broker, n))
        llm.close()
    show(found)
    if options.results:
        options.results.write_text(json.dumps(found, indent=1) + "\n")


def prepare(cluster: Cluster, n_clips: int) -> None:
    """The database `base`: the sample, and a small data set and network; nothing dissected."""
    cluster.new_database("base")
    cluster.run("db", "upgrade")
    platform = Platform(cluster.engine("base"))
    samples.ensure(cluster.engine("base"), networks.SAMPLE, samples.DATASET)
    platform.ingest(backends.sounds(cluster.folder / "tones", n_clips), processes=1)
    platform.ingest(backends.sounds(cluster.folder / "warm", 60, 1), processes=1)
    platform.add_network("tiny", backends.NETWORK)
    cluster.engine("base").dispose()


# ---------------------------------------------------------------------- one measurement


def alone(cluster: Cluster, series: str, command: Sequence[str], threads: int) -> Row:
    """One process without workers."""
    cluster.new_database(f"{series}_alone_{threads}", "base")
    cluster.settings["OMP_NUM_THREADS"] = str(threads)
    process = cluster.start(*command, options=())
    del cluster.settings["OMP_NUM_THREADS"]
    if process.popen.wait(3600):
        raise SystemExit(process.said())
    named = f"{IN_PROCESS}, {threads} thread{'s'[: threads > 1]}"
    return told({"series": series, "broker": named, "workers": 0, **took(cluster)})


def shared(cluster: Cluster, series: str, command: Sequence[str], broker: str, n: int) -> Row:
    """The same by n workers."""
    begin(cluster, f"{series}_{broker}_{n}", "base", broker, n, "0.08" if series == "waiting" else "1")
    try:
        if series == "waiting":
            warm = ("dissect", "tiny", "--dataset", "warm", "--captioner", "describer", *LIGHT)
            cluster.run(*warm, "--distributed")
        cluster.run(*command, "--distributed", seconds=3600)
        ((units, work),) = cluster.ask(
            "SELECT count(*), sum(seconds) FROM work_units WHERE state = 'done' AND run_id = (SELECT max(id) FROM runs)"
        )
        row = {"series": series, "broker": broker, "workers": n, **took(cluster), "units": units, "work": work}
    finally:
        end(cluster)
    return told(row)


def nothing(cluster: Cluster, broker: str, n: int, n_units: int) -> Row:
    """Units of which nothing is left to be done."""
    begin(cluster, f"nothing_{broker}_{n}", "dissected", broker, n, "1")
    try:
        # A run that has settled its plan and is over is opened again for one step: units without any texts.
        cluster.run("dissect", "tiny", "--dataset", "tones", *LIGHT, "--captioner", "describer", "--distributed")
        os.environ.update({name: value for name, value in cluster.environment.items() if name.startswith("ANDP_")})
        settings.cache_clear()
        from workers import brokers
        from workers.messages import MESSENGER

        brokers.configure(settings())
        engine = cluster.engine()
        with db.transaction(engine) as session:
            run_id = session.connection().exec_driver_sql(
                "UPDATE runs SET outcome = 'running', finished_at = NULL WHERE distributed RETURNING id"
            ).scalar_one()  # fmt: skip
            session.get_one(RunStep, (run_id, "encode_captions")).finished_at = None
            session.flush()
            ledger.add_units(
                session, run_id, "encode_captions", "gpu",
                (NewUnit(f"nothing:{number}", {"texts": [], "encoder": "db"}, 1) for number in range(n_units)),
            )  # fmt: skip
        began = time.monotonic()
        cpu = cpu_seconds(cluster)
        ledger.top_up(engine, run_id, MESSENGER, window=settings().queue_window)
        left = "SELECT count(*) FROM work_units WHERE state <> 'done'"
        cluster.wait(lambda: cluster.ask(left) == [(0,)], 900)
        seconds = time.monotonic() - began
        cpu = cpu_seconds(cluster) - cpu
        ((work,),) = cluster.ask("SELECT sum(seconds) FROM work_units WHERE starts_with(key, 'nothing:')")
        row = {
            "series": "nothing", "broker": broker, "workers": n, "seconds": seconds, "units": n_units, "work": work,
            "cpu": cpu,
        }  # fmt: skip
        engine.dispose()
    finally:
        end(cluster)
    return told(row)


def begin(cluster: Cluster, name: str, template: str, broker: str, n: int, unit_size: str) -> None:
    """A broker, a database, and workers that are ready."""
    cluster.broker = BROKERS[broker]()
    if cluster.broker is not None:
        cluster.broker.start()
    cluster.settings["ANDP_UNIT_SIZE"] = unit_size
    cluster.new_database(name, template)
    for _ in range(n):
        cluster.start_worker("--concurrency", "1")


def end(cluster: Cluster) -> None:
    """Workers and broker end."""
    cluster.stop_workers()
    if cluster.broker is not None:
        cluster.broker.close()
    cluster.broker = None


def took(cluster: Cluster) -> Row:
    """Seconds of the latest dissection."""
    ((seconds,),) = cluster.ask(
        "SELECT extract(epoch FROM finished_at - started_at)::float FROM runs WHERE command = 'dissect' AND outcome = 'ok'"
        " ORDER BY id DESC LIMIT 1"
    )
    return {"seconds": seconds}


def cpu_seconds(cluster: Cluster) -> float:
    """CPU time that workers have taken, their children included."""
    pids = [worker.pid for worker in cluster.workers] + [child.pid for w in cluster.workers for child in w.children()]
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


# ---------------------------------------------------------------------- telling


def told(row: Row) -> Row:
    """The row, with what follows from it, on stderr too."""
    if "units" in row:
        row["idle_ms"] = 1000 * (row["workers"] * row["seconds"] - row["work"]) / row["units"]
    print(
        {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
        file=sys.stderr,
        flush=True,
    )
    return row


def show(found: list[Row]) -> None:
    first = {row["series"]: row["seconds"] for row in reversed(found)}
    head = (
        "series",
        "broker",
        "workers",
        "seconds",
        "against the first row",
        "units",
        "work, s",
        "not work, ms a unit",
        "CPU, ms a unit",
    )
    print("| " + " | ".join(head) + " |")
    print("| --- | --- |" + " ---: |" * (len(head) - 2))
    for row in found:
        cells = (
            row["series"], row["broker"], row["workers"] or "", f"{row['seconds']:.1f}",
            f"{first[row['series']] / row['seconds']:.2f} x", row.get("units", ""),
            f"{row['work']:.1f}" if "work" in row else "", f"{row['idle_ms']:.1f}" if "idle_ms" in row else "",
            f"{1000 * row['cpu'] / row['units']:.1f}" if "cpu" in row else "",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
