"""The folder that raters open: one page with its data in it, the clips beside it, and a note that says what to do."""

from __future__ import annotations

import html
import json
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from and_platform.core.agreement import SCALE
from and_platform.resources import resource

INDEX, README, AUDIO = "index.html", "README.txt", "audio"

FORMAT = "and-platform study answers"
VERSION = 1
"""Of the file of answers; counts up when it changes in a way that older readers would misread."""

QUESTION = "Does the given description accurately describe most of these audio clips?"
"""As the paper asks it (section 4.2)."""

STEPS = ("strongly disagree", "disagree", "neither agree nor disagree", "agree", "strongly agree")


def content(token: str, name: str, shown: list[dict[str, Any]], clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the page knows. Not in it: networks, layers, neurons, labels, captions, methods.

    Parameters
    ----------
    shown
        `item`, `slot`, `text` of each description, in order.
    clips
        `item`, `rank`, `file` of each clip, in order.
    """
    files = {item: [f"{AUDIO}/{row['file']}" for row in rows] for item, rows in groupby(clips, itemgetter("item"))}
    items = [
        {
            "item": item,
            "clips": files.get(item, []),
            "descriptions": [{"slot": row["slot"], "text": row["text"]} for row in rows],
        }
        for item, rows in groupby(shown, itemgetter("item"))
    ]
    low, _ = SCALE
    return {
        "format": FORMAT, "version": VERSION, "study": token, "name": name, "question": QUESTION,
        "steps": [{"value": low + i, "name": step} for i, step in enumerate(STEPS)], "items": items,
    }  # fmt: skip


def render(data: dict[str, Any]) -> str:
    """The page: markup, style, script and data in one file, which needs nothing else but the clips."""
    parts = {name: (resource("study") / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")}
    # Whatever a description says, it cannot end the element that it stands in.
    embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = parts["page.html"]
    for place, text in (
        ("{{name}}", html.escape(data["name"])), ("{{style}}", parts["page.css"]), ("{{script}}", parts["page.js"]),
        ("{{data}}", embedded),
    ):  # fmt: skip
        before, found, after = page.partition(place)
        assert found, place
        page = before + text + after
    return page


def readme(name: str, n_items: int, n_clips: int) -> str:
    """What raters have to know, as plain text."""
    text = (resource("study") / README).read_text("utf-8")
    for place, value in (("{{name}}", name), ("{{items}}", str(n_items)), ("{{clips}}", str(n_clips))):
        text = text.replace(place, value)
    return text


def write(folder: Path, token: str, name: str, shown: list[dict[str, Any]], clips: list[dict[str, Any]]) -> None:
    """Write the page and the note into a folder in which the clips are."""
    data = content(token, name, shown, clips)
    most = max((len(item["clips"]) for item in data["items"]), default=0)
    (folder / INDEX).write_text(render(data), "utf-8")
    (folder / README).write_text(readme(name, len(data["items"]), most), "utf-8")
