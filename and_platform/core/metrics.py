"""How well a set of clips, or a score of clips, tells on which clips a neuron is active; what chance gives; and intervals.

Measures of Oikarinen et al., "Evaluating Neuron Explanations" (ICML 2025): average precision, Pearson correlation, F1 and
IoU. All of them fall when labels are missing and when wrong ones are added. Neurons are rows throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_platform.core.intervals import around

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]

_CELLS = 1 << 22  # cells handled at once
_CLOSE = 1e-12  # what two ways to the same number may differ by


class Ranks(NamedTuple):
    """The clips of each neuron in order of activation, int32 [J, N] both."""

    place: Ints
    """Place of the clip, from 0, the most active first; ties by position."""
    at_least: Ints
    """How many clips are at least as active as this one, itself among them."""


class Null(NamedTuple):
    """What activations in random order give for a description that applies to a number of clips."""

    average_precision: Floats
    """Float64 [permutations], ascending."""
    f1: float
    """Mean over all orders."""
    iou: float
    """Mean over all orders."""


class Correlation(NamedTuple):
    """Pearson correlation per neuron beside that of permuted activations, float64 [J] each; NaN where nothing varies."""

    observed: Floats
    null_95: Floats
    """95 % quantile of the permuted ones."""
    p: Floats


def rank(activations: NDArray[Any]) -> Ranks:
    """Order the clips of each neuron by activation.

    Parameters
    ----------
    activations
        [J, N], any float type; float16, as they are stored, is the fastest.
    """
    values = np.asarray(activations)
    n_clips = values.shape[1]
    order = np.argsort(_descending(values), axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    place = np.empty(values.shape, np.int32)
    np.put_along_axis(place, order, np.arange(n_clips, dtype=np.int32)[None, :], axis=1)
    at_least = np.empty(values.shape, np.int32)
    np.put_along_axis(at_least, order, _run_ends(ranked), axis=1)
    return Ranks(place, at_least)


def _descending(values: NDArray[Any]) -> NDArray[Any]:
    """Keys whose ascending order is the descending order of the values; integers for float16, which numpy sorts by radix."""
    if values.dtype != np.float16:
        return -values
    bits = (values + np.float16(0)).view(np.int16)  # there is one zero
    return ~np.where(bits < 0, bits ^ np.int16(0x7FFF), bits)


def constant(activations: NDArray[Any]) -> Bools:
    """Neurons with the same activation on every clip, bool [J]: no measure means anything for them."""
    return np.asarray(activations.max(axis=1) == activations.min(axis=1))


def _run_ends(ranked: NDArray[Any]) -> Ints:
    """For each cell of sorted rows, one more than the index of the last cell of the same value in its row."""
    n = ranked.shape[1]
    ends = np.full(ranked.shape, n, np.int32)
    ends[:, :-1] = np.where(ranked[:, 1:] != ranked[:, :-1], np.arange(1, n, dtype=np.int32), n)
    return np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]


def _at(values: Ints, positives: NDArray[Any]) -> Ints:
    """The values of the positive clips, [J, n]."""
    if positives.dtype == np.bool_:
        positives = np.flatnonzero(positives)
    return values[:, positives] if positives.ndim == 1 else np.take_along_axis(values, positives, axis=1)


def average_precision(ranks: Ranks, positives: NDArray[Any]) -> Floats:
    """Area under the precision-recall curve, as scikit-learn's `average_precision_score`, ties included.

    The mean over positive clips of the precision at their activation: of the clips at least as active, the share that is
    positive. Only the ranks of the positives are looked at.

    Parameters
    ----------
    ranks
        Of J neurons over N clips.
    positives
        The clips that a description applies to: bool [N], or positions [n], or positions for each neuron [J, n].

    Returns
    -------
    float64 [J]
        NaN where no clip is positive.
    """
    reached = np.sort(_at(ranks.at_least, positives), axis=1)
    if reached.shape[1] == 0:
        return np.full(len(reached), np.nan)
    precision: Floats = _run_ends(reached) / reached
    return np.asarray(precision.mean(axis=1))


def label_average_precision(ranks: Ranks, labels: Bools) -> Floats:
    """Average precision of every label: float64 [J, L]. `labels` is bool [N, L]: which clips carry each label."""
    found = np.empty((len(ranks.place), labels.shape[1]))
    for column in range(labels.shape[1]):
        found[:, column] = average_precision(ranks, labels[:, column])
    return found


def f1_iou(ranks: Ranks, positives: NDArray[Any]) -> tuple[Floats, Floats]:
    """F1 and IoU of the n most active clips against the n positive ones (ties by position): float64 [J] each."""
    places = _at(ranks.place, positives)
    n = places.shape[1]
    if n == 0:
        return np.full(len(places), np.nan), np.full(len(places), np.nan)
    hits = (places < n).sum(axis=1)
    return hits / n, hits / (2 * n - hits)


def pearson(activations: NDArray[Any], target: NDArray[Any]) -> Floats:
    """Pearson correlation of activations [J, N] with a target [N] (float64 [J]), several [N, L] ([J, L]) in one product.

    NaN where either does not vary.
    """
    columns = target[:, None] if target.ndim == 1 else target
    found = _standard(activations) @ _standard(columns.T).T
    return found[:, 0] if target.ndim == 1 else found


def _standard(rows: NDArray[Any]) -> Floats:
    """Rows centred and of length 1; NaN where a row does not vary."""
    values = np.asarray(rows, np.float64)
    centred = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    length[constant(values)] = np.nan
    return np.asarray(centred / length)


# ---------------------------------------------------------------------- chance


def null(n_clips: int, n_positive: int, permutations: int, seed: int = 0) -> Null:
    """What `n_positive` of `n_clips` clips give when the activations are permuted.

    It depends on these two numbers alone, whatever the neuron (ties aside), so one serves all. Average precision is drawn;
    the means of F1 and IoU over all orders are exact, since the number of hits is hypergeometric.
    """
    from scipy.stats import hypergeom

    drawn = [
        np.sort(places[:, :n_positive], axis=1) for places in _random_places(n_clips, permutations, seed)
    ]  # the same permutations whatever n_positive is
    found = np.concatenate([(np.arange(1, n_positive + 1) / places).mean(axis=1) for places in drawn])
    hits = np.arange(n_positive + 1)
    chance = hypergeom.pmf(hits, n_clips, n_positive, n_positive)
    return Null(np.sort(found), n_positive / n_clips, float(chance @ (hits / (2 * n_positive - hits))))


def null_of_best(
    n_clips: int, positives: Sequence[NDArray[Any]] | NDArray[Any], permutations: int, seed: int = 0
) -> Floats:
    """The highest average precision over several descriptions when activations are permuted, ascending [permutations].

    What a description that was chosen among several must be compared with, however it was chosen: its own average precision is
    at most the highest one.

    Parameters
    ----------
    positives
        For each description the positions of the clips that it applies to; rows of an array, or arrays of any length.
    """
    found = []
    for places in _random_places(n_clips, permutations, seed):
        ranks = Ranks(places - 1, places)
        best = np.zeros(len(places))
        for clips in positives:
            np.maximum(best, average_precision(ranks, clips), out=best)
        found.append(best)
    return np.sort(np.concatenate(found))


def _random_places(n_clips: int, permutations: int, seed: int) -> Iterator[Ints]:
    """Random orders of the clips, places from 1, a part at a time: int32 [some, N]."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS // n_clips)
    for start in range(0, permutations, at_once):
        rows = np.tile(np.arange(1, n_clips + 1, dtype=np.int32), (min(at_once, permutations - start), 1))
        yield rng.permuted(rows, axis=1)


def p_values(observed: Floats, null: Floats) -> Floats:
    """(1 + permutations that reach the observed value) / (1 + permutations); `null` ascending. NaN stays."""
    reaching = len(null) - np.searchsorted(null, observed - _CLOSE, side="left")
    return np.where(np.isnan(observed), np.nan, (1 + reaching) / (1 + len(null)))


def correlation(activations: NDArray[Any], target: NDArray[Any], permutations: int, seed: int = 0) -> Correlation:
    """Pearson correlation of each neuron with its target, and with the target when the activations are permuted.

    The permutations are the cyclic shifts of clips brought into random order: all of them together are one product in
    frequency space, O(N log N) per neuron instead of O(N x permutations). They form a group, which is what makes a
    permutation test valid (Hemerik and Goeman, Exact testing with random permutations, TEST 2018). One order gives N - 1;
    as many orders are drawn as it takes.

    Parameters
    ----------
    activations, target
        [J, N] both: a target for each neuron.
    """
    observed, null_95, p = (np.empty(len(activations)) for _ in range(3))
    at_once = max(1, _CELLS // max(permutations, activations.shape[1]))
    for start in range(0, len(activations), at_once):
        part = slice(start, start + at_once)
        values, wanted = _standard(activations[part]), _standard(target[part])
        observed[part] = (values * wanted).sum(axis=1)
        permuted = _shifted(values, wanted, permutations, np.random.default_rng(seed))
        null_95[part] = np.quantile(permuted, 0.95, axis=1)
        reaching = (permuted >= observed[part, None] - _CLOSE).sum(axis=1)
        p[part] = np.where(np.isnan(observed[part]), np.nan, (1 + reaching) / (1 + permutations))
    return Correlation(observed, null_95, p)


def _shifted(values: Floats, wanted: Floats, permutations: int, rng: np.random.Generator) -> Floats:
    """Products of `wanted` with cyclic shifts of `values` in random orders: [J, permutations]."""
    from scipy import fft

    n_clips = values.shape[1]
    if n_clips < 2:
        return np.full((len(values), permutations), np.nan)
    found: list[Floats] = []
    left = permutations
    while left > 0:
        order = rng.permutation(n_clips)
        product = fft.rfft(wanted[:, order], axis=1) * np.conj(fft.rfft(values[:, order], axis=1))
        found.append(fft.irfft(product, n_clips, axis=1)[:, 1 : 1 + left])
        left -= n_clips - 1
    return np.concatenate(found, axis=1)


# ---------------------------------------------------------------------- intervals


def bootstrap_interval(values: NDArray[Any], *, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean; NaN for fewer than two values."""
    from scipy.stats import bootstrap

    if len(values) < 2:
        return float("nan"), float("nan")
    found = bootstrap(
        (np.asarray(values, np.float64),), np.mean, n_resamples=resamples, method="percentile", vectorized=True,
        random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return around(float(np.mean(values, dtype=np.float64)), float(found.low), float(found.high))
