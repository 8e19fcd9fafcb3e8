"""Where the files of a model are, what identifies them, and how they are read.

The rules: safetensors before pickles, pickles with `weights_only` alone (no code of a checkpoint ever runs); what is used
is known by a hash of its content, whatever place it came from; with HF_HUB_OFFLINE set only what is already there is
used; nothing is fetched before a model is made; and what a folder's files may say is checked first (`checkpoint_folder`).
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

from and_platform.backends.batching import is_out_of_memory
from and_platform.backends.checkpoint_folder import PARTS, check_folder
from and_platform.errors import AndpError, BackendError, WeightsMissingError

_PICKLES = frozenset([".bin", ".pt", ".pth", ".ckpt"])
_WEIGHTS = _PICKLES | {".safetensors", ".gguf"}
_OTHER_FORMATS = [
    "original/*",
    "consolidated*",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.ot",
    "*.tflite",
    "onnx/*",
    "openvino/*",
    "coreml/*",
]
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
_WAIT_S = 10.0
LOCAL: Mapping[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""For `from_pretrained` of transformers' Auto classes: what is in the folder, and none of its code."""
_DEVICE = re.compile(r"\b(CUDA|cuda|NVIDIA|MPS|HIP|driver)\b")


@dataclass(frozen=True)
class Weights:
    """A model's directory or file.

    `revision` is a hash of everything in it that changes results, so that the same model is known again wherever it
    lies; `origin` says where this copy was taken from: the hub id and commit, or the path.
    """

    path: Path
    revision: str
    origin: str


def find_weights(source: str) -> Weights:
    """Find a model by its directory, its file or its id on the model hub.

    Parameters
    ----------
    source
        A path, or "owner/name" with "@revision" after it for a branch, tag or commit other than the main branch.

    Raises
    ------
    WeightsMissingError
        If there is nothing there and the hub cannot give it, or its configuration cannot be read.
    BackendError
        If its files name code, or files elsewhere.
    """
    path = Path(source).expanduser()
    if path.exists():
        if path.is_dir():
            check_folder(path)
        return Weights(path, _digest(path), str(path.resolve()))
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise WeightsMissingError(
            f"there is no model at {source}; give a directory that holds one, or an id of the model hub"
        )
    name, _, revision = source.partition("@")
    snapshot = _snapshot(name, revision or None)
    check_folder(snapshot)
    return Weights(snapshot, _digest(snapshot), f"{name}@{snapshot.name}")


def is_here(source: str) -> bool:
    """Whether a model can be had whole without the network: a path that exists, or a hub id in the cache."""
    if Path(source).expanduser().exists():
        return True
    if not _HUB_ID.fullmatch(source):
        return False
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    for ignored in ([], [f"*{suffix}" for suffix in _PICKLES]):
        try:
            folder = snapshot_download(
                name, revision=revision or None, local_files_only=True, ignore_patterns=[*_OTHER_FORMATS, *ignored]
            )
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            continue
        return any(file.suffix in _WEIGHTS for file in Path(folder).rglob("*"))
    return False


def read_pickle(path: Path) -> Any:
    """The tensors and plain values in a file that `torch.save` wrote, on the CPU; nothing in it is executed.

    Raises
    ------
    WeightsMissingError
        If there is no such file, or it holds more than tensors and plain values.
    """
    import torch

    try:
        _check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats; what cannot be read is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as exc:
        raise WeightsMissingError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except MemoryError:
        raise
    except Exception as exc:  # a damaged pickle makes torch raise nearly anything
        raise WeightsMissingError(
            f"{path} holds no plain checkpoint ({told(exc)}); it is damaged, or holds code, which is never run"
        ) from exc


def _check_stored(path: Path) -> None:
    """Refuse a file of torch's whose parts are compressed, which torch never does: they may be of any size."""
    if not is_zipfile(path):
        return
    with suppress(BadZipFile), ZipFile(path) as parts:
        if any(part.compress_type for part in parts.infolist()):
            raise ValueError("its parts are compressed")


def told(exc: BaseException) -> str:
    """What an error says, in one line of at most 300 characters, with its kind where the message alone says little."""
    reason = " ".join(str(exc).strip().partition("\n")[0].split())[:300]
    if not reason:
        return type(exc).__name__
    plain = isinstance(exc, OSError | RuntimeError | ValueError | ImportError) and not isinstance(exc, UnicodeError)
    return reason if plain and not isinstance(exc, RecursionError) else f"{type(exc).__name__}: {reason}"


def check_whole(missing: Iterable[str]) -> None:
    """ValueError where a model's files lack weights, which transformers would fill with random numbers.

    `missing` are the names that it lists as `missing_keys`; inside `loading` it becomes an error about the files.
    """
    if lacking := sorted(missing):
        raise ValueError(f"{len(lacking)} weights are not in the files, {lacking[0]} among them")


@contextmanager
def loading(source: str) -> Iterator[None]:
    """Load a model without progress bars; turn the ways in which its files can be unusable into one error.

    Raises
    ------
    WeightsMissingError
        If the files are not those of a model of the kind asked for.
    BackendError
        If the device cannot be used.
    """
    from transformers.utils import logging

    refuse_code()
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except AndpError:
        raise
    except Exception as exc:  # damaged files make the libraries raise nearly anything
        if isinstance(exc, MemoryError) or is_out_of_memory(exc):
            raise  # less at a time may do
        if isinstance(exc, RuntimeError) and "mismatch" in str(exc).lower():
            reason = " ".join(str(exc).split())[:300]
            raise WeightsMissingError(f"the weights of {source} do not fit its configuration: {reason}") from exc
        if isinstance(exc, RuntimeError) and _DEVICE.search(str(exc)):  # not the files' fault
            raise BackendError(f"cannot load the model of {source} on its device: {told(exc)}") from exc
        raise WeightsMissingError(f"cannot load a model from {source}: {told(exc)}") from exc
    finally:
        if shown:
            logging.enable_progress_bar()


def refuse_code() -> None:
    """Have transformers, in this process, run nothing of the model hub and ask nobody whether it should.

    Where a package loads a model without saying that its code is off, transformers asks at the terminal. Some models take
    kernels from the hub without a word in their configuration; they have a slower way of their own.
    """
    dynamic_modules = import_module("transformers.dynamic_module_utils")
    vars(dynamic_modules)["TIME_OUT_REMOTE_CODE"] = 0
    if find_spec("kernels") is None:
        return
    hub_kernels = import_module("transformers.integrations.hub_kernels")

    def refuse(name: str, *_: Any, **__: Any) -> Any:
        raise FileNotFoundError(f"the kernel {name} is not fetched: no code of the model hub is run")

    vars(hub_kernels)["get_kernel_hub"] = refuse


def _snapshot(name: str, revision: str | None) -> Path:
    """The folder of a hub model's files, downloaded where they are not in the cache yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    foreseen: tuple[type[Exception], ...] = (HfHubHTTPError, HFValidationError, OSError, *_connection_errors())

    def fetch(*ignored: str, **options: Any) -> Any:
        patterns = [*_OTHER_FORMATS, *ignored]
        return snapshot_download(name, revision=revision, ignore_patterns=patterns, etag_timeout=_WAIT_S, **options)

    try:
        try:
            listed = [file.filename for file in fetch(dry_run=True)]
        except DryRunError:  # the hub cannot be asked: what is in the cache has to do, with pickles or without
            try:
                return Path(fetch())
            except LocalEntryNotFoundError:
                return Path(fetch(*(f"*{suffix}" for suffix in _PICKLES)))
        return Path(fetch(*_unused_pickles(listed)))
    except foreseen as exc:
        reason = str(exc).strip().partition("\n")[0]
        raise WeightsMissingError(
            f"the model '{name}' is neither a directory here, nor in the cache, nor to be had from the hub ({reason}); "
            f"check its name, or download it elsewhere (hf download {name} --local-dir DIR) and give DIR"
        ) from exc


def _connection_errors() -> tuple[type[Exception], ...]:
    """What the hub's library lets through when a connection breaks: errors of the HTTP client that it uses."""
    clients = [
        import_module(name) for name in ("httpx", "httpx2") if find_spec(name)
    ]  # one or the other, by its version
    return tuple(client.HTTPError for client in clients)


def _unused_pickles(names: Iterable[str]) -> list[str]:
    """The pickles in folders that have safetensors too."""
    paths = [Path(name) for name in names]
    safe = {path.parent for path in paths if path.suffix == ".safetensors"}
    return [path.as_posix() for path in paths if path.suffix in _PICKLES and path.parent in safe]


def _digest(path: Path) -> str:
    """A hash over names and contents of a model's file or files, less pickles that safetensors stand in for."""
    if path.is_file():
        files = {path.name: path}
    else:
        found = (file for file in path.rglob("*") if file.suffix in PARTS and file.is_file())
        files = {file.relative_to(path).as_posix(): file for file in found}
        files = {name: file for name, file in files.items() if not name.startswith(".")}  # .cache of a download
        used = [name for name in files if not any(fnmatchcase(name, other) for other in _OTHER_FORMATS)]
        files = {name: files[name] for name in used or files}
    for name in _unused_pickles(files):
        del files[name]
    if not files:
        raise WeightsMissingError(f"the directory {path} holds no model; give one with config.json and weights")
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        total.update(f"{name} {_sha256(file)}\n".encode())
    return f"sha256:{total.hexdigest()[:32]}"


def _sha256(file: Path) -> str:
    """SHA-256 of a file's content, read off its name where the hub's cache keeps a large file by its hash."""
    stored = file.resolve()
    if stored.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", stored.name):
        return stored.name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
