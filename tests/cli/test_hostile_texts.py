"""File names, labels and captions that hold what a terminal obeys, what hides, markup, and formulas."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from and_platform import escaping, logs
from and_platform.cli import output

Andp = Callable[..., subprocess.CompletedProcess[str]]

HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m", "title": "\x1b]0;owned\x07", "link": "\x1b]8;;http://x\x1b\\click\x1b]8;;\x1b\\",
    "eight bits": "\x9b31mred", "back": "abc\x08\x08\x08xyz", "return": "good\rbad", "bidi": "invoice\u202efdp.exe",
    "isolate": "a\u2066b\u2069c", "no width": "pass\u200bword", "bom": "\ufeffx", "separator": "a\u2028b", "bell": "\x07",
}  # fmt: skip
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff]")
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", "\uff1d1+1"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_of_it_reaches_a_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.show_rows([{"name": text, f"column {text}": [text], "object": {"a": text}}], "table", title=f"of {text}")
    output.console().print(f"said {text}", markup=False)
    output.messages().print(output.Text(text, style="dim"))
    output.Bars().note(text)
    printed = capsys.readouterr()
    assert not OBEYED.search(printed.out + printed.err)
    assert "\\" in printed.out


def test_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_rows([{"name": "[red]x[/red] [link=http://x]y[/link]"}], "table", title="[bold]t[/bold]")
    assert (
        "[red]x[/red] [link=http://x]y[/link]" in (printed := capsys.readouterr().out) and "[bold]t[/bold]" in printed
    )


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_json_reads_back_as_the_same_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"name": text, text: 1})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": text, text: 1} and not OBEYED.search(printed)


def test_the_log_for_people_is_clean() -> None:
    import logging

    out = io.StringIO()
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.configure("INFO", stream=out)
        logging.getLogger("x").info("read %s\nand %s", HOSTILE["title"], HOSTILE["bidi"])
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
    assert out.getvalue() == "INFO x: read \\x1b]0;owned\\x07\nand invoice\\u202efdp.exe\n"


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_csv_is_a_formula(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_csv([{"label": text, "list": [text], text: -1.5}])
    heads, row = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert row[:2] == [f"'{text}"] * 2 and heads[2] == f"'{text}"
    assert row[2] == "-1.5"


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-9", "-inf", "a=b", "", "1-2", "–", "it's"])
def test_numbers_and_words_stay(text: str) -> None:
    assert escaping.for_spreadsheet(text) == text


@given(st.text(alphabet="'=+-@\t\r1a", max_size=6))
def test_one_apostrophe_less_gives_the_cell_back(text: str) -> None:
    cell = escaping.for_spreadsheet(text)
    undone = cell[1:] if re.match("''*[=+\\-@\t\r]", cell) else cell
    assert undone == text


def test_a_folder_with_hostile_names(andp: Andp, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    names = ["=1+1", "@x", "\x1b[31mred", "re\u202edro", "[red]bold[", "new\nline"]
    for name in names:
        (sounds / name).mkdir(parents=True)
        soundfile.write(sounds / name / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(4_000), 8_000)
        (sounds / name / f"broken {name}.wav").write_bytes(b"RIFF")
    runs = [
        andp("ingest", "folder", str(sounds), "--name", "hostile", check=False),
        andp("failures"),
        andp("datasets", "show", "hostile"),
        andp("sql", "SELECT path, labels[1] AS label FROM clips"),
        andp("datasets", "show", "no \x1b[31msuch", check=False),
    ]
    for run in runs:
        assert not OBEYED.search(run.stdout + run.stderr), run.args
        assert "Traceback" not in run.stderr
    assert "\\x1b[31mred" in runs[3].stdout and "[red]bold[" in runs[3].stdout and "re\\u202edro" in runs[3].stdout
    assert runs[4].returncode == 3 and "\\x1b[31m" in runs[4].stderr
    query = "SELECT labels[1] AS label FROM clips"
    listed = list(csv.reader(io.StringIO(andp("sql", "--csv", query).stdout, newline="")))
    assert {row[0] for row in listed[1:]} == {"'=1+1", "'@x", "\x1b[31mred", "re\u202edro", "[red]bold[", "new\nline"}
    assert {row["label"] for row in json.loads(andp("sql", "--json", query).stdout)} == set(names)
