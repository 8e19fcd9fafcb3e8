from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform.core.concepts import PARSERS, Concept, parse_csv, parse_json, parse_text, sha256_of
from and_platform.core.names import normalise
from and_platform.errors import ManifestError


def test_text_keeps_order_and_spelling_and_skips_empty_lines() -> None:
    assert parse_text("\ufeffdoor_wood_knock\r\n\n  Dog \n\t\nR&B\n") == [
        Concept("door wood knock", "door_wood_knock"),
        Concept("dog", "Dog"),
        Concept("r&b", "R&B"),
    ]


def test_text_merges_what_is_the_same_after_normalisation_and_tells() -> None:
    assert parse_text("sea_waves\ndog\nSea Waves\nsea-waves\n") == [
        Concept("sea waves", "sea_waves", merged=("Sea Waves", "sea-waves")),
        Concept("dog", "dog"),
    ]


def test_csv_reads_synonyms_and_kinds() -> None:
    text = 'name,synonyms,kind\nDog,hound; Puppy|HOUND;dog,animal\n\n"Speech, male",,\nwind\n'
    assert parse_csv(text) == [
        Concept("dog", "Dog", ("hound", "puppy"), "animal"),
        Concept("speech, male", "Speech, male"),
        Concept("wind", "wind"),
    ]


def test_csv_takes_its_columns_in_any_order_and_case() -> None:
    assert parse_csv("Kind, NAME\nanimal,dog\n") == [Concept("dog", "dog", (), "animal")]


def test_csv_merges_synonyms_and_takes_the_first_kind_given() -> None:
    text = "name,synonyms,kind\ndog,hound,\nDOG,puppy;hound,animal\ndog,,pet\n"
    assert parse_csv(text) == [Concept("dog", "dog", ("hound", "puppy"), "animal", merged=("DOG", "dog"))]


def test_json_reads_names_and_objects() -> None:
    text = json.dumps(["Dog", " ", {"name": "sea_waves", "synonyms": ["surf", "Sea-Waves"], "kind": "water"}])
    assert parse_json(text) == [Concept("dog", "Dog"), Concept("sea waves", "sea_waves", ("surf",), "water")]


def test_json_takes_synonyms_in_one_string() -> None:
    text = '[{"name": "dog", "synonyms": "hound; puppy", "kind": null}]'
    assert parse_json(text) == [Concept("dog", "dog", ("hound", "puppy"))]


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".txt", " \n\n", "no concept"),
        (".txt", "dog\n\n--/\n", r"line 3: .*'--/'"),
        (".txt", "dog\nwi\x00nd\n", r"line 2: .*U\+0000"),
        (".txt", "dog\ncat\tanimal\n", r"line 2: .*U\+0009"),
        (".csv", "", "line 1: .*missing"),
        (".csv", "name,kind\n", "no concept"),
        (".csv", "label,kind\ndog,animal\n", r"line 1: .*label, kind.*'name'"),
        (".csv", "name,synonym\ndog,hound\n", r"line 1: .*name, synonym"),
        (".csv", "name,Name\ndog,hound\n", r"line 1: .*each once"),
        (".csv", "name,kind\ndog,animal\nrain, light,weather\n", "line 3: more fields"),
        (".csv", "name,kind\ndog,animal\n,weather\n", "line 3: the name ''"),
        (".csv", 'name\ndog\n"rain" x\n', "line 3: not valid CSV"),
        (".csv", 'name\n"dog', "line 2: not valid CSV"),
        (".json", '[\n"dog",\n]', "line 3, column 1: not valid JSON"),
        (".json", '{"name": "dog"}', "line 1: .*list"),
        (".json", "[]", "no concept"),
        (".json", '["dog", 3]', "item 2: .*not 3"),
        (".json", '["dog", {"kind": "x"}]', "item 2: 'name' must be"),
        (".json", '[{"name": "dog", "aka": "hound"}]', "item 1: unknown key 'aka'"),
        (".json", '[{"name": "dog", "synonyms": [1]}]', "item 1: 'synonyms'"),
        (".json", '[{"name": "dog", "synonyms": {"a": 1}}]', "item 1: 'synonyms'"),
        (".json", '[{"name": "dog", "kind": 1}]', "item 1: 'kind'"),
        (".json", '[{"name": " "}]', "item 1: the name ''"),
        (".json", '["\\ud800"]', r"item 1: .*U\+D800"),
        (".json", "[" * 200_000, "nested too deeply"),
    ],
)
def test_errors_name_the_place(suffix: str, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        PARSERS[suffix](text)


# Words as a user might write them, including what CSV must quote.
_letters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters=";|\ufeff")
_words = st.text(_letters, min_size=1, max_size=12).map(str.strip)
_names = _words.filter(normalise)
_rows = st.lists(
    st.tuples(_names, st.lists(_words, max_size=3), st.none() | _words.filter(bool)),
    min_size=1,
    max_size=8,
    unique_by=lambda row: normalise(row[0]),
)


@given(_rows)
def test_csv_and_json_say_the_same(rows: list[tuple[str, list[str], str | None]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(["name", "synonyms", "kind"])
    writer.writerows((name, ";".join(synonyms), kind) for name, synonyms, kind in rows)
    from_csv = parse_csv(buffer.getvalue())
    from_json = parse_json(
        json.dumps([{"name": name, "synonyms": synonyms, "kind": kind} for name, synonyms, kind in rows])
    )
    assert from_csv == from_json
    assert [(c.original_name, c.kind) for c in from_csv] == [(name, kind) for name, _, kind in rows]
    assert all(c.name == normalise(c.original_name) and c.name not in c.synonyms for c in from_csv)


@given(st.lists(_names, min_size=1, max_size=8))
def test_names_are_unique_and_nothing_is_lost(names: list[str]) -> None:
    concepts = parse_text("\n".join(names))
    assert [c.name for c in concepts] == list(dict.fromkeys(map(normalise, names)))
    assert sorted(spelling for c in concepts for spelling in (c.original_name, *c.merged)) == sorted(names)


def test_hash_depends_on_content_and_order_only() -> None:
    one = sha256_of(parse_text("dog\nSea_Waves\n"))
    assert one == sha256_of(parse_json('["dog", "Sea_Waves", "dog"]'))
    assert len(one) == 64
    others = [
        parse_text("Sea_Waves\ndog\n"),
        parse_text("dog\nsea waves\n"),
        parse_json('["dog", {"name": "Sea_Waves", "kind": "water"}]'),
        parse_json('["dog", {"name": "Sea_Waves", "synonyms": ["surf"]}]'),
    ]
    assert len({one, *map(sha256_of, others)}) == 5
