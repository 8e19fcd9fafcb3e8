"""Switching neurons off for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from and_platform.backends.networks.hooks import find_module
from and_platform.errors import ActivationError

Units = Sequence[int] | NDArray[Any] | Tensor


@contextmanager
def ablated(
    model: nn.Module, selection: Mapping[str, Units], *, head: Collection[str] = (), allow_head: bool = False
) -> Iterator[None]:
    """Zero the weight row and the bias of the chosen units; on leaving, put back the very same bits.

    Parameters
    ----------
    model
        The network, changed in place while the context lasts.
    selection
        Module path -> unit indices: rows of a linear layer, output channels of a convolution.
    head
        Paths of the layers that give the class logits. Zeroing the target's own logit would fake unlearning, so
        a selection that touches them is refused,
    allow_head
        unless this is True.

    Raises
    ------
    ActivationError
        A module is missing or is neither linear nor convolution, an index is out of range, or the head is touched.
        The network is then as it was.
    """
    touched = sorted(set(head) & {path for path, units in selection.items() if len(units)})
    if touched and not allow_head:
        raise ActivationError(
            f"'{touched[0]}' gives the class logits and is not ablated: zeroing the target's own logit would fake "
            "unlearning; leave it out of the selection"
        )
    plan = [_rows(model, path, units) for path, units in selection.items() if len(units)]
    saved: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for parameters, index in plan:
                for parameter in parameters:
                    rows = index.to(parameter.device)
                    saved.append((parameter, rows, parameter[rows].clone()))
                    parameter[rows] = 0.0
        yield
    finally:
        with torch.no_grad():
            # backwards, so that overlapping selections (tied weights) end with the oldest values
            for target, rows, values in reversed(saved):
                target[rows] = values


def _rows(model: nn.Module, path: str, units: Units) -> tuple[list[nn.Parameter], Tensor]:
    module = find_module(model, path)
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise ActivationError(
            f"'{path}' is a {type(module).__name__}; only units of linear layers and convolutions can be ablated"
        )
    if not isinstance(module.weight, nn.Parameter):
        raise ActivationError(f"the weights of '{path}' are computed from others, so its units cannot be ablated")
    index = torch.as_tensor(units)
    if index.dtype == torch.bool or index.is_floating_point():
        raise ActivationError(f"the units of '{path}' must be given as indices, not as {index.dtype}")
    index = index.to(torch.long).flatten().unique()
    n_units = module.weight.shape[0]
    if int(index.min()) < 0 or int(index.max()) >= n_units:
        raise ActivationError(
            f"'{path}' has units 0 to {n_units - 1}; the selection asks for {int(index.min())} to {int(index.max())}"
        )
    return [p for p in (module.weight, module.bias) if isinstance(p, nn.Parameter)], index
