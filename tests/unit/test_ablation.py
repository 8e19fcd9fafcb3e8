"""Ablated units give nothing, and the very same bits come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from and_platform.backends.networks.ablation import ablated
from and_platform.errors import ActivationError


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.Linear(6, 2, bias=False))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


X = torch.randn(5, 1, 10, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30, deadline=None)
@given(
    conv=st.lists(st.integers(0, 3), max_size=6),
    linear=st.lists(st.integers(0, 5), max_size=8),
    fails=st.booleans(),
)
def test_chosen_units_are_silent_and_all_bits_come_back(conv: list[int], linear: list[int], fails: bool) -> None:
    model = network()
    before = bits(model)
    with torch.no_grad():
        whole = model[:4](X)
        try:
            with ablated(model, {"0": conv, "3": np.array(linear, dtype=np.int64)}):
                assert not model[0](X)[:, conv].any()
                assert (model[0](X)[:, [u for u in range(4) if u not in conv]] != 0).all()
                assert not model[:4](X)[:, linear].any()
                if not conv:
                    others = [u for u in range(6) if u not in linear]
                    torch.testing.assert_close(model[:4](X)[:, others], whole[:, others])
                if fails:
                    raise RuntimeError("on purpose")
        except RuntimeError:
            assert fails
    assert bits(model) == before


def test_the_order_of_the_selection_does_not_matter() -> None:
    model = network()
    outputs = []
    for selection in ({"0": [2], "3": [5, 1]}, {"3": [1, 5], "0": [2]}):
        with ablated(model, selection), torch.no_grad():
            outputs.append(model(X))
    assert torch.equal(*outputs)


def test_nested_ablations_come_back_in_turn() -> None:
    model = network()
    before = bits(model)
    with ablated(model, {"3": [0, 1]}):
        outer = bits(model)
        with ablated(model, {"3": [1, 2]}):
            assert not model[3].weight[:3].any()
        assert bits(model) == outer
    assert bits(model) == before


def test_negative_zero_and_subnormals_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-0.0, 1e-42], [float("inf"), 1.0]]))
    before = bits(model)
    with ablated(model, {"0": [0, 1]}):
        assert bits(model) != before
    assert bits(model) == before


def test_the_head_is_refused_unless_told_otherwise() -> None:
    model = network()
    before = bits(model)
    with pytest.raises(ActivationError, match="fake unlearning"), ablated(model, {"3": [1], "4": [0]}, head=["4"]):
        pass
    assert bits(model) == before
    with ablated(model, {"4": [0]}, head=["4"], allow_head=True), torch.no_grad():
        assert not model(X)[:, 0].any()
    with ablated(model, {"4": []}, head=["4"]):
        pass


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"3": [6]}, "units 0 to 5; the selection asks for 6 to 6"),
        ({"3": [-1]}, "asks for -1"),
        ({"1": [0]}, "is a ReLU"),
        ({"7": [0]}, "no module '7'"),
        ({"3": np.array([True, False])}, "as indices"),
    ],
)
def test_what_cannot_be_ablated_is_refused_before_anything_changes(selection: dict[str, object], words: str) -> None:
    model = network()
    before = bits(model)
    with pytest.raises(ActivationError, match=words), ablated(model, {"0": [1], **selection}):  # type: ignore[arg-type]
        pass
    assert bits(model) == before


def test_computed_weights_are_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(ActivationError, match="computed from others"), ablated(model, {"0": [0]}):
        pass
