"""Summary calibration: what also holds for a neuron's lowest clips does not describe it (paper, 3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_platform.core.facets import Facets, compatible
from and_platform.core.ragged import Ints, Ragged, blocks

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

COSINE_DECIMALS = 6
"""Cosines are rounded to this, above the noise of float32 sums: verdicts must not depend on the blocks."""

_BUDGET = 1 << 16
"""Sentence vectors gathered at a time: 100 MB at 384 dimensions."""


class Calibration(NamedTuple):
    """For each high point, in the order of `high.ids`: the low point nearest to it, and the verdict.

    `nearest` is the place in `low.ids`, -1 where there is none to compare with; `cosine` is NaN there.
    """

    nearest: Ints
    cosine: Floats
    kept: NDArray[np.bool_]


def calibrate(
    embeddings: Floats,
    high: Ragged,
    low: Ragged,
    *,
    threshold: float = 0.7,
    facets: Facets | None = None,
) -> Calibration:
    """Drop each high point that has a low point of the same neuron with a cosine above `threshold`.

    Parameters
    ----------
    embeddings
        Unit sentence embeddings [sentences, dim].
    high, low
        Points of each neuron's summaries, as rows of `embeddings`; one row of points per neuron in both.
    threshold
        t of the paper: a point is kept if its largest cosine is at most t.
    facets
        Facets [sentences, facets] of `and_platform.core.facets`; if given, a low point counts only where it
        is compatible, so that "quiet" does not remove "loud". Without them this is the paper's rule.

    Raises
    ------
    ValueError
        If `high` and `low` are of different numbers of neurons.
    """
    import torch

    if len(high) != len(low):
        raise ValueError(f"{len(high)} rows of high points, but {len(low)} of low points")
    matrix = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
    sides = None if facets is None else torch.from_numpy(facets)
    nearest = np.full(high.ids.size, -1, dtype=np.int64)
    cosine = np.full(high.ids.size, np.nan, dtype=np.float32)
    for start, stop in blocks(high.lengths + low.lengths, _BUDGET):
        high_ids, low_ids = high.padded(start, stop), low.padded(start, stop)
        if high_ids.shape[1] == 0 or low_ids.shape[1] == 0:
            continue
        found = _cosines(matrix, high_ids, low_ids)
        if sides is not None:
            found[~compatible(sides[high_ids], sides[low_ids])] = -torch.inf
        best, place = (part.numpy() for part in found.max(dim=2))
        there = high_ids >= 0
        rows, points = there.nonzero()
        cosine_here = best[there]
        any_low = np.isfinite(cosine_here)
        span = slice(high.offsets[start], high.offsets[stop])
        nearest[span] = np.where(any_low, low.offsets[start + rows] + place[rows, points], -1)
        cosine[span] = np.where(any_low, cosine_here, np.nan)
    return Calibration(nearest, cosine, ~(cosine > threshold))


def support(
    embeddings: Floats,
    points: Ragged,
    captions: Ragged,
    exemplars: Ints,
    *,
    tau: float = 0.7,
    facets: Facets | None = None,
) -> Ints:
    """How many of a neuron's K captions have a sentence with a cosine of `tau` or more to each of its points.

    Parameters
    ----------
    embeddings
        Unit sentence embeddings [sentences, dim].
    points
        Points of each neuron, as rows of `embeddings`.
    captions
        Sentences of each clip's caption, as rows of `embeddings`.
    exemplars
        Each neuron's clips as rows of `captions`, [neurons, K], -1 where there are fewer.
    facets
        As in `calibrate`.

    Returns
    -------
    int64 [points.ids.size]
        Between 0 and K.

    Raises
    ------
    ValueError
        If `points` and `exemplars` are of different numbers of neurons.
    """
    import torch

    if len(points) != exemplars.shape[0]:
        raise ValueError(f"points of {len(points)} neurons, but exemplars of {exemplars.shape[0]}")
    matrix = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
    sides = None if facets is None else torch.from_numpy(facets)
    table = sentence_table(captions)
    counts = np.zeros(points.ids.size, dtype=np.int64)
    k = exemplars.shape[1]
    for start, stop in blocks(points.lengths + k * table.shape[1], _BUDGET):
        point_ids = points.padded(start, stop)
        sentence_ids = table[exemplars[start:stop]].reshape(stop - start, -1)
        if point_ids.shape[1] == 0 or sentence_ids.shape[1] == 0:
            continue
        near = _cosines(matrix, point_ids, sentence_ids) >= tau
        if sides is not None:
            near &= compatible(sides[point_ids], sides[sentence_ids])
        agreeing = near.reshape(*near.shape[:2], k, -1).any(dim=3).sum(dim=2).numpy()
        counts[points.offsets[start] : points.offsets[stop]] = agreeing[point_ids >= 0]
    return counts


def sentence_table(captions: Ragged) -> Ints:
    """Sentences of each caption padded with -1, and a last row of -1 alone, which index -1 then finds."""
    padded = captions.padded()
    return np.vstack([padded, np.full((1, padded.shape[1]), -1, dtype=np.int64)])


def _cosines(matrix: torch.Tensor, left: Ints, right: Ints) -> torch.Tensor:
    """Cosines of the sentences of two padded tables, [rows, m, n]; -inf where either is padding."""
    import torch

    left_ids, right_ids = torch.from_numpy(left), torch.from_numpy(right)
    found = torch.bmm(matrix[left_ids], matrix[right_ids].transpose(1, 2)).round_(decimals=COSINE_DECIMALS)
    found[(left_ids < 0)[:, :, None] | (right_ids < 0)[:, None, :]] = -torch.inf
    return found
