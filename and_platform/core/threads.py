"""Work on several cores by blocks, instead of inside every single operation.

Threads inside an operation wait for each other at its end. Where operations are short and many, a machine
that is also busy with something else loses most of its time in these waits (ten times and more, as
measured); blocks that run side by side do not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    pass


Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Keep torch to one thread per operation, and say how many threads `spread` may use instead."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield n_threads
    finally:
        # The number is each thread's own, but threads that start later inherit the last one that was set.
        torch.set_num_threads(n_threads)


def spread(function: Callable[[Item], Result], items: Iterable[Item], n_threads: int) -> Iterator[Result]:
    """Map a function over items on several threads, within `one_thread_each`.

    Results come in order. Items are taken from the iterable, in the calling thread, only a few ahead of the
    results. numpy's and torch's loops release the interpreter's lock.
    """
    import torch

    if n_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def spread_rows(function: Callable[[slice], None], n_rows: int, size: int, n_threads: int) -> None:
    """Run a function over slices of rows, `size` at a time; see `spread`."""
    slices = [slice(start, start + size) for start in range(0, n_rows, size)]
    for _ in spread(function, slices, min(n_threads, max(1, len(slices)))):
        pass
