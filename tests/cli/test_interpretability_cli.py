"""`andp interpretability` as a process, on a tiny real network."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform import api
from tests import tiny

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dissected(engine: sa.Engine, tmp_path: Path) -> sa.Engine:
    andp = api.Platform(engine)
    andp.ingest(tiny.sounds(tmp_path / "tones", 3), processes=1)
    andp.add_network("tiny", tiny.network(tmp_path / "network"))
    andp.dissect("tiny", dataset="tones")
    return engine


def test_from_captions_to_figures(dissected: sa.Engine, andp: Run, tmp_path: Path) -> None:
    early = andp("interpretability", "blocks", "tiny", check=False)
    assert early.returncode == 1
    assert "not been clustered yet; run: andp interpretability cluster tiny" in early.stderr
    assert "nothing has been clustered yet" in andp("interpretability", "list").stderr

    first = andp("interpretability", "cluster", "tiny", "--clusters", "3")
    assert "clustering 1: 3 clusters, as asked for (seed 0)" in first.stdout
    assert "of 9 captions of tones" in first.stdout
    assert andp("interpretability", "cluster", "tiny", "--clusters", "3").stdout == first.stdout
    (listed,) = json.loads(andp("interpretability", "list", "--json").stdout)
    assert (listed["id"], listed["n_clusters"], listed["chosen_by"], listed["dataset"]) == (1, 3, "given", "tones")
    (run, *_) = json.loads(andp("runs", "list", "--json").stdout)
    assert (run["command"], run["outcome"]) == ("interpretability cluster", "ok")

    rows = json.loads(andp("interpretability", "blocks", "tiny", "--tau", "4", "--json").stdout)
    assert [(row["block"], row["layer_kind"], row["k"], row["tau"]) for row in rows] == [(0, "all", 5, 4)]
    assert rows[0]["n_neurons"] == 16 + 24 + 16 + 3
    assert rows[0]["share"] == rows[0]["n_uninterpretable"] / rows[0]["n_neurons"]
    by_kind = json.loads(andp("interpretability", "blocks", "tiny", "--by", "kind", "--json").stdout)
    assert [row["layer_kind"] for row in by_kind] == ["attn_out", "ff_in", "ff_out", "head"]
    assert sum(row["n_uninterpretable"] for row in by_kind) == rows[0]["n_uninterpretable"]

    # Nine clips: K = 10 and 20 are K = 9.
    grid = andp("interpretability", "blocks", "tiny", "--all", "--csv", "--plot", str(tmp_path / "grid.svg"))
    table = list(csv.DictReader(io.StringIO(grid.stdout)))
    assert [(row["k"], row["tau"]) for row in table] == [
        ("5", "3"),
        ("5", "4"),
        ("5", "5"),
        ("9", "6"),
        ("9", "8"),
        ("9", "9"),
    ]
    assert "only 9 exemplars of a neuron are kept, so K = 20 is K = 9" in grid.stderr
    assert "tones · tiny · recipe " in (tmp_path / "grid.svg").read_text("utf-8")
    andp("interpretability", "blocks", "tiny", "--k", "20", "--by", "kind", "--plot", str(tmp_path / "kinds.png"))
    assert (tmp_path / "kinds.png").read_bytes().startswith(b"\x89PNG")

    clouds = andp(
        "interpretability", "words", "tiny", "--plot", str(tmp_path / "c.png"), "-o", str(tmp_path / "clouds")
    )
    assert clouds.stdout == first.stdout
    assert sorted(path.name for path in (tmp_path / "clouds").iterdir()) == [f"cluster-{i:02d}.svg" for i in (1, 2, 3)]
    words = json.loads(andp("interpretability", "words", "tiny", "--json").stdout)
    assert sum(row["n_sentences"] for row in words) == int(listed["n_sentences"])
    assert [row["n_sentences"] for row in words] == sorted((row["n_sentences"] for row in words), reverse=True)


def test_the_elbow_is_drawn(dissected: sa.Engine, andp: Run, tmp_path: Path) -> None:
    made = andp("interpretability", "cluster", "tiny", "--max-clusters", "12", "--plot", str(tmp_path / "elbow.svg"))
    assert "by the elbow method" in made.stdout
    assert " clusters</text>" in (tmp_path / "elbow.svg").read_text("utf-8")
    other = andp("interpretability", "cluster", "tiny", "--clusters", "2")
    assert "clustering 1 stays the default; to use this one: --clustering 2" in other.stderr
    rows = json.loads(andp("interpretability", "blocks", "tiny", "--clustering", "2", "--json").stdout)
    assert {row["n_clusters"] for row in rows} == {2}


WRONG = (
    (("cluster", "nothing"), 3, "nothing"),
    (("cluster", "tiny", "--plot", "elbow.txt"), 2, "'elbow.txt' must end with .svg, .png, .pdf"),
    (("cluster", "tiny", "--clusters", "3", "--plot", "elbow.svg"), 2, "there is none"),
    (("cluster", "tiny", "--clusters", "999"), 2, "distinct sentences; ask for at most"),
    (("blocks", "tiny", "--all", "--k", "10"), 2, "leave --tau and --k out"),
    (("blocks", "tiny", "--clustering", "9"), 3, "no clustering 9; see: andp interpretability list"),
    (("blocks", "tiny", "--k", "21"), 2, "1<=x<=20"),
    (("words", "tiny"), 1, "run: andp interpretability cluster tiny"),
)


def test_wrong_input(dissected: sa.Engine, andp: Run) -> None:
    for arguments, status, said in WRONG:
        ended = andp("interpretability", *arguments, check=False)
        assert (ended.returncode, ended.stdout) == (status, ""), arguments
        assert said in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
    andp("interpretability", "cluster", "tiny", "--clusters", "2")
    ended = andp("interpretability", "blocks", "tiny", "--tau", "6", check=False)
    assert ended.returncode == 2
    assert "tau is 6 of K = 5 exemplars; give 1 to 5" in ended.stderr
