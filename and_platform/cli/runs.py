"""`andp runs`: each command that wrote something."""

from __future__ import annotations

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, print_json, show_rows
from and_platform.services import journal


@click.group("runs")
def command() -> None:
    """Runs: what was asked, when, with which versions, and how it ended."""


@command.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many, from the newest.")
@format_options
@click.pass_context
def list_(ctx: click.Context, limit: int, output_format: str) -> None:
    """List the latest runs.

    \b
    Example:
      andp runs list --limit 5
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        rows = journal.runs(session, limit)
    show_rows(rows, output_format, empty="no runs yet")


@command.command()
@click.argument("run_id", metavar="ID", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.pass_context
def show(ctx: click.Context, run_id: int, as_json: bool) -> None:
    """Show everything about run ID: arguments, versions, machine, counts, error.

    \b
    Example:
      andp runs show 12
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        row = journal.run(session, run_id)
    if as_json:
        print_json(row)
    else:
        show_rows([{"": key.replace("_", " "), "value": value} for key, value in row.items()], "table")
