"""Audio network dissection on Postgres: find out what the neurons of an audio network do."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from and_platform.api import Platform, open

__all__ = ["Platform", "open"]

try:
    __version__ = metadata.version("and-platform")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    # Late, so that `andp --help` and the errors module import nothing heavy.
    if name in __all__:
        from and_platform import api

        return getattr(api, name)
    raise AttributeError(f"module 'and_platform' has no attribute '{name}'")
