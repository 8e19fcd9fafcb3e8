"""Masks come back as they were, and pruned checkpoints give the logits of the masked network, in plain `transformers` too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from and_platform.backends.base import Clip
from and_platform.backends.networks import load_network
from and_platform.backends.networks.base import LoadedNetwork
from and_platform.backends.networks.factory import FactoryNetwork
from and_platform.backends.networks.pruning import (
    PruneReport,
    n_parameters_of,
    read_mask,
    save_pruned,
    write_mask,
)
from and_platform.backends.networks.record import logits_batches
from and_platform.errors import ActivationError, BackendError, ConflictError, InputError, NotFoundError
from tests import tiny
from tests.unit.test_networks import save_speech_network
from tests.unit.test_shared_passes import lively

Selection = Mapping[str, Sequence[int]]
WIDE, NARROW = 24, 16  # inner size and width of the tiny network


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_in_the_home_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plain transformers copies the Python file of a checkpoint to a cache before it runs it."""
    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
        patch.syspath_prepend(cache)
        yield


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> LoadedNetwork:
    return lively(load_network(tiny.network(tmp_path_factory.mktemp("ast"), blocks=2)))


@pytest.fixture(scope="module")
def sigmoid(tmp_path_factory: pytest.TempPathFactory) -> LoadedNetwork:
    """An activation function that is not zero at zero."""
    return lively(load_network(tiny.network(tmp_path_factory.mktemp("sigmoid"), blocks=2, hidden_act="sigmoid")))


def sounds(rate: int = 16000) -> list[Clip]:
    rng = np.random.default_rng(5)
    return [Clip(str(i), rng.normal(0, 0.1 * (i + 1), 8000).astype(np.float32), rate) for i in range(3)]


def logits(network: LoadedNetwork, selection: Selection | None = None) -> NDArray[np.float32]:
    with network.ablated(selection or {}):
        return np.concatenate(list(logits_batches(network, sounds(network.rate))))


def in_plain_transformers(directory: Path, trust: bool = False) -> tuple[NDArray[np.float32], Any]:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    model = AutoModelForAudioClassification.from_pretrained(directory, **({"trust_remote_code": True} if trust else {}))
    extractor = AutoFeatureExtractor.from_pretrained(directory)
    inputs = extractor([clip.waveform for clip in sounds()], sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**inputs).logits.numpy(), model


def state(network: LoadedNetwork) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in network.model.state_dict().items()}


# --- counting


def test_parameters_are_rows_and_biases(ast: LoadedNetwork) -> None:
    # a row of the first feed-forward layer reads the width, one of the second the inner size; each has a bias
    assert n_parameters_of(ast, {"b00.ff_in": [0, 5, 5], "b01.ff_out": [1]}) == 2 * (NARROW + 1) + (WIDE + 1)
    assert n_parameters_of(ast, {"embed": [2]}) == 16 * 16 + 1
    assert n_parameters_of(ast, {"b00.ff_in": []}) == 0
    bare = FactoryNetwork(
        nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 2)), "x", {"rate": 10, "prepare": six}
    )
    assert n_parameters_of(bare, {"0": [1, 2]}) == 12
    with pytest.raises(ActivationError, match="fake unlearning"):
        n_parameters_of(ast, {"head": [0]})


def six(waveforms: Sequence[NDArray[np.float32]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.resize(w, 6) for w in waveforms]))


# --- masks

CHOSEN = {"b01.ff_out": [3, 1], "b00.ff_in": np.array([0, 23, 7])}
WRITTEN = {"b00.ff_in": (0, 7, 23), "b01.ff_out": (1, 3)}


def test_a_mask_comes_back_as_it_was(ast: LoadedNetwork, tmp_path: Path) -> None:
    mask, listing = write_mask(tmp_path / "out", CHOSEN, ast, {"concept": "dog", "strategy": "open"})
    assert (mask.name, listing.name) == ("mask.safetensors", "mask.json")
    assert read_mask(mask, ast) == read_mask(tmp_path / "out", ast) == WRITTEN
    told = json.loads(listing.read_text())
    assert (told["revision"], told["neurons"], told["about"]) == (
        ast.revision,
        5,
        {"concept": "dog", "strategy": "open"},
    )
    assert told["parameters"] == n_parameters_of(ast, CHOSEN) == 3 * 17 + 2 * 25
    assert told["layers"]["b00.ff_in"] == {
        "module_path": ast.layer("b00.ff_in").module_path, "n_units": 24, "n_ablated": 3, "units": [0, 7, 23],
    }  # fmt: skip
    write_mask(tmp_path / "out", {"b00.ff_in": [1]}, ast, {})
    assert read_mask(mask, ast) == {"b00.ff_in": (1,)}
    write_mask(tmp_path / "out", {}, ast, {})
    assert read_mask(mask, ast) == {}


def test_a_mask_ablates_in_plain_pytorch(ast: LoadedNetwork, tmp_path: Path) -> None:
    mask, _ = write_mask(tmp_path, CHOSEN, ast, {})
    by_hand = load_network(ast.name)
    by_hand.model.load_state_dict(ast.model.state_dict())
    for path, gone in load_file(mask).items():
        module = by_hand.model.get_submodule(path)
        module.weight.data[gone] = 0
        module.bias.data[gone] = 0
    np.testing.assert_array_equal(logits(by_hand), logits(ast, CHOSEN))
    assert (logits(by_hand) != logits(ast)).any()


def test_masks_that_do_not_fit_are_refused(ast: LoadedNetwork, sigmoid: LoadedNetwork, tmp_path: Path) -> None:
    mask, listing = write_mask(tmp_path, CHOSEN, ast, {})
    other = load_network(tiny.network(tmp_path / "other", seed=1, blocks=2))
    with pytest.raises(InputError, match="other weights"):
        read_mask(mask, other)
    with pytest.raises(InputError, match="there is no mask"):
        read_mask(tmp_path / "none.safetensors", ast)
    with pytest.raises(InputError, match="not a mask"):
        read_mask(listing, ast)
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="not a mask"):
        read_mask(tmp_path / "x.safetensors", ast)
    layers = {"p": "b00.ff_in", "q": "b07.ff_in"}
    for vectors in (
        {"p": torch.ones(23, dtype=torch.bool)},
        {"q": torch.ones(24, dtype=torch.bool)},
        {"p": torch.ones(24)},
    ):
        save_file(vectors, mask, metadata={"layers": json.dumps(layers), "revision": ast.revision})
        with pytest.raises(InputError, match="export the mask again"):
            read_mask(mask, ast)
    with pytest.raises(NotFoundError):
        write_mask(tmp_path, {"b05.ff_in": [1]}, ast, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"name a(nother)? (folder|one)"):
        write_mask(tmp_path / "file", CHOSEN, ast, {})


# --- checkpoints


def check(network: LoadedNetwork, selection: Selection, report: PruneReport, sizes: Sequence[int]) -> LoadedNetwork:
    """Plain transformers and the platform give the logits of the masked network."""
    expected = logits(network, selection)
    assert np.abs(expected - logits(network)).max() > 1e-3
    plain, model = in_plain_transformers(report.directory, trust=not report.stock)
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-5)
    again = load_network(report.directory)
    np.testing.assert_allclose(logits(again), expected, rtol=1e-4, atol=1e-5)
    assert [layer.n_units for layer in again.layers if layer.kind == "ff_in"] == list(sizes)
    assert [layer.name for layer in again.layers] == [layer.name for layer in network.layers]
    count = sum(p.numel() for p in model.parameters())
    assert count == again.n_parameters == report.parameters_before - report.parameters_removed
    return again


def test_zeroed_rows_in_a_checkpoint(ast: LoadedNetwork, tmp_path: Path) -> None:
    before = state(ast)
    selection = {"b00.ff_in": [0, 1], "b01.attn_out": [3], "embed": [2]}
    training = {"dataset": "esc50", "held_out_fold": 1}
    report = save_pruned(ast, selection, tmp_path / "out", training=training)
    assert state(ast) == before
    assert (report.neurons, report.removed, report.stock) == (4, {}, True)
    assert report.parameters_before == ast.n_parameters
    assert (report.parameters_removed, report.parameters_zeroed) == (0, n_parameters_of(ast, selection))
    assert report.parameters_after == ast.n_parameters - (2 * 17 + 17 + 257)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json", "training.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == training
    again = check(ast, selection, report, [24, 24])
    assert not again.model.get_submodule(again.layer("b00.ff_in").module_path).weight[:2].any()
    assert again.classes == ast.classes
    np.testing.assert_array_equal(logits(again), logits(ast, selection))


@pytest.mark.parametrize("kind", ["ast", "sigmoid"])
def test_equal_sizes_need_nothing_but_the_configuration(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    network: LoadedNetwork = request.getfixturevalue(kind)
    before = state(network)
    selection = {"b00.ff_in": [0, 5, 9], "b01.ff_in": [23, 1, 2], "b00.ff_out": [4], "b01.attn_out": [3]}
    report = save_pruned(network, selection, tmp_path, structured=True)
    assert state(network) == before
    assert report.stock and report.removed == {"b00.ff_in": 3, "b01.ff_in": 3}
    assert json.loads((tmp_path / "config.json").read_text())["intermediate_size"] == 21
    assert not (tmp_path / "modeling_pruned.py").exists()
    # a unit is its row, its bias and the column that reads it
    assert report.parameters_removed == 6 * (16 + 1 + 16)
    assert report.parameters_zeroed == (21 + 1) + (16 + 1)
    check(network, selection, report, [21, 21])


@pytest.mark.parametrize("kind", ["ast", "sigmoid"])
def test_unequal_sizes_bring_their_own_class(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    network: LoadedNetwork = request.getfixturevalue(kind)
    selection = {"b01.ff_in": [0, 5, 9, 11], "b01.ff_out": [4]}
    random = torch.get_rng_state()
    report = save_pruned(network, selection, tmp_path, structured=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert not report.stock and report.removed == {"b01.ff_in": 4}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["feed_forward_sizes"] == [24, 20]
    again = check(network, selection, report, [24, 20])
    assert again.architecture == "PrunedASTForAudioClassification"

    # once more, from what was pruned: zeroed, and cut to equal sizes
    second = save_pruned(again, {"b00.ff_in": [1]}, tmp_path / "zeroed")
    assert not second.stock
    check(again, {"b00.ff_in": [1]}, second, [24, 20])
    third = save_pruned(again, {"b00.ff_in": [1, 2, 3, 4]}, tmp_path / "even", structured=True)
    assert third.stock
    check(again, {"b00.ff_in": [1, 2, 3, 4]}, third, [20, 20])


def test_the_python_file_of_a_checkpoint_is_not_run_by_the_platform(ast: LoadedNetwork, tmp_path: Path) -> None:
    save_pruned(ast, {"b01.ff_in": [0]}, tmp_path, structured=True)
    with (tmp_path / "modeling_pruned.py").open("a") as file:
        file.write("\nraise SystemExit('this must not run')\n")
    assert [layer.n_units for layer in load_network(tmp_path).layers if layer.kind == "ff_in"] == [24, 23]


@pytest.mark.parametrize("sizes", [[24], [24, 0], 24, [24, "20"], [24, 22]])
def test_wrong_sizes_in_a_configuration_are_refused(ast: LoadedNetwork, tmp_path: Path, sizes: Any) -> None:
    save_pruned(ast, {"b01.ff_in": [0]}, tmp_path, structured=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"feed_forward_sizes": sizes}))
    with pytest.raises(BackendError, match="cannot be loaded as an audio network"):
        load_network(tmp_path)


def test_a_layer_that_loses_all_units_keeps_a_silent_one(sigmoid: LoadedNetwork, tmp_path: Path) -> None:
    selection = {"b00.ff_in": range(24)}
    report = save_pruned(sigmoid, selection, tmp_path, structured=True)
    assert report.removed == {"b00.ff_in": 23} and report.neurons == 24
    assert report.parameters_zeroed == 17
    check(sigmoid, selection, report, [1, 24])


@pytest.mark.parametrize("family", ["Wav2Vec2", "WavLM"])
@pytest.mark.parametrize("sizes", [[30, 30], [29, 32]])
def test_speech_networks_are_cut_too(family: str, sizes: list[int], tmp_path: Path) -> None:
    network = lively(load_network(save_speech_network(tmp_path / "whole", family)))
    selection = {f"b{b:02d}.ff_in": [3, 1, 8][: 32 - size] for b, size in enumerate(sizes)} | {"b01.attn_out": [0]}
    report = save_pruned(network, selection, tmp_path / "cut", structured=True)
    assert report.stock is (sizes[0] == sizes[1])
    check(network, selection, report, sizes)


# --- what is refused


def test_networks_of_a_factory_are_not_saved(tmp_path: Path) -> None:
    network = FactoryNetwork(
        nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2)), "mine:build", {"rate": 10, "prepare": six}
    )
    with pytest.raises(BackendError, match="comes from a factory"):
        save_pruned(network, {"0": [1]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_is_never_overwritten(ast: LoadedNetwork, tmp_path: Path) -> None:
    write_mask(tmp_path, CHOSEN, ast, {})
    save_pruned(ast, CHOSEN, tmp_path)
    assert read_mask(tmp_path, ast) == WRITTEN
    saved = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ConflictError, match="a network in"):
        save_pruned(ast, {"b00.ff_in": [2]}, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == saved
    with pytest.raises(InputError, match=r"name a(nother)? (folder|one)"):
        save_pruned(ast, CHOSEN, tmp_path / "model.safetensors" / "out")


def test_the_head_and_unknown_units_are_refused(ast: LoadedNetwork, tmp_path: Path) -> None:
    before = state(ast)
    with pytest.raises(ActivationError, match="fake unlearning"):
        save_pruned(ast, {"head": [0]}, tmp_path / "out")
    with pytest.raises(ActivationError, match="units 0 to 23"):
        save_pruned(ast, {"b00.ff_in": [24]}, tmp_path / "out", structured=True)
    assert not (tmp_path / "out").exists()
    assert state(ast) == before


def test_a_feed_forward_network_that_mixes_its_units_is_not_cut(tmp_path: Path) -> None:
    network = lively(load_network(tiny.network(tmp_path / "whole")))
    block = network.model.get_submodule(network.layer("b00.ff_in").module_path.rpartition(".")[0])
    block.activation_fn = nn.Sequential(nn.GELU(), nn.LayerNorm(WIDE))
    before = state(network)
    with pytest.raises(BackendError, match="more than an activation function"):
        save_pruned(network, {"b00.ff_in": [1, 2]}, tmp_path / "out", structured=True)
    assert state(network) == before
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_would_give_other_logits_is_not_saved(tmp_path: Path) -> None:
    network = lively(load_network(tiny.network(tmp_path / "whole")))
    block = network.model.get_submodule(network.layer("b00.ff_in").module_path.rpartition(".")[0])
    block.activation_fn = nn.Tanh()  # the configuration says gelu
    with pytest.raises(BackendError, match="other logits"):
        save_pruned(network, {"b00.ff_in": [1, 2]}, tmp_path / "out", structured=True)
    assert not (tmp_path / "out").exists()
