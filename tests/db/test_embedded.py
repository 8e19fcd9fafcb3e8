"""The embedded server, with real processes: started, killed, started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from and_platform.embedded import EmbeddedServer, EmbeddedStatus
from and_platform.errors import EmbeddedServerError

ENSURE = (
    "import sys\n"
    "from pathlib import Path\n"
    "from and_platform.embedded import EmbeddedServer\n"
    "print(EmbeddedServer(Path(sys.argv[1])).ensure_running())\n"
)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A home whose cluster has been made and stopped, to copy: making one takes longer than most tests."""
    home = Path(tempfile.mkdtemp(prefix="andp-made"))
    server = EmbeddedServer(home)
    server.ensure_running()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
    server.stop()
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def homes() -> Iterator[Callable[..., Path]]:
    """Makes homes under short paths, and takes them away with whatever runs there."""
    roots: list[Path] = []

    def home(name: str = "h", *, like: Path | None = None) -> Path:
        root = Path(tempfile.mkdtemp(prefix="andp-e"))
        roots.append(root)
        if like is not None:
            (root / name).mkdir(parents=True)
            subprocess.run(["cp", "-a", f"{like}/.", str(root / name)], check=True)
            root.chmod(0o755)
        return root / name

    yield home
    for root in roots:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.name() == "postgres" and root in Path(process.cwd()).parents:
                    process.kill()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def server(homes: Callable[..., Path], made: Path) -> EmbeddedServer:
    """A running server of the test's own."""
    server = EmbeddedServer(homes(like=made), start_timeout=60)
    server.ensure_running()
    return server


def run(server: EmbeddedServer, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url, autocommit=True, connect_timeout=10) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def kill_server(server: EmbeddedServer) -> int:
    """SIGKILL to the postmaster, as the kernel does when memory is short."""
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.status().pid is None)
    assert (server.data / "postmaster.pid").exists()
    return pid


def wait_until(there: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def postmasters(data: Path) -> list[int]:
    """Processes that run a server on this folder."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        command = process.info["cmdline"] or []
        if process.info["name"] == "postgres" and str(data) in command:
            found.append(process.pid)
    return found


# ---------------------------------------------------------------------- starting and stopping


def test_it_starts_by_itself_and_stays(homes: Callable[..., Path]) -> None:
    server = EmbeddedServer(homes("deep/in/nothing"))
    assert server.status().initialised is False
    assert server.ensure_running() == server.url
    assert run(server, "SELECT current_database(), current_user") == [("andp", "postgres")]
    assert run(server, "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'") == [(1,)]
    assert run(server, "SHOW listen_addresses") == [("",)]  # no port: the socket alone
    assert list(server.home.glob("postgres.new*")) == []

    pid = server.status().pid
    assert EmbeddedServer(server.home).ensure_running() == server.url
    assert server.status().pid == pid

    assert server.stop() is True
    assert server.stop() is False
    assert server.status() == EmbeddedStatus(server.data, True, None, server.data)
    server.ensure_running()
    assert server.status().pid not in (None, pid)


def test_a_running_server_is_left_alone(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("_initialise", "_start", "_end_orphans"):
        monkeypatch.setattr(EmbeddedServer, step, lambda self: pytest.fail("it runs already"))
    server.ensure_running()


def test_two_commands_start_it_at_once(homes: Callable[..., Path]) -> None:
    """From nothing but an empty folder: one makes the cluster and starts it, the other waits; both get it."""
    home = homes()
    (home / "postgres").mkdir(parents=True)
    commands = [
        subprocess.Popen([sys.executable, "-c", ENSURE, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    urls = [command.communicate(timeout=60)[0].strip() for command in commands]
    server = EmbeddedServer(home)
    assert urls == [server.url] * 2
    assert [command.returncode for command in commands] == [0, 0]
    assert run(server, "SELECT count(*) FROM pg_database WHERE datname = 'andp'") == [(1,)]
    assert server.status().pid in postmasters(server.data)


# ---------------------------------------------------------------------- killed


def test_after_the_server_was_killed(server: EmbeddedServer) -> None:
    run(server, "INSERT INTO kept VALUES (7)")
    pid = kill_server(server)
    server.ensure_running()
    assert run(server, "SELECT n FROM kept") == [(7,)]
    assert server.status().pid != pid


def test_after_the_server_was_killed_while_a_backend_works_on(server: EmbeddedServer) -> None:
    """A backend in the middle of a computation does not notice, and would keep the next server from starting."""
    run(server, "INSERT INTO kept VALUES (7)")
    busy = psycopg.connect(server.url, autocommit=True)
    backend = busy.info.backend_pid
    busy.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
    wait_until(lambda: psutil.Process(backend).cpu_times().user > 0.1)
    kill_server(server)
    time.sleep(0.3)
    assert psutil.pid_exists(backend)
    server.ensure_running()
    assert run(server, "SELECT n FROM kept") == [(7,)]
    assert not psutil.pid_exists(backend) or psutil.Process(backend).status() == psutil.STATUS_ZOMBIE
    busy.close()


def test_after_a_client_was_killed_in_a_transaction(server: EmbeddedServer) -> None:
    code = (
        "import os, psycopg, signal, sys\n"
        "connection = psycopg.connect(sys.argv[1])\n"
        "connection.execute('LOCK TABLE kept')\n"
        "connection.execute('INSERT INTO kept VALUES (1)')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, server.url], check=False).returncode == -signal.SIGKILL
    server.ensure_running()
    run(server, "INSERT INTO kept VALUES (2)")
    assert run(server, "SELECT n FROM kept") == [(2,)]


def test_after_it_was_killed_while_the_cluster_was_made(homes: Callable[..., Path]) -> None:
    home = homes()
    first = subprocess.Popen([sys.executable, "-c", ENSURE, str(home)], stdout=subprocess.PIPE)
    wait_until(lambda: any(home.glob("postgres.new*/base/*")))
    first.kill()
    first.communicate()
    assert not (home / "postgres").exists()
    (home / "postgres.new").mkdir(exist_ok=True)
    (home / "postgres.new" / "PG_VERSION").write_text("18\n")
    server = EmbeddedServer(home)
    server.ensure_running()
    assert run(server, "SELECT current_database()") == [("andp",)]


@pytest.mark.parametrize("whose", ["of the server's user", "of this process"])
def test_a_stale_pid_that_another_process_has_now(homes: Callable[..., Path], made: Path, whose: str) -> None:
    """After a reboot, say. The server itself would refuse to start."""
    server = EmbeddedServer(homes(like=made))
    owner = server.data.stat().st_uid
    other = subprocess.Popen(["sleep", "60"], user=owner if whose == "of the server's user" else None)
    try:
        lines = [str(other.pid), str(server.data), "1700000000", "5432", str(server.data), "", "1 2", "ready"]
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (server.data / name).write_text("\n".join(lines) + "\n")
            os.chown(server.data / name, owner, -1)
        assert server.status().pid is None
        server.ensure_running()
        assert run(server, "SELECT count(*) FROM kept") == [(0,)]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_pid_file_that_says_nothing(homes: Callable[..., Path], made: Path) -> None:
    server = EmbeddedServer(homes(like=made))
    for content in ("999999999\n", "nonsense\n", "\n", ""):
        (server.data / "postmaster.pid").write_text(content)
        assert server.status().pid is None
    server.ensure_running()  # at an empty one the server itself would give up
    assert run(server, "SELECT 1") == [(1,)]


# ---------------------------------------------------------------------- a start that takes long, or fails


def test_a_long_recovery_is_waited_for(server: EmbeddedServer) -> None:
    """The server is there and does not answer; somebody is told, and it is waited for."""
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        os.kill(pid, signal.SIGCONT)

    server.ensure_running(tell)
    assert told == ["the database is recovering from a crash; waiting …"]
    assert server.status().pid == pid


def test_but_not_for_ever(homes: Callable[..., Path], made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedServer(homes(like=made), start_timeout=0.5)
    monkeypatch.setattr(EmbeddedServer, "_accepts", lambda self: False)
    with pytest.raises(EmbeddedServerError, match="has not finished its recovery in") as caught:
        server.ensure_running()
    assert "raise ANDP_START_TIMEOUT" in str(caught.value)
    assert "database system is ready to accept connections" in str(caught.value)  # the log's end
    monkeypatch.undo()
    assert run(server, "SELECT 1") == [(1,)]  # it went on


def test_a_server_that_does_not_start_says_why(homes: Callable[..., Path], made: Path) -> None:
    server = EmbeddedServer(homes(like=made))
    with (server.data / "andp.conf").open("a") as conf:
        conf.write("shared_buffers = lots\n")
    with pytest.raises(EmbeddedServerError, match="does not start") as caught:
        server.ensure_running()
    assert 'invalid value for parameter "shared_buffers": "lots"' in str(caught.value)


def test_another_command_that_takes_too_long(homes: Callable[..., Path], made: Path) -> None:
    from filelock import FileLock

    server = EmbeddedServer(homes(like=made), start_timeout=0.2)
    with (
        FileLock(server.home / "postgres.lock"),
        pytest.raises(EmbeddedServerError, match="another command has been starting the database"),
    ):
        server.ensure_running()


# ---------------------------------------------------------------------- where it lies


@pytest.mark.parametrize("name", ["x" * 60 + "/" + "y" * 60, "it's a home"])
def test_paths_of_all_kinds(
    homes: Callable[..., Path], made: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = EmbeddedServer(homes(name, like=made))
    server.ensure_running()
    long = len(name) > 100
    assert (server.socket_dir == server.data) is not long
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # another TMPDIR finds the same server
    other = EmbeddedServer(server.home)
    assert run(other, "SELECT count(*) FROM kept") == [(0,)]
    assert other.url == server.url
    kill_server(server)
    other.ensure_running()
    assert run(server, "SELECT count(*) FROM kept") == [(0,)]
    assert server.stop()
    if long:
        shutil.rmtree(server.socket_dir)


def test_a_home_that_cannot_be_made(homes: Callable[..., Path]) -> None:
    home = homes("file/below")
    home.parent.write_text("in the way")
    with pytest.raises(
        EmbeddedServerError, match=r"^cannot keep a database in .*: Not a directory; set ANDP_HOME to a"
    ):
        EmbeddedServer(home).ensure_running()
    with pytest.raises(EmbeddedServerError, match="set ANDP_HOME to a folder you may write to"):
        EmbeddedServer(Path("/proc/andp")).ensure_running()


@pytest.mark.parametrize("as_file", [False, True])
def test_something_else_in_its_place(homes: Callable[..., Path], as_file: bool) -> None:
    home = homes()
    if as_file:
        home.mkdir(parents=True)
        (home / "postgres").write_text("mine")
    else:
        (home / "postgres").mkdir(parents=True)
        (home / "postgres" / "diary.txt").write_text("mine")
    with pytest.raises(EmbeddedServerError, match="holds something that is not a Postgres cluster; move it away"):
        EmbeddedServer(home).ensure_running()
    kept = home / "postgres" if as_file else home / "postgres" / "diary.txt"
    assert kept.read_text() == "mine"
