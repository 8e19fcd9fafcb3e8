"""By what neurons are chosen in Figure 4 of the paper, and what several seeds of it gave."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from and_platform.errors import InputError

WORDS = ("nouns", "adjectives", "verbs", "prepositions", "length")
"""Number of distinct words by part of speech, and length of the calibrated summary in words: panel (a)."""
GROUPS = ("basic", "high_level")
"""Number of basic adjectives, and of all others: panel (b)."""
RANDOM = "random"
SINGLE = "single"
"""Stands for each basic adjective by itself: panel (c)."""
NAMES = (*WORDS, *GROUPS, SINGLE, RANDOM)
_PREFIX = "adjective:"


def of_adjective(word: str) -> str:
    """The criterion of one adjective: neurons that have it in C_open."""
    return _PREFIX + word


def adjective(criterion: str) -> str | None:
    """The word of such a criterion; None for the others."""
    return criterion.removeprefix(_PREFIX) if criterion.startswith(_PREFIX) else None


def label(criterion: str) -> str:
    """What figures call it."""
    return adjective(criterion) or {"length": "longest summary", "high_level": "high-level"}.get(criterion, criterion)


def distinct_words(words: Sequence[str]) -> list[str]:
    """Adjectives in lower case, each once, in the order given; InputError where none is left."""
    found = list(dict.fromkeys(word.strip().lower() for word in words if word.strip()))
    if not found:
        raise InputError("no basic adjectives are named; give some, e.g. --basic high-pitched,clear,loud")
    return found


def settle(criteria: Sequence[str] | None, basic: Sequence[str]) -> list[str]:
    """The criteria to compute, each once: `single` gives one for each basic adjective; None: all of `NAMES`.

    Raises
    ------
    InputError
        No such criterion.
    """
    found: list[str] = []
    for name in criteria or NAMES:
        if name == SINGLE:
            found += [of_adjective(word) for word in basic]
        elif word := (adjective(name) or "").strip().lower():
            found.append(of_adjective(word))
        elif name in NAMES:
            found.append(name)
        else:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise InputError(f"no criterion '{name}'; {hint}there are: {', '.join(NAMES)}, {_PREFIX}WORD")
    return list(dict.fromkeys(found))


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds of each criterion and share, and the difference from random ablation.

    Parameters
    ----------
    rows
        With `criterion`, `share` (asked for, percent), `seed`, `n_neurons`, `actual_share` (percent), `accuracy`,
        `accuracy_before`.

    Returns
    -------
    list of dict
        In order of criterion and share. `low` and `high`: least and most accuracy of a seed. `against_random`: mean
        accuracy less that of random ablation of as many neurons; None where random was not computed, or where the
        criterion had fewer neurons to ablate.
    """
    ordered = list(dict.fromkeys(row["criterion"] for row in rows))
    by_unit = sorted(rows, key=lambda row: (ordered.index(row["criterion"]), row["share"]))
    found = []
    for (criterion, share), members in groupby(by_unit, key=lambda row: (row["criterion"], row["share"])):
        several = list(members)
        accuracies = [row["accuracy"] for row in several]
        n_neurons = sum(row["n_neurons"] for row in several) / len(several)
        found.append({
            "criterion": criterion, "share": share, "seeds": len(several), "n_neurons": n_neurons,
            "actual_share": sum(row["actual_share"] for row in several) / len(several),
            "accuracy": sum(accuracies) / len(several), "low": min(accuracies), "high": max(accuracies),
            "accuracy_before": several[0]["accuracy_before"],
        })  # fmt: skip
    by_chance = {row["share"]: row for row in found if row["criterion"] == RANDOM}
    for row in found:
        chance = by_chance.get(row["share"])
        same = chance is not None and row["criterion"] != RANDOM and row["n_neurons"] == chance["n_neurons"]
        row["against_random"] = row["accuracy"] - chance["accuracy"] if chance is not None and same else None
    return found
