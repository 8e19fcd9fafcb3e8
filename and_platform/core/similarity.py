"""Five functions that turn activations and clip-concept scores into neuron-concept scores.

`SIMILARITIES` maps a name to a callable `(activations [J, N], match [N, M]) -> scores [J, M]`, where J
counts neurons, N clips and M concepts; a higher score is a better match. Parameters are keywords:

>>> SIMILARITIES["wpmi"](activations, match, top_k=10)  # doctest: +SKIP

Each function is a small frozen dataclass whose fields are its parameters. It is split into what depends on
the concepts alone (`prepare`), on the neurons alone (`features`) and on both (`score`, `settle`), so that
`matching.Matcher` runs the same code in blocks.

What holds for all of them
    * Values are compared as float32. Ties between activations go to the clip that comes first, and -0
      equals 0.
    * Where there is no score, the result is NaN. A neuron that is constant over the clips (a dead one
      included), or that has a value that is not finite, has no score for any concept, and is left out of the
      layer's prior in `wpmi` and `soft_wpmi`: which clips are its "most active" would be decided by their
      position alone.
    * With fewer clips than `top_k`, all clips are used. One concept is allowed.
    * `clips=K` uses only the K most active clips of each neuron, as if the others did not exist.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from and_platform.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-7
"""Keeps the logarithms of `wpmi` and `soft_wpmi` finite."""

# Working set of the inner loops, in elements: about a core's second-level cache.
_BLOCK = 1 << 18
_CONCEPT_BLOCK = 64


def cosine_scores(clip_embeddings: Tensor, concept_embeddings: Tensor) -> Tensor:
    """Match clips with concepts by plain cosine (method TAB).

    Parameters
    ----------
    clip_embeddings : Tensor [N, d]
        Audio embeddings (or any in the concepts' space); any scale.
    concept_embeddings : Tensor [M, d]

    Returns
    -------
    Tensor [N, M], float32

    Raises
    ------
    InputError
        If an embedding is zero or not finite: it has no direction.
    """
    return _unit_rows(clip_embeddings, "clip") @ _unit_rows(concept_embeddings, "concept").T


def softmax_scores(caption_embeddings: Tensor, concept_embeddings: Tensor, scale: float = 100.0) -> Tensor:
    """Match clips with concepts by a softmax over concepts of the scaled cosine (method DB).

    Parameters
    ----------
    caption_embeddings : Tensor [N, d]
    concept_embeddings : Tensor [M, d]
    scale : float
        Factor on the cosine before the softmax; 100 is CLIP's.

    Returns
    -------
    Tensor [N, M], float32
        Rows sum to one.

    Raises
    ------
    InputError
        If an embedding is zero or not finite. Clips without a caption are masked, see `matching.Matcher`.
    """
    import torch

    return torch.softmax(scale * cosine_scores(caption_embeddings, concept_embeddings), dim=1)


def _unit_rows(embeddings: Tensor, what: str) -> Tensor:
    import torch

    rows = torch.as_tensor(embeddings).float()
    norms = rows.norm(dim=1, keepdim=True)
    usable = norms.isfinite() & (norms > 0)
    if not usable.all():
        position = int((~usable).nonzero()[0, 0])
        raise InputError(f"the embedding of {what} {position} is zero or not finite; embed it again, or leave it out")
    return torch.div(rows, norms)


def top_columns(values: Tensor, k: int) -> Tensor:
    """Find the k largest values of every row, largest first; ties go to the lowest column.

    Parameters
    ----------
    values : Tensor [J, N]
        float16 is fastest; anything else is compared as float32. No NaN.
    k : int
        At most N are returned.

    Returns
    -------
    Tensor [J, min(k, N)], int32
    """
    import torch

    n_rows, n_columns = values.shape
    k = min(k, n_columns)
    half = values.dtype == torch.float16 and n_columns <= 1 << 16
    array = (values if half else values.float()).detach().numpy()
    out = np.empty((n_rows, k), np.int32)

    for rows in _slices(n_rows, _BLOCK // max(1, n_columns)):
        keys = _sort_keys(array[rows])
        if k < n_columns:
            keys.partition(n_columns - k, axis=1)
        best = np.sort(keys[:, n_columns - k :], axis=1)[:, ::-1]
        out[rows] = n_columns - 1 - (best & (0xFFFF if half else 0xFFFFFFFF))
    return torch.from_numpy(out)


def _sort_keys(values: NDArray[np.floating]) -> NDArray[np.signedinteger]:
    """Integers that order like the values, and among equals like the columns from last to first.

    One vectorised sort of distinct integers then does the work of a stable argsort. The sign-magnitude bits
    of a float, taken as a signed integer of the same magnitude, order like the float, with -0 equal to 0.
    """
    half = values.dtype == np.float16
    small, large = (np.int16, np.int32) if half else (np.int32, np.int64)
    bits: NDArray[np.signedinteger] = np.ascontiguousarray(values).view(small)
    order: NDArray[np.signedinteger] = np.where(bits < 0, -(bits & np.iinfo(small).max), bits).astype(large)
    order <<= 16 if half else 32
    order |= np.arange(values.shape[1] - 1, -1, -1, dtype=large)
    return order


def _slices(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, length, size))


def _tiles(n_neurons: int, n_concepts: int, elements: int) -> Iterator[tuple[slice, slice]]:
    """Cut J x M into tiles of about `elements`, concepts outermost so that their columns stay in cache."""
    for columns in _slices(n_concepts, _CONCEPT_BLOCK):
        for rows in _slices(n_neurons, elements // min(n_concepts, _CONCEPT_BLOCK)):
            yield rows, columns


class Tile:
    """Activations of some neurons of one layer, with what the functions share computed once.

    Parameters
    ----------
    activations : Tensor [J, N]
        One number per neuron and clip.
    deepest : int
        The largest `k` that `top` will be asked for: the sort is done once, for that many.
    """

    def __init__(self, activations: Tensor, deepest: int = 0) -> None:
        self.activations = activations
        self._deepest = deepest
        self._top: Tensor | None = None

    @property
    def n_clips(self) -> int:
        return int(self.activations.shape[1])

    @cached_property
    def values(self) -> Tensor:
        """Activations in float32, [J, N]; NaN throughout for a neuron that has no score."""
        values = self.activations.float()
        low, high = values.aminmax(dim=1)
        dead = ~((high > low) & (high - low).isfinite())
        return values.masked_fill(dead[:, None], math.nan) if bool(dead.any()) else values

    @property
    def dead(self) -> Tensor:
        """Whether the neuron has no score: constant, or not finite somewhere. bool [J]."""
        return self.values[:, 0].isnan()

    def top(self, k: int) -> Tensor:
        """The k most active clips of each neuron, most active first. int32 [J, min(k, N)]."""
        k = min(k, self.n_clips)
        if self._top is None or self._top.shape[1] < k:
            self._top = top_columns(self.activations, max(k, self._deepest))
        return self._top[:, :k]

    def top_values(self, k: int) -> Tensor:
        """Activations of the k most active clips, descending; NaN where there is no score. float32 [J, k]."""
        return self.values.gather(1, self.top(k).long())


Features: TypeAlias = "tuple[Tensor, ...]"
"""Tensors with one row per neuron."""
Prepared: TypeAlias = "tuple[Tensor, ...]"
"""Tensors with one column per concept."""


@dataclass(frozen=True, kw_only=True)
class Similarity(ABC):
    """A similarity between neurons and concepts; see the module for what they have in common.

    Parameters
    ----------
    clips : int, optional
        Use only this many most active clips of each neuron; all by default.
    """

    clips: int | None = None
    name: ClassVar[str]
    needs_layer: ClassVar[bool] = False
    """Whether `settle` has to see all neurons of the layer at once."""

    def __post_init__(self) -> None:
        if self.clips is not None and self.clips < 1:
            raise InputError(f"clips is {self.clips}; give the number of clips to use, at least 1")

    def __call__(self, activations: Tensor, match: Tensor, **parameters: Any) -> Tensor:
        """Score every neuron against every concept.

        Parameters
        ----------
        activations : Tensor [J, N]
            All neurons of one layer, where the function has a prior over the layer.
        match : Tensor [N, M]
            How well each clip matches each concept (P); finite.
        **parameters
            Fields of this function to change for this call.

        Returns
        -------
        Tensor [J, M], float32
            NaN where there is no score.

        Raises
        ------
        InputError
            If the shapes do not fit or `match` is not finite.
        TypeError
            If the function has no such parameter.
        """
        import torch

        if parameters:
            return replace(self, **parameters)(activations, match)
        activations = torch.as_tensor(activations)
        match = check_match(match)
        if activations.ndim != 2 or activations.shape[1] != match.shape[0]:
            raise InputError(
                f"activations of shape {tuple(activations.shape)} do not fit {match.shape[0]} clips; "
                "give neurons x clips and clips x concepts"
            )
        return self.settle(self.score(self.features(Tile(activations)), self.prepare(match)))

    def clips_used(self, n_clips: int) -> int:
        """Number of clips that count, of `n_clips`."""
        return n_clips if self.clips is None else min(self.clips, n_clips)

    def depth(self, n_clips: int) -> int:
        """How many of the most active clips have to be known; 0 if their order does not matter."""
        return self.clips_used(n_clips) if self.clips is not None else 0

    @abstractmethod
    def prepare(self, match: Tensor) -> Prepared:
        """Compute what depends on the concepts alone, from float32 [N, M]."""

    @abstractmethod
    def features(self, tile: Tile) -> Features:
        """Compute what depends on the neurons alone."""

    @abstractmethod
    def score(self, features: Features, prepared: Prepared) -> Tensor:
        """Score neurons against concepts, float32 [J, M]."""

    def settle(self, scores: Tensor) -> Tensor:
        """Compare with the other neurons of the layer, where the function does that."""
        return scores


def check_match(match: Tensor) -> Tensor:
    """Return clip-concept scores [N, M] as float32, or raise `InputError` if they cannot be used."""
    import torch

    match = torch.as_tensor(match).float()
    if match.ndim != 2 or match.numel() == 0:
        raise InputError(
            f"clip-concept scores of shape {tuple(match.shape)}; give clips x concepts, one of each at least"
        )
    if not match.isfinite().all():
        raise InputError("clip-concept scores that are not finite; mask the clips that have none")
    return match


@dataclass(frozen=True, kw_only=True)
class Cos(Similarity):
    """Cosine between the activations and the concept's scores over the clips, neither centred.

    Parameters
    ----------
    clips : int, optional
        Use only this many most active clips of each neuron; all by default.
    min_norm : float
        Norms are clipped below at this.
    """

    name: ClassVar[str] = "cos"
    min_norm: float = 1e-12

    def _shaped(self, values: Tensor, dim: int) -> Tensor:
        return values

    def _unit(self, values: Tensor, dim: int) -> Tensor:
        import torch

        shaped = self._shaped(values, dim)
        return torch.div(shaped, shaped.norm(dim=dim, keepdim=True).clip(self.min_norm))

    def prepare(self, match: Tensor) -> Prepared:
        # With `clips`, every neuron has its own clips: norms and means can only be taken in `score`.
        return (self._unit(match, 0) if self.clips is None else match,)

    def features(self, tile: Tile) -> Features:
        if self.clips is None:
            return (self._unit(tile.values, 1),)
        values = tile.top_values(self.clips)
        values = values.masked_fill((values[:, :1] == values[:, -1:]), math.nan)
        return self._unit(values, 1), tile.top(self.clips)

    def score(self, features: Features, prepared: Prepared) -> Tensor:
        import torch

        (match,) = prepared
        if self.clips is None:
            return features[0] @ match
        unit, index = features
        out = torch.empty(len(unit), match.shape[1])
        for rows, columns in _tiles(len(out), out.shape[1], _BLOCK // unit.shape[1]):
            chosen = match[:, columns].index_select(0, index[rows].reshape(-1)).view(*index[rows].shape, -1)
            out[rows, columns] = torch.einsum("jk,jkm->jm", unit[rows], self._unit(chosen, 1))
        return out


@dataclass(frozen=True, kw_only=True)
class CosCubed(Cos):
    """Cosine after centring both over clips and cubing them elementwise, which favours the extremes.

    Parameters
    ----------
    clips : int, optional
        Use only this many most active clips of each neuron; all by default.
    min_norm : float
        Norms (after cubing) are clipped below at this. A concept that is constant over the clips scores 0.
    """

    name: ClassVar[str] = "cos_cubed"
    min_norm: float = 1e-3

    def _shaped(self, values: Tensor, dim: int) -> Tensor:
        return (values - values.mean(dim=dim, keepdim=True)) ** 3


@dataclass(frozen=True, kw_only=True)
class WPMI(Similarity):
    """Weighted pointwise mutual information between a neuron's most active clips and a concept.

    `L - prior * (logsumexp of L over the layer's neurons - log J)`, with L the sum of `log(S + 1e-7)` over
    the most active clips and S the softmax over concepts of `scale * match`.

    Parameters
    ----------
    clips : int, optional
        Use only this many most active clips of each neuron; all by default.
    top_k : int
        Number of most active clips.
    scale : float
        Factor on the clip-concept scores before the softmax.
    prior : float
        Weight of the concept's prior, taken over all neurons of the layer.
    """

    name: ClassVar[str] = "wpmi"
    needs_layer: ClassVar[bool] = True
    top_k: int = 28
    scale: float = 2.0
    prior: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; give the number of most active clips, at least 1")

    def depth(self, n_clips: int) -> int:
        return min(self.top_k, self.clips_used(n_clips))

    def features(self, tile: Tile) -> Features:
        return tile.top(self.depth(tile.n_clips)), tile.dead

    def prepare(self, match: Tensor) -> Prepared:
        import torch

        return ((torch.softmax(self.scale * match, dim=1) + EPSILON).log(),)

    def score(self, features: Features, prepared: Prepared) -> Tensor:
        from torch.nn.functional import embedding_bag

        (index, dead), (log_match,) = features, prepared
        evidence = embedding_bag(index.contiguous(), log_match.contiguous(), mode="sum")
        return evidence.masked_fill_(dead[:, None], math.nan)

    def settle(self, scores: Tensor) -> Tensor:
        # Neurons without a score must not count: as -inf they add nothing to the sum, and they are not in J.
        total = scores.nan_to_num(nan=-math.inf).logsumexp(dim=0)
        return scores - self.prior * (total - (~scores.isnan()).sum(dim=0).log())


@dataclass(frozen=True, kw_only=True)
class SoftWPMI(WPMI):
    """`wpmi` with clips that belong to the most active ones only to a degree.

    L is the sum of `log(1 + p_k (S - 1) + 1e-7)`, where the k-th of K' most active clips (from 0) belongs
    with `p_k = first - k / K' * (first - last)`.

    Parameters
    ----------
    clips : int, optional
        Use only this many most active clips of each neuron; all by default.
    top_k : int
        Number of most active clips.
    scale : float
        Factor on the clip-concept scores before the softmax.
    prior : float
        Weight of the concept's prior, taken over all neurons of the layer.
    first, last : float
        Degree of membership of the most active clip, and of the one after the last; 0 to 1.
    """

    name: ClassVar[str] = "soft_wpmi"
    top_k: int = 100
    scale: float = 10.0
    prior: float = 1.0
    first: float = 0.998
    last: float = 0.970

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.first <= 1 and 0 <= self.last <= 1):
            raise InputError(f"memberships run from {self.first} to {self.last}; give values from 0 to 1")

    def prepare(self, match: Tensor) -> Prepared:
        import torch

        return (torch.softmax(self.scale * match, dim=1) - 1,)

    def score(self, features: Features, prepared: Prepared) -> Tensor:
        import torch

        (index, dead), (lack,) = features, prepared
        k = index.shape[1]
        membership = self.first - torch.arange(k, dtype=torch.float32) / k * (self.first - self.last)
        out = torch.empty(len(index), lack.shape[1])
        for rows, columns in _tiles(len(out), out.shape[1], _BLOCK // k):
            chosen, block = index[rows], lack[:, columns]
            term = block.index_select(0, chosen.reshape(-1)).view(*chosen.shape, -1)
            # In place, and in this order: near a membership of 1 the rounding of each step shows.
            term.mul_(membership[:, None]).add_(1).add_(EPSILON).log_()
            torch.sum(term, dim=1, out=out[rows, columns])
        return out.masked_fill_(dead[:, None], math.nan)


@dataclass(frozen=True, kw_only=True)
class RankReorder(Similarity):
    """How little the most active clips are out of order when they are ordered by the concept.

    With t the activations of the n most active clips, descending, s the same ascending, and o the order
    that sorts these clips by the concept's scores, ascending: `- error / baseline / sqrt(mean score of
    these clips)`, where the error is the mean of `|t[i] - s[o[i]]|**3` and the baseline its expectation for
    a random order, the mean over all pairs of `|s[i] - s[j]|**3`. Equal scores keep the order of the
    activations, most active first.

    No score (NaN) where the mean of the concept's scores is 0 or less, or the n activations are all equal.

    Parameters
    ----------
    clips : int, optional
        Use only this many most active clips of each neuron; all by default.
    top_fraction : float
        Share of the clips to use; at least 2 clips.
    true_ranks : bool
        Gather by the clip's rank instead of by the sorting order itself. The default keeps to the function
        as published.
    """

    name: ClassVar[str] = "rank_reorder"
    top_fraction: float = 0.05
    true_ranks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_fraction <= 1:
            raise InputError(f"top_fraction is {self.top_fraction}; give a share of the clips, up to 1")

    def depth(self, n_clips: int) -> int:
        used = self.clips_used(n_clips)
        # 0.29 * 100 is 28.999999999999996: the small term keeps a whole number whole.
        return min(used, max(2, math.floor(self.top_fraction * used + 1e-9)))

    def features(self, tile: Tile) -> Features:
        depth = self.depth(tile.n_clips)
        return tile.top(depth), tile.top_values(depth)

    def prepare(self, match: Tensor) -> Prepared:
        """Scores, and their dense ranks among all clips: to sort ranks is to sort any subset of the clips."""
        import torch

        ranks = torch.empty(match.shape, dtype=torch.int32)
        for start in range(0, match.shape[1], 512):
            columns = slice(start, start + 512)
            ordered, order = match[:, columns].sort(dim=0)
            steps = torch.zeros(ordered.shape, dtype=torch.int32)
            torch.cumsum(ordered[1:] > ordered[:-1], dim=0, dtype=torch.int32, out=steps[1:])
            ranks[:, columns] = torch.empty_like(steps).scatter_(0, order, steps)
        return match, ranks

    def score(self, features: Features, prepared: Prepared) -> Tensor:
        from torch.nn.functional import embedding_bag

        (index, descending), (match, ranks) = features, prepared
        error = self._error(index.numpy(), descending.numpy(), ranks.numpy())
        mean = embedding_bag(index.contiguous(), match.contiguous(), mode="mean")
        scores = -error / _mean_cubed_difference(descending)[:, None] / mean.clip(0).sqrt()
        return scores.masked_fill_(~scores.isfinite(), math.nan)

    def _error(self, index: NDArray[Any], descending: NDArray[Any], ranks: NDArray[Any]) -> Tensor:
        """Mean of `|t[i] - s[o[i]]|**3` per neuron and concept, float32 [J, M]."""
        import torch

        n_neurons, n = index.shape
        n_clips, n_concepts = ranks.shape
        out = np.empty((n_neurons, n_concepts), np.float32)
        # Rank and position within the n share one integer: sorting it is a stable argsort, and much faster.
        shift = max(1, (n - 1).bit_length())
        dtype = np.int32 if n_clips << shift < 1 << 31 else np.int64
        ascending = descending[:, ::-1]
        source, target = (descending, ascending) if self.true_ranks else (ascending, descending)
        for columns in _slices(n_concepts, _CONCEPT_BLOCK):
            block_ranks = ranks[:, columns].T.astype(dtype, order="C") << shift
            for rows in _slices(n_neurons, _BLOCK // (n * len(block_ranks))):
                keys = block_ranks.take(index[rows], axis=1)  # concepts x neurons x n
                keys |= np.arange(n, dtype=dtype)
                keys.sort(axis=-1)
                keys &= (1 << shift) - 1
                keys += np.arange(keys.shape[1], dtype=dtype)[:, None] * n
                difference = np.ascontiguousarray(source[rows]).take(keys)
                difference -= target[rows]
                np.abs(difference, out=difference)
                square = difference * difference
                out[rows, columns] = np.einsum("mjn,mjn->jm", square, difference) / n
        return torch.from_numpy(out)


def _mean_cubed_difference(descending: Tensor) -> Tensor:
    """Mean of `|x[i] - x[j]|**3` over all pairs of each row, from rows that descend. float32 [J].

    Expanding the cube turns the sum over pairs into running sums, in float64 about the mean against
    cancellation. Exactly 0 where the row is constant.
    """
    import torch

    x = descending.double()
    constant = descending[:, 0] == descending[:, -1]
    x = (x - x.mean(dim=1, keepdim=True)).flip(1)
    before = torch.arange(x.shape[1], dtype=torch.float64)
    first, second, third = ((x**power).cumsum(dim=1) - x**power for power in (1, 2, 3))
    total = (before * x**3 - 3 * x**2 * first + 3 * x * second - third).sum(dim=1)
    return (2 * total / x.shape[1] ** 2).masked_fill(constant, 0).float()


cos = Cos()
cos_cubed = CosCubed()
wpmi = WPMI()
soft_wpmi = SoftWPMI()
rank_reorder = RankReorder()

SIMILARITIES: dict[str, Similarity] = {
    similarity.name: similarity for similarity in (cos, cos_cubed, wpmi, soft_wpmi, rank_reorder)
}
"""The similarity functions by name."""
