"""Concept sets: the words and phrases that neurons are matched with, read from text, CSV or JSON.

The parsers take the text of a file, not its path. Entries that have the same normalised name are one
concept; the first one gives the place in the set and the spelling, and `Concept.merged` tells what was
joined to it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from and_platform.core.names import normalise
from and_platform.errors import ManifestError

_SYNONYM_SEPARATORS = re.compile(r"[;|]")
_FIELDS = ("name", "synonyms", "kind")


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept of a set."""

    name: str
    """Normalised; unique within a set. This is the text that encoders read."""

    original_name: str
    """As written in the file, without white space around it."""

    synonyms: tuple[str, ...] = ()
    """Normalised, without repetitions and without the name itself, in the order given."""

    kind: str | None = None
    """A group within the set, such as `sound noun`; free text."""

    merged: tuple[str, ...] = ()
    """The spellings of later entries with the same normalised name, for the report of an import."""


def parse_text(text: str) -> list[Concept]:
    """Read a concept set with one name a line; empty lines are skipped.

    Raises
    ------
    ManifestError
        A name cannot be used, or there is none.
    """
    lines = enumerate(io.StringIO(text.removeprefix("\ufeff"), newline=None), start=1)
    return _merge(_concept(line, (), None, f"line {number}") for number, line in lines if line.strip())


def parse_csv(text: str) -> list[Concept]:
    """Read a concept set from CSV with the columns `name` and, if wanted, `synonyms` and `kind`.

    Synonyms are separated by `;` or `|`. Empty rows are skipped.

    Raises
    ------
    ManifestError
        The header or a row does not fit, a name cannot be used, or there is none.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        header = [(field or "").strip().casefold() for field in reader.fieldnames or ()]
        if "name" not in header or len(set(header)) < len(header) or not set(header) <= set(_FIELDS):
            raise ManifestError(
                f"line 1: the columns are {', '.join(header) or 'missing'}; a concept file has a column "
                "'name' and, if wanted, 'synonyms' and 'kind', each once"
            )
        reader.fieldnames = header
        concepts = []
        for row in reader:
            where = f"line {reader.line_num}"
            if None in row:
                raise ManifestError(
                    f"{where}: more fields than columns; put a field that contains a comma in double quotes"
                )
            values = {field: (row.get(field) or "").strip() for field in _FIELDS}
            if any(values.values()):
                synonyms = _SYNONYM_SEPARATORS.split(values["synonyms"])
                concepts.append(_concept(values["name"], synonyms, values["kind"], where))
    except csv.Error as exc:
        # The reader counts a line once it is through with it; an open quote is noticed after the last one.
        line = min(reader.line_num + 1, len(text.splitlines()))
        raise ManifestError(f"line {line}: not valid CSV ({exc})") from exc
    return _merge(concepts)


def parse_json(text: str) -> list[Concept]:
    """Read a concept set from a JSON list of names, of objects with `name`, `synonyms` and `kind`, or both.

    `synonyms` is a list of strings, or one string with `;` or `|` between them. Empty strings in the list
    are skipped.

    Raises
    ------
    ManifestError
        Not JSON (the message names the line), not such a list (it names the item, counted from 1), a name
        cannot be used, or there is none.
    """
    try:
        items = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as exc:
        raise ManifestError(f"line {exc.lineno}, column {exc.colno}: not valid JSON ({exc.msg})") from exc
    except ValueError as exc:  # a number of thousands of digits
        raise ManifestError(f"not a list of names: {exc}") from exc
    except RecursionError as exc:
        raise ManifestError("the JSON is nested too deeply; a concept file is a flat list") from exc
    if not isinstance(items, list):
        raise ManifestError("line 1: a concept file in JSON is a list of names or of objects with 'name'")
    numbered = enumerate(items, start=1)
    return _merge(_from_json(item, f"item {number}") for number, item in numbered if not _blank(item))


PARSERS: dict[str, Callable[[str], list[Concept]]] = {
    ".txt": parse_text,
    ".csv": parse_csv,
    ".json": parse_json,
}
"""The parser for each file name suffix, in lower case."""


def sha256_of(concepts: Sequence[Concept]) -> str:
    """Hash what a concept set says: names, spellings, synonyms and kinds, in their order.

    How the set was written down (format, entries that were merged) does not enter.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    content = [[c.name, c.original_name, c.synonyms, c.kind] for c in concepts]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _from_json(item: object, where: str) -> Concept:
    if isinstance(item, str):
        return _concept(item, (), None, where)
    if not isinstance(item, dict):
        raise ManifestError(f"{where}: expected a name or an object with 'name', not {json.dumps(item)[:60]}")
    if unknown := sorted(set(item) - set(_FIELDS)):
        raise ManifestError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(_FIELDS)}")
    name, synonyms, kind = (item.get(field) for field in _FIELDS)
    if not isinstance(name, str):
        raise ManifestError(f"{where}: 'name' must be a string")
    if synonyms is None:
        synonyms = []
    elif isinstance(synonyms, str):
        synonyms = _SYNONYM_SEPARATORS.split(synonyms)
    if not isinstance(synonyms, list) or not all(isinstance(synonym, str) for synonym in synonyms):
        raise ManifestError(f"{where}: 'synonyms' must be a list of strings")
    if not (kind is None or isinstance(kind, str)):
        raise ManifestError(f"{where}: 'kind' must be a string")
    return _concept(name, synonyms, kind, where)


def _blank(item: object) -> bool:
    return isinstance(item, str) and not item.strip()


def _concept(original: str, synonyms: Iterable[str], kind: str | None, where: str) -> Concept:
    """Build one concept from what a file says, checking every text in it."""
    original = _clean(original, where)
    name = normalise(original)
    if not name:
        raise ManifestError(f"{where}: the name {original!r} has nothing to compare; write a word or a phrase")
    spoken = (normalise(_clean(synonym, where)) for synonym in synonyms)
    kind = _clean(kind or "", where) or None
    return Concept(name, original, _distinct(spoken, but=name), kind)


def _clean(text: str, where: str) -> str:
    text = text.strip()
    # A database refuses NUL and lone surrogates, and a tab or line break inside a name is a slip in the file.
    if bad := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise ManifestError(f"{where}: the character U+{ord(bad):04X} cannot be part of a concept; remove it")
    return text


def _distinct(names: Iterable[str], *, but: str) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(names) if name and name != but)


def _merge(concepts: Iterable[Concept]) -> list[Concept]:
    """Join entries of the same name: synonyms together, the first kind given, spellings remembered."""
    merged: dict[str, Concept] = {}
    for concept in concepts:
        first = merged.setdefault(concept.name, concept)
        if first is not concept:
            merged[concept.name] = replace(
                first,
                synonyms=_distinct((*first.synonyms, *concept.synonyms), but=first.name),
                kind=first.kind or concept.kind,
                merged=(*first.merged, concept.original_name),
            )
    if not merged:
        raise ManifestError("there is no concept in it; write one name a line, or a list of names in JSON")
    return list(merged.values())
