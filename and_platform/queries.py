"""The queries kept in `sql/queries/`: one typed function each, named as in the file.

A file holds blocks that begin with `-- name: what it answers.`; parameters are psycopg's `%(name)s`, and the text goes to
the driver as it is, since SQLAlchemy's `text()` would take colons in it for parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy.orm import Session

from and_platform.resources import resource

_HEADER = re.compile(r"^-- ([a-z_0-9]+): ", re.MULTILINE)


@cache
def all_queries() -> dict[str, str]:
    """Every query by name."""
    found: dict[str, str] = {}
    for path in sorted(resource("sql/queries").glob("*.sql")):
        parts = _HEADER.split(path.read_text("utf-8"))
        for name, body in zip(parts[1::2], parts[2::2], strict=True):
            # The rest of the header line is its description.
            found[name] = body.partition("\n")[2].strip().rstrip(";")
    return found


def _rows(session: Session, name: str, **params: Any) -> list[Any]:
    return list(session.connection().exec_driver_sql(all_queries()[name], params).all())


def _dicts(session: Session, name: str, **params: Any) -> list[dict[str, Any]]:
    result = session.connection().exec_driver_sql(all_queries()[name], params)
    return [dict(row) for row in result.mappings()]


def untagged_points(
    session: Session, *, calibrate_recipe: int, tag_recipe: int, layers: Sequence[int]
) -> list[tuple[int, str]]:
    """Id and text of the distinct kept points of some layers that a tagger has not seen."""
    rows = _rows(
        session, "untagged_points", calibrate_recipe=calibrate_recipe, tag_recipe=tag_recipe, layers=list(layers)
    )
    return [(row.id, row.text) for row in rows]


def unjudged_adjectives(
    session: Session, *, judge_recipe: int, tag_recipe: int, calibrate_recipe: int, layers: Sequence[int]
) -> list[tuple[int, str]]:
    """Id and word of every adjective that a tagger has found in kept points of some layers and a judge has not seen."""
    rows = _rows(
        session, "unjudged_adjectives",
        judge_recipe=judge_recipe, tag_recipe=tag_recipe, calibrate_recipe=calibrate_recipe, layers=list(layers),
    )  # fmt: skip
    return [(row.id, row.term) for row in rows]


def insert_neuron_terms(
    session: Session, *, recipe: int, calibrate_recipe: int, tag_recipe: int, judge_recipe: int, layer: int
) -> int:
    """Write the terms of a layer's neurons; returns the number of rows."""
    result = session.connection().exec_driver_sql(
        all_queries()["insert_neuron_terms"],
        {
            "recipe": recipe, "calibrate_recipe": calibrate_recipe, "tag_recipe": tag_recipe,
            "judge_recipe": judge_recipe, "layer": layer,
        },
    )  # fmt: skip
    return int(result.rowcount)


def insert_summary_embeddings(session: Session, *, encoder: int, calibrate_recipe: int, layer: int) -> int:
    """Write the vectors of a layer's calibrated summaries that have none; returns how many."""
    result = session.connection().exec_driver_sql(
        all_queries()["insert_summary_embeddings"],
        {"encoder": encoder, "calibrate_recipe": calibrate_recipe, "layer": layer},
    )
    return int(result.rowcount)


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
    return _dicts(
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
    return _dicts(
        session, "neurons_for_concept",
        concept=concept, strategy=strategy, network=network, dissection=dissection, words=words, top=top, layer=layer, n=n,
    )  # fmt: skip


def describe_neuron(session: Session, *, dissection: int, layer: str, unit: int) -> dict[str, Any] | None:
    """The row of `neuron_descriptions` of one neuron, with its statistics; None where there is none."""
    rows = _dicts(session, "describe_neuron", dissection=dissection, layer=layer, unit=unit)
    return rows[0] if rows else None


def neuron_exemplars(session: Session, *, dissection: int, recording: int, neuron: int, n: int) -> list[dict[str, Any]]:
    """The n most and n least active clips of a neuron, with their captions."""
    return _dicts(session, "neuron_exemplars", dissection=dissection, recording=recording, neuron=neuron, n=n)


def neuron_points(session: Session, *, calibration: int) -> list[dict[str, Any]]:
    """The points of a high summary, kept or dropped."""
    return _dicts(session, "neuron_points", calibration=calibration)


def neuron_matches(session: Session, *, dissection: int, neuron: int, n: int) -> list[dict[str, Any]]:
    """The n best concepts of a neuron by every method and function."""
    return _dicts(session, "neuron_matches", dissection=dissection, neuron=neuron, n=n)


def neuron_terms_of(session: Session, *, dissection: int, neuron: int) -> list[dict[str, Any]]:
    """The terms of a neuron's calibrated summary."""
    return _dicts(session, "neuron_terms_of", dissection=dissection, neuron=neuron)


def current_dissections(session: Session, *, network: str | None) -> list[dict[str, Any]]:
    """The current dissections, the latest first."""
    return _dicts(session, "current_dissections", network=network)


def layer_table(session: Session, *, dissection: int) -> list[dict[str, Any]]:
    """A dissection, layer by layer."""
    return _dicts(session, "layer_table", dissection=dissection)


def last_layer_names(session: Session, *, dissection: int, method: str, similarity: str) -> list[dict[str, Any]]:
    """Class and best concepts of each unit of the head."""
    return _dicts(session, "last_layer_names", dissection=dissection, method=method, similarity=similarity)


def probing_clips(session: Session, *, probing_set: int) -> list[dict[str, Any]]:
    """Path, main label and fold of the clips of a probing set, in order of position."""
    return _dicts(session, "probing_clips", probing_set=probing_set)
