"""A summariser without a language model: it states what at least m of a neuron's K captions share.

A greedy cover by medoids: the sentence that most captions agree with speaks for all sentences close to it;
then the next one among what is left. Nothing is generated, so a summary can say nothing that no caption
says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_platform.core.calibration import COSINE_DECIMALS, sentence_table
from and_platform.core.facets import Facets, compatible
from and_platform.core.ragged import Ints, Ragged

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

_BUDGET = 1 << 22
"""Pairs of sentences compared at a time."""


class SharedPoint(NamedTuple):
    """A sentence that speaks for a neuron's captions, and how many of them agree with it."""

    sentence: int
    support: int


def summarise(
    embeddings: Floats,
    captions: Ragged,
    exemplars: Ints,
    *,
    min_support: Sequence[int] = (3, 2),
    tau: float = 0.75,
    max_points: int = 8,
    facets: Facets | None = None,
) -> list[list[SharedPoint]]:
    """What each neuron's captions share, as sentences of theirs with the number of captions that agree.

    In every round the sentence with the highest support is taken (ties: the higher mean over the captions of
    the cosine to their nearest sentence, then the first), and the sentences near it are out. Support counts
    distinct captions, whatever was taken before.

    Parameters
    ----------
    embeddings
        Unit sentence embeddings [sentences, dim]; equal sentences share a row.
    captions
        Sentences of each clip's caption, as rows of `embeddings`.
    exemplars
        Each neuron's clips as rows of `captions`, [neurons, K], -1 where there are fewer.
    min_support
        m. Several numbers are tried in turn: the first at which a neuron has any point is used for it, so
        that (3, 2) asks for a majority of five and settles for two.
    tau
        Two sentences state the same thing if their cosine is at least this and, where `facets` [sentences,
        facets] are given, if they are compatible (see `and_platform.core.facets`).
    max_points
        The most sentences a neuron gets.

    Returns
    -------
    list of lists
        Points per neuron, by falling support; empty where nothing is shared.
    """
    import torch

    matrix = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
    sides = None if facets is None else torch.from_numpy(facets)
    table = sentence_table(captions)
    neurons, k = exemplars.shape
    width = k * table.shape[1]
    if width == 0:
        return [[] for _ in range(neurons)]
    points: list[list[SharedPoint]] = [[] for _ in range(neurons)]
    step = max(1, _BUDGET // width**2)
    for start in range(0, neurons, step):
        ids = torch.from_numpy(table[exemplars[start : start + step]].reshape(-1, width))
        there = ids >= 0
        near, agreement = _agreement(matrix, sides, ids, there, k, tau)
        counts = near.view(-1, width, k, width // k).any(dim=3).sum(dim=2).masked_fill(~there, 0)
        needed = _needed(counts.amax(dim=1), min_support)
        # The mean cosine decides between equal counts only: it adds less than one half.
        rank = counts + (agreement + 1) / 4
        open_ = there & (counts >= needed[:, None])
        for _ in range(max_points):
            rows = open_.any(dim=1).nonzero()[:, 0]
            if rows.numel() == 0:
                break
            chosen = rank[rows].masked_fill(~open_[rows], -1).argmax(dim=1)
            open_[rows] &= ~near[rows, chosen]
            for row, sentence, count in zip(
                rows.tolist(), ids[rows, chosen].tolist(), counts[rows, chosen].tolist(), strict=True
            ):
                points[start + row].append(SharedPoint(sentence, count))
    return points


def _agreement(
    matrix: torch.Tensor,
    sides: torch.Tensor | None,
    ids: torch.Tensor,
    there: torch.Tensor,
    k: int,
    tau: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which sentences state the same [rows, T, T], and each one's mean cosine to the captions [rows, T]."""
    import torch

    vectors = matrix[ids]
    cosine = torch.bmm(vectors, vectors.transpose(1, 2)).round_(decimals=COSINE_DECIMALS)
    pairs = there[:, :, None] & there[:, None, :]
    near = cosine >= tau
    if sides is not None:
        near &= compatible(sides[ids], sides[ids])
    near = (near | (ids[:, :, None] == ids[:, None, :])) & pairs
    best = cosine.masked_fill(~pairs, -torch.inf).view(*ids.shape, k, -1).amax(dim=3)
    present = torch.isfinite(best)
    # In float64 the sum does not depend on the order of the captions: ties are ties.
    mean = best.double().masked_fill(~present, 0).sum(dim=2) / present.sum(dim=2).clamp(min=1)
    return near, mean.round_(decimals=COSINE_DECIMALS)


def _needed(highest: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """The first level that each neuron's best sentence reaches; out of reach where it reaches none."""
    import torch

    needed = torch.full_like(highest, torch.iinfo(highest.dtype).max)
    for level in reversed(levels):
        needed = torch.where(highest >= level, level, needed)
    return needed
