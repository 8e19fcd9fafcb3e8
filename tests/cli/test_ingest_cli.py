from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from click.testing import CliRunner, Result

from and_platform.cli.main import cli
from and_platform.errors import InputError, NotFoundError

Andp = Callable[..., subprocess.CompletedProcess[str]]
Inside = Callable[..., Result]

RATE = 8_000


def folder(root: Path, n: int, seconds: float = 0.25) -> Path:
    rng = np.random.default_rng(0)
    for number in range(n):
        (root / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        noise = 0.1 * rng.standard_normal(round(seconds * RATE), np.float32)
        soundfile.write(root / f"class{number % 3}" / f"{number:04d}.wav", noise, RATE)
    return root


def count(engine: sa.Engine, what: str = "clips") -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.text(f"SELECT count(*) FROM {what}")).scalar_one())


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "and_platform.cli.main", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def inside(environment: dict[str, str]) -> Inside:
    """Run a command in this process, where starting one is not what is tested."""

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(cli, list(arguments), env=environment)
        if result.exception:
            raise result.exception
        return result

    return run


def test_ingest_reports_and_the_other_commands_show_it(andp: Andp, inside: Inside, tmp_path: Path) -> None:
    root = folder(tmp_path / "noises", 5)
    (root / "class0" / "broken [1].wav").write_text("a text")
    done = andp("ingest", "folder", str(root), "--json")
    report = json.loads(done.stdout)
    assert (report["new"], report["failed"], report["name"]) == (5, 1, "noises")
    assert report["failures"] == [["class0/broken [1].wav", "text: the file holds text, not sound"]]

    again = inside("ingest", "folder", str(root))
    assert again.stdout == ""
    assert "5 unchanged, 1 failed" in again.stderr
    assert "class0/broken [1].wav: text: the file holds text, not sound" in again.stderr

    (row,) = json.loads(inside("datasets", "list", "--json").stdout)
    assert (row["name"], row["clips"], row["labels"], row["failures"]) == ("noises", 5, 3, 1)
    shown = inside("datasets", "show", "noises").stdout
    assert "class2" in shown and "median_frequency_hz" in shown and "broken [1].wav" in shown
    failures = list(csv.DictReader(io.StringIO(inside("failures", "--dataset", "noises", "--csv").stdout)))
    assert [(f["stage"], f["unit"]) for f in failures] == [("ingest", "class0/broken [1].wav")]

    runs = json.loads(inside("runs", "list", "--json").stdout)
    assert [(run["command"], run["outcome"], run["counts"]) for run in runs] == [
        ("ingest folder", "ok", {"unchanged": 5, "failed": 1}),
        ("ingest folder", "ok", {"new": 5, "failed": 1}),
    ]
    run = json.loads(inside("runs", "show", str(runs[0]["id"]), "--json").stdout)
    assert run["arguments"]["location"] == str(root)
    with pytest.raises(NotFoundError, match="no run 999"):
        inside("runs", "show", "999")


def test_ingest_refuses_in_one_line(andp: Andp, inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = andp("ingest", "folder", str(tmp_path / "none"), check=False)
    assert done.returncode == 2
    assert done.stderr == f"andp: there is no folder {tmp_path / 'none'}\n"
    for arguments, message in (
        (("folder", str(tmp_path / "empty")), "holds no sound files"),
        (("esc50", str(tmp_path / "empty")), "not laid out as ESC-50 is published"),
        (("manifest", str(tmp_path / "m.csv")), "there is no file"),
    ):
        with pytest.raises(InputError, match=message):
            inside("ingest", *arguments)


def test_datasets_and_concepts_are_made_moved_and_dropped(inside: Inside, tmp_path: Path) -> None:
    root = folder(tmp_path / "noises", 3)
    inside("ingest", "folder", str(root), "--name", "n")
    root.rename(tmp_path / "moved")
    assert "3 of 3 files are there, 3 compared" in inside("datasets", "relocate", "n", str(tmp_path / "moved")).stderr
    assert "'n-labels'" in inside("concepts", "from-labels", "n").stderr
    rows = json.loads(inside("concepts", "show", "n-labels", "--json").stdout)
    assert [row["name"] for row in rows] == ["class0", "class1", "class2"]
    (tmp_path / "pets.txt").write_text("dog\ncat\nDog\n")
    assert "2 concepts, imported" in inside("concepts", "import", str(tmp_path / "pets.txt")).stderr
    assert "'Dog' is the same as 'dog'" in inside("concepts", "import", str(tmp_path / "pets.txt")).stderr
    inside("concepts", "drop", "pets", "--yes")
    inside("datasets", "drop", "n", "--yes")
    assert json.loads(inside("datasets", "list", "--json").stdout) == []
    with pytest.raises(NotFoundError, match="no data set 'n'"):
        inside("datasets", "show", "n")


def test_a_killed_ingest_goes_on_when_it_is_run_again(
    andp: Andp, engine: sa.Engine, environment: dict[str, str], tmp_path: Path
) -> None:
    root = folder(tmp_path / "noises", 450, seconds=1.0)
    process = start(environment, "ingest", "folder", str(root), "--processes", "1")
    deadline = time.monotonic() + 120
    while not (written := count(engine)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 0 < written < 450
    report = json.loads(andp("ingest", "folder", str(root), "--json").stdout)
    assert (report["unchanged"] % 200, report["unchanged"] + report["new"]) == (0, 450)
    assert 0 < report["unchanged"] < 450
    with engine.connect() as connection:
        paths = connection.execute(sa.text("SELECT path FROM clips ORDER BY id")).scalars().all()
        outcomes = connection.execute(sa.text("SELECT outcome FROM runs ORDER BY id")).scalars().all()
    assert paths == sorted(paths) and len(set(paths)) == 450
    assert outcomes == ["interrupted", "ok"]


def test_two_ingests_at_once_both_finish(engine: sa.Engine, environment: dict[str, str], tmp_path: Path) -> None:
    root = folder(tmp_path / "noises", 60)
    both = [start(environment, "ingest", "folder", str(root), "--json") for _ in range(2)]
    reports: list[Any] = []
    for process in both:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        reports.append(json.loads(out))
    assert sorted(report["new"] for report in reports) == [0, 60]
    assert sorted(report["unchanged"] for report in reports) == [0, 60]
    assert count(engine) == 60


@pytest.mark.parametrize("kind", ["folder", "manifest", "esc50", "urbansound8k", "gtzan", "sample"])
def test_every_source_has_help_with_an_example(kind: str) -> None:
    shown = CliRunner().invoke(cli, ["ingest", kind, "--help"]).output
    assert f"andp ingest {kind}" in shown and "Example" in shown
