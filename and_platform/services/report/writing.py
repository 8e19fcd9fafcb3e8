"""Writing a report: all of it beside its place first, then into its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from and_platform import output_files
from and_platform.errors import InputError
from and_platform.plots import style
from and_platform.services.report import render
from and_platform.services.report.content import Missing, Section
from and_platform.services.report.sounds import Store
from and_platform.services.report.work import left_out

if TYPE_CHECKING:
    from markupsafe import Markup

_MARK = '<meta name="generator" content="andp report">'
_PARTS = frozenset({"index.html", "tables", "figures"})


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
    output_files.recover(folder)
    output_files.check_folder(folder)
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
    parts = [_part(section, store) for section in sections]
    bodies = {part.section.key: part.body for part in parts}
    shown = [part.section for part in parts]
    text = render.page(
        title=title, subtitle=subtitle, sections=shown, bodies=bodies, store=store, facts=facts, made=made
    )
    with output_files.folder(folder, ours=_PARTS.__contains__, keep_others=True) as new:
        for name in ("tables", "figures"):
            (new / name).mkdir()
        (new / "index.html").write_text(text, "utf-8")
        for part in parts:
            for name, content in part.files.items():
                (new / name).write_bytes(content)
    names = sorted(name for part in parts for name in part.files)
    return Report(
        folder / "index.html", len(text.encode()), [section.key for section in shown],
        [Path(name).stem for name in names if name.startswith("tables/")],
        [Path(name).stem for name in names if name.endswith(".svg")],
        len(store.sounds),
        {
            section.key: told for section in shown
            if (told := [block.text for block in section.blocks if isinstance(block, Missing)])
        },
    )  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """A section as it is written: its HTML, and its files by name."""

    section: Section
    body: Markup
    files: dict[str, bytes]


def _part(section: Section, store: Store, *, files: bool = True) -> _Part:
    """Draw and render a section; one that fails is left out, and says why."""
    try:
        return _rendered(section, store, files=files)
    except Exception as error:  # noqa: BLE001 (whatever it is, the other sections are to be written)
        return _rendered(replace(section, blocks=[left_out(section.key, error)]), store, files=files)


def _rendered(section: Section, store: Store, *, files: bool) -> _Part:
    figures = render.figures_of(section)
    drawn = {name: style.render(figure, "svg") for name, figure in figures.items()}
    beside = {f"tables/{name}.csv": text.encode("utf-8") for name, text in render.tables_of(section).items()}
    for name, figure in figures.items():
        beside |= {f"figures/{name}.svg": drawn[name], f"figures/{name}.png": style.render(figure, "png")}
    return _Part(section, render.body(section, store, drawn, files=files), beside)


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
    parts = [_part(section, store, files=False) for section in sections]
    text = render.page(
        title=title, subtitle=subtitle, sections=[part.section for part in parts],
        bodies={part.section.key: part.body for part in parts}, store=store, facts=facts, made=made,
    )  # fmt: skip
    output_files.write(path, text)
    return path


def _is_ours(page: Path) -> bool:
    """Whether a page is a report of ours."""
    if not page.is_file():
        return False
    with page.open(encoding="utf-8", errors="replace") as stream:
        return _MARK in stream.read(2000)
