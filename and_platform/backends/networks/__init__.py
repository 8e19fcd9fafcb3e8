"""Networks to dissect: loading them, reading their activations, switching neurons off, training a small one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from and_platform.backends.networks.base import LoadedNetwork


def load_network(source: str | Path) -> LoadedNetwork:
    """A network from a directory or hub id of `transformers`, from "module:factory", or a BEATs from its file or directory.

    Raises
    ------
    WeightsMissingError, BackendError, ConfigError
        See `transformers_audio.load`, `factory.load` and `beats.load`.
    """
    if not Path(source).is_dir() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(source)):
        from and_platform.backends.networks import factory

        return factory.load(str(source))
    from and_platform.backends.networks import beats, transformers_audio

    if beats.is_beats(source):
        return beats.load(source)
    return transformers_audio.load(source)
