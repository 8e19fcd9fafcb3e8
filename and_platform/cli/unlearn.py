"""`andp unlearn`: ablate the neurons of a concept, and see what the network loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import (
    cell,
    console,
    format_options,
    messages,
    plot_option,
    print_json,
    save_figure,
    show_rows,
)
from and_platform.services import ask, provenance
from and_platform.services.unlearning import export as exporting
from and_platform.services.unlearning import plans, runs, sweep, tables

_DISSECTION = click.option("--dissection", type=int, help="A dissection; default: the network's current one.")
_FOLD = click.option("--fold", type=int, help="Evaluate on this fold; default: the one the network was not trained on.")
_DEVICE = click.option("--device", help="cpu, cuda, cuda:1, mps or auto.  [default: ANDP_DEVICE]")
_WORDS = click.option(
    "--words", type=click.Choice(ask.WORDS), default="any", show_default=True, help="For open: which of its words."
)
_TOP = click.option(
    "--top", type=click.IntRange(1, 5), default=3, show_default=True, help="For closed_*: rank the concept must reach."
)
_LAYERS = click.option("--layers", metavar="GLOB,…", help="Only these layers, e.g. 'b02.*,b03.ff_in'.")
_HEADINGS = {"d_a": "dA", "d_r": "dR", "gap": "dR - dA"}


def _numbers(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Whole numbers from 0 up with commas between them; `full` is none."""
    if value is None or value.strip() == "full":
        return None if value is None else ()
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"'{value}' is no list of whole numbers from 0 up, e.g. 0,1,2", param=param)
    return tuple(map(int, parts))


_PLOT = plot_option()


@click.group("unlearn")
def command() -> None:
    """Ablate the neurons of a concept, and measure what is lost (paper, 4.3): plan, run, table, sweep, export."""


# ---------------------------------------------------------------------- plans


@command.command()
@click.argument("network")
@click.option("--concept", metavar="TEXT", help="What to unlearn: a class, or any word or phrase.")
@click.option(
    "--strategy", type=click.Choice(plans.STRATEGIES), default="open", show_default=True, help="How neurons are chosen."
)
@_WORDS
@_TOP
@click.option(
    "--max-neurons", type=click.IntRange(1), metavar="N",
    help="The most neurons, best first; for random how many.  [default: all; random 3,000; meaning as many as open]",
)  # fmt: skip
@_LAYERS
@click.option("--seed", type=click.IntRange(0), help="For random and random_matched.  [default: 0]")
@click.option(
    "--compared-with", type=int, metavar="PLAN",
    help="For random_matched: the plan whose number of neurons in each layer is drawn.  [default: open for the concept]",
)  # fmt: skip
@_DISSECTION
@click.option("--limit", type=click.IntRange(0), default=10, show_default=True, help="Neurons to show; 0: all.")
@format_options
@click.pass_context
def plan(
    ctx: click.Context,
    network: str,
    concept: str | None,
    strategy: str,
    words: str,
    top: int,
    max_neurons: int | None,
    layers: str | None,
    seed: int | None,
    compared_with: int | None,
    dissection: int | None,
    limit: int,
    output_format: str,
) -> None:
    """Choose the neurons of NETWORK to ablate, say why each, and keep the choice. Never of the head.

    \b
    open             the concept's words are among the open concepts of the neuron's summary
    closed_*         the concept is among the neuron's best ones: db, tab or icl
    meaning          the neurons whose summaries are nearest to the concept by vector
    random           drawn from all hidden neurons
    random_matched   drawn, as many from each layer as another plan has there

    \b
    Examples:
      andp unlearn plan sample-ast --concept water
      andp unlearn plan sample-ast --concept "kick drum" --strategy closed_db --layers "b03.*"
      andp unlearn plan sample-ast --strategy random_matched --compared-with 1 --seed 7
    """
    engine = db.connect(tell=bars(ctx).note)
    made = plans.make(
        engine, network, concept, strategy, words=words, top=top, max_neurons=max_neurons, layers=layers, seed=seed,
        compared_with=compared_with, dissection=dissection,
    )  # fmt: skip
    chosen = plans.neurons(engine, made.id, limit=None if output_format != "table" or not limit else limit)
    if output_format == "json":
        print_json({**_plan(made), "chosen": chosen})
        return
    if output_format == "csv":
        show_rows(chosen, "csv", columns=("rank", "neuron", "score", "why"))
        return
    out = console()
    about = f" for '{made.concept}'" if made.concept else ""
    out.print(
        f"plan {made.id}: {strategy}{about}, {made.n_neurons:,} of {made.n_hidden:,} hidden neurons "
        f"({'new' if made.is_new else 'was there'})",
        markup=False,
    )
    if concept and made.target is None and strategy != "random":
        messages().print(f"'{concept}' is no class of {network}: what it loses itself cannot be measured", markup=False)
    if strategy == "random" and made.n_neurons < (made.max_neurons or 0):
        messages().print(f"{made.max_neurons:,} were asked for, and there are {made.n_neurons:,}", markup=False)
    if not made.n_neurons:
        messages().print("no hidden neuron responds to it by this strategy; try another one")
        return
    show_rows([{"layer": layer, "neurons": n} for layer, n in made.per_layer.items()], "table")
    out.print()
    show_rows(chosen, "table")
    out.print(f"\nablate them:  andp unlearn run {network} --plan {made.id}", markup=False)


@command.command("plans")
@click.argument("network")
@_DISSECTION
@format_options
@click.pass_context
def plans_(ctx: click.Context, network: str, dissection: int | None, output_format: str) -> None:
    """List the plans of a network, with their neurons counted by layer.

    \b
    Example:
      andp unlearn plans sample-ast
    """
    rows = plans.listing(db.connect(tell=bars(ctx).note), network, dissection=dissection)
    if output_format == "table":
        rows = [
            {**{name: row[name] for name in ("plan", "strategy", "concept", "seed", "compared_with", "neurons", "options")},
             "per_layer": ", ".join(f"{layer} {n}" for layer, n in row["per_layer"].items())}
            for row in rows
        ]  # fmt: skip
    show_rows(rows, output_format, empty=f"no plans yet; make one: andp unlearn plan {network} --concept TEXT")


def _plan(made: plans.Plan) -> dict[str, Any]:
    return {
        "plan": made.id, "network": made.network, "dissection": made.dissection_id, "strategy": made.strategy,
        "concept": made.concept, "target": made.target, "seed": made.seed, "compared_with": made.compared_with_id,
        "neurons": made.n_neurons, "of_neurons": made.n_hidden, "per_layer": made.per_layer, "options": made.params,
    }  # fmt: skip


# ---------------------------------------------------------------------- runs


@command.command()
@click.argument("network")
@click.option("--plan", "plan_id", type=int, metavar="PLAN", help="A plan that was made.")
@click.option("--concept", metavar="TEXT", help="One concept.")
@click.option("--each-class", is_flag=True, help="Each class of the network in turn: Table 4.")
@click.option(
    "--strategy", "strategies", type=click.Choice(plans.STRATEGIES), multiple=True,
    help="How neurons are chosen; may be repeated.  [default: open; with --each-class random, random_matched, the closed_* "
    "that there are, and open]",
)  # fmt: skip
@click.option(
    "--seeds", callback=_numbers, default="0,1,2", show_default=True, metavar="S,…", help="For random strategies."
)
@_WORDS
@_TOP
@click.option(
    "--max-neurons", type=click.IntRange(1), metavar="N", help="The most neurons, best first.  [default: all]"
)
@click.option(
    "--random-neurons", type=click.IntRange(1), default=plans.RANDOM_NEURONS, show_default=True, metavar="N",
    help="How many random draws.",
)  # fmt: skip
@_LAYERS
@click.option(
    "--matched-to", type=click.Choice(plans.CHOSEN), default="open", show_default=True,
    help="Whose number of neurons in each layer random_matched draws.",
)  # fmt: skip
@_FOLD
@_DISSECTION
@_DEVICE
@_PLOT
@format_options
@click.pass_context
def run(
    ctx: click.Context,
    network: str,
    plan_id: int | None,
    concept: str | None,
    each_class: bool,
    strategies: Sequence[str],
    seeds: tuple[int, ...],
    words: str,
    top: int,
    max_neurons: int | None,
    random_neurons: int,
    layers: str | None,
    matched_to: str,
    fold: int | None,
    dissection: int | None,
    device: str | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Ablate neurons of NETWORK and measure each class on clips that it was not trained on.

    dA is the change of the mean logit of the target class on its own clips, dR that of the other classes on theirs (per
    class, then over classes), and dR - dA how much further the target falls. The network's weights are untouched when it
    ends. What was measured before is not measured again; stopped at any point, the same command goes on.

    \b
    Examples:
      andp unlearn run sample-ast --concept water
      andp unlearn run sample-ast --each-class
      andp unlearn run sample-ast --each-class --strategy open --strategy random_matched --seeds 0,1,2,3,4
      andp unlearn run sample-ast --plan 1 --plot water.svg
    """
    options = plans.Options(words, top, max_neurons, random_neurons, layers)
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    told = {"network": network, "concept": concept, "each_class": each_class, "plan": plan_id, "strategies": strategies,
            "seeds": seeds, **vars(options), "matched_to": matched_to, "fold": fold}  # fmt: skip
    with provenance.run(
        engine, "unlearn run", {name: it for name, it in told.items() if it not in (None, (), False)}
    ) as row:
        report = runs.run(
            engine, network, concept=concept, each_class=each_class, plan=plan_id, strategies=strategies or None, seeds=seeds,
            options=options, matched_to=matched_to, fold=fold, dissection=dissection, device=device, progress=listener,
        )  # fmt: skip
        row.counts.update(measured=report.measured, reused=report.reused)
    listener.note(f"{report.measured:,} ablations measured, {report.reused:,} were there")
    if each_class:
        _show_table(tables.table4(engine, network, dissection, experiment=report.experiment_id), output_format, plot)
        return
    found = tables.overview(engine, report.ablations)
    _show_ablations(found, output_format)
    if output_format == "table" and len(found) == 1:
        console().print()
        _show_classes(tables.classes(engine, report.ablations[0]))
    if plot is not None:
        _figure10(tables.classes(engine, report.ablations[0]), "probability", plot)
        if len(found) > 1:
            messages().print(
                f"{plot} shows the first of {len(found)}; the others: andp unlearn show ABLATION --plot FILE"
            )


@command.command("list")
@click.argument("network")
@click.option("--concept", metavar="TEXT", help="Only this target.")
@click.option("--strategy", type=click.Choice(plans.STRATEGIES), help="Only this strategy.")
@click.option("--sweeps", is_flag=True, help="The points of sweeps too.")
@_DISSECTION
@format_options
@click.pass_context
def list_(
    ctx: click.Context,
    network: str,
    concept: str | None,
    strategy: str | None,
    sweeps: bool,
    dissection: int | None,
    output_format: str,
) -> None:
    """List the ablations that were measured, with dA, dR and the gap.

    \b
    Example:
      andp unlearn list sample-ast --strategy open
    """
    rows = tables.listing(
        db.connect(tell=bars(ctx).note),
        network,
        concept=concept,
        strategy=strategy,
        sweeps=sweeps,
        dissection=dissection,
    )
    _show_ablations(rows, output_format, f"nothing found; measure something: andp unlearn run {network} --each-class")


@command.command()
@click.argument("ablation", type=int)
@click.option(
    "--measure", type=click.Choice(["probability", "logit", "accuracy"]), default="probability", show_default=True,
    help="What the figure shows.",
)  # fmt: skip
@_PLOT
@format_options
@click.pass_context
def show(ctx: click.Context, ablation: int, measure: str, plot: Path | None, output_format: str) -> None:
    """Show what an ablation does to each class, the target first (paper, Figure 10).

    \b
    Examples:
      andp unlearn show 12
      andp unlearn show 12 --plot water.svg --measure logit
    """
    engine = db.connect(tell=bars(ctx).note)
    rows = tables.classes(engine, ablation)
    if output_format == "table":
        _show_ablations(tables.overview(engine, [ablation]), "table")
        console().print()
        _show_classes(rows)
    else:
        show_rows(rows, output_format)
    if plot is not None:
        _figure10(rows, measure, plot)


@command.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.option("--paper", is_flag=True, help="The figures that the paper prints beside them, and where those are off.")
@click.option("--experiment", type=int, help="A run's, where there are several.  [default: that of most classes]")
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def table(
    ctx: click.Context,
    networks: Sequence[str],
    paper: bool,
    experiment: int | None,
    dissection: int | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Print Table 4: by strategy the mean over target classes of neurons ablated, dA, dR and dR - dA.

    With 95 % intervals from the bootstrap over target classes, for random strategies over seeds too.

    \b
    Examples:
      andp unlearn table sample-ast --paper
      andp unlearn table net-a net-b --csv > table4.csv
    """
    if plot is not None and len(networks) > 1:
        raise click.UsageError("a figure shows one network; name one")
    engine = db.connect(tell=bars(ctx).note)
    rows = [row for name in networks for row in tables.table4(engine, name, dissection, experiment=experiment)]
    _show_table(rows, output_format, plot, paper=paper)
    if output_format == "table" and experiment is None:
        for name in networks:
            shown, *others = tables.runs_of(engine, name, dissection)
            if others:
                which = ", ".join(f"{row['experiment']} (of {row['targets']})" for row in others)
                messages().print(
                    f"{name}: run {shown['experiment']}, of most target classes ({shown['targets']}); "
                    f"--experiment shows another: {which}",
                    markup=False, soft_wrap=True,
                )  # fmt: skip


# ---------------------------------------------------------------------- sweep and export


@command.command("sweep")
@click.argument("network")
@click.option("--concept", metavar="TEXT", help="One concept.")
@click.option("--each-class", is_flag=True, help="Each class of the network in turn.")
@click.option(
    "--strategy", type=click.Choice(plans.CHOSEN), default="open", show_default=True, help="How neurons are chosen."
)
@click.option(
    "--points", callback=_numbers, metavar="N,…",
    help="Numbers of neurons; 'full': the whole plan alone, which is always one.  [default: doubling from 0.5 %]",
)  # fmt: skip
@click.option(
    "--draws", type=click.IntRange(1), default=sweep.DRAWS, show_default=True, help="Random draws at each point."
)
@_WORDS
@_TOP
@click.option(
    "--max-neurons", type=click.IntRange(1), metavar="N", help="The most neurons, best first.  [default: all]"
)
@_LAYERS
@_FOLD
@_DISSECTION
@_DEVICE
@_PLOT
@format_options
@click.pass_context
def sweep_(
    ctx: click.Context,
    network: str,
    concept: str | None,
    each_class: bool,
    strategy: str,
    points: tuple[int, ...] | None,
    draws: int,
    words: str,
    top: int,
    max_neurons: int | None,
    layers: str | None,
    fold: int | None,
    dissection: int | None,
    device: str | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Ablate more and more neurons of a plan, beside as many drawn at random from the same layers.

    At each point the plan's first n neurons, and --draws random choices with as many in each layer as those have: their
    mean and the range of 95 % of them. Then, over whole plans: by how much the plan's gap exceeds its draws', with the
    bootstrap 95 % interval over classes. Stopped at any point, the same command goes on.

    \b
    Examples:
      andp unlearn sweep sample-ast --concept "kick drum" --plot sweep.svg
      andp unlearn sweep sample-ast --each-class --points full
      andp unlearn sweep sample-ast --concept water --strategy closed_db --points 50,100,200 --draws 40
    """
    options = plans.Options(words, top, max_neurons, layers=layers)
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    told = {"network": network, "concept": concept, "each_class": each_class, "strategy": strategy, "points": points,
            "draws": draws, **vars(options), "fold": fold}  # fmt: skip
    with provenance.run(
        engine, "unlearn sweep", {name: it for name, it in told.items() if it not in (None, False)}
    ) as row:
        report = sweep.run(
            engine, network, concept=concept, each_class=each_class, strategy=strategy, points=points, draws=draws,
            options=options, fold=fold, dissection=dissection, device=device, progress=listener,
        )  # fmt: skip
        row.counts.update(measured=report.measured, reused=report.reused)
    listener.note(f"{report.measured:,} ablations measured, {report.reused:,} were there")
    rows = sweep.rows(
        engine, network, concept=concept, strategy=strategy, experiment=report.experiment_id, dissection=dissection
    )
    if output_format == "table":
        show_rows(
            [
                {"target": row["concept"], "neurons": row["n_neurons"], "dA": row["d_a"], "dR": row["d_r"],
                 "dR - dA": row["gap"], "draws": row["draws"], "draws' dR - dA": row["draws_gap"],
                 "95 % of draws": _interval(row, "draws_gap"), "p": row["p"]}
                for row in rows
            ], "table",
        )  # fmt: skip
    else:
        show_rows(rows, output_format)
    if (over := sweep.margin(rows)) is not None and output_format == "table":
        of = "class" if over["targets"] == 1 else "classes"
        interval = (
            f", 95 % interval [{over['low']:.3f}, {over['high']:.3f}] over classes" if over["low"] is not None else ""
        )
        console().print(
            f"\n{strategy} against random_matched, whole plans of {over['targets']} {of}: dR - dA {over['gap']:.3f} against "
            f"{over['draws_gap']:.3f}; {over['margin']:+.3f}{interval}; above 97.5 % of its draws for {over['above']} of "
            f"{over['targets']}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if plot is not None:
        from and_platform.plots import unlearning

        save_figure(unlearning.sweep(rows), plot)


@command.command()
@click.argument("plan_id", type=int, metavar="PLAN")
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write to.",
)
@click.option("--structured", is_flag=True, help="Really remove units of feed-forward layers; others are zeroed.")
@click.option("--mask-only", is_flag=True, help="The mask, and no checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
@click.pass_context
def export(ctx: click.Context, plan_id: int, directory: Path, structured: bool, mask_only: bool, as_json: bool) -> None:
    """Write the mask of a plan, and the network without its neurons as transformers loads it.

    mask.safetensors has a bool vector for each layer that is touched (True: ablated), mask.json the same for people. The
    folder can be added as a network of its own.

    \b
    Examples:
      andp unlearn export 1 -o ./without-water
      andp unlearn export 1 -o ./smaller --structured
      andp networks add without-water ./without-water
    """
    engine = db.connect(tell=bars(ctx).note)
    with provenance.run(engine, "unlearn export", {"plan": plan_id, "directory": directory, "structured": structured}):
        report = exporting.export(engine, plan_id, directory, structured=structured, mask_only=mask_only)
    if as_json:
        print_json(vars(report))
        return
    out = console()
    out.print(
        f"plan {report.plan} of {report.network}: {report.neurons:,} neurons, {report.parameters:,} of "
        f"{report.parameters_before:,} parameters",
        markup=False,
    )
    if report.stock is not None:
        removed = ", ".join(f"{layer} {n}" for layer, n in report.removed.items())
        out.print(f"  zeroed   {report.parameters_zeroed:>10,} parameters", markup=False)
        out.print(
            f"  removed  {report.parameters_removed:>10,} parameters" + (f" (units of {removed})" if removed else ""),
            markup=False,
        )
    for file in report.files:
        out.print(f"  {directory / file}", markup=False)
    if report.stock is not None:
        if not report.stock:
            out.print("plain transformers needs trust_remote_code=True for it: layers differ in size", markup=False)
        out.print(f"add it:  andp networks add NAME {directory}", markup=False)


# ---------------------------------------------------------------------- showing


def _show_table(
    rows: Sequence[Mapping[str, Any]], output_format: str, plot: Path | None, *, paper: bool = False
) -> None:
    printed, notes = tables.printed() if paper else ([], [])
    if output_format == "table":
        show_rows(
            [
                {"network": row["network"], "strategy": row["strategy"], "targets": row.get("targets"),
                 "seeds": row.get("seeds"), "neurons": row["neurons"],
                 **{part: value for change, told in _HEADINGS.items()
                    for part, value in ((told, round(row[change], 4)), (f"{told} 95 %", _interval(row, change)))},
                 "target right": _share(row, "target"), "others right": _share(row, "rest")}
                for row in [*rows, *printed]
            ], "table",
        )  # fmt: skip
        for row in rows:
            if row["empty_plans"]:
                messages().print(
                    f"{row['strategy']}: nothing chosen for {row['empty_plans']} of {row['targets']} classes: they count as 0",
                    markup=False,
                )  # fmt: skip
        if rows and rows[0]["status"] != "complete":
            messages().print("the run was not finished; the same command goes on")
        for note in notes:
            messages().print(f"the paper: {note}", markup=False)
    else:
        names = [name for name in rows[0] if name != "options"] if rows else []
        shown = (
            [{name: row.get(name) for name in names} for row in [*rows, *printed]] if output_format == "csv" else None
        )
        show_rows(shown if shown is not None else [*rows, *printed], output_format)
        for note in notes:
            messages().print(f"the paper: {note}", markup=False)
    if plot is not None:
        from and_platform.plots import unlearning

        save_figure(unlearning.table4(rows), plot)


def _show_ablations(rows: Sequence[Mapping[str, Any]], output_format: str, empty: str = "nothing found") -> None:
    if output_format != "table":
        show_rows(rows, output_format)
        return
    show_rows(
        [
            {"ablation": row["ablation_id"], "strategy": row["strategy"], "target": row["concept"], "seed": row["seed"],
             "neurons": row["n_neurons"], "parameters": row["n_parameters"], "dA": row["d_a"], "dR": row["d_r"],
             "dR - dA": row["gap"], "target right": _share(row, "target"), "others right": _share(row, "rest")}
            for row in rows
        ], "table", empty=empty,
    )  # fmt: skip


def _show_classes(rows: Sequence[Mapping[str, Any]]) -> None:
    show_rows(
        [
            {"class": f"{row['class']} ← target" if row["is_target"] else row["class"], "clips": row["clips"],
             "logit": _change(row, "logit"), "change": row["logit_change"], "probability": _change(row, "probability"),
             "right": _change(row, "accuracy")}
            for row in rows
        ], "table",
    )  # fmt: skip


def _change(row: Mapping[str, Any], measure: str) -> str:
    before, after = row[f"{measure}_before"], row[f"{measure}_after"]
    return "–" if before is None else f"{before:.2f} → {after:.2f}"


def _share(row: Mapping[str, Any], whose: str) -> str:
    before, after = row.get(f"{whose}_accuracy_before"), row.get(f"{whose}_accuracy_after")
    return "–" if before is None or after is None else f"{before:.0%} → {after:.0%}"


def _interval(row: Mapping[str, Any], change: str) -> str:
    low, high = row.get(f"{change}_low"), row.get(f"{change}_high")
    return "–" if low is None or high is None else f"[{cell(float(low))}, {cell(float(high))}]"


def _figure10(rows: Sequence[Mapping[str, Any]], measure: str, plot: Path) -> None:
    from and_platform.plots import unlearning

    save_figure(unlearning.figure10(rows, measure), plot)
