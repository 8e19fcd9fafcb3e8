"""Values as a reader of a report sees them, and rows as CSV."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from and_platform.escaping import csv_writer, for_spreadsheet

NOTHING = "–"

_READS_AS_NUMBER = re.compile(r"[-−+–\d][-−+–\d.,/%\[\] ]*")


def number(value: float, decimals: int) -> str:
    """A number with thousands separators and a true minus sign."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def decimals_of(values: Sequence[Any]) -> int | None:
    """How many decimals a column needs: about three figures of its largest value, the same for all its rows.

    None where one number of decimals does not fit all: the largest value is more than a thousand times the smallest.
    """
    numbers = [abs(float(v)) for v in values if _is_number(v) and math.isfinite(float(v)) and v != 0]
    if not numbers or all(n == int(n) for n in numbers):
        return 0
    largest = max(numbers)
    if largest > 100 and largest > 1000 * min(numbers):
        return None
    return 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 1 else 3 if largest >= 0.1 else 4


def p_value(value: float | None) -> str:
    """A p-value: three decimals, or that it is less than what three decimals show."""
    return NOTHING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def share(value: Any, decimals: int = 1) -> str:
    """A share of 1 in percent."""
    return NOTHING if value is None else f"{number(100 * float(value), decimals)} %"


def size(n_bytes: int) -> str:
    """A size in MB or kB."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{math.ceil(n_bytes / 1e3)} kB"


def cell(value: Any, decimals: int | None = 2, *, is_share: bool = False) -> str:
    """A value in a table; without a number of decimals, three figures of it."""
    match value:
        case None:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case int() if not is_share:
            return number(value, 0)
        case int() | float() | Decimal():
            return share(value) if is_share else number(float(value), _figures(float(value), decimals))
        case datetime():
            return value.strftime("%Y-%m-%d %H:%M")
        case date():
            return value.isoformat()
        case list() | tuple():
            return ", ".join(cell(item, decimals) for item in value) or NOTHING
        case Mapping():
            return ", ".join(f"{key} {cell(item, decimals)}" for key, item in value.items()) or NOTHING
        case _:
            return str(value) if str(value) else NOTHING


def grid(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    shares: Sequence[str] = (),
    intervals: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Headings and cells of a table.

    A value with the ends of its interval (`x`, `x_low`, `x_high`, or as `intervals` says) becomes one cell.

    Parameters
    ----------
    columns
        Heading of each column to show; default: all.
    shares
        Columns that hold shares of 1, shown in percent.
    intervals
        Column -> the columns that hold the ends of its interval.

    Returns
    -------
    headings : list of dict
        `text`, and `numeric`: whether the column is aligned to the right.
    cells : list of list of str
        As many as there are rows.
    """
    if not rows:
        return [], []
    columns, intervals = columns or {}, intervals or {}
    keys = [key for key in (columns or rows[0]) if key in rows[0]]
    ends_of = {key: _ends(key, rows[0], intervals) for key in keys}
    hidden = {end for ends in ends_of.values() for end in ends}
    headings: list[dict[str, Any]] = []
    rendered: list[list[str]] = []
    for key in keys:
        if key in hidden and key not in columns:
            continue
        ends, is_share = ends_of[key], key in shares
        values = [row.get(key) for row in rows]
        decimals = decimals_of([*values, *(row.get(end) for row in rows for end in ends)])
        numeric = all(v is None or _is_number(v) or _READS_AS_NUMBER.fullmatch(str(v)) for v in values)
        headings.append({"text": columns.get(key) or heading(key), "numeric": numeric})
        if key == "p" or key.startswith("p_"):
            rendered.append([p_value(value) if _is_number(value) else cell(value) for value in values])
        elif ends:
            rendered.append(
                [
                    _with_interval(row.get(key), [row.get(end) for end in ends], decimals, is_share=is_share)
                    for row in rows
                ]
            )
        else:
            rendered.append([cell(value, decimals, is_share=is_share) for value in values])
    return headings, [list(line) for line in zip(*rendered, strict=True)]


def heading(key: str) -> str:
    """The name of a column as words."""
    return key.replace("_", " ")


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; arrays are joined with ';', objects are JSON."""
    if not rows:
        return ""
    stream = io.StringIO()
    writer = csv_writer(stream)
    writer.writerow([_plain(key) for key in rows[0]])
    writer.writerows([_plain(row.get(key)) for key in rows[0]] for row in rows)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    match value:
        case list() | tuple():
            return ";".join(str(_plain(item)) for item in value)
        case Mapping():
            return json.dumps(value, ensure_ascii=False, default=str)
        case str():
            return for_spreadsheet(value)
        case _:
            return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _ends(key: str, row: Mapping[str, Any], intervals: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """The columns that hold the ends of a value's interval."""
    low, high = intervals.get(key, (f"{key}_low", f"{key}_high"))
    return (low, high) if low in row and high in row else ()


def _figures(value: float, decimals: int | None) -> int:
    """Decimals of a value: those given, else what three figures of it need."""
    if decimals is not None:
        return decimals
    return 0 if value == 0 or not math.isfinite(value) else max(0, 2 - math.floor(math.log10(abs(value))))


def _with_interval(value: Any, ends: Sequence[Any], decimals: int | None, *, is_share: bool) -> str:
    if value is None or any(end is None for end in ends):
        return cell(value, decimals, is_share=is_share)
    if is_share:
        middle, low, high = (number(100 * float(part), 1) for part in (value, *ends))
        return f"{middle} [{low}, {high}] %"
    middle, low, high = (number(float(part), _figures(float(part), decimals)) for part in (value, *ends))
    return f"{middle} [{low}, {high}]"
