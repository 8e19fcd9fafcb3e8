"""What a worker keeps loaded between units."""

from __future__ import annotations

from typing import Any

import pytest

from and_platform.backends import registry
from and_platform.services.dissect import Options
from and_platform.services.distribution.models import Models


class Fake:
    """A model that says when it goes."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self._told = name, told

    def release(self) -> None:
        self._told.append(f"{self.name} goes")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made and let go, in order."""
    told: list[str] = []

    def create(role: str, spec: str, **options: Any) -> Fake:
        told.append(f"{role} {spec} {options}" if options else f"{role} {spec}")
        return Fake(spec, told)

    monkeypatch.setattr(registry, "create", create)
    return told


def test_one_at_a_time(told: list[str]) -> None:
    times: list[str] = []
    models = Models(loaded=lambda name, seconds: times.append(name) if seconds >= 0 else None)
    options = Options(captioner="audio-lm:/qwen", sentence_encoder="small", text_encoder="clip:/b32")
    captioner = models.captioner(options)
    assert models.captioner(Options(captioner="audio-lm:/qwen")) is captioner  # of another run, still loaded
    encoder = models.tools(options).sentence_encoder
    assert told == ["captioner audio-lm:/qwen", "audio-lm:/qwen goes", "encoder small"]
    assert models.tools(options).sentence_encoder is encoder
    assert models.captioner(options) is not captioner
    assert told[3:] == ["small goes", "captioner audio-lm:/qwen"]
    assert times == ["captioner:audio-lm:/qwen", "encoder:small", "captioner:audio-lm:/qwen"]


def test_the_one_that_was_not_used_for_longest_goes(told: list[str]) -> None:
    models = Models(2)
    for name in "aba":
        models.get(("made", name), lambda name=name: Fake(name, told))
    models.get(("made", "c"), lambda: Fake("c", told))
    assert told == ["b goes"]
    models.get(("made", "a"), lambda: pytest.fail("it was kept"))
    models.clear()
    assert told == ["b goes", "c goes", "a goes"]
    models.clear()
    assert len(told) == 3


def test_other_keywords_are_another_model(told: list[str]) -> None:
    models = Models(4)
    for prompt in ("What is it?", "What is it?", "How does it sound?"):
        models.captioner(Options(captioner="audio-lm:/qwen", captioner_options={"prompt": prompt}))
    assert len(told) == 2
    with_llm = Options(llm="openai:m@http://here/v1", llm_options={"seed": 1, "temperature": 0.5})
    same = Options(llm="openai:m@http://here/v1", llm_options={"temperature": 0.5, "seed": 1})
    assert models.tools(with_llm).llm is models.tools(same).llm
    # One encoder that serves two ends is one model.
    one = models.tools(Options(sentence_encoder="small", text_encoder="small"))
    assert one.sentence_encoder is one.scoring_encoder("db")


def test_a_model_that_cannot_be_made_leaves_room(told: list[str]) -> None:
    models = Models()
    models.get(("made", "a"), lambda: Fake("a", told))

    def fails() -> Fake:
        raise MemoryError("CUDA out of memory")

    with pytest.raises(MemoryError):
        models.get(("made", "b"), fails)
    assert told == ["a goes"]
    models.get(("made", "b"), lambda: Fake("b", told))
    models.clear()
    assert told == ["a goes", "b goes"]
