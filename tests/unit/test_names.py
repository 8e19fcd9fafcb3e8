from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform.core.names import normalise, same_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("door_wood_knock", "door wood knock"),
        ("Drinking/Sipping", "drinking sipping"),
        ("  clock--tick \t", "clock tick"),
        ("Male speech, man speaking", "male speech, man speaking"),
        ("high\u2010pitched", "high pitched"),
        ("Stra\u00dfe", "strasse"),
        ("\uff24\uff4f\uff47", "dog"),  # full-width letters
        ("cafe\u0301", "caf\u00e9"),
        ("gun\u00a0shot", "gun shot"),
        ("_-/", ""),
        ("", ""),
    ],
)
def test_normalise(name: str, expected: str) -> None:
    assert normalise(name) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(name: str) -> None:
    assert normalise(normalise(name)) == normalise(name)


def test_normalising_twice_changes_no_single_character() -> None:
    once = [normalise(chr(code)) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assert [name for name in once if normalise(name) != name] == []


@given(st.lists(st.text("abcXYZ019", min_size=1), min_size=1), st.text("_-/ \t", min_size=1))
def test_separators_are_all_one_space(words: list[str], separator: str) -> None:
    assert normalise(separator.join(words)) == " ".join(words).lower()


def test_same_name() -> None:
    assert same_name("Vacuum_Cleaner", "vacuum cleaner")
    assert not same_name("dog", "dog bark")
