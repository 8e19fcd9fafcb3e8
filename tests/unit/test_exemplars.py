"""Exemplars and statistics against a stable sort and numpy's own formulas."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from and_platform.core.exemplars import (
    EXEMPLARS_KEPT,
    ExemplarAccumulator,
    StatisticsAccumulator,
    exemplars,
    statistics,
)
from and_platform.errors import ActivationError

# few distinct values make many ties; infinities and both zeros are floats too
FEW = st.sampled_from([-65504.0, -1.5, -0.0, 0.0, 2.0**-24, 1.0, 1.0009765625, float("inf")])
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
VALUES = st.one_of(
    hnp.arrays(np.float16, SHAPES, elements=FEW),
    hnp.arrays(np.float16, SHAPES, elements=st.floats(-1e4, 1e4, width=16)),
    hnp.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
)


def _by_stable_sort(values: NDArray[np.floating], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    wide = values.astype(np.float64)
    return np.argsort(-wide, axis=1, kind="stable")[:, :k], np.argsort(wide, axis=1, kind="stable")[:, :k]


@settings(max_examples=150, deadline=None)
@given(values=VALUES, k=st.integers(1, 25))
def test_one_shot_equals_a_stable_sort(values: NDArray[np.floating], k: int) -> None:
    high, low = _by_stable_sort(values, k)
    got = exemplars(values, k)
    np.testing.assert_array_equal(got.high_positions, high)
    np.testing.assert_array_equal(got.low_positions, low)
    np.testing.assert_array_equal(got.high_values, np.take_along_axis(values, high, 1).astype(np.float32))
    np.testing.assert_array_equal(got.low_values, np.take_along_axis(values, low, 1).astype(np.float32))
    assert got.high_positions.dtype == got.low_positions.dtype == np.int32
    assert got.high_values.dtype == got.low_values.dtype == np.float32


@settings(max_examples=100, deadline=None)
@given(data=st.data(), values=hnp.arrays(np.float16, SHAPES, elements=FEW), k=st.integers(1, 8))
def test_blocks_in_any_order_give_the_same(data: st.DataObject, values: NDArray[np.float16], k: int) -> None:
    n_clips = values.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, n_clips), max_size=5)) | {0, n_clips})
    blocks = data.draw(st.permutations(list(pairwise(cuts))))
    accumulator = ExemplarAccumulator(values.shape[0], k)
    for start, stop in blocks:
        accumulator.update(values[:, start:stop].T, start)
    for got, expected in zip(accumulator.result(), exemplars(values, k), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_fewer_clips_than_k_gives_all_of_them() -> None:
    got = exemplars(np.array([[1.0, 3.0, 2.0]], np.float16))
    assert EXEMPLARS_KEPT == 20
    assert got.high_positions.tolist() == [[1, 2, 0]]
    assert got.low_positions.tolist() == [[0, 2, 1]]


def test_a_constant_neuron_shows_the_first_clips_on_both_sides() -> None:
    got = exemplars(np.full((2, 9), 0.25, np.float16), 3)
    assert got.high_positions.tolist() == got.low_positions.tolist() == [[0, 1, 2]] * 2


def test_positions_are_those_of_the_probing_set() -> None:
    accumulator = ExemplarAccumulator(1, 2)
    accumulator.update(np.array([[5.0], [7.0]], np.float16), 1000)
    accumulator.update(np.array([[7.0], [5.0]], np.float16), 998)
    result = accumulator.result()
    assert result.high_positions.tolist() == [[998, 1001]]
    assert result.low_positions.tolist() == [[999, 1000]]
    assert accumulator.n_clips == 4


def test_many_neurons_go_in_tiles_with_the_same_result() -> None:
    values = np.random.default_rng(0).integers(-3, 3, (3000, 900)).astype(np.float16)  # more cells than one tile
    high, low = _by_stable_sort(values, 20)
    got = exemplars(values)
    np.testing.assert_array_equal(got.high_positions, high)
    np.testing.assert_array_equal(got.low_positions, low)


def test_what_is_not_a_number_or_has_the_wrong_shape_is_refused() -> None:
    values = np.zeros((3, 4), np.float32)
    values[1, 2] = np.nan
    with pytest.raises(ActivationError, match="neuron 1"):
        exemplars(values)
    with pytest.raises(ActivationError, match="neuron 1"):
        statistics(values)
    with pytest.raises(ActivationError, match="expected values for 5 neurons"):
        ExemplarAccumulator(5).update(values, 0)
    with pytest.raises(ActivationError, match="no statistics"):
        StatisticsAccumulator(5).result()


@settings(max_examples=100, deadline=None)
@given(values=hnp.arrays(np.float16, SHAPES, elements=st.floats(-6e4, 6e4, width=16)), cut=st.integers(0, 40))
def test_statistics_equal_the_formulas_in_one_block_or_two(values: NDArray[np.float16], cut: int) -> None:
    wide = values.astype(np.float64)
    accumulator = StatisticsAccumulator(values.shape[0])
    accumulator.update(values[:, :cut].T)
    accumulator.update(values[:, cut:].T)
    for got in (statistics(values), accumulator.result()):
        scale = np.abs(wide).max() + 1e-12
        np.testing.assert_allclose(got.mean, wide.mean(axis=1), rtol=1e-6, atol=1e-7 * scale)
        np.testing.assert_allclose(got.sd, wide.std(axis=1), rtol=1e-5, atol=1e-6 * scale)
        np.testing.assert_array_equal(got.min, wide.min(axis=1).astype(np.float32))
        np.testing.assert_array_equal(got.max, wide.max(axis=1).astype(np.float32))
        n = values.shape[1]
        varied = np.ptp(wide, axis=1) > 0
        l1, l2 = np.abs(wide).sum(axis=1)[varied], np.sqrt((wide**2).sum(axis=1))[varied]
        hoyer = (np.sqrt(n) - l1 / l2) / (np.sqrt(n) - 1) if n > 1 else np.empty(0)
        np.testing.assert_allclose(got.sparsity[varied], hoyer, atol=1e-4)
        assert (got.sparsity[~varied] == 0).all()
        assert all(column.dtype == np.float32 for column in got)


def test_sparsity_runs_from_all_clips_alike_to_one_alone() -> None:
    values = np.array([[1, -1, 1, -1], [0, 0, 5, 0], [0, 0, 0, 0], [3, 3, 3, 3]], np.float16)
    assert statistics(values).sparsity.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert statistics(values).sd[2:].tolist() == [0.0, 0.0]
