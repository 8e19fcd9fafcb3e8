"""Bootstrap intervals of means of tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from and_platform.core.resampling import crossed_interval

Values = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def test_one_column_is_the_plain_bootstrap_over_rows() -> None:
    values = np.random.default_rng(1).normal(3, 2, 40)
    expected = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    low, high = crossed_interval(values)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.05)


@given(Values)
def test_the_interval_lies_within_the_values_and_around_their_mean(values: list[float]) -> None:
    low, high = crossed_interval(values, resamples=400)
    assert low is not None and high is not None
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_seeds_that_differ_widen_it() -> None:
    rows = np.random.default_rng(0).normal(0, 1, 30)
    same = np.repeat(rows[:, None], 3, axis=1)
    apart = same + np.array([-5.0, 0.0, 5.0])
    narrow, wide = crossed_interval(same), crossed_interval(apart)
    assert narrow == pytest.approx(crossed_interval(rows), abs=0.05)
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])  # type: ignore[operator]


def test_missing_cells_are_left_out() -> None:
    assert crossed_interval([[1.0, np.nan], [1.0, 1.0], [np.nan, 1.0]]) == pytest.approx((1.0, 1.0))


def test_one_row_or_nothing_gives_no_interval() -> None:
    assert crossed_interval([[1.0, 2.0, 3.0]]) == (None, None)
    assert crossed_interval(np.full((3, 2), np.nan)) == (None, None)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=(9, 3))
    assert crossed_interval(values) == crossed_interval(values)
    assert crossed_interval(values) != crossed_interval(values, seed=1)
