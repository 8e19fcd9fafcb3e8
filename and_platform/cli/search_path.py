"""Where `andp` and its child processes look for modules: never in the folder that they are started in.

Optional packages are looked up by name (`torchaudio`, `psycopg_c`, ...): a file of that name in a shared folder would run.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

_PROGRAM = Path(__file__).resolve().parents[2]
"""The folder of the package, which in a checkout may be the working folder."""


def close_search_path() -> None:
    """Take the working folder off `sys.path`, and keep it off that of child processes.

    `python -m` and `python -c` put it first, and so does an empty entry of PYTHONPATH (":/folder" names two). A folder that
    PYTHONPATH names, and the one where this program lies, stay.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # decoders, their trackers and model servers are started with -m and -c
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [folder for folder in named if folder]
    has_empty = bool(kept) and len(kept) < len(named)
    if has_empty:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    try:
        here = Path.cwd().resolve()
    except OSError:  # it was deleted
        sys.path[:] = [folder for folder in sys.path if folder]
        return
    first = sys.path[:1]
    if not sys.flags.safe_path and first and _is(first[0], here) and here != _PROGRAM:
        del sys.path[0]
    if has_empty and not any(_is(folder, here) for folder in (*kept, *_own_folders())):
        sys.path[:] = [folder for folder in sys.path if not _is(folder, here)]


def _own_folders() -> list[str]:
    """Where Python itself, its packages and this program lie."""
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return [str(_PROGRAM), *standard, *site.getsitepackages(), site.getusersitepackages()]


def _is(folder: str, here: Path) -> bool:
    return not folder or Path(folder).resolve() == here
