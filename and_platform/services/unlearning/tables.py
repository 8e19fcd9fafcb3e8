"""Table 4 and Figure 10, read from what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.resampling import crossed_interval
from and_platform.errors import InputError, NotFoundError
from and_platform.queries import unlearning as queries
from and_platform.schema import Experiment, Recipe
from and_platform.services import ablations, experiments, published
from and_platform.services.experiments import Subject
from and_platform.services.unlearning import plans, runs, sweep

CHANGES = ("d_a", "d_r", "gap")

Row = dict[str, Any]


def table4(
    engine: sa.Engine, network: str, dissection: int | None = None, *, experiment: int | None = None
) -> list[Row]:
    """Table 4: by strategy the mean over target classes of neurons ablated, dA, dR and gap = dR - dA.

    Each with its bootstrap 95 % interval (`…_low`, `…_high`): over target classes, and for random strategies over seeds too.
    Target classes for which nothing was chosen count with a change of 0 (`empty_plans` says how many).

    Parameters
    ----------
    experiment
        A run's; default: that with most target classes, the latest of them.

    Returns
    -------
    list of dict
        strategy, targets, seeds, empty_plans, neurons, parameters, d_a, d_r, gap with their ends, accuracies before and
        after on the target's clips and on the rest; network, dataset, recipe, held_out_clips, status.

    Raises
    ------
    NotFoundError
        Nothing was run yet.
    """
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        chosen = _experiment(session, about, experiment)
        rows = queries.table_4(session, experiment=chosen["id"])
        cells = queries.target_changes(session, experiment=chosen["id"])
        sha256 = session.scalars(sa.select(Recipe.sha256).join(Experiment).where(Experiment.id == chosen["id"])).one()
    said = ablations.source(about, sha256, chosen["figures"].get("held_out_clips"))
    said |= {"experiment": chosen["id"], "status": chosen["status"], "options": _told(chosen["params"])}
    return [{**row, **_intervals(cells, row["strategy"]), **said} for row in rows]


def runs_of(engine: sa.Engine, network: str, dissection: int | None = None) -> list[Row]:
    """The runs that `table4` can be made of, the one that it takes by default first: experiment, targets (classes)."""
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        return [{"experiment": row["id"], "targets": row["n_targets"]} for row in _runs(session, about)]


def _runs(session: Session, about: Subject) -> list[Row]:
    found = queries.unlearning_experiments(session, dissection=about.dissection_id, kind=runs.KIND)
    return [row for row in found if row["n_targets"]]


def _experiment(session: Session, about: Subject, wanted: int | None) -> Row:
    for row in _runs(session, about):
        if wanted in (None, row["id"]):
            return row
    which = (
        f"no run {wanted} of '{about.network}'"
        if wanted is not None
        else f"nothing was unlearned of '{about.network}' yet"
    )
    raise NotFoundError(f"{which}; run: andp unlearn run {about.network} --each-class")


def _intervals(cells: Sequence[Row], strategy: str) -> Row:
    own = [cell for cell in cells if cell["strategy"] == strategy]
    found: Row = {}
    for change in CHANGES:
        found[f"{change}_low"], found[f"{change}_high"] = crossed_interval(_matrix(own, change))
    return found


def _matrix(cells: Sequence[Row], change: str) -> NDArray[np.float64]:
    """[targets, seeds], NaN where a cell is missing."""
    targets = {name: i for i, name in enumerate(dict.fromkeys(cell["target"] for cell in cells))}
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(cell["seed"] for cell in cells))}
    matrix = np.full((len(targets), len(seeds)), np.nan)
    for cell in cells:
        matrix[targets[cell["target"]], seeds[cell["seed"]]] = cell[change]
    return matrix


def by_target(engine: sa.Engine, experiment: int) -> list[Row]:
    """dA, dR and gap of each target class, by strategy and seed: what Table 4 averages."""
    with db.reading(engine) as session:
        return queries.target_changes(session, experiment=experiment)


def printed() -> tuple[list[Row], list[str]]:
    """Table 4 as the paper prints it, and where it is off."""
    figures = published.figures()
    rows = [
        {"network": f"{entry['network']} (paper)", "strategy": strategy, "neurons": values[0], "d_a": values[1],
         "d_r": values[2], "gap": values[3]}
        for entry in figures["unlearning"]
        for strategy, values in entry.items()
        if strategy != "network"
    ]  # fmt: skip
    return rows, list(figures["unlearning_notes"].values())


def listing(
    engine: sa.Engine,
    network: str,
    *,
    concept: str | None = None,
    strategy: str | None = None,
    sweeps: bool = False,
    dissection: int | None = None,
) -> list[Row]:
    """One row per ablation of a plan: concept, strategy, neurons and parameters removed, dA, dR, gap, accuracies.

    `sweeps`: those of sweeps too.
    """
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        kinds = [runs.KIND, sweep.KIND] if sweeps else [runs.KIND]
        return queries.ablation_rows(
            session, dissection=about.dissection_id, kinds=kinds, concept=concept, strategy=strategy
        )


def overview(engine: sa.Engine, ablations: Sequence[int]) -> list[Row]:
    """The same of these ablations, in the order given."""
    with db.reading(engine) as session:
        return queries.ablation_rows(session, ids=ablations)


def classes(engine: sa.Engine, ablation: int) -> list[Row]:
    """Figure 10: what an ablation does to each class, the target first, then the most affected.

    Logit, probability and accuracy before and after; with what the figure says above and below in every row: concept,
    strategy, n_neurons, d_a, d_r, gap, network, dataset, recipe, held_out_clips.

    Raises
    ------
    NotFoundError
        There is no such ablation.
    """
    with db.reading(engine) as session:
        overview = queries.one_ablation(session, ablation=ablation)
        if overview is None:
            raise NotFoundError(f"no ablation {ablation}; see: andp unlearn list NETWORK")
        sha256 = session.scalars(
            sa.select(Recipe.sha256).join(Experiment).where(Experiment.id == overview["experiment_id"])
        ).one()
        rows = queries.ablation_by_class(session, ablation=ablation)
    said = {name: overview[name] for name in ("concept", "target", "strategy", "seed", "n_neurons", "n_parameters",
                                              "d_a", "d_r", "gap", "network", "dataset")}  # fmt: skip
    said |= {"ablation": ablation, "recipe": sha256[:10], "held_out_clips": overview["n_clips"]}
    return [{**row, **said} for row in rows]


def find(engine: sa.Engine, network: str, concept: str, strategy: str, *, dissection: int | None = None) -> int:
    """The latest ablation for a concept by a strategy.

    Raises
    ------
    NotFoundError
        There is none.
    """
    if strategy not in plans.STRATEGIES:
        raise InputError(f"no strategy '{strategy}'; choose from: {', '.join(plans.STRATEGIES)}")
    rows = listing(engine, network, concept=concept, strategy=strategy, dissection=dissection)
    if not rows:
        raise NotFoundError(
            f"'{concept}' was not unlearned by {strategy} yet; run: andp unlearn run {network} --concept '{concept}' "
            f"--strategy {strategy}"
        )
    return max(int(row["ablation_id"]) for row in rows)


def _told(params: Mapping[str, Any]) -> Row:
    names = (*plans.Options.__dataclass_fields__, "matched_to", "fold", "given")
    return {name: params[name] for name in names if params.get(name) is not None}
