"""Figure 10, Table 4 and sweeps, from the rows of `services.unlearning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from and_platform.errors import InputError
from and_platform.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

MEASURES = {"probability": "mean probability of the true class", "logit": "mean logit of the true class",
            "accuracy": "share of clips classified right"}  # fmt: skip

_NAMES = {"random": "random", "random_matched": "random, matched by layer", "closed_tab": "closed set, TAB",
          "closed_db": "closed set, DB", "closed_icl": "closed set, ICL", "meaning": "by meaning",
          "open": "open concepts"}  # fmt: skip
_ONE = {"classes": "class", "target classes": "target class", "points": "point"}
_INK, _MUTED = "#2B3338", "#5B6770"


def name(strategy: str) -> str:
    """What a strategy is called in figures."""
    return _NAMES.get(strategy, strategy)


def ordered(rows: Sequence[Row], measure: str) -> list[Row]:
    """Classes as Figure 10 shows them: the target first, then by how much each lost; those without clips are left out."""
    there = [row for row in rows if row[f"{measure}_before"] is not None]
    return sorted(
        there,
        key=lambda row: (not row["is_target"], row[f"{measure}_after"] - row[f"{measure}_before"], row["class"]),
    )


@style.styled
def figure10(rows: Sequence[Row], measure: str = "probability") -> Figure:
    """Confidence by class before and after an ablation, the target on top and marked.

    Parameters
    ----------
    rows
        Of `tables.classes`: one ablation.
    measure
        probability, logit or accuracy.

    Raises
    ------
    InputError
        Another measure.
    """
    if measure not in MEASURES:
        raise InputError(f"there is no measure '{measure}'; choose from: {', '.join(MEASURES)}")
    shown = ordered(rows, measure)
    first = rows[0]
    figure, (ax,) = style.new(width=6.6, height=1.45 + 0.215 * len(shown))
    for place, row in enumerate(shown):
        colour = style.TARGET if row["is_target"] else style.COLOURS[0]
        before, after = row[f"{measure}_before"], row[f"{measure}_after"]
        ax.plot(
            [before, after], [place, place], color=colour, linewidth=2.4, alpha=0.45, solid_capstyle="round", zorder=2
        )
        ax.plot(before, place, "o", markersize=6, markerfacecolor="white", markeredgecolor=colour, zorder=3)
        ax.plot(after, place, "o", markersize=6, color=colour, zorder=4)
    ax.set_yticks(range(len(shown)), style.shorten([row["class"] for row in shown]))
    for tick, row in zip(ax.get_yticklabels(), shown, strict=True):
        if row["is_target"]:
            tick.set_color(style.TARGET)
            tick.set_fontweight("bold")
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    if measure != "logit":
        ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(MEASURES[measure])
    handles = [
        ax.plot([], [], "o", markersize=6, markerfacecolor="white", markeredgecolor=_INK, label="before")[0],
        ax.plot([], [], "o", markersize=6, color=_INK, label="after")[0],
    ]
    if any(row["is_target"] for row in shown):
        handles.append(ax.plot([], [], "s", markersize=6, color=style.TARGET, label="target class")[0])
    told = f"“{first['concept'] or 'no concept'}” ablated: {first['n_neurons']:,} neurons, {name(first['strategy'])}"
    _heading(figure, told, handles)
    _footer(figure, first, "classes", len(shown))
    return figure


@style.styled
def table4(rows: Sequence[Row]) -> Figure:
    """Table 4 as a figure: what the target and the others lose by strategy, and the gap, with 95 % intervals."""
    shown = list(rows)
    figure, (left, right) = style.new(2, width=8.4, height=1.7 + 0.42 * len(shown), sharey=True)
    places = range(len(shown))
    for change, offset, colour, told in (
        ("d_a", -0.17, style.TARGET, "target class (ΔA)"), ("d_r", 0.17, style.QUIET, "other classes (ΔR)"),
    ):  # fmt: skip
        at = [place + offset for place in places]
        left.barh(at, [row[change] for row in shown], height=0.32, color=colour, label=told)
        _whiskers(left, shown, change, at)
    left.axvline(0, color=_MUTED, linewidth=0.8)
    left.set_xlabel("change of the mean logit of the true class")
    left.set_title("What is lost")
    _heading(figure, "Each class unlearned in turn: means over classes", left.get_legend_handles_labels()[0])
    right.barh(places, [row["gap"] for row in shown], height=0.5, color=style.COLOURS[0])
    _whiskers(right, shown, "gap", list(places))
    right.axvline(0, color=_MUTED, linewidth=0.8)
    right.set_xlabel("ΔR − ΔA: how much further the target falls")
    right.set_title("The gap")
    left.set_yticks(places, [f"{name(row['strategy'])}\n{row['neurons']:,.0f} neurons" for row in shown])
    left.set_ylim(len(shown) - 0.5, -0.5)
    for ax in (left, right):
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=5)
    intervals = any(row[f"{change}_low"] is not None for row in shown for change in ("d_a", "d_r", "gap"))
    _footer(
        figure, shown[0], "target classes", max(row["targets"] for row in shown),
        "bars: 95 % bootstrap intervals" if intervals else "",
    )  # fmt: skip
    return figure


@style.styled
def sweep(rows: Sequence[Row]) -> Figure:
    """Number of ablated neurons against ΔA, ΔR and the gap, beside the range of random draws from the same layers.

    One target: three panels along the number of neurons. Several: each target's whole plan beside its draws.

    Parameters
    ----------
    rows
        Of `sweep.rows`.
    """
    rows = [row for row in rows if row["draws"]]  # a sweep that was stopped
    if not rows:
        raise InputError("there are no random draws to compare with yet; run the sweep again, it goes on")
    if len({row["concept"] for row in rows}) > 1:
        return _margins(rows)
    first = rows[0]
    changes = [("d_a", "Target class: ΔA"), ("d_r", "Other classes: ΔR"), ("gap", "The gap: ΔR − ΔA")]
    shown = [pair for pair in changes if any(row[pair[0]] is not None for row in rows)]
    figure, axes = style.new(len(shown), width=max(5.2, 3.1 * len(shown) + 0.8), height=3.5)
    x = [row["n_neurons"] for row in rows]
    for ax, (change, title) in zip(axes, shown, strict=True):
        ax.fill_between(
            x, [row[f"draws_{change}_low"] for row in rows], [row[f"draws_{change}_high"] for row in rows],
            color=style.QUIET, alpha=0.4, linewidth=0, label=f"95 % of {min(row['draws'] for row in rows)} random draws",
        )  # fmt: skip
        ax.plot(
            x, [row[f"draws_{change}"] for row in rows], color=_MUTED, linestyle="--", linewidth=1.3, label="their mean"
        )
        ax.plot(x, [row[change] for row in rows], "o-", color=style.TARGET, markersize=4, label=name(first["strategy"]))
        if len(x) == 1:  # a band needs a width
            low, high = rows[0][f"draws_{change}_low"], rows[0][f"draws_{change}_high"]
            ax.plot([x[0], x[0]], [low, high], color=style.QUIET, linewidth=6, alpha=0.5, zorder=1)
        ax.axhline(0, color=_MUTED, linewidth=0.8)
        ax.set_title(title)
        ax.set_xlabel("neurons ablated")
        ax.set_xlim(0, 1.05 * max(x))
    axes[0].set_ylabel("change of the mean logit")
    _heading(
        figure, f"“{first['concept']}” unlearned with more and more neurons", axes[0].get_legend_handles_labels()[0]
    )
    _footer(figure, first, "points", len(rows))
    return figure


def _margins(rows: Sequence[Row]) -> Figure:
    """The gap of each target's whole plan beside the range of its random draws, the largest margin on top."""
    whole = sorted(
        (row for row in rows if row["whole_plan"] and row["gap"] is not None), key=lambda row: -row["margin"]
    )
    if not whole:
        raise InputError("no whole plan has been measured beside its draws yet; run the same sweep to its end")
    figure, (ax,) = style.new(width=6.6, height=1.6 + 0.235 * len(whole))
    for place, row in enumerate(whole):
        above = row["gap"] > row["draws_gap_high"]
        ax.plot(
            [row["draws_gap_low"], row["draws_gap_high"]], [place, place], color=style.QUIET, linewidth=6, alpha=0.55,
            solid_capstyle="butt", zorder=2,
        )  # fmt: skip
        ax.plot(row["draws_gap"], place, "|", color=_MUTED, markersize=8, zorder=3)
        ax.plot(
            row["gap"], place, "o", markersize=6, zorder=4, markeredgecolor=style.TARGET,
            markerfacecolor=style.TARGET if above else "white",
        )  # fmt: skip
    ax.axvline(0, color=_MUTED, linewidth=0.8)
    ax.set_yticks(
        range(len(whole)),
        [
            f"{label} · {row['n_neurons']:,}"
            for label, row in zip(style.shorten([r["concept"] for r in whole]), whole, strict=True)
        ],
    )
    ax.set_ylim(len(whole) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("ΔR − ΔA: how much further the target falls (neurons ablated beside the name)")
    draws = min(row["draws"] for row in whole)
    handles = [
        ax.plot([], [], "o", color=style.TARGET, markersize=6, label=name(whole[0]["strategy"]))[0],
        ax.plot([], [], "o", markerfacecolor="white", markeredgecolor=style.TARGET, markersize=6,
                label="the same, not above the draws")[0],
        ax.plot([], [], color=style.QUIET, linewidth=6, alpha=0.55, label=f"95 % of {draws} random draws, their mean")[0],
    ]  # fmt: skip
    _heading(figure, "Each class unlearned, beside random draws from the same layers", handles)
    _footer(figure, whole[0], "target classes", len(whole))
    return figure


def _heading(figure: Figure, text: str, handles: Sequence[Any], columns: int = 3) -> None:
    """Title and legend above all panels."""
    figure.legend(
        handles=list(handles), title=text, loc="outside upper left", alignment="left", ncols=columns, handletextpad=0.5,
        columnspacing=1.4, borderpad=0.1, borderaxespad=0.2, title_fontproperties={"weight": "bold", "size": 10.5},
    )  # fmt: skip


def _whiskers(ax: Axes, rows: Sequence[Row], change: str, at: Sequence[float]) -> None:
    there = [(place, row) for place, row in zip(at, rows, strict=True) if row[f"{change}_low"] is not None]
    if there:
        ax.errorbar(
            [row[change] for _, row in there], [place for place, _ in there],
            xerr=style.whiskers(*([row[key] for _, row in there] for key in (change, f"{change}_low", f"{change}_high"))),
            fmt="none", ecolor=_INK, elinewidth=1.1, capsize=2.5,
        )  # fmt: skip


def _footer(figure: Figure, row: Row, of: str, n: int, more: str = "") -> None:
    clips = f"{row['held_out_clips']:,} held-out clips, {n:,} {_ONE.get(of, of) if n == 1 else of}"
    style.footer(
        figure,
        f"{row['dataset']} · {row['network']} · recipe {row['recipe']} · n = {clips}" + (f" · {more}" if more else ""),
    )
