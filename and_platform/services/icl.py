"""Module A, in-context learning: an LLM picks a concept from the calibrated summary (paper, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import LLM, Form, Prompt, TextEncoder
from and_platform.core import prompts
from and_platform.schema import Concept, ConceptSet, Layer
from and_platform.services import embed, generate, provenance
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan
from and_platform.services.texts import text_ids

MAX_TOKENS = 512
EXAMPLES = 2


def plan(calibrated: RecipePlan, llm: LLM, encoder: TextEncoder, concepts: ConceptSet) -> RecipePlan:
    """The recipe of concepts picked by an LLM; `encoder` finds the nearest where the answer names none."""
    params = {
        "method": "icl", "similarity": "llm", "examples": EXAMPLES, "max_tokens": MAX_TOKENS,
        "concept_set": concepts.sha256,
    }  # fmt: skip
    return RecipePlan("match", "icl", "1", params, (calibrated, generate.plan(llm), embed.plan(encoder)))


def pick(
    engine: sa.Engine,
    llm: LLM,
    encoder: TextEncoder,
    recording_id: int,
    concepts: ConceptSet,
    layers: Sequence[Layer],
    calibrated: RecipePlan,
    *,
    progress: Progress = SILENT,
    run_id: int | None = None,
) -> int:
    """Ask for the concept of every neuron with a calibrated summary; returns how many layers were done now."""
    with db.transaction(engine) as session:
        recipe_id = provenance.recipe_id(session, plan(calibrated, llm, encoder, concepts))
        calibrate_id = provenance.recipe_id(session, calibrated)
        done = provenance.finished_layers(session, recipe_id)
        ready = provenance.finished_layers(session, calibrate_id)
        todo = [layer for layer in layers if layer.id not in done]
        named = _named(session, concepts)
    if not todo:
        return 0
    names = [row.name for row in named]
    by_name = {row.name: row.id for row in named}
    concept_texts = [row.text_id for row in named]
    scope = f"recipe:{recipe_id}"
    for layer in todo:
        rows, said = _ask(engine, llm, names, layer, calibrate_id, progress)
        chosen: dict[int, int] = {}
        nearest: list[tuple[int, str]] = []
        failed: list[tuple[str, str]] = []
        for row, answer in zip(rows, said, strict=True):
            if answer.text is None:
                failed.append((f"{layer.name}#{row.unit}", answer.error or "no answer"))
            elif (name := prompts.parse_icl(answer.text, names)) is not None:
                chosen[row.neuron_id] = by_name[name]
            elif word := prompts.icl_answer(answer.text):
                nearest.append((row.neuron_id, word))
            else:
                failed.append((f"{layer.name}#{row.unit}", "the answer is empty"))
        if nearest:
            meant = nearest_concepts(engine, encoder, [word for _, word in nearest], concept_texts, progress)
            chosen |= {neuron: named[place].id for (neuron, _), place in zip(nearest, meant, strict=True)}
        with db.transaction(engine) as session:
            db.insert_new(
                session,
                "concept_matches",
                {
                    "recording_id": "int8",
                    "recipe_id": "int8",
                    "neuron_id": "int8",
                    "rank": "int2",
                    "concept_id": "int8",
                },
                ((recording_id, recipe_id, neuron, 1, concept) for neuron, concept in sorted(chosen.items())),
            )
            for unit, reason in failed:
                provenance.record_failure(session, stage="icl", scope=scope, unit=unit, reason=reason, run_id=run_id)
            units = [f"{layer.name}#{row.unit}" for row in rows if row.neuron_id in chosen]
            provenance.resolve_failures(session, stage="icl", scope=scope, units=units)
            if layer.id in ready and not failed:
                provenance.finish_layer(session, recipe_id, layer.id)
    return len(todo)


def _named(session: Session, concepts: ConceptSet) -> Sequence[Any]:
    return session.execute(
        sa.select(Concept.id, Concept.name, Concept.text_id)
        .where(Concept.concept_set_id == concepts.id)
        .order_by(Concept.position)
    ).all()


def _ask(
    engine: sa.Engine,
    llm: LLM,
    names: Sequence[str],
    layer: Layer,
    calibrate_id: int,
    progress: Progress,
    units: tuple[int, int] | None = None,
) -> tuple[Sequence[sa.Row[Any]], list[generate.Said]]:
    """Neurons of a layer that have a calibrated summary, with what the LLM says of each."""
    first, end = units or (0, layer.n_units)
    with db.reading(engine) as session:
        rows = session.execute(
            sa.text(
                "SELECT c.neuron_id, n.unit, c.summary FROM calibrations c JOIN neurons n ON n.id = c.neuron_id"
                " WHERE c.recipe_id = :recipe AND n.layer_id = :layer AND c.summary <> ''"
                " AND n.unit >= :first AND n.unit < :end ORDER BY n.unit"
            ),
            {"recipe": calibrate_id, "layer": layer.id, "first": first, "end": end},
        ).all()
    asked = [Prompt(prompts.icl_prompt(names, row.summary, examples=EXAMPLES)) for row in rows]
    said = generate.ask(
        engine, llm, asked, max_tokens=MAX_TOKENS, name=f"pick concepts: {layer.name}",
        form=Form(tuple(names), "before"), progress=progress,
    )  # fmt: skip
    return rows, said


def ask(
    engine: sa.Engine, llm: LLM, concepts: ConceptSet, layer: Layer, calibrate_id: int, units: tuple[int, int]
) -> list[generate.Said]:
    """Ask for the concepts of a layer's neurons from one unit to before another; the answers are kept for `pick`."""
    with db.reading(engine) as session:
        names = [row.name for row in _named(session, concepts)]
    return _ask(engine, llm, names, layer, calibrate_id, SILENT, units)[1]


def nearest_concepts(
    engine: sa.Engine,
    encoder: TextEncoder,
    words: Sequence[str],
    concept_texts: Sequence[int],
    progress: Progress = SILENT,
) -> list[int]:
    """For each of some words, the place of the concept nearest to it by sentence embedding.

    Parameters
    ----------
    concept_texts
        Text ids of the concepts' names.
    """
    if not words:
        return []
    with db.transaction(engine) as session:
        ids = text_ids(session, words)
    encoder_id = embed.embed_texts(
        engine, encoder, [*concept_texts, *ids.values()], name="embed concepts", progress=progress
    )
    with db.reading(engine) as session:
        concepts = embed.text_vectors(session, encoder_id, concept_texts)
        vectors = embed.text_vectors(session, encoder_id, [ids[word] for word in words])
    return [int(place) for place in np.argmax(vectors @ concepts.T, axis=1)]


FIVE = 5


def five(
    engine: sa.Engine,
    llm: LLM,
    encoder: TextEncoder,
    concepts: Sequence[tuple[int, str, int]],
    summaries: Sequence[str],
    *,
    progress: Progress = SILENT,
) -> list[list[int] | None]:
    """Ask for the five concepts that each calibrated summary matches best, best first.

    Where an answer names something else, the concept nearest to it by sentence embedding is taken.

    Parameters
    ----------
    concepts
        (id, name, text id) in order of position.

    Returns
    -------
    list
        Ids of concepts per summary; None where the LLM gave no answer.
    """
    names = [name for _, name, _ in concepts]
    by_name = {name: identity for identity, name, _ in concepts}
    said = generate.ask(
        engine, llm, [Prompt(prompts.several_prompt(names, summary, FIVE)) for summary in summaries],
        max_tokens=MAX_TOKENS, name="ask for five concepts",
        form=Form(tuple(names), count=min(FIVE, len(names))), progress=progress,
    )  # fmt: skip
    told = [None if answer.text is None else prompts.parse_several(answer.text, names, FIVE) for answer in said]
    unknown = list(dict.fromkeys(word for row in told if row for word in row if word not in by_name))
    places = nearest_concepts(engine, encoder, unknown, [text for _, _, text in concepts], progress)
    meant = by_name | {word: concepts[place][0] for word, place in zip(unknown, places, strict=True)}
    return [None if row is None else list(dict.fromkeys(meant[word] for word in row)) for row in told]
