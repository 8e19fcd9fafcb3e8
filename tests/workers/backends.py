"""Backends that are loaded at once and mean nothing, so that what is measured and killed is the platform's own work.

A network of bands of sound, an encoder that counts letters, and a captioner that dies or raises at clips that a file
names. Processes find them once `install` has made a distribution of them and its folder is on PYTHONPATH.
"""

from __future__ import annotations

import os
import re
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from and_platform.backends.base import BackendRecipe, Clip, Floats

if TYPE_CHECKING:
    from torch import nn

RATE = 16_000
BANDS = 32
CLASSES = ("high", "low", "noise")
NETWORK = "tests.workers.backends:network"


def install(folder: Path) -> Path:
    """Make the distribution whose entry points these backends are; returns the folder for PYTHONPATH."""
    info = folder / "andp_test_backends-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: andp-test-backends\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[and_platform.backends]\nencoder.letters = {__name__}:Letters\ncaptioner.fragile = {__name__}:Fragile\n"
    )
    return folder


def sounds(folder: Path, n_clips: int, seed: int = 0) -> Path:
    """Clips of 0.3 s in folders `high`, `low` and `noise`."""
    rng, t = np.random.default_rng(seed), np.arange(int(0.3 * RATE)) / RATE
    for number in range(n_clips):
        label = CLASSES[number % 3]
        pitch = rng.uniform(1500, 3000) if label == "high" else rng.uniform(80, 300)
        wave = rng.normal(0, 1, t.size) if label == "noise" else np.sin(2 * np.pi * pitch * t)
        (folder / label).mkdir(parents=True, exist_ok=True)
        loud = rng.uniform(0.02, 0.9) * np.exp(-t * rng.choice([0, 0, 8, 20]))
        soundfile.write(folder / label / f"{number}.wav", np.clip(loud * wave, -1, 1), RATE)
    return folder


# ---------------------------------------------------------------------- the network


def network(hidden: int = 24) -> tuple[nn.Module, dict[str, Any]]:
    """Two layers of linear units and a head, over the loudness of bands."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(BANDS, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, len(CLASSES)))
    return layers, {
        "rate": RATE,
        "classes": list(CLASSES),
        "prepare": loudness,
        "pooling": "mean",
        "default_layers": ["*"],
    }


def wide_network() -> tuple[nn.Module, dict[str, Any]]:
    """The same with 1,000 units a layer."""
    return network(1000)


def network_in_blocks() -> tuple[nn.Module, dict[str, Any]]:
    """Two blocks of feed-forward layers and a head, over the same."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ff_in, self.ff_out = nn.Linear(BANDS, 16), nn.Linear(16, BANDS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.as_tensor(self.ff_out(torch.relu(self.ff_in(x))))

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block()])
            self.head = nn.Linear(BANDS, len(CLASSES))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return torch.as_tensor(self.head(x))

    torch.manual_seed(0)
    _, info = network()
    return Blocks(), info


def loudness(waveforms: list[Floats]) -> Any:
    """Log of the loudness [clips, BANDS]."""
    import torch

    spectra = [np.abs(np.fft.rfft(np.resize(wave, 2048))) for wave in waveforms]
    bands = [[part.mean() for part in np.array_split(spectrum, BANDS)] for spectrum in spectra]
    return torch.log1p(torch.tensor(np.array(bands), dtype=torch.float32))


# ---------------------------------------------------------------------- the encoder and the captioner


class Letters:
    """Text as the letters of its words, three at a time: texts with the same words are near each other."""

    dim = 48
    scale = 20.0
    recipe = BackendRecipe("letters", "1")

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]."""
        found = np.full((len(texts), self.dim), 0.01, np.float32)
        for row, text in zip(found, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                for start in range(len(word)):
                    row[zlib.crc32(word[start : start + 3].encode()) % self.dim] += 1
        unit: Floats = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit


class Fragile:
    """Says how loud a clip is; `fragile:FOLDER`. Files of the folder name clips that are too much for it.

    `kills`: it kills its process. `breaks`: it raises. `waits`: it does nothing until they are not named any more. And
    `ponders` says how many seconds each clip takes.
    """

    rate = None
    batch_size = 4
    recipe = BackendRecipe("fragile", "1")

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def _names(self, file: str) -> list[str]:
        path = self._folder / file
        return path.read_text().split() if path.exists() else []

    def caption_batch(self, clips: Sequence[Clip]) -> list[str | Exception]:
        """One sentence per clip."""
        said: list[str | Exception] = []
        for clip in clips:
            if clip.key in self._names("kills"):
                os.kill(os.getpid(), signal.SIGKILL)
            if clip.key in self._names("breaks"):
                raise RuntimeError(f"{clip.key} is too much")
            while clip.key in self._names("waits"):
                time.sleep(0.2)
            time.sleep(sum(map(float, self._names("ponders"))))
            level = float(np.abs(clip.waveform).mean())
            said.append(f"A {'loud' if level > 0.1 else 'quiet'} sound can be heard. Its level is about {level:.1f}.")
        return said
