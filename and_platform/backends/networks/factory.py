"""Networks from a function of the user's.

`andp networks add NAME FILE.py:factory` runs the file and calls `factory()`; `module:factory` does the same with a module
of the working folder or of the Python path. `factory()` returns one of

- a `LoadedNetwork`,
- a pair `(module, options)` of a torch module and a dict,
- a torch module that has the options as attributes.

Options
-------
rate : int
    Sampling rate of the clips, in Hz. Required.
prepare : callable
    `prepare(waveforms) -> Tensor | dict[str, Tensor]`: mono float32 arrays at `rate`, of any length, to what the
    module takes. A tensor is passed as the one argument, a dict as keywords. Without it waveforms are padded with
    zeros to the longest of the batch, [B, n_samples], and every length is run by itself.
classes : list of str
    Names of the logits.
forward : callable
    `forward(module, batch) -> logits [B, C] or None`; needed where the module does not return its logits (a tensor, or
    the first of a tuple), before any softmax or sigmoid.
pooling : str
    Default for all layers but the head: first, mean (the default here) or max. Linear layers of attention within
    windows, whose outputs are [B * windows, positions, units], get mean instead of first.
default_layers : list of str
    Patterns on layer names or module paths (["features.*"]), instead of the rule of the paper (BEATs: ["b*.ff_*", "head"]).
frame_mask : callable
    `frame_mask(batch, layer_name, n_positions) -> bool [B, n_positions] or None`, True where there is sound; of a layer
    within windows the positions come window by window.
uniform_length : bool
    True where clips of different lengths must not share a batch.

Example
-------
A file my_network.py, added with `andp networks add mine my_network.py:build`::

    import numpy as np, torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 16, 64, stride=32)
            self.classifier = nn.Linear(16, 2)

        def forward(self, x):                       # [B, n_samples]
            return self.classifier(self.conv(x[:, None]).relu().mean(2))

    def prepare(waveforms):
        return torch.stack([torch.from_numpy(np.resize(w, 32000)) for w in waveforms])

    def build():
        net = Net()
        net.load_state_dict(torch.load("net.pt", weights_only=True))
        return net, {"rate": 16000, "classes": ["dog", "rain"], "prepare": prepare}

Search path
-----------
The folder of the file, or the working folder, is on `sys.path` behind everything else while the module is imported,
`factory()` runs and the network is tried with noise, and not afterwards. Modules that were imported until then stay. A
neighbouring module that is imported for the first time when the network runs is not found: import it at the top.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from and_platform.backends.networks.base import Batch, LoadedNetwork, Waveform
from and_platform.backends.networks.hooks import first_tensor
from and_platform.backends.networks.layers import LayerSpec
from and_platform.errors import AndpError, BackendError, ConfigError

_OPTIONS = (
    "rate",
    "prepare",
    "classes",
    "forward",
    "pooling",
    "default_layers",
    "frame_mask",
    "uniform_length",
)
_INPUT = "input"  # the one tensor of a batch that is passed by position


class FactoryNetwork(LoadedNetwork):
    """A torch module with the options of this module's docstring."""

    def __init__(self, model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
        self._prepare: Callable[[Sequence[Waveform]], Any] | None = options.get("prepare")
        self._forward: Callable[[nn.Module, Any], Tensor | None] | None = options.get("forward")
        self._frame_mask: Callable[[Any, str, int], Tensor | None] | None = options.get("frame_mask")
        self.uniform_length = bool(options.get("uniform_length", self._prepare is None))
        super().__init__(
            model,
            name=name,
            rate=int(options["rate"]),
            classes=options.get("classes"),
            pooling=options.get("pooling", "mean"),
            default_layers=options.get("default_layers"),
        )

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"factory": self.name}

    def prepare(self, waveforms: Sequence[Waveform]) -> Batch:
        if self._prepare is not None:
            prepared = self._prepare(waveforms)
        else:
            longest = max(len(w) for w in waveforms)
            prepared = torch.from_numpy(np.stack([np.pad(w, (0, longest - len(w))) for w in waveforms]))
        return {_INPUT: prepared} if isinstance(prepared, Tensor) else dict(prepared)

    def forward(self, batch: Batch) -> Tensor | None:
        inputs: Any = batch[_INPUT] if set(batch) == {_INPUT} else batch
        if self._forward is not None:
            return self._forward(self.model, inputs)
        output = self.model(inputs) if isinstance(inputs, Tensor) else self.model(**inputs)
        logits = first_tensor(output)
        return logits if logits is not None and logits.dim() == 2 else None

    def frame_mask(self, batch: Batch, layer: LayerSpec, n_positions: int) -> Tensor | None:
        if self._frame_mask is None:
            return None
        inputs: Any = batch[_INPUT] if set(batch) == {_INPUT} else batch
        return self._frame_mask(inputs, layer.name, n_positions)


_MODULE = re.compile(r"(?P<where>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)")
_FILE = re.compile(r"(?P<where>.+\.py):(?P<function>[A-Za-z_]\w*)", re.DOTALL)


def is_factory(source: str | Path) -> bool:
    """Whether a source has the form of `load`: "module:factory" or "FILE.py:factory"."""
    return bool(_FILE.fullmatch(str(source)) or _MODULE.fullmatch(str(source)))


def stored_location(source: str) -> str:
    """How a factory is found again from any folder: its file by its full path; a module of the Python path as it is.

    Raises
    ------
    ConfigError
        There is no such file or module.
    """
    file, function = _file_of(source)
    return source if file is None else f"{file}:{function}"


def load(source: str) -> LoadedNetwork:
    """Call "module:factory" or "FILE.py:factory" and wrap what it returns.

    Raises
    ------
    ConfigError
        The module or the function is missing, or an option is missing, unknown or wrong.
    BackendError
        The module or the factory itself failed.
    """
    file, function = _file_of(source)
    with _importable(Path.cwd() if file is None else _package_root(file)):
        module = _import(source.rpartition(":")[0]) if file is None else _run(file)
        try:
            factory = getattr(module, function)
        except AttributeError as exc:
            raise ConfigError(
                f"'{source.rpartition(':')[0]}' has no '{function}'; write FILE.py:factory or module:factory"
            ) from exc
        try:
            made = factory()
        except Exception as exc:  # the user's code may raise anything; it is passed on with its name
            raise BackendError(f"the factory '{source}' failed: {_told(exc)}") from exc
        # The same name, whatever folder the file is in: it is part of recipes.
        return _wrapped(made, source, source if file is None else f"{_dotted(file)}:{function}")


def _file_of(source: str) -> tuple[Path | None, str]:
    """The file of a factory, None for a module that is on the Python path, and the name of the function."""
    if given := _FILE.fullmatch(source):
        file = Path(given["where"]).expanduser()
        if not file.is_file():
            raise ConfigError(f"there is no file '{file}'; write FILE.py:factory with the path of a file of yours")
        return file.resolve(), given["function"]
    module, _, function = source.rpartition(":")
    here = Path.cwd()
    with _importable(here), suppress(ImportError, ValueError):  # ValueError: a module without a specification
        spec = importlib.util.find_spec(module)
        origin = Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None
        on_path = any(folder and Path(folder).resolve() == here.resolve() for folder in sys.path[:-1])
        if origin is not None and not on_path and origin == _in_folder(here, module):
            return origin, function
    return None, function


def _in_folder(folder: Path, module: str) -> Path | None:
    """The file of a module in a folder, by its dotted name."""
    path = folder.resolve().joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Have a folder on `sys.path` meanwhile, behind everything else, so that nothing there hides a library."""
    entry = str(folder)
    sys.path.append(entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        last = len(sys.path) - 1 - sys.path[::-1].index(entry) if entry in sys.path else None
        if last is not None:
            del sys.path[last]


def _package_root(file: Path) -> Path:
    """The folder from which a file is imported: its own, or the one around its package."""
    root = file.parent
    while (root / "__init__.py").is_file() and root.parent != root:
        root = root.parent
    return root


def _dotted(file: Path) -> str:
    """The dotted name of a file from its `_package_root`."""
    parts = file.relative_to(_package_root(file)).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _run(file: Path) -> ModuleType:
    """The module in a file: one of a package by its dotted name, any other under a name that hides no library."""
    name = _dotted(file)
    if file.parent != _package_root(file):
        module = _import(name)
        if Path(getattr(module, "__file__", None) or "").resolve() != file:
            raise ConfigError(f"'{name}' is another module than {file}; rename the package that {file.name} is in")
        return module
    unique = f"andp_factory_{file.stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as exc:
        del sys.modules[unique]
        if isinstance(exc, ImportError):
            raise ConfigError(f"cannot import '{file}': {_told(exc)}; is what it imports on PYTHONPATH?") from exc
        if isinstance(exc, Exception):
            raise BackendError(f"'{file}' failed: {_told(exc)}") from exc
        raise
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ConfigError(
            f"cannot import '{name}' ({exc}); give its file, FILE.py:factory, or put its folder on PYTHONPATH"
        ) from exc
    except Exception as exc:  # the user's code may raise anything
        raise BackendError(f"the module '{name}' failed: {_told(exc)}") from exc


def _told(exc: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}".rstrip(": ")


def _wrapped(made: Any, source: str, name: str) -> LoadedNetwork:
    """What a factory returned, as a network."""
    if isinstance(made, LoadedNetwork):
        return made
    if isinstance(made, nn.Module):
        # `forward` of a module is its own method, not an option
        found = {key: getattr(made, key) for key in _OPTIONS if key != "forward" and hasattr(made, key)}
        model, options = made, found
    elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and isinstance(made[1], Mapping):
        model, options = made[0], dict(made[1])
    else:
        raise ConfigError(
            f"'{source}' returned a {type(made).__name__}; return a torch module with a rate, or (module, options)"
        )
    if unknown := sorted(map(str, set(options) - set(_OPTIONS))):
        raise ConfigError(f"'{source}' gives the unknown option '{unknown[0]}'; there are {', '.join(_OPTIONS)}")
    if "rate" not in options:
        raise ConfigError(f"'{source}' does not say at which rate it takes clips; add the option 'rate' (in Hz)")
    try:
        return FactoryNetwork(model, name, options)
    except AndpError:
        raise
    except Exception as exc:  # an option of another kind than its own; parts of the module that raise
        raise ConfigError(f"'{source}' cannot be used as a network: {_told(exc)}") from exc
