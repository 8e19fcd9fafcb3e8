"""`andp sql`: any question."""

from __future__ import annotations

import sys

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, show_rows
from and_platform.services import ask


@click.command("sql")
@click.argument("query")
@click.option("--write", is_flag=True, help="Let the query change data.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds until it is cancelled; 0: never.",
)
@format_options
@click.pass_context
def command(ctx: click.Context, query: str, write: bool, timeout: float, output_format: str) -> None:
    """Run a SQL QUERY ('-': read it from standard input). Read-only unless --write.

    Begin with the views: neuron_descriptions, closed_concepts, open_concepts, exemplar_clips, layer_overview. Every
    table and column has a comment: andp db shell -c '\\d+ neuron_descriptions'.

    \b
    Examples:
      andp sql "SELECT neuron, closed_db, open_concepts FROM current_neuron_descriptions LIMIT 5"
      andp sql "SELECT * FROM neurons_for_concept('water', 'closed_db')" --csv > water.csv
    """
    text = sys.stdin.read() if query == "-" else query
    columns, rows = ask.sql(db.connect(tell=bars(ctx).note), text, write=write, timeout=timeout)
    names = _distinct(columns)
    show_rows([dict(zip(names, row, strict=True)) for row in rows], output_format, empty="no rows", columns=names)


def _distinct(names: list[str]) -> list[str]:
    """Names of columns with a number after one that has been there, so that no column is lost."""
    distinct: list[str] = []
    for name in names:
        n, candidate = 1, name
        while candidate in distinct:
            n += 1
            candidate = f"{name}_{n}"
        distinct.append(candidate)
    return distinct
