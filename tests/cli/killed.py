"""What a process does first that is to die, by SIGKILL, at a chosen point of its work."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
from typing import Any


def small_blocks() -> None:
    """Make blocks and stretches small, so that a few clips make several of each."""
    from and_platform.services import activations

    activations.BLOCK, activations.STRETCH = 4, 8


def die_at(target: str, call: int, when: str) -> None:
    """Die at a function's CALL-th call (from 1), before it or after it; blocks are small."""
    small_blocks()
    module_name, _, name = target.rpartition(".")
    module = importlib.import_module(module_name)
    real, calls = getattr(module, name), itertools.count(1)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        due = next(calls) == call
        if due and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, wrapped)
