from __future__ import annotations

import pytest

from and_platform.backends.taggers.hanta import HantaTagger, penn
from and_platform.backends.taggers.tokens import tokenize
from and_platform.core.terms import extract_terms


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A high-pitched, three-part tone.", ["A", "high-pitched", ",", "three-part", "tone", "."]),
        ("It isn\u2019t the dog's.", ["It", "is", "n't", "the", "dog", "'s", "."]),
        ("CAN'T we've", ["CA", "N'T", "we", "'ve"]),
        ("0.5 s, 1,000 Hz, 10s", ["0.5", "s", ",", "1,000", "Hz", ",", "10s"]),
        ("caf\u00e9 - bar", ["caf\u00e9", "-", "bar"]),
        ("  ", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


@pytest.mark.parametrize(
    ("c5", "tag"),
    [
        ("AJ0", "JJ"),
        ("AJC", "JJR"),
        ("NN2", "NNS"),
        ("NP0", "NNP"),
        ("VVG", "VBG"),
        ("VBZ", "VBZ"),
        ("VHD", "VBD"),
        ("VDI", "VB"),
        ("VVN", "VBN"),
        ("VVB", "VBP"),
        ("VM0", "MD"),
        ("PRF", "IN"),
        ("XX0", "RB"),
        ("PUQ", "."),
        ("UNKNOWN", "FW"),
    ],
)
def test_penn_tags_of_c5_tags(c5: str, tag: str) -> None:
    assert penn(c5) == tag


def test_every_tag_of_the_model_has_its_counterpart() -> None:
    words = [tag for tag in HantaTagger()._tagger.tag2int if len(tag) == 3 and tag[-1] in "0123456789BDGIZ"]
    unknown = {tag for tag in words if tag[0] in "ANV" and penn(tag) == "FW"}
    assert unknown == set()


def test_terms_of_a_summary() -> None:
    text = "The clips are not loud. They feature muffled, high-pitched sounds of clapping, and a dog is barking."
    (tokens,) = HantaTagger().tag([text])
    assert [(term.term, term.pos.value) for term in extract_terms(tokens)] == [
        ("clip", "noun"),
        ("feature", "verb"),
        ("muffled", "adjective"),
        ("high-pitched", "adjective"),
        ("sound", "noun"),
        ("of", "preposition"),
        ("clapping", "noun"),
        ("dog", "noun"),
        ("barking", "verb"),
    ]
