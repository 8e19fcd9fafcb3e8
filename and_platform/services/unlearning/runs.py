"""What ablating a choice of neurons does to each class, on clips that the network was not trained on (paper, 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from and_platform import db
from and_platform.core.names import normalise
from and_platform.errors import InputError
from and_platform.queries import unlearning as queries
from and_platform.schema import Experiment
from and_platform.services import ablations, devices, experiments
from and_platform.services.ablations import Task, Unit
from and_platform.services.experiments import Subject
from and_platform.services.held_out import HeldOut, held_out
from and_platform.services.progress import SILENT, Progress
from and_platform.services.unlearning import plans
from and_platform.services.unlearning.plans import Options, Plan, Target

KIND = "unlearning"
SEEDS = (0, 1, 2)

_MUCH = 0.2


@dataclass(frozen=True)
class RunReport:
    """What a run came to."""

    experiment_id: int
    ablations: list[int]
    """Ids of all ablations asked for, in order."""
    measured: int
    """Ablations evaluated now."""
    reused: int
    """Those that were there."""
    left_out: dict[str, list[str]]
    """Why -> target classes that were left out."""
    caution: str | None
    """What a reader must know of the clips."""


@dataclass(frozen=True)
class _Asked:
    """Plans to evaluate, and what else decides the result."""

    units: list[Unit]
    plans: dict[int, Plan]
    params: dict[str, Any]
    left_out: dict[str, list[str]]


def run(
    engine: sa.Engine,
    network: str,
    *,
    concept: str | None = None,
    each_class: bool = False,
    plan: int | None = None,
    strategies: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
    options: Options | None = None,
    matched_to: str = "open",
    fold: int | None = None,
    dissection: int | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> RunReport:
    """Ablate, and keep logit, probability and accuracy of each class before and after, on held-out clips.

    What is there is not computed again, whatever target or option it was computed for; killed, the same call goes on.

    Parameters
    ----------
    concept, each_class, plan
        What to unlearn: one of a concept, each class of the network in turn (Table 4), and a plan that was made.
    strategies
        See `plans.make`. Default: `open` for a concept; for each class `random`, `random_matched`, `open` and every
        closed-set method that the dissection has.
    seeds
        Of the random strategies.
    matched_to
        The strategy whose plan `random_matched` takes the number of neurons per layer from.
    fold
        Evaluate on this fold instead of the one that the network was not trained on.
    device
        Default: `ANDP_DEVICE`.

    Raises
    ------
    InputError
        What was asked for cannot be used, or there is nothing to evaluate on.
    IncompleteError
        A strategy lacks its data.
    """
    if (concept is not None) + each_class + (plan is not None) != 1:
        raise InputError("say what to unlearn, one of them: --concept TEXT, --each-class, --plan PLAN")
    where = devices.device(device)
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        if plan is not None:
            made = plans.find(engine, plan, network=network)
            about = experiments.subject(session, network, made.dissection_id)
        chosen = held_out(session, about, fold=fold)
    if chosen.caution:
        progress.note(f"caution: {chosen.caution}")
    if plan is not None:
        asked = _of_plan(engine, made)
    else:
        asked = _by_strategy(
            engine, about, chosen, concept, strategies, seeds, options or Options(), matched_to, progress
        )
    with db.transaction(engine) as session:
        classes = plans.targets(session, about)
        asked_for = asked.params | given_concepts(classes) | (_outdated(engine, about, classes, made) if plan else {})
        recipe = experiments.plan(about, KIND, fold=chosen.fold, clips=chosen.sha256, **asked_for)
        experiment = experiments.begin(session, about, recipe).id
    with ablations.in_turn(engine, experiment, progress):
        measured = _measure(engine, about, experiment, chosen, asked, where, progress)
    with db.transaction(engine) as session:
        there = queries.measured_units(session, experiment=experiment)
        row = session.get_one(Experiment, experiment)
        if row.status != "complete" or measured:
            experiments.complete(
                session, experiment, {**row.figures, **ablations.facts(chosen), "left_out": asked.left_out}
            )
    ids = [there[unit.key] for unit in asked.units]
    return RunReport(
        experiment,
        ids,
        measured,
        len({unit.plan_id for unit in asked.units}) - measured,
        asked.left_out,
        chosen.caution,
    )


def default_strategies(about: Subject) -> list[str]:
    """Those of Table 4 that a dissection has the data for."""
    return ["random", "random_matched", *(f"closed_{method}" for method in sorted(about.methods)), "open"]


def given_concepts(classes: Sequence[Target]) -> dict[str, Any]:
    """What the user said of which concept stands for which class: it decides what closed-set strategies look for."""
    given = {one.name: one.concept for one in classes if one.given}
    return {"given": given} if given else {}


def _of_plan(engine: sa.Engine, made: Plan) -> _Asked:
    compared = plans.find(engine, made.compared_with_id) if made.compared_with_id is not None else None
    unit = Unit(made.strategy, made.target_unit, seed=made.seed, plan_id=made.id)
    options = plans.options_of(compared or made)
    params = _params(options, compared.strategy if compared else "open", made.concept if made.target is None else None)
    return _Asked([unit], {made.id: made}, params, {})


def _outdated(engine: sa.Engine, about: Subject, classes: Sequence[Target], made: Plan) -> dict[str, Any]:
    """What sets the run of a plan apart that the same words would not give today: other layers, another concept."""
    basis = made if made.compared_with_id is None else plans.find(engine, made.compared_with_id)
    target = next((one for one in classes if one.unit == basis.target_unit), None)
    same_concept = (
        not basis.strategy.startswith("closed_") or target is None or target.concept == basis.params["concept"]
    )
    same_layers = basis.params["covered"] == list(about.layers) and basis.params.get("waiting") == about.waiting
    return {} if same_concept and same_layers else {"plan": made.sha256}


def _by_strategy(
    engine: sa.Engine,
    about: Subject,
    chosen: HeldOut,
    concept: str | None,
    strategies: Sequence[str] | None,
    seeds: Sequence[int],
    options: Options,
    matched_to: str,
    progress: Progress,
) -> _Asked:
    if strategies is None:
        strategies = ["open"] if concept is not None else default_strategies(about)
    strategies, seeds = list(dict.fromkeys(strategies)), list(dict.fromkeys(seeds))
    random = [strategy for strategy in strategies if strategy in plans.DRAWN]
    if not strategies or (random and not seeds):
        raise InputError("give at least one strategy, and one seed for the random ones")
    if matched_to not in plans.CHOSEN:
        raise InputError(f"random_matched cannot be matched to '{matched_to}'; choose from: {', '.join(plans.CHOSEN)}")
    with db.transaction(engine) as session:
        for strategy in [*strategies, *([matched_to] if "random_matched" in strategies else [])]:
            plans.check_data(session, about, strategy)
        classes = plans.targets(session, about)
    target = plans.target_of(classes, concept) if concept is not None else None
    asked_for = classes if concept is None else [target]
    left_out: dict[str, list[str]] = {}
    here = [one for one in asked_for if one is None or chosen.n_clips[one.unit]]
    if gone := [one.name for one in asked_for if one is not None and not chosen.n_clips[one.unit]]:
        left_out["no held-out clip"] = gone
        progress.note(f"left out, since no held-out clip is of them: {', '.join(gone)}")
        if not here:
            raise InputError(
                f"no held-out clip is of '{gone[0]}', so nothing can be measured on it; try another --fold"
            )
    if concept is not None and target is None:
        progress.note(
            f"'{concept}' is no class of '{about.network}': dA and the gap are undefined, changes by class are shown"
        )
    if "meaning" in (*strategies, matched_to):
        plans.embed_concepts(engine, about, [normalise(one.name if one else concept or "") for one in here])
    make = _Maker(engine, about, options, matched_to)
    n = sum(len(seeds) if strategy in plans.DRAWN else 1 for strategy in strategies) * len(here)
    units: list[Unit] = []
    with progress.stage("choose neurons", n, "plans") as advance:
        for strategy in strategies:
            for one in here:
                for seed in seeds if strategy in plans.DRAWN else (None,):
                    made = make(strategy, one, concept, seed)
                    if made is None:
                        left_out.setdefault(
                            f"{strategy}: no concept of '{about.concept_set}' stands for it", []
                        ).append(one.name if one else str(concept))
                    else:
                        units.append(Unit(strategy, one.unit if one else None, seed=seed, plan_id=made.id))
                    advance(1)
    for why, names in left_out.items():
        left_out[why] = list(dict.fromkeys(names))
        if "stands for it" in why:
            progress.note(f"left out of {why}: {', '.join(left_out[why])}")
    if "random" in strategies and (share := make.share_drawn()) > _MUCH:
        progress.note(
            f"random draws {make.n_drawn:,} of {make.n_hidden:,} hidden neurons ({share:.0%}; the paper's 3,000 are 5 % of "
            "its network's): say with --random-neurons how many"
        )
    params = _params(options, matched_to, concept if target is None else None)
    return _Asked(units, make.made, params, left_out)


class _Maker:
    """Plans of one run, each made once."""

    def __init__(self, engine: sa.Engine, about: Subject, options: Options, matched_to: str) -> None:
        self._engine, self._about, self._options, self._matched_to = engine, about, options, matched_to
        self._known: dict[tuple[str, int | None, int | None], Plan] = {}
        self.made: dict[int, Plan] = {}
        self.n_drawn = self.n_hidden = 0

    def __call__(self, strategy: str, target: Target | None, concept: str | None, seed: int | None) -> Plan | None:
        """The plan; None where no concept stands for the class."""
        key = (strategy, target.unit if target and strategy != "random" else None, seed)
        if key not in self._known:
            plan = self._make(strategy, target, concept, seed)
            if plan is None:
                return None
            self._known[key] = self.made[plan.id] = plan
        return self._known[key]

    def _make(self, strategy: str, target: Target | None, concept: str | None, seed: int | None) -> Plan | None:
        about, wanted = self._about, target.name if target else str(concept)
        if strategy == "random":
            plan = plans.drawn(self._engine, about.network, self._options, seed or 0, dissection=about.dissection_id)
            self.n_drawn, self.n_hidden = plan.n_neurons, plan.n_hidden
            return plan
        if strategy == "random_matched":
            other = self(self._matched_to, target, concept, None)
            return other and plans.matched(self._engine, other.id, seed or 0)
        if strategy.startswith("closed_") and target is not None and target.concept is None:
            return None
        return plans.by_concept(
            self._engine, about.network, wanted, strategy, self._options, dissection=about.dissection_id
        )

    def share_drawn(self) -> float:
        """Of all hidden neurons, how many `random` draws."""
        return self.n_drawn / self.n_hidden if self.n_hidden else 0.0


def _params(options: Options, matched_to: str, concept: str | None) -> dict[str, Any]:
    """What of a run's options its results depend on."""
    return {**asdict(options), "matched_to": matched_to, **({"concept": normalise(concept)} if concept else {})}


def _measure(
    engine: sa.Engine,
    about: Subject,
    experiment: int,
    chosen: HeldOut,
    asked: _Asked,
    device: str,
    progress: Progress,
) -> int:
    """Evaluate what is missing; returns the number of plans evaluated."""
    with db.transaction(engine) as session:
        missing = ablations.missing(session, experiment, asked.units)
        if missing:
            queries.copy_known_ablations(
                session, experiment=experiment, plans=[unit.plan_id or 0 for unit in missing],
                strategies=[unit.strategy for unit in missing], targets=[unit.target_unit for unit in missing],
                seeds=[unit.seed for unit in missing],
            )  # fmt: skip
            missing = ablations.missing(session, experiment, missing)
        by_plan: dict[int, list[Unit]] = {}
        for unit in missing:
            by_plan.setdefault(unit.plan_id or 0, []).append(unit)
        selections = queries.plan_units(session, plans=list(by_plan))
    tasks = [Task(selections[plan], units) for plan, units in by_plan.items()]
    return ablations.measure(engine, about, experiment, chosen, tasks, len(tasks), device=device, progress=progress)
