"""`andp networks`: the networks under study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, print_json, show_rows
from and_platform.errors import InputError
from and_platform.services import networks, provenance

if TYPE_CHECKING:
    from and_platform.backends.networks.finetuning import FineTuneResult
    from and_platform.backends.networks.training import TrainResult


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

    LOCATION is a directory or hub id of transformers (id@revision for a branch, tag or commit): a classifier, or an
    encoder without one (AST, HuBERT, WavLM, wav2vec 2.0, Whisper, CLAP …); a published BEATs checkpoint (a .pt file), or a
    directory with a BEATs; or FILE.py:factory, a function of yours that returns a torch module (or module:factory, from the
    current folder or the Python path). Later commands find it from any folder. NAME has no slash.

    \b
    Examples:
      andp networks add ast MIT/ast-finetuned-audioset-10-10-0.4593
      andp networks add mine ./checkpoint --trained-on esc50 --held-out-fold 1
      andp networks add beats ./BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt
      andp networks add cnn my_networks.py:build
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
    help="What is trained. Without --from: all of a small AST, from nothing; all of it, after pretraining without labels; "
    "only the last linear layer, after pretraining without labels. With --from: all weights; all weights; only the last "
    "linear layer.",
)  # fmt: skip
@click.option(
    "--from", "source", metavar="CHECKPOINT",
    help="Start from published weights: a directory or hub id of transformers (AST, HuBERT, …), or a .pt of BEATs.",
)  # fmt: skip
@click.option(
    "--pretrained", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="Without --from: start from this pretrained encoder; else finetuned and frozen make one in DIRECTORY/pretrained.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=None, help="Seed of weights, order and augmentation.")
@click.option("--epochs", type=click.IntRange(1), default=None, help="Passes over the training clips, with labels.")
@click.option("--pretrain-epochs", type=click.IntRange(1), default=None, help="Passes over them without labels.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=None, metavar="RATE",
    help="With --from: of the encoder at its highest, in place of the recipe's; the head's keeps its proportion to it.",
)  # fmt: skip
@click.option(
    "--head-learning-rate", type=click.FloatRange(0, min_open=True), default=None, metavar="RATE",
    help="With --from: of the head.",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=None, help="With --from: clips a step.")
@click.option(
    "--accumulate", type=click.IntRange(1), default=None,
    help="With --from: parts in which a step is computed, for less memory.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(("auto", "float32", "bfloat16", "float16")), default=None,
    help="With --from: of the arithmetic; auto, the default, is bfloat16 or else float16 on a GPU, and float32 elsewhere.",
)  # fmt: skip
@click.option(
    "--validation-fold", type=int, default=None,
    help="With --from: fold to choose the best epoch by; not trained on, and never the one held out.",
)  # fmt: skip
@click.option(
    "--patience", type=click.IntRange(1), default=None,
    help="With --from and --validation-fold: stop after so many epochs without a better one.",
)  # fmt: skip
@click.option("--device", default=None, help="With --from: cpu, cuda, cuda:1, mps; by default that of ANDP_DEVICE.")
@click.option(
    "--threads", type=click.IntRange(1), default=None, show_default="1; with --from, as many as there are cores",
    help="Threads of the arithmetic. The outcome depends on it; one is fastest for the small AST.",
)  # fmt: skip
@click.option("--add", "name", metavar="NAME", help="Add the result as a network of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    directory: Path,
    dataset: str,
    held_out_fold: int,
    recipe: str,
    source: str | None,
    pretrained: Path | None,
    seed: int | None,
    epochs: int | None,
    pretrain_epochs: int | None,
    threads: int | None,
    name: str | None,
    as_json: bool,
    **published: Any,
) -> None:
    """Train a network on a data set, and write it to DIRECTORY: a small AST, or a published network with --from.

    The network that travels with the platform, sample-ast, was made by this command with its defaults. The result is
    a directory that `andp networks add` loads, with training.json beside the weights: recipe, seed, folds, test accuracy.

    Of the same data, three recipes make networks whose inside can be compared. Pretraining is given no labels, and
    the fold held out is left out of it too. Killed, the same command goes on: with the encoder, where that was finished.

    With --from, learning rate, epochs and augmentation are those that were published for the network, where they were;
    training.json names the source. Where the run stands is kept in DIRECTORY/checkpoint after each epoch: the same
    command again goes on there. The fold held out is measured once, at the end.

    \b
    Examples:
      andp networks train ./my-ast --dataset sample --add my-ast
      andp networks train ./quick --epochs 10 --seed 3
      andp networks train ./finetuned --recipe finetuned --add finetuned
      andp networks train ./frozen --recipe frozen --pretrained ./finetuned/pretrained --add frozen
      andp networks train ./ast-esc50 --dataset esc50 --from MIT/ast-finetuned-audioset-10-10-0.4593
      andp networks train ./beats-esc50 --dataset esc50 --from BEATs_iter3_plus_AS2M.pt --recipe frozen
    """
    import torch

    from and_platform.services import training

    given = {key: value for key, value in published.items() if value is not None}
    if source is None and given:
        first = next(iter(given)).replace("_", "-")
        raise InputError(f"--{first} is for training that starts from published weights; name them with --from")
    if source is not None and (pretrained is not None or pretrain_epochs is not None):
        raise InputError("with --from, nothing is pretrained; leave --pretrained and --pretrain-epochs out")
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    if name:
        networks.check_new_name(engine, name)
    result: TrainResult | FineTuneResult
    if source is None:
        torch.set_num_threads(threads or 1)
        result = training.train(
            engine, directory, dataset, held_out_fold, recipe=recipe, pretrained=pretrained, seed=seed, epochs=epochs,
            pretrain_epochs=pretrain_epochs, progress=listener,
        )  # fmt: skip
    else:
        if threads is not None:
            torch.set_num_threads(threads)
        apart = {key: given.pop(key, None) for key in ("validation_fold", "patience", "device")}
        given |= {key: value for key, value in (("seed", seed), ("epochs", epochs)) if value is not None}
        result = training.finetune(
            engine, directory, dataset, held_out_fold, source, recipe=recipe, options=given, progress=listener, **apart
        )
    messages().print(f"accuracy on fold {held_out_fold}, which was left out: {result.test_accuracy:.3f}")
    if name:
        networks.add(engine, name, str(directory), trained_on=dataset, held_out_fold=held_out_fold)
        messages().print(f"added as {name}", markup=False)
    if as_json:
        print_json(training.told(result))
