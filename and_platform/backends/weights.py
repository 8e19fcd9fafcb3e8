"""Where the files of a model are, and what identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from and_platform.errors import WeightsMissingError

_PARTS = frozenset([".json", ".txt", ".jinja", ".model", ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz"])
_OTHER_FORMATS = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "onnx/*", "openvino/*", "coreml/*"]


@dataclass(frozen=True)
class Weights:
    """A model's directory or file, and the revision of what lies there."""

    path: Path
    revision: str


def find_weights(source: str) -> Weights:
    """Find a model by its directory, its file or its id on the model hub.

    Returns
    -------
    Weights
        A hub model's revision is its commit; for local files it is a hash of everything that changes results.

    Raises
    ------
    WeightsMissingError
        If there is nothing there and the hub cannot give it.
    """
    path = Path(source).expanduser()
    if path.exists():
        return Weights(path, _digest(path))
    if source.startswith((".", "/", "~")):
        raise WeightsMissingError(f"there is no model at {source}; give a directory that holds one, or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(source, ignore_patterns=_OTHER_FORMATS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        reason = str(exc).strip().partition("\n")[0]
        raise WeightsMissingError(
            f"the model '{source}' is neither a directory here nor available from the hub ({reason}); "
            "give the path of a directory that holds it"
        ) from exc
    return Weights(snapshot, snapshot.name)


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in _PARTS and p.is_file())
    if not files:
        raise WeightsMissingError(f"the directory {path} holds no model; give one with config.json and weights")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            inner = hashlib.file_digest(stream, "sha256").hexdigest()
        name = file.name if file == path else file.relative_to(path).as_posix()
        total.update(f"{name} {inner}\n".encode())
    return f"sha256:{total.hexdigest()[:32]}"


@contextmanager
def loading(source: str) -> Iterator[None]:
    """Load a model without progress bars; turn the ways in which its files can be unusable into one error.

    Raises
    ------
    WeightsMissingError
        If the files are not those of a model of the kind asked for.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        reason = str(exc).strip().partition("\n")[0]
        raise WeightsMissingError(f"cannot load a model from {source}: {reason}") from exc
    finally:
        if shown:
            logging.enable_progress_bar()
