"""Lists of different lengths as two flat arrays: many neurons are handled without a loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Rows of integer ids: row i is `ids[offsets[i]:offsets[i + 1]]` (the layout of a CSR matrix).

    Parameters
    ----------
    ids
        All rows one after the other, shape [total].
    offsets
        Where each row starts, and the end, shape [rows + 1], from 0 up to total.

    Raises
    ------
    ValueError
        If the offsets do not run from 0 to the number of ids without falling.
    """

    ids: Ints
    offsets: Ints

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != self.ids.size or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets must rise from 0 to {self.ids.size}, one more than there are rows")

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Pack lists of ids."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        return cls(ids, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]))

    def __len__(self) -> int:
        return self.offsets.size - 1

    @property
    def lengths(self) -> Ints:
        """Number of ids in each row, shape [rows]."""
        lengths: Ints = np.diff(self.offsets)
        return lengths

    def to_lists(self) -> list[list[int]]:
        """Unpack into lists of ids."""
        return [part.tolist() for part in np.split(self.ids, self.offsets[1:-1])] if len(self) else []

    def padded(self, start: int = 0, stop: int | None = None) -> Ints:
        """Rows start..stop as a rectangle filled up with -1, shape [stop - start, longest row]."""
        offsets = self.offsets[start : len(self) + 1 if stop is None else stop + 1]
        lengths = np.diff(offsets)
        width = int(lengths.max(initial=0))
        table = np.full((lengths.size, width), -1, dtype=np.int64)
        table[np.arange(width) < lengths[:, None]] = self.ids[offsets[0] : offsets[-1]]
        return table


def blocks(widths: Ints, budget: int) -> Iterator[tuple[int, int]]:
    """Cut 0..len(widths) into consecutive stretches whose padded size, rows x widest, stays within `budget`.

    A single row wider than the budget makes a stretch of its own.
    """
    start, widest = 0, 0
    for row, width in enumerate(widths.tolist()):
        widest = max(widest, width)
        if row > start and (row + 1 - start) * widest > budget:
            yield start, row
            start, widest = row, width
    if start < widths.size:
        yield start, int(widths.size)
