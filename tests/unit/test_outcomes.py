"""Logit, probability and accuracy by class, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from and_platform.core.outcomes import by_class


def test_by_hand() -> None:
    logits = np.array([[[0, 0, 0], [4, 0, 0], [0, 2, 0]], [[1, 1, 1], [0, 4, 0], [1000, 1001, 1000]]])
    told = by_class(logits, [0, 0, 1])
    third = 1 / 3
    e = np.exp
    assert told.logit == pytest.approx(np.array([[2, 2, np.nan], [0.5, 1001, np.nan]]), nan_ok=True)
    assert told.probability == pytest.approx(
        np.array([
            [(third + e(4) / (e(4) + 2)) / 2, e(2) / (e(2) + 2), np.nan],
            [(third + 1 / (e(4) + 2)) / 2, e(1) / (e(1) + 2), np.nan],
        ]),
        nan_ok=True,
    )  # fmt: skip
    # of equal logits the first counts
    assert told.accuracy == pytest.approx(np.array([[1, 1, np.nan], [0.5, 1, np.nan]]), nan_ok=True)


def test_one_network() -> None:
    told = by_class([[0.0, 1.0], [3.0, 1.0]], [1, 1])
    assert told.accuracy.tolist()[1] == 0.5
    assert np.isnan(told.accuracy[0])
