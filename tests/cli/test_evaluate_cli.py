"""`andp eval` as a process."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.schema import DissectionRecipe, Scoring
from tests import factories

Andp = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _world(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session, n_clips=12, told=factories.TOLD)
        recipe = session.get_one(Scoring, world.scoring_id).recipe_id
        session.add(DissectionRecipe(dissection_id=world.dissection.id, stage="score.db", recipe_id=recipe))


def test_classes(andp: Andp) -> None:
    rows = json.loads(andp("eval", "classes", "net", "--json").stdout)
    assert rows[0] == {"unit": 0, "class": "dog", "concept": "dog", "how": "exact"}
    changed = andp("eval", "classes", "net", "--map", "siren=Rain", "--csv").stdout.splitlines()
    assert changed[3] == "2,siren,rain,given"
    for wrong, told in (
        ("siren", "andp: 'siren' is no mapping; write --map \"CLASS=CONCEPT\""),
        ("sirene=rain", "andp: 'net' has no class 'sirene'; perhaps 'siren'"),
    ):
        refused = andp("eval", "classes", "net", "--map", wrong, check=False)
        assert refused.returncode == 2
        assert refused.stderr.startswith(told)


def test_last_layer(andp: Andp, tmp_path: Path) -> None:
    found = json.loads(andp("eval", "last-layer", "net", "--json", "--paper").stdout)
    top = {
        row["method"]: row["value"] for row in found["measures"] if (row["over"], row["measure"]) == ("all", "top_1")
    }
    assert top == {"db": pytest.approx(2 / 3), "icl": pytest.approx(2 / 3)}
    assert found["paper"][0]["network"] == "AST"
    shown = andp("eval", "last-layer", "net", "--names", "--paper", "--plot", str(tmp_path / "names.svg"))
    assert "67 / 67 / " in shown.stdout
    assert "stated" in shown.stdout
    assert "2 / 10 / 0.24" in shown.stdout
    assert "a defect" in shown.stdout
    assert (tmp_path / "names.svg").read_text("utf-8").startswith("<?xml")
    refused = andp("eval", "last-layer", "net", "--llm", "openai:x@http://127.0.0.1:9/v1", "--no-llm", check=False)
    assert refused.stderr == "andp: --llm and --no-llm contradict each other; give one\n"


def test_explanations(andp: Andp, tmp_path: Path) -> None:
    part = andp("eval", "explanations", "net", "--layer", "head", "--permutations", "50")
    assert "still to be scored: b00.ff_in (1 of the layers)" in part.stderr
    plot = tmp_path / "auprc.png"
    out = andp("eval", "explanations", "net", "--permutations", "50", "--plot", str(plot), "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {(row["layer"], row["explanation"], row["reference"]) for row in rows} >= {
        ("head", "closed_db", "labels"), ("head", "closed_db", "scores"), ("b00.ff_in", "best_label", "labels"),
    }  # fmt: skip
    assert plot.read_bytes().startswith(b"\x89PNG")
    by_neuron = andp(
        "eval", "explanations", "net", "--permutations", "50", "--by", "neuron", "--limit", "3", "--json"
    ).stdout
    assert len(json.loads(by_neuron)) == 3
    assert "on clips with that label: AUPRC" in andp("neuron", "net", "head#0").stdout
    refused = andp("eval", "explanations", "net", "--layer", "b7.*", check=False)
    assert (refused.returncode, refused.stderr.strip()) == (
        2, "andp: dissection 1 has no layer 'b7.*'; it covers: b00.ff_in, head",
    )  # fmt: skip
