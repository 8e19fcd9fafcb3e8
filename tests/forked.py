"""`andp` as a process of its own that is forked from one which has imported the libraries: it starts at once.

A test that types ten commands would else import torch and its friends ten times.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from and_platform.cli import main

ROOT = Path(__file__).parents[1]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.forked", "torch", "scipy.signal", "scipy.ndimage", "sentence_transformers", "and_platform.api"]
)


def fits(given: dict[str, str]) -> bool:
    """Whether these variables are read when a command runs. Libraries read theirs when they are imported."""
    return all(name.startswith("ANDP_") for name in given)


def run(
    *arguments: str,
    environment: dict[str, str],
    given: str = "",
    timeout: float = 300,
    before: Callable[[], Any] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `andp ARGUMENTS` in a process with these variables, and `given` on its standard input.

    `before` is called in it first: a function of a module, or a `functools.partial` of one.

    Raises
    ------
    subprocess.TimeoutExpired
        It took longer than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("in", "out", "err", "status")]
        streams[0].write_text(given)
        process = _context.Process(target=_command, args=(arguments, environment, streams, before))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["andp", *arguments], timeout)
        out, err, status = (stream.read_text() if stream.exists() else "" for stream in streams[1:])
        # Where another thread starts a process, multiprocessing may take a status twice, and then makes it 255.
        return subprocess.CompletedProcess(["andp", *arguments], int(status or process.exitcode), out, err)


def _command(
    arguments: tuple[str, ...], environment: dict[str, str], streams: list[Path], before: Callable[[], Any] | None
) -> NoReturn:
    status = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(ROOT)
        # Distributions that a test has made, such as those with backends.
        sys.path[1:1] = [folder for folder in environment["PYTHONPATH"].split(os.pathsep) if folder]
        for number, (stream, mode) in enumerate(zip(streams[:3], ("r", "w", "w"), strict=True)):
            opened = os.open(stream, os.O_RDONLY if mode == "r" else os.O_WRONLY | os.O_CREAT)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, closefd=False)  # noqa: SIM115 (they last as long as the process)
            for number, mode in enumerate(("r", "w", "w"))
        )
        if threads := environment.get("OMP_NUM_THREADS"):  # OpenMP has read it when torch was imported
            import torch

            torch.set_num_threads(int(threads))
        if before is not None:
            before()
        sys.argv = [main.__file__, *arguments]
        main.main()
        status = 0
    except SystemExit as exited:
        status = exited.code if isinstance(exited.code, int) else int(exited.code is not None)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        streams[3].write_text(str(status))
        os._exit(status)
