"""Intervals of means of tables whose rows and columns are both samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from and_platform.core.intervals import around


def crossed_interval(
    values: ArrayLike, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float | None, float | None]:
    """Percentile interval of the mean of a table by the bootstrap, rows and columns drawn anew, each on their own.

    Parameters
    ----------
    values
        [rows, columns], e.g. target classes x seeds; NaN where a cell is missing. With one column it is the plain bootstrap
        over rows.
    level
        Of the interval.

    Returns
    -------
    low, high
        None where there are fewer than two rows: one says nothing of how they differ.

    Notes
    -----
    Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007.
    """
    table = np.asarray(values, np.float64)
    if table.ndim == 1:
        table = table[:, None]
    n_rows, n_columns = table.shape
    if n_rows < 2:
        return None, None
    rng = np.random.default_rng(seed)
    # How often each row and each column is drawn.
    rows = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows), resamples).astype(np.float64)
    columns = rng.multinomial(n_columns, np.full(n_columns, 1 / n_columns), resamples).astype(np.float64)
    there = np.isfinite(table)
    cells = ((rows @ there) * columns).sum(axis=1)
    sums = ((rows @ np.where(there, table, 0.0)) * columns).sum(axis=1)
    drawn = cells > 0
    if not drawn.any():
        return None, None
    low, high = np.quantile(sums[drawn] / cells[drawn], [(1 - level) / 2, (1 + level) / 2])
    return around(float(table[there].mean()), float(low), float(high))
