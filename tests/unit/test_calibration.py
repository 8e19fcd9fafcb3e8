from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from and_platform.core import calibration
from and_platform.core.calibration import calibrate, support
from and_platform.core.facets import facets
from and_platform.core.ragged import Ragged


def unit(degrees: list[float]) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


ANGLES = unit([0, 20, 60, 90, 180])


def test_each_high_point_against_the_low_points_of_its_own_neuron() -> None:
    high = Ragged.from_lists([[0, 3], [0], [2]])
    low = Ragged.from_lists([[4, 1, 2], [], [2, 4]])
    found = calibrate(ANGLES, high, low, threshold=0.7)
    # 0 against 20 degrees: 0.94, dropped; 90 against 60: 0.87, dropped; nothing low; the same sentence.
    assert found.nearest.tolist() == [1, 2, -1, 3]
    assert np.allclose(found.cosine, [np.cos(np.pi / 9), np.cos(np.pi / 6), np.nan, 1], atol=1e-6, equal_nan=True)
    assert found.kept.tolist() == [False, False, True, False]


def test_a_cosine_of_exactly_t_is_kept() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    one = Ragged.from_lists([[0]]), Ragged.from_lists([[1]])
    assert calibrate(vectors, *one, threshold=0.6).kept.tolist() == [True]
    assert calibrate(vectors, *one, threshold=0.599).kept.tolist() == [False]


def test_the_first_of_equally_near_low_points_is_named() -> None:
    found = calibrate(ANGLES, Ragged.from_lists([[0]]), Ragged.from_lists([[2, 1, 1]]))
    assert found.nearest.tolist() == [1]


def test_opposites_do_not_remove_each_other_where_facets_are_given() -> None:
    sides = facets(["The sound is loud.", "The sound is quiet.", "It is loud.", "", ""])
    high, low = Ragged.from_lists([[0], [0]]), Ragged.from_lists([[1], [1, 2]])
    assert calibrate(ANGLES, high, low, threshold=0.3).kept.tolist() == [False, False]
    found = calibrate(ANGLES, high, low, threshold=0.3, facets=sides)
    assert found.kept.tolist() == [True, False]
    assert found.nearest.tolist() == [-1, 2]


def test_nothing_to_compare() -> None:
    empty = Ragged.from_lists([[], []])
    assert calibrate(ANGLES, empty, empty).kept.tolist() == []
    assert calibrate(ANGLES, Ragged.from_lists([[0], [1]]), empty).kept.tolist() == [True, True]
    with pytest.raises(ValueError, match="1 rows of high points, but 2 of low points"):
        calibrate(ANGLES, Ragged.from_lists([[0]]), empty)


IDS = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=7)


@settings(deadline=None, max_examples=40)
@given(IDS, IDS, st.integers(0, 99))
def test_as_one_neuron_at_a_time(high: list[list[int]], low: list[list[int]], seed: int) -> None:
    neurons = min(len(high), len(low))
    high, low = high[:neurons], low[:neurons]
    vectors = np.random.default_rng(seed).normal(size=(10, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_BUDGET", 5)
        found = calibrate(vectors, Ragged.from_lists(high), Ragged.from_lists(low), threshold=0.5)
    expected = [
        max((float(vectors[h] @ vectors[x]) for x in low[j]), default=-1.0) <= 0.5
        for j in range(neurons)
        for h in high[j]
    ]
    assert found.kept.tolist() == expected


def test_support_counts_captions_not_sentences() -> None:
    captions = Ragged.from_lists([[0, 1], [2], [1], []])
    points = Ragged.from_lists([[0, 4], [], [2]])
    exemplars = np.array([[0, 1, 2], [0, 1, 2], [1, 3, -1]])
    # The point at 0 degrees has near sentences in captions 0 (both) and 2; 60 degrees only in caption 1.
    assert support(ANGLES, points, captions, exemplars, tau=0.9).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="points of 3 neurons, but exemplars of 2"):
        support(ANGLES, points, captions, exemplars[:2])


def test_support_with_facets() -> None:
    sides = facets(["It is loud.", "It is quiet.", "", "", ""])
    captions, one = Ragged.from_lists([[0], [1]]), Ragged.from_lists([[0]])
    exemplars = np.array([[0, 1]])
    assert support(ANGLES, one, captions, exemplars, tau=0.9).tolist() == [2]
    assert support(ANGLES, one, captions, exemplars, tau=0.9, facets=sides).tolist() == [1]
