"""What lies in the working folder is neither imported nor read, whatever `andp` does there, unless it is named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[2]
ANDP = Path(sys.executable).parent / "andp"

# Optional modules of the libraries in use, and names that child processes and tools look for.
MODULES = (
    "psycopg_c",
    "psycopg_pool",
    "mistral_common",
    "torchaudio",
    "torchvision",
    "kernels",
    "flash_attn",
    "accelerate_extra",
    "sitecustomize",
    "usercustomize",
    "celeryconfig",
    "loky",
    "workers",
    "orjson",
    "ujson",
    "simplejson",
    "numexpr",
    "numba",
    "bottleneck",
    "kenlm",
    "pyctcdecode",
    "librosa",
    "timm",
    "tiktoken",
    "blobfile",
    "triton",
    "bitsandbytes",
    "yappi",
    "setproctitle",
    "eventlet",
    "gevent",
    "dotenv_extra",
    "env",
    "torch",
    "numpy",
    "click",
    "readline",
    "antigravity",
)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder full of modules and settings; each module notes its name in `imported` beside the folder."""
    folder = tmp_path / "planted"
    folder.mkdir()
    code = (
        f"with open({str(tmp_path / 'imported')!r}, 'a') as notes:\n"
        "    print(__name__, __file__, file=notes)\n"
        "def make(*a, **k): raise RuntimeError('planted')\n"
    )
    for name in MODULES:
        (folder / f"{name}.py").write_text(code)
    for package in ("torchaudio", "torchvision", "loky", "workers", "migrations"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(code)
    (folder / "migrations" / "env.py").write_text(code)
    metadata = folder / "planted-1.0.dist-info"  # a distribution with a backend
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[and_platform.backends]\nencoder.planted = torchaudio:make\ntagger.planted = torchaudio:make\n"
    )
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
    (folder / ".env").write_text("ANDP_DATABASE_URL=postgresql://planted@127.0.0.1:9/planted\nANDP_LOG_LEVEL=DEBUG\n")
    (folder / "pg_service.conf").write_text("[planted]\nhost=127.0.0.1\n")
    (folder / "matplotlibrc").write_text("backend: module://torchaudio\nlines.linewidth: 33\n")
    return folder


@pytest.fixture
def run(environment: dict[str, str], planted: Path) -> Run:
    """Run `andp` among what was planted."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ANDP), *arguments],
            cwd=planted,
            env={**environment, "PYTHONPATH": str(ROOT), **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def imported(planted: Path) -> str:
    notes = planted.parent / "imported"
    return notes.read_text() if notes.exists() else ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("networks", "list"),
        ("doctor",),
        ("sql", "SELECT 1 AS one"),
        ("dissect", "sample-ast", "--dataset", "sample", "--dry-run"),
        ("search", "rain"),
        ("profiles", "list"),
    ],
    ids=" ".join,
)
def test_a_command_imports_nothing_from_the_working_folder(run: Run, planted: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert "Traceback" not in done.stderr
    assert "planted" not in done.stdout + done.stderr
    assert imported(planted) == ""


def test_an_empty_entry_of_the_python_path_is_closed(run: Run, planted: Path, tmp_path: Path) -> None:
    """ ":/folder" names the working folder, too; what Python and the script import before `main` is beyond us."""
    for name in ("click", "sitecustomize", "usercustomize"):
        (planted / f"{name}.py").unlink()
    done = run("ingest", "folder", str(tiny.sounds(tmp_path / "tones")), env={"PYTHONPATH": f"{os.pathsep}{ROOT}"})
    assert done.returncode == 0, done.stderr
    assert imported(planted) == ""


def test_child_processes_import_nothing_from_the_working_folder(run: Run, planted: Path, tmp_path: Path) -> None:
    """Decoders, and what keeps track of them, are started with `python -m` and `python -c`."""
    done = run("ingest", "folder", str(tiny.sounds(tmp_path / "tones")), "--name", "tones")
    assert done.returncode == 0, done.stderr
    assert imported(planted) == ""
    assert "1" in run("sql", "SELECT count(*) FROM datasets").stdout


def test_a_worker_imports_nothing_from_the_working_folder(planted: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("celery")
    with (planted.parent / "log").open("w+") as log:
        worker = subprocess.Popen(
            [str(ANDP), "-v", "worker", "--queues", "cpu,db"],
            cwd=planted,
            stdout=log,
            stderr=log,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )
        try:
            for _ in range(1200):
                if "takes units" in (said := (planted.parent / "log").read_text()) or worker.poll() is not None:
                    break
                time.sleep(0.1)
            assert "takes units" in said, said
        finally:
            worker.terminate()
            worker.wait(60)
    assert imported(planted) == ""


def test_a_file_of_settings_is_read_where_it_is_named(run: Run, planted: Path) -> None:
    lines = planted / "mine.env"
    lines.write_text("ANDP_BATCH_SIZE=none\n")
    for given in ({"ANDP_ENV_FILE": str(lines)}, {"ANDP_ENV_FILE": "mine.env"}):
        done = run("networks", "list", env=given)
        assert done.returncode == 2
        assert done.stderr.startswith("andp: ANDP_BATCH_SIZE: ")
    done = run("--env-file", "mine.env", "networks", "list")
    assert done.returncode == 2
    assert done.stderr.startswith("andp: ANDP_BATCH_SIZE: ")
    assert run("networks", "list").returncode == 0


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_file_of_settings_that_is_missing_is_one_line(run: Run, how: str) -> None:
    given = {"ANDP_ENV_FILE": "none.env"} if how == "variable" else {}
    option = ("--env-file", "none.env") if how == "option" else ()
    done = run(*option, "networks", "list", env=given)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "none.env" in done.stderr


def test_the_environment_goes_before_the_file_of_settings(run: Run, planted: Path) -> None:
    (planted / "mine.env").write_text("ANDP_BATCH_SIZE=none\n")
    assert run("--env-file", "mine.env", "networks", "list", env={"ANDP_BATCH_SIZE": "4"}).returncode == 0


def test_a_deleted_working_folder_is_no_traceback(environment: dict[str, str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f'rmdir "{gone}" && exec "{ANDP}" --help'],
        cwd=gone,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (b"networks", b"show", b"\xff"),
        (b"ingest", b"folder", b"caf\xe9"),
        (b"sql", b"SELECT '\xff'"),
        (b"search", b"\xff"),
        (b"neurons", b"--concept", b"\xff"),
        (b"--env-file", b"\xff", b"networks", b"list"),
        (b"networks", b"list", b"--\xff"),
        (b"\xff",),
        (b"neuron", b"\xff", b"--json"),
        (b"dissect", b"\xff"),
        (b"report", b"-o", b"\xff"),
    ],
)
def test_an_argument_that_is_not_utf8_is_one_line(environment: dict[str, str], arguments: tuple[bytes, ...]) -> None:
    done = subprocess.run([os.fsencode(ANDP), *arguments], env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
    said = done.stderr.decode()
    assert said.startswith("andp: the argument ")
    assert said.count("\n") == 1


def test_an_output_that_takes_no_unicode_is_one_line(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [str(ANDP), "sql", "SELECT 'é' AS x", "--csv"],
        env={**environment, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "andp: the output cannot be written as ascii; set PYTHONUTF8=1\n")


def test_a_path_of_the_environment_that_is_not_utf8_is_no_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    given = {os.fsencode(key): os.fsencode(value) for key, value in environment.items()}
    given[b"ANDP_MODELS"] = os.fsencode(tmp_path) + b"/\xff"
    done = subprocess.run([ANDP, "networks", "add", "n", "x/y"], env=given, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
