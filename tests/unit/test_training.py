"""A tiny network learns sounds that differ, the same way each time, and is saved as `transformers` loads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from and_platform.backends.networks import load_network
from and_platform.backends.networks.training import RATE, EpochMetrics, TrainConfig, TrainItem, train_ast
from and_platform.errors import InputError

CONFIG = TrainConfig(epochs=12, batch_size=8, hidden=24, layers=1, heads=2, frames=64, mel_bins=32, average=0.9)


def items() -> list[TrainItem]:
    """Hums and hisses, 5 folds of 4 each, 0.2 to 0.9 s: shorter and longer than the 0.64 s that are heard."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(40):
        time = np.arange(int(rng.uniform(0.2, 0.9) * RATE)) / RATE
        hum = np.sin(2 * np.pi * rng.uniform(150, 300) * time)
        sound = hum if i % 2 else rng.normal(0, 0.5, time.size)
        made.append(TrainItem((0.3 * sound).astype(np.float32), "hum" if i % 2 else "hiss", i // 2 % 5 + 1, f"{i}.wav"))
    return made


def test_it_learns_repeats_itself_and_loads_again(tmp_path: Path) -> None:
    seen: list[EpochMetrics] = []
    state = torch.get_rng_state()
    first = train_ast(items(), 1, tmp_path / "a", CONFIG, provenance={"manifest_sha256": "abc"}, progress=seen.append)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers must not be touched"
    torch.rand(7)
    second = train_ast(items(), 1, tmp_path / "b", CONFIG)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    third = train_ast(items(), 1, tmp_path / "c", TrainConfig(**{**CONFIG.__dict__, "seed": 1, "epochs": 1}))
    assert (tmp_path / "c" / "model.safetensors").read_bytes() != weights[0]
    assert third.classes == first.classes == ["hiss", "hum"]

    assert first.test_accuracy >= 0.9
    assert (first.n_train, first.n_test) == (32, 8)
    assert first.confusion.sum() == 8 and first.confusion.shape == (2, 2)
    assert first.test_accuracy == np.trace(first.confusion) / 8 == second.test_accuracy
    assert [m.epoch for m in seen] == list(range(1, 13)) and seen == first.epochs
    assert seen[-1].loss < seen[0].loss

    network = load_network(tmp_path / "a")
    assert network.classes == ["hiss", "hum"]
    assert [layer.name for layer in network.default_layers] == ["b00.attn_out", "b00.ff_in", "b00.ff_out", "head"]
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["held_out_fold"] == 1 and record["train_folds"] == [2, 3, 4, 5]
    assert record["recipe"]["seed"] == 0 and record["manifest_sha256"] == "abc"
    assert record["test_accuracy"] == pytest.approx(first.test_accuracy, abs=1e-4)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["id2label"] == {"0": "hiss", "1": "hum"}


def test_the_held_out_fold_is_never_seen(tmp_path: Path) -> None:
    config = TrainConfig(**{**CONFIG.__dict__, "epochs": 1})
    loud = [i._replace(waveform=i.waveform * 3) if i.fold == 1 else i for i in items()]
    for name, sounds in (("a", items()), ("b", loud)):
        train_ast(sounds, 1, tmp_path / name, config)
    for file in ("model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    sounds = items()
    with pytest.raises(InputError, match=r"no clip is in fold 9.*folds 1, 2, 3, 4, 5"):
        train_ast(sounds, 9, tmp_path, CONFIG)
    with pytest.raises(InputError, match="at least 2"):
        train_ast([i for i in sounds if i.label == "hum"], 1, tmp_path, CONFIG)
    only = [i._replace(label="click") if i.fold == 1 else i for i in sounds]
    with pytest.raises(InputError, match="'click' is only in the held-out fold 1"):
        train_ast(only, 1, tmp_path, CONFIG)
    assert not list(tmp_path.iterdir())
