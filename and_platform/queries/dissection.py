"""Queries of the stages of a dissection, and of those who ask about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries.files import dicts, execute, rows


def untagged_points(
    session: Session, *, calibrate_recipe: int, tag_recipe: int, layers: Sequence[int]
) -> list[tuple[int, str]]:
    """Id and text of the distinct kept points of some layers that a tagger has not seen."""
    found = rows(
        session, "untagged_points", calibrate_recipe=calibrate_recipe, tag_recipe=tag_recipe, layers=list(layers)
    )
    return [(row.id, row.text) for row in found]


def unjudged_adjectives(
    session: Session, *, judge_recipe: int, tag_recipe: int, calibrate_recipe: int, layers: Sequence[int]
) -> list[tuple[int, str]]:
    """Id and word of every adjective that a tagger has found in kept points of some layers and a judge has not seen."""
    found = rows(
        session, "unjudged_adjectives",
        judge_recipe=judge_recipe, tag_recipe=tag_recipe, calibrate_recipe=calibrate_recipe, layers=list(layers),
    )  # fmt: skip
    return [(row.id, row.term) for row in found]


def insert_neuron_terms(
    session: Session, *, recipe: int, calibrate_recipe: int, tag_recipe: int, judge_recipe: int, layer: int
) -> int:
    """Write the terms of a layer's neurons; returns the number of rows."""
    return execute(
        session, "insert_neuron_terms", recipe=recipe, calibrate_recipe=calibrate_recipe, tag_recipe=tag_recipe,
        judge_recipe=judge_recipe, layer=layer,
    )  # fmt: skip


def insert_summary_embeddings(session: Session, *, encoder: int, calibrate_recipe: int, layer: int) -> int:
    """Write the vectors of a layer's calibrated summaries that have none; returns how many."""
    return execute(
        session, "insert_summary_embeddings", encoder=encoder, calibrate_recipe=calibrate_recipe, layer=layer
    )


def search_summaries(
    session: Session,
    *,
    text: str,
    encoder: int,
    vector: Any,
    network: str | None,
    dissection: int | None,
    n: int,
    depth: int = 200,
) -> list[dict[str, Any]]:
    """Neurons whose calibrated summary is near a text in meaning or contains its words, best first."""
    return dicts(
        session, "search_summaries",
        text=text, encoder=encoder, vector=vector, network=network, dissection=dissection, n=n, depth=depth,
    )  # fmt: skip


def neurons_for_concept(
    session: Session,
    *,
    concept: str,
    strategy: str,
    network: str | None,
    dissection: int | None,
    words: str,
    top: int,
    layer: str | None,
    n: int | None,
) -> list[dict[str, Any]]:
    """What the SQL function answers; `layer` is a LIKE pattern."""
    return dicts(
        session, "neurons_for_concept",
        concept=concept, strategy=strategy, network=network, dissection=dissection, words=words, top=top, layer=layer, n=n,
    )  # fmt: skip


def describe_neuron(session: Session, *, dissection: int, layer: str, unit: int) -> dict[str, Any] | None:
    """The row of `neuron_descriptions` of one neuron, with its statistics; None where there is none."""
    found = dicts(session, "describe_neuron", dissection=dissection, layer=layer, unit=unit)
    return found[0] if found else None


def neuron_exemplars(session: Session, *, dissection: int, recording: int, neuron: int, n: int) -> list[dict[str, Any]]:
    """The n most and n least active clips of a neuron, with their captions."""
    return dicts(session, "neuron_exemplars", dissection=dissection, recording=recording, neuron=neuron, n=n)


def neuron_points(session: Session, *, calibration: int) -> list[dict[str, Any]]:
    """The points of a high summary, kept or dropped."""
    return dicts(session, "neuron_points", calibration=calibration)


def neuron_matches(session: Session, *, dissection: int, neuron: int, n: int) -> list[dict[str, Any]]:
    """The n best concepts of a neuron by every method and function."""
    return dicts(session, "neuron_matches", dissection=dissection, neuron=neuron, n=n)


def neuron_terms_of(session: Session, *, dissection: int, neuron: int) -> list[dict[str, Any]]:
    """The terms of a neuron's calibrated summary."""
    return dicts(session, "neuron_terms_of", dissection=dissection, neuron=neuron)


def current_dissections(session: Session, *, network: str | None) -> list[dict[str, Any]]:
    """The current dissections, the latest first."""
    return dicts(session, "current_dissections", network=network)


def layer_table(session: Session, *, dissection: int) -> list[dict[str, Any]]:
    """A dissection, layer by layer."""
    return dicts(session, "layer_table", dissection=dissection)


def probing_clips(session: Session, *, probing_set: int) -> list[dict[str, Any]]:
    """Path, main label and fold of the clips of a probing set, in order of position."""
    return dicts(session, "probing_clips", probing_set=probing_set)
