"""Models that take memory only while they work."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Model = TypeVar("Model")


class Lazy(Generic[Model]):
    """A model that is loaded when it is first used, and can be let go again.

    A backend's recipe is asked for long before its model works, and often it does not work at all, since its results
    are there: files and configuration are enough for that. And what fits on a GPU one after the other need not fit at once.

    Parameters
    ----------
    load
        Makes the model; called again after `release`.
    """

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self._made: list[Model] = []
        self._lock = Lock()

    def get(self) -> Model:
        """The model; whatever `load` raises."""
        with self._lock:
            if not self._made:
                self._made.append(self._load())
            return self._made[0]

    def release(self) -> None:
        """Give its memory back; it is loaded again if it is used again."""
        with self._lock:
            if not self._made:
                return
            self._made.clear()
        gc.collect()  # models hold themselves in circles
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
