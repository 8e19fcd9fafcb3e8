"""People's ratings of descriptions (Table 3, as a figure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from and_platform.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "closed_db": "concept by captions (DB)",
    "closed_tab": "concept by sound (TAB)",
    "closed_icl": "concept by LLM (ICL)",
    "summary": "calibrated summary",
}

STEPS = ("strongly disagree", "disagree", "neither", "agree", "strongly agree")

_COLOURS = ("#B5562A", "#E3AE8F", "#DDE1E4", "#93B8CC", "#2F6C8F")
"""From disagreement over grey to agreement: told apart with the common colour vision deficiencies."""


@style.styled
def ratings(rows: Sequence[Mapping[str, Any]], footer: str) -> Figure:
    """Share of each step, and the mean with its interval, by method.

    Parameters
    ----------
    rows
        `method`, `counts` (of the steps 1 to 5), `rating`, `low`, `high` and `n_ratings`; those without ratings are left
        out.
    footer
        Data set, network, recipe and n.
    """
    shown = [row for row in rows if row["n_ratings"]]
    figure, (shares, means) = style.new(
        2, width=8.2, height=1.75 + 0.55 * max(1, len(shown)), sharey=True, gridspec_kw={"width_ratios": [1.7, 1]}
    )
    places = range(len(shown))
    for step, name in enumerate(STEPS):
        values = [row["counts"][step] / sum(row["counts"]) * 100 for row in shown]
        starts = [sum(row["counts"][:step]) / sum(row["counts"]) * 100 for row in shown]
        shares.barh(places, values, left=starts, height=0.62, color=_COLOURS[step], label=f"{step + 1} {name}")
        for place, value, start in zip(places, values, starts, strict=True):
            if value >= 7:
                shares.text(
                    start + value / 2, place, f"{value:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if step in (0, 4) else "#2B3338",
                )  # fmt: skip
    shares.set(xlabel="share of ratings, percent", xlim=(0, 100), yticks=list(places))
    shares.set_yticklabels([NAMES.get(row["method"], row["method"]) for row in shown])
    shares.invert_yaxis()
    shares.grid(axis="y", visible=False)
    for place, row in zip(places, shown, strict=True):
        if row["low"] is not None:
            means.plot([row["low"], row["high"]], [place, place], color=style.COLOURS[0], solid_capstyle="butt")
        means.plot(row["rating"], place, "o", color=style.COLOURS[0], markersize=6)
        means.annotate(
            f"{row['rating']:.2f}", (row["rating"], place), (0, 8), textcoords="offset points", ha="center", fontsize=8
        )
    means.set(xlabel="rating, mean over neurons", xlim=(0.8, 5.2), xticks=range(1, 6))
    means.grid(axis="y", visible=False)
    means.tick_params(axis="y", length=0)
    for axis, title in ((shares, "Ratings"), (means, "Mean, 95 % interval")):
        axis.set_title(title)
    handles, labels = shares.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=1, columnspacing=1.2, fontsize=8)
    style.footer(figure, footer)
    return figure
