"""Log mel spectrograms of whole clips in memory, and varied stretches of them: what training takes its batches from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from and_platform.backends.base import Floats

if TYPE_CHECKING:
    from transformers import ASTFeatureExtractor

RATE: Final = 16_000
FLOOR: Final = math.log(1.192092955078125e-07)  # of the feature extractor's log mel energies


class Variation(Protocol):
    """How much the clips are varied, and how much of them is heard."""

    @property
    def frames(self) -> int:
        """Of 10 ms: what the network hears of a clip."""
        ...

    @property
    def mel_bins(self) -> int: ...

    @property
    def mixup(self) -> float:
        """Share of batches in which clips are added to each other."""
        ...

    @property
    def crop(self) -> float:
        """Share of clips heard from another point than their start."""
        ...

    @property
    def gain(self) -> float:
        """Largest change of level, in nepers of energy."""
        ...

    @property
    def pitch(self) -> int:
        """Largest shift along the mel axis, in bins."""
        ...


class Varied(NamedTuple):
    """A batch in log mel energies [B, frames, mel], where it is sound [B, frames], and what was mixed with what.

    `partner` [B] is the place in the batch of the clip that was added to each, `share` [B] the clip's own share of the
    energy; both are None where nothing was mixed.
    """

    energies: Tensor
    sound: Tensor
    partner: Tensor | None
    share: Tensor | None


@dataclass
class Spectrograms:
    """Log mel energies of whole clips, computed once: [n, longest, mel bins], with their lengths [n] in frames."""

    frames: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, waveforms: Sequence[Floats], extractor: ASTFeatureExtractor) -> Spectrograms:
        """The clips as the feature extractor hears them, mono at 16 kHz, before it normalises."""
        spectrograms: list[NDArray[np.float32]] = []
        for samples in waveforms:
            waveform = np.pad(samples, (0, max(0, 400 - samples.size))).astype(np.float32)
            n_frames = 1 + (waveform.size - 400) // 160
            spectrograms.append(extractor._extract_fbank_features(waveform, max_length=n_frames))
        lengths = torch.tensor([len(s) for s in spectrograms])
        frames = torch.zeros(len(spectrograms), int(lengths.max()), extractor.num_mel_bins)
        for i, spectrogram in enumerate(spectrograms):
            frames[i, : len(spectrogram)] = torch.from_numpy(np.ascontiguousarray(spectrogram))
        return cls(frames, lengths)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation over all frames that are sound."""
        sound = torch.arange(self.frames.shape[1])[None, :] < self.lengths[:, None]
        values = self.frames[sound].double()
        return float(values.mean()), float(values.std())

    def cut(self, index: Tensor, starts: Tensor, n_frames: int) -> tuple[Tensor, Tensor]:
        """Stretches of `n_frames` [B, n_frames, mel] from the given starts, and where they are sound [B, n_frames]."""
        where = starts[:, None] + torch.arange(n_frames)[None, :]
        sound = where < self.lengths[index][:, None]
        where = where.clamp(max=self.frames.shape[1] - 1)
        return self.frames[index[:, None], where].masked_fill(~sound[:, :, None], 0.0), sound

    def plain(self, extractor: ASTFeatureExtractor, n_frames: int) -> Tensor:
        """All clips from their start, as the network hears them: [n, n_frames, mel]."""
        index = torch.arange(len(self.lengths))
        x, sound = self.cut(index, torch.zeros_like(index), n_frames)
        return normalised(x, sound, extractor)

    def varied(self, index: Tensor, by: Variation) -> Varied:
        """Some clips, each heard from another point, at another level, at another pitch, or with another clip.

        Draws from torch's random numbers, in an order that the weights of the sample network depend on.
        """
        size = len(index)
        spare = (self.lengths[index] - by.frames).clamp(min=0)
        starts = (torch.rand(size) * (spare + 1)).long() * (torch.rand(size) < by.crop)
        x, sound = self.cut(index, starts, by.frames)

        level = (torch.rand(size, 1, 1) * 2 - 1) * by.gain
        shift = torch.randint(-by.pitch, by.pitch + 1, (size, 1))
        bins = (torch.arange(by.mel_bins)[None, :] - shift).clamp(0, by.mel_bins - 1)
        x = x.gather(2, bins[:, None, :].expand_as(x)) + level
        x = x.clamp(min=FLOOR).masked_fill(~sound[:, :, None], FLOOR)
        if float(torch.rand(())) >= by.mixup:
            return Varied(x, sound, None, None)

        partner = torch.randperm(size)
        share = torch.distributions.Beta(1.0, 1.0).sample((size,))
        mine, theirs = share.log()[:, None, None], (1 - share).log()[:, None, None]
        # energies add, as when two sounds are heard at once
        x = torch.logaddexp(x + mine, x[partner] + theirs).clamp(min=FLOOR)
        return Varied(x, sound | sound[partner], partner, share)


def normalised(x: Tensor, sound: Tensor, extractor: ASTFeatureExtractor) -> Tensor:
    """As the feature extractor does: padding is zero before mean and standard deviation are taken out."""
    result: Tensor = (x.masked_fill(~sound[:, :, None], 0.0) - extractor.mean) / (2 * extractor.std)
    return result
