"""`andp profiles`, `andp doctor` and the plan of a dissection, as processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Andp = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDP_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_list_and_show(andp: Andp) -> None:
    listed = {row["profile"]: row for row in json.loads(andp("profiles", "list", "--json").stdout)}
    assert set(listed) == {"current", "offline", "paper"}
    assert listed["offline"]["GPU_GB"] is None
    shown = andp("profiles", "show", "paper").stdout
    for told in ("SALMONN-13B", "Llama 2 Community License", "why: the paper's captioner", "captioner = salmonn:"):
        assert told in shown
    told = json.loads(andp("profiles", "show", "paper", "--json").stdout)
    assert {need["part"]: need["here"] for need in told["needs"]}["llm"] is False
    assert andp("profiles", "show", "papers", check=False).returncode == 3


def test_doctor_finds_all_that_the_default_needs(andp: Andp) -> None:
    checks = {row["check"]: row for row in json.loads(andp("doctor", "--json").stdout)}
    assert {row["status"] for row in checks.values()} <= {"ok", "warning"}
    assert "pgvector 0.8" in checks["database"]["found"]


def test_doctor_says_what_is_missing_and_how_to_get_it(andp: Andp, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torchaudio.py").write_text("raise ImportError('built for another torch')")
    path = os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])
    said = andp("doctor", "--profile", "paper", "--json", check=False, env={"PYTHONPATH": path})
    assert said.returncode == 1
    checks = {row["check"]: row for row in json.loads(said.stdout)}
    assert checks["torchaudio"]["status"] == "missing"
    assert "built for another torch" in checks["torchaudio"]["found"]
    assert checks["llm"]["status"] == "missing"
    assert "hf download meta-llama/Llama-2-13b-chat-hf" in checks["llm"]["advice"]
    assert "HF_HUB_OFFLINE" in checks["model hub"]["found"]
    assert checks["tagger"]["status"] == "ok"


def test_doctor_without_a_database(andp: Andp) -> None:
    said = andp("doctor", check=False, env={"ANDP_DATABASE_URL": "postgresql://postgres@127.0.0.1:9/none"})
    assert said.returncode == 1
    assert "database" in said.stdout
    assert "Traceback" not in said.stderr


def test_the_whole_plan_of_the_paper_where_nothing_is_here_yet(andp: Andp) -> None:
    told = json.loads(andp("dissect", "--profile", "paper", "--dry-run", "--json").stdout)
    stages = {row["stage"]: row for row in told["stages"]}
    assert list(stages) == ["record", "caption", "match", "summarise", "calibrate", "icl", "extract", "embed"]
    assert (stages["record"]["to_compute"], stages["summarise"]["to_compute"]) == (2000, 55346)
    assert (stages["summarise"]["prompts"], stages["icl"]["prompts"]) == (110692, 55346)
    assert stages["caption"]["about_seconds"] == pytest.approx(40 * 3600)
    assert "the paper's 40 h" in stages["caption"]["basis"]
    assert "SALMONN-13B: salmonn_v1.pth, whisper-large-v2, BEATs, Vicuna-13B v1.1" in told["missing"]
    shown = andp("dissect", "--profile", "paper", "--dry-run").stdout
    for expected in ("50 concepts, db by clip:openai", "40.0 h", "not here yet", "hf download"):
        assert expected in shown


def test_a_profile_gives_the_network_and_the_command_line_goes_before_it(andp: Andp) -> None:
    told = json.loads(andp("dissect", "--profile", "offline", "--dry-run", "--json", "--layers", "head").stdout)
    assert told["network"] == "sample-ast"
    assert {row["of"] for row in told["stages"]} == {427, 22}
    assert told["missing"] == []
    assert [note.partition(" GB")[0] for note in told["notes"]] == ["the activations take about 1.9e-05"]
    refused = andp("dissect", "--dry-run", check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("andp: name the network to dissect")
    refused = andp("dissect", "--profile", "current", "--dry-run", check=False)
    assert refused.stderr.startswith("andp: name the network to dissect")


def test_estimates_learn_from_runs_of_the_same_models(andp: Andp) -> None:
    andp("dissect", "sample-ast", "--layers", "head")
    told = json.loads(andp("dissect", "sample-ast", "--layers", "b00.ff_in", "--dry-run", "--json").stdout)
    stages = {row["stage"]: row for row in told["stages"]}
    assert stages["record"]["basis"] == "the latest run of it in this database"
    assert stages["caption"]["to_compute"] == 0
    assert stages["summarise"]["to_compute"] == stages["summarise"]["of"] == 768
    other = json.loads(
        andp("dissect", "sample-ast", "--captioner", "audio-lm:nobody/nothing", "--dry-run", "--json").stdout
    )
    assert other["stages"][1]["about_seconds"] is None
    assert other["notes"][0] == "nobody/nothing would be downloaded first"
    paper = json.loads(andp("dissect", "--profile", "paper", "--captioner", "joined", "--dry-run", "--json").stdout)
    assert paper["stages"][1]["basis"] == "not known" or paper["stages"][1]["about_seconds"] < 3600
    wrong = andp("dissect", "sample-ast", "--profile", "paper", "--dataset", "sample", "--layers", "nosuch",
                 "--text-encoder", "minilm", "--audio-encoder", "clap:/none", "--captioner", "joined",
                 "--sentence-encoder", "minilm", "--llm", "openai:m@http://127.0.0.1:9/v1", "--dry-run", check=False)  # fmt: skip
    assert wrong.returncode == 3
    assert "no layer of" in wrong.stderr
