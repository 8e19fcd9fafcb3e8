"""`andp features`: which acoustic features neurons stand for, and whether they matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import console, format_options, messages, plot_option, save_figure, show_rows
from and_platform.core import criteria as names
from and_platform.errors import NotFoundError
from and_platform.plots import features as plots
from and_platform.services import features, provenance

_DISSECTION = click.option("--dissection", type=int, help="A dissection; default: the network's current one.")


_PLOT = plot_option()


def _list_of(kind: Callable[[str], Any], name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Reads values separated by commas."""

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[Any] | None:
        if value is None:
            return None
        try:
            found = [kind(part.strip()) for part in value.split(",") if part.strip()]
        except ValueError as exc:
            raise click.BadParameter(f"'{value}' is no list of {name}, separated by commas") from exc
        if not found:
            raise click.BadParameter(f"is empty; give {name}, separated by commas")
        return found

    return read


def _seed(text: str) -> int:
    if (seed := int(text)) < 0:
        raise ValueError
    return seed


@click.group("features")
def command() -> None:
    """Words that describe neurons: how common, in which blocks, what they are worth, whether they are true."""


@command.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Adjectives of each network.")
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def adjectives(
    ctx: click.Context, networks: Sequence[str], top: int, dissection: int | None, plot: Path | None, output_format: str
) -> None:
    """Show the adjectives that most neurons have in C_open (paper, Figures 3 and 9).

    Of all layers dissected, the head too; only adjectives that the judge accepted. Several networks stand side by side.

    \b
    Examples:
      andp features adjectives sample-ast
      andp features adjectives net-a net-b --top 20 --plot adjectives.svg
    """
    rows = features.adjectives(db.connect(tell=bars(ctx).note), networks, top=top, dissection=dissection)
    shown = rows if output_format != "table" else _side_by_side(rows)
    show_rows(
        shown, output_format, empty="no neuron has an adjective in C_open", columns=("network", "rank", "adjective")
    )
    _draw(plot, lambda: plots.adjectives(rows))


@command.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def blocks(
    ctx: click.Context, networks: Sequence[str], dissection: int | None, plot: Path | None, output_format: str
) -> None:
    """Count adjectives per neuron by block, and fit a line (paper, Figure 5).

    Mean number of distinct accepted adjectives with its 95 % interval (Student's t), and ordinary least squares over
    neurons: slope with 95 % interval and p. The head counts with the last block, as in the paper. Neurons of one block are
    not independent (they share exemplars, captions and weights before them), so the intervals are too narrow and p too
    small; a slope that they leave open is open, one that they do not is not thereby settled.

    \b
    Examples:
      andp features blocks sample-ast
      andp features blocks supervised finetuned frozen --plot blocks.png
    """
    rows, fits = features.blocks(db.connect(tell=bars(ctx).note), networks, dissection=dissection)
    if output_format == "table":
        show_rows(
            _columns(rows, "network", "block", "n_neurons", "mean", "low", "high", "sd", "fitted"), "table",
            title="adjectives per neuron, mean with 95 % interval",
        )  # fmt: skip
        console().print()
        show_rows(
            _columns(fits, "network", "n_neurons", "n_blocks", "slope", "slope_low", "slope_high", "p", "intercept", "r"),
            "table", title="line over neurons: adjectives per block, with 95 % interval",
        )  # fmt: skip
    elif output_format == "json":
        show_rows([{"blocks": rows, "fits": fits}], "json")
    else:
        show_rows(rows, "csv")
    _draw(plot, lambda: plots.blocks(rows, fits))


@command.command()
@click.argument("network")
@click.option(
    "--shares", callback=_list_of(float, "numbers"), default=",".join(f"{share:g}" for share in features.SHARES),
    metavar="LIST", show_default=True, help="Percent of all hidden neurons.",
)  # fmt: skip
@click.option(
    "--seeds", callback=_list_of(_seed, "whole numbers from 0 up"), default=",".join(map(str, features.SEEDS)),
    metavar="LIST", show_default=True, help="Break ties and draw at random.",
)  # fmt: skip
@click.option(
    "--criteria", callback=_list_of(str, "names"), metavar="LIST",
    help=f"Of {', '.join(names.NAMES)}, adjective:WORD.  [default: all]",
)  # fmt: skip
@click.option(
    "--basic", callback=_list_of(str, "words"), metavar="LIST",
    help="The basic adjectives.  [default: ANDP_BASIC_ADJECTIVES, or the paper's four]",
)  # fmt: skip
@click.option("--fold", type=int, help="Evaluate on this fold; default: the one the network was not trained on.")
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def ablate(
    ctx: click.Context,
    network: str,
    shares: list[float],
    seeds: list[int],
    criteria: list[str] | None,
    basic: list[str] | None,
    fold: int | None,
    dissection: int | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Measure accuracy on held-out clips after ablating the neurons with most of a feature (paper, Figure 4).

    Criteria: number of distinct nouns, adjectives, verbs, prepositions; length of the calibrated summary in words; number
    of basic adjectives, or of all others (high_level); each basic adjective by itself (single); random. Neurons with equal
    counts are taken at random by seed. For a single adjective the neurons are ablated that have it in C_open: a random
    draw where they are more than the share, all of them where they are fewer (the actual share is shown). The head is never
    ablated. The table shows mean and range over seeds; JSON and CSV have every seed. Kept: what was measured before is
    not measured again, and a run that was stopped goes on.

    \b
    Examples:
      andp features ablate sample-ast --plot ablation.svg
      andp features ablate sample-ast --shares 5,10,20 --criteria adjectives,random
      andp features ablate sample-ast --criteria single,random --basic loud,quiet,low-pitched
    """
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    told = {"network": network, "shares": list(shares), "seeds": list(seeds), "criteria": criteria, "basic": basic,
            "fold": fold, "dissection": dissection}  # fmt: skip
    with provenance.run(engine, "features ablate", {k: v for k, v in told.items() if v is not None}) as run:
        rows = features.ablate(
            engine, network, shares=shares, seeds=seeds, criteria=criteria, basic=basic, dissection=dissection, fold=fold,
            progress=listener,
        )  # fmt: skip
        run.dissection_id = rows[0]["dissection"]
        run.counts = {"ablations": len(rows)}
    if output_format == "table":
        first = rows[0]
        show_rows(
            [_of_seeds(row) for row in names.over_seeds(rows)], "table",
            title=f"{network}: {first['accuracy_before']:.1%} of {first['n_clips']} held-out clips right when intact; "
            f"shares of {first['hidden_neurons']:,} hidden neurons",
        )  # fmt: skip
    else:
        show_rows(rows, output_format)
    _draw(plot, lambda: plots.ablation(rows))


@command.command()
@click.argument("network")
@click.option(
    "--word", "words", multiple=True, metavar="WORD",
    help="A word of C_open; may be given several times.  [default: loud and high-pitched]",
)  # fmt: skip
@click.option(
    "--measure", type=click.Choice(list(features.MEASURES)),
    help="amplitude: mean absolute amplitude; mdf: median frequency. Default: amplitude for loud, mdf for high-pitched, "
    "both for others.",
)  # fmt: skip
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def acoustics(
    ctx: click.Context, network: str, words: Sequence[str], measure: str | None, dissection: int | None,
    plot: Path | None, output_format: str,
) -> None:  # fmt: skip
    """Compare the exemplars of neurons with and without a word, as measured (paper, Figure 8).

    A neuron's value is the mean over its K high exemplars. Shown: medians and means; Mann-Whitney U with its p and the
    rank-biserial correlation; Welch's t with df and p; Hedges' g with 95 % interval. Effects above 0: larger with the word.
    Neurons share exemplars and are not independent, so p is too small: read the effects. Where captions were made from
    acoustic measurements, words and measurements agree by construction; the command says so.

    \b
    Examples:
      andp features acoustics sample-ast
      andp features acoustics sample-ast --word quiet --word deep --measure amplitude --plot acoustics.png
    """
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    with provenance.run(
        engine, "features acoustics", {"network": network, "words": list(words), "measure": measure}
    ) as run:
        results, absent = [], list[NotFoundError]()
        for word in dict.fromkeys(words or features.DEFAULT_WORDS):
            try:
                for each in features.measures_of(word, measure):
                    results.append(features.acoustics(engine, network, word, each, dissection=dissection))
            except NotFoundError as exc:
                if words:
                    raise
                absent.append(exc)
        if not results:
            raise absent[0]
        for missing in absent:  # one of the paper's two words is there
            listener.note(str(missing))
        run.dissection_id = results[0]["dissection"]
    if output_format == "json":
        show_rows(results, "json")
    elif output_format == "csv":
        show_rows([{k: v for k, v in result.items() if k != "values"} for result in results], "csv")
    else:
        for result in results:
            _print_comparison(result)
    for caution in dict.fromkeys(result["caution"] for result in results if result["caution"]):
        messages().print(f"caution: {caution}", markup=False)
    _draw(plot, lambda: plots.acoustics(results))


def _print_comparison(result: Mapping[str, Any]) -> None:
    out = console()
    out.print(
        f"'{result['word']}' in C_open: {result['unit']}, mean of {result['k']} exemplars", style="bold", markup=False
    )
    show_rows(
        [{"neurons": name, **{key: result[f"{key}_{name}"] for key in ("n", "median", "mean")}}
         for name in ("with", "without")],
        "table",
    )  # fmt: skip
    lines = [
        f"rank-biserial r = {result['rank_biserial']:+.3f}; Mann-Whitney U = {result['u']:,.0f}, p {_p(result['p_mann_whitney'])}"
    ]
    if result["hedges_g"] is not None:
        lines.append(
            f"Hedges' g = {result['hedges_g']:+.3f} [{result['g_low']:+.3f}, {result['g_high']:+.3f}]; "
            f"Welch t = {result['t']:.2f}, df = {result['df']:.0f}, p {_p(result['p_welch'])}"
        )
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    out.print()


def _p(value: float) -> str:
    return "< 1e-300" if value < 1e-300 else f"= {value:.3g}"


def _side_by_side(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per rank, the networks beside each other."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    found: dict[int, dict[str, Any]] = {}
    for rank in sorted({row["rank"] for row in rows}):
        found[rank] = {"rank": rank}
        for network in networks:
            row = next((row for row in rows if row["network"] == network and row["rank"] == rank), None)
            found[rank] |= {
                network: row["adjective"] if row else None,
                f"{network} neurons" if len(networks) > 1 else "neurons": row["n_neurons"] if row else None,
                f"{network} share" if len(networks) > 1 else "share": f"{row['share']:.1%}" if row else None,
            }
    return list(found.values())


def _of_seeds(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table of `ablate`."""
    against = row["against_random"]
    return {
        "chosen by": names.label(row["criterion"]), "share %": row["share"], "actual %": round(row["actual_share"], 2),
        "neurons": round(row["n_neurons"]), "seeds": row["seeds"], "accuracy": f"{row['accuracy']:.1%}",
        "range": f"{row['low']:.1%} to {row['high']:.1%}",
        "change": f"{100 * (row['accuracy'] - row['accuracy_before']):+.1f}",
        "less random's": f"{100 * against:+.1f}" if against is not None else None,
    }  # fmt: skip


def _columns(rows: Sequence[Mapping[str, Any]], *wanted: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in wanted} for row in rows]


def _draw(path: Path | None, make: Callable[[], Any]) -> None:
    if path is not None:
        save_figure(make(), path)
