"""How far raters agree, and how sure a mean over neurons is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from and_platform.core.intervals import around

SCALE = (1, 5)
"""Lowest and highest step of a rating."""


def ordinal_alpha(ratings: ArrayLike) -> float | None:
    """Krippendorff's alpha for ordered steps: 1 is perfect agreement, 0 what chance gives.

    Parameters
    ----------
    ratings
        Steps 1 to 5, [raters, things rated]; NaN where a rater gave none.

    Returns
    -------
    float or None
        None where it is not defined: nothing was rated by two, or all of these ratings are the same.

    References
    ----------
    Krippendorff, K. Computing Krippendorff's Alpha-Reliability. University of Pennsylvania, 2011.
    """
    matrix = np.atleast_2d(np.asarray(ratings, np.float64))
    paired = matrix[:, (~np.isnan(matrix)).sum(axis=0) >= 2]
    if np.unique(paired[~np.isnan(paired)]).size < 2:
        return None
    low, high = SCALE
    # How often each thing was given each step: [things, steps].
    given = (paired[:, :, np.newaxis] == np.arange(low, high + 1)).sum(axis=0).astype(np.float64)
    raters = given.sum(axis=1)
    pairs = np.einsum("tc,td->tcd", given, given) - given[:, :, np.newaxis] * np.eye(high - low + 1)
    coincidences = (pairs / (raters - 1)[:, np.newaxis, np.newaxis]).sum(axis=0)
    totals = coincidences.sum(axis=1)
    # Ordinal distance of two steps: the ratings from one to the other, those at both ends counted half, squared.
    middles = np.cumsum(totals) - totals / 2
    distance = (middles[:, np.newaxis] - middles) ** 2
    observed = (coincidences * distance).sum()
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)


def matrix_of(raters: ArrayLike, units: ArrayLike, ratings: ArrayLike) -> NDArray[np.float64]:
    """Ratings as [raters, things rated], NaN where there is none, from one entry per rating.

    Rows and columns are in sorted order of what names raters and things.
    """
    names, rows = np.unique(np.asarray(raters), return_inverse=True)
    things, columns = np.unique(np.asarray(units), return_inverse=True)
    matrix = np.full((names.size, things.size), np.nan)
    matrix[rows, columns] = np.asarray(ratings, np.float64)
    return matrix


def t_interval(
    mean: float | None, sd: float | None, n: int, *, level: float = 0.95, within: tuple[float, float] | None = None
) -> tuple[float | None, float | None]:
    """The interval of a mean by Student's t: mean ± t(n - 1) · sd / √n.

    Parameters
    ----------
    mean, sd
        Mean and sample standard deviation (n - 1) of n independent values; None where there is none.
    within
        Ends of the scale: the interval does not go beyond them.

    Returns
    -------
    tuple
        Lower and upper end; None, None for fewer than two values.
    """
    from scipy.stats import t

    if mean is None or sd is None or n < 2:
        return None, None
    half = float(t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n)
    return around(mean, mean - half, mean + half, within=within)
