"""`andp study` as a process, and its page in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.services import study
from tests import studies

Andp = Callable[..., subprocess.CompletedProcess[str]]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def folder(engine: sa.Engine, tmp_path: Path) -> Path:
    """A study of two neurons, three clips and two descriptions each."""
    with db.transaction(engine) as session:
        studies.world(session, tmp_path / "sounds")
    out = tmp_path / "out"
    study.export(engine, "net", out, name="pilot", per_layer=1, exemplars=3, methods=["closed_db", "summary"])
    return out


def answers(folder: Path, rater: str, **ratings: int) -> Path:
    data = studies.data_of(folder)
    path = folder.parent / f"{rater}.json"
    content = {
        "format": data["format"], "version": data["version"], "study": data["study"], "rater": rater,
        "answers": [{"item": item["item"], "summary": "a dog", "ratings": ratings} for item in data["items"]],
    }  # fmt: skip
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_from_export_to_results(andp: Andp, folder: Path) -> None:
    again = folder.parent / "again"
    told = andp(
        "study", "export", "net", "-o", str(again), "--name", "pilot", "--per-layer", "1", "--exemplars", "3",
        "--methods", "closed_db,summary",
    )  # fmt: skip
    assert told.stdout == ""
    assert f"study 'pilot' (the study was there: written again): {again}/index.html" in told.stderr
    assert "2 neurons, 4 descriptions (closed_db, summary), " in told.stderr
    assert (again / "index.html").read_bytes() == (folder / "index.html").read_bytes()

    good, also = answers(folder, "R1", A=5, B=1), answers(folder, "R2", A=5, B=2)
    bad = answers(folder, "R3", A=7)
    told = andp("study", "import", str(good), str(bad), str(also), check=False)
    assert told.returncode == 2
    assert [line.split()[0] for line in told.stderr.splitlines()] == ["imported", "refused", "imported", "andp:"]
    assert f"{bad}: answers[0].ratings.A: input should be less than or equal to 5" in told.stderr
    assert told.stderr.endswith("andp: 1 of 3 files could not be taken; the other 2 were\n")

    figure = folder.parent / "ratings.svg"
    shown = andp("study", "results", "pilot", "--paper", "--plot", str(figure))
    assert "agreement of 2 raters (Krippendorff's alpha, ordinal):" in shown.stdout
    assert "paper's rating" in shown.stdout and "120 neurons of AST" in shown.stderr
    assert "strongly disagree" in figure.read_text("utf-8") and "sounds of net · net · recipe" in figure.read_text(
        "utf-8"
    )
    header, *rows = andp("study", "results", "--csv").stdout.splitlines()
    assert header.startswith("method,n_neurons,n_ratings,rating,low,high,counts,alpha,") and len(rows) == 2

    [listed] = json.loads(andp("study", "list", "--json").stdout)
    assert (listed["name"], listed["neurons"], listed["raters"], listed["ratings"]) == ("pilot", 2, 2, 8)
    assert andp("study", "drop", "pilot", given="n\n", check=False).returncode == 1
    assert "dropped 'pilot' (8 ratings)" in andp("study", "drop", "pilot", "--yes").stderr


def test_wrong_use_is_one_line(andp: Andp, folder: Path) -> None:
    def told(*arguments: str) -> str:
        done = andp("study", *arguments, check=False)
        assert done.returncode != 0 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    assert "is not empty; name another folder" in told("export", "net", "-o", str(folder))
    assert "'pilot' with per-layer 1 instead of 10" in told(
        "export", "net", "-o", str(folder), "--name", "pilot", "--force"
    )
    assert "name it with --bertscore-model" in told("results", "--bertscore-layers", "3")
    assert "there is nothing to draw" in told("results", "--plot", str(folder.parent / "x.png"))
    assert "no study 'pilo'; did you mean pilot?" in told("drop", "pilo")


# ---------------------------------------------------------------------- the page


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Any]:
    """A browser's context, in which nothing may go to the network."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        made = browser.new_context(viewport={"width": 360, "height": 740}, accept_downloads=True)
        made.set_default_timeout(15_000)
        yield made
        browser.close()


def opened(context: Any, folder: Path) -> tuple[Any, list[str]]:
    """The page, and a list that grows with all that goes wrong in it."""
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url),
    )
    page.goto((folder / "index.html").as_uri())
    return page, wrong


def begin(page: Any, code: str = "R1") -> None:
    page.get_by_label("Your code").fill(code)
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("heading", name="Group 1 of 2").wait_for()


def test_a_rater_listens_writes_rates_and_saves(andp: Andp, folder: Path, context: Any, tmp_path: Path) -> None:
    page, wrong = opened(context, folder)
    page.get_by_role("button", name="Begin").click()
    assert "Enter your code" in page.get_by_role("alert").inner_text()
    begin(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

    # Listen: every clip loads, and one plays to its end.
    page.wait_for_function("[...document.querySelectorAll('audio')].every((one) => one.duration > 0)")
    assert page.evaluate("[...document.querySelectorAll('audio')].map((one) => Math.round(10 * one.duration))") == [
        5,
        5,
        5,
    ]
    page.get_by_role("button", name="Play clip 2").click()
    page.get_by_role("button", name="Play clip 2, heard").wait_for()
    assert "clip 1, 3" in page.locator("#heard-hint").inner_text()

    # Write, before anything is shown.
    said = [one["text"] for one in studies.data_of(folder)["items"][0]["descriptions"]]
    assert not any(text.splitlines()[0] in page.inner_text("main") for text in said)
    page.get_by_role("button", name="Show the descriptions").click()
    assert "Write what the clips have in common first" in page.locator("#text-error").inner_text()
    page.get_by_label("What do most of these clips have in common?").fill("  A <i>steady</i> tone. ")
    page.get_by_role("button", name="Show the descriptions").click()
    assert page.locator("textarea").count() == 0
    assert page.locator("blockquote").inner_text() == "A <i>steady</i> tone."
    shown = page.locator(".said").all_inner_texts()
    assert [" ".join(text.split()) for text in shown] == [" ".join(text.split()) for text in said]

    # Rate: with the mouse, then with the keyboard.
    page.get_by_role("group", name="Description A").get_by_role("radio", name="4 agree").check()
    page.locator("#judge").focus()
    page.keyboard.press("2")
    assert page.get_by_role("group", name="Description B").get_by_role("radio", name="2 disagree").is_checked()
    assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "1"

    # Reload, and close: nothing is lost, and what was written stays as it was.
    page.reload()
    page.get_by_role("heading", name="Group 1 of 2").wait_for()
    assert page.locator("blockquote").inner_text() == "A <i>steady</i> tone."
    assert page.locator("input:checked").evaluate_all("all => all.map((one) => one.value)") == ["4", "2"]
    page.keyboard.press("n")
    page.get_by_label("What do most of these clips have in common?").fill("half a th")
    page.close()
    page, wrong_too = opened(context, folder)
    assert page.get_by_label("Your code").input_value() == "R1"
    assert "1 of 2 groups begun" in page.inner_text("#code-there")
    page.get_by_role("button", name="Begin").click()
    page.get_by_role("heading", name="Group 2 of 2").wait_for()
    assert page.get_by_label("What do most of these clips have in common?").input_value() == "half a th"

    # Save what there is, and take it in.
    page.get_by_role("button", name="Finish").click()
    assert "1 of 2 groups are complete" in page.inner_text("main")
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "answers-pilot-R1.json"
    path = tmp_path / "answers.json"
    download.value.save_as(path)
    content = json.loads(path.read_text("utf-8"))
    assert content["answers"] == [{"item": 1, "summary": "A <i>steady</i> tone.", "ratings": {"A": 4, "B": 2}}]
    told = andp("study", "import", str(path)).stderr
    assert "imported" in told and "rater R1, 1 of 2 neurons, 2 of 4 ratings, 1 summaries" in told
    found = json.loads(andp("study", "results", "--json").stdout)
    assert sorted(row["rating"] for row in found["rows"]) == [2, 4]
    assert wrong + wrong_too == []


def test_a_saved_file_goes_on_elsewhere(folder: Path, context: Any) -> None:
    page, wrong = opened(context, folder)
    page.locator("summary").click()
    page.locator("#earlier").set_input_files(
        {"name": "x.json", "mimeType": "application/json", "buffer": b'{"format": 1}'}
    )
    page.get_by_text("That file holds no answers to this study.").wait_for()
    page.locator("#earlier").set_input_files(answers(folder, "R7", A=3, B=4))
    page.get_by_role("heading", name="Group 1 of 2").wait_for()
    assert page.locator("input:checked").evaluate_all("all => all.map((one) => one.value)") == ["3", "4"]
    assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "2"
    assert wrong == []


def test_two_raters_at_one_computer_do_not_meet(folder: Path, context: Any) -> None:
    page, wrong = opened(context, folder)
    begin(page, "R1")
    page.locator("#text").fill("mine alone")
    page.close()
    page, wrong_too = opened(context, folder)
    begin(page, "R2")
    assert page.locator("#text").input_value() == ""
    assert wrong + wrong_too == []


HOSTILE = (
    "{{data}}", "{{script}} {{style}}", "</script><script>document.title='taken'</script>", "<!--<script>", "]]>",
    '"><img src=x onerror="document.title=\'taken\'">', "${document.title='taken'}", "a\u2028b\u2029c", "&lt;b&gt; \\u003c",
    "{% raw %}{{ 7*7 }}{# #}",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_and_descriptions_stay_text(engine: sa.Engine, tmp_path: Path, context: Any, name: str) -> None:
    with db.transaction(engine) as session:
        studies.world(session, tmp_path / "sounds")
        session.execute(sa.text("UPDATE texts SET text = text || :hostile"), {"hostile": f" {name}"})
    out = tmp_path / "out"
    study.export(engine, "net", out, name=name, per_layer=1, exemplars=1, methods=["closed_db", "summary"])
    flat = " ".join(name.split())
    assert studies.data_of(out)["name"] == name
    note = (out / "README.txt").read_text("utf-8")
    assert note.startswith(f"{flat}\nA listening study: 2 groups of up to 1 short clips")
    page, wrong = opened(context, out)
    assert page.title() == f"Listening study: {flat}"
    begin(page)
    page.get_by_label("What do most of these clips have in common?").fill("a tone")
    page.get_by_role("button", name="Show the descriptions").click()
    said = [" ".join(one["text"].split()) for one in studies.data_of(out)["items"][0]["descriptions"]]
    assert [" ".join(text.split()) for text in page.locator(".said").all_inner_texts()] == said
    assert page.title().startswith("Listening study") and page.locator("img").count() == 0
    assert wrong == []


def test_a_missing_clip_is_told(folder: Path, context: Any) -> None:
    clip = folder / studies.data_of(folder)["items"][0]["clips"][0]
    clip.unlink()
    page, _ = opened(context, folder)
    begin(page)
    page.get_by_text("Keep the folder “audio” beside this page").wait_for()
    assert "cannot be played" in page.get_by_role("button", name="Play clip 1").inner_text()
