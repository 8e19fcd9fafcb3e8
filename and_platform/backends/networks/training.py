"""Training a small audio spectrogram transformer from nothing, on a CPU, in minutes.

The result is a directory that `transformers` loads like any other checkpoint. The last epoch is what is saved: the
held-out fold is measured and never used to choose anything.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from and_platform.backends.base import Clip, Floats
from and_platform.errors import InputError

if TYPE_CHECKING:
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

RATE: Final = 16_000
_FLOOR: Final = math.log(1.192092955078125e-07)  # of the feature extractor's log mel energies


class TrainItem(NamedTuple):
    """One labelled clip: mono float32 samples at 16 kHz, its class, its fold, and a name for messages."""

    waveform: Floats
    label: str
    fold: int
    key: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome, given the clips and their order.

    The defaults are the recipe of the sample network.
    """

    seed: int = 0
    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 7e-4
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of all steps
    label_smoothing: float = 0.05
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    frames: int = 192  # of 10 ms: what the network hears of a clip, from its start
    mel_bins: int = 64
    stride: int = 16  # of the patches, which are 16 x 16
    dropout: float = 0.0  # in attention too, where it costs the fast path of a CPU
    mixup: float = 0.25  # share of batches in which clips are added to each other
    crop: float = 0.5  # share of clips heard from another point than their start
    gain: float = 1.0  # largest change of level, in nepers of energy
    pitch: int = 1  # largest shift along the mel axis, in bins
    frequency_mask: int = 8  # widest band hidden, in bins
    time_mask: int = 16  # longest stretch hidden, in frames
    average: float = 0.995  # decay of the running average of the weights, which is what is saved


class EpochMetrics(NamedTuple):
    """One epoch: mean training loss (on augmented clips), accuracy on the held-out fold, seconds so far."""

    epoch: int
    loss: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What came out, measured on the weights as saved and loaded again.

    `confusion` is int [C, C], rows true classes, columns predicted ones, in the order of `classes`.
    """

    directory: Path
    classes: list[str]
    epochs: list[EpochMetrics]
    n_train: int
    n_test: int
    test_accuracy: float
    per_class_accuracy: dict[str, float]
    confusion: NDArray[np.int64]
    seconds: float


def train_ast(
    items: Sequence[TrainItem],
    held_out_fold: int,
    directory: str | Path,
    config: TrainConfig | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[EpochMetrics], None] | None = None,
) -> TrainResult:
    """Train on all folds but one, save in float16, load again, and measure on the fold left out.

    Written are config.json, preprocessor_config.json (with mean and standard deviation of the training clips),
    model.safetensors and training.json (recipe, folds, accuracy).

    Parameters
    ----------
    items
        The clips, in an order that does not change (the result depends on it).
    held_out_fold
        Never trained on.
    directory
        Where to save; made if need be.
    config
        The recipe; by default the sample network's.
    provenance
        Further entries of training.json, such as the hash of the manifest.
    progress
        Called after each epoch.

    Raises
    ------
    InputError
        Nothing to train on or to test on, or fewer than two classes.
    """
    from transformers import ASTFeatureExtractor

    from and_platform.backends.networks.transformers_audio import quiet

    config = config or TrainConfig()
    started = time.monotonic()
    train = [item for item in items if item.fold != held_out_fold]
    test = [item for item in items if item.fold == held_out_fold]
    classes = sorted({item.label for item in train})
    if not test:
        folds = ", ".join(str(fold) for fold in sorted({item.fold for item in items}))
        raise InputError(f"no clip is in fold {held_out_fold}, so nothing is left to test on; there are folds {folds}")
    if len(classes) < 2:
        raise InputError(f"the clips outside fold {held_out_fold} have {len(classes)} class(es); at least 2 are needed")
    if unseen := sorted({item.label for item in test} - set(classes)):
        raise InputError(f"the class '{unseen[0]}' is only in the held-out fold {held_out_fold}; hold out another")

    with quiet():
        extractor = ASTFeatureExtractor(
            num_mel_bins=config.mel_bins, max_length=config.frames, sampling_rate=RATE, do_normalize=False
        )
    train_set = _Spectrograms.of(train, classes, extractor)
    test_set = _Spectrograms.of(test, classes, extractor)
    extractor.mean, extractor.std = train_set.moments()
    extractor.do_normalize = True

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _new_model(config, classes)
        epochs = _fit(model, train_set, test_set, extractor, config, started, progress)

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.half().save_pretrained(directory)
        extractor.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # the library leaves it to its owner alone
    confusion = _confusion(directory, test, classes)
    per_class = {
        name: round(float(row[i] / row.sum()), 4)
        for i, (name, row) in enumerate(zip(classes, confusion, strict=True))
        if row.sum()
    }
    result = TrainResult(
        directory=directory,
        classes=classes,
        epochs=epochs,
        n_train=len(train),
        n_test=len(test),
        test_accuracy=float(np.trace(confusion) / confusion.sum()),
        per_class_accuracy=per_class,
        confusion=confusion,
        seconds=time.monotonic() - started,
    )
    _write_record(result, config, held_out_fold, sorted({item.fold for item in train}), dict(provenance or {}))
    return result


@dataclass
class _Spectrograms:
    """Log mel spectrograms of whole clips, computed once: [n, longest, mel bins], with lengths and targets."""

    frames: Tensor
    lengths: Tensor
    targets: Tensor

    @classmethod
    def of(cls, items: Sequence[TrainItem], classes: list[str], extractor: ASTFeatureExtractor) -> _Spectrograms:
        spectrograms: list[NDArray[np.float32]] = []
        for item in items:
            waveform = np.pad(item.waveform, (0, max(0, 400 - item.waveform.size))).astype(np.float32)
            n_frames = 1 + (waveform.size - 400) // 160
            spectrograms.append(extractor._extract_fbank_features(waveform, max_length=n_frames))
        lengths = torch.tensor([len(s) for s in spectrograms])
        frames = torch.zeros(len(items), int(lengths.max()), extractor.num_mel_bins)
        for i, spectrogram in enumerate(spectrograms):
            frames[i, : len(spectrogram)] = torch.from_numpy(np.ascontiguousarray(spectrogram))
        return cls(frames, lengths, torch.tensor([classes.index(item.label) for item in items]))

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation over all frames that are sound."""
        sound = torch.arange(self.frames.shape[1])[None, :] < self.lengths[:, None]
        values = self.frames[sound].double()
        return float(values.mean()), float(values.std())

    def cut(self, index: Tensor, starts: Tensor, n_frames: int) -> tuple[Tensor, Tensor]:
        """Stretches of `n_frames` [B, n_frames, mel] from the given starts, and where they are sound [B, n_frames]."""
        where = starts[:, None] + torch.arange(n_frames)[None, :]
        sound = where < self.lengths[index][:, None]
        where = where.clamp(max=self.frames.shape[1] - 1)
        return self.frames[index[:, None], where].masked_fill(~sound[:, :, None], 0.0), sound


def _new_model(config: TrainConfig, classes: list[str]) -> ASTForAudioClassification:
    from transformers import ASTConfig, ASTForAudioClassification

    model = ASTForAudioClassification(
        ASTConfig(
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.hidden,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            patch_size=16,
            frequency_stride=config.stride,
            time_stride=config.stride,
            max_length=config.frames,
            num_mel_bins=config.mel_bins,
            id2label=dict(enumerate(classes)),
            label2id={name: i for i, name in enumerate(classes)},
        )
    )
    # the library starts places and tokens at zero, from where a network without pretraining learns slowly
    embeddings = model.audio_spectrogram_transformer.embeddings
    for parameter in (embeddings.position_embeddings, embeddings.cls_token, embeddings.distillation_token):
        nn.init.trunc_normal_(parameter, std=0.02)
    return model


def _fit(
    model: ASTForAudioClassification,
    train: _Spectrograms,
    test: _Spectrograms,
    extractor: ASTFeatureExtractor,
    config: TrainConfig,
    started: float,
    progress: Callable[[EpochMetrics], None] | None,
) -> list[EpochMetrics]:
    """Train in place; the model ends with the averaged weights."""
    n, n_classes = len(train.targets), len(model.config.id2label or {})
    steps = config.epochs * math.ceil(n / config.batch_size)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    warm = max(1, int(config.warmup * steps))

    def rate_at(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    history: list[EpochMetrics] = []
    for epoch in range(1, config.epochs + 1):
        model.train()
        losses = []
        for index in torch.randperm(n).split(config.batch_size):
            inputs, targets = _augmented(train, index, extractor, config, n_classes)
            logits = model(inputs).logits
            loss = functional.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
            losses.append(float(loss.detach()) * len(index))
        metrics = EpochMetrics(
            epoch,
            sum(losses) / n,
            _accuracy(averaged.module, test, extractor, config),
            time.monotonic() - started,
        )
        history.append(metrics)
        if progress is not None:
            progress(metrics)
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def _augmented(
    data: _Spectrograms, index: Tensor, extractor: ASTFeatureExtractor, config: TrainConfig, n_classes: int
) -> tuple[Tensor, Tensor]:
    """A training batch: normalised spectrograms [B, frames, mel] and soft targets [B, C]."""
    size = len(index)
    spare = (data.lengths[index] - config.frames).clamp(min=0)
    starts = (torch.rand(size) * (spare + 1)).long() * (torch.rand(size) < config.crop)
    x, sound = data.cut(index, starts, config.frames)
    targets = functional.one_hot(data.targets[index], n_classes).float()

    level = (torch.rand(size, 1, 1) * 2 - 1) * config.gain
    shift = torch.randint(-config.pitch, config.pitch + 1, (size, 1))
    bins = (torch.arange(config.mel_bins)[None, :] - shift).clamp(0, config.mel_bins - 1)
    x = x.gather(2, bins[:, None, :].expand_as(x)) + level
    x = x.clamp(min=_FLOOR).masked_fill(~sound[:, :, None], _FLOOR)

    if float(torch.rand(())) < config.mixup:
        partner = torch.randperm(size)
        share = torch.distributions.Beta(1.0, 1.0).sample((size,))
        mine, theirs = share.log()[:, None, None], (1 - share).log()[:, None, None]
        # energies add, as when two sounds are heard at once
        x = torch.logaddexp(x + mine, x[partner] + theirs).clamp(min=_FLOOR)
        targets = share[:, None] * targets + (1 - share[:, None]) * targets[partner]
        sound = sound | sound[partner]
    # the feature extractor pads with zeros before it normalises
    x = (x.masked_fill(~sound[:, :, None], 0.0) - extractor.mean) / (2 * extractor.std)
    for axis, longest in ((1, config.time_mask), (2, config.frequency_mask)):
        x = _hide(x, axis, longest)
    return x, targets


def _hide(x: Tensor, axis: int, longest: int) -> Tensor:
    """Set a random stretch of each spectrogram to the mean of the data, zero (Park et al. 2019, SpecAugment)."""
    size, length = x.shape[0], x.shape[axis]
    width = torch.randint(0, longest + 1, (size, 1))
    first = (torch.rand(size, 1) * (length - width + 1)).long()
    places = torch.arange(length)[None, :]
    hidden = (places >= first) & (places < first + width)
    return x.masked_fill(hidden[:, :, None] if axis == 1 else hidden[:, None, :], 0.0)


def _accuracy(model: nn.Module, data: _Spectrograms, extractor: ASTFeatureExtractor, config: TrainConfig) -> float:
    model.eval()
    with torch.inference_mode():
        index = torch.arange(len(data.targets))
        x, _ = data.cut(index, torch.zeros_like(index), config.frames)
        x = (x - extractor.mean) / (2 * extractor.std)
        predicted = torch.cat([model(part).logits.argmax(1) for part in x.split(64)])
    return float((predicted == data.targets).double().mean())


def _confusion(directory: Path, test: Sequence[TrainItem], classes: list[str]) -> NDArray[np.int64]:
    """The saved network on the held-out clips, through the path that everyone else takes."""
    from and_platform.backends.networks.record import logits_batches
    from and_platform.backends.networks.transformers_audio import load

    clips = [Clip(item.key, item.waveform, RATE) for item in test]
    logits = np.concatenate(list(logits_batches(load(directory), clips)))
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, ([classes.index(item.label) for item in test], logits.argmax(axis=1)), 1)
    return confusion


def _write_record(
    result: TrainResult,
    config: TrainConfig,
    held_out_fold: int,
    train_folds: list[int],
    provenance: dict[str, Any],
) -> None:
    record = {
        "architecture": "ASTForAudioClassification",
        "held_out_fold": held_out_fold,
        "train_folds": train_folds,
        "n_train": result.n_train,
        "n_test": result.n_test,
        "test_accuracy": round(result.test_accuracy, 4),
        "test_accuracy_of": "float16 weights as loaded again, run in float32, on the held-out fold",
        "per_class_accuracy": result.per_class_accuracy,
        "classes": result.classes,
        "recipe": asdict(config),
        "final_loss": round(result.epochs[-1].loss, 4),
        "seconds": round(result.seconds, 1),
        # the same weights again are promised for the same versions, threads and kind of processor
        "made_with": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        **provenance,
    }
    path = result.directory / "training.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
