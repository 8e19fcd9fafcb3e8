"""`andp dissect --distributed` and `andp runs`, as processes; the work is done by this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from and_platform import api, db
from and_platform.services.distribution import runs
from tests import tiny
from tests.checkpoints_encoders import TINY_CLIP, clip_state, write_clip
from tests.conftest import ROOT
from tests.distributed import Workshop

pytest.importorskip("celery", reason="the extra 'workers' is not installed")

Andp = Callable[..., subprocess.CompletedProcess[str]]
DISSECT = ("dissect", "tiny", "--dataset", "tones", "--layers", "head", "--captioner", "describer", "--distributed")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny.sounds(folder / "tones", 3)
    tiny.network(folder / "network")
    return folder


@pytest.fixture
def shop(engine: sa.Engine, material: Path) -> Workshop:
    platform = api.Platform(engine)
    platform.ingest(material / "tones", processes=1)
    platform.add_network("tiny", material / "network")
    return Workshop(engine)


@pytest.fixture
def begun(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begin `andp ARGUMENTS`, and go on while it runs."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "and_platform.cli.main", *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    """What is told of an error: one line, and nothing on standard output."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("andp: ")]
    assert (done.returncode, len(lines)) == (status, 1), (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and not done.stdout
    return lines[0]


def test_detached_watched_and_listed(shop: Workshop, andp: Andp) -> None:
    begun = json.loads(andp(*DISSECT, "--detach", "--json").stdout)
    assert begun["attached"] is False
    number = str(begun["run"])
    again = andp(*DISSECT, "--detach", "--json")
    assert json.loads(again.stdout) == {"run": begun["run"], "attached": True}
    assert f"run {number} is at it already" in again.stderr and f"andp runs watch {number}" in again.stderr
    # Before anybody works at it.
    shown = json.loads(andp("runs", "show", number, "--json").stdout)
    assert shown["outcome"] == "running" and shown["steps"][0]["step"] == "plan"
    assert {step["state"] for step in shown["steps"]} <= {"open", "waiting", "blocked"}, shown["steps"]
    shop.work(begun["run"])
    watched = andp("runs", "watch", number)
    assert "record: done" in watched.stderr and "vectors: done" in watched.stderr
    assert f"run {number} is done" in watched.stderr and "head" in watched.stdout
    shown = json.loads(andp("runs", "show", number, "--json").stdout)
    assert {step["state"] for step in shown["steps"]} == {"done"} and shown["reasons"] == []
    assert all(step["done"] == step["units"] and not step["failed"] for step in shown["steps"])
    table = andp("runs", "show", number).stdout
    assert "steps" in table and "encode_captions" in table and "andp runs retry" not in table
    (listed,) = [row for row in json.loads(andp("runs", "list", "--json").stdout) if row["id"] == begun["run"]]
    assert listed["outcome"] == "ok" and listed["counts"]["record"]["computed"] == 9
    assert number in andp("runs", "list").stdout
    # Of a run that went well nothing can be cancelled; retried, it finds nothing to do.
    assert one_line(andp("runs", "cancel", number, check=False), 1).endswith("is over already: ok")
    assert "0 units are tried again" in andp("runs", "retry", number, "--detach").stderr
    shop.later()
    shop.sweep()
    shop.work(begun["run"])
    assert andp("runs", "watch", number).returncode == 0


def test_cancelled_and_failed(shop: Workshop, andp: Andp, monkeypatch: pytest.MonkeyPatch) -> None:
    from and_platform.services.distribution import work

    number = str(json.loads(andp(*DISSECT, "--detach", "--json").stdout)["run"])
    cancelled = andp("runs", "cancel", number)
    assert f"run {number} is cancelled; 1 units were not begun" in cancelled.stderr
    assert f"andp runs retry {number}" in cancelled.stderr
    told = one_line(andp("runs", "watch", number, check=False), 1)
    assert told == f"andp: run {number} was cancelled; to go on with it: andp runs retry {number}"

    def broken(*_: Any) -> None:
        raise ValueError("it fell over")

    monkeypatch.setitem(work._DOERS, "calibrate", broken)
    assert "goes on; 1 units are tried again" in andp("runs", "retry", number, "--detach").stderr
    shop.later()
    shop.sweep()
    shop.work(int(number))
    told = one_line(andp("runs", "watch", number, check=False), 1)
    assert "calibrate: ValueError: it fell over" in told and f"andp runs retry {number}" in told
    shown = andp("runs", "show", number, "--failed")
    assert "it fell over" in shown.stdout and f"andp runs retry {number}" in shown.stderr
    assert "Traceback" in shown.stderr and "3 tries" in shown.stderr
    (unit,) = json.loads(andp("runs", "show", number, "--failed", "--json").stdout)["units"]
    assert unit["step"] == "calibrate" and unit["attempts"] == 3 and "Traceback" in unit["traceback"]
    failures = json.loads(andp("failures", "--json").stdout)
    assert any("it fell over" in row["reason"] for row in failures)


def test_what_cannot_be_watched_or_steered(shop: Workshop, andp: Andp) -> None:
    andp(*DISSECT[:-1])
    number = str(json.loads(andp("runs", "list", "--limit", "1", "--json").stdout)[0]["id"])
    assert f"andp runs show {number}" in one_line(andp("runs", "watch", number, check=False), 1)
    for what in ("cancel", "retry"):
        assert "by the process that began it" in one_line(andp("runs", what, number, check=False), 1)
    for what in ("watch", "cancel", "retry", "show"):
        assert one_line(andp("runs", what, "999", check=False), 3) == "andp: no run 999; see: andp runs list"
    one_line(andp("runs", "watch", "twelve", check=False), 2)
    assert "--detach goes with --distributed" in one_line(andp(*DISSECT[:-1], "--detach", check=False), 2)
    # One that is still going, in a process that shows its progress itself.
    with db.transaction(shop.engine) as session:
        session.execute(
            sa.text("UPDATE runs SET outcome = 'running', finished_at = NULL WHERE id = :id"), {"id": int(number)}
        )
    assert "shows its progress itself" in one_line(andp("runs", "watch", number, check=False), 1)


def test_without_a_worker_it_says_so_and_ctrl_c_says_how_to_go_on(
    shop: Workshop, begun: Callable[..., subprocess.Popen[str]]
) -> None:
    process = begun(*DISSECT)
    assert process.stderr is not None
    lines: list[str] = []
    with db.transaction(shop.engine) as session:  # the test's own worker is none of a queue's
        session.execute(sa.text("UPDATE workers SET stopped_at = now()"))
    started = time.monotonic()
    while "no worker listens" not in (lines[-1] if lines else ""):
        assert time.monotonic() - started < 120 and process.poll() is None, lines
        lines.append(process.stderr.readline())
    assert "andp worker --queues gpu" in lines[-1]
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told
    run_id = max(row["id"] for row in _listed(shop))
    assert f"run {run_id} goes on; to watch it again: andp runs watch {run_id}" in told.replace("\n", " ")
    assert f"andp runs cancel {run_id}" in told.replace("\n", " ")
    assert shop.outcome(run_id)["outcome"] == "running"


def _listed(shop: Workshop) -> list[dict[str, Any]]:
    from and_platform.services import journal

    with db.reading(shop.engine) as session:
        return journal.runs(session, 10)


def test_watching_to_the_end(shop: Workshop, begun: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """The report comes when it is done, and a run that is watched while it is cancelled ends the watching."""
    write_clip(tmp_path / "clip", clip_state(**TINY_CLIP))
    process = begun(*DISSECT, "--text-encoder", f"clip:{tmp_path / 'clip'}")
    deadline = time.monotonic() + 120
    while not (going := [row["id"] for row in _listed(shop) if row["outcome"] == "running"]):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    shop.later()
    shop.sweep()
    shop.work(going[0])
    out, told = process.communicate(timeout=120)
    assert process.returncode == 0 and "head" in out and f"run {going[0]} is done" in told
    assert "9 of 9 captions were longer than the 16 tokens that clip reads and were cut" in " ".join(out.split())
    process = begun(*DISSECT, "--json")
    while not (going := [row["id"] for row in _listed(shop) if row["outcome"] == "running"]):
        assert time.monotonic() < deadline + 120 and process.poll() is None
        time.sleep(0.2)
    runs.cancel(shop.engine, going[0])
    out, told = process.communicate(timeout=120)
    assert process.returncode == 1 and not out and f"run {going[0]} was cancelled" in told


def test_a_broker_that_cannot_be_reached(shop: Workshop, andp: Andp) -> None:
    away = {"ANDP_BROKER_URL": "amqp://guest:hush@127.0.0.1:9//"}
    told = one_line(andp(*DISSECT, env=away, check=False), 6)
    assert "check ANDP_BROKER_URL and that the broker runs" in told and "hush" not in told
    if os.environ.get("ANDP_BROKER_URL") is None:  # with the usual one the same command goes on with the run
        begun = json.loads(andp(*DISSECT, "--detach", "--json").stdout)
        shop.later()
        shop.sweep()
        shop.work(begun["run"])
        assert shop.outcome(begun["run"])["outcome"] == "ok"
