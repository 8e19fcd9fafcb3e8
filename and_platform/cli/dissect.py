"""`andp dissect`: the main job."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import cell, console, duration, messages, print_json, show_rows
from and_platform.config import load_toml, settings
from and_platform.errors import InputError
from and_platform.services import datasets, estimates, networks, profiles, provenance, samples
from and_platform.services import dissect as service
from and_platform.services.dissect import METHODS, STAGES, DissectReport, Options
from and_platform.services.distribution import ledger, runs
from and_platform.services.profiles import Profile


def _split(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def _keywords(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> dict[str, Any] | None:
    """KEY=VALUE, as often as given; a value that is no TOML is taken for text."""
    keywords: dict[str, Any] = {}
    for given in value:
        key, equals, text = given.partition("=")
        if not key.strip().isidentifier() or not equals:
            raise click.BadParameter(f"'{given}' is not KEY=VALUE")
        try:
            keywords[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            keywords[key.strip()] = text
    return keywords or None


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make an `Options`; what is not given stays None, so that a config file may give it."""
    decorators = [
        click.option(
            "--dataset", help="Data set to probe with.  [default: the one it was trained on, or the only one]"
        ),
        click.option("--concepts", metavar="SET", help="Concept set.  [default: the data set's labels]"),
        click.option(
            "--layers", metavar="GLOB,…", callback=_split, help="Layers, e.g. 'b0*.ff_*,head'.  [default: the paper's]"
        ),
        click.option(
            "--pooling", type=click.Choice(["first", "mean", "max"]), help="Pooling over time.  [default: the layer's]"
        ),
        click.option("-k", "--top-k", type=int, help="Exemplars a side that summaries are made of.  [default: 5]"),
        click.option(
            "-t", "--threshold", type=float, help="Cosine above which a low point removes a high one.  [default: 0.7]"
        ),
        click.option(
            "--method", "methods", metavar="M,…", callback=_split, help=f"Closed-set methods: {', '.join(METHODS)}."
        ),
        click.option(
            "--similarity", help="Similarity function that speaks.  [default: cos_cubed for db, soft_wpmi for tab]"
        ),
        click.option(
            "--all-similarities", is_flag=True, default=None, help="All five functions for hidden layers too."
        ),
        click.option(
            "--clips", type=int, help="Match hidden layers on that many most active clips only.  [default: all]"
        ),
        click.option(
            "--captioner",
            help="auto, source, describer, joined, file:PATH, audio-lm:DIRECTORY, salmonn:DIRECTORY, "
            "openai-audio:MODEL@URL.  [default: auto]",
        ),
        click.option(
            "--captioner-option",
            "captioner_options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_keywords,
            help="An option of a captioner of the registry, e.g. batch_size=16. Repeatable.",
        ),
        click.option(
            "--summariser", type=click.Choice(["extractive", "llm"]), help="Who summarises.  [default: the LLM, if set]"
        ),
        click.option("--llm", help="openai:MODEL@URL, transformers:DIRECTORY, vllm:MODEL, llamacpp.  [default: none]"),
        click.option(
            "--llm-option",
            "llm_options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_keywords,
            help="An option of the LLM, e.g. temperature=0.0. Repeatable.",
        ),
        click.option(
            "--judge", type=click.Choice(["anchor", "llm"]), help="Who judges adjectives.  [default: the LLM, if set]"
        ),
        click.option("--sentence-encoder", help="Encoder of sentences.  [default: minilm]"),
        click.option("--text-encoder", help="Encoder of captions and concepts.  [default: minilm]"),
        click.option("--audio-encoder", help="Encoder of sound and text, for tab, e.g. clap:DIRECTORY."),
        click.option("--tagger", help="hanta or spacy.  [default: hanta]"),
        click.option("--stages", metavar="S,…", callback=_split, help=f"Only these stages: {', '.join(STAGES)}."),
    ]
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


@click.command("dissect")
@click.argument("network", required=False)
@options
@click.option(
    "--profile",
    "profile_name",
    metavar="NAME",
    help="The models of a profile; options given here go before its own. See: andp profiles list.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with a table [dissect]; what the command line says goes before it.",
)
@click.option("--distributed", is_flag=True, help="Have workers do it (andp worker), and watch them.")
@click.option("--detach", is_flag=True, help="With --distributed: do not watch. See: andp runs watch.")
@click.option("--dry-run", is_flag=True, help="Say what would be computed, and about how long it takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    network: str | None,
    profile_name: str | None,
    config: Path | None,
    dry_run: bool,
    distributed: bool,
    detach: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Dissect NETWORK: find out what each of its neurons responds to.

    Records activations over a data set, captions the clips, matches neurons with concepts, summarises and calibrates
    their exemplars' captions, and extracts open concepts. What is there already is reused; killed at any point, the same
    command goes on.

    \b
    Examples:
      andp dissect sample-ast
      andp dissect ast --dataset esc50 --concepts audioset --layers "b11.*,head"
      andp dissect ast --dataset esc50 --llm openai:my-model@http://localhost:8000/v1
      andp dissect ast --config dissect.toml --dry-run
      andp dissect --profile paper --dry-run
      andp dissect ast --dataset esc50 --distributed --detach
    """
    if detach and not distributed:
        raise click.UsageError("--detach goes with --distributed", ctx)
    profile = profiles.load(profile_name) if profile_name else None
    network = network or (profile.network if profile else None)
    if network is None:
        raise click.UsageError("name the network to dissect; see: andp networks list", ctx)
    settled = _settle(profile, config, given)
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    if not _names_dataset(profile, config, given):
        settled = replace(settled, dataset=_default_dataset(engine, network))
    if dry_run:
        _dry_run(engine, network, settled, profile, listener, as_json)
        return
    samples.ensure(engine, network, settled.dataset, listener)
    if distributed:
        _distribute(ctx, engine, network, settled, detach, as_json)
        return
    with provenance.run(
        engine,
        "dissect",
        {"network": network, "profile": profile_name, **{k: v for k, v in given.items() if v is not None}},
    ) as run:
        report = service.dissect(engine, network, settled, progress=listener, run=run)
    if as_json:
        print_json({"dissection": report.dissection_id, "stages": [vars(stage) for stage in report.stages],
                    "failed_clips": report.failed_clips, "open_failures": report.open_failures,
                    "cut_texts": [vars(cut) for cut in report.cut]})  # fmt: skip
    else:
        print_report(engine, network, report)


def _distribute(
    ctx: click.Context, engine: sa.Engine, network: str, settled: Options, detach: bool, as_json: bool
) -> None:
    """Have workers do it; what they need is in the database, and a path on this machine means the same on theirs."""
    from and_platform.cli.runs import follow
    from workers import brokers, tracing

    with brokers.sending(settings()) as messenger, tracing.span("dissect", network=network):
        run_id, there = runs.start(engine, network, runs.absolute(settled))
        ledger.top_up(engine, run_id, messenger, window=settings().queue_window)
    told = "is at it already" if there else "begins"
    messages().print(f"run {run_id} {told}; to watch it from anywhere: andp runs watch {run_id}", markup=False)
    if detach:
        if as_json:
            print_json({"run": run_id, "attached": there})
        return
    found = follow(ctx, engine, run_id)
    if as_json:
        print_json({"run": run_id, "dissection": found["dissection_id"], "counts": found["counts"]})
        return
    print_outcome(engine, run_id, found)


def print_outcome(engine: sa.Engine, run_id: int, found: dict[str, Any]) -> None:
    """What workers have done of a run, and where to look next. `found`: how it ended (`runs.outcome`)."""
    messages().print(f"run {run_id} is done", markup=False)
    if found["dissection_id"] is None:
        return
    _print_remarks(found["counts"])
    _print_layers(engine, found["dissection_id"])
    if found["counts"].get("open_failures"):
        messages().print(f"{found['counts']['open_failures']} units failed; see: andp failures")
    _print_next(engine, found["arguments"]["network"], found["dissection_id"])


def print_report(engine: Any, network: str, report: DissectReport) -> None:
    """What was reused and computed, a table per layer, and where to look next."""
    out = console()
    out.print(f"\n[bold]dissection {report.dissection_id} of {network}[/bold]")
    for stage in report.stages:
        reused = max(stage.total - stage.computed, 0) if stage.unit != "summaries" else None
        told = f"{stage.computed:,} {stage.unit} computed" if stage.computed else "nothing to do"
        if reused and stage.computed:
            told += f", {reused:,} reused"
        elif reused:
            told = f"{reused:,} {stage.unit} reused"
        out.print(f"  {stage.stage:<12}{told:<40}{stage.seconds:>7.1f} s", markup=False)
    _print_remarks(service.remarks(report.captions, report.cut, report.llm))
    _print_layers(engine, report.dissection_id)
    if report.failed_clips:
        messages().print(
            f"{len(report.failed_clips)} clips could not be read and were left out; see: andp failures --stage record"
        )
    if report.open_failures:
        messages().print(f"{report.open_failures} units failed; see: andp failures. The same command tries them again.")
    _print_next(engine, network, report.dissection_id)


def _print_remarks(counts: dict[str, Any]) -> None:
    """What a run's counts tell that its reader should know: what the LLM was asked, what is circular, what was cut."""
    out = console()
    if llm := counts.get("llm"):
        out.print(
            f"  the LLM has given {llm['answers']:,} answers so far: {llm['prompt_tokens']:,} tokens read, "
            f"{llm['completion_tokens']:,} written",
            markup=False,
        )
    captions = counts.get("captions", {"naming": 0})
    if captions["naming"]:
        out.print(
            f"  {captions['naming']:,} of {captions['clips']:,} captions contain the name of the clip's class: matches "
            "with class names are partly circular for them (captions.names_label)",
            markup=False,
        )
    for cut in counts.get("cut_texts", []):
        if cut["n_cut"] or (cut["what"] == "captions" and cut["max_tokens"] and cut["n_texts"]):
            window = f"the {cut['max_tokens']} tokens that" if cut["max_tokens"] else "what"
            out.print(
                f"  {cut['n_cut']:,} of {cut['n_texts']:,} {cut['what']} were longer than {window} {cut['encoder']} reads "
                "and were cut",
                markup=False,
            )


def _print_layers(engine: sa.Engine, dissection: int) -> None:
    """A row for each layer."""
    from and_platform import queries

    with db.reading(engine) as session:
        rows = queries.layer_table(session, dissection=dissection)
    console().print()
    show_rows(rows, "table")


def _print_next(engine: sa.Engine, network: str, dissection: int) -> None:
    """What to ask next."""
    out = console()
    out.print("\nwhere to look next")
    neuron = _some_neuron(engine, dissection)
    for line in (
        f'andp neuron {network} "{neuron}"',
        "andp neurons --concept WORD",
        'andp sql "SELECT neuron, closed_db, calibrated_summary FROM current_neuron_descriptions LIMIT 10"',
    ):
        out.print(f"  {line}", markup=False)


def _some_neuron(engine: Any, dissection: int) -> str:
    """A neuron with much to show."""
    with db.reading(engine) as session:
        found = session.scalar(
            sa.text(
                "SELECT neuron FROM neuron_descriptions WHERE dissection_id = :id AND layer_kind <> 'head'"
                " ORDER BY points_kept * coalesce(support, 0) DESC NULLS LAST, neuron_id LIMIT 1"
            ),
            {"id": dissection},
        )
    return cell(found) if found else "head#0"


def _default_dataset(engine: sa.Engine, network: str) -> str:
    """Return the data set to probe with where none was named; ask at a terminal where there are several.

    Raises
    ------
    InputError
        There are several, and nobody to ask.
    """
    if network == networks.SAMPLE:
        return samples.DATASET
    with db.reading(engine) as session:
        names = datasets.probing_choices(session, network)
    if len(names) == 1:
        return names[0]
    if sys.stdin.isatty() and sys.stderr.isatty():
        return str(click.prompt("Which data set?", type=click.Choice(names), err=True))
    raise InputError(f"there are {len(names)} data sets; say which one with --dataset: {', '.join(names)}")


def _settle(profile: Profile | None, config: Path | None, given: dict[str, Any]) -> Options:
    """The profile's values, then the config file's, then those of the command line."""
    told = {key: value for key, value in given.items() if value is not None}
    return profiles.settle(profile, _table(config), told)


def _table(config: Path | None) -> dict[str, Any]:
    """The options that a config file gives."""
    content = load_toml(config) if config is not None else {}
    table: dict[str, Any] = content.get("dissect", content)
    return table


def _names_dataset(profile: Profile | None, config: Path | None, given: dict[str, Any]) -> bool:
    """Whether the profile, the config file or the command line names a data set."""
    return given.get("dataset") is not None or "dataset" in {**(profile.dissect if profile else {}), **_table(config)}


def _dry_run(
    engine: Any, network: str, settled: Options, profile: Profile | None, listener: Any, as_json: bool
) -> None:
    """The plan, with counts, times, and what is not here yet."""
    if profile is None or network == networks.SAMPLE:
        samples.ensure(engine, network, settled.dataset, listener)
    found = estimates.estimate(engine, network, settled, profile)
    missing = [need for need in profile.needs if need.here is False or need.extra_missing] if profile else []
    if as_json:
        print_json(
            {
                "network": network, "dataset": settled.dataset, "stages": found.rows, "notes": found.notes,
                "about_seconds": found.about_seconds, "missing": [need.model for need in missing],
            }
        )  # fmt: skip
        return
    rows = [
        {
            **{key: row[key] for key in ("stage", "does", "to_compute", "of", "unit", "prompts")},
            "about": None if row["about_seconds"] is None else duration(row["about_seconds"]), "from": row["basis"],
        }
        for row in found.rows
    ]  # fmt: skip
    show_rows(rows, "table", title=f"dissecting {network} on {settled.dataset} would")
    out = console()
    unknown = [row["stage"] for row in found.rows if row["about_seconds"] is None and row["to_compute"]]
    out.print(
        f"\nin all about {duration(found.about_seconds)}"
        + (f", without {', '.join(unknown)}, of which nothing tells" if unknown else ""),
        markup=False,
    )
    for note in found.notes:
        out.print(f"note: {note}", markup=False)
    if missing:
        out.print("\nnot here yet", style="bold")
        for need in missing:
            out.print(f"  {need.part:<18}{need.model}\n  {'':<18}{need.get}", markup=False)
