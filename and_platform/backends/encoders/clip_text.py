"""The text tower of a CLIP through transformers: the paper's text encoder for DB is that of ViT-B/32."""

from __future__ import annotations

from collections.abc import Sequence

from and_platform.backends.base import BackendRecipe, Floats
from and_platform.backends.batching import by_length, pick_device, unit_rows
from and_platform.backends.weights import find_weights, loading


class ClipTextEncoder:
    """Text to unit vectors with CLIP's text tower and its projection.

    Parameters
    ----------
    source
        Directory or hub id of a CLIP in transformers' format ("openai/clip-vit-base-patch32").
    scale
        Factor of the cosine before a softmax over concepts: CLIP was trained to 100. Not part of the recipe.
    """

    def __init__(self, source: str, *, scale: float = 100.0, batch_size: int = 64, device: str | None = None) -> None:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        weights = find_weights(source)
        with loading(source):
            self._tokenizer = AutoTokenizer.from_pretrained(weights.path)
            self._model = CLIPTextModelWithProjection.from_pretrained(weights.path).eval()
        self._model.to(pick_device(device))
        self._max_tokens = int(self._model.config.max_position_embeddings)
        self.scale = scale
        self.dim = int(self._model.config.projection_dim)
        self.recipe = BackendRecipe("clip", weights.revision, {"max_tokens": self._max_tokens})
        self._batch_size = batch_size

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]; what is beyond CLIP's 77 tokens is cut."""
        return unit_rows(by_length(texts, len, self._batch_size, self._embed), self.dim)

    def _embed(self, texts: list[str]) -> list[Floats]:
        import torch

        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            vectors = self._model(**tokens).text_embeds
        return list(vectors.float().cpu().numpy())
