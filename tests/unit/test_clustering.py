"""k-means, the elbow, words and the level of chance, on vectors and sentences made by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from and_platform.core.clustering import chance, elbow, k_means, thresholds, top_words, try_numbers


def blobs(sizes: tuple[int, ...], *, dim: int = 6, spread: float = 0.02, seed: int = 0) -> NDArray[np.float32]:
    """Points round the unit vectors of the axes, as many as `sizes` says."""
    rng = np.random.default_rng(seed)
    points = [np.eye(dim)[i] + rng.normal(0, spread, (size, dim)) for i, size in enumerate(sizes)]
    return np.concatenate(points).astype(np.float32)


def ones(n: int) -> NDArray[np.int64]:
    return np.ones(n, np.int64)


# ---------------------------------------------------------------------- k-means


def test_blobs_are_found_and_numbered_by_size() -> None:
    found = k_means(blobs((3, 8, 5)), ones(16), 3)
    assert found.labels.tolist() == [3] * 3 + [1] * 8 + [2] * 5
    assert 0 < found.inertia < 0.2


def test_size_is_weight_and_ties_go_by_the_first_row() -> None:
    vectors = blobs((3, 3, 3))
    assert k_means(vectors, np.array([1, 1, 1, 5, 1, 1, 1, 1, 1]), 3).labels.tolist() == [2] * 3 + [1] * 3 + [3] * 3
    assert k_means(vectors, ones(9), 3).labels.tolist() == [1] * 3 + [2] * 3 + [3] * 3


@given(st.lists(st.integers(1, 4), min_size=9, max_size=9), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_a_weight_is_as_good_as_repetition(weights: list[int], seed: int) -> None:
    vectors = blobs((4, 3, 2))
    weighted = k_means(vectors, np.array(weights), 3, seed)
    repeated = k_means(np.repeat(vectors, weights, axis=0), ones(sum(weights)), 3, seed)
    assert np.repeat(weighted.labels, weights).tolist() == repeated.labels.tolist()
    assert weighted.inertia == pytest.approx(repeated.inertia, rel=1e-6)


def test_one_cluster_is_the_variance() -> None:
    vectors = blobs((4, 4))
    found = k_means(vectors, ones(8), 1)
    assert found.labels.tolist() == [1] * 8
    assert found.inertia == pytest.approx(8 * vectors.astype(float).var(axis=0).sum())


def test_no_more_clusters_than_rows_that_differ() -> None:
    found = k_means(np.repeat(np.eye(2, dtype=np.float32), 2, axis=0), ones(4), 3)
    assert found.labels.tolist() == [1, 1, 2, 2]


_DETERMINISM = """
import hashlib, numpy as np, torch
from and_platform.core.clustering import try_numbers
torch.set_num_threads({torch})
rng = np.random.default_rng(0)
vectors = rng.normal(size=(900, 48)).astype(np.float32)
found = try_numbers(vectors, rng.integers(1, 9, 900), [3, 7, 12], seed=1)
told = [(n, f.inertia.hex(), f.labels.tolist()) for n, f in found.items()]
print(hashlib.sha256(repr(told).encode()).hexdigest())
"""


def test_the_number_of_threads_changes_nothing() -> None:
    """Noise without clusters, where the last digit decides; in processes of their own, since threads are set at the start."""
    told = {
        subprocess.run(
            [sys.executable, "-c", _DETERMINISM.format(torch=threads)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)},
            capture_output=True, text=True, check=True, timeout=200,
        ).stdout
        for threads in (1, 4)
    }  # fmt: skip
    assert len(told) == 1
    assert len(told.pop().strip()) == 64


def test_numbers_tried_side_by_side_are_those_tried_alone() -> None:
    vectors, weights = blobs((4, 5, 6), spread=0.4), ones(15)
    done: list[int] = []
    found = try_numbers(vectors, weights, [1, 2, 3], seed=3, done=done.append)
    assert done == [1, 1, 1]
    assert list(found) == [1, 2, 3]
    for number, result in found.items():
        alone = k_means(vectors, weights, number, seed=3)
        assert result.labels.tolist() == alone.labels.tolist()
        assert result.inertia == alone.inertia


# ---------------------------------------------------------------------- the elbow


@pytest.mark.parametrize("n_blobs", [3, 4, 5])
def test_the_elbow_is_at_the_number_of_blobs(n_blobs: int) -> None:
    vectors = blobs((8,) * n_blobs)
    found = try_numbers(vectors, ones(len(vectors)), range(1, 11))
    assert elbow([(number, result.inertia) for number, result in found.items()]) == n_blobs


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [(1, 5.0), (2, 1.0)],
        [(n, 10.0 - n) for n in range(1, 9)],  # straight
        [(n, 3.0) for n in range(1, 9)],  # flat
    ],
)
def test_a_curve_without_elbow(curve: list[tuple[int, float]]) -> None:
    assert elbow(curve) is None


# ---------------------------------------------------------------------- words


def test_words_are_counted_as_often_as_their_sentence_occurs() -> None:
    found = top_words(["The dog's bark is loud.", "A loud, high-pitched bark!", "It is 2 of the 4."], [3, 1, 9])
    assert list(found.items()) == [("bark", 4), ("loud", 4), ("dog", 3), ("high-pitched", 1)]


def test_the_most_frequent_words_come_first_and_no_more_than_asked_for() -> None:
    assert top_words(["rain rain wind", "wind rain hail"], [1, 1], n=2) == {"rain": 3, "wind": 2}
    assert top_words(["It is what it is."], [4]) == {}


# ---------------------------------------------------------------------- chance


def test_chance_is_what_counting_all_sets_gives() -> None:
    member = np.zeros((7, 3), bool)
    member[[0, 1, 2], 0] = True
    member[[2, 3, 4, 5], 1] = True
    found = chance(member, [2, 3], draws=60_000)
    for k in (2, 3):
        best = [member[list(chosen)].sum(axis=0).max() for chosen in combinations(range(7), k)]
        for tau in range(1, k + 1):
            assert found[k, tau] == pytest.approx(np.mean(np.array(best) < tau), abs=0.01)


def test_chance_of_all_clips_and_without_any_cluster() -> None:
    assert chance(np.ones((4, 1), bool), [4], draws=10) == {(4, tau): 0.0 for tau in (1, 2, 3, 4)}
    assert chance(np.zeros((4, 0), bool), [2], draws=10) == {(2, 1): 1.0, (2, 2): 1.0}


@pytest.mark.parametrize(
    ("k", "expected"), [(5, (3, 4, 5)), (10, (6, 8, 10)), (20, (12, 16, 20)), (8, (5, 7, 8)), (2, (2,)), (1, (1,))]
)
def test_thresholds_are_the_papers_or_the_same_shares(k: int, expected: tuple[int, ...]) -> None:
    assert thresholds(k) == expected
