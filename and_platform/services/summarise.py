"""Module B, first half: what the captions of a neuron's exemplars have in common, for both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import LLM, Prompt, TextEncoder
from and_platform.core import extractive, prompts
from and_platform.core.facets import REVISION as FACETS_REVISION
from and_platform.core.facets import facets
from and_platform.core.ragged import Ints
from and_platform.core.text import clean_points
from and_platform.schema import Layer, ProbingSet, Text
from and_platform.services import embed, generate, provenance
from and_platform.services.activations import neuron_ids
from and_platform.services.exemplar_captions import CaptionTable, read_captions, read_exemplars
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan
from and_platform.services.texts import text_ids

SIDES = ("high", "low")
MAX_TOKENS = 1024

Points = list[str] | Exception
"""The points of a neuron's summary, or why there is none."""


class Summariser(Protocol):
    """Makes points of captions. `own_words`: it writes sentences itself, where others pick them from the captions."""

    own_words: bool

    def plan(self, record: RecipePlan, captions: RecipePlan, k: int) -> RecipePlan: ...

    def prepare(self, engine: sa.Engine, table: CaptionTable, progress: Progress) -> None:
        """What is needed once for all layers."""
        ...

    def points(self, engine: sa.Engine, exemplars: Ints, name: str, progress: Progress) -> list[Points]:
        """Points per neuron, from positions [neurons, K]."""
        ...


class Extractive:
    """States what at least m of the K captions share: sentences of theirs, none of its own.

    Parameters
    ----------
    encoder
        Sentence encoder.
    min_support
        m; several numbers are tried in turn.
    tau
        Cosine from which two sentences state the same.
    max_points
        The most points of a summary.
    """

    own_words = False

    def __init__(
        self, encoder: TextEncoder, *, min_support: Sequence[int] = (3, 2), tau: float = 0.75, max_points: int = 8
    ) -> None:
        self.encoder = encoder
        self.min_support, self.tau, self.max_points = tuple(min_support), tau, max_points

    def plan(self, record: RecipePlan, captions: RecipePlan, k: int) -> RecipePlan:
        params = {
            "k": k, "min_support": list(self.min_support), "tau": self.tau, "max_points": self.max_points,
            "facets": FACETS_REVISION,
        }  # fmt: skip
        return RecipePlan("summarise", "extractive", "1", params, (record, captions, embed.plan(self.encoder)))

    def prepare(self, engine: sa.Engine, table: CaptionTable, progress: Progress) -> None:
        encoder_id = embed.embed_texts(
            engine, self.encoder, table.text_ids.tolist(), name="embed sentences", progress=progress
        )
        with db.reading(engine) as session:
            self._embeddings = table.embeddings(session, encoder_id)
        self._facets = facets(table.texts)
        self._table = table

    def points(self, engine: sa.Engine, exemplars: Ints, name: str, progress: Progress) -> list[Points]:
        # Neurons with the same exemplars in the same order have the same summary.
        distinct, places = np.unique(exemplars, axis=0, return_inverse=True)
        found = extractive.summarise(
            self._embeddings, self._table.sentences, distinct, min_support=self.min_support, tau=self.tau,
            max_points=self.max_points, facets=self._facets,
        )  # fmt: skip
        texts: list[Points] = [[self._table.texts[point.sentence] for point in points] for points in found]
        return [texts[place] for place in places.reshape(-1)]


class Generative:
    """An LLM summarises the K captions (paper, Appendix A.2)."""

    own_words = True

    def __init__(self, llm: LLM, *, max_tokens: int = MAX_TOKENS, min_words: int = 6) -> None:
        self.llm = llm
        self.max_tokens, self.min_words = max_tokens, min_words

    def plan(self, record: RecipePlan, captions: RecipePlan, k: int) -> RecipePlan:
        params = {
            "k": k, "prompt": prompts.SUMMARY_INSTRUCTION, "max_tokens": self.max_tokens, "min_words": self.min_words,
        }  # fmt: skip
        return RecipePlan("summarise", "generative", "1", params, (record, captions, generate.plan(self.llm)))

    def prepare(self, engine: sa.Engine, table: CaptionTable, progress: Progress) -> None:
        self._table = table

    def points(self, engine: sa.Engine, exemplars: Ints, name: str, progress: Progress) -> list[Points]:
        told = [
            [caption for position in row if position >= 0 and (caption := self._table.captions[position])]
            for row in exemplars.tolist()
        ]
        asked = [Prompt(prompts.summary_prompt(captions)) for captions in told if captions]
        said = iter(generate.ask(engine, self.llm, asked, max_tokens=self.max_tokens, name=name, progress=progress))
        points: list[Points] = []
        for captions in told:
            answer = next(said) if captions else generate.Said("")
            if answer.text is None:
                points.append(RuntimeError(answer.error or "no answer"))
            else:
                points.append(clean_points(answer.text, min_words=self.min_words))
        return points


@dataclass(frozen=True)
class Job:
    """What to summarise."""

    recording_id: int
    probing: ProbingSet
    layers: Sequence[Layer]
    plan: RecipePlan
    caption_plan: RecipePlan
    k: int


def summarise(
    engine: sa.Engine, summariser: Summariser, job: Job, *, progress: Progress = SILENT, run_id: int | None = None
) -> int:
    """Summaries of both sides for the layers that lack them, a layer a transaction; returns how many layers."""
    with db.transaction(engine) as session:
        recipe_id = provenance.recipe_id(session, job.plan)
        done = provenance.finished_layers(session, recipe_id)
        todo = [layer for layer in job.layers if layer.id not in done]
        if not todo:
            return 0
        caption_id = provenance.recipe_id(session, job.caption_plan)
        table = read_captions(session, job.probing.id, job.probing.n_clips, caption_id)
    summariser.prepare(engine, table, progress)
    with progress.stage("summarise", sum(layer.n_units for layer in todo), "neurons") as advance:
        for layer in todo:
            with db.reading(engine) as session:
                exemplars = [read_exemplars(session, job.recording_id, layer, side, job.k) for side in SIDES]
            both = summariser.points(engine, np.concatenate(exemplars), f"ask: {layer.name}", progress)
            with db.transaction(engine) as session:
                _write(session, recipe_id, layer, both, run_id)
            advance(layer.n_units)
    return len(todo)


def ask(engine: sa.Engine, summariser: Summariser, job: Job, layer: Layer, units: tuple[int, int]) -> list[Points]:
    """Points of both sides of a layer's neurons from one unit to before another; an LLM's answers are kept for `summarise`."""
    with db.reading(engine) as session:
        caption_id = provenance.find_recipe(session, job.caption_plan) or 0
        exemplars = [read_exemplars(session, job.recording_id, layer, side, job.k, units) for side in SIDES]
        chosen = np.concatenate(exemplars)
        table = read_captions(session, job.probing.id, job.probing.n_clips, caption_id, np.unique(chosen))
    summariser.prepare(engine, table, SILENT)
    return summariser.points(engine, chosen, f"ask: {layer.name}", SILENT)


def _write(session: Session, recipe_id: int, layer: Layer, both: list[Points], run_id: int | None) -> None:
    """Rows of a layer: summaries that are there already (of a run in which others failed) stay."""
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('summarise'), :id)"), {"id": layer.id})
    neurons = neuron_ids(session, layer.id)
    rows = [
        (neuron, side, points)
        for side, of_side in zip(SIDES, (both[: layer.n_units], both[layer.n_units :]), strict=True)
        for neuron, points in zip(neurons, of_side, strict=True)
    ]
    scope = f"recipe:{recipe_id}"
    unit_of = {neuron: f"{layer.name}#{unit}" for unit, neuron in enumerate(neurons)}
    ready: list[tuple[int, str, list[str]]] = []
    failed = 0
    for neuron, side, points in rows:
        if isinstance(points, Exception):
            failed += 1
            provenance.record_failure(
                session,
                stage="summarise",
                scope=scope,
                unit=f"{unit_of[neuron]} {side}",
                reason=str(points),
                run_id=run_id,
            )
        else:
            ready.append((neuron, side, points))
    ids = text_ids(session, list(dict.fromkeys(point for _, _, points in ready for point in points)))
    there = set(
        session.execute(
            sa.text("SELECT neuron_id, side FROM summaries WHERE recipe_id = :recipe AND neuron_id = ANY (:neurons)"),
            {"recipe": recipe_id, "neurons": neurons},
        )
    )
    fresh = [row for row in ready if (row[0], row[1]) not in there]
    db.insert_new(
        session,
        "summaries",
        {"recipe_id": "int8", "neuron_id": "int8", "side": "text", "text": "text"},
        ((recipe_id, neuron, side, "\n".join(points)) for neuron, side, points in fresh),
    )
    written = {
        (neuron, side): identity
        for identity, neuron, side in session.execute(
            sa.text(
                "SELECT id, neuron_id, side FROM summaries WHERE recipe_id = :recipe AND neuron_id = ANY (:neurons)"
            ),
            {"recipe": recipe_id, "neurons": neurons},
        )
    }
    db.insert_new(
        session,
        "summary_points",
        {"summary_id": "int8", "ordinal": "int4", "text_id": "int8"},
        (
            (written[neuron, side], ordinal, ids[point])
            for neuron, side, points in fresh
            for ordinal, point in enumerate(points)
        ),
    )
    provenance.resolve_failures(
        session, stage="summarise", scope=scope, units=[f"{unit_of[neuron]} {side}" for neuron, side, _ in ready]
    )
    if not failed:
        provenance.finish_layer(session, recipe_id, layer.id)


def point_texts(session: Session, recipe_id: int, layer_ids: Sequence[int]) -> dict[int, str]:
    """Every distinct point of the summaries of some layers: text id -> text."""
    rows = session.execute(
        sa.select(Text.id, Text.text).where(
            Text.id.in_(
                sa.text(
                    "SELECT p.text_id FROM summary_points p JOIN summaries s ON s.id = p.summary_id"
                    " JOIN neurons n ON n.id = s.neuron_id WHERE s.recipe_id = :recipe AND n.layer_id = ANY (:layers)"
                ).bindparams(recipe=recipe_id, layers=list(layer_ids))
            )
        )
    )
    return dict(rows.all())
