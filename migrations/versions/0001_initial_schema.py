"""The initial schema: every table, as `and_platform/schema/` declares them.

Why: without it there is no database.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "concept_sets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("name", sa.Text(), nullable=False, comment="What users call it."),
        sa.Column(
            "source",
            sa.Text(),
            nullable=False,
            comment="Where it came from: a file, 'shipped', or 'labels of <data set>'.",
        ),
        sa.Column("sha256", sa.Text(), nullable=False, comment="Hash of the concepts, in order."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was imported.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_concept_sets")),
        sa.UniqueConstraint("name", name=op.f("uq_concept_sets_name")),
        comment="A vocabulary that neurons are matched with.",
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("name", sa.Text(), nullable=False, comment="What users call it."),
        sa.Column(
            "root", sa.Text(), nullable=False, comment="Absolute path of the folder; clips' paths are relative to it."
        ),
        sa.Column(
            "kind",
            sa.Text(),
            nullable=False,
            comment="How it was ingested: folder, manifest, esc50, urbansound8k, gtzan, sample.",
        ),
        sa.Column(
            "extra",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Anything else that is known of it.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was first ingested.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("name", name=op.f("uq_datasets_name")),
        comment="A collection of clips that lies in one folder.",
    )
    op.create_table(
        "networks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("name", sa.Text(), nullable=False, comment="What users call it."),
        sa.Column("source", sa.Text(), nullable=False, comment="How it is loaded: transformers, factory, or sample."),
        sa.Column("location", sa.Text(), nullable=False, comment="Directory, hub id, or module:factory."),
        sa.Column(
            "revision", sa.Text(), nullable=False, comment="Hash of its weights: another revision is another network."
        ),
        sa.Column("architecture", sa.Text(), nullable=False, comment="Class of the model."),
        sa.Column("sample_rate", sa.Integer(), nullable=False, comment="Rate its input pipeline expects, Hz."),
        sa.Column("n_parameters", sa.BigInteger(), nullable=False, comment="Number of parameters."),
        sa.Column(
            "classes",
            postgresql.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Class names in order of the head's units.",
        ),
        sa.Column(
            "trained_on", sa.Text(), nullable=True, comment="Name of the data set it was trained on, where known."
        ),
        sa.Column(
            "held_out_fold",
            sa.Integer(),
            nullable=True,
            comment="Fold it was not trained on: the only one that evaluation may use.",
        ),
        sa.Column(
            "extra",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Training recipe and figures, where known.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was added.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_networks")),
        sa.UniqueConstraint("name", name=op.f("uq_networks_name")),
        comment="A network under study.",
    )
    op.create_table(
        "recipes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column(
            "stage",
            sa.Text(),
            nullable=False,
            comment="record, caption, encode, score, match, summarise, calibrate, tag, judge …",
        ),
        sa.Column("backend", sa.Text(), nullable=False, comment="What did it, as the registry names it."),
        sa.Column("revision", sa.Text(), nullable=False, comment="Revision of its weights or algorithm."),
        sa.Column(
            "params",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Parameters: prompt, pooling, threshold, seed …",
        ),
        sa.Column(
            "parents",
            postgresql.ARRAY(sa.BigInteger()),
            server_default="{}",
            nullable=False,
            comment="Recipes whose rows this one builds on.",
        ),
        sa.Column("sha256", sa.Text(), nullable=False, comment="Hash of all of the above, parents by their hashes."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was first used.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipes")),
        sa.UniqueConstraint("sha256", name=op.f("uq_recipes_sha256")),
        comment="How a stage's rows were made: everything that changes the result, and nothing else.",
    )
    op.create_table(
        "terms",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("term", sa.Text(), nullable=False, comment="Lemma, lower case."),
        sa.Column("part_of_speech", sa.Text(), nullable=False, comment="adjective, noun, verb or preposition."),
        sa.Column(
            "stem",
            sa.Text(),
            sa.Computed("coalesce((ts_lexize('english_stem', lower(term)))[1], lower(term))", persisted=True),
            nullable=False,
            comment="English stem: 'barking' and 'bark' meet here.",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_terms")),
        sa.UniqueConstraint("term", "part_of_speech", name=op.f("uq_terms_term_part_of_speech")),
        comment="A word that summaries use.",
    )
    op.create_index("ix_terms_stem", "terms", ["stem"], unique=False)
    op.create_table(
        "texts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("text", sa.Text(), nullable=False, comment="The text."),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_texts")),
        comment="Each distinct caption, sentence, summary point or concept name once: embedded and tagged once.",
    )
    op.create_index("uq_texts_md5", "texts", [sa.literal_column("md5(text)")], unique=True)
    op.create_table(
        "answers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="The LLM and its sampling."),
        sa.Column("prompt_sha256", sa.Text(), nullable=False, comment="Hash of the prompt and the token limit."),
        sa.Column("prompt", sa.Text(), nullable=False, comment="The prompt."),
        sa.Column("answer", sa.Text(), nullable=False, comment="The answer as it came."),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False, comment="Tokens of the prompt."),
        sa.Column("completion_tokens", sa.Integer(), nullable=False, comment="Tokens of the answer."),
        sa.Column("finish_reason", sa.Text(), nullable=False, comment="stop, length …"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it came.",
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_answers_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answers")),
        comment="What an LLM answered, kept before it is used: an identical prompt is never asked twice.",
    )
    op.create_index("uq_answers_recipe_id_prompt_sha256", "answers", ["recipe_id", "prompt_sha256"], unique=True)
    op.create_table(
        "clips",
        sa.Column(
            "id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="Surrogate key; also the order of clips in a probing set.",
        ),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False, comment="The data set it belongs to."),
        sa.Column(
            "path", sa.Text(), nullable=False, comment="Path relative to the data set's root, with forward slashes."
        ),
        sa.Column("sha256", sa.Text(), nullable=False, comment="SHA-256 of the file's bytes, hexadecimal."),
        sa.Column(
            "labels",
            postgresql.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Class labels, the first is the main one.",
        ),
        sa.Column("fold", sa.Integer(), nullable=True, comment="Cross-validation fold, where the data set has folds."),
        sa.Column("source_caption", sa.Text(), nullable=True, comment="Caption that came with the data set."),
        sa.Column("sample_rate", sa.Integer(), nullable=False, comment="Sampling rate of the file, Hz."),
        sa.Column("channels", sa.Integer(), nullable=False, comment="Channels of the file."),
        sa.Column("duration_s", sa.Double(), nullable=False, comment="Duration, seconds."),
        sa.Column(
            "mean_abs_amplitude",
            sa.Double(),
            nullable=False,
            comment="Mean absolute amplitude of the mono mix, full scale = 1.",
        ),
        sa.Column("rms", sa.Double(), nullable=False, comment="Root mean square of the mono mix, full scale = 1."),
        sa.Column("peak", sa.Double(), nullable=False, comment="Largest absolute sample of the mono mix."),
        sa.Column(
            "median_frequency_hz",
            sa.Double(),
            nullable=True,
            comment="MDF: frequency below which half of the spectral power lies, Hz; NULL for silence.",
        ),
        sa.Column(
            "silence_share",
            sa.Double(),
            nullable=False,
            comment="Share of short frames below the silence floor, 0 to 1.",
        ),
        sa.Column(
            "features",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Acoustic features that the describer uses.",
        ),
        sa.Column(
            "extra",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Other columns of the manifest.",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was ingested.",
        ),
        sa.Column(
            "retired_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the file changed or vanished; NULL: the clip is live.",
        ),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_clips_dataset_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clips")),
        comment="One sound file as it was when ingested, with its acoustic measures. A changed file is a new clip.",
    )
    op.create_index("ix_clips_dataset_id_sha256", "clips", ["dataset_id", "sha256"], unique=False)
    op.create_index("ix_clips_labels", "clips", ["labels"], unique=False, postgresql_using="gin")
    op.create_index(
        "uq_clips_dataset_id_path_live",
        "clips",
        ["dataset_id", "path"],
        unique=True,
        postgresql_where=sa.text("retired_at IS NULL"),
    )
    op.create_table(
        "concepts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("concept_set_id", sa.BigInteger(), nullable=False, comment="The set."),
        sa.Column("position", sa.Integer(), nullable=False, comment="Place in the set, from 0."),
        sa.Column("name", sa.Text(), nullable=False, comment="Normalised name: lower case, '_' and '-' as spaces."),
        sa.Column("original_name", sa.Text(), nullable=False, comment="The name as imported."),
        sa.Column(
            "synonyms",
            postgresql.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Other names of the same concept.",
        ),
        sa.Column("kind", sa.Text(), nullable=True, comment="Kind of phrase, where the source tells."),
        sa.Column("text_id", sa.BigInteger(), nullable=False, comment="The name as a text, where its embeddings hang."),
        sa.ForeignKeyConstraint(
            ["concept_set_id"], ["concept_sets.id"], name=op.f("fk_concepts_concept_set_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["text_id"], ["texts.id"], name=op.f("fk_concepts_text_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_concepts")),
        sa.UniqueConstraint("concept_set_id", "name", name=op.f("uq_concepts_concept_set_id_name")),
        sa.UniqueConstraint("concept_set_id", "position", name=op.f("uq_concepts_concept_set_id_position")),
        comment="One entry of a concept set.",
    )
    op.create_table(
        "encoders",
        sa.Column(
            "id",
            sa.BigInteger(),
            sa.Identity(always=False),
            nullable=False,
            comment="Surrogate key; each has its own HNSW index where it embeds summaries.",
        ),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="Backend, revision and parameters."),
        sa.Column("name", sa.Text(), nullable=False, comment="What users call it."),
        sa.Column("dim", sa.Integer(), nullable=False, comment="Dimension of its vectors."),
        sa.Column("scale", sa.Double(), nullable=False, comment="Factor on the cosine before a softmax over concepts."),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_encoders_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encoders")),
        sa.UniqueConstraint("recipe_id", name=op.f("uq_encoders_recipe_id")),
        comment="A model that turns texts, or texts and sounds, into vectors.",
    )
    op.create_table(
        "layers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("network_id", sa.BigInteger(), nullable=False, comment="The network."),
        sa.Column(
            "position", sa.Integer(), nullable=False, comment="Place in the network, from 0, in order of computation."
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="Stable name, e.g. b03.ff_in or head."),
        sa.Column("module_path", sa.Text(), nullable=False, comment="Address of the module in the model as loaded."),
        sa.Column("block", sa.Integer(), nullable=True, comment="Block it belongs to, from 0; NULL for the head."),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="attn_out, ff_in, ff_out, query, key, value, head, conv, linear."
        ),
        sa.Column("n_units", sa.Integer(), nullable=False, comment="Number of neurons."),
        sa.Column(
            "pooling",
            sa.Text(),
            nullable=False,
            comment="Default pooling over time: first, mean, max, or network: its own.",
        ),
        sa.Column(
            "is_default",
            sa.Boolean(),
            nullable=False,
            comment="True for the layers that are dissected unless others are named.",
        ),
        sa.ForeignKeyConstraint(["network_id"], ["networks.id"], name=op.f("fk_layers_network_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_layers")),
        sa.UniqueConstraint("network_id", "name", name=op.f("uq_layers_network_id_name")),
        comment="A module of a network whose output units are neurons.",
    )
    op.create_table(
        "probing_sets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False, comment="The data set it is a snapshot of."),
        sa.Column("sha256", sa.Text(), nullable=False, comment="Hash of its members' paths and contents, in order."),
        sa.Column("n_clips", sa.Integer(), nullable=False, comment="Number of members."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the snapshot was taken.",
        ),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_probing_sets_dataset_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_probing_sets")),
        sa.UniqueConstraint("dataset_id", "sha256", name=op.f("uq_probing_sets_dataset_id_sha256")),
        comment="Immutable snapshot of a data set: what a network is probed with, each clip at a fixed position.",
    )
    op.create_table(
        "term_verdicts",
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="The judge."),
        sa.Column("term_id", sa.BigInteger(), nullable=False, comment="The adjective."),
        sa.Column("accepted", sa.Boolean(), nullable=False, comment="Yes or no."),
        sa.Column("score", sa.REAL(), nullable=True, comment="The judge's score, where it gives one."),
        sa.Column("reason", sa.Text(), nullable=False, comment="Why."),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_term_verdicts_recipe_id")),
        sa.ForeignKeyConstraint(["term_id"], ["terms.id"], name=op.f("fk_term_verdicts_term_id")),
        sa.PrimaryKeyConstraint("recipe_id", "term_id", name=op.f("pk_term_verdicts")),
        comment="Module C: may an adjective describe sound? Each is judged once.",
    )
    op.create_index(op.f("ix_term_verdicts_term_id"), "term_verdicts", ["term_id"], unique=False)
    op.create_table(
        "text_tags",
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="The tagger and its rules."),
        sa.Column("text_id", sa.BigInteger(), nullable=False, comment="The text."),
        sa.Column(
            "terms",
            postgresql.ARRAY(sa.BigInteger()),
            nullable=False,
            comment="Ids of its terms, one for each occurrence.",
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_text_tags_recipe_id")),
        sa.ForeignKeyConstraint(["text_id"], ["texts.id"], name=op.f("fk_text_tags_text_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("recipe_id", "text_id", name=op.f("pk_text_tags")),
        comment="Terms found in a text by a tagger, once per distinct text.",
    )
    op.create_index(op.f("ix_text_tags_text_id"), "text_tags", ["text_id"], unique=False)
    op.create_table(
        "captions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("clip_id", sa.BigInteger(), nullable=False, comment="The clip described."),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="How it was made."),
        sa.Column("text", sa.Text(), nullable=False, comment="The caption as used (repetitions cut)."),
        sa.Column("text_id", sa.BigInteger(), nullable=False, comment="The same text, where its embeddings hang."),
        sa.Column(
            "original", sa.Text(), nullable=True, comment="What the captioner said, where repetitions were cut from it."
        ),
        sa.Column(
            "names_label",
            sa.Boolean(),
            nullable=False,
            comment="True if it contains the clip's class name: evaluation against that name is then partly circular.",
        ),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_captions_clip_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_captions_recipe_id")),
        sa.ForeignKeyConstraint(["text_id"], ["texts.id"], name=op.f("fk_captions_text_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_captions")),
        sa.UniqueConstraint("clip_id", "recipe_id", name=op.f("uq_captions_clip_id_recipe_id")),
        comment="What a captioner says of a clip.",
    )
    op.create_index(op.f("ix_captions_recipe_id"), "captions", ["recipe_id"], unique=False)
    op.create_table(
        "clip_embeddings",
        sa.Column("encoder_id", sa.BigInteger(), nullable=False, comment="The encoder."),
        sa.Column("clip_id", sa.BigInteger(), nullable=False, comment="The clip."),
        sa.Column(
            "embedding",
            VECTOR(),
            nullable=False,
            comment="Unit vector of the encoder's dimension.",
        ),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_clip_embeddings_clip_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["encoder_id"], ["encoders.id"], name=op.f("fk_clip_embeddings_encoder_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("encoder_id", "clip_id", name=op.f("pk_clip_embeddings")),
        comment="Unit vectors of sounds, by a text-audio encoder.",
    )
    op.create_index(op.f("ix_clip_embeddings_clip_id"), "clip_embeddings", ["clip_id"], unique=False)
    op.create_table(
        "finished_layers",
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="The recipe of the stage."),
        sa.Column("layer_id", sa.BigInteger(), nullable=False, comment="The layer."),
        sa.Column(
            "finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment="When."
        ),
        sa.ForeignKeyConstraint(
            ["layer_id"], ["layers.id"], name=op.f("fk_finished_layers_layer_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["recipe_id"], ["recipes.id"], name=op.f("fk_finished_layers_recipe_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("recipe_id", "layer_id", name=op.f("pk_finished_layers")),
        comment="Layers for which all rows of a recipe are there: what is not here is still to be done.",
    )
    op.create_table(
        "neurons",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("layer_id", sa.BigInteger(), nullable=False, comment="The layer."),
        sa.Column("unit", sa.Integer(), nullable=False, comment="Index of the unit in its layer, from 0."),
        sa.Column("class_name", sa.Text(), nullable=True, comment="For units of the head: the class it stands for."),
        sa.ForeignKeyConstraint(["layer_id"], ["layers.id"], name=op.f("fk_neurons_layer_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_neurons")),
        sa.UniqueConstraint("layer_id", "unit", name=op.f("uq_neurons_layer_id_unit")),
        comment="One output unit of a layer.",
    )
    op.create_table(
        "probing_set_clips",
        sa.Column("probing_set_id", sa.BigInteger(), nullable=False, comment="The probing set."),
        sa.Column(
            "position",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Position, from 0, in order of clip id.",
        ),
        sa.Column("clip_id", sa.BigInteger(), nullable=False, comment="The clip at this position."),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_probing_set_clips_clip_id")),
        sa.ForeignKeyConstraint(
            ["probing_set_id"],
            ["probing_sets.id"],
            name=op.f("fk_probing_set_clips_probing_set_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("probing_set_id", "position", name=op.f("pk_probing_set_clips")),
        sa.UniqueConstraint("probing_set_id", "clip_id", name=op.f("uq_probing_set_clips_probing_set_id_clip_id")),
        comment="Members of probing sets.",
    )
    op.create_index(op.f("ix_probing_set_clips_clip_id"), "probing_set_clips", ["clip_id"], unique=False)
    op.create_table(
        "recordings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("network_id", sa.BigInteger(), nullable=False, comment="The network."),
        sa.Column("probing_set_id", sa.BigInteger(), nullable=False, comment="What it was probed with."),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="Revision, pooling and probing set."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was begun.",
        ),
        sa.ForeignKeyConstraint(["network_id"], ["networks.id"], name=op.f("fk_recordings_network_id")),
        sa.ForeignKeyConstraint(["probing_set_id"], ["probing_sets.id"], name=op.f("fk_recordings_probing_set_id")),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_recordings_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recordings")),
        sa.UniqueConstraint("recipe_id", name=op.f("uq_recordings_recipe_id")),
        comment="The activations of a network over a probing set, with one way of pooling.",
    )
    op.create_index(op.f("ix_recordings_network_id"), "recordings", ["network_id"], unique=False)
    op.create_index(op.f("ix_recordings_probing_set_id"), "recordings", ["probing_set_id"], unique=False)
    op.create_table(
        "scorings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="Method, captions, encoder and scale."),
        sa.Column("probing_set_id", sa.BigInteger(), nullable=False, comment="The clips."),
        sa.Column("concept_set_id", sa.BigInteger(), nullable=False, comment="The concepts."),
        sa.Column("method", sa.Text(), nullable=False, comment="db or tab."),
        sa.Column(
            "missing",
            postgresql.ARRAY(sa.BigInteger()),
            server_default="{}",
            nullable=False,
            comment="Positions without a score (no caption): left out of every similarity.",
        ),
        sa.ForeignKeyConstraint(["concept_set_id"], ["concept_sets.id"], name=op.f("fk_scorings_concept_set_id")),
        sa.ForeignKeyConstraint(["probing_set_id"], ["probing_sets.id"], name=op.f("fk_scorings_probing_set_id")),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_scorings_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scorings")),
        sa.UniqueConstraint("recipe_id", name=op.f("uq_scorings_recipe_id")),
        comment="The matrix P of a probing set and a concept set: how well each clip fits each concept.",
    )
    op.create_table(
        "text_embeddings",
        sa.Column("encoder_id", sa.BigInteger(), nullable=False, comment="The encoder."),
        sa.Column("text_id", sa.BigInteger(), nullable=False, comment="The text."),
        sa.Column(
            "embedding",
            VECTOR(),
            nullable=False,
            comment="Unit vector of the encoder's dimension.",
        ),
        sa.ForeignKeyConstraint(
            ["encoder_id"], ["encoders.id"], name=op.f("fk_text_embeddings_encoder_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["text_id"], ["texts.id"], name=op.f("fk_text_embeddings_text_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("encoder_id", "text_id", name=op.f("pk_text_embeddings")),
        comment="Unit vectors of texts.",
    )
    op.create_index(op.f("ix_text_embeddings_text_id"), "text_embeddings", ["text_id"], unique=False)
    op.create_table(
        "activation_blocks",
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording."),
        sa.Column("layer_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The layer."),
        sa.Column("block", sa.Integer(), autoincrement=False, nullable=False, comment="Block, from 0."),
        sa.Column("first_clip", sa.Integer(), nullable=False, comment="Position of its first clip."),
        sa.Column("n_clips", sa.Integer(), nullable=False, comment="Number of clips."),
        sa.Column(
            "data", sa.LargeBinary(), nullable=False, comment="float16, little endian, C order, [n_clips, n_units]."
        ),
        sa.ForeignKeyConstraint(["recording_id"], ["recordings.id"], name=op.f("fk_activation_blocks_recording_id")),
        sa.PrimaryKeyConstraint("recording_id", "layer_id", "block", name=op.f("pk_activation_blocks")),
        comment="Landing place of activations: one row per layer and block of clips, until folded.",
        postgresql_partition_by="LIST (recording_id)",
    )
    op.create_table(
        "activation_cubes",
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording."),
        sa.Column("neuron_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The neuron."),
        sa.Column("stretch", sa.Integer(), autoincrement=False, nullable=False, comment="As in activations."),
        sa.Column(
            "values",
            VECTOR(),
            nullable=False,
            comment="One value per clip, in order of position.",
        ),
        sa.ForeignKeyConstraint(["recording_id"], ["recordings.id"], name=op.f("fk_activation_cubes_recording_id")),
        sa.PrimaryKeyConstraint("recording_id", "neuron_id", "stretch", name=op.f("pk_activation_cubes")),
        comment="Activations centred over all clips, cubed and divided by their norm: cubed cosine is <#> on these.",
        postgresql_partition_by="LIST (recording_id)",
    )
    op.create_table(
        "activations",
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording."),
        sa.Column("neuron_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The neuron."),
        sa.Column(
            "stretch",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Stretch, from 0: positions 2000 x stretch onwards.",
        ),
        sa.Column(
            "values",
            HALFVEC(),
            nullable=False,
            comment="One value per clip, in order of position.",
        ),
        sa.ForeignKeyConstraint(["recording_id"], ["recordings.id"], name=op.f("fk_activations_recording_id")),
        sa.PrimaryKeyConstraint("recording_id", "neuron_id", "stretch", name=op.f("pk_activations")),
        comment="Activations of a neuron over a stretch of clips. Join on neuron_id; up to 2,000 clips a row.",
        postgresql_partition_by="LIST (recording_id)",
    )
    op.create_table(
        "caption_sentences",
        sa.Column("caption_id", sa.BigInteger(), nullable=False, comment="The caption."),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False, comment="From 0."),
        sa.Column("text_id", sa.BigInteger(), nullable=False, comment="The sentence."),
        sa.ForeignKeyConstraint(
            ["caption_id"], ["captions.id"], name=op.f("fk_caption_sentences_caption_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["text_id"], ["texts.id"], name=op.f("fk_caption_sentences_text_id")),
        sa.PrimaryKeyConstraint("caption_id", "ordinal", name=op.f("pk_caption_sentences")),
        comment="The sentences of captions, in order.",
    )
    op.create_index(op.f("ix_caption_sentences_text_id"), "caption_sentences", ["text_id"], unique=False)
    op.create_table(
        "clip_concept_scores",
        sa.Column("scoring_id", sa.BigInteger(), nullable=False, comment="The matrix."),
        sa.Column("concept_id", sa.BigInteger(), nullable=False, comment="The concept."),
        sa.Column("stretch", sa.Integer(), autoincrement=False, nullable=False, comment="As in activations."),
        sa.Column("scores", VECTOR(), nullable=False, comment="float32, in order of position."),
        sa.Column(
            "cubed",
            VECTOR(),
            nullable=False,
            comment="Centred over all clips, cubed, divided by the norm (at least 1e-3).",
        ),
        sa.ForeignKeyConstraint(
            ["concept_id"], ["concepts.id"], name=op.f("fk_clip_concept_scores_concept_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["scoring_id"], ["scorings.id"], name=op.f("fk_clip_concept_scores_scoring_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("scoring_id", "concept_id", "stretch", name=op.f("pk_clip_concept_scores")),
        comment="One column of P: the scores of one concept over a stretch of clips.",
    )
    op.create_table(
        "concept_matches",
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording."),
        sa.Column("recipe_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The match recipe."),
        sa.Column("neuron_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The neuron."),
        sa.Column("rank", sa.SmallInteger(), autoincrement=False, nullable=False, comment="1 is the best."),
        sa.Column("concept_id", sa.BigInteger(), nullable=False, comment="The concept."),
        sa.Column("score", sa.REAL(), nullable=True, comment="Similarity; NULL where the method gives none (ICL)."),
        sa.ForeignKeyConstraint(["recording_id"], ["recordings.id"], name=op.f("fk_concept_matches_recording_id")),
        sa.PrimaryKeyConstraint("recording_id", "recipe_id", "neuron_id", "rank", name=op.f("pk_concept_matches")),
        comment="Module A: the best closed-set concepts of each neuron, by method and similarity function.",
        postgresql_partition_by="LIST (recording_id)",
    )
    op.create_index(
        "ix_concept_matches_recipe_id_concept_id", "concept_matches", ["recipe_id", "concept_id", "rank"], unique=False
    )
    op.create_table(
        "dissections",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("network_id", sa.BigInteger(), nullable=False, comment="The network."),
        sa.Column("probing_set_id", sa.BigInteger(), nullable=False, comment="The probing set."),
        sa.Column("concept_set_id", sa.BigInteger(), nullable=False, comment="The concept set."),
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording it reads."),
        sa.Column("sha256", sa.Text(), nullable=False, comment="Hash of the above and of its recipes."),
        sa.Column("status", sa.Text(), nullable=False, comment="running, complete or failed."),
        sa.Column(
            "pinned",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="True: current, whatever comes later.",
        ),
        sa.Column("top_k", sa.Integer(), nullable=False, comment="K: exemplars a side that summaries are made of."),
        sa.Column(
            "methods",
            postgresql.ARRAY(sa.Text()),
            nullable=False,
            comment="Closed-set methods that were computed: db, tab, icl.",
        ),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="The options as given."),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was begun.",
        ),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True, comment="When it was last completed."),
        sa.CheckConstraint("status IN ('running', 'complete', 'failed')", name=op.f("ck_dissections_status")),
        sa.ForeignKeyConstraint(["concept_set_id"], ["concept_sets.id"], name=op.f("fk_dissections_concept_set_id")),
        sa.ForeignKeyConstraint(["network_id"], ["networks.id"], name=op.f("fk_dissections_network_id")),
        sa.ForeignKeyConstraint(["probing_set_id"], ["probing_sets.id"], name=op.f("fk_dissections_probing_set_id")),
        sa.ForeignKeyConstraint(["recording_id"], ["recordings.id"], name=op.f("fk_dissections_recording_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dissections")),
        sa.UniqueConstraint("sha256", name=op.f("uq_dissections_sha256")),
        comment="A network, a probing set, a concept set and one recipe per stage: what a user names and compares.",
    )
    op.create_index(op.f("ix_dissections_network_id"), "dissections", ["network_id"], unique=False)
    op.create_table(
        "exemplars",
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording."),
        sa.Column("neuron_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The neuron."),
        sa.Column("side", sa.Text(), nullable=False, comment="high or low."),
        sa.Column(
            "positions",
            postgresql.ARRAY(sa.Integer()),
            nullable=False,
            comment="Positions in the probing set, most extreme first; ties by position.",
        ),
        sa.Column("activations", postgresql.ARRAY(sa.REAL()), nullable=False, comment="The activations there."),
        sa.CheckConstraint("side IN ('high', 'low')", name=op.f("ck_exemplars_side")),
        sa.ForeignKeyConstraint(["recording_id"], ["recordings.id"], name=op.f("fk_exemplars_recording_id")),
        sa.PrimaryKeyConstraint("recording_id", "neuron_id", "side", name=op.f("pk_exemplars")),
        comment="The clips of highest and of lowest activation of a neuron; unnested in the view exemplar_clips.",
        postgresql_partition_by="LIST (recording_id)",
    )
    op.create_table(
        "neuron_statistics",
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording."),
        sa.Column("neuron_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="The neuron."),
        sa.Column("mean", sa.REAL(), nullable=False, comment="Mean."),
        sa.Column("sd", sa.REAL(), nullable=False, comment="Standard deviation (population)."),
        sa.Column("min", sa.REAL(), nullable=False, comment="Smallest activation."),
        sa.Column("max", sa.REAL(), nullable=False, comment="Largest activation."),
        sa.Column("sparsity", sa.REAL(), nullable=False, comment="Sparsity of the activations over clips, 0 to 1."),
        sa.ForeignKeyConstraint(["recording_id"], ["recordings.id"], name=op.f("fk_neuron_statistics_recording_id")),
        sa.PrimaryKeyConstraint("recording_id", "neuron_id", name=op.f("pk_neuron_statistics")),
        comment="Moments of a neuron's activation over the probing set.",
        postgresql_partition_by="LIST (recording_id)",
    )
    op.create_table(
        "neuron_terms",
        sa.Column(
            "recipe_id", sa.BigInteger(), nullable=False, comment="The extraction: calibration, tagger and judge."
        ),
        sa.Column("neuron_id", sa.BigInteger(), nullable=False, comment="The neuron."),
        sa.Column("term_id", sa.BigInteger(), nullable=False, comment="The term."),
        sa.Column("occurrences", sa.Integer(), nullable=False, comment="How often the summary uses it."),
        sa.Column(
            "is_open_concept",
            sa.Boolean(),
            nullable=False,
            comment="True if it is in C_open: nouns, verbs, and adjectives that the judge accepted.",
        ),
        sa.ForeignKeyConstraint(
            ["neuron_id"], ["neurons.id"], name=op.f("fk_neuron_terms_neuron_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_neuron_terms_recipe_id")),
        sa.ForeignKeyConstraint(["term_id"], ["terms.id"], name=op.f("fk_neuron_terms_term_id")),
        sa.PrimaryKeyConstraint("recipe_id", "neuron_id", "term_id", name=op.f("pk_neuron_terms")),
        comment="Module C: the terms of a neuron's calibrated summary.",
    )
    op.create_index(op.f("ix_neuron_terms_neuron_id"), "neuron_terms", ["neuron_id"], unique=False)
    op.create_index("ix_neuron_terms_recipe_id_term_id", "neuron_terms", ["recipe_id", "term_id"], unique=False)
    op.create_table(
        "recorded_layers",
        sa.Column("recording_id", sa.BigInteger(), nullable=False, comment="The recording."),
        sa.Column("layer_id", sa.BigInteger(), nullable=False, comment="The layer."),
        sa.Column("pooling", sa.Text(), nullable=False, comment="Pooling that was used: first, mean, max or network."),
        sa.Column(
            "completed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When its last stretch was folded.",
        ),
        sa.ForeignKeyConstraint(
            ["layer_id"], ["layers.id"], name=op.f("fk_recorded_layers_layer_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["recording_id"], ["recordings.id"], name=op.f("fk_recorded_layers_recording_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("recording_id", "layer_id", name=op.f("pk_recorded_layers")),
        comment="Layers that are complete in a recording: folded, with exemplars and statistics.",
    )
    op.create_table(
        "summaries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column(
            "recipe_id", sa.BigInteger(), nullable=False, comment="The summariser, K, the captions and the recording."
        ),
        sa.Column("neuron_id", sa.BigInteger(), nullable=False, comment="The neuron."),
        sa.Column("side", sa.Text(), nullable=False, comment="high (S_h) or low (S_l)."),
        sa.Column("text", sa.Text(), nullable=False, comment="The points, one a line; empty where nothing is shared."),
        sa.CheckConstraint("side IN ('high', 'low')", name=op.f("ck_summaries_side")),
        sa.ForeignKeyConstraint(["neuron_id"], ["neurons.id"], name=op.f("fk_summaries_neuron_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_summaries_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_summaries")),
        sa.UniqueConstraint("recipe_id", "neuron_id", "side", name=op.f("uq_summaries_recipe_id_neuron_id_side")),
        comment="Module B: what the captions of a neuron's K exemplars of one side have in common.",
    )
    op.create_index(op.f("ix_summaries_neuron_id"), "summaries", ["neuron_id"], unique=False)
    op.create_index(
        "ix_summaries_text",
        "summaries",
        [sa.literal_column("to_tsvector('english', text)")],
        unique=False,
        postgresql_using="gin",
    )
    op.create_table(
        "calibrations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column(
            "recipe_id", sa.BigInteger(), nullable=False, comment="Threshold, sentence encoder and the summaries."
        ),
        sa.Column("neuron_id", sa.BigInteger(), nullable=False, comment="The neuron."),
        sa.Column("high_summary_id", sa.BigInteger(), nullable=False, comment="S_h."),
        sa.Column("low_summary_id", sa.BigInteger(), nullable=False, comment="S_l."),
        sa.Column("summary", sa.Text(), nullable=False, comment="The calibrated summary: the kept points, one a line."),
        sa.Column("n_kept", sa.Integer(), nullable=False, comment="Points kept."),
        sa.Column("n_dropped", sa.Integer(), nullable=False, comment="Points dropped."),
        sa.Column(
            "support",
            sa.REAL(),
            nullable=True,
            comment="Share of the K captions that say a kept point, averaged over these; NULL without points.",
        ),
        sa.ForeignKeyConstraint(
            ["high_summary_id"], ["summaries.id"], name=op.f("fk_calibrations_high_summary_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["low_summary_id"], ["summaries.id"], name=op.f("fk_calibrations_low_summary_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["neuron_id"], ["neurons.id"], name=op.f("fk_calibrations_neuron_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_calibrations_recipe_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibrations")),
        sa.UniqueConstraint("recipe_id", "neuron_id", name=op.f("uq_calibrations_recipe_id_neuron_id")),
        comment="Module B: the high summary without the points that the low summary makes too.",
    )
    op.create_index(op.f("ix_calibrations_high_summary_id"), "calibrations", ["high_summary_id"], unique=False)
    op.create_index(op.f("ix_calibrations_low_summary_id"), "calibrations", ["low_summary_id"], unique=False)
    op.create_index(op.f("ix_calibrations_neuron_id"), "calibrations", ["neuron_id"], unique=False)
    op.create_index(
        "ix_calibrations_summary",
        "calibrations",
        [sa.literal_column("to_tsvector('english', summary)")],
        unique=False,
        postgresql_using="gin",
    )
    op.create_table(
        "dissected_layers",
        sa.Column("dissection_id", sa.BigInteger(), nullable=False, comment="The dissection."),
        sa.Column("layer_id", sa.BigInteger(), nullable=False, comment="The layer."),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True, comment="When it was completed."),
        sa.ForeignKeyConstraint(
            ["dissection_id"], ["dissections.id"], name=op.f("fk_dissected_layers_dissection_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["layer_id"], ["layers.id"], name=op.f("fk_dissected_layers_layer_id")),
        sa.PrimaryKeyConstraint("dissection_id", "layer_id", name=op.f("pk_dissected_layers")),
        comment="Layers that a dissection covers.",
    )
    op.create_table(
        "dissection_recipes",
        sa.Column("dissection_id", sa.BigInteger(), nullable=False, comment="The dissection."),
        sa.Column("stage", sa.Text(), nullable=False, comment="Stage, with the method where it has several."),
        sa.Column("recipe_id", sa.BigInteger(), nullable=False, comment="The recipe."),
        sa.Column(
            "speaks",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="For match recipes: true for the one that fills closed_db, closed_tab or closed_icl.",
        ),
        sa.ForeignKeyConstraint(
            ["dissection_id"], ["dissections.id"], name=op.f("fk_dissection_recipes_dissection_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_dissection_recipes_recipe_id")),
        sa.PrimaryKeyConstraint("dissection_id", "stage", name=op.f("pk_dissection_recipes")),
        comment="The recipe of each stage of a dissection.",
    )
    op.create_index(op.f("ix_dissection_recipes_recipe_id"), "dissection_recipes", ["recipe_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("command", sa.Text(), nullable=False, comment="The command, e.g. 'ingest folder'."),
        sa.Column(
            "arguments",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Its arguments; never a secret.",
        ),
        sa.Column(
            "versions",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="Versions of the platform and of the libraries that matter.",
        ),
        sa.Column(
            "machine", postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment="Host, processors, devices."
        ),
        sa.Column("dissection_id", sa.BigInteger(), nullable=True, comment="The dissection it worked on."),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment="Start."
        ),
        sa.Column(
            "finished_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="End; NULL while it runs, or if it was killed.",
        ),
        sa.Column(
            "outcome",
            sa.Text(),
            server_default="running",
            nullable=False,
            comment="running, ok, failed or interrupted.",
        ),
        sa.Column(
            "counts",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
            comment="What was done: units by stage.",
        ),
        sa.Column("error", sa.Text(), nullable=True, comment="The error that ended it."),
        sa.CheckConstraint("outcome IN ('running', 'ok', 'failed', 'interrupted')", name=op.f("ck_runs_outcome")),
        sa.ForeignKeyConstraint(
            ["dissection_id"], ["dissections.id"], name=op.f("fk_runs_dissection_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        comment="Each invocation that writes: what was asked, where, with which versions, and how it ended.",
    )
    op.create_table(
        "summary_points",
        sa.Column("summary_id", sa.BigInteger(), nullable=False, comment="The summary."),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False, comment="From 0."),
        sa.Column("text_id", sa.BigInteger(), nullable=False, comment="The point."),
        sa.ForeignKeyConstraint(
            ["summary_id"], ["summaries.id"], name=op.f("fk_summary_points_summary_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["text_id"], ["texts.id"], name=op.f("fk_summary_points_text_id")),
        sa.PrimaryKeyConstraint("summary_id", "ordinal", name=op.f("pk_summary_points")),
        comment="The points of a summary after clean-up.",
    )
    op.create_index(op.f("ix_summary_points_text_id"), "summary_points", ["text_id"], unique=False)
    op.create_table(
        "calibrated_points",
        sa.Column("calibration_id", sa.BigInteger(), nullable=False, comment="The calibration."),
        sa.Column(
            "ordinal",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="The point, as in summary_points of the high summary.",
        ),
        sa.Column("kept", sa.Boolean(), nullable=False, comment="False: a low point says the same."),
        sa.Column(
            "nearest_low_ordinal",
            sa.Integer(),
            nullable=True,
            comment="The low point nearest to it; NULL where the low summary is empty.",
        ),
        sa.Column("cosine", sa.REAL(), nullable=True, comment="Cosine of the two; dropped above the threshold."),
        sa.Column("support", sa.Integer(), nullable=False, comment="How many of the K captions say it."),
        sa.ForeignKeyConstraint(
            ["calibration_id"],
            ["calibrations.id"],
            name=op.f("fk_calibrated_points_calibration_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("calibration_id", "ordinal", name=op.f("pk_calibrated_points")),
        comment="Each point of a high summary: kept or dropped, and by which low point.",
    )
    op.create_table(
        "failures",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False, comment="Surrogate key."),
        sa.Column("run_id", sa.BigInteger(), nullable=True, comment="The run in which it happened."),
        sa.Column("stage", sa.Text(), nullable=False, comment="ingest, record, caption, summarise …"),
        sa.Column(
            "scope",
            sa.Text(),
            nullable=False,
            comment="What the unit belongs to, e.g. 'dataset:sample' or 'recipe:12'.",
        ),
        sa.Column("unit", sa.Text(), nullable=False, comment="The unit: a path, a clip id, a neuron."),
        sa.Column("clip_id", sa.BigInteger(), nullable=True, comment="The clip, where the unit is one."),
        sa.Column("reason", sa.Text(), nullable=False, comment="One line that a user can act on."),
        sa.Column("detail", sa.Text(), nullable=True, comment="Traceback or raw answer."),
        sa.Column(
            "happened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False, comment="When."
        ),
        sa.Column(
            "resolved_at", sa.DateTime(timezone=True), nullable=True, comment="When the unit succeeded after all."
        ),
        sa.ForeignKeyConstraint(["clip_id"], ["clips.id"], name=op.f("fk_failures_clip_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_failures_run_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_failures")),
        comment="Units of work that failed, with the reason; the rest went on. Resolved when they later succeed.",
    )
    op.create_index(op.f("ix_failures_run_id"), "failures", ["run_id"], unique=False)
    op.create_index(
        "uq_failures_open",
        "failures",
        ["stage", "scope", "unit"],
        unique=True,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_table(
        "summary_embeddings",
        sa.Column("encoder_id", sa.BigInteger(), nullable=False, comment="The encoder."),
        sa.Column("calibration_id", sa.BigInteger(), nullable=False, comment="The summary."),
        sa.Column(
            "embedding",
            VECTOR(),
            nullable=False,
            comment="Unit vector of the encoder's dimension.",
        ),
        sa.ForeignKeyConstraint(
            ["calibration_id"],
            ["calibrations.id"],
            name=op.f("fk_summary_embeddings_calibration_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["encoder_id"], ["encoders.id"], name=op.f("fk_summary_embeddings_encoder_id")),
        sa.PrimaryKeyConstraint("encoder_id", "calibration_id", name=op.f("pk_summary_embeddings")),
        comment="Unit vectors of calibrated summaries, the mean of their points'; one HNSW index per encoder.",
    )
    op.create_index(
        op.f("ix_summary_embeddings_calibration_id"), "summary_embeddings", ["calibration_id"], unique=False
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_summary_embeddings_calibration_id"), table_name="summary_embeddings")
    op.drop_table("summary_embeddings")
    op.drop_index("uq_failures_open", table_name="failures", postgresql_where=sa.text("resolved_at IS NULL"))
    op.drop_index(op.f("ix_failures_run_id"), table_name="failures")
    op.drop_table("failures")
    op.drop_table("calibrated_points")
    op.drop_index(op.f("ix_summary_points_text_id"), table_name="summary_points")
    op.drop_table("summary_points")
    op.drop_table("runs")
    op.drop_index(op.f("ix_dissection_recipes_recipe_id"), table_name="dissection_recipes")
    op.drop_table("dissection_recipes")
    op.drop_table("dissected_layers")
    op.drop_index("ix_calibrations_summary", table_name="calibrations", postgresql_using="gin")
    op.drop_index(op.f("ix_calibrations_neuron_id"), table_name="calibrations")
    op.drop_index(op.f("ix_calibrations_low_summary_id"), table_name="calibrations")
    op.drop_index(op.f("ix_calibrations_high_summary_id"), table_name="calibrations")
    op.drop_table("calibrations")
    op.drop_index("ix_summaries_text", table_name="summaries", postgresql_using="gin")
    op.drop_index(op.f("ix_summaries_neuron_id"), table_name="summaries")
    op.drop_table("summaries")
    op.drop_table("recorded_layers")
    op.drop_index("ix_neuron_terms_recipe_id_term_id", table_name="neuron_terms")
    op.drop_index(op.f("ix_neuron_terms_neuron_id"), table_name="neuron_terms")
    op.drop_table("neuron_terms")
    op.drop_table("neuron_statistics")
    op.drop_table("exemplars")
    op.drop_index(op.f("ix_dissections_network_id"), table_name="dissections")
    op.drop_table("dissections")
    op.drop_index("ix_concept_matches_recipe_id_concept_id", table_name="concept_matches")
    op.drop_table("concept_matches")
    op.drop_table("clip_concept_scores")
    op.drop_index(op.f("ix_caption_sentences_text_id"), table_name="caption_sentences")
    op.drop_table("caption_sentences")
    op.drop_table("activations")
    op.drop_table("activation_cubes")
    op.drop_table("activation_blocks")
    op.drop_index(op.f("ix_text_embeddings_text_id"), table_name="text_embeddings")
    op.drop_table("text_embeddings")
    op.drop_table("scorings")
    op.drop_index(op.f("ix_recordings_probing_set_id"), table_name="recordings")
    op.drop_index(op.f("ix_recordings_network_id"), table_name="recordings")
    op.drop_table("recordings")
    op.drop_index(op.f("ix_probing_set_clips_clip_id"), table_name="probing_set_clips")
    op.drop_table("probing_set_clips")
    op.drop_table("neurons")
    op.drop_table("finished_layers")
    op.drop_index(op.f("ix_clip_embeddings_clip_id"), table_name="clip_embeddings")
    op.drop_table("clip_embeddings")
    op.drop_index(op.f("ix_captions_recipe_id"), table_name="captions")
    op.drop_table("captions")
    op.drop_index(op.f("ix_text_tags_text_id"), table_name="text_tags")
    op.drop_table("text_tags")
    op.drop_index(op.f("ix_term_verdicts_term_id"), table_name="term_verdicts")
    op.drop_table("term_verdicts")
    op.drop_table("probing_sets")
    op.drop_table("layers")
    op.drop_table("encoders")
    op.drop_table("concepts")
    op.drop_index("uq_clips_dataset_id_path_live", table_name="clips", postgresql_where=sa.text("retired_at IS NULL"))
    op.drop_index("ix_clips_labels", table_name="clips", postgresql_using="gin")
    op.drop_index("ix_clips_dataset_id_sha256", table_name="clips")
    op.drop_table("clips")
    op.drop_index("uq_answers_recipe_id_prompt_sha256", table_name="answers")
    op.drop_table("answers")
    op.drop_index("uq_texts_md5", table_name="texts")
    op.drop_table("texts")
    op.drop_index("ix_terms_stem", table_name="terms")
    op.drop_table("terms")
    op.drop_table("recipes")
    op.drop_table("networks")
    op.drop_table("datasets")
    op.drop_table("concept_sets")
