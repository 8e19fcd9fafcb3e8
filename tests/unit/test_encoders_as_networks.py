"""Encoders without a classifier, CLAP's windows among them, and what is said of checkpoints that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from and_platform.backends.base import Clip
from and_platform.backends.networks import load_network
from and_platform.backends.networks.base import LoadedNetwork, with_pooling
from and_platform.backends.networks.hooks import recording
from and_platform.backends.networks.layers import PROBE_CLIPS, discover_layers
from and_platform.backends.networks.record import logits_batches, record_batches
from and_platform.errors import ActivationError, BackendError, NotFoundError, WeightsMissingError
from tests import checkpoints_networks as tiny
from tests import hub

Made = Callable[[Path], Path]
PAPER = [f"b{block:02d}.{kind}" for block in range(2) for kind in ("attn_out", "ff_in", "ff_out")]

ENCODERS: dict[str, tuple[Made, str, bool]] = {  # the class that is loaded, and whether lengths are kept apart
    "hubert": (lambda folder: tiny.speech(folder, "HubertModel"), "HubertModel", True),
    "hubert, CTC, large": (lambda folder: tiny.speech(folder, "HubertForCTC", large=True), "HubertModel", False),
    "wav2vec2, pretraining": (lambda folder: tiny.speech(folder, "Wav2Vec2ForPreTraining"), "Wav2Vec2Model", True),
    "wav2vec2, large": (
        lambda folder: tiny.speech(folder, "Wav2Vec2ForPreTraining", large=True), "Wav2Vec2Model", False,
    ),
    "wav2vec2, CTC": (lambda folder: tiny.speech(folder, "Wav2Vec2ForCTC"), "Wav2Vec2Model", True),
    "wavlm": (lambda folder: tiny.speech(folder, "WavLMModel"), "WavLMModel", True),
    "wavlm, large": (lambda folder: tiny.speech(folder, "WavLMModel", large=True), "WavLMModel", False),
    "whisper": (tiny.whisper, "WhisperEncoder", False),
    "whisper, no generation": (lambda folder: tiny.whisper(folder, "WhisperModel"), "WhisperEncoder", False),
    "clap": (tiny.clap, "ClapAudioModelWithProjection", False),
    "clap, fused": (lambda folder: tiny.clap(folder, fused=True), "ClapAudioModelWithProjection", False),
    "clap, tower": (
        lambda folder: tiny.clap(folder, kind="ClapAudioModelWithProjection"), "ClapAudioModelWithProjection", False,
    ),
    "clap, bare tower": (lambda folder: tiny.clap(folder, kind="ClapAudioModel"), "ClapAudioModel", False),
    "ast": (lambda folder: tiny.ast(folder, headless=True), "ASTModel", False),
}  # fmt: skip


def clips(network: LoadedNetwork, *seconds: float) -> list[Clip]:
    rng = np.random.default_rng(1)
    waves = [rng.normal(0, 0.1, int(length * network.rate)).astype(np.float32) for length in seconds]
    return [Clip(f"{number}.wav", wave, network.rate) for number, wave in enumerate(waves)]


def record(network: LoadedNetwork, layers: Any, sounds: list[Clip], batch_size: int = 16) -> dict[str, NDArray[Any]]:
    parts = list(record_batches(network, layers, sounds, batch_size=batch_size))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def silent(model: nn.Module, x: Tensor) -> None:
    """A pass without logits."""
    model(x)


# --- which encoder is loaded, and that the length of other clips changes nothing


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_has_its_layers_no_head_and_no_classes(tmp_path: Path, family: str) -> None:
    make, architecture, apart = ENCODERS[family]
    network = load_network(make(tmp_path))
    assert network.architecture == architecture
    assert network.classes is None
    assert "head" not in {layer.kind for layer in network.layers}
    assert network.uniform_length is apart
    assert network.origin == str(tmp_path)
    names = [layer.name for layer in network.default_layers]
    assert names == PAPER if "clap" not in family else len(names) == 15
    with pytest.raises(ActivationError, match="gives no logits"):
        next(logits_batches(network, clips(network, 0.5)))


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_clip_gives_the_same_alone_and_among_others(tmp_path: Path, family: str, pooling: str) -> None:
    network = load_network(ENCODERS[family][0](tmp_path))
    sounds = clips(network, 1.0, 0.3, 0.02, 1.7, 2.5, 1.0)
    layers = network.select(["*"], pooling)
    together, alone = record(network, layers, sounds, 16), record(network, layers, sounds, 1)
    for name, values in together.items():
        np.testing.assert_allclose(values, alone[name], rtol=2e-3, atol=2e-4, err_msg=name)
        assert values.astype(np.float32).std(0).max() > 1e-3, f"{name} hears no difference"


@pytest.mark.parametrize("family", ["Data2VecAudio", "SEW", "Wav2Vec2Conformer", "Wav2Vec2Bert"])
def test_kin_whose_convolutions_hear_the_padding_are_kept_apart(tmp_path: Path, family: str) -> None:
    network = load_network(tiny.kin(tmp_path, family))
    assert network.uniform_length
    sounds = clips(network, 1.0, 0.3, 0.1, 1.7)
    together, alone = record(network, network.layers, sounds, 16), record(network, network.layers, sounds, 1)
    for name, values in together.items():
        np.testing.assert_allclose(values, alone[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_whisper_leaves_the_silence_it_adds_out(tmp_path: Path) -> None:
    network = load_network(tiny.whisper(tmp_path))
    sounds = clips(network, 0.4, 1.0)
    layer = network.layer("b01.ff_in")
    got = record(network, with_pooling([layer], "mean"), sounds)["b01.ff_in"]
    batch = network.prepare([clip.waveform for clip in sounds])
    with torch.inference_mode(), recording(network.model, {"it": layer.hook_path}) as outputs:
        assert network.forward(batch) is None
    frames = outputs["it"]
    assert frames.shape[1] == 50
    for clip, heard in enumerate((20, 50)):
        np.testing.assert_allclose(got[clip], frames[clip, :heard].mean(0).numpy(), rtol=1e-3, atol=1e-4)
    assert not np.allclose(got[0], frames[0].mean(0).numpy(), rtol=1e-2, atol=1e-3)


def test_whisper_is_its_encoder_alone(tmp_path: Path) -> None:
    from transformers import WhisperModel

    network = load_network(tiny.whisper(tmp_path))
    whole = WhisperModel.from_pretrained(tmp_path).encoder
    weights = network.model.state_dict()
    assert sorted(weights) == sorted(whole.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in whole.state_dict().items())
    assert network.n_parameters == sum(parameter.numel() for parameter in whole.parameters())


def test_old_keys_and_pickles_are_read(tmp_path: Path) -> None:
    for kind, folder in (("HubertModel", "a"), ("Wav2Vec2ForCTC", "b")):
        safe = load_network(tiny.speech(tmp_path / folder, kind))
        positions = safe.model.get_submodule("encoder.pos_conv_embed.conv")
        assert "parametrizations.weight.original0" in positions.state_dict()
        pickled = load_network(tiny.pickled(tmp_path / folder))
        assert pickled.revision == safe.revision
    published, own = load_network(tiny.ast(tmp_path / "c")), load_network(tiny.ast(tmp_path / "d", published=False))
    assert published.revision == own.revision
    assert published.classes == list(tiny.CLASSES)


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    tiny.pickled(tiny.speech(tmp_path, "HubertModel"))
    torch.save({"encoder.layer_norm.weight": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackendError, match="cannot be loaded as an audio network"):
        load_network(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- classifiers stay classifiers


def test_a_classifier_is_known_by_its_class_or_by_its_weights(tmp_path: Path) -> None:
    folder = tiny.speech(tmp_path / "a", "HubertForSequenceClassification", num_labels=3, classifier_proj_size=12)
    for network in (load_network(folder), load_network(tiny.told(folder, architectures=None))):
        assert network.architecture == "HubertForSequenceClassification"
        assert network.layer("head").n_units == 3
    pickled = load_network(tiny.pickled(folder))
    assert pickled.architecture == "HubertForSequenceClassification"
    bare = load_network(tiny.told(tiny.speech(tmp_path / "b", "HubertModel"), architectures=None))
    assert bare.architecture == "HubertModel"
    # names of classes in the configuration make no classifier
    labels = {"id2label": {"0": "dog", "1": "rain"}, "label2id": {"dog": 0, "rain": 1}}
    assert load_network(tiny.told(tiny.ast(tmp_path / "c", headless=True), **labels)).classes is None


def test_the_vector_that_only_training_uses_may_be_missing(tmp_path: Path) -> None:
    def without(tensors: dict[str, Tensor]) -> None:
        assert tensors.pop("wav2vec2.masked_spec_embed").numel() == 16

    folder = tiny.changed(tiny.speech(tmp_path, "Wav2Vec2ForCTC"), without)
    first, second = load_network(folder), load_network(folder)
    assert first.revision == second.revision
    assert not first.model.get_parameter("masked_spec_embed").any()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (
            lambda folder: tiny.speech(folder, "Wav2Vec2ForCTC"),
            "wav2vec2.encoder.layers.1.feed_forward.output_dense.weight",
        ),
        (tiny.whisper, "model.encoder.layers.0.fc1.bias"),
        (tiny.clap, "audio_model.audio_encoder.layers.1.blocks.2.output.dense.weight"),
        (lambda folder: tiny.ast(folder, headless=True), "encoder.layer.1.output.dense.bias"),
    ],
)
def test_a_missing_weight_is_named(tmp_path: Path, make: Made, key: str) -> None:
    def without(tensors: dict[str, Tensor]) -> None:
        del tensors[key]

    folder = tiny.changed(make(tmp_path), without)
    with pytest.raises(WeightsMissingError, match=r"lack 1 tensors, [\w.]+ among them"):
        load_network(folder)


def test_weights_of_a_larger_network_are_refused(tmp_path: Path) -> None:
    for make, key, settings in (
        (lambda folder: tiny.speech(folder, "HubertForCTC"), "hubert.encoder.layers.1", {"num_hidden_layers": 1}),
        (tiny.whisper, "layers.1", {"encoder_layers": 1}),
    ):
        folder = tiny.told(make(tmp_path / key), **settings)
        with pytest.raises(BackendError, match=rf"hold 1\d tensors .* no place for, {key}"):
            load_network(folder)


def test_a_decoder_alone_has_no_encoder(tmp_path: Path) -> None:
    def decoder(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if ".encoder." in key]:
            del tensors[key]

    folder = tiny.told(tiny.changed(tiny.whisper(tmp_path), decoder), architectures=["WhisperForCausalLM"])
    with pytest.raises(WeightsMissingError, match="promises a WhisperForCausalLM"):
        load_network(folder)


@pytest.mark.parametrize("model_type", ["bert", "clip", "no-such-network"])
def test_what_is_no_audio_network_is_sent_to_a_factory(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BackendError, match=r"andp networks add NAME FILE\.py:factory"):
        load_network(tmp_path)


# --- CLAP: windows and stages


def test_blocks_are_numbered_through_the_stages(tmp_path: Path) -> None:
    network = load_network(tiny.clap(tmp_path))
    kinds = ("attn_out", "ff_in", "ff_out")
    assert [layer.name for layer in network.default_layers] == [f"b{b:02d}.{k}" for b in range(5) for k in kinds]
    assert [layer.n_units for layer in network.default_layers] == [8, 32, 8] * 2 + [16, 64, 16] * 3
    assert network.layer("b02.ff_in").module_path == "audio_model.audio_encoder.layers.1.blocks.0.intermediate.dense"
    windowed = {layer.kind for layer in network.layers if layer.windowed}
    assert windowed == {"query", "key", "value", "attn_out"}
    others = [layer.name for layer in network.layers if layer.block is None]
    assert others == ["embed", "s00.downsample.reduction", "audio_projection.linear1", "audio_projection.linear2"]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_windows_of_a_clip_are_pooled_together(tmp_path: Path, pooling: str) -> None:
    network = load_network(tiny.clap(tmp_path))
    layer = network.layer("b01.attn_out")
    sounds = clips(network, 1.0, 0.4)
    got = record(network, with_pooling([layer], pooling), sounds)[layer.name]
    for clip, sound in enumerate(sounds):
        batch = network.prepare([sound.waveform])
        with torch.inference_mode(), recording(network.model, {"it": layer.hook_path}) as outputs:
            network.forward(batch)
        assert outputs["it"].shape == (16, 16, 8)  # 16 windows of 4 x 4 patches
        places = outputs["it"].flatten(0, 1)
        expected = places.mean(0) if pooling == "mean" else places.amax(0)
        np.testing.assert_allclose(got[clip], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_within_windows_there_is_no_first_position(tmp_path: Path) -> None:
    network = load_network(tiny.clap(tmp_path))
    with pytest.raises(ActivationError, match=r"b00\.query computes within windows, .* use the pooling mean or max"):
        network.select(["b*"], "first")
    assert [layer.pooling for layer in network.select(["b0*.ff_*"], "first")] == ["first"] * 10


def test_windows_that_hold_padding_are_left_out(tmp_path: Path) -> None:
    network = load_network(tiny.clap(tmp_path, window_size=5))  # 16 x 16 patches
    assert "b00.attn_out" not in {layer.name for layer in network.layers}
    assert "b00.ff_in" in {layer.name for layer in network.layers}
    path = "audio_model.audio_encoder.layers.0.blocks.0.attention.output.dense"
    assert network.left_out[path] == "its windows hold 400 positions of 256: padding, which no mask tells apart"


def test_time_before_clips_is_not_taken_for_windows() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out_proj = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.out_proj(x.transpose(0, 1)).transpose(0, 1))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.fc1, self.fc2 = Attention(), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.fc2(self.fc1(x + self.attention(x)).relu()))

    model = nn.Sequential(*[Block() for _ in range(2)]).eval()
    noise = torch.randn(1, 2 * PROBE_CLIPS, 4, generator=torch.Generator().manual_seed(0))
    found, left_out = discover_layers(model, lambda: silent(model, noise.expand(PROBE_CLIPS, -1, -1)), "mean")
    assert [layer.name for layer in found] == ["b00.ff_in", "b00.ff_out", "b01.ff_in", "b01.ff_out"]
    assert "is not [clips, ..., units]" in left_out["0.attention.out_proj"]


def test_experts_beside_attention_are_no_blocks_of_a_stage() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.ModuleDict({"out_proj": nn.Linear(4, 4)})
            self.experts = nn.ModuleList(
                nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)}) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn["out_proj"](x)
            return torch.stack([expert["fc2"](expert["fc1"](x).relu()) for expert in self.experts]).sum(0)

    model = nn.Sequential(Block(), Block()).eval()
    found, _ = discover_layers(model, lambda: silent(model, torch.randn(PROBE_CLIPS, 5, 4)), "mean")
    assert {layer.block for layer in found} == {0, 1}
    assert [layer.name for layer in found if layer.block == 0][:3] == ["b00.attn_out", "b00.ff_in", "b00.ff_out"]


# --- CLAP: clips longer than its window


def test_of_a_long_clip_the_middle_is_heard(tmp_path: Path) -> None:
    network = load_network(tiny.clap(tmp_path))
    (long,) = clips(network, 3.0)
    middle = Clip("middle", long.waveform[tiny.CLAP_RATE : 2 * tiny.CLAP_RATE], tiny.CLAP_RATE)
    got = record(network, network.default_layers, [long])
    again = record(network, network.default_layers, [middle])
    for name, values in got.items():
        np.testing.assert_array_equal(values, again[name])
    assert network.parameters["crop"] == "middle"


def test_of_a_long_clip_a_fused_tower_hears_the_middle_of_each_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import ClapFeatureExtractor

    network = load_network(tiny.clap(tmp_path, fused=True))
    stock = ClapFeatureExtractor.from_pretrained(tmp_path)
    waves = [clip.waveform for clip in clips(network, 2.7, 0.5, 1.0, 1.9)]
    mine = network.prepare(waves)
    assert mine["is_longer"].tolist() == [[True], [False], [False], [True]]
    np.random.seed(0)
    drawn = [np.random.get_state()[1][0]]  # type: ignore[index]
    again = network.prepare(waves)
    assert torch.equal(mine["input_features"], again["input_features"])
    # theirs, made to draw the middle of what it draws from
    monkeypatch.setattr(np.random, "choice", lambda among: among[len(among) // 2])
    theirs = stock(waves, sampling_rate=tiny.CLAP_RATE, return_tensors="pt")
    torch.testing.assert_close(mine["input_features"], theirs["input_features"], check_dtype=False)
    assert mine["is_longer"].tolist() == theirs["is_longer"].tolist()
    assert drawn == [np.random.get_state()[1][0]]  # type: ignore[index]


def test_no_short_clip_counts_as_longer_for_want_of_one(tmp_path: Path) -> None:
    network = load_network(tiny.clap(tmp_path, fused=True))
    window = tiny.CLAP_RATE
    lengths = (window // 2, window, window + 5, window + 32)  # up to a hop beyond, the spectrogram is as long
    batch = network.prepare([np.full(length, 0.1, np.float32) for length in lengths])
    assert batch["is_longer"].tolist() == [[False], [False], [False], [True]]
    assert not any(network.prepare([np.full(window // 3, 0.1, np.float32)] * 3)["is_longer"].flatten())


def test_fusion_is_computed_and_not_recorded(tmp_path: Path) -> None:
    network = load_network(tiny.clap(tmp_path, fused=True))
    (long,) = clips(network, 2.5)
    before = record(network, network.default_layers, [long])["b00.ff_in"]
    path = "audio_model.audio_encoder.patch_embed.mel_conv2d"
    assert network.left_out[path] == "its module is not called in the forward pass"
    with torch.no_grad():
        network.model.get_submodule(path).weight.zero_()
    assert (record(network, network.default_layers, [long])["b00.ff_in"] != before).any()


# --- layers by the paths of their modules

CNN = """
import numpy as np, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3)
        )
        self.embedding = nn.Linear(8, 5)

    def forward(self, x):
        return self.embedding(self.features(x).mean((2, 3)))

def prepare(waveforms):
    return torch.stack([torch.from_numpy(np.resize(w, (1, 20, 40))) for w in waveforms])

def build():
    return Net(), {"rate": 8000, "prepare": prepare, "forward": lambda module, batch: (module(batch), None)[1]}
"""


@pytest.fixture
def cnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedNetwork]:
    (tmp_path / "small_cnn.py").write_text(CNN)
    monkeypatch.syspath_prepend(tmp_path)
    yield load_network("small_cnn:build")
    sys.modules.pop("small_cnn", None)


def test_layers_are_chosen_by_module_path(cnn: LoadedNetwork, tmp_path: Path) -> None:
    assert [layer.name for layer in cnn.select(["features.3"])] == ["features.3"]
    assert [layer.module_path for layer in cnn.select(["features.*"])] == ["features.0", "features.3", "features.5"]
    network = load_network(tiny.whisper(tmp_path))
    assert [layer.name for layer in network.select(["layers.*.fc1"])] == ["b00.ff_in", "b01.ff_in"]
    assert [layer.name for layer in network.select(["layers.1.self_attn.*_proj", "conv2"])] == [
        "conv2", "b01.key", "b01.value", "b01.query", "b01.attn_out",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("features.4", r"'features\.4' of '.*' is a ReLU, and layers are linear or convolutional; there are features"),
        ("features", r"is a Sequential, .* for the 3 in it: 'features\.\*'"),
        ("featres.3", r"no layer of '.*' matches 'featres\.3'; there are features\.3.*networks show"),
    ],
)
def test_a_pattern_without_a_layer_says_what_there_is(cnn: LoadedNetwork, pattern: str, words: str) -> None:
    with pytest.raises(NotFoundError, match=words):
        cnn.select([pattern])


def test_a_layer_that_cannot_be_recorded_says_why(tmp_path: Path) -> None:
    network = load_network(tiny.speech(tmp_path, "WavLMModel"))
    with pytest.raises(NotFoundError, match=r"q_proj' of '.*' cannot be recorded: its module is not called"):
        network.select(["encoder.layers.*.attention.q_proj"])


# --- rates


@pytest.mark.parametrize(("make", "rate"), [(tiny.whisper, 16_000), (tiny.clap, 8_000)])
def test_a_clip_of_another_rate_never_reaches_the_network(tmp_path: Path, make: Made, rate: int) -> None:
    network = load_network(make(tmp_path))
    assert network.rate == rate
    wrong = Clip("a.wav", np.zeros(44_100, np.float32), 44_100)
    with pytest.raises(ActivationError, match=rf"'a\.wav' is at 44100 Hz .* takes {rate} Hz"):
        record(network, network.default_layers, [wrong])


# --- the hub

LOAD = """
import sys
from and_platform.backends.networks import load_network
from and_platform.errors import AndpError
for source in sys.argv[1:]:
    try:
        network = load_network(source)
        print(network.origin, network.architecture, network.revision)
    except AndpError as exc:
        print(exc)
"""


def load_apart(*sources: str, cache: Path, **environment: str) -> list[str]:
    """In a process of its own, since the hub's library reads its environment once; a line for each source."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    told = {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOAD), *sources], env=inherited | told, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    assert "Retrying" not in result.stderr
    return result.stdout.splitlines()


def test_a_network_of_the_hub_tells_its_commit_and_can_be_pinned(tmp_path: Path) -> None:
    folder, cache, name = tiny.whisper(tmp_path / "whisper"), tmp_path / "cache", "openai/whisper-tiny"
    expected = f"{name}@{hub.COMMIT} WhisperEncoder {load_network(folder).revision}"
    with hub.serving({name: folder}) as (address, asked):
        first, tagged, gone = load_apart(name, f"{name}@v1", f"{name}@no-branch", cache=cache, HF_ENDPOINT=address)
        n_asked = len(asked)
    assert first == tagged == expected
    assert f"hf download {name}" in gone
    # from the cache
    offline = load_apart(name, f"{name}@{hub.COMMIT}", cache=cache, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert offline == [expected, expected]
    assert len(asked) == n_asked


def test_without_a_network_a_wrong_id_says_what_to_download(tmp_path: Path) -> None:
    (said,) = load_apart(
        "facebok/hubert-base", cache=tmp_path, HF_ENDPOINT="http://127.0.0.1:9"
    )  # nothing listens there
    assert "hf download facebok/hubert-base --local-dir DIR" in said
