"""What model backends share: the device, and batches of texts of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")
Floats = NDArray[np.float32]


def pick_device(device: str | None = None) -> str:
    """The device asked for, or a GPU where there is one, or the CPU."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def by_length(
    items: Sequence[Item],
    length: Callable[[Item], int],
    batch_size: int,
    compute: Callable[[list[Item]], Sequence[Result]],
) -> list[Result]:
    """Compute in batches of items of like length, so that little is padded; the longest come first.

    Returns
    -------
    list
        One result per item, in the order of `items`.
    """
    order = sorted(range(len(items)), key=lambda i: -length(items[i]))
    results: dict[int, Result] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        results.update(zip(batch, compute([items[i] for i in batch]), strict=True))
    return [results[i] for i in range(len(items))]


def unit_rows(rows: Sequence[Floats] | Floats, dim: int) -> Floats:
    """Stack vectors into unit-normalised float32 [len(rows), dim], of shape [0, dim] where there are none."""
    if len(rows) == 0:
        return np.zeros((0, dim), dtype=np.float32)
    stacked = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    scaled: Floats = stacked / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled
