"""A trace of a distributed dissection: a span for the client's command, and one below it for each try of a unit.

Needs the extra `tracing`, and OTEL_EXPORTER_OTLP_ENDPOINT, the address of a collector that speaks OTLP over HTTP. Without
either, all of this does nothing. OpenTelemetry's other variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
OTEL_EXPORTER_OTLP_HEADERS ...) are honoured, for it is its own SDK that reads them.

The parent travels in the headers of messages, as W3C's `traceparent`:

    with tracing.span("dissect", run=12):
        task.apply_async([345], headers=tracing.headers())            # the client

    with tracing.unit(request.headers, run=12, stage="caption", ...):  # a worker
        ...
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from and_platform.errors import MissingExtraError
from and_platform.services import provenance

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_W3C = ("traceparent", "tracestate")

_provider: TracerProvider | None = None
_tracer: Tracer | None = None
_asked = False  # set up at the first span, so that it happens in the process that makes spans, and not before a fork
_of_runs: dict[int, Mapping[str, str]] = {}  # run -> headers that its units came with, for messages that lost theirs
_MOST_RUNS = 100
_came_with: ContextVar[Mapping[str, str]] = ContextVar("andp_trace_headers", default={})  # noqa: B039  (never changed)


class Mark:
    """What a block may say about its span. This one belongs to no span."""

    def failed(self, error: BaseException) -> None:
        """The work failed, though the block does not raise."""


class _SpanMark(Mark):
    def __init__(self, span: Span) -> None:
        self._span = span

    def failed(self, error: BaseException) -> None:
        from opentelemetry.trace import StatusCode

        self._span.record_exception(error)
        self._span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")


_NO_SPAN = Mark()


def setup(processor: SpanProcessor | None = None) -> bool:
    """Make spans in this process, if the environment asks for them. The first span does this by itself.

    Parameters
    ----------
    processor
        Where spans go; unset: to the collector that the environment names, in batches, from a thread.

    Returns
    -------
    bool
        Whether spans are made.
    """
    global _asked, _provider, _tracer
    _asked = True
    if processor is None and not any(os.environ.get(name) for name in ENDPOINTS):
        return False
    for package in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _installed(package):
            log.warning("no traces: %s", MissingExtraError(package.replace(".", "-"), "tracing"))
            return False
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    if processor is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        processor = BatchSpanProcessor(OTLPSpanExporter())
    ours = {"service.name": "andp", "service.version": provenance.versions().get("and-platform", "")}
    resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
    _provider = TracerProvider(resource=resource)
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("and_platform", ours["service.version"])
    return True


def close() -> None:
    """Send what was not sent yet, and make no more spans until the next `setup`. For the end of a process."""
    global _asked, _provider, _tracer
    provider, _provider, _tracer, _asked = _provider, None, None, False
    if provider is not None:
        provider.shutdown()


def headers() -> dict[str, str]:
    """Headers for a message, so that what it causes hangs on the span of this block.

    Inside `unit` and `through` they are those that came with the message: all units of a dissection hang on the client's
    span, whichever worker sent them, and also where a worker on the way makes no spans.
    """
    if came_with := _came_with.get():
        return dict(came_with)
    carrier: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return carrier


@contextmanager
def through(headers: Mapping[str, Any] | None) -> Iterator[None]:
    """What is sent inside the block hangs on the span that these headers name; the block itself is no span."""
    token = _came_with.set(_parent(headers))
    try:
        yield
    finally:
        _came_with.reset(token)


def _parent(headers: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: str(value) for name in _W3C if headers and (value := headers.get(name))}


@contextmanager
def span(name: str, **attributes: str | int | float | bool) -> Iterator[Mark]:
    """A span around a command of the client's; attributes get the prefix `andp.`."""
    if not (_tracer is not None or (not _asked and setup())):
        yield _NO_SPAN
        return
    assert _tracer is not None
    with _tracer.start_as_current_span(name, attributes=_named(attributes)) as made:
        yield _SpanMark(made)


@contextmanager
def unit(
    headers: Mapping[str, Any] | None, *, run: int, stage: str, unit: int, queue: str, size: int = 0, attempt: int = 1
) -> Iterator[Mark]:
    """A span around one try of a unit. It ends as an error if the block raises, or says so with `Mark.failed`.

    Parameters
    ----------
    headers
        Those of the message: `request.headers` of a Celery task. A message that a sweep has sent again has none; then
        those that an earlier unit of the run came with, as far as this process has seen one.
    size
        How many clips, neurons or prompts the unit holds.
    attempt
        Which try it is, from 1.
    """
    came_with = _parent(headers) or _of_runs.get(run, {})
    with through(came_with):
        if came_with:
            _of_runs[run] = came_with
            while len(_of_runs) > _MOST_RUNS:
                del _of_runs[next(iter(_of_runs))]
        if not (_tracer is not None or (not _asked and setup())):
            yield _NO_SPAN
            return
        assert _tracer is not None
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about: dict[str, str | int | float | bool] = {
            "run": run,
            "stage": stage,
            "unit": unit,
            "queue": queue,
            "size": size,
            "attempt": attempt,
        }
        with _tracer.start_as_current_span(
            stage, TraceContextTextMapPropagator().extract(came_with), SpanKind.CONSUMER, _named(about)
        ) as made:
            yield _SpanMark(made)


def _named(attributes: Mapping[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    return {f"andp.{name}": value for name, value in attributes.items()}


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package above it
        return False
