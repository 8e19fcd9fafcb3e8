"""The verdict on adjectives against labels set by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from and_platform.backends.base import TextEncoder
from and_platform.core.acoustic_words import ANCHOR, judge_words

LABELS = Path(__file__).parent.parent / "data" / "adjectives.csv"


def test_accuracy_on_labelled_adjectives(minilm: TextEncoder) -> None:
    with LABELS.open(encoding="utf-8") as file:
        labels = {row["word"]: row["acoustic"] == "1" for row in csv.DictReader(file)}
    words = list(labels)
    verdicts = judge_words(words, minilm.embed_texts(words), minilm.embed_texts([ANCHOR])[0])
    right = [verdict.accepted == labels[verdict.word] for verdict in verdicts]
    recalled = [verdict.accepted for verdict in verdicts if labels[verdict.word]]
    assert len(words) == 95
    assert sum(right) / len(right) == pytest.approx(0.83, abs=0.02)
    assert sum(recalled) / len(recalled) == pytest.approx(0.92, abs=0.03)
