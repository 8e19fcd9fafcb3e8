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
from and_platform.errors import AudioError, BackendError, OutOfMemoryError

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


@dataclass(frozen=True)
class Exhausted:
    """Memory ran out while the file was measured."""


Outcome = Measured | Known | Broken
Attempt = Outcome | Exhausted
Work = Callable[[Job], Attempt]


def measure_file(job: Job) -> Attempt:
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
        return Exhausted()
    except Exception as exc:  # noqa: BLE001 (a fault of ours or of a library must cost one clip, and be seen)
        return Broken(f"cannot be measured: {type(exc).__name__}: {exc}", traceback.format_exc())
    if wrong := [name for name, value in {**acoustics, **features}.items() if not _is_measure(value)]:
        return Broken(f"cannot be measured: its {', '.join(wrong)} is not finite; look at the samples of the file")
    columns = {"sample_rate": decoded.rate, "channels": decoded.channels, **acoustics, "features": features}
    return Measured(decoded.sha256, columns)


def _is_measure(value: float | None) -> bool:
    """Whether Postgres can hold it as `real`: finite, and within the range of single precision."""
    return value is None or abs(value) < _LARGEST_REAL


_LARGEST_REAL = 3.4e38


def measured(jobs: Iterable[Job], processes: int, work: Work = measure_file) -> Generator[Outcome, None, None]:
    """The outcome of each job, in the order of the jobs, which are read as the work goes on.

    Close the iterator (`contextlib.closing`) to stop the workers early.

    Raises
    ------
    BackendError
        If worker processes do not start at all.
    OutOfMemoryError
        If memory runs out for a file that is measured alone.
    """
    remaining = iter(jobs)
    ahead: deque[_Chunk] = deque()
    executor = _executor(processes)
    try:
        while True:
            while len(ahead) < AHEAD * processes and (chunk := list(islice(remaining, CHUNK))):
                ahead.append((chunk, _submit(executor, work, chunk)))
            if not ahead:
                return
            if not _died(ahead[0][1]) and not _exhausted(ahead[0][1]):
                yield from _outcomes(ahead.popleft())
                continue
            # Everything under way is lost with the worker, and nobody knows whose fault it was. Where memory ran out,
            # files that are measured one at a time may still fit.
            executor.shutdown(wait=True, kill_workers=True)
            yield from _one_by_one(work, ahead)
            ahead.clear()
            executor = _executor(processes)
    finally:
        executor.shutdown(wait=True, kill_workers=True)


_Chunk = tuple[list[Job], "Future[list[Attempt]]"]

# The kernel ends a process with SIGKILL where memory is short, and a damaged file makes a decoder end with another signal
# (SIGSEGV, SIGABRT, SIGFPE). Nobody else sends SIGKILL to our workers, and if somebody did, no file would be at fault.
_KILLED = "SIGKILL"


def _one_by_one(work: Work, ahead: Iterable[_Chunk]) -> Iterator[Outcome]:
    """What is done already, and each other job on its own in a single worker: the one that kills it is known then."""
    executor = _executor(1)
    try:
        for chunk, future in ahead:
            if not _died(future) and not _exhausted(future):
                yield from _outcomes((chunk, future))
                continue
            for job in chunk:
                alone = _submit(executor, work, [job])
                if not _died(alone):
                    yield from _outcomes(([job], alone))
                    continue
                how = re.search(r"exit codes of the workers are \{(.+?)\}", str(alone.exception()))
                code = how.group(1) if how else "no exit code"
                if _KILLED in code:
                    raise _out_of_memory(job)
                executor.shutdown(wait=True, kill_workers=True)
                executor = _executor(1)
                _check_workers(executor)
                yield Broken(f"the decoder died on it ({code}): the file is damaged; encode it again")
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _outcomes(chunk: _Chunk) -> Iterator[Outcome]:
    for job, outcome in zip(chunk[0], chunk[1].result(), strict=True):
        if isinstance(outcome, Exhausted):
            raise _out_of_memory(job)
        yield outcome


def _exhausted(future: Future[list[Attempt]]) -> bool:
    return any(isinstance(outcome, Exhausted) for outcome in future.result())


def _out_of_memory(job: Job) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"memory ran out while {job.path.name} was measured alone; free some memory and run the same command again, which "
        "goes on, or lower ANDP_LARGEST_CLIP so that such a file is left out"
    )


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


def _submit(executor: ProcessPoolExecutor, work: Work, chunk: list[Job]) -> Future[list[Attempt]]:
    from concurrent.futures.process import BrokenProcessPool

    try:
        submitted: Future[list[Attempt]] = executor.submit(_work_on, work, chunk)
    except BrokenProcessPool as exc:  # it died while others were submitted
        submitted = Future()
        submitted.set_exception(exc)
    return submitted


def _died(future: Future[list[Attempt]]) -> bool:
    from concurrent.futures.process import BrokenProcessPool

    from loky.process_executor import ShutdownExecutorError

    # The second is that of work which was under way when its workers were stopped, because memory ran out in another.
    return isinstance(future.exception(), BrokenProcessPool | ShutdownExecutorError)


# ---------------------------------------------------------------------- in the workers


def _work_on(work: Work, chunk: list[Job]) -> list[Attempt]:
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
