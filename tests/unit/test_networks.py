"""Networks with random weights, saved and loaded through the real paths; recorded values against the modules."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from and_platform.backends.base import Clip
from and_platform.backends.networks import load_network
from and_platform.backends.networks.base import LoadedNetwork
from and_platform.backends.networks.record import UnstorableValueError, logits_batches, record_batches
from and_platform.errors import ActivationError, BackendError, ConfigError, NotFoundError, WeightsMissingError

CLASSES = ["dog", "rain", "clock"]
LENGTHS = (16000, 9000, 300, 16000, 21000)  # samples; the network hears 0.67 s of AST, and pads what is shorter


def clips(lengths: tuple[int, ...] = LENGTHS, rate: int = 16000) -> list[Clip]:
    rng = np.random.default_rng(1)
    return [Clip(f"clip{i}.wav", rng.normal(0, 0.1, n).astype(np.float32), rate) for i, n in enumerate(lengths)]


def save_ast(directory: Path) -> Path:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_length=64,
        num_mel_bins=32,
        frequency_stride=16,
        time_stride=16,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    model = ASTForAudioClassification(config)
    torch.nn.init.normal_(model.audio_spectrogram_transformer.embeddings.position_embeddings, std=0.5)
    model.save_pretrained(directory)
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(directory)
    return directory


def save_speech_network(directory: Path, family: str, norm: str = "layer") -> Path:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4),
        feat_extract_norm=norm,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=12,
        num_labels=3,
    )
    getattr(transformers, f"{family}ForSequenceClassification")(config).save_pretrained(directory)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def ast_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ast(tmp_path_factory.mktemp("ast"))


@pytest.fixture(scope="module")
def ast(ast_directory: Path) -> LoadedNetwork:
    return load_network(ast_directory)


def record(network: LoadedNetwork, layers: Any, sounds: list[Clip], batch_size: int = 16) -> dict[str, NDArray[Any]]:
    parts = list(record_batches(network, layers, sounds, batch_size=batch_size))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# --- AST


def test_ast_layers_have_the_papers_names(ast: LoadedNetwork) -> None:
    kinds = ("attn_out", "ff_in", "ff_out")
    assert [layer.name for layer in ast.default_layers] == [f"b{b:02d}.{k}" for b in range(2) for k in kinds] + ["head"]
    assert [layer.n_units for layer in ast.default_layers] == [24, 48, 24] * 2 + [3]
    assert [layer.block for layer in ast.default_layers] == [0] * 3 + [1] * 3 + [None]
    assert {layer.pooling for layer in ast.default_layers[:-1]} == {"first"}
    assert ast.default_layers[-1].pooling == "network"
    others = [layer.name for layer in ast.layers if layer not in ast.default_layers]
    assert others == ["embed", *(f"b{b:02d}.{k}" for b in range(2) for k in ("query", "key", "value"))]
    assert ast.left_out == {}
    assert (ast.classes, ast.rate, ast.architecture) == (CLASSES, 16000, "ASTForAudioClassification")
    assert ast.n_parameters == sum(p.numel() for p in ast.model.parameters())


def test_ast_records_what_each_module_gives_at_the_first_token(ast: LoadedNetwork) -> None:
    sounds = clips()
    got = record(ast, ast.layers, sounds)
    batch = ast.prepare([clip.waveform for clip in sounds])
    with torch.inference_mode():
        out = ast.model(input_values=batch["input_values"], output_hidden_states=True)
        blocks = ast.model.audio_spectrogram_transformer.layers
        for number, block in enumerate(blocks):
            # the block's arithmetic, step by step from its own input
            hidden = out.hidden_states[number]
            attended = block.attention(block.layernorm_before(hidden))[0]
            middle = hidden + attended
            inner = block.mlp.fc1(block.layernorm_after(middle))
            outer = block.mlp.fc2(block.mlp.activation_fn(inner))
            torch.testing.assert_close(middle + outer, out.hidden_states[number + 1])
            for kind, value in (("attn_out", attended), ("ff_in", inner), ("ff_out", outer)):
                expected = value[:, 0].numpy()
                np.testing.assert_allclose(got[f"b{number:02d}.{kind}"], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(got["head"], out.logits.half().numpy())
    assert all(values.dtype == np.float16 for values in got.values())


@pytest.mark.parametrize("pooling", [None, "mean", "max"])
def test_ast_gives_the_same_in_any_batch(ast: LoadedNetwork, pooling: str | None) -> None:
    layers = ast.select(["*"], pooling)
    together, alone = record(ast, layers, clips(), 16), record(ast, layers, clips(), 1)
    for name, values in together.items():
        np.testing.assert_allclose(values, alone[name], rtol=2e-3, atol=1e-4, err_msg=name)


def test_ast_mean_leaves_out_the_tokens_and_the_padding(ast: LoadedNetwork) -> None:
    sounds = clips((3600, 16000))  # 21 frames: two columns of patches of 16 frames, of four
    got = record(ast, ast.select(["b01.ff_out", "embed"], "mean"), sounds)
    batch = ast.prepare([clip.waveform for clip in sounds])
    outputs: dict[str, torch.Tensor] = {}
    for name in ("b01.ff_out", "embed"):
        module = ast.model.get_submodule(ast.layer(name).module_path)
        handle = module.register_forward_hook(lambda *args, name=name: outputs.__setitem__(name, args[2]))
        with torch.inference_mode():
            ast.forward(batch)
        handle.remove()
    patches = outputs["b01.ff_out"][:, 2:].unflatten(1, (2, 4))  # [B, frequency, time, units]
    for clip, columns in enumerate((2, 4)):
        expected = patches[clip, :, :columns].mean(dim=(0, 1)).numpy()
        np.testing.assert_allclose(got["b01.ff_out"][clip], expected, rtol=2e-3, atol=1e-4)
        expected = outputs["embed"][clip, :, :, :columns].mean(dim=(1, 2)).numpy()
        np.testing.assert_allclose(got["embed"][clip], expected, rtol=2e-3, atol=1e-4)


def test_layers_are_chosen_by_glob(ast: LoadedNetwork) -> None:
    assert [layer.name for layer in ast.select(["b0*.ff_*"])] == ["b00.ff_in", "b00.ff_out", "b01.ff_in", "b01.ff_out"]
    assert [layer.name for layer in ast.select(["head", "*query*"])] == ["b00.query", "b01.query", "head"]
    assert {layer.pooling for layer in ast.select(["head", "b00.*"], "max")} == {"max", "network"}
    with pytest.raises(NotFoundError, match=r"matches 'b00\.ffin'; there are b00\.ff_in"):
        ast.select(["b00.ffin"])
    with pytest.raises(ActivationError, match="unknown pooling 'median'"):
        ast.select(["head"], "median")


def test_only_the_chosen_layers_are_recorded_and_no_hook_is_left(ast: LoadedNetwork) -> None:
    hooks = [len(module._forward_hooks) for module in ast.model.modules()]
    got = record(ast, ast.select(["head"]), clips())
    assert list(got) == ["head"]
    logits = np.concatenate(list(logits_batches(ast, clips(), batch_size=2)))
    np.testing.assert_allclose(got["head"], logits, rtol=1e-3, atol=1e-5)
    assert [len(module._forward_hooks) for module in ast.model.modules()] == hooks


def test_the_revision_is_that_of_the_weights(ast: LoadedNetwork, ast_directory: Path, tmp_path: Path) -> None:
    again = load_network(ast_directory)
    assert again.recipe == ast.recipe
    assert len(again.revision) == 64
    with torch.no_grad():
        again.model.classifier.dense.bias[0] += 1
    del again.revision
    assert again.revision != ast.revision
    # the input pipeline changes results as well
    for file in ast_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"mean": -1.0}))
    other = load_network(tmp_path)
    assert other.revision == ast.revision
    assert other.recipe != ast.recipe


def test_half_precision_weights_run_in_float32(ast: LoadedNetwork, ast_directory: Path, tmp_path: Path) -> None:
    network = load_network(ast_directory)
    network.model.half().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((ast_directory / "preprocessor_config.json").read_bytes())
    loaded = load_network(tmp_path)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    a, b = record(loaded, loaded.select(["head"]), clips()), record(ast, ast.select(["head"]), clips())
    np.testing.assert_allclose(a["head"], b["head"], atol=5e-3)


def test_ablation_by_layer_name_changes_the_logits_and_spares_the_head(ast: LoadedNetwork) -> None:
    before = record(ast, ast.default_layers, clips())
    with ast.ablated({"b01.ff_in": [3, 7]}):
        during = record(ast, ast.default_layers, clips())
    after = record(ast, ast.default_layers, clips())
    assert (during["b01.ff_in"][:, [3, 7]] == 0).all()
    np.testing.assert_array_equal(during["b00.ff_out"], before["b00.ff_out"])
    assert (during["head"] != before["head"]).any()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    with pytest.raises(ActivationError, match="fake unlearning"), ast.ablated({"head": [0]}):
        pass
    with pytest.raises(NotFoundError), ast.ablated({"b09.ff_in": [0]}):
        pass


# --- values that cannot be stored, clips that cannot be used


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e5, -65505.0])
def test_a_value_beyond_half_range_names_layer_unit_and_clip(ast_directory: Path, value: float) -> None:
    network = load_network(ast_directory)
    with torch.no_grad():
        network.model.audio_spectrogram_transformer.layers[0].mlp.fc1.bias[5] = value
    with pytest.raises(UnstorableValueError, match=r"b00\.ff_in#5 on clip 'clip0\.wav'") as caught:
        record(network, network.select(["b00.attn_out", "b00.ff_in"]), clips())
    assert (caught.value.layer, caught.value.unit, caught.value.clip) == ("b00.ff_in", 5, "clip0.wav")


def test_the_largest_half_is_stored(ast_directory: Path) -> None:
    network = load_network(ast_directory)
    with torch.no_grad():
        layer = network.model.audio_spectrogram_transformer.layers[1].mlp.fc2
        layer.weight[0], layer.bias[0] = 0.0, 65504.0
    assert (record(network, network.select(["b01.ff_out"]), clips())["b01.ff_out"][:, 0] == 65504.0).all()


def test_a_clip_at_another_rate_or_without_samples_is_refused(ast: LoadedNetwork) -> None:
    with pytest.raises(ActivationError, match=r"'clip0\.wav' is at 8000 Hz.*takes 16000 Hz"):
        record(ast, ast.default_layers, clips((8000,), rate=8000))
    with pytest.raises(ActivationError, match=r"'clip1\.wav' is not a mono waveform"):
        record(ast, ast.default_layers, clips((8000, 0)))


def test_batches_follow_the_clips(ast: LoadedNetwork) -> None:
    sizes = [len(part["head"]) for part in record_batches(ast, ast.default_layers, iter(clips()), batch_size=2)]
    assert sizes == [2, 2, 1]
    assert list(record_batches(ast, ast.default_layers, [])) == []


# --- wav2vec 2.0 and its kin


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "WavLM"])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_speech_networks_give_the_same_in_any_batch(tmp_path: Path, family: str, norm: str) -> None:
    network = load_network(save_speech_network(tmp_path, family, norm))
    assert [layer.name for layer in network.default_layers] == [
        f"b{b:02d}.{k}" for b in range(2) for k in ("attn_out", "ff_in", "ff_out")
    ] + ["head"]
    assert network.classes is None
    assert network.uniform_length is (norm == "group")
    for pooling in ("mean", "max", "first"):
        layers = network.select(["b*", "projector", "head"], pooling)
        together, alone = record(network, layers, clips(), 16), record(network, layers, clips(), 1)
        for name, values in together.items():
            np.testing.assert_allclose(values, alone[name], rtol=5e-3, atol=5e-4, err_msg=f"{name} {pooling}")


def test_mean_over_frames_is_what_the_network_takes(tmp_path: Path) -> None:
    network = load_network(save_speech_network(tmp_path, "Wav2Vec2"))
    got = record(network, network.select(["projector", "head"]), clips())
    # the classifier is applied to the mean of the projector's frames, so the two recordings must agree
    classifier = network.model.classifier
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(got["projector"].astype(np.float32)))
    np.testing.assert_allclose(got["head"], logits.numpy(), rtol=1e-2, atol=1e-3)


def test_attention_that_is_one_fused_function_shows_at_its_parent(tmp_path: Path) -> None:
    network = load_network(save_speech_network(tmp_path, "WavLM"))
    layer = network.layer("b00.attn_out")
    assert layer.module_path == "wavlm.encoder.layers.0.attention.out_proj"
    assert layer.hook_path == "wavlm.encoder.layers.0.attention"
    assert network.left_out["wavlm.encoder.layers.0.attention.q_proj"] == (
        "its module is not called in the forward pass"
    )
    before = record(network, [layer], clips())["b00.attn_out"]
    with network.ablated({"b00.attn_out": [4]}):
        during = record(network, [layer], clips())["b00.attn_out"]
    assert (during[:, 4] == 0).all() and (before[:, 4] != 0).all()
    others = [u for u in range(16) if u != 4]
    np.testing.assert_array_equal(during[:, others], before[:, others])


def test_whisper_masks_what_it_pads_to_half_a_minute(tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_labels=3
    )
    WhisperForAudioClassification(config).save_pretrained(tmp_path)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    network = load_network(tmp_path)
    assert [layer.name for layer in network.default_layers] == ["b00.attn_out", "b00.ff_in", "b00.ff_out", "head"]
    batch = network.prepare([clip.waveform for clip in clips((16000, 32000))])
    mask = network.frame_mask(batch, network.layer("b00.ff_in"), 1500)
    assert mask is not None and mask.sum(1).tolist() == [50, 100]


# --- what is missing


def test_missing_files_say_what_to_do(ast_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsMissingError, match="there is no directory '/no/such/place'"):
        load_network("/no/such/place")
    with pytest.raises(WeightsMissingError, match=r"has no config\.json"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_bytes((ast_directory / "config.json").read_bytes())
    with pytest.raises(WeightsMissingError, match=r"has no preprocessor_config\.json"):
        load_network(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((ast_directory / "preprocessor_config.json").read_bytes())
    with pytest.raises(WeightsMissingError, match="has no weights"):
        load_network(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 16)
    with pytest.raises(BackendError, match="cannot be loaded as an audio network"):
        load_network(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightsMissingError, match="is neither a directory here, nor in the cache"):
        load_network("someone/some-network")


def test_weights_without_a_classifier_are_refused(ast_directory: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in ast_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "classifier.dense" not in key}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsMissingError, match=r"lack 2 tensors, classifier\.dense\.bias among them"):
        load_network(tmp_path)


# --- networks from a factory

FACTORY = """
import numpy as np, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, frames_first=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2)
        self.hidden = nn.Linear(6, 8)
        self.unused = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)
        self.frames_first = frames_first

    def forward(self, x):
        x = self.conv2(self.conv1(x).relu()).relu()
        if self.frames_first:  # the head before the reduction over time, as in BEATs
            return self.head(self.hidden(x.mean(2).transpose(1, 2)).relu()).mean(1)
        return self.head(self.hidden(x.mean((2, 3))).relu())

def prepare(waveforms):
    return torch.stack([torch.from_numpy(np.resize(w, (1, 20, 40))) for w in waveforms])

OPTIONS = {"rate": 8000, "classes": ["yes", "no"], "prepare": prepare}

def pair():
    return Net(), OPTIONS

def framewise():
    return Net(True), OPTIONS

def attributes():
    net = Net()
    net.rate, net.classes, net.prepare, net.pooling = 8000, ["yes", "no"], prepare, "max"
    return net

def raw():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 5, 16, stride=8)
        def forward(self, x):
            return self.conv(x[:, None])
    return Raw(), {"rate": 8000}

def no_rate():
    return Net(), {"classes": ["yes", "no"]}

def typing_error():
    return Net(), OPTIONS | {"clases": []}

def wrong_classes():
    return Net(), OPTIONS | {"classes": ["yes"]}

def nothing():
    return None

def broken():
    raise ZeroDivisionError("on purpose")
"""


@pytest.fixture
def factory_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import sys

    (tmp_path / "toy_networks.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_networks"
    sys.modules.pop("toy_networks", None)


def test_a_small_cnn_by_factory(factory_module: str) -> None:
    network = load_network(f"{factory_module}:pair")
    assert [(layer.name, layer.kind, layer.n_units) for layer in network.layers] == [
        ("conv1", "conv", 4),
        ("conv2", "conv", 6),
        ("hidden", "linear", 8),
        ("head", "head", 2),
    ]
    assert network.default_layers == network.layers
    assert network.left_out == {"unused": "its module is not called in the forward pass"}
    sounds = clips((8000, 5000), rate=8000)
    x = network.prepare([clip.waveform for clip in sounds])["input"]
    with torch.inference_mode():
        feature_map = network.model.conv1(x)
        logits = network.model(x)
    mean, peak = record(network, network.layers, sounds), record(network, network.select(["*"], "max"), sounds)
    np.testing.assert_allclose(mean["conv1"], feature_map.mean((2, 3)).numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(peak["conv1"], feature_map.amax((2, 3)).numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mean["head"], logits.numpy(), rtol=1e-3, atol=1e-4)
    with network.ablated({"conv2": [1]}):
        assert (record(network, network.select(["conv2"], "max"), sounds)["conv2"][:, 1] == 0).all()


def test_a_head_before_the_reduction_over_time_is_the_networks_own_logit(factory_module: str) -> None:
    network = load_network(f"{factory_module}:framewise")
    assert network.layer("head").pooling == "network"
    sounds = clips((8000, 5000), rate=8000)
    got = record(network, network.select(["*"], "max"), sounds)
    with torch.inference_mode():
        logits = network.model(network.prepare([clip.waveform for clip in sounds])["input"])
    np.testing.assert_allclose(got["head"], logits.numpy(), rtol=1e-3, atol=1e-4)


def test_options_may_be_attributes(factory_module: str) -> None:
    network = load_network(f"{factory_module}:attributes")
    assert (network.rate, network.classes) == (8000, ["yes", "no"])
    assert [layer.pooling for layer in network.layers] == ["max"] * 3 + ["network"]


def test_raw_waveforms_without_classes(factory_module: str) -> None:
    network = load_network(f"{factory_module}:raw")
    sounds = clips((800, 400, 800), rate=8000)
    got = record(network, network.layers, sounds)["conv"]
    alone = record(network, network.layers, sounds, 1)["conv"]
    np.testing.assert_allclose(got, alone, rtol=2e-3, atol=1e-4)
    with pytest.raises(ActivationError, match="gives no logits"):
        next(logits_batches(network, sounds))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("no_rate", ConfigError, "add the option 'rate'"),
        ("typing_error", ConfigError, "unknown option 'clases'"),
        ("wrong_classes", ActivationError, "2 logits and 1 class names"),
        ("nothing", ConfigError, "returned a NoneType"),
        ("broken", BackendError, "ZeroDivisionError: on purpose"),
        ("absent", ConfigError, "has no 'absent'"),
    ],
)
def test_a_wrong_factory_says_what_is_wrong(factory_module: str, name: str, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        load_network(f"{factory_module}:{name}")


def test_a_factory_module_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="put its folder on PYTHONPATH"):
        load_network("no_such_module_here:build")
