"""A network to dissect, whoever made it."""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from and_platform.backends.base import BackendRecipe
from and_platform.backends.networks.ablation import Units, ablated
from and_platform.backends.networks.layers import NETWORK_POOLING, PAPER_KINDS, PROBE_CLIPS, LayerSpec, discover_layers
from and_platform.core.pooling import POOLINGS
from and_platform.errors import ActivationError, NotFoundError

Waveform = NDArray[np.float32]
Batch = dict[str, Tensor]

_PROBE_SECONDS = 1.0


class LoadedNetwork(ABC):
    """A torch module in evaluation mode, with its input pipeline, its layers and its classes.

    Attributes
    ----------
    model
        The module.
    name
        What it was loaded from.
    rate
        Sampling rate of the waveforms that `prepare` takes, in Hz.
    classes
        Names of the logits in order, or None.
    layers
        Every layer that can be recorded, in module order.
    left_out
        Module path -> why a linear or convolutional layer is not among them.
    default_layers
        Those the paper looks at: attention output and both feed-forward layers of each block, and the head; for
        a network without blocks every layer.
    uniform_length
        True where clips of different lengths must not share a batch, since padding would change the results.
    origin
        Where the weights were taken from: a hub id with its commit ("openai/whisper-base@e37978b..."), or a directory;
        None for a function of the user's.
    """

    uniform_length = False
    origin: str | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        rate: int,
        classes: Sequence[str] | None,
        pooling: str,
        default_layers: Sequence[str] | None = None,
    ) -> None:
        self.model = model.eval()
        self.name = name
        self.rate = rate
        self.classes = list(classes) if classes is not None else None
        self.layers, self.left_out = discover_layers(self.model, self._probe, pooling)
        if default_layers is not None:
            self.default_layers = self.select(default_layers)
        else:
            blocks = any(layer.block is not None for layer in self.layers)
            wanted = (*PAPER_KINDS, "head") if blocks else ("linear", "conv", "head")
            self.default_layers = [layer for layer in self.layers if layer.kind in wanted]
        head = next((layer for layer in self.layers if layer.kind == "head"), None)
        if self.classes is not None and head is not None and head.n_units != len(self.classes):
            raise ActivationError(
                f"the network '{name}' has {head.n_units} logits and {len(self.classes)} class names; correct the names"
            )

    @abstractmethod
    def prepare(self, waveforms: Sequence[Waveform]) -> Batch:
        """The network's own input pipeline: mono float32 waveforms at `rate` to a batch of tensors."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor | None:
        """Logits [B, C] of a batch made by `prepare`, or None for a network without classes."""

    def frame_mask(self, batch: Batch, layer: LayerSpec, n_positions: int) -> Tensor | None:
        """Bool [B, n_positions], True where a position of a layer's output is sound; None where all of them are.

        The positions of a `windowed` layer come window by window.
        """
        return None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What changes the results beside the weights: the configuration of the network and of its input."""
        return {}

    @cached_property
    def revision(self) -> str:
        """SHA-256 over the names, shapes, types and bytes of the weights."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{key}|{values.dtype}|{tuple(values.shape)}|".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def recipe(self) -> BackendRecipe:
        """Provenance: architecture, weights, and a digest of the configuration."""
        config = json.dumps(self.parameters, sort_keys=True, default=str)
        digest = hashlib.sha256(config.encode()).hexdigest()
        return BackendRecipe(self.architecture, self.revision, {"rate": self.rate, "config_sha256": digest})

    @property
    def architecture(self) -> str:
        """Name of the module's class."""
        return type(self.model).__name__

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> None:
        """Move the weights."""
        self.model.to(device)

    def select(self, globs: Sequence[str], pooling: str | None = None) -> list[LayerSpec]:
        """Layers whose names or module paths match any of the patterns, in network order.

        Parameters
        ----------
        globs
            Shell patterns: "b0*.ff_*", "head", "features.3", "encoder.layers.*.fc1". `*` stands for dots as well.
        pooling
            Instead of the default pooling; the head keeps its own.

        Raises
        ------
        NotFoundError
            A pattern matches no layer.
        ActivationError
            There is no such pooling, or a layer has no such position.
        """
        for glob in globs:
            if not any(_matches(layer, glob) for layer in self.layers):
                raise NotFoundError(self._no_match(glob))
        chosen = [layer for layer in self.layers if any(_matches(layer, glob) for glob in globs)]
        return chosen if pooling is None else with_pooling(chosen, pooling)

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name; NotFoundError where there is none."""
        found = next((layer for layer in self.layers if layer.name == name), None)
        return found if found is not None else self.select([name])[0]

    def _no_match(self, glob: str) -> str:
        left_out = [path for path in self.left_out if fnmatchcase(path, glob)]
        if left_out:
            return f"'{left_out[0]}' of '{self.name}' cannot be recorded: {self.left_out[left_out[0]]}"
        names = [layer.name for layer in self.layers]
        paths = [layer.module_path for layer in self.layers]
        near = difflib.get_close_matches(glob, [*names, *paths], n=3, cutoff=0.4) or names[:3]
        if glob in dict(self.model.named_modules()):
            kind = type(self.model.get_submodule(glob)).__name__
            within = sum(path.startswith(f"{glob}.") for path in paths)
            hint = f"for the {within} in it: '{glob}.*'" if within else f"there are {', '.join(near)} …"
            return f"'{glob}' of '{self.name}' is a {kind}, and layers are linear or convolutional; {hint}"
        return (
            f"no layer of '{self.name}' matches '{glob}'; there are {', '.join(near)} … (a pattern is that of a name or of "
            "a module's path; andp networks show lists both)"
        )

    @contextmanager
    def ablated(self, selection: Mapping[str, Units], *, allow_head: bool = False) -> Iterator[None]:
        """Zero units by layer name ("b00.ff_in" -> indices) for a while: see `ablation.ablated`."""
        by_path = {self.layer(name).module_path: units for name, units in selection.items()}
        head = [layer.module_path for layer in self.layers if layer.kind == "head"]
        with ablated(self.model, by_path, head=head, allow_head=allow_head):
            yield

    def _probe(self) -> Tensor | None:
        noise = np.random.default_rng(0).normal(0, 0.1, int(_PROBE_SECONDS * self.rate))
        batch = self.prepare([noise.astype(np.float32)] * PROBE_CLIPS)
        return self.forward({key: value.to(self.device) for key, value in batch.items()})


def with_pooling(layers: Sequence[LayerSpec], pooling: str) -> list[LayerSpec]:
    """The same layers with another pooling; a head keeps the network's own reduction.

    Raises
    ------
    ActivationError
        There is no such pooling, or a layer that computes within windows has no first position.
    """
    if pooling not in POOLINGS:
        raise ActivationError(f"unknown pooling '{pooling}'; use one of: {', '.join(POOLINGS)}")
    windowed = next((layer.name for layer in layers if layer.windowed), None)
    if pooling == "first" and windowed is not None:
        raise ActivationError(
            f"layer {windowed} computes within windows, and the first position of the first window means nothing; "
            "use the pooling mean or max"
        )
    return [layer if layer.pooling == NETWORK_POOLING else replace(layer, pooling=pooling) for layer in layers]


def _matches(layer: LayerSpec, glob: str) -> bool:
    return fnmatchcase(layer.name, glob) or fnmatchcase(layer.module_path, glob)
