"""Figures 6 and 11 to 14 and the pictures of Table 8, from the rows of `services.interpretability`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from and_platform.core.clustering import thresholds
from and_platform.errors import InputError
from and_platform.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

KINDS = {
    "attn_out": "attention output", "ff_in": "feed-forward, hidden", "ff_out": "feed-forward, output", "head": "head",
}  # fmt: skip
_MARKERS = "osD^vP*X"
_CLOUD = (640, 400)
_WORDS = 40
_FONT = "DejaVu Sans"


@style.styled
def blocks(rows: Sequence[Row], tau: int, k: int, footer: str, *, by_kind: bool = False) -> Figure:
    """Share of uninterpretable neurons by block, with Wilson 95 % intervals (Figure 6).

    Parameters
    ----------
    rows
        Of `services.interpretability.blocks`; those at (tau, k) are drawn.
    by_kind
        One panel per network with a line for each kind of layer, instead of one panel with a line for each network.

    Raises
    ------
    InputError
        There are no rows at (tau, k).
    """
    chosen = [row for row in rows if row["tau"] == tau and row["k"] == k]
    if not chosen:
        raise InputError(f"there is nothing at tau = {tau} and K = {k} to draw")
    networks = list(dict.fromkeys(row["network"] for row in chosen))
    if by_kind:
        figure, axes = style.new(len(networks), width=max(5.6, 3.4 * len(networks) + 0.8), height=3.7, sharey=True)
        for ax, network in zip(axes, networks, strict=True):
            _by_kind(ax, [row for row in chosen if row["network"] == network])
            ax.set_title(network)
    else:
        figure, axes = style.new(width=6.4, height=3.7)
        _by_network(axes[0], chosen, networks)
        axes[0].set_title(f"Fewer than {tau} of {k} exemplars share a cluster")
    for ax in axes:
        _blocks_axis(ax, chosen)
        ax.set_ylim(*_range(chosen, by_kind))
    _legend(figure, axes[0], columns=3 if len(networks) < 3 or not by_kind else 6)
    axes[0].set_ylabel(f"% uninterpretable (τ = {tau} of K = {k})")
    style.footer(figure, footer)
    return figure


@style.styled
def grid(rows: Sequence[Row], footer: str, *, by_kind: bool = False) -> Figure:
    """The same for each K of the rows (down) and tau = 60, 80 and 100 % of it (across): Figures 11 to 13.

    Parameters
    ----------
    by_kind
        Lines by kind of layer; for one network.

    Raises
    ------
    InputError
        There are no rows, or lines by kind are asked for of several networks.
    """
    if not rows:
        raise InputError("there are no neurons to draw")
    networks = list(dict.fromkeys(row["network"] for row in rows))
    if by_kind and len(networks) > 1:
        raise InputError("the grid by kind of layer is of one network; name one, or leave the kinds out")
    ks = sorted({row["k"] for row in rows})
    columns = max(len(thresholds(k)) for k in ks)
    figure, axes = style.new(
        columns, len(ks), width=2.9 * columns + 0.6, height=2.25 * len(ks) + 0.7, sharex=True, sharey=True
    )
    for index, k in enumerate(ks):
        row_of_axes = axes[index * columns : (index + 1) * columns]
        row_of_axes[0].set_ylabel("% uninterpretable")
        for ax in row_of_axes[len(thresholds(k)) :]:
            ax.set_visible(False)
        for ax, tau in zip(row_of_axes, thresholds(k), strict=False):
            chosen = [row for row in rows if row["k"] == k and row["tau"] == tau]
            _by_kind(ax, chosen) if by_kind else _by_network(ax, chosen, networks)
            ax.set_title(f"K = {k}, τ = {tau}")
            _blocks_axis(ax, chosen, named=index == len(ks) - 1)
    axes[0].set_ylim(*_range([row for row in rows if row["tau"] in thresholds(row["k"])], by_kind))
    _legend(figure, axes[0], columns=6)
    style.footer(figure, footer)
    return figure


@style.styled
def elbow(curve: Sequence[tuple[int, float]], chosen: int, footer: str) -> Figure:
    """Inertia by number of clusters, the chosen number marked.

    Raises
    ------
    InputError
        There is no curve: the number was given.
    """
    if not curve:
        raise InputError("the number of clusters was given, so there is no curve of inertia to draw")
    figure, (ax,) = style.new(width=5.6, height=3.4)
    ax.plot(
        [number for number, _ in curve], [inertia for _, inertia in curve], color=style.COLOURS[0], marker="o", ms=4
    )
    height = dict(curve)[chosen]
    ax.axvline(chosen, color=style.TARGET, linewidth=1, linestyle="--")
    ax.plot([chosen], [height], marker="o", ms=9, color=style.TARGET, linestyle="none")
    ax.annotate(
        f"{chosen} clusters", (chosen, height), xytext=(10, 12), textcoords="offset points", color=style.TARGET,
        fontweight="bold",
    )  # fmt: skip
    ax.set_ylim(0, None)
    ax.set_xlim(0, curve[-1][0] + 1)
    ax.set_xlabel("number of clusters")
    ax.set_ylabel("inertia (sum of squared distances)")
    ax.set_title("Elbow of k-means over the captions' sentences")
    style.footer(figure, footer)
    return figure


@style.styled
def clouds(rows: Sequence[Row], footer: str, *, columns: int = 3, seed: int = 0) -> Figure:
    """The words of each cluster, the larger the more frequent, with captions / sentences beside the number (Table 8).

    Parameters
    ----------
    rows
        Of `services.interpretability.words`.
    """
    if not rows:
        raise InputError("there are no clusters to draw")
    columns = min(columns, len(rows))
    lines = ceil(len(rows) / columns)
    figure, axes = style.new(columns, lines, width=3.1 * columns, height=2.25 * lines + 0.3)
    for ax in axes[len(rows) :]:
        ax.set_visible(False)
    for ax, row in zip(axes, rows, strict=False):
        ax.set_title(f"Cluster {row['cluster']}  ({row['n_captions']:,} / {row['n_sentences']:,})")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set(visible=True, color="#D5DADD")
        if row["words"]:
            ax.imshow(_cloud(row, seed).to_array(), interpolation="bilinear", aspect="equal")
        else:
            ax.set_facecolor("white")
            ax.text(0.5, 0.5, "stop words alone", transform=ax.transAxes, ha="center", va="center", color=style.QUIET)
    style.footer(figure, f"captions / sentences in brackets · {footer}")
    return figure


def cloud_svg(row: Row, *, seed: int = 0) -> str:
    """The cloud of one cluster as an SVG of its own, text as text; the same row gives the same file."""
    svg = str(_cloud(row, seed, scale=1.0).to_svg(embed_font=False))  # an embedded font holds the time of day
    return svg.replace(f"'{_FONT}'", f"'{_FONT}',Verdana,sans-serif")


def _cloud(row: Row, seed: int, scale: float = 1.6) -> Any:
    from matplotlib.font_manager import findfont
    from wordcloud import WordCloud

    colour = style.colour(row["cluster"] - 1)
    maker = WordCloud(
        font_path=findfont(_FONT),
        width=_CLOUD[0], height=_CLOUD[1], scale=scale, background_color="white", max_words=_WORDS, prefer_horizontal=0.95,
        margin=4, random_state=seed, max_font_size=120, color_func=lambda *_args, **_more: colour,
    )  # fmt: skip
    return maker.generate_from_frequencies(row["words"])


def _legend(figure: Figure, ax: Axes, columns: int) -> None:
    """Above the panels, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), columns))


def _range(rows: Sequence[Row], by_kind: bool) -> tuple[float, float]:
    """Percent that hold all intervals and the level of chance; never less than the tenth part of what there could be."""
    drawn = [row for row in rows if by_kind or row["layer_kind"] == "all"]
    top = max(10.0, *(105 * max(row["high"], row["chance"]) for row in drawn))
    return -0.03 * top, min(top, 103.0)


def _chance(ax: Axes, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    """What clips picked at random would give: one line where all networks share the clusters."""
    levels = {row["network"]: row["chance"] for row in rows}
    if len(set(levels.values())) == 1:
        levels, colours = {"": next(iter(levels.values()))}, {"": "#2B3338"}
    for network, level in levels.items():
        label = f"random clips, {network}" if network else "random clips"
        ax.axhline(100 * level, color=colours[network], linestyle=":", linewidth=1.3, label=label, zorder=0.5)


def _by_network(ax: Axes, rows: Sequence[Row], networks: Sequence[str]) -> None:
    places = _places(rows)
    for index, network in enumerate(networks):
        # Side by side, so that intervals do not hide each other.
        shift = (index - (len(networks) - 1) / 2) * 0.09
        members = [row for row in rows if row["network"] == network and row["layer_kind"] == "all"]
        _line(ax, members, places, network, style.colour(index), _MARKERS[index % len(_MARKERS)], shift)
    _chance(ax, rows, {network: style.colour(index) for index, network in enumerate(networks)})


def _by_kind(ax: Axes, rows: Sequence[Row]) -> None:
    places = _places(rows)
    kinds = list(dict.fromkeys(row["layer_kind"] for row in rows if row["layer_kind"] != "all"))
    whole = [row for row in rows if row["layer_kind"] == "all"]
    _line(ax, whole, places, "all of the block", style.QUIET, "", 0.0, linewidth=4, alpha=0.55)
    for index, kind in enumerate(sorted(kinds)):
        shift = (index - (len(kinds) - 1) / 2) * 0.09
        members = [row for row in rows if row["layer_kind"] == kind]
        _line(ax, members, places, KINDS.get(kind, kind), style.colour(index), _MARKERS[index % len(_MARKERS)], shift)
    _chance(ax, rows, {})


def _line(
    ax: Axes,
    rows: Sequence[Row],
    places: Mapping[Any, int],
    label: str,
    colour: str,
    marker: str,
    shift: float,
    **options: Any,
) -> None:
    x = [places[row["block"]] + shift for row in rows]
    y = [100 * row["share"] for row in rows]
    if marker:
        ends = style.whiskers(y, [100 * row["low"] for row in rows], [100 * row["high"] for row in rows])
        ax.errorbar(x, y, yerr=ends, color=colour, marker=marker, ms=5, capsize=2.5, elinewidth=1, label=label)
    else:
        ax.plot(x, y, color=colour, label=label, zorder=1, solid_capstyle="round", **options)


def _places(rows: Sequence[Row]) -> dict[Any, int]:
    """Where each block stands; layers outside blocks after the last."""
    found = {row["block"] for row in rows}
    numbers = sorted(block for block in found if block is not None)
    return {number: number for number in numbers} | ({None: (numbers or [-1])[-1] + 1} if None in found else {})


def _blocks_axis(ax: Axes, rows: Sequence[Row], *, named: bool = True) -> None:
    places = _places(rows)
    ax.set_xticks(list(places.values()), ["outside" if block is None else str(block) for block in places])
    ax.set_xlim(min(places.values()) - 0.4, max(places.values()) + 0.4)
    if named:
        ax.set_xlabel("block (the head counts with the last)")
