"""Networks are trained by three recipes, in two stages where a recipe has them, and come into the database."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from and_platform.errors import AndpError
from and_platform.services.training import train
from tests import tiny

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
