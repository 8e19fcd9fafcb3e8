"""What a worker tells Prometheus: exact sums over real processes, also where they are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from and_platform.errors import ConfigError

pytest.importorskip("prometheus_client", reason="the extra 'workers' is not installed")

from workers import metrics

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
fork = multiprocessing.get_context("fork")

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(port: int) -> Samples:
    """What the port tells, by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


GPU = {"queue": "gpu", "stage": "record"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[metrics.Server]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # what it was is put back afterwards
    made = metrics.serve(
        0, "127.0.0.1", worker="w@here", queues=["gpu", "llm"], depths=lambda: {"gpu": 3}, timeouts={"gpu": 900}
    )
    assert made is not None
    yield made
    made.close()
    assert list(tmp_path.glob("andp-metrics-*")) == []


def in_child(work: Callable[[], None]) -> Any:
    child = fork.Process(target=work)
    child.start()
    return child


def others() -> int:
    """Processes that earlier tests of this process have left running, such as brokers; a worker has none."""
    return sum(child.status() != psutil.STATUS_ZOMBIE for child in psutil.Process().children(recursive=True))


def kill(child: Any) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.join(20)


def test_children_are_summed_and_what_they_did_outlives_them(server: metrics.Server) -> None:
    def work() -> None:
        with metrics.unit("gpu", "record"):
            pass
        metrics.done("gpu", "record", 0.3, clips=10)
        metrics.done("gpu", "record", 70, clips=5, neurons=8, tokens=9)
        metrics.failed("gpu", "record", "OutOfMemoryError")
        metrics.retried("gpu", "record")
        metrics.loaded("salmonn", 12.5)

    for _ in range(2):
        children = [in_child(work) for _ in range(3)]
        for child in children:
            child.join(30)
            assert child.exitcode == 0
        found = scrape(server.port)
    again, processes = scrape(server.port), 1 + others()

    for samples in (found, again):
        assert value(samples, "andp_units_done_total", **GPU) == 12
        assert value(samples, "andp_clips_total", **GPU) == 90
        assert value(samples, "andp_neurons_total", **GPU) == 48
        assert value(samples, "andp_tokens_total", **GPU) == 54
        assert value(samples, "andp_units_failed_total", **GPU, reason="OutOfMemoryError") == 6
        assert value(samples, "andp_units_retried_total", **GPU) == 6
        assert value(samples, "andp_unit_seconds_count", **GPU) == 12
        assert value(samples, "andp_unit_seconds_sum", **GPU) == pytest.approx(6 * 70.3)
        assert [value(samples, "andp_unit_seconds_bucket", **GPU, le=le) for le in ("0.25", "0.5", "60.0", "120.0")] == [
            0, 6, 6, 12,
        ]  # fmt: skip
        assert value(samples, "andp_model_load_seconds_count", model="salmonn") == 6
        assert value(samples, "andp_model_load_seconds_sum", model="salmonn") == 75
        assert value(samples, "andp_units_in_work", **GPU) is None  # nobody lives who could say
    assert value(again, "andp_worker_info", worker="w@here", version=metrics.version()) == 1
    assert [value(again, "andp_worker_queue", queue=queue) for queue in ("gpu", "llm", "cpu")] == [1, 1, None]
    assert value(again, "andp_worker_processes") == processes
    assert value(again, "andp_visibility_timeout_seconds", queue="gpu") == 900
    assert (value(again, "andp_broker_up"), value(again, "andp_queue_depth", queue="gpu")) == (1, 3)


def test_the_dead_leave_no_files(server: metrics.Server, tmp_path: Path) -> None:
    (folder,) = tmp_path.glob("andp-metrics-*")
    for number in range(1, 13):
        in_child(lambda: metrics.done("gpu", "record", 1)).join(30)
        assert value(scrape(server.port), "andp_units_done_total", **GPU) == number
        assert {file.name for file in folder.iterdir()} == {"lock", "counter_0.db", "histogram_0.db"}


def test_a_killed_child_leaves_its_counts_and_no_gauge(server: metrics.Server) -> None:
    ready, alone = fork.Semaphore(0), 1 + others()

    def work() -> None:
        metrics.done("gpu", "record", 1, clips=10)
        with metrics.unit("gpu", "record"):
            ready.release()
            time.sleep(600)

    children = [in_child(work) for _ in range(2)]
    for _ in children:
        assert ready.acquire(timeout=30)
    before = scrape(server.port)
    assert (value(before, "andp_units_in_work", **GPU), value(before, "andp_worker_processes")) == (2, alone + 2)

    kill(children[0])
    after = scrape(server.port)
    assert (value(after, "andp_units_in_work", **GPU), value(after, "andp_worker_processes")) == (1, alone + 1)
    assert value(after, "andp_clips_total", **GPU) == 20
    kill(children[1])
    assert value(scrape(server.port), "andp_units_in_work", **GPU) is None
    assert value(scrape(server.port), "andp_clips_total", **GPU) == 20


def test_counts_are_exact_while_children_die_and_others_ask(server: metrics.Server) -> None:
    stop = threading.Event()
    seen: list[float] = []

    def ask() -> None:
        while not stop.is_set():
            seen.append(value(scrape(server.port), "andp_units_done_total", **GPU) or 0)

    def work() -> None:
        for _ in range(50):
            metrics.done("gpu", "record", 0.01)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for _ in range(8):
        children = [in_child(work) for _ in range(2)]
        for child in children:
            child.join(30)
    stop.set()
    for asker in askers:
        asker.join(30)
    assert value(scrape(server.port), "andp_units_done_total", **GPU) == 800
    assert len(seen) > 4 and max(seen) <= 800


def test_a_child_does_not_hold_the_port(server: metrics.Server) -> None:
    ready = fork.Semaphore(0)

    def work() -> None:
        ready.release()
        time.sleep(600)

    child = in_child(work)
    try:
        assert ready.acquire(timeout=30)
        server.close()
        with socket.create_server(("127.0.0.1", server.port)):
            pass
    finally:
        kill(child)


def test_a_process_number_that_is_used_again_starts_with_nothing_in_work(
    server: metrics.Server, tmp_path: Path
) -> None:
    (folder,) = tmp_path.glob("andp-metrics-*")
    ready = fork.Semaphore(0)

    def work() -> None:
        with metrics.unit("gpu", "record"):
            ready.release()
            time.sleep(600)

    dead = in_child(work)
    assert ready.acquire(timeout=30)
    kill(dead)
    # Nobody has asked since, so its file is still there; let it be that of a process which has the number now: this one.
    (folder / f"gauge_livesum_{dead.pid}.db").rename(folder / f"gauge_livesum_{os.getpid()}.db")
    assert value(scrape(server.port), "andp_units_in_work", **GPU) == 1
    server._folder.after_fork()  # with the port's, called in each new child
    assert value(scrape(server.port), "andp_units_in_work", **GPU) is None


# ---------------------------------------------------------------------- the broker


@pytest.fixture
def serve_depths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[metrics.Depths], Samples]]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.setattr(metrics._Asker, "SECONDS", 0.3)
    made: list[metrics.Server] = []

    def start(depths: metrics.Depths) -> Samples:
        server = metrics.serve(0, "127.0.0.1", depths=depths)
        assert server is not None
        made.append(server)
        metrics.done("gpu", "record", 1)
        return scrape(server.port)

    yield start
    for server in made:
        server.close()


def test_a_broker_that_is_down_is_told_and_hides_nothing(
    serve_depths: Callable[[metrics.Depths], Samples], caplog: pytest.LogCaptureFixture
) -> None:
    def depths() -> dict[str, int]:
        raise ConnectionRefusedError("nobody there")

    found = serve_depths(depths)
    assert (value(found, "andp_broker_up"), value(found, "andp_units_done_total", **GPU)) == (0, 1)
    assert not [name for name, _ in found if name == "andp_queue_depth"]
    assert "the queues' depths cannot be read: ConnectionRefusedError: nobody there" in caplog.text


def test_a_broker_that_hangs_keeps_nothing_back(serve_depths: Callable[[metrics.Depths], Samples]) -> None:
    free = threading.Event()
    asked = []

    def depths() -> dict[str, int]:
        asked.append(1)
        free.wait(60)
        return {"gpu": 4}

    began = time.monotonic()
    found = serve_depths(depths)
    assert time.monotonic() - began < 10
    assert (value(found, "andp_broker_up"), value(found, "andp_units_done_total", **GPU)) == (0, 1)
    assert metrics._server is not None
    port = metrics._server.port
    scrape(port)
    assert len(asked) == 1  # the second scrape asks nobody while the first question is open
    free.set()
    assert value(scrape(port), "andp_queue_depth", queue="gpu") == 4


# ---------------------------------------------------------------------- when it is off


def test_without_a_port_nothing_is_counted() -> None:
    assert metrics.serve(None) is None
    assert metrics._meters is None
    with metrics.unit("gpu", "record"):
        metrics.done("gpu", "record", 1, clips=1)
    metrics.failed("gpu", "record", "ValueError")
    metrics.retried("gpu", "record")
    metrics.loaded("salmonn", 1)


def test_without_prometheus_client_nothing_is_counted_and_the_extra_is_named() -> None:
    code = (
        "import sys, logging; sys.modules['prometheus_client'] = None\n"
        "logging.basicConfig(format='%(message)s')\n"
        "from workers import metrics\n"
        "print(metrics.serve(0)); metrics.done('gpu', 'record', 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "None\n"
    assert done.stderr == (
        "no metrics: the package 'prometheus_client' is not installed; install it with: pip install 'and-platform[workers]'\n"
    )


def test_a_taken_port_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot be told at 127.0.0.1:{port}: .*; set ANDP_METRICS_PORT"):
            metrics.serve(port, "127.0.0.1")
    assert metrics._meters is None and list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_worker_is_swept_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    code = (
        "import time; from workers import metrics\n"
        "metrics.serve(0, '127.0.0.1'); print('up', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        return process

    first = start()
    (folder,) = tmp_path.glob("andp-metrics-*")
    second = start()
    try:
        assert folder.exists() and len(list(tmp_path.glob("andp-metrics-*"))) == 2
        first.kill()
        first.wait(20)
        third = start()
        try:
            assert not folder.exists() and len(list(tmp_path.glob("andp-metrics-*"))) == 2
        finally:
            third.kill()
            third.wait(20)
    finally:
        second.kill()
        second.wait(20)


def test_a_worker_that_ends_removes_its_folder_and_its_children_do_not(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, sys; from workers import metrics\n"
        "server = metrics.serve(0, '127.0.0.1')\n"
        "child = multiprocessing.get_context('fork').Process(target=server.close); child.start(); child.join()\n"
        "metrics.done('gpu', 'record', 1)\n"
        "sys.exit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=120
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (3, [])


# ---------------------------------------------------------------------- a real worker


def test_a_prefork_worker_tells_and_logs(tmp_path: Path) -> None:
    pytest.importorskip("celery", reason="the extra 'workers' is not installed")
    from tests.workers.folder_broker import made

    client = made(tmp_path / "queue")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ, "OBSERVED_FOLDER": str(tmp_path / "queue"),
        "ANDP_METRICS_PORT": str(port), "ANDP_METRICS_ADDRESS": "127.0.0.1", "ANDP_LOG_FORMAT": "json",
        "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    told = tmp_path / "worker.log"
    with told.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.workers.observed", "worker", "-c", "2", "-l", "INFO",
             "-n", "w1@here", "--without-gossip", "--without-mingle", "--without-heartbeat"],
            env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=out,
        )  # fmt: skip

    def until(what: Callable[[Samples], bool]) -> Samples:
        deadline = time.monotonic() + 60
        while True:
            try:
                found = scrape(port)
                if what(found):
                    return found
            except OSError:
                found = {}
            assert time.monotonic() < deadline and worker.poll() is None, f"{found}\n{told.read_text()}"
            time.sleep(0.2)

    try:
        until(lambda _: True)
        for number in range(10, 16):
            client.send_task("observed.unit", [number, 0.01])
        until(lambda found: value(found, "andp_units_done_total", **GPU) == 5)
        client.send_task("observed.unit", [20, 600])
        until(lambda found: value(found, "andp_units_in_work", **GPU) == 1)
        (child,) = [
            process for process in psutil.Process(worker.pid).children()
            if f"gauge_livesum_{process.pid}.db" in {file.name for file in tmp_path.glob("andp-metrics-*/*")}
            and _in_work(tmp_path, process.pid)
        ]  # fmt: skip
        child.kill()
        found = until(lambda found: value(found, "andp_worker_processes") == 3 and not child.is_running())
        assert value(found, "andp_units_done_total", **GPU) == 5
        assert value(found, "andp_units_failed_total", **GPU, reason="ValueError") == 1
        assert value(found, "andp_clips_total", **GPU) == 50
        assert value(found, "andp_worker_queue", queue="gpu") == 1
        assert value(found, "andp_queue_depth", queue="cpu") == 5
        # Delivered again, it is in work again, once.
        until(lambda found: value(found, "andp_units_in_work", **GPU) == 1)
    finally:
        for process in psutil.Process(worker.pid).children(recursive=True):
            process.kill()
        worker.kill()
        worker.wait(20)

    text = told.read_text()
    assert "hunter2" not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert (
        len([line for line in text.splitlines() if line.strip() and not line.startswith("{")]) <= 8
    )  # advice about root
    assert {line["worker"] for line in lines} == {"w1@here"}
    begun = [line for line in lines if line["message"].startswith("begun")]
    assert sorted(line["unit"] for line in begun) == [*range(10, 16), 20, 20]
    assert {(line["run"], line["stage"]) for line in begun} == {(7, "record")}
    (failed,) = [line for line in lines if line["message"] == "failed"]
    assert failed["unit"] == 13 and failed["exception"].endswith("ValueError: no luck")
    received = [line["message"] for line in lines if line["logger"] == "celery.worker.strategy"]
    assert len(received) == len(set(received)) + 1  # each once, and one was delivered again
    assert [line for line in lines if line["logger"] == "multiprocessing" and "SIGKILL" in line["message"]]


def _in_work(folder: Path, number: int) -> bool:
    from prometheus_client.mmap_dict import MmapedDict

    (file,) = folder.glob(f"andp-metrics-*/gauge_livesum_{number}.db")
    return any(value for _key, value, _at, _ in MmapedDict.read_all_values_from_file(str(file)))


# ---------------------------------------------------------------------- what the docs say of it


@pytest.fixture
def names(server: metrics.Server) -> set[str]:
    """Names of all samples that there are."""
    with metrics.unit("gpu", "record"):
        metrics.done("gpu", "record", 1, clips=1, neurons=1, tokens=1)
    metrics.failed("gpu", "record", "ValueError")
    metrics.retried("gpu", "record")
    metrics.loaded("salmonn", 1)
    return {name for name, _ in scrape(server.port)}


def test_the_how_to_names_each_metric_and_no_other(names: set[str]) -> None:
    text = (HOW_TO / "observe.md").read_text("utf-8")
    table = set(re.findall(r"^\| `(andp_\w+)` \|", text, re.M))
    families = {re.sub(r"(?<=_seconds)_(bucket|sum|count)$", "", name) for name in names}
    assert table == families
    assert _named(text) <= names | families


def test_the_dashboard_asks_for_metrics_that_there_are(names: set[str]) -> None:
    dashboard = json.loads((HOW_TO / "grafana-andp.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if "query" in variable["query"]
    ]
    assert len(queries) >= 8 and all(_named(query) for query in queries)
    assert set().union(*map(_named, queries)) <= names
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def _named(text: str) -> set[str]:
    return set(re.findall(r"\bandp_(?:units?|clips|neurons|tokens|model|queue|broker|worker|visibility)_\w+", text))
