"""A tiny network learns sounds that differ, the same way each time, and is saved as `transformers` loads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from and_platform.backends.networks import load_network
from and_platform.backends.networks.pretraining import PretrainConfig, UnlabelledItem, load_pretrained, pretrain_ast
from and_platform.backends.networks.spectrograms import Spectrograms
from and_platform.backends.networks.training import RECIPES, EpochMetrics, TrainConfig, train_ast
from and_platform.errors import InputError, WeightsMissingError
from tests import tiny

CONFIG = TrainConfig(epochs=12, batch_size=8, hidden=24, layers=1, heads=2, frames=64, mel_bins=32, average=0.9)
HEAD = replace(RECIPES["frozen"].config, epochs=40, batch_size=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained on the clips outside fold 1, a little."""
    directory = tmp_path_factory.mktemp("encoder")
    config = PretrainConfig(epochs=4, batch_size=8, hidden=24, layers=1, heads=2, frames=64, mel_bins=32)
    items = [UnlabelledItem(item.waveform, item.fold) for item in tiny.labelled()]
    pretrain_ast(items, 1, directory, config, provenance={"dataset": "tones"})
    return directory


def test_it_learns_repeats_itself_and_loads_again(tmp_path: Path) -> None:
    seen: list[EpochMetrics] = []
    state = torch.get_rng_state()
    first = train_ast(
        tiny.labelled(), 1, tmp_path / "a", CONFIG, provenance={"manifest_sha256": "abc"}, progress=seen.append
    )
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers must not be touched"
    torch.rand(7)
    second = train_ast(tiny.labelled(), 1, tmp_path / "b", CONFIG)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    third = train_ast(tiny.labelled(), 1, tmp_path / "c", TrainConfig(**{**CONFIG.__dict__, "seed": 1, "epochs": 1}))
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
    loud = [i._replace(waveform=i.waveform * 3) if i.fold == 1 else i for i in tiny.labelled()]
    for name, sounds in (("a", tiny.labelled()), ("b", loud)):
        train_ast(sounds, 1, tmp_path / name, config)
    for file in ("model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    sounds = tiny.labelled()
    with pytest.raises(InputError, match=r"no clip is in fold 9.*folds 1, 2, 3, 4, 5"):
        train_ast(sounds, 9, tmp_path, CONFIG)
    with pytest.raises(InputError, match="at least 2"):
        train_ast([i for i in sounds if i.label == "hum"], 1, tmp_path, CONFIG)
    only = [i._replace(label="click") if i.fold == 1 else i for i in sounds]
    with pytest.raises(InputError, match="'click' is only in the held-out fold 1"):
        train_ast(only, 1, tmp_path, CONFIG)
    assert not list(tmp_path.iterdir())


def test_frozen_trains_the_last_linear_layer_alone(tmp_path: Path, encoder: Path) -> None:
    seen: list[EpochMetrics] = []
    results = [
        train_ast(tiny.labelled(), 1, tmp_path / name, HEAD, init=encoder, trainable="head", progress=seen.append)
        for name in "ab"
    ]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    before, after = load_file(encoder / "model.safetensors"), load_file(tmp_path / "a" / "model.safetensors")
    assert before, "nothing to compare"
    for key, value in before.items():
        assert torch.equal(value, after[f"audio_spectrogram_transformer.{key}"]), key
    rest = {key for key in after if key.removeprefix("audio_spectrogram_transformer.") not in before}
    assert rest == {f"classifier.{key}" for key in ("layernorm.weight", "layernorm.bias", "dense.weight", "dense.bias")}
    assert (after["classifier.layernorm.weight"] == 1).all() and not after["classifier.layernorm.bias"].any()
    assert (encoder / "preprocessor_config.json").read_bytes() == (
        tmp_path / "a" / "preprocessor_config.json"
    ).read_bytes()

    assert results[0].test_accuracy >= 0.9
    assert results[0].test_accuracy == results[0].epochs[-1].test_accuracy, (
        "taking up the standardisation changes nothing"
    )
    assert len(seen) == 80 and seen[39].loss < seen[0].loss
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["trainable"] == "head" and record["recipe"]["hidden"] == 24 and record["recipe"]["frames"] == 64
    assert record["pretrained"]["weights_sha256"] == load_pretrained(encoder).sha256
    assert record["pretrained"]["recipe"]["seed"] == 0 and record["pretrained"]["held_out_fold"] == 1


def test_finetuned_starts_from_the_encoder_and_changes_it(tmp_path: Path, encoder: Path) -> None:
    # a rate so small that float16 cannot tell: what is saved is what it began with
    still = replace(CONFIG, epochs=1, learning_rate=1e-12)
    for name, config, init in (
        ("still", still, encoder),
        ("a", CONFIG, encoder),
        ("b", CONFIG, encoder),
        ("c", CONFIG, None),
    ):
        train_ast(tiny.labelled(), 1, tmp_path / name, config, init=init)
    before = load_file(encoder / "model.safetensors")
    saved = {name: load_file(tmp_path / name / "model.safetensors") for name in ("still", "a")}
    for key, value in before.items():
        assert torch.equal(value, saved["still"][f"audio_spectrogram_transformer.{key}"]), key
        assert not torch.equal(value, saved["a"][f"audio_spectrogram_transformer.{key}"]), key
    files = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["trainable"] == "all" and record["pretrained"]["location"] == str(encoder)
    assert "pretrained" not in json.loads((tmp_path / "c" / "training.json").read_text())


def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path, encoder: Path) -> None:
    sounds = tiny.labelled()
    with pytest.raises(InputError, match="has heard the clips of fold 2"):
        train_ast(sounds, 2, tmp_path / "a", CONFIG, init=encoder, provenance={"dataset": "tones"})
    other = train_ast(
        sounds, 2, tmp_path / "b", replace(CONFIG, epochs=1), init=encoder, provenance={"dataset": "birds"}
    )
    assert other.n_test == 8, "a fold of another data set says nothing of this one's"
    with pytest.raises(InputError, match="has to be a pretrained one"):
        train_ast(sounds, 1, tmp_path / "a", HEAD, trainable="head")
    with pytest.raises(InputError, match="set to 0: mixup, crop"):
        train_ast(sounds, 1, tmp_path / "a", CONFIG, init=encoder, trainable="head")
    with pytest.raises(WeightsMissingError, match="no pretrained encoder"):
        train_ast(sounds, 1, tmp_path / "a", CONFIG, init=tmp_path)
    assert not (tmp_path / "a").exists()


def test_the_random_numbers_of_a_batch_do_not_shift() -> None:
    """The weights of the sample network depend on what is drawn, and in which order."""
    config = TrainConfig(mixup=1.0)
    clips = Spectrograms(torch.zeros(4, 300, config.mel_bins), torch.tensor([300, 200, 192, 50]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        batch = clips.varied(torch.tensor([2, 0, 3, 1]), config)
        after = float(torch.rand(()))
    assert batch.partner is not None and batch.share is not None
    assert batch.partner.tolist() == [1, 3, 2, 0] and after == pytest.approx(0.7713170, abs=1e-6)
