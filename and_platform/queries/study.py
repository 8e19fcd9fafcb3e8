"""Queries of studies, in which people judge descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries.files import dicts, execute


def insert_study_items(
    session: Session, *, study: int, dissection: int, layers: Sequence[str], methods: Sequence[str], per_layer: int, seed: int
) -> int:  # fmt: skip
    """Draw the neurons of a study; returns how many. Neurons that a method says nothing of are not drawn."""
    return execute(
        session, "insert_study_items", study=study, dissection=dissection, layers=list(layers), methods=list(methods),
        per_layer=per_layer, seed=seed,
    )  # fmt: skip


def insert_study_descriptions(
    session: Session, *, study: int, dissection: int, methods: Sequence[str], seed: int
) -> int:
    """Write what each method says of the neurons drawn, in blinded order; returns how many descriptions."""
    return execute(
        session, "insert_study_descriptions", study=study, dissection=dissection, methods=list(methods), seed=seed
    )


def study_drawn(session: Session, *, study: int, dissection: int, layers: Sequence[str]) -> list[dict[str, Any]]:
    """Neurons drawn of each layer."""
    return dicts(session, "study_drawn", study=study, dissection=dissection, layers=list(layers))


def study_shown(session: Session, *, study: int) -> list[dict[str, Any]]:
    """Item, slot and text of each description; not the method."""
    return dicts(session, "study_shown", study=study)


def study_clips(session: Session, *, study: int, exemplars: int) -> list[dict[str, Any]]:
    """The `exemplars` most active clips of each item, with where they lie."""
    return dicts(session, "study_clips", study=study, exemplars=exemplars)


def list_studies(session: Session, *, network: str | None) -> list[dict[str, Any]]:
    """The studies, the latest first."""
    return dicts(session, "list_studies", network=network)


def study_ratings_by_method(session: Session, *, study: int) -> list[dict[str, Any]]:
    """Mean rating of each method over neurons, with its spread and how often each step was given."""
    return dicts(session, "study_ratings_by_method", study=study)


def study_differences(session: Session, *, study: int) -> list[dict[str, Any]]:
    """Mean difference of ratings for each pair of methods, over the neurons where both were rated."""
    return dicts(session, "study_differences", study=study)


def study_rating_matrix(session: Session, *, study: int) -> list[dict[str, Any]]:
    """Rater, description (a number from 0), method and rating."""
    return dicts(session, "study_rating_matrix", study=study)


def study_raters(session: Session, *, study: int) -> list[dict[str, Any]]:
    """How much each rater has answered."""
    return dicts(session, "study_raters", study=study)


def study_pairs(session: Session, *, study: int) -> list[dict[str, Any]]:
    """Written and generated text of the same neuron: one row per rater, item and method."""
    return dicts(session, "study_pairs", study=study)


def study_cosines(session: Session, *, study: int, encoder: int) -> list[dict[str, Any]]:
    """Cosine of written and generated text by method, over neurons."""
    return dicts(session, "study_cosines", study=study, encoder=encoder)


def study_bertscores(session: Session, *, experiment: int) -> list[dict[str, Any]]:
    """BERTScore by method, over neurons, of one experiment."""
    return dicts(session, "study_bertscores", experiment=experiment)
