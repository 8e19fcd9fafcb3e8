"""`andp report` as a process, and its page as a browser sees it."""

from __future__ import annotations

import base64
import csv
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import soundfile
import sqlalchemy as sa

from and_platform import db
from and_platform.services.report import SECTIONS
from tests import factories
from tests.db.test_report import LAYERS, TOLD, sounds

Andp = Callable[..., "subprocess.CompletedProcess[str]"]

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def dissected(engine: sa.Engine, tmp_path: Path) -> sa.Engine:
    with db.transaction(engine) as session:
        factories.world(session, layers=LAYERS, told=TOLD)
    sounds(engine, tmp_path / "sounds", "sounds of net")
    return engine


class _Page(HTMLParser):
    """Tags with attributes, and whether every element that was opened is closed."""

    _VOID = frozenset({"meta", "link", "input", "br", "img", "path", "use", "rect", "image"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.wrong += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._VOID:
            return
        if not self._open or self._open.pop() != tag:
            self.wrong.append(f"/{tag}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_one_page_holds_everything(andp: Andp, dissected: sa.Engine, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = andp("report", "net", "-o", str(out), "--stored-only")
    assert done.stdout == ""
    assert f"wrote {out / 'index.html'}" in done.stderr
    assert "last-layer: Not in this report: it has not been computed yet; run: andp eval last-layer net" in done.stderr
    text = (out / "index.html").read_text("utf-8")
    page = _Page(text)
    assert page.wrong == []
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    sections = [attributes for attributes in page.all("section") if attributes.get("class") == "part"]
    assert tuple(one["id"] for one in sections) == SECTIONS
    assert {a["href"] for a in page.all("a") if (a["href"] or "").startswith("#")} == {f"#{key}" for key in SECTIONS}
    # Nothing is fetched from anywhere.
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "poster", "srcset", "action"):
            value = attributes.get(name) or ""
            assert not value.startswith(("http:", "https:", "//")), (tag, value)
            assert tag == "a" or name == "href" or value.startswith(("data:", "#", "")), (tag, value)
    assert "@import" not in text and "url(http" not in text
    for link in page.all("a"):
        if not (link["href"] or "").startswith("#"):
            assert (out / (link["href"] or "")).is_file()
    # Every clip that is on disk can be heard; the one that is not is named.
    clips = [(attributes["id"], attributes["src"] or "") for attributes in page.all("audio")]
    assert len(clips) > 3
    for _, source in clips:
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(source.removeprefix("data:audio/ogg;base64,"))))
        assert (rate, wave.ndim) == (8000, 1) and 0.4 < len(wave) / rate < 0.6
    played = {f"clip-{a['data-clip']}" for a in page.all("button")}
    assert played == {identity for identity, _ in clips}
    assert "since they cannot be read: 1 clip; the first, siren/00005.wav: missing" in text
    for figure in (out / "figures").glob("*.svg"):
        assert "sounds of net · net · recipe" in figure.read_text("utf-8"), figure.name
        assert " · n = " in figure.read_text("utf-8")
    again = andp("report", "network", "net", "-o", str(out), "--stored-only", "--skip", "layers")
    assert "wrote" in again.stderr and not (out / "tables" / "layers.csv").exists()


def test_what_a_report_cannot_be(andp: Andp, dissected: sa.Engine, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for arguments, code, told in (
        (("net", "-o", str(mine)), 2, "holds something else"),
        (("nobody", "-o", str(tmp_path / "x")), 3, "no network 'nobody'"),
        (("net",), 2, "--output"),
        (("net", "-o", str(tmp_path / "x"), "--skip", "sweeps"), 2, "no section 'sweeps' to skip"),
        (("compare", "net", "-o", str(tmp_path / "x")), 2, "name at least two networks"),
        (("neuron", "net", "head#9"), 2, "no neuron 'head#9'"),
        (("neuron", "net", "head#0", "-o", str(tmp_path / "x.txt")), 2, "end it with .html"),
    ):
        done = andp("report", *arguments, check=False)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert told in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    assert not (tmp_path / "x").exists()


def test_help_says_that_the_subcommand_may_be_left_out(andp: Andp) -> None:
    for arguments in (("report",), ("report", "--help")):
        done = andp(*arguments, check=False)
        assert "`andp report NETWORK …` is `andp report network" in " ".join((done.stdout + done.stderr).split())


def test_neurons_in_the_terminal(andp: Andp, dissected: sa.Engine) -> None:
    rows = json.loads(andp("report", "neurons", "net", "head#1", "b00.ff_in#1", "--json").stdout)
    assert [(row["neuron"], row["closed_db"]) for row in rows] == [("head#1", "rain"), ("b00.ff_in#1", "dog")]
    read = list(csv.DictReader(io.StringIO(andp("report", "neurons", "net", "--per-layer", "2", "--csv").stdout)))
    assert [row["layer"] for row in read] == ["b00.ff_in"] * 2 + ["b01.ff_in"] * 2 + ["head"] * 2
    told = andp("report", "neurons", "net", "head#1").stdout
    assert "Rain falls on a high-pitched metal roof." in told and "by captions (DB)" in told
    story = andp("report", "neuron", "net", "b00.ff_in#1").stdout
    assert "dropped: L1 says it too, cosine 0.90" in story and "removed 1 of the other side" in story
    found = json.loads(andp("report", "neuron", "net", "b00.ff_in#1", "--json").stdout)
    assert found[0]["low_points"][0]["removed"] == ["There is a low hum somewhere."]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def test_the_page_in_a_browser(andp: Andp, dissected: sa.Engine, tmp_path: Path, browser: Any) -> None:
    out = tmp_path / "report"
    andp("report", "net", "-o", str(out), "--stored-only")
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto((out / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre')
               && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert wide == []
        button = page.locator("#pipeline button.play").first
        button.click()
        sound = f"document.getElementById('clip-{button.get_attribute('data-clip')}')"
        page.wait_for_function(f"{sound}.currentTime > 0")
        assert page.evaluate(f"{sound}.error") is None
        page.locator("#about summary").first.click()
        assert page.locator("#table-recipes table").is_visible()
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        page.close()


HOSTILE = (
    """</script><script>document.title='taken'</script><!-- {{ 7*7 }} {% raw %} "><img src=x onerror="document.title='taken'">"""
    ' ]]> </text></svg> $x_1$ $\\frac{ id="a" url(#b) \x1b[31m\u202e \u2028 & &amp;'
)


def test_names_captions_and_labels_stay_text(andp: Andp, dissected: sa.Engine, tmp_path: Path, browser: Any) -> None:
    with db.transaction(dissected) as session:
        for table, column in (("texts", "text"), ("clips", "labels"), ("networks", "name"), ("datasets", "name"),
                              ("concepts", "name")):  # fmt: skip
            change = f"array[{column}[1] || :told]" if column == "labels" else f"{column} || :told"
            session.execute(sa.text(f"UPDATE {table} SET {column} = {change}"), {"told": HOSTILE})
    out = tmp_path / "report"
    done = andp("report", "net" + HOSTILE, "-o", str(out), "--stored-only")
    assert "could not be made" not in done.stderr
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((out / "index.html").as_uri())
    assert page.title().startswith("What the neurons of net</script><script>") and "taken'</script>" in page.title()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1
    assert page.locator("main > section.part").count() == len(SECTIONS)
    shown = page.locator("main").inner_text()
    assert "{{ 7*7 }}" in shown and "49" not in page.locator("h1").inner_text()
    assert wrong == []
    for figure in (out / "figures").glob("*.svg"):
        tree = ElementTree.parse(figure)
        assert not [one for one in tree.iter() if one.tag.endswith(("script", "img"))]
    page.close()
