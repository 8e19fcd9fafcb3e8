"""Sounds and what is said of them: data sets, clips, probing sets, captions, texts, concept sets, embeddings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pgvector.sqlalchemy import VECTOR
from sqlalchemy.orm import Mapped, mapped_column

from and_platform.schema.base import Base, Json, Timestamp, identity, reference


class Dataset(Base):
    __tablename__ = "datasets"
    __table_args__ = ({"comment": "A collection of clips that lies in one folder."},)

    id: Mapped[int] = identity("Surrogate key.")
    name: Mapped[str] = mapped_column(unique=True, comment="What users call it.")
    root: Mapped[str] = mapped_column(comment="Absolute path of the folder; clips' paths are relative to it.")
    kind: Mapped[str] = mapped_column(
        comment="How it was ingested: folder, manifest, esc50, urbansound8k, gtzan, sample."
    )
    extra: Mapped[Json] = mapped_column(server_default="{}", comment="Anything else that is known of it.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was first ingested.")


class Clip(Base):
    __tablename__ = "clips"
    __table_args__ = (
        sa.Index(
            "uq_clips_dataset_id_path_live", "dataset_id", "path", unique=True,
            postgresql_where=sa.text("retired_at IS NULL"),
        ),
        sa.Index("ix_clips_dataset_id_sha256", "dataset_id", "sha256"),
        sa.Index("ix_clips_labels", "labels", postgresql_using="gin"),
        {"comment": "One sound file as it was when ingested, with its acoustic measures. A changed file is a new clip."},
    )  # fmt: skip

    id: Mapped[int] = identity("Surrogate key; also the order of clips in a probing set.")
    dataset_id: Mapped[int] = reference("datasets.id", "The data set it belongs to.")
    path: Mapped[str] = mapped_column(comment="Path relative to the data set's root, with forward slashes.")
    sha256: Mapped[str] = mapped_column(comment="SHA-256 of the file's bytes, hexadecimal.")
    labels: Mapped[list[str]] = mapped_column(server_default="{}", comment="Class labels, the first is the main one.")
    fold: Mapped[int | None] = mapped_column(sa.Integer, comment="Cross-validation fold, where the data set has folds.")
    source_caption: Mapped[str | None] = mapped_column(comment="Caption that came with the data set.")
    sample_rate: Mapped[int] = mapped_column(sa.Integer, comment="Sampling rate of the file, Hz.")
    channels: Mapped[int] = mapped_column(sa.Integer, comment="Channels of the file.")
    duration_s: Mapped[float] = mapped_column(comment="Duration, seconds.")
    mean_abs_amplitude: Mapped[float] = mapped_column(
        comment="Mean absolute amplitude of the mono mix, full scale = 1."
    )
    rms: Mapped[float] = mapped_column(comment="Root mean square of the mono mix, full scale = 1.")
    peak: Mapped[float] = mapped_column(comment="Largest absolute sample of the mono mix.")
    median_frequency_hz: Mapped[float | None] = mapped_column(
        comment="MDF: frequency below which half of the spectral power lies, Hz; NULL for silence."
    )
    silence_share: Mapped[float] = mapped_column(comment="Share of short frames below the silence floor, 0 to 1.")
    features: Mapped[Json] = mapped_column(server_default="{}", comment="Acoustic features that the describer uses.")
    extra: Mapped[Json] = mapped_column(server_default="{}", comment="Other columns of the manifest.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was ingested.")
    retired_at: Mapped[datetime | None] = mapped_column(
        comment="When the file changed or vanished; NULL: the clip is live."
    )


class ProbingSet(Base):
    __tablename__ = "probing_sets"
    __table_args__ = (
        sa.UniqueConstraint("dataset_id", "sha256"),
        {"comment": "Immutable snapshot of a data set: what a network is probed with, each clip at a fixed position."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    dataset_id: Mapped[int] = reference("datasets.id", "The data set it is a snapshot of.")
    sha256: Mapped[str] = mapped_column(comment="Hash of its members' paths and contents, in order.")
    n_clips: Mapped[int] = mapped_column(sa.Integer, comment="Number of members.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When the snapshot was taken.")


class ProbingSetClip(Base):
    __tablename__ = "probing_set_clips"
    __table_args__ = (
        sa.UniqueConstraint("probing_set_id", "clip_id"),
        {"comment": "Members of probing sets."},
    )

    probing_set_id: Mapped[int] = reference("probing_sets.id", "The probing set.", cascade=True, key=True)
    position: Mapped[int] = mapped_column(
        sa.Integer, primary_key=True, autoincrement=False, comment="Position, from 0, in order of clip id."
    )
    clip_id: Mapped[int] = reference("clips.id", "The clip at this position.", index=True)


class Text(Base):
    __tablename__ = "texts"
    __table_args__ = (
        sa.Index("uq_texts_md5", sa.text("md5(text)"), unique=True),
        {"comment": "Each distinct caption, sentence, summary point or concept name once: embedded and tagged once."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    text: Mapped[str] = mapped_column(comment="The text.")


class Caption(Base):
    __tablename__ = "captions"
    __table_args__ = (
        sa.UniqueConstraint("clip_id", "recipe_id"),
        {"comment": "What a captioner says of a clip."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    clip_id: Mapped[int] = reference("clips.id", "The clip described.", cascade=True)
    recipe_id: Mapped[int] = reference("recipes.id", "How it was made.", index=True)
    text: Mapped[str] = mapped_column(comment="The caption as used (repetitions cut).")
    text_id: Mapped[int] = reference("texts.id", "The same text, where its embeddings hang.")
    original: Mapped[str | None] = mapped_column(comment="What the captioner said, where repetitions were cut from it.")
    names_label: Mapped[bool] = mapped_column(
        comment="True if it contains the clip's class name: evaluation against that name is then partly circular."
    )


class CaptionSentence(Base):
    __tablename__ = "caption_sentences"
    __table_args__ = ({"comment": "The sentences of captions, in order."},)

    caption_id: Mapped[int] = reference("captions.id", "The caption.", cascade=True, key=True)
    ordinal: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="From 0.")
    text_id: Mapped[int] = reference("texts.id", "The sentence.", index=True)


class ConceptSet(Base):
    __tablename__ = "concept_sets"
    __table_args__ = ({"comment": "A vocabulary that neurons are matched with."},)

    id: Mapped[int] = identity("Surrogate key.")
    name: Mapped[str] = mapped_column(unique=True, comment="What users call it.")
    source: Mapped[str] = mapped_column(comment="Where it came from: a file, 'shipped', or 'labels of <data set>'.")
    sha256: Mapped[str] = mapped_column(comment="Hash of the concepts, in order.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was imported.")


class Concept(Base):
    __tablename__ = "concepts"
    __table_args__ = (
        sa.UniqueConstraint("concept_set_id", "name"),
        sa.UniqueConstraint("concept_set_id", "position"),
        {"comment": "One entry of a concept set."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    concept_set_id: Mapped[int] = reference("concept_sets.id", "The set.", cascade=True)
    position: Mapped[int] = mapped_column(sa.Integer, comment="Place in the set, from 0.")
    name: Mapped[str] = mapped_column(comment="Normalised name: lower case, '_' and '-' as spaces.")
    original_name: Mapped[str] = mapped_column(comment="The name as imported.")
    synonyms: Mapped[list[str]] = mapped_column(server_default="{}", comment="Other names of the same concept.")
    kind: Mapped[str | None] = mapped_column(comment="Kind of phrase, where the source tells.")
    text_id: Mapped[int] = reference("texts.id", "The name as a text, where its embeddings hang.")


class Encoder(Base):
    __tablename__ = "encoders"
    __table_args__ = ({"comment": "A model that turns texts, or texts and sounds, into vectors."},)

    id: Mapped[int] = identity("Surrogate key; each has its own HNSW index where it embeds summaries.")
    recipe_id: Mapped[int] = mapped_column(
        sa.BigInteger, sa.ForeignKey("recipes.id"), unique=True, comment="Backend, revision and parameters."
    )
    name: Mapped[str] = mapped_column(comment="What users call it.")
    dim: Mapped[int] = mapped_column(sa.Integer, comment="Dimension of its vectors.")
    scale: Mapped[float] = mapped_column(comment="Factor on the cosine before a softmax over concepts.")


class TextEmbedding(Base):
    __tablename__ = "text_embeddings"
    __table_args__ = ({"comment": "Unit vectors of texts."},)

    encoder_id: Mapped[int] = reference("encoders.id", "The encoder.", cascade=True, key=True)
    text_id: Mapped[int] = reference("texts.id", "The text.", cascade=True, key=True, index=True)
    embedding: Mapped[Any] = mapped_column(VECTOR(), nullable=False, comment="Unit vector of the encoder's dimension.")
    truncated: Mapped[bool | None] = mapped_column(
        comment="True where the text was longer than the encoder's window and was cut; NULL: not known."
    )


class ClipEmbedding(Base):
    __tablename__ = "clip_embeddings"
    __table_args__ = ({"comment": "Unit vectors of sounds, by a text-audio encoder."},)

    encoder_id: Mapped[int] = reference("encoders.id", "The encoder.", cascade=True, key=True)
    clip_id: Mapped[int] = reference("clips.id", "The clip.", cascade=True, key=True, index=True)
    embedding: Mapped[Any] = mapped_column(VECTOR(), nullable=False, comment="Unit vector of the encoder's dimension.")


class TextTags(Base):
    __tablename__ = "text_tags"
    __table_args__ = ({"comment": "Terms found in a text by a tagger, once per distinct text."},)

    recipe_id: Mapped[int] = reference("recipes.id", "The tagger and its rules.", key=True)
    text_id: Mapped[int] = reference("texts.id", "The text.", cascade=True, key=True, index=True)
    terms: Mapped[list[int]] = mapped_column(comment="Ids of its terms, one for each occurrence.")
