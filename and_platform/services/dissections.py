"""Dissections that have been made: listing, comparing, pinning, dropping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db, queries
from and_platform.errors import ConflictError, NotFoundError
from and_platform.schema import Dissection, DissectionRecipe, Failure, Recipe, Study

Rows = list[dict[str, Any]]

# Tables whose rows belong to a recipe, in the order in which they may be emptied.
_OWNED = ("neuron_terms", "calibrations", "summaries", "concept_matches", "finished_layers", "scorings")


def overview(engine: sa.Engine) -> Rows:
    """One row per dissection."""
    with db.reading(engine) as session:
        rows = session.execute(
            sa.text(
                "SELECT dissection_id AS id, network, dataset, concept_set, n_clips AS clips, n_layers AS layers, top_k,"
                " methods, status, is_current AS current, pinned, completed_at FROM dissection_overview ORDER BY 1"
            )
        )
        return [dict(row._mapping) for row in rows]


def show(engine: sa.Engine, dissection: int) -> dict[str, Any]:
    """What a dissection was made with, and what came out, layer by layer."""
    with db.reading(engine) as session:
        row = _find(session, dissection)
        about = session.execute(
            sa.text("SELECT * FROM dissection_overview WHERE dissection_id = :id"), {"id": row.id}
        ).one()
        recipes = [
            {
                "stage": stage, "recipe": recipe.id, "backend": recipe.backend, "revision": recipe.revision[:12],
                "params": recipe.params, "speaks": speaks,
            }
            for stage, speaks, recipe in _recipes(session, row.id)
        ]  # fmt: skip
        return {
            "dissection": dict(about._mapping),
            "options": row.config,
            "recipes": recipes,
            "layers": queries.layer_table(session, dissection=row.id),
        }


def diff(engine: sa.Engine, left: int, right: int) -> dict[str, Any]:
    """Where two dissections differ: in their recipes, and in what they say of the neurons that both cover."""
    with db.reading(engine) as session:
        a, b = _find(session, left), _find(session, right)
        recipes_a = {stage: recipe for stage, _, recipe in _recipes(session, a.id)}
        recipes_b = {stage: recipe for stage, _, recipe in _recipes(session, b.id)}
        changed: Rows = []
        for stage in sorted(recipes_a.keys() | recipes_b.keys()):
            one, two = recipes_a.get(stage), recipes_b.get(stage)
            if one is not None and two is not None and one.id == two.id:
                continue
            changed.append({"stage": stage, str(left): _told(one, two), str(right): _told(two, one)})
        said = session.execute(
            sa.text(
                "SELECT count(*) AS neurons,"
                " count(*) FILTER (WHERE x.closed_db IS DISTINCT FROM y.closed_db) AS other_closed_db,"
                " count(*) FILTER (WHERE x.closed_tab IS DISTINCT FROM y.closed_tab) AS other_closed_tab,"
                " count(*) FILTER (WHERE x.closed_icl IS DISTINCT FROM y.closed_icl) AS other_closed_icl,"
                " count(*) FILTER (WHERE x.summary IS DISTINCT FROM y.summary) AS other_summary,"
                " count(*) FILTER (WHERE x.calibrated_summary IS DISTINCT FROM y.calibrated_summary)"
                "   AS other_calibrated_summary,"
                " count(*) FILTER (WHERE x.open_concepts IS DISTINCT FROM y.open_concepts) AS other_open_concepts,"
                " count(*) FILTER (WHERE x.exemplar_labels IS DISTINCT FROM y.exemplar_labels) AS other_exemplar_labels"
                " FROM neuron_descriptions x JOIN neuron_descriptions y"
                " ON y.network = x.network AND y.neuron = x.neuron AND y.dissection_id = :right"
                " WHERE x.dissection_id = :left"
            ),
            {"left": left, "right": right},
        ).one()
        return {"left": left, "right": right, "recipes": changed, "neurons": dict(said._mapping)}


def pin(engine: sa.Engine, dissection: int, *, pinned: bool = True) -> None:
    """Make a dissection the current one of its network and data set, whatever comes later; or let go of it."""
    with db.transaction(engine) as session:
        row = _find(session, dissection)
        session.execute(
            sa.text(
                "UPDATE dissections d SET pinned = false FROM probing_sets p, probing_sets q"
                " WHERE p.id = d.probing_set_id AND q.id = :probing AND p.dataset_id = q.dataset_id"
                " AND d.network_id = :network"
            ),
            {"probing": row.probing_set_id, "network": row.network_id},
        )
        session.execute(sa.update(Dissection).where(Dissection.id == row.id).values(pinned=pinned))


def drop(engine: sa.Engine, dissection: int) -> int:
    """Drop a dissection, its experiments, and the rows that no other dissection uses; its recording and captions stay.

    Returns
    -------
    int
        Number of rows that went.

    Raises
    ------
    ConflictError
        People have been asked to rate its descriptions: what they said is not dropped by the way.
    """
    with db.transaction(engine) as session:
        row = _find(session, dissection)
        studies = session.scalars(sa.select(Study.name).where(Study.dissection_id == row.id)).all()
        if studies:
            raise ConflictError(
                f"dissection {dissection} is what people rate in a study; drop that first: "
                + "; ".join(f"andp study drop {name}" for name in studies)
            )
        only_here = session.scalars(
            sa.text(
                "SELECT k.recipe_id FROM dissection_recipes k JOIN recipes r ON r.id = k.recipe_id"
                " WHERE k.dissection_id = :id AND r.stage IN ('score', 'match', 'summarise', 'calibrate', 'extract')"
                " AND NOT EXISTS (SELECT FROM dissection_recipes o"
                "   WHERE o.recipe_id = k.recipe_id AND o.dissection_id <> :id)"
            ),
            {"id": row.id},
        ).all()
        gone = _empty(session, only_here)
        # Nobody will try these units again.
        session.execute(sa.delete(Failure).where(Failure.scope.in_([f"recipe:{recipe}" for recipe in only_here])))
        session.delete(row)
        return gone


def _empty(session: Session, recipes: Sequence[int]) -> int:
    """Delete the rows of these recipes; returns how many."""
    gone = 0
    for table in _OWNED:
        result = session.execute(sa.text(f"DELETE FROM {table} WHERE recipe_id = ANY (:ids)"), {"ids": list(recipes)})
        gone += int(getattr(result, "rowcount", 0))
    return gone


def forget_without(session: Session, caption_recipe: int, clips: Sequence[int]) -> None:
    """Forget what was made of a recipe's captions while those of these clips were missing: it is to be made again.

    A captioner may fail for a clip, and succeed when it is asked again after everything else was computed.
    """
    made = session.scalars(
        sa.text(
            "WITH RECURSIVE later AS ("
            " SELECT r.id FROM recipes r WHERE :recipe = ANY (r.parents) AND EXISTS ("
            "   SELECT FROM recipes x JOIN probing_sets p ON p.sha256 = x.params ->> 'probing_set'"
            "   JOIN probing_set_clips m ON m.probing_set_id = p.id"
            "   WHERE (x.id = r.id OR x.id = ANY (r.parents)) AND m.clip_id = ANY (:clips))"
            " UNION SELECT r.id FROM recipes r JOIN later l ON l.id = ANY (r.parents))"
            " SELECT id FROM later WHERE EXISTS (SELECT FROM scorings s WHERE s.recipe_id IN (SELECT id FROM later))"
            " OR EXISTS (SELECT FROM summaries s WHERE s.recipe_id IN (SELECT id FROM later))"
        ),
        {"recipe": caption_recipe, "clips": list(clips)},
    ).all()
    if not made:
        return
    _empty(session, made)
    using = {"ids": list(made)}
    of_these = "IN (SELECT k.dissection_id FROM dissection_recipes k WHERE k.recipe_id = ANY (:ids))"
    session.execute(sa.text(f"UPDATE dissections SET status = 'running' WHERE id {of_these}"), using)
    for table in ("experiments", "ablation_plans"):
        session.execute(sa.text(f"DELETE FROM {table} WHERE dissection_id {of_these}"), using)
    session.execute(sa.text("DELETE FROM clusterings WHERE caption_recipe_id = :recipe"), {"recipe": caption_recipe})
    session.execute(sa.text(f"UPDATE dissected_layers SET completed_at = NULL WHERE dissection_id {of_these}"), using)


def _find(session: Session, dissection: int) -> Dissection:
    row = session.get(Dissection, dissection)
    if row is None:
        raise NotFoundError(f"no dissection {dissection}; see: andp dissections list")
    return row


def _recipes(session: Session, dissection: int) -> list[tuple[str, bool, Recipe]]:
    rows = session.execute(
        sa.select(DissectionRecipe.stage, DissectionRecipe.speaks, Recipe)
        .join(Recipe, Recipe.id == DissectionRecipe.recipe_id)
        .where(DissectionRecipe.dissection_id == dissection)
        .order_by(DissectionRecipe.stage)
    )
    return [(stage, speaks, recipe) for stage, speaks, recipe in rows]


def _told(one: Recipe | None, other: Recipe | None) -> str:
    """What sets a recipe apart from another one."""
    if one is None:
        return "not computed"
    if other is None:
        return one.backend
    told = {}
    if one.backend != other.backend:
        told["backend"] = one.backend
    if one.revision != other.revision:
        told["revision"] = one.revision[:12]
    told |= {key: value for key, value in one.params.items() if other.params.get(key) != value}
    return ", ".join(f"{key}={value}" for key, value in told.items()) or "follows from an earlier stage"
