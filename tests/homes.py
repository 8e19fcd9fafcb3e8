"""Folders for embedded servers: a short path, for the socket's sake, that the server's user may pass through."""

from __future__ import annotations

import tempfile
from pathlib import Path


def new_home(prefix: str) -> Path:
    """A new folder. As root, one that is closed to the server's user would have its cluster in /var/lib/andp."""
    home = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    home.chmod(0o711)
    return home
