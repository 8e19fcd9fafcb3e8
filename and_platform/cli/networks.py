"""`andp networks`: the networks under study."""

from __future__ import annotations

from pathlib import Path

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, show_rows
from and_platform.errors import ConfigError
from and_platform.services import networks, provenance


@click.group("networks")
def command() -> None:
    """Networks under study: add, list, look at, train, drop."""


@command.command()
@click.argument("name")
@click.argument("location")
@click.option("--trained-on", metavar="DATASET", help="Data set it was trained on.")
@click.option("--held-out-fold", type=int, help="Fold it was not trained on: evaluation uses that fold only.")
@click.pass_context
def add(ctx: click.Context, name: str, location: str, trained_on: str | None, held_out_fold: int | None) -> None:
    """Add a network as NAME from LOCATION.

    LOCATION is a directory or hub id that transformers loads as an audio classifier, or module:factory, a function of
    yours that returns a torch module (the current folder is on the Python path).

    \b
    Examples:
      andp networks add ast MIT/ast-finetuned-audioset-10-10-0.4593
      andp networks add mine ./checkpoint --trained-on esc50 --held-out-fold 1
      andp networks add cnn my_networks:build
    """
    engine = db.connect(tell=bars(ctx).note)
    with provenance.run(engine, "networks add", {"name": name, "location": location}):
        network = networks.add(engine, name, location, trained_on=trained_on, held_out_fold=held_out_fold)
    rows = networks.describe(engine, name)
    units = sum(row["units"] for row in rows if row["default"])
    messages().print(
        f"{name}: {network.architecture}, {network.n_parameters:,} parameters, {len(rows)} layers; "
        f"{units:,} neurons in the {sum(row['default'] for row in rows)} layers dissected by default",
        markup=False, soft_wrap=True,
    )  # fmt: skip


@command.command("list")
@format_options
@click.pass_context
def list_(ctx: click.Context, output_format: str) -> None:
    """List the networks."""
    show_rows(
        networks.overview(db.connect(tell=bars(ctx).note)), output_format,
        empty="no networks yet; add one: andp networks add NAME LOCATION",
    )  # fmt: skip


@command.command()
@click.argument("name")
@format_options
@click.pass_context
def show(ctx: click.Context, name: str, output_format: str) -> None:
    """Show the layers of a network: block, kind, units, default pooling, module.

    \b
    Example:
      andp networks show sample-ast
    """
    show_rows(networks.describe(db.connect(tell=bars(ctx).note), name), output_format)


@command.command()
@click.argument("name")
@click.pass_context
def drop(ctx: click.Context, name: str) -> None:
    """Forget a network that nothing was recorded of. Its files stay.

    \b
    Example:
      andp networks drop old-ast
    """
    networks.drop(db.connect(tell=bars(ctx).note), name)
    messages().print(f"dropped {name}", markup=False)


@command.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--dataset", default="sample", show_default=True, help="Data set with labels and folds.")
@click.option("--held-out-fold", type=int, default=1, show_default=True, help="Fold to leave out and test on.")
@click.option("--seed", type=int, default=None, help="Seed of weights, order and augmentation.")
@click.option("--epochs", type=int, default=None, help="Passes over the training clips.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True,
    help="Threads of the arithmetic. The outcome depends on it; one is fastest for a network this small.",
)  # fmt: skip
@click.option("--add", "name", metavar="NAME", help="Add the result as a network of that name.")
@click.pass_context
def train(
    ctx: click.Context,
    directory: Path,
    dataset: str,
    held_out_fold: int,
    seed: int | None,
    epochs: int | None,
    threads: int,
    name: str | None,
) -> None:
    """Train a small AST on a data set, and write it to DIRECTORY.

    The network that travels with the platform, sample-ast, was made by this command with its defaults. The result is
    a directory that transformers loads, with training.json beside the weights: recipe, seed, folds, test accuracy.

    \b
    Examples:
      andp networks train ./my-ast --dataset sample --add my-ast
      andp networks train ./quick --epochs 10 --seed 3
    """
    import torch

    from and_platform.backends import audio
    from and_platform.backends.networks.training import RATE, TrainConfig, TrainItem, train_ast

    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; name a new folder")
    torch.set_num_threads(threads)
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    options = {key: value for key, value in (("seed", seed), ("epochs", epochs)) if value is not None}
    config = TrainConfig(**options)
    with provenance.run(
        engine, "networks train", {"dataset": dataset, "held_out_fold": held_out_fold, **options}
    ) as run:
        with db.reading(engine) as session:
            clips = networks.training_items(session, dataset)
        items = []
        with listener.stage("decode", len(clips), "clips") as advance:
            for path, label, fold in clips:
                items.append(TrainItem(audio.load(path, RATE)[0], label, fold, path.name))
                advance(1)
        with listener.stage("train", config.epochs, "epochs") as advance:
            result = train_ast(
                items, held_out_fold, directory, config, provenance={"dataset": dataset},
                progress=lambda _metrics: advance(1),
            )  # fmt: skip
        run.counts["test_accuracy"] = result.test_accuracy
    messages().print(f"accuracy on fold {held_out_fold}, which was left out: {result.test_accuracy:.3f}")
    if name:
        networks.add(engine, name, str(directory), trained_on=dataset, held_out_fold=held_out_fold)
        messages().print(f"added as {name}", markup=False)
