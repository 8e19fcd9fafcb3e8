"""What every interval keeps to: it contains its estimate, and stays within the range of what it is of."""

from __future__ import annotations


def around(
    estimate: float, low: float, high: float, *, within: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Return the ends of an interval, moved so far that it contains its estimate.

    Formulas that are exact on paper leave it out by rounding: Wilson's interval of 186 of 186 ends 2e-16 below 1. A
    bootstrap may do so as well, where few of its samples differ.

    Parameters
    ----------
    estimate
        What the interval is of.
    low, high
        Its ends as computed.
    within
        Lowest and highest value that there can be.
    """
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return min(low, estimate), max(high, estimate)
