"""How well the description of every neuron tells on which clips it is active, beside what permuted activations give.

Measures: Oikarinen et al., "Evaluating Neuron Explanations" (ICML 2025), in `core.metrics`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core import metrics
from and_platform.core.metrics import Ranks
from and_platform.core.names import normalise
from and_platform.errors import IncompleteError, InputError
from and_platform.queries import evaluation as queries
from and_platform.schema import Dissection, Experiment, Layer, Scoring
from and_platform.services import activations, class_mapping, embed, experiments, match, provenance
from and_platform.services.dissect import Options, Tools
from and_platform.services.exemplar_captions import read_exemplars
from and_platform.services.experiments import Subject
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan
from and_platform.services.summarise import SIDES

KIND = "explanations"
PERMUTATIONS = 1000
POSITIVE_SHARE = 0.05
"""Clips with the highest scores that a description is said to apply to, where scores are the reference; at least K."""
SEED = 0
LEVEL = 0.05
"""False discovery rate of `share_significant`."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ExplanationReport:
    """What `score` did."""

    experiment_id: int
    dissection_id: int
    computed: list[str]
    """Layers scored now."""
    reused: list[str]
    """Layers asked for that were scored before."""
    waiting: list[str]
    """Layers of the dissection that are still to be scored; the view shows the figures when there are none."""
    without_label: list[str]
    """Concepts of the set that no clip carries as a label: no score against labels for them."""


class _Column(NamedTuple):
    """Scores of one explanation of one layer's neurons, one entry per row to be written."""

    explanation: str
    reference: str
    units: NDArray[np.int64]
    concepts: list[str | None]
    n_positive: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]


class _Summaries(NamedTuple):
    """Calibrated summaries of a layer that say something, their vectors, and which clips each was not made of."""

    units: NDArray[np.int64]
    vectors: NDArray[np.float32]
    unseen: metrics.Bools
    """[summaries, captioned clips]"""


@dataclass(frozen=True)
class _Labels:
    """The labels of the clips that have any."""

    positions: NDArray[np.int64]
    names: list[str]
    carried: metrics.Bools
    """[labelled clips, labels]"""
    concepts: dict[int, NDArray[np.int64]]
    """Concept id -> positives among the labelled clips."""
    sha256: str
    """Hash of the labels of all clips and of the concept of each: both may change under the same clips."""


@dataclass(frozen=True)
class _Scores:
    """Scores of clips for concepts, and which clips have any."""

    p: NDArray[np.float32]
    positions: NDArray[np.int64]
    column: dict[int, int]


def score(
    engine: sa.Engine,
    network: str,
    *,
    dissection: int | None = None,
    layers: Sequence[str] | str | None = None,
    permutations: int = PERMUTATIONS,
    progress: Progress = SILENT,
) -> ExplanationReport:
    """Score the explanations of the neurons of every layer that has not been scored yet, a layer a transaction.

    Explanations: `closed_db`, `closed_tab`, `closed_icl`: the best concept by the function that speaks; `summary`: the calibrated
    summary; `best_label`: the label whose clips the activation separates best. References: `labels`, the clips that carry the
    concept as one of their labels; `scores`, the concept's scores in P, or for a summary the cosine of its vector and the
    caption's. Positive by scores are the 5 % of clips with the highest ones, at least K.

    All descriptions were made from the activations on these clips, which flatters them. Therefore a concept or label is compared
    with the best one of all that could have been chosen when the activations are permuted (`null_auprc`, `p_auprc`), and a
    summary is scored on the clips that it was not made of. Not accounted for: the correlation of a concept (`p_pearson` is for a
    concept given beforehand), and that `scores` are the very scores by which the concept was chosen.

    Parameters
    ----------
    layers
        Patterns on layer names; default: all layers of the dissection.
    permutations
        Of the activations; part of what the result is kept under.

    Raises
    ------
    InputError
        No layer of that pattern, or too few permutations.
    """
    if permutations < 1:
        raise InputError(f"{permutations} permutations say nothing; give 100 or more")
    with db.transaction(engine) as session:
        about = experiments.subject(session, network, dissection)
        chosen = _choose(about, layers)
        labels = _labels(session, about)
        experiment = experiments.begin(session, about, _plan(about, permutations, labels))
        experiment_id, done = experiment.id, set(_scored(experiment))
        config = session.get_one(Dissection, about.dissection_id).config
        rows = {
            layer.name: layer for layer in session.scalars(sa.select(Layer).where(Layer.network_id == about.network_id))
        }
        missing = [name for identity, name in _concepts(session, about).items() if identity not in labels.concepts]
    todo = [rows[name] for name in chosen if name not in done]
    if todo:
        tools = Tools(Options.from_mapping(config))
        judge = _Judge(engine, about, labels, tools, permutations, progress)
        with progress.stage("score explanations", sum(layer.n_units for layer in todo), "neurons") as advance:
            for layer in todo:
                _write(engine, about, experiment_id, layer, judge.columns(layer))
                advance(layer.n_units)
    with db.reading(engine) as session:
        there = _scored(session.get_one(Experiment, experiment_id))
    computed = [layer.name for layer in todo]
    return ExplanationReport(
        experiment_id, about.dissection_id, computed, [name for name in chosen if name not in computed],
        [name for name in about.layers if name not in there], missing,
    )  # fmt: skip


def _plan(about: Subject, permutations: int, labels: _Labels) -> RecipePlan:
    return experiments.plan(
        about, KIND, permutations=permutations, positive_share=POSITIVE_SHARE, at_least=about.top_k, seed=SEED,
        labels=labels.sha256, null="best of all", summaries_on="clips they were not made of",
    )  # fmt: skip


def _choose(about: Subject, layers: Sequence[str] | str | None) -> list[str]:
    if layers is None:
        return about.layers
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not fnmatch.filter(about.layers, pattern):
            raise InputError(
                f"dissection {about.dissection_id} has no layer '{pattern}'; it covers: {', '.join(about.layers)}"
            )
    return [name for name in about.layers if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _scored(experiment: Experiment) -> list[str]:
    """Layers of an experiment that are there; kept in its row, so that they go when it goes."""
    return list(experiment.figures.get("layers", []))


def _concepts(session: Session, about: Subject) -> dict[int, str]:
    return class_mapping.concept_names(session, about.concept_set_id).names


def _labels(session: Session, about: Subject) -> _Labels:
    """All labels of a clip count; a clip without any is left out, since nothing is known of it."""
    of_clips = [
        {normalise(label) for label in labels}
        for labels in queries.clip_labels(session, probing_set=about.probing_set_id)
    ]
    positions = np.asarray([place for place, labels in enumerate(of_clips) if labels], np.int64)
    names = sorted(set().union(*of_clips))
    places = {name: place for place, name in enumerate(names)}
    carried = np.zeros((len(positions), len(names)), bool)
    for row, place in enumerate(positions):
        carried[row, [places[name] for name in of_clips[place]]] = True
    named: dict[int, list[int]] = {}
    meant = class_mapping.label_concepts(session, about.network_id, about.concept_set_id, names)
    for label, concept in meant.items():
        named.setdefault(concept, []).append(places[label])
    concepts = {concept: np.flatnonzero(carried[:, of].any(axis=1)) for concept, of in named.items()}
    written = _concepts(session, about)
    sha256 = provenance.sha256_of(
        [[sorted(labels) for labels in of_clips], {label: written[concept] for label, concept in meant.items()}]
    )
    return _Labels(positions, names, carried, concepts, sha256)


# ---------------------------------------------------------------------- one layer


class _Judge:
    """Scores the explanations of a layer's neurons; what all layers share is read once."""

    def __init__(
        self,
        engine: sa.Engine,
        about: Subject,
        labels: _Labels,
        tools: Tools,
        permutations: int,
        progress: Progress,
    ) -> None:
        self._engine, self._about, self._labels, self._permutations = engine, about, labels, permutations
        self._nulls: dict[tuple[int, int], metrics.Null] = {}
        self._best: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._progress = progress
        with db.reading(engine) as session:
            self._concepts = _concepts(session, about)
            self._scores = {
                method: _read_scores(session, about, method) for method in ("db", "tab") if method in about.methods
            }
            self._calibrate = experiments.stage_recipe(session, about, "calibrate", "the score of summaries")
            captions = queries.captioned_clips(
                session, probing_set=about.probing_set_id,
                caption_recipe=experiments.stage_recipe(session, about, "caption", "the score of summaries"),
            )  # fmt: skip
        self._captioned = np.asarray([row.position for row in captions], np.int64)
        self._encoder = tools.sentence_encoder
        texts = [row.text_id for row in captions]
        self._encoder_id = embed.embed_texts(engine, self._encoder, texts, name="embed captions", progress=progress)
        with db.reading(engine) as session:
            self._captions = embed.text_vectors(session, self._encoder_id, texts) if texts else None

    def columns(self, layer: Layer) -> list[_Column]:
        """All scores of a layer."""
        if self._captions is not None:
            embed.embed_summaries(self._engine, self._encoder, self._calibrate, [layer])
        with db.reading(self._engine) as session:
            values = activations.read_layer(session, self._about.recording_id, layer, self._about.n_clips)
            best: dict[str, dict[int, int]] = {}
            for row in queries.best_concepts(session, dissection=self._about.dissection_id, layer=layer.id):
                best.setdefault(row.method, {})[row.unit] = row.concept_id
            summaries = self._read_summaries(session, layer)
        return list(self._all(values, best, summaries))

    def _all(
        self,
        values: activations.Half,
        best: Mapping[str, Mapping[int, int]],
        summaries: _Summaries | None,
    ) -> Iterator[_Column]:
        varies = ~metrics.constant(values)
        if self._labels.names:
            labelled = values[:, self._labels.positions]
            ranks = metrics.rank(labelled)
            yield self._best_label(labelled, ranks, varies)
            for method, chosen in best.items():
                yield from self._by_labels(method, chosen, labelled, ranks, varies)
        for method, scores in self._scores.items():
            units = np.asarray([u for u, concept in best.get(method, {}).items() if concept in scores.column], np.int64)
            if units.size:
                concepts = [best[method][int(unit)] for unit in units]
                target = scores.p[:, [scores.column[concept] for concept in concepts]].T
                n = self._n_positive(len(scores.p))
                null = self._null_of_best(f"closed_{method}", "scores", len(scores.p), _highest(scores.p.T, n))
                yield self._by_scores(
                    f"closed_{method}", units, [self._concepts[concept] for concept in concepts],
                    values[np.ix_(units, scores.positions)], target, varies, null,
                )  # fmt: skip
        if summaries is not None:
            yield from self._of_summaries(summaries, values, varies)

    def _of_summaries(
        self, summaries: _Summaries, values: activations.Half, varies: metrics.Bools
    ) -> Iterator[_Column]:
        """Against the captions of the clips that each summary was not made of; these are as many for nearly all."""
        assert self._captions is not None
        n_unseen = summaries.unseen.sum(axis=1)
        for n in np.unique(n_unseen[n_unseen > 1]):
            rows = np.flatnonzero(n_unseen == n)
            units = summaries.units[rows]
            places = summaries.unseen[rows].nonzero()[1].reshape(rows.size, n)
            target = np.take_along_axis(summaries.vectors[rows] @ self._captions.T, places, axis=1)
            mine = np.take_along_axis(values[np.ix_(units, self._captioned)], places, axis=1)
            yield self._by_scores("summary", units, [None] * units.size, mine, target, varies, None)

    def _best_label(self, values: activations.Half, ranks: Ranks, varies: metrics.Bools) -> _Column:
        units = np.flatnonzero(varies)
        every = metrics.label_average_precision(ranks, self._labels.carried)[units]
        chosen = every.argmax(axis=1)
        auprc = every[np.arange(units.size), chosen]
        n_positive = self._labels.carried.sum(axis=0)[chosen]
        f1, iou = (np.full(len(values), np.nan) for _ in range(2))
        for label in np.unique(chosen):
            mine = units[chosen == label]
            f1[mine], iou[mine] = metrics.f1_iou(_of(ranks, mine), self._labels.carried[:, label])
        correlated = metrics.pearson(values[units], self._labels.carried)[np.arange(units.size), chosen]
        carriers = [np.flatnonzero(column) for column in self._labels.carried.T]
        null = self._null_of_best("best_label", "labels", len(self._labels.positions), carriers)
        chance = [self._null(len(self._labels.positions), int(n)) for n in n_positive]
        return _Column(
            "best_label", "labels", units, [self._labels.names[label] for label in chosen], n_positive,
            {
                "auprc": auprc, "pearson": correlated, "f1": f1[units], "iou": iou[units],
                "null_auprc": np.full(units.size, null.mean()),
                # A correlation of the label that separates best has no permutation of its own.
                "null_pearson": np.full(units.size, np.nan),
                "null_f1": np.asarray([one.f1 for one in chance]), "null_iou": np.asarray([one.iou for one in chance]),
                "p_auprc": metrics.p_values(auprc, null), "p_pearson": np.full(units.size, np.nan),
            },
        )  # fmt: skip

    def _by_labels(
        self,
        method: str,
        chosen: Mapping[int, int],
        values: activations.Half,
        ranks: Ranks,
        varies: metrics.Bools,
    ) -> Iterator[_Column]:
        """The concepts that are labels, against the clips that carry them."""
        units = np.asarray([u for u, c in chosen.items() if c in self._labels.concepts], np.int64)
        if not units.size:
            return
        concepts = np.asarray([chosen[int(unit)] for unit in units])
        n_clips = values.shape[1]
        target = np.zeros((units.size, n_clips), np.float32)
        found = {name: np.full(units.size, np.nan) for name in ("auprc", "f1", "iou")}
        for concept in np.unique(concepts):
            rows = np.flatnonzero(concepts == concept)
            positives = self._labels.concepts[int(concept)]
            target[np.ix_(rows, positives)] = 1
            mine = _of(ranks, units[rows])
            found["auprc"][rows] = metrics.average_precision(mine, positives)
            found["f1"][rows], found["iou"][rows] = metrics.f1_iou(mine, positives)
        n_positive = target.sum(axis=1).astype(np.int64)
        null = self._null_of_best("closed", "labels", n_clips, list(self._labels.concepts.values()))
        yield self._with_chance(
            f"closed_{method}", "labels", units, [self._concepts[int(c)] for c in concepts], n_positive, values[units], target,
            found, varies, null,
        )  # fmt: skip

    def _n_positive(self, n_clips: int) -> int:
        """How many clips a description is said to apply to, where scores are the reference."""
        return min(n_clips, max(self._about.top_k, math.ceil(POSITIVE_SHARE * n_clips)))

    def _by_scores(
        self,
        explanation: str,
        units: NDArray[np.int64],
        concepts: Sequence[str | None],
        values: activations.Half,
        target: NDArray[np.float32],
        varies: metrics.Bools,
        null: NDArray[np.float64] | None,
    ) -> _Column:
        """Against the clips with the highest scores; the correlation is with the scores themselves."""
        n = self._n_positive(target.shape[1])
        positives = _highest(target, n)
        ranks = metrics.rank(values)
        f1, iou = metrics.f1_iou(ranks, positives)
        found = {"auprc": metrics.average_precision(ranks, positives), "f1": f1, "iou": iou}
        return self._with_chance(
            explanation, "scores", units, concepts, np.full(units.size, n), values, target, found, varies, null
        )

    def _with_chance(
        self,
        explanation: str,
        reference: str,
        units: NDArray[np.int64],
        concepts: Sequence[str | None],
        n_positive: NDArray[np.int64],
        values: activations.Half,
        target: NDArray[np.float32],
        found: Mapping[str, NDArray[np.float64]],
        varies: metrics.Bools,
        null: NDArray[np.float64] | None,
    ) -> _Column:
        """Add what permuted activations give: `null`, or that of one description of so many clips.

        A neuron with the same activation everywhere has no score at all.
        """
        correlated = metrics.correlation(values, target, self._permutations, SEED)
        columns = {name: np.where(varies[units], of, np.nan) for name, of in found.items()}
        columns |= {"pearson": correlated.observed, "null_pearson": correlated.null_95, "p_pearson": correlated.p}
        for name in ("null_auprc", "null_f1", "null_iou", "p_auprc"):
            columns[name] = np.empty(units.size)
        for n in np.unique(n_positive):
            rows = n_positive == n
            chance = self._null(values.shape[1], int(n))
            permuted = chance.average_precision if null is None else null
            columns["null_auprc"][rows] = permuted.mean()
            columns["null_f1"][rows], columns["null_iou"][rows] = chance.f1, chance.iou
            columns["p_auprc"][rows] = metrics.p_values(columns["auprc"][rows], permuted)
        return _Column(explanation, reference, units, list(concepts), n_positive, columns)

    def _null_of_best(
        self, explanation: str, reference: str, n_clips: int, positives: Sequence[NDArray[Any]] | NDArray[Any]
    ) -> NDArray[np.float64]:
        """What the best of all descriptions reaches when activations are permuted; once for all layers."""
        key = explanation, reference
        if key not in self._best:
            with self._progress.stage(f"permute: {explanation} by {reference}", None, "permutations"):
                self._best[key] = metrics.null_of_best(n_clips, positives, self._permutations, SEED)
        return self._best[key]

    def _null(self, n_clips: int, n_positive: int) -> metrics.Null:
        if (n_clips, n_positive) not in self._nulls:
            self._nulls[n_clips, n_positive] = metrics.null(n_clips, n_positive, self._permutations, SEED)
        return self._nulls[n_clips, n_positive]

    def _read_summaries(self, session: Session, layer: Layer) -> _Summaries | None:
        if self._captions is None:
            return None
        units = queries.summarised_units(
            session, calibrate_recipe=self._calibrate, encoder=self._encoder_id, layer=layer.id
        )
        if not units:
            return None
        vectors = db.read_vectors(
            session,
            "SELECT e.embedding FROM neurons n JOIN calibrations c ON c.neuron_id = n.id AND c.recipe_id = %s"
            " JOIN summary_embeddings e ON e.calibration_id = c.id AND e.encoder_id = %s"
            " WHERE n.layer_id = %s ORDER BY n.unit",
            (self._calibrate, self._encoder_id, layer.id),
        )
        unseen = np.ones((len(units), self._about.n_clips + 1), bool)  # the last column takes what is no position (-1)
        for side in SIDES:
            made_of = read_exemplars(session, self._about.recording_id, layer, side, self._about.top_k)[units]
            np.put_along_axis(unseen, made_of, False, axis=1)
        return _Summaries(np.asarray(units, np.int64), vectors, unseen[:, self._captioned])


def _highest(scores: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Positions of the n highest scores of each row, ties by position."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :n]


def _of(ranks: Ranks, units: NDArray[np.int64]) -> Ranks:
    return Ranks(ranks.place[units], ranks.at_least[units])


def _read_scores(session: Session, about: Subject, method: str) -> _Scores:
    recipe = experiments.stage_recipe(session, about, f"score.{method}", "the score of concepts")
    scoring = session.scalars(sa.select(Scoring.id).where(Scoring.recipe_id == recipe)).one_or_none()
    if scoring is None:
        raise IncompleteError(
            f"dissection {about.dissection_id} has not been matched by {method}; "
            f"run: andp dissect {about.network} --dataset {about.dataset}"
        )
    p, valid, ids = match.read_scores(session, scoring)
    positions = np.flatnonzero(valid)
    return _Scores(p[positions], positions, {identity: column for column, identity in enumerate(ids)})


_COLUMNS = (
    "auprc", "pearson", "f1", "iou", "null_auprc", "null_pearson", "null_f1", "null_iou", "p_auprc", "p_pearson",
)  # fmt: skip


def _write(engine: sa.Engine, about: Subject, experiment_id: int, layer: Layer, columns: Sequence[_Column]) -> None:
    """The rows of a layer, and that they are there; the experiment is complete with its last layer."""
    with db.transaction(engine) as session:
        # Another process may be at the same layer: one writes, the other one finds it done.
        experiment = session.get_one(Experiment, experiment_id, with_for_update=True)
        done = _scored(experiment)
        if layer.name in done:
            return
        neurons = activations.neuron_ids(session, layer.id)
        db.copy_rows(
            session, "explanation_scores",
            {"experiment_id": "int8", "neuron_id": "int8", "explanation": "text", "reference": "text", "concept": "text",
             "n_positive": "int4", **dict.fromkeys(_COLUMNS, "float4")},
            (row for column in columns for row in _rows(experiment_id, neurons, column)),
        )  # fmt: skip
        figures = {**experiment.figures, "layers": [*done, layer.name]}
        if set(about.layers) <= {*done, layer.name}:
            experiments.complete(session, experiment_id, figures)
        else:
            experiment.figures = figures


def _rows(experiment_id: int, neurons: Sequence[int], column: _Column) -> Iterator[tuple[Any, ...]]:
    values = np.column_stack([column.values[name] for name in _COLUMNS])
    for unit, concept, n, of in zip(
        column.units.tolist(), column.concepts, column.n_positive.tolist(), values.tolist(), strict=True
    ):
        known = [None if math.isnan(value) else value for value in of]
        yield experiment_id, neurons[unit], column.explanation, column.reference, concept, n, *known


# ---------------------------------------------------------------------- reading


def by_layer(
    engine: sa.Engine,
    network: str,
    *,
    dissection: int | None = None,
    layers: Sequence[str] | str | None = None,
    experiment: int | None = None,
) -> Rows:
    """The scores by layer, explanation and reference, of one scoring; default: the latest one of the dissection.

    Returns
    -------
    list of dict
        layer, layer_kind, block, explanation, reference, n (neurons), n_scored (those that vary), mean_auprc, median_auprc,
        null_auprc (mean on permuted activations, of the best that could have been chosen), mean_pearson, mean_f1, mean_iou,
        share_significant (of the scored neurons, those with p < 0.05 after Benjamini and Hochberg's correction within the
        row's neurons), auprc (one value per neuron).

    Raises
    ------
    IncompleteError
        Nothing has been scored.
    """
    from scipy.stats import false_discovery_control

    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        chosen = None if layers is None else _choose(about, layers)
        rows = queries.explanation_layers(session, experiment=experiment or _latest(session, about).id, layers=chosen)
    for row in rows:
        p, auprc = row.pop("p"), row.pop("auprc")
        row["share_significant"] = float(np.mean(false_discovery_control(p) < LEVEL)) if p else None
        row["auprc"] = auprc or []
    return rows


def by_neuron(
    engine: sa.Engine,
    network: str,
    *,
    dissection: int | None = None,
    layers: Sequence[str] | str | None = None,
    experiment: int | None = None,
    limit: int | None = None,
) -> Rows:
    """The scores neuron by neuron, those with the highest average precision first.

    Raises
    ------
    IncompleteError
        Nothing has been scored.
    """
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        chosen = None if layers is None else _choose(about, layers)
        return queries.explanation_neurons(
            session, experiment=experiment or _latest(session, about).id, layers=chosen, n=limit
        )


def footer(
    engine: sa.Engine,
    network: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    dissection: int | None = None,
    experiment: int | None = None,
) -> str:
    """The line under a figure of `rows` (of `by_layer`)."""
    neurons: dict[str, int] = {}
    for row in rows:
        neurons[row["layer"]] = max(neurons.get(row["layer"], 0), row["n"])
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        said = f"{sum(neurons.values()):,} neurons, {about.n_clips:,} clips"
        return experiments.footer(session, about, experiment or _latest(session, about).id, said)


def _latest(session: Session, about: Subject) -> Experiment:
    """The latest complete scoring; the latest one under way where none is complete."""
    found = (
        experiments.latest(session, about, KIND)
        or session.scalars(
            sa.select(Experiment)
            .where(Experiment.kind == KIND, Experiment.dissection_id == about.dissection_id)
            .order_by(Experiment.id.desc())
            .limit(1)
        ).first()
    )
    if found is None or not _scored(found):
        raise IncompleteError(
            f"the explanations of dissection {about.dissection_id} have not been scored; "
            f"run: andp eval explanations {about.network}"
        )
    return found
