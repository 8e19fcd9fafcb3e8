from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

import and_platform
from and_platform.core.concepts import PARSERS, Concept
from and_platform.core.names import normalise

FOLDER = Path(and_platform.__file__).parent / "_data" / "concepts"
VOCABULARY = "acoustic-vocabulary.csv"
FILES = ["esc50.txt", "gtzan.txt", "urbansound8k.txt", "audioset.txt", VOCABULARY]


def read(file: str) -> list[Concept]:
    path = FOLDER / file
    return PARSERS[path.suffix](path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("file", "count", "first"),
    [
        ("esc50.txt", 50, "dog"),
        ("gtzan.txt", 10, "blues"),
        ("urbansound8k.txt", 10, "air conditioner"),
        ("audioset.txt", 527, "speech"),
    ],
)
def test_class_lists_are_complete_and_in_order(file: str, count: int, first: str) -> None:
    concepts = read(file)
    assert (len(concepts), concepts[0].name) == (count, first)


@pytest.mark.parametrize("file", FILES)
def test_no_name_comes_twice(file: str) -> None:
    assert [concept for concept in read(file) if concept.merged] == []


@pytest.mark.parametrize("file", FILES)
def test_names_are_printable_ascii(file: str) -> None:
    names = [concept.original_name for concept in read(file)]
    assert [name for name in names if not (name.isascii() and name.isprintable())] == []


def test_the_vocabulary_is_large_and_every_kind_is_there() -> None:
    concepts = read(VOCABULARY)
    kinds = Counter(concept.kind for concept in concepts)
    assert len(concepts) >= 5_000
    assert set(kinds) == {"sound noun", "sounding verb", "source+sound", "quality+sound"}
    assert min(kinds.values()) >= 100


def test_the_vocabulary_has_what_one_expects() -> None:
    kinds = {concept.name: concept.kind for concept in read(VOCABULARY)}
    expected = {
        "thud": "sound noun",
        "meowing": "sounding verb",
        "dog barking": "source+sound",
        "creaking door": "source+sound",
        "distant thunder": "quality+sound",
        "loud bang": "quality+sound",
    }
    assert {name: kinds.get(name) for name in expected} == expected


def test_the_vocabulary_is_sorted() -> None:
    with (FOLDER / VOCABULARY).open(encoding="ascii", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names == sorted(names)
    assert len({normalise(name) for name in names}) == len(names)
