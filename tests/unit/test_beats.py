"""BEATs: the original code's values, published files, and a network like any other to record, ablate, save and prune."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from and_platform.backends import beats
from and_platform.backends.base import Clip
from and_platform.backends.beats import Beats, BeatsConfig
from and_platform.backends.networks import beats as networks
from and_platform.backends.networks import load_network
from and_platform.backends.networks.base import LoadedNetwork, with_pooling
from and_platform.backends.networks.beats import BeatsNetwork
from and_platform.backends.networks.pruning import save_pruned
from and_platform.backends.networks.record import logits_batches, record_batches
from and_platform.backends.networks.shared_passes import ablated_logits
from and_platform.errors import ActivationError, ConflictError, InputError, NotFoundError, WeightsMissingError
from tests.checkpoints_beats import CFG, MIDS, random_beats, write_beats

PARITY = Path(__file__).parent.parent / "data" / "parity" / "beats.npz"
LENGTHS = (20_000, 9_000, 300, 20_000, 3_100)  # 123, 54, 0, 123 and 17 whole frames


@pytest.fixture(scope="module")
def finetuned_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beats(tmp_path_factory.mktemp("finetuned") / "beats.pt", MIDS)


@pytest.fixture(scope="module")
def pretrained_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beats(tmp_path_factory.mktemp("pretrained") / "beats.pt")


@pytest.fixture(scope="module")
def finetuned(finetuned_file: Path) -> BeatsNetwork:
    return networks.load(finetuned_file)


def noise(lengths: tuple[int, ...] = LENGTHS) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(4)
    return [rng.normal(0, 0.1, n).astype(np.float32) for n in lengths]


def clips(lengths: tuple[int, ...] = LENGTHS) -> list[Clip]:
    return [Clip(f"{i}.wav", wave, beats.RATE) for i, wave in enumerate(noise(lengths))]


def batch_of(waves: list[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    tensors = [torch.from_numpy(wave) for wave in waves]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), torch.tensor([len(w) for w in waves])


def logits(network: LoadedNetwork, sounds: list[Clip]) -> NDArray[np.float32]:
    return np.concatenate(list(logits_batches(network, sounds)))


# --- the spectrogram


def kaldi_in_numpy(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """transformers' routine, in double precision, set as Kaldi's filterbank; normalised."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(257, 128, 20, 8000, 16000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True)
    energies = spectrogram(
        wave.astype(np.float64) * 2**15, window_function(400, "povey", periodic=False), 400, 160, fft_length=512,
        power=2.0, center=False, preemphasis=0.97, mel_filters=filters, log_mel="log",
        mel_floor=float(np.finfo(np.float32).eps), remove_dc_offset=True, dtype=np.float64,
    )  # fmt: skip
    return (energies.T - 15.41663) / (2 * 6.55582)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_the_spectrogram_is_kaldis() -> None:
    for wave in (noise((16_000,))[0], np.zeros(8_000, dtype=np.float32), np.eye(1, 8_000, 4_000, dtype=np.float32)[0]):
        ours, mask = beats.fbank(torch.from_numpy(wave)[None])
        expected = kaldi_in_numpy(wave)
        assert mask is None
        assert ours.shape == (1, *expected.shape)
        np.testing.assert_allclose(ours[0].numpy(), expected, rtol=0, atol=2e-4)


def test_the_spectrogram_is_what_torchaudio_computed() -> None:
    stored = np.load(PARITY)
    wave = torch.from_numpy(stored["clip_1"].astype(np.float32) / 32768)
    ours, _ = beats.fbank(wave[None])
    off = np.abs(ours[0].numpy() - stored["fbank_1"])
    assert off.mean() < 1e-5
    assert off.max() < 2e-3  # of single precision, where there is next to no energy


def test_frames_are_counted_by_the_sound_and_padding_is_not_heard() -> None:
    batch, lengths = batch_of(noise())
    features, mask = beats.fbank(batch, lengths)
    assert mask is not None
    assert mask.sum(1).tolist() == [123, 54, 16, 123, 17]  # a clip shorter than a patch fills one
    loud = torch.where(torch.arange(batch.shape[1]) < lengths[:, None], batch, torch.full_like(batch, 0.7))
    assert torch.equal(beats.fbank(loud, lengths)[0], features)
    assert beats.fbank(batch[:1], lengths[:1])[1] is None


# --- the network


@pytest.fixture(scope="module")
def original() -> tuple[Beats, list[NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """A network of the weights that the original code ran on, the clips, and what it returned for each alone."""
    stored = np.load(PARITY)
    shared = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    state = {
        key.removeprefix("weights/"): torch.from_numpy(stored[key].astype(np.float32))
        for key in stored.files
        if key.startswith("weights/")
    }
    state[shared.format(1)] = state[shared.format(0)]
    model = beats.build(BeatsConfig.of(json.loads(str(stored["cfg"]))), state, "the original")
    waves = [stored[f"clip_{i}"].astype(np.float32) / 32768 for i in range(3)]
    return model, waves, dict(stored.items())


def heard(model: Beats, paths: list[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _m, _i, output, path=path: outputs.update({path: output})
        )
        for path in paths
    ]
    with torch.inference_mode():
        run()
    for handle in handles:
        handle.remove()
    return outputs


def test_one_padded_batch_gives_what_the_original_code_gives_each_clip_alone(
    original: tuple[Beats, list[NDArray[np.float32]], dict[str, NDArray[np.float32]]],
) -> None:
    model, waves, expected = original
    paths = ["0.fc1", "1.fc2", "1.final_layer_norm"]
    answers: list[Tensor] = []

    def run() -> None:
        features, patch_mask = model(*beats.fbank(*batch_of(waves)))
        answers.append(model.classify(features, patch_mask).sigmoid())

    outputs = heard(model, [f"encoder.layers.{path}" for path in paths], run)
    for i in range(3):
        np.testing.assert_allclose(answers[0][i].numpy(), expected[f"probabilities_{i}"], rtol=0, atol=5e-5)
        for path in paths:
            reference = expected[f"{path}_{i}"]
            ours = outputs[f"encoder.layers.{path}"][i, : len(reference)].numpy()
            np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-3)
            assert np.abs(reference).max() > 1


@pytest.mark.parametrize(
    "cfg",
    [{}, {"deep_norm": False, "layer_norm_first": True}, {"embed_dim": 32, "conv_pos": 15}, {"gru_rel_pos": False}],
    ids=["published", "norm first", "no projection", "no gate"],
)
def test_a_clip_gives_the_same_in_any_company(cfg: dict[str, Any]) -> None:
    model = random_beats(BeatsConfig.of(CFG | cfg | {"finetuned_model": True, "predictor_class": 3}))
    waves = noise()
    with torch.inference_mode():
        features, mask = model(*beats.fbank(*batch_of(waves)))
        together = model.classify(features, mask)
        assert mask is not None
        assert mask.sum(1).tolist() == [56, 24, 8, 56, 8]
        for i, wave in enumerate(waves):
            alone, none = model(*beats.fbank(torch.from_numpy(wave)[None]))
            assert none is None
            torch.testing.assert_close(features[i][mask[i]], alone[0], rtol=0, atol=2e-5)
            torch.testing.assert_close(together[i], model.classify(alone)[0], rtol=0, atol=2e-5)


def test_order_in_time_is_heard() -> None:
    """Without its positions a transformer would not notice that columns of patches change places."""
    x, _ = beats.fbank(torch.from_numpy(noise((20_000,))[0])[None])
    x = x[:, : 7 * 16]
    turned = x.unflatten(1, (7, 16)).flip(1).flatten(1, 2)
    for part in ("relative_position_embedding", "conv_pos"):
        # one of the two carriers of position at a time: the other is off
        cfg: dict[str, Any] = CFG | (
            {"relative_position_embedding": False, "gru_rel_pos": False} if part == "conv_pos" else {}
        )
        model = random_beats(BeatsConfig.of(cfg | {"finetuned_model": True, "predictor_class": 3}))
        if part != "conv_pos":
            torch.nn.init.zeros_(model.get_parameter("encoder.pos_conv.0.weight_g"))
        with torch.inference_mode():
            assert (model.classify(model(x)[0]) - model.classify(model(turned)[0])).abs().max() > 1e-3


def test_gradients_shrink_from_block_to_block_by_the_ratio() -> None:
    x, _ = beats.fbank(torch.from_numpy(noise((9_000,))[0])[None])

    def gradients(ratio: float) -> dict[str, Tensor]:
        cfg = {"layer_wise_gradient_decay_ratio": ratio, "finetuned_model": True, "predictor_class": 3}
        model = random_beats(BeatsConfig.of(CFG | cfg))
        model.classify(model(x)[0]).square().sum().backward()
        return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}

    whole, scaled = gradients(1.0), gradients(0.5)
    assert float(whole["encoder.layers.0.self_attn.relative_attention_bias.weight"].abs().max()) > 0
    for key, power in (
        ("encoder.layers.1.fc1.weight", 0),
        ("encoder.layers.0.fc1.weight", 1),
        ("patch_embedding.weight", 2),
    ):
        assert float(whole[key].abs().max()) > 1e-4
        torch.testing.assert_close(scaled[key], whole[key] * 0.5**power, rtol=1e-4, atol=1e-7)


def test_blocks_are_dropped_in_training_alone() -> None:
    config = BeatsConfig.of(CFG | {"encoder_layerdrop": 1.0})
    model = random_beats(config)
    x, _ = beats.fbank(torch.from_numpy(noise((9_000,))[0])[None])
    with torch.inference_mode():
        before = heard(model, ["encoder.layer_norm"], lambda: model(x))["encoder.layer_norm"]
        assert torch.equal(model.train()(x)[0], before)
        assert not torch.allclose(model.eval()(x)[0], before, atol=0.1)


def test_a_pretrained_network_does_not_classify() -> None:
    model = random_beats(BeatsConfig.of(CFG))
    with pytest.raises(ValueError, match="has no predictor"):
        model.classify(torch.zeros(1, 8, 32))


# --- files


def test_a_published_file_loads_strictly_and_names_its_classes(finetuned_file: Path) -> None:
    checkpoint = beats.read(finetuned_file)
    assert checkpoint.labels == MIDS
    config, state = beats.read_checkpoint(finetuned_file)
    assert (config.predictor_class, config.max_distance, config.encoder_layers) == (5, 80, 2)
    model = beats.load_beats(finetuned_file)
    assert not model.training
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    tables = [model.get_submodule(f"encoder.layers.{i}.self_attn.relative_attention_bias") for i in range(2)]
    assert tables[0] is tables[1]


def test_half_precision_on_disk_is_single_in_memory(finetuned_file: Path, tmp_path: Path) -> None:
    content = torch.load(finetuned_file, weights_only=True)
    content["model"] = {key: value.half() for key, value in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    assert {p.dtype for p in beats.load_beats(tmp_path / "half.pt").parameters()} == {torch.float32}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("went-off"),))


def changed(file: Path, **parts: Any) -> bytes:
    content = torch.load(file, weights_only=True) | parts
    buffer = io.BytesIO()
    torch.save({key: value for key, value in content.items() if value is not None}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda _f: b"", "holds no plain checkpoint"),
        (lambda _f: b"not a checkpoint", "holds no plain checkpoint"),
        (lambda _f: pickle.dumps(Bomb(), protocol=2), "holds code, which is never run"),
        (lambda f: changed(f, cfg=None), "lacks 'cfg' or 'model'"),
        (lambda f: changed(f, model={"quantize.embedding.weight": torch.zeros(2)}), "is a tokenizer of BEATs"),
        (lambda f: changed(f, model={"fc.weight": torch.zeros(2)}), "do not fit its cfg"),
        (lambda f: changed(f, cfg=CFG | {"activation_fn": "glu"}), "activation_fn is 'glu'"),
        (lambda f: changed(f, cfg=CFG | {"layer_norm_first": True}), "exclude each other"),
        (lambda f: changed(f, cfg=CFG | {"input_patch_size": -1}), "input_patch_size is -1"),
        (lambda f: changed(f, cfg=CFG | {"encoder_attention_heads": 5}), "cannot be divided"),
        (lambda f: changed(f, cfg=CFG | {"feed_forward_sizes": [3]}), "for 2 blocks"),
    ],
    ids=["empty", "text", "code", "no cfg", "tokenizer", "foreign", "glu", "two norms", "patches", "heads", "sizes"],
)
def test_a_file_of_another_kind_is_refused_in_words(
    made: Callable[[Path], bytes], told: str, finetuned_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.pt").write_bytes(made(finetuned_file))
    with pytest.raises(WeightsMissingError, match=told):
        beats.load_beats("other.pt")
    assert not (tmp_path / "went-off").exists()


def test_a_missing_file_says_what_to_get() -> None:
    for load in (beats.load_beats, load_network):
        with pytest.raises(
            WeightsMissingError, match=r"no BEATs checkpoint 'nowhere\.pt'; get BEATs_iter3_plus_AS2M\.pt"
        ):
            load("nowhere.pt")


# --- a network under study


def test_layers_have_the_stable_names(finetuned: BeatsNetwork) -> None:
    assert [layer.name for layer in finetuned.default_layers] == [
        "b00.ff_in",
        "b00.ff_out",
        "b01.ff_in",
        "b01.ff_out",
        "head",
    ]
    assert {layer.pooling for layer in finetuned.default_layers} == {"first", "network"}
    assert finetuned.layer("b01.ff_in").module_path == "encoder.layers.1.fc1"
    names = {layer.name for layer in finetuned.layers}
    assert {"embed", "post_extract_proj", "b00.query", "b00.key", "b00.value", "b00.attn_out"} <= names
    assert finetuned.left_out == {}
    assert finetuned.classes == MIDS
    assert (finetuned.rate, finetuned.architecture, finetuned.uniform_length) == (16000, "Beats", False)


def test_a_pretrained_network_has_hidden_layers_alone(pretrained_file: Path) -> None:
    network = load_network(pretrained_file)
    assert isinstance(network, BeatsNetwork)
    assert [layer.name for layer in network.default_layers] == ["b00.ff_in", "b00.ff_out", "b01.ff_in", "b01.ff_out"]
    assert network.classes is None
    assert len(list(record_batches(network, network.default_layers, clips()))) == 1
    with pytest.raises(ActivationError, match="gives no logits"):
        logits(network, clips())


def test_class_names_that_do_not_count_the_logits_are_left_out(finetuned_file: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.pt").write_bytes(changed(finetuned_file, label_dict={0: "/m/0bt9lr"}))
    assert load_network(tmp_path / "odd.pt").classes is None


def test_recorded_values_are_the_modules_own(finetuned: BeatsNetwork) -> None:
    sounds = clips()
    layers = finetuned.default_layers
    recorded = next(iter(record_batches(finetuned, layers, sounds)))
    for i, clip in enumerate(sounds):
        x, _ = beats.fbank(torch.from_numpy(clip.waveform)[None])
        paths = [layer.module_path for layer in layers]
        outputs = heard(finetuned.model, paths, lambda x=x: finetuned.model.classify(finetuned.model(x)[0]))
        for layer in layers:
            positions = outputs[layer.module_path][0]
            expected = positions.mean(0) if layer.kind == "head" else positions[0]
            np.testing.assert_allclose(recorded[layer.name][i].astype(np.float32), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
def test_every_layer_gives_a_clip_the_same_in_any_company(finetuned: BeatsNetwork, pooling: str) -> None:
    sounds = clips()
    layers = with_pooling(finetuned.layers, pooling)
    together = next(iter(record_batches(finetuned, layers, sounds, batch_size=5)))
    alone = list(record_batches(finetuned, layers, sounds, batch_size=1))
    for layer in layers:
        expected = np.concatenate([values[layer.name] for values in alone]).astype(np.float32)
        np.testing.assert_allclose(together[layer.name].astype(np.float32), expected, rtol=2e-3, atol=1e-3)


def test_units_are_silenced_and_come_back(finetuned: BeatsNetwork) -> None:
    sounds = clips()
    before = logits(finetuned, sounds)
    layer = finetuned.select(["b00.ff_in"])
    with finetuned.ablated({"b00.ff_in": [3, 60]}):
        silent = next(iter(record_batches(finetuned, layer, sounds)))["b00.ff_in"]
        assert np.abs(logits(finetuned, sounds) - before).max() > 1e-4
    assert not silent[:, [3, 60]].any()
    assert np.abs(silent[:, 4]).min() > 0
    np.testing.assert_array_equal(logits(finetuned, sounds), before)
    with pytest.raises(ActivationError, match="gives the class logits"), finetuned.ablated({"head": [0]}):
        pass


def test_many_ablations_share_a_pass(finetuned: BeatsNetwork) -> None:
    sounds = clips()
    selections: list[dict[str, list[int]]] = [{"b01.ff_in": [1, 2, 3]}, {"b00.ff_out": [5]}]
    shared = np.concatenate(list(ablated_logits(finetuned, selections, sounds, batch_size=3)), axis=1)
    assert np.abs(shared[1:] - shared[0]).max(axis=(1, 2)).min() > 1e-3
    for values, selection in zip(shared, [{}, *selections], strict=True):
        with finetuned.ablated(selection):
            np.testing.assert_allclose(values, logits(finetuned, sounds), rtol=0, atol=1e-5)


def test_the_recipe_tells_weights_and_shape(
    finetuned: BeatsNetwork, finetuned_file: Path, pretrained_file: Path
) -> None:
    again = load_network(finetuned_file)
    assert again.recipe == finetuned.recipe
    assert load_network(pretrained_file).recipe != finetuned.recipe
    assert again.origin == str(finetuned_file.resolve())


# --- saving, heads, pruning


def test_a_saved_network_is_the_same_network(finetuned: BeatsNetwork, tmp_path: Path) -> None:
    networks.save(finetuned, tmp_path / "saved")
    again = load_network(tmp_path / "saved")
    assert isinstance(again, BeatsNetwork)
    assert again.recipe == finetuned.recipe
    assert again.classes == MIDS
    np.testing.assert_array_equal(logits(again, clips()), logits(finetuned, clips()))
    with pytest.raises(ConflictError, match="give another folder"):
        networks.save(finetuned, tmp_path / "saved")


@pytest.mark.parametrize("damage", ["weights", "classes", "cfg"])
def test_a_damaged_directory_is_refused_in_words(finetuned: BeatsNetwork, tmp_path: Path, damage: str) -> None:
    networks.save(finetuned, tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    if damage == "weights":
        (tmp_path / "saved" / "model.safetensors").write_bytes(b"no")
    else:
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != damage}))
    with pytest.raises(WeightsMissingError, match="holds no BEATs that can be loaded"):
        load_network(tmp_path / "saved")


def test_a_file_in_place_of_the_folder_is_an_input_error(finetuned: BeatsNetwork, tmp_path: Path) -> None:
    (tmp_path / "saved").write_text("")
    with pytest.raises(InputError, match=r"name a(nother)? (folder|one)"):
        networks.save(finetuned, tmp_path / "saved")


def test_a_fresh_head_on_a_pretrained_encoder(pretrained_file: Path, tmp_path: Path) -> None:
    encoder = beats.load_beats(pretrained_file)
    random = torch.get_rng_state()
    model = networks.with_head(encoder, ["dog", "rain", "clock"], seed=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert encoder.predictor is None
    same, other = (networks.with_head(encoder, ["dog", "rain", "clock"], seed=seed) for seed in (1, 2))
    assert model.predictor is not None and same.predictor is not None and other.predictor is not None
    assert torch.equal(model.predictor.weight, same.predictor.weight)
    assert not torch.equal(model.predictor.weight, other.predictor.weight)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in encoder.state_dict().items())
    with torch.no_grad():
        model.get_parameter("encoder.layers.0.fc1.weight").zero_()
    assert encoder.get_parameter("encoder.layers.0.fc1.weight").any()  # a copy

    network = BeatsNetwork(same, "mine", ["dog", "rain", "clock"])
    networks.save(network, tmp_path / "mine")
    again = load_network(tmp_path / "mine")
    assert again.classes == ["dog", "rain", "clock"]
    np.testing.assert_array_equal(logits(again, clips()), logits(network, clips()))


def test_a_head_needs_classes(pretrained_file: Path) -> None:
    encoder = beats.load_beats(pretrained_file)
    for classes in (["dog"], ["dog", "dog"]):
        with pytest.raises(InputError, match="at least two classes"):
            networks.with_head(encoder, classes)


@pytest.mark.parametrize(
    ("structured", "selection", "sizes"),
    [
        (False, {"b00.ff_in": [1, 2], "b01.ff_out": [0]}, None),
        (True, {"b00.ff_in": [1, 2], "b01.ff_out": [0]}, [62, 64]),
        (True, {"b00.ff_in": [0, 9], "b01.ff_in": [8, 9]}, [62, 62]),
    ],
    ids=["zeroed", "removed here and there", "removed everywhere"],
)
def test_a_pruned_network_gives_the_logits_of_the_ablated_one(
    finetuned: BeatsNetwork, tmp_path: Path, structured: bool, selection: dict[str, list[int]], sizes: list[int] | None
) -> None:
    sounds = clips()
    report = save_pruned(finetuned, selection, tmp_path / "pruned", structured, training={"dataset": "esc50"})
    with finetuned.ablated(selection):
        expected = logits(finetuned, sounds)
    pruned = load_network(tmp_path / "pruned")
    assert isinstance(pruned, BeatsNetwork)
    np.testing.assert_allclose(logits(pruned, sounds), expected, rtol=0, atol=1e-5)
    assert [pruned.layer(f"b0{i}.ff_in").n_units for i in range(2)] == (sizes or [64, 64])
    assert report.stock
    assert report.parameters_removed == finetuned.n_parameters - pruned.n_parameters
    assert sorted(file.name for file in (tmp_path / "pruned").iterdir()) == [
        "config.json", "model.safetensors", "training.json",
    ]  # fmt: skip


def test_other_patterns_are_refused_by_name(finetuned: BeatsNetwork) -> None:
    with pytest.raises(NotFoundError, match="b02"):
        finetuned.select(["b02.ff_in"])
