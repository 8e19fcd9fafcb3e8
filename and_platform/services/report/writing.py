"""Writing a report: all of it beside its place first, then into its place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from and_platform.errors import InputError
from and_platform.plots import style
from and_platform.services.report import render
from and_platform.services.report.content import Missing, Section
from and_platform.services.report.sounds import Store

_MARK = '<meta name="generator" content="andp report">'
_PARTS = ("index.html", "tables", "figures")


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: Path
    n_bytes: int
    """Size of the page."""
    sections: list[str]
    tables: list[str]
    figures: list[str]
    sounds: int
    """Clips in the page."""
    missing: dict[str, list[str]]
    """Section -> what is not in it, and why."""


def check(folder: Path, *, force: bool = False) -> None:
    """A report may go there.

    Raises
    ------
    InputError
        It is a file, or a folder with something else in it, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file; name a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"'{folder}' cannot be written: '{there}' is no folder that you may write to; name another one"
        )
    if force or not folder.exists() or not any(folder.iterdir()) or _is_ours(folder / "index.html"):
        return
    raise InputError(f"'{folder}' holds something else; name another folder, or add --force to write beside it")


def write(
    folder: Path,
    sections: Sequence[Section],
    store: Store,
    *,
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, str]],
    made: str,
) -> Report:
    """Write page, tables and figures; what lay in their places is replaced, and nothing else is touched.

    Raises
    ------
    InputError
        The folder cannot be written.
    """
    figures = render.figures_of(sections)
    drawn = {name: style.render(figure, "svg") for name, figure in figures.items()}
    tables = render.tables_of(sections)
    text = render.page(
        title=title, subtitle=subtitle, sections=sections, store=store, drawn=drawn, facts=facts, made=made
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as aside:
            new, old = Path(aside) / "new", Path(aside) / "old"
            for path in (new / "tables", new / "figures", old):
                path.mkdir(parents=True)
            (new / "index.html").write_text(text, "utf-8")
            for name, content in tables.items():
                (new / "tables" / f"{name}.csv").write_text(content, "utf-8")
            for name, vector in drawn.items():
                (new / "figures" / f"{name}.svg").write_bytes(vector)
                (new / "figures" / f"{name}.png").write_bytes(style.render(figures[name], "png"))
            for name in _PARTS:
                place = folder / name
                if place.exists():
                    shutil.move(place, old / name)
                shutil.move(new / name, place)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be written: {error.strerror or error}") from error
    return Report(
        folder / "index.html", len(text.encode()), [part.key for part in sections], sorted(tables), sorted(drawn),
        len(store.sounds),
        {
            part.key: told for part in sections
            if (told := [block.text for block in part.blocks if isinstance(block, Missing)])
        },
    )  # fmt: skip


def write_page(
    path: Path,
    sections: Sequence[Section],
    store: Store,
    *,
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, str]],
    made: str,
) -> Path:
    """Write a page alone.

    Raises
    ------
    InputError
        The file is no HTML file by its name, or cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"'{path.name}' is no page; end it with .html")
    text = render.page(
        title=title, subtitle=subtitle, sections=sections, store=store, drawn={}, facts=facts, made=made, files=False
    )
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, "utf-8")
        aside.replace(path)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror or error}") from error
    return path


def _is_ours(page: Path) -> bool:
    """Whether a page is a report of ours."""
    if not page.is_file():
        return False
    with page.open(encoding="utf-8", errors="replace") as stream:
        return _MARK in stream.read(2000)
