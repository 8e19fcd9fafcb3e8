"""What the files of a checkpoint may say, checked before any library reads them.

Libraries act on their configuration: they import classes and kernels by name, fetch other models, and open files by path.
Code of a checkpoint is never run, and none of its files may name code or files that lie elsewhere. Keys that do such things
have known values here; all other keys are the library's to judge. Links lead to files of the folder, or into the model hub's
cache, which keeps its files so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from and_platform.errors import BackendError, WeightsMissingError

PARTS = frozenset(
    [".json", ".txt", ".jinja", ".model", ".toml", ".safetensors", ".gguf", ".npz", ".bin", ".pt", ".pth", ".ckpt"]
)
"""Suffixes of the files that make up a model."""

_DEEPEST_FOLDER = 4  # of a model's parts, as sentence-transformers nests them
_MOST_BYTES = 64 * 2**20  # of a configuration; the index of a model with 100,000 tensors has 10 MB
_DEEPEST = 64  # of nested values; libraries walk through them recursively
_MOST_LAYERS = 10_000
_MOST: Mapping[str, int] = {
    # of what libraries make at once, whatever the weights are: far more than any network has
    "num_labels": 1_000_000,
    "sampling_rate": 1_000_000,
    "feature_size": 100_000,
    "num_mel_bins": 100_000,
    "chunk_length": 100_000,
    "chunk_length_s": 100_000,
    "max_length_s": 100_000,
    "n_fft": 1_000_000,
    "fft_window_size": 1_000_000,
    "hop_length": 1_000_000,
    "n_samples": 100_000_000,
    "nb_max_samples": 100_000_000,
    "nb_max_frames": 10_000_000,
}

_IMPLEMENTATION = re.compile(r"(attn|attention|experts|moe)_implementation(_internal)?$")
_ATTENTION = frozenset(["eager", "sdpa", "flex_attention", "paged|eager", "paged|sdpa"])
_FLASH = re.compile(r"(paged\|)?flash_attention_[0-9]")
_EXPERTS = frozenset(["eager", "batched_mm", "grouped_mm"])
_CLASS = re.compile(
    r"(sentence_transformers\.[\w.]{1,200}\.)?\w{0,200}(Tokenizer|Processor|Extractor|Backend)\w{0,200}"
)
_CLASS_KEYS = frozenset(
    [
        "audio_processor_type",
        "feature_extractor_class",
        "feature_extractor_type",
        "image_processor_class",
        "image_processor_type",
        "processor_class",
        "tokenizer_class",
        "video_processor_class",
        "video_processor_type",
    ]
)
_DTYPE = re.compile(r"(torch\.)?(auto|bool|half|double|b?float[0-9]*(_\w+)?|u?int[0-9]+|complex[0-9]+)")
_CODE_KEYS = frozenset(["allow_all_kernels", "kernel_config", "megatron_config", "trust_remote_code", "use_kernels"])
_PLACE_KEYS = frozenset(["audio_tokenizer_name_or_path", "backbone", "class_info_file", "repo_path"])
_TIMM_KEYS = frozenset(["architecture", "timm_model_name"])
_HUB_KEYS = frozenset(["hf_model_name", "hf_tokenizer_name"])
_LAYERS = re.compile(r"(^|_)(layers?|blocks?)$")
_ACTIVATION = re.compile(r"torch\.nn\.(modules\.\w+\.)?\w+")
_MODULE = re.compile(
    r"sentence_transformers\.(\w+\.)*(Asym|BoW|CLIPModel|CNN|Dense|Dropout|LSTM|LayerNorm|Normalize|Pooling|Router|"
    r"StaticEmbedding|Transformer|WeightedLayerPooling|WordEmbeddings|WordWeights)"
)
_CONFIGS = frozenset(
    f"{name}.json"
    for name in (
        "adapter_config",
        "audio_tokenizer_config",
        "config",
        "config_sentence_transformers",
        "generation_config",
        "open_clip_config",
        "preprocessor_config",
        "processor_config",
        "router_config",
        "tokenizer_config",
        "video_preprocessor_config",
    )
)
_SENTENCE_CONFIG = re.compile(r"sentence_[\w-]+_config\.json")
_ARGUMENTS = frozenset(["model_args", "model_kwargs", "processor_kwargs", "tokenizer_args"])
_KNOWN_ARGUMENTS = frozenset(
    [
        "add_pooling_layer",
        "attn_implementation",
        "do_lower_case",
        "dtype",
        "fix_mistral_regex",
        "max_length",
        "max_pixels",
        "min_pixels",
        "model_max_length",
        "padding_side",
        "torch_dtype",
        "truncation_side",
        "use_fast",
    ]
)
_CACHED = re.compile(r".*/(models|datasets)--[^/]+/blobs/[^/]+")


def check_folder(folder: Path) -> None:
    """Refuse a checkpoint whose files name code, or files and models elsewhere, or are no configuration at all.

    Parameters
    ----------
    folder
        Directory of a model, as it was downloaded or written.

    Raises
    ------
    WeightsMissingError
        A configuration cannot be read, or is none.
    BackendError
        One asks for code, a file outside the folder or another model, or promises what no network has.
    """
    root = Path(os.path.realpath(folder))
    for file in _files(root):
        _check_link(root, file)
        name = file.name
        if name == "modules.json":
            _check_modules(file, _read(file, list))
        elif name.endswith(".index.json"):
            _check_index(file, _read(file, dict))
        elif name in _CONFIGS or _SENTENCE_CONFIG.fullmatch(name):
            _check_config(root, file, _read(file, dict))
        elif name.endswith("_config.json"):
            _check_other(root, file)


def read_config(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises
    ------
    WeightsMissingError
        There is no such file, or it holds something else.
    """
    content: dict[str, Any] = _read(file, dict)
    return content


def _read(file: Path, kind: type[Any]) -> Any:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise BackendError(
                f"'{file}' has {file.stat().st_size:,} bytes, and is no configuration; download it again"
            )
        content = json.loads(file.read_text("utf-8"))
    except OSError as exc:
        raise WeightsMissingError(f"cannot read '{file}': {exc.strerror or exc}; download it again") from exc
    except (ValueError, RecursionError) as exc:  # a number of 5,000 digits is a ValueError, too
        reason = str(exc).partition("\n")[0]
        raise WeightsMissingError(f"'{file}' is not valid JSON ({reason}); download it again") from exc
    if not isinstance(content, kind):
        wanted = "a list" if kind is list else "an object"
        raise WeightsMissingError(f"'{file}' holds no configuration: it is not {wanted}; download it again")
    return content


def _files(root: Path) -> Iterator[Path]:
    """Files of a model and its parts, and links to folders; hidden ones are a download's own."""
    for place, folders, names in os.walk(root):
        here = Path(place)
        depth = len(here.relative_to(root).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < _DEEPEST_FOLDER)
        yield from (here / name for name in folders if (here / name).is_symlink())
        yield from (here / name for name in sorted(names) if Path(name).suffix in PARTS and not name.startswith("."))


def _check_link(root: Path, file: Path) -> None:
    """A link must lead into the folder, or to a file in a model hub's cache."""
    if not file.is_symlink():
        return
    target = os.path.realpath(file)
    if not Path(target).is_relative_to(root) and not _CACHED.fullmatch(Path(target).as_posix()):
        raise BackendError(
            f"'{file}' is a link out of its folder, to {target}; put the file itself there, or give the folder that it is in"
        )


def _check_index(file: Path, content: Mapping[str, Any]) -> None:
    """Weights in several files: each of them beside the index."""
    shards = content.get("weight_map")
    if not isinstance(shards, dict):
        raise WeightsMissingError(f"'{file}' has no weight_map, which says where its tensors are; download it again")
    for shard in shards.values():
        if not _is_inside(shard):
            raise BackendError(f"'{file}' looks for weights in {_shown(shard)}, outside its folder; {_DISTRUST}")


def _check_modules(file: Path, content: list[Any]) -> None:
    """The modules of a sentence-transformers model, which that library imports by name."""
    for module in content:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise WeightsMissingError(f"'{file}' holds no modules of sentence-transformers; download it again")
        _check_module(file, module["type"], module.get("path", ""))


def _check_module(file: Path, kind: Any, path: Any) -> None:
    if not isinstance(kind, str) or not _MODULE.fullmatch(kind):
        raise BackendError(
            f"'{file}' asks for the class {_shown(kind)}, which is not one of sentence-transformers; {_DISTRUST}"
        )
    if path and not _is_inside(path):
        raise BackendError(f"'{file}' looks for a module in {_shown(path)}, outside its folder; {_DISTRUST}")


def _check_config(root: Path, file: Path, content: dict[str, Any]) -> None:
    for key, value in _items(file, content):
        for concerns, check in _CHECKS:
            if concerns(key):
                check(root, file, key, value)
    types = content.get("types")
    if isinstance(types, dict) and "structure" in content:  # a Router of sentence-transformers
        for path, kind in types.items():
            _check_module(file, kind, path)
    if _SENTENCE_CONFIG.fullmatch(file.name):
        _check_arguments(file, content)
    if file.name == "adapter_config.json":
        _check_adapter(file, content)


def _check_other(root: Path, file: Path) -> None:
    """A file with the name of a configuration, such as a list of training data, which may be read or not."""
    try:
        content = _read(file, dict)
    except BackendError:
        return
    _check_config(root, file, content)


def _items(file: Path, content: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object, of those in it, and so on."""
    if depth > _DEEPEST:
        raise WeightsMissingError(
            f"'{file}' is nested more than {_DEEPEST} deep, as no configuration is; download it again"
        )
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from _items(file, value, depth + 1)
    elif isinstance(content, list):
        for value in content:
            yield from _items(file, value, depth + 1)


def _check_implementation(root: Path, file: Path, key: str, value: Any) -> None:
    """Of attention or experts: a name that transformers knows; OWNER/NAME is code that it fetches and runs."""
    known = _EXPERTS if "experts" in key else _ATTENTION
    for name in value.values() if isinstance(value, dict) else [value]:
        if name is None or (isinstance(name, str) and name in known):
            continue
        # Without its package, transformers would fetch a kernel in its place where it can.
        local = find_spec("flash_attn") is not None or find_spec("kernels") is None
        if known is _ATTENTION and isinstance(name, str) and _FLASH.fullmatch(name) and local:
            continue
        raise BackendError(
            f"'{file}' asks for {_shown(name)} as {key}, which is not among {', '.join(sorted(known))}; take the key out"
        )


def _check_class(root: Path, file: Path, key: str, value: Any) -> None:
    if value is not None and not (isinstance(value, str) and _CLASS.fullmatch(value)):
        raise BackendError(f"'{file}' gives {_shown(value)} as {key}, which is no such class; {_DISTRUST}")


def _check_dtype(root: Path, file: Path, key: str, value: Any) -> None:
    for name in value.values() if isinstance(value, dict) else [value]:
        if name is not None and not (isinstance(name, str) and _DTYPE.fullmatch(name)):
            raise WeightsMissingError(
                f"'{file}' gives {_shown(name)} as {key}, which is no type of numbers; download it again"
            )


def _check_code(root: Path, file: Path, key: str, value: Any) -> None:
    if value:
        raise BackendError(f"'{file}' sets {key}, which runs code from elsewhere; take the key out")


def _check_place(root: Path, file: Path, key: str, value: Any) -> None:
    """A model or file that is read with this one: it has to be in the folder."""
    if isinstance(value, str) and value and not (_is_inside(value) and _exists(root / value)):
        raise BackendError(
            f"'{file}' names {_shown(value)} as {key}, which is not in its folder; nothing else is fetched"
        )


def _check_timm(root: Path, file: Path, key: str, value: Any) -> None:
    if isinstance(value, str) and re.search(r"[:/\\]", value):
        raise BackendError(f"'{file}' names {_shown(value)} as {key}, which would be fetched; take another model")


def _check_cached(root: Path, file: Path, key: str, value: Any) -> None:
    """A text model or tokenizer that open_clip takes from the model hub: only one that is in the cache already."""
    if not isinstance(value, str) or not value:
        return
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(value, "config.json")
    except HFValidationError:
        cached = None
    if not isinstance(cached, str):
        raise BackendError(
            f"'{file}' needs {_shown(value)} ({key}), which is not in the cache, and nothing else is fetched; if you trust "
            f"it: hf download {value}"
        )
    check_folder(Path(cached).parent)


def _check_files(root: Path, file: Path, key: str, value: Any) -> None:
    """Files that a tokenizer names: by name beside it. What is not there is not opened: old checkpoints have such paths."""
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, str) and not _is_inside(name) and _exists(root / name):
            raise BackendError(f"'{file}' names {_shown(name)} as {key}, which is outside its folder; take the key out")


def _check_size(root: Path, file: Path, key: str, value: Any) -> None:
    most = _MOST.get(key, _MOST_LAYERS)
    if isinstance(value, int | float) and not isinstance(value, bool) and not value <= most:
        raise WeightsMissingError(f"'{file}' promises {key} = {_shown(value)}, more than {most:,}; download it again")


def _check_activation(root: Path, file: Path, key: str, value: Any) -> None:
    if isinstance(value, str) and "." in value and not _ACTIVATION.fullmatch(value):
        raise BackendError(f"'{file}' asks for {_shown(value)} as {key}, which is not torch's; {_DISTRUST}")


def _check_arguments(file: Path, content: Mapping[str, Any]) -> None:
    """What sentence-transformers passes on to the functions that load a model."""
    if content.get("tokenizer_name_or_path"):
        raise BackendError(f"'{file}' names another tokenizer (tokenizer_name_or_path); nothing else is fetched")
    for key in _ARGUMENTS & set(content):
        given = content[key]
        if not isinstance(given, dict):
            raise WeightsMissingError(f"'{file}' has no object as {key}; download it again")
        if unknown := sorted(set(given) - _KNOWN_ARGUMENTS):
            raise BackendError(
                f"'{file}' sets '{unknown[0]}' in {key}, which is not known to be harmless; take the key out"
            )


def _check_adapter(file: Path, content: Mapping[str, Any]) -> None:
    """An adapter without its model, or one beside a sentence-transformers model, would have the model fetched."""
    beside = file.parent
    alone = not (beside / "config.json").is_file() and not beside.joinpath("..", "config.json").is_file()
    if content.get("base_model_name_or_path") and (alone or (beside / "modules.json").is_file()):
        raise BackendError(
            f"'{beside}' holds an adapter of {_shown(content['base_model_name_or_path'])}, which is not fetched; merge it "
            "into its model, save that, and give its folder"
        )


_DISTRUST = "take the checkpoint from where it was published"

_Check = Callable[[Path, Path, str, Any], None]
_CHECKS: list[tuple[Callable[[str], bool], _Check]] = [
    (lambda key: bool(_IMPLEMENTATION.search(key)), _check_implementation),
    (lambda key: key in _CLASS_KEYS, _check_class),
    (lambda key: key in ("dtype", "torch_dtype"), _check_dtype),
    (lambda key: key in _CODE_KEYS, _check_code),
    (lambda key: key in _PLACE_KEYS, _check_place),
    (lambda key: key in _TIMM_KEYS, _check_timm),
    (lambda key: key in _HUB_KEYS, _check_cached),
    (lambda key: key.endswith(("_file", "_files")) and key not in _PLACE_KEYS, _check_files),
    (lambda key: key in _MOST or bool(_LAYERS.search(key)), _check_size),
    (lambda key: key == "activation_function", _check_activation),
]


def _is_inside(name: Any) -> bool:
    """Whether a name is a relative path that stays in its folder."""
    if not isinstance(name, str) or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and ":" not in name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or no name at all
        return False


def _shown(value: Any) -> str:
    """A value of a file, for a message in one line."""
    return ascii(value)[:120]
