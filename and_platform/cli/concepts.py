"""`andp concepts`: vocabularies that neurons are matched with."""

from __future__ import annotations

from pathlib import Path

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, show_rows
from and_platform.services import concepts, provenance


@click.group("concepts")
def command() -> None:
    """Concept sets: import, list, look at, drop.

    Names are compared in lower case with '_' and '-' as spaces; the name as written is kept beside it. A set does not
    change once it is in, because scores and dissections point to it.
    """


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", help="Name of the set. Default: that of FILE.")
@click.pass_context
def import_(ctx: click.Context, file: Path, name: str | None) -> None:
    """Import a concept set from FILE: .txt, .csv or .json.

    \b
    .txt   one name a line
    .csv   columns name, synonyms (with ';' between them), kind; the last two may be left out
    .json  a list of names, or of objects with these keys

    \b
    Example:
      andp concepts import birds.csv --name birds
    """
    engine = db.connect(tell=bars(ctx).note)
    with provenance.run(engine, "concepts import", {"file": str(file), "name": name}) as run:
        with db.transaction(engine) as session:
            imported = concepts.import_file(session, file, name)
        run.counts |= {"concepts": imported.n_concepts if imported.is_new else 0}
    out = messages().print
    state = "imported" if imported.is_new else "was there already, with the same content"
    out(f"concept set '{imported.name}': {imported.n_concepts:,} concepts, {state}", markup=False)
    for spelling, kept in imported.merged[:10]:
        out(f"  '{spelling}' is the same as '{kept}': joined", markup=False)
    if len(imported.merged) > 10:
        out(f"  … {len(imported.merged):,} were joined in all")


@command.command("list")
@format_options
@click.pass_context
def list_(ctx: click.Context, output_format: str) -> None:
    """List the concept sets, those included that travel with the package.

    \b
    Example:
      andp concepts list
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        rows = concepts.list_sets(session)
    show_rows(rows, output_format)


@command.command()
@click.argument("name")
@format_options
@click.pass_context
def show(ctx: click.Context, name: str, output_format: str) -> None:
    """Show the concepts of set NAME.

    \b
    Examples:
      andp concepts show esc50
      andp concepts show acoustic-vocabulary --csv > vocabulary.csv
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        rows = concepts.show(session, name)
    show_rows(rows, output_format)


@command.command("from-labels")
@click.argument("dataset")
@click.pass_context
def from_labels(ctx: click.Context, dataset: str) -> None:
    """Make the concept set '<DATASET>-labels' of the labels of a data set's clips.

    Where the labels have changed since, a new set is made beside the old one: '<DATASET>-labels-2', and so on.

    \b
    Example:
      andp concepts from-labels field-recordings
    """
    engine = db.connect(tell=bars(ctx).note)
    with provenance.run(engine, "concepts from-labels", {"dataset": dataset}), db.transaction(engine) as session:
        made = concepts.labels_of(session, dataset)
    messages().print(f"concept set '{made.name}'; see it with: andp concepts show {made.name}", markup=False)


@command.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def drop(ctx: click.Context, name: str, yes: bool) -> None:
    """Remove concept set NAME from the database. One that dissections use is kept.

    \b
    Example:
      andp concepts drop birds
    """
    engine = db.connect(tell=bars(ctx).note)
    if not yes:
        click.confirm(f"Remove the concept set '{name}' from the database?", abort=True, err=True)
    with provenance.run(engine, "concepts drop", {"name": name}) as run, db.transaction(engine) as session:
        run.counts["concepts"] = concepts.drop(session, name)
    messages().print(f"dropped '{name}' ({run.counts['concepts']:,} concepts)", markup=False)
