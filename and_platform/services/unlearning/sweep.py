"""Number of ablated neurons against what the target and the other classes lose, beside random draws from the same layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from and_platform import db
from and_platform.core.names import normalise
from and_platform.core.resampling import crossed_interval
from and_platform.errors import InputError, NotFoundError
from and_platform.queries import unlearning as queries
from and_platform.schema import Experiment, Recipe
from and_platform.services import ablations, devices, experiments
from and_platform.services.ablations import Task, Unit
from and_platform.services.experiments import Subject
from and_platform.services.held_out import HeldOut, held_out
from and_platform.services.progress import SILENT, Progress
from and_platform.services.unlearning import plans
from and_platform.services.unlearning.plans import Options, Plan
from and_platform.services.unlearning.runs import given_concepts

KIND = "sweep"
DRAWS = 20

_SMALLEST = 25
_FIRST_SHARE = 0.005

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepReport:
    """What a sweep came to."""

    experiment_id: int
    measured: int
    """Ablations evaluated now."""
    reused: int
    """Those that were there."""
    left_out: dict[str, list[str]]
    """Why -> target classes that were left out."""
    caution: str | None


def default_points(n_neurons: int, n_hidden: int) -> list[int]:
    """Sizes to try: doubling from about 0.5 % of the hidden neurons (25, 50, 100, … at least 25) up to the whole plan."""
    point = _SMALLEST
    while 2 * point <= _FIRST_SHARE * n_hidden:
        point *= 2
    points = []
    while point < n_neurons:
        points.append(point)
        point *= 2
    return [*points, n_neurons]


def run(
    engine: sa.Engine,
    network: str,
    *,
    concept: str | None = None,
    each_class: bool = False,
    strategy: str = "open",
    points: Sequence[int] | None = None,
    draws: int = DRAWS,
    options: Options | None = None,
    fold: int | None = None,
    dissection: int | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> SweepReport:
    """Ablate the first n neurons of a plan, for growing n, and at each n as many per layer drawn at random.

    Kept in `ablations` by size and seed, some at a time; what is there is not computed again. The draws of a seed are
    nested: it orders the units of each layer once.

    Parameters
    ----------
    concept, each_class
        The target: one of them.
    strategy
        One that chooses by concept; its plan's order says which neurons are the first n.
    points
        Sizes; those beyond the plan are left out, the whole plan is always one. Default: `default_points`. Empty: the
        whole plan alone.
    draws
        Random draws at each size; their seeds are 0, 1, …

    Raises
    ------
    InputError
        An argument is wrong, or no neuron can be chosen.
    """
    if (concept is not None) == each_class:
        raise InputError("say what to unlearn, one of them: --concept TEXT, --each-class")
    if strategy not in plans.CHOSEN:
        raise InputError(f"a sweep goes along a plan chosen by concept, not '{strategy}': {', '.join(plans.CHOSEN)}")
    if draws < 1 or any(point < 1 for point in points or ()):
        raise InputError("give at least 1 draw, and points of at least 1 neuron")
    where = devices.device(device)
    options = options or Options()
    with db.transaction(engine) as session:
        about = experiments.subject(session, network, dissection)
        plans.check_data(session, about, strategy)
        chosen = held_out(session, about, fold=fold)
        classes = plans.targets(session, about)
    if chosen.caution:
        progress.note(f"caution: {chosen.caution}")
    target = plans.target_of(classes, concept) if concept is not None else None
    names = [one.name for one in classes] if concept is None else [target.name if target else concept]
    if strategy == "meaning":
        plans.embed_concepts(engine, about, [normalise(name) for name in names])
    made: list[Plan] = []
    left_out: dict[str, list[str]] = {}
    with progress.stage("choose neurons", len(names), "plans") as advance:
        for name in names:
            one = plans.target_of(classes, name)
            if one is not None and not chosen.n_clips[one.unit]:
                left_out.setdefault("no held-out clip", []).append(name)
            elif strategy.startswith("closed_") and one is not None and one.concept is None:
                left_out.setdefault(f"no concept of '{about.concept_set}' stands for it", []).append(name)
            else:
                plan = plans.by_concept(engine, network, name, strategy, options, dissection=about.dissection_id)
                if plan.n_neurons:
                    made.append(plan)
                else:
                    left_out.setdefault(f"no neuron is chosen by {strategy}", []).append(name)
            advance(1)
    for why, which in left_out.items():
        progress.note(f"left out, since {why}: {', '.join(which)}")
    if not made:
        raise InputError(f"there is nothing to sweep: {'; '.join(left_out)}; try another concept or strategy")
    with db.transaction(engine) as session:
        recipe = _recipe(about, chosen, strategy, options, concept if target is None else None, given_concepts(classes))
        experiment = experiments.begin(session, about, recipe).id
    wanted = [(plan, _sizes(plan, points)) for plan in made]
    total = sum(len(sizes) for _, sizes in wanted) * (1 + draws)
    with ablations.in_turn(engine, experiment, progress):
        with db.reading(engine) as session:
            there = set(queries.measured_units(session, experiment=experiment))
        missing = [
            (plan, [unit for unit in _units(plan, sizes, draws) if unit.key not in there]) for plan, sizes in wanted
        ]
        n = sum(len(units) for _, units in missing)
        ablations.measure(
            engine, about, experiment, chosen, _tasks(engine, missing), n, device=where, progress=progress
        )
    with db.transaction(engine) as session:
        row = session.get_one(Experiment, experiment)
        if row.status != "complete" or n:
            experiments.complete(session, experiment, {**row.figures, **ablations.facts(chosen), "left_out": left_out})
    return SweepReport(experiment, n, total - n, left_out, chosen.caution)


def _recipe(
    about: Subject, chosen: HeldOut, strategy: str, options: Options, concept: str | None, given: Mapping[str, Any]
) -> Any:
    params = asdict(options)
    del params["random_neurons"]
    if concept is not None:
        params["concept"] = normalise(concept)
    return experiments.plan(about, KIND, fold=chosen.fold, clips=chosen.sha256, strategy=strategy, **params, **given)


def _sizes(plan: Plan, points: Sequence[int] | None) -> list[int]:
    if points is None:
        return default_points(plan.n_neurons, plan.n_hidden)
    return sorted({point for point in points if point < plan.n_neurons} | {plan.n_neurons})


def _units(plan: Plan, sizes: Sequence[int], draws: int) -> list[Unit]:
    chosen = [Unit(plan.strategy, plan.target_unit, size, plan_id=plan.id) for size in sizes]
    return chosen + [
        Unit("random_matched", plan.target_unit, size, seed=seed) for seed in range(draws) for size in sizes
    ]


def _tasks(engine: sa.Engine, missing: Sequence[tuple[Plan, Sequence[Unit]]]) -> Iterator[Task]:
    """One target after the other: its units are read when they are needed."""
    for plan, units in missing:
        first = [unit for unit in units if unit.seed is None]
        drawn = [unit for unit in units if unit.seed is not None]
        with db.reading(engine) as session:
            of_plan = queries.first_units(session, plan=plan.id, sizes=sorted({u.size or 0 for u in first}))
            of_draws = queries.matched_units(
                session,
                plan=plan.id,
                sizes=sorted({u.size or 0 for u in drawn}),
                seeds=sorted({u.seed or 0 for u in drawn}),
            )
        for unit in first:
            yield Task(of_plan[unit.size or 0], [unit])
        for unit in drawn:
            yield Task(of_draws[unit.size or 0, unit.seed or 0], [unit])


# ---------------------------------------------------------------------- reading


def rows(
    engine: sa.Engine,
    network: str,
    *,
    concept: str | None = None,
    strategy: str = "open",
    experiment: int | None = None,
    dissection: int | None = None,
) -> list[Row]:
    """One row per target and number of neurons: dA, dR and gap of the plan's first neurons, and of the random draws their
    mean and the range of 95 % of them (`draws_…_low`, `_high`).

    `margin` is the plan's gap less the draws' mean; `p` the share of draws with at least its gap, (1 + count) / (1 + draws).
    `whole_plan` marks the last point of a target. Network, data set, recipe and held-out clips are in every row.

    Parameters
    ----------
    concept
        Only this target; default: all that were swept.
    experiment
        A sweep; default: of this strategy the one with most targets.

    Raises
    ------
    NotFoundError
        There is no such sweep: says how to make it.
    """
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        found = queries.unlearning_experiments(session, dissection=about.dissection_id, kind=KIND)
        key = normalise(concept) if concept else None
        for sweep in found:
            if sweep["params"]["strategy"] != strategy or experiment not in (None, sweep["id"]):
                continue
            points = queries.sweep_points(session, experiment=sweep["id"], strategy=strategy)
            points = [row for row in points if key is None or normalise(row["concept"] or "") == key]
            if points:
                sha256 = session.scalars(
                    sa.select(Recipe.sha256).join(Experiment).where(Experiment.id == sweep["id"])
                ).one()
                said = ablations.source(about, sha256, sweep["figures"].get("held_out_clips"))
                said |= {
                    "strategy": strategy,
                    "experiment": sweep["id"],
                    "left_out": sweep["figures"].get("left_out", {}),
                }
                return [{**row, **said} for row in points]
    what = f"--concept '{concept}'" if concept else "--each-class"
    raise NotFoundError(
        f"no such sweep of '{network}' yet; run: andp unlearn sweep {network} {what} --strategy {strategy}"
    )


def margin(points: Sequence[Row]) -> Row | None:
    """Plans against random draws from the same layers: the mean over classes of (gap of the plan - mean gap of its draws).

    Over the whole plans, with the bootstrap 95 % interval over classes.

    Returns
    -------
    dict or None
        targets, gap, draws_gap, margin, low, high, above (targets whose gap is above that of 97.5 % of the draws), draws
        (fewest of any target). None where no row has a gap.
    """
    whole = [row for row in points if row["whole_plan"] and row["margin"] is not None]
    if not whole:
        return None
    n = len(whole)
    low, high = crossed_interval([row["margin"] for row in whole])
    return {
        "targets": n, "gap": sum(row["gap"] for row in whole) / n, "draws_gap": sum(row["draws_gap"] for row in whole) / n,
        "margin": sum(row["margin"] for row in whole) / n, "low": low, "high": high,
        "above": sum(row["gap"] > row["draws_gap_high"] for row in whole), "draws": min(row["draws"] for row in whole),
    }  # fmt: skip
