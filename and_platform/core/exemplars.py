"""The clips that move each neuron most and least, and what its activations look like.

Both are made in one pass over blocks of clips, exactly, from the values as stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_platform.errors import ActivationError

EXEMPLARS_KEPT: Final = 20
_TILE_CELLS: Final = 1 << 21  # cells handled at once: 16 MB of keys
_SIGN: Final = np.uint32(1 << 31)
_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)
_SHIFT: Final = np.uint64(32)


class Exemplars(NamedTuple):
    """The exemplars of J neurons, k a side (fewer where there are fewer clips), the most extreme first.

    Positions are int32 [J, k] in the probing set, values float32 [J, k]. Among equal values the lowest
    position comes first, on both sides.
    """

    high_positions: NDArray[np.int32]
    high_values: NDArray[np.float32]
    low_positions: NDArray[np.int32]
    low_values: NDArray[np.float32]


class Statistics(NamedTuple):
    """Per neuron, float32 [J]: see `statistics`."""

    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    min: NDArray[np.float32]
    max: NDArray[np.float32]
    sparsity: NDArray[np.float32]


class ExemplarAccumulator:
    """Running top and bottom k of every neuron, over blocks of clips in any order.

    The result is that of a stable sort of all values, whatever the blocks were. Each cell becomes one 64-bit
    key, value above and position below, so keys are distinct and a plain partition needs no repair of ties.

    Parameters
    ----------
    n_neurons
        J.
    k
        Exemplars to keep a side.
    """

    def __init__(self, n_neurons: int, k: int = EXEMPLARS_KEPT) -> None:
        if k < 1:
            raise ValueError("k must be at least 1")
        self.n_neurons = n_neurons
        self.k = k
        self.n_clips = 0
        self._high = np.empty((n_neurons, 0), np.uint64)
        self._low = np.empty((n_neurons, 0), np.uint64)

    def update(self, values: NDArray[Any], first_position: int) -> None:
        """Take in the clips at `first_position`, `first_position + 1`, … of the probing set, each once.

        Parameters
        ----------
        values
            [n_clips, J], float16 or float32 (anything else is taken as float32).
        first_position
            Position of the first row.

        Raises
        ------
        ActivationError
            Where a value is not a number.
        """
        n_clips = _checked(values, self.n_neurons)
        if n_clips == 0:
            return
        if first_position < 0 or first_position + n_clips > np.iinfo(np.int32).max:
            raise ValueError("positions must fit in 31 bits")
        positions = np.arange(first_position, first_position + n_clips, dtype=np.uint64)
        width = min(self.k, self.n_clips + n_clips)
        high = np.empty((self.n_neurons, width), np.uint64)
        low = np.empty((self.n_neurons, width), np.uint64)
        for rows, tile in _tiles(values):
            ordered = _to_ordered(tile)
            for kept, fresh, into in ((self._high, ~ordered, high), (self._low, ordered, low)):
                keys = np.concatenate([kept[rows], fresh.astype(np.uint64) << _SHIFT | positions], axis=1)
                if keys.shape[1] > width:
                    keys.partition(width - 1, axis=1)
                into[rows] = keys[:, :width]
        self._high, self._low = high, low
        self.n_clips += n_clips

    def result(self) -> Exemplars:
        """The exemplars of all clips seen so far."""
        high, low = np.sort(self._high, axis=1), np.sort(self._low, axis=1)
        return Exemplars(
            (high & _LOW_HALF).astype(np.int32),
            _from_ordered(~(high >> _SHIFT).astype(np.uint32)),
            (low & _LOW_HALF).astype(np.int32),
            _from_ordered((low >> _SHIFT).astype(np.uint32)),
        )


class StatisticsAccumulator:
    """Running mean, spread, range and sparsity of every neuron, over blocks of clips.

    Sums are in float64, and blocks are joined by the pairwise update of Chan, Golub and LeVeque (1979).
    """

    def __init__(self, n_neurons: int) -> None:
        self.n_neurons = n_neurons
        self.n_clips = 0
        self._mean = np.zeros(n_neurons)
        self._squares = np.zeros(n_neurons)  # of the distances to the mean
        self._magnitude = np.zeros(n_neurons)  # sum of |x|
        self._min = np.full(n_neurons, np.inf)
        self._max = np.full(n_neurons, -np.inf)

    def update(self, values: NDArray[Any]) -> None:
        """Take in [n_clips, J] values; ActivationError where one is not a number."""
        n_clips = _checked(values, self.n_neurons)
        if n_clips == 0:
            return
        total = self.n_clips + n_clips
        for rows, tile in _tiles(values):
            block = tile.astype(np.float64)
            mean = block.mean(axis=1)
            shift = mean - self._mean[rows]
            squares = np.square(block - mean[:, None]).sum(axis=1)
            self._squares[rows] += squares + shift**2 * (self.n_clips * n_clips / total)
            self._mean[rows] += shift * (n_clips / total)
            self._magnitude[rows] += np.abs(block).sum(axis=1)
            self._min[rows] = np.minimum(self._min[rows], block.min(axis=1))
            self._max[rows] = np.maximum(self._max[rows], block.max(axis=1))
        self.n_clips = total

    def result(self) -> Statistics:
        """The statistics of all clips seen so far (at least one)."""
        if self.n_clips == 0:
            raise ActivationError("no clip was recorded, so there are no statistics; record at least one")
        constant = self._min == self._max
        # an accumulated spread of 1e-17 must not make a constant neuron look alive
        variance = np.where(constant, 0.0, self._squares / self.n_clips)
        euclidean = np.sqrt(self.n_clips * (variance + self._mean**2))
        root = np.sqrt(self.n_clips)
        sparsity = np.zeros(self.n_neurons)
        varied = ~constant & (euclidean > 0)
        sparsity[varied] = (root - self._magnitude[varied] / euclidean[varied]) / (root - 1)
        columns = (self._mean, np.sqrt(variance), self._min, self._max, np.clip(sparsity, 0.0, 1.0))
        return Statistics(*(column.astype(np.float32) for column in columns))


def exemplars(values: NDArray[Any], k: int = EXEMPLARS_KEPT) -> Exemplars:
    """Top and bottom k clips of each neuron in one shot: `values` is [J, N], clip n at position n."""
    accumulator = ExemplarAccumulator(values.shape[0], k)
    accumulator.update(values.T, 0)
    return accumulator.result()


def statistics(values: NDArray[Any]) -> Statistics:
    """Mean, standard deviation (population), minimum, maximum and sparsity of each neuron.

    Parameters
    ----------
    values
        [J, N], N >= 1. Sums are in float64, results in float32.

    Returns
    -------
    Statistics
        Sparsity is Hoyer's measure of the magnitudes over clips, (sqrt(N) - L1 / L2) / (sqrt(N) - 1)
        (Hoyer 2004, Journal of Machine Learning Research 5, section 3.1): 0 where every clip moves the neuron
        equally, 1 where a single clip does. A constant neuron, a dead one included, has sparsity 0.

    Raises
    ------
    ActivationError
        Where there is no clip, or a value is not a number.
    """
    accumulator = StatisticsAccumulator(values.shape[0])
    accumulator.update(values.T)
    return accumulator.result()


def _checked(values: NDArray[Any], n_neurons: int) -> int:
    if values.ndim != 2 or values.shape[1] != n_neurons:
        raise ActivationError(f"expected values for {n_neurons} neurons, got an array of shape {values.shape}")
    return int(values.shape[0])


def _tiles(values: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Neurons by the thousand: (which, float32 [neurons, n_clips])."""
    step = max(1, _TILE_CELLS // values.shape[0])
    for start in range(0, values.shape[1], step):
        rows = slice(start, min(start + step, values.shape[1]))
        tile = np.ascontiguousarray(values[:, rows].T, dtype=np.float32)
        if np.isnan(tile).any():
            unit = start + int(np.isnan(tile).any(axis=1).argmax())
            raise ActivationError(f"an activation of neuron {unit} is not a number; record the network again")
        yield rows, tile


def _to_ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Unsigned integers in the order of the floats; -0 and 0 are one value."""
    bits = (values + np.float32(0.0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_ordered(ordered: NDArray[np.uint32]) -> NDArray[np.float32]:
    return np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered).view(np.float32)
