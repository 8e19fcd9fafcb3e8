"""Training small networks on a data set, by the recipes that stand for the paper's training strategies (Table 1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from and_platform import db
from and_platform.errors import ConfigError, InputError
from and_platform.services import networks, provenance
from and_platform.services.progress import SILENT, Progress

if TYPE_CHECKING:
    from and_platform.backends.networks.training import TrainResult

PRETRAINED = "pretrained"


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

    Parameters
    ----------
    directory
        Where to save; must be empty or not there yet. A pretrained encoder goes to `pretrained` in it.
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
        The directory is not empty.
    InputError
        An option that the recipe has no use for, or what `pretrain_ast` and `train_ast` refuse.
    """
    from and_platform.backends import audio
    from and_platform.backends.networks.pretraining import (
        PretrainConfig,
        UnlabelledItem,
        load_pretrained,
        pretrain_ast,
    )
    from and_platform.backends.networks.spectrograms import RATE
    from and_platform.backends.networks.training import RECIPES, TrainItem, train_ast

    strategy = RECIPES[recipe]
    _check_directory(directory)
    if not strategy.pretrained and (pretrained is not None or pretrain_epochs is not None):
        raise InputError(
            f"the recipe {recipe} trains from nothing; for a pretrained encoder: --recipe finetuned or frozen"
        )
    if pretrained is not None and pretrain_epochs is not None:
        raise InputError("with --pretrained, nothing is pretrained anew; leave --pretrain-epochs out")
    config = replace(strategy.config, **_given(seed=seed, epochs=epochs))
    pretrain_config = replace(PretrainConfig(), **_given(seed=seed, epochs=pretrain_epochs))
    if pretrained is not None:
        load_pretrained(pretrained)  # what is wrong with it shows before the clips are decoded

    options = _given(seed=seed, epochs=epochs, pretrain_epochs=pretrain_epochs)
    arguments = {"dataset": dataset, "held_out_fold": held_out_fold, "recipe": recipe, **options}
    if pretrained is not None:
        arguments["pretrained"] = str(pretrained.resolve())
    with provenance.run(engine, "networks train", arguments) as run:
        with db.reading(engine) as session:
            clips = networks.training_items(session, dataset)
        items = []
        with progress.stage("decode", len(clips), "clips") as advance:
            for path, label, fold in clips:
                items.append(TrainItem(audio.load(path, RATE)[0], label, fold, path.name))
                advance(1)
        if strategy.pretrained and pretrained is None:
            pretrained = directory / PRETRAINED
            unlabelled = [UnlabelledItem(item.waveform, item.fold, item.key) for item in items]
            with progress.stage("pretrain", pretrain_config.epochs, "epochs") as advance:
                pretrain_ast(
                    unlabelled, held_out_fold, pretrained, pretrain_config, provenance={"dataset": dataset},
                    progress=lambda _metrics: advance(1),
                )  # fmt: skip
        with progress.stage("train", config.epochs, "epochs") as advance:
            result = train_ast(
                items, held_out_fold, directory, config, init=pretrained, trainable=strategy.trainable,
                provenance={"dataset": dataset, "strategy": recipe}, progress=lambda _metrics: advance(1),
            )  # fmt: skip
        run.counts["test_accuracy"] = result.test_accuracy
    return result


def _check_directory(directory: Path) -> None:
    """Nothing is written over."""
    from and_platform.backends.networks.pretraining import RECORD

    if not directory.exists() or not any(directory.iterdir()):
        return
    there = directory / PRETRAINED
    hint = f"; the encoder in it can be used: --pretrained {there}" if (there / RECORD).is_file() else ""
    raise ConfigError(f"{directory} is not empty; name a new folder{hint}")


def _given(**options: int | None) -> dict[str, int]:
    return {key: value for key, value in options.items() if value is not None}
