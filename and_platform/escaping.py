"""Texts of others, such as file names, captions and answers of models, as a terminal or a spreadsheet may take them.

JSON and HTML have escapes of their own (`json.dumps`, Jinja's autoescape).
"""

from __future__ import annotations

import csv
import re
from typing import Any, TextIO

# What a terminal obeys or hides: control characters (ESC begins colours, links, titles, answers typed for the user), marks
# that turn the direction of writing, characters without width, separators of lines, tags, halves of surrogates. The
# joiners U+200C and U+200D belong to scripts and emoji, and stay.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_FORMULA = re.compile("'*[=+\\-@\t\r\uff0b\uff0d\uff1d\uff20]")


def for_terminal(text: str, *, keep: str = "\n\t") -> str:
    r"""Return a text with `\x1b`, `\u202e` … in the place of characters that a terminal obeys or hides.

    Parameters
    ----------
    keep
        Characters that stay as they are.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def for_json_on_terminal(document: str) -> str:
    r"""Return a JSON document in which the same characters are `\uXXXX`: it reads back as the same values."""
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] == "\n" else "".join(f"\\u{unit:04x}" for unit in _utf16(found[0])), document
    )


def for_spreadsheet(text: str) -> str:
    """Return a cell of CSV that no spreadsheet takes for a formula.

    An apostrophe goes before a text that begins with =, +, -, @, a tab or a carriage return, after any apostrophes. To
    undo it, take one apostrophe away from texts of that form. Numbers stay.
    """
    if not _FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def csv_writer(stream: TextIO) -> Any:
    """Return a writer of CSV with a line feed behind each row; a cell with a carriage return is quoted, too."""
    return csv.writer(_LineFeeds(stream))


class _LineFeeds:
    """Ends each row with a line feed. The writer quotes what is in its own end of a row, so that is both characters."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, row: str) -> int:
        return self._stream.write(row.removesuffix("\r\n") + "\n")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _utf16(character: str) -> list[int]:
    raw = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(raw[at : at + 2]) for at in range(0, len(raw), 2)]
