"""Pooling against plain loops, with whatever there may be in the padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from and_platform.core.pooling import pool
from and_platform.errors import ActivationError


def _lengths_mask(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def test_two_dimensions_are_returned_as_they_are() -> None:
    output = torch.randn(3, 5)
    for mode in ("first", "mean", "max"):
        assert torch.equal(pool(output, mode), output)


def test_first_takes_position_zero_and_ignores_the_mask() -> None:
    output = torch.randn(2, 4, 3)
    mask = torch.tensor([[False, True, True, True]] * 2)
    assert torch.equal(pool(output, "first", mask), output[:, 0])
    feature_map = torch.randn(2, 3, 4, 5)
    assert torch.equal(pool(feature_map, "first"), feature_map[:, :, 0, 0])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    mode=st.sampled_from(["mean", "max"]),
    layout=st.sampled_from(["BTU", "BUT", "BCHT", "BCTH"]),
    seed=st.integers(0, 999),
)
def test_padding_never_counts(lengths: list[int], mode: str, layout: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips, width, units, other = len(lengths), 6, 3, 2
    if layout in ("BTU", "BUT"):
        values = rng.normal(size=(clips, width, units)).astype(np.float32)
        expected = np.stack([getattr(v[:n], mode)(axis=0) for v, n in zip(values, lengths, strict=True)])
        output = torch.from_numpy(values)
        for clip, n in enumerate(lengths):
            output[clip, n:] = float("inf")
        output = output if layout == "BTU" else output.transpose(1, 2)
        time_dim = 1 if layout == "BTU" else 2
    else:
        values = rng.normal(size=(clips, units, other, width)).astype(np.float32)
        expected = np.stack([getattr(v[..., :n], mode)(axis=(1, 2)) for v, n in zip(values, lengths, strict=True)])
        output = torch.from_numpy(values)
        for clip, n in enumerate(lengths):
            output[clip, ..., n:] = float("inf")
        output = output if layout == "BCHT" else output.transpose(2, 3)
        time_dim = 3 if layout == "BCHT" else 2
    pooled = pool(output, mode, _lengths_mask(lengths, width), time_dim)
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_without_mask_everything_counts() -> None:
    output = torch.tensor([[[1.0, -4.0], [3.0, -2.0]]])
    assert pool(output, "mean").tolist() == [[2.0, -3.0]]
    assert pool(output, "max").tolist() == [[3.0, -2.0]]
    assert pool(output, "mean", time_dim=2).tolist() == [[-1.5, 0.5]]
    assert pool(output[:, :, None, :], "mean").tolist() == [[-1.5, 0.5]]


def test_low_precision_is_averaged_in_float32() -> None:
    output = torch.full((1, 4096, 1), 1.001, dtype=torch.float16)
    assert pool(output, "mean").dtype == torch.float32
    assert float(pool(output, "mean")) == pytest.approx(float(output[0, 0, 0]), rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "kwargs", "words"),
    [
        ((4,), {"mode": "mean"}, "1 dimensions"),
        ((1, 2, 3, 4, 5), {"mode": "mean"}, "5 dimensions"),
        ((1, 2, 3), {"mode": "median"}, "first, mean, max"),
        ((1, 2, 3), {"mode": "mean", "time_dim": 3}, "cannot be the time"),
        ((1, 2, 3, 4), {"mode": "mean", "time_dim": 1}, "cannot be the time"),
        ((1, 0, 3), {"mode": "first"}, "too short"),
        ((2, 3, 4), {"mode": "mean", "mask": torch.ones(2, 4, dtype=torch.bool)}, "does not fit"),
        ((2, 3, 4), {"mode": "mean", "mask": torch.ones(2, 3)}, "does not fit"),
        ((1, 3, 4), {"mode": "max", "mask": torch.zeros(1, 3, dtype=torch.bool)}, "padding alone"),
    ],
)
def test_what_cannot_be_pooled_is_refused(shape: tuple[int, ...], kwargs: dict[str, object], words: str) -> None:
    with pytest.raises(ActivationError, match=words):
        pool(torch.zeros(shape), **kwargs)  # type: ignore[arg-type]


def test_integers_are_refused() -> None:
    with pytest.raises(ActivationError, match="int64"):
        pool(torch.zeros(2, 3, dtype=torch.int64), "mean")
