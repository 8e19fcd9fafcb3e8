"""Figures 3, 4, 5, 8 and 9 of the paper, from the rows of `services.features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from and_platform.core import criteria as names
from and_platform.errors import InputError
from and_platform.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

_BINS = 40
_PANELS = (
    ("(a) parts of speech, length", names.WORDS),
    ("(b) basic and high-level adjectives", names.GROUPS),
)
_MARKERS = "osD^vP*X"


@style.styled
def adjectives(rows: Sequence[Row]) -> Figure:
    """Share of neurons that have each adjective, one panel per network (Figures 3 and 9).

    Raises
    ------
    InputError
        There are no rows.
    """
    if not rows:
        raise InputError("no neuron has an adjective in C_open, so there is nothing to draw")
    networks = _by_network(rows)
    longest = max(len(members) for members in networks.values())
    figure, axes = style.new(
        len(networks), width=max(5.2, 3.6 * len(networks) + 1.0), height=1.15 + 0.24 * longest, sharex=True
    )
    for index, (ax, (network, members)) in enumerate(zip(axes, networks.items(), strict=True)):
        shares = [100 * row["share"] for row in members]
        bars = ax.barh(range(len(members)), shares, color=style.colour(index), height=0.72)
        ax.bar_label(bars, [f"{row['n_neurons']:,}" for row in members], padding=3, fontsize=7.5, color="#5B6770")
        ax.set_yticks(range(len(members)), style.shorten([row["adjective"] for row in members]))
        ax.set_ylim(longest - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set_title(network)
        ax.set_xlabel("% of neurons, with their number")
    axes[0].set_xlim(0, 112 * max(row["share"] for row in rows))
    _footer(figure, rows, " + ".join(f"{members[0]['of_neurons']:,}" for members in networks.values()) + " neurons")
    return figure


@style.styled
def blocks(rows: Sequence[Row], fits: Sequence[Row]) -> Figure:
    """Mean number of adjectives per neuron by block with 95 % intervals and the fitted lines (Figure 5)."""
    figure, (ax,) = style.new(width=6.4, height=3.9)
    fitted = {row["network"]: row for row in fits}
    for index, (network, members) in enumerate(_by_network(rows).items()):
        colour = style.colour(index)
        x = [row["block"] for row in members]
        means = [row["mean"] for row in members]
        ends = style.whiskers(means, [row["low"] for row in members], [row["high"] for row in members])
        fit = fitted[network]
        told = network
        if fit["slope"] is not None:
            told += f": {fit['slope']:+.3f} a block [{fit['slope_low']:+.3f}, {fit['slope_high']:+.3f}]"
            ax.plot(x, [row["fitted"] for row in members], color=colour, linestyle="--", linewidth=1.3)
            ax.fill_between(
                x, [row["fitted_low"] for row in members], [row["fitted_high"] for row in members],
                color=colour, alpha=0.13, linewidth=0,
            )  # fmt: skip
        ax.errorbar(x, means, yerr=ends, fmt=_MARKERS[index % len(_MARKERS)], color=colour, capsize=3, label=told)
    numbers = sorted({row["block"] for row in rows})
    ax.set_xticks(numbers, [str(number) for number in numbers])
    ax.set_xlim(numbers[0] - 0.4, numbers[-1] + 0.4)
    ax.set_xlabel("block (the head counts with the last)")
    ax.set_ylabel("adjectives per neuron")
    ax.set_title("Adjectives per neuron by block, with 95 % intervals")
    ax.margins(y=0.12)
    _legend(ax, columns=1)
    _footer(figure, rows, " + ".join(f"{fit['n_neurons']:,}" for fit in fits) + " neurons")
    return figure


@style.styled
def ablation(rows: Sequence[Row]) -> Figure:
    """Accuracy against the share of neurons ablated: mean and range over seeds, in the paper's panels (Figure 4).

    The share is the actual one: a single adjective that fewer neurons have ends where they are all ablated.
    """
    means = names.over_seeds(rows)
    panels = [(title, [row for row in means if row["criterion"] in members]) for title, members in _PANELS]
    panels.append(("(c) single adjectives", [row for row in means if names.adjective(row["criterion"])]))
    chance = [row for row in means if row["criterion"] == names.RANDOM]
    shown = [panel for panel in panels if panel[1]] or [("random", [])]
    figure, axes = style.new(len(shown), width=max(5.2, 3.9 * len(shown)), height=4.1, sharey=True)
    for ax, (title, members) in zip(axes, shown, strict=True):
        ax.axhline(100 * means[0]["accuracy_before"], color=style.QUIET, linestyle=":", linewidth=1.4, label="intact")
        _curve(ax, chance, "random", "#5B6770", "o", linestyle="--")
        series = [list(group) for _, group in groupby(members, key=lambda row: row["criterion"])]
        for index, several in enumerate(series):
            name = names.label(several[0]["criterion"])
            if not any(row["n_neurons"] for row in several):
                name += " (in none)"
            _curve(ax, several, name, style.colour(index), _MARKERS[(index + 1) % len(_MARKERS)])
        ax.set_title(title)
        ax.set_xlabel("% of hidden neurons ablated")
        _legend(ax)
        ax.set_xlim(left=0)
    axes[0].set_ylabel("accuracy on held-out clips, %")
    first = rows[0]
    seeds = max(row["seeds"] for row in means)
    _footer(
        figure, rows,
        f"{first['n_clips']:,} held-out clips (one: {100 / first['n_clips']:.1f} %), {first['hidden_neurons']:,} hidden "
        f"neurons, {seeds} seed{'s' if seeds > 1 else ''} (bands: their range)",
    )  # fmt: skip
    return figure


@style.styled
def acoustics(results: Sequence[Row] | Row) -> Figure:
    """How exemplars of neurons with and without a word sound, as densities with medians (Figure 8)."""
    import numpy as np

    several = [results] if isinstance(results, Mapping) else list(results)
    figure, axes = style.new(len(several), width=max(5.6, 4.6 * len(several)), height=4.0)
    for ax, result in zip(axes, several, strict=True):
        groups = result["values"]
        edges = np.histogram_bin_edges([*groups["with"], *groups["without"]], _BINS).tolist()
        for name, colour in (("without", style.QUIET), ("with", style.TARGET)):
            n, median = result[f"n_{name}"], result[f"median_{name}"]
            ax.hist(
                groups[name], edges, weights=[100 / n] * n, histtype="stepfilled", color=colour, alpha=0.45,
                edgecolor=colour, linewidth=1.2, label=f"{n:,} neurons {name} it, median {_number(median)}",
            )  # fmt: skip
            ax.axvline(median, color=colour, linestyle="--", linewidth=1.4)
        ax.set_xlabel(f"{result['unit']}, mean of {result['k']} exemplars")
        ax.set_ylabel("% of the group's neurons")
        ax.set_title(f"“{result['word']}”")
        effect = f"rank-biserial r = {result['rank_biserial']:+.2f}"
        if result["hedges_g"] is not None:
            effect += f"; Hedges' g = {result['hedges_g']:+.2f} [{result['g_low']:+.2f}, {result['g_high']:+.2f}]"
        _legend(ax, columns=1, title=effect)
    n = " + ".join(dict.fromkeys(f"{result['n_with'] + result['n_without']:,}" for result in several))
    cautions = [f"\n{caution}" for caution in dict.fromkeys(result["caution"] for result in several) if caution]
    _footer(figure, several, f"{n} neurons" + "".join(cautions))
    return figure


def _legend(ax: Axes, columns: int = 2, title: str | None = None) -> None:
    """Below the axes, where it hides nothing."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, title=title)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _curve(ax: Axes, members: Sequence[Row], name: str, colour: str, marker: str, **line: Any) -> None:
    if not members:
        return
    x = [row["actual_share"] for row in members]
    ax.plot(
        x, [100 * row["accuracy"] for row in members], color=colour, marker=marker, markersize=4, label=name, **line
    )
    ax.fill_between(
        x, [100 * row["low"] for row in members], [100 * row["high"] for row in members],
        color=colour, alpha=0.12, linewidth=0,
    )  # fmt: skip


def _by_network(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["network"], []).append(row)
    return found


def _footer(figure: Figure, rows: Sequence[Row], n: str) -> None:
    """Data sets, networks and recipes of the rows, each once, and n."""
    told = {key: list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("dataset", "network", "recipe")}
    recipes = f"recipe{'s' if len(told['recipe']) > 1 else ''} {', '.join(told['recipe'])}"
    style.footer(figure, f"{', '.join(told['dataset'])} · {', '.join(told['network'])} · {recipes} · n = {n}")
