"""Collections of sounds as they lie on disk: which files there are, and what is known of each.

Nothing is decoded here. A reader lists all files, sorted by path, whatever the order of a manifest: the order of
clips decides their places in a probing set, so it must not depend on how a file was sorted.
"""

from __future__ import annotations

import csv
import json
import math
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from and_platform.backends.audio import AUDIO_SUFFIXES, leads_out
from and_platform.errors import InputError, ManifestError
from and_platform.resources import resource

Row = Mapping[str, Any]

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LEAVES_ROOT = "outside: the path leads out of the data set's folder; give --root a folder that holds all files"
LINK_LEAVES_ROOT = "outside: a link leads out of the data set's folder; if that is meant, allow it with --allow-outside"


@dataclass(frozen=True)
class Source:
    """What to ingest: a `kind` of layout, the folder (or manifest file) it has, and the root of a manifest's paths.

    With `allow_outside`, links may lead out of the root. Otherwise they are as good as a '..': whoever made an archive or
    a manifest could have files of this machine read that he only guesses at.
    """

    kind: str
    location: Path
    root: Path | None = None
    allow_outside: bool = False

    @classmethod
    def sample(cls) -> Source:
        """The data set that travels with the package."""
        # Ours; an installer may have linked its files to a cache.
        return cls("sample", resource("sample") / "manifest.csv", allow_outside=True)


@dataclass(frozen=True)
class Item:
    """One file. `path` is relative to the root, with forward slashes; the first label is the main one."""

    path: str
    labels: tuple[str, ...] = ()
    fold: int | None = None
    caption: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


Entry = tuple[str, Callable[[], Item]]
"""What to call an entry in messages, and how to make its item."""


@dataclass(frozen=True)
class Listing:
    """What a reader found: `items` sorted by path, and `problems`, (unit, reason), that kept an entry out."""

    root: Path
    name: str
    items: list[Item]
    problems: list[tuple[str, str]]


def read(source: Source) -> Listing:
    """List a collection.

    Raises
    ------
    InputError
        The folder is missing, empty, or not laid out as its kind is; the message says what was expected.
    ManifestError
        The manifest cannot be read.
    """
    return READERS[source.kind](source)


# ---------------------------------------------------------------------- folders


def _read_folder(source: Source) -> Listing:
    """Subfolders are labels; folders below the first level only group files. Files right in it have no label."""
    root = _folder(source.location)
    entries: list[Entry] = []
    others: list[str] = []
    for path in _files(source, root, entries):
        if PurePosixPath(path).suffix.lower() in AUDIO_SUFFIXES:
            first, slash, _ = path.partition("/")
            entries.append((path, partial(Item, path, (first,) if slash else ())))
        else:
            others.append(path)
    if not entries:
        hint = f"; it has {len(others):,} other files, e.g. {others[0]}: convert those to WAV or FLAC" if others else ""
        raise InputError(f"{root} holds no sound files ({', '.join(sorted(AUDIO_SUFFIXES))}){hint}")
    return _listing(source, root, root.name, entries)


def _files(source: Source, root: Path, entries: list[Entry]) -> Iterator[str]:
    """All files below `root`, relative; hidden ones are left out, linked folders are entered once.

    Linked folders that may not be entered are told to `entries`.
    """
    entered = {os.path.realpath(root)}
    contained = _Contained(root)
    for folder, subfolders, names in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(subfolders):
            real = os.path.realpath(Path(folder) / name)
            if name.startswith(".") or real in entered:
                continue
            if source.allow_outside or contained(real):
                entered.add(real)
                kept.append(name)
            else:
                entries.append(((Path(folder) / name).relative_to(root).as_posix(), _refused))
        subfolders[:] = kept
        relative = Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in names if not name.startswith("."))


def _refused() -> Item:
    raise ManifestError(LINK_LEAVES_ROOT)


def absolute_path(path: Path) -> Path:
    """`path` from the root, without '..'; links in it stay as the user wrote them."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)


def _folder(path: Path) -> Path:
    """The absolute path of a folder that is there."""
    if not path.is_dir():
        raise InputError(f"there is no folder {path}" if not path.exists() else f"{path} is not a folder")
    return absolute_path(path)


# ---------------------------------------------------------------------- manifests


def _read_manifest(source: Source) -> Listing:
    """One row a file: path, label or labels, caption, fold; every other column is kept in `extra`."""
    file = source.location
    root = _folder(source.root or file.parent)
    name = root.name if file.stem.lower() in ("manifest", "metadata") else file.stem
    entries: list[Entry] = []
    for where, row in _rows(file):
        path = row.get("path")
        path = None if isinstance(path, Mapping | list) else _text(path)
        entries.append((path or where, partial(_manifest_item, root, path, row)))
    if not entries:
        raise ManifestError(f"{file} has no rows")
    return _listing(source, root, name, entries)


def _manifest_item(root: Path, path: str | None, row: Row) -> Item:
    if _REFUSED in row:
        raise ManifestError(str(row[_REFUSED]))
    if path is None:
        raise ManifestError("no path: the row's path is empty")
    extra = {key: _plain(value) for key, value in row.items() if key not in _COLUMNS}
    return Item(
        _relative(root, path),
        tuple(dict.fromkeys([*_labels(row.get("label")), *_labels(row.get("labels"))])),
        _fold(row.get("fold")),
        _text(row.get("caption")),
        {key: value for key, value in extra.items() if value is not None},
    )


_COLUMNS = ("path", "label", "labels", "caption", "fold")


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a manifest with a name for messages ("line 7"); the names of known columns in lower case."""
    if not file.is_file():
        raise ManifestError(f"there is no file {file}")
    try:
        match file.suffix.lower():
            case ".csv" | ".tsv":
                rows = _csv_rows(file)
            case ".jsonl" | ".ndjson":
                rows = _jsonl_rows(file)
            case ".parquet":
                rows = _parquet_rows(file)
            case suffix:
                raise ManifestError(
                    f"{file}: a manifest ends in {', '.join(MANIFEST_SUFFIXES)}, not in {suffix or 'nothing'}"
                )
        for where, row in rows:
            named = {key.strip().lower() if key.strip().lower() in _COLUMNS else key: row[key] for key in row}
            if "path" not in named:
                raise ManifestError(f"{file}, {where}: no column 'path'; the columns are {', '.join(row) or 'missing'}")
            yield where, named
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{file} is not UTF-8 text; save it as UTF-8") from exc
    except OSError as exc:
        raise ManifestError(f"cannot read {file}: {exc.strerror or exc}") from exc


_LONGEST_FIELD = 64_000_000
"""Characters of a field of CSV: a longer one is taken for a quote that was not closed. Texts have limits of their own."""


def _csv_rows(file: Path, delimiter: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = delimiter or ("\t" if file.suffix.lower() == ".tsv" else ",")
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise ManifestError(
                        f"{file}, line {reader.line_num}: more fields than columns; quote a field that holds a comma"
                    )
                yield f"line {reader.line_num}", row
        except csv.Error as exc:
            raise ManifestError(f"{file}, line {reader.line_num}: not valid CSV ({exc})") from exc


def _jsonl_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_int=_bounded_int)
            except json.JSONDecodeError as exc:
                raise ManifestError(f"{file}, line {number}: not valid JSON ({exc})") from exc
            except (RecursionError, ValueError) as exc:  # nested too deeply; a number of too many digits
                yield f"line {number}", {"path": None, _REFUSED: f"line {number}: {exc}"}
                continue
            if not isinstance(row, dict):
                raise ManifestError(f"{file}, line {number}: expected an object with 'path', not {line.strip()[:40]}")
            yield f"line {number}", row


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pa.ArrowInvalid as exc:
        raise ManifestError(f"{file} is not a Parquet file, or it is damaged: {exc}") from exc


_REFUSED = "\0refused"
"""In the place of a row that cannot be read by itself: the reason. No column has such a name."""
_MOST_DIGITS = 300


def _bounded_int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits; the limit is {_MOST_DIGITS}")
    return int(digits)


def _labels(value: Any) -> list[str]:
    """Labels from a list, a JSON list in text, or text with ';' between them."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value, parse_int=_bounded_int)
        except (ValueError, RecursionError) as exc:
            raise ManifestError(f"labels: not a valid JSON list: {value[:60]}") from exc
    if isinstance(value, str):
        value = value.split(";")
    elif not isinstance(value, Sequence):
        value = [value]
    return [label for label in map(_text, value) if label is not None]


def _fold(value: Any) -> int | None:
    text = _text(value)
    if text is None:
        return None
    try:
        number = float(text)
        if not number.is_integer() or abs(number) >= 2**31:
            raise ValueError
    except ValueError as exc:
        raise ManifestError(f"fold: '{text[:60]}' is not a whole number") from exc
    return int(number)


def _text(value: Any) -> str | None:
    """A value as text without white space around it; None where there is nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


_DEEPEST = 32


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it; None where there is nothing."""
    if depth > _DEEPEST:
        raise ManifestError(f"a column is nested deeper than {_DEEPEST} levels; give it flatter")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _text(value)


# ---------------------------------------------------------------------- published data sets


def _read_esc50(source: Source) -> Listing:
    root, table = _published(source.location, "ESC-50", "meta/esc50.csv", "audio/*.wav", "audio")

    def item(row: Row) -> Item:
        extra = {
            "target": int(row["target"]),
            "esc10": row["esc10"] == "True",
            "source": row["src_file"],
            "take": row["take"],
        }
        return Item(_relative(root, f"audio/{row['filename']}"), (row["category"],), int(row["fold"]), None, extra)

    columns = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    return _listing(source, root, "esc50", _table_entries(table, columns, lambda row: f"audio/{row['filename']}", item))


def _read_urbansound8k(source: Source) -> Listing:
    root, table = _published(
        source.location, "UrbanSound8K", "metadata/UrbanSound8K.csv", "audio/fold1 to audio/fold10", "audio"
    )

    def path(row: Row) -> str:
        return f"audio/fold{row['fold']}/{row['slice_file_name']}"

    def item(row: Row) -> Item:
        extra = {
            "target": int(row["classID"]),
            "source": row["fsID"],
            "start_s": float(row["start"]),
            "end_s": float(row["end"]),
            "salience": int(row["salience"]),
        }
        return Item(_relative(root, path(row)), (row["class"],), int(row["fold"]), None, extra)

    columns = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    return _listing(source, root, "urbansound8k", _table_entries(table, columns, path, item))


def _read_gtzan(source: Source) -> Listing:
    root = _folder(source.location)
    places = ("genres", "genres_original", "Data/genres_original")
    folder = next((root / place for place in places if (root / place).is_dir()), None)
    if folder is None:
        raise InputError(
            f"{root} is not laid out as GTZAN is: expected genres/<genre>/*.wav or genres_original/<genre>/*.wav in it"
        )
    suffixes = AUDIO_SUFFIXES | {".au"}  # the format of the first release
    entries: list[Entry] = []
    for inner in _files(source, folder, entries):
        genre, slash, _ = inner.partition("/")
        if slash and PurePosixPath(inner).suffix.lower() in suffixes:
            path = (folder.relative_to(root) / inner).as_posix()
            entries.append((path, partial(Item, path, (genre,))))
    if not entries:
        raise InputError(f"{folder} holds no sounds: expected a folder for each genre with .wav or .au files in it")
    return _listing(source, root, "gtzan", entries)


def _published(location: Path, name: str, table: str, sounds: str, must_exist: str) -> tuple[Path, Path]:
    root = _folder(location)
    for needed in (table, must_exist):
        if not (root / needed).exists():
            raise InputError(
                f"{root} is not laid out as {name} is published: {needed} is missing (expected {table} and {sounds})"
            )
    return root, root / table


def _table_entries(
    file: Path, columns: Sequence[str], path: Callable[[Row], str], item: Callable[[Row], Item]
) -> Iterator[Entry]:
    try:
        for where, row in _csv_rows(file):
            if missing := [column for column in columns if row.get(column) is None]:
                raise ManifestError(
                    f"{file}, {where}: the column '{missing[0]}' is missing; take the file as published"
                )
            yield path(row), partial(_converted, row, item, where)
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{file} is not UTF-8 text; take the file as published") from exc


def _converted(row: Row, item: Callable[[Row], Item], where: str) -> Item:
    try:
        return item(row)
    except ValueError as exc:
        raise ManifestError(f"{where}: {exc}") from exc


def _read_sample(source: Source) -> Listing:
    listing = _read_manifest(source)
    return Listing(listing.root, "sample", listing.items, listing.problems)


READERS: dict[str, Callable[[Source], Listing]] = {
    "folder": _read_folder,
    "manifest": _read_manifest,
    "esc50": _read_esc50,
    "urbansound8k": _read_urbansound8k,
    "gtzan": _read_gtzan,
    "sample": _read_sample,
}
"""The reader of each kind of source."""


# ---------------------------------------------------------------------- what all readers share


def _listing(source: Source, root: Path, name: str, entries: Iterable[Entry]) -> Listing:
    """Build the items; an entry that cannot be one, or that the database could not hold, becomes a problem."""
    items: dict[str, Item] = {}
    problems: list[tuple[str, str]] = []
    contained = _Contained(root)
    for unit, make in entries:
        shown = unit[:_LONGEST_PATH].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        try:
            item = make()
            _check_sizes(item)
        except ManifestError as exc:
            problems.append((shown, str(exc)))
            continue
        except Exception as exc:  # noqa: BLE001 (what one row holds must not keep the others out)
            problems.append((shown, f"cannot be read: {type(exc).__name__}: {exc}"))
            continue
        if not _storable(item):
            problems.append(
                (shown, "not text: a name or text in it is not valid Unicode; rename the file or mend the row")
            )
        elif not source.allow_outside and not contained(os.path.realpath(root / item.path)):
            problems.append((shown, LINK_LEAVES_ROOT))
        elif item.path in items:
            problems.append((f"{item.path} (again)", "listed twice: the first row was used; remove the other"))
        else:
            items[item.path] = item
    return Listing(root, name, sorted(items.values(), key=lambda item: item.path), problems)


_LONGEST_PATH = 4_096  # as of Linux, in bytes
_LONGEST_LABEL = 500
_MOST_LABELS = 1_000
_LONGEST_CAPTION = 20_000
_LARGEST_EXTRA = 1_000_000


def _check_sizes(item: Item) -> None:
    """Raise ManifestError where a text is longer than any that means something; the database has limits, too."""
    sizes = (
        ("path", len(item.path.encode("utf-8", "surrogateescape")), _LONGEST_PATH),
        ("label", max(map(len, item.labels), default=0), _LONGEST_LABEL),
        ("list of labels", len(item.labels), _MOST_LABELS),
        ("caption", len(item.caption or ""), _LONGEST_CAPTION),
        ("rest of the row", len(json.dumps(item.extra)), _LARGEST_EXTRA),
    )
    for what, size, limit in sizes:
        if size > limit:
            raise ManifestError(f"too long: the {what} has a size of {size:,}, the limit is {limit:,}; shorten it")


def _relative(root: Path, path: str) -> str:
    """A path as listed, relative to the root, going by its text. `_listing` looks where links lead."""
    if Path(path).is_absolute():
        path = os.path.relpath(path, root)
    normal = posixpath.normpath(Path(path).as_posix())
    if leads_out(normal):
        raise ManifestError(LEAVES_ROOT)
    return normal


class _Contained:
    """Whether a real path lies in the folder that `root` really is."""

    def __init__(self, root: Path) -> None:
        self._real = os.path.realpath(root)
        self._below = os.path.join(self._real, "")  # noqa: PTH118 (ends in a separator)

    def __call__(self, real: str) -> bool:
        return real == self._real or real.startswith(self._below)


def _storable(item: Item) -> bool:
    content = json.dumps([item.path, item.labels, item.caption, item.extra], ensure_ascii=False)
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\\u0000" not in content  # json escapes NUL, whatever `ensure_ascii` says
