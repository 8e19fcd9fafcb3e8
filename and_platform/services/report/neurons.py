"""What the modules say of chosen neurons, side by side (paper, Table 6), and a neuron's way through them (Figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.errors import InputError
from and_platform.queries import report as queries
from and_platform.services import ask
from and_platform.services.experiments import Subject, subject

Rows = list[dict[str, Any]]

METHODS = {"tab": "by sound (TAB)", "db": "by captions (DB)", "icl": "by LLM (ICL)"}


@dataclass(frozen=True)
class Story:
    """A neuron's way through the pipeline.

    Attributes
    ----------
    about
        Its row of the view `neuron_descriptions`, with statistics.
    high, low
        Its K most and least active clips: rank, label, path, activation, caption, clip_id, root, sha256, duration_s.
    points
        The points of the high summary: point, kept, support, nearest_low_point, low (place of that point in
        `low_points`, from 1), cosine.
    low_points
        The points of the low summary: point, removed (the high points that each removed).
    closed
        Method -> its best concepts with scores, by the function that speaks.
    terms
        Terms of what calibration left: term, part_of_speech, is_open_concept, verdict_reason.
    threshold
        t: the cosine above which a low point removes a high one.
    """

    about: dict[str, Any]
    high: Rows
    low: Rows
    points: Rows
    low_points: Rows
    closed: dict[str, Rows]
    terms: Rows
    threshold: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def outputs(
    engine: sa.Engine,
    network: str,
    neurons: Sequence[str] = (),
    *,
    dissection: int | None = None,
    per_layer: int = 1,
    seed: int = 0,
) -> Rows:
    """Labels of exemplars, closed-set concepts and calibrated summary of neurons (paper, Table 6).

    Parameters
    ----------
    neurons
        Names; empty: `per_layer` of each layer, drawn at random with `seed`.

    Returns
    -------
    list of dict
        neuron, layer, class_name, exemplar_labels, closed_tab, closed_db, closed_icl, summary, points_dropped.

    Raises
    ------
    InputError
        The dissection has no such neuron.
    """
    if per_layer < 1:
        raise InputError(f"{per_layer} neurons per layer is none; ask for at least 1")
    with db.reading(engine) as session:
        about = subject(session, network, dissection)
        chosen = list(neurons) or queries.drawn_neurons(
            session, dissection=about.dissection_id, per_layer=per_layer, seed=seed
        )
        found = queries.neuron_outputs(session, dissection=about.dissection_id, neurons=chosen)
        check(session, about, chosen)
        return found


def stories(
    engine: sa.Engine,
    network: str,
    neurons: Sequence[str] = (),
    *,
    dissection: int | None = None,
    n: int = 3,
    seed: int = 0,
) -> list[Story]:
    """The way of neurons through the pipeline (paper, Figure 7).

    Parameters
    ----------
    neurons
        Names; empty: `n` hidden neurons of which calibration kept and dropped points, drawn at random with `seed`,
        each from another layer.

    Raises
    ------
    InputError
        The dissection has no such neuron.
    """
    with db.reading(engine) as session:
        about = subject(session, network, dissection)
        chosen = list(neurons) or queries.calibrated_neurons(session, dissection=about.dissection_id, n=n, seed=seed)
        check(session, about, chosen)
        threshold = session.scalar(
            sa.text("SELECT config ->> 'threshold' FROM dissections WHERE id = :id"), {"id": about.dissection_id}
        )
    return [_story(engine, about, name, float(threshold or 0.7)) for name in chosen]


def _story(engine: sa.Engine, about: Subject, name: str, threshold: float) -> Story:
    told = ask.neuron(engine, about.network, name, dissection=about.dissection_id)
    with db.reading(engine) as session:
        sounds = queries.exemplar_sounds(
            session, dissection=about.dissection_id, neurons=[told.description["neuron_id"]], n=about.top_k
        )
        calibration = told.description["calibration_id"]
        low_points = queries.low_points(session, calibration=calibration) if calibration else []
    files = {(row["side"], row["rank"]): row for row in sounds}
    exemplars = [row | files[row["side"], row["rank"]] for row in told.exemplars]
    places = {row["point"]: place for place, row in enumerate(low_points, start=1)}
    closed: dict[str, Rows] = {}
    for row in told.matches:
        if row["speaks"]:
            closed.setdefault(row["method"], []).append(row)
    return Story(
        told.description,
        [row for row in exemplars if row["side"] == "high"],
        [row for row in exemplars if row["side"] == "low"],
        [row | {"low": places.get(row["nearest_low_point"])} for row in told.points],
        low_points,
        closed,
        told.terms,
        threshold,
    )


def check(session: Session, about: Subject, names: Sequence[str]) -> None:
    """Every name is a neuron of the dissection."""
    known = queries.neurons_by_name(session, dissection=about.dissection_id, neurons=names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"no neuron '{unknown[0]}' in dissection {about.dissection_id} of '{about.network}'; write LAYER#UNIT, with one of "
            f"the layers {', '.join(about.layers)}"
        )


def sounds_of(session: Session, about: Subject, neurons: Sequence[str]) -> dict[str, Rows]:
    """Neuron -> the files of its K most active clips."""
    ids = queries.neurons_by_name(session, dissection=about.dissection_id, neurons=neurons)
    found: dict[str, Rows] = {name: [] for name in ids}
    for row in queries.exemplar_sounds(
        session, dissection=about.dissection_id, neurons=list(ids.values()), n=about.top_k
    ):
        if row["side"] == "high":
            found[row["neuron"]].append(row)
    return found
