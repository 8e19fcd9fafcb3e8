"""How groups differ and lines run: means with intervals, a fitted line, two groups compared.

All intervals are of 95 %. They and the tests hold for independent observations; neurons of one network are not.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from and_platform.core.intervals import around

_LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and its interval; the ends are None where one observation, or none, gives no interval."""

    mean: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


def mean_interval(values: ArrayLike, weights: ArrayLike | None = None) -> Interval:
    """Mean with its interval by Student's t.

    Parameters
    ----------
    values
        [n], at least one.
    weights
        How often each value occurs (whole numbers); default: once.
    """
    from scipy import stats

    x = np.repeat(np.asarray(values, float), np.asarray(1 if weights is None else weights, int))
    mean, n = float(x.mean()), x.size
    if n < 2:
        return Interval(mean, None, None, None, n)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x by ordinary least squares."""

    slope: float
    slope_low: float
    slope_high: float
    p: float
    """Of the slope being 0, two-sided."""
    intercept: float
    r: float
    n: int
    _sd: float
    _mean_x: float
    _sxx: float

    def at(self, x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The line at x, and both ends of the interval of the mean there."""
        from scipy import stats

        x = np.asarray(x, float)
        y = self.intercept + self.slope * x
        half = (
            float(stats.t.ppf((1 + _LEVEL) / 2, self.n - 2))
            * self._sd
            * np.sqrt(1 / self.n + (x - self._mean_x) ** 2 / self._sxx)
        )
        return y, y - half, y + half


def fit_line(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> Line | None:
    """Fit a line by ordinary least squares.

    Parameters
    ----------
    x, y
        [n].
    weights
        How often each pair occurs (whole numbers); default: once.

    Returns
    -------
    Line or None
        None for fewer than three observations, or where all have the same x.
    """
    from scipy import stats

    times = np.asarray(1 if weights is None else weights, int)
    xs, ys = np.repeat(np.asarray(x, float), times), np.repeat(np.asarray(y, float), times)
    if xs.size < 3 or np.ptp(xs) == 0:
        return None
    if np.ptp(ys) == 0:  # a level line, known exactly; the formulas divide by how far y varies
        level, mean_x = float(ys[0]), float(xs.mean())
        return Line(0.0, 0.0, 0.0, 1.0, level, 0.0, int(xs.size), 0.0, mean_x, float(((xs - mean_x) ** 2).sum()))
    fit = stats.linregress(xs, ys)
    half = float(stats.t.ppf((1 + _LEVEL) / 2, xs.size - 2)) * float(fit.stderr)
    residuals = ys - (fit.intercept + fit.slope * xs)
    return Line(
        slope=float(fit.slope), slope_low=float(fit.slope) - half, slope_high=float(fit.slope) + half, p=float(fit.pvalue),
        intercept=float(fit.intercept), r=float(fit.rvalue), n=int(xs.size),
        _sd=math.sqrt(float(residuals @ residuals) / (xs.size - 2)), _mean_x=float(xs.mean()),
        _sxx=float(((xs - xs.mean()) ** 2).sum()),
    )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two groups of measurements, a and b; effects above 0 mean that a's are larger."""

    n_a: int
    n_b: int
    mean_a: float
    mean_b: float
    median_a: float
    median_b: float
    u: float
    """Mann-Whitney: pairs (one of a, one of b) in which a's is larger, ties counted half."""
    p_mann_whitney: float
    rank_biserial: float
    """Share of those pairs less the share in which b's is larger, -1 to 1."""
    t: float | None
    """Welch; None, like its p and df, where neither group varies."""
    df: float | None
    p_welch: float | None
    hedges_g: float | None
    """Difference of the means in standard deviations (pooled), corrected for small samples; None where nothing varies."""
    g_low: float | None
    g_high: float | None


def compare(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Compare two groups by rank (Mann-Whitney, two-sided) and by mean (Welch; Hedges' g).

    The interval of g is the large-sample one of Hedges and Olkin, Statistical Methods for Meta-Analysis (1985), 5.F.

    Parameters
    ----------
    a, b
        At least two values each.
    """
    from scipy import stats

    x, y = np.asarray(a, float), np.asarray(b, float)
    ranks = stats.mannwhitneyu(x, y, alternative="two-sided")
    pairs = x.size * y.size
    varied = bool(np.ptp(x) > 0 or np.ptp(y) > 0)
    t = df = p_welch = g = half = None
    freedom = x.size + y.size - 2
    pooled = math.sqrt(((x.size - 1) * x.var(ddof=1) + (y.size - 1) * y.var(ddof=1)) / freedom)
    if varied and pooled > 0:  # squares of differences below 1e-162 are zero
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # one group may be constant
            welch = stats.ttest_ind(x, y, equal_var=False)
        t, df, p_welch = float(welch.statistic), float(welch.df), float(welch.pvalue)
        g = (1 - 3 / (4 * freedom - 1)) * float(x.mean() - y.mean()) / pooled
        variance = (x.size + y.size) / pairs + g**2 / (2 * (x.size + y.size))
        half = float(stats.norm.ppf((1 + _LEVEL) / 2)) * math.sqrt(variance)
    return Comparison(
        n_a=x.size, n_b=y.size, mean_a=float(x.mean()), mean_b=float(y.mean()), median_a=float(np.median(x)),
        median_b=float(np.median(y)), u=float(ranks.statistic), p_mann_whitney=float(ranks.pvalue),
        rank_biserial=2 * float(ranks.statistic) / pairs - 1, t=t, df=df, p_welch=p_welch, hedges_g=g,
        g_low=None if g is None or half is None else g - half, g_high=None if g is None or half is None else g + half,
    )  # fmt: skip


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of n."""
    from scipy import stats

    low, high = stats.binomtest(hits, n).proportion_ci(_LEVEL, method="wilson")
    return around(hits / n, float(low), float(high), within=(0.0, 1.0))
