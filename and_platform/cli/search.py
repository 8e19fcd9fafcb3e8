"""`andp search`: neurons by what their summaries say."""

from __future__ import annotations

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, show_rows
from and_platform.services import ask


@click.command("search")
@click.argument("text")
@click.option("--network", help="Only this network.")
@click.option("--dissection", type=int, help="A dissection; default: the current ones.")
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="The most neurons to show.")
@format_options
@click.pass_context
def command(
    ctx: click.Context, text: str, network: str | None, dissection: int | None, limit: int, output_format: str
) -> None:
    """Search the summaries for TEXT, by meaning and by words together.

    \b
    Examples:
      andp search "low rumbling engine"
      andp search '"sharp attack" -quiet' --limit 5
    """
    rows = ask.search(db.connect(tell=bars(ctx).note), text, network=network, dissection=dissection, limit=limit)
    if output_format == "table":
        rows = [
            {
                "network": row["network"], "neuron": row["neuron"], "cosine": row["cosine"], "has the words": row["in_text"],
                "calibrated summary": row["calibrated_summary"].replace("\n", " "),
            }
            for row in rows
        ]  # fmt: skip
    show_rows(rows, output_format)
