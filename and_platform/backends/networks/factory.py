"""Networks from a function of the user's.

`andp networks add NAME module:factory` imports `module` and calls `factory()`. It returns one of

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
A file my_network.py on the Python path, added with `andp networks add mine my_network:build`::

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
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from and_platform.backends.networks.base import Batch, LoadedNetwork, Waveform
from and_platform.backends.networks.hooks import first_tensor
from and_platform.backends.networks.layers import LayerSpec
from and_platform.errors import BackendError, ConfigError

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


def load(source: str) -> LoadedNetwork:
    """Call "module:factory" and wrap what it returns.

    Raises
    ------
    ConfigError
        The module or the function is missing, or an option is missing, unknown or wrong.
    BackendError
        The factory itself failed.
    """
    module_name, _, function_name = source.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except ImportError as exc:
        raise ConfigError(f"cannot import '{module_name}' ({exc}); is its folder on PYTHONPATH?") from exc
    except AttributeError as exc:
        raise ConfigError(f"the module '{module_name}' has no '{function_name}'; write module:factory") from exc
    try:
        made = factory()
    except Exception as exc:  # the user's code may raise anything; it is passed on with its name
        raise BackendError(f"the factory '{source}' failed: {type(exc).__name__}: {exc}") from exc

    if isinstance(made, LoadedNetwork):
        return made
    if isinstance(made, nn.Module):
        # `forward` of a module is its own method, not an option
        found = {key: getattr(made, key) for key in _OPTIONS if key != "forward" and hasattr(made, key)}
        model, options = made, found
    elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        model, options = made[0], dict(made[1])
    else:
        raise ConfigError(
            f"'{source}' returned a {type(made).__name__}; return a torch module with a rate, or (module, options)"
        )
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ConfigError(f"'{source}' gives the unknown option '{unknown[0]}'; there are {', '.join(_OPTIONS)}")
    if "rate" not in options:
        raise ConfigError(f"'{source}' does not say at which rate it takes clips; add the option 'rate' (in Hz)")
    return FactoryNetwork(model, source, options)
