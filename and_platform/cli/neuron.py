"""`andp neuron`: everything known of one neuron."""

from __future__ import annotations

import click
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import cell, console, format_options, print_json, show_rows
from and_platform.services import ask


@click.command("neuron")
@click.argument("network")
@click.argument("neuron", metavar="LAYER#UNIT")
@click.option("--dissection", type=int, help="A dissection; default: the network's current one.")
@click.option("--exemplars", type=click.IntRange(1, 20), help="Clips a side; default: the dissection's K.")
@format_options
@click.pass_context
def command(
    ctx: click.Context, network: str, neuron: str, dissection: int | None, exemplars: int | None, output_format: str
) -> None:
    """Show everything known of one neuron: description, concepts, exemplars.

    \b
    Examples:
      andp neuron sample-ast "b03.ff_in#17"
      andp neuron sample-ast "head#0" --exemplars 10 --json
    """
    found = ask.neuron(db.connect(tell=bars(ctx).note), network, neuron, dissection=dissection, exemplars=exemplars)
    if output_format == "json":
        print_json(found.as_dict())
    elif output_format == "csv":
        show_rows([found.description], "csv")
    else:
        _print(found)


def _print(found: ask.NeuronReport) -> None:
    out, about = console(), found.description
    out.print(f"[bold]{about['network']}  {about['neuron']}[/bold]", end="")
    out.print(
        f"   {about['layer_kind']}, data set {about['dataset']}, dissection {about['dissection_id']}", markup=False
    )
    if about["class_name"]:
        out.print(f"class            {about['class_name']}", markup=False)
    if about["mean"] is not None:
        out.print(
            f"activation       mean {about['mean']:.3g}, sd {about['sd']:.3g}, from {about['min']:.3g} to {about['max']:.3g}, "
            f"sparsity {about['sparsity']:.2f}"
        )
    for key, name in (("closed_db", "by captions"), ("closed_tab", "by sound"), ("closed_icl", "by LLM")):
        best = [
            f"{row['concept']}" + (f" ({row['score']:.2f})" if row["score"] is not None else "")
            for row in found.matches
            if row["speaks"] and row["method"] == key.removeprefix("closed_")
        ]
        out.print(f"{name:<17}{', '.join(best) or 'not computed'}", markup=False)
        if about[f"{key}_auprc"] is not None:
            out.print(
                f"{'':<17}[dim]on clips with that label: AUPRC {about[f'{key}_auprc']:.2f} "
                f"(p {about[f'{key}_p']:.2g}), Pearson {about[f'{key}_pearson']:.2f}, F1 {about[f'{key}_f1']:.2f}, "
                f"IoU {about[f'{key}_iou']:.2f}[/dim]"
            )
    if about["best_label"] is not None:
        out.print(
            f"best label       {escape(about['best_label'])}  [dim]AUPRC {about['best_label_auprc']:.2f} "
            f"(p {about['best_label_p']:.2g})[/dim]"
        )
    out.print(f"open concepts    {cell(about['open_concepts'])}", markup=False)
    support = f", support {about['support']:.0%}" if about["support"] is not None else ""
    out.print(
        f"\n[bold]summary[/bold]   {about['points_kept'] or 0} points kept, {about['points_dropped'] or 0} dropped{support}"
    )
    if about["summary_auprc"] is not None:
        out.print(
            f"  [dim]on the captions of the clips that it was not made of: AUPRC {about['summary_auprc']:.2f} "
            f"(p {about['summary_p']:.2g}), Pearson {about['summary_pearson']:.2f}[/dim]"
        )
    for point in found.points:
        if point["kept"]:
            out.print(f"  + {escape(point['point'])}  [dim]said by {point['support']} captions[/dim]")
        else:
            out.print(
                f"  [dim]− {escape(point['point'])}  said of the lowest clips too "
                f"({escape(str(point['nearest_low_point']))}, cosine {point['cosine']})[/dim]"
            )
    for side, title in (("high", "most active on"), ("low", "least active on")):
        out.print(f"\n[bold]{title}[/bold]")
        for row in found.exemplars:
            if row["side"] == side:
                out.print(
                    f"  {row['activation']:>9.3g}  [bold]{escape(row['label'] or '–'):<18}[/bold] {escape(row['path'])}"
                )
                if row["caption"]:
                    out.print(Padding(Text(row["caption"], style="dim"), (0, 0, 0, 13)))
