"""Text and sound in one space through transformers' CLAP (Wu et al. 2023), for TAB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from and_platform.backends.base import BackendRecipe, Clip, Floats
from and_platform.backends.batching import by_length, pick_device, unit_rows
from and_platform.backends.weights import find_weights, loading
from and_platform.errors import AudioError


class ClapEncoder:
    """Text and sound to unit vectors in one space.

    Parameters
    ----------
    source
        Directory or hub id of a CLAP in transformers' format ("laion/clap-htsat-unfused").
    scale
        Factor of the cosine before a softmax over concepts, for the use as a text encoder. Not part of the
        recipe.

    Notes
    -----
    CLAP hears at most `max_seconds` at once. Its own preparation takes a random stretch of a longer clip; this takes
    the middle, so that the same clip gives the same vector.
    """

    def __init__(self, source: str, *, scale: float = 100.0, batch_size: int = 16, device: str | None = None) -> None:
        from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

        weights = find_weights(source)
        with loading(source):
            self._tokenizer = AutoTokenizer.from_pretrained(weights.path)
            self._features = AutoFeatureExtractor.from_pretrained(weights.path)
            self._model = ClapModel.from_pretrained(weights.path).eval()
        self._model.to(pick_device(device))
        self._batch_size = batch_size
        # RoBERTa keeps two positions for itself.
        self._max_tokens = int(self._model.config.text_config.max_position_embeddings) - 2
        self.scale = scale
        self.dim = int(self._model.config.projection_dim)
        self.rate = int(self._features.sampling_rate)
        self.max_seconds = float(self._features.max_length_s)
        self.recipe = BackendRecipe(
            "clap", weights.revision, {"rate": self.rate, "max_seconds": self.max_seconds, "crop": "middle"}
        )

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]."""
        return unit_rows(by_length(texts, len, self._batch_size, self._embed_texts), self.dim)

    def embed_audio(self, clips: Sequence[Clip]) -> Floats:
        """Unit-normalised float32 [len(clips), dim].

        Raises
        ------
        AudioError
            If a clip does not come at `rate` or has no samples.
        """
        for clip in clips:
            if clip.rate != self.rate:
                raise AudioError(f"{clip.key} comes at {clip.rate} Hz, CLAP needs {self.rate} Hz; resample it")
            if clip.waveform.size == 0:
                raise AudioError(f"{clip.key} has no samples")
        return unit_rows(by_length(clips, _samples, self._batch_size, self._embed_clips), self.dim)

    def _embed_texts(self, texts: list[str]) -> list[Floats]:
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            vectors = self._model.get_text_features(**tokens).pooler_output
        return list(vectors.float().cpu().numpy())

    def _embed_clips(self, clips: list[Clip]) -> list[Floats]:
        import torch

        prepared = self._features(
            [self._middle(clip) for clip in clips], sampling_rate=self.rate, return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            vectors = self._model.get_audio_features(**prepared).pooler_output
        return list(vectors.float().cpu().numpy())

    def _middle(self, clip: Clip) -> Floats:
        most = int(self.max_seconds * self.rate)
        start = max(0, (clip.waveform.size - most) // 2)
        return np.ascontiguousarray(clip.waveform[start : start + most])


def _samples(clip: Clip) -> int:
    return int(clip.waveform.size)
