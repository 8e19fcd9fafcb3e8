"""Training a small audio spectrogram transformer on a CPU, in minutes: from nothing, or from a pretrained encoder.

The recipes stand for the three training strategies of the paper (Table 1): everything trained with labels; pretrained
without labels, then everything trained with them; pretrained without labels, then the last linear layer trained with
them. The result is a directory that `transformers` loads like any other checkpoint. The last epoch is what is saved: the
held-out fold is measured and never used to choose anything.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from and_platform import output_files
from and_platform.backends.base import Clip, Floats
from and_platform.backends.networks.optimising import Optimiser
from and_platform.backends.networks.pretraining import Pretrained, load_pretrained, spread_tokens
from and_platform.backends.networks.spectrograms import RATE, Spectrograms, normalised
from and_platform.errors import InputError

if TYPE_CHECKING:
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

Trainable = Literal["all", "head"]
RECORD: Final = "training.json"
PRETRAINED: Final = "pretrained"  # the folder beside the network in which an encoder may be that it started from
_VARIATION: Final = ("dropout", "mixup", "crop", "gain", "pitch", "frequency_mask", "time_mask", "average")


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


class Recipe(NamedTuple):
    """A training strategy: what is trained with labels, after pretraining without them or not, and how."""

    config: TrainConfig
    pretrained: bool
    trainable: Trainable


# What was chosen was chosen on the folds 2 to 5 of the sample data set; fold 1, which its networks hold out, chose nothing.
RECIPES: Final = MappingProxyType(
    {
        "supervised": Recipe(TrainConfig(), pretrained=False, trainable="all"),
        "finetuned": Recipe(TrainConfig(epochs=60), pretrained=True, trainable="all"),
        "frozen": Recipe(
            TrainConfig(
                epochs=300,
                batch_size=64,
                learning_rate=3e-2,
                **dict.fromkeys(_VARIATION, 0),
            ),
            pretrained=True,
            trainable="head",
        ),
    }
)


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
    init: str | Path | None = None,
    trainable: Trainable = "all",
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[EpochMetrics], None] | None = None,
) -> TrainResult:
    """Train on all folds but one, save in float16, load again, and measure on the fold left out.

    Written, all at once, are config.json, preprocessor_config.json (with mean and standard deviation of the training
    clips), model.safetensors and training.json (recipe, folds, course, accuracy).

    Parameters
    ----------
    items
        The clips, in an order that does not change (the result depends on it).
    held_out_fold
        Never trained on.
    directory
        Where to save; made if need be. An encoder in `pretrained` in it stays.
    config
        The recipe; by default the sample network's. Where `init` is given, the shape of the network is the encoder's.
    init
        Directory of an encoder that `pretrain_ast` saved, to start from; its feature extractor is taken over.
    trainable
        All weights, or only those of the head's linear layer, as the paper's "frozen" network has it (Table 1: "final
        linear layer"). The encoder then stays exactly as it was saved, the layer norm before the linear layer as it
        begins, and the clips are heard as they are: variation and running average have to be off in the recipe.
    provenance
        Further entries of training.json, such as the hash of the manifest.
    progress
        Called after each epoch.

    Raises
    ------
    InputError
        Nothing to train on or to test on, fewer than two classes, only a head to train on an encoder that learned
        nothing or on varied clips, or an encoder that has heard the held-out clips.
    WeightsMissingError
        There is no encoder in `init`.
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

    if init is None and trainable == "head":
        raise InputError("with only the head trained, the encoder has to be a pretrained one; name its directory")
    if trainable == "head" and (varied := [name for name in _VARIATION if getattr(config, name)]):
        raise InputError(f"the head is trained on clips as they are; set to 0: {', '.join(varied)}")
    pretrained = None if init is None else load_pretrained(init)
    provenance = dict(provenance or {})
    if pretrained is not None:
        config = _shaped(config, pretrained)
        provenance |= _descent(pretrained, Path(str(init)), held_out_fold, provenance.get("dataset"))

    if pretrained is None:
        with quiet():
            extractor = ASTFeatureExtractor(
                num_mel_bins=config.mel_bins, max_length=config.frames, sampling_rate=RATE, do_normalize=False
            )
    else:
        extractor = pretrained.extractor
    train_set, test_set = (Spectrograms.of([item.waveform for item in part], extractor) for part in (train, test))
    if pretrained is None:
        extractor.mean, extractor.std = train_set.moments()
        extractor.do_normalize = True
    train_labels, test_labels = (
        torch.tensor([classes.index(item.label) for item in part]) for part in (train, test)
    )  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _new_model(config, classes, pretrained)
        data = _Data(train_set, train_labels, test_set, test_labels, extractor)
        fit = _fit if trainable == "all" else _fit_head
        epochs = fit(model, data, config, started, progress)

    directory = Path(directory)
    with output_files.folder(directory, carry=(PRETRAINED,), keep_others=True) as new:
        with quiet():
            model.half().save_pretrained(new)
            extractor.save_pretrained(new)
        confusion = _confusion(new, test, classes)
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
        train_folds = sorted({item.fold for item in train})
        record = _record(result, config, held_out_fold, train_folds, trainable) | provenance
        (new / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def recorded(directory: str | Path, record: Mapping[str, Any]) -> TrainResult:
    """The result that a training.json of `train_ast` tells of."""
    confusion = np.array(record["confusion"], np.int64)
    return TrainResult(
        directory=Path(directory),
        classes=record["classes"],
        epochs=[EpochMetrics(**metrics) for metrics in record["epochs"]],
        n_train=record["n_train"],
        n_test=record["n_test"],
        test_accuracy=float(np.trace(confusion) / confusion.sum()),
        per_class_accuracy=record["per_class_accuracy"],
        confusion=confusion,
        seconds=record["seconds"],
    )


class _Data(NamedTuple):
    """Clips and classes (int [n]) to train and to test on, and the feature extractor."""

    train: Spectrograms
    train_labels: Tensor
    test: Spectrograms
    test_labels: Tensor
    extractor: ASTFeatureExtractor


def _shaped(config: TrainConfig, pretrained: Pretrained) -> TrainConfig:
    """The recipe for a network of the shape that the encoder has."""
    shape = pretrained.encoder.config
    return replace(
        config, hidden=shape.hidden_size, layers=shape.num_hidden_layers, heads=shape.num_attention_heads,
        frames=shape.max_length, mel_bins=shape.num_mel_bins, stride=shape.time_stride,
    )  # fmt: skip


def _descent(pretrained: Pretrained, directory: Path, held_out_fold: int, dataset: object) -> dict[str, Any]:
    """What training.json tells of the encoder that training started from; checked to know nothing it should not."""
    record = pretrained.record
    same = dataset is None or record.get("dataset") is None or record["dataset"] == dataset
    if same and record["held_out_fold"] != held_out_fold:
        raise InputError(
            f"the encoder in {directory} has heard the clips of fold {held_out_fold} (it was pretrained without fold "
            f"{record['held_out_fold']}); hold out fold {record['held_out_fold']}, or pretrain anew"
        )
    told = ("task", "dataset", "held_out_fold", "n_clips", "recipe", "seconds", "made_with")
    return {
        "pretrained": {
            "location": str(directory.resolve()),
            "weights_sha256": pretrained.sha256,
            **{key: record[key] for key in told if key in record},
            "final_patch_loss": record["patch_loss"][-1],
            "final_summary_loss": record["summary_loss"][-1],
        }
    }


def _new_model(config: TrainConfig, classes: list[str], pretrained: Pretrained | None) -> ASTForAudioClassification:
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
    spread_tokens(model.audio_spectrogram_transformer)
    if pretrained is not None:
        model.audio_spectrogram_transformer.load_state_dict(pretrained.encoder.state_dict())
    return model


def _fit(
    model: ASTForAudioClassification,
    data: _Data,
    config: TrainConfig,
    started: float,
    progress: Callable[[EpochMetrics], None] | None,
) -> list[EpochMetrics]:
    """Train in place; the model ends with the averaged weights."""
    n, n_classes = len(data.train_labels), len(model.config.id2label or {})
    steps = config.epochs * math.ceil(n / config.batch_size)
    optimiser = Optimiser(
        list(model.parameters()), config.learning_rate, config.weight_decay, config.warmup, steps
    )  # fmt: skip
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    test = data.test.plain(data.extractor, config.frames)
    history: list[EpochMetrics] = []
    for epoch in range(1, config.epochs + 1):
        model.train()
        losses = []
        for index in torch.randperm(n).split(config.batch_size):
            inputs, targets = _augmented(data, index, config, n_classes)
            logits = model(inputs).logits
            loss = functional.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
            optimiser.step(loss)
            averaged.update_parameters(model)
            losses.append(float(loss.detach()) * len(index))
        metrics = EpochMetrics(
            epoch,
            sum(losses) / n,
            _accuracy(averaged.module, test, data.test_labels),
            time.monotonic() - started,
        )
        history.append(metrics)
        if progress is not None:
            progress(metrics)
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
    return history


def _fit_head(
    model: ASTForAudioClassification,
    data: _Data,
    config: TrainConfig,
    started: float,
    progress: Callable[[EpochMetrics], None] | None,
) -> list[EpochMetrics]:
    """Train the head's linear layer in place, on what the encoder makes of each clip, computed once.

    It is trained on standardised features, and mean and standard deviation are then taken up into its weights.
    """
    train, test = (_features(model, part.plain(data.extractor, config.frames)) for part in (data.train, data.test))
    mean, deviation = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    n, dense = len(train), model.classifier.dense
    optimiser = Optimiser(
        list(dense.parameters()), config.learning_rate, config.weight_decay, config.warmup,
        config.epochs * math.ceil(n / config.batch_size),
    )  # fmt: skip
    history: list[EpochMetrics] = []
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for index in torch.randperm(n).split(config.batch_size):
            loss = functional.cross_entropy(
                dense(train[index]), data.train_labels[index], label_smoothing=config.label_smoothing
            )
            optimiser.step(loss)
            total += float(loss.detach()) * len(index)
        with torch.inference_mode():
            right = dense(test).argmax(1) == data.test_labels
        metrics = EpochMetrics(epoch, total / n, float(right.double().mean()), time.monotonic() - started)
        history.append(metrics)
        if progress is not None:
            progress(metrics)
    with torch.no_grad():
        dense.weight /= deviation
        dense.bias -= dense.weight @ mean
    model.eval()
    return history


def _features(model: ASTForAudioClassification, x: Tensor) -> Tensor:
    """What the head's linear layer hears of spectrograms [B, frames, mel]: [B, hidden]."""
    model.eval()
    with torch.no_grad():
        pooled = [model.audio_spectrogram_transformer(part).pooler_output for part in x.split(64)]
        features: Tensor = model.classifier.layernorm(torch.cat(pooled))
    return features


def _augmented(data: _Data, index: Tensor, config: TrainConfig, n_classes: int) -> tuple[Tensor, Tensor]:
    """A training batch: normalised spectrograms [B, frames, mel] and soft targets [B, n_classes]."""
    energies, sound, partner, share = data.train.varied(index, config)
    targets = functional.one_hot(data.train_labels[index], n_classes).float()
    if partner is not None and share is not None:
        targets = share[:, None] * targets + (1 - share[:, None]) * targets[partner]
    x = normalised(energies, sound, data.extractor)
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


def _accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(part).logits.argmax(1) for part in x.split(64)])
    return float((predicted == labels).double().mean())


def _confusion(directory: Path, test: Sequence[TrainItem], classes: list[str]) -> NDArray[np.int64]:
    """The saved network on the held-out clips, through the path that everyone else takes."""
    from and_platform.backends.networks.record import logits_batches
    from and_platform.backends.networks.transformers_audio import load

    clips = [Clip(item.key, item.waveform, RATE) for item in test]
    logits = np.concatenate(list(logits_batches(load(directory), clips)))
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, ([classes.index(item.label) for item in test], logits.argmax(axis=1)), 1)
    return confusion


def _record(
    result: TrainResult, config: TrainConfig, held_out_fold: int, train_folds: list[int], trainable: Trainable
) -> dict[str, Any]:
    """What training.json tells."""
    return {
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
        "trainable": trainable,
        "final_loss": round(result.epochs[-1].loss, 4),
        "seconds": round(result.seconds, 1),
        # the same weights again are promised for the same versions, threads and kind of processor
        "made_with": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "confusion": result.confusion.tolist(),
        "epochs": [metrics._asdict() for metrics in result.epochs],
    }
