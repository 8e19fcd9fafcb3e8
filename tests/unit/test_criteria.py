"""Criteria of Figure 4, and means over seeds."""

from __future__ import annotations

from typing import Any

import pytest

from and_platform.core import criteria
from and_platform.errors import InputError

BASIC = ["loud", "clear"]


def test_all_criteria() -> None:
    assert criteria.settle(None, BASIC) == [
        "nouns", "adjectives", "verbs", "prepositions", "length", "basic", "high_level", "adjective:loud",
        "adjective:clear", "random",
    ]  # fmt: skip


def test_each_once() -> None:
    assert criteria.settle(["adjective:Clear ", "single", "random", "random"], BASIC) == [
        "adjective:clear", "adjective:loud", "random",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["noun", "adjective:", "adjective: "])
def test_unknown_criterion(name: str) -> None:
    with pytest.raises(InputError, match="there are: nouns"):
        criteria.settle([name], BASIC)


def test_near_criterion() -> None:
    with pytest.raises(InputError, match="did you mean 'nouns'"):
        criteria.settle(["noun"], BASIC)


def test_basic_adjectives() -> None:
    assert criteria.distinct_words([" Loud", "clear", "loud", ""]) == ["loud", "clear"]
    with pytest.raises(InputError, match="--basic"):
        criteria.distinct_words([" "])


def row(criterion: str, share: float, seed: int, n: int, accuracy: float) -> dict[str, Any]:
    return {"criterion": criterion, "share": share, "seed": seed, "n_neurons": n, "actual_share": float(n),
            "accuracy": accuracy, "accuracy_before": 0.9}  # fmt: skip


def test_over_seeds() -> None:
    found = criteria.over_seeds([
        row("nouns", 4, 0, 4, 0.5), row("nouns", 2, 0, 2, 0.6), row("nouns", 2, 1, 2, 0.8), row("adjective:loud", 2, 0, 1, 0.9),
        row("random", 2, 0, 2, 0.6), row("random", 2, 1, 2, 0.7),
    ])  # fmt: skip
    assert [(r["criterion"], r["share"], r["seeds"], r["n_neurons"]) for r in found] == [
        ("nouns", 2, 2, 2), ("nouns", 4, 1, 4), ("adjective:loud", 2, 1, 1), ("random", 2, 2, 2),
    ]  # fmt: skip
    nouns = found[0]
    assert (nouns["accuracy"], nouns["low"], nouns["high"], nouns["accuracy_before"]) == pytest.approx(
        (0.7, 0.6, 0.8, 0.9)
    )
    assert nouns["against_random"] == pytest.approx(0.05)
    # nothing to compare with: random was not ablated at 4 %, fewer neurons were ablated, and random itself
    assert [r["against_random"] for r in found[1:]] == [None, None, None]
