"""A published BEATs file, added and dissected like any other network."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform import api, db
from and_platform.services import networks
from tests import tiny
from tests.checkpoints_beats import write_beats


def test_a_published_file_is_added_and_dissected(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.sounds(tmp_path / "tones", 4)
    (tmp_path / "elsewhere").mkdir()
    write_beats(tmp_path / "elsewhere" / "beats.pt", list(tiny.CLASSES))
    platform = api.Platform(engine)
    platform.ingest(tmp_path / "tones", processes=1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    added = networks.add(engine, "beats", "beats.pt")
    assert (added.source, added.classes, added.sample_rate) == ("beats", list(tiny.CLASSES), 16000)
    monkeypatch.chdir(tmp_path)
    with db.reading(engine) as session:
        assert networks.load(networks.find(session, "beats")).revision == added.revision
    platform.dissect("beats", dataset="tones")
    with db.reading(engine) as session:
        described = session.execute(
            sa.text("SELECT layer, count(*) FROM current_neuron_descriptions GROUP BY layer ORDER BY layer")
        ).all()
    assert [tuple(row) for row in described] == [
        ("b00.ff_in", 64), ("b00.ff_out", 32), ("b01.ff_in", 64), ("b01.ff_out", 32), ("head", 3),
    ]  # fmt: skip
