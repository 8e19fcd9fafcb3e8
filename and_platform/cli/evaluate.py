"""`andp eval`: how good are the concepts and descriptions that were found?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import console, format_options, messages, plot_option, print_json, save_figure, show_rows
from and_platform.errors import InputError
from and_platform.services import class_mapping, explanations, last_layer, provenance

_FEW_PERMUTATIONS = 199
"""Fewer leave the smallest p above 0.005, and the correction over a layer's neurons little to find."""

_dissection = click.option("--dissection", type=int, help="A dissection; default: the network's current one.")


@click.group("eval")
def command() -> None:
    """Evaluate a dissection: the last layer against its classes, descriptions against the clips."""


@command.command("classes")
@click.argument("network")
@_dissection
@click.option(
    "--map", "given", multiple=True, metavar="CLASS=CONCEPT",
    help="Say which concept stands for a class; 'CLASS=' takes it back. May be given several times.",
)  # fmt: skip
@format_options
@click.pass_context
def classes(
    ctx: click.Context, network: str, dissection: int | None, given: tuple[str, ...], output_format: str
) -> None:
    """Show which concept stands for each class of NETWORK, or say it.

    By name, never by position: the same name, else the same but for case, '_' and '-', else a synonym of the concept. What
    you say goes first, and is kept.

    \b
    Examples:
      andp eval classes sample-ast
      andp eval classes mine --map "dog_bark=barking" --map "car=vehicle"
    """
    said: dict[str, str] = {}
    for pair in given:
        name, equals, concept = pair.partition("=")
        if not equals or not name.strip():
            raise InputError(f"'{pair}' is no mapping; write --map \"CLASS=CONCEPT\"")
        said[name.strip()] = concept.strip()
    mapped = class_mapping.classes(db.connect(tell=bars(ctx).note), network, dissection=dissection, given=said)
    show_rows(
        [{"unit": one.unit, "class": one.class_name, "concept": one.concept, "how": one.how} for one in mapped],
        output_format,
    )
    missing = class_mapping.without_concept(mapped)
    if missing and output_format == "table":
        messages().print(
            f"{len(missing)} of {len(mapped)} classes have no concept: {', '.join(missing)}; "
            f'name one with: andp eval classes {network} --map "CLASS=CONCEPT"',
            markup=False,
        )  # fmt: skip


@command.command("last-layer")
@click.argument("network")
@_dissection
@click.option(
    "--llm", help="Who is asked for five concepts per class, for the top 5 of ICL.  [default: the dissection's]"
)
@click.option("--no-llm", is_flag=True, help="Ask no LLM: the top 5 of ICL is left out.")
@click.option("--paper", is_flag=True, help="Show the paper's figures too, and where they are off.")
@click.option("--names", is_flag=True, help="Show what was found for each class too.")
@plot_option("Draw top 1 with intervals")
@format_options
@click.pass_context
def last_layer_(
    ctx: click.Context,
    network: str,
    dissection: int | None,
    llm: str | None,
    no_llm: bool,
    paper: bool,
    names: bool,
    plot: Path | None,
    output_format: str,
) -> None:
    """Do the concepts found for NETWORK's last layer name its classes? Tables 2 and 7 of the paper.

    Top 1 and top 5 (shares of classes) and the mean cosine between the names found first and the class names, by the sentence
    encoder and by the encoder of the concepts; with 95 % bootstrap intervals over classes. Over all classes that are
    concepts, and over those of them that the network itself gets right. Stored: a second call computes nothing.

    \b
    Examples:
      andp eval last-layer sample-ast
      andp eval last-layer sample-ast --paper --names
      andp eval last-layer ast --llm openai:my-model@http://localhost:8000/v1 --json
    """
    if llm and no_llm:
        raise InputError("--llm and --no-llm contradict each other; give one")
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    with provenance.run(engine, "eval last-layer", {"network": network, "dissection": dissection, "llm": llm}) as run:
        report = last_layer.evaluate(engine, network, dissection=dissection, llm=llm, ask=not no_llm, progress=listener)
        run.dissection_id = report.dissection_id
    if plot is not None:
        _draw_last_layer(report, plot)
    if output_format == "csv":
        show_rows(report.rows, "csv")
    elif output_format == "json":
        told: dict[str, Any] = {
            "dissection": report.dissection_id, "network": report.network, "dataset": report.dataset,
            "concept_set": report.concept_set, "n_concepts": report.n_concepts, "measures": report.rows,
            "accuracy": report.accuracy, "unmapped": report.unmapped, "names": report.names, "found": report.found,
            "notes": report.notes,
        }  # fmt: skip
        print_json(told | ({"paper": last_layer.paper_table()[0]} if paper else {}))
    else:
        _print_last_layer(report, paper, names)


def _draw_last_layer(report: last_layer.LastLayerReport, path: Path) -> None:
    from and_platform.plots import evaluation

    save_figure(evaluation.last_layer(report.rows, report.footer, chance=1 / report.n_concepts), path)


def _print_last_layer(report: last_layer.LastLayerReport, paper: bool, names: bool) -> None:
    out = console()
    out.print(f"[bold]last layer of {report.network}[/bold], dissection {report.dissection_id}")
    found = report.accuracy
    if found:
        fold = f"fold {found['fold']}, which it was not trained on" if found["fold"] is not None else "all folds"
        out.print(
            f"  its own accuracy  {found['value']:.1%} of {found['n_clips']} clips ({fold}), by the recorded logits "
            "(rounded to float16)",
            markup=False,
        )
    n = report.n_concepts
    out.print(f"  guessing          top 1 {1 / n:.1%}, top 5 {min(1, 5 / n):.1%} (of {n} concepts)", markup=False)
    for over, title in (("all", "all classes that are concepts"), ("right", "classes that the network gets right")):
        rows = [row for row in report.rows if row["over"] == over and row["measure"] == "top_1"]
        count = max((row["n"] for row in rows), default=0)
        out.print(f"\n[bold]{title}: {count}[/bold]")
        if not count:
            continue
        out.print("by function: top 1 / top 5 (%) / cosine of names by the sentence encoder")
        show_rows(last_layer.table_7(report.rows, over), "table")
        out.print()
        show_rows(last_layer.table_2(report.rows, over), "table")
    out.print(
        "\nstated: the function fixed beforehand for the method. best of 5: the one with the best result, which is what the "
        "paper prints; it favours the method with more functions.",
        markup=False,
    )
    if names:
        out.print()
        show_rows(report.names, "table", title="by the stated function")
    if paper:
        table, notes = last_layer.paper_table()
        out.print()
        show_rows(table, "table", title="the paper (ESC-50): top 1 / top 5 (%) / cosine")
        for note in notes:
            out.print(f"  {note}", markup=False)
    for note in report.notes:
        messages().print(f"note: {note}", markup=False)


@command.command("explanations")
@click.argument("network")
@_dissection
@click.option(
    "--layers", "--layer", "layers", multiple=True, metavar="GLOB", help="Only layers of this pattern, e.g. 'b03.*'."
)
@click.option(
    "--permutations", type=click.IntRange(1), default=explanations.PERMUTATIONS, show_default=True,
    help="Random orders of the activations that figures are compared with.",
)  # fmt: skip
@click.option(
    "--by", type=click.Choice(["layer", "neuron"]), default="layer", show_default=True, help="What a row stands for."
)
@click.option("--limit", type=click.IntRange(1), help="With --by neuron: the most rows.  [default: 30 in a table]")
@plot_option("Draw the distributions by layer")
@format_options
@click.pass_context
def explanations_(
    ctx: click.Context,
    network: str,
    dissection: int | None,
    layers: tuple[str, ...],
    permutations: int,
    by: str,
    limit: int | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Do descriptions tell on which clips NETWORK's neurons are active? For every neuron of every layer.

    Average precision (AUPRC), Pearson correlation, F1 and IoU of the activation against the clips that carry the concept as a
    label (labels), and against the scores of clips for the concept or summary (scores: positive are the 5 % with the highest
    scores). Beside each: what permuted activations give; the share of neurons with p < 0.05 after correction.

    All descriptions were made from the activations on the same clips. So a concept is compared with the best of all concepts
    on permuted activations, and a summary is scored on the clips that it was not made of. What remains: against scores, a
    concept is judged by the very scores that it was chosen by.

    \b
    Examples:
      andp eval explanations sample-ast
      andp eval explanations sample-ast --plot auprc.svg
      andp eval explanations sample-ast --layers "b03.*" --by neuron --limit 10
    """
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    chosen = list(layers) or None
    arguments = {"network": network, "dissection": dissection, "layers": chosen, "permutations": permutations}
    with provenance.run(engine, "eval explanations", arguments) as run:
        report = explanations.score(
            engine, network, dissection=dissection, layers=chosen, permutations=permutations, progress=listener
        )
        run.dissection_id, run.counts["layers"] = report.dissection_id, len(report.computed)
    found = report.experiment_id
    if plot is not None:
        from and_platform.plots import evaluation

        rows = explanations.by_layer(engine, network, dissection=dissection, layers=chosen, experiment=found)
        footer = explanations.footer(engine, network, rows, dissection=dissection, experiment=found)
        save_figure(evaluation.explanations(rows, footer), plot)
    if by == "neuron":
        most = limit or (30 if output_format == "table" else None)
        rows = explanations.by_neuron(
            engine, network, dissection=dissection, layers=chosen, experiment=found, limit=most
        )
        show_rows(_narrow(rows) if output_format == "table" else rows, output_format, empty="no neuron has a score")
    else:
        rows = explanations.by_layer(engine, network, dissection=dissection, layers=chosen, experiment=found)
        for row in rows:
            del row["auprc"]
        show_rows(
            [_shorter(row) for row in rows] if output_format == "table" else rows,
            output_format,
            empty="nothing was scored",
        )
    if output_format == "table":
        _tell(network, report)
        if permutations < _FEW_PERMUTATIONS:
            messages().print(
                f"with {permutations} permutations no p is below {1 / (1 + permutations):.2g}: too few for the share with "
                "p < 0.05; leave --permutations out",
                markup=False,
            )  # fmt: skip


def _narrow(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = (
        "neuron",
        "explanation",
        "reference",
        "concept",
        "n_positive",
        "auprc",
        "null_auprc",
        "p_auprc",
        "pearson",
        "f1",
        "iou",
    )
    return [{name: row[name] for name in kept} for row in rows]


def _shorter(row: dict[str, Any]) -> dict[str, Any]:
    share = row["share_significant"]
    return {
        "layer": row["layer"], "explanation": row["explanation"], "reference": row["reference"],
        "neurons": row["n_scored"], "AUPRC mean": row["mean_auprc"], "median": row["median_auprc"],
        "permuted": row["null_auprc"], "p < 0.05": None if share is None else f"{share:.0%}",
        "Pearson": row["mean_pearson"], "F1": row["mean_f1"], "IoU": row["mean_iou"],
    }  # fmt: skip


def _tell(network: str, report: explanations.ExplanationReport) -> None:
    out = messages()
    if report.without_label:
        some = report.without_label[:5]
        more = f" and {len(report.without_label) - 5:,} more" if len(report.without_label) > 5 else ""
        out.print(
            f"{len(report.without_label):,} concepts are the label of no clip and have no score against labels: "
            f"{', '.join(some)}{more}",
            markup=False,
        )
    if report.waiting:
        names = ", ".join(report.waiting[:3]) + (" …" if len(report.waiting) > 3 else "")
        out.print(
            f"still to be scored: {names} ({len(report.waiting)} of the layers); neuron_descriptions shows the figures "
            f"when all are there: andp eval explanations {network}",
            markup=False,
        )
    out.print(
        "permuted: the best that could have been chosen, on permuted activations. p < 0.05: share of neurons, false discovery "
        "rate within the row. Summaries are scored on the clips that they were not made of.",
        markup=False,
    )
    out.print(f'one neuron: andp neuron {network} "LAYER#UNIT"', markup=False)
