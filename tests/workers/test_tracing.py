"""Spans of units hang on the span of the client's command, whichever processes they went through."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from workers import tracing

ROOT = Path(__file__).parents[2]
ABOUT: dict[str, Any] = {"run": 7, "stage": "caption", "unit": 12, "queue": "gpu", "size": 250}
SDK = "the extra 'tracing' is not installed"


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    tracing.close()
    monkeypatch.setattr(tracing, "_of_runs", {})
    yield
    tracing.close()


@pytest.fixture
def spans() -> Iterator[Any]:
    """An exporter that keeps spans in memory."""
    pytest.importorskip("opentelemetry.sdk", reason=SDK)
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    assert tracing.setup(SimpleSpanProcessor(exporter))
    yield exporter


def test_a_unit_is_a_span_below_the_client_s(spans: Any) -> None:
    with tracing.span("dissect", run=7):
        message = tracing.headers()
    assert message.keys() == {"traceparent"}
    with tracing.unit(message, **ABOUT, attempt=2):
        pass

    client, unit = spans.get_finished_spans()
    assert (client.name, dict(client.attributes), client.parent) == ("dissect", {"andp.run": 7}, None)
    assert unit.name == "caption"
    assert dict(unit.attributes) == {f"andp.{name}": value for name, value in {**ABOUT, "attempt": 2}.items()}
    assert unit.parent.span_id == client.context.span_id
    assert unit.context.trace_id == client.context.trace_id
    assert unit.kind.name == "CONSUMER" and unit.status.status_code.name == "UNSET"
    assert unit.resource.attributes["service.name"] == "andp"


def test_what_a_unit_sends_hangs_on_the_client_s_span_too(spans: Any) -> None:
    with tracing.span("dissect"):
        message = tracing.headers()
    with tracing.unit({**message, "lang": "py"}, **ABOUT):
        following = tracing.headers()
    assert following == message
    with tracing.unit(following, **ABOUT):
        pass
    client, first, second = spans.get_finished_spans()
    assert {first.parent.span_id, second.parent.span_id} == {client.context.span_id}


def test_what_is_no_unit_passes_headers_on(spans: Any) -> None:
    with tracing.span("dissect"):
        message = tracing.headers()
    with tracing.through(message):
        assert tracing.headers() == message
    assert tracing.headers() == {}
    assert len(spans.get_finished_spans()) == 1


def test_a_message_that_lost_its_headers_belongs_to_its_run(spans: Any) -> None:
    with tracing.span("dissect"):
        message = tracing.headers()
    with tracing.unit(message, **ABOUT):
        pass
    with tracing.unit(None, **ABOUT):
        assert tracing.headers() == message
    with tracing.unit(None, **{**ABOUT, "run": 8}):
        pass
    client, first, again, other = spans.get_finished_spans()
    assert first.parent.span_id == again.parent.span_id == client.context.span_id
    assert other.parent is None


def test_a_unit_without_a_client_s_span_begins_a_trace(spans: Any) -> None:
    for headers in (None, {}, {"traceparent": "nonsense"}):
        with tracing.unit(headers, **ABOUT):
            pass
    assert [span.parent for span in spans.get_finished_spans()] == [None] * 3


def test_a_unit_that_fails_is_an_error(spans: Any) -> None:
    with pytest.raises(ValueError, match="raised"), tracing.unit({}, **ABOUT):
        raise ValueError("raised")
    with tracing.unit({}, **ABOUT) as mark:
        mark.failed(ValueError("told"))
    for span, text in zip(spans.get_finished_spans(), ("raised", "told"), strict=True):
        assert (span.status.status_code.name, span.status.description) == ("ERROR", f"ValueError: {text}")
        (event,) = span.events
        assert (event.name, event.attributes["exception.message"]) == ("exception", text)


# ---------------------------------------------------------------------- when it is off


def test_without_a_collector_nothing_is_made_but_headers_go_on() -> None:
    with tracing.span("dissect"):
        assert tracing.headers() == {}
    message = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with tracing.unit({**message, "other": 1}, **ABOUT) as mark:
        mark.failed(ValueError())
        assert tracing.headers() == message  # another worker may make spans
    assert tracing.headers() == {}
    assert tracing._provider is None


def test_off_costs_next_to_nothing() -> None:
    with tracing.unit(None, **ABOUT):
        pass
    began = time.perf_counter()
    for _ in range(10_000):
        with tracing.unit(None, **ABOUT):
            pass
    assert (time.perf_counter() - began) / 10_000 < 100e-6  # measured: 3e-6


def test_without_the_packages_the_extra_is_named() -> None:
    code = (
        "import sys, logging; sys.modules['opentelemetry'] = None\n"
        "logging.basicConfig(format='%(message)s')\n"
        "from workers import tracing\n"
        "for _ in range(2):\n"
        "    with tracing.span('dissect'): print(tracing.headers())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.stdout == "{}\n{}\n"
    assert done.stderr == (
        "no traces: the package 'opentelemetry' is not installed; install it with: pip install 'and-platform[tracing]'\n"
    )


# ---------------------------------------------------------------------- a collector


class Collector:
    """Receives OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason=SDK)
        self.spans: list[tuple[Mapping[str, Any], Any]] = []
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    resource = {item.key: item.value.string_value for item in group.resource.attributes}
                    received.extend((resource, span) for scope in group.scope_spans for span in scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_client_and_prefork_worker_send_one_trace(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("celery", reason="the extra 'workers' is not installed")
    from tests.workers.folder_broker import made

    client_app = made(tmp_path / "queue")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    told = tmp_path / "worker.log"
    with told.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.workers.observed", "worker", "-c", "1", "-l", "INFO",
             "-n", "w1@here", "--without-gossip", "--without-mingle", "--without-heartbeat"],
            env={**os.environ, "OBSERVED_FOLDER": str(tmp_path / "queue"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                 "OTEL_SERVICE_NAME": "andp-worker", "OTEL_BSP_SCHEDULE_DELAY": "600000"},
            cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        with tracing.span("dissect", run=7):
            for number in (1, 13):
                client_app.send_task("observed.unit", [number, 0.0], headers=tracing.headers())
        tracing.close()
        (client,) = collector.spans
        deadline = time.monotonic() + 60
        while told.read_text().count(" succeeded in ") < 3:
            assert time.monotonic() < deadline and worker.poll() is None, told.read_text()
            time.sleep(0.1)
        assert len(collector.spans) == 1
        worker.terminate()  # its child sends what it has at its end
        worker.wait(30)
    finally:
        if worker.poll() is None:
            for process in psutil.Process(worker.pid).children(recursive=True):
                process.kill()
            worker.kill()
            worker.wait(20)

    assert (client[0]["service.name"], client[1].name) == ("andp", "dissect")
    units = {_attribute(span, "andp.unit"): (resource, span) for resource, span in collector.spans[1:]}
    assert units.keys() == {1, 13, 101}, told.read_text()  # 101 was sent by 1
    for resource, span in units.values():
        assert resource["service.name"] == "andp-worker"
        assert (span.name, span.trace_id, span.parent_span_id) == ("record", client[1].trace_id, client[1].span_id)
        assert [_attribute(span, f"andp.{name}") for name in ("run", "size", "attempt")] == [7, 10, 2]
    assert {number: span.status.code for number, (_, span) in units.items()} == {1: 0, 13: 2, 101: 0}  # 2: error


def test_a_worker_s_last_spans_are_sent_when_it_ends(collector: Collector, tmp_path: Path) -> None:
    code = (
        "from workers import tracing\n"
        f"with tracing.unit(None, **{ABOUT!r}): pass"
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120,
        env={**os.environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url + "/v1/traces"},
    )  # fmt: skip
    assert [span.name for _, span in collector.spans] == ["caption"]


def _attribute(span: Any, name: str) -> int | None:
    return next((item.value.int_value for item in span.attributes if item.key == name), None)
