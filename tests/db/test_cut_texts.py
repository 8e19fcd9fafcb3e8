"""Texts that an encoder cuts: kept with their vectors, counted, and told at the end of a dissection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray

from and_platform import api, db
from and_platform.backends.base import BackendRecipe
from and_platform.cli.dissect import print_report
from and_platform.services import embed, texts
from tests import tiny
from tests.checkpoints_encoders import TINY_CLIP, clip_state, write_clip

SAID = ["rain", "a dog that barks loudly", "a bell", "one two three four"]


class Plain:
    """An encoder that says nothing of its window."""

    dim = 2
    scale = 1.0
    recipe = BackendRecipe("plain", "1")

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.tile(np.array([1, 0], np.float32), (len(texts), 1))


class ThreeWords(Plain):
    """An encoder that reads three words."""

    recipe = BackendRecipe("three words", "1")
    max_tokens: int | None = 3

    def __init__(self) -> None:
        self.split: list[str] = []

    def is_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        self.split += texts
        return np.array([len(text.split()) > 3 for text in texts], bool)


def stored(engine: sa.Engine) -> list[bool | None]:
    with db.reading(engine) as session:
        return list(session.scalars(sa.text("SELECT truncated FROM text_embeddings ORDER BY text_id")))


@pytest.fixture
def ids(engine: sa.Engine) -> list[int]:
    with db.transaction(engine) as session:
        return list(texts.text_ids(session, SAID).values())


def test_what_is_cut_is_kept_with_the_vectors(engine: sa.Engine, ids: list[int]) -> None:
    encoder = ThreeWords()
    embed.embed_texts(engine, encoder, ids)
    assert stored(engine) == [False, True, False, True]
    counted = embed.cut_texts(engine, encoder, [*ids, ids[1]], "captions")
    assert counted == embed.CutTexts("captions", "three words", 3, n_texts=5, n_cut=3)
    assert sorted(encoder.split) == sorted(SAID)  # once each


def test_vectors_from_before_are_caught_up_on(engine: sa.Engine, ids: list[int]) -> None:
    encoder = ThreeWords()
    embed.embed_texts(engine, encoder, ids)
    with db.transaction(engine) as session:
        session.execute(
            sa.text("UPDATE text_embeddings SET truncated = NULL WHERE text_id = ANY (:ids)"), {"ids": ids[:2]}
        )
    encoder.split.clear()
    assert embed.cut_texts(engine, encoder, ids, "points").n_cut == 2
    assert encoder.split == SAID[:2]
    assert stored(engine) == [False, True, False, True]


def test_an_encoder_that_does_not_tell_cuts_nothing(engine: sa.Engine, ids: list[int]) -> None:
    embed.embed_texts(engine, Plain(), ids)
    assert stored(engine) == [False] * 4
    assert embed.cut_texts(engine, Plain(), ids, "captions") == embed.CutTexts("captions", "plain", None, 4, 0)
    assert embed.cut_texts(engine, ThreeWords(), ids, "captions").n_texts == 0  # nothing was embedded with it


def test_a_dissection_tells(engine: sa.Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.sounds(tmp_path / "tones", 2)
    tiny.network(tmp_path / "network")
    write_clip(tmp_path / "clip", clip_state(**TINY_CLIP))
    platform = api.Platform(engine)
    platform.ingest(tmp_path / "tones", processes=1)
    platform.add_network("tiny", tmp_path / "network")
    options: dict[str, Any] = {"dataset": "tones", "layers": ["head"], "text_encoder": f"clip:{tmp_path / 'clip'}"}
    report = platform.dissect("tiny", **options, text_encoder_options={"batch_size": 2})
    found = {(cut.what, cut.encoder): cut for cut in report.cut}
    captions = found["captions", "clip"]
    assert (captions.max_tokens, captions.n_texts, captions.n_cut) == (16, 6, 6)
    assert found["concepts", "clip"].n_cut == 0
    assert found["points", "minilm"].n_cut == 0 < found["points", "minilm"].n_texts
    print_report(engine, "tiny", report)
    said = " ".join(capsys.readouterr().out.split())
    assert "6 of 6 captions were longer than the 16 tokens that clip reads and were cut" in said
    assert "concepts were longer" not in said
    assert platform.dissect("tiny", **options).dissection_id == report.dissection_id
