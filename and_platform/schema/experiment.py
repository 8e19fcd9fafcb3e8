"""Experiments on a dissection: evaluation, ablation, clusters of captions, people's judgement."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from and_platform.schema.base import Base, Json, Timestamp, identity, reference


def _by_class(comment: str) -> Any:
    """One figure for each class, in order of the head's units; NULL for a class without held-out clips."""
    return mapped_column(ARRAY(sa.REAL), comment=f"{comment} One value per unit of the head; NULL: no held-out clip.")


class Experiment(Base):
    __tablename__ = "experiments"
    __table_args__ = (
        sa.CheckConstraint("status IN ('running', 'complete')", name="status"),
        {"comment": "An experiment on a dissection: computed once per recipe, and kept."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    kind: Mapped[str] = mapped_column(
        comment="last_layer, explanations, unlearning, sweep, feature_ablation, word_acoustics …"
    )
    dissection_id: Mapped[int] = reference("dissections.id", "The dissection.", cascade=True, index=True)
    recipe_id: Mapped[int] = mapped_column(
        sa.BigInteger, sa.ForeignKey("recipes.id"), unique=True, comment="Everything that changes the result."
    )
    status: Mapped[str] = mapped_column(server_default="running", comment="running or complete.")
    figures: Mapped[Json] = mapped_column(server_default="{}", comment="Headline figures, and what was left out.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was begun.")
    completed_at: Mapped[datetime | None] = mapped_column(comment="When it was completed.")


# ---------------------------------------------------------------------- evaluation


class ClassConcept(Base):
    __tablename__ = "class_concepts"
    __table_args__ = (
        sa.CheckConstraint("how IN ('exact', 'normalised', 'synonym', 'given', 'none')", name="how"),
        sa.CheckConstraint("(concept_id IS NULL) = (how = 'none')", name="concept"),
        {"comment": "Which concept of a set stands for a class of a network; never decided by position."},
    )

    network_id: Mapped[int] = reference("networks.id", "The network.", cascade=True, key=True)
    concept_set_id: Mapped[int] = reference("concept_sets.id", "The concept set.", cascade=True, key=True)
    unit: Mapped[int] = mapped_column(
        sa.Integer, primary_key=True, autoincrement=False, comment="Unit of the head, from 0."
    )
    class_name: Mapped[str] = mapped_column(comment="Name of the class, as the network has it.")
    concept_id: Mapped[int | None] = mapped_column(
        sa.BigInteger, sa.ForeignKey("concepts.id", ondelete="CASCADE"), comment="The concept; NULL: there is none."
    )
    how: Mapped[str] = mapped_column(
        comment="exact: the same name; normalised: but for case, '_' and '-'; synonym; given: by the user; none."
    )


class LastLayerName(Base):
    __tablename__ = "last_layer_names"
    __table_args__ = ({"comment": "Tables 2 and 7: the concepts found for each unit of the head, best first."},)

    experiment_id: Mapped[int] = reference("experiments.id", "The evaluation.", cascade=True, key=True)
    method: Mapped[str] = mapped_column(primary_key=True, comment="db, tab or icl.")
    similarity: Mapped[str] = mapped_column(primary_key=True, comment="Similarity function; llm for icl.")
    neuron_id: Mapped[int] = reference("neurons.id", "The unit of the head.", cascade=True, key=True)
    rank: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False, comment="1 is the best.")
    concept_id: Mapped[int] = reference("concepts.id", "The concept.", cascade=True)
    cosine_sentence: Mapped[float | None] = mapped_column(
        sa.REAL, comment="Cosine of the concept's name and the class name, by the sentence encoder."
    )
    cosine_concept: Mapped[float | None] = mapped_column(
        sa.REAL, comment="The same by the encoder that embedded the concepts (DB: CLIP in the paper)."
    )


class LastLayerMeasure(Base):
    __tablename__ = "last_layer_measures"
    __table_args__ = (
        sa.CheckConstraint("over IN ('all', 'right')", name="over"),
        {"comment": "Tables 2 and 7: how well the concepts found for the head's units name their classes."},
    )

    experiment_id: Mapped[int] = reference("experiments.id", "The evaluation.", cascade=True, key=True)
    method: Mapped[str] = mapped_column(primary_key=True, comment="db, tab or icl.")
    similarity: Mapped[str] = mapped_column(primary_key=True, comment="Similarity function; llm for icl.")
    over: Mapped[str] = mapped_column(
        primary_key=True, comment="all: classes that are concepts; right: those of them that the network gets right."
    )
    measure: Mapped[str] = mapped_column(
        primary_key=True, comment="top_1, top_5 (shares), cosine_sentence, cosine_concept (means of the first concept)."
    )
    n: Mapped[int] = mapped_column(sa.Integer, comment="Classes it is over.")
    value: Mapped[float | None] = mapped_column(comment="The measure; NULL where there is no class.")
    low: Mapped[float | None] = mapped_column(comment="Lower end of the bootstrap 95 % interval over classes.")
    high: Mapped[float | None] = mapped_column(comment="Upper end.")


class ExplanationScore(Base):
    __tablename__ = "explanation_scores"
    __table_args__ = (
        sa.CheckConstraint("reference IN ('labels', 'scores')", name="reference"),
        sa.Index("ix_explanation_scores_neuron_id", "neuron_id"),
        {
            "comment": "How well a description of a neuron tells on which clips it is active "
            "(Oikarinen et al., Evaluating Neuron Explanations, ICML 2025), beside what permuted activations give."
        },
    )

    experiment_id: Mapped[int] = reference("experiments.id", "The evaluation.", cascade=True, key=True)
    neuron_id: Mapped[int] = reference("neurons.id", "The neuron.", cascade=True, key=True)
    explanation: Mapped[str] = mapped_column(
        primary_key=True,
        comment="closed_db, closed_tab, closed_icl: the best concept by that method; summary: the calibrated summary; "
        "best_label: the label that the activation separates best.",
    )
    reference: Mapped[str] = mapped_column(
        primary_key=True,
        comment="labels: the clips that carry the concept as a label; scores: the clips that fit it best by its scores.",
    )
    concept: Mapped[str | None] = mapped_column(comment="The concept or label; NULL for a summary.")
    n_positive: Mapped[int] = mapped_column(sa.Integer, comment="Clips to which the description applies.")
    auprc: Mapped[float | None] = mapped_column(sa.REAL, comment="Average precision of the activation, 0 to 1.")
    pearson: Mapped[float | None] = mapped_column(
        sa.REAL, comment="Pearson correlation of activation and label (0/1), or activation and score."
    )
    f1: Mapped[float | None] = mapped_column(
        sa.REAL, comment="F1 of the n_positive most active clips against those the description applies to."
    )
    iou: Mapped[float | None] = mapped_column(sa.REAL, comment="Intersection over union of the same two sets.")
    null_auprc: Mapped[float | None] = mapped_column(
        sa.REAL,
        comment="Mean average precision of permuted activations: of the best description that could have been chosen.",
    )
    null_pearson: Mapped[float | None] = mapped_column(sa.REAL, comment="95 % quantile of the correlation, permuted.")
    null_f1: Mapped[float | None] = mapped_column(sa.REAL, comment="Mean F1, permuted.")
    null_iou: Mapped[float | None] = mapped_column(sa.REAL, comment="Mean IoU, permuted.")
    p_auprc: Mapped[float | None] = mapped_column(
        sa.REAL,
        comment="Share of permutations in which the best description reaches this, (1 + count) / (1 + permutations).",
    )
    p_pearson: Mapped[float | None] = mapped_column(
        sa.REAL, comment="The same for the correlation with this one description; NULL for best_label."
    )


# ---------------------------------------------------------------------- ablation


class AblationPlan(Base):
    __tablename__ = "ablation_plans"
    __table_args__ = ({"comment": "A choice of neurons to ablate, and how it was made."},)

    id: Mapped[int] = identity("Surrogate key.")
    dissection_id: Mapped[int] = reference("dissections.id", "The dissection.", cascade=True, index=True)
    recipe_id: Mapped[int] = mapped_column(
        sa.BigInteger, sa.ForeignKey("recipes.id"), unique=True, comment="Everything that decides the choice."
    )
    strategy: Mapped[str] = mapped_column(
        comment="open, closed_db, closed_tab, closed_icl, meaning, random, random_matched."
    )
    concept: Mapped[str | None] = mapped_column(comment="The target concept, as asked for.")
    target_unit: Mapped[int | None] = mapped_column(
        sa.Integer, comment="Unit of the head whose class is the target; NULL where the concept is no class."
    )
    layers: Mapped[str | None] = mapped_column(comment="Pattern on layer names; NULL: all hidden layers.")
    max_neurons: Mapped[int | None] = mapped_column(sa.Integer, comment="The most neurons to choose; NULL: all.")
    seed: Mapped[int | None] = mapped_column(comment="Seed of a random choice.")
    compared_with_id: Mapped[int | None] = mapped_column(
        sa.BigInteger,
        sa.ForeignKey("ablation_plans.id", ondelete="CASCADE"),
        comment="For random_matched: the plan from whose layers as many neurons are drawn.",
    )
    n_neurons: Mapped[int] = mapped_column(sa.Integer, comment="Neurons chosen.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was made.")


class AblationPlanNeuron(Base):
    __tablename__ = "ablation_plan_neurons"
    __table_args__ = ({"comment": "The neurons of a plan, and why each."},)

    plan_id: Mapped[int] = reference("ablation_plans.id", "The plan.", cascade=True, key=True)
    neuron_id: Mapped[int] = reference("neurons.id", "The neuron.", cascade=True, key=True)
    rank: Mapped[int] = mapped_column(sa.Integer, comment="Order of choice, from 1.")
    score: Mapped[float | None] = mapped_column(sa.REAL, comment="Score of the strategy; NULL for a random choice.")
    why: Mapped[str] = mapped_column(comment="Why it was chosen: matching term, rank or distance.")


class Ablation(Base):
    __tablename__ = "ablations"
    __table_args__ = (
        sa.Index(
            "uq_ablations_experiment_id_unit_of_work",
            "experiment_id", "strategy", "target_unit", "size", "share", "seed",
            unique=True, postgresql_nulls_not_distinct=True,
        ),
        {
            "comment": "What ablating a choice of neurons does to each class, on held-out clips. Unnested in the view "
            "ablation_classes."
        },
    )  # fmt: skip

    id: Mapped[int] = identity("Surrogate key.")
    experiment_id: Mapped[int] = reference("experiments.id", "The experiment.", cascade=True)
    plan_id: Mapped[int | None] = mapped_column(
        sa.BigInteger, sa.ForeignKey("ablation_plans.id", ondelete="SET NULL"), comment="The plan, where there is one."
    )
    strategy: Mapped[str] = mapped_column(
        comment="How the neurons were chosen: a strategy, or a criterion of Figure 4."
    )
    target_unit: Mapped[int | None] = mapped_column(
        sa.Integer, comment="Unit of the head whose class is the target; NULL where none is."
    )
    size: Mapped[int | None] = mapped_column(sa.Integer, comment="Neurons asked for, in a sweep.")
    share: Mapped[float | None] = mapped_column(comment="Share of all hidden neurons asked for, in percent (Figure 4).")
    seed: Mapped[int | None] = mapped_column(comment="Seed of a random choice, or of what breaks ties.")
    n_neurons: Mapped[int] = mapped_column(sa.Integer, comment="Neurons ablated.")
    n_parameters: Mapped[int] = mapped_column(comment="Weights and biases zeroed.")
    n_clips: Mapped[list[int]] = mapped_column(
        ARRAY(sa.Integer), comment="Held-out clips of each class, in order of the head's units."
    )
    logit_before: Mapped[list[float]] = _by_class("Mean logit of the clips' true class, intact.")
    logit_after: Mapped[list[float]] = _by_class("The same, ablated.")
    probability_before: Mapped[list[float]] = _by_class("Mean softmax probability of the true class, intact.")
    probability_after: Mapped[list[float]] = _by_class("The same, ablated.")
    accuracy_before: Mapped[list[float]] = _by_class("Share of the class's clips that are classified right, intact.")
    accuracy_after: Mapped[list[float]] = _by_class("The same, ablated.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was measured.")


# ---------------------------------------------------------------------- clusters of sentences


class Clustering(Base):
    __tablename__ = "clusterings"
    __table_args__ = (
        sa.CheckConstraint("chosen_by IN ('elbow', 'given')", name="chosen_by"),
        {"comment": "k-means over the sentences of a probing set's captions (paper, 4.5): shared by all networks."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    recipe_id: Mapped[int] = mapped_column(
        sa.BigInteger, sa.ForeignKey("recipes.id"), unique=True, comment="Captions, probing set, encoder, seed, number."
    )
    probing_set_id: Mapped[int] = reference("probing_sets.id", "The clips.", cascade=True, index=True)
    caption_recipe_id: Mapped[int] = reference("recipes.id", "The captions.")
    encoder_id: Mapped[int] = reference("encoders.id", "The sentence encoder.")
    n_clusters: Mapped[int] = mapped_column(sa.Integer, comment="Number of clusters.")
    chosen_by: Mapped[str] = mapped_column(comment="elbow or given.")
    seed: Mapped[int] = mapped_column(comment="Seed of k-means.")
    inertia: Mapped[float] = mapped_column(comment="Sum of squared distances to the nearest centre.")
    curve: Mapped[Any] = mapped_column(
        JSONB, nullable=False, comment="Elbow: list of [number of clusters, inertia]; empty where the number was given."
    )
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was made.")


class Cluster(Base):
    __tablename__ = "clusters"
    __table_args__ = ({"comment": "Table 8: the clusters, with counts and words."},)

    clustering_id: Mapped[int] = reference("clusterings.id", "The clustering.", cascade=True, key=True)
    cluster: Mapped[int] = mapped_column(
        sa.Integer, primary_key=True, autoincrement=False, comment="Number, from 1, the largest first."
    )
    n_captions: Mapped[int] = mapped_column(sa.Integer, comment="Captions with a sentence in it.")
    n_sentences: Mapped[int] = mapped_column(sa.Integer, comment="Sentences in it, as often as they occur.")
    words: Mapped[Json] = mapped_column(comment="Its most frequent words with their counts, stop words left out.")


class ClusterSentence(Base):
    __tablename__ = "cluster_sentences"
    __table_args__ = ({"comment": "Which cluster each distinct sentence falls into."},)

    clustering_id: Mapped[int] = reference("clusterings.id", "The clustering.", cascade=True, key=True)
    text_id: Mapped[int] = reference("texts.id", "The sentence.", key=True, index=True)
    cluster: Mapped[int] = mapped_column(sa.Integer, comment="The cluster.")


# ---------------------------------------------------------------------- people's judgement


class Study(Base):
    __tablename__ = "studies"
    __table_args__ = ({"comment": "Table 3: a study in which people rate descriptions of neurons."},)

    id: Mapped[int] = identity("Surrogate key.")
    name: Mapped[str] = mapped_column(unique=True, comment="What users call it.")
    token: Mapped[str] = mapped_column(unique=True, comment="Tells that a file of answers belongs to it.")
    dissection_id: Mapped[int] = reference("dissections.id", "The dissection: kept as long as the study.", index=True)
    recipe_id: Mapped[int] = reference("recipes.id", "Seed, neurons per layer, methods, exemplars.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was exported.")


class StudyItem(Base):
    __tablename__ = "study_items"
    __table_args__ = (
        sa.UniqueConstraint("study_id", "neuron_id"),
        {"comment": "The neurons of a study, in the order in which they are shown."},
    )

    study_id: Mapped[int] = reference("studies.id", "The study.", cascade=True, key=True)
    item: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="Place, from 1.")
    neuron_id: Mapped[int] = reference("neurons.id", "The neuron.", cascade=True)


class StudyDescription(Base):
    __tablename__ = "study_descriptions"
    __table_args__ = (
        sa.UniqueConstraint("study_id", "item", "method"),
        sa.ForeignKeyConstraint(
            ["study_id", "item"], ["study_items.study_id", "study_items.item"], ondelete="CASCADE",
        ),
        {"comment": "The descriptions shown for a neuron, in blinded order."},
    )  # fmt: skip

    study_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The study.")
    item: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="The neuron's place.")
    slot: Mapped[str] = mapped_column(primary_key=True, comment="A, B, C …: what raters see in place of the method.")
    method: Mapped[str] = mapped_column(comment="closed_db, closed_tab, closed_icl or summary.")
    text: Mapped[str] = mapped_column(comment="The description as shown.")


class StudyRating(Base):
    __tablename__ = "study_ratings"
    __table_args__ = (
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name="rating"),
        sa.ForeignKeyConstraint(
            ["study_id", "item", "slot"],
            ["study_descriptions.study_id", "study_descriptions.item", "study_descriptions.slot"],
            ondelete="CASCADE",
        ),
        {"comment": "Does the description fit most of the clips? 1 strongly disagree … 5 strongly agree."},
    )

    study_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The study.")
    rater: Mapped[str] = mapped_column(primary_key=True, comment="Name or code of the rater.")
    item: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="The neuron's place.")
    slot: Mapped[str] = mapped_column(primary_key=True, comment="The description.")
    rating: Mapped[int] = mapped_column(sa.SmallInteger, comment="1 to 5.")


class StudySummary(Base):
    __tablename__ = "study_summaries"
    __table_args__ = (
        sa.ForeignKeyConstraint(
            ["study_id", "item"], ["study_items.study_id", "study_items.item"], ondelete="CASCADE",
        ),
        {"comment": "What a rater wrote of the clips of a neuron."},
    )  # fmt: skip

    study_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The study.")
    rater: Mapped[str] = mapped_column(primary_key=True, comment="Name or code of the rater.")
    item: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="The neuron's place.")
    text: Mapped[str] = mapped_column(comment="What the clips have in common, in the rater's words.")
