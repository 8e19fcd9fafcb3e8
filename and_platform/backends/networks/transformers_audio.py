"""Audio networks of the `transformers` library, from a directory or from the model hub.

AST has a pipeline and tokens of its own, and so has the audio tower of CLAP; wav2vec 2.0, HuBERT, WavLM, data2vec, SEW,
UniSpeech and the encoder of Whisper share one scheme. A checkpoint with a classifier is loaded whole; of any other, such
as those published after pretraining, or those that transcribe, the encoder alone, which has no classes.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_platform.backends.checkpoint_folder import check_folder
from and_platform.backends.networks.base import Batch, LoadedNetwork, Waveform
from and_platform.backends.networks.layers import LayerSpec
from and_platform.backends.networks.resizing import resize_feed_forward
from and_platform.backends.weights import LOCAL, find_weights, read_pickle, refuse_code, told
from and_platform.errors import AndpError, BackendError, MissingExtraError, WeightsMissingError

PRUNED = "Pruned"
"""What the names of classes with resized feed-forward layers begin with."""

_LENGTHS = "n_samples"  # beside the model's inputs in a batch: the length of each clip before padding
_MIN_SECONDS = 0.05  # shorter clips are padded with silence: feature extractors need at least one full window
_WRAP = "wrap a network that transformers does not know in a function of yours: andp networks add NAME FILE.py:factory"
_CLAP = ("clap", "clap_audio_model")
# with masks and the norm of their large variants
_PADDING_PROOF = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
# a parameter that only training uses: published checkpoints leave it out, or bring it where it is not wanted
_TRAINING_ONLY = "masked_spec_embed"
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class TransformersNetwork(LoadedNetwork):
    """An encoder with or without a classifier: wav2vec 2.0, HuBERT, WavLM, Whisper and their kin."""

    pooling = "mean"

    def __init__(self, model: Any, extractor: Any, name: str, *, classifies: bool = True) -> None:
        self.extractor = extractor
        self.config: Any = model.config
        self.input_name: str = model.main_input_name
        self.classifies = classifies
        raw = self.input_name == "input_values" and not hasattr(extractor, "max_length")
        norm = getattr(model.config, "feat_extract_norm", "")
        self.masks = raw and (bool(extractor.return_attention_mask) or norm == "layer")
        # Weights trained without attention mask see the padding. So does a norm over time, whatever the extractor says of
        # masks, and so do convolutions between or beside the blocks: there each length goes in a batch of its own.
        proof = self.masks and norm == "layer" and model.config.model_type in _PADDING_PROOF
        one_length = any(hasattr(extractor, name) for name in ("max_length", "n_samples", "nb_max_samples"))
        self.uniform_length = not one_length and (not proof or bool(getattr(model.config, "add_adapter", False)))
        super().__init__(
            model,
            name=name,
            rate=int(extractor.sampling_rate),
            classes=_classes(model.config) if classifies else None,
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

    def forward(self, batch: Batch) -> Tensor | None:
        output = self.model(**{key: value for key, value in batch.items() if key != _LENGTHS})
        return output.logits if self.classifies else None

    def frame_mask(self, batch: Batch, layer: LayerSpec, n_positions: int) -> Tensor | None:
        lengths = batch[_LENGTHS]
        raw = self.input_name == "input_values"
        total = batch[self.input_name].shape[1] if raw else getattr(self.extractor, "n_samples", int(lengths.max()))
        valid = -(-lengths * n_positions // total)
        if raw and hasattr(self.model, "_get_feat_extract_output_lengths"):
            kernels, strides = self.config.conv_kernel, self.config.conv_stride
            for number, (kernel, stride) in enumerate(zip(kernels, strides, strict=True), start=1):
                lengths, total = (lengths - kernel) // stride + 1, (total - kernel) // stride + 1
                # one off after them, where a convolution pads an even kernel on both sides
                if abs(total - n_positions) <= (number == len(kernels)):
                    valid = lengths
                    break
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


class ClapNetwork(TransformersNetwork):
    """The audio tower of CLAP, a Swin transformer over a spectrogram of fixed length (Chen et al. 2022, HTS-AT).

    A shorter clip is repeated by the tower's own rule, so there is no padding to mask. Of a longer one its extractor
    takes what chance gives: a stretch, or for a tower with fusion three (Wu et al. 2023). Here it is the middle of the
    clip, or the middle start of each third, and a clip counts as longer where it is, not where a batch lacks one.
    """

    def __init__(self, model: Any, extractor: Any, name: str, *, classifies: bool = False) -> None:
        super().__init__(model, _fusing_in_the_middle(extractor), name, classifies=classifies)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {**super().parameters, "crop": "middle"}

    def _extract(self, waveforms: list[Waveform]) -> Mapping[str, Tensor]:
        most = int(self.extractor.nb_max_samples)
        fuses = self.extractor.truncation == "fusion"
        heard = waveforms if fuses else [w[max(0, (len(w) - most) // 2) :][:most] for w in waveforms]
        features = dict(self.extractor(heard, sampling_rate=self.rate, return_tensors="pt"))
        if fuses:
            hop = int(self.extractor.hop_length)
            features["is_longer"] = torch.tensor([[len(w) // hop > most // hop] for w in waveforms])
        return features

    def frame_mask(self, batch: Batch, layer: LayerSpec, n_positions: int) -> Tensor | None:
        return None


def _fusing_in_the_middle(extractor: Any) -> Any:
    """The same feature extractor of CLAP, with the middle one of each third's starts where it draws one."""
    from transformers import ClapFeatureExtractor

    class Fusing(ClapFeatureExtractor):  # type: ignore[misc]
        def _random_mel_fusion(self, mel: Any, total_frames: int, chunk_frames: int) -> Any:
            thirds = np.array_split(np.arange(total_frames - chunk_frames + 1), 3)
            starts = [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]
            whole = torch.nn.functional.interpolate(
                torch.from_numpy(mel)[None, None], size=[chunk_frames, mel.shape[1]], mode="bilinear"
            )
            return np.stack([whole[0, 0].numpy(), *(mel[start : start + chunk_frames] for start in starts)])

    Fusing.__name__ = type(extractor).__name__  # it is written into the recipe
    return Fusing.from_dict(extractor.to_dict())


@dataclass(frozen=True)
class _Plan:
    """What to load of a checkpoint: a class with its configuration, and what the checkpoint's keys are called there."""

    family: Any
    config: Any
    classifies: bool
    keys: dict[str, str] = field(default_factory=dict)


def load(source: str | Path) -> LoadedNetwork:
    """An audio network of `transformers`, in float32 and evaluation mode.

    Parameters
    ----------
    source
        A directory with config.json, preprocessor_config.json and weights (safetensors first), or a hub id such
        as "MIT/ast-finetuned-audioset-10-10-0.4593" or "openai/whisper-base", with "@revision" after it for another
        than the newest commit. With HF_HUB_OFFLINE set only what is already cached is used.

    Raises
    ------
    WeightsMissingError
        The directory, a file in it, or some of the weights are missing.
    BackendError
        The files are there and cannot be used.
    """
    try:
        from transformers import AutoConfig, AutoFeatureExtractor
    except ImportError as exc:
        raise MissingExtraError("transformers", "networks") from exc

    directory, origin = _locate(source)
    _check_file(directory, "config.json")
    refuse_code()
    try:
        with quiet():
            config = AutoConfig.from_pretrained(directory, **LOCAL)
            plan = _plan(config, directory, str(source))
            extractor = AutoFeatureExtractor.from_pretrained(directory, **LOCAL)
            model, info = plan.family.from_pretrained(
                directory, config=plan.config, key_mapping=plan.keys or None, dtype=torch.float32,
                output_loading_info=True, weights_only=True, local_files_only=True,
            )  # fmt: skip
        _check_keys(model, plan, info, str(source))
        kind = _KINDS.get(plan.config.model_type, TransformersNetwork)
        network = kind(model, extractor, str(source), classifies=plan.classifies)
    except AndpError:
        raise
    except Exception as exc:  # damaged files make the libraries raise nearly anything
        raise BackendError(
            f"'{source}' cannot be loaded as an audio network ({told(exc)}); download a damaged one again, and {_WRAP}"
        ) from exc
    network.origin = origin
    return network


_KINDS: Mapping[str, type[TransformersNetwork]] = {
    "audio-spectrogram-transformer": ASTNetwork,
    "clap_audio_model": ClapNetwork,
}


def _locate(source: str | Path) -> tuple[Path, str]:
    path = Path(source).expanduser()
    if path.is_dir():
        check_folder(path)
        return path, str(path.resolve())
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?", str(source)):
        raise WeightsMissingError(f"there is no directory '{source}'; give a folder that save_pretrained() wrote")
    found = find_weights(str(source))
    return found.path, found.origin


def _plan(config: Any, directory: Path, source: str) -> _Plan:
    """A classifier where the checkpoint has one, else the encoder; BackendError for what is no audio network."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING as CLASSIFIERS
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if config.model_type in _CLAP:
        from transformers import ClapAudioModel, ClapAudioModelWithProjection

        _check_weights(directory)
        bare = "ClapAudioModel" in (config.architectures or [])
        tower = config.audio_config if config.model_type == "clap" else config
        return _Plan(ClapAudioModel if bare else ClapAudioModelWithProjection, tower, False)
    if type(config) not in CLASSIFIERS:
        raise BackendError(
            f"'{source}' is a {config.model_type}, which is not among the audio networks that are understood: AST, "
            f"wav2vec 2.0, HuBERT, WavLM and their kin, Whisper, CLAP; {_WRAP}"
        )
    _check_weights(directory)
    if getattr(config, "feed_forward_sizes", None) is not None:
        return _Plan(resized_class(stock_class(config)), config, True)
    stock = stock_class(config)
    if config.architectures:
        classifies = stock.__name__ in config.architectures
    else:
        classifies = any(name.startswith("classifier.") for name in _weight_names(directory))
    if classifies:
        return _Plan(stock, config, True)
    if config.model_type == "whisper":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return _Plan(WhisperEncoder, config, False, {r"^(model\.)?encoder\.": ""})
    return _Plan(MODEL_MAPPING[type(config)], config, False)


def _check_keys(model: Any, plan: _Plan, info: Mapping[str, Any], source: str) -> None:
    """Every weight that is used must be there, and none may be over that belongs to a part that is used."""
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(_TRAINING_ONLY))
    if missing:
        raise WeightsMissingError(
            f"the weights of '{source}' lack {len(missing)} tensors, {missing[0]} among them, although config.json "
            f"promises a {(plan.config.architectures or [plan.family.__name__])[0]}; download them again"
        )
    for key in info["missing_keys"]:
        torch.nn.init.zeros_(model.get_parameter(key))  # where it was left to chance, the revision would be too
    parts = {name for name, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    over = [
        key
        for key in info["unexpected_keys"]
        if {key.partition(".")[0], key.removeprefix(prefix).partition(".")[0]} & parts
        and not key.endswith(_TRAINING_ONLY)
    ]
    if over:
        raise BackendError(
            f"the weights of '{source}' hold {len(over)} tensors that its config.json has no place for, {min(over)} among "
            "them; the two files are not of one network"
        )


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


def _check_weights(path: Path) -> None:
    if not (path / "processor_config.json").is_file():  # which newer versions write instead
        _check_file(path, "preprocessor_config.json")
    if not any((path / file).is_file() for file in _WEIGHT_FILES):
        raise WeightsMissingError(f"'{path}' has no weights; put model.safetensors there")


def _check_file(path: Path, file: str) -> None:
    if not (path / file).is_file():
        raise WeightsMissingError(
            f"'{path}' has no {file}; save the network with save_pretrained(), and its feature extractor too"
        )


def _weight_names(path: Path) -> list[str]:
    """Names of the tensors of a checkpoint, of the file that will be read."""
    from safetensors import safe_open

    file = next(path / file for file in _WEIGHT_FILES if (path / file).is_file())
    if file.suffix == ".json":
        return list(json.loads(file.read_text("utf-8"))["weight_map"])
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    return list(read_pickle(file))


def _classes(config: Any) -> list[str] | None:
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    unnamed = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    return None if unnamed else labels


def _mask(valid: Tensor, n_positions: int) -> Tensor | None:
    valid = valid.clamp(1, n_positions)
    if bool((valid == n_positions).all()):
        return None
    return torch.arange(n_positions, device=valid.device)[None, :] < valid[:, None]
