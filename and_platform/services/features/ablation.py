"""Accuracy against the share of ablated neurons, chosen by what describes them (paper, 4.4 and Figure 4)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.config import settings
from and_platform.core import criteria as names
from and_platform.core.effects import share_interval
from and_platform.errors import InputError
from and_platform.queries import features as queries
from and_platform.schema import Experiment
from and_platform.services import ablations, experiments
from and_platform.services.ablations import Task, Unit
from and_platform.services.devices import device
from and_platform.services.experiments import Subject
from and_platform.services.held_out import HeldOut, held_out
from and_platform.services.progress import SILENT, Progress

Rows = list[dict[str, Any]]

SHARES = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
"""Percent of all hidden neurons, as in the paper."""
SEEDS = (0, 1, 2)


def ablate(
    engine: sa.Engine,
    network: str,
    *,
    shares: Sequence[float] = SHARES,
    seeds: Sequence[int] = SEEDS,
    criteria: Sequence[str] | None = None,
    basic: Sequence[str] | None = None,
    dissection: int | None = None,
    fold: int | None = None,
    progress: Progress = SILENT,
) -> Rows:
    """Accuracy on held-out clips after ablating the first r % of neurons by each criterion, for each seed.

    Shares are of all hidden neurons of the dissection; the head is never ablated. Neurons with equal counts are taken in
    random order by the seed; the selections of one seed are nested. For a single adjective the neurons that have it in
    C_open are ablated: a random draw of r % where they are more, all of them where they are fewer (`actual_share` says so).

    Parameters
    ----------
    shares
        Percent, above 0 and up to 100.
    criteria
        Of `core.criteria.NAMES`, or `adjective:WORD`; default: all.
    basic
        The basic adjectives; default: `ANDP_BASIC_ADJECTIVES`.
    fold
        Evaluate on this fold instead of the network's held-out one.

    Returns
    -------
    list of dict
        One per criterion, share and seed: `n_neurons`, `actual_share` (percent), `n_parameters`, `accuracy_before`,
        `accuracy`, `change`, mean probability of the true class `probability_before` and `probability`, `n_clips`; and what
        a figure says below. `core.criteria.over_seeds` gives mean and range over seeds.

    Raises
    ------
    InputError
        A share or criterion cannot be used, or there is nothing to evaluate on.
    IncompleteError
        The dissection lacks the stage that counts words.
    """
    shares, seeds = _checked(shares, seeds)
    basic = names.distinct_words(settings().basic_adjectives if basic is None else basic)
    criteria = names.settle(criteria, basic)
    with db.transaction(engine) as session:
        about = experiments.subject(session, network, dissection)
        for stage in ("extract", "calibrate"):
            experiments.stage_recipe(session, about, stage, "choosing neurons by their words")
        chosen = held_out(session, about, fold=fold)
        _, hidden = queries.dissected_neurons(session, dissection=about.dissection_id)
        if hidden == 0:
            raise InputError(f"dissection {about.dissection_id} covers no hidden layer, and the head is never ablated")
        words = [word for word in map(names.adjective, criteria) if word]
        having = queries.neurons_with_features(session, dissection=about.dissection_id, basic=basic, words=words)
        wanted = {*words, *(basic if set(criteria) & set(names.GROUPS) else ())}
        _caution(session, about, wanted, having, progress)
        recipe = experiments.plan(about, "feature_ablation", basic=sorted(basic), fold=chosen.fold, clips=chosen.sha256)
        experiment = experiments.begin(session, about, recipe).id
    if chosen.caution:
        progress.note(chosen.caution)
    asked = [Unit(criterion, share=share, seed=seed) for criterion in criteria for share in shares for seed in seeds]
    with ablations.in_turn(engine, experiment, progress):
        with db.reading(engine) as session:
            missing = ablations.missing(session, experiment, asked)
        if missing:
            ablations.measure(
                engine, about, experiment, chosen, _tasks(engine, about, missing, hidden, basic), len(missing),
                device=device(), progress=progress,
            )  # fmt: skip
    with db.transaction(engine) as session:
        rows = queries.feature_ablations(
            session, experiment=experiment, hidden=hidden, criteria=criteria, shares=shares, seeds=seeds
        )
        there = session.get_one(Experiment, experiment)
        if there.status != "complete":
            having = {**there.figures.get("neurons_with", {}), **having}
            experiments.complete(session, experiment, _figures(rows[0], chosen, hidden, basic, having))
    source = {"network": about.network, "dataset": about.dataset, "dissection": about.dissection_id,
              "recipe": recipe.sha256[:10], "hidden_neurons": hidden, "fold": chosen.fold}  # fmt: skip
    return [{**row, **source} for row in rows]


def _checked(shares: Sequence[float], seeds: Sequence[int]) -> tuple[list[float], list[int]]:
    if not shares or not seeds:
        raise InputError("give at least one share and one seed")
    for share in shares:
        if not 0 < share <= 100:
            raise InputError(f"a share of {share:g} % cannot be ablated; give percentages above 0 and up to 100")
    return sorted({float(share) for share in shares}), sorted(set(seeds))


def _caution(session: Session, about: Subject, words: set[str], having: dict[str, int], progress: Progress) -> None:
    """Say which of the adjectives describe no neuron: their curves show nothing."""
    absent = sorted(word for word in words if not having[names.of_adjective(word)])
    if not absent:
        return
    known = queries.open_words(session, dissection=about.dissection_id, part_of_speech="adjective")
    for word in absent:
        near = difflib.get_close_matches(word, known, n=3)
        hint = f"near ones that some have: {', '.join(near)}" if near else f"common ones: {', '.join([*known][:4])}"
        progress.note(
            f"caution: no hidden neuron has the adjective '{word}' in C_open, so that it chooses none; {hint}"
        )


def _tasks(
    engine: sa.Engine, about: Subject, missing: Sequence[Unit], hidden: int, basic: Sequence[str]
) -> Iterator[Task]:
    """One criterion after the other, since its selections overlap most; those of one seed are nested: one query."""
    for criterion, seed in dict.fromkeys((unit.strategy, unit.seed or 0) for unit in missing):
        units = [unit for unit in missing if (unit.strategy, unit.seed) == (criterion, seed)]
        sizes = [round(hidden * (unit.share or 0) / 100) for unit in units]
        word = names.adjective(criterion)
        with db.reading(engine) as session:
            ordered = queries.neurons_by_criterion(
                session, dissection=about.dissection_id, criterion="adjective" if word else criterion,
                words=[word] if word else basic, seed=seed, n=max(sizes),
            )  # fmt: skip
        for unit, n in zip(units, sizes, strict=True):
            selection: dict[str, list[int]] = {}
            for layer, index, _ in ordered[:n]:
                selection.setdefault(layer, []).append(index)
            yield Task(selection, [unit])


def _figures(
    row: dict[str, Any], chosen: HeldOut, hidden: int, basic: Sequence[str], having: dict[str, int]
) -> dict[str, Any]:
    n = len(chosen.clips)
    low, high = share_interval(round(row["accuracy_before"] * n), n)
    return {
        "hidden_neurons": hidden, "held_out_clips": n, "fold": chosen.fold, "accuracy": row["accuracy_before"],
        "accuracy_low": low, "accuracy_high": high, "basic_adjectives": list(basic), "neurons_with": having,
        "clips_without_class": chosen.without_class, "caution": chosen.caution,
    }  # fmt: skip
