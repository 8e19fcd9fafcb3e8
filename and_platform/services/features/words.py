"""Adjectives of neurons: which are common (Figures 3 and 9), and how many a neuron has by block (Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.effects import fit_line, mean_interval
from and_platform.errors import InputError
from and_platform.queries import features as queries
from and_platform.services import experiments
from and_platform.services.experiments import Subject

Rows = list[dict[str, Any]]


def adjectives(
    engine: sa.Engine, networks: Sequence[str], *, top: int | None = 10, dissection: int | None = None
) -> Rows:
    """The adjectives that most neurons have in C_open, by network (paper, Figures 3 and 9); all layers, the head too.

    Parameters
    ----------
    top
        How many of each network; None: all.
    dissection
        Instead of the current one; with one network only.

    Returns
    -------
    list of dict
        `network`, `rank`, `adjective`, `n_neurons`, `share` (of all dissected neurons, 0 to 1), `n_occurrences`, and what
        a figure says below: `dataset`, `dissection`, `recipe`, `of_neurons`.

    Raises
    ------
    IncompleteError
        A dissection has no terms.
    """
    found: Rows = []
    with db.reading(engine) as session:
        for about in _subjects(session, networks, dissection, "counting adjectives"):
            of_neurons, _ = queries.dissected_neurons(session, dissection=about.dissection_id)
            for row in queries.commonest_adjectives(session, dissection=about.dissection_id, top=top):
                found.append({
                    "network": about.network, "rank": row["rank"], "adjective": row["adjective"],
                    "n_neurons": row["n_neurons"], "share": row["share"], "n_occurrences": row["n_occurrences"],
                    **_source(about), "of_neurons": of_neurons,
                })  # fmt: skip
    return found


def blocks(engine: sa.Engine, networks: Sequence[str], *, dissection: int | None = None) -> tuple[Rows, Rows]:
    """Mean number of distinct adjectives per neuron by block, and a line fitted over neurons (paper, Figure 5).

    The head counts with the last block, as in the paper; layers outside blocks do not count. The intervals take
    neurons for independent, which those of one block are not (they share clips and captions): they are too narrow.

    Returns
    -------
    rows : list of dict
        By network and block: `n_neurons`, `mean` with 95 % interval `low` to `high` and `sd`, and the line there: `fitted`,
        `fitted_low`, `fitted_high` (None where no line can be fitted).
    fits : list of dict
        By network: `slope` (adjectives per block) with `slope_low`, `slope_high`, `p`, `intercept`, `r`, `n_neurons`,
        `n_blocks`; None for what one block alone does not give.

    Raises
    ------
    InputError
        A network has no blocks.
    IncompleteError
        A dissection has no terms.
    """
    rows: Rows = []
    fits: Rows = []
    with db.reading(engine) as session:
        for about in _subjects(session, networks, dissection, "counting adjectives by block"):
            counted = queries.adjectives_by_block(session, dissection=about.dissection_id)
            if not counted:
                raise InputError(f"'{about.network}' has no layers in blocks, so there is no figure by block")
            line = fit_line(*zip(*counted, strict=True))
            numbers = []
            for block, members in groupby(counted, key=lambda row: row[0]):
                numbers.append(block)
                values = list(members)
                told = mean_interval([n for _, n, _ in values], [times for _, _, times in values])
                fitted = [float(part) for part in line.at(block)] if line else [None] * 3
                rows.append({
                    "network": about.network, "block": block, "n_neurons": told.n, "mean": told.mean, "low": told.low,
                    "high": told.high, "sd": told.sd, "fitted": fitted[0], "fitted_low": fitted[1],
                    "fitted_high": fitted[2], **_source(about),
                })  # fmt: skip
            fits.append({
                "network": about.network, "n_neurons": sum(times for _, _, times in counted), "n_blocks": len(numbers),
                **{key: getattr(line, key) if line else None
                   for key in ("slope", "slope_low", "slope_high", "p", "intercept", "r")},
                **_source(about),
            })  # fmt: skip
    return rows, fits


def _subjects(session: Session, networks: Sequence[str], dissection: int | None, needed_for: str) -> list[Subject]:
    if dissection is not None and len(networks) > 1:
        raise InputError("--dissection goes with one network; leave it out to compare the current ones")
    found = [experiments.subject(session, network, dissection) for network in dict.fromkeys(networks)]
    for about in found:
        experiments.stage_recipe(session, about, "extract", needed_for)
    return found


def _source(about: Subject) -> dict[str, Any]:
    """What a figure says below."""
    return {"dataset": about.dataset, "dissection": about.dissection_id, "recipe": about.sha256[:10]}
