"""Training published networks on a data set: all of their weights, or the head alone.

The settings of the paper (its Table 1) for ESC-50: AST, which learned AudioSet from labels, all layers; BEATs, pretrained
without labels, all layers; the same BEATs, only the final linear layer. The fold held out is neither trained on nor used to
choose anything; a second fold may be set aside for early stopping and for the choice of the epoch.

Where a run stands is written after each epoch, so that the same call again goes on; on a CPU it ends with the weights of an
undisturbed run. How the networks are varied and stepped is in `varying`, what is on disk in `checkpointing`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional

from and_platform import output_files
from and_platform.backends.base import Clip
from and_platform.backends.checkpoint_folder import read_config
from and_platform.backends.networks.base import Batch, LoadedNetwork
from and_platform.backends.networks.checkpointing import (
    random_state,
    restore_random_state,
    write_json,
    write_tensors,
    write_whole,
)
from and_platform.backends.networks.heads import Headed, headless, save_network, with_head
from and_platform.backends.networks.optimising import warm_cosine
from and_platform.backends.networks.training import Trainable
from and_platform.backends.networks.varying import MEMORY, Clips, Part, Steps
from and_platform.backends.weights import find_weights, read_pickle
from and_platform.errors import BackendError, ConfigError, InputError

RECORD: Final = "training.json"
PROGRESS: Final = "checkpoint"  # the folder in which a run that is not over keeps where it stands
_PLAN, _STATE, _FEATURES = "plan.json", "state.pt", "features.npy"

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Item(NamedTuple):
    """One labelled file, and the fold it belongs to."""

    path: Path
    label: str
    fold: int


@dataclass(frozen=True)
class FineTuneConfig:
    """Everything that decides the outcome, given the weights to start from, the clips and their order."""

    epochs: int
    batch_size: int  # clips a step
    learning_rate: float  # of the encoder, at its highest
    head_learning_rate: float
    layer_decay: float  # of the learning rate, from each block to the one before it
    weight_decay: float  # of matrices; vectors, such as biases, do not decay
    betas: tuple[float, float]  # of AdamW
    label_smoothing: float = 0.0
    frequency_mask: int = 0  # widest band hidden, in mel bins
    time_mask: int = 0  # longest stretch hidden, in frames of 10 ms
    mixup: float = 0.0  # share of clips to which another one is added
    roll: float = 0.0  # clips are rotated by a multiple of this, in seconds
    warmup: float = 0.1  # share of all steps; a cosine to zero follows
    clip: float = 1.0  # largest norm of a step's gradient
    accumulate: int = 1  # parts in which a step is computed
    precision: str = "float32"
    seed: int = 0


class Recipe(NamedTuple):
    """A configuration and where it comes from."""

    config: FineTuneConfig
    source: str


_HEAD: Final = Recipe(
    FineTuneConfig(
        epochs=100, batch_size=32, learning_rate=0.0, head_learning_rate=1e-3, layer_decay=1.0, weight_decay=0.01,
        betas=(0.9, 0.98),
    ),
    "optimiser and learning rate of NINAnor/rare_species_detections, BEATs_on_ESC50, with only the head trained; features "
    "are standardised first, which is taken up into the weights afterwards; epochs are ours",
)  # fmt: skip

RECIPES: Final = MappingProxyType(
    {
        "ast": MappingProxyType(
            {
                "all": Recipe(
                    FineTuneConfig(
                        epochs=25, batch_size=48, learning_rate=1e-5, head_learning_rate=1e-5, layer_decay=1.0,
                        weight_decay=5e-7, betas=(0.95, 0.999), frequency_mask=24, time_mask=96, warmup=0.0,
                    ),
                    "Gong et al. 2021, section 3.2, and YuanGongND/ast, egs/esc50, for AST trained on AudioSet; there, Adam "
                    "and a rate that falls by 0.85 an epoch after the fifth (to 4 % in the end), no limit of the gradient, "
                    "and a window of 512 frames; here, AdamW, a cosine, a limit of 1, and the window of the checkpoint",
                ),
                "head": _HEAD,
            }
        ),
        "beats": MappingProxyType(
            {
                "all": Recipe(
                    FineTuneConfig(
                        epochs=100, batch_size=60, learning_rate=3e-5, head_learning_rate=3e-4, layer_decay=0.65,
                        weight_decay=0.01, betas=(0.9, 0.98), label_smoothing=0.1, time_mask=30, roll=1.0,
                    ),
                    "Chen et al. 2023, appendix A.1, as espnet's egs2/esc50 repeats it (rate, decay, betas, batches of 300 "
                    "s, a tenth of the steps to warm up, smoothing, rotation), and its time mask; there, 80,000 steps (2,962 "
                    "epochs of 1,600 clips) and gradients multiplied by 0.2 a block; here, epochs, the rate of the head, and "
                    "for the blocks the decay of BEiT-base (Bao et al. 2022)",
                ),
                "head": _HEAD,
            }
        ),
        "wav2vec2": MappingProxyType(
            {
                "all": Recipe(
                    FineTuneConfig(
                        epochs=30, batch_size=32, learning_rate=3e-5, head_learning_rate=3e-4, layer_decay=1.0,
                        weight_decay=0.01, betas=(0.9, 0.999), label_smoothing=0.0,
                    ),
                    "rate and warm-up of transformers' examples/pytorch/audio-classification; there, 5 epochs of 128 clips a "
                    "step, and the convolutions kept as they are; here, epochs, the rate of the head, and all weights "
                    "trained; masks as the checkpoint's configuration has them",
                ),
                "head": _HEAD,
            }
        ),
        "other": MappingProxyType(
            {
                "all": Recipe(
                    FineTuneConfig(
                        epochs=30, batch_size=32, learning_rate=1e-5, head_learning_rate=1e-4, layer_decay=1.0,
                        weight_decay=0.01, betas=(0.9, 0.999),
                    ),
                    "ours, cautious: nothing published for these networks is followed",
                ),
                "head": _HEAD,
            }
        ),
    }
)  # fmt: skip
"""Family of the network -> what is trained -> the recipe."""


class EpochMetrics(NamedTuple):
    """One epoch: mean loss over the clips as varied, learning rate of the head at its end, seconds it took; accuracy and
    mean cross-entropy on the validation fold where there is one."""

    epoch: int
    loss: float
    learning_rate: float
    validation_accuracy: float | None
    validation_loss: float | None
    seconds: float

    def better_than(self, other: EpochMetrics) -> bool:
        """On the validation fold: more clips right; as many, with a lower loss."""
        mine, its = ((m.validation_accuracy or 0.0, -(m.validation_loss or 0.0)) for m in (self, other))
        return mine > its


class FineTuneResult(NamedTuple):
    """What came out. `test_accuracy` is that of the network as saved and loaded again, on the fold held out.

    `begun_at` is the epoch that this call began with: later than the first where an interrupted run went on, after the last
    where there was nothing left to do.
    """

    directory: Path
    classes: list[str]
    epochs: list[EpochMetrics]
    saved_epoch: int
    n_train: int
    n_validation: int
    n_test: int
    validation_accuracy: float | None
    test_accuracy: float
    per_class_accuracy: dict[str, float]
    seconds: float
    begun_at: int


class Listener:
    """Hears how a run goes. This one is told and says nothing; override what you want to hear."""

    def stage(self, name: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A stretch of work; the context's value is called with the number just done."""
        return nullcontext(lambda _n: None)

    def begins(self, config: FineTuneConfig, epoch: int) -> None:
        """The recipe, and the epoch to begin with: not the first where an interrupted run goes on."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch is over; where the run stands is written after this returns."""


class _Split(NamedTuple):
    """Places of the clips to train on, to validate and to test with; the classes; the class of each clip."""

    train: list[int]
    validation: list[int]
    test: list[int]
    classes: list[str]
    labels: list[int]


def finetune(
    items: Sequence[Item],
    held_out_fold: int,
    source: str | Path,
    directory: str | Path,
    *,
    trainable: Trainable = "all",
    options: Mapping[str, Any] | None = None,
    validation_fold: int | None = None,
    patience: int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    memory: int = MEMORY,
    provenance: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
) -> FineTuneResult:
    """Train a published network on all folds but one, save it, load it again, and measure it on the fold left out.

    Written are what `load_network` loads, in float32, and training.json: recipe, folds, course, accuracy. Until the end a
    folder `checkpoint` tells where the run stands; the same call goes on from there.

    Parameters
    ----------
    items
        The clips, in an order that does not change (the result depends on it).
    held_out_fold
        Neither trained on nor used to choose anything.
    source
        What `load_network` loads: a directory, a hub id, a .pt of BEATs.
    directory
        Where to save: new, empty, or that of this very run, begun before.
    trainable
        All weights, or only those of the final linear layer. The encoder then stays exactly as it was, in evaluation mode,
        and what the layer hears of each clip is computed once and kept on disk until the end.
    options
        Fields of `FineTuneConfig` in place of those of the recipe for this family of networks (`RECIPES`). Where the
        learning rate is given alone, the head's keeps its proportion to it. `precision` may be "auto": on a GPU bfloat16, or
        float16 where it has none; float32 elsewhere, and for the head alone.
    validation_fold
        Set aside from training; the epoch with the best accuracy on it is saved (of equals, that of the lowest loss).
        Without it the last epoch is.
    patience
        Stop when so many epochs have passed without a better one.
    device
        As torch calls it.
    workers
        Processes that prepare batches; by default none on a CPU, and up to 8 for a GPU. Changes nothing but the time.
    memory
        Bytes of decoded sound to keep.
    provenance
        Further entries of training.json, such as the data set's name.

    Raises
    ------
    InputError
        Nothing to train on, to validate or to test with; fewer than two classes; a class that only one part has; a file that
        cannot be read; an option without use.
    ConfigError
        The directory holds something else, or the run in it was begun with another recipe.
    WeightsMissingError, BackendError
        As `load_network`; or the loss is no number any more.
    """
    directory, listener = Path(directory), listener or Listener()
    split = _split(items, held_out_fold, validation_fold)
    options, provenance = dict(options or {}), dict(provenance or {})
    _check_options(options, trainable, validation_fold, patience)
    weights = find_weights(str(source))
    _check_descent(weights.path, held_out_fold, provenance.get("dataset"))

    from and_platform.backends.networks import load_network

    with _isolated():
        network = load_network(str(source))
        headed = with_head(network, split.classes, int(options.get("seed", FineTuneConfig.seed)))
        recipe = RECIPES[headed.family][trainable]
        config = _configured(recipe.config, options, trainable, device)
        plan = {
            "from": {"location": str(source), "weights": weights.revision, "origin": weights.origin},
            "trainable": trainable,
            "held_out_fold": held_out_fold,
            "validation_fold": validation_fold,
            "patience": patience,
            "clips_sha256": clips_hash(items),
            "recipe": asdict(config) | {"betas": list(config.betas)},
            **provenance,
        }
        if (done := _finished(directory, plan)) is not None:
            return done
        _begin(directory, plan)
        with _only_one(directory):
            if (done := _finished(directory, plan)) is not None:  # by another command, just now
                return done
            run = _Run(directory, headed, items, split, config, patience, device, workers, memory, listener)
            history, saved_epoch, begun_at = run.train() if trainable == "all" else run.train_head()
            # The network takes the place of the folder in which the run stood, in one step.
            with output_files.folder(directory, ours=PROGRESS.__eq__, keep_others=True) as new:
                _save(headed.network, new)
                result = _result(directory, split, history, saved_epoch, begun_at, run.confusion(new))
                _write_record(result, new, headed, plan, recipe, sorted({items[place].fold for place in split.train}))
    return result


def _result(
    directory: Path, split: _Split, history: list[EpochMetrics], saved_epoch: int, begun_at: int, confusion: Any
) -> FineTuneResult:
    per_class = {
        name: round(float(row[i] / row.sum()), 4)
        for i, (name, row) in enumerate(zip(split.classes, confusion, strict=True))
        if row.sum()
    }
    return FineTuneResult(
        directory=directory,
        classes=split.classes,
        epochs=history,
        saved_epoch=saved_epoch,
        n_train=len(split.train),
        n_validation=len(split.validation),
        n_test=len(split.test),
        validation_accuracy=history[saved_epoch - 1].validation_accuracy,
        test_accuracy=float(np.trace(confusion) / confusion.sum()),
        per_class_accuracy=per_class,
        seconds=sum(metrics.seconds for metrics in history),
        begun_at=begun_at,
    )


# ---------------------------------------------------------------------- what is asked for


def _split(items: Sequence[Item], held_out_fold: int, validation_fold: int | None) -> _Split:
    if validation_fold == held_out_fold:
        raise InputError(
            f"fold {held_out_fold} is held out, so nothing may be chosen by it; take another one for validation"
        )
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for place, item in enumerate(items):
        held = {held_out_fold: "test", validation_fold: "validation"}
        parts[held.get(item.fold, "train")].append(place)
    folds = ", ".join(str(fold) for fold in sorted({item.fold for item in items}))
    for fold, part, purpose in ((held_out_fold, "test", "test on"), (validation_fold, "validation", "validate with")):
        if fold is not None and not parts[part]:
            raise InputError(f"no clip is in fold {fold}, so nothing is left to {purpose}; there are folds {folds}")
    classes = sorted({items[place].label for place in parts["train"]})
    if len(classes) < 2:
        raise InputError(f"the clips to train on have {len(classes)} class(es); at least 2 are needed")
    for part in ("validation", "test"):
        if unseen := sorted({items[place].label for place in parts[part]} - set(classes)):
            raise InputError(f"the class '{unseen[0]}' is only in folds that are not trained on; choose others")
    places = {name: place for place, name in enumerate(classes)}
    return _Split(**parts, classes=classes, labels=[places[item.label] for item in items])


def _check_options(
    options: Mapping[str, Any], trainable: Trainable, validation_fold: int | None, patience: int | None
) -> None:
    if unknown := sorted(set(options) - set(FineTuneConfig.__dataclass_fields__)):
        raise InputError(f"there is no option '{unknown[0]}' of training")
    if patience is not None and validation_fold is None:
        raise InputError("early stopping looks at a validation fold; name one, or leave the patience out")
    if trainable == "head":
        if "learning_rate" in options:
            raise InputError("with only the head trained the encoder has no learning rate; give the head's")
        if options.get("accumulate", 1) != 1:
            raise InputError("the head alone is trained in steps of one part; leave the accumulation out")


def _check_descent(weights: Path, held_out_fold: int, dataset: object) -> None:
    """InputError where the network to start from was itself trained, by this platform, on the clips to be held out."""
    record = weights / RECORD
    told = read_config(record) if record.is_file() else {}
    if dataset is not None and told.get("dataset") == dataset and told.get("held_out_fold") != held_out_fold:
        raise InputError(
            f"the network in {weights} has learned the clips of fold {held_out_fold} of {dataset} (fold "
            f"{told.get('held_out_fold')} was held out from it); hold out that one, or start from another network"
        )


def _configured(
    config: FineTuneConfig, options: Mapping[str, Any], trainable: Trainable, device: str
) -> FineTuneConfig:
    given = dict(options)
    if "learning_rate" in given and "head_learning_rate" not in given:
        given["head_learning_rate"] = given["learning_rate"] * config.head_learning_rate / config.learning_rate
    wanted = given.get("precision", "auto")
    if wanted == "auto":
        wanted = "float32"
        if trainable == "all" and device.startswith("cuda"):
            wanted = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return replace(config, **given | {"precision": wanted})


def clips_hash(items: Sequence[Item]) -> str:
    """Of the files' bytes, not of their names: a moved data set is the same, a file that has changed is not."""
    whole = hashlib.sha256()
    for item in items:
        try:
            with item.path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{item.path} cannot be read ({error.strerror}); put it back, or ingest again") from error
        whole.update(f"{content}\t{item.label}\t{item.fold}\n".encode())
    return whole.hexdigest()


def _finished(directory: Path, plan: Mapping[str, Any]) -> FineTuneResult | None:
    """The result where this very run is over already."""
    output_files.recover(directory)
    record, begun = directory / RECORD, directory / PROGRESS
    if not record.is_file():
        return None
    told = json.loads(record.read_text("utf-8"))
    if "from" not in told:
        raise ConfigError(f"{directory} holds a network that another recipe trained; name a new folder")
    _check_same(told, plan, directory)
    if begun.exists():  # once the record is there, the run is over
        shutil.rmtree(begun)
    return _recorded(directory, told)


def _begin(directory: Path, plan: Mapping[str, Any]) -> None:
    """Make sure that the directory is this run's, begun now or before."""
    output_files.check_folder(directory)
    begun = directory / PROGRESS / _PLAN
    if begun.is_file():
        _check_same(json.loads(begun.read_text("utf-8")), plan, directory)
    elif directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty, and no run of training was begun in it; name a new folder")
    else:
        with output_files.folder(directory, replace=False) as new:
            write_json(new / PROGRESS / _PLAN, plan)


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Keep other commands from going on with the same run meanwhile."""
    try:
        with FileLock(directory / PROGRESS / "lock", timeout=0):
            yield
    except Timeout as exc:
        raise ConfigError(
            f"another command is training in {directory}; wait until it is over, or name a new folder"
        ) from exc


def _check_same(there: Mapping[str, Any], plan: Mapping[str, Any], directory: Path) -> None:
    """ConfigError where a run was begun otherwise; the message tells the first difference."""
    before, now = ({**told, **told["recipe"], **told["from"]} for told in (there, plan))
    # a moved checkpoint of the same weights is the same
    for key in (key for key in now if key not in ("recipe", "from", "location", "origin")):
        if before.get(key) != now[key]:
            raise ConfigError(
                f"the run in {directory} was begun with another recipe ({key.replace('_', ' ')}: {before.get(key)}, now "
                f"{now[key]}); give what it was begun with, or name a new folder"
            )


@contextmanager
def _isolated() -> Iterator[None]:
    """The caller's random numbers are as they were, whatever is drawn inside."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


# ---------------------------------------------------------------------- training


class _Job(NamedTuple):
    """What an epoch needs to know: the module trained, the optimiser's groups with the head's last, the steps of each epoch
    and how to get logits from a batch, and those to validate with."""

    module: nn.Module
    groups: list[dict[str, Any]]
    steps: Callable[[int], Iterable[list[Part]]]
    n_steps: int
    logits: Callable[[Batch], Tensor]
    validation: Callable[[], Iterable[list[Part]]]


class _Run:
    """One run of training; see `finetune` for what it is given."""

    def __init__(
        self,
        directory: Path,
        headed: Headed,
        items: Sequence[Item],
        split: _Split,
        config: FineTuneConfig,
        patience: int | None,
        device: str,
        workers: int | None,
        memory: int,
        listener: Listener,
    ) -> None:
        self._folder = directory / PROGRESS
        self._headed, self._network = headed, headed.network
        self._split, self._config, self._patience = split, config, patience
        self._device, self._listener = torch.device(device), listener
        self._workers = _default_workers(self._device) if workers is None else workers
        self._clips = Clips([item.path for item in items], self._network.rate, memory)
        self._network.to(self._device)

    def train(self) -> tuple[list[EpochMetrics], int, int]:
        """All weights; the network ends with those of the epoch that is to be saved.

        Returns
        -------
        history : list of EpochMetrics
        saved_epoch : int
        begun_at : int
        """
        self._decode()
        config = self._config
        job = _Job(
            module=self._network.model,
            groups=_groups(self._headed, config),
            steps=lambda epoch: self._steps(self._split.train, (config.seed, epoch)),
            n_steps=math.ceil(len(self._split.train) / config.batch_size),
            logits=self._forward,
            validation=lambda: self._steps(self._split.validation),
        )
        return self._epochs(job, getattr(torch, config.precision))

    def train_head(self) -> tuple[list[EpochMetrics], int, int]:
        """The fresh linear layers alone, on what they hear of each clip; returns as `train`."""
        config, split = self._config, self._split
        heard = self._features([*split.train, *split.validation])
        train, validation = heard[: len(split.train)], heard[len(split.train) :]
        mean, deviation = _moments(train)
        model = self._network.model
        head = nn.Sequential(*(model.get_submodule(path) for path in self._headed.fresh))

        def parts(rows: Any, places: Sequence[int], order: Sequence[int]) -> Iterator[list[Part]]:
            for begin in range(0, len(order), config.batch_size):
                chosen = order[begin : begin + config.batch_size]
                x = (torch.from_numpy(np.array(rows[chosen])) - mean) / deviation
                targets = torch.eye(len(split.classes))[[split.labels[places[i]] for i in chosen]]
                yield [Part({"features": x}, targets, 1.0)]

        def shuffled(epoch: int) -> Iterator[list[Part]]:
            order = np.random.default_rng((config.seed, epoch)).permutation(len(train))
            return parts(train, split.train, order.tolist())

        rate = config.head_learning_rate
        job = _Job(
            module=head,
            groups=_decayed([(parameter, rate) for parameter in head.parameters()], config.weight_decay),
            steps=shuffled,
            n_steps=math.ceil(len(train) / config.batch_size),
            logits=lambda batch: head(batch["features"]),
            validation=lambda: parts(validation, split.validation, range(len(validation))),
        )
        outcome = self._epochs(job, torch.float32)
        first: Any = head[0]
        with torch.no_grad():  # mean and deviation are taken up into the weights
            first.weight /= deviation.to(self._device)
            first.bias -= first.weight @ mean.to(self._device)
        return outcome

    def confusion(self, saved: Path) -> Any:
        """The network as saved, on the clips held out, through the path that everyone else takes: int [C, C], rows true."""
        from and_platform.backends.networks import load_network
        from and_platform.backends.networks.record import logits_batches

        test, n = self._split.test, len(self._split.classes)
        network = load_network(saved)
        sounds = (Clip(self._clips.paths[place].name, self._clips.waveform(place), network.rate) for place in test)
        predicted: list[int] = []
        with self._listener.stage("test", len(test), "clips") as advance:
            for logits in logits_batches(network, sounds, device=self._device):
                predicted += logits.argmax(axis=1).tolist()
                advance(len(logits))
        confusion = np.zeros((n, n), np.int64)
        np.add.at(confusion, ([self._split.labels[place] for place in test], predicted), 1)
        return confusion

    # ------------------------------------------------------------------ the loop

    def _epochs(self, job: _Job, dtype: torch.dtype) -> tuple[list[EpochMetrics], int, int]:
        config = self._config
        torch.manual_seed(config.seed)
        np.random.seed(config.seed)  # some networks of transformers draw their masks from it
        optimizer = torch.optim.AdamW(job.groups, betas=config.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine(config.warmup, config.epochs * job.n_steps))
        scaler = torch.amp.GradScaler(self._device.type, enabled=dtype is torch.float16)
        state = {"module": job.module, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
        history: list[EpochMetrics] = []
        best = 0  # the epoch of the best accuracy on the validation fold; 0 where there is no such fold
        if (self._folder / _STATE).is_file():
            history, best = self._restore(state)
        begun_at = len(history) + 1
        self._listener.begins(config, begun_at)
        with self._listener.stage("train", (config.epochs - len(history)) * job.n_steps, "batches") as advance:
            while len(history) < config.epochs:
                if self._patience is not None and len(history) - best >= self._patience:
                    break
                epoch, started = len(history) + 1, time.monotonic()
                loss, rate = self._epoch(job, epoch, dtype, optimizer, schedule, scaler, advance)
                if not math.isfinite(loss):
                    raise BackendError(
                        f"the loss of epoch {epoch} is {loss}; try a lower learning rate or another precision, in a new folder"
                    )
                accuracy, missed = self._validate(job, dtype) if self._split.validation else (None, None)
                metrics = EpochMetrics(epoch, loss, rate, accuracy, missed, time.monotonic() - started)
                if accuracy is not None and (not best or metrics.better_than(history[best - 1])):
                    best = epoch
                    write_tensors(self._best(epoch), job.module.state_dict())
                history.append(metrics)
                self._listener.epoch(metrics)
                self._keep(state, history, best)
        if best:
            job.module.load_state_dict(read_pickle(self._best(best)))
        job.module.eval()
        return history, best or len(history), begun_at

    def _epoch(
        self, job: _Job, epoch: int, dtype: torch.dtype, optimizer: Any, schedule: Any, scaler: Any,
        advance: Callable[[int], None],
    ) -> tuple[float, float]:  # fmt: skip
        """Mean loss over the clips, and the head's learning rate in the last step."""
        job.module.train()
        parameters = [parameter for group in job.groups for parameter in group["params"]]
        total, n, rate = torch.zeros((), dtype=torch.float64, device=self._device), 0, 0.0
        for parts in job.steps(epoch):
            optimizer.zero_grad(set_to_none=True)
            size = sum(len(part.targets) for part in parts)
            for part in parts:
                targets = part.targets.to(self._device)
                logits = self._autocast(job, part, dtype)
                loss = functional.cross_entropy(logits, targets, label_smoothing=self._config.label_smoothing)
                scaler.scale(loss * part.share).backward()
                total += loss.detach().double() * len(targets)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, self._config.clip)
            scale, rate = scaler.get_scale(), optimizer.param_groups[-1]["lr"]
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() >= scale:  # else the step overflowed and was left out
                schedule.step()
            n += size
            advance(1)
        return float(total) / n, float(rate)

    def _validate(self, job: _Job, dtype: torch.dtype) -> tuple[float, float]:
        """Accuracy and mean cross-entropy on the validation fold."""
        job.module.eval()
        right, missed, n = 0, 0.0, 0
        with torch.inference_mode():
            for part in (part for parts in job.validation() for part in parts):
                logits, labels = self._autocast(job, part, dtype).cpu(), part.targets.argmax(1)
                right += int((logits.argmax(1) == labels).sum())
                missed += float(functional.cross_entropy(logits, labels, reduction="sum"))
                n += len(labels)
        return right / n, missed / n

    def _autocast(self, job: _Job, part: Part, dtype: torch.dtype) -> Tensor:
        """Logits [B, C] in float32 of a part, computed in the precision of the run."""
        batch = {key: tensor.to(self._device) for key, tensor in part.batch.items()}
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not torch.float32):
            logits = job.logits(batch)
        return logits.float()

    # ------------------------------------------------------------------ clips and features

    def _decode(self) -> None:
        with self._listener.stage("decode", len(self._clips), "clips") as advance:
            self._clips.fill(advance)

    def _steps(self, members: Sequence[int], seed: tuple[int, ...] | None = None) -> Iterable[list[Part]]:
        """Steps of an epoch of training, varied by its seed; without one, the clips as they are."""
        from torch.utils.data import DataLoader

        config, labels = self._config, self._split.labels
        steps = Steps(
            self._network, self._clips, members, [labels[place] for place in members], len(self._split.classes),
            batch_size=config.batch_size, parts=config.accumulate, variation=None if seed is None else config,
            seed=seed or (),
        )  # fmt: skip
        return DataLoader(
            steps, batch_size=None, num_workers=self._workers, collate_fn=_as_they_are,
            multiprocessing_context="fork" if self._workers else None, generator=torch.Generator(),
        )  # fmt: skip

    def _forward(self, batch: Batch) -> Tensor:
        with _masking_where_it_fits(self._network, batch):
            logits = self._network.forward(batch)
        if logits is None:
            raise BackendError(f"the network '{self._network.name}' gives no logits; it cannot be trained")
        return logits

    def _features(self, members: Sequence[int]) -> Any:
        """What the fresh layers hear of the clips [n, width], float32, computed once and mapped from disk."""
        kept = self._folder / _FEATURES
        if not kept.is_file():
            self._network.model.eval()
            rows = []
            dtype = getattr(torch, self._config.precision)
            with self._listener.stage("features", len(members), "clips") as advance, headless(self._headed):
                for part in (part for parts in self._steps(members) for part in parts):
                    batch = {key: tensor.to(self._device) for key, tensor in part.batch.items()}
                    enabled = dtype is not torch.float32
                    with torch.inference_mode(), torch.autocast(self._device.type, dtype=dtype, enabled=enabled):
                        rows.append(self._forward(batch).float().cpu().numpy())
                    advance(len(part.targets))
            features = np.concatenate(rows)
            write_whole(kept, lambda stream: np.save(stream, features))
        return np.load(kept, mmap_mode="r")

    # ------------------------------------------------------------------ where the run stands

    def _best(self, epoch: int) -> Path:
        return self._folder / f"best-{epoch}.pt"

    def _keep(self, state: Mapping[str, Any], history: Sequence[EpochMetrics], best: int) -> None:
        content = {name: part.state_dict() for name, part in state.items()}
        told = {"history": [list(metrics) for metrics in history], "best": best, "random": random_state()}
        write_tensors(self._folder / _STATE, content | told)
        for old in self._folder.glob("best-*.pt"):
            if old != self._best(best):
                old.unlink()

    def _restore(self, state: Mapping[str, Any]) -> tuple[list[EpochMetrics], int]:
        content = read_pickle(self._folder / _STATE)
        for name, part in state.items():
            part.load_state_dict(content[name])
        restore_random_state(content["random"])
        return [EpochMetrics(*metrics) for metrics in content["history"]], int(content["best"])


def _as_they_are(parts: list[Part]) -> list[Part]:
    return parts


def _default_workers(device: torch.device) -> int:
    """None where the processor trains: it has enough to do. Workers are forked, to share the clips in memory."""
    import multiprocessing

    if device.type != "cuda" or "fork" not in multiprocessing.get_all_start_methods():
        return 0
    return max(0, min(8, (os.cpu_count() or 1) - 1))


def _groups(headed: Headed, config: FineTuneConfig) -> list[dict[str, Any]]:
    """Parameters with their learning rates: of the head, and of the encoder by depth.

    What comes before the blocks is one block deeper than the first; what comes after the last decays not at all (Bao et al.
    2022).
    """
    network = headed.network
    blocks: dict[str, int] = {}
    for layer in network.layers:
        if layer.block is not None:
            before, found, _ = f".{layer.module_path}".partition(f".{layer.block}.")
            if found:
                blocks[f"{before}{found}".removeprefix(".")] = layer.block
    n_blocks = len(set(blocks.values()))
    depth = 0
    encoder: list[tuple[nn.Parameter, float]] = []
    head: list[tuple[nn.Parameter, float]] = []
    for name, parameter in network.model.named_parameters():
        if any(name.startswith(f"{path}.") for path in headed.fresh):
            head.append((parameter, config.head_learning_rate))
            continue
        block = next((number for prefix, number in blocks.items() if name.startswith(prefix)), None)
        if block is not None:
            depth = block + 1
        elif depth:
            depth = n_blocks + 1
        decay = config.layer_decay ** (n_blocks + 1 - depth) if blocks else 1.0
        encoder.append((parameter, config.learning_rate * decay))
    return _decayed(encoder, config.weight_decay) + _decayed(head, config.weight_decay)


def _decayed(rated: Sequence[tuple[nn.Parameter, float]], weight_decay: float) -> list[dict[str, Any]]:
    """Groups of one learning rate and one decay each, in the order in which the rates come."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, rate in rated:
        groups.setdefault((rate, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if matrix else 0.0}
        for (rate, matrix), parameters in groups.items()
    ]


@contextmanager
def _masking_where_it_fits(network: LoadedNetwork, batch: Batch) -> Iterator[None]:
    """Keep wav2vec 2.0 and its kin from hiding stretches of clips that are shorter than a stretch, which is an error."""
    config: Any = getattr(network.model, "config", None)
    frames: Any = getattr(network.model, "_get_feat_extract_output_lengths", None)
    if not network.model.training or frames is None or not getattr(config, "apply_spec_augment", False):
        yield
        return
    shortest = int(frames(batch["n_samples"]).min())
    config.apply_spec_augment = shortest > config.mask_time_length
    try:
        yield
    finally:
        config.apply_spec_augment = True


def _moments(features: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, float32 [width]; a column that does not vary has deviation 1."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    deviation[deviation < 1e-6] = 1.0
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(deviation.astype(np.float32))


# ---------------------------------------------------------------------- what is written


def _save(network: LoadedNetwork, new: Path) -> None:
    """Write the network into a draft."""
    network.to("cpu")
    save_network(network, new)


def _write_record(
    result: FineTuneResult,
    new: Path,
    headed: Headed,
    plan: Mapping[str, Any],
    recipe: Recipe,
    train_folds: list[int],
) -> None:
    accuracy = result.validation_accuracy
    record = {
        "architecture": headed.network.architecture,
        "train_folds": train_folds,
        "n_train": result.n_train,
        "n_validation": result.n_validation,
        "n_test": result.n_test,
        "test_accuracy": round(result.test_accuracy, 4),
        "test_accuracy_of": "float32 weights as loaded again, on the held-out fold",
        "validation_accuracy": accuracy if accuracy is None else round(accuracy, 4),
        "per_class_accuracy": result.per_class_accuracy,
        "classes": result.classes,
        "saved_epoch": result.saved_epoch,
        "final_loss": round(result.epochs[result.saved_epoch - 1].loss, 4),
        "seconds": round(result.seconds, 1),
        **plan,
        "recipe_source": recipe.source,
        # the same weights again are promised for the same versions, threads and kind of processor
        "made_with": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "epochs": [metrics._asdict() for metrics in result.epochs],
    }
    write_json(new / RECORD, record)


def _recorded(directory: Path, told: Mapping[str, Any]) -> FineTuneResult:
    """The result that training.json tells of."""
    epochs = [EpochMetrics(**metrics) for metrics in told["epochs"]]
    return FineTuneResult(
        directory=directory,
        classes=told["classes"],
        epochs=epochs,
        saved_epoch=told["saved_epoch"],
        n_train=told["n_train"],
        n_validation=told["n_validation"],
        n_test=told["n_test"],
        validation_accuracy=told["validation_accuracy"],
        test_accuracy=told["test_accuracy"],
        per_class_accuracy=told["per_class_accuracy"],
        seconds=told["seconds"],
        begun_at=len(epochs) + 1,
    )
