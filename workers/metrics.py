"""What a worker tells Prometheus. Needs the extra `workers`, and a port: without one, all of this does nothing.

A prefork worker counts in its children and answers in its parent, so the numbers lie in files of a temporary folder
(multiprocess mode of prometheus_client). Each process writes files of its own; when it has died, however it died, the
parent adds its counts to those of the other dead, and drops its gauges. The folder is the worker's own and goes with it.

    metrics.serve(9464, depths=lambda: {"gpu": 12})   # in the parent, before it forks
    with metrics.unit("gpu", "record"):               # in a child
        ...
    metrics.done("gpu", "record", seconds=3.2, clips=250)
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from and_platform.errors import ConfigError, MissingExtraError
from and_platform.services import provenance

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

Depths = Callable[[], Mapping[str, int]]

# A unit is meant to take under a minute; the long ones are there to be compared with the visibility timeout.
BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_PREFIX = "andp-metrics-"
_KEPT = ("counter", "histogram", "summary")  # kinds of files whose numbers outlive their process


# ---------------------------------------------------------------------- what is counted


class _Meters:
    """The metrics that processes of this worker count in. Made in the parent, used in its children."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram, Summary

        by = ("queue", "stage")

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*by, *more), registry=registry)

        self.done: Counter = counter("andp_units_done", "Units of work that were done.")
        self.failed: Counter = counter("andp_units_failed", "Tries that failed, by kind of reason.", "reason")
        self.retried: Counter = counter("andp_units_retried", "Units that were sent once more after a failed try.")
        self.clips: Counter = counter("andp_clips", "Clips in units that were done.")
        self.neurons: Counter = counter("andp_neurons", "Neurons in units that were done.")
        self.tokens: Counter = counter("andp_tokens", "Tokens generated in units that were done.")
        self.seconds: Histogram = Histogram(
            "andp_unit_seconds", "Seconds that a unit took that was done.", by, buckets=BUCKETS, registry=registry
        )
        self.in_work: Gauge = Gauge(
            "andp_units_in_work", "Units in work now.", by, multiprocess_mode="livesum", registry=registry
        )
        self.loads: Summary = Summary(
            "andp_model_load_seconds", "Seconds that loading a model took.", ("model",), registry=registry
        )


_meters: _Meters | None = None  # None: nobody listens


@contextmanager
def unit(queue: str, stage: str) -> Iterator[None]:
    """A unit is in work inside the block. How it ended is told with `done` or `failed`."""
    if _meters is None:
        yield
        return
    gauge = _meters.in_work.labels(queue, stage)
    gauge.inc()
    try:
        yield
    finally:
        gauge.dec()


def done(queue: str, stage: str, seconds: float, clips: int = 0, neurons: int = 0, tokens: int = 0) -> None:
    """A unit was done, in so many seconds; it held so many clips, neurons, and tokens that were generated."""
    if _meters is None:
        return
    _meters.done.labels(queue, stage).inc()
    _meters.seconds.labels(queue, stage).observe(seconds)
    for counter, number in ((_meters.clips, clips), (_meters.neurons, neurons), (_meters.tokens, tokens)):
        if number:
            counter.labels(queue, stage).inc(number)


def failed(queue: str, stage: str, reason_kind: str) -> None:
    """A try of a unit failed. `reason_kind` is one of a few words, such as the name of the error's class; no message."""
    if _meters is not None:
        _meters.failed.labels(queue, stage, reason_kind).inc()


def retried(queue: str, stage: str) -> None:
    """A unit is sent once more."""
    if _meters is not None:
        _meters.retried.labels(queue, stage).inc()


def loaded(model: str, seconds: float) -> None:
    """A model was loaded, in so many seconds."""
    if _meters is not None:
        _meters.loads.labels(model).observe(seconds)


# ---------------------------------------------------------------------- the folder of numbers


class _Folder:
    """The numbers of this worker's processes, living and dead, as files of prometheus_client."""

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._owner = os.getpid()
        # Children inherit this lock: it is free when the last process of this worker is gone, whatever killed it.
        self._lock = os.open(self.path / "making", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / "making").rename(self.path / "lock")

    def owned(self) -> bool:
        """Is this the process that made it, and not a child?"""
        return os.getpid() == self._owner

    def remove(self) -> None:
        """Remove it, for good."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def read(self) -> Iterable[Metric]:
        """The numbers of all processes together; those of processes that have died are put together for good."""
        from prometheus_client.multiprocess import MultiProcessCollector

        # In this order: whoever has a file and still lives is among the living.
        files = self._files()
        living = _living()
        self._retire({number for file in files if (number := _process(file)) and number not in living})
        merged: Iterable[Metric] = MultiProcessCollector.merge([str(file) for file in self._files()])
        # Libraries may count in the same mode, and so in the same folder; theirs is not ours to tell.
        ours = [metric for metric in merged if metric.name.startswith("andp_")]
        return sorted(ours, key=lambda metric: metric.name)

    def _files(self) -> list[Path]:
        found = []
        for file in self.path.glob("*.db"):
            with suppress(FileNotFoundError):  # a new child has just removed the gauges of a dead one
                if file.stat().st_size:  # an empty file is just being made, or its maker was killed at it
                    found.append(file)
        return found

    def _retire(self, dead: set[int]) -> None:
        from prometheus_client.mmap_dict import MmapedDict, mmap_key
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        for number in dead:
            mark_process_dead(number, str(self.path))
        for kind in _KEPT:
            left = [file for number in dead if (file := self.path / f"{kind}_{number}.db").exists()]
            if not left:
                continue
            together, new = self.path / f"{kind}_0.db", self.path / f"{kind}.new"
            new.unlink(missing_ok=True)
            sums = MmapedDict(str(new))
            before = [together] if together.exists() else []
            for metric in MultiProcessCollector.merge([str(file) for file in before + left], accumulate=False):
                for sample in metric.samples:
                    names, values = list(sample.labels), list(sample.labels.values())
                    key = mmap_key(metric.name, sample.name, names, values, metric.documentation)
                    sums.write_value(key, sample.value, 0.0)
            sums.close()
            new.replace(together)
            for file in left:
                file.unlink()

    def after_fork(self) -> None:
        """In a new child: forget the gauges of a dead process that had the same number."""
        from prometheus_client.multiprocess import mark_process_dead

        if self.path.is_dir():
            mark_process_dead(os.getpid(), str(self.path))


def _process(file: Path) -> int:
    """The number of the process that a file is of; 0: of the dead."""
    return int(file.stem.rpartition("_")[2])


def _living() -> set[int]:
    """This process and all below it, without those that are dead but not yet reaped."""
    import psutil

    found = {os.getpid()}
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
    return found


def _sweep() -> None:
    """Remove the folders of workers that were killed: those whose lock nobody holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with suppress(OSError):  # another user's, another worker's, or one that is just being removed
            lock = os.open(folder / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


# ---------------------------------------------------------------------- what is told


class _Asker:
    """Asks for the queues' depths in a thread of its own: a broker that hangs must not keep the other numbers back."""

    SECONDS = 3.0

    def __init__(self, depths: Depths) -> None:
        self._depths = depths
        self._thread: threading.Thread | None = None
        self._told: Mapping[str, int] | None = None

    def ask(self) -> Mapping[str, int] | None:
        """Messages waiting, by queue; None where the broker does not say."""
        if self._thread is None or not self._thread.is_alive():
            self._told = None
            self._thread = threading.Thread(target=self._ask, name="andp-queue-depths", daemon=True)
            self._thread.start()
        self._thread.join(self.SECONDS)
        return self._told

    def _ask(self) -> None:
        try:
            self._told = dict(self._depths())
        except Exception as exc:
            # Whatever the client of a broker may raise, it is told: here, and as andp_broker_up 0.
            log.warning(
                "the queues' depths cannot be read: %s: %s",
                type(exc).__name__,
                exc,
                exc_info=log.isEnabledFor(logging.DEBUG),
            )


@cache
def version() -> str:
    """Version of the platform; empty where it runs from a checkout that is not installed."""
    return provenance.versions().get("and-platform", "")


class _Worker:
    """Everything that is told at a scrape: what was counted, and what the parent knows of the worker."""

    def __init__(
        self, folder: _Folder, worker: str, queues: Sequence[str], asker: _Asker | None, timeouts: Mapping[str, float]
    ) -> None:
        self._folder = folder
        self._worker = worker
        self._queues = tuple(queues)
        self._asker = asker
        self._timeouts = dict(timeouts)
        self._scrape = threading.Lock()  # the dead are counted once, also when two servers ask at the same time

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client wants them."""
        from prometheus_client.core import GaugeMetricFamily

        def gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
            family = GaugeMetricFamily(name, text, labels=[label])
            for key, value in sorted(values.items()):
                family.add_metric([key], value)
            return family

        with self._scrape:
            yield from self._folder.read()
            depths = self._asker.ask() if self._asker else None
        info = GaugeMetricFamily("andp_worker_info", "About this worker; always 1.", labels=["worker", "version"])
        info.add_metric([self._worker, version()], 1)
        yield info
        yield gauge(
            "andp_worker_queue", "Queues that this worker serves; always 1.", "queue", dict.fromkeys(self._queues, 1)
        )
        yield GaugeMetricFamily(
            "andp_worker_processes", "Processes of this worker, its parent included.", len(_living())
        )
        yield gauge("andp_visibility_timeout_seconds", "Seconds after which an unfinished unit goes to another worker.",
                    "queue", self._timeouts)  # fmt: skip
        if self._asker:
            yield GaugeMetricFamily(
                "andp_broker_up", "1 if the broker told its queues' depths.", int(depths is not None)
            )
        yield gauge("andp_queue_depth", "Messages that wait in a queue of the broker.", "queue", depths or {})


class Server:
    """The port on which a worker answers."""

    def __init__(self, http: WSGIServer, folder: _Folder) -> None:
        self._http = http
        self._folder = folder
        self.port: int = http.server_port

    def close(self) -> None:
        """Stop counting and answering, and remove the numbers."""
        global _meters, _server
        if self._owns():
            self._http.shutdown()
            self._http.server_close()
            self._folder.remove()
            _meters = _server = None

    def _owns(self) -> bool:
        return _server is self and self._folder.owned()

    def after_fork(self) -> None:
        """In a child: give up the port, which would else stay taken after the parent's death."""
        self._http.socket.close()
        self._folder.after_fork()


_server: Server | None = None
_hooked = False


def serve(
    port: int | None, address: str = "0.0.0.0", *, worker: str = "", queues: Sequence[str] = (),
    depths: Depths | None = None, timeouts: Mapping[str, float] | None = None,
) -> Server | None:  # fmt: skip
    """Count from now on, in this process and those forked from it, and answer Prometheus.

    Parameters
    ----------
    port
        Where to answer; 0: any free port; None: nothing is counted.
    address
        Address of the port.
    worker, queues
        The worker's name, and the queues that it serves.
    depths
        Gives the number of messages that wait in each queue of the broker; called at each scrape, in a thread. It is
        given 3 seconds, and must use a connection of its own: the worker's are for its children.
    timeouts
        Visibility timeout of each queue, in seconds.

    Returns
    -------
    Server or None
        None if nothing is counted: no port, or no prometheus_client.

    Raises
    ------
    ConfigError
        The port is taken, or there is no such address.
    """
    global _meters, _server, _hooked
    if port is None:
        return None
    if importlib.util.find_spec("prometheus_client") is None:
        log.warning("no metrics: %s", MissingExtraError("prometheus_client", "workers"))
        return None
    from prometheus_client import CollectorRegistry, start_http_server, values

    if _server is not None:
        _server.close()
    folder = _Folder()
    # The library chooses between memory and files when it is imported, and another library may have done that.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.path)
    values.ValueClass = values.MultiProcessValue()
    told = _Worker(folder, worker, queues, _Asker(depths) if depths else None, timeouts or {})
    registry = CollectorRegistry(auto_describe=False)
    registry.register(told)
    try:
        # Imports what a scrape needs: a thread must not be at that while the worker forks. The broker is not asked yet,
        # for children would share the connection to it.
        folder.read()
        _living()
        http, _thread = start_http_server(port, address, registry)
    except OSError as exc:
        folder.remove()
        raise ConfigError(
            f"the metrics cannot be told at {address}:{port}: {exc.strerror or exc}; set ANDP_METRICS_PORT and "
            "ANDP_METRICS_ADDRESS to what is free here"
        ) from exc
    _server = Server(http, folder)
    _meters = _Meters(CollectorRegistry())
    if not _hooked:
        os.register_at_fork(after_in_child=_after_fork)
        atexit.register(_at_exit)
        _hooked = True
    log.info("metrics for Prometheus at http://%s:%d/metrics", address, _server.port)
    return _server


def join() -> None:
    """In a child that was started and not forked (macOS): count where the parent looks."""
    global _meters
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    if _meters is None and folder.name.startswith(_PREFIX) and folder.is_dir():
        from prometheus_client import CollectorRegistry

        _meters = _Meters(CollectorRegistry())


def _after_fork() -> None:
    if _server is not None:
        _server.after_fork()


def _at_exit() -> None:
    if _server is not None:
        _server.close()
