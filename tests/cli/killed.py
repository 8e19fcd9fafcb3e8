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


def die_at_output(number: int, *, exchange: bool = True) -> None:
    """Die before the NUMBER-th step (from 1) of writing folders and files: drafts, syncs, renames, removals.

    `exchange`: whether the file system can exchange two folders; else two renames take its place.
    """
    from and_platform import output_files

    steps = itertools.count(1)

    def counted(real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return step

    def of_drafts(real: Any) -> Any:
        """Only moves from and to drafts count: libraries rename things too."""
        dying = counted(real)
        return lambda one, other: (dying if ".andp-" in f"{one}{other}" else real)(one, other)

    os.rename, os.replace = of_drafts(os.rename), of_drafts(os.replace)
    output_files._exchange = counted(output_files._exchange if exchange else lambda _one, _other: False)
    for name in ("_begin", "_sync_tree", "_remove"):
        setattr(output_files, name, counted(getattr(output_files, name)))
