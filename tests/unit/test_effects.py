"""Means, lines and groups against hand-made figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from and_platform.core.effects import compare, fit_line, mean_interval, share_interval

VALUES = st.lists(st.integers(-100, 100), min_size=2, max_size=20)


def test_mean_interval() -> None:
    told = mean_interval([1, 2, 3, 4])
    half = 3.1824463 * math.sqrt(5 / 3) / 2  # t of 3 degrees of freedom
    assert told.n == 4
    assert (told.mean, told.low, told.high, told.sd) == pytest.approx((2.5, 2.5 - half, 2.5 + half, math.sqrt(5 / 3)))


def test_weights_repeat_values() -> None:
    assert mean_interval([0, 3], [3, 2]) == mean_interval([0, 0, 0, 3, 3])
    assert mean_interval([0, 3], [0, 1]) == (3, None, None, None, 1)


def test_line_by_hand() -> None:
    line = fit_line([0, 0, 1, 1], [1, 3, 2, 6])  # means 2 and 4
    assert line is not None
    assert (line.slope, line.intercept, line.n) == pytest.approx((2, 2, 4))
    # residual sum of squares 10, 2 degrees of freedom, x spread 1: standard error sqrt(5)
    half = 4.3026527 * math.sqrt(5)
    assert (line.slope_low, line.slope_high) == pytest.approx((2 - half, 2 + half))
    assert line.p == pytest.approx(2 * stats.t.sf(2 / math.sqrt(5), 2))
    y, low, high = line.at([0, 0.5])
    assert y == pytest.approx([2, 3])
    # standard error of the mean at 0: sqrt(5 (1/4 + 1/4)), in the middle: sqrt(5 / 4)
    assert high - y == pytest.approx([4.3026527 * math.sqrt(2.5), 4.3026527 * math.sqrt(1.25)])
    assert y - low == pytest.approx(high - y)


def test_line_with_weights_is_the_line_over_all() -> None:
    assert fit_line([0, 1, 2], [1, 5, 4], [2, 1, 3]) == fit_line([0, 0, 1, 2, 2, 2], [1, 1, 5, 4, 4, 4])


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1], [0, 2, 3]), ([0, 1], [0, 1])])
def test_no_line(x: list[int], y: list[int]) -> None:
    assert fit_line(x, y) is None


def test_compare_by_hand() -> None:
    told = compare([2, 4, 6], [1, 3, 5])
    assert (told.n_a, told.n_b, told.mean_a, told.mean_b, told.median_a, told.median_b) == (3, 3, 4, 3, 4, 3)
    # of nine pairs a is larger in 1 + 2 + 3
    assert (told.u, told.rank_biserial) == pytest.approx((6, 1 / 3))
    assert (told.t, told.df) == pytest.approx((1 / math.sqrt(8 / 3), 4))
    # d = 1/2; correction 1 - 3 / 15
    assert told.hedges_g == pytest.approx(0.4)
    half = 1.959964 * math.sqrt(6 / 9 + 0.16 / 12)
    assert (told.g_low, told.g_high) == pytest.approx((0.4 - half, 0.4 + half))


def test_compare_counts_ties_half() -> None:
    told = compare([1, 1, 2], [1, 0])
    assert told.u == 0.5 + 1 + 0.5 + 1 + 1 + 1
    assert told.rank_biserial == pytest.approx(2 * 5 / 6 - 1)


def test_compare_where_nothing_varies() -> None:
    told = compare([2, 2], [1, 1, 1])
    assert (told.rank_biserial, told.t, told.p_welch, told.hedges_g, told.g_low) == (1, None, None, None, None)


@given(VALUES, VALUES)
def test_compare_is_antisymmetric(a: list[int], b: list[int]) -> None:
    one, other = compare(a, b), compare(b, a)
    assert one.rank_biserial == pytest.approx(-other.rank_biserial)
    assert -1 <= one.rank_biserial <= 1
    assert one.p_mann_whitney == pytest.approx(other.p_mann_whitney)
    if one.hedges_g is None:
        assert np.ptp(a) == np.ptp(b) == 0
    else:
        assert other.hedges_g == pytest.approx(-one.hedges_g)
        assert one.g_low is not None and one.g_low == pytest.approx(-(other.g_high or 0))


def test_share_interval() -> None:
    low, high = share_interval(54, 85)
    assert (low, high) == pytest.approx((0.529, 0.730), abs=0.001)
    assert share_interval(0, 5)[0] == 0
