"""A tiny encoder learns what sounds are like without being told what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTModel

from and_platform.backends.networks.pretraining import (
    PretrainConfig,
    PretrainMetrics,
    UnlabelledItem,
    choose,
    load_pretrained,
    patches,
    pretrain_ast,
)
from and_platform.errors import InputError, WeightsMissingError
from tests import tiny

CONFIG = PretrainConfig(epochs=6, batch_size=8, hidden=24, layers=1, heads=2, frames=64, mel_bins=32)


def items() -> list[UnlabelledItem]:
    return [UnlabelledItem(item.waveform, item.fold, item.key) for item in tiny.labelled()]


def test_it_learns_repeats_itself_and_loads_again(tmp_path: Path) -> None:
    seen: list[PretrainMetrics] = []
    state = torch.get_rng_state()
    first = pretrain_ast(items(), 1, tmp_path / "a", CONFIG, provenance={"dataset": "tones"}, progress=seen.append)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers must not be touched"
    torch.rand(7)
    second = pretrain_ast(items(), 1, tmp_path / "b", CONFIG)
    third = pretrain_ast(items(), 1, tmp_path / "c", replace(CONFIG, seed=1, epochs=1))
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]
    assert first.sha256 == second.sha256 != third.sha256

    assert first.n_clips == 32 and [m.epoch for m in seen] == [1, 2, 3, 4, 5, 6] and seen == first.epochs
    assert seen[-1].patch_loss < seen[0].patch_loss and seen[-1].summary_loss < seen[0].summary_loss

    record = json.loads((tmp_path / "a" / "pretraining.json").read_text())
    assert record["held_out_fold"] == 1 and record["folds"] == [2, 3, 4, 5] and record["dataset"] == "tones"
    assert record["recipe"]["mask"] == CONFIG.mask and len(record["patch_loss"]) == 6
    loaded = load_pretrained(tmp_path / "a")
    assert loaded.sha256 == first.sha256 and loaded.record == record
    assert loaded.extractor.do_normalize and loaded.extractor.max_length == 64
    assert {p.dtype for p in loaded.encoder.parameters()} == {torch.float32}
    saved = json.loads((tmp_path / "a" / "config.json").read_text())
    assert saved["dtype"] == "float16" and "audio spectrogram" not in saved.get("id2label", {})


def test_the_held_out_fold_is_never_heard(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    loud = [item._replace(waveform=item.waveform * 3) if item.fold == 1 else item for item in items()]
    absent = [item for item in items() if item.fold != 1]
    for name, sounds in (("a", items()), ("b", loud), ("c", absent)):
        pretrain_ast(sounds, 1, tmp_path / name, config)
    for file in ("model.safetensors", "preprocessor_config.json"):
        assert len({(tmp_path / name / file).read_bytes() for name in "abc"}) == 1


def test_there_is_nowhere_to_put_a_label() -> None:
    assert UnlabelledItem._fields == ("waveform", "fold", "key")


def test_both_decoders_teach_the_encoder(tmp_path: Path) -> None:
    """Without the second, the tokens that a classifier reads learn from the patches alone."""
    config = replace(CONFIG, epochs=2)
    both, one = (
        pretrain_ast(items(), 1, tmp_path / n, replace(config, summary=w)) for n, w in (("a", 1.0), ("b", 0.0))
    )
    assert both.sha256 != one.sha256
    assert both.epochs[-1].summary_loss < one.epochs[-1].summary_loss


def test_patches_are_in_the_order_of_the_encoders() -> None:
    config = ASTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_length=48, num_mel_bins=32,
        frequency_stride=16, time_stride=16,
    )  # fmt: skip
    embed = ASTModel(config).embeddings.patch_embeddings
    x = torch.randn(2, 48, 32)
    by_hand = patches(x) @ embed.projection.weight.flatten(1).T + embed.projection.bias
    assert torch.allclose(by_hand, embed(x), atol=1e-5)


def test_only_patches_with_sound_are_hidden() -> None:
    heard = torch.zeros(3, 10, dtype=torch.bool)
    heard[0], heard[1, :5], heard[2, 7] = True, True, True
    hidden = choose(heard, 0.6)
    assert hidden.sum(1).tolist() == [6, 3, 1]
    assert not (hidden & ~heard).any()
    assert len({tuple(choose(heard, 0.6)[0].tolist()) for _ in range(20)}) > 1


def test_what_cannot_be_pretrained_or_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clip is outside fold 1"):
        pretrain_ast([item for item in items() if item.fold == 1], 1, tmp_path, CONFIG)
    with pytest.raises(InputError, match="stride of 16"):
        pretrain_ast(items(), 1, tmp_path, replace(CONFIG, stride=10))
    with pytest.raises(WeightsMissingError, match=r"pretraining\.json is missing"):
        load_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    pretrain_ast(items(), 1, tmp_path, replace(CONFIG, epochs=1))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(np.frombuffer(weights.read_bytes(), np.uint8)[::-1].tobytes())
    with pytest.raises(InputError, match="not those"):
        load_pretrained(tmp_path)
