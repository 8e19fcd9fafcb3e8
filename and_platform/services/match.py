"""Module A: the scores P of clips and concepts, and the concepts that match each neuron best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector import Vector
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends import audio
from and_platform.backends.base import Clip as DecodedClip
from and_platform.backends.base import TextAudioEncoder, TextEncoder
from and_platform.core.matching import Matcher
from and_platform.core.similarity import SIMILARITIES, cos_cubed, cosine_scores, softmax_scores
from and_platform.errors import AudioError, IncompleteError
from and_platform.schema import (
    Caption,
    ClipConceptScore,
    Concept,
    ConceptSet,
    Layer,
    ProbingSet,
    ProbingSetClip,
    Scoring,
)
from and_platform.services import activations, embed, provenance
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan

TOP = 5
"""Concepts kept per neuron: the most that the paper looks at."""

SPEAKS = {"db": "cos_cubed", "tab": "soft_wpmi"}
"""The function that fills closed_db and closed_tab (method: fixed beforehand, not chosen by result)."""

SOUNDS = "embed sounds"
"""The stage under which sounds that cannot be embedded are kept in `failures`."""

_BATCH = 32

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ScorePlan:
    """How P is made: `method` db or tab, the encoder, and for db the captions."""

    method: str
    encoder: TextEncoder
    recipe: RecipePlan
    caption_recipe: RecipePlan | None


def plan_scores(
    method: str, encoder: TextEncoder, concepts: ConceptSet, probing: ProbingSet, captions: RecipePlan | None
) -> ScorePlan:
    """The recipe of P. db: softmax over concepts of scale x cosine; tab: plain cosine."""
    parents = [embed.plan(encoder), *([captions] if captions else [])]
    params: dict[str, Any] = {"method": method, "concept_set": concepts.sha256, "probing_set": probing.sha256}
    if method == "db":
        params["scale"] = encoder.scale
    return ScorePlan(method, encoder, RecipePlan("score", method, "1", params, tuple(parents)), captions)


def plan_match(record: RecipePlan, scores: ScorePlan, similarity: str, clips: int | None) -> RecipePlan:
    """The recipe of the matches by one similarity function; `clips`: only that many most active clips count."""
    parameters = {key: value for key, value in asdict(SIMILARITIES[similarity]).items() if key != "clips"}
    params = {"method": scores.method, "similarity": similarity, "top": TOP, "clips": clips, **parameters}
    return RecipePlan("match", similarity, "1", params, (record, scores.recipe))


# ---------------------------------------------------------------------- P


def score(
    engine: sa.Engine,
    probing: ProbingSet,
    concepts: ConceptSet,
    plan: ScorePlan,
    *,
    progress: Progress = SILENT,
    run_id: int | None = None,
) -> tuple[int, bool]:
    """Make P where it is not there yet; returns the id of the scoring, and whether it was made now.

    Raises
    ------
    IncompleteError
        No clip has a caption.
    """
    import torch

    with db.reading(engine) as session:
        recipe_id = provenance.find_recipe(session, plan.recipe)
        there = session.scalars(sa.select(Scoring.id).where(Scoring.recipe_id == recipe_id)).one_or_none()
        if there is not None:
            return there, False
        rows = session.execute(
            sa.select(Concept.id, Concept.text_id)
            .where(Concept.concept_set_id == concepts.id)
            .order_by(Concept.position)
        ).all()
    concept_ids, concept_texts = [row.id for row in rows], [row.text_id for row in rows]
    encoder_id = embed.embed_texts(
        engine, plan.encoder, concept_texts, name=f"embed concepts ({plan.method})", progress=progress
    )
    clips = _caption_vectors if plan.method == "db" else _sound_vectors
    vectors, valid = clips(engine, probing, plan, encoder_id, progress, run_id)
    if not valid.any():
        lacking = (
            "a caption; caption them first" if plan.method == "db" else "a sound that can be read; see: andp failures"
        )
        raise IncompleteError(f"nothing can be matched, since no clip of the probing set has {lacking}")
    with db.reading(engine) as session:
        concept_vectors = embed.text_vectors(session, encoder_id, concept_texts)
    p = np.zeros((probing.n_clips, len(concept_ids)), np.float32)
    clip_side, concept_side = torch.from_numpy(vectors), torch.from_numpy(concept_vectors)
    if plan.method == "db":
        p[valid] = softmax_scores(clip_side, concept_side, plan.encoder.scale).numpy()
    else:
        p[valid] = cosine_scores(clip_side, concept_side).numpy()
    with db.transaction(engine) as session:
        return _store(session, plan, probing, concepts, concept_ids, p, valid), True


def _caption_vectors(
    engine: sa.Engine, probing: ProbingSet, plan: ScorePlan, encoder_id: int, progress: Progress, run_id: int | None
) -> tuple[Floats, NDArray[np.bool_]]:
    """Vectors of the captions there are, in order of position, and which positions have one."""
    assert plan.caption_recipe is not None
    with db.reading(engine) as session:
        recipe_id = provenance.find_recipe(session, plan.caption_recipe)
        rows = session.execute(
            sa.select(ProbingSetClip.position, Caption.text_id)
            .join(Caption, Caption.clip_id == ProbingSetClip.clip_id)
            .where(ProbingSetClip.probing_set_id == probing.id, Caption.recipe_id == recipe_id)
            .order_by(ProbingSetClip.position)
        ).all()
    valid = np.zeros(probing.n_clips, bool)
    valid[[row.position for row in rows]] = True
    text_ids = [row.text_id for row in rows]
    if text_ids:
        embed.embed_texts(engine, plan.encoder, text_ids, name="embed captions", progress=progress)
        with db.reading(engine) as session:
            return embed.text_vectors(session, encoder_id, text_ids), valid
    return np.empty((0, plan.encoder.dim), np.float32), valid


def _sound_vectors(
    engine: sa.Engine, probing: ProbingSet, plan: ScorePlan, encoder_id: int, progress: Progress, run_id: int | None
) -> tuple[Floats, NDArray[np.bool_]]:
    """Vectors of the sounds, embedded where they are not yet, and which positions have one."""
    if isinstance(plan.encoder, TextAudioEncoder):  # else it is known by its vectors alone: those there are have to do
        embed_sounds(engine, probing, plan.encoder, encoder_id, progress=progress, run_id=run_id)
    with db.reading(engine) as session:
        positions = session.scalars(
            sa.text(
                "SELECT m.position FROM probing_set_clips m JOIN clip_embeddings e ON e.clip_id = m.clip_id"
                " WHERE m.probing_set_id = :probing AND e.encoder_id = :encoder ORDER BY m.position"
            ),
            {"probing": probing.id, "encoder": encoder_id},
        ).all()
        vectors = db.read_vectors(
            session,
            "SELECT e.embedding FROM probing_set_clips m JOIN clip_embeddings e ON e.clip_id = m.clip_id"
            " WHERE m.probing_set_id = %s AND e.encoder_id = %s ORDER BY m.position",
            (probing.id, encoder_id),
        )
    valid = np.zeros(probing.n_clips, bool)
    valid[positions] = True
    return vectors, valid


def unheard(engine: sa.Engine, probing: ProbingSet, encoder_id: int) -> list[int]:
    """Ids of the clips of a probing set whose sound an encoder has not embedded, in order of position."""
    with db.reading(engine) as session:
        return [row.id for row in _unheard(session, probing, encoder_id, None)]


def _unheard(
    session: Session, probing: ProbingSet, encoder_id: int, clips: Sequence[int] | None
) -> Sequence[sa.Row[Any]]:
    return session.execute(
        sa.text(
            "SELECT c.id, d.root, c.path, c.sha256 FROM probing_set_clips m JOIN clips c ON c.id = m.clip_id"
            " JOIN datasets d ON d.id = c.dataset_id WHERE m.probing_set_id = :probing AND NOT EXISTS ("
            " SELECT FROM clip_embeddings e WHERE e.encoder_id = :encoder AND e.clip_id = c.id)"
            " AND (CAST(:clips AS bigint[]) IS NULL OR c.id = ANY (:clips)) ORDER BY m.position"
        ),
        {"probing": probing.id, "encoder": encoder_id, "clips": None if clips is None else list(clips)},
    ).all()


def embed_sounds(
    engine: sa.Engine,
    probing: ProbingSet,
    encoder: TextAudioEncoder,
    encoder_id: int,
    *,
    clips: Sequence[int] | None = None,
    progress: Progress = SILENT,
    run_id: int | None = None,
    mark: Callable[[str | None], None] = lambda _key: None,
) -> int:
    """Embed the sounds of clips that this encoder has not embedded yet; returns how many there were.

    Parameters
    ----------
    clips
        Ids of the only clips to embed; default: all of the probing set.
    mark
        Is told each clip's path before it is decoded, and None when a batch of them is.
    """
    with db.reading(engine) as session:
        missing = _unheard(session, probing, encoder_id, clips)
    with progress.stage("embed sounds", len(missing), "clips") as advance:
        for start in range(0, len(missing), _BATCH):
            batch, sounds, ids, failures = missing[start : start + _BATCH], [], [], []
            for row in batch:
                mark(row.path)
                try:
                    waveform, rate = audio.load(audio.at(row.root, row.path), encoder.rate, row.sha256)
                except AudioError as exc:
                    failures.append((row, str(exc)))
                else:
                    sounds.append(DecodedClip(row.path, waveform, rate))
                    ids.append(row.id)
            mark(None)
            vectors = encoder.embed_audio(sounds) if sounds else np.empty((0, encoder.dim), np.float32)
            with db.transaction(engine) as session:
                db.insert_new(
                    session, "clip_embeddings", {"encoder_id": "int8", "clip_id": "int8", "embedding": "vector"},
                    ((encoder_id, clip, Vector(vector)) for clip, vector in zip(ids, vectors, strict=True)),
                )  # fmt: skip
                provenance.resolve_failures(
                    session, stage=SOUNDS, scope=f"encoder:{encoder_id}",
                    units=[row.path for row in batch if row.id in ids],
                )  # fmt: skip
                for row, reason in failures:
                    provenance.record_failure(
                        session, stage=SOUNDS, scope=f"encoder:{encoder_id}", unit=row.path, reason=reason,
                        run_id=run_id, clip_id=row.id,
                    )  # fmt: skip
            advance(len(batch))
    return len(missing)


def _store(
    session: Session,
    plan: ScorePlan,
    probing: ProbingSet,
    concepts: ConceptSet,
    concept_ids: Sequence[int],
    p: Floats,
    valid: NDArray[np.bool_],
) -> int:
    recipe_id = provenance.recipe_id(session, plan.recipe)
    made = session.scalars(
        insert(Scoring)
        .values(
            recipe_id=recipe_id, probing_set_id=probing.id, concept_set_id=concepts.id, method=plan.method,
            missing=np.flatnonzero(~valid).tolist(),
        )
        .on_conflict_do_nothing(index_elements=["recipe_id"])
        .returning(Scoring.id)
    ).one_or_none()  # fmt: skip
    if made is None:  # another process was first; its rows are the same
        return session.scalars(sa.select(Scoring.id).where(Scoring.recipe_id == recipe_id)).one()
    centred = np.where(valid[:, None], p - p[valid].mean(axis=0, dtype=np.float64), 0.0)
    cubed = centred**3
    cubed = (cubed / np.maximum(np.linalg.norm(cubed, axis=0), cos_cubed.min_norm)).astype(np.float32)
    db.copy_rows(
        session,
        "clip_concept_scores",
        {"scoring_id": "int8", "concept_id": "int8", "stretch": "int4", "scores": "vector", "cubed": "vector"},
        (
            (made, concept, part.index, Vector(p[here, column]), Vector(cubed[here, column]))
            for part in activations.stretches(probing.n_clips)
            for here in [slice(part.first, part.first + part.n_clips)]
            for column, concept in enumerate(concept_ids)
        ),
    )
    # Without it the planner takes a fresh matrix for a few rows, and `match_concepts` goes through it for each neuron.
    session.execute(sa.text("ANALYZE clip_concept_scores (scoring_id, concept_id, stretch)"))
    return made


def read_scores(session: Session, scoring_id: int) -> tuple[Floats, NDArray[np.bool_], list[int]]:
    """P as stored.

    Returns
    -------
    float32 [clips, concepts], bool [clips], list of int
        Scores, which clips have any, and the concepts' ids in order of the columns.
    """
    scoring = session.get_one(Scoring, scoring_id)
    probing = session.get_one(ProbingSet, scoring.probing_set_id)
    ids = session.scalars(
        sa.select(Concept.id)
        .join(ClipConceptScore, ClipConceptScore.concept_id == Concept.id)
        .where(ClipConceptScore.scoring_id == scoring_id, ClipConceptScore.stretch == 0)
        .order_by(Concept.position)
    ).all()
    parts = [
        db.read_vectors(
            session,
            "SELECT s.scores FROM clip_concept_scores s JOIN concepts c ON c.id = s.concept_id"
            " WHERE s.scoring_id = %s AND s.stretch = %s ORDER BY c.position",
            (scoring_id, part.index),
        ).T
        for part in activations.stretches(probing.n_clips)
    ]
    valid = np.ones(probing.n_clips, bool)
    valid[scoring.missing] = False
    return np.ascontiguousarray(np.concatenate(parts)), valid, list(ids)


# ---------------------------------------------------------------------- matches


def missing(
    session: Session, recipes: Mapping[str, int], layers: Sequence[Layer], only_head: Sequence[str]
) -> list[tuple[Layer, list[str]]]:
    """Layers with the functions by which they have not been matched; `recipes`: function -> id of its recipe."""
    done = {name: provenance.finished_layers(session, recipe) for name, recipe in recipes.items()}
    wanted = [
        (layer, [n for n in recipes if layer.id not in done[n] and (layer.kind == "head" or n not in only_head)])
        for layer in layers
    ]
    return [(layer, names) for layer, names in wanted if names]


def match(
    engine: sa.Engine,
    recording_id: int,
    scoring_id: int,
    layers: Sequence[Layer],
    recipes: dict[str, RecipePlan],
    *,
    only_head: Sequence[str] = (),
    clips: int | None = None,
    progress: Progress = SILENT,
) -> int:
    """Match the neurons of layers that have no matches of these recipes yet, a layer a transaction.

    Parameters
    ----------
    recipes
        Similarity function -> its recipe.
    only_head
        Functions that are computed for the head alone.
    clips
        Use only that many most active clips in hidden layers (the research code's variant).

    Returns
    -------
    int
        Number of layers that were matched now.
    """
    with db.transaction(engine) as session:
        ids = {name: provenance.recipe_id(session, recipe) for name, recipe in recipes.items()}
        todo = missing(session, ids, layers, only_head)
        if not todo:
            return 0
        p, valid, concept_ids = read_scores(session, scoring_id)
    keys = np.asarray(concept_ids, np.int64)
    matchers: dict[tuple[tuple[str, ...], int | None], Matcher] = {}
    with progress.stage("match concepts", sum(layer.n_units for layer, _ in todo), "neurons") as advance:
        for layer, names in todo:
            subset = None if layer.kind == "head" else clips
            key = (tuple(names), subset)
            if key not in matchers:
                matchers[key] = Matcher(p, names, top=TOP, valid=None if valid.all() else valid, clips=subset)
            with db.transaction(engine) as session:
                found = matchers[key].layer(activations.read_tiles(session, recording_id, layer, len(p)))
                neurons = np.asarray(activations.neuron_ids(session, layer.id))
                # Another process may be at the same layer: one writes, the other one finds it done.
                session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('match'), :id)"), {"id": layer.id})
                for name, (concept, scores) in found.items():
                    if layer.id in provenance.finished_layers(session, ids[name]):
                        continue
                    there = concept >= 0
                    rows, places = there.nonzero()
                    if rows.size:
                        db.copy_columns(
                            session,
                            "concept_matches",
                            {
                                "recording_id": ("int8", recording_id),
                                "recipe_id": ("int8", ids[name]),
                                "neuron_id": ("int8", neurons[rows]),
                                "rank": ("int2", places + 1),
                                "concept_id": ("int8", keys[concept[there]]),
                                "score": ("float4", scores[there]),
                            },
                        )
                    provenance.finish_layer(session, ids[name], layer.id)
            advance(layer.n_units)
    return len(todo)
