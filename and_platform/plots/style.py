"""How all figures look, what stands under them, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, wraps
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from and_platform import output_files
from and_platform.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

FORMATS = ("svg", "png", "pdf")

COLOURS = ("#2F6C8F", "#D1622B", "#4B8B3B", "#8A4F9E", "#B8912B", "#5B6770", "#B03A5B", "#3AA6A0")
"""For series, in order: told apart with the common colour vision deficiencies, and in print."""

TARGET = "#D1622B"
"""The one thing that a figure wants looked at."""

QUIET = "#9AA5AD"
"""Everything beside it."""

_NOT_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]")
"""Characters that a name may hold and an XML file, such as an SVG, may not."""

_BETWEEN = " · "
_FOOTER_CHARACTER = 0.052
"""Inches of a character under a figure, on average and a little more."""

_RC: Any = {  # matplotlib names its keys one by one in a type
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5B6770",
    "axes.labelcolor": "#2B3338",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E7EA",
    "grid.linewidth": 0.8,
    "xtick.color": "#5B6770",
    "ytick.color": "#5B6770",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # names of clips and classes may hold dollars
    "svg.fonttype": "none",  # text stays text: it can be searched and is small
    "svg.hashsalt": "and-platform",  # the same figure gives the same file
    "figure.dpi": 110,
    "savefig.dpi": 200,
}


@cache
def _parameters() -> Any:
    """The platform's style over matplotlib's own defaults: a matplotlibrc in the working folder changes no figure."""
    import matplotlib as mpl

    own = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")}
    return own | _RC


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the platform's style: matplotlib reads it when a title or a legend is made, not when the axes are."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(_parameters()):
            return draw(*args, **kwargs)

    return drawn


def new(
    columns: int = 1, rows: int = 1, *, width: float = 6.4, height: float = 3.6, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row. `width` and `height` in inches are of the whole figure.

    Made without pyplot: nothing is global, and no window opens. `options` go to `Figure.subplots` (`sharey` …).
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_parameters()):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def colour(index: int) -> str:
    """Colour of a series."""
    return COLOURS[index % len(COLOURS)]


def footer(figure: Figure, text: str) -> None:
    """Data set, network, recipe and n, small, under the figure; in as many lines as its width asks for."""
    longest = int(figure.get_figwidth() / _FOOTER_CHARACTER)
    lines: list[str] = []
    for line in text.splitlines():
        lines.append("")
        for part in line.split(_BETWEEN):
            joined = f"{lines[-1]}{_BETWEEN}{part}" if lines[-1] else part
            if lines[-1] and len(joined) > longest:
                lines.append(part)
            else:
                lines[-1] = joined
    figure.supxlabel("\n".join(lines), fontsize=7, color="#5B6770", x=0.995, ha="right")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as svg, png or pdf, by suffix; the folder is made, and a file that is there stays until this one is whole.

    Raises
    ------
    InputError
        Another suffix, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"'{path.name}' is no figure that can be written; end it with .{', .'.join(FORMATS)}")
    output_files.write(path, render(figure, kind))
    return path


def render(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure; without dates, so that the same figure gives the same bytes."""
    import matplotlib as mpl

    stream = BytesIO()
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    with mpl.rc_context(_parameters()):
        figure.savefig(stream, format=kind, metadata=dated)
    drawn = stream.getvalue()
    return _NOT_XML.sub(b"", drawn) if kind == "svg" else drawn


def shorten(names: Sequence[str], longest: int = 22) -> list[str]:
    """Names that fit an axis."""
    return [name if len(name) <= longest else name[: longest - 1] + "…" for name in names]


def whiskers(
    values: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None]
) -> tuple[list[float], list[float]]:
    """Return how far the ends of intervals lie below and above their values, as `errorbar` takes them: never negative.

    An interval without ends has no whiskers. An end on the wrong side of its value, by rounding, lies at it.
    """
    below = [0.0 if low is None else max(0.0, value - low) for value, low in zip(values, lows, strict=True)]
    above = [0.0 if high is None else max(0.0, high - value) for value, high in zip(values, highs, strict=True)]
    return below, above
