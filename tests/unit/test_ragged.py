from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform.core.ragged import Ragged, blocks

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=12)


@given(ROWS)
def test_lists_come_back(rows: list[list[int]]) -> None:
    packed = Ragged.from_lists(rows)
    assert packed.to_lists() == rows
    assert len(packed) == len(rows)
    assert packed.lengths.tolist() == [len(row) for row in rows]
    padded = packed.padded()
    assert [[i for i in row if i >= 0] for row in padded.tolist()] == rows
    assert padded.shape == (len(rows), max(map(len, rows), default=0))


def test_a_stretch_is_as_wide_as_its_own_longest_row() -> None:
    packed = Ragged.from_lists([[1, 2, 3], [4], [], [5, 6]])
    assert packed.padded(1, 3).tolist() == [[4], [-1]]
    assert packed.padded(2).tolist() == [[-1, -1], [5, 6]]


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 2, 1, 2]])
def test_offsets_must_fit(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must rise from 0 to 2"):
        Ragged(np.array([7, 8]), np.array(offsets, dtype=np.int64))


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 20))
def test_blocks_cover_everything_within_the_budget(widths: list[int], budget: int) -> None:
    cut = list(blocks(np.array(widths, dtype=np.int64), budget))
    assert [row for start, stop in cut for row in range(start, stop)] == list(range(len(widths)))
    for start, stop in cut:
        assert stop - start == 1 or (stop - start) * max(widths[start:stop]) <= budget
