"""Run `andp ARGUMENTS` and kill this very process, with SIGKILL, at a chosen point.

    python killed.py MODULE.FUNCTION CALL before|after ARGUMENTS…

The process dies at the CALL-th call of the function (from 1), before it or after it; with CALL 0 it lives. Blocks and
stretches are made small, so that a few clips make several of each.
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from typing import Any

from and_platform.services import activations

activations.BLOCK, activations.STRETCH = 4, 8


def die_at(target: str, call: int, when: str) -> None:
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


if __name__ == "__main__":
    target, call, when, *arguments = sys.argv[1:]
    if int(call):
        die_at(target, int(call), when)
    sys.argv = ["andp", *arguments]
    from and_platform.cli.main import main

    main()
