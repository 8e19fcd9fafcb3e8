"""Audio classifiers of the `transformers` library, from a directory or from the model hub.

AST has a pipeline and tokens of its own; wav2vec 2.0, HuBERT, WavLM, data2vec, SEW, UniSpeech and the encoder of
Whisper share one scheme.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_platform.backends.networks.base import Batch, LoadedNetwork, Waveform
from and_platform.backends.networks.layers import LayerSpec
from and_platform.backends.networks.resizing import resize_feed_forward
from and_platform.errors import BackendError, MissingExtraError, WeightsMissingError

PRUNED = "Pruned"
"""What the names of classes with resized feed-forward layers begin with."""

_LENGTHS = "n_samples"  # beside the model's inputs in a batch: the length of each clip before padding
_MIN_SECONDS = 0.05  # shorter clips are padded with silence: feature extractors need at least one full window
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class TransformersNetwork(LoadedNetwork):
    """An encoder with a classifier: wav2vec 2.0, HuBERT, WavLM, Whisper and their kin."""

    pooling = "mean"

    def __init__(self, model: Any, extractor: Any, name: str) -> None:
        self.extractor = extractor
        self.config: Any = model.config
        self.input_name: str = model.main_input_name
        raw = self.input_name == "input_values" and not hasattr(extractor, "max_length")
        # weights trained without attention mask see the padding, and so do the convolutions of a conformer:
        # there each length goes in a batch of its own
        self.masks = raw and (
            bool(extractor.return_attention_mask) or getattr(model.config, "feat_extract_norm", "") == "layer"
        )
        self.uniform_length = raw and (not self.masks or "conformer" in model.config.model_type)
        super().__init__(
            model,
            name=name,
            rate=int(extractor.sampling_rate),
            classes=_classes(model.config),
            pooling=self.pooling,
        )

    @property
    def parameters(self) -> Mapping[str, Any]:
        config = {key: value for key, value in self.config.to_dict().items() if key not in _INCIDENTAL}
        pipeline = {key: value for key, value in self.extractor.to_dict().items() if key not in _INCIDENTAL}
        return {"model": config, "pipeline": pipeline}

    def prepare(self, waveforms: Sequence[Waveform]) -> Batch:
        shortest = int(_MIN_SECONDS * self.rate)
        padded = [np.pad(w, (0, max(0, shortest - len(w)))).astype(np.float32, copy=False) for w in waveforms]
        inputs = dict(self._extract(padded))
        inputs[_LENGTHS] = torch.tensor([len(w) for w in padded])
        return inputs

    def _extract(self, waveforms: list[Waveform]) -> Mapping[str, Tensor]:
        options: dict[str, Any] = {"sampling_rate": self.rate, "return_tensors": "pt"}
        if self.input_name == "input_values":
            options |= {"padding": True, "return_attention_mask": self.masks}
        features: Mapping[str, Tensor] = self.extractor(waveforms, **options)
        return features

    def forward(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(**{key: value for key, value in batch.items() if key != _LENGTHS}).logits
        return logits

    def frame_mask(self, batch: Batch, layer: LayerSpec, n_positions: int) -> Tensor | None:
        lengths = batch[_LENGTHS]
        raw = self.input_name == "input_values"
        total = batch[self.input_name].shape[1] if raw else getattr(self.extractor, "n_samples", int(lengths.max()))
        valid = -(-lengths * n_positions // total)
        if raw and hasattr(self.model, "_get_feat_extract_output_lengths"):
            frames: Any = self.model._get_feat_extract_output_lengths
            # one off where a convolution pads an even kernel on both sides
            if abs(int(frames(torch.tensor(total))) - n_positions) <= 1:
                valid = frames(lengths)
        return _mask(valid, n_positions)


class ASTNetwork(TransformersNetwork):
    """The audio spectrogram transformer: a class and a distillation token, then patches of the spectrogram."""

    pooling = "first"
    _WINDOW, _HOP, _TOKENS = (
        400,
        160,
        2,
    )  # samples a frame, samples between frames (Kaldi's), tokens before patches

    def _extract(self, waveforms: list[Waveform]) -> Mapping[str, Tensor]:
        features = self.extractor(waveforms, sampling_rate=self.rate, return_tensors="np")["input_values"]
        return {"input_values": torch.from_numpy(np.asarray(features, dtype=np.float32))}

    def frame_mask(self, batch: Batch, layer: LayerSpec, n_positions: int) -> Tensor | None:
        """Patches that begin after the end of the sound are padding; the two tokens are no place in time."""
        config = self.config
        columns = (config.max_length - config.patch_size) // config.time_stride + 1
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        frames = 1 + (batch[_LENGTHS] - self._WINDOW) // self._HOP
        valid = (-(-frames // config.time_stride)).clamp(1, columns)
        if n_positions == columns:
            return _mask(valid, columns)
        if n_positions != self._TOKENS + rows * columns:
            return None
        sound = torch.arange(columns, device=valid.device)[None, :] < valid[:, None]
        tokens = torch.zeros(len(valid), self._TOKENS, dtype=torch.bool, device=valid.device)
        return torch.cat([tokens, sound.repeat(1, rows)], dim=1)


def load(source: str | Path) -> LoadedNetwork:
    """An audio classifier of `transformers`, in float32 and evaluation mode.

    Parameters
    ----------
    source
        A directory with config.json, preprocessor_config.json and weights (safetensors first), or a hub id such
        as "MIT/ast-finetuned-audioset-10-10-0.4593". With HF_HUB_OFFLINE set only what is already cached is used.

    Raises
    ------
    WeightsMissingError
        The directory, a file in it, or some of the weights are missing.
    BackendError
        The files are there and cannot be used.
    """
    try:
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoFeatureExtractor
    except ImportError as exc:
        raise MissingExtraError("transformers", "networks") from exc

    options: dict[str, Any] = {}
    if Path(source).is_dir():
        _check_directory(Path(source))
        options["local_files_only"] = True
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(source)):
        raise WeightsMissingError(f"there is no directory '{source}'; give a folder that save_pretrained() wrote")
    elif os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        options["local_files_only"] = True
    try:
        with quiet():
            extractor = AutoFeatureExtractor.from_pretrained(str(source), **options)
            config = AutoConfig.from_pretrained(str(source), trust_remote_code=False, **options)
            model, info = _family(config).from_pretrained(
                str(source), dtype=torch.float32, output_loading_info=True, **options
            )
    except OSError as exc:
        raise WeightsMissingError(
            f"'{source}' is neither a directory here nor a model that can be loaded from the hub or its cache "
            f"({_first_line(exc)}); check the spelling, or download the model and give its folder"
        ) from exc
    except (ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as exc:
        raise BackendError(
            f"'{source}' cannot be loaded as an audio classifier ({_first_line(exc)}); it must work with "
            "transformers' AutoModelForAudioClassification"
        ) from exc
    if missing := sorted(info["missing_keys"]):
        raise WeightsMissingError(
            f"the weights of '{source}' lack {len(missing)} tensors, {missing[0]} among them; it may be a network "
            "without a classifier: fine-tune it first, or wrap it in a module:factory"
        )
    kind = ASTNetwork if model.config.model_type == "audio-spectrogram-transformer" else TransformersNetwork
    return kind(model, extractor, str(source))


def _family(config: Any) -> Any:
    """The class to load: of `transformers`, or with feed-forward layers of their own sizes where a network was pruned."""
    from transformers import AutoModelForAudioClassification

    if getattr(config, "feed_forward_sizes", None) is None:
        return AutoModelForAudioClassification
    return resized_class(stock_class(config))


def stock_class(config: Any) -> Any:
    """The audio classifier of `transformers` for a configuration; BackendError where there is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING:
        raise BackendError(f"transformers has no audio classifier for a {type(config).__name__}; use a factory")
    return MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)]


def resized_class(stock: Any) -> Any:
    """A class of `transformers` whose feed-forward layers have the sizes that the configuration gives.

    A pruned checkpoint brings the same class as a Python file, for use without the platform; that file is never run here.
    """

    def build(self: Any, config: Any) -> None:
        stock.__init__(self, config)
        resize_feed_forward(self, config.feed_forward_sizes)

    return type(f"{PRUNED}{stock.__name__}", (stock,), {"__init__": build})


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and remarks off the terminal while a network is loaded or saved.

    What matters in them (weights that are missing) is raised as an error instead.
    """
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # an AST as published has more mel bins than its spectrum has lines to fill
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# what a saved configuration records of its origin and its printing, not of its results
_INCIDENTAL = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map"})


def _check_directory(path: Path) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        if not (path / file).is_file():
            raise WeightsMissingError(
                f"'{path}' has no {file}; save the network with save_pretrained(), and its feature extractor too"
            )
    if not any((path / file).is_file() for file in _WEIGHT_FILES):
        raise WeightsMissingError(f"'{path}' has no weights; put model.safetensors there")


def _classes(config: Any) -> list[str] | None:
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    unnamed = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    return None if unnamed else labels


def _mask(valid: Tensor, n_positions: int) -> Tensor | None:
    valid = valid.clamp(1, n_positions)
    if bool((valid == n_positions).all()):
        return None
    return torch.arange(n_positions, device=valid.device)[None, :] < valid[:, None]


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)
