"""Pretraining a small audio spectrogram transformer without labels: it learns to fill in what is hidden of a sound.

Some patches of each spectrogram give way to a learned token, and a linear decoder tells from the encoder's output
what they were (masked spectrogram modelling: Gong et al. 2022, "SSAST"; He et al. 2022, "Masked Autoencoders"). What a
classifier reads of this encoder is the mean of its two extra tokens, which that task alone leaves to themselves; so a
second linear decoder tells the whole spectrogram from that mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from and_platform import output_files
from and_platform.backends.base import Floats
from and_platform.backends.checkpoint_folder import check_folder, read_config
from and_platform.backends.networks.optimising import Optimiser
from and_platform.backends.networks.spectrograms import RATE, Spectrograms, normalised
from and_platform.backends.weights import loading
from and_platform.errors import InputError, WeightsMissingError

if TYPE_CHECKING:
    from transformers import ASTFeatureExtractor, ASTModel

PATCH: Final = 16  # bins and frames
TOKENS: Final = 2  # before the patches: one for the class, one for distillation
RECORD: Final = "pretraining.json"


class UnlabelledItem(NamedTuple):
    """One clip: mono float32 samples at 16 kHz, its fold, and a name for messages. Nothing tells what it is."""

    waveform: Floats
    fold: int
    key: str = ""


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the outcome, given the clips and their order."""

    seed: int = 0
    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of all steps
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    frames: int = 192  # of 10 ms: what the network hears of a clip, from its start
    mel_bins: int = 64
    stride: int = 16  # of the patches, which are 16 x 16 and must not overlap here
    mask: float = 0.6  # share of the patches with sound that are hidden
    summary: float = 1.0  # weight of the loss of the second decoder beside that of the first
    mixup: float = 0.25  # share of batches in which clips are added to each other
    crop: float = 0.5  # share of clips heard from another point than their start
    gain: float = 1.0  # largest change of level, in nepers of energy
    pitch: int = 1  # largest shift along the mel axis, in bins


class PretrainMetrics(NamedTuple):
    """One epoch: mean squared errors of hidden patches and of the whole by the two tokens, seconds so far."""

    epoch: int
    patch_loss: float
    summary_loss: float
    seconds: float


@dataclass(frozen=True)
class PretrainResult:
    """What came out: the directory, the hash of its weights, and the errors by epoch."""

    directory: Path
    sha256: str
    epochs: list[PretrainMetrics]
    n_clips: int
    seconds: float


@dataclass(frozen=True)
class Pretrained:
    """An encoder in float32 as it was saved, its feature extractor, and what pretraining.json tells."""

    encoder: ASTModel
    extractor: ASTFeatureExtractor
    record: dict[str, Any]
    sha256: str


def pretrain_ast(
    items: Sequence[UnlabelledItem],
    held_out_fold: int,
    directory: str | Path,
    config: PretrainConfig | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[PretrainMetrics], None] | None = None,
) -> PretrainResult:
    """Learn from sounds alone, of all folds but one, and save the encoder in float16.

    Written are config.json, preprocessor_config.json (with mean and standard deviation of the clips),
    model.safetensors and pretraining.json (recipe, folds, errors by epoch). The decoders are not kept.

    Parameters
    ----------
    items
        The clips, in an order that does not change (the result depends on it).
    held_out_fold
        Left out here too, so that what is tested on it later has never heard it.
    directory
        Where to save; made if need be.
    config
        The recipe.
    provenance
        Further entries of pretraining.json, such as the name of the data set.
    progress
        Called after each epoch.

    Raises
    ------
    InputError
        No clips are left, or the patches overlap.
    """
    from transformers import ASTFeatureExtractor

    from and_platform.backends.networks.transformers_audio import quiet

    config = config or PretrainConfig()
    if config.stride != PATCH:
        raise InputError(f"patches that overlap tell each other's content; pretrain with a stride of {PATCH}")
    started = time.monotonic()
    heard = [item for item in items if item.fold != held_out_fold]
    if not heard:
        raise InputError(f"no clip is outside fold {held_out_fold}, so nothing is left to learn from")

    with quiet():
        extractor = ASTFeatureExtractor(
            num_mel_bins=config.mel_bins, max_length=config.frames, sampling_rate=RATE, do_normalize=False
        )
    clips = Spectrograms.of([item.waveform for item in heard], extractor)
    extractor.mean, extractor.std = clips.moments()
    extractor.do_normalize = True

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = _new_encoder(config)
        epochs = _fit(encoder, clips, extractor, config, started, progress)

    directory = Path(directory)
    with output_files.folder(directory, keep_others=True) as new:
        with quiet():
            encoder.half().save_pretrained(new)
            extractor.save_pretrained(new)
        weights = new / "model.safetensors"
        result = PretrainResult(directory, _sha256(weights), epochs, len(heard), time.monotonic() - started)
        record = _record(result, config, held_out_fold, sorted({item.fold for item in heard})) | dict(provenance or {})
        (new / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _record(result: PretrainResult, config: PretrainConfig, held_out_fold: int, folds: list[int]) -> dict[str, Any]:
    """What pretraining.json tells."""
    epochs = result.epochs
    return {
        "architecture": "ASTModel",
        "task": "masked spectrogram patches",
        "held_out_fold": held_out_fold,
        "folds": folds,
        "n_clips": result.n_clips,
        "labels": "none",
        "recipe": asdict(config),
        "patch_loss": [round(epoch.patch_loss, 4) for epoch in epochs],
        "summary_loss": [round(epoch.summary_loss, 4) for epoch in epochs],
        "losses_of": "mean squared errors by epoch, in units of the normalised spectrograms",
        "seconds": round(result.seconds, 1),
        "made_with": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "weights_sha256": result.sha256,
    }


def load_pretrained(directory: str | Path) -> Pretrained:
    """An encoder that `pretrain_ast` saved.

    Raises
    ------
    WeightsMissingError
        There is none in the directory.
    InputError
        Its weights are not those that it was saved with.
    """
    from transformers import ASTFeatureExtractor, ASTModel

    from and_platform.backends.networks.transformers_audio import quiet

    directory = Path(directory)
    if not (directory / RECORD).is_file():
        raise WeightsMissingError(
            f"{directory} holds no pretrained encoder ({RECORD} is missing); leave --pretrained out to make one"
        )
    check_folder(directory)
    record = read_config(directory / RECORD)
    with loading(str(directory)), quiet():
        sha256 = _sha256(directory / "model.safetensors")
        if sha256 != record["weights_sha256"]:
            raise InputError(f"the weights in {directory} are not those that {RECORD} tells of; pretrain again")
        encoder = ASTModel.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
        extractor = ASTFeatureExtractor.from_pretrained(directory, local_files_only=True)
    return Pretrained(encoder, extractor, record, sha256)


def spread_tokens(encoder: ASTModel) -> None:
    """Draw places and tokens, which the library starts at zero, from where a network learns slowly."""
    embeddings = encoder.embeddings
    for parameter in (embeddings.position_embeddings, embeddings.cls_token, embeddings.distillation_token):
        nn.init.trunc_normal_(parameter, std=0.02)


def _new_encoder(config: PretrainConfig) -> ASTModel:
    from transformers import ASTConfig, ASTModel

    encoder = ASTModel(
        ASTConfig(
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            patch_size=PATCH,
            frequency_stride=config.stride,
            time_stride=config.stride,
            max_length=config.frames,
            num_mel_bins=config.mel_bins,
        )
    )
    spread_tokens(encoder)
    return encoder


class _Decoders(nn.Module):
    """What stands in for hidden patches, and the two linear maps back to spectrograms."""

    def __init__(self, hidden: int, n_patches: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(hidden))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.patch = nn.Linear(hidden, PATCH * PATCH)
        self.whole = nn.Linear(hidden, n_patches * PATCH * PATCH)


def _fit(
    encoder: ASTModel,
    clips: Spectrograms,
    extractor: ASTFeatureExtractor,
    config: PretrainConfig,
    started: float,
    progress: Callable[[PretrainMetrics], None] | None,
) -> list[PretrainMetrics]:
    """Train the encoder in place."""
    n = len(clips.lengths)
    n_patches = (config.frames // PATCH) * (config.mel_bins // PATCH)
    decoders = _Decoders(config.hidden, n_patches)
    optimiser = Optimiser(
        [*encoder.parameters(), *decoders.parameters()],
        config.learning_rate,
        config.weight_decay,
        config.warmup,
        config.epochs * math.ceil(n / config.batch_size),
    )
    hidden = torch.zeros(0, n_patches, dtype=torch.bool)

    def hide(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        return torch.where(hidden[:, :, None], decoders.token, embedded)

    hook = encoder.embeddings.patch_embeddings.register_forward_hook(hide)
    encoder.train()
    history: list[PretrainMetrics] = []
    for epoch in range(1, config.epochs + 1):
        losses = torch.zeros(2, dtype=torch.float64)
        for index in torch.randperm(n).split(config.batch_size):
            energies, sound, _, _ = clips.varied(index, config)
            x = normalised(energies, sound, extractor)
            target, heard = patches(x), patches(sound[:, :, None].expand_as(x)).any(-1)
            hidden = choose(heard, config.mask)
            states = encoder(x).last_hidden_state
            errors = (decoders.patch(states[:, TOKENS:]) - target).square().mean(-1)
            patch_loss = errors[hidden].mean()
            told = decoders.whole(states[:, :TOKENS].mean(1)).unflatten(1, (n_patches, -1))
            summary_loss = (told - target).square().mean(-1)[heard].mean()
            optimiser.step(patch_loss + config.summary * summary_loss)
            losses += torch.stack([patch_loss, summary_loss]).detach().double() * len(index)
        patch_mean, summary_mean = (losses / n).tolist()
        metrics = PretrainMetrics(epoch, patch_mean, summary_mean, time.monotonic() - started)
        history.append(metrics)
        if progress is not None:
            progress(metrics)
    hook.remove()
    encoder.eval()
    return history


def patches(x: Tensor) -> Tensor:
    """Spectrograms [B, frames, mel] as patches [B, n, 256], in the order of the encoder's: by pitch, then by time."""
    parts = x.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # [B, times, pitches, frames, mel]
    return parts.permute(0, 2, 1, 4, 3).flatten(3).flatten(1, 2)


def choose(heard: Tensor, share: float) -> Tensor:
    """Which patches to hide: a random share, at least one, of those [B, n] that hold sound."""
    order = torch.rand(heard.shape).masked_fill(~heard, 2.0).argsort(1).argsort(1)
    count = (heard.sum(1, keepdim=True) * share).round().clamp(min=1)
    return (order < count) & heard


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
