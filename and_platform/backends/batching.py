"""What model backends share: the device, and batches of items of like length that fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from and_platform.errors import ConfigError, GenerationError

Item = TypeVar("Item")
Result = TypeVar("Result")
Floats = NDArray[np.float32]

# What the CPU, CUDA, MPS and the libraries on a GPU say; cuBLAS cannot be initialized where its workspace does not fit.
_MEMORY_IS_FULL = (
    "out of memory", "not enough memory", "can't allocate memory", "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed", "cublas_status_not_initialized",
)  # fmt: skip


class TooLargeError(GenerationError):
    """One item alone needs more memory than there is."""


@dataclass
class BatchSize:
    """How many items go through a model at once; a backend keeps one, so that what did not fit is not tried again."""

    size: int

    def halve(self, tried: int) -> None:
        """After a batch of `tried` items did not fit."""
        self.size = max(1, min(self.size, tried) // 2)


def pick_device(device: str | None = None) -> str:
    """The device asked for, or a GPU where there is one, or the CPU."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(asked: str, device: str, stored: Any = None) -> Any:
    """The torch dtype to compute in.

    Parameters
    ----------
    asked
        The name of a dtype ("bfloat16"), or "auto": float32 on a CPU, else `stored` where that has 16 bits, else
        bfloat16, or float16 where the device lacks it.
    device
        Where the model runs.
    stored
        The dtype of the checkpoint, if known.

    Raises
    ------
    ConfigError
        If there is no such dtype.
    """
    import torch

    if asked != "auto":
        dtype = getattr(torch, asked, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConfigError(f"there is no dtype '{asked}'; there is: auto, float32, bfloat16, float16")
        return dtype
    if device.startswith("cpu"):
        return torch.float32
    if stored in (torch.float16, torch.bfloat16):
        return stored
    return torch.bfloat16 if not device.startswith("cuda") or torch.cuda.is_bf16_supported() else torch.float16


def by_length(
    items: Sequence[Item],
    length: Callable[[Item], int],
    batch_size: int | BatchSize,
    compute: Callable[[list[Item]], Sequence[Result]],
) -> list[Result]:
    """Compute in batches of items of like length, so that little is padded; the longest come first.

    Where memory runs out, the batch is halved, and what follows keeps the smaller size.

    Returns
    -------
    list
        One result per item, in the order of `items`.

    Raises
    ------
    TooLargeError
        If one item alone does not fit.
    """
    results: list[Result] = []
    for result in each_by_length(items, length, batch_size, compute):
        if isinstance(result, TooLargeError):
            raise result
        results.append(result)
    return results


def each_by_length(
    items: Sequence[Item],
    length: Callable[[Item], int],
    batch_size: int | BatchSize,
    compute: Callable[[list[Item]], Sequence[Result]],
) -> list[Result | TooLargeError]:
    """As `by_length`, but with a TooLargeError in the place of an item that alone does not fit."""
    batches = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size)
    waiting = sorted(range(len(items)), key=lambda i: -length(items[i]))
    results: dict[int, Result | TooLargeError] = {}
    while waiting:
        batch = waiting[: batches.size]
        computed = _fitting(compute, [items[i] for i in batch])
        if computed is None and len(batch) > 1:
            batches.halve(len(batch))
            continue
        if computed is None:
            results[batch[0]] = TooLargeError(
                f"an item of length {length(items[batch[0]]):,} needs more memory than there is, even alone; "
                "use a smaller model, a smaller dtype or quantization, or a larger device"
            )
        else:
            results.update(zip(batch, computed, strict=True))
        waiting = waiting[len(batch) :]
    return [results[i] for i in range(len(items))]


def unit_rows(rows: Sequence[Floats] | Floats, dim: int) -> Floats:
    """Stack vectors into unit-normalised float32 [len(rows), dim], of shape [0, dim] where there are none."""
    if len(rows) == 0:
        return np.zeros((0, dim), dtype=np.float32)
    stacked = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(stacked, axis=1, keepdims=True)
    scaled: Floats = stacked / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled


def _fitting(compute: Callable[[list[Item]], Sequence[Result]], items: list[Item]) -> Sequence[Result] | None:
    """The results, or None where memory ran out; whatever the failed attempt held is given back."""
    try:
        return compute(items)
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
    # Only here has the exception gone, and with it the frames that held the attempt's tensors.
    _free_memory()
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, so that less at once may do."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(said in str(error).lower() for said in _MEMORY_IS_FULL)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
