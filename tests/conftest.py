"""Fixtures: one embedded server a session, one migrated template database, a clone of it for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

# Processes of tests share the cores: libraries that take a thread for each core would wait for each other. Read when they
# are imported, and by the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from and_platform import db
from and_platform.config import Settings, settings
from and_platform.embedded import READER, EmbeddedServer
from tests import forked
from tests.homes import new_home

pytest_plugins = ["tests.checkpoints"]

# A property is no timed test: machines are shared, and a first example may import scipy.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


ROOT = Path(__file__).parent.parent
TEMPLATE = "andp_template"
_numbers = itertools.count()


SLOW_FIRST = ("workers", "cli", "packaging", "db")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of tests that take long begin first, so that no process is left alone with one at the end."""
    place = {name: number for number, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: place.get(item.path.relative_to(ROOT / "tests").parts[0], len(place)))


@pytest.fixture(scope="session", autouse=True)
def _quiet_environment() -> Iterator[None]:
    """Nothing of the developer's own settings, and no threads beyond the machine's two cores."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("ANDP_")}
    for name in kept:
        del os.environ[name]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    yield
    os.environ.update(kept)


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """Home of the session's embedded server; a short path, for the socket's sake."""
    home = new_home("andp")
    yield home
    EmbeddedServer(home).stop()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def server_url(server_home: Path) -> URL:
    """URL of the server's maintenance database, with the migrated template made."""
    url = make_url(EmbeddedServer(server_home).ensure_running()).set(drivername="postgresql+psycopg")
    admin = url.set(database="postgres")
    with _admin(admin) as connection:
        # Roles that tests make have no passwords; those that the server makes keep theirs.
        rules = EmbeddedServer(server_home).data / "pg_hba.conf"
        rules.write_text(f"local all postgres,{READER} scram-sha-256\nlocal all all trust\n")
        # Tests lose nothing in a crash of the machine.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    engine = db.make_engine(url.set(database=TEMPLATE), Settings())
    db.upgrade(engine)
    engine.dispose()
    return admin


@contextmanager
def _cloned(server_url: URL, template: str = TEMPLATE) -> Iterator[URL]:
    name = f"andp_test_{os.getpid()}_{next(_numbers)}"
    with _admin(server_url) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server_url.set(database=name)
    with _admin(server_url) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(server_url: URL) -> Iterator[URL]:
    """A database of the test's own, cloned from the template."""
    with _cloned(server_url) as url:
        yield url


@pytest.fixture
def engine(database_url: URL) -> Iterator[sa.Engine]:
    """An engine on the test's own database."""
    engine = db.make_engine(database_url, Settings())
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def shared_engine(server_url: URL) -> Iterator[sa.Engine]:
    """An engine on a database that the tests of a module share: for those that only read."""
    with _cloned(server_url) as url:
        engine = db.make_engine(url, Settings())
        yield engine
        engine.dispose()


@pytest.fixture
def environment(database_url: URL, tmp_path: Path) -> dict[str, str]:
    """Environment for processes that work on the test's database."""
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    return {
        **os.environ,
        "ANDP_DATABASE_URL": plain,
        "ANDP_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "150",
    }


@pytest.fixture
def andp(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `andp ARGUMENTS` as a process; `check=False` to look at failures, `env={...}` for more variables,
    `given` for what is typed."""

    def run(
        *arguments: str, check: bool = True, env: dict[str, str] | None = None, given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        variables = {**environment, **(env or {})}
        if forked.fits(env or {}):
            result = forked.run(*arguments, environment=variables, given=given)
        else:
            result = subprocess.run(
                [sys.executable, "-m", "and_platform.cli.main", *arguments],
                env=variables, input=given, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False,
            )  # fmt: skip
        if check and result.returncode:
            raise AssertionError(f"andp {' '.join(arguments)} → {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    return run


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


def _admin(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True, connect_timeout=30
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep halves of surrogate pairs, which tests print, out of what pytest-xdist has to send as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
