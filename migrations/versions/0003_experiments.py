"""Tables of the experiments: evaluation, ablation, clusters of captions, studies.

Why: every table and figure of the paper is a result that is kept, with the recipe that made it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "class_concepts",
        sa.Column("network_id", sa.BigInteger(), nullable=False, comment="The network."),
        sa.Column("concept_set_id", sa.BigInteger(), nullable=False, comment="The concept set."),
        sa.Column("unit", sa.Integer(), autoincrement=False, nullable=False, comment="Unit of the head, from 0."),
        sa.Column("class_name", sa.Text(), nullable=False, comment="Name of the class, as the network has it."),
        sa.Column("concept_id", sa.BigInteger(), nullable=True, comment="The concept; NULL: there is none."),
        sa.Column(
            "how",
            sa.Text(),
            nullable=False,
            comment="exact: the same name; normalised: but for case, '_' and '-'; synonym; given: by the user; none.",
        ),
        sa.CheckConstraint("(concept_id IS NULL) = (how = 'none')", name=op.f("ck_class_concepts_concept")),
        sa.CheckConstraint(
            "how IN ('exact', 'normalised', 'synonym', 'given', 'none')", name=op.f("ck_class_concepts_how")
        ),
        sa.ForeignKeyConstraint(
            ["concept_id"], ["concepts.id"], name=op.f("fk_class_concepts_concept_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["concept_set_id"], ["concept_sets.id"], name=op.f("fk_class_concepts_concept_set_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["network_id"], ["networks.id"], name=op.f("fk_class_concepts_network_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("network_id", "concept_set_id", "unit", name=op.f("pk_class_concepts")),
        comment="Which concept of a set stands for a class of a network; never decided by position.",
    )
    op.create_table(
        "clusterings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column(
            "recipe_id", sa.BigInteger(), nullable=False, comment="Captions, probing set, encoder, seed, number."
        ),
        sa.Column("probing_set_id", sa.BigInteger(), nullable=False, comment="The clips."),
        sa.Column("caption_recipe_id", sa.BigInteger(), nullable=False, comment="The captions."),
        sa.Column("encoder_id", sa.BigInteger(), nullable=False, comment="The sentence encoder."),
        sa.Column("n_clusters", sa.Integer(), nullable=False, comment="Number of clusters."),
        sa.Column("chosen_by", sa.Text(), nullable=False, comment="elbow or given."),
        sa.Column("seed", sa.BigInteger(), nullable=False, comment="Seed of k-means."),
        sa.Column("inertia", sa.Double(), nullable=False, comment="Sum of squared distances to the nearest centre."),
        sa.Column(
            "curve",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Elbow: list of [number of clusters, inertia]; empty where the number was given.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was made.",
        ),
        sa.CheckConstraint("chosen_by IN ('elbow', 'given')", name=op.f("ck_clusterings_chosen_by")),
        sa.ForeignKeyConstraint(["caption_recipe_id"], ["recipes.id"], name=op.f("fk_clusterings_caption_recipe_id")),
        sa.ForeignKeyConstraint(["encoder_id"], ["encoders.id"], name=op.f("fk_clusterings_encoder_id")),
        sa.ForeignKeyConstraint(
            ["probing_set_id"], ["probing_sets.id"], name=op.f("fk_clusterings_probing_set_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_clusterings_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clusterings")),
        sa.UniqueConstraint("recipe_id", name=op.f("uq_clusterings_recipe_id")),
        comment="k-means over the sentences of a probing set's captions (paper, 4.5): shared by all networks.",
    )
    op.create_index(op.f("ix_clusterings_probing_set_id"), "clusterings", ["probing_set_id"], unique=False)
    op.create_table(
        "cluster_sentences",
        sa.Column("clustering_id", sa.BigInteger(), nullable=False, comment="The clustering."),
        sa.Column("text_id", sa.BigInteger(), nullable=False, comment="The sentence."),
        sa.Column("cluster", sa.Integer(), nullable=False, comment="The cluster."),
        sa.ForeignKeyConstraint(
            ["clustering_id"], ["clusterings.id"], name=op.f("fk_cluster_sentences_clustering_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["text_id"], ["texts.id"], name=op.f("fk_cluster_sentences_text_id")),
        sa.PrimaryKeyConstraint("clustering_id", "text_id", name=op.f("pk_cluster_sentences")),
        comment="Which cluster each distinct sentence falls into.",
    )
    op.create_index(op.f("ix_cluster_sentences_text_id"), "cluster_sentences", ["text_id"], unique=False)
    op.create_table(
        "clusters",
        sa.Column("clustering_id", sa.BigInteger(), nullable=False, comment="The clustering."),
        sa.Column(
            "cluster", sa.Integer(), autoincrement=False, nullable=False, comment="Number, from 1, the largest first."
        ),
        sa.Column("n_captions", sa.Integer(), nullable=False, comment="Captions with a sentence in it."),
        sa.Column("n_sentences", sa.Integer(), nullable=False, comment="Sentences in it, as often as they occur."),
        sa.Column(
            "words",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Its most frequent words with their counts, stop words left out.",
        ),
        sa.ForeignKeyConstraint(
            ["clustering_id"], ["clusterings.id"], name=op.f("fk_clusters_clustering_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("clustering_id", "cluster", name=op.f("pk_clusters")),
        comment="Table 8: the clusters, with counts and words.",
    )
    op.create_table(
        "ablation_plans",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("dissection_id", sa.BigInteger(), nullable=False, comment="The dissection."),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="Everything that decides the choice."),
        sa.Column(
            "strategy",
            sa.Text(),
            nullable=False,
            comment="open, closed_db, closed_tab, closed_icl, meaning, random, random_matched.",
        ),
        sa.Column("concept", sa.Text(), nullable=True, comment="The target concept, as asked for."),
        sa.Column(
            "target_unit",
            sa.Integer(),
            nullable=True,
            comment="Unit of the head whose class is the target; NULL where the concept is no class.",
        ),
        sa.Column("layers", sa.Text(), nullable=True, comment="Pattern on layer names; NULL: all hidden layers."),
        sa.Column("max_neurons", sa.Integer(), nullable=True, comment="The most neurons to choose; NULL: all."),
        sa.Column("seed", sa.BigInteger(), nullable=True, comment="Seed of a random choice."),
        sa.Column(
            "compared_with_id",
            sa.BigInteger(),
            nullable=True,
            comment="For random_matched: the plan from whose layers as many neurons are drawn.",
        ),
        sa.Column("n_neurons", sa.Integer(), nullable=False, comment="Neurons chosen."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was made.",
        ),
        sa.ForeignKeyConstraint(
            ["compared_with_id"],
            ["ablation_plans.id"],
            name=op.f("fk_ablation_plans_compared_with_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["dissection_id"], ["dissections.id"], name=op.f("fk_ablation_plans_dissection_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_ablation_plans_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ablation_plans")),
        sa.UniqueConstraint("recipe_id", name=op.f("uq_ablation_plans_recipe_id")),
        comment="A choice of neurons to ablate, and how it was made.",
    )
    op.create_index(op.f("ix_ablation_plans_dissection_id"), "ablation_plans", ["dissection_id"], unique=False)
    op.create_table(
        "experiments",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column(
            "kind",
            sa.Text(),
            nullable=False,
            comment="last_layer, explanations, unlearning, sweep, feature_ablation, word_acoustics …",
        ),
        sa.Column("dissection_id", sa.BigInteger(), nullable=False, comment="The dissection."),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="Everything that changes the result."),
        sa.Column("status", sa.Text(), server_default="running", nullable=False, comment="running or complete."),
        sa.Column(
            "figures",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Headline figures, and what was left out.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was begun.",
        ),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True, comment="When it was completed."),
        sa.CheckConstraint("status IN ('running', 'complete')", name=op.f("ck_experiments_status")),
        sa.ForeignKeyConstraint(
            ["dissection_id"], ["dissections.id"], name=op.f("fk_experiments_dissection_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_experiments_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
        sa.UniqueConstraint("recipe_id", name=op.f("uq_experiments_recipe_id")),
        comment="An experiment on a dissection: computed once per recipe, and kept.",
    )
    op.create_index(op.f("ix_experiments_dissection_id"), "experiments", ["dissection_id"], unique=False)
    op.create_table(
        "studies",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("name", sa.Text(), nullable=False, comment="What users call it."),
        sa.Column("token", sa.Text(), nullable=False, comment="Tells that a file of answers belongs to it."),
        sa.Column(
            "dissection_id",
            sa.BigInteger(),
            nullable=False,
            comment="The dissection: kept as long as the study.",
        ),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="Seed, neurons per layer, methods, exemplars."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was exported.",
        ),
        sa.ForeignKeyConstraint(["dissection_id"], ["dissections.id"], name=op.f("fk_studies_dissection_id")),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_studies_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("name", name=op.f("uq_studies_name")),
        sa.UniqueConstraint("token", name=op.f("uq_studies_token")),
        comment="Table 3: a study in which people rate descriptions of neurons.",
    )
    op.create_index(op.f("ix_studies_dissection_id"), "studies", ["dissection_id"], unique=False)
    op.create_table(
        "ablation_plan_neurons",
        sa.Column("plan_id", sa.BigInteger(), nullable=False, comment="The plan."),
        sa.Column("neuron_id", sa.BigInteger(), nullable=False, comment="The neuron."),
        sa.Column("rank", sa.Integer(), nullable=False, comment="Order of choice, from 1."),
        sa.Column("score", sa.REAL(), nullable=True, comment="Score of the strategy; NULL for a random choice."),
        sa.Column("why", sa.Text(), nullable=False, comment="Why it was chosen: matching term, rank or distance."),
        sa.ForeignKeyConstraint(
            ["neuron_id"], ["neurons.id"], name=op.f("fk_ablation_plan_neurons_neuron_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["ablation_plans.id"], name=op.f("fk_ablation_plan_neurons_plan_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("plan_id", "neuron_id", name=op.f("pk_ablation_plan_neurons")),
        comment="The neurons of a plan, and why each.",
    )
    op.create_table(
        "ablations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("experiment_id", sa.BigInteger(), nullable=False, comment="The experiment."),
        sa.Column("plan_id", sa.BigInteger(), nullable=True, comment="The plan, where there is one."),
        sa.Column(
            "strategy",
            sa.Text(),
            nullable=False,
            comment="How the neurons were chosen: a strategy, or a criterion of Figure 4.",
        ),
        sa.Column(
            "target_unit",
            sa.Integer(),
            nullable=True,
            comment="Unit of the head whose class is the target; NULL where none is.",
        ),
        sa.Column("size", sa.Integer(), nullable=True, comment="Neurons asked for, in a sweep."),
        sa.Column(
            "share", sa.Double(), nullable=True, comment="Share of all hidden neurons asked for, in percent (Figure 4)."
        ),
        sa.Column("seed", sa.BigInteger(), nullable=True, comment="Seed of a random choice, or of what breaks ties."),
        sa.Column("n_neurons", sa.Integer(), nullable=False, comment="Neurons ablated."),
        sa.Column("n_parameters", sa.BigInteger(), nullable=False, comment="Weights and biases zeroed."),
        sa.Column(
            "n_clips",
            postgresql.ARRAY(sa.Integer()),
            nullable=False,
            comment="Held-out clips of each class, in order of the head's units.",
        ),
        sa.Column(
            "logit_before",
            postgresql.ARRAY(sa.REAL()),
            nullable=False,
            comment="Mean logit of the clips' true class, intact. One value per unit of the head; NULL: no held-out clip.",
        ),
        sa.Column(
            "logit_after",
            postgresql.ARRAY(sa.REAL()),
            nullable=False,
            comment="The same, ablated. One value per unit of the head; NULL: no held-out clip.",
        ),
        sa.Column(
            "probability_before",
            postgresql.ARRAY(sa.REAL()),
            nullable=False,
            comment="Mean softmax probability of the true class, intact. One value per unit of the head; NULL: no held-out clip.",
        ),
        sa.Column(
            "probability_after",
            postgresql.ARRAY(sa.REAL()),
            nullable=False,
            comment="The same, ablated. One value per unit of the head; NULL: no held-out clip.",
        ),
        sa.Column(
            "accuracy_before",
            postgresql.ARRAY(sa.REAL()),
            nullable=False,
            comment="Share of the class's clips that are classified right, intact. One value per unit of the head; NULL: no held-out clip.",
        ),
        sa.Column(
            "accuracy_after",
            postgresql.ARRAY(sa.REAL()),
            nullable=False,
            comment="The same, ablated. One value per unit of the head; NULL: no held-out clip.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was measured.",
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_ablations_experiment_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["ablation_plans.id"], name=op.f("fk_ablations_plan_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ablations")),
        comment="What ablating a choice of neurons does to each class, on held-out clips. Unnested in the view ablation_classes.",
    )
    op.create_index(
        "uq_ablations_experiment_id_unit_of_work",
        "ablations",
        ["experiment_id", "strategy", "target_unit", "size", "share", "seed"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "explanation_scores",
        sa.Column("experiment_id", sa.BigInteger(), nullable=False, comment="The evaluation."),
        sa.Column("neuron_id", sa.BigInteger(), nullable=False, comment="The neuron."),
        sa.Column(
            "explanation",
            sa.Text(),
            nullable=False,
            comment="closed_db, closed_tab, closed_icl: the best concept by that method; summary: the calibrated summary; best_label: the label that the activation separates best.",
        ),
        sa.Column(
            "reference",
            sa.Text(),
            nullable=False,
            comment="labels: the clips that carry the concept as a label; scores: the clips that fit it best by its scores.",
        ),
        sa.Column("concept", sa.Text(), nullable=True, comment="The concept or label; NULL for a summary."),
        sa.Column("n_positive", sa.Integer(), nullable=False, comment="Clips to which the description applies."),
        sa.Column("auprc", sa.REAL(), nullable=True, comment="Average precision of the activation, 0 to 1."),
        sa.Column(
            "pearson",
            sa.REAL(),
            nullable=True,
            comment="Pearson correlation of activation and label (0/1), or activation and score.",
        ),
        sa.Column(
            "f1",
            sa.REAL(),
            nullable=True,
            comment="F1 of the n_positive most active clips against those the description applies to.",
        ),
        sa.Column("iou", sa.REAL(), nullable=True, comment="Intersection over union of the same two sets."),
        sa.Column(
            "null_auprc",
            sa.REAL(),
            nullable=True,
            comment="Mean average precision of permuted activations: of the best description that could have been chosen.",
        ),
        sa.Column("null_pearson", sa.REAL(), nullable=True, comment="95 % quantile of the correlation, permuted."),
        sa.Column("null_f1", sa.REAL(), nullable=True, comment="Mean F1, permuted."),
        sa.Column("null_iou", sa.REAL(), nullable=True, comment="Mean IoU, permuted."),
        sa.Column(
            "p_auprc",
            sa.REAL(),
            nullable=True,
            comment="Share of permutations in which the best description reaches this, (1 + count) / (1 + permutations).",
        ),
        sa.Column(
            "p_pearson",
            sa.REAL(),
            nullable=True,
            comment="The same for the correlation with this one description; NULL for best_label.",
        ),
        sa.CheckConstraint("reference IN ('labels', 'scores')", name=op.f("ck_explanation_scores_reference")),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_explanation_scores_experiment_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["neuron_id"], ["neurons.id"], name=op.f("fk_explanation_scores_neuron_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "experiment_id", "neuron_id", "explanation", "reference", name=op.f("pk_explanation_scores")
        ),
        comment="How well a description of a neuron tells on which clips it is active (Oikarinen et al., Evaluating Neuron Explanations, ICML 2025), beside what permuted activations give.",
    )
    op.create_index("ix_explanation_scores_neuron_id", "explanation_scores", ["neuron_id"], unique=False)
    op.create_table(
        "last_layer_measures",
        sa.Column("experiment_id", sa.BigInteger(), nullable=False, comment="The evaluation."),
        sa.Column("method", sa.Text(), nullable=False, comment="db, tab or icl."),
        sa.Column("similarity", sa.Text(), nullable=False, comment="Similarity function; llm for icl."),
        sa.Column(
            "over",
            sa.Text(),
            nullable=False,
            comment="all: classes that are concepts; right: those of them that the network gets right.",
        ),
        sa.Column(
            "measure",
            sa.Text(),
            nullable=False,
            comment="top_1, top_5 (shares), cosine_sentence, cosine_concept (means of the first concept).",
        ),
        sa.Column("n", sa.Integer(), nullable=False, comment="Classes it is over."),
        sa.Column("value", sa.Double(), nullable=True, comment="The measure; NULL where there is no class."),
        sa.Column("low", sa.Double(), nullable=True, comment="Lower end of the bootstrap 95 % interval over classes."),
        sa.Column("high", sa.Double(), nullable=True, comment="Upper end."),
        sa.CheckConstraint("over IN ('all', 'right')", name=op.f("ck_last_layer_measures_over")),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_last_layer_measures_experiment_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "experiment_id", "method", "similarity", "over", "measure", name=op.f("pk_last_layer_measures")
        ),
        comment="Tables 2 and 7: how well the concepts found for the head's units name their classes.",
    )
    op.create_table(
        "last_layer_names",
        sa.Column("experiment_id", sa.BigInteger(), nullable=False, comment="The evaluation."),
        sa.Column("method", sa.Text(), nullable=False, comment="db, tab or icl."),
        sa.Column("similarity", sa.Text(), nullable=False, comment="Similarity function; llm for icl."),
        sa.Column("neuron_id", sa.BigInteger(), nullable=False, comment="The unit of the head."),
        sa.Column("rank", sa.SmallInteger(), autoincrement=False, nullable=False, comment="1 is the best."),
        sa.Column("concept_id", sa.BigInteger(), nullable=False, comment="The concept."),
        sa.Column(
            "cosine_sentence",
            sa.REAL(),
            nullable=True,
            comment="Cosine of the concept's name and the class name, by the sentence encoder.",
        ),
        sa.Column(
            "cosine_concept",
            sa.REAL(),
            nullable=True,
            comment="The same by the encoder that embedded the concepts (DB: CLIP in the paper).",
        ),
        sa.ForeignKeyConstraint(
            ["concept_id"], ["concepts.id"], name=op.f("fk_last_layer_names_concept_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_last_layer_names_experiment_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["neuron_id"], ["neurons.id"], name=op.f("fk_last_layer_names_neuron_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "experiment_id", "method", "similarity", "neuron_id", "rank", name=op.f("pk_last_layer_names")
        ),
        comment="Tables 2 and 7: the concepts found for each unit of the head, best first.",
    )
    op.create_table(
        "study_items",
        sa.Column("study_id", sa.BigInteger(), nullable=False, comment="The study."),
        sa.Column("item", sa.Integer(), autoincrement=False, nullable=False, comment="Place, from 1."),
        sa.Column("neuron_id", sa.BigInteger(), nullable=False, comment="The neuron."),
        sa.ForeignKeyConstraint(
            ["neuron_id"], ["neurons.id"], name=op.f("fk_study_items_neuron_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_study_items_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study_id", "item", name=op.f("pk_study_items")),
        sa.UniqueConstraint("study_id", "neuron_id", name=op.f("uq_study_items_study_id_neuron_id")),
        comment="The neurons of a study, in the order in which they are shown.",
    )
    op.create_table(
        "study_descriptions",
        sa.Column("study_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The study."),
        sa.Column("item", sa.Integer(), autoincrement=False, nullable=False, comment="The neuron's place."),
        sa.Column("slot", sa.Text(), nullable=False, comment="A, B, C …: what raters see in place of the method."),
        sa.Column("method", sa.Text(), nullable=False, comment="closed_db, closed_tab, closed_icl or summary."),
        sa.Column("text", sa.Text(), nullable=False, comment="The description as shown."),
        sa.ForeignKeyConstraint(
            ["study_id", "item"],
            ["study_items.study_id", "study_items.item"],
            name=op.f("fk_study_descriptions_study_id_item"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "item", "slot", name=op.f("pk_study_descriptions")),
        sa.UniqueConstraint("study_id", "item", "method", name=op.f("uq_study_descriptions_study_id_item_method")),
        comment="The descriptions shown for a neuron, in blinded order.",
    )
    op.create_table(
        "study_summaries",
        sa.Column("study_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The study."),
        sa.Column("rater", sa.Text(), nullable=False, comment="Name or code of the rater."),
        sa.Column("item", sa.Integer(), autoincrement=False, nullable=False, comment="The neuron's place."),
        sa.Column("text", sa.Text(), nullable=False, comment="What the clips have in common, in the rater's words."),
        sa.ForeignKeyConstraint(
            ["study_id", "item"],
            ["study_items.study_id", "study_items.item"],
            name=op.f("fk_study_summaries_study_id_item"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "rater", "item", name=op.f("pk_study_summaries")),
        comment="What a rater wrote of the clips of a neuron.",
    )
    op.create_table(
        "study_ratings",
        sa.Column("study_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The study."),
        sa.Column("rater", sa.Text(), nullable=False, comment="Name or code of the rater."),
        sa.Column("item", sa.Integer(), autoincrement=False, nullable=False, comment="The neuron's place."),
        sa.Column("slot", sa.Text(), nullable=False, comment="The description."),
        sa.Column("rating", sa.SmallInteger(), nullable=False, comment="1 to 5."),
        sa.CheckConstraint("rating BETWEEN 1 AND 5", name=op.f("ck_study_ratings_rating")),
        sa.ForeignKeyConstraint(
            ["study_id", "item", "slot"],
            ["study_descriptions.study_id", "study_descriptions.item", "study_descriptions.slot"],
            name=op.f("fk_study_ratings_study_id_item_slot"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("study_id", "rater", "item", "slot", name=op.f("pk_study_ratings")),
        comment="Does the description fit most of the clips? 1 strongly disagree … 5 strongly agree.",
    )


def downgrade() -> None:
    op.drop_table("study_ratings")
    op.drop_table("study_summaries")
    op.drop_table("study_descriptions")
    op.drop_table("study_items")
    op.drop_table("last_layer_names")
    op.drop_table("last_layer_measures")
    op.drop_index("ix_explanation_scores_neuron_id", table_name="explanation_scores")
    op.drop_table("explanation_scores")
    op.drop_index("uq_ablations_experiment_id_unit_of_work", table_name="ablations", postgresql_nulls_not_distinct=True)
    op.drop_table("ablations")
    op.drop_table("ablation_plan_neurons")
    op.drop_index(op.f("ix_studies_dissection_id"), table_name="studies")
    op.drop_table("studies")
    op.drop_index(op.f("ix_experiments_dissection_id"), table_name="experiments")
    op.drop_table("experiments")
    op.drop_index(op.f("ix_ablation_plans_dissection_id"), table_name="ablation_plans")
    op.drop_table("ablation_plans")
    op.drop_table("clusters")
    op.drop_index(op.f("ix_cluster_sentences_text_id"), table_name="cluster_sentences")
    op.drop_table("cluster_sentences")
    op.drop_index(op.f("ix_clusterings_probing_set_id"), table_name="clusterings")
    op.drop_table("clusterings")
    op.drop_table("class_concepts")
