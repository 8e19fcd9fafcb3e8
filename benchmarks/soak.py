"""Workers and clients at it for a long time, and what grows meanwhile.

    PYTHONPATH=. python benchmarks/soak.py --minutes 20 --broker rabbitmq --figure soak.svg --results soak.json

Postgres in a temporary folder, the broker, two workers of two children each, two clients that dissect without a pause, each
time with another captioner, K, threshold, pooling or layers, and drop their old dissections and recordings every few runs.
Every 10 s: memory of each worker process, connections by program, deadlocks, temporary files, messages that wait, dead rows
and the database's size. At the end a verdict: how memory grows after warm-up (a line through the second half; a child loads
the libraries of a step when it first meets one, which for the rarest is late), connections that are left when all have gone,
deadlocks. The exit status is 1 where something leaks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from and_platform.api import Platform
from and_platform.config import settings
from tests.workers import backends
from tests.workers.cluster import Cluster
from tests.workers.servers import RabbitMQ, Redis

BROKERS = {"pgmq": lambda: None, "rabbitmq": RabbitMQ, "redis": Redis}
LIGHT = ("--sentence-encoder", "letters", "--text-encoder", "letters")
SETTINGS = {"ANDP_UNIT_SIZE": "0.01", "ANDP_QUEUE_WINDOW": "40", "ANDP_DECODE_PROCESSES": "1"}
EVERY_S = 10.0
DROP_EVERY = 4
"""Runs of a client after which it drops what it has made."""
MOST_GROWTH = 0.05
"""Share of its memory by which a process may grow from the end of warm-up to the end."""
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--broker", default="rabbitmq", choices=sorted(BROKERS))
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="draw it (.svg, .png, .pdf)")
    parser.add_argument("--results", type=Path, help="write the samples (JSON)")
    options = parser.parse_args()
    from workers.app import drop_connections

    with Cluster(BROKERS[options.broker](), SETTINGS) as cluster:
        prepare(cluster, options.clients)
        for _ in range(2):
            cluster.start_worker("--concurrency", "2")
        ends = time.monotonic() + 60 * options.minutes
        clients = [Client(cluster, number, options.seed, ends) for number in range(options.clients)]
        samples = watch(cluster, clients, ends)
        for client in clients:
            client.join(300)
        ran = cluster.ask("SELECT outcome, count(*) FROM runs WHERE distributed GROUP BY 1 ORDER BY 1")
        ((units, retries),) = cluster.ask(
            "SELECT count(*), coalesce(sum(greatest(attempts - 1, 0)), 0)::int FROM work_units"
        )
        cluster.stop_workers()
        drop_connections()  # this process's own to pgmq, by which it has asked for the messages
        time.sleep(1)
        left = connections(cluster)
    verdict = judge(samples)
    verdict |= {
        "broker": options.broker, "minutes": options.minutes, "runs": dict(ran), "units": units, "more tries": retries,
        "dropped": sum(client.dropped for client in clients), "left": dict(left),
        "errors": [error for client in clients for error in client.errors],
    }  # fmt: skip
    verdict["leaks"] = bool(verdict["growing"] or verdict["deadlocks"] or left or verdict["errors"])
    print(json.dumps(verdict, indent=1))
    if options.results:
        options.results.write_text(json.dumps({"verdict": verdict, "samples": samples}, indent=1) + "\n")
    if options.figure:
        draw(samples, options.figure)
    sys.exit(verdict["leaks"])


def prepare(cluster: Cluster, n_clients: int) -> None:
    """A data set for each client, and one network."""
    cluster.run("db", "upgrade")
    platform = Platform(cluster.engine())
    for number in range(n_clients):
        platform.ingest(backends.sounds(cluster.folder / f"set{number}", 300, number), processes=1)
    platform.add_network("tiny", backends.NETWORK)
    cluster.engine().dispose()


class Client(threading.Thread):
    """Somebody who dissects until the time is up."""

    def __init__(self, cluster: Cluster, number: int, seed: int, ends: float) -> None:
        super().__init__(daemon=True)
        self.cluster, self.number, self.ends = cluster, number, ends
        self.draw = random.Random(f"{seed} {number}")
        self.runs = self.dropped = 0
        self.errors: list[str] = []
        self.fragile = cluster.folder / f"fragile{number}"
        self.start()

    def run(self) -> None:
        while time.monotonic() < self.ends:
            self._andp(*self._command())
            self.runs += 1
            if self.runs % DROP_EVERY == 0:
                self._drop()

    def _command(self) -> tuple[str, ...]:
        draw = self.draw
        self.fragile.mkdir(exist_ok=True)
        return (
            "dissect", "tiny", "--dataset", f"set{self.number}", "--distributed", *LIGHT,
            "--captioner", draw.choice(["describer", "joined", f"fragile:{self.fragile}"]),
            "--pooling", draw.choice(["mean", "max", "first"]), "--top-k", str(draw.randrange(2, 9)),
            "--threshold", f"{draw.uniform(0.7, 0.99):.3f}",
        )  # fmt: skip

    def _drop(self) -> None:
        mine = self.cluster.ask(
            "SELECT d.id FROM dissections d JOIN probing_sets p ON p.id = d.probing_set_id JOIN datasets s"
            f" ON s.id = p.dataset_id WHERE s.name = 'set{self.number}' AND d.status = 'complete' ORDER BY d.id"
        )
        for (identity,) in mine[:-1]:
            self._andp("dissections", "drop", str(identity))
            self.dropped += 1
        unused = self.cluster.ask(
            "SELECT r.id FROM recordings r JOIN probing_sets p ON p.id = r.probing_set_id JOIN datasets s"
            f" ON s.id = p.dataset_id WHERE s.name = 'set{self.number}'"
            " AND NOT EXISTS (SELECT FROM dissections d WHERE d.recording_id = r.id)"
        )
        if unused:
            self._andp("recordings", "drop", *(str(identity) for (identity,) in unused), "--yes")

    def _andp(self, *arguments: str) -> None:
        done = self.cluster.run(*arguments, check=False, seconds=900)
        if done.returncode:
            self.errors.append(f"{' '.join(arguments)}: status {done.returncode}: {done.stderr.strip()[-2000:]}")
            print(self.errors[-1], file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- samples


def watch(cluster: Cluster, clients: list[Client], ends: float) -> list[Row]:
    """A sample every few seconds."""
    os.environ.update({name: value for name, value in cluster.environment.items() if name.startswith("ANDP_")})
    settings.cache_clear()
    from workers import brokers

    brokers.configure(settings())
    began, samples = time.monotonic(), []
    while time.monotonic() < ends:
        ((deadlocks, temp_files, temp_bytes, size, dead, live),) = cluster.ask(
            "SELECT d.deadlocks, d.temp_files, d.temp_bytes, pg_database_size(d.datname),"
            " (SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables),"
            " (SELECT sum(n_live_tup)::bigint FROM pg_stat_user_tables)"
            " FROM pg_stat_database d WHERE d.datname = current_database()"
        )
        samples.append(
            {
                "seconds": time.monotonic() - began, "runs": sum(client.runs for client in clients), "memory": memory(cluster),
                "connections": dict(connections(cluster)), "deadlocks": deadlocks, "temp_files": temp_files,
                "temp_bytes": temp_bytes, "size": size, "dead": dead, "live": live, "waiting": brokers.depths(),
            }
        )  # fmt: skip
        told = samples[-1]
        print(
            f"{told['seconds']:.0f} s: {told['runs']} runs, {sum(told['memory'].values()) / 1e6:.0f} MB,"
            f" {sum(told['connections'].values())} connections, {sum(told['waiting'].values())} messages,"
            f" {size / 1e6:.0f} MB on disk, {dead:,} dead rows", file=sys.stderr, flush=True,
        )  # fmt: skip
        time.sleep(max(0.0, EVERY_S * len(samples) - (time.monotonic() - began)))
    return samples


def memory(cluster: Cluster) -> dict[str, int]:
    """Anonymous memory of each worker process in bytes, by what it is and its pid.

    That is heap and stacks. Memory that a process has to itself (USS) would mislead: it grows, too, when a page shared with the
    parent is written for the first time, and when another process that has mapped the same libraries ends.
    """
    found = {}
    for number, worker in enumerate(cluster.workers):
        for kind, process in [
            ("worker", psutil.Process(worker.pid)),
            *(("child", child) for child in worker.children()),
        ]:
            try:
                told = process.memory_info()
                found[f"{kind} {number} {process.pid}"] = int(told.rss - told.shared)
            except psutil.NoSuchProcess:
                continue
    return found


def connections(cluster: Cluster) -> Counter[str]:
    """Connections by program, without this one."""
    return Counter(
        dict(
            cluster.ask(
                "SELECT coalesce(nullif(application_name, ''), 'without a name'), count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name <> 'test' AND pid <> pg_backend_pid() GROUP BY 1"
            )
        )
    )


# ---------------------------------------------------------------------- verdict


def judge(samples: list[Row]) -> Row:
    """What grows in the second half."""
    settled = [row for row in samples if row["seconds"] >= samples[-1]["seconds"] / 2]
    by_process: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in settled:
        for name, n_bytes in row["memory"].items():
            by_process[name].append((row["seconds"], n_bytes))
    slopes, growing = {}, {}
    for name, points in by_process.items():
        if len(points) < 5:
            continue
        seconds, n_bytes = np.array(points).T
        slope, base = np.polyfit(seconds - seconds[0], n_bytes, 1)
        slopes[name] = round(3600 * slope / 1e6, 1)
        if slope * (seconds[-1] - seconds[0]) > MOST_GROWTH * base:
            growing[name] = slopes[name]
    half = len(settled) // 2
    programs = sorted({name for row in settled for name in row["connections"]})
    return {
        "MB an hour": slopes, "growing": growing,
        "MB at the end": {name: round(n / 1e6, 1) for name, n in samples[-1]["memory"].items()},
        "most connections": {
            name: [max(row["connections"].get(name, 0) for row in part) for part in (settled[:half], settled[half:])]
            for name in programs
        },
        "deadlocks": samples[-1]["deadlocks"], "temp_files": samples[-1]["temp_files"],
        "most messages": max(sum(row["waiting"].values()) for row in samples),
        "MB on disk": [round(row["size"] / 1e6, 1) for row in (settled[0], settled[half], samples[-1])],
        "most dead rows": max(row["dead"] for row in settled), "live rows": samples[-1]["live"],
    }  # fmt: skip


def draw(samples: list[Row], path: Path) -> None:
    """Memory, connections, messages and the database against time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [row["seconds"] / 60 for row in samples]
    figure, axes = plt.subplots(4, 1, figsize=(8, 9), sharex=True, layout="constrained")
    for name in dict.fromkeys(itertools.chain.from_iterable(row["memory"] for row in samples)):
        axes[0].plot(minutes, [row["memory"].get(name, np.nan) / 1e6 for row in samples], label=name.rpartition(" ")[0])
    for name in sorted({name for row in samples for name in row["connections"]}):
        axes[1].plot(minutes, [row["connections"].get(name, 0) for row in samples], label=name)
    for name in samples[0]["waiting"]:
        axes[2].plot(minutes, [row["waiting"][name] for row in samples], label=name)
    axes[3].plot(minutes, [row["size"] / 1e6 for row in samples], label="database, MB")
    axes[3].plot(minutes, [row["dead"] / 1e3 for row in samples], label="dead rows, thousands")
    for axis, title in zip(
        axes, ("memory of a process, MB", "connections", "messages that wait", "database"), strict=True
    ):
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="x-small", ncols=4)
    axes[-1].set_xlabel("minutes")
    figure.savefig(path)


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"a command took longer than {error.timeout:.0f} s") from error
