"""The default tagger: HanTa, a morphological hidden Markov tagger with its own lemmas (Wartena 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from and_platform.backends.base import BackendRecipe, Token
from and_platform.backends.taggers.tokens import tokenize
from and_platform.core.text import split_sentences

# HanTa's English model speaks the C5 tags of the British National Corpus.
_PENN = {
    "AJ0": "JJ",
    "AJC": "JJR",
    "AJS": "JJS",
    "AT0": "DT",
    "AV0": "RB",
    "AVP": "RP",
    "AVQ": "WRB",
    "CJC": "CC",
    "CJS": "IN",
    "CJT": "IN",
    "CRD": "CD",
    "DPS": "PRP$",
    "DT0": "DT",
    "DTQ": "WDT",
    "EX0": "EX",
    "ITJ": "UH",
    "NN0": "NN",
    "NN1": "NN",
    "NN2": "NNS",
    "NP0": "NNP",
    "ORD": "JJ",
    "PNI": "NN",
    "PNP": "PRP",
    "PNQ": "WP",
    "PNX": "PRP",
    "POS": "POS",
    "PRF": "IN",
    "PRP": "IN",
    "TO0": "TO",
    "UNC": "FW",
    "VM0": "MD",
    "XX0": "RB",
    "ZZ0": "SYM",
}
# The verbs be, do, have and all others (VB., VD., VH., VV.) share the last letter of their tags.
_PENN_VERB = {"B": "VBP", "D": "VBD", "G": "VBG", "I": "VB", "N": "VBN", "Z": "VBZ"}


def penn(c5: str) -> str:
    """The Penn Treebank tag of a C5 tag; punctuation is ".", what has no counterpart "FW"."""
    if c5.startswith("PU"):
        return "."
    if len(c5) == 3 and c5[:2] in {"VB", "VD", "VH", "VV"}:
        return _PENN_VERB[c5[2]]
    return _PENN.get(c5, "FW")


class HantaTagger:
    """Tags English texts with HanTa's bundled model; sentences and words are split first."""

    def __init__(self) -> None:
        from HanTa.HanoverTagger import HanoverTagger

        self._tagger: Any = HanoverTagger("morphmodel_en.pgz")
        # HanTa knows frequent words by heart and works all others out each time; so remember those as well.
        self._tagger.analyze_forward = lru_cache(maxsize=1 << 16)(self._tagger.analyze_forward)
        self._tagger._analyze = lru_cache(maxsize=1 << 16)(self._tagger._analyze)
        self.recipe = BackendRecipe("hanta", version("HanTa"), {"model": "morphmodel_en", "tags": "penn"})

    def tag(self, texts: Sequence[str]) -> list[list[Token]]:
        """The tokens of each text, in order."""
        return [
            [
                Token(word, lemma.lower(), penn(tag))
                for sentence in split_sentences(text)
                for word, lemma, tag in self._tagger.tag_sent(tokenize(sentence))
            ]
            for text in texts
        ]
