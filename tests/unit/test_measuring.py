from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from and_platform.backends.audio import TEXT
from and_platform.errors import BackendError, OutOfMemoryError
from and_platform.services.measuring import (
    AHEAD,
    CHUNK,
    Attempt,
    Broken,
    Exhausted,
    Job,
    Known,
    Measured,
    Outcome,
    measure_file,
    measured,
)


def name_of(job: Job) -> Attempt:
    """Stands for measuring; a file called 'killer' kills the worker, as a crash in a decoder does."""
    if job.path.name.startswith("killer"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if job.path.name.startswith("starved"):
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
    if job.path.name.startswith("refused"):
        return Exhausted()
    return Known(job.path.name)


def modules(job: Job) -> Attempt:
    measure_file(job)
    return Broken(",".join(name for name in ("torch", "sqlalchemy") if name in sys.modules))


def hashes(outcomes: list[Outcome]) -> list[str]:
    return [outcome.sha256 if isinstance(outcome, Known | Measured) else outcome.reason for outcome in outcomes]


def test_outcomes_come_in_the_order_of_the_jobs_which_are_read_a_bounded_number_ahead() -> None:
    n_read = 0

    def jobs() -> Iterator[Job]:
        nonlocal n_read
        for number in range(100):
            n_read += 1
            yield Job(Path(str(number)))

    seen = []
    with closing(measured(jobs(), 2, name_of)) as outcomes:
        for n_done, outcome in enumerate(outcomes):
            assert n_read <= n_done + (2 * AHEAD + 1) * CHUNK
            seen.append(outcome)
    assert hashes(seen) == [str(number) for number in range(100)]


def test_a_file_that_kills_its_worker_costs_only_itself() -> None:
    names = [f"{number}" for number in range(10)]
    names[5] = "killer-a"
    names[7] = "killer-b"
    seen = hashes(list(measured([Job(Path(name)) for name in names], 2, name_of)))
    for place, name in enumerate(names):
        if name.startswith("killer"):
            assert seen[place].startswith("the decoder died on it (SIGSEGV(-11))")
        else:
            assert seen[place] == name


@pytest.mark.parametrize("name", ["starved", "refused"])
def test_memory_that_runs_out_is_no_fault_of_a_file(name: str) -> None:
    names = ["0", "1", "2", "3", "4", name, *map(str, range(6, 20))]
    seen: list[Outcome] = []
    with pytest.raises(OutOfMemoryError, match=f"memory ran out while {name} was measured alone"):
        seen.extend(measured([Job(Path(each)) for each in names], 2, name_of))
    assert not [outcome for outcome in seen if isinstance(outcome, Broken)]


def test_memory_that_ran_out_for_several_at_once_may_do_for_each(tmp_path: Path) -> None:
    names = [str(tmp_path / f"again-{number}") for number in range(12)]
    seen = list(measured([Job(Path(name)) for name in names], 2, exhausted_once))
    assert hashes(seen) == [Path(name).name for name in names]


def exhausted_once(job: Job) -> Attempt:
    """Stands for measuring where memory is short while others work."""
    if job.path.name != "again-1" or job.path.exists():
        return Known(job.path.name)
    job.path.touch()
    return Exhausted()


def test_workers_that_never_live_are_an_error_not_a_broken_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from and_platform.services import measuring

    monkeypatch.setattr(measuring, "_begin_worker", os._exit)
    with pytest.raises(BackendError, match="worker processes die as soon as they start"):
        list(measured([Job(Path("a"))], 1, name_of))


def test_workers_load_neither_torch_nor_the_database(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(1600, np.float32), 16_000)
    assert hashes(list(measured([Job(tmp_path / "a.wav")], 1, modules))) == [""]


def test_measure_file(tmp_path: Path) -> None:
    rate, n = 8_000, 8_000
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(n) / rate)).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, tone], axis=1), rate, subtype="FLOAT")
    outcome = measure_file(Job(tmp_path / "tone.wav"))
    assert isinstance(outcome, Measured)
    columns = outcome.columns
    assert (columns["sample_rate"], columns["channels"], columns["duration_s"]) == (rate, 2, 1.0)
    assert columns["rms"] == pytest.approx(0.5 / np.sqrt(2), rel=1e-6)
    assert columns["peak"] == pytest.approx(0.5)
    assert columns["median_frequency_hz"] == pytest.approx(1000)
    assert columns["features"]["pitch_hz"] == pytest.approx(1000, rel=0.01)

    known = measure_file(Job(tmp_path / "tone.wav", frozenset({outcome.sha256, "another"})))
    assert known == Known(outcome.sha256)
    assert isinstance(measure_file(Job(tmp_path / "tone.wav", frozenset({"another"}))), Measured)

    soundfile.write(tmp_path / "silence.wav", np.zeros(n, np.float32), rate)
    silence = measure_file(Job(tmp_path / "silence.wav"))
    assert isinstance(silence, Measured)
    assert silence.columns["median_frequency_hz"] is None

    (tmp_path / "text.wav").write_text("not a sound")
    assert measure_file(Job(tmp_path / "text.wav")) == Broken(TEXT)


def test_a_fault_in_measuring_costs_one_file_and_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from and_platform.services import measuring

    soundfile.write(tmp_path / "a.wav", np.ones(1600, np.float32), 16_000)
    monkeypatch.setattr(measuring, "measure", lambda *_: 1 / 0)
    outcome = measure_file(Job(tmp_path / "a.wav"))
    assert isinstance(outcome, Broken)
    assert outcome.reason == "cannot be measured: ZeroDivisionError: division by zero"
    assert "Traceback" in (outcome.detail or "")


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"  # without a main guard, as in a notebook
    script.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from and_platform.services.measuring import Job, measured\n"
        "outcomes = measured((Job(Path(str(n))) for n in range(100)), 2)\n"
        "next(outcomes)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
    deadline = time.monotonic() + 15
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
