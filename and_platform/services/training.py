"""Training networks on a data set, by the paper's training strategies (Table 1): small ones, and published ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from and_platform import db, output_files
from and_platform.config import load_json
from and_platform.errors import ConfigError, InputError
from and_platform.schema import TrainingEpoch
from and_platform.services import devices, networks, provenance
from and_platform.services.progress import SILENT, Progress

if TYPE_CHECKING:
    from and_platform.backends.networks import finetuning
    from and_platform.backends.networks.finetuning import EpochMetrics, FineTuneConfig, FineTuneResult
    from and_platform.backends.networks.training import TrainResult

_NOTES = 25  # lines about epochs that a run prints


def train(
    engine: sa.Engine,
    directory: Path,
    dataset: str,
    held_out_fold: int,
    *,
    recipe: str = "supervised",
    pretrained: Path | None = None,
    seed: int | None = None,
    epochs: int | None = None,
    pretrain_epochs: int | None = None,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train on a data set's clips of all folds but one, after pretraining without labels where the recipe wants it.

    The same call again goes on after an interrupted one: an encoder that was finished is used again. Where the network is
    finished, its record is returned.

    Parameters
    ----------
    directory
        Where to save: new, empty, or that of the same run, begun before. A pretrained encoder goes to `pretrained` in it.
    dataset
        A data set whose clips have labels and folds.
    held_out_fold
        Neither pretrained nor trained on, and tested on at the end.
    recipe
        `supervised`, `finetuned` or `frozen`.
    pretrained
        An encoder made before; without it, one is made.
    seed, epochs, pretrain_epochs
        In place of those of the recipes. The seed is that of both stages.

    Raises
    ------
    ConfigError
        The directory holds something else, or the run in it was begun with another recipe.
    InputError
        An option that the recipe has no use for, or what `pretrain_ast` and `train_ast` refuse.
    """
    from and_platform.backends import audio
    from and_platform.backends.networks.finetuning import Item, clips_hash
    from and_platform.backends.networks.pretraining import (
        PretrainConfig,
        UnlabelledItem,
        load_pretrained,
        pretrain_ast,
    )
    from and_platform.backends.networks.spectrograms import RATE
    from and_platform.backends.networks.training import PRETRAINED, RECIPES, TrainItem, train_ast

    strategy = RECIPES[recipe]
    _check_options(recipe, strategy.pretrained, pretrained, pretrain_epochs)
    config = replace(strategy.config, **_given(seed=seed, epochs=epochs))
    pretrain_config = replace(PretrainConfig(), **_given(seed=seed, epochs=pretrain_epochs))
    makes_encoder = strategy.pretrained and pretrained is None
    asked: dict[str, Any] = {"dataset": dataset, "held_out_fold": held_out_fold, "strategy": recipe}
    asked["recipe"] = asdict(config)
    if makes_encoder:
        asked["pretraining"] = asdict(pretrain_config)
    if pretrained is not None:  # what is wrong with it shows before the clips are decoded
        asked["pretrained_sha256"] = load_pretrained(pretrained).sha256

    options = _given(seed=seed, epochs=epochs, pretrain_epochs=pretrain_epochs)
    arguments = {"dataset": dataset, "held_out_fold": held_out_fold, "recipe": recipe, **options}
    if pretrained is not None:
        arguments["pretrained"] = str(pretrained.resolve())
    with provenance.run(engine, "networks train", arguments) as run:
        with db.reading(engine) as session:
            clips = networks.training_items(session, dataset)
        asked["clips_sha256"] = clips_hash([Item(*clip) for clip in clips])
        if (done := _finished(directory, asked)) is not None:
            progress.note(f"nothing was left to do: {directory} has been trained like this")
            run.counts["test_accuracy"] = done.test_accuracy
            return done
        encoder_is_there = makes_encoder and _has_encoder(directory, asked)
        _check_directory(directory, {PRETRAINED} if encoder_is_there else set())
        items = []
        with progress.stage("decode", len(clips), "clips") as advance:
            for path, label, fold in clips:
                items.append(TrainItem(audio.load(path, RATE)[0], label, fold, path.name))
                advance(1)
        if makes_encoder:
            pretrained = directory / PRETRAINED
        if encoder_is_there:
            progress.note(f"going on with the encoder in {pretrained}")
        elif makes_encoder and pretrained is not None:
            told = {"dataset": dataset, "clips_sha256": asked["clips_sha256"]}
            unlabelled = [UnlabelledItem(item.waveform, item.fold, item.key) for item in items]
            with progress.stage("pretrain", pretrain_config.epochs, "epochs") as advance:
                pretrain_ast(
                    unlabelled, held_out_fold, pretrained, pretrain_config, provenance=told,
                    progress=lambda _metrics: advance(1),
                )  # fmt: skip
        with progress.stage("train", config.epochs, "epochs") as advance:
            result = train_ast(
                items, held_out_fold, directory, config, init=pretrained, trainable=strategy.trainable,
                provenance={"dataset": dataset, "strategy": recipe, "asked": asked},
                progress=lambda _metrics: advance(1),
            )  # fmt: skip
        run.counts["test_accuracy"] = result.test_accuracy
    return result


def finetune(
    engine: sa.Engine,
    directory: Path,
    dataset: str,
    held_out_fold: int,
    source: str,
    *,
    recipe: str = "finetuned",
    validation_fold: int | None = None,
    patience: int | None = None,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> FineTuneResult:
    """Train a published network on a data set's clips of all folds but one.

    Each epoch leaves a row in `training_epochs` and, in the directory, where the run stands: the same call goes on there.
    The row of the epoch that is saved gets the accuracy on the fold held out, which is measured once, at the end; an earlier
    call may have left that row.

    Parameters
    ----------
    directory
        Where to save; new, empty, or that of the same run, begun before.
    dataset
        A data set whose clips have labels and folds.
    held_out_fold
        Neither trained on nor used to choose anything, and tested on at the end.
    source
        Weights to start from: what `load_network` loads.
    recipe
        `supervised` and `finetuned` train all weights; what the published ones had learned from is what tells them apart.
        `frozen` trains the final linear layer.
    validation_fold, patience, options
        See `backends.networks.finetuning.finetune`.
    device
        By default that of the settings.

    Raises
    ------
    ConfigError, InputError, BackendError
        As `backends.networks.finetuning.finetune`.
    """
    from and_platform.backends.networks import finetuning

    device = devices.device(device)
    options = dict(options or {})
    arguments = {
        "dataset": dataset, "held_out_fold": held_out_fold, "recipe": recipe, "from": source, "directory": directory,
        "validation_fold": validation_fold, "patience": patience, "device": device, **options,
    }  # fmt: skip
    with provenance.run(engine, "networks train", arguments) as run:
        with db.reading(engine) as session:
            items = [finetuning.Item(*clip) for clip in networks.training_items(session, dataset)]
        result = finetuning.finetune(
            items, held_out_fold, source, directory,
            trainable="head" if recipe == "frozen" else "all", options=options, validation_fold=validation_fold,
            patience=patience, device=device, provenance={"dataset": dataset, "strategy": recipe},
            listener=_listener(engine, run, progress, validation_fold),
        )  # fmt: skip
        if result.begun_at > len(result.epochs):
            progress.note(f"no epoch was left to do: {directory} has been trained like this")
        _tell_test_accuracy(engine, run, result)
        run.counts |= {
            "clips": result.n_train, "epochs": len(result.epochs) - result.begun_at + 1, "begun_at": result.begun_at,
            "saved_epoch": result.saved_epoch, "test_accuracy": result.test_accuracy,
        }  # fmt: skip
    return result


def told(result: TrainResult | FineTuneResult) -> dict[str, Any]:
    """What came out, in JSON's types; the course is one entry for each epoch."""
    course = [metrics._asdict() for metrics in result.epochs]
    whole = result._asdict() if isinstance(result, tuple) else dict(vars(result))
    whole |= {"directory": str(result.directory), "epochs": course}
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in whole.items()}


def _listener(
    engine: sa.Engine, run: provenance.RunHandle, progress: Progress, validation_fold: int | None
) -> finetuning.Listener:
    """Rows for the epochs, bars for the batches, and some lines for whoever watches."""
    from and_platform.backends.networks.finetuning import Listener

    class Told(Listener):
        last, every = 0, 1

        def stage(self, name: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
            return progress.stage(name, total, unit)

        def begins(self, config: FineTuneConfig, epoch: int) -> None:
            self.last, self.every = config.epochs, math.ceil(config.epochs / _NOTES)
            if 1 < epoch <= config.epochs:
                progress.note(f"going on after epoch {epoch - 1} of {config.epochs}")

        def epoch(self, metrics: EpochMetrics) -> None:
            with db.transaction(engine) as session:
                session.add(_row(run, metrics))
            run.counts["epochs"] = run.counts.get("epochs", 0) + 1
            if metrics.epoch % self.every == 0 or metrics.epoch in (1, self.last):
                right = metrics.validation_accuracy
                told = "" if right is None else f", {right:.3f} of fold {validation_fold} right"
                progress.note(f"epoch {metrics.epoch} of {self.last}: loss {metrics.loss:.4f}{told}")

    return Told()


def _row(run: provenance.RunHandle, metrics: EpochMetrics, test_accuracy: float | None = None) -> TrainingEpoch:
    return TrainingEpoch(
        run_id=run.id, epoch=metrics.epoch, loss=metrics.loss, learning_rate=metrics.learning_rate,
        validation_accuracy=metrics.validation_accuracy, test_accuracy=test_accuracy, seconds=metrics.seconds,
    )  # fmt: skip


def _tell_test_accuracy(engine: sa.Engine, run: provenance.RunHandle, result: FineTuneResult) -> None:
    """Put the accuracy into the row of the epoch that is saved, whichever call left it; into a new one where none did."""
    saved = result.epochs[result.saved_epoch - 1]
    # An interrupted run carries its epochs' measurements along unchanged: loss and time tell an epoch from every other one.
    # What is there already was measured by the call that ended the run, and stays.
    told = (
        sa.update(TrainingEpoch)
        .where(
            TrainingEpoch.epoch == saved.epoch,
            TrainingEpoch.loss == saved.loss,
            TrainingEpoch.seconds == saved.seconds,
        )
        .values(test_accuracy=sa.func.coalesce(TrainingEpoch.test_accuracy, result.test_accuracy))
        .returning(TrainingEpoch.run_id)
    )
    with db.transaction(engine) as session:
        if not session.execute(told, execution_options={"synchronize_session": False}).all():
            session.add(_row(run, saved, result.test_accuracy))


def _check_options(recipe: str, wants_encoder: bool, pretrained: Path | None, pretrain_epochs: int | None) -> None:
    if not wants_encoder and (pretrained is not None or pretrain_epochs is not None):
        raise InputError(
            f"the recipe {recipe} trains from nothing; for a pretrained encoder: --recipe finetuned or frozen"
        )
    if pretrained is not None and pretrain_epochs is not None:
        raise InputError("with --pretrained, nothing is pretrained anew; leave --pretrain-epochs out")


def _finished(directory: Path, asked: Mapping[str, Any]) -> TrainResult | None:
    """The result where this very training is over already."""
    from and_platform.backends.networks.training import PRETRAINED, RECORD, recorded

    output_files.recover(directory)
    output_files.recover(directory / PRETRAINED)
    path = directory / RECORD
    record = load_json(path) if path.is_file() else {}
    return recorded(directory, record) if record.get("asked") == asked else None


def _has_encoder(directory: Path, asked: Mapping[str, Any]) -> bool:
    """Whether an interrupted call has finished the encoder that is asked for."""
    from and_platform.backends.networks.pretraining import RECORD
    from and_platform.backends.networks.training import PRETRAINED

    path = directory / PRETRAINED / RECORD
    record = load_json(path) if path.is_file() else {}
    same = {key: asked[key] for key in ("dataset", "held_out_fold", "clips_sha256")} | {"recipe": asked["pretraining"]}
    return {key: record.get(key) for key in same} == same


def _check_directory(directory: Path, may_be_there: Collection[str]) -> None:
    """Nothing is written over."""
    from and_platform.backends.networks.pretraining import RECORD
    from and_platform.backends.networks.training import PRETRAINED

    output_files.check_folder(directory)
    if not directory.exists() or {path.name for path in directory.iterdir()} <= set(may_be_there):
        return
    there = directory / PRETRAINED
    hint = f"; the encoder in it can be used: --pretrained {there}" if (there / RECORD).is_file() else ""
    raise ConfigError(f"{directory} is not empty; name a new folder{hint}")


def _given(**options: int | None) -> dict[str, int]:
    return {key: value for key, value in options.items() if value is not None}
