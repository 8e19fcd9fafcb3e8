from __future__ import annotations

import pytest
import torch

from and_platform.core.facets import AXES, compatible, facets


def may_agree(left: str, right: str) -> bool:
    both = torch.from_numpy(facets([left, right]))
    found = compatible(both[None, :1], both[None, 1:])
    assert found.shape == (1, 1, 1)
    mirrored = compatible(both[None, 1:], both[None, :1])
    assert bool(found) == bool(mirrored)
    return bool(found)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("The sound is loud.", "It is a very loud sound.", True),
        ("The sound is loud.", "The sound is quiet.", False),
        ("The pitch is high.", "The pitch is low.", False),
        ("The pitch is high.", "The pitch is rising.", False),
        ("The sound is loud.", "The sound is noisy.", False),
        ("A dog barks loudly.", "A dog is barking.", True),
        ("A loud sound with a sharp attack.", "The sound is loud.", True),
        ("It starts loud and becomes quiet.", "The sound is loud.", False),
        ("The sound is not loud.", "The sound is quiet.", True),
        ("The sound isn\u2019t loud.", "The sound is loud.", False),
        ("It repeats four times a second.", "It repeats two times a second.", False),
        ("It repeats four times a second.", "It repeats.", True),
        ("It lasts 3 seconds.", "It lasts 5 seconds.", False),
        ("A bell.", "A cat.", True),
    ],
)
def test_what_may_state_the_same(left: str, right: str, expected: bool) -> None:
    assert may_agree(left, right) is expected


def test_no_word_names_two_sides() -> None:
    words = [word for sides in AXES.values() for words in sides for word in words.split()]
    assert sorted(words) == sorted(set(words))


def test_of_nothing() -> None:
    assert facets([]).shape == (0, 3)
    assert facets(["A bell."]).tolist() == [[0, 0, 0]]
