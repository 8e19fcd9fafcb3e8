"""Sentence encoders through sentence-transformers: any model of theirs, by directory or hub id."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from and_platform.backends.base import BackendRecipe, Floats
from and_platform.backends.batching import BatchSize, by_length, pick_device, unit_rows
from and_platform.backends.encoders.pretrained import watch_missing
from and_platform.backends.encoders.scales import DEFAULT, settle
from and_platform.backends.weights import find_weights, loading
from and_platform.errors import ConfigError


class SentenceTransformerEncoder:
    """Text to unit vectors with a sentence-transformers model. Code that comes with a model is not run.

    Parameters
    ----------
    source
        Directory or hub id; "sentence-transformers/all-MiniLM-L12-v2" is the paper's.
    scale
        Factor of the cosine before a softmax over concepts, for experiments. Default: 100, as DB is defined.
    prompt_name
        Name of one of the model's prompts, which is put before each text. Default: the one that the model says, if any.
    max_seq_length
        Tokens after which a text is cut. Default: the model's.
    name
        Name in the recipe.
    """

    def __init__(
        self,
        source: str,
        *,
        scale: float | None = None,
        prompt_name: str | None = None,
        max_seq_length: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        name: str = "sentence-transformers",
    ) -> None:
        from sentence_transformers import SentenceTransformer

        weights = find_weights(source)
        with loading(source):
            with watch_missing() as missing:
                self._model = SentenceTransformer(
                    str(weights.path),
                    device=pick_device(device),
                    trust_remote_code=False,
                    local_files_only=True,
                    model_kwargs={"dtype": "float32"},
                )
            # Models are published without BERT's own pooler, which no module of pooling reads.
            pools = any(type(module).__name__ == "Pooling" for module in self._model.modules())
            needed = [name for name in missing if not (pools and name.startswith("pooler."))]
            if needed:
                raise ValueError(f"{len(needed)} weights of the model are missing, e.g. {needed[0]}")
        if max_seq_length is not None:
            self._model.max_seq_length = max_seq_length
        self._prompt = self._chosen_prompt(prompt_name or self._model.default_prompt_name)
        self._batch = BatchSize(batch_size)
        longest = self._model.max_seq_length
        self.max_tokens = int(longest) if longest is not None and math.isfinite(longest) else None
        self.scale, scaled = settle(scale, DEFAULT)
        self.dim = int(self._embed(["a sound"])[0].size)
        params: dict[str, Any] = {"max_tokens": self.max_tokens, **scaled}
        if self._prompt:
            params["prompt"] = self._prompt
        self.recipe = BackendRecipe(name, weights.revision, params, weights.origin)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]."""
        return unit_rows(by_length(texts, len, self._batch, self._embed), self.dim)

    def is_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Bool [len(texts)]: which texts are longer than `max_tokens`, the prompt included."""
        if self.max_tokens is None or not texts:
            return np.zeros(len(texts), bool)
        ids = self._model.tokenizer([self._prompt + text for text in texts], truncation=False, verbose=False)
        return np.array([len(row) > self.max_tokens for row in ids["input_ids"]])

    def _chosen_prompt(self, name: str | None) -> str:
        prompts = self._model.prompts
        if name is not None and name not in prompts:
            there = ", ".join(sorted(key for key, text in prompts.items() if text)) or "none"
            raise ConfigError(f"the model has no prompt '{name}'; it has: {there}")
        return str(prompts[name]) if name else ""

    def _embed(self, texts: list[str]) -> list[Floats]:
        rows = self._model.encode(
            texts, prompt=self._prompt or None, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
        )
        return list(np.asarray(rows, dtype=np.float32))
