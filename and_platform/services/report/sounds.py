"""The sounds of a report: each clip once, small, inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from and_platform.backends import audio
from and_platform.errors import AudioError

RATE = 32_000
"""Sampling rate that sounds are brought down to, Hz."""
LONGEST = 10.0
"""Seconds of a clip that are kept."""
BUDGET = 6_000_000
"""Bytes of sound that a page may hold; clips beyond are named without a player."""

_COMPRESSION = 0.8  # Vorbis at about quality 2: clear for a comparison of clips, and small
_BLOCK = 1 << 15  # the encoder holds what it is given on the stack


@dataclass(frozen=True)
class Sound:
    """A clip as the page holds it."""

    clip_id: int
    label: str
    path: str
    seconds: float
    uri: str
    """`data:audio/ogg;base64,…`"""


@dataclass
class Store:
    """Collects sounds for one page, each clip once, until the budget is spent."""

    budget: int = BUDGET
    sounds: dict[int, Sound] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Path -> why there is no sound of it."""
    beyond: set[int] = field(default_factory=set)
    """Clips that the budget had no room for."""
    cut: set[int] = field(default_factory=set)
    """Clips of which only the beginning is kept."""
    spent: int = 0

    def add(self, clip_id: int, root: str, path: str, label: str | None, sha256: str) -> bool:
        """Take a clip in; False where the page has to do without it."""
        if clip_id in self.sounds:
            return True
        if path in self.unreadable or clip_id in self.beyond:
            return False
        try:
            decoded = audio.decode(audio.at(root, path), sha256)
        except AudioError as error:
            self.unreadable[path] = str(error)
            return False
        wave = decoded.waveform[: int(LONGEST * decoded.rate)]
        seconds = decoded.waveform.size / decoded.rate
        content = encode(wave, decoded.rate)
        if self.spent + len(content) > self.budget:
            self.beyond.add(clip_id)
            return False
        if seconds > LONGEST:
            self.cut.add(clip_id)
        self.spent += len(content)
        uri = f"data:audio/ogg;base64,{base64.b64encode(content).decode()}"
        self.sounds[clip_id] = Sound(clip_id, label or "no label", path, seconds, uri)
        return True

    def notes(self) -> list[str]:
        """What a reader must know of the sounds."""
        told = []
        if self.cut:
            told.append(f"Longer than {LONGEST:g} seconds, so that the page holds their beginning: {_clips(self.cut)}.")
        if self.beyond:
            told.append(
                f"Without a player, since the page holds at most {self.budget / 1e6:g} MB of sound: {_clips(self.beyond)}."
            )
        if self.unreadable:
            path, why = next(iter(self.unreadable.items()))
            told.append(
                f"Without a player, since they cannot be read: {_clips(self.unreadable)}; the first, {path}: {why}."
            )
        return told


def _clips(which: Collection[object]) -> str:
    return f"{len(which)} clip{'' if len(which) == 1 else 's'}"


def encode(waveform: audio.Floats, rate: int) -> bytes:
    """A mono waveform [n] at `rate` Hz as Ogg Vorbis of at most 32 kHz."""
    import soundfile

    if rate > RATE:
        waveform, rate = audio.resample(waveform, rate, RATE), RATE
    samples = np.clip(waveform, -1.0, 1.0)
    stream = io.BytesIO()
    with soundfile.SoundFile(
        stream, "w", rate, 1, format="OGG", subtype="VORBIS", compression_level=_COMPRESSION
    ) as sound:
        for start in range(0, samples.size, _BLOCK):
            sound.write(samples[start : start + _BLOCK])
    return stream.getvalue()
