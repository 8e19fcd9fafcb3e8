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


def unjudged_adjectives(session: Session, *, judge_recipe: int, tag_recipe: int) -> list[tuple[int, str]]:
    """Id and word of every adjective that a tagger has found and a judge has not seen."""
    return [(row.id, row.term) for row in _rows(session, "unjudged_adjectives", judge_recipe=judge_recipe, tag_recipe=tag_recipe)]


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
