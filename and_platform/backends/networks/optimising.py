"""One step of training after the other: AdamW with warm-up and cosine decay, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def warm_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    """The schedule: a factor of the learning rate for each step.

    It rises linearly in the first share `warmup` of all steps, and falls after them as a cosine does, to zero.
    """
    warm = max(1, int(warmup * steps))

    def rate_at(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return rate_at


class Optimiser:
    """AdamW (Loshchilov & Hutter 2019) over a known number of steps; vectors, such as biases, do not decay.

    Parameters
    ----------
    parameters
        What is trained.
    learning_rate
        At its highest, after the warm-up.
    weight_decay
        Of matrices and whatever has more axes.
    warmup
        Share of all steps in which the rate rises linearly; after them it falls as a cosine does, to zero.
    steps
        How many there will be.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        warmup: float,
        steps: int,
    ) -> None:
        self._parameters = list(parameters)
        decayed = [p for p in self._parameters if p.dim() > 1]
        others = [p for p in self._parameters if p.dim() <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.98),
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, warm_cosine(warmup, steps))

    def step(self, loss: Tensor) -> None:
        """Go down the gradient of a loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
