"""From tagged words to the terms of a neuron's open concepts (paper, Section 3.5).

The rules, in the order they apply:

- Adjectives are JJ, JJR, JJS and VBN. A comparative counts as its positive ("louder" is "loud"), a
  participle as itself ("muffled"). Within four tokens after "no" or "not" a word does not count as an
  adjective; the end of a sentence ends that window.
- Nouns are counted by their lemma ("clips" is "clip").
- Verbs are counted by their lemma ("barks" is "bark"), except that a form in -ing stays as it is: sounds are
  named by it ("clapping", "sneezing"), and taggers disagree on whether it is a noun.
- Prepositions are IN without the conjunctions that share this tag ("while", "because").
- Stop words, words of quantity, single letters and what begins with a figure are no terms. For prepositions
  only the last two hold: nearly all of them are stop words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple


class Pos(StrEnum):
    """Part of speech of a term."""

    ADJECTIVE = "adjective"
    NOUN = "noun"
    VERB = "verb"
    PREPOSITION = "preposition"


class Term(NamedTuple):
    """A word in lower case, its part of speech, and how often it occurs in the text."""

    term: str
    pos: Pos
    occurrences: int


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEGATION_WINDOW = 4
NEGATIONS = frozenset(["no", "not", "n't"])

QUANTITY_WORDS = _words(
    """additional all amount billion both bunch countless couple double dozen each eight eighty
    eleven enough entire equal every few fewer fifteen fifth fifty first five forty four fourth half
    hundred last least less lot majority many maximum million minimum more most much multiple nine
    ninety none number numerous one pair plenty quantity second secondary seven seventy several
    single six sixty some ten third thirty thousand three total triple twelve twenty two various
    whole zero"""
)

# The list of stop words comes from document retrieval; these of its words name sounds or how they are.
_SOUND_WORDS = frozenset(["call", "cry", "empty", "fire", "full", "mill", "move", "serious", "thick", "thin"])

_CONJUNCTIONS = _words(
    """albeit although as because if lest once provided since so than that though till unless until whereas
    whether while"""
)
_TAGS = {
    **dict.fromkeys(["JJ", "JJR", "JJS", "VBN"], Pos.ADJECTIVE),
    **dict.fromkeys(["NN", "NNS", "NNP", "NNPS"], Pos.NOUN),
    **dict.fromkeys(["VB", "VBD", "VBG", "VBP", "VBZ"], Pos.VERB),
    "IN": Pos.PREPOSITION,
}
_OWN_FORM = frozenset(["VBN", "VBG", "IN"])


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """English stop words: scikit-learn's list, without the words of it that name sounds."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS) - _SOUND_WORDS


def extract_terms(tokens: Sequence[tuple[str, str, str]], *, window: int = NEGATION_WINDOW) -> list[Term]:
    """The distinct terms of one tagged text, in order of first appearance.

    Parameters
    ----------
    tokens
        (text, lemma, Penn Treebank tag) of each token, punctuation included, in order.
    window
        How many tokens after a negation are no adjectives.
    """
    counts: Counter[tuple[str, Pos]] = Counter()
    negated_until = -1
    for place, (text, lemma, tag) in enumerate(tokens):
        if text.lower() in NEGATIONS:
            negated_until = place + window
        elif text in {".", "!", "?"}:
            negated_until = -1
        pos = _TAGS.get(tag)
        if pos is None or (pos is Pos.ADJECTIVE and place <= negated_until):
            continue
        term = (text if tag in _OWN_FORM else lemma).lower()
        if _is_term(term, text.lower(), pos):
            counts[term, pos] += 1
    return [Term(term, pos, count) for (term, pos), count in counts.items()]


def _is_term(term: str, text: str, pos: Pos) -> bool:
    if pos is Pos.PREPOSITION:
        return len(term) > 1 and term[0].isalpha() and term not in _CONJUNCTIONS
    return len(term) > 1 and term[0].isalpha() and not {term, text} & stop_words() and not {term, text} & QUANTITY_WORDS
