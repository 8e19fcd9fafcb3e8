"""Queries of the evaluation: the last layer, and explanations of every neuron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries.files import dicts, rows


def head_units(session: Session, *, dissection: int) -> list[Any]:
    """Unit, neuron_id, class_name and summary (None: not calibrated) of the head, in order of unit."""
    return rows(session, "head_units", dissection=dissection)


def head_matches(session: Session, *, dissection: int) -> list[Any]:
    """Method, similarity, speaks, neuron_id, unit, rank and concept_id of the matches of the head."""
    return rows(session, "head_matches", dissection=dissection)


def last_layer_measures(session: Session, *, experiment: int) -> list[dict[str, Any]]:
    """The measures of an evaluation of the last layer, in the order of the paper's table."""
    return dicts(session, "last_layer_measures", experiment=experiment)


def last_layer_names(session: Session, *, experiment: int) -> list[dict[str, Any]]:
    """The concepts that it found for each class, by method and function."""
    return dicts(session, "last_layer_names", experiment=experiment)


def clip_labels(session: Session, *, probing_set: int) -> list[list[str]]:
    """The labels of the clips of a probing set, in order of position."""
    return [list(row.labels) for row in rows(session, "clip_labels", probing_set=probing_set)]


def best_concepts(session: Session, *, dissection: int, layer: int) -> list[Any]:
    """Method, unit and concept_id of the best concepts of a layer's neurons."""
    return rows(session, "best_concepts", dissection=dissection, layer=layer)


def summarised_units(session: Session, *, calibrate_recipe: int, encoder: int, layer: int) -> list[int]:
    """Units of a layer whose calibrated summary has a vector."""
    found = rows(session, "summarised_units", calibrate_recipe=calibrate_recipe, encoder=encoder, layer=layer)
    return [row.unit for row in found]


def captioned_clips(session: Session, *, probing_set: int, caption_recipe: int) -> list[Any]:
    """Position and text_id of the captions of a probing set."""
    return rows(session, "captioned_clips", probing_set=probing_set, caption_recipe=caption_recipe)


def explanation_layers(session: Session, *, experiment: int, layers: Sequence[str] | None) -> list[dict[str, Any]]:
    """Scores of explanations by layer, explanation and reference."""
    return dicts(session, "explanation_layers", experiment=experiment, layers=None if layers is None else list(layers))


def explanation_neurons(
    session: Session, *, experiment: int, layers: Sequence[str] | None, n: int | None
) -> list[dict[str, Any]]:
    """Scores of explanations by neuron, the best first."""
    return dicts(
        session, "explanation_neurons", experiment=experiment, layers=None if layers is None else list(layers), n=n
    )
