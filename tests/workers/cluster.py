"""A cluster of real processes on this machine that can be killed: Postgres, a broker, workers, a client.

    with Cluster(broker=RabbitMQ()) as cluster:
        cluster.start_worker("--concurrency", "2")
        cluster.kill_postgres(); cluster.start_postgres()

For tests and for `benchmarks/faults.py`, `throughput.py`, `soak.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from and_platform import db
from and_platform.config import Settings
from and_platform.embedded import DATABASE, EmbeddedServer
from tests import forked
from tests.homes import new_home
from tests.workers import backends
from tests.workers.servers import Server

ROOT = Path(__file__).parents[2]
ANDP = [sys.executable, "-m", "and_platform.cli.main"]
READY = "takes units from"


class Process:
    """A program of ours with its log; the pid is that of its first process."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.command, self.log = list(command), log
        self._begin = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                self.command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def children(self) -> list[psutil.Process]:
        """Processes that it has made, and those that they have made."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_bytes()[self._begin :].decode(errors="replace")

    def kill(self, *, children: bool = False) -> None:
        """SIGKILL, to its children too or to it alone."""
        for doomed in self.children() if children else []:
            with suppressed():
                doomed.kill()
        self.popen.kill()
        self.popen.wait()

    def stop(self, seconds: float = 20.0) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        if self.running:
            self.popen.terminate()
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill(children=True)


@contextmanager
def suppressed() -> Iterator[None]:
    """What is gone need not be killed."""
    try:
        yield
    except psutil.NoSuchProcess:
        return


class Cluster:
    """Postgres in a temporary folder, a broker (None: pgmq in that Postgres), workers, clients.

    Parameters
    ----------
    environment
        Settings of all processes, beside the addresses of the database and the broker.
    """

    def __init__(self, broker: Server | None = None, environment: dict[str, str] | None = None) -> None:
        self.folder = new_home("andpc")
        self.postgres = EmbeddedServer(self.folder / "db")
        self.broker = broker
        self.database = DATABASE
        self.settings = dict(environment or {})
        self.workers: list[Process] = []
        self._engines: dict[str, sa.Engine] = {}
        self._logs = 0
        self.backends = backends.install(self.folder / "backends")

    def __enter__(self) -> Self:
        try:
            self.start_postgres()
            if self.broker is not None:
                self.broker.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End everything and remove its files."""
        for worker in self.workers:
            if worker.running:
                worker.kill(children=True)
        for engine in self._engines.values():
            engine.dispose()
        self.postgres.stop()
        if self.broker is not None:
            self.broker.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------ Postgres

    def start_postgres(self) -> None:
        """Start it, after a kill too, and wait until it takes connections."""
        self.postgres.ensure_running()

    def kill_postgres(self) -> None:
        """SIGKILL to the server and all its backends: nothing is flushed, nobody is told."""
        pid = self.postgres.status().pid
        assert pid is not None
        server = psutil.Process(pid)
        doomed = [server, *server.children(recursive=True)]
        for process in doomed:
            with suppressed():
                process.kill()
        psutil.wait_procs(doomed, timeout=10)

    def kill_backend(self, pid: int) -> None:
        """SIGKILL to one backend: the server ends all others, recovers, and goes on by itself."""
        with suppressed():
            psutil.Process(pid).kill()

    def url(self, database: str | None = None) -> URL:
        """Address of a database of the server."""
        url = make_url(self.postgres.url).set(database=database or self.database)
        return url.set(drivername="postgresql+psycopg")

    def new_database(self, name: str, template: str | None = None) -> None:
        """Make a database, empty or a copy of one that nobody is connected to, and go on with it."""
        # By files, which ends with a checkpoint. Copied through the log, a sequence believes that its next 32 numbers are
        # logged, as they are in the template: after a kill it gives the same ones again.
        copied = f" TEMPLATE {template} STRATEGY file_copy" if template else ""
        self.tell(f"CREATE DATABASE {name}{copied}", "postgres")
        self.database = name

    def engine(self, database: str | None = None) -> sa.Engine:
        """This process's connections to a database."""
        name = database or self.database
        if name not in self._engines:
            self._engines[name] = db.make_engine(self.url(name), Settings(pool_size=2), "test")
        return self._engines[name]

    def ask(self, query: str, database: str | None = None, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query, on a connection of its own."""
        with self._connected(database) as connection:
            return list(connection.execute(query, parameters or None).fetchall())

    def tell(self, statement: str, database: str | None = None) -> None:
        """Do a statement outside of any transaction."""
        with self._connected(database) as connection:
            connection.execute(statement)

    def _connected(self, database: str | None) -> psycopg.Connection[Any]:
        plain = self.url(database).set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(plain, autocommit=True, connect_timeout=5, application_name="test")

    # ------------------------------------------------------------------ our own programs

    @property
    def environment(self) -> dict[str, str]:
        """Variables for our programs."""
        plain = self.url().set(drivername="postgresql").render_as_string(hide_password=False)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANDP_")},
            "ANDP_HOME": str(self.folder / "home"), "ANDP_DATABASE_URL": plain,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.backends), os.environ.get("PYTHONPATH", "")]), "COLUMNS": "150",
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            **({"ANDP_BROKER_URL": self.broker.url} if self.broker is not None else {}), **self.settings,
        }  # fmt: skip

    def start(self, *arguments: str, options: Sequence[str] = ("-v",)) -> Process:
        """Begin `andp ARGUMENTS`."""
        self._logs += 1
        return Process(
            [*ANDP, *options, *arguments], self.environment, self.folder / f"{self._logs:04}-{arguments[0]}.log"
        )

    def run(self, *arguments: str, check: bool = True, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Do `andp ARGUMENTS` to its end."""
        done = forked.run(*arguments, environment=self.environment, timeout=seconds)
        assert not check or done.returncode == 0, (
            f"andp {' '.join(arguments)} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def start_worker(self, *arguments: str, wait: bool = True) -> Process:
        """Begin a worker; it is started again by `mend` where it has ended."""
        worker = self.start("worker", *arguments)
        self.workers.append(worker)
        if wait:
            self.wait(lambda: READY in worker.said() or not worker.running, 120)
            assert worker.running, worker.said()
        return worker

    def mend(self) -> int:
        """Start what has ended, as a supervisor does: workers with the same arguments; returns how many there were."""
        ended = [worker for worker in self.workers if not worker.running]
        for worker in ended:
            self.workers.remove(worker)
            self.start_worker(*worker.command[len(ANDP) + 2 :], wait=False)
        return len(ended)

    def stop_workers(self) -> None:
        """End all workers, after the units in work."""
        for worker in self.workers:
            if worker.running:
                worker.popen.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.stop()
        self.workers = []

    def wait(self, done: Callable[[], Any], seconds: float = 120) -> float:
        """Seconds until it was done.

        Raises
        ------
        AssertionError
            It was not done in time; the end of each log is told.
        """
        began = time.monotonic()
        while not done():
            assert time.monotonic() < began + seconds, f"not done after {seconds:.0f} s\n{self.logs()}"
            time.sleep(0.05)
        return time.monotonic() - began

    def logs(self, lines: int = 20) -> str:
        """The end of what each program has printed."""
        told = []
        for path in sorted(self.folder.glob("*.log")):
            said = [line for line in path.read_text(errors="replace").splitlines() if "INFO alembic" not in line]
            told.append(f"--- {path.name}\n" + "\n".join(said[-lines:]))
        return "\n".join(told[-12:])
