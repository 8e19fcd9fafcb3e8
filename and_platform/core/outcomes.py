"""What a classifier makes of labelled clips, class by class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Table = NDArray[np.float64]


class ByClass(NamedTuple):
    """Means over the clips of each class; NaN for a class without clips. Each is [..., classes]."""

    logit: Table
    """Logit of the true class."""
    probability: Table
    """Softmax probability of the true class."""
    accuracy: Table
    """Share of the class's clips whose largest logit is that of their class (the first of equals)."""


def by_class(logits: ArrayLike, units: ArrayLike) -> ByClass:
    """Means by true class (definitions of the paper's Table 4 and Figure 10).

    Parameters
    ----------
    logits
        [..., clips, classes].
    units
        [clips], index of the true class.
    """
    z, true = np.asarray(logits, float), np.asarray(units, int)
    n_clips, n_classes = z.shape[-2:]
    own = z[..., np.arange(n_clips), true]
    largest = z.max(axis=-1)
    probability = np.exp(own - largest) / np.exp(z - largest[..., None]).sum(axis=-1)
    member = np.eye(n_classes)[true]  # [clips, classes]
    counts = member.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = [
            part @ member / np.where(counts > 0, counts, np.nan) for part in (own, probability, z.argmax(-1) == true)
        ]
    return ByClass(*means)
