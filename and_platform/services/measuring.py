"""Decoding and measuring files in worker processes, a bounded number ahead, results in the order of the jobs.

A worker that dies (a decoder that crashes, the system short of memory) costs the one file that killed it.
The workers import this module and what it needs to decode: no torch, no database.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import re
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from and_platform.backends.audio import decode
from and_platform.core.acoustics import describe_features, measure
from and_platform.errors import AudioError, BackendError

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

CHUNK = 4
"""Files per message to a worker."""
AHEAD = 3
"""Chunks under way per worker; with CHUNK it bounds what is held in memory."""


@dataclass(frozen=True)
class Job:
    """A file to measure, and the hashes of the contents of it that are measured already."""

    path: Path
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Measured:
    """What is known of a file after decoding it; `columns` are those of `clips`."""

    sha256: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """The content is one of those that the job named: nothing was decoded."""

    sha256: str


@dataclass(frozen=True)
class Broken:
    """The file cannot be used."""

    reason: str
    detail: str | None = None


Outcome = Measured | Known | Broken
Work = Callable[[Job], Outcome]


def measure_file(job: Job) -> Outcome:
    """Decode and measure one file; whatever is wrong with it is told, not raised."""
    try:
        if job.known and (digest := _digest(job.path)) in job.known:
            return Known(digest)
        decoded = decode(job.path)
        acoustics = asdict(measure(decoded.waveform, decoded.rate))
        if acoustics["median_frequency_hz"] == 0:  # a constant has no power at any frequency
            acoustics["median_frequency_hz"] = None
        features = asdict(describe_features(decoded.waveform, decoded.rate))
    except AudioError as exc:
        return Broken(str(exc))
    except MemoryError:
        return Broken("too large: it does not fit into memory; cut it into shorter clips")
    except Exception as exc:  # noqa: BLE001 (a fault of ours or of a library must cost one clip, and be seen)
        return Broken(f"cannot be measured: {type(exc).__name__}: {exc}", traceback.format_exc())
    columns = {"sample_rate": decoded.rate, "channels": decoded.channels, **acoustics, "features": features}
    return Measured(decoded.sha256, columns)


def measured(jobs: Iterable[Job], processes: int, work: Work = measure_file) -> Generator[Outcome, None, None]:
    """The outcome of each job, in the order of the jobs, which are read as the work goes on.

    Close the iterator (`contextlib.closing`) to stop the workers early.

    Raises
    ------
    BackendError
        If worker processes do not start at all.
    """
    remaining = iter(jobs)
    ahead: deque[tuple[list[Job], Future[list[Outcome]]]] = deque()
    executor = _executor(processes)
    try:
        while True:
            while len(ahead) < AHEAD * processes and (chunk := list(islice(remaining, CHUNK))):
                ahead.append((chunk, _submit(executor, work, chunk)))
            if not ahead:
                return
            if not _died(ahead[0][1]):
                yield from ahead.popleft()[1].result()
                continue
            # Everything under way is lost with the worker, and nobody knows whose fault it was.
            executor.shutdown(wait=True, kill_workers=True)
            yield from _one_by_one(work, ahead)
            ahead.clear()
            executor = _executor(processes)
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _one_by_one(work: Work, ahead: Iterable[tuple[list[Job], Future[list[Outcome]]]]) -> Iterator[Outcome]:
    """What is done already, and each other job on its own in a single worker: the one that kills it is known then."""
    executor = _executor(1)
    try:
        for chunk, future in ahead:
            if not _died(future):
                yield from future.result()
                continue
            for job in chunk:
                alone = _submit(executor, work, [job])
                if not _died(alone):
                    yield from alone.result()
                    continue
                how = re.search(r"exit codes of the workers are \{(.+?)\}", str(alone.exception()))
                executor.shutdown(wait=True, kill_workers=True)
                executor = _executor(1)
                _check_workers(executor)
                yield Broken(
                    f"the decoder died on it ({how.group(1) if how else 'no exit code'}): the file is damaged, or too "
                    "large for the memory; encode it again"
                )
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _check_workers(executor: ProcessPoolExecutor) -> None:
    """Tell a file that kills a worker from a machine on which no worker lives."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        executor.submit(os.getpid).result()
    except BrokenProcessPool as exc:
        raise BackendError(f"worker processes die as soon as they start; is there memory left? ({exc})") from exc


def _executor(processes: int) -> ProcessPoolExecutor:
    # loky rather than the standard library: its workers do not run the caller's main module again, which would
    # load torch for `andp` and break in a notebook or in a script without a main guard.
    from loky import ProcessPoolExecutor

    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return ProcessPoolExecutor(processes, initializer=_begin_worker, initargs=(os.getpid(),), env=threads)


def _submit(executor: ProcessPoolExecutor, work: Work, chunk: list[Job]) -> Future[list[Outcome]]:
    from concurrent.futures.process import BrokenProcessPool

    try:
        submitted: Future[list[Outcome]] = executor.submit(_work_on, work, chunk)
    except BrokenProcessPool as exc:  # it died while others were submitted
        submitted = Future()
        submitted.set_exception(exc)
    return submitted


def _died(future: Future[list[Outcome]]) -> bool:
    from concurrent.futures.process import BrokenProcessPool

    return isinstance(future.exception(), BrokenProcessPool)


# ---------------------------------------------------------------------- in the workers


def _work_on(work: Work, chunk: list[Job]) -> list[Outcome]:
    return [work(job) for job in chunk]


def _begin_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who stops us
    faulthandler.disable()  # a crash is reported as a failure of its file, not as a dump over the progress bar
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """Without it the workers of a killed parent would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes; None where it cannot be read, which decoding then explains."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
