"""What a sentence about sound speaks of, and to which side of it: loud or quiet, rising or falling.

Sentence embeddings put opposites close together: with all-MiniLM-L6-v2 "The sound is loud." and "The sound
is quiet." have a cosine of 0.86, "The pitch is high." and "The pitch is low." 0.92. A cosine alone therefore
cannot tell whether two clips share a property. Facets can: two sentences are compatible unless they take
different sides of one facet, or speak of different facets only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Facets = NDArray[np.int64]

AXES = {
    "loudness": (
        "loud louder loudest loudly booming deafening",
        "quiet quieter quietest quietly faint faintly silent",
    ),
    "pitch": (
        "high high-pitched higher higher-pitched shrill treble",
        "low low-pitched lower lower-pitched deep bass",
    ),
    "movement": ("rising rises rise ascending", "falling falls fall descending"),
    "swell": (
        "swelling swells grows increases increasing",
        "fading fades fade decreases decreasing dies decays",
    ),
    "brightness": ("bright brighter brilliant crisp", "dark darker dull muffled"),
    "noisiness": ("noisy noise-like hissing hissy breathy", "tonal harmonic clean pure"),
    "attack": ("sharp abrupt abruptly sudden suddenly", "gradual gradually slowly"),
    "length": ("long longer lengthy sustained prolonged", "short shorter brief momentary"),
    "steadiness": (
        "steady constant continuous continuously stable",
        "varying fluctuating wavering intermittent irregular",
    ),
    "speed": ("fast rapid rapidly quick quickly", "slow"),
    "repetition": ("repeats repeated repetitive repeating repeatedly rhythmic", "once single isolated"),
    "space": ("reverberant echoing echoes distant", "dry close nearby"),
    "roughness": ("rough harsh grating rasping", "smooth mellow gentle soft"),
}
"""Each facet with the words of its two sides."""

NUMBER_WORDS = frozenset(
    (
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    )
) | {"twice", "thrice", "half", "hundred"}
_SIDES = {
    word: (axis, side)
    for axis, pair in enumerate(AXES.values())
    for side, words in enumerate(pair)
    for word in words.split()
}
REVISION = hashlib.sha256(repr((AXES, sorted(NUMBER_WORDS))).encode()).hexdigest()[:12]
"""Identifies the words, which change what is computed with them."""
_TOKEN = re.compile(r"n't\b|[a-z]+?(?=n't\b)|[a-z]+(?:-[a-z]+)*|\d+(?:\.\d+)?")
_NEGATIONS = frozenset(["no", "not", "n't", "without"])
NEGATION_WINDOW = 4


def facets(sentences: Sequence[str]) -> Facets:
    """The side each sentence takes of each facet.

    Returns
    -------
    int64 [len(sentences), 3]
        Two bit masks over `AXES`, one of the facets whose first side the sentence names and one of those
        whose second, and a key of the numbers it names, 0 for none;
        keys of different calls cannot be compared. A negated word ("not loud") counts for
        the other side.
    """
    table = np.zeros((len(sentences), 3), dtype=np.int64)
    keys: dict[tuple[str, ...], int] = {}
    for row, sentence in enumerate(sentences):
        words = _TOKEN.findall(sentence.lower().replace("\u2019", "'"))
        negated_until = -1
        for place, word in enumerate(words):
            if word in _NEGATIONS:
                negated_until = place + NEGATION_WINDOW
            elif word in _SIDES:
                axis, side = _SIDES[word]
                table[row, 1 - side if place <= negated_until else side] |= 1 << axis
        numbers = tuple(word for word in words if word in NUMBER_WORDS or word[0].isdigit())
        if numbers:
            table[row, 2] = keys.setdefault(numbers, len(keys) + 1)
    return table


def compatible(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Which pairs of sentences may state the same thing.

    Parameters
    ----------
    left, right
        Facets of two batches, [batch, m, 3] and [batch, n, 3].

    Returns
    -------
    bool [batch, m, n]
        False where a pair takes different sides of a facet, names different numbers, or speaks of facets of
        which none is shared.
    """
    first_l, second_l, numbers_l = left[:, :, None].unbind(-1)
    first_r, second_r, numbers_r = right[:, None, :].unbind(-1)
    subject_l, subject_r = first_l | second_l, first_r | second_r
    shared = subject_l & subject_r
    clash = (shared & ((first_l ^ first_r) | (second_l ^ second_r))) != 0
    clash |= (numbers_l != numbers_r) & (numbers_l != 0) & (numbers_r != 0)
    return ~clash & ((shared != 0) | (subject_l == 0) | (subject_r == 0))
