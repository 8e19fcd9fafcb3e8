"""Do the concepts found for the units of the head name their classes? Tables 2 and 7 of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends import registry
from and_platform.backends.base import LLM, TextEncoder
from and_platform.core.metrics import bootstrap_interval
from and_platform.core.names import normalise
from and_platform.errors import IncompleteError, InputError
from and_platform.queries import evaluation as queries
from and_platform.schema import Concept, Dissection, Experiment, Layer, Network
from and_platform.services import (
    activations,
    class_mapping,
    embed,
    experiments,
    generate,
    held_out,
    icl,
    published,
)
from and_platform.services.class_mapping import MappedClass
from and_platform.services.dissect import Options, Tools
from and_platform.services.experiments import Subject
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan
from and_platform.services.texts import text_ids

KIND = "last_layer"
TOP = 5
RESAMPLES = 10_000
SEED = 0
MEASURES = ("top_1", "top_5", "cosine_sentence", "cosine_concept")
FUNCTIONS = ("llm", "cos", "cos_cubed", "rank_reorder", "wpmi", "soft_wpmi")
FIVE = "llm_five"
"""Under which the LLM's five names are kept, beside its one name (`llm`)."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LastLayerReport:
    """What `evaluate` found, from the database."""

    experiment_id: int
    dissection_id: int
    network: str
    dataset: str
    concept_set: str
    n_concepts: int
    rows: Rows
    """method, similarity, speaks (stated beforehand for the method), over (all, right), measure, n, value, low, high."""
    accuracy: dict[str, Any] | None
    """The network's own: value, n_clips, fold, caution, by_class; None: see `notes`."""
    unmapped: list[str]
    """Classes without a concept: they are in no measure."""
    names: Rows
    """Per class: unit, class_name, concept, how, right (the network gets it right), and by method what was found first."""
    found: Rows
    """Per class, method and function: the concepts, best first, with the cosines of the first."""
    notes: list[str]
    footer: str

    def value(self, method: str, similarity: str, measure: str, over: str = "all") -> float | None:
        """One measure; None where it was not computed."""
        for row in self.rows:
            if (row["method"], row["similarity"], row["measure"], row["over"]) == (method, similarity, measure, over):
                return None if row["value"] is None else float(row["value"])
        return None


class _Found(NamedTuple):
    """Concepts of each unit by one method and function, best first."""

    method: str
    similarity: str
    concepts: dict[int, list[int]]


def evaluate(
    engine: sa.Engine,
    network: str,
    *,
    dissection: int | None = None,
    llm: LLM | str | None = None,
    ask: bool = True,
    progress: Progress = SILENT,
) -> LastLayerReport:
    """Evaluate the concepts of the head's units against the classes, once; later calls read what was found.

    Over all classes that are concepts, and over those of them that the network itself gets right: it predicts most of
    their held-out clips, by the recorded logits (float16; no forward pass). Intervals: percentile bootstrap over classes.

    Parameters
    ----------
    llm
        Who is asked for five concepts per class, for the top 5 of ICL: an LLM or the name of one. Default: the dissection's own.
        Nobody is asked where the dissection has no ICL.
    ask
        False: leave the top 5 of ICL out.

    Raises
    ------
    InputError
        The network has no class names, or an LLM was given and the dissection has no ICL.
    IncompleteError
        The dissection does not cover the head, or the LLM left questions open.
    BackendError
        The LLM cannot be reached.
    """
    with db.transaction(engine) as session:
        about = experiments.subject(session, network, dissection)
        mapped = class_mapping.map_classes(session, about.network_id, about.concept_set_id)
        config = session.get_one(Dissection, about.dissection_id).config
        head = session.scalars(
            sa.select(Layer).where(Layer.network_id == about.network_id, Layer.kind == "head")
        ).one_or_none()
        if head is None or head.name not in about.layers:
            raise IncompleteError(
                f"dissection {about.dissection_id} does not cover the head of '{about.network}'; "
                f"run: andp dissect {about.network} --dataset {about.dataset}"
            )
    tools = Tools(Options.from_mapping(config))
    asked = _llm(about, config, tools, llm) if ask else None
    with db.transaction(engine) as session:
        experiment = experiments.begin(session, about, _plan(session, about, mapped, asked))
        done, experiment_id = experiment.status == "complete", experiment.id
    if not done:
        five = _ask_five(engine, about, asked, tools.sentence_encoder, progress) if asked else {}
        _compute(engine, about, experiment_id, head, mapped, tools, five, progress)
    with db.reading(engine) as session:
        return _report(session, about, experiment_id, mapped)


def _llm(about: Subject, config: Mapping[str, Any], tools: Tools, given: LLM | str | None) -> LLM | None:
    """Who is asked for five names."""
    if "icl" not in about.methods:
        if given is None:
            return None
        raise InputError(
            f"dissection {about.dissection_id} has no concepts picked by an LLM; "
            f"run: andp dissect {about.network} --dataset {about.dataset} --llm …"
        )
    if isinstance(given, str):
        made: LLM = registry.create("llm", given, **(config.get("llm_options") or {}))
        return made
    if given is None and config.get("llm"):
        return tools.llm
    return given


def _plan(session: Session, about: Subject, mapped: Sequence[MappedClass], llm: LLM | None) -> RecipePlan:
    # The encoders are those of the dissection, whose hash holds theirs. The clips decide which classes count as right.
    try:
        clips = held_out.held_out(session, about).sha256
    except InputError:
        clips = None
    return experiments.plan(
        about, KIND, top=TOP, resamples=RESAMPLES, seed=SEED,
        clips=clips, concepts=[one.concept for one in mapped], llm=generate.plan(llm).sha256 if llm else None,
    )  # fmt: skip


def _ask_five(
    engine: sa.Engine, about: Subject, llm: LLM, encoder: TextEncoder, progress: Progress
) -> dict[int, list[int]]:
    """Unit -> the five concepts that the LLM names for its calibrated summary."""
    with db.reading(engine) as session:
        units = [row for row in queries.head_units(session, dissection=about.dissection_id) if row.summary]
        concepts = session.execute(
            sa.select(Concept.id, Concept.name, Concept.text_id)
            .where(Concept.concept_set_id == about.concept_set_id)
            .order_by(Concept.position)
        ).all()
    told = icl.five(
        engine,
        llm,
        encoder,
        [(row.id, row.name, row.text_id) for row in concepts],
        [row.summary for row in units],
        progress=progress,
    )
    open_ = [f"head#{row.unit}" for row, names in zip(units, told, strict=True) if names is None]
    if open_:
        raise IncompleteError(
            f"the LLM gave no five names for {len(open_)} of {len(units)} units ({', '.join(open_[:3])}); "
            "run the same command again, or leave them out with --no-llm"
        )
    return {row.unit: names for row, names in zip(units, told, strict=True) if names}


# ---------------------------------------------------------------------- computing


def _compute(
    engine: sa.Engine,
    about: Subject,
    experiment_id: int,
    head: Layer,
    mapped: Sequence[MappedClass],
    tools: Tools,
    five: dict[int, list[int]],
    progress: Progress,
) -> None:
    with db.reading(engine) as session:
        found = _matches(session, about, five)
        neurons = {row.unit: row.neuron_id for row in queries.head_units(session, dissection=about.dissection_id)}
        accuracy, why = _accuracy(session, about, head)
        names = dict(
            session.execute(
                sa.select(Concept.id, Concept.name).where(Concept.concept_set_id == about.concept_set_id)
            ).all()
        )
    used = {names[concept] for one in found for concepts in one.concepts.values() for concept in concepts}
    texts = sorted(used | {normalise(one.class_name) for one in mapped})
    sentence = _cosines(engine, tools.sentence_encoder, texts, progress)
    by_method = {
        method: _cosines(engine, tools.scoring_encoder("tab" if method == "tab" else "db"), texts, progress)
        for method in dict.fromkeys(one.method for one in found)
    }
    kept = [
        (experiment_id, one.method, one.similarity, neurons[unit], place, concept,
         sentence(class_name, names[concept]), by_method[one.method](class_name, names[concept]))
        for one in found
        for unit, concepts in sorted(one.concepts.items())
        for class_name in [normalise(mapped[unit].class_name)]
        for place, concept in enumerate(concepts, start=1)
    ]  # fmt: skip
    right = set(accuracy["right"]) if accuracy else set()
    measured = _measures(found, mapped, right, names, sentence, by_method)
    with db.transaction(engine) as session:
        experiment = session.get_one(Experiment, experiment_id, with_for_update=True)
        if experiment.status == "complete":  # another process was first
            return
        db.insert_new(
            session, "last_layer_names",
            {"experiment_id": "int8", "method": "text", "similarity": "text", "neuron_id": "int8", "rank": "int2",
             "concept_id": "int8", "cosine_sentence": "float4", "cosine_concept": "float4"},
            kept,
        )  # fmt: skip
        db.insert_new(
            session, "last_layer_measures",
            {"experiment_id": "int8", "method": "text", "similarity": "text", "over": "text", "measure": "text",
             "n": "int4", "value": "float8", "low": "float8", "high": "float8"},
            ((experiment_id, *row) for row in measured),
        )  # fmt: skip
        experiments.complete(session, experiment_id, {"accuracy": accuracy, "why_no_accuracy": why})


def _matches(session: Session, about: Subject, five: dict[int, list[int]]) -> list[_Found]:
    """Everything that was found for the head, by method and function; a unit without a score has nothing."""
    found: dict[tuple[str, str], dict[int, list[int]]] = {}
    for row in queries.head_matches(session, dissection=about.dissection_id):
        found.setdefault((row.method, row.similarity), {}).setdefault(row.unit, []).append(row.concept_id)
    if five:
        found["icl", FIVE] = five
    return [_Found(method, similarity, concepts) for (method, similarity), concepts in found.items()]


def _accuracy(session: Session, about: Subject, head: Layer) -> tuple[dict[str, Any] | None, str | None]:
    """The network's accuracy on held-out clips by the recorded logits, or why there is none."""
    try:
        chosen = held_out.held_out(session, about)
    except InputError as exc:
        return None, str(exc)
    logits = activations.read_layer(session, about.recording_id, head, about.n_clips)
    positions = [clip.position for clip in chosen.clips]
    true = np.asarray([clip.unit for clip in chosen.clips])
    hit = logits[:, positions].argmax(axis=0) == true
    n = np.bincount(true, minlength=len(chosen.classes))
    hits = np.bincount(true, weights=hit, minlength=len(chosen.classes))
    return {
        "value": float(hit.mean()),
        "n_clips": len(true),
        "fold": chosen.fold,
        "caution": chosen.caution,
        "by_class": [float(h / k) if k else None for h, k in zip(hits, n, strict=True)],
        "right": [int(unit) for unit in np.flatnonzero(2 * hits > n)],
    }, None


Cosine = Callable[[str, str], float]


def _cosines(engine: sa.Engine, encoder: TextEncoder, texts: Sequence[str], progress: Progress) -> Cosine:
    """Cosine of two of the texts."""
    with db.transaction(engine) as session:
        ids = text_ids(session, texts)
    encoder_id = embed.embed_texts(engine, encoder, list(ids.values()), name="embed names", progress=progress)
    with db.reading(engine) as session:
        vectors = embed.text_vectors(session, encoder_id, [ids[text] for text in texts]).astype(np.float64)
    places = {text: place for place, text in enumerate(texts)}
    table = np.clip(vectors @ vectors.T, -1, 1)
    return lambda one, other: float(table[places[one], places[other]])


def _measures(
    found: Sequence[_Found],
    mapped: Sequence[MappedClass],
    right: set[int],
    names: Mapping[int, str],
    sentence: Cosine,
    by_method: Mapping[str, Cosine],
) -> list[tuple[Any, ...]]:
    """method, similarity, over, measure, n, value, low, high."""
    known = [one for one in mapped if one.concept_id is not None]
    fives = next((one for one in found if one.similarity == FIVE), None)
    rows: list[tuple[Any, ...]] = []
    for one in found:
        if one is fives:
            continue
        # ICL names one concept; its first five are asked for apart. Without them there is no top 5.
        wide = one if one.method != "icl" else fives
        for over, classes in (("all", known), ("right", [c for c in known if c.unit in right])):
            first = [(c, one.concepts[c.unit][0]) for c in classes if one.concepts.get(c.unit)]
            told = [(normalise(c.class_name), names[concept]) for c, concept in first]
            values: dict[str, list[float]] = {
                "top_1": [float(one.concepts.get(c.unit, [])[:1] == [c.concept_id]) for c in classes],
                "top_5": []
                if wide is None
                else [float(c.concept_id in wide.concepts.get(c.unit, [])[:TOP]) for c in classes],
                "cosine_sentence": [sentence(*pair) for pair in told],
                "cosine_concept": [by_method[one.method](*pair) for pair in told],
            }
            rows += [
                (one.method, one.similarity, over, measure, len(of), *_interval(np.asarray(of)))
                for measure, of in values.items()
            ]
    return rows


def _interval(values: NDArray[Any]) -> tuple[float | None, float | None, float | None]:
    """Mean and bootstrap interval."""
    if not len(values):
        return None, None, None
    low, high = (None if math.isnan(end) else end for end in bootstrap_interval(values, seed=SEED, resamples=RESAMPLES))
    return float(values.mean()), low, high


# ---------------------------------------------------------------------- reading


def _report(session: Session, about: Subject, experiment_id: int, mapped: Sequence[MappedClass]) -> LastLayerReport:
    rows = queries.last_layer_measures(session, experiment=experiment_id)
    found = queries.last_layer_names(session, experiment=experiment_id)
    figures = session.get_one(Experiment, experiment_id).figures
    accuracy = figures["accuracy"]
    right = set(accuracy["right"]) if accuracy else None
    speaks = {row["method"]: row["similarity"] for row in rows if row["speaks"]}
    first = {
        (row["unit"], row["method"]): row["concepts"][0]
        for row in found
        if speaks.get(row["method"]) == row["similarity"]
    }
    names = [
        {
            "unit": one.unit, "class_name": one.class_name, "concept": one.concept, "how": one.how,
            "right": None if right is None else one.unit in right,
            **{method: first.get((one.unit, method)) for method in speaks},
        }
        for one in mapped
    ]  # fmt: skip
    unmapped = class_mapping.without_concept(mapped)
    n_concepts = session.scalar(sa.select(sa.func.count()).where(Concept.concept_set_id == about.concept_set_id)) or 0
    notes = []
    if unmapped:
        notes.append(
            f"{len(unmapped)} of {len(mapped)} classes have no concept in '{about.concept_set}' and are left out: "
            f'{", ".join(unmapped)}; name one with: andp eval classes {about.network} --map "class=concept"'
        )
    if figures.get("why_no_accuracy"):
        notes.append(f"no accuracy, so no class counts as right: {figures['why_no_accuracy']}")
    elif accuracy["caution"]:
        notes.append(accuracy["caution"])
    trained_on = session.get_one(Network, about.network_id).trained_on
    if trained_on == about.dataset:
        notes.append("concepts are matched on all clips, most of which the network was trained on, as in the paper")
    n = len(mapped) - len(unmapped)
    return LastLayerReport(
        experiment_id, about.dissection_id, about.network, about.dataset, about.concept_set, n_concepts, rows, accuracy,
        unmapped, names, found, notes,
        experiments.footer(session, about, experiment_id, f"{n} of {len(mapped)} classes"),
    )  # fmt: skip


# ---------------------------------------------------------------------- the paper's tables


def table_7(rows: Sequence[Mapping[str, Any]], over: str = "all") -> Rows:
    """Rows: methods; columns: functions; cells: top 1 / top 5 (percent) / mean cosine by the sentence encoder."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["over"] == over:
            cells.setdefault(row["method"], {}).setdefault(row["similarity"], {})[row["measure"]] = row["value"]
    used = [name for name in FUNCTIONS if any(name in of for of in cells.values())]
    return [
        {"method": method, **{name: _cell(of[name]) if name in of else None for name in used}}
        for method, of in cells.items()
    ]


def table_2(rows: Sequence[Mapping[str, Any]], over: str = "all") -> Rows:
    """Per method: the function that speaks, stated beforehand, with intervals; and the best of its functions, by result."""
    table: Rows = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method and row["over"] == over]
        values = {(row["similarity"], row["measure"]): row for row in mine}
        functions = list(dict.fromkeys(row["similarity"] for row in mine))
        stated = next((row["similarity"] for row in mine if row["speaks"]), None)
        best = max(functions, key=lambda name: tuple(values[name, m]["value"] or 0.0 for m in MEASURES[:3]))
        for name, choice in ((stated, "stated"), (best, f"best of {len(functions)}")):
            if name is None or (choice != "stated" and len(functions) == 1):
                continue
            table.append(
                {"method": method, "function": name, "chosen": choice, "classes": values[name, "top_1"]["n"]}
                | {measure: _with_interval(values[name, measure]) for measure in MEASURES}
            )
    return table


def paper_table() -> tuple[Rows, list[str]]:
    """The paper's Table 7, a row per network and method, and where it is off."""
    figures = published.figures()
    table = [
        {"network": one["network"], "method": method}
        | {name: _published(one[method].get(name)) for name in FUNCTIONS}
        | {"test accuracy": f"{figures['accuracy'][one['network']]:g} %"}
        for one in figures["last_layer"]
        for method in ("icl", "tab", "db")
    ]
    return table, list(figures["last_layer_notes"].values())


def _cell(values: Mapping[str, float | None]) -> str:
    shares = [_percent(values.get(name)) for name in MEASURES[:2]]
    cosine = values.get("cosine_sentence")
    return " / ".join([*shares, "–" if cosine is None else f"{cosine:.2f}"])


def _published(figures: Sequence[float] | None) -> str | None:
    return None if figures is None else f"{figures[0]:g} / {figures[1]:g} / {figures[2]:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def _with_interval(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "–"
    share = row["measure"].startswith("top")

    def written(value: float) -> str:
        return _percent(value) if share else f"{value:.2f}"

    unit = " %" if share else ""
    if row["low"] is None:
        return f"{written(row['value'])}{unit}"
    return f"{written(row['value'])}{unit} [{written(row['low'])}, {written(row['high'])}]"
