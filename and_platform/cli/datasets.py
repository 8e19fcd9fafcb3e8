"""`andp datasets`: what was ingested."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, print_json, show_rows
from and_platform.services import datasets, provenance


@click.group("datasets")
def command() -> None:
    """Data sets: list, look at, relocate, drop."""


@command.command("list")
@format_options
@click.pass_context
def list_(ctx: click.Context, output_format: str) -> None:
    """List the data sets.

    \b
    Example:
      andp datasets list
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        rows = datasets.list_datasets(session)
    show_rows(rows, output_format, empty="no data set yet; ingest one: andp ingest folder DIR, or: andp ingest sample")


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option("--all", "everything", is_flag=True, help="All labels, duplicates and failures, not the first 30.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool, everything: bool) -> None:
    """Show what is in data set NAME: labels, folds, formats, acoustic measures, duplicates, failures.

    \b
    Examples:
      andp datasets show sample
      andp datasets show sample --json
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        report = datasets.show(session, name)
    if as_json:
        print_json(asdict(report))
        return
    show_rows([{"": key.replace("_", " "), "value": value} for key, value in report.summary.items()], "table")
    duplicates = [{"paths": " = ".join(group)} for group in report.duplicates]
    sections: list[tuple[str, list[dict[str, Any]]]] = [
        ("labels", report.labels),
        ("folds", report.folds),
        ("formats", report.formats),
        ("measures", report.measures),
        ("duplicates", duplicates),
        ("open failures", report.failures),
    ]
    for title, rows in sections:
        if rows:
            shown = rows if everything else rows[:30]
            more = f" (the first {len(shown)} of {len(rows)}; --all shows all)" if len(shown) < len(rows) else ""
            click.echo()
            show_rows(shown, "table", title=title + more)


@command.command()
@click.argument("name")
@click.argument("root", type=click.Path(path_type=Path, file_okay=False))
@click.pass_context
def relocate(ctx: click.Context, name: str, root: Path) -> None:
    """Tell the database that the folder of data set NAME is now ROOT.

    Looks for every file there and compares the contents of a few. The database's paths within the folder do not change.

    \b
    Example:
      andp datasets relocate field-recordings /mnt/disk/sounds
    """
    engine = db.connect(tell=bars(ctx).note)
    with provenance.run(engine, "datasets relocate", {"name": name, "root": str(root)}) as run:
        with db.transaction(engine) as session:
            report = datasets.relocate(session, name, root)
        run.counts |= {"clips": report.clips, "missing": report.missing, "different": len(report.different)}
    out = partial(messages().print, soft_wrap=True)
    out(f"{name}: {report.old} → {report.new}", markup=False)
    out(f"  {report.clips - report.missing:,} of {report.clips:,} files are there, {report.compared} compared")
    for path in report.missing_paths:
        out(f"  missing: {path}", markup=False)
    for path in report.different:
        out(f"  other content: {path}", markup=False)
    if report.missing or report.different:
        out("  ingest it again to bring the data set up to date")


@command.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def drop(ctx: click.Context, name: str, yes: bool) -> None:
    """Remove data set NAME with its clips and captions from the database. The files stay.

    A data set of which recordings were made is kept until these are dropped.

    \b
    Example:
      andp datasets drop field-recordings
    """
    engine = db.connect(tell=bars(ctx).note)
    with db.reading(engine) as session:
        datasets.find(session, name)
    if not yes:
        click.confirm(f"Remove the data set '{name}' from the database?", abort=True, err=True)
    with provenance.run(engine, "datasets drop", {"name": name}) as run, db.transaction(engine) as session:
        run.counts["clips"] = datasets.drop(session, name)
    messages().print(f"dropped '{name}' ({run.counts['clips']:,} clips)", markup=False)
