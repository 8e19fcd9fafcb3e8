"""Tiny BEATs of random weights, written in the published layout: `{"cfg": ..., "model": ..., "label_dict": ...}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from and_platform.backends.beats import Beats, BeatsConfig

# the last two keys shape nothing here
CFG: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05,
    "dropout_input": 0.0,
    "layer_norm_first": False,
    "conv_bias": False,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 80,
    "gru_rel_pos": True,
    "deep_norm": True,
    "input_patch_size": 16,
    "layer_wise_gradient_decay_ratio": 0.6,
    "embed_dim": 24,
    "mask_prob": 0.75,
    "fbank_mean": 15.41663,
}
MIDS = ["/m/0bt9lr", "/m/06mb1", "/m/07pbtc8", "/m/0dgw9r", "/t/dd00003"]


def random_beats(config: BeatsConfig, seed: int = 0, spread: float = 0.2) -> Beats:
    """In evaluation mode, with weights that let every part of the network be heard."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Beats(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += spread * torch.randn_like(parameter)
    return model.eval()


def write_beats(path: Path, classes: list[str] | None = None, seed: int = 0, **cfg: Any) -> Path:
    """A checkpoint file: pretrained without `classes`, fine-tuned with them. Returns the path."""
    told = CFG | cfg
    if classes is not None:
        told |= {"finetuned_model": True, "predictor_dropout": 0.0, "predictor_class": len(classes)}
    model = random_beats(BeatsConfig.of(told), seed)
    content: dict[str, Any] = {"cfg": told, "model": model.state_dict()}
    if classes is not None:
        content["label_dict"] = dict(enumerate(classes))
    torch.save(content, path)
    return path
