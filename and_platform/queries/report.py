"""Queries of reports: neurons to show, their sounds, and what a dissection was made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries.files import dicts, rows


def drawn_neurons(session: Session, *, dissection: int, per_layer: int, seed: int) -> list[str]:
    """Names of some neurons of each layer, drawn at random."""
    found = rows(session, "drawn_neurons", dissection=dissection, per_layer=per_layer, seed=str(seed))
    return [row.neuron for row in found]


def calibrated_neurons(session: Session, *, dissection: int, n: int, seed: int) -> list[str]:
    """Names of hidden neurons of which calibration kept and dropped points, drawn at random, each from another layer."""
    return [row.neuron for row in rows(session, "calibrated_neurons", dissection=dissection, n=n, seed=str(seed))]


def neuron_outputs(session: Session, *, dissection: int, neurons: Sequence[str]) -> list[dict[str, Any]]:
    """Labels of exemplars, closed-set concepts and calibrated summary of neurons, in the order asked for."""
    return dicts(session, "neuron_outputs", dissection=dissection, neurons=list(neurons))


def exemplar_sounds(session: Session, *, dissection: int, neurons: Sequence[int], n: int) -> list[dict[str, Any]]:
    """The files of the n most and n least active clips of neurons."""
    return dicts(session, "exemplar_sounds", dissection=dissection, neurons=list(neurons), n=n)


def neurons_by_name(session: Session, *, dissection: int, neurons: Sequence[str]) -> dict[str, int]:
    """Ids of neurons of a dissection, by name; those that it does not cover are missing."""
    found = rows(session, "neurons_by_name", dissection=dissection, neurons=list(neurons))
    return {row.neuron: int(row.neuron_id) for row in found}


def low_points(session: Session, *, calibration: int) -> list[dict[str, Any]]:
    """The points of a low summary, and which points of the high one each removed."""
    return dicts(session, "low_points", calibration=calibration)


def dissection_recipe_rows(session: Session, *, dissection: int) -> list[dict[str, Any]]:
    """What each stage of a dissection was made with."""
    return dicts(session, "dissection_recipe_rows", dissection=dissection)


def probing_set_figures(session: Session, *, dissection: int) -> dict[str, Any]:
    """How much sound a dissection was probed with, and how many captions say the name of the class."""
    return dicts(session, "probing_set_figures", dissection=dissection)[0]


def versions_of(session: Session, *, dissection: int) -> dict[str, Any] | None:
    """Versions, command and arguments of the latest finished run that dissected."""
    found = dicts(session, "versions_of", dissection=dissection)
    return found[0] if found else None


def stored_ablations(session: Session, *, experiment: int) -> list[dict[str, Any]]:
    """Which shares and seeds of each criterion an experiment holds: strategy, units (pairs of share and seed)."""
    return dicts(session, "stored_ablations", experiment=experiment)
