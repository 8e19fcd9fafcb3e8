"""Networks without a classifier, from adding them to a report; and rates that differ from the sounds'."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from and_platform import api
from and_platform.errors import ActivationError, InputError, NotFoundError
from and_platform.services import networks, record
from tests import checkpoints_networks, tiny

RATE = 44_100


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny.sounds(folder / "tones", 4)
    checkpoints_networks.clap(folder / "clap")
    checkpoints_networks.speech(folder / "hubert", "HubertModel")
    return folder


@pytest.fixture
def andp_(engine: sa.Engine, material: Path) -> api.Platform:
    platform = api.Platform(engine)
    platform.ingest(material / "tones", processes=1)
    return platform


def test_an_encoder_is_dissected_like_any_other(andp_: api.Platform, material: Path, tmp_path: Path) -> None:
    network = andp_.add_network("tower", material / "clap")
    assert network.classes == []
    assert network.sample_rate == checkpoints_networks.CLAP_RATE
    andp_.dissect("tower", dataset="tones", layers=["b0[24].*", "*.downsample.reduction"])
    told = andp_.sql(
        "SELECT layer, count(*) AS n, count(closed_db) AS named FROM current_neuron_descriptions GROUP BY 1"
    )
    per_block = {"query": 16, "key": 16, "value": 16, "attn_out": 16, "ff_in": 64, "ff_out": 16}
    expected = {f"b{block:02d}.{kind}": n for block in (2, 4) for kind, n in per_block.items()}
    assert dict(zip(told.layer, told.n, strict=True)) == expected | {"s00.downsample.reduction": 16}
    assert (told.n == told.named).all()

    # what is stored is the mean over all windows of a clip
    from and_platform.backends import audio
    from and_platform.backends.networks import load_network
    from and_platform.backends.networks.hooks import recording

    values, paths, _ = andp_.activations("tower", "b02.attn_out")
    loaded = load_network(material / "clap")
    batch = loaded.prepare([audio.load(material / "tones" / path, loaded.rate)[0] for path in paths])
    with recording(loaded.model, {"it": loaded.layer("b02.attn_out").hook_path}) as outputs:
        assert loaded.forward(batch) is None
    means = outputs["it"].detach().numpy().reshape(len(paths), -1, 16).mean(1)
    np.testing.assert_allclose(values.T, means, rtol=1e-3, atol=1e-3)

    assert len(andp_.neuron("tower", "b04.ff_in#3").exemplars) == 10
    for ask in (andp_.last_layer, lambda name: andp_.unlearn(name, "noise")):
        with pytest.raises(InputError, match="'tower' has no class names"):
            ask("tower")
    page = andp_.report("tower", tmp_path / "report", stored_only=True).read_text("utf-8")
    assert "has no class names" in page and "b04.ff_in" in page


def test_layers_are_dissected_by_module_path_and_within_windows_not_by_the_first(
    andp_: api.Platform, material: Path
) -> None:
    andp_.add_network("hubert", material / "hubert")
    andp_.dissect("hubert", dataset="tones", layers=["encoder.layers.*.output_dense"])
    assert set(andp_.sql("SELECT DISTINCT layer FROM current_neuron_descriptions").layer) == {
        "b00.ff_out",
        "b01.ff_out",
    }
    with pytest.raises(NotFoundError, match=r"'encoder\.layers\.0' .* is a HubertEncoderLayer"):
        andp_.dissect("hubert", dataset="tones", layers=["encoder.layers.0"])
    andp_.add_network("tower", material / "clap")
    with pytest.raises(ActivationError, match="computes within windows"):
        andp_.dissect("tower", dataset="tones", pooling="first")


HEARS = """
import numpy as np, torch
from torch import nn

class Copy(nn.Module):
    def __init__(self):
        super().__init__()
        self.copy = nn.Linear(2, 2)
        with torch.no_grad():
            self.copy.weight.copy_(torch.eye(2))
            self.copy.bias.zero_()

    def forward(self, x):
        return self.copy(x)

def made(rate):
    def prepare(waveforms):  # seconds, and the strongest frequency in kHz, if the samples come at this rate
        peaks = [np.abs(np.fft.rfft(w)).argmax() * rate / len(w) / 1000 for w in waveforms]
        return torch.tensor([[len(w) / rate, peak] for w, peak in zip(waveforms, peaks)], dtype=torch.float32)
    return Copy(), {"rate": rate, "prepare": prepare, "forward": lambda module, batch: (module(batch), None)[1]}

def low():
    return made(16000)

def same():
    return made(44100)

def high():
    return made(48000)
"""


@pytest.mark.parametrize("factory", ["low", "same", "high"])
def test_sounds_of_another_rate_are_resampled(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    (tmp_path / "hears.py").write_text(HEARS)
    monkeypatch.syspath_prepend(tmp_path)
    tones = (1000, 3000, 5000)
    (tmp_path / "tones").mkdir()
    time = np.arange(RATE) / RATE
    for tone in tones:
        soundfile.write(tmp_path / "tones" / f"{tone}.wav", 0.5 * np.sin(2 * np.pi * tone * time), RATE)
    andp_ = api.Platform(engine)
    andp_.ingest(tmp_path / "tones", processes=1)
    try:
        network = andp_.add_network("hears", f"hears:{factory}")
        record.record(engine, network, networks.load(network), "tones")
    finally:
        sys.modules.pop("hears", None)
    values, paths, _ = andp_.activations("hears", "copy")
    assert paths == [f"{tone}.wav" for tone in tones]
    np.testing.assert_allclose(values[0], 1.0, rtol=1e-3)
    np.testing.assert_allclose(values[1], np.array(tones) / 1000, rtol=1e-3)
