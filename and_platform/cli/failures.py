"""`andp failures`: what could not be done, and why."""

from __future__ import annotations

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, show_rows
from and_platform.services import journal


@click.command("failures")
@click.option("--stage", help="Only this stage: ingest, record, caption, summarise …")
@click.option("--dataset", help="Only this data set and its clips.")
@click.option("--all", "everything", is_flag=True, help="Also those that were put right since.")
@format_options
@click.pass_context
def command(ctx: click.Context, stage: str | None, dataset: str | None, everything: bool, output_format: str) -> None:
    """List units of work that failed, with the reason. The rest of the work went on.

    A failure is closed when its unit succeeds: put the reason right and run the command again.

    \b
    Examples:
      andp failures
      andp failures --stage ingest --dataset field-recordings --csv
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        rows = journal.failures(session, stage=stage, dataset=dataset, resolved=everything)
    if output_format == "table":
        rows = [
            {key: row[key] for key in ("stage", "scope", "unit", "reason")} | _resolved(row, everything) for row in rows
        ]
    show_rows(rows, output_format, empty="no failures")


def _resolved(row: journal.Row, everything: bool) -> journal.Row:
    return {"resolved": row["resolved_at"]} if everything else {}
