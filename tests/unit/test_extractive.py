from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from and_platform.core import extractive
from and_platform.core.extractive import summarise
from and_platform.core.facets import facets
from and_platform.core.ragged import Ragged


def unit(degrees: list[float]) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


# Three groups of sentences: 0, 10 and 20 degrees; 90 and 95; 180 alone.
SENTENCES = unit([0, 10, 20, 90, 95, 180])
TAU = float(np.cos(np.deg2rad(12)))


def shared(captions: list[list[int]], **options: object) -> list[tuple[int, int]]:
    exemplars = np.arange(len(captions))[None]
    (points,) = summarise(SENTENCES, Ragged.from_lists(captions), exemplars, **{"tau": TAU, **options})
    return [tuple(point) for point in points]


def test_the_sentence_most_captions_agree_with_speaks_for_those_near_it() -> None:
    # 10 degrees is near 0 and 20, which are not near each other.
    assert shared([[0, 3], [1, 4], [2, 5], [3], [5]]) == [(4, 3), (1, 3)]


def test_sentences_of_one_caption_count_once() -> None:
    assert shared([[0, 1, 1], [5], [3]]) == []


def test_two_captions_will_do_where_no_three_agree() -> None:
    captions = [[0], [1], [5]]
    assert shared(captions) == [(1, 2)]
    assert shared(captions, min_support=(3,)) == []
    # but not beside a point of three
    assert shared([[0, 3], [1, 4], [0]]) == [(0, 3)]


def test_equal_captions_of_two_clips_are_two_captions() -> None:
    assert shared([[0, 5], [0, 5]]) == [(0, 2), (5, 2)]


def test_ties_go_to_the_nearer_and_then_to_the_first() -> None:
    assert shared([[3, 5], [4], [5, 4]], min_support=(2,)) == [(4, 3), (5, 2)]
    assert shared([[5], [5], [0], [0]], min_support=(2,)) == [(5, 2), (0, 2)]


def test_the_number_of_points_is_bounded() -> None:
    assert shared([[0, 3, 5]] * 3, max_points=2) == [(0, 3), (3, 3)]


def test_missing_exemplars_and_empty_captions() -> None:
    captions = Ragged.from_lists([[0], [0, 3], []])
    found = summarise(SENTENCES, captions, np.array([[0, 1, -1], [2, 2, 2], [-1, -1, -1]]), tau=TAU)
    assert [[tuple(point) for point in points] for points in found] == [[(0, 2)], [], []]
    assert summarise(SENTENCES, Ragged.from_lists([[]]), np.zeros((2, 5), dtype=np.int64)) == [[], []]


def test_opposites_are_not_shared() -> None:
    said = ["It is loud.", "It is loud now.", "It is quiet.", "", "", ""]
    assert shared([[0], [1], [2]], tau=0.9) == [(1, 3)]
    assert shared([[0], [1], [2]], tau=0.9, facets=facets(said)) == [(1, 2)]


def reference(vectors: np.ndarray, captions: list[list[int]], tau: float, least: int) -> list[tuple[int, int]]:
    """The definition, one neuron and one sentence at a time."""
    sentences = [s for caption in captions for s in caption]
    cosine = (vectors @ vectors.T).round(6)
    near = {(a, b): a == b or cosine[a, b] >= tau for a in sentences for b in sentences}

    def rank(s: int) -> tuple[int, float]:
        count = sum(any(near[s, other] for other in caption) for caption in captions)
        best = [max(float(cosine[s, other]) for other in caption) for caption in captions if caption]
        return count, round(sum(best) / len(best), 6)

    chosen, left = [], list(sentences)
    while left:
        top = max(left, key=rank)
        if rank(top)[0] < least:
            break
        chosen.append((top, rank(top)[0]))
        left = [s for s in left if not near[top, s]]
    return chosen


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(0, 99),
)
@example([[[0], [0], [4], [4]]], 0)  # a tie, whose sums in float32 are none
def test_as_defined_whatever_the_blocks(neurons: list[list[list[int]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.repeat(rng.normal(size=(4, 6)), 3, axis=0) + 0.4 * rng.normal(size=(12, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    captions = Ragged.from_lists([caption for neuron in neurons for caption in neuron])
    exemplars = np.arange(len(captions)).reshape(-1, 4)
    options = {"tau": 0.8, "min_support": (2,), "max_points": 99}
    together = summarise(vectors, captions, exemplars, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractive, "_BUDGET", 1)
        assert summarise(vectors, captions, exemplars, **options) == together
    for points, neuron in zip(together, neurons, strict=True):
        expected = reference(vectors, neuron, 0.8, 2)
        assert [point.support for point in points] == [count for _, count in expected]
        assert [point.sentence for point in points] == [sentence for sentence, _ in expected]
