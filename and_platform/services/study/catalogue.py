"""The studies there are."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.errors import NotFoundError
from and_platform.queries import study as queries
from and_platform.schema import Recipe, Study
from and_platform.services import networks

Rows = list[dict[str, Any]]


def overview(engine: sa.Engine, network: str | None = None) -> Rows:
    """One row per study, the latest first: name, network, neurons, methods, raters, ratings, summaries …

    Raises
    ------
    NotFoundError
        There is no such network.
    """
    with db.reading(engine) as session:
        if network is not None:
            networks.find(session, network)
        return queries.list_studies(session, network=network)


def find(session: Session, name: str) -> Study:
    """A study by name.

    Raises
    ------
    NotFoundError
        There is none; the message names those that are alike.
    """
    found = session.scalars(sa.select(Study).where(Study.name == name)).one_or_none()
    if found is None:
        names = list(session.scalars(sa.select(Study.name)))
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see: andp study list"
        raise NotFoundError(f"no study '{name}'; {hint}")
    return found


def options(session: Session, study: Study) -> dict[str, Any]:
    """What a study was made with: name, dissection, seed, per_layer, within, methods, exemplars."""
    params = session.scalars(sa.select(Recipe.params).where(Recipe.id == study.recipe_id)).one()
    return dict(params)


def drop(engine: sa.Engine, name: str) -> int:
    """Remove a study with everything that people answered; returns the number of ratings that went."""
    with db.transaction(engine) as session:
        study = find(session, name)
        n = int(
            session.execute(
                sa.text("SELECT count(*) FROM study_ratings WHERE study_id = :id"), {"id": study.id}
            ).scalar_one()
        )
        session.delete(study)
        return n
