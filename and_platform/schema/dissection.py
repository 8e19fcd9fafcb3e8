"""Dissections: provenance, concept matching (module A), summaries and calibration (B), terms (C), runs and failures."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pgvector.sqlalchemy import VECTOR
from sqlalchemy.orm import Mapped, mapped_column

from and_platform.schema.base import Base, Json, Timestamp, identity, reference
from and_platform.schema.network import BY_RECORDING


class Recipe(Base):
    __tablename__ = "recipes"
    __table_args__ = (
        {"comment": "How a stage's rows were made: everything that changes the result, and nothing else."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    stage: Mapped[str] = mapped_column(
        comment="record, caption, encode, score, match, summarise, calibrate, tag, judge …"
    )
    backend: Mapped[str] = mapped_column(comment="What did it, as the registry names it.")
    revision: Mapped[str] = mapped_column(comment="Revision of its weights or algorithm.")
    params: Mapped[Json] = mapped_column(comment="Parameters: prompt, pooling, threshold, seed …")
    parents: Mapped[list[int]] = mapped_column(server_default="{}", comment="Recipes whose rows this one builds on.")
    sha256: Mapped[str] = mapped_column(unique=True, comment="Hash of all of the above, parents by their hashes.")
    origin: Mapped[str | None] = mapped_column(
        comment="Where its weights were first taken from: hub id and commit, or a path; not part of the hash."
    )
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was first used.")


class Dissection(Base):
    __tablename__ = "dissections"
    __table_args__ = (
        sa.CheckConstraint("status IN ('running', 'complete', 'failed')", name="status"),
        {
            "comment": "A network, a probing set, a concept set and one recipe per stage: what a user names and compares."
        },
    )

    id: Mapped[int] = identity("Surrogate key.")
    network_id: Mapped[int] = reference("networks.id", "The network.", index=True)
    probing_set_id: Mapped[int] = reference("probing_sets.id", "The probing set.")
    concept_set_id: Mapped[int] = reference("concept_sets.id", "The concept set.")
    recording_id: Mapped[int] = reference("recordings.id", "The recording it reads.")
    sha256: Mapped[str] = mapped_column(unique=True, comment="Hash of the above and of its recipes.")
    status: Mapped[str] = mapped_column(comment="running, complete or failed.")
    pinned: Mapped[bool] = mapped_column(server_default="false", comment="True: current, whatever comes later.")
    top_k: Mapped[int] = mapped_column(sa.Integer, comment="K: exemplars a side that summaries are made of.")
    methods: Mapped[list[str]] = mapped_column(comment="Closed-set methods that were computed: db, tab, icl.")
    config: Mapped[Json] = mapped_column(comment="The options as given.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was begun.")
    completed_at: Mapped[datetime | None] = mapped_column(comment="When it was last completed.")


class DissectionRecipe(Base):
    __tablename__ = "dissection_recipes"
    __table_args__ = ({"comment": "The recipe of each stage of a dissection."},)

    dissection_id: Mapped[int] = reference("dissections.id", "The dissection.", cascade=True, key=True)
    stage: Mapped[str] = mapped_column(primary_key=True, comment="Stage, with the method where it has several.")
    recipe_id: Mapped[int] = reference("recipes.id", "The recipe.", index=True)
    speaks: Mapped[bool] = mapped_column(
        server_default="false",
        comment="For match recipes: true for the one that fills closed_db, closed_tab or closed_icl.",
    )


class DissectedLayer(Base):
    __tablename__ = "dissected_layers"
    __table_args__ = ({"comment": "Layers that a dissection covers."},)

    dissection_id: Mapped[int] = reference("dissections.id", "The dissection.", cascade=True, key=True)
    layer_id: Mapped[int] = reference("layers.id", "The layer.", key=True)
    completed_at: Mapped[datetime | None] = mapped_column(comment="When it was completed.")


class FinishedLayer(Base):
    __tablename__ = "finished_layers"
    __table_args__ = (
        {"comment": "Layers for which all rows of a recipe are there: what is not here is still to be done."},
    )

    recipe_id: Mapped[int] = reference("recipes.id", "The recipe of the stage.", cascade=True, key=True)
    layer_id: Mapped[int] = reference("layers.id", "The layer.", cascade=True, key=True)
    finished_at: Mapped[Timestamp] = mapped_column(comment="When.")


class Scoring(Base):
    __tablename__ = "scorings"
    __table_args__ = (
        {"comment": "The matrix P of a probing set and a concept set: how well each clip fits each concept."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    recipe_id: Mapped[int] = mapped_column(
        sa.BigInteger, sa.ForeignKey("recipes.id"), unique=True, comment="Method, captions, encoder and scale."
    )
    probing_set_id: Mapped[int] = reference("probing_sets.id", "The clips.")
    concept_set_id: Mapped[int] = reference("concept_sets.id", "The concepts.")
    method: Mapped[str] = mapped_column(comment="db or tab.")
    missing: Mapped[list[int]] = mapped_column(
        server_default="{}", comment="Positions without a score (no caption): left out of every similarity."
    )


class ClipConceptScore(Base):
    __tablename__ = "clip_concept_scores"
    __table_args__ = ({"comment": "One column of P: the scores of one concept over a stretch of clips."},)

    scoring_id: Mapped[int] = reference("scorings.id", "The matrix.", cascade=True, key=True)
    concept_id: Mapped[int] = reference("concepts.id", "The concept.", cascade=True, key=True)
    stretch: Mapped[int] = mapped_column(
        sa.Integer, primary_key=True, autoincrement=False, comment="As in activations."
    )
    scores: Mapped[Any] = mapped_column(VECTOR(), nullable=False, comment="float32, in order of position.")
    cubed: Mapped[Any] = mapped_column(
        VECTOR(), nullable=False, comment="Centred over all clips, cubed, divided by the norm (at least 1e-3)."
    )


class ConceptMatch(Base):
    __tablename__ = "concept_matches"
    __table_args__ = (
        sa.Index("ix_concept_matches_recipe_id_concept_id", "recipe_id", "concept_id", "rank"),
        {"comment": "Module A: the best closed-set concepts of each neuron, by method and similarity function.",
         **BY_RECORDING},
    )  # fmt: skip

    recording_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The recording.")
    recipe_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The match recipe.")
    neuron_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The neuron.")
    rank: Mapped[int] = mapped_column(
        sa.SmallInteger, primary_key=True, autoincrement=False, comment="1 is the best."
    )  # fmt: skip
    concept_id: Mapped[int] = mapped_column(comment="The concept.")
    score: Mapped[float | None] = mapped_column(sa.REAL, comment="Similarity; NULL where the method gives none (ICL).")


class Answer(Base):
    __tablename__ = "answers"
    __table_args__ = (
        sa.Index("uq_answers_recipe_id_prompt_sha256", "recipe_id", "prompt_sha256", unique=True),
        {"comment": "What an LLM answered, kept before it is used: an identical prompt is never asked twice."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    recipe_id: Mapped[int] = reference("recipes.id", "The LLM and its sampling.")
    prompt_sha256: Mapped[str] = mapped_column(comment="Hash of the prompt and the token limit.")
    prompt: Mapped[str] = mapped_column(comment="The prompt.")
    answer: Mapped[str] = mapped_column(comment="The answer as it came.")
    prompt_tokens: Mapped[int] = mapped_column(sa.Integer, comment="Tokens of the prompt.")
    completion_tokens: Mapped[int] = mapped_column(sa.Integer, comment="Tokens of the answer.")
    finish_reason: Mapped[str] = mapped_column(comment="stop, length …")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it came.")


class Summary(Base):
    __tablename__ = "summaries"
    __table_args__ = (
        sa.UniqueConstraint("recipe_id", "neuron_id", "side"),
        sa.CheckConstraint("side IN ('high', 'low')", name="side"),
        sa.Index("ix_summaries_text", sa.text("to_tsvector('english', text)"), postgresql_using="gin"),
        {"comment": "Module B: what the captions of a neuron's K exemplars of one side have in common."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    recipe_id: Mapped[int] = reference("recipes.id", "The summariser, K, the captions and the recording.")
    neuron_id: Mapped[int] = reference("neurons.id", "The neuron.", cascade=True, index=True)
    side: Mapped[str] = mapped_column(comment="high (S_h) or low (S_l).")
    text: Mapped[str] = mapped_column(comment="The points, one a line; empty where nothing is shared.")


class SummaryPoint(Base):
    __tablename__ = "summary_points"
    __table_args__ = ({"comment": "The points of a summary after clean-up."},)

    summary_id: Mapped[int] = reference("summaries.id", "The summary.", cascade=True, key=True)
    ordinal: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="From 0.")
    text_id: Mapped[int] = reference("texts.id", "The point.", index=True)


class Calibration(Base):
    __tablename__ = "calibrations"
    __table_args__ = (
        sa.UniqueConstraint("recipe_id", "neuron_id"),
        sa.Index("ix_calibrations_summary", sa.text("to_tsvector('english', summary)"), postgresql_using="gin"),
        {"comment": "Module B: the high summary without the points that the low summary makes too."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    recipe_id: Mapped[int] = reference("recipes.id", "Threshold, sentence encoder and the summaries.")
    neuron_id: Mapped[int] = reference("neurons.id", "The neuron.", cascade=True, index=True)
    high_summary_id: Mapped[int] = reference("summaries.id", "S_h.", cascade=True, index=True)
    low_summary_id: Mapped[int] = reference("summaries.id", "S_l.", cascade=True, index=True)
    summary: Mapped[str] = mapped_column(comment="The calibrated summary: the kept points, one a line.")
    n_kept: Mapped[int] = mapped_column(sa.Integer, comment="Points kept.")
    n_dropped: Mapped[int] = mapped_column(sa.Integer, comment="Points dropped.")
    support: Mapped[float | None] = mapped_column(
        sa.REAL, comment="Share of the K captions that say a kept point, averaged over these; NULL without points."
    )


class CalibratedPoint(Base):
    __tablename__ = "calibrated_points"
    __table_args__ = ({"comment": "Each point of a high summary: kept or dropped, and by which low point."},)

    calibration_id: Mapped[int] = reference("calibrations.id", "The calibration.", cascade=True, key=True)
    ordinal: Mapped[int] = mapped_column(
        sa.Integer,
        primary_key=True,
        autoincrement=False,
        comment="The point, as in summary_points of the high summary.",
    )
    kept: Mapped[bool] = mapped_column(comment="False: a low point says the same.")
    nearest_low_ordinal: Mapped[int | None] = mapped_column(
        sa.Integer, comment="The low point nearest to it; NULL where the low summary is empty."
    )
    cosine: Mapped[float | None] = mapped_column(sa.REAL, comment="Cosine of the two; dropped above the threshold.")
    support: Mapped[int] = mapped_column(sa.Integer, comment="How many of the K captions say it.")


class SummaryEmbedding(Base):
    __tablename__ = "summary_embeddings"
    __table_args__ = (
        {"comment": "Unit vectors of calibrated summaries, the mean of their points'; one HNSW index per encoder."},
    )

    encoder_id: Mapped[int] = reference("encoders.id", "The encoder.", key=True)
    calibration_id: Mapped[int] = reference("calibrations.id", "The summary.", cascade=True, key=True, index=True)
    embedding: Mapped[Any] = mapped_column(VECTOR(), nullable=False, comment="Unit vector of the encoder's dimension.")


class Term(Base):
    __tablename__ = "terms"
    __table_args__ = (
        sa.UniqueConstraint("term", "part_of_speech"),
        sa.Index("ix_terms_stem", "stem"),
        {"comment": "A word that summaries use."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    term: Mapped[str] = mapped_column(comment="Lemma, lower case.")
    part_of_speech: Mapped[str] = mapped_column(comment="adjective, noun, verb or preposition.")
    stem: Mapped[str] = mapped_column(
        sa.Text,
        sa.Computed("coalesce((ts_lexize('english_stem', lower(term)))[1], lower(term))", persisted=True),
        comment="English stem: 'barking' and 'bark' meet here.",
    )


class TermVerdict(Base):
    __tablename__ = "term_verdicts"
    __table_args__ = ({"comment": "Module C: may an adjective describe sound? Each is judged once."},)

    recipe_id: Mapped[int] = reference("recipes.id", "The judge.", key=True)
    term_id: Mapped[int] = reference("terms.id", "The adjective.", key=True, index=True)
    accepted: Mapped[bool] = mapped_column(comment="Yes or no.")
    score: Mapped[float | None] = mapped_column(sa.REAL, comment="The judge's score, where it gives one.")
    reason: Mapped[str] = mapped_column(comment="Why.")


class NeuronTerm(Base):
    __tablename__ = "neuron_terms"
    __table_args__ = (
        sa.Index("ix_neuron_terms_recipe_id_term_id", "recipe_id", "term_id"),
        {"comment": "Module C: the terms of a neuron's calibrated summary."},
    )

    recipe_id: Mapped[int] = reference("recipes.id", "The extraction: calibration, tagger and judge.", key=True)
    neuron_id: Mapped[int] = reference("neurons.id", "The neuron.", cascade=True, key=True, index=True)
    term_id: Mapped[int] = reference("terms.id", "The term.", key=True)
    occurrences: Mapped[int] = mapped_column(sa.Integer, comment="How often the summary uses it.")
    is_open_concept: Mapped[bool] = mapped_column(
        comment="True if it is in C_open: nouns, verbs, and adjectives that the judge accepted."
    )


class Run(Base):
    __tablename__ = "runs"
    __table_args__ = (
        sa.CheckConstraint("outcome IN ('running', 'ok', 'failed', 'interrupted', 'cancelled')", name="outcome"),
        {"comment": "Each invocation that writes: what was asked, where, with which versions, and how it ended."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    command: Mapped[str] = mapped_column(comment="The command, e.g. 'ingest folder'.")
    arguments: Mapped[Json] = mapped_column(comment="Its arguments; never a secret.")
    versions: Mapped[Json] = mapped_column(comment="Versions of the platform and of the libraries that matter.")
    machine: Mapped[Json] = mapped_column(comment="Host, processors, devices.")
    dissection_id: Mapped[int | None] = mapped_column(
        sa.BigInteger, sa.ForeignKey("dissections.id", ondelete="SET NULL"), comment="The dissection it worked on."
    )
    started_at: Mapped[Timestamp] = mapped_column(comment="Start.")
    finished_at: Mapped[datetime | None] = mapped_column(comment="End; NULL while it runs, or if it was killed.")
    outcome: Mapped[str] = mapped_column(
        server_default="running", comment="running, ok, failed, interrupted or cancelled."
    )
    counts: Mapped[Json] = mapped_column(
        server_default="{}",
        comment="What was done: units by stage; and what to know of it: captions (and how many name the class), cut_texts, llm, "
        "open_failures.",
    )
    distributed: Mapped[bool] = mapped_column(server_default="false", comment="True: workers do it, not this process.")
    plan: Mapped[Json | None] = mapped_column(
        comment="What a distributed run has settled: recipes by stage, layers, recording …"
    )
    error: Mapped[str | None] = mapped_column(comment="The error that ended it.")


class Failure(Base):
    __tablename__ = "failures"
    __table_args__ = (
        sa.Index(
            "uq_failures_open", "stage", "scope", "unit", unique=True, postgresql_where=sa.text("resolved_at IS NULL")
        ),
        {"comment": "Units of work that failed, with the reason; the rest went on. Resolved when they later succeed."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    run_id: Mapped[int | None] = mapped_column(
        sa.BigInteger,
        sa.ForeignKey("runs.id", ondelete="SET NULL"),
        index=True,
        comment="The run in which it happened.",
    )
    stage: Mapped[str] = mapped_column(comment="ingest, record, caption, summarise …")
    scope: Mapped[str] = mapped_column(comment="What the unit belongs to, e.g. 'dataset:sample' or 'recipe:12'.")
    unit: Mapped[str] = mapped_column(comment="The unit: a path, a clip id, a neuron.")
    clip_id: Mapped[int | None] = mapped_column(
        sa.BigInteger, sa.ForeignKey("clips.id", ondelete="CASCADE"), comment="The clip, where the unit is one."
    )
    reason: Mapped[str] = mapped_column(comment="One line that a user can act on.")
    detail: Mapped[str | None] = mapped_column(comment="Traceback or raw answer.")
    happened_at: Mapped[Timestamp] = mapped_column(comment="When.")
    resolved_at: Mapped[datetime | None] = mapped_column(comment="When the unit succeeded after all.")
