"""Hooks come off whatever happens, and capture what the modules return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from and_platform.backends.networks.hooks import recording
from and_platform.errors import ActivationError


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.pair = Pair()
        self.twice = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        kept, _ = self.pair(x)
        return torch.as_tensor(self.twice(self.twice(kept)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x * 2, "extra"


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


def test_captured_values_are_the_modules_outputs(toy: Toy) -> None:
    x = torch.randn(2, 4)
    with recording(toy, {"in": "encoder.0", "pair": "pair"}) as captured:
        toy(x)
    assert torch.equal(captured["in"], toy.encoder[0](x))
    assert torch.equal(captured["pair"], toy.encoder(x) * 2)
    assert n_hooks(toy) == 0


def test_reduce_sees_each_output_once_and_its_result_is_kept(toy: Toy) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def reduce(name: str, output: Tensor) -> Tensor:
        seen.append((name, tuple(output.shape)))
        return output.sum(1)

    with recording(toy, {"a": "encoder.0", "b": "encoder.2"}, reduce) as captured:
        toy(torch.ones(2, 4))
    assert seen == [("a", (2, 6)), ("b", (2, 3))]
    assert captured["a"].shape == (2,)


def test_hooks_go_when_the_forward_pass_fails(toy: Toy) -> None:
    with pytest.raises(RuntimeError), recording(toy, {"in": "encoder.0", "out": "encoder.2"}):
        toy(torch.randn(2, 5))
    assert n_hooks(toy) == 0


def test_hooks_go_when_the_reduction_or_the_body_fails(toy: Toy) -> None:
    def broken(name: str, output: Tensor) -> Tensor:
        raise KeyError(name)

    with pytest.raises(KeyError), recording(toy, {"in": "encoder.0"}, broken):
        toy(torch.randn(1, 4))
    with pytest.raises(KeyboardInterrupt), recording(toy, {"in": "encoder.0"}):
        raise KeyboardInterrupt
    assert n_hooks(toy) == 0


def test_hooks_of_others_stay(toy: Toy) -> None:
    toy.encoder[0].register_forward_hook(lambda *_: None)
    with recording(toy, {"in": "encoder.0"}):
        toy(torch.randn(1, 4))
    assert n_hooks(toy) == 1


def test_hooks_go_when_registering_fails_half_way(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(toy.encoder[2], "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="no hooks here"), recording(toy, {"a": "encoder.0", "b": "encoder.2"}):
        pass
    assert n_hooks(toy) == 0


def test_a_missing_module_names_its_neighbours(toy: Toy) -> None:
    words = r"no module 'encoder\.3'; did you mean .*encoder\.0"
    with pytest.raises(ActivationError, match=words), recording(toy, {"in": "encoder.0", "out": "encoder.3"}):
        pass
    assert n_hooks(toy) == 0


def test_a_module_that_runs_twice_is_an_error(toy: Toy) -> None:
    with pytest.raises(ActivationError, match="'twice' ran twice"), recording(toy, {"t": "twice"}):
        toy(torch.randn(1, 4))
    assert n_hooks(toy) == 0


def test_cleared_between_passes_the_same_context_serves_many(toy: Toy) -> None:
    with recording(toy, {"in": "encoder.0"}) as captured:
        for n in (1, 3):
            captured.clear()
            toy(torch.randn(n, 4))
            assert captured["in"].shape == (n, 6)


def test_a_module_without_tensors_is_an_error() -> None:
    model = nn.Sequential(Text())
    with pytest.raises(ActivationError, match="returns no tensor but a str"), recording(model, {"t": "0"}):
        model(torch.zeros(1))
    assert n_hooks(model) == 0
