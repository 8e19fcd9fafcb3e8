"""A broker, a client in this process, and workers as processes: what the tests of brokers work with."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.workers.servers import RabbitMQ, Server
from workers import brokers, queues
from workers.app import app

ROOT = Path(__file__).parents[2]
VISIBLE = 4
"""Seconds of the visibility timeout."""


class Bench:
    """A broker, a client in this process, and workers as processes."""

    def __init__(self, name: str, server: Server | None, environment: dict[str, str], folder: Path) -> None:
        self.name, self.server, self.environment = name, server, environment
        self.traces = folder / "traces"
        self.traces.touch()
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []

    def send(self, queue: str, text: str, seconds: float = 0.0) -> None:
        from tests.workers.probe import trace

        trace.apply_async((str(self.traces), text, seconds), queue=queues.broker_name(queue))

    def worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._folder / f"worker{len(self._workers)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", "from tests.workers.probe import main; main()", *arguments],
                env=self.environment, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
            )  # fmt: skip
        self._workers.append(process)
        self.wait(lambda: "takes units from" in log.read_text(errors="replace") or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return process

    def lines(self) -> list[str]:
        """What tasks have written, without the numbers of their processes."""
        return [line.rpartition(" ")[0] for line in self.traces.read_text().splitlines()]

    def pid(self, text: str) -> int:
        """The process that has last begun a task."""
        lines = [line.split() for line in self.traces.read_text().splitlines()]
        return [int(line[2]) for line in lines if line[:2] == ["begin", text]][-1]

    def wait(self, done: Callable[[], Any], seconds: float = 45) -> float:
        """Seconds until it was done."""
        begun = time.monotonic()
        while not done():
            assert time.monotonic() < begun + seconds, f"not done after {seconds} s: {self.lines()}\n{self.logs()}"
            time.sleep(0.05)
        return time.monotonic() - begun

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("worker*.log")))

    def taken(self) -> int:
        """Messages that workers have."""
        match self.server:
            case RabbitMQ():
                return sum(taken for _, taken in self.server.queues().values())
            case _:
                with app.connection_for_read() as connection:
                    return sum(depth.taken or 0 for depth in brokers._depths(connection, taken=True).values())

    def close(self) -> None:
        for process in self._workers:
            if process.poll() is None:
                process.terminate()
        for process in self._workers:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                kill(process)
        sys.stdout.write(self.logs())  # pytest shows it where a test failed


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and its children, none of which can do anything about it."""
    for doomed in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        doomed.kill()
    process.wait()
