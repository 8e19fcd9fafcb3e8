"""A fresh head for a published network, so that it can be trained on a data set's classes; and saving the result."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from and_platform.backends.networks.base import LoadedNetwork
from and_platform.errors import BackendError, InputError

_SPREAD = 0.02  # standard deviation of a fresh head's weights, as transformers has it


class Headed(NamedTuple):
    """A network whose logits stand for the classes asked for.

    `fresh` are the paths of the linear layers that are new, in the order in which they run: the last is the head. `family`
    is ast, beats, wav2vec2 (HuBERT, WavLM and their kin) or other.
    """

    network: LoadedNetwork
    fresh: list[str]
    family: str


def with_head(network: LoadedNetwork, classes: Sequence[str], seed: int) -> Headed:
    """Give a network a head of one unit for each class; its own head, where it has one, is left behind.

    Everything else keeps its weights, the layers between encoder and head included. A bare encoder of `transformers` gets
    the layers that the library puts on it. The network that is given may be changed.

    Raises
    ------
    InputError
        The network comes from a factory, so that nobody knows how to save it with another head; or it is an encoder for
        which `transformers` has no classifier.
    """
    from and_platform.backends.networks import beats
    from and_platform.backends.networks.transformers_audio import TransformersNetwork

    if isinstance(network, beats.BeatsNetwork):
        model = beats.with_head(network.model, classes, seed)
        return Headed(beats.BeatsNetwork(model, network.name, classes), ["predictor"], "beats")
    if not isinstance(network, TransformersNetwork):
        raise InputError(
            f"'{network.name}' cannot be given a new head; train a network of transformers or a BEATs, "
            "or train this one in your own program and add the result"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        path = next((layer.module_path for layer in network.layers if layer.kind == "head"), None)
        if path is not None:
            old: Any = network.model.get_submodule(path)
            fresh = nn.Linear(old.in_features, len(classes), bias=old.bias is not None)
            nn.init.normal_(fresh.weight, std=_SPREAD)
            if fresh.bias is not None:
                nn.init.zeros_(fresh.bias)
            network.model.set_submodule(path, fresh)
            paths = [path]
            _name_classes(network.model.config, classes)
        else:
            network, paths = _classifier(network, classes)
    model_any: Any = network.model
    model_any.num_labels = len(classes)
    network.classes = list(classes)
    return Headed(network, paths, _family(model_any.config.model_type))


def _classifier(network: Any, classes: Sequence[str]) -> tuple[LoadedNetwork, list[str]]:
    """A bare encoder of `transformers` inside the library's classifier, and the linear layers that this adds."""
    from and_platform.backends.networks.transformers_audio import stock_class

    config = copy.deepcopy(network.model.config)
    _name_classes(config, classes)
    try:
        kind = stock_class(config)
    except BackendError as exc:
        raise InputError(
            f"'{network.name}' cannot be given a head: transformers has no classifier for a {config.model_type}; dissect it "
            "as it is, or train another network"
        ) from exc
    model = kind(config).float()
    prefix = kind.base_model_prefix if hasattr(model, kind.base_model_prefix) else "encoder"  # Whisper's
    getattr(model, prefix).load_state_dict(network.model.state_dict())
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not path.startswith(f"{prefix}.")
    ]
    return type(network)(model, network.extractor, network.name), paths


def _name_classes(config: Any, classes: Sequence[str]) -> None:
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: place for place, name in enumerate(classes)}


def _family(model_type: str) -> str:
    if model_type == "audio-spectrogram-transformer":
        return "ast"
    # one scheme: convolutions over the waveform, then blocks, a projection, and the head
    waves = ("wav2vec2", "hubert", "wavlm", "unispeech", "data2vec", "sew")
    return "wav2vec2" if model_type.startswith(waves) else "other"


@contextmanager
def headless(headed: Headed) -> Iterator[None]:
    """For a while, let the fresh linear layers pass on what they hear.

    What the network then gives for logits is what its linear head hears, after the network's own reduction over time:
    a linear layer and a mean may change places.
    """
    model = headed.network.model
    layers = {path: model.get_submodule(path) for path in headed.fresh}
    try:
        for path in layers:
            model.set_submodule(path, nn.Identity())
        yield
    finally:
        for path, layer in layers.items():
            model.set_submodule(path, layer)


def save_network(network: LoadedNetwork, directory: Path) -> None:
    """Write weights, configuration and input pipeline into a draft, so that `load_network(directory)` gives the same network."""
    from and_platform.backends.networks import beats
    from and_platform.backends.networks.transformers_audio import quiet

    if isinstance(network, beats.BeatsNetwork):
        beats.save(network, directory)
        return
    saved: Any = network
    with quiet():
        saved.model.save_pretrained(directory)
        saved.extractor.save_pretrained(directory)
