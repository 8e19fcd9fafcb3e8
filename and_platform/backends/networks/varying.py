"""Batches of clips from files, for training real networks: decoded, varied, and prepared as the network wants them.

What is random in a batch depends on the seed, the epoch and the place of the batch in it, and on nothing else: neither the
number of worker processes nor an interruption changes what a network hears.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from and_platform.backends import audio
from and_platform.backends.base import Clip, Floats
from and_platform.backends.networks.base import Batch, LoadedNetwork
from and_platform.backends.networks.record import together
from and_platform.errors import AudioError, InputError

MEMORY: Final = 4 << 30
"""Bytes of decoded sound that are kept: ESC-50 at 16 kHz takes 640 MB. What is beyond them is decoded at each use."""

_MIX: Final = 10.0  # both parameters of the beta distribution of a mixture's shares (Gong et al. 2021, AST's code)


class Variation(Protocol):
    """How much the clips are varied."""

    @property
    def roll(self) -> float:
        """Clips are rotated in time by a random multiple of this, in seconds; 0: they are not."""
        ...

    @property
    def mixup(self) -> float:
        """Share of clips to which another one is added."""
        ...

    @property
    def frequency_mask(self) -> int:
        """Widest band hidden, in mel bins."""
        ...

    @property
    def time_mask(self) -> int:
        """Longest stretch hidden, in frames of the spectrogram."""
        ...


class Part(NamedTuple):
    """Clips that go through the network together: a batch, soft targets [n, classes], and their share of the step."""

    batch: Batch
    targets: Tensor
    share: float


class Clips:
    """The waveforms of files, mono at one rate: in memory as far as they fit, decoded again at each use beyond that.

    Raises
    ------
    InputError
        A file cannot be used; the message names it and the reason.
    """

    def __init__(self, paths: Sequence[Path], rate: int, memory: int = MEMORY) -> None:
        self.paths = list(paths)
        self.rate = rate
        self._memory = memory
        self._kept: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def waveform(self, place: int) -> Floats:
        """Float32 [n_samples]."""
        kept = self._kept.get(place)
        if kept is not None:
            return kept
        try:
            return audio.load(self.paths[place], self.rate)[0]
        except AudioError as exc:
            raise InputError(f"{self.paths[place]}: {exc}; put it right, or leave it out of the data set") from exc

    def fill(self, advance: Callable[[int], None] | None = None) -> None:
        """Decode from the first clip on until memory is used up; before workers start, who then share it."""
        used = sum(waveform.nbytes for waveform in self._kept.values())
        for place in range(len(self)):
            if place not in self._kept and used < self._memory:
                self._kept[place] = self.waveform(place)
                used += self._kept[place].nbytes
            if advance is not None:
                advance(1)


class Steps(Dataset[list[Part]]):
    """The optimiser's steps of one epoch, each as the parts in which it is computed.

    Parameters
    ----------
    network
        Its `prepare` makes the batches; on whatever device it is, they are made on the CPU.
    clips, members
        The clips, and which of them are meant.
    labels
        Class of each of the members.
    n_classes
        Width of the targets.
    batch_size
        Clips a step.
    parts
        How many batches a step is computed in, for less memory. There are more where lengths must not be mixed.
    variation, seed
        How clips are varied, and the numbers that decide their order and variation; without them, clips are heard as
        they are, in their order.
    """

    def __init__(
        self,
        network: LoadedNetwork,
        clips: Clips,
        members: Sequence[int],
        labels: Sequence[int],
        n_classes: int,
        *,
        batch_size: int,
        parts: int = 1,
        variation: Variation | None = None,
        seed: tuple[int, ...] = (),
    ) -> None:
        self._network, self._clips, self._variation, self._seed = network, clips, variation, seed
        self._members, self._labels = list(members), list(labels)
        self._n_classes, self._batch_size, self._parts = n_classes, batch_size, parts
        n = len(self._members)
        self._order = np.arange(n) if variation is None else np.random.default_rng(seed).permutation(n)

    def __len__(self) -> int:
        return math.ceil(len(self._members) / self._batch_size)

    def __getitem__(self, step: int) -> list[Part]:
        rng = np.random.default_rng((*self._seed, step))
        chosen = self._order[step * self._batch_size : (step + 1) * self._batch_size]
        if not len(chosen):
            raise IndexError(step)
        waveforms = [self._clips.waveform(self._members[i]) for i in chosen]
        targets = torch.eye(self._n_classes)[[self._labels[i] for i in chosen]]
        if self._variation is not None:
            waveforms, targets = self._varied(waveforms, targets, self._variation, rng)
        made = []
        for places in np.array_split(np.arange(len(chosen)), min(self._parts, len(chosen))):
            sounds = [Clip("", waveforms[i], self._clips.rate) for i in places]
            for inner in together(self._network, sounds):
                batch = self._network.prepare([sounds[i].waveform for i in inner])
                if self._variation is not None:
                    hide(self._network, batch, self._variation, rng)
                made.append(Part(batch, targets[places[inner]], len(inner) / len(chosen)))
        return made

    def _varied(
        self, waveforms: list[Floats], targets: Tensor, by: Variation, rng: np.random.Generator
    ) -> tuple[list[Floats], Tensor]:
        if by.roll:
            waveforms = [_rolled(waveform, by.roll * self._clips.rate, rng) for waveform in waveforms]
        if by.mixup:
            mixed, softened = [], targets.clone()
            for row, waveform in enumerate(waveforms):
                if rng.random() < by.mixup:
                    other = int(rng.integers(len(self._members)))
                    share = float(rng.beta(_MIX, _MIX))
                    sound = self._clips.waveform(self._members[other])[: len(waveform)]
                    waveform = (share * waveform).astype(np.float32)
                    waveform[: len(sound)] += np.float32(1 - share) * sound
                    softened[row] *= share
                    softened[row, self._labels[other]] += 1 - share
                mixed.append(waveform)
            waveforms, targets = mixed, softened
        return waveforms, targets


def _rolled(waveform: Floats, unit: float, rng: np.random.Generator) -> Floats:
    """Rotated by a random multiple of `unit` samples."""
    return np.roll(waveform, round(unit * int(rng.integers(max(1, math.ceil(len(waveform) / unit))))))


class _Spectrogram(NamedTuple):
    """A batch's spectrograms [B, frames, bins], how many frames of each are sound, and what silence is in them."""

    values: Tensor
    lengths: NDArray[np.int64]
    silence: float


def _spectrogram(network: LoadedNetwork, batch: Batch) -> _Spectrogram | None:
    from and_platform.backends.networks.beats import BeatsNetwork
    from and_platform.backends.networks.transformers_audio import ASTNetwork

    if isinstance(network, BeatsNetwork):
        return _Spectrogram(batch["fbank"], batch["frame_mask"].sum(1).numpy(), 0.0)
    if isinstance(network, ASTNetwork):
        extractor, values = network.extractor, batch["input_values"]
        frames = (1 + (batch["n_samples"].numpy() - 400) // 160).clip(1, values.shape[1])
        # the published code hides before it normalises, and what it pads with is zero there too
        silence = -extractor.mean / (2 * extractor.std) if extractor.do_normalize else 0.0
        return _Spectrogram(values, frames, silence)
    return None


def hide(network: LoadedNetwork, batch: Batch, by: Variation, rng: np.random.Generator) -> None:
    """Hide a band and a stretch of each spectrogram of a batch (Park et al. 2019, SpecAugment), in place.

    Widths are uniform from none to the widest, places uniform within the sound. Networks that take waveforms, and
    Whisper, have none of it here: theirs is part of the model, as its configuration says.
    """
    if not by.frequency_mask and not by.time_mask:
        return
    found = _spectrogram(network, batch)
    if found is None:
        return
    for row, length in enumerate(found.lengths):
        for axis, (size, widest) in enumerate(
            ((int(length), by.time_mask), (found.values.shape[2], by.frequency_mask))
        ):
            width = int(rng.integers(min(widest, size) + 1))
            first = int(rng.integers(size - width + 1))
            found.values[row].narrow(axis, first, width).fill_(found.silence)
