"""Whether neurons described by a word respond to sounds that are so, as measured (paper, appendix C and Figure 8)."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.effects import compare
from and_platform.errors import InputError, NotFoundError
from and_platform.queries import features as queries
from and_platform.schema import Recipe
from and_platform.services import experiments
from and_platform.services.experiments import Subject

MEASURES = {"amplitude": "mean absolute amplitude", "mdf": "median frequency (Hz)"}
"""What exemplars are measured by, and what figures call it."""

DEFAULT_WORDS = {"loud": "amplitude", "high-pitched": "mdf"}
"""Figure 8 of the paper: word -> measure."""

_MEASURED_CAPTIONS = ("describer", "joined")
_FEWEST = 2


def measures_of(word: str, measure: str | None = None) -> list[str]:
    """The measures to look at for a word: the one named, the paper's for its two words, else all."""
    if measure is not None:
        return [measure]
    return [DEFAULT_WORDS[word]] if word in DEFAULT_WORDS else list(MEASURES)


def acoustics(
    engine: sa.Engine, network: str, word: str, measure: str, *, dissection: int | None = None
) -> dict[str, Any]:
    """Compare the K high exemplars of neurons with and without a word in C_open by a measure of their sound.

    The value of a neuron is the mean over its K exemplars; all layers count, the head too; constant neurons do not. The
    tests take neurons for independent, which they are not (they share exemplars): p is too small, the effects are not.

    Parameters
    ----------
    word
        As it is in C_open (lemma, lower case).
    measure
        Of `MEASURES`.

    Returns
    -------
    dict
        `n_with`, `n_without`, `mean_*`, `median_*`; Mann-Whitney: `u`, `p_mann_whitney`, `rank_biserial`; Welch: `t`, `df`,
        `p_welch`; `hedges_g` with 95 % interval `g_low` to `g_high`; effects above 0: larger with the word. `values`:
        {"with": [...], "without": [...]}, one value per neuron. `caution`: what a reader must know, or None.

    Raises
    ------
    NotFoundError
        No neuron has the word; near ones are named.
    InputError
        No such measure, or a group has fewer than two neurons.
    IncompleteError
        The dissection has no terms.
    """
    if measure not in MEASURES:
        raise InputError(f"no measure '{measure}'; there are: {', '.join(MEASURES)}")
    word = word.strip().lower()
    with db.transaction(engine) as session:
        about = experiments.subject(session, network, dissection)
        experiments.stage_recipe(session, about, "extract", "comparing neurons by a word")
        rows = queries.word_acoustics(session, dissection=about.dissection_id, word=word, measure=measure)
        if not any(row.has_word for row in rows):
            raise NotFoundError(_unknown(session, about, word))
        measured = [row for row in rows if not row.is_constant and row.value is not None]
        groups = {
            "with": [float(row.value) for row in measured if row.has_word],
            "without": [float(row.value) for row in measured if not row.has_word],
        }
        for name, values in groups.items():
            if len(values) < _FEWEST:
                raise InputError(
                    f"{len(values)} neurons {name} '{word}' in C_open have measured exemplars; a comparison needs "
                    f"at least {_FEWEST} with it and {_FEWEST} without"
                )
        recipe = experiments.plan(about, "word_acoustics", word=word, measure=measure)
        experiment = experiments.begin(session, about, recipe)
        figures = experiment.figures
        if experiment.status != "complete":
            figures = _figures(groups, len(rows) - len(measured))
            experiments.complete(session, experiment.id, figures)
        return {
            "network": about.network, "word": word, "measure": measure, "unit": MEASURES[measure], **figures,
            "caution": _circular(session, about), "dataset": about.dataset, "dissection": about.dissection_id,
            "recipe": recipe.sha256[:10], "experiment": experiment.id, "k": about.top_k, "values": groups,
        }  # fmt: skip


def _figures(groups: dict[str, list[float]], left_out: int) -> dict[str, Any]:
    told = asdict(compare(groups["with"], groups["without"]))
    named = {
        key.removesuffix("_a") + "_with" if key.endswith("_a") else key.removesuffix("_b") + "_without"
        if key.endswith("_b") else key: value
        for key, value in told.items()
    }  # fmt: skip
    return {**named, "neurons_left_out": left_out}


def _circular(session: Session, about: Subject) -> str | None:
    """Captions made of the measurements say loud where the measurement is large: no finding about the network."""
    maker = session.scalar(
        sa.select(Recipe.backend).where(
            Recipe.id == experiments.stage_recipe(session, about, "caption", "the captions")
        )
    )
    if maker not in _MEASURED_CAPTIONS:
        return None
    return "the captions are made from acoustic measurements, these among them: words and measurements agree by construction"


def _unknown(session: Session, about: Subject, word: str) -> str:
    known = queries.open_words(session, dissection=about.dissection_id)
    near = difflib.get_close_matches(word, known, n=3)
    hint = f"did you mean: {', '.join(near)}?" if near else f"common words: {', '.join([*known][:5])}"
    return f"no neuron of '{about.network}' has '{word}' in C_open; {hint}"
