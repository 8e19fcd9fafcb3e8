"""The platform in Python: the paper's experiments on a tiny network, from sounds to a report."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform.api import Platform
from tests import tiny


@pytest.fixture(scope="module")
def andp(shared_engine: sa.Engine, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    folder = tmp_path_factory.mktemp("tiny")
    platform = Platform(shared_engine)
    platform.ingest(tiny.sounds(folder / "sounds"), name="tones")
    platform.add_network("tiny", tiny.network(folder / "net", blocks=2))
    platform.dissect("tiny", dataset="tones")
    return platform


def test_last_layer_and_explanations(andp: Platform) -> None:
    table = andp.last_layer("tiny")
    assert set(table["measure"]) == {"top_1", "top_5", "cosine_sentence", "cosine_concept"}
    assert table.query("measure == 'top_5' and over == 'all'")["value"].eq(1).all()  # of three concepts
    quality = andp.explanations("tiny", permutations=20)
    assert {"best_label", "closed_db"} <= set(quality["explanation"])
    assert quality["mean_auprc"].dropna().between(0, 1).all()


def test_unlearning_is_measured_once(andp: Platform) -> None:
    first = andp.unlearn("tiny", "noise", strategies=["closed_db"])
    again = andp.unlearn("tiny", "noise", strategies=["closed_db"])
    assert first["ablation_id"].tolist() == again["ablation_id"].tolist()
    assert first["gap"].iloc[0] == pytest.approx(first["d_r"].iloc[0] - first["d_a"].iloc[0])
    counts = andp.sql("SELECT counts FROM runs WHERE command = 'unlearn run' ORDER BY id")["counts"].tolist()
    assert counts == [{"measured": 1, "reused": 0}, {"measured": 0, "reused": 1}]


def test_interpretability_and_report(andp: Platform, tmp_path: Path) -> None:
    shares = andp.interpretability("tiny", ks=[5])
    assert shares["share"].between(0, 1).all()
    assert set(shares["tau"]) == {1, 2, 3, 4, 5}
    page = andp.report("tiny", tmp_path / "report", stored_only=True)
    assert "tiny" in page.read_text("utf-8")
