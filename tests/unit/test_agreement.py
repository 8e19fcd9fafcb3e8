"""Agreement of raters, and intervals of means."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform.core.agreement import matrix_of, ordinal_alpha, t_interval

_ = float("nan")

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E: four observers, twelve units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def test_alpha_of_the_published_example() -> None:
    assert ordinal_alpha(PUBLISHED) == pytest.approx(0.815, abs=5e-4)


def test_alpha_by_hand() -> None:
    # Two raters, two things: (1, 2) and (2, 2). Values: one 1, three 2. Ordinal distance of 1 and 2: ((1 + 3) / 2)² = 4 =: d.
    # Observed: one of two pairs differs, d / 2. Expected: 3 of 6 pairs of different values, d / 2.
    assert ordinal_alpha([[1, 2], [2, 2]]) == pytest.approx(0.0)


def by_pairs(ratings: list[list[float]]) -> float:
    """Alpha as its definition says it, a pair at a time."""
    things = [[value for value in thing if value == value] for thing in zip(*ratings, strict=True)]
    things = [thing for thing in things if len(thing) > 1]
    values = [value for thing in things for value in thing]

    def distance(a: float, b: float) -> float:
        low, high = min(a, b), max(a, b)
        between = sum(low <= value <= high for value in values)
        return (between - (values.count(low) + values.count(high)) / 2) ** 2

    observed = sum(
        distance(a, b) / (len(thing) - 1) for thing in things for (_, a), (_, b) in permutations(enumerate(thing), 2)
    )
    expected = sum(distance(a, b) for (_, a), (_, b) in permutations(enumerate(values), 2)) / (len(values) - 1)
    return 1 - observed / expected


def test_the_published_example_by_pairs() -> None:
    assert ordinal_alpha(PUBLISHED) == pytest.approx(by_pairs(PUBLISHED))


STEPS = st.one_of(st.integers(1, 5).map(float), st.just(_))


@given(st.integers(2, 8).flatmap(lambda n: st.lists(st.lists(STEPS, min_size=n, max_size=n), min_size=2, max_size=5)))
def test_alpha_is_its_definition(ratings: list[list[float]]) -> None:
    alpha = ordinal_alpha(ratings)
    if alpha is not None:
        assert alpha == pytest.approx(by_pairs(ratings))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=12))
def test_alpha_knows_neither_order_of_raters_nor_of_things(pairs: list[tuple[int, int]]) -> None:
    matrix = np.array(pairs, float).T
    alpha = ordinal_alpha(matrix)
    assert alpha == pytest.approx(ordinal_alpha(matrix[::-1, ::-1]))
    assert alpha is None or alpha <= 1
    if alpha is not None and (matrix[0] == matrix[1]).all():
        assert alpha == pytest.approx(1)


@pytest.mark.parametrize("ratings", [[[1, 2, 3]], [[1, _], [_, 2]], [[4, 4], [4, 4]], [[_, _], [_, _]]])
def test_alpha_is_not_defined_without_two_raters_or_two_values(ratings: list[list[float]]) -> None:
    assert ordinal_alpha(ratings) is None


def test_things_that_one_person_rated_do_not_count() -> None:
    assert ordinal_alpha([[1, 5, 2, 3], [1, 5, 2, _]]) == pytest.approx(1)


def test_matrix_of_ratings() -> None:
    matrix = matrix_of(["b", "a", "b"], [7, 7, 9], [3, 4, 5])
    np.testing.assert_array_equal(matrix, [[4, _], [3, 5]])


def test_interval_by_hand() -> None:
    # 2, 3, 4: mean 3, sd 1, n 3; t(0.975, 2) = 4.30265
    low, high = t_interval(3, 1, 3)
    assert (low, high) == (pytest.approx(3 - 4.30265 / 3**0.5, abs=1e-5), pytest.approx(3 + 4.30265 / 3**0.5, abs=1e-5))
    assert t_interval(3, 1, 3, within=(1, 5)) == (1, 5)
    assert t_interval(3, 0, 4) == (3, 3)


@pytest.mark.parametrize("given_", [(None, None, 0), (3.0, None, 1), (3.0, 0.0, 1)])
def test_no_interval_of_fewer_than_two(given_: tuple[float | None, float | None, int]) -> None:
    assert t_interval(*given_) == (None, None)
