"""BEATs as a network under study: a published file, or a directory that this platform wrote.

A published file of the fine-tuned kind has its own head and, in `label_dict`, the names of its classes (AudioSet's
identifiers). A pretrained one has neither: its hidden layers can be dissected, and `with_head` gives it a head to train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from and_platform import output_files
from and_platform.backends import beats
from and_platform.backends.beats import Beats, BeatsConfig
from and_platform.backends.checkpoint_folder import check_folder, read_config
from and_platform.backends.networks.base import Batch, LoadedNetwork, Waveform
from and_platform.backends.networks.layers import LayerSpec
from and_platform.backends.weights import told
from and_platform.errors import AndpError, BackendError, ConflictError, InputError, WeightsMissingError

MODEL_TYPE: Final = "beats"
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
_SUFFIXES = frozenset({".pt", ".pth"})


class BeatsNetwork(LoadedNetwork):
    """A BEATs with its spectrogram.

    The paper's layers are the two of each feed-forward network and the head; the projections of the attention can be
    recorded as well. Positions are patches, 8 of different frequency for each 160 ms.
    """

    model: Beats

    def __init__(self, model: Beats, name: str, classes: Sequence[str] | None = None) -> None:
        self.config = model.config
        head = ["head"] if model.predictor is not None else []
        super().__init__(
            model,
            name=name,
            rate=beats.RATE,
            classes=classes,
            pooling="first",
            default_layers=["b*.ff_in", "b*.ff_out", *head],
        )
        # its map has time before frequency
        self.layers = [replace(layer, time_dim=2) if layer.kind == "embed" else layer for layer in self.layers]

    @property
    def parameters(self) -> Mapping[str, Any]:
        pipeline = {"rate": beats.RATE, "mel_bins": beats.MEL_BINS, "mean": beats.MEAN, "std": beats.STD}
        return {"model": self.config.to_dict(), "pipeline": pipeline}

    def prepare(self, waveforms: Sequence[Waveform]) -> Batch:
        """Log mel energies "fbank" [B, n_frames, 128] and "frame_mask" [B, n_frames], True where there is sound."""
        longest = max(len(waveform) for waveform in waveforms)
        padded = np.zeros((len(waveforms), longest), dtype=np.float32)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
        features, mask = beats.fbank(torch.from_numpy(padded), torch.tensor([len(w) for w in waveforms]))
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool)
        return {"fbank": features, "frame_mask": mask}

    def forward(self, batch: Batch) -> Tensor | None:
        features, patch_mask = self.model(batch["fbank"], batch["frame_mask"])
        return None if self.model.predictor is None else self.model.classify(features, patch_mask)

    def frame_mask(self, batch: Batch, layer: LayerSpec, n_positions: int) -> Tensor | None:
        """Of patches, or of their columns in the first layer; a column that the sound does not fill is padding."""
        columns = batch["fbank"].shape[1] // beats.PATCH
        return beats.patch_mask(batch["frame_mask"], columns, n_positions // columns)


def load(source: str | Path) -> BeatsNetwork:
    """A BEATs, in float32 and evaluation mode.

    Parameters
    ----------
    source
        A published file such as BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt, or a directory that `save` wrote.

    Raises
    ------
    WeightsMissingError
        There is no such file or directory, or it holds something else.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        checkpoint = beats.read(path)
        model = beats.build(checkpoint.config, checkpoint.state, path)
        return _located(BeatsNetwork(model, str(source), classes=checkpoint.labels), path)
    check_folder(path)
    try:
        described = read_config(path / CONFIG_FILE)
        config = BeatsConfig.of(described["cfg"])
        classes = _class_names(described["classes"], config)
        state = load_file(path / WEIGHTS_FILE)
    except AndpError:
        raise
    except Exception as exc:  # a damaged file of weights makes its library raise nearly anything
        raise WeightsMissingError(
            f"'{path}' holds no BEATs that can be loaded ({type(exc).__name__}: {told(exc)}); it needs {CONFIG_FILE} and "
            f"{WEIGHTS_FILE} as this platform writes them, or give a published .pt file"
        ) from exc
    return _located(BeatsNetwork(beats.build(config, state, path), str(source), classes=classes), path)


def _class_names(names: Any, config: BeatsConfig) -> list[str] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its classes are no list of names")
    if config.finetuned_model and len(names) != config.predictor_class:
        raise ValueError(f"it names {len(names)} classes and has {config.predictor_class}")
    return names


def _located(network: BeatsNetwork, path: Path) -> BeatsNetwork:
    network.origin = str(path.resolve())
    return network


def is_beats(source: str | Path) -> bool:
    """Whether a source is for `load`: a file by its suffix, a directory by its config.json."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return path.suffix in _SUFFIXES
    try:
        return read_config(path / CONFIG_FILE).get("model_type") == MODEL_TYPE
    except BackendError:
        return False


def save(network: BeatsNetwork, directory: str | Path) -> None:
    """Write a network to a directory that `load` takes: config.json and model.safetensors, in its own precision.

    Raises
    ------
    ConflictError
        There is a network in the directory.
    InputError
        The directory cannot be written.
    """
    folder = Path(directory)
    if (folder / CONFIG_FILE).exists():
        raise ConflictError(f"there is a network in '{folder}' already; give another folder")
    with output_files.folder(folder, keep_others=True) as new:
        write(network.model, network.classes, new)


def write(model: Beats, classes: Sequence[str] | None, folder: Path) -> None:
    """Write the files of `save` into a draft."""
    # copies, since the blocks share one table of distances and a safetensors file shares nothing
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    described = {
        "model_type": MODEL_TYPE,
        "cfg": model.config.to_dict(),
        "classes": None if classes is None else list(classes),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def with_head(model: Beats, classes: Sequence[str], seed: int = 0) -> Beats:
    """A copy of an encoder with a fresh head of one unit for each class, in evaluation mode.

    Parameters
    ----------
    model
        Pretrained, or fine-tuned on other classes: its own head is left behind.
    classes
        What the logits stand for, in their order.
    seed
        Of the head's first weights; nobody else's random numbers change by it.

    Raises
    ------
    InputError
        There are fewer than two classes, or one is named twice.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise InputError(f"a head needs at least two classes, each named once; these are {len(classes)}")
    config = replace(model.config, finetuned_model=True, predictor_class=len(classes))
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(config.encoder_embed_dim, config.predictor_class)
    state |= {f"predictor.{key}": value.detach() for key, value in head.state_dict().items()}
    return beats.build(config, state, "the encoder")
