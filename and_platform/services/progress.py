"""How services tell how far they are, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """A listener: the CLI draws bars, a notebook may too, tests count."""

    def stage(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """A stretch of work of `total` units; the context's value is called with the number just done."""
        ...

    def note(self, text: str) -> None:
        """One line that the user should see."""
        ...


class Silent:
    """Listens to nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        yield lambda _n: None

    def note(self, text: str) -> None:
        pass


SILENT = Silent()
