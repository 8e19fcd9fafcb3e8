"""Words and punctuation as a Penn Treebank tagger expects them; hyphenated words stay whole."""

from __future__ import annotations

import re

_CLITIC = r"'(?:s|re|ve|ll|d|m)\b"
_TOKEN = re.compile(
    rf"n't\b|{_CLITIC}"  # the second half of "isn't", "it's"
    r"|[^\W\d]+?(?=n't\b)"  # and the first half of the former
    r"|\d+(?:[.,:]\d+)*\w*"  # 3, 0.5, 1,000, 10s
    r"|\w+(?:-\w+)*"  # bell, high-pitched
    r"|[^\w\s]",
    re.IGNORECASE,
)


def tokenize(text: str) -> list[str]:
    """Split a text into words and punctuation marks: "isn't" is "is", "n't"; "high-pitched" is one word."""
    return _TOKEN.findall(text.replace("\u2019", "'"))
