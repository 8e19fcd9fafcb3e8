"""Figures of reports that belong to no experiment: a dissection, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from and_platform.plots import evaluation, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@style.styled
def layers(rows: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """Points of the summaries by layer, kept and dropped by calibration, and the share of neurons with a description.

    Parameters
    ----------
    rows
        layer, neurons, described, points_kept, points_dropped, in order of computation.
    """
    figure, (points, described) = style.new(
        2, width=7.4, height=max(2.4, 0.26 * len(rows) + 1.1), sharey=True, width_ratios=[3, 2]
    )
    names = [row["layer"] for row in rows]
    places = range(len(rows))
    kept = [float(row["points_kept"] or 0) for row in rows]
    dropped = [float(row["points_dropped"] or 0) for row in rows]
    points.barh(places, kept, color=style.colour(0), height=0.68, label="kept")
    points.barh(places, dropped, left=kept, color=style.colour(1), height=0.68, label="dropped")
    points.set_yticks(places, names)
    points.invert_yaxis()
    points.set_title("Points per neuron", pad=20)
    points.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 0.995), borderaxespad=0, handlelength=1)
    points.grid(axis="y", visible=False)
    shares = [100 * (row["described"] or 0) / row["neurons"] if row["neurons"] else 0.0 for row in rows]
    described.hlines(places, 0, shares, color=style.QUIET, linewidth=1.2)
    described.plot(shares, places, "o", color=style.colour(0), markersize=5)
    described.set_xlim(0, 104)
    described.set_title("Neurons with a description", pad=20)
    described.xaxis.set_major_formatter("{x:.0f} %")
    described.grid(axis="y", visible=False)
    for axes in (points, described):
        axes.tick_params(axis="y", length=0)
    style.footer(figure, footer)
    return figure


@style.styled
def quality(rows: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """Mean average precision of descriptions by layer, several networks on shared axes, a panel for each description.

    Parameters
    ----------
    rows
        network, layer, block (None: the head), explanation, reference, mean_auprc, null_auprc; layers in order of computation.
    """
    panels = list(dict.fromkeys((row["explanation"], row["reference"]) for row in rows))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = style.new(columns, lines, width=4.2 * columns, height=0.9 + 2.5 * lines, sharey=True)
    for axis, (explanation, reference) in zip(axes, panels, strict=False):
        mine = [row for row in rows if (row["explanation"], row["reference"]) == (explanation, reference)]
        for index, network in enumerate(networks):
            told = [row for row in mine if row["network"] == network and row["mean_auprc"] is not None]
            # Networks differ in their number of layers: from the first at 0 to the last at 1.
            at = [place / max(1, len(told) - 1) for place in range(len(told))]
            axis.plot(
                at, [row["mean_auprc"] for row in told], "o-", color=style.colour(index), markersize=4, label=network
            )
            axis.plot(at, [row["null_auprc"] for row in told], ":", color=style.colour(index), linewidth=1.2)
        axis.set_title(evaluation.TITLES[explanation, reference])
        axis.set_ylim(0, 1.02)
        axis.set_xticks([0, 1], ["first layer", "last layer"])
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel("mean average precision")
    if axes:
        axes[0].legend()
    style.footer(figure, f"dotted: permuted activations · {footer}")
    return figure


@style.styled
def unlearning(rows: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """Table 4 of several networks on shared axes: dA, dR and gap by strategy, with their intervals.

    Parameters
    ----------
    rows
        network, chosen_by, and d_a, d_r and gap with `_low` and `_high`.
    """
    panels = (("d_a", "Target class: ΔA"), ("d_r", "Other classes: ΔR"), ("gap", "The gap: ΔR − ΔA"))
    strategies = list(dict.fromkeys(row["chosen_by"] for row in rows))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    height = 1.5 + len(strategies) * (0.3 + 0.16 * len(networks))
    figure, axes = style.new(len(panels), width=8.8, height=height, sharey=True)
    for axis, (key, title) in zip(axes, panels, strict=True):
        _rungs(axis, rows, strategies, networks, "chosen_by", key)
        axis.axvline(0, color=style.QUIET, linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("change of the mean logit")
    _name_rungs(figure, axes, strategies)
    style.footer(figure, footer)
    return figure


@style.styled
def last_layer(rows: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """Top-1 and top-5 of the last layer of several networks on shared axes, by method and function.

    Parameters
    ----------
    rows
        network, method, similarity, over, measure, value, low, high; those over all classes are drawn.
    """
    told = [
        {**row, "function": evaluation.function(row), "value_low": row["low"], "value_high": row["high"]}
        for row in rows
        if row["over"] == "all" and row["value"] is not None
    ]
    functions = list(dict.fromkeys(row["function"] for row in told))
    networks = list(dict.fromkeys(row["network"] for row in told))
    figure, axes = style.new(
        2, width=7.6, height=1.5 + len(functions) * (0.22 + 0.14 * len(networks)), sharey=True, sharex=True
    )
    for axis, measure in zip(axes, ("top_1", "top_5"), strict=True):
        mine = [row for row in told if row["measure"] == measure]
        _rungs(axis, mine, functions, networks, "function", "value")
        axis.set_title(f"Top-{measure[-1]}")
        axis.set_xlabel("share of classes")
        axis.set_xlim(-0.03, 1.03)
    _name_rungs(figure, axes, functions)
    style.footer(figure, footer)
    return figure


def _rungs(
    axis: Axes, rows: Sequence[Mapping[str, Any]], rungs: Sequence[str], networks: Sequence[str], by: str, key: str
) -> None:
    """A rung for each value of a column, on it each network's value with its interval."""
    for index, network in enumerate(networks):
        mine = [row for row in rows if row["network"] == network and row[key] is not None]
        at = [rungs.index(row[by]) + (index - (len(networks) - 1) / 2) * 0.7 / len(networks) for row in mine]
        for place, row in zip(at, mine, strict=True):
            if row[f"{key}_low"] is not None:
                axis.hlines(place, row[f"{key}_low"], row[f"{key}_high"], color=style.colour(index), linewidth=1.4)
        axis.plot([row[key] for row in mine], at, "o", color=style.colour(index), markersize=4.5, label=network)
    axis.grid(axis="y", visible=False)


def _name_rungs(figure: Figure, axes: Sequence[Axes], rungs: Sequence[str]) -> None:
    axes[0].set_yticks(range(len(rungs)), rungs)
    axes[0].set_ylim(len(rungs) - 0.45, -0.55)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
