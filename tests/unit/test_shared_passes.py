"""Shared passes give what each ablation gives by itself, compute less, and leave the network as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from and_platform.backends.base import Clip
from and_platform.backends.networks import load_network
from and_platform.backends.networks.base import LoadedNetwork
from and_platform.backends.networks.factory import FactoryNetwork
from and_platform.backends.networks.record import logits_batches
from and_platform.backends.networks.shared_passes import ablated_logits, units_of
from and_platform.errors import ActivationError, NotFoundError
from tests import tiny
from tests.unit.test_networks import save_speech_network

Selection = Mapping[str, Sequence[int]]
RATE = 8000


def made(model: nn.Module, **options: Any) -> LoadedNetwork:
    """A network that hears the first samples of a clip."""

    def prepare(waveforms: Sequence[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack([np.resize(w, options.get("samples", 6)) for w in waveforms]))

    return FactoryNetwork(
        model, "toy", {"rate": RATE, "prepare": prepare, "classes": ["a", "b"]} | options.get("more", {})
    )


def clips(n: int, rate: int, lengths: Sequence[int] = (4000,)) -> list[Clip]:
    rng = np.random.default_rng(1)
    return [Clip(str(i), rng.normal(0, 0.1, lengths[i % len(lengths)]).astype(np.float32), rate) for i in range(n)]


def shared(network: LoadedNetwork, selections: Sequence[Selection], sounds: list[Clip], **options: Any) -> NDArray[Any]:
    return np.concatenate(list(ablated_logits(network, selections, sounds, **options)), axis=1)


def one_by_one(network: LoadedNetwork, selections: Sequence[Selection], sounds: list[Clip]) -> NDArray[Any]:
    rows = [np.concatenate(list(logits_batches(network, sounds)))]
    for selection in selections:
        with network.ablated(selection):
            rows.append(np.concatenate(list(logits_batches(network, sounds))))
    return np.stack(rows)


def state(network: LoadedNetwork) -> tuple[dict[str, bytes], list[str]]:
    """All bits of the weights, and the modules whose forward was replaced."""
    bits = {key: value.numpy().tobytes() for key, value in network.model.state_dict().items()}
    return bits, [path for path, module in network.model.named_modules() if "forward" in vars(module)]


@contextmanager
def calls(network: LoadedNetwork, layer: str) -> Iterator[list[int]]:
    """On how many clips a layer really computed, call by call."""
    sizes: list[int] = []
    module: Any = network.model.get_submodule(network.layer(layer).module_path)

    def forward(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return type(module).forward(module, x)

    module.forward = forward
    try:
        yield sizes
        assert vars(module)["forward"] is forward
    finally:
        del module.forward


# --- by hand


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(2, 3), nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
            self.hidden.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
            self.head.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu())


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_logits_by_hand(share: bool, batch_size: int) -> None:
    network = made(Small(), samples=2)
    sounds = [Clip(str(i), np.array(x, dtype=np.float32), RATE) for i, x in enumerate([(1, 2), (2, 0)])]
    selections = [{"hidden": [1]}, {}, {"hidden": np.array([2, 0])}, {"hidden": []}, {"hidden": [1, 1]}]
    # hidden units are (1, 3, 2) for the first clip and (2, 1, 1) for the second
    expected = [
        [[6, 2], [4, 3]],
        [[3, 5], [3, 4]],
        [[6, 2], [4, 3]],
        [[3, -3], [1, -1]],
        [[6, 2], [4, 3]],
        [[3, 5], [3, 4]],
    ]
    done: list[int] = []
    batches = list(
        ablated_logits(network, selections, iter(sounds), batch_size=batch_size, share=share, advance=done.append)
    )
    assert [batch.shape for batch in batches] == [(6, batch_size, 2)] * (2 // batch_size)
    assert all(batch.dtype == np.float32 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches, axis=1), expected)
    assert sum(done) == len(selections) * len(sounds)


def test_without_selections_there_is_the_intact_network() -> None:
    network = made(Small(), samples=2)
    sounds = [Clip("a", np.array([1, 2], dtype=np.float32), RATE)]
    np.testing.assert_array_equal(shared(network, [], sounds), [[[6, 2]]])
    assert list(ablated_logits(network, [{"hidden": [0]}], [])) == []


def test_a_selection_in_one_way_of_writing_it() -> None:
    network = made(Small(), samples=2)
    assert units_of(network, {"hidden": torch.tensor([2, 0, 2])}) == {"hidden": (0, 2)}
    assert units_of(network, {"hidden": []}) == {}


# --- real kinds of networks


def lively(network: LoadedNetwork) -> LoadedNetwork:
    """Weights so large that every unit shows in the logits."""
    torch.manual_seed(0)
    for module in network.model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
            nn.init.normal_(module.bias, std=0.3)
    return network


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> LoadedNetwork:
    return lively(load_network(tiny.network(tmp_path_factory.mktemp("ast"), blocks=3)))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> LoadedNetwork:
    return lively(load_network(save_speech_network(tmp_path_factory.mktemp("speech"), "Wav2Vec2", "group")))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> LoadedNetwork:
    """Attention as one function: the output projection is never called, and attention returns a tuple."""
    return lively(load_network(save_speech_network(tmp_path_factory.mktemp("fused"), "WavLM")))


class Cnn(nn.Module):
    """What makes replaying hard: in-place functions, sums in place, a list handed over, a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.conv3 = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.inside = nn.ReLU(inplace=True)
        self.gather = Gather()
        self.twice = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x[:, None])))
        kept: list[Tensor] = [x]
        y = self.conv2(x)
        self.inside(y)  # what it returns is not used: y itself has changed
        y += x
        self.gather(kept, y)
        z = self.conv3(kept[1] + kept[0])
        z *= 2
        z = self.twice(self.twice((z + y).mean(2)))
        return self.head(self.hidden(z).relu())


class Gather(nn.Module):
    def forward(self, kept: list[Tensor], y: Tensor) -> None:
        kept.append(y + 1)


@pytest.fixture(scope="module")
def cnn() -> LoadedNetwork:
    return made(Cnn())


CHOICES: dict[str, Callable[[LoadedNetwork], list[str]]] = {
    "first block": lambda n: [layer.name for layer in n.layers if layer.block == 0],
    "last block": lambda n: [layer.name for layer in n.layers if layer.block == n_blocks(n) - 1],
    "attention only": lambda n: [layer.name for layer in n.layers if layer.kind == "attn_out"],
    "feed-forward only": lambda n: [layer.name for layer in n.layers if layer.kind in ("ff_in", "ff_out")],
    "last layer": lambda n: [f"b{n_blocks(n) - 1:02d}.ff_out"],
    "everything": lambda n: [layer.name for layer in n.layers if layer.kind != "head" and "pos_conv" not in layer.name],
}


def n_blocks(network: LoadedNetwork) -> int:
    return 1 + max(layer.block for layer in network.layers if layer.block is not None)


def third(network: LoadedNetwork, names: Sequence[str], seed: int = 0) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {name: rng.permutation(network.layer(name).n_units)[::3].tolist() for name in names}


@pytest.mark.parametrize("kind", ["ast", "speech", "fused"])
def test_every_choice_of_layers_gives_what_it_gives_by_itself(kind: str, request: pytest.FixtureRequest) -> None:
    network: LoadedNetwork = request.getfixturevalue(kind)
    sounds = clips(7, 16000, (8000, 6000))
    before = state(network)
    choices = [third(network, choose(network)) for choose in CHOICES.values()]
    expected = one_by_one(network, choices, sounds)
    assert all(np.abs(row - expected[0]).max() > 1e-4 for row in expected[1:]), "every ablation must show"
    for selections, rows in [([choice], [0, i]) for i, choice in enumerate(choices, 1)] + [(choices, slice(None))]:
        got = shared(network, selections, sounds, batch_size=4)
        np.testing.assert_allclose(got, expected[rows], rtol=0, atol=1e-5)
    assert state(network) == before


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3", "hidden"])
def test_a_network_that_is_hard_to_replay_gives_what_it_gives_by_itself(cnn: LoadedNetwork, name: str) -> None:
    sounds = clips(5, RATE)
    selections = [{name: [0]}, {name: [1, 2], "hidden": [4]}, {"hidden": [0]}]
    expected = one_by_one(cnn, selections, sounds)
    np.testing.assert_allclose(shared(cnn, selections, sounds, batch_size=2), expected, rtol=0, atol=1e-6)
    with calls(cnn, "conv1") as sizes:
        shared(cnn, selections, sounds, batch_size=5)
    # the intact pass, and those that ablate the first convolution itself
    assert sizes.count(5) == (3 if name == "conv1" else 1)


class Hidden(nn.Module):
    """A layer whose weights have their effect before it is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(nn.functional.linear(x, self.second.weight)).relu()
        return self.head(self.second(x))


class Hooked(nn.Module):
    """A layer whose output somebody's own hook changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.first.register_forward_hook(lambda module, _inputs, output: output * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).relu())


@pytest.mark.parametrize("model", [Hidden, Hooked])
def test_weights_used_elsewhere_and_hooks_have_their_effect(model: type[nn.Module]) -> None:
    network = made(model())
    selections = [{"second": [0, 1]}, {"first": [2], "second": [3]}]
    sounds = clips(4, RATE)
    np.testing.assert_allclose(
        shared(network, selections, sounds), one_by_one(network, selections, sounds), rtol=0, atol=1e-6
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()))


def test_weights_that_two_layers_share_begin_with_the_first() -> None:
    network = made(Tied())
    sounds = clips(4, RATE)
    selections = [{"second": [0, 1]}]
    np.testing.assert_allclose(
        shared(network, selections, sounds), one_by_one(network, selections, sounds), rtol=0, atol=1e-6
    )


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_selections_of_a_transformer(ast: LoadedNetwork, data: st.DataObject) -> None:
    names = [layer.name for layer in ast.layers if layer.kind != "head"]
    units = st.lists(st.integers(0, 15), max_size=8)
    selections = data.draw(st.lists(st.dictionaries(st.sampled_from(names), units, max_size=3), max_size=4))
    sounds = clips(3, 16000)
    np.testing.assert_allclose(
        shared(ast, selections, sounds, batch_size=2), one_by_one(ast, selections, sounds), rtol=0, atol=1e-5
    )


# --- what is saved


def test_blocks_before_the_first_touched_one_run_once_a_batch(ast: LoadedNetwork) -> None:
    sounds = clips(8, 16000)
    selections = [third(ast, ["b02.ff_in"], seed) for seed in range(5)] + [third(ast, ["b01.attn_out"])]
    counted: dict[bool, dict[str, int]] = {}
    for share in (True, False):
        counted[share] = {}
        for layer in ("b00.ff_in", "b01.query", "b01.ff_in", "b02.query", "b02.attn_out", "b02.ff_in", "b02.ff_out"):
            with calls(ast, layer) as sizes:
                shared(ast, selections, sounds, batch_size=4, share=share)
            counted[share][layer] = sizes.count(4)  # not the one clip on which the plan is made
    # two batches; six ablated passes each, of which one begins in the second block
    assert counted[False] == dict.fromkeys(counted[False], 14)
    assert counted[True] == {
        "b00.ff_in": 2, "b01.query": 2, "b01.ff_in": 4, "b02.query": 4, "b02.attn_out": 4, "b02.ff_in": 14, "b02.ff_out": 14,
    }  # fmt: skip


@pytest.mark.parametrize("share", [True, False])
def test_equal_selections_are_evaluated_once_and_empty_ones_never(ast: LoadedNetwork, share: bool) -> None:
    one, other = {"b01.ff_in": [3, 1]}, {"b01.ff_in": [2]}
    same = {"b00.ff_in": [], "b01.ff_in": np.array([1, 3, 3])}
    sounds, done = clips(4, 16000), list[int]()
    with calls(ast, "head") as sizes:
        got = shared(ast, [one, {}, same, other, one, {"b00.ff_in": []}], sounds, share=share, advance=done.append)
    assert sizes.count(4) == 3
    np.testing.assert_array_equal(got[1], got[3])
    np.testing.assert_array_equal(got[1], got[5])
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(got[0], got[6])
    assert (got[1] != got[4]).any() and (got[0] != got[1]).any()
    assert sum(done) == 6 * 4


def test_the_input_is_prepared_once_a_batch(ast: LoadedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    prepare = ast.prepare
    monkeypatch.setattr(ast, "prepare", lambda waveforms: prepared.append(len(waveforms)) or prepare(waveforms))
    shared(ast, [third(ast, ["b01.ff_in"], seed) for seed in range(4)], clips(10, 16000), batch_size=5)
    assert prepared.count(5) == 2 and len(prepared) == 3


# --- the network stays as it was


@pytest.mark.parametrize("share", [True, False])
def test_an_error_in_mid_pass_leaves_every_bit_as_it_was(
    ast: LoadedNetwork, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(ast)
    layer = ast.model.get_submodule(ast.layer("b02.ff_out").module_path)
    for fails_at in range(1, 12):
        seen = 0

        def count(_module: nn.Module, _inputs: Any, _output: Any, fails_at: int = fails_at) -> None:
            nonlocal seen
            seen += 1
            if seen == fails_at:
                raise ZeroDivisionError("on purpose")

        handle = layer.register_forward_hook(count)
        try:
            with pytest.raises(ZeroDivisionError):
                shared(
                    ast, [{"b00.ff_in": [1]}, {"b02.ff_out": [1, 5]}] * 2, clips(9, 16000), batch_size=2, share=share
                )
        finally:
            handle.remove()
        assert state(ast) == before


def test_a_reader_that_stops_early_leaves_the_network_as_it_was(ast: LoadedNetwork) -> None:
    before = state(ast)
    batches = ablated_logits(ast, [{"b01.ff_in": [1]}], clips(4, 16000), batch_size=2)
    next(batches)
    assert state(ast) == before
    del batches
    assert state(ast) == before


# --- what is refused


@pytest.mark.parametrize(
    ("selection", "error", "words"),
    [
        ({"b00.ff_in": [0], "head": [1]}, ActivationError, "fake unlearning"),
        ({"b00.ff_in": [24]}, ActivationError, "units 0 to 23"),
        ({"b00.ff_inn": [0]}, NotFoundError, "b00.ff_in"),
        ({"b00.ff_in": np.array([True, False])}, ActivationError, "as indices"),
    ],
)
def test_what_cannot_be_ablated_is_refused_before_any_clip_is_read(
    ast: LoadedNetwork, selection: Any, error: type[Exception], words: str
) -> None:
    before = state(ast)
    with pytest.raises(error, match=words):
        ablated_logits(ast, [{"b00.ff_in": [0]}, selection], iter(()))
    assert state(ast) == before


def test_a_clip_at_another_rate_and_a_network_without_logits_are_refused(ast: LoadedNetwork) -> None:
    with pytest.raises(ActivationError, match="resample it"):
        shared(ast, [{"b00.ff_in": [0]}], clips(1, 8000))
    silent = FactoryNetwork(Small(), "toy", {"rate": RATE, "forward": lambda _module, _batch: None})
    with pytest.raises(ActivationError, match="gives no logits"):
        shared(silent, [{}], clips(1, RATE))
