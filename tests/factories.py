"""Small worlds in the database: a data set, a network, its recording, concepts, scores and a dissection.

Each function adds one thing and returns it, through the platform's own way of storing it wherever there is one. `world`
makes all of them:

    with db.transaction(engine) as session:
        world = factories.world(session, layers={"b00.ff_in": 4, "head": 3}, n_clips=8)
    world.values["head"]           # float16 [units, clips], as stored
    world.neurons["head#0"]        # id
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from pgvector import Vector
from sqlalchemy.orm import Session

from and_platform import queries
from and_platform.backends.base import TextEncoder
from and_platform.schema import (
    CalibratedPoint,
    Calibration,
    Caption,
    Clip,
    Concept,
    ConceptMatch,
    ConceptSet,
    Dataset,
    DissectedLayer,
    Dissection,
    DissectionRecipe,
    Encoder,
    Layer,
    Network,
    Neuron,
    ProbingSet,
    ProbingSetClip,
    Recording,
    Summary,
    SummaryEmbedding,
    SummaryPoint,
    Term,
    TermVerdict,
    TextEmbedding,
    TextTags,
)
from and_platform.services import activations, datasets, embed, match, provenance
from and_platform.services.provenance import RecipePlan
from and_platform.services.texts import text_ids

Half = NDArray[np.float16]
LABELS = ("dog", "rain", "siren")
_numbers = itertools.count(1)


def recipe(session: Session, stage: str, *, backend: str = "test", **params: Any) -> int:
    """Id of a recipe; without parameters it is one that no other call gives."""
    return provenance.recipe_id(session, RecipePlan(stage, backend, "1", params or {"number": next(_numbers)}))


# ---------------------------------------------------------------------- sounds


def dataset(session: Session, name: str = "sounds", *, n_clips: int = 6, labels: Sequence[str] = LABELS) -> Dataset:
    """A data set whose clips take the labels in turn; no files."""
    row = Dataset(name=name, root="/nowhere", kind="folder")
    session.add(row)
    session.flush()
    session.add_all(
        Clip(
            dataset_id=row.id, path=f"{labels[i % len(labels)]}/{i:05d}.wav",
            sha256=hashlib.sha256(f"{name} {i}".encode()).hexdigest(), labels=[labels[i % len(labels)]], fold=i % 5 + 1,
            sample_rate=16_000, channels=1, duration_s=1.0, mean_abs_amplitude=0.1, rms=0.1, peak=0.5,
            median_frequency_hz=440.0, silence_share=0.0,
        )
        for i in range(n_clips)
    )  # fmt: skip
    session.flush()
    return row


def captions(session: Session, probing: ProbingSet, recipe_id: int) -> None:
    """A caption for each clip of a probing set: 'the sound of a dog' …"""
    clips = session.scalars(
        sa.select(Clip).join(ProbingSetClip, ProbingSetClip.clip_id == Clip.id)
        .where(ProbingSetClip.probing_set_id == probing.id)
    ).all()  # fmt: skip
    said = {clip.id: f"the sound of a {clip.labels[0]}" for clip in clips}
    ids = text_ids(session, list(said.values()))
    session.add_all(
        Caption(clip_id=clip, recipe_id=recipe_id, text=text, text_id=ids[text], names_label=True)
        for clip, text in said.items()
    )
    session.flush()


# ---------------------------------------------------------------------- network and recording


def network(
    session: Session, name: str = "net", layers: Mapping[str, int] | None = None, *, classes: Sequence[str] = LABELS
) -> Network:
    """A network with layers (name -> units) named as the platform names them: b00.ff_in, …, head."""
    row = Network(
        name=name, source="factory", location="nowhere:make", revision=f"revision of {name}", architecture="Test",
        sample_rate=16_000, n_parameters=0, classes=list(classes),
    )  # fmt: skip
    session.add(row)
    session.flush()
    for position, (layer_name, units) in enumerate((layers or {"b00.ff_in": 4, "head": 3}).items()):
        block, _, kind = layer_name.rpartition(".")
        layer = Layer(
            network_id=row.id, position=position, name=layer_name, module_path=layer_name, kind=kind, n_units=units,
            block=int(block[1:]) if block else None, pooling="mean", is_default=True,
        )  # fmt: skip
        session.add(layer)
        session.flush()
        named = classes if kind == "head" else ()
        session.add_all(
            Neuron(layer_id=layer.id, unit=unit, class_name=named[unit] if unit < len(named) else None)
            for unit in range(units)
        )
        session.flush()
    return row


def layers_of(session: Session, network: Network) -> dict[str, Layer]:
    """Layers by name, in order of computation."""
    rows = session.scalars(sa.select(Layer).where(Layer.network_id == network.id).order_by(Layer.position))
    return {layer.name: layer for layer in rows}


def neurons_of(session: Session, network: Network) -> dict[str, int]:
    """Ids of neurons by name, e.g. head#0."""
    rows = session.execute(
        sa.select(Layer.name, Neuron.unit, Neuron.id)
        .join(Neuron, Neuron.layer_id == Layer.id)
        .where(Layer.network_id == network.id)
        .order_by(Layer.position, Neuron.unit)
    )
    return {f"{layer}#{unit}": identity for layer, unit, identity in rows}


def random_values(layers: Mapping[str, int], n_clips: int, seed: int = 0) -> dict[str, Half]:
    """Activations float16 [units, clips] for each layer."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(units, n_clips)).astype(np.float16) for name, units in layers.items()}


def begin_recording(session: Session, network: Network, probing: ProbingSet) -> Recording:
    """A recording with its partitions, and nothing in it."""
    row = Recording(
        network_id=network.id, probing_set_id=probing.id, block_clips=activations.BLOCK,
        recipe_id=recipe(session, "record", network=network.revision, probing_set=probing.sha256, number=next(_numbers)),
    )  # fmt: skip
    session.add(row)
    session.flush()
    activations.make_partitions(session, row.id)
    return row


def land(
    session: Session, recording: Recording, values: Mapping[int, ArrayLike], n_clips: int, blocks: Any = None
) -> None:
    """Land blocks (default: all) of layers; values [units, clips] by layer id."""
    half = {layer: np.asarray(value, np.float16) for layer, value in values.items()}
    cut = activations.Blocks(recording.block_clips, n_clips)
    for block in range(len(cut)) if blocks is None else blocks:
        first, n = cut.bounds(block)
        part = {layer: np.ascontiguousarray(value[:, first : first + n].T) for layer, value in half.items()}
        activations.land(session, recording.id, block, part)


def recording(
    session: Session, network: Network, probing: ProbingSet, values: Mapping[str, ArrayLike], *, cubes: bool = True
) -> Recording:
    """A complete recording: values [units, clips] of each layer, landed, folded and completed."""
    row = begin_recording(session, network, probing)
    layers = layers_of(session, network)
    land(session, row, {layers[name].id: value for name, value in values.items()}, probing.n_clips)
    for name in values:
        for stretch in activations.stretches(probing.n_clips):
            activations.fold(session, row.id, layers[name], stretch)
        activations.complete_layer(session, row.id, layers[name], "mean", probing.n_clips, cubes=cubes)
    return row


# ---------------------------------------------------------------------- concepts and scores


def concept_set(session: Session, names: Sequence[str] = LABELS, name: str = "animals") -> ConceptSet:
    """A concept set of these names, in order."""
    row = ConceptSet(name=name, source="test", sha256=provenance.sha256_of([name, *names]))
    session.add(row)
    session.flush()
    ids = text_ids(session, names)
    session.add_all(
        Concept(concept_set_id=row.id, position=i, name=text, original_name=text, text_id=ids[text])
        for i, text in enumerate(names)
    )
    session.flush()
    return row


def concepts_of(session: Session, concepts: ConceptSet) -> list[Concept]:
    """Its concepts, in order."""
    return list(
        session.scalars(sa.select(Concept).where(Concept.concept_set_id == concepts.id).order_by(Concept.position))
    )


def scoring(
    session: Session,
    probing: ProbingSet,
    concepts: ConceptSet,
    p: ArrayLike,
    *,
    method: str = "db",
    missing: Sequence[int] = (),
) -> int:
    """Id of P [clips, concepts], stored as the matching service stores it."""
    plan = match.ScorePlan(
        method,
        cast(TextEncoder, None),
        RecipePlan("score", method, "1", {"method": method, "number": next(_numbers)}),
        None,
    )
    valid = np.ones(probing.n_clips, bool)
    valid[list(missing)] = False
    ids = [concept.id for concept in concepts_of(session, concepts)]
    return match._store(session, plan, probing, concepts, ids, np.asarray(p, np.float32), valid)


# ---------------------------------------------------------------------- encoders


def encoder(session: Session, dim: int = 3, name: str = "toy") -> int:
    """Id of an encoder of its own."""
    row = Encoder(recipe_id=recipe(session, "encode", name=name, dim=dim), name=name, dim=dim, scale=100.0)
    session.add(row)
    session.flush()
    return row.id


def embed_text(session: Session, encoder_id: int, text: str, vector: ArrayLike) -> None:
    """The vector of a text."""
    identity = text_ids(session, [text])[text]
    session.add(TextEmbedding(encoder_id=encoder_id, text_id=identity, embedding=Vector(_unit(vector))))
    session.flush()


def embed_summaries(session: Session, encoder_id: int, dim: int, vectors: Mapping[int, ArrayLike]) -> None:
    """Vectors of calibrated summaries (by calibration id), with their HNSW index."""
    index = embed.SummaryIndex(encoder_id, "toy", dim, len(vectors), None, 0)
    if session.scalar(sa.text("SELECT to_regclass(:name) IS NULL"), {"name": index.name}):
        session.connection().exec_driver_sql(index.statement())
    session.add_all(
        SummaryEmbedding(encoder_id=encoder_id, calibration_id=identity, embedding=Vector(_unit(vector)))
        for identity, vector in vectors.items()
    )
    session.flush()


def _unit(vector: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(vector, np.float32)
    return cast(NDArray[np.float32], array / np.linalg.norm(array))


# ---------------------------------------------------------------------- dissections


@dataclass
class Told:
    """What modules A, B and C say of a neuron. `terms` are (term, part of speech) of the kept points."""

    points: Sequence[str] = ()
    low: Sequence[str] = ()
    dropped: Sequence[int] = ()
    terms: Sequence[tuple[str, str]] = ()
    closed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Method (db, tab, icl) -> names of its best concepts, best first."""


def dissection(
    session: Session,
    recording: Recording,
    concepts: ConceptSet,
    told: Mapping[str, Told] | None = None,
    *,
    layers: Sequence[str] | None = None,
    status: str = "complete",
    pinned: bool = False,
    top_k: int = 2,
    rejected: Sequence[str] = (),
    calibrate_recipe: int | None = None,
    completed: str = "now",
) -> Dissection:
    """A dissection with what it says of neurons (by name, e.g. 'head#0').

    Parameters
    ----------
    layers
        Names of the layers it covers; default: all of the network.
    rejected
        Adjectives that the judge refused.
    completed
        When it was completed, as Postgres reads a time: 'now', '2026-01-01' …
    """
    told = told or {}
    network_row = session.get_one(Network, recording.network_id)
    all_layers, neurons = layers_of(session, network_row), neurons_of(session, network_row)
    methods = sorted({method for one in told.values() for method in one.closed} or {"db"})
    row = Dissection(
        network_id=recording.network_id, probing_set_id=recording.probing_set_id, concept_set_id=concepts.id,
        recording_id=recording.id, sha256=f"dissection {next(_numbers)}", status=status, pinned=pinned, top_k=top_k,
        methods=methods, config={},
        completed_at=sa.cast(completed, sa.DateTime(timezone=True)) if status == "complete" else None,
    )  # fmt: skip
    session.add(row)
    session.flush()
    covered = [all_layers[name] for name in (layers or all_layers)]
    session.add_all(DissectedLayer(dissection_id=row.id, layer_id=layer.id) for layer in covered)
    similarity = {"db": "cos_cubed", "tab": "soft_wpmi", "icl": "llm"}
    number = next(_numbers)
    stages = {"record": recording.recipe_id}
    for stage in ("caption", "summarise", "tag", "judge", "extract"):
        stages[stage] = recipe(session, stage, number=number)
    stages["calibrate"] = calibrate_recipe or recipe(session, "calibrate", number=number)
    for method in methods:
        stages[f"match.{method}.{similarity[method]}"] = recipe(
            session, "match", method=method, similarity=similarity[method], number=number
        )
    session.add_all(
        DissectionRecipe(dissection_id=row.id, stage=stage, recipe_id=identity, speaks=stage.startswith("match."))
        for stage, identity in stages.items()
    )
    session.flush()
    captions(session, session.get_one(ProbingSet, recording.probing_set_id), stages["caption"])
    by_name = {concept.name: concept.id for concept in concepts_of(session, concepts)}
    for name, one in told.items():
        _match(session, row, neurons[name], one, stages, similarity, by_name)
        _summarise(session, stages, neurons[name], one, top_k)
        _tag(session, stages, one, rejected)
    for layer in covered:
        queries.insert_neuron_terms(
            session, recipe=stages["extract"], calibrate_recipe=stages["calibrate"], tag_recipe=stages["tag"],
            judge_recipe=stages["judge"], layer=layer.id,
        )  # fmt: skip
    return row


def stage_recipes(session: Session, dissection: Dissection) -> dict[str, int]:
    """Stage -> recipe id."""
    rows = session.execute(
        sa.select(DissectionRecipe.stage, DissectionRecipe.recipe_id).where(
            DissectionRecipe.dissection_id == dissection.id
        )
    )
    return dict(rows.all())


def calibrations_of(session: Session, dissection: Dissection) -> dict[int, int]:
    """Neuron id -> calibration id."""
    rows = session.execute(
        sa.select(Calibration.neuron_id, Calibration.id).where(
            Calibration.recipe_id == stage_recipes(session, dissection)["calibrate"]
        )
    )
    return dict(rows.all())


def _match(
    session: Session,
    row: Dissection,
    neuron: int,
    told: Told,
    stages: Mapping[str, int],
    similarity: Mapping[str, str],
    by_name: Mapping[str, int],
) -> None:
    session.add_all(
        ConceptMatch(
            recording_id=row.recording_id, recipe_id=stages[f"match.{method}.{similarity[method]}"], neuron_id=neuron,
            rank=rank, concept_id=by_name[name], score=None if method == "icl" else 1 / rank,
        )
        for method, names in told.closed.items()
        for rank, name in enumerate(names, start=1)
    )  # fmt: skip
    session.flush()


def _summarise(session: Session, stages: Mapping[str, int], neuron: int, told: Told, top_k: int) -> None:
    ids = text_ids(session, [*told.points, *told.low])
    sides = {}
    for side, points in (("high", told.points), ("low", told.low)):
        summary = Summary(recipe_id=stages["summarise"], neuron_id=neuron, side=side, text="\n".join(points))
        session.add(summary)
        session.flush()
        session.add_all(
            SummaryPoint(summary_id=summary.id, ordinal=i, text_id=ids[text]) for i, text in enumerate(points)
        )
        sides[side] = summary.id
    kept = [text for i, text in enumerate(told.points) if i not in told.dropped]
    calibration = Calibration(
        recipe_id=stages["calibrate"], neuron_id=neuron, high_summary_id=sides["high"], low_summary_id=sides["low"],
        summary="\n".join(kept), n_kept=len(kept), n_dropped=len(told.dropped), support=1.0 if kept else None,
    )  # fmt: skip
    session.add(calibration)
    session.flush()
    session.add_all(
        CalibratedPoint(
            calibration_id=calibration.id, ordinal=i, kept=i not in told.dropped, support=top_k,
            nearest_low_ordinal=0 if told.low else None, cosine=0.9 if told.low else None,
        )
        for i in range(len(told.points))
    )  # fmt: skip
    session.flush()


def _tag(session: Session, stages: Mapping[str, int], told: Told, rejected: Sequence[str]) -> None:
    """The first kept point holds the neuron's terms."""
    kept = [text for i, text in enumerate(told.points) if i not in told.dropped]
    if not kept:
        return
    terms = [_term(session, stages["judge"], word, pos, word not in rejected) for word, pos in told.terms]
    first = text_ids(session, kept)[kept[0]]
    if session.get(TextTags, (stages["tag"], first)) is None:
        session.add(TextTags(recipe_id=stages["tag"], text_id=first, terms=terms))
    session.flush()


def _term(session: Session, judge: int, word: str, pos: str, accepted: bool) -> int:
    row = session.scalars(sa.select(Term).where(Term.term == word, Term.part_of_speech == pos)).one_or_none()
    if row is None:
        row = Term(term=word, part_of_speech=pos)
        session.add(row)
        session.flush()
    if pos == "adjective" and session.get(TermVerdict, (judge, row.id)) is None:
        session.add(TermVerdict(recipe_id=judge, term_id=row.id, accepted=accepted, score=0.5, reason="because"))
    return row.id


# ---------------------------------------------------------------------- all of it


@dataclass
class World:
    """Everything that `world` made. Rows are detached: read their columns, and ask the database for more."""

    dataset: Dataset
    probing: ProbingSet
    network: Network
    layers: dict[str, Layer]
    neurons: dict[str, int]
    values: dict[str, Half]
    recording: Recording
    concepts: ConceptSet
    p: NDArray[np.float32]
    scoring_id: int
    dissection: Dissection


def world(
    session: Session,
    *,
    name: str = "net",
    layers: Mapping[str, int] | None = None,
    n_clips: int = 8,
    values: Mapping[str, ArrayLike] | None = None,
    concepts: Sequence[str] = LABELS,
    told: Mapping[str, Told] | None = None,
    rejected: Sequence[str] = ("edible",),
    seed: int = 0,
) -> World:
    """A network of two layers, dissected on a few clips; see the module."""
    units = dict(layers or {"b00.ff_in": 4, "head": 3})
    sounds = dataset(session, f"sounds of {name}", n_clips=n_clips)
    probing = datasets.snapshot(session, sounds.id)
    net = network(session, name, units)
    stored = {
        key: np.asarray(value, np.float16) for key, value in (values or random_values(units, n_clips, seed)).items()
    }
    recorded = recording(session, net, probing, stored)
    vocabulary = concept_set(session, concepts, f"concepts of {name}")
    logits = np.random.default_rng(seed + 1).normal(size=(n_clips, len(concepts))) * 3
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    return World(
        sounds, probing, net, layers_of(session, net), neurons_of(session, net), stored, recorded, vocabulary, p,
        scoring(session, probing, vocabulary, p),
        dissection(session, recorded, vocabulary, TOLD if told is None else told, rejected=rejected),
    )  # fmt: skip


TOLD: Mapping[str, Told] = {
    "head#0": Told(
        points=["A dog barks loudly nearby.", "The recording has a low hum."],
        low=["There is a low hum in the recording."],
        dropped=[1],
        terms=[
            ("dog", "noun"),
            ("bark", "verb"),
            ("loud", "adjective"),
            ("edible", "adjective"),
            ("near", "preposition"),
        ],
        closed={"db": ["dog", "rain", "siren"], "icl": ["dog"]},
    ),
    "head#1": Told(
        points=["Rain falls on a high-pitched metal roof."],
        low=["Somebody speaks quite close by."],
        terms=[("rain", "noun"), ("high-pitched", "adjective"), ("roof", "noun")],
        closed={"db": ["rain", "dog"], "icl": ["rain"]},
    ),
    "b00.ff_in#2": Told(points=[], closed={"db": ["siren", "dog"]}),
}
"""What `world` says of three neurons, unless told otherwise: dog, rain, and one of which nothing is known."""
