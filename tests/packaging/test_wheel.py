"""The built wheel, installed outside the checkout: it carries all it needs, and works from what it carries."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from and_platform.embedded import EmbeddedServer
from tests.homes import new_home

ROOT = Path(__file__).parents[2]
DATA = "and_platform/_data"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the dependencies of the one that runs the tests: nothing is fetched."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    # A path in a .pth file is searched after the environment's own, and .pth files there (an editable install) are not read.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def run(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a program of that environment in an empty folder, on an embedded database of its own."""
    home = new_home("andp")  # a short path, for the socket's sake
    empty = tmp_path_factory.mktemp("elsewhere")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("ANDP_", "PYTHON"))}
    variables |= {"ANDP_HOME": str(home), "COLUMNS": "150"}

    def call(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [environment / "bin" / program, *arguments],
            env=variables, cwd=empty, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    yield call
    EmbeddedServer(home).stop()
    shutil.rmtree(home, ignore_errors=True)


def below(folder: str) -> set[str]:
    """Files of the checkout, relative to `folder`."""
    root = ROOT / folder
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(
    ("source", "inside"),
    [
        ("and_platform", "and_platform"),
        ("workers", "workers"),
        ("sql", f"{DATA}/sql"),
        ("migrations", f"{DATA}/migrations"),
    ],
)
def test_everything_is_in_the_wheel(files: set[str], source: str, inside: str) -> None:
    wanted = {f"{inside}/{name}" for name in below(source)}
    assert wanted
    assert wanted <= files


def test_and_the_parts_that_the_commands_name(files: set[str]) -> None:
    for name in (
        "sample/manifest.csv", "sample/LICENSES.md", "concepts/esc50.txt", "concepts/acoustic-vocabulary.csv",
        "networks/sample-ast/model.safetensors", "networks/sample-ast/training.json",
        "migrations/versions/0001_initial_schema.py", "sql/queries/ask.sql", "sql/objects/neuron_descriptions_v01.sql",
    ):  # fmt: skip
        assert f"{DATA}/{name}" in files


def test_nothing_else_is(files: set[str], wheel: Path) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in files} == {"and_platform", "workers"}
    assert not [name for name in files if name.endswith(".pyc") or "/tests/" in name]
    assert wheel.stat().st_size < 25e6  # sounds at most 15 MB, weights a few, the rest is text


def test_every_package_it_imports_is_declared(wheel: Path) -> None:
    imported: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        declared = {
            canonicalize_name(Requirement(text).name)
            for text in message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
        }
        for name in archive.namelist():
            if name.endswith(".py"):
                for node in ast.walk(ast.parse(archive.read(name))):
                    if isinstance(node, ast.Import):
                        imported |= {alias.name.partition(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                        imported.add(node.module.partition(".")[0])
    imported -= sys.stdlib_module_names | {"and_platform", "workers"}
    distributions = packages_distributions()
    undeclared = {
        name for name in imported if declared.isdisjoint(map(canonicalize_name, distributions.get(name, [name])))
    }
    assert not undeclared


def test_it_works_outside_the_checkout(run: Run, environment: Path) -> None:
    assert re.fullmatch(r"andp, version \d+\.\d+\.\d+\n", run("andp", "--version"))
    code = "from and_platform.resources import resource; print(*map(resource, ['sql', 'migrations', 'sample', 'networks']))"
    for path in run("python", "-c", code).split():
        assert Path(path).is_relative_to(environment)
    assert "not made yet" in run("andp", "db", "status")

    run("andp", "ingest", "sample")
    query = "SELECT count(*) AS clips, count(DISTINCT fold) AS folds FROM clips"
    (row,) = json.loads(run("andp", "sql", query, "--json"))
    with (ROOT / DATA / "sample" / "manifest.csv").open() as manifest:
        assert row == {"clips": sum(1 for _ in manifest) - 1, "folds": 5}
    assert "esc50" in run("andp", "concepts", "list")
    run("andp", "db", "stop")
    assert "stopped;" in run("andp", "db", "status")
