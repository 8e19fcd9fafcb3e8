"""Real brokers as processes of our own: free ports, a temporary folder, and ways to kill and restart them.

    with RabbitMQ() as broker:
        print(broker.url)
        broker.kill()      # SIGKILL: nothing is flushed, nothing is said
        broker.start()     # the same port and the same files

Tests take them as the fixtures `rabbitmq` and `redis` of `tests/workers/conftest.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_SECONDS = 120.0


class ProgramMissingError(Exception):
    """The server's program is not installed on this machine."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(*names: str) -> str:
    """Path of the first program that is there.

    Raises
    ------
    ProgramMissingError
        None of them is installed.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    raise ProgramMissingError(f"{names[-1]} is not installed")


class Server:
    """A server process with files of its own; `with` starts it and removes everything at the end.

    Parameters
    ----------
    folder
        Where its files go; default: a temporary folder.
    """

    url: str
    """What goes into ANDP_BROKER_URL."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="andpq"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Program and arguments."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Variables beside those of this process."""
        return {}

    def answers(self) -> bool:
        """Whether it does its work by now."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start it and wait until it answers; where it was killed, on the same port and files."""
        assert not self.running
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), env={**os.environ, **self.environment()}, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{type(self).__name__} does not answer:\n{self.log()[-3000:]}")
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """End the process and its children at once, by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def restart(self) -> Self:
        """Kill it and start it again."""
        self.kill()
        return self.start()

    def freeze(self) -> None:
        """Let it hang: connections stay open, nothing is answered."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def log(self) -> str:
        """What it has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """Kill it and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, number)
            self.process.wait(60)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Redis(Server):
    """A Redis server with its append-only file.

    Parameters
    ----------
    options
        Its settings, e.g. {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}.
    """

    def __init__(self, folder: Path | None = None, options: dict[str, str] | None = None) -> None:
        super().__init__(folder)
        self.options = {"appendonly": "yes", "appendfsync": "everysec", "save": "", **(options or {})}
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = [part for name, value in self.options.items() for part in (f"--{name}", value)]
        return [
            find_program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            *options,
        ]  # fmt: skip

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class RabbitMQ(Server):
    """A RabbitMQ node, with an epmd of its own so that nothing of the machine's is touched.

    Parameters
    ----------
    settings
        Lines of `rabbitmq.conf`, e.g. {"consumer_timeout": "60000"}.
    """

    def __init__(self, folder: Path | None = None, settings: dict[str, str] | None = None) -> None:
        super().__init__(folder)
        self.settings = {"listeners.tcp.default": f"127.0.0.1:{self.port}", **(settings or {})}
        self.node = f"andp{self.port}@localhost"
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._ports = {"RABBITMQ_DIST_PORT": str(free_port()), "ERL_EPMD_PORT": str(free_port())}
        self._epmd: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        # The script of the package, not Debian's wrapper around it, which changes the user and ignores the environment.
        return [find_program("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),  # of the cookie
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +A 16",  # one scheduler: tests have few cores
            **self._ports,
        }

    def start(self) -> Self:
        (self.folder / "rabbitmq.conf").write_text(
            "".join(f"{name} = {value}\n" for name, value in self.settings.items())
        )
        (self.folder / "enabled_plugins").write_text("[].\n")
        if self._epmd is None:
            self._epmd = subprocess.Popen(
                [find_program("epmd"), "-port", self._ports["ERL_EPMD_PORT"]],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        return super().start()

    def answers(self) -> bool:
        from amqp import Connection
        from amqp.exceptions import AMQPError

        connection: Any = Connection(f"127.0.0.1:{self.port}", connect_timeout=2, read_timeout=5)
        try:
            connection.connect()
            connection.channel()
        except (OSError, AMQPError):
            return False
        finally:
            connection.collect()
        return True

    def control(self, *arguments: str) -> str:
        """What `rabbitmqctl ARGUMENTS` prints, e.g. `control("list_queues", "name", "messages_unacknowledged")`."""
        program = find_program("/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl")
        done = subprocess.run(
            [program, "-q", "-n", self.node, *arguments], env={**os.environ, **self.environment()},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    def queues(self) -> dict[str, tuple[int, int]]:
        """Queue -> messages that wait, messages that a worker has."""
        lines = self.control(
            "list_queues", "name", "messages_ready", "messages_unacknowledged", "--no-table-headers"
        ).splitlines()
        return {name: (int(ready), int(taken)) for name, ready, taken in (line.split("\t") for line in lines)}

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
