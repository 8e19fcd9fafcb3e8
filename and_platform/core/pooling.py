"""From a layer's output to one number per unit and clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from and_platform.errors import ActivationError

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS: Final = ("first", "mean", "max")


def pool(output: Tensor, mode: str, mask: Tensor | None = None, time_dim: int | None = None) -> Tensor:
    """Reduce the output of a module to one value per clip and unit.

    `first` takes position 0 (the paper's choice for hidden layers: the class token of an AST, the first time
    step of a BEATs) and never looks at the mask; `mean` and `max` leave padded positions out.

    Parameters
    ----------
    output
        [B, U], returned as it is; [B, T, U], or [B, U, T] with `time_dim=2`; or a feature map [B, C, H, W],
        whose units are the channels and whose positions are the H x W places, row by row.
    mode
        One of `POOLINGS`.
    mask
        Bool [B, T], True where a position is sound and not padding; T is the length of `time_dim`.
    time_dim
        The axis of time: 1 (default) or 2 for three dimensions, 3 (default) or 2 for four.

    Returns
    -------
    Tensor
        [B, units], in float32 where the output is of lower precision, else in the output's type.

    Raises
    ------
    ActivationError
        For other numbers of dimensions, an unknown mode, an output without positions, a mask that does not
        fit, or a clip of padding alone.
    """
    import torch

    if mode not in POOLINGS:
        raise ActivationError(f"unknown pooling '{mode}'; use one of: {', '.join(POOLINGS)}")
    if not output.dtype.is_floating_point:
        raise ActivationError(f"cannot pool an output of type {output.dtype}; record a layer that returns floats")
    shape = tuple(output.shape)
    if output.dim() not in (2, 3, 4):
        raise ActivationError(
            f"cannot pool an output of shape {shape}: it has {output.dim()} dimensions, and only [batch, units], "
            "[batch, time, units] and [batch, channels, height, width] are understood; record another layer"
        )
    if output.dtype.itemsize < 4:
        output = output.float()
    if output.dim() == 2:
        return output
    time = time_dim if time_dim is not None else (1 if output.dim() == 3 else 3)
    if time not in ((1, 2) if output.dim() == 3 else (2, 3)):
        raise ActivationError(f"axis {time} cannot be the time of an output of shape {shape}")
    if 0 in shape[1:]:
        raise ActivationError(f"nothing to pool in an output of shape {shape}; is the clip too short for this layer?")

    positions = time if output.dim() == 3 else 2
    flat = output.flatten(2) if output.dim() == 4 else output
    if mode == "first":
        return flat.select(positions, 0)
    if mask is None:
        return flat.mean(positions) if mode == "mean" else flat.amax(positions)

    if tuple(mask.shape) != (shape[0], shape[time]) or mask.dtype != torch.bool:
        raise ActivationError(
            f"the mask ({mask.dtype}, {tuple(mask.shape)}) does not fit an output of shape {shape} with time on "
            f"axis {time}: expected torch.bool, {(shape[0], shape[time])}"
        )
    if not bool(mask.any(1).all()):
        raise ActivationError("a clip consists of padding alone; leave empty clips out")
    if output.dim() == 4:
        over_map = mask[:, None, :] if time == 3 else mask[:, :, None]
        mask = over_map.expand(shape[0], shape[2], shape[3]).flatten(1)
    unit_dim = 3 - positions
    if mode == "max":
        return flat.masked_fill(~mask.unsqueeze(unit_dim), -torch.inf).amax(positions)
    weights = mask / mask.sum(1, keepdim=True)
    # a product of matrices needs no copy of the output
    pooled = torch.einsum("bt,btu->bu" if positions == 1 else "bt,but->bu", weights.to(flat.dtype), flat)
    if bool(pooled.isfinite().all()):
        return pooled
    # what stands in the padding may be infinite, and nothing times infinity is not a number
    return flat.masked_fill(~mask.unsqueeze(unit_dim), 0.0).sum(positions) / mask.sum(1, keepdim=True)
