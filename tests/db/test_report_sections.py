"""A section of a report that fails is left out by name; the rest is written."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.errors import BackendError, DatabaseError, DatabaseUnreachableError, InputError
from and_platform.plots import style
from and_platform.services import report
from and_platform.services.report import Options, build
from and_platform.services.report.content import Plot, Table
from tests import factories
from tests.db.test_report import LAYERS, TOLD


@pytest.fixture(scope="module")
def small(shared_engine: sa.Engine) -> sa.Engine:
    with db.transaction(shared_engine) as session:
        factories.world(session, layers=LAYERS, told=TOLD)
    return shared_engine


def raising(error: BaseException) -> Callable[[Any], Any]:
    def builder(_work: Any) -> Any:
        raise error

    return builder


def bad_plot(_work: Any) -> Any:
    """A figure that can be made and not be drawn."""
    figure, (axes,) = style.new()
    axes.plot([0, 1], [0, 1])
    axes.xaxis.set_major_formatter(lambda _value, _place: 1 / 0)
    return [Plot("bad", "Bad", figure)]


def bad_table(_work: Any) -> Any:
    """Rows that have no cell for a column."""

    class Unreadable:
        def __str__(self) -> str:
            raise ValueError("no text <b>of</b> it")

    return [Table("bad", "Bad", [{"a": Unreadable()}])]


class OddError(Exception):
    def __str__(self) -> str:
        return ""


FAILURES = {
    "ValueError": (
        raising(ValueError("xerr must not contain negative values\nmore")),
        "ValueError: xerr must not contain",
    ),
    "RecursionError": (raising(RecursionError("too deep")), "RecursionError: too deep"),
    "MemoryError": (raising(MemoryError()), "MemoryError"),
    "AssertionError": (raising(AssertionError()), "AssertionError"),
    "without text": (raising(OddError()), "OddError"),
    "OSError": (raising(FileNotFoundError(2, "No such file", "x.wav")), "FileNotFoundError"),
    "of a backend": (raising(BackendError("no model; give one")), "no model; give one"),
    "of a statement": (raising(DatabaseError("the statement took too long")), "took too long"),
    "with a password": (raising(ValueError("postgresql://me:secret@host/db")), "***"),
    "plot": (bad_plot, "ZeroDivisionError: division by zero"),
    "table": (bad_table, "ValueError: no text &lt;b&gt;of&lt;/b&gt; it"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_section_that_fails_is_left_out(
    small: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    builder, told = FAILURES[failure]
    monkeypatch.setitem(build.BUILDERS, "layers", builder)
    monkeypatch.setitem(build.COMPARED, "quality", builder)
    made = report.network(small, "net", tmp_path / "out", Options(stored_only=True))
    text = made.page.read_text("utf-8")
    [reason] = made.missing["layers"]
    assert reason.startswith("Not in this report: ") and "\n" not in reason and "secret" not in text
    part = text[text.index('<section class="part" id="layers"') : text.index('<section class="part" id="last-layer"')]
    assert told in part and "<b>of</b>" not in part
    whole = report.network(small, "net", tmp_path / "whole", Options(stored_only=True, skip=("layers",)))
    assert [key for key in made.sections if key != "layers"] == whole.sections
    assert made.tables == whole.tables and made.figures == whole.figures
    assert {key: why for key, why in made.missing.items() if key != "layers"} == whole.missing


def test_a_neuron_page_says_what_failed(small: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.sections, "stories", lambda *_: bad_table(None))
    page = report.write_stories(small, "net", ["head#0"], tmp_path / "page.html")
    assert "Not in this report: it could not be made (ValueError" in page.read_text("utf-8")


STOPS = {
    "interrupt": KeyboardInterrupt(),
    "exit": SystemExit(3),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "database": DatabaseUnreachableError("cannot reach the database"),
}


@pytest.mark.parametrize("stop", STOPS)
def test_what_stops_the_whole_report(
    small: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    out = tmp_path / "out"
    report.network(small, "net", out, Options(stored_only=True))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setitem(build.BUILDERS, "layers", raising(STOPS[stop]))
    expected = InputError if isinstance(STOPS[stop], OSError) else type(STOPS[stop])
    with pytest.raises(expected):
        report.network(small, "net", out, Options(stored_only=True))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_full_disk_of_the_server_stops_it_too(
    small: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_work: Any) -> Any:
        try:
            raise psycopg.errors.DiskFull("could not extend file: No space left on device")
        except psycopg.Error as exc:
            raise DatabaseError("the database refuses: disk full") from exc

    monkeypatch.setitem(build.BUILDERS, "layers", full)
    with pytest.raises(DatabaseError):
        report.network(small, "net", tmp_path / "out", Options(stored_only=True))
    assert not (tmp_path / "out").exists()
