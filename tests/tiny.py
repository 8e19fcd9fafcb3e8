"""A tiny data set of tones and noises and a tiny network, both on disk: everything real, nothing slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
CLASSES = ("high", "low", "noise")


def sounds(folder: Path, per_class: int = 6) -> Path:
    """Clips of half a second in folders `high`, `low` and `noise`."""
    rng = np.random.default_rng(0)
    t = np.arange(RATE // 2) / RATE
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            if label == "noise":
                wave = rng.normal(0, 0.05 * (i + 1), t.size)
            else:
                wave = 0.1 * (i + 1) * np.sin(2 * np.pi * (2000 if label == "high" else 150) * (1 + i / 10) * t)
            soundfile.write(folder / label / f"{label}-{i}.wav", np.clip(wave, -1, 1), RATE)
    return folder


def network(folder: Path, seed: int = 0) -> Path:
    """An untrained AST of one block, as `transformers` saves it."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(seed)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_length=32,
        num_mel_bins=32, frequency_stride=16, time_stride=16, id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=32, num_mel_bins=32, mean=-4.0, std=4.0).save_pretrained(folder)
    return folder
