"""How commands show things: tables for people, JSON or CSV for machines, progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pgvector import HalfVector, SparseVector, Vector
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from and_platform.escaping import csv_writer, for_json_on_terminal, for_spreadsheet, for_terminal
from and_platform.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = ("table", "json", "csv")

_PIPED_WIDTH = 220
"""Columns where nothing tells the width: a line of a table stays a line in a file."""


class _SafeConsole(Console):
    """Prints texts of others without what a terminal obeys; the styles are ours."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_safe, objects), **options)


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return for_terminal(value)
    if isinstance(value, Text):
        plain = for_terminal(value.plain)
        return value if plain == value.plain else Text(plain, style=value.style)  # spans would be at other places
    if isinstance(value, Padding):
        return Padding(_safe(value.renderable), (value.top, value.right, value.bottom, value.left), style=value.style)
    return value


def console() -> Console:
    """Standard output, for results."""
    return _SafeConsole(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def messages() -> Console:
    """Standard error, for everything that is not a result."""
    return _SafeConsole(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPED_WIDTH)


def format_options(command: Command) -> Command:
    """Add `--json` and `--csv` to a command; it receives `output_format`: table, json or csv."""
    for name in ("csv", "json"):
        command = click.option(
            f"--{name}", "output_format", flag_value=name, help=f"Print {name.upper()} on standard output."
        )(command)
    return click.option("--table", "output_format", flag_value="table", default="table", hidden=True)(command)


def plot_option(told: str = "Write the figure") -> Callable[[Command], Command]:
    """Add `--plot FILE` to a command; another suffix than of a figure is refused before anything is computed."""
    return click.option(
        "--plot", type=click.Path(dir_okay=False, path_type=Path), callback=_drawable, metavar="FILE",
        help=f"{told}: .svg, .png or .pdf.",
    )  # fmt: skip


def _drawable(_ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower().removeprefix(".") not in style.FORMATS:
        raise click.BadParameter(f"'{path.name}' must end with .{', .'.join(style.FORMATS)}", param=param)
    return path


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, and say so on standard error."""
    messages().print(f"wrote {style.save(figure, path)}", markup=False, soft_wrap=True)


def show_rows(
    rows: Sequence[Row],
    output_format: str,
    *,
    title: str | None = None,
    empty: str = "nothing found",
    columns: Sequence[str] = (),
) -> None:
    """Print rows in the format asked for. JSON and CSV go to standard output alone.

    `columns` are those of a CSV without rows.
    """
    if output_format == "json":
        print_json(list(rows))
    elif output_format == "csv":
        print_csv(rows, columns)
    elif not rows:
        messages().print(empty)
    else:
        table = Table(
            title=None if title is None else Text(for_terminal(title)),
            title_justify="left",
            title_style="bold",
            header_style="bold",
            box=None,
            pad_edge=False,
        )
        numeric = {name: all(isinstance(row[name], int | float | Decimal | None) for row in rows) for name in rows[0]}
        for name in rows[0]:
            table.add_column(
                Text(for_terminal(name.replace("_", " "), keep="")),
                justify="right" if numeric[name] else "left",
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(cell(value)) for value in row.values()))
        console().print(table)


def cell(value: Any) -> str:
    """A value as a person reads it."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case Decimal():
            return cell(float(value))
        case float():
            value += 0.0  # no minus before nothing
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        case list() | tuple():
            return ", ".join(cell(item) for item in value)
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M")
        case dict():
            return for_json_on_terminal(json.dumps(_plain(value), ensure_ascii=False))
        case bytes() | HalfVector() | SparseVector() | Vector():
            return str(_plain(value))
        case _:
            return for_terminal(str(value), keep="\n")


def print_json(value: Any) -> None:
    """One JSON document on standard output; what JSON has no number for (NaN, infinities) is null."""
    click.echo(for_json_on_terminal(json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False)))


def print_csv(rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Rows as CSV on standard output; arrays are joined with ';', objects are JSON; texts are no formulas."""
    names = list(rows[0]) if rows else list(columns)
    if not names:
        return
    writer = csv_writer(sys.stdout)
    writer.writerow([_csv_cell(name) for name in names])
    writer.writerows([_csv_cell(row[name]) for name in names] for row in rows)


def _csv_cell(value: Any) -> Any:
    match value:
        case list() | tuple():
            return ";".join(str(_csv_cell(item)) for item in value)
        case dict():
            return json.dumps(_plain(value), ensure_ascii=False)
        case bytes() | HalfVector() | SparseVector() | Vector():
            return _plain(value)
        case str():
            safe = for_spreadsheet(value)
            return for_terminal(safe) if sys.stdout.isatty() else safe
        case _:
            return value


def _plain(value: Any) -> Any:
    """A value in JSON's own types."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return _plain(float(value))
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case bytes():
            return f"\\x{value.hex()}"  # as Postgres writes it
        case date():
            return value.isoformat()
        case HalfVector() | SparseVector() | Vector():
            return _plain(value.to_list())
        case _ if hasattr(value, "_asdict"):
            return _plain(value._asdict())
        case _ if hasattr(value, "tolist"):
            return _plain(value.tolist())
        case list() | tuple() | set():
            return [_plain(item) for item in value]
        case _:
            return str(value)


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="dim")


class Bars:
    """Progress bars on stderr, one per stage; plain lines where stderr is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = messages()
        self._quiet = quiet

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        if self._quiet or total == 0:
            yield lambda _n: None
            return
        if not self._console.is_terminal:
            yield lambda _n: None
            self._console.print(f"{name}: {'done' if total is None else f'{total:,} {unit}'}", markup=False)
            return
        columns = (
            SpinnerColumn(finished_text="✓"), TextColumn("{task.description:<26}", markup=False), BarColumn(24),
            MofNCompleteColumn(), TextColumn("{task.fields[unit]}", style="dim"), _Rate(), TimeElapsedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(name, total=total, unit=unit)
            yield lambda n: progress.advance(task, n)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=not self._console.is_terminal)


class Watch:
    """The steps of a run that others do: a bar for each that has begun; plain lines where stderr is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = messages()
        self._quiet = quiet
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, str] = {}
        self._bars = Progress(
            TextColumn("{task.description:<18}", markup=False), BarColumn(24), MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", style="dim"), TextColumn("{task.fields[rate]}", style="dim"),
            TextColumn("{task.fields[left]}"), TextColumn("{task.fields[trouble]}", style="red"),
            console=self._console, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Watch:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, steps: Sequence[Row]) -> None:
        """Show how far each step is; `steps` are rows of `run_progress`, with `seconds_left`."""
        for step in steps:
            if not step["units"]:
                continue
            name, left = str(step["step"]), step["seconds_left"]
            state = {
                "completed": step["size_done"] or 0, "total": step["size"], "unit": step["unit"],
                "rate": f"{step['rate']:,.0f}/s" if step["rate"] else "",
                "left": "✓" if step["state"] == "done" else "" if left is None else f"{duration(left)} left",
                "trouble": f"{step['failed']} units failed" if step["failed"] else "",
            }  # fmt: skip
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, **state)
            self._bars.update(self._tasks[name], **state)
            self._say(step)

    def _say(self, step: Row) -> None:
        """A line where a step begins, and where it ends, for logs."""
        if self._quiet or self._console.is_terminal:
            return
        line = f"{step['step']}: {step['size']:,} {step['unit']} in {step['units']:,} units"
        if step["state"] == "done":
            line = f"{step['step']}: done" + (f", {step['failed']} units failed" if step["failed"] else "")
        if self._told.get(str(step["step"])) not in (line, f"{step['step']}: done"):
            self._told[str(step["step"])] = line
            self._console.print(line, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """One line among the bars."""
        if not self._quiet:
            self._bars.console.print(text, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
