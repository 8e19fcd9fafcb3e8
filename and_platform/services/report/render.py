"""From sections to one HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from and_platform.resources import resource
from and_platform.services.report import formats
from and_platform.services.report.content import Plot, Section, Table
from and_platform.services.report.sounds import Store

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

MOST_ROWS = 150
"""Rows of a table in the page; the CSV holds all."""


def page(
    *,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    bodies: Mapping[str, Markup],
    store: Store,
    made: str,
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """The HTML of a report.

    Parameters
    ----------
    bodies
        HTML of each section by its key, from `body`.
    facts
        Names and values under the title.
    """
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
            bodies=bodies,
            store=store,
            made=made,
            facts=facts,
            css=_read("report.css"),
            js=_read("report.js"),
        )
    )


def body(section: Section, store: Store, drawn: Mapping[str, bytes], *, files: bool = True) -> Markup:
    """The HTML of a section.

    Parameters
    ----------
    drawn
        Figures as SVG, by name.
    files
        Whether tables and figures lie beside the page as files, so that it may link to them.
    """
    from markupsafe import Markup

    def figure(plot: Plot) -> Markup:
        return Markup(inline_svg(drawn[plot.name].decode("utf-8"), plot.name, plot.title))

    template = _environment().get_template("section.html")
    return Markup(template.render(section=section, store=store, files=files, most_rows=MOST_ROWS, figure=figure))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(resource("report")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        cell=formats.cell, share=formats.share, number=formats.number, heading=formats.heading, prose=_prose,
        marked=marked,
    )  # fmt: skip
    environment.globals["grid"] = formats.grid
    return environment


def _read(name: str) -> Markup:
    from markupsafe import Markup

    return Markup(resource(f"report/{name}").read_text("utf-8"))


def inline_svg(text: str, name: str, title: str) -> str:
    """An SVG document as an element of a page.

    Parameters
    ----------
    name
        Prefix of its ids: those of two figures must not meet in one page.
    title
        What it shows, for those who do not see it.
    """
    from markupsafe import escape

    body = text[text.index("<svg") :]
    before, metadata, rest = body.partition("<metadata>")
    body = before + rest.partition("</metadata>")[2] if metadata else body
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)\s]{1,200})\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    # What is under it is the page's.
    body = body.replace('style="fill: #ffffff"', 'style="fill: none"')
    # Where the font is missing, one of the same widths.
    body = body.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    opening, rest = body.split(">", 1)
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    wide = round(float(found[1]) * 96 / 72) if found else 600
    return f'{opening} role="img" aria-label="{escape(title)}" style="width:{wide}px">{rest}'


def marked(caption: str, points: Sequence[Mapping[str, Any]]) -> Markup:
    """A caption in which the words of a summary's points are marked: those kept, those dropped, those that dropped others."""
    from markupsafe import Markup, escape

    parts: list[tuple[str, str]] = [(caption, "")]
    for point in points:
        kind = "kept" if point.get("kept", not point.get("removed")) else "gone"
        split: list[tuple[str, str]] = []
        for text, mark in parts:
            if mark or point["point"] not in text:
                split.append((text, mark))
                continue
            before, after = text.split(point["point"], 1)
            split += [(before, ""), (point["point"], kind), (after, "")]
        parts = split
    return Markup("").join(
        Markup('<mark class="{}">{}</mark>').format(mark, text) if mark else escape(text) for text, mark in parts
    )


def _prose(text: str) -> Markup:
    """Text with `code` and paragraphs."""
    from markupsafe import Markup, escape

    parts = []
    for paragraph in text.strip().split("\n\n"):
        told = str(escape(" ".join(paragraph.split())))
        with_code = re.sub(r"`([^`]+)`", r"<code>\1</code>", told)
        parts.append(f"<p>{with_code}</p>")
    return Markup("\n".join(parts))


def tables_of(section: Section) -> dict[str, str]:
    """Every table as CSV, by name."""
    return {block.name: formats.to_csv(block.rows) for block in section.blocks if isinstance(block, Table)}


def figures_of(section: Section) -> dict[str, Figure]:
    """Every figure by name."""
    return {block.name: block.figure for block in section.blocks if isinstance(block, Plot)}
