"""Text and sound in one space through transformers' CLAP (Wu et al. 2023), for TAB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from and_platform.backends.base import BackendRecipe, Clip, Floats
from and_platform.backends.batching import BatchSize, by_length, pick_device, unit_rows
from and_platform.backends.encoders.pretrained import load_complete
from and_platform.backends.encoders.scales import learned_scale, settle
from and_platform.backends.weights import LOCAL, find_weights, loading
from and_platform.errors import AudioError

_SEED = 0


class ClapEncoder:
    """Text and sound to unit vectors in one space.

    Parameters
    ----------
    source
        Directory or hub id of a CLAP in transformers' format ("laion/clap-htsat-unfused").
    scale
        Factor of the cosine before a softmax over concepts, for the use as a text encoder. Default: what the weights
        were trained to.

    Notes
    -----
    CLAP hears at most `max_seconds` at once; what happens to longer clips is the checkpoint's own rule, made
    deterministic, so that the same clip always gives the same vector:

    - "rand_trunc" (unfused checkpoints) takes a random stretch; this takes the middle.
    - "fusion" looks at the whole clip, shrunk, and at a random stretch of its beginning, middle and end; here they are
      drawn with the same seed for each clip. The extractor of transformers also calls one clip at random long where
      none of a batch is; here only those are long that are.

    Which one it was is in the recipe, as `crop`.
    """

    def __init__(
        self, source: str, *, scale: float | None = None, batch_size: int = 16, device: str | None = None
    ) -> None:
        from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

        weights = find_weights(source)
        with loading(source):
            self._tokenizer = AutoTokenizer.from_pretrained(weights.path, **LOCAL)
            self._features = AutoFeatureExtractor.from_pretrained(weights.path, **LOCAL)
            self._model = load_complete(ClapModel, weights.path)
        self._model.to(pick_device(device))
        self._batch = BatchSize(batch_size)
        # RoBERTa keeps two positions for itself.
        self.max_tokens = int(self._model.config.text_config.max_position_embeddings) - 2
        self.scale, scaled = settle(scale, learned_scale(self._model.logit_scale_a.item()))
        self.dim = int(self._model.config.projection_dim)
        self.rate = int(self._features.sampling_rate)
        self.max_seconds = float(self._features.max_length_s)
        self._fuses = self._features.truncation == "fusion"
        crop: dict[str, Any] = {"crop": "fusion", "seed": _SEED} if self._fuses else {"crop": "middle"}
        params = {"rate": self.rate, "max_seconds": self.max_seconds, **crop, **scaled}
        self.recipe = BackendRecipe("clap", weights.revision, params, weights.origin)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]; what is beyond `max_tokens` is cut."""
        return unit_rows(by_length(texts, len, self._batch, self._embed_texts), self.dim)

    def is_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Bool [len(texts)]: which texts are longer than `max_tokens`."""
        if not texts:
            return np.zeros(0, bool)
        ids = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) > self.max_tokens for row in ids])

    def embed_audio(self, clips: Sequence[Clip]) -> Floats:
        """Unit-normalised float32 [len(clips), dim].

        Raises
        ------
        AudioError
            If a clip does not come at `rate` or has no samples.
        """
        check_clips(clips, self.rate)
        return unit_rows(by_length(clips, samples, self._batch, self._embed_clips), self.dim)

    def _embed_texts(self, texts: list[str]) -> list[Floats]:
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            vectors = self._model.get_text_features(**tokens).pooler_output
        return list(vectors.float().cpu().numpy())

    def _embed_clips(self, clips: list[Clip]) -> list[Floats]:
        import torch

        prepared = (self._fused(clips) if self._fuses else self._extract([self._middle(clip) for clip in clips])).to(
            self._model.device
        )
        with torch.inference_mode():
            vectors = self._model.get_audio_features(**prepared).pooler_output
        return list(vectors.float().cpu().numpy())

    def _extract(self, waveforms: list[Floats]) -> Any:
        return self._features(waveforms, sampling_rate=self.rate, return_tensors="pt")

    def _middle(self, clip: Clip) -> Floats:
        most = int(self.max_seconds * self.rate)
        start = max(0, (clip.waveform.size - most) // 2)
        return np.ascontiguousarray(clip.waveform[start : start + most])

    def _fused(self, clips: list[Clip]) -> Any:
        """The extractor's spectrograms, and which clips are long."""
        import torch
        from transformers import BatchFeature

        spectrograms, before = [], np.random.get_state()
        try:
            for clip in clips:
                np.random.seed(_SEED)  # the extractor draws from numpy's global generator
                spectrograms.append(self._extract([clip.waveform])["input_features"])
        finally:
            np.random.set_state(before)
        # A clip that has more samples than the window, but no frame more, is whole.
        hop, most = self._features.hop_length, self._features.nb_max_samples
        long = [[clip.waveform.size // hop > most // hop] for clip in clips]
        return BatchFeature({"input_features": torch.cat(spectrograms), "is_longer": torch.tensor(long)})


def check_clips(clips: Sequence[Clip], rate: int) -> None:
    """Refuse clips that an encoder of sound cannot take: they are resampled by who loads them, not here.

    Raises
    ------
    AudioError
        If a clip does not come at `rate` or has no samples.
    """
    for clip in clips:
        if clip.rate != rate:
            raise AudioError(f"{clip.key} comes at {clip.rate} Hz, CLAP needs {rate} Hz; resample it")
        if clip.waveform.size == 0:
            raise AudioError(f"{clip.key} has no samples")


def samples(clip: Clip) -> int:
    """Length of a clip, for batches of like length."""
    return int(clip.waveform.size)
