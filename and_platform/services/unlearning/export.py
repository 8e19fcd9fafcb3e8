"""Taking a plan out of the platform: as a mask, and as a checkpoint without its neurons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from and_platform import db
from and_platform.errors import InputError
from and_platform.queries import unlearning as queries
from and_platform.schema import Dissection, Network
from and_platform.services import networks
from and_platform.services.unlearning import plans


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    directory: Path
    files: list[str]
    plan: int
    network: str
    neurons: int
    parameters: int
    """Weights and biases of the ablated neurons."""
    parameters_before: int
    parameters_zeroed: int
    """Of the checkpoint; 0 where only a mask was written."""
    parameters_removed: int
    """Those that the checkpoint does not have any more."""
    removed: dict[str, int]
    """Layer -> units that are no longer there."""
    stock: bool | None
    """Whether plain transformers loads the checkpoint; None where only a mask was written."""


def export(
    engine: sa.Engine, plan: int, directory: Path, *, structured: bool = False, mask_only: bool = False
) -> ExportReport:
    """Write the mask of a plan, and the network without its neurons, as `transformers` loads it.

    Parameters
    ----------
    directory
        Made where it is missing. The same export again is written again; another network in it is an error.
    structured
        Really remove the units of feed-forward layers; without it they are zeroed.
    mask_only
        No checkpoint.

    Raises
    ------
    NotFoundError
        There is no such plan.
    ConflictError
        There is another network in the directory.
    InputError
        It has no neurons, or the options contradict each other, or the directory cannot be written.
    """
    from and_platform.backends.networks.pruning import n_parameters_of, save_pruned, write_mask

    if structured and mask_only:
        raise InputError("a mask removes nothing: give --structured or --mask-only, not both")
    made = plans.find(engine, plan)
    if not made.n_neurons:
        raise InputError(
            f"plan {plan} has no neurons, so there is nothing to take out; see: andp unlearn plans {made.network}"
        )
    with db.reading(engine) as session:
        row = session.get_one(Network, session.get_one(Dissection, made.dissection_id).network_id)
        selection = queries.plan_units(session, plans=[plan])[plan]
    loaded = networks.load(row)
    about: dict[str, Any] = {
        "network": row.name, "plan": plan, "strategy": made.strategy, "concept": made.concept, "target": made.target,
        "seed": made.seed, "recipe": made.sha256, "params": dict(made.params),
    }  # fmt: skip
    report = None
    if not mask_only:
        training = {
            "dataset": row.trained_on, "held_out_fold": row.held_out_fold,
            "pruned": {name: about[name] for name in ("network", "strategy", "concept", "recipe")},
        }  # fmt: skip
        report = save_pruned(loaded, selection, directory, structured, training=training, about=about)
    else:
        write_mask(directory, selection, loaded, about)
    return ExportReport(
        directory=directory, files=sorted(file.name for file in directory.iterdir() if file.is_file()), plan=plan,
        network=row.name, neurons=made.n_neurons, parameters=n_parameters_of(loaded, selection),
        parameters_before=row.n_parameters, parameters_zeroed=report.parameters_zeroed if report else 0,
        parameters_removed=report.parameters_removed if report else 0, removed=report.removed if report else {},
        stock=report.stock if report else None,
    )  # fmt: skip
