"""What all experiments share: a recipe that says everything the result depends on, and a row that says it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform.errors import IncompleteError
from and_platform.schema import Experiment, Recipe
from and_platform.services import provenance
from and_platform.services.provenance import RecipePlan


class Subject(NamedTuple):
    """What an experiment is on: one dissection, with the names that tables and figures say."""

    dissection_id: int
    sha256: str
    network_id: int
    network: str
    dataset: str
    probing_set_id: int
    concept_set_id: int
    concept_set: str
    recording_id: int
    n_clips: int
    top_k: int
    methods: list[str]
    layers: list[str]
    """Names of the layers it covers, in order of computation."""
    waiting: str | None = None
    """Hash of what is still to be done: units that failed, layers that are not complete; None: nothing."""

    def state(self) -> dict[str, Any]:
        """Part of every recipe on it: what is computed while something waits is not the result of the whole."""
        return {} if self.waiting is None else {"waiting": self.waiting}


def subject(session: Session, network: str | None, dissection: int | None = None) -> Subject:
    """The dissection that is named, else the network's current one.

    Raises
    ------
    NotFoundError
        There is none; the message says how to make one.
    """
    from and_platform.services.ask import choose_dissection

    chosen = choose_dissection(session, network, dissection)
    row = session.execute(
        sa.text(
            "SELECT o.dissection_id, d.sha256, o.network_id, o.network, o.dataset, o.probing_set_id, o.concept_set_id,"
            " o.concept_set, o.recording_id, o.n_clips, o.top_k, o.methods,"
            " ARRAY(SELECT l.name FROM dissected_layers x JOIN layers l ON l.id = x.layer_id"
            "       WHERE x.dissection_id = d.id ORDER BY l.position) AS layers,"
            " (SELECT md5(string_agg(w.what, E'\\n' ORDER BY w.what COLLATE \"C\")) FROM ("
            "   SELECT f.stage || ' ' || f.unit FROM failures f WHERE f.resolved_at IS NULL AND f.scope IN"
            "     (SELECT 'recipe:' || k.recipe_id FROM dissection_recipes k WHERE k.dissection_id = d.id)"
            "   UNION ALL"
            "   SELECT l.name || ' ' || (SELECT count(*) FROM finished_layers z JOIN dissection_recipes k"
            "     ON k.recipe_id = z.recipe_id AND k.dissection_id = d.id WHERE z.layer_id = l.id)"
            "   FROM dissected_layers x JOIN layers l ON l.id = x.layer_id"
            "   WHERE x.dissection_id = d.id AND x.completed_at IS NULL) AS w (what)) AS waiting"
            " FROM dissection_overview o JOIN dissections d ON d.id = o.dissection_id WHERE d.id = :id"
        ),
        {"id": chosen},
    ).one()
    return Subject(*row)


def stage_recipe(session: Session, about: Subject, stage: str, needed_for: str) -> int:
    """Id of the recipe of a stage of the dissection.

    Raises
    ------
    IncompleteError
        The dissection was made without that stage: says what to run.
    """
    found = session.scalar(
        sa.text("SELECT recipe_id FROM dissection_recipes WHERE dissection_id = :id AND stage = :stage"),
        {"id": about.dissection_id, "stage": stage},
    )
    if found is None:
        raise IncompleteError(
            f"dissection {about.dissection_id} has no stage '{stage}', which {needed_for} needs; "
            f"run: andp dissect {about.network} --dataset {about.dataset}"
        )
    return int(found)


def plan(about: Subject, kind: str, *, revision: str = "1", **params: Any) -> RecipePlan:
    """The recipe of an experiment: the dissection with the layers it covers by now, and the experiment's own parameters.

    `revision` counts up when the way of computing changes.
    """
    return RecipePlan(
        "experiment", kind, revision,
        {"dissection": about.sha256, "layers": list(about.layers), **about.state(), **params},
    )  # fmt: skip


def begin(session: Session, about: Subject, recipe: RecipePlan) -> Experiment:
    """The row of an experiment: the one that is there, else a new one. Look at `status` before computing anything.

    One that is complete and asked for again is the latest from now on: what is shown by default goes with what was asked for.
    """
    recipe_id = provenance.recipe_id(session, recipe)
    session.execute(
        insert(Experiment)
        .values(kind=recipe.backend, dissection_id=about.dissection_id, recipe_id=recipe_id)
        .on_conflict_do_nothing(index_elements=["recipe_id"])
    )
    found = session.scalars(sa.select(Experiment).where(Experiment.recipe_id == recipe_id)).one()
    if found.status == "complete" and latest(session, about, recipe.backend) != found:
        session.execute(sa.update(Experiment).where(Experiment.id == found.id).values(completed_at=sa.func.now()))
    return found


def complete(session: Session, experiment_id: int, figures: Mapping[str, Any] | None = None) -> None:
    """Say that all rows of an experiment are there; in the transaction that wrote the last of them."""
    session.execute(
        sa.update(Experiment)
        .where(Experiment.id == experiment_id)
        .values(status="complete", figures=dict(figures or {}), completed_at=sa.func.now())
    )


def latest(session: Session, about: Subject, kind: str) -> Experiment | None:
    """The latest complete experiment of a kind on a dissection."""
    return session.scalars(
        sa.select(Experiment)
        .where(
            Experiment.kind == kind,
            Experiment.dissection_id == about.dissection_id,
            Experiment.status == "complete",
        )
        .order_by(Experiment.completed_at.desc(), Experiment.id.desc())
        .limit(1)
    ).first()


def footer(session: Session, about: Subject, experiment_id: int | None, n: str) -> str:
    """The line under a figure: data set, network, recipe and n (what is counted, in words: '4,630 neurons')."""
    sha256 = about.sha256
    if experiment_id is not None:
        sha256 = session.scalars(sa.select(Recipe.sha256).join(Experiment).where(Experiment.id == experiment_id)).one()
    return f"{about.dataset} · {about.network} · recipe {sha256[:10]} · n = {n}"
