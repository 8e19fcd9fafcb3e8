from __future__ import annotations

import numpy as np

from and_platform.core.acoustic_words import judge_words


def test_by_facet_or_by_cosine() -> None:
    embeddings = np.array([[0.05, 0], [0.13, 0], [0.129, 0]], dtype=np.float32)
    verdicts = judge_words(["faint", "metallic", "edible"], embeddings, np.array([1, 0], dtype=np.float32))
    assert [(verdict.accepted, verdict.score) for verdict in verdicts] == [
        (True, 0.05),
        (True, 0.13),
        (False, 0.129),
    ]
    assert [verdict.reason for verdict in verdicts] == [
        "names a facet of sound",
        'cosine 0.130 to "a word describing a sound" >= 0.13',
        'cosine 0.129 to "a word describing a sound" < 0.13',
    ]


def test_no_words() -> None:
    assert judge_words([], np.zeros((0, 2), dtype=np.float32), np.ones(2, dtype=np.float32)) == []
