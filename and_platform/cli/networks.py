"""`andp networks`: the networks under study."""

from __future__ import annotations

from pathlib import Path

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, show_rows
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
@click.option(
    "--recipe", type=click.Choice(("supervised", "finetuned", "frozen")), default="supervised", show_default=True,
    help="What is trained: all of it, from nothing; all of it, after pretraining without labels; only the last linear "
    "layer, after pretraining without labels.",
)  # fmt: skip
@click.option(
    "--pretrained", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Start from this pretrained encoder; without it, finetuned and frozen make one in DIRECTORY/pretrained.",
)  # fmt: skip
@click.option("--seed", type=int, default=None, help="Seed of weights, order and augmentation.")
@click.option("--epochs", type=click.IntRange(1), default=None, help="Passes over the training clips, with labels.")
@click.option("--pretrain-epochs", type=click.IntRange(1), default=None, help="Passes over them without labels.")
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
    recipe: str,
    pretrained: Path | None,
    seed: int | None,
    epochs: int | None,
    pretrain_epochs: int | None,
    threads: int,
    name: str | None,
) -> None:
    """Train a small AST on a data set, and write it to DIRECTORY.

    The network that travels with the platform, sample-ast, was made by this command with its defaults. The result is
    a directory that transformers loads, with training.json beside the weights: recipe, seed, folds, test accuracy.

    Of the same data, three recipes make networks whose inside can be compared. Pretraining is given no labels, and
    the fold held out is left out of it too.

    \b
    Examples:
      andp networks train ./my-ast --dataset sample --add my-ast
      andp networks train ./quick --epochs 10 --seed 3
      andp networks train ./finetuned --recipe finetuned --add finetuned
      andp networks train ./frozen --recipe frozen --pretrained ./finetuned/pretrained --add frozen
    """
    import torch

    from and_platform.services import training

    torch.set_num_threads(threads)
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    result = training.train(
        engine, directory, dataset, held_out_fold, recipe=recipe, pretrained=pretrained, seed=seed, epochs=epochs,
        pretrain_epochs=pretrain_epochs, progress=listener,
    )  # fmt: skip
    messages().print(f"accuracy on fold {held_out_fold}, which was left out: {result.test_accuracy:.3f}")
    if name:
        networks.add(engine, name, str(directory), trained_on=dataset, held_out_fold=held_out_fold)
        messages().print(f"added as {name}", markup=False)
