"""Sampling from language models so that what is sampled for one item does not depend on the others in its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any


def seed_of(seed: int, content: bytes) -> int:
    """A seed for one item: the same content with the same `seed` always gets the same one."""
    return int.from_bytes(hashlib.sha256(f"{seed}:".encode() + content).digest()[:8], "big") >> 1


def seeded_choice(seeds: Sequence[int], temperature: float, top_p: float = 1.0) -> Any:
    """What makes transformers' greedy search sample, each row of a batch with a seed of its own.

    Gumbel noise is added to the logits, scaled by `temperature` and cut to the nucleus `top_p`: the largest sum is
    then a draw from their softmax (Gumbel, 1954; Maddison et al., 2014, A* Sampling). `torch.multinomial`, which
    transformers samples with, draws for all rows from one stream, so that a row's draw depends on its batch.

    Parameters
    ----------
    seeds
        One per row of the batch.
    temperature
        Above 0.

    Returns
    -------
    LogitsProcessorList
        For `generate(..., do_sample=False, num_beams=1, logits_processor=...)`.
    """
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    class GumbelNoise(LogitsProcessor):  # type: ignore[misc, unused-ignore]  # made here, as transformers is heavy
        def __init__(self) -> None:
            self._generators: list[torch.Generator] = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if not self._generators:
                self._generators = [torch.Generator(scores.device).manual_seed(seed) for seed in seeds]
            scores = scores.float()
            waits = torch.empty_like(scores)
            for row, generator in zip(waits, self._generators, strict=True):
                row.exponential_(generator=generator)
            return scores - waits.log()

    cut = [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return LogitsProcessorList([TemperatureLogitsWarper(temperature), *cut, GumbelNoise()])
