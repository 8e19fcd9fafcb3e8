"""A real worker process with pgmq as its broker: it does what it is sent, also when it is killed at it."""

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

import numpy as np
import psutil
import pytest
import soundfile
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform.api import Platform
from and_platform.config import Settings, settings
from and_platform.errors import ConfigError

pytest.importorskip("celery", reason="the extra 'workers' is not installed")

ROOT = Path(__file__).parents[2]
RATE = 16_000
N_CLIPS = 6
NETWORK = "tiny"


def tones(root: Path) -> Path:
    times = np.arange(RATE // 2) / RATE
    for number in range(N_CLIPS):
        folder = root / ("low" if number % 2 else "high")
        folder.mkdir(parents=True, exist_ok=True)
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * number) * times)
        soundfile.write(folder / f"{number}.wav", tone.astype(np.float32), RATE)
    return root


def save_network(directory: Path) -> Path:
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_length=64,
        num_mel_bins=32, frequency_stride=16, time_stride=16, id2label={0: "low", 1: "high"}, label2id={"low": 0, "high": 1},
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(directory)
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(directory)
    return directory


@pytest.fixture
def filled(engine: sa.Engine, tmp_path: Path) -> sa.Engine:
    """A database with a data set and a network."""
    platform = Platform(engine)
    platform.ingest(tones(tmp_path / "tones"), processes=1)
    platform.add_network(NETWORK, save_network(tmp_path / "network"))
    return engine


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with one child, on the test's database."""
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "and_platform.cli.main", "-v", "worker"],
            env={**environment, "OMP_NUM_THREADS": "1"}, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()  # ends after the task in work, which by now is none
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
        sys.stdout.write(log.read_text(errors="replace"))  # pytest shows it where a test failed


def rows(engine: sa.Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def wait_for(engine: sa.Engine, query: str, wanted: list[tuple[Any, ...]], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while (found := rows(engine, query)) != wanted:
        assert time.monotonic() < deadline, f"{query}: {found}, not {wanted}, after {seconds:.0f} s"
        time.sleep(0.2)


RUNS = "SELECT outcome FROM runs WHERE command = 'dissect' ORDER BY id"
QUEUED = "SELECT " + ", ".join(f"(SELECT count(*) FROM pgmq.q_andp_{queue})" for queue in ("cpu", "gpu", "db"))
RECORDED = "SELECT count(*), sum(vector_dims(values)) FROM activations"
CAPTIONED = "SELECT count(*), count(DISTINCT clip_id) FROM captions"
TRIES = "SELECT step, attempts, state FROM work_units WHERE step IN ('record', 'caption') ORDER BY id"


def test_a_worker_dissects_and_a_killed_child_is_made_good(
    filled: sa.Engine, worker: subprocess.Popen[bytes], andp: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ((n_neurons,),) = rows(
        filled, "SELECT count(*) FROM neurons n JOIN layers l ON l.id = n.layer_id WHERE l.is_default"
    )
    command = ("dissect", NETWORK, "--dataset", "tones", "--captioner", "describer", "--distributed", "--detach")

    with filled.connect() as blocker:
        # The worker gets as far as its first caption, and waits there.
        blocker.execute(sa.text("LOCK TABLE captions IN EXCLUSIVE MODE"))
        andp(*command)
        wait_for(filled, "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'captions'::regclass", [(1,)])
        assert rows(filled, QUEUED)[0][0] == 1  # not acknowledged before it is done
        assert "is at it already" in andp(*command).stderr  # the same is asked for twice: one run
        (child,) = psutil.Process(worker.pid).children()
        child.send_signal(signal.SIGKILL)
        psutil.wait_procs([child], timeout=10)

    watched = andp("runs", "watch", str(rows(filled, "SELECT max(id) FROM runs WHERE distributed")[0][0]))
    assert "caption: done" in watched.stderr
    assert rows(filled, RUNS) == [("ok",)]
    assert rows(filled, TRIES) == [("record", 1, "done"), ("caption", 2, "done")]
    wait_for(filled, QUEUED, [(0, 0, 0)])
    assert rows(filled, RECORDED) == [(n_neurons, n_neurons * N_CLIPS)]
    assert rows(filled, CAPTIONED) == [(N_CLIPS, N_CLIPS)]
    assert rows(filled, "SELECT status FROM dissections") == [("complete",)]
    assert worker.poll() is None

    # Asked for once more, there is nothing to do but to see that.
    told = andp(*command[:-1], "--json")
    counts = json.loads(told.stdout)["counts"]
    assert set(counts) == {"open_failures", "captions", "cut_texts"} and counts["open_failures"] == 0
    assert counts["captions"]["clips"] == N_CLIPS and not any(cut["n_cut"] for cut in counts["cut_texts"])
    assert rows(filled, CAPTIONED) == [(N_CLIPS, N_CLIPS)]


def test_workers_can_be_imported_without_celery(environment: dict[str, str]) -> None:
    code = (
        "import sys; sys.modules['celery'] = None\n"
        "import workers\n"
        "from and_platform.errors import MissingExtraError\n"
        "try: import workers.app\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "the package 'celery' is not installed; install it with: pip install 'and-platform[workers]'\n"
    )


def test_two_workers_may_make_the_queue_at_the_same_moment(database_url: URL) -> None:
    code = (
        "from workers.pgmq import SCHEME, broker; from and_platform.config import settings; broker(SCHEME, settings())"
    )
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "ANDP_DATABASE_URL": plain, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in started] == [("", 0)] * 3


def test_settings_are_those_that_lose_nothing(database_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("ANDP_DATABASE_URL", plain)
    monkeypatch.setenv("ANDP_VISIBILITY_TIMEOUT", "77")
    settings.cache_clear()
    from workers.app import configuration

    made = configuration()
    assert made["broker_url"] == f"pgmq://localhost:5432/{database_url.database}"
    assert made["task_acks_late"] and made["task_reject_on_worker_lost"]
    assert made["accept_content"] == ["json"]
    assert not made["worker_enable_remote_control"] and not made["task_create_missing_queues"]
    assert not made["worker_cancel_long_running_tasks_on_connection_loss"]
    assert made["broker_connection_max_retries"] is None and made["worker_prefetch_multiplier"] == 1
    assert {queue.name for queue in made["task_queues"]} == {"andp.cpu", "andp.gpu", "andp.llm", "andp.db"}
    assert all(queue.durable and queue.no_declare for queue in made["task_queues"])  # pgmq's are made with its schema
    options = made["broker_transport_options"]
    assert (options["visibility_timeout"], options["init_extension"]) == (77, False)
    assert f"dbname={database_url.database}" in options["conn_string"]


def test_another_broker_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDP_BROKER_URL", "amqp://andp:secret@queue.example:5672//")
    settings.cache_clear()
    from workers.app import configuration

    made = configuration()
    assert made["broker_url"] == "amqp://andp:secret@queue.example:5672//"
    assert made["broker_transport_options"] == {"confirm_publish": True}


def test_an_option_that_the_transport_would_drop_is_refused() -> None:
    from workers.pgmq import broker

    with pytest.raises(ConfigError, match="cannot carry the connection option 'sslmode'; give it as PGSSLMODE"):
        broker("pgmq://andp@db.example/andp?sslmode=verify-full", Settings())


def test_awkward_passwords_reach_the_server_as_they_are() -> None:
    from pgmq.base import PGMQConfig
    from psycopg.conninfo import conninfo_to_dict

    from workers.pgmq import _twice_quoted

    parts = {"host": "/tmp/a folder", "port": "5432", "dbname": "andp", "user": "me", "password": "it's \\ a 'secret'"}
    assert conninfo_to_dict(PGMQConfig(conn_string=_twice_quoted(parts)).dsn) == parts
