"""The captions of a model in the database: order and size of batches, what fails, and what a broken run keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from and_platform import api, db
from and_platform.backends import registry
from and_platform.backends.base import BackendRecipe, Clip
from and_platform.backends.endpoints import EndpointError
from and_platform.errors import GenerationError
from and_platform.schema import Dataset, ProbingSet
from and_platform.services import caption, datasets

SECONDS = [0.3, 0.9, 0.5, 1.1, 0.7, 0.4, 1.0, 0.6, 0.8]

Answer = Callable[[Clip], "str | Exception"]


class Fake:
    """Says how long a clip is; remembers what it was handed."""

    rate: int | None = 8000

    def __init__(self, batch_size: int, answer: Answer | None = None) -> None:
        self.recipe = BackendRecipe("fake", "1")
        self.batch_size = batch_size
        self.answer: Answer = answer or (lambda clip: f"It lasts {clip.waveform.size} samples.")
        self.batches: list[list[str]] = []

    def caption_batch(self, clips: Sequence[Clip]) -> list[str | Exception]:
        self.batches.append([clip.key for clip in clips])
        assert all(clip.rate == self.rate for clip in clips)
        return [self.answer(clip) for clip in clips]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    sounds = tmp_path / "sounds"
    for number, seconds in enumerate(SECONDS):
        path = sounds / f"{number % 2}" / f"{seconds}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, round(seconds * 16000)), 16000)
    return sounds


@pytest.fixture
def probing(engine: sa.Engine, folder: Path) -> ProbingSet:
    api.Platform(engine).ingest(folder, processes=1)
    with db.transaction(engine) as session:
        found = datasets.snapshot(session, session.scalars(sa.select(Dataset.id)).one())
        session.flush()
        session.expunge(found)
    return found


def maker(engine: sa.Engine, probing: ProbingSet, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> caption.CaptionMaker:
    monkeypatch.setattr(registry, "create", lambda role, spec, **options: fake)
    return caption.maker(engine, probing, "fake:it")


def written(engine: sa.Engine) -> dict[str, str]:
    with db.reading(engine) as session:
        query = sa.text("SELECT k.path, c.text FROM captions c JOIN clips k ON k.id = c.clip_id")
        return {Path(path).stem: text for path, text in session.execute(query)}


def failures(engine: sa.Engine) -> dict[str, str]:
    with db.reading(engine) as session:
        query = sa.text("SELECT unit, reason FROM failures WHERE resolved_at IS NULL AND stage = 'caption'")
        return {Path(unit).stem: reason for unit, reason in session.execute(query)}


class Counting:
    """A listener that adds up."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.total: int | None = None

    def stage(self, name: str, total: int | None, unit: str) -> Any:
        from contextlib import nullcontext

        self.total = total
        return nullcontext(self.steps.append)

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_the_longest_come_first_over_all(
    engine: sa.Engine, probing: ProbingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, progress = Fake(4), Counting()
    assert caption.caption(engine, probing, maker(engine, probing, fake, monkeypatch), progress=progress) == 9
    lengths = [[float(Path(key).stem) for key in batch] for batch in fake.batches]
    assert lengths == [[1.1, 1.0, 0.9, 0.8], [0.7, 0.6, 0.5, 0.4], [0.3]]
    assert (progress.total, progress.steps) == (9, [4, 4, 1])
    assert written(engine) == {str(s): f"It lasts {round(s * 8000)} samples." for s in SECONDS}
    assert caption.caption(engine, probing, maker(engine, probing, fake, monkeypatch)) == 0


def test_batches_follow_the_captioner_as_it_shrinks(
    engine: sa.Engine, probing: ProbingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(3)

    def shrink(clip: Clip) -> str:
        fake.batch_size = 1
        return "Rain."

    fake.answer = shrink
    assert caption.caption(engine, probing, maker(engine, probing, fake, monkeypatch)) == 9
    assert [len(batch) for batch in fake.batches] == [3, 3, 1, 1, 1]  # the second was being decoded already


def test_what_fails_fails_alone_and_is_tried_again(
    engine: sa.Engine, probing: ProbingSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = next(folder.rglob("0.5.wav"))
    content = broken.read_bytes()
    broken.write_bytes(content[:100])

    def answer(clip: Clip) -> str | Exception:
        return GenerationError("the captioner refused") if "0.9" in clip.key else "Rain falls."

    fake, progress = Fake(4, answer), Counting()
    making = maker(engine, probing, fake, monkeypatch)
    assert caption.caption(engine, probing, making, progress=progress) == 7
    assert sum(progress.steps) == 9
    assert failures(engine).keys() == {"0.5", "0.9"}
    assert failures(engine)["0.9"] == "the captioner refused"
    assert failures(engine)["0.5"].startswith("truncated")
    assert sum(map(len, fake.batches)) == 8  # nothing is asked twice
    assert caption.waiting(engine, probing, making) == 0
    broken.write_bytes(content)
    again = Fake(4)
    assert caption.caption(engine, probing, maker(engine, probing, again, monkeypatch)) == 2
    assert [Path(key).stem for key in again.batches[0]] == ["0.9", "0.5"]
    assert failures(engine) == {}


def test_a_batch_that_fails_as_a_whole(engine: sa.Engine, probing: ProbingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(clip: Clip) -> str | Exception:
        if "0.3" in clip.key:
            raise GenerationError("the model broke")
        return "Rain."

    assert caption.caption(engine, probing, maker(engine, probing, Fake(4, answer), monkeypatch)) == 8
    assert failures(engine) == {"0.3": "the model broke"}


def test_a_fault_of_the_endpoint_stops_the_stage_and_is_no_failure_of_clips(
    engine: sa.Engine, probing: ProbingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(clip: Clip) -> str | Exception:
        return EndpointError("no answer; is the server running?") if clip.waveform.size < 6000 else "Rain."

    fake = Fake(4, answer)
    with pytest.raises(EndpointError, match="is the server running"):
        caption.caption(engine, probing, maker(engine, probing, fake, monkeypatch))
    assert len(fake.batches) == 2
    assert written(engine).keys() == {"1.1", "1.0", "0.9", "0.8"}
    assert failures(engine) == {}
    assert caption.caption(engine, probing, maker(engine, probing, Fake(4), monkeypatch)) == 5


def test_a_run_that_is_killed_loses_one_batch(
    engine: sa.Engine, probing: ProbingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(clip: Clip) -> str | Exception:
        if clip.waveform.size < 4000:
            raise KeyboardInterrupt
        return "Rain."

    with pytest.raises(KeyboardInterrupt):
        caption.caption(engine, probing, maker(engine, probing, Fake(2, answer), monkeypatch))
    assert len(written(engine)) == 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode") and thread.is_alive()]
    again = Fake(2)
    assert caption.caption(engine, probing, maker(engine, probing, again, monkeypatch)) == 3
    assert [Path(key).stem for batch in again.batches for key in batch] == ["0.5", "0.4", "0.3"]


def test_few_clips_are_in_memory(engine: sa.Engine, probing: ProbingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = caption.audio.load

    def counted(path: Path, rate: int | None, sha256: str | None = None) -> Any:
        loaded.append(path)
        return load(path, rate, sha256)

    ahead: list[int] = []
    fake = Fake(1)

    def answer(clip: Clip) -> str:
        ahead.append(len(loaded) - sum(map(len, fake.batches)))
        return "Rain."

    fake.answer = answer
    monkeypatch.setattr(caption.audio, "load", counted)
    assert caption.caption(engine, probing, maker(engine, probing, fake, monkeypatch)) == 9
    assert max(ahead) <= 1  # one waits while one is with the model
    assert len(loaded) == 9
