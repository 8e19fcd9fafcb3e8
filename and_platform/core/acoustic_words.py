"""Can an adjective describe sound? A verdict by sentence embeddings, without a language model (paper, 3.5).

An adjective is accepted if it names a side of one of the facets of sound, or if the embedding of the bare
word is close enough to that of "a word describing a sound". The threshold was chosen for all-MiniLM-L6-v2 on
95 adjectives labelled by hand, 48 of which describe sound: the cosine alone has an AUC of 0.89 and is right
on 81 % of them at the threshold, together with the facets on 83 % (precision 0.79, recall 0.92). The bare
word has to be embedded: in the frame of a sentence the sentence outweighs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_platform.core.facets import AXES

ANCHOR = "a word describing a sound"
THRESHOLD = 0.13
FACET_WORDS = frozenset(word for sides in AXES.values() for words in sides for word in words.split())


class WordVerdict(NamedTuple):
    """Whether a word describes sound, its cosine to the anchor, and the reason in words."""

    word: str
    accepted: bool
    score: float
    reason: str


def judge_words(
    words: Sequence[str],
    embeddings: NDArray[np.float32],
    anchor: NDArray[np.float32],
    *,
    threshold: float = THRESHOLD,
) -> list[WordVerdict]:
    """Judge adjectives by their embeddings.

    Parameters
    ----------
    words
        The adjectives, in lower case.
    embeddings
        Unit embeddings of the bare words, [len(words), dim].
    anchor
        Unit embedding of `ANCHOR`, [dim].
    threshold
        The least cosine that is accepted.
    """
    scores = (embeddings @ anchor).astype(np.float64).round(6).tolist() if len(words) else []
    return [_verdict(word, score, threshold) for word, score in zip(words, scores, strict=True)]


def _verdict(word: str, score: float, threshold: float) -> WordVerdict:
    if word in FACET_WORDS:
        return WordVerdict(word, True, score, "names a facet of sound")
    sign = ">=" if score >= threshold else "<"
    return WordVerdict(word, score >= threshold, score, f'cosine {score:.3f} to "{ANCHOR}" {sign} {threshold:g}')
