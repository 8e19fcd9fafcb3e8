"""Queries of the analysis of features: which words describe neurons, and what they go with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries.files import dicts, rows


def commonest_adjectives(session: Session, *, dissection: int, top: int | None) -> list[dict[str, Any]]:
    """The adjectives that most neurons have in C_open, with counts and share; `top` None: all."""
    return dicts(session, "commonest_adjectives", dissection=dissection, top=top)


def dissected_neurons(session: Session, *, dissection: int) -> tuple[int, int]:
    """Neurons of a dissection, and those of them that are hidden."""
    (row,) = rows(session, "dissected_neurons", dissection=dissection)
    return row.n_neurons, row.n_hidden


def adjectives_by_block(session: Session, *, dissection: int) -> list[tuple[int, int, int]]:
    """Block, number of adjectives, neurons of the block that have as many."""
    return [tuple(row) for row in rows(session, "adjectives_by_block", dissection=dissection)]


def neurons_with_features(
    session: Session, *, dissection: int, basic: Sequence[str], words: Sequence[str]
) -> dict[str, int]:
    """Criterion -> hidden neurons that have any of what it counts; `words` gives the criteria 'adjective:WORD'."""
    every = sorted({*basic, *words})
    found = rows(session, "neurons_with_features", dissection=dissection, basic=list(basic), words=every)
    return {row.criterion: row.n_neurons for row in found}


def neurons_by_criterion(
    session: Session, *, dissection: int, criterion: str, words: Sequence[str], seed: int, n: int
) -> list[tuple[str, int, int]]:
    """Layer, unit and value of the first n hidden neurons by a criterion; never the head's.

    `words` are the basic adjectives, or the one that 'adjective' asks for.
    """
    found = rows(
        session, "neurons_by_criterion",
        dissection=dissection, criterion=criterion, words=list(words), seed=seed, n=n,
    )  # fmt: skip
    return [tuple(row) for row in found]


def feature_ablations(
    session: Session,
    *,
    experiment: int,
    hidden: int,
    criteria: Sequence[str],
    shares: Sequence[float],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Accuracy before and after each ablation; shares in percent of the `hidden` neurons."""
    return dicts(
        session, "feature_ablations",
        experiment=experiment, hidden=hidden, criteria=list(criteria), shares=list(shares), seeds=list(seeds),
    )  # fmt: skip


def word_acoustics(session: Session, *, dissection: int, word: str, measure: str) -> list[Any]:
    """Neuron, value, is_constant, has_word of every neuron; `measure`: amplitude or mdf."""
    return rows(session, "word_acoustics", dissection=dissection, word=word, measure=measure)


def open_words(session: Session, *, dissection: int, part_of_speech: str | None = None) -> dict[str, int]:
    """Words in C_open -> neurons that have them, the commonest first."""
    found = rows(session, "open_words", dissection=dissection, part_of_speech=part_of_speech)
    return {row.term: row.n_neurons for row in found}
