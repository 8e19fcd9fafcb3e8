"""Work on several cores by blocks, instead of inside every single operation.

Threads inside an operation wait for each other at its end. Where operations are short and many, a machine
that is also busy with something else loses most of its time in these waits (ten times and more, as
measured); blocks that run side by side do not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function over items on as many threads as torch may use; inside, torch uses one.

    Results come in order. Items are taken from the iterable, in the calling thread, only a few ahead of the
    results. Nested calls run in their own thread alone. numpy's and torch's loops release the interpreter's
    lock.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield from map(function, items)
        return
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * n_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        # The number is each thread's own, but threads that start later inherit the last one that was set.
        torch.set_num_threads(n_threads)


def spread_rows(function: Callable[[slice], None], n_rows: int, size: int) -> None:
    """Run a function over slices of rows, `size` at a time; see `spread`."""
    slices = [slice(start, start + size) for start in range(0, n_rows, size)]
    for _ in spread(function, slices) if len(slices) > 1 else map(function, slices):
        pass
