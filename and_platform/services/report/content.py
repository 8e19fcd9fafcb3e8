"""What a report is made of, before it is HTML: sections of tables, figures, remarks and neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from and_platform.services.report.neurons import Story

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table: shown in the page, and written as CSV under its `name` with every column of every row."""

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Heading of each column to show, in order; empty: all columns, headed by their names."""
    shares: Sequence[str] = ()
    """Columns that hold shares of 1 and are shown in percent."""
    intervals: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Column -> the two that hold the ends of its interval, where these are not `x_low` and `x_high`."""
    searchable: bool = False
    published: bool = False
    """The rows are figures printed in the paper, of another network and data set."""
    folded: bool = False
    """Shown only when the reader opens it."""

    kind = "table"


@dataclass(frozen=True)
class Plot:
    """A figure: inline as SVG, and written as SVG and PNG under its `name`."""

    name: str
    title: str
    figure: Figure
    note: str = ""

    kind = "plot"


@dataclass(frozen=True)
class Text:
    """A remark; `caution` marks what a reader must know before taking the figures at their word."""

    text: str
    caution: bool = False

    kind = "text"


@dataclass(frozen=True)
class Commands:
    """Commands, to be copied."""

    title: str
    lines: Sequence[str]

    kind = "commands"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    rows: Sequence[tuple[str, str]]

    kind = "facts"


@dataclass(frozen=True)
class Missing:
    """Something is not there: why, and which command makes it."""

    text: str

    kind = "missing"


@dataclass(frozen=True)
class Outputs:
    """Table 6, with players."""

    rows: Sequence[Mapping[str, Any]]
    sounds: Mapping[str, Sequence[Mapping[str, Any]]]
    """Neuron -> its most active clips."""
    methods: Sequence[str]
    """Closed-set methods that were computed: tab, db, icl."""

    kind = "outputs"


@dataclass(frozen=True)
class Stories:
    """Figure 7 for some neurons."""

    stories: Sequence[Story]

    kind = "stories"


Block = Table | Plot | Text | Commands | Facts | Missing | Outputs | Stories


@dataclass(frozen=True)
class Section:
    """A section: what it shows and how that is computed."""

    key: str
    title: str
    paper: str
    """Tables and figures of the paper that it answers."""
    method: str
    """How it is computed, and where that differs from the paper."""
    blocks: Sequence[Block] = ()
    commands: Sequence[str] = ()
    """What prints the same in a terminal."""

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing to see."""
        return all(isinstance(block, Missing) for block in self.blocks)
