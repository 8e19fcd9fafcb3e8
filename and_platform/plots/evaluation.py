"""Figures of the evaluation: average precision of descriptions by layer; names of the last layer by function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from and_platform.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

TITLES = {
    ("best_label", "labels"): "Best label",
    ("closed_db", "labels"): "Concept by captions, against labels",
    ("closed_tab", "labels"): "Concept by sound, against labels",
    ("closed_icl", "labels"): "Concept by LLM, against labels",
    ("closed_db", "scores"): "Concept by captions, against its scores",
    ("closed_tab", "scores"): "Concept by sound, against its scores",
    ("summary", "scores"): "Calibrated summary, against captions",
}

_METHODS = {"db": "by captions (DB)", "tab": "by sound (TAB)", "icl": "by LLM (ICL)"}
_FUNCTIONS = {
    "cos": "cos",
    "cos_cubed": "cos cubed",
    "rank_reorder": "rank reorder",
    "wpmi": "WPMI",
    "soft_wpmi": "soft WPMI",
}


def function(row: Mapping[str, Any]) -> str:
    """What a method and its similarity function are called in figures; an LLM that is asked has no function."""
    method = _METHODS.get(row["method"], row["method"])
    return method if row["similarity"] == "llm" else f"{method}, {_FUNCTIONS.get(row['similarity'], row['similarity'])}"


@style.styled
def explanations(rows: Rows, footer: str) -> Figure:
    """Distribution of average precision by layer, a panel for each explanation and reference, with the level of chance.

    Parameters
    ----------
    rows
        Of `services.explanations.by_layer`: layer, explanation, reference, auprc (one value per neuron), null_auprc.
    footer
        Data set, network, recipe and n.
    """
    panels = [key for key in TITLES if any((r["explanation"], r["reference"]) == key and r["auprc"] for r in rows)]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    columns = min(2, max(1, len(panels)))
    lines = -(-max(1, len(panels)) // columns)
    width = max(4.2, 1.4 + 0.26 * len(layers)) * columns
    figure, axes = style.new(columns, lines, width=width, height=0.7 + 2.5 * lines, sharex=True, sharey=True)
    for axis, (place, key) in zip(axes, enumerate(panels), strict=False):
        mine = {r["layer"]: r for r in rows if (r["explanation"], r["reference"]) == key and r["auprc"]}
        at = [layers.index(name) for name in mine]
        axis.boxplot(
            [row["auprc"] for row in mine.values()], positions=at, widths=0.62, whis=(5, 95), showfliers=False,
            patch_artist=True, manage_ticks=False,
            boxprops={"facecolor": "#C9DBE5", "edgecolor": style.colour(0), "linewidth": 0.9},
            medianprops={"color": style.colour(0), "linewidth": 1.8},
            whiskerprops={"color": style.colour(0), "linewidth": 0.9},
            capprops={"color": style.colour(0), "linewidth": 0.9},
        )  # fmt: skip
        chance = [row["null_auprc"] for row in mine.values()]
        axis.hlines(
            chance, np.asarray(at) - 0.45, np.asarray(at) + 0.45, color=style.TARGET, linewidth=1.6,
            label="mean on permuted activations (of the best concept, where one was chosen)",
        )  # fmt: skip
        axis.set_title(TITLES[key])
        axis.set_ylim(-0.02, 1.02)
        axis.grid(visible=False, axis="x")
        if place % columns == 0:
            axis.set_ylabel("average precision")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(panels) - columns) : len(panels)]:
        axis.set_xticks(range(len(layers)), style.shorten(layers), rotation=60, ha="right")
        axis.tick_params(labelbottom=True)
    if panels:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left")
    style.footer(figure, f"box: quartiles, whiskers: 5 and 95 % of neurons · {footer}")
    return figure


@style.styled
def last_layer(rows: Rows, footer: str, *, over: str = "all", chance: float | None = None) -> Figure:
    """Top-1 share by method and function with its bootstrap interval; the function stated for a method is filled.

    Parameters
    ----------
    rows
        Of `LastLayerReport.rows`.
    chance
        Share that guessing reaches.
    """
    mine = [row for row in rows if row["over"] == over and row["measure"] == "top_1" and row["value"] is not None]
    figure, (axis,) = style.new(width=6.4, height=1.2 + 0.3 * max(1, len(mine)))
    methods = list(dict.fromkeys(row["method"] for row in mine))
    for place, row in enumerate(mine):
        colour = style.colour(methods.index(row["method"]))
        if row["low"] is not None:
            axis.hlines(place, row["low"], row["high"], color=colour, linewidth=1.6)
        axis.plot(
            row["value"], place, "o", markersize=6, color=colour, markerfacecolor=colour if row["speaks"] else "white"
        )
    if chance is not None:
        axis.axvline(chance, color=style.QUIET, linestyle="--", linewidth=1.2)
        axis.annotate(
            "guessing", (chance, 0), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color="#5B6770"
        )
    axis.set_yticks(range(len(mine)), [function(row) for row in mine])
    axis.set_ylim(len(mine) - 0.4, -0.6)
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("share of classes whose concept is first (filled: the function stated for the method)")
    axis.set_title("Do the concepts of the last layer name its classes?")
    axis.grid(visible=False, axis="y")
    style.footer(figure, footer)
    return figure
