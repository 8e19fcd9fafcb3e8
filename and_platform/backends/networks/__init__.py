"""Networks to dissect: loading them, reading their activations, switching neurons off, training a small one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from and_platform.errors import ConfigError, WeightsMissingError

if TYPE_CHECKING:
    from and_platform.backends.networks.base import LoadedNetwork

_WEIGHT_SUFFIXES = frozenset(
    [
        ".bin",
        ".ckpt",
        ".gguf",
        ".h5",
        ".keras",
        ".npz",
        ".onnx",
        ".pb",
        ".pkl",
        ".pt",
        ".pt2",
        ".pth",
        ".safetensors",
        ".tflite",
    ]
)
_WAYS_IN = (
    "give the directory of a checkpoint (config.json and weights, as save_pretrained() writes), or FILE.py:factory, a "
    "function of yours that builds the network and loads these weights"
)


def load_network(source: str | Path) -> LoadedNetwork:
    """A network from a directory or hub id of `transformers`, from a function of the user's, or a BEATs.

    A function is "module:factory" or "FILE.py:factory"; a BEATs is a published file, or a directory that the platform wrote.

    Raises
    ------
    WeightsMissingError, BackendError, ConfigError
        See `transformers_audio.load`, `factory.load` and `beats.load`; and where the source is some other file.
    """
    from and_platform.backends.checkpoint_folder import check_folder
    from and_platform.backends.networks import beats, factory, transformers_audio

    path = Path(source).expanduser()
    if path.is_dir():
        check_folder(path)
    if not path.is_dir() and factory.is_factory(source):
        return factory.load(str(source))
    if beats.is_beats(source):
        try:
            return beats.load(source)
        except WeightsMissingError as exc:
            if not path.is_file():
                raise
            raise WeightsMissingError(f"{exc}; for a network that is no BEATs, {_WAYS_IN}") from exc
    if path.suffix == ".py":
        raise ConfigError(f"'{source}' names no function; write {source}:factory, a function that returns the network")
    if not path.is_dir() and (path.is_file() or path.suffix.lower() in _WEIGHT_SUFFIXES):
        raise WeightsMissingError(f"'{source}' is a file, which does not say what network it is of; {_WAYS_IN}")
    return transformers_audio.load(source)


def stored_location(source: str) -> str:
    """How a network is found again by a command that runs in another folder: paths are made absolute.

    Raises
    ------
    ConfigError
        The file or module of a factory is missing.
    """
    from and_platform.backends.networks import factory

    path = Path(source).expanduser()
    if path.exists():
        return str(path.resolve())
    return factory.stored_location(source) if factory.is_factory(source) else source
