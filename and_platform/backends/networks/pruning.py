"""Taking an ablation out of the platform: as a mask, and as a checkpoint whose neurons are gone for good."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from and_platform import output_files
from and_platform.backends import beats as beats_model
from and_platform.backends.networks import beats, resizing
from and_platform.backends.networks.base import LoadedNetwork
from and_platform.backends.networks.hooks import find_module
from and_platform.backends.networks.shared_passes import Selection, units_of
from and_platform.backends.networks.transformers_audio import (
    PRUNED,
    TransformersNetwork,
    quiet,
    resized_class,
    stock_class,
)
from and_platform.errors import BackendError, ConflictError, InputError

MASK_FILE: Final = "mask.safetensors"
LISTING_FILE: Final = "mask.json"

_MODELING = "modeling_pruned"
_SIZE_KEYS = ("intermediate_size", "encoder_ffn_dim", "ffn_dim")  # what configurations call the inner size
_TRIAL_CLIPS, _TRIAL_SECONDS = 2, 1.0
_TOLERANCE = 1e-4  # of the largest logit: sums in another order
_Units = dict[str, tuple[int, ...]]
_Savable = TransformersNetwork | beats.BeatsNetwork


@dataclass(frozen=True)
class PruneReport:
    """What a pruned checkpoint came to.

    Attributes
    ----------
    directory
        Where it is.
    neurons
        Ablated in all.
    removed
        Layer -> units that are no longer there; empty unless structured.
    parameters_before
        Of the whole network.
    parameters_removed, parameters_zeroed
        No longer there, and there as zeros: rows of weights with their biases; where units are removed, the columns
        that read them too.
    stock
        Whether it loads without a Python file beside it: in plain `transformers`, or as a BEATs.
    """

    directory: Path
    neurons: int
    removed: dict[str, int] = field(default_factory=dict)
    parameters_before: int = 0
    parameters_removed: int = 0
    parameters_zeroed: int = 0
    stock: bool = True

    @property
    def parameters_after(self) -> int:
        """Parameters that still do something."""
        return self.parameters_before - self.parameters_removed - self.parameters_zeroed


def n_parameters_of(network: LoadedNetwork, selection: Selection) -> int:
    """How many parameters an ablation zeroes: for each unit its row of the weight, and its bias where there is one."""
    return sum(len(units) * _row_size(network, layer) for layer, units in units_of(network, selection).items())


# --- masks


def write_mask(
    directory: Path, selection: Selection, network: LoadedNetwork, about: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write an ablation as `mask.safetensors` and `mask.json`.

    The first holds, for each layer that is touched, a bool vector of its units under the path of its module: True is
    ablated. So in plain PyTorch: ``for path, gone in load_file(file).items(): model.get_submodule(path).weight.data[gone] = 0``,
    and the bias likewise. The second says the same for people: units by layer, with counts.

    Parameters
    ----------
    directory
        Made where it is missing; a mask in it is replaced, and other files stay.
    about
        How the selection was made; whatever JSON can hold.

    Returns
    -------
    mask, listing : Path

    Raises
    ------
    ActivationError, NotFoundError
        The selection cannot be ablated.
    InputError
        The files cannot be written.
    """
    files = _mask_files(network, units_of(network, selection), about)
    with output_files.folder(directory, ours=files.__contains__, keep_others=True) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
    return directory / MASK_FILE, directory / LISTING_FILE


def _mask_files(network: LoadedNetwork, units: _Units, about: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> content of the two files of a mask."""
    layers = {name: network.layer(name) for name in units}
    origin = {"network": network.name, "architecture": network.architecture, "revision": network.revision}
    counts = {"neurons": sum(map(len, units.values())), "parameters": n_parameters_of(network, units)}
    listing = {
        **origin,
        **counts,
        "about": dict(about),
        "layers": {
            name: {
                "module_path": layers[name].module_path,
                "n_units": layers[name].n_units,
                "n_ablated": len(chosen),
                "units": list(chosen),
            }
            for name, chosen in units.items()
        },
    }
    metadata = {
        "format": "pt",
        "mask": "True: the unit is ablated",
        **origin,
        "layers": json.dumps({layer.module_path: name for name, layer in layers.items()}),
        "about": json.dumps(dict(about), default=str),
    }
    vectors: dict[str, Tensor] = {}
    for name, chosen in units.items():
        gone = torch.zeros(layers[name].n_units, dtype=torch.bool)
        gone[list(chosen)] = True
        vectors[layers[name].module_path] = gone
    text = json.dumps(listing, indent=2, default=str) + "\n"
    return {MASK_FILE: save(vectors, metadata), LISTING_FILE: text.encode("utf-8")}


def read_mask(path: Path, network: LoadedNetwork) -> _Units:
    """The selection that `write_mask` wrote.

    Parameters
    ----------
    path
        The safetensors file, or the folder that it is in.
    network
        The network it is for.

    Returns
    -------
    dict
        Layer name -> unit indices, ascending.

    Raises
    ------
    InputError
        There is no mask, it is not one of ours, or it is for other weights or other layers.
    """
    file = path / MASK_FILE if path.is_dir() else path
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            vectors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
        names = {str(key): str(name) for key, name in json.loads(metadata["layers"]).items()}
        revision = metadata["revision"]
    except FileNotFoundError as exc:
        raise InputError(f"there is no mask '{file}'; write one with: andp unlearn export") from exc
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as exc:
        raise InputError(f"'{file}' is not a mask that this platform wrote; give the {MASK_FILE} of an export") from exc
    if revision != network.revision:
        raise InputError(
            f"'{file}' is for a network with other weights ({metadata.get('network', '?')}, revision {revision[:12]}) than "
            f"'{network.name}' ({network.revision[:12]}); use it with that network"
        )
    sizes = {layer.name: layer.n_units for layer in network.layers}
    selection: _Units = {}
    for key, gone in vectors.items():
        name = names.get(key, key)
        if gone.dtype != torch.bool or tuple(gone.shape) != (sizes.get(name),):
            raise InputError(
                f"'{file}' has a vector of {tuple(gone.shape)} for '{name}', and '{network.name}' has "
                f"{sizes.get(name, 'no')} such units; export the mask again"
            )
        selection[name] = tuple(gone.nonzero().flatten().tolist())
    return units_of(network, selection)


# --- checkpoints


def save_pruned(
    network: LoadedNetwork,
    selection: Selection,
    directory: Path,
    structured: bool = False,
    *,
    training: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> PruneReport:
    """Save the network without the chosen neurons: as `transformers` loads it, with its feature extractor, or as a BEATs
    for `networks.beats.load`.

    Parameters
    ----------
    selection
        What to ablate; the head is refused.
    directory
        Made where it is missing; it must not hold a network yet, unless this very one was saved there with the same `about`.
    structured
        Really remove the units of first feed-forward layers: the row of the first linear layer, its bias, and the column
        of the second; what a silent unit still sends on, the activation function at zero, goes into the bias of the
        second. All other units are zeroed, for they are part of the residual stream; so is the last unit of a layer that
        would lose all. Where the layers end with different sizes, the configuration lists them as
        `feed_forward_sizes` and a Python file lies beside it: the platform loads the folder as any other, without running
        that file, and plain `transformers` with `trust_remote_code=True`. (A BEATs lists the sizes in its `cfg` alone.)
        Without `structured` all units are zeroed.
    training
        Written as `training.json`, from which `andp networks add` takes what the network was trained on: "dataset" and
        "held_out_fold".
    about
        How the selection was made; with it, the mask is written too, in the same step, as `write_mask` writes it.

    Returns
    -------
    PruneReport

    Raises
    ------
    BackendError
        The network comes from a factory, or its feed-forward layers cannot be taken apart.
    ConflictError
        There is a network in the directory.
    InputError
        The directory cannot be written.
    ActivationError, NotFoundError
        The selection cannot be ablated.
    """
    if not isinstance(network, TransformersNetwork | beats.BeatsNetwork):
        raise BackendError(
            f"'{network.name}' comes from a factory, so it cannot be saved without it; export the mask, and zero its "
            "units in your own code"
        )
    units = units_of(network, selection)
    if about is not None:
        about = {**about, "structured": structured}
    output_files.recover(directory)
    output_files.check_folder(directory)
    mask = {} if about is None else _mask_files(network, units, about)
    again = bool(mask) and _holds(directory / LISTING_FILE, mask[LISTING_FILE])
    if (directory / "config.json").exists() and not again:
        raise ConflictError(f"there is a network in '{directory}' already; give another folder")
    with network.ablated(units):
        state = {key: value.detach().cpu().clone() for key, value in network.model.state_dict().items()}
        pairs = resizing.feed_forward_pairs(network.model)
        cuts = _cuts(network, units, pairs) if structured else {}
        for cut in cuts.values():
            cut.apply(state)
        sizes = [int(state[f"{first}.weight"].shape[0]) for first, _ in pairs]
        model, stock = _built(network, state, sizes)
        _must_agree(network, model)
    before, after = network.n_parameters, sum(p.numel() for p in model.parameters())
    removed = {layer: len(cut.gone) for layer, cut in cuts.items()}
    report = PruneReport(
        directory=directory,
        neurons=sum(map(len, units.values())),
        removed=removed,
        parameters_before=before,
        parameters_removed=before - after,
        parameters_zeroed=sum(
            (len(chosen) - removed.get(layer, 0)) * _row_size(network, layer, model) for layer, chosen in units.items()
        ),
        stock=stock,
    )
    files = dict(mask)
    if not stock:
        files[f"{_MODELING}.py"] = _modeling(stock_class(model.config)).encode("utf-8")
    if training is not None:
        files["training.json"] = (json.dumps(dict(training), indent=2) + "\n").encode("utf-8")
    with output_files.folder(directory, ours=_is_ours if again else files.__contains__, keep_others=True) as new:
        if isinstance(network, beats.BeatsNetwork):
            beats.write(model, network.classes, new)
        else:
            with quiet():
                model.save_pretrained(new)
                network.extractor.save_pretrained(new)
        for name, content in files.items():
            (new / name).write_bytes(content)
    return report


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file is there and holds this."""
    return path.is_file() and path.read_bytes() == content


def _is_ours(name: str) -> bool:
    """Whether an entry of a folder that holds an export is part of it."""
    return (
        name in (MASK_FILE, LISTING_FILE, f"{_MODELING}.py", "training.json", "config.json", "preprocessor_config.json")
        or re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", name) is not None
    )


@dataclass(frozen=True)
class _Cut:
    """Units to take out between two linear layers, and what each would have sent on."""

    first: str
    second: str
    gone: list[int]
    sent: Tensor

    def apply(self, state: dict[str, Tensor]) -> None:
        """Shrink both layers in a state dict."""
        weight = state[f"{self.second}.weight"]
        constant = (weight[:, self.gone].double() @ self.sent.double()).to(weight.dtype)
        bias = f"{self.second}.bias"
        if bias in state:
            state[bias] = state[bias] + constant
        elif bool(constant.any()):
            raise BackendError(
                f"the layer '{self.second}' has no bias to take what the removed units send on; save without --structured"
            )
        kept = np.setdiff1d(np.arange(weight.shape[1]), self.gone).tolist()
        state[f"{self.second}.weight"] = weight[:, kept].contiguous()
        for key in (f"{self.first}.weight", f"{self.first}.bias"):
            if key in state:
                state[key] = state[key][kept].contiguous()


def _cuts(network: LoadedNetwork, units: _Units, pairs: Sequence[tuple[str, str]]) -> dict[str, _Cut]:
    """Layer name -> what to take out there. The network is ablated meanwhile."""
    seconds = dict(pairs)
    paths = {layer.name: layer.module_path for layer in network.layers}
    chosen: dict[str, tuple[str, str, list[int]]] = {}
    for name, silent in units.items():
        layer = network.layer(name)
        if layer.kind != "ff_in":
            continue
        first = layer.module_path
        second = paths.get(name.replace("ff_in", "ff_out"))
        if second is None or seconds.get(first) != second:
            raise BackendError(
                f"the layer that reads {name} is not known in '{network.name}', so its units cannot be removed; save without "
                "--structured"
            )
        gone = list(silent[1:] if len(silent) == layer.n_units else silent)
        if gone:
            chosen[name] = (first, second, gone)
    inputs = _inputs(network, [second for _, second, _ in chosen.values()])
    cuts: dict[str, _Cut] = {}
    for name, (first, second, gone) in chosen.items():
        sent = inputs[second][:, gone] if inputs[second].shape[1] == network.layer(name).n_units else None
        if sent is None or not torch.allclose(sent, sent[:1].expand_as(sent), rtol=0, atol=1e-6):
            raise BackendError(
                f"between '{first}' and '{second}' is more than an activation function, so units of {name} cannot be removed; "
                "save without --structured"
            )
        cuts[name] = _Cut(first, second, gone, sent[0])
    return cuts


def _trial(network: LoadedNetwork) -> dict[str, Tensor]:
    noise = np.random.default_rng(0).normal(0, 0.1, (_TRIAL_CLIPS, int(_TRIAL_SECONDS * network.rate)))
    return {key: value.to(network.device) for key, value in network.prepare(list(noise.astype(np.float32))).items()}


def _inputs(network: LoadedNetwork, paths: Sequence[str]) -> dict[str, Tensor]:
    """What linear layers get from noise: [positions of all clips, features]."""
    seen: dict[str, Tensor] = {}

    def listen(path: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[path] = inputs[0].detach().flatten(0, -2).cpu()

        return find_module(network.model, path).register_forward_pre_hook(hook)

    with ExitStack() as stack:
        for path in paths:
            stack.callback(listen(path).remove)
        with torch.no_grad():
            network.forward(_trial(network))
    return seen


def _built(network: _Savable, state: Mapping[str, Tensor], sizes: list[int]) -> tuple[Any, bool]:
    """A model of these weights, and whether its class is one of `transformers`' own or a BEATs."""
    if isinstance(network, beats.BeatsNetwork):
        return beats_model.build(network.config.resized(sizes), state, network.name), True
    stock = stock_class(network.config)
    plain = copy.deepcopy(network.config)
    for key in ("feed_forward_sizes", "auto_map"):
        vars(plain).pop(key, None)
    candidates: list[tuple[Any, Any]] = [(stock, plain)]
    if sizes and len(set(sizes)) == 1:
        for key in _SIZE_KEYS:
            if hasattr(plain, key):
                resized = copy.deepcopy(plain)
                setattr(resized, key, sizes[0])
                candidates.append((stock, resized))
    own = copy.deepcopy(plain)
    own.feed_forward_sizes = sizes
    own.auto_map = {"AutoModelForAudioClassification": f"{_MODELING}.{PRUNED}{stock.__name__}"}
    candidates.append((resized_class(stock), own))
    shapes = {key: value.shape for key, value in state.items()}
    for family, config in candidates:
        with quiet(), torch.device("meta"):
            trial = family(config)
        if {key: value.shape for key, value in trial.state_dict().items()} == shapes:
            # initial values are drawn and then overwritten: nobody else's random numbers may change by it
            with quiet(), torch.random.fork_rng(devices=[]):
                model = family(config)
            model.load_state_dict(state)
            return model.eval(), family is stock
    raise BackendError(
        f"'{network.name}' cannot be built again as a {stock.__name__} with its weights; export the mask instead"
    )


def _must_agree(network: _Savable, model: Any) -> None:
    """Compare the checkpoint with the network, which is ablated meanwhile."""
    batch = _trial(network)
    other = copy.copy(network)
    other.model = copy.deepcopy(model).to(network.device)
    with torch.no_grad():
        masked, pruned = network.forward(batch), other.forward(batch)
    if masked is None or pruned is None:
        raise BackendError(
            f"'{network.name}' has no classes, so a smaller copy cannot be compared with it by its logits"
        )
    off, scale = float((masked - pruned).abs().max()), max(1.0, float(masked.abs().max()))
    if not off <= _TOLERANCE * scale:
        raise BackendError(
            f"'{network.name}' gives other logits once the units are taken out (by up to {off:g}), so it is not saved; save "
            "without --structured, or export the mask"
        )


def _row_size(network: LoadedNetwork, layer: str, model: nn.Module | None = None) -> int:
    module = find_module(network.model if model is None else model, network.layer(layer).module_path)
    return sum(p[0].numel() for p in (module.weight, module.bias) if isinstance(p, nn.Parameter))


def _modeling(stock: Any) -> str:
    """The Python file for plain `transformers`: how to resize, and the class that does."""
    text = inspect.getsource(resizing)
    return f'''{text}

from transformers import {stock.__name__}  # noqa: E402


class {PRUNED}{stock.__name__}({stock.__name__}):
    """Feed-forward layers of the sizes that the configuration gives."""

    def __init__(self, config):
        super().__init__(config)
        resize_feed_forward(self, config.feed_forward_sizes)
'''
