"""`andp features` as a process, on a tiny real network."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform import api, db
from tests import factories, tiny
from tests.factories import Told

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dissected(engine: sa.Engine, tmp_path: Path) -> sa.Engine:
    andp = api.Platform(engine)
    andp.ingest(tiny.sounds(tmp_path / "tones", 3), processes=1)
    andp.add_network("tiny", tiny.network(tmp_path / "network"))
    andp.dissect("tiny", dataset="tones")
    return engine


def loud(word: str) -> Told:
    return Told(points=[f"A {word} sound."], terms=[(word, "adjective")])


@pytest.fixture
def told(engine: sa.Engine) -> sa.Engine:
    """Two networks of which hand-made words are told."""
    with db.transaction(engine) as session:
        layers = {"b00.ff_in": 4, "b01.ff_in": 4, "head": 3}
        factories.world(session, name="one", layers=layers, told={
            "b00.ff_in#0": loud("loud"), "b00.ff_in#1": loud("loud"), "b01.ff_in#3": loud("clear"),
        })  # fmt: skip
        factories.world(session, name="two", layers=layers, told={"head#0": loud("loud")})
    return engine


def test_networks_side_by_side(told: sa.Engine, andp: Run, tmp_path: Path) -> None:
    shown = andp("features", "adjectives", "one", "two", "--plot", str(tmp_path / "a.svg")).stdout.splitlines()
    assert shown[0].split() == [
        "rank",
        "one",
        "one",
        "neurons",
        "one",
        "share",
        "two",
        "two",
        "neurons",
        "two",
        "share",
    ]
    assert shown[1].split() == ["1", "loud", "2", "18.2%", "loud", "1", "9.1%"]
    assert shown[2].split() == ["2", "clear", "1", "9.1%", "–", "–", "–"]
    assert "n = 11 + 11 neurons" in (tmp_path / "a.svg").read_text("utf-8")

    found = json.loads(andp("features", "blocks", "one", "two", "--json", "--plot", str(tmp_path / "b.png")).stdout)[0]
    assert [(row["network"], row["block"], row["n_neurons"], row["mean"]) for row in found["blocks"]] == [
        ("one", 0, 4, 0.5), ("one", 1, 7, pytest.approx(1 / 7)), ("two", 0, 4, 0), ("two", 1, 7, pytest.approx(1 / 7)),
    ]  # fmt: skip
    assert [row["slope"] for row in found["fits"]] == pytest.approx([1 / 7 - 0.5, 1 / 7])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert "slope low" in andp("features", "blocks", "one").stdout

    # of the two words of Figure 8 only one is there
    heard = andp("features", "acoustics", "one", "--json")
    assert [(row["word"], row["n_with"], row["rank_biserial"]) for row in json.loads(heard.stdout)] == [("loud", 2, 0)]
    assert "has 'high-pitched' in C_open" in heard.stderr


def test_ablate_and_acoustics(dissected: sa.Engine, andp: Run, tmp_path: Path) -> None:
    given = ("features", "ablate", "tiny", "--shares", "10,40", "--seeds", "0,1", "--criteria", "basic,single,random")
    with_words = {"env": {"ANDP_BASIC_ADJECTIVES": "clear, purple"}}
    first = andp(*given, "--plot", str(tmp_path / "c.svg"), **with_words)
    assert "no hidden neuron has the adjective 'purple'" in first.stderr
    lines = {line.split()[0] + line.split()[1]: line.split() for line in first.stdout.splitlines()[2:]}
    assert set(lines) == {f"{name}{share}" for name in ("basic", "clear", "purple", "random") for share in (10, 40)}
    assert lines["random10"][2:5] == ["10.7", "6", "2"]  # of 56 neurons, over two seeds
    assert lines["purple40"][2:4] == ["0", "0"]
    assert "9 held-out clips" in (tmp_path / "c.svg").read_text("utf-8")

    again = andp(*given, "--csv", "--basic", "purple,clear")
    assert "evaluations" not in again.stderr  # the same adjectives in another order: nothing to do
    rows = list(csv.DictReader(io.StringIO(again.stdout)))
    assert len(rows) == 4 * 2 * 2
    with db.reading(dissected) as session:
        assert session.scalar(sa.text("SELECT count(*) FROM ablations")) == 16
        runs = session.execute(
            sa.text("SELECT outcome, dissection_id FROM runs WHERE command = 'features ablate'")
        ).all()
    assert [tuple(run) for run in runs] == [("ok", 1), ("ok", 1)]

    heard = andp(
        "features", "acoustics", "tiny", "--word", "clear", "--measure", "mdf", "--plot", str(tmp_path / "d.pdf")
    )
    assert "rank-biserial r = " in heard.stdout and "Welch t = " in heard.stdout
    assert "by construction" in heard.stderr  # captions of the describer
    assert (tmp_path / "d.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("given", "status", "told_"),
    [
        (("adjectives", "nobody"), 3, "no network 'nobody'"),
        (("ablate", "one", "--criteria", " , "), 2, "is empty; give names, separated by commas"),
        (("adjectives", "one", "--plot", "a.gif"), 2, "'a.gif' must end with .svg, .png, .pdf"),
        (("ablate", "one", "--shares", "few"), 2, "'few' is no list of numbers"),
        (("ablate", "one", "--seeds", "0,-1"), 2, "'0,-1' is no list of whole numbers from 0 up"),
        (("ablate", "one", "--criteria", "noun"), 2, "did you mean 'nouns'"),
        (("acoustics", "one", "--word", "loud", "--word", "lout"), 3, "did you mean: loud"),
    ],
)
def test_wrong_input(told: sa.Engine, andp: Run, given: tuple[str, ...], status: int, told_: str) -> None:
    done = andp("features", *given, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert told_ in done.stderr and len(done.stderr.splitlines()) == 1
