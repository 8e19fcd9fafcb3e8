"""Feed-forward layers of sizes that differ from block to block.

This file stands alone: its text is saved beside a pruned checkpoint, where plain `transformers` runs it.
"""

from typing import Any

import torch
from torch import nn

FEED_FORWARD = (
    ("fc1", "fc2"),
    ("linear1", "linear2"),
    ("intermediate_dense", "output_dense"),
    ("intermediate.dense", "output.dense"),
    ("w_1", "w_2"),
    ("lin1", "lin2"),
    ("up_proj", "down_proj"),
)
"""What libraries call the two linear layers of a feed-forward network."""


def feed_forward_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Paths of the first and second linear layer of every feed-forward network, in the order of the modules."""
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [
        (path, path[: -len(first)] + second)
        for path in linear
        for first, second in FEED_FORWARD
        if f".{path}".endswith(f".{first}") and path[: -len(first)] + second in linear
    ]


def resize_feed_forward(model: nn.Module, sizes: list[int]) -> None:
    """Give the feed-forward networks of a model these inner sizes, in the order of the modules; weights are left open."""
    pairs = feed_forward_pairs(model)
    sound = isinstance(sizes, list) and all(isinstance(size, int) and size > 0 for size in sizes)
    if not sound or len(sizes) != len(pairs):
        raise ValueError(f"feed_forward_sizes must be {len(pairs)} positive numbers, one for each feed-forward network")
    for (first, second), size in zip(pairs, sizes, strict=True):
        inner: Any = model.get_submodule(first)
        outer: Any = model.get_submodule(second)
        inner.weight = nn.Parameter(torch.empty(size, inner.in_features))
        if inner.bias is not None:
            inner.bias = nn.Parameter(torch.empty(size))
        outer.weight = nn.Parameter(torch.empty(outer.out_features, size))
        inner.out_features = outer.in_features = size
