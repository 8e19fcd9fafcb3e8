"""Queries of plans, ablations and sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries.files import dicts, execute, rows

Row = dict[str, Any]

Key = tuple[str, int | None, int | None, float | None, int | None]
"""Strategy, target, size, share and seed of an ablation."""


def hidden_layers(session: Session, *, dissection: int) -> dict[str, int]:
    """Layer name -> units, of every layer that may be ablated, in order of computation."""
    return {row.name: row.n_units for row in rows(session, "hidden_layers", dissection=dissection)}


def has_summary_vectors(session: Session, *, calibrate_recipe: int) -> bool:
    """Whether the summaries of a calibration have vectors."""
    return bool(rows(session, "has_summary_vectors", calibrate_recipe=calibrate_recipe)[0].has)


def texts_without_vector(session: Session, *, dissection: int, texts: Sequence[str]) -> list[str]:
    """Those of some texts that have no vector by an encoder of a dissection's summaries."""
    return [row.text for row in rows(session, "texts_without_vector", dissection=dissection, texts=list(texts))]


def open_terms(session: Session, *, dissection: int, concept: str) -> list[tuple[str, bool]]:
    """Open concepts, the commonest first, and whether the words of a concept are among each one's."""
    return [(row.term, row.asked) for row in rows(session, "open_terms", dissection=dissection, concept=concept)]


def insert_plan_by_concept(
    session: Session, *, plan: int, dissection: int, concept: str, strategy: str, words: str, top: int,
    layers: Sequence[str], n: int | None,
) -> int:  # fmt: skip
    """Choose the hidden neurons that respond to a concept; returns how many."""
    return execute(
        session, "insert_plan_by_concept", plan=plan, dissection=dissection, concept=concept, strategy=strategy,
        words=words, top=top, layers=list(layers), n=n,
    )  # fmt: skip


def insert_plan_at_random(
    session: Session, *, plan: int, dissection: int, layers: Sequence[str], seed: int, n: int
) -> int:
    """Draw n neurons of all these layers together; returns how many there were."""
    return execute(
        session, "insert_plan_at_random", plan=plan, dissection=dissection, layers=list(layers), seed=str(seed), n=n
    )


def insert_plan_matched(session: Session, *, plan: int, compared_with: int, seed: int) -> int:
    """Draw as many neurons of each layer as another plan has; returns how many."""
    return execute(session, "insert_plan_matched", plan=plan, compared_with=compared_with, seed=str(seed))


def plan_units(session: Session, *, plans: Sequence[int]) -> dict[int, dict[str, list[int]]]:
    """Plan -> layer -> units; an empty mapping for a plan of no neurons."""
    found: dict[int, dict[str, list[int]]] = {plan: {} for plan in plans}
    for row in rows(session, "plan_units", plans=list(plans)):
        found[row.plan_id][row.layer] = row.units
    return found


def plan_neurons(session: Session, *, plan: int, n: int | None = None) -> list[Row]:
    """The first n neurons of a plan, and why each."""
    return dicts(session, "plan_neurons", plan=plan, n=n)


def plan_rows(session: Session, *, plan: int | None = None, dissection: int | None = None) -> list[Row]:
    """Plans with their neurons counted by layer."""
    return dicts(session, "plan_rows", plan=plan, dissection=dissection)


def first_units(session: Session, *, plan: int, sizes: Sequence[int]) -> dict[int, dict[str, list[int]]]:
    """Size -> layer -> units of the first neurons of a plan."""
    found: dict[int, dict[str, list[int]]] = {}
    for row in rows(session, "first_units", plan=plan, sizes=list(sizes)):
        found.setdefault(row.size, {})[row.layer] = row.units
    return found


def matched_units(
    session: Session, *, plan: int, sizes: Sequence[int], seeds: Sequence[int]
) -> dict[tuple[int, int], dict[str, list[int]]]:
    """(Size, seed) -> layer -> units drawn, as many in each layer as the first neurons of a plan have."""
    found: dict[tuple[int, int], dict[str, list[int]]] = {}
    for row in rows(session, "matched_units", plan=plan, sizes=list(sizes), seeds=[str(seed) for seed in seeds]):
        found.setdefault((row.size, row.seed), {})[row.layer] = row.units
    return found


def copy_known_ablations(
    session: Session, *, experiment: int, plans: Sequence[int], strategies: Sequence[str],
    targets: Sequence[int | None], seeds: Sequence[int | None],
) -> int:  # fmt: skip
    """Write the outcomes that are known of these plans on the same clips; returns how many."""
    return execute(
        session, "copy_known_ablations", experiment=experiment, plans=list(plans),
        strategies=list(strategies), targets=list(targets), seeds=list(seeds),
    )  # fmt: skip


def measured_units(session: Session, *, experiment: int) -> dict[Key, int]:
    """(Strategy, target, size, share, seed) -> ablation, of what an experiment has measured."""
    found = rows(session, "measured_units", experiment=experiment)
    return {(row.strategy, row.target_unit, row.size, row.share, row.seed): row.id for row in found}


def unlearning_experiments(session: Session, *, dissection: int, kind: str) -> list[Row]:
    """Experiments of a kind, the one with most target classes first."""
    return dicts(session, "unlearning_experiments", dissection=dissection, kind=kind)


def target_changes(session: Session, *, experiment: int) -> list[Row]:
    """dA, dR and gap by strategy, target class and seed."""
    return dicts(session, "target_changes", experiment=experiment)


def table_4(session: Session, *, experiment: int) -> list[Row]:
    """Means by strategy."""
    return dicts(session, "table_4", experiment=experiment)


def ablation_rows(
    session: Session,
    *,
    dissection: int | None = None,
    kinds: Sequence[str] = (),
    concept: str | None = None,
    strategy: str | None = None,
    ids: Sequence[int] | None = None,
) -> list[Row]:
    """Ablations with their dA, dR and gap: these, in the order given, or those of plans on a dissection."""
    return dicts(
        session, "ablation_rows", dissection=dissection, kinds=list(kinds), concept=concept, strategy=strategy,
        ids=None if ids is None else list(ids),
    )  # fmt: skip


def ablation_by_class(session: Session, *, ablation: int) -> list[Row]:
    """What an ablation does to each class."""
    return dicts(session, "ablation_by_class", ablation=ablation)


def one_ablation(session: Session, *, ablation: int) -> Row | None:
    """The row of `ablation_overview`; None where there is none."""
    found = dicts(session, "one_ablation", ablation=ablation)
    return found[0] if found else None


def sweep_points(session: Session, *, experiment: int, strategy: str) -> list[Row]:
    """Changes by target and number of neurons, beside those of the random draws."""
    return dicts(session, "sweep_points", experiment=experiment, strategy=strategy)
