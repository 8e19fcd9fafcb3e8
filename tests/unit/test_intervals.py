"""Each interval of the package contains its estimate and stays within its range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from and_platform.core.agreement import t_interval
from and_platform.core.effects import compare, fit_line, mean_interval, share_interval
from and_platform.core.intervals import around
from and_platform.core.metrics import bootstrap_interval
from and_platform.core.resampling import crossed_interval
from and_platform.plots.style import whiskers

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
VALUES = st.one_of(
    st.lists(NUMBERS, min_size=2, max_size=12), st.tuples(NUMBERS, st.integers(2, 12)).map(lambda c: [c[0]] * c[1])
)


@given(
    st.integers(1, 5_000).flatmap(lambda n: st.tuples(st.one_of(st.just(0), st.just(n), st.integers(0, n)), st.just(n)))
)
def test_of_a_share(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = share_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1


def test_of_all_of_186() -> None:
    assert share_interval(186, 186)[1] == 1.0  # the formula gives 2e-16 less


@given(VALUES)
@settings(deadline=None)
def test_of_a_mean_by_bootstrap(values: list[float]) -> None:
    low, high = bootstrap_interval(np.array(values), resamples=50)
    assert low <= np.mean(values) <= high and min(values) - 1e-6 <= low and high <= max(values) + 1e-6


@given(VALUES, st.integers(1, 4))
def test_of_a_table(values: list[float], columns: int) -> None:
    table = np.array(values)[:, None] + np.arange(columns)
    low, high = crossed_interval(table, resamples=50)
    assert low is not None and high is not None and low <= table.mean() <= high


@given(VALUES)
def test_of_a_mean_by_t(values: list[float]) -> None:
    mean, low, high, sd, n = mean_interval(values)
    assert low is not None and high is not None and low <= mean <= high
    ends = t_interval(mean, sd, n, within=(-1e5, 1e5))
    assert ends[0] is not None and ends[1] is not None and ends[0] <= mean <= ends[1]


@given(st.lists(st.tuples(st.integers(-100, 100), NUMBERS), min_size=3, max_size=12))
def test_of_a_line(points: list[tuple[int, float]]) -> None:
    line = fit_line([x for x, _ in points], [y for _, y in points])
    if line is not None:
        assert line.slope_low <= line.slope <= line.slope_high
        y, low, high = line.at([-100.0, 0.0, 100.0])
        assert (low <= y).all() and (y <= high).all()


@given(VALUES, VALUES)
def test_of_an_effect(a: list[float], b: list[float]) -> None:
    found = compare(a, b)
    if found.hedges_g is not None and math.isfinite(found.hedges_g):
        assert found.g_low is not None and found.g_high is not None and found.g_low <= found.hedges_g <= found.g_high


def test_ends_are_moved_as_far_as_needed() -> None:
    assert around(0.5, 0.4, 0.6) == (0.4, 0.6)
    assert around(1.0, 0.9, 1 - 2e-16, within=(0, 1)) == (0.9, 1.0)
    assert around(0.5, -0.1, 1.2, within=(0, 1)) == (0, 1)


@pytest.mark.parametrize("high", [1 - 2e-16, 1.0, None])
def test_no_whisker_is_negative(high: float | None) -> None:
    assert whiskers([1.0], [0.75], [high]) == ([0.25], [0.0])
    assert whiskers([1.0], [None], [None]) == ([0.0], [0.0])
