"""`andp report`: a network, several networks, or neurons, to look at and to pass on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import cell, console, format_options, messages, print_json, show_rows
from and_platform.services import provenance, report
from and_platform.services.report import METHODS, SECTIONS, Options, Report, Story, formats

_TOLD = 160
"""Characters of a reason that a line has room for."""


class _DefaultGroup(click.Group):
    """A group that takes its first argument for a network where it names no subcommand."""

    default = "network"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group("report", cls=_DefaultGroup)
def command() -> None:
    """Reports, for reading, listening and passing on.

    Without a subcommand, `andp report NETWORK …` is `andp report network NETWORK …`.

    \b
    Examples:
      andp report sample-ast -o report
      andp report compare sample-ast other -o comparison
      andp report neuron sample-ast "b03.ff_in#17" -o neuron.html
      andp report neurons sample-ast
    """


def _sections(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


_OUTPUT = click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Folder for the page, its tables and figures; a report that is there is replaced.",
)  # fmt: skip
_FORCE = click.option("--force", is_flag=True, help="Write into a folder that holds other things; they stay.")
_SKIP = click.option(
    "--skip", metavar="SECTION,…", callback=_sections, help=f"Sections to leave out: {', '.join(SECTIONS)}."
)
_STORED = click.option(
    "--stored-only", is_flag=True, help="Compute nothing: show what is stored, and say which command makes the rest."
)
_QUICK = click.option(
    "--quick", is_flag=True, help="Where something has to be computed: fewer draws, points and seeds."
)
_DISSECTION = click.option("--dissection", type=int, help="A dissection; default: the network's current one.")


@command.command("network")
@click.argument("network")
@_OUTPUT
@_DISSECTION
@_SKIP
@_STORED
@_QUICK
@click.option(
    "--neuron", "neurons", multiple=True, metavar="LAYER#UNIT",
    help="A neuron whose way through the pipeline is shown; may be repeated.  [default: three drawn at random]",
)  # fmt: skip
@click.option(
    "--per-layer", type=click.IntRange(1), default=1, show_default=True,
    help="Neurons of each layer whose descriptions stand side by side.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of what is drawn at random.")
@_FORCE
@click.pass_context
def network_(ctx: click.Context, /, network: str, folder: Path, force: bool, **given: Any) -> None:
    """Write the report of NETWORK: one page with tables, figures and sounds, and all of them as files.

    Runs the experiments that are missing and stores them, as their own commands would; the same command twice computes nothing
    the second time.

    \b
    Examples:
      andp report network sample-ast -o report
      andp report sample-ast -o report --stored-only
      andp report sample-ast -o report --skip sweep,ablation --neuron "b03.ff_in#17"
    """
    listener = bars(ctx)
    options = Options(**given)
    engine = db.connect(tell=listener.note)
    with _recorded(engine, {"network": network, **given}, options):
        made = report.network(engine, network, folder, options, force=force, progress=listener)
    _tell(made)


@command.command("compare")
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK NETWORK…")
@_OUTPUT
@_SKIP
@_STORED
@_QUICK
@_FORCE
@click.pass_context
def compare(ctx: click.Context, /, networks: tuple[str, ...], folder: Path, force: bool, **given: Any) -> None:
    """Write a report that puts NETWORKS side by side, on shared axes. They must be dissected with the same data set.

    \b
    Example:
      andp report compare sample-ast other -o comparison
    """
    listener = bars(ctx)
    options = Options(**given)
    engine = db.connect(tell=listener.note)
    with _recorded(engine, {"networks": networks, **given}, options):
        made = report.compare(engine, networks, folder, options, force=force, progress=listener)
    _tell(made)


@command.command("neuron")
@click.argument("network")
@click.argument("neurons", nargs=-1, required=True, metavar="LAYER#UNIT…")
@_DISSECTION
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html",
    help="Write a page with sounds instead of text.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.pass_context
def neuron(
    ctx: click.Context, network: str, neurons: tuple[str, ...], dissection: int | None, path: Path | None, as_json: bool
) -> None:
    """Show the way of neurons through the pipeline (paper, Figure 7): exemplars, captions, both summaries, what was
    dropped and why, concepts.

    \b
    Examples:
      andp report neuron sample-ast "b03.ff_in#17"
      andp report neuron sample-ast "b03.ff_in#17" "head#0" -o neurons.html
    """
    engine = db.connect(tell=bars(ctx).note)
    if path is not None:
        written = report.write_stories(engine, network, neurons, path, dissection=dissection)
        messages().print(f"wrote {written}", markup=False, soft_wrap=True)
        return
    found = report.stories(engine, network, neurons, dissection=dissection)
    if as_json:
        print_json([story.as_dict() for story in found])
        return
    for story in found:
        _print_story(story)


@command.command("neurons")
@click.argument("network")
@click.argument("neurons", nargs=-1, metavar="[LAYER#UNIT…]")
@_DISSECTION
@click.option(
    "--per-layer", type=click.IntRange(1), default=1, show_default=True,
    help="Neurons of each layer to draw, where none are named.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draw.")
@format_options
@click.pass_context
def neurons_(ctx: click.Context, /, network: str, neurons: tuple[str, ...], output_format: str, **given: Any) -> None:
    """Show what the modules say of neurons, side by side (paper, Table 6): labels of exemplars, closed-set concepts,
    calibrated summary.

    \b
    Examples:
      andp report neurons sample-ast
      andp report neurons sample-ast "b03.ff_in#17" "head#0"
      andp report neurons sample-ast --per-layer 3 --seed 1 --csv
    """
    rows = report.outputs(db.connect(tell=bars(ctx).note), network, neurons, **given)
    if output_format == "table":
        rows = [
            {
                "neuron": row["neuron"] + (f"\n{row['class_name']}" if row["class_name"] else ""),
                "most active on": "\n".join(label or "no label" for label in row["exemplar_labels"] or ()),
                **{METHODS[key]: row[f"closed_{key}"] for key in ("tab", "db", "icl")},
                "calibrated summary": row["summary"] or "nothing",
            }
            for row in rows
        ]
    show_rows(rows, output_format, title=f"Neurons of {network}")


def _recorded(engine: Any, arguments: dict[str, Any], options: Options) -> AbstractContextManager[Any]:
    """A run, where something may be computed."""
    return nullcontext() if options.stored_only else provenance.run(engine, "report", arguments)


def _tell(made: Report) -> None:
    """What was written, and what is not in it."""
    out = messages()
    out.print(
        f"wrote {made.page} ({formats.size(made.n_bytes)}): {len(made.sections)} sections, {len(made.tables)} tables, "
        f"{len(made.figures)} figures, {made.sounds} clips to hear",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for section, reasons in made.missing.items():
        for reason in reasons:
            told = reason if len(reason) <= _TOLD else reason[: _TOLD - 1] + "…"
            out.print(f"  {section}: {told}", markup=False, soft_wrap=True)


def _print_story(story: Story) -> None:
    out, about = console(), story.about
    out.print(
        f"[bold]{escape(about['network'])}  {escape(about['neuron'])}[/bold]"
        + (f"   class {escape(about['class_name'])}" if about["class_name"] else "")
    )
    for title, rows in (("most active on", story.high), ("least active on", story.low)):
        out.print(f"\n[bold]1  {title}[/bold]")
        for row in rows:
            out.print(
                f"  {row['activation']:>9.3g}  [bold]{escape(row['label'] or 'no label')}[/bold]  {escape(row['path'])}"
            )
            out.print(Padding(Text(row["caption"] or "no caption", style="dim"), (0, 0, 0, 13)))
    out.print("\n[bold]2  what the most active have in common[/bold]")
    for point in story.points:
        if point["kept"]:
            out.print(f"  + {escape(point['point'])}  [dim]in {point['support']} of {len(story.high)} captions[/dim]")
        else:
            out.print(
                f"  [yellow]−[/yellow] [strike]{escape(point['point'])}[/strike]  [yellow]dropped: L{point['low']} says it too, "
                f"cosine {point['cosine']:.2f}[/yellow]"
            )
    if not story.points:
        out.print("  [dim]nothing[/dim]")
    out.print("\n[bold]2  what the least active have in common[/bold]")
    for place, point in enumerate(story.low_points, start=1):
        removed = f"  [yellow]removed {len(point['removed'])} of the other side[/yellow]" if point["removed"] else ""
        out.print(f"  [dim]L{place}[/dim] {escape(point['point'])}{removed}")
    if not story.low_points:
        out.print("  [dim]nothing[/dim]")
    out.print("\n[bold]3  calibrated summary[/bold]")
    kept = [point["point"] for point in story.points if point["kept"]]
    out.print(Padding(Text(" ".join(kept) or "nothing is left"), (0, 0, 0, 2)))
    out.print("\n[bold]4  concepts[/bold]")
    for method, name in METHODS.items():
        if method in story.closed:
            told = ", ".join(
                row["concept"] + ("" if row["score"] is None else f" ({row['score']:.2f})")
                for row in story.closed[method]
            )
            out.print(f"  {name:<18}{told}", markup=False)
    accepted = list(dict.fromkeys(term["term"] for term in story.terms if term["is_open_concept"]))
    out.print(f"  {'open':<18}{cell(accepted) or 'none'}\n", markup=False)
