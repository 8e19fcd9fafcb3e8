"""`andp neurons`: the neurons that respond to a concept."""

from __future__ import annotations

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, show_rows
from and_platform.services import ask


@click.command("neurons")
@click.option("--concept", required=True, metavar="TEXT", help="A word or phrase.")
@click.option(
    "--strategy", type=click.Choice(ask.STRATEGIES), default="open", show_default=True,
    help="open: its words are in the neuron's summary; closed_*: it is among the neuron's best concepts; "
    "meaning: the nearest summaries by vector.",
)  # fmt: skip
@click.option(
    "--words", type=click.Choice(ask.WORDS), default="any", show_default=True, help="For open: which of its words."
)
@click.option(
    "--top", type=click.IntRange(1, 5), default=3, show_default=True, help="For closed_*: rank it must reach."
)
@click.option("--network", help="Only this network.")
@click.option("--dissection", type=int, help="A dissection; default: the current ones.")
@click.option("--layer", metavar="GLOB", help="Only layers of this pattern, e.g. 'b03.*'.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The most neurons to show.")
@format_options
@click.pass_context
def command(
    ctx: click.Context,
    concept: str,
    strategy: str,
    words: str,
    top: int,
    network: str | None,
    dissection: int | None,
    layer: str | None,
    limit: int,
    output_format: str,
) -> None:
    """Find the neurons that respond to a concept, best first, and say why each.

    \b
    Examples:
      andp neurons --concept water
      andp neurons --concept "kick drum" --strategy closed_db --layer "b03.*"
      andp neurons --concept "something that hisses" --strategy meaning --limit 5
    """
    rows = ask.neurons(
        db.connect(tell=bars(ctx).note), concept, strategy=strategy, network=network, dissection=dissection, words=words,
        top=top, layer=layer, limit=limit,
    )  # fmt: skip
    wanted = ("network", "neuron", "rank", "score", "why") if output_format == "table" else None
    shown = [{key: _one_line(row[key]) for key in wanted} for row in rows] if wanted else rows
    show_rows(
        shown, output_format,
        empty=f"no neuron{f' of layers {layer}' if layer else ''} responds to '{concept}' by the strategy {strategy}"
        + ("" if strategy == "meaning" else "; try --strategy meaning"),
    )  # fmt: skip


def _one_line(value: object) -> object:
    return value.replace("\n", " ") if isinstance(value, str) else value
