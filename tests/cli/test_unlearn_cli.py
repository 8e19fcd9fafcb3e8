"""`andp unlearn` as its users meet it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests import hand_network

Andp = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hand(engine: sa.Engine, tmp_path: Path) -> None:
    hand_network.world(engine, tmp_path)


def test_plan_run_table_sweep_export(hand: None, andp: Andp, tmp_path: Path) -> None:
    planned = andp("unlearn", "plan", "hand", "--concept", "dog")
    assert "plan 1: open for 'dog', 2 of 6 hidden neurons (new)" in planned.stdout
    assert "terms: dog (of 1 open concepts)" in planned.stdout and "andp unlearn run hand --plan 1" in planned.stdout

    ran = andp("unlearn", "run", "hand", "--plan", "1", "--plot", str(tmp_path / "one.svg"))
    assert "1 ablations measured, 0 were there" in ran.stderr and "dog ← target" in ran.stdout
    assert "“dog” ablated: 2 neurons" in (tmp_path / "one.svg").read_text("utf-8")

    every = andp("unlearn", "run", "hand", "--each-class", "--strategy", "open", "--strategy", "random_matched", "--seeds", "0,1",
                 "--json")  # fmt: skip
    table = {row["strategy"]: row for row in json.loads(every.stdout)}
    assert table["open"]["gap"] == 2.75 and table["random_matched"]["seeds"] == 2
    assert "left out, since no held-out clip is of them: siren" in every.stderr
    assert "5 ablations measured, 1 were there" in every.stderr

    printed = andp("unlearn", "table", "hand", "--paper")
    assert "AST (paper)" in printed.stdout and "the paper: The committed rerun" in printed.stderr
    assert "--experiment" not in printed.stderr
    shown = andp("unlearn", "list", "hand", "--strategy", "open", "--csv").stdout.splitlines()
    assert shown[0].startswith("ablation_id,strategy,concept") and len(shown) == 3
    one = json.loads(andp("unlearn", "show", shown[1].split(",")[0], "--json").stdout)
    assert [row["class"] for row in one if row["is_target"]] == ["dog"] and one[0]["logit_change"] == -1.5

    swept = andp("unlearn", "sweep", "hand", "--each-class", "--points", "full", "--draws", "2", "--plot",
                 str(tmp_path / "sweep.png"))  # fmt: skip
    assert "open against random_matched, whole plans of 2 classes: dR - dA 2.750 against" in swept.stdout
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")

    out = andp("unlearn", "export", "1", "-o", str(tmp_path / "mask"), "--mask-only")
    assert "plan 1 of hand: 2 neurons, 8 of 45 parameters" in out.stdout and "mask.safetensors" in out.stdout
    listed = json.loads(andp("unlearn", "plans", "hand", "--json").stdout)
    assert listed[0]["per_layer"] == {"hidden": 2}

    andp("unlearn", "run", "hand", "--concept", "dog", "--top", "2")
    told = andp("unlearn", "table", "hand").stderr
    experiment = table["open"]["experiment"]
    found = re.search(
        rf"hand: run {experiment}, of most target classes \(2\); --experiment shows another: (\d+) \(of 1\)", told
    )
    assert found is not None
    other = json.loads(andp("unlearn", "table", "hand", "--experiment", found[1], "--json").stdout)
    assert [(row["targets"], str(row["experiment"])) for row in other] == [(1, found[1])]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("plan", "hand", "--concept", "dgo"), 2, "did you mean: dog"),
        (("plan", "hand", "--concept", "dog", "--strategy", "closed_tab"), 1, "run: andp dissect hand"),
        (("plan", "nobody", "--concept", "dog"), 3, "no network 'nobody'; there are: hand"),
        (("plan", "hand"), 2, "'open' needs a concept; name it with --concept TEXT"),
        (("run", "hand"), 2, "one of them: --concept TEXT, --each-class, --plan PLAN"),
        (("run", "hand", "--each-class", "--seeds", "one"), 2, "'one' is no list of whole numbers"),
        (("run", "hand", "--each-class", "--seeds", "0,-1"), 2, "'0,-1' is no list of whole numbers from 0 up"),
        (("plan", "hand", "--concept", "dog", "--seed", "-1"), 2, "-1 is not in the range x>=0"),
        (("run", "hand", "--concept", "dog", "--plot", "x.gif"), 2, "'x.gif' must end with .svg, .png, .pdf"),
        (("run", "hand", "--concept", "dog", "--device", "quantum"), 2, "the device is 'quantum'"),
        (("table", "hand"), 3, "nothing was unlearned of 'hand' yet; run: andp unlearn run hand --each-class"),
        (("show", "4"), 3, "no ablation 4"),
    ],
)
def test_bad_input_is_one_line(hand: None, andp: Andp, arguments: tuple[str, ...], status: int, message: str) -> None:
    done = andp("unlearn", *arguments, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr and done.stderr.startswith("andp: ") and done.stderr.count("\n") == 1
