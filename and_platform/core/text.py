"""Captions and answers of language models made ready: repeats cut, sentences split, points cleaned."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import pysbd
import snowballstemmer

REPEATED_WORDS = 8
"""A caption that says this many words in a row twice is taken to be stuck."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_LIST_ITEM = re.compile(r"^\s*(?:\(?\d{1,2}[.):]+|[-*\u2022\u2013\u2014])\s+(?P<text>\S.*)$")
# White space is read as a whole, so that no position in it is a beginning of its own.
_EMPHASIS = re.compile(r"\*\*|__|`|^#+\s*|(?P<space>\s+)(?P<heading>#+\s*)?", re.MULTILINE)
_INTERJECTION = re.compile(
    r"^(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|hello|hi)\b(?:[!,.:]+\s*|$)",
    re.IGNORECASE,
)
_LEAD_IN = re.compile(
    r"^(?:here(?:'s| is| are)\b|below (?:is|are)\b|i (?:can|will) help\b"
    r"|(?:based on|after|from)\b[^,]*, here\b)|:$",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"^(?:i(?: would|'d|'m| am)(?: be)? (?:happy|glad)|i hope (?:this|that|it)|(?:please )?let me know"
    r"|(?:please )?feel free|(?:please )?(?:don't|do not) hesitate|happy to help|thank(?:s| you)\b"
    r"|if you (?:have|need|want|would)|would you like|is there anything|do you (?:have|need|want)\b)",
    re.IGNORECASE,
)
# Words of a class name that carry no sound of their own ("sound_of_rain").
_GLUE = frozenset(["a", "an", "and", "by", "in", "of", "on", "or", "the", "to", "with"])


class Cut(NamedTuple):
    """A text after `cut_repeats`, and whether anything was taken away."""

    text: str
    was_cut: bool


@lru_cache(maxsize=1)
def _segmenter() -> Any:
    return pysbd.Segmenter(language="en", clean=False)


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    return snowballstemmer.stemmer("english")


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences (pysbd's English rules); what holds no word is dropped."""
    pieces = (str(piece).strip() for line in text.splitlines() for piece in _segmenter().segment(line))
    return [piece for piece in pieces if _WORD.search(piece)]


def cut_repeats(text: str) -> Cut:
    """Cut a caption that repeats itself at its first sentence.

    A captioner that got stuck says the same eight words in a row twice (method, Module B). Case and
    punctuation do not count.
    """
    words = [match.group().lower() for match in _WORD.finditer(text)]
    runs = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    if len(set(runs)) == len(runs):
        return Cut(text, False)
    first = split_sentences(text)[0]
    return Cut(first, first != text)


def clean_points(answer: str, min_words: int = 6) -> list[str]:
    """Split a summary into its points, without greetings and closing offers.

    Lines of a list (numbered or with bullets) are points; other text is split into sentences.

    Parameters
    ----------
    answer
        The answer of a language model, or any summary.
    min_words
        Points of fewer words are dropped. The default is the paper's rule for language models, which write
        headings as points; use 1 for summaries made of sentences that were chosen.
    """
    points: list[str] = []
    in_item = False
    for line in _EMPHASIS.sub(_unmarked, answer.replace("\u2019", "'")).splitlines():
        item = _LIST_ITEM.match(line)
        if item:
            points.append(item["text"].strip())
        elif in_item and line.strip() and not _is_small_talk(line):
            points[-1] += " " + line.strip()
        else:
            points.extend([] if line.rstrip().endswith(":") else split_sentences(line))
        in_item = bool(item) or (in_item and bool(line.strip()))
    kept = (_INTERJECTION.sub("", point).strip() for point in points if not _is_small_talk(point))
    return [point[:1].upper() + point[1:] for point in kept if len(_WORD.findall(point)) >= max(min_words, 1)]


def _unmarked(mark: re.Match[str]) -> str:
    """Return what stays of a mark of emphasis, of a heading's mark with the empty lines before it, or of white space."""
    if mark["space"] is None or (mark["heading"] and mark.start() == 0):
        return ""
    first, newline, _ = mark["space"].partition("\n")
    return first + newline if mark["heading"] and newline else mark.group()


def _is_small_talk(sentence: str) -> bool:
    """Whether a sentence only opens or closes a conversation."""
    said = _INTERJECTION.sub("", sentence.strip()).strip()
    return not said or bool(_LEAD_IN.match(said) or _CLOSING.match(said) or _opens_list(said))


def _opens_list(said: str) -> bool:
    return said.endswith(":") or bool(re.match(r"(?:based on|after|from)\b[^,]*, here\b", said, re.IGNORECASE))


def names_label(caption: str, labels: Iterable[str]) -> bool:
    """Whether a caption says the name of one of the clip's labels.

    Such a caption makes every score that is computed from it partly circular. All content words of the label
    must be there as whole words, in any order and any inflection ("a dog barking" names "dog_bark").
    """
    said = _stems(caption)
    return any(named and named <= said for named in map(_stems, labels))


def _stems(text: str) -> frozenset[str]:
    words = [word for word in _WORD.findall(text.lower()) if word not in _GLUE]
    return frozenset(_stemmer().stemWords(words))
