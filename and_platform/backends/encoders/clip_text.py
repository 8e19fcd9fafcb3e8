"""The text tower of a CLIP through transformers: the paper's text encoder for DB is that of ViT-B/32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from and_platform.backends.base import BackendRecipe, Floats
from and_platform.backends.batching import BatchSize, by_length, pick_device, unit_rows
from and_platform.backends.encoders.pretrained import load_complete
from and_platform.backends.encoders.scales import learned_scale, settle, stored_number
from and_platform.backends.weights import LOCAL, find_weights, loading


class ClipTextEncoder:
    """Text to unit vectors with CLIP's text tower and its projection.

    Parameters
    ----------
    source
        Directory or hub id of a CLIP in transformers' format ("openai/clip-vit-base-patch32").
    scale
        Factor of the cosine before a softmax over concepts, for experiments. Default: what the weights were trained to.

    Notes
    -----
    Of a text the first `max_tokens` tokens are read (77, with the two that enclose it); `is_cut` tells where that is
    not all.
    """

    def __init__(
        self, source: str, *, scale: float | None = None, batch_size: int = 64, device: str | None = None
    ) -> None:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        weights = find_weights(source)
        with loading(source):
            self._tokenizer = AutoTokenizer.from_pretrained(weights.path, **LOCAL)
            self._model = load_complete(CLIPTextModelWithProjection, weights.path)
            logarithm = stored_number(weights.path, "logit_scale")
        self._model.to(pick_device(device))
        self._batch = BatchSize(batch_size)
        self.max_tokens = int(self._model.config.max_position_embeddings)
        self.scale, scaled = settle(scale, learned_scale(logarithm))
        self.dim = int(self._model.config.projection_dim)
        self.recipe = BackendRecipe("clip", weights.revision, {"max_tokens": self.max_tokens, **scaled}, weights.origin)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]; what is beyond CLIP's 77 tokens is cut."""
        return unit_rows(by_length(texts, len, self._batch, self._embed), self.dim)

    def is_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Bool [len(texts)]: which texts are longer than `max_tokens`."""
        if not texts:
            return np.zeros(0, bool)
        ids = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) > self.max_tokens for row in ids])

    def _embed(self, texts: list[str]) -> list[Floats]:
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            vectors = self._model(**tokens).text_embeds
        return list(vectors.float().cpu().numpy())
