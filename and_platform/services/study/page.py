"""The folder that raters open: one page with its data in it, the clips beside it, and a note that says what to do."""

from __future__ import annotations

import html
import json
import re
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

# What HTML reads in a script element, and the separators that JavaScript once took for ends of lines.
_UNSAFE = re.compile("[<>&\u2028\u2029]")

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
    return _filled(
        parts["page.html"],
        name=html.escape(" ".join(data["name"].split())),
        style=parts["page.css"],
        script=parts["page.js"],
        data=embedded(data),
    )


def embedded(data: Any) -> str:
    """JSON for a script element: whatever a text says, it can neither end the element nor begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def token_of(folder: Path) -> str | None:
    """The token of the study whose page is in a folder; None where there is no page of ours."""
    try:
        text = (folder / INDEX).read_text("utf-8")
        found = re.search(r'<script type="application/json" id="study-data">(.*?)</script>', text, re.DOTALL)
        token = json.loads(found[1])["study"] if found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return token if isinstance(token, str) else None


def _filled(template: str, **values: str) -> str:
    """Put values into the places `{{name}}` of a template, in one pass: a value that looks like a place stays as it is."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], template)


def readme(name: str, n_items: int, n_clips: int) -> str:
    """What raters have to know, as plain text."""
    text = (resource("study") / README).read_text("utf-8")
    return _filled(text, name=" ".join(name.split()), items=str(n_items), clips=str(n_clips))


def write(folder: Path, token: str, name: str, shown: list[dict[str, Any]], clips: list[dict[str, Any]]) -> None:
    """Write the page and the note into a folder in which the clips are."""
    data = content(token, name, shown, clips)
    most = max((len(item["clips"]) for item in data["items"]), default=0)
    (folder / INDEX).write_text(render(data), "utf-8")
    (folder / README).write_text(readme(name, len(data["items"]), most), "utf-8")
