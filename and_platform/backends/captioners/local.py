"""What captioners whose model runs in this process have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from and_platform.backends.base import Clip
from and_platform.backends.batching import BatchSize, each_by_length
from and_platform.backends.captioners.answers import check_captions, check_rate
from and_platform.backends.lazy import Lazy
from and_platform.backends.sampling import seed_of, seeded_choice

Model = TypeVar("Model")


class LocalCaptioner(ABC, Generic[Model]):
    """Batches of clips of like length, smaller ones once memory has run out, and a model that is there while it works.

    A subclass sets `rate`, `_lazy`, `_batches`, `_temperature`, `_top_p` and `_seed`.
    """

    rate: int | None
    _lazy: Lazy[Model]
    _batches: BatchSize
    _temperature: float
    _top_p: float
    _seed: int

    @property
    def _model(self) -> Model:
        return self._lazy.get()

    def release(self) -> None:
        """Give the model's memory back; it is loaded again when it is used again."""
        self._lazy.release()

    @property
    def batch_size(self) -> int:
        """Clips at a time; fewer once memory has run out."""
        return self._batches.size

    def caption_batch(self, clips: Sequence[Clip]) -> list[str | Exception]:
        """One caption per clip, in order; an exception where the model refused, said nothing or ran out of memory.

        Raises
        ------
        AudioError
            If a clip does not come at `rate`, or has no samples.
        WeightsMissingError
            If the model cannot be loaded.
        """
        check_rate(clips, self.rate)
        said = each_by_length(clips, lambda clip: int(clip.waveform.size), self._batches, self._caption)
        return check_captions(clips, said)

    @abstractmethod
    def _caption(self, clips: list[Clip]) -> list[str]:
        """What the model says of each clip."""

    def _choice(self, clips: Sequence[Clip]) -> Any:
        """What makes a greedy search sample, each clip with a seed of its own; None at temperature 0."""
        if self._temperature <= 0:
            return None
        seeds = [seed_of(self._seed, clip.waveform.tobytes()) for clip in clips]
        return seeded_choice(seeds, self._temperature, self._top_p)
