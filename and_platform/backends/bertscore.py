"""BERTScore: how near a text is to another, by the contextual vectors of their tokens (Zhang et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from and_platform.backends.base import BackendRecipe
from and_platform.backends.weights import LOCAL, find_weights, loading
from and_platform.errors import ConfigError, MissingExtraError

PACKAGE, EXTRA = "bert-score", "study"

_BATCH = 32


def installed() -> bool:
    """Whether the package is there."""
    return find_spec("bert_score") is not None


class BertScore:
    """F1 of BERTScore with a model of one's own, without rescaling and without weights for rare words.

    Parameters
    ----------
    source
        Directory or hub id of an encoder of `transformers` (BERT, RoBERTa …).
    layers
        Take the vectors after this many layers; default: what the package advises for a model that it knows by name, else
        all of them.
    device
        Where it runs; default: the package's choice.

    Raises
    ------
    MissingExtraError
        The package is not installed.
    WeightsMissingError
        There is no such model.
    ConfigError
        The model has fewer layers.
    """

    def __init__(self, source: str, layers: int | None = None, *, device: str | None = None) -> None:
        if not installed():
            raise MissingExtraError(PACKAGE, EXTRA)
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
        from transformers import AutoConfig

        weights = find_weights(source)
        with loading(source):
            config = AutoConfig.from_pretrained(weights.path, **LOCAL)
            deepest = int(config.num_hidden_layers)
            chosen = layers if layers is not None else model2layers.get(source, deepest)
            if not 1 <= chosen <= deepest:
                raise ConfigError(
                    f"the model {source} has {deepest} layers, not {chosen}; give --bertscore-layers 1 to {deepest}"
                )
            self._scorer = BERTScorer(
                model_type=str(weights.path),
                num_layers=chosen,
                batch_size=_BATCH,
                device=device,
                rescale_with_baseline=False,
            )
        # A tokenizer that does not say how much its model can read lets through what breaks it.
        tokenizer = self._scorer._tokenizer
        longest = int(getattr(config, "max_position_embeddings", 512)) - 2  # RoBERTa keeps two places for itself
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
        self.recipe = BackendRecipe("bertscore", weights.revision, {"layers": chosen, "measure": "f1"})

    def score(self, candidates: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """F1 of each candidate against the reference beside it, [texts]; 1 for the same text."""
        if not candidates:
            return np.zeros(0)
        _, _, f1 = self._scorer.score(list(candidates), list(references))
        return np.asarray(f1.numpy(), np.float64)
