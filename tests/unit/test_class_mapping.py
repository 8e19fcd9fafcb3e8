"""Which concept stands for a class: by name in three steps, never by position."""

from __future__ import annotations

import pytest

from and_platform.services.class_mapping import ConceptNames

NAMES = ConceptNames(
    [
        (7, "dog", "Dog", ["canine", "barking_dog"]),
        (3, "door wood knock", "door_wood_knock", []),
        (5, "rain", "rain", ["Dog"]),
    ]
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Dog", (7, "exact")),
        ("dog", (7, "exact")),
        ("DOG", (7, "normalised")),
        ("Door-wood knock", (3, "normalised")),
        ("door_wood_knock", (3, "exact")),
        ("Canine", (7, "synonym")),
        ("barking dog", (7, "synonym")),
        ("rain", (5, "exact")),
        ("siren", (None, "none")),
        ("", (None, "none")),
    ],
)
def test_exact_then_normalised_then_synonym(name: str, found: tuple[int | None, str]) -> None:
    assert NAMES.find(name) == found


def test_near_names() -> None:
    assert NAMES.near("dogs")[0] == "dog"
    assert NAMES.near("knock") == ["door wood knock"]
    assert NAMES.near("zzz") == []
