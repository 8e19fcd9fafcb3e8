"""Our hooks against the hidden states of `transformers`: the comparison of scripts/equality, on tiny checkpoints."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from and_platform.backends.networks import load_network
from tests import checkpoints_networks as tiny

SCRIPT = Path(__file__).parents[2] / "scripts" / "equality" / "ast_hidden_states.py"
FAMILIES: dict[str, tuple[Callable[[Path], Path], tuple[float, ...]]] = {
    "ast": (tiny.ast, (0.5, 0.2)),
    "ast without a head": (lambda folder: tiny.ast(folder, headless=True), (0.5, 0.2)),
    "hubert": (lambda folder: tiny.speech(folder, "HubertModel"), (0.3, 0.3)),
    "wav2vec2": (lambda folder: tiny.speech(folder, "Wav2Vec2ForPreTraining"), (0.3, 0.3)),
    "wavlm": (lambda folder: tiny.speech(folder, "WavLMModel"), (0.3, 0.3)),
    "hubert, large": (lambda folder: tiny.speech(folder, "HubertForCTC", large=True), (0.5, 0.2)),
    "wav2vec2, large": (lambda folder: tiny.speech(folder, "Wav2Vec2ForCTC", large=True), (0.5, 0.2)),
    "wavlm, large": (lambda folder: tiny.speech(folder, "WavLMModel", large=True), (0.5, 0.2)),
    "whisper": (tiny.whisper, (1.0, 0.4)),
    "clap": (tiny.clap, (1.0, 0.3)),
    "clap, fused": (lambda folder: tiny.clap(folder, fused=True), (2.5, 0.3)),
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ast_hidden_states", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", [None, "max"])
def test_hooks_read_what_makes_the_hidden_states(
    script: ModuleType, tmp_path: Path, family: str, pooling: str | None
) -> None:
    make, seconds = FAMILIES[family]
    figures = script.compare(load_network(make(tmp_path)), seconds, pooling)
    assert figures["largest"] > 0.3
    for name in ("ff_in", "ff_out", "residual"):
        assert figures[name] <= 1e-5 * figures["largest"], name
    assert figures["recorded"] <= 2**-11 + 1e-5, "one rounding to half precision"


def test_the_comparison_notices_another_layers_values(script: ModuleType, tmp_path: Path) -> None:
    network = load_network(tiny.clap(tmp_path))
    with torch.no_grad():
        block = network.model.get_submodule("audio_model.audio_encoder.layers.0.blocks.1")
        block.attention.output.register_forward_hook(lambda module, inputs, output: output.roll(1, 0))
    assert script.compare(network, (1.0, 0.3))["residual"] > 1e-3
