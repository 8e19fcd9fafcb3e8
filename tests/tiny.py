"""A tiny data set of tones and noises and a tiny network, both on disk: everything real, nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

if TYPE_CHECKING:
    from and_platform.backends.networks.training import TrainItem

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


def network(folder: Path, seed: int = 0, blocks: int = 1, **options: Any) -> Path:
    """An untrained AST, of one block unless told otherwise, as `transformers` saves it; options go to its configuration."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(seed)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=blocks, num_attention_heads=2, intermediate_size=24, max_length=32,
        num_mel_bins=32, frequency_stride=16, time_stride=16, id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)}, **options,
    )  # fmt: skip
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=32, num_mel_bins=32, mean=-4.0, std=4.0).save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """An untrained BERT of two layers that knows a few words, as `transformers` saves it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "the",
        "dog",
        "barks",
        "loudly",
        "rain",
        "falls",
        "on",
        "metal",
        "roof",
        "siren",
        "low",
        "hum",
    ]
    (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=128,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def labelled() -> list[TrainItem]:
    """Hums and hisses, 5 folds of 4 each, 0.2 to 0.9 s: shorter and longer than the 0.64 s that are heard."""
    from and_platform.backends.networks.training import TrainItem

    rng = np.random.default_rng(0)
    made = []
    for i in range(40):
        time = np.arange(int(rng.uniform(0.2, 0.9) * RATE)) / RATE
        hum = np.sin(2 * np.pi * rng.uniform(150, 300) * time)
        sound = hum if i % 2 else rng.normal(0, 0.5, time.size)
        made.append(TrainItem((0.3 * sound).astype(np.float32), "hum" if i % 2 else "hiss", i // 2 % 5 + 1, f"{i}.wav"))
    return made
