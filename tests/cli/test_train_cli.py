"""Networks are trained by three recipes, in two stages where a recipe has them, and come into the database."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from and_platform.errors import AndpError
from and_platform.services.training import train
from tests import forked, tiny
from tests.checkpoints_beats import write_beats
from tests.cli.killed import die_at

Andp = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tones(andp: Andp, tmp_path: Path) -> str:
    """Nine short tones in the database, three of each class, in the folds 1 to 3."""
    tiny.sounds(tmp_path / "tones", per_class=3)
    manifest = ["path,label,fold"]
    manifest += [f"{label}/{label}-{i}.wav,{label},{i + 1}" for label in tiny.CLASSES for i in range(3)]
    (tmp_path / "tones" / "manifest.csv").write_text("\n".join(manifest) + "\n")
    andp("ingest", "manifest", str(tmp_path / "tones" / "manifest.csv"), "--name", "tones")
    return "tones"


def test_the_two_stages_and_the_encoder_used_again(andp: Andp, engine: sa.Engine, tones: str, tmp_path: Path) -> None:
    first, second = tmp_path / "finetuned", tmp_path / "frozen"
    few = ("--dataset", tones, "--epochs", "1")
    done = andp(
        "networks", "train", str(first), "--recipe", "finetuned", "--pretrain-epochs", "1", "--add", "fine", *few
    )
    said = done.stderr
    assert "pretrain: 1 epochs" in said and "accuracy on fold 1, which was left out" in said and "added as fine" in said
    encoder = first / "pretrained"
    again = andp(
        "networks", "train", str(second), "--recipe", "frozen", "--pretrained", str(encoder), "--add", "ice", *few
    )
    assert "pretrain:" not in again.stderr and not (second / "pretrained").exists()

    told = json.loads((second / "training.json").read_text())
    assert told["strategy"] == "frozen" and told["pretrained"]["location"] == str(encoder)
    with engine.connect() as connection:
        kept = connection.execute(
            sa.text("SELECT name, extra->>'strategy', extra->>'trainable', extra->'pretrained'->>'weights_sha256',"
                    " held_out_fold FROM networks ORDER BY name")
        ).all()  # fmt: skip
        run = connection.execute(
            sa.text("SELECT arguments FROM runs WHERE command = 'networks train' ORDER BY id DESC LIMIT 1")
        ).scalar_one()
    sha = told["pretrained"]["weights_sha256"]
    assert [tuple(row) for row in kept] == [("fine", "finetuned", "all", sha, 1), ("ice", "frozen", "head", sha, 1)]
    assert run["recipe"] == "frozen" and run["pretrained"] == str(encoder)

    nowhere, told_so = (
        tmp_path / "x",
        f"is not empty; name a new folder; the encoder in it can be used: --pretrained {encoder}",
    )
    wrong: tuple[tuple[Path, dict[str, Any], str], ...] = (
        (first, {"recipe": "frozen"}, told_so),
        (nowhere, {"pretrained": encoder}, "trains from nothing"),
        (nowhere, {"recipe": "frozen", "pretrained": tmp_path / "tones"}, "holds no pretrained encoder"),
        (nowhere, {"recipe": "frozen", "pretrained": encoder, "pretrain_epochs": 3}, "leave --pretrain-epochs out"),
        (nowhere, {"recipe": "frozen", "pretrained": encoder, "held_out_fold": 2}, "has heard the clips of fold 2"),
    )
    for directory, options, message in wrong:
        with pytest.raises(AndpError) as failed:
            train(engine, directory, tones, **{"held_out_fold": 1, **options})
        assert message in str(failed.value), options
    assert not nowhere.exists()


def test_from_published_weights(andp: Andp, engine: sa.Engine, tones: str, tmp_path: Path) -> None:
    source = str(tiny.network(tmp_path / "published"))
    asked = ("--dataset", tones, "--from", source, "--epochs", "2", "--learning-rate", "1e-3", "--batch-size", "4")
    out = str(tmp_path / "fine")
    done = andp("networks", "train", out, *asked, "--validation-fold", "2", "--add", "fine", "--json")
    assert "epoch 1 of 2: loss" in done.stderr and "of fold 2 right" in done.stderr and "added as fine" in done.stderr
    told = json.loads(done.stdout)
    assert told["classes"] == ["high", "low", "noise"] and told["directory"] == out
    assert [epoch["epoch"] for epoch in told["epochs"]] == [1, 2] and told["n_train"] == 3
    assert f"accuracy on fold 1, which was left out: {told['test_accuracy']:.3f}" in done.stderr
    again = andp("networks", "train", out, *asked, "--validation-fold", "2", "--add", "fine", "--json")
    assert "no epoch was left to do" in again.stderr and json.loads(again.stdout)["epochs"] == told["epochs"]

    beats = str(write_beats(tmp_path / "BEATs_tiny.pt"))
    frozen = ("--dataset", tones, "--from", beats, "--recipe", "frozen", "--epochs", "4", "--held-out-fold", "3")
    andp("networks", "train", str(tmp_path / "ice"), *frozen, "--add", "ice")
    with engine.connect() as connection:
        kept = connection.execute(
            sa.text("SELECT name, source, trained_on, held_out_fold, extra->>'trainable' FROM networks ORDER BY name")
        ).all()
    assert [tuple(row) for row in kept] == [
        ("fine", "transformers", "tones", 1, "all"), ("ice", "beats", "tones", 3, "head"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "function", "call"),
    [
        ("finetuned", "and_platform.backends.networks.finetuning.write_tensors", 2),
        ("finetuned", "and_platform.backends.networks.finetuning._save", 1),
        ("frozen", "and_platform.backends.networks.finetuning.write_tensors", 3),
    ],
)
def test_a_killed_run_goes_on(
    recipe: str, function: str, call: int, andp: Andp, environment: dict[str, str], tones: str, tmp_path: Path
) -> None:
    source = str(write_beats(tmp_path / "BEATs_tiny.pt", encoder_layerdrop=0.3))
    asked = ("--dataset", tones, "--from", source, "--recipe", recipe, "--epochs", "3", "--batch-size", "4")
    andp("networks", "train", str(tmp_path / "whole"), *asked)
    parts = str(tmp_path / "parts")
    killed = forked.run(
        "networks", "train", parts, *asked, environment=environment, before=partial(die_at, function, call, "after")
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    andp("networks", "train", parts, *asked)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1] and not (tmp_path / "parts" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-size", "4"), "--batch-size is for training that starts from published weights"),
        (("--validation-fold", "2"), "--validation-fold is for training that starts from published weights"),
        (("--from", "x", "--pretrain-epochs", "3"), "with --from, nothing is pretrained"),
        (("--from", "/nowhere/at-all"), "there is no model at /nowhere/at-all"),
        (("--from", "published", "--patience", "3"), "early stopping looks at a validation fold"),
        (("--from", "published", "--learning-rate", "0"), "--learning-rate"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], message: str, andp: Andp, tones: str, tmp_path: Path
) -> None:
    given = [str(tmp_path / word) if word == "published" else word for word in options]
    if "published" in options:
        tiny.network(tmp_path / "published")
    failed = andp("networks", "train", str(tmp_path / "out"), "--dataset", tones, *given, check=False)
    assert failed.returncode and message in failed.stderr and failed.stderr.startswith("andp: ")
    assert not (tmp_path / "out").exists()
