"""Sentence encoders through sentence-transformers: any model of theirs, by directory or hub id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from and_platform.backends.base import BackendRecipe, Floats
from and_platform.backends.batching import pick_device, unit_rows
from and_platform.backends.weights import find_weights, loading


class SentenceTransformerEncoder:
    """Text to unit vectors with a sentence-transformers model.

    Parameters
    ----------
    source
        Directory or hub id; "sentence-transformers/all-MiniLM-L12-v2" is the paper's.
    scale
        Factor of the cosine before a softmax over concepts. It is not part of the recipe: it does not change
        the vectors, but what is made of them.
    name
        Name in the recipe.
    """

    def __init__(
        self,
        source: str,
        *,
        scale: float = 100.0,
        batch_size: int = 64,
        device: str | None = None,
        name: str = "sentence-transformers",
    ) -> None:
        from sentence_transformers import SentenceTransformer

        weights = find_weights(source)
        with loading(source):
            self._model = SentenceTransformer(str(weights.path), device=pick_device(device))
        self.scale = scale
        self.dim = int(self._model.encode(["a sound"], show_progress_bar=False).shape[1])
        self.recipe = BackendRecipe(name, weights.revision, {"max_tokens": self._model.max_seq_length})
        self._batch_size = batch_size

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]. The library sorts by length and batches itself."""
        if not texts:
            return unit_rows([], self.dim)
        rows = self._model.encode(
            list(texts), batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        return unit_rows(np.asarray(rows, dtype=np.float32), self.dim)
