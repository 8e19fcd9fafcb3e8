"""`andp study`: people's judgement of descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import console, format_options, messages, plot_option, print_json, save_figure, show_rows
from and_platform.errors import AndpError, InputError
from and_platform.services import provenance, study


def _split(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


@click.group("study")
def command() -> None:
    """Let people judge descriptions: export a study, import their answers, see Table 3."""


@command.command("export")
@click.argument("network")
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--name", help="Name of the study.  [default: the network's]")
@click.option("--dissection", type=int, help="A dissection; default: the network's current one.")
@click.option("--per-layer", type=click.IntRange(1), default=10, show_default=True, help="Neurons drawn of each layer.")
@click.option(
    "--layers",
    metavar="GLOB,…",
    callback=_split,
    help="Only these layers, e.g. '*.ff_out'.  [default: all but the head]",
)
@click.option(
    "--methods", metavar="METHOD,…", callback=_split,
    help="Of closed_db, closed_tab, closed_icl, summary.  [default: the paper's three, where they were computed]",
)  # fmt: skip
@click.option("--exemplars", type=click.IntRange(1, 20), default=5, show_default=True, help="Clips of each neuron.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides which neurons, and every order."
)
@click.option(
    "--audio", type=click.Choice(["flac", "mp3"]), default="flac", show_default=True, help="How clips are written."
)
@click.option("--force", is_flag=True, help="Replace another study that is in the folder.")
@format_options
@click.pass_context
def export_(ctx: click.Context, /, output_format: str, **options: Any) -> None:
    """Draw neurons of NETWORK, and write a folder with one page on which people listen, write and rate.

    The page opens from the folder, without a server and without the internet. Which method made which description is not in
    it: the database knows. The same name with the same options writes the same study again,
    elsewhere or here, as after a kill.

    \b
    Examples:
      andp study export sample-ast -o study
      andp study export sample-ast -o pilot --name pilot --per-layer 1 --layers "*.ff_out" --exemplars 3
    """
    done = study.export(db.connect(tell=bars(ctx).note), progress=bars(ctx), **options)
    if output_format != "table":
        told = {
            "name": done.name, "token": done.token, "folder": str(done.folder), "neurons": done.neurons,
            "descriptions": done.descriptions, "clips": done.clips, "bytes": done.bytes, "new": done.new,
            "methods": done.methods, "notes": done.notes,
        }  # fmt: skip
        if output_format == "json":
            print_json(told)
        else:
            show_rows([told], output_format)
        return
    again = "" if done.new else " (the study was there: written again)"
    out = messages()
    out.print(f"study '{done.name}'{again}: {done.folder / 'index.html'}", markup=False, soft_wrap=True)
    out.print(
        f"  {done.neurons:,} neurons, {done.descriptions:,} descriptions ({', '.join(done.methods)}), {done.clips:,} clips, "
        f"{done.bytes / 1e6:,.1f} MB",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for note in done.notes:
        out.print(f"  note: {note}", markup=False, soft_wrap=True)
    out.print("  give each rater the folder and a code of their own; then: andp study import FILE…", markup=False)


@command.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Put a rater's new answers in the place of the former ones.")
@format_options
@click.pass_context
def import_(ctx: click.Context, files: tuple[Path, ...], replace: bool, output_format: str) -> None:
    """Check the files that raters send back, and keep their answers.

    Each file is taken whole or not at all; one that is refused does not keep the others out. Unfinished files count too.

    \b
    Examples:
      andp study import answers-sample-ast-R1.json
      andp study import inbox/*.json --replace
    """
    engine = db.connect(tell=bars(ctx).note)
    rows: list[dict[str, Any]] = []
    with provenance.run(engine, "study import", {"files": [str(path) for path in files], "replace": replace}) as run:
        for path in files:
            try:
                done = study.import_file(engine, path, replace=replace)
            except AndpError as exc:
                rows.append({**_NOTHING, "file": str(path), "outcome": "refused", "reason": str(exc)})
            else:
                rows.append({**_NOTHING, **done.as_dict(), "reason": None})
        refused = [row for row in rows if row["outcome"] == "refused"]
        run.counts |= {"files": len(rows), "refused": len(refused)}
    if output_format == "table":
        _print_imported(rows)
    else:
        show_rows(rows, output_format)
    if refused:
        taken = f"; the other {len(rows) - len(refused)} were" if len(refused) < len(rows) else ""
        raise InputError(f"{len(refused)} of {len(rows)} files could not be taken{taken}")


_NOTHING: dict[str, Any] = {
    "file": None, "outcome": None, "study": None, "rater": None, "neurons": None, "of_neurons": None, "ratings": None,
    "of_ratings": None, "summaries": None,
}  # fmt: skip


def _print_imported(rows: list[dict[str, Any]]) -> None:
    out = messages()
    for row in rows:
        if row["outcome"] == "refused":
            out.print(f"refused    {row['file']}: {row['reason']}", markup=False, soft_wrap=True)
        else:
            out.print(
                f"{row['outcome']:<10} {row['file']}: study '{row['study']}', rater {row['rater']}, {row['neurons']} of "
                f"{row['of_neurons']} neurons, {row['ratings']} of {row['of_ratings']} ratings, {row['summaries']} summaries",
                markup=False, soft_wrap=True,
            )  # fmt: skip


@command.command("results")
@click.argument("name", required=False)
@click.option("--network", help="Without NAME: the latest of this network.")
@click.option("--paper", is_flag=True, help="Put the paper's figures beside.")
@plot_option("Draw the ratings")
@click.option("--bertscore-model", metavar="PATH", help="Compute BERTScore with this model: a directory or hub id.")
@click.option("--bertscore-layers", type=click.IntRange(1), metavar="N", help="Take its vectors after N layers.")
@format_options
@click.pass_context
def results_(
    ctx: click.Context, name: str | None, network: str | None, paper: bool, plot: Path | None, bertscore_model: str | None,
    bertscore_layers: int | None, output_format: str,
) -> None:  # fmt: skip
    """Show what people judged: Table 3.

    Mean rating by method with a 95 % interval (Student's t over neurons), agreement between raters (Krippendorff's alpha,
    ordinal), and how near the descriptions are to what people wrote: cosine by the sentence encoder, and BERTScore where a
    model is named. NAME is a study; default: the latest with answers.

    \b
    Examples:
      andp study results
      andp study results sample-ast --paper --plot ratings.svg
      andp study results sample-ast --bertscore-model roberta-large --bertscore-layers 17
    """
    if bertscore_layers is not None and bertscore_model is None:
        raise InputError("--bertscore-layers is of a model; name it with --bertscore-model")
    found = study.results(
        db.connect(tell=bars(ctx).note), name, network=network, bertscore_model=bertscore_model,
        bertscore_layers=bertscore_layers, progress=bars(ctx),
    )  # fmt: skip
    rows = study.with_published(found.rows) if paper else found.rows
    if plot is not None:
        _draw(found, plot)
    if output_format == "json":
        print_json({**found.as_dict(), "rows": rows})
    elif output_format == "csv":
        show_rows(rows, "csv")
    else:
        _print(found, rows, paper)


def _draw(found: study.StudyResults, path: Path) -> None:
    from and_platform.plots import study as plots

    if not found.agreement["n_raters"]:
        raise InputError(f"nobody has rated anything of '{found.about['name']}' yet: there is nothing to draw")
    save_figure(plots.ratings(found.rows, found.footer), path)


def _print(found: study.StudyResults, rows: list[dict[str, Any]], paper: bool) -> None:
    about = found.about
    title = (
        f"{about['name']}: {about['network']} on {about['dataset']}, {about['neurons']:,} neurons, {about['raters']} raters, "
        f"{about['ratings']:,} ratings, {about['summaries']:,} summaries"
    )
    shown = [
        {
            "method": row["method"], "neurons": row["n_neurons"], "ratings": row["n_ratings"],
            "rating": _figure(row["rating"]), "95 % interval": _interval(row["low"], row["high"]),
            **({"paper's rating": _figure(row["paper_rating"])} if paper else {}),
            "alpha": _figure(row["alpha"]),
            "cosine": _figure(row["cosine"]), "cosine's interval": _interval(row["cosine_low"], row["cosine_high"]),
            **({"paper's cosine": _figure(row["paper_cosine"])} if paper else {}),
            "BERTScore": _figure(row["bertscore"]),
            **({"paper's BERTScore": _figure(row["paper_bertscore"])} if paper else {}),
        }
        for row in rows
    ]  # fmt: skip
    show_rows(shown, "table", title=title)
    out = console()
    out.print()
    agreement = found.agreement
    if agreement["alpha"] is not None:
        out.print(
            f"agreement of {agreement['n_raters']} raters (Krippendorff's alpha, ordinal): {agreement['alpha']:.2f}, "
            f"over {agreement['n_shared']:,} descriptions that at least two rated"
        )
    for row in found.differences:
        out.print(
            f"{row['method']} − {row['than']}: {row['difference']:+.2f} {_interval(row['low'], row['high'])}, "
            f"on {row['n_neurons']:,} neurons",
            markup=False,
        )
    if found.raters:
        out.print()
        show_rows(found.raters, "table", title="raters")
    for note in found.notes:
        messages().print(f"note: {note}", markup=False, soft_wrap=True)
    if paper:
        messages().print(
            "note: the paper's figures are of 120 neurons of AST on ESC-50, rated by its authors",
            markup=False,
            soft_wrap=True,
        )


def _figure(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"


@command.command("list")
@click.option("--network", help="Of this network only.")
@format_options
@click.pass_context
def list_(ctx: click.Context, network: str | None, output_format: str) -> None:
    """List the studies, with how much has been answered.

    \b
    Example:
      andp study list
    """
    rows = study.overview(db.connect(tell=bars(ctx).note), network)
    show_rows(
        rows, output_format, empty="no study yet; run: andp study export NETWORK -o DIR",
        columns=(
            "name", "network", "dataset", "dissection", "neurons", "methods", "raters", "ratings", "summaries", "created_at",
        ),
    )  # fmt: skip


@command.command("drop")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def drop_(ctx: click.Context, name: str, yes: bool) -> None:
    """Remove study NAME with all answers. The folder and the raters' files stay.

    \b
    Example:
      andp study drop pilot --yes
    """
    engine = db.connect(tell=bars(ctx).note)
    with db.reading(engine) as session:
        study.find(session, name)
    if not yes:
        click.confirm(f"Remove the study '{name}' with all its answers?", abort=True, err=True)
    with provenance.run(engine, "study drop", {"name": name}) as run:
        run.counts["ratings"] = study.drop(engine, name)
    messages().print(f"dropped '{name}' ({run.counts['ratings']:,} ratings)", markup=False)
