"""Networks and what was recorded of them: layers, neurons, recordings, activations, exemplars, statistics."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from and_platform.schema.base import Base, Json, Timestamp, identity, reference

BY_RECORDING = {"postgresql_partition_by": "LIST (recording_id)"}


class Network(Base):
    __tablename__ = "networks"
    __table_args__ = ({"comment": "A network under study."},)

    id: Mapped[int] = identity("Surrogate key.")
    name: Mapped[str] = mapped_column(unique=True, comment="What users call it.")
    source: Mapped[str] = mapped_column(comment="How it is loaded: transformers, beats, factory, or sample.")
    location: Mapped[str] = mapped_column(comment="Directory, hub id, or module:factory.")
    revision: Mapped[str] = mapped_column(comment="Hash of its weights: another revision is another network.")
    origin: Mapped[str | None] = mapped_column(
        comment="Hub id and commit of its weights; NULL for files and factories."
    )
    architecture: Mapped[str] = mapped_column(comment="Class of the model.")
    sample_rate: Mapped[int] = mapped_column(sa.Integer, comment="Rate its input pipeline expects, Hz.")
    n_parameters: Mapped[int] = mapped_column(comment="Number of parameters.")
    classes: Mapped[list[str]] = mapped_column(server_default="{}", comment="Class names in order of the head's units.")
    trained_on: Mapped[str | None] = mapped_column(comment="Name of the data set it was trained on, where known.")
    held_out_fold: Mapped[int | None] = mapped_column(
        sa.Integer, comment="Fold it was not trained on: the only one that evaluation may use."
    )
    extra: Mapped[Json] = mapped_column(server_default="{}", comment="Training recipe and figures, where known.")
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was added.")


class Layer(Base):
    __tablename__ = "layers"
    __table_args__ = (
        sa.UniqueConstraint("network_id", "name"),
        {"comment": "A module of a network whose output units are neurons."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    network_id: Mapped[int] = reference("networks.id", "The network.", cascade=True)
    position: Mapped[int] = mapped_column(sa.Integer, comment="Place in the network, from 0, in order of computation.")
    name: Mapped[str] = mapped_column(comment="Stable name, e.g. b03.ff_in or head.")
    module_path: Mapped[str] = mapped_column(comment="Address of the module in the model as loaded.")
    block: Mapped[int | None] = mapped_column(sa.Integer, comment="Block it belongs to, from 0; NULL for the head.")
    kind: Mapped[str] = mapped_column(comment="attn_out, ff_in, ff_out, query, key, value, head, conv, linear.")
    n_units: Mapped[int] = mapped_column(sa.Integer, comment="Number of neurons.")
    pooling: Mapped[str] = mapped_column(comment="Default pooling over time: first, mean, max, or network: its own.")
    is_default: Mapped[bool] = mapped_column(comment="True for the layers that are dissected unless others are named.")


class Neuron(Base):
    __tablename__ = "neurons"
    __table_args__ = (
        sa.UniqueConstraint("layer_id", "unit"),
        {"comment": "One output unit of a layer."},
    )

    id: Mapped[int] = identity("Surrogate key.")
    layer_id: Mapped[int] = reference("layers.id", "The layer.", cascade=True)
    unit: Mapped[int] = mapped_column(sa.Integer, comment="Index of the unit in its layer, from 0.")
    class_name: Mapped[str | None] = mapped_column(comment="For units of the head: the class it stands for.")


class Recording(Base):
    __tablename__ = "recordings"
    __table_args__ = ({"comment": "The activations of a network over a probing set, with one way of pooling."},)

    id: Mapped[int] = identity("Surrogate key.")
    network_id: Mapped[int] = reference("networks.id", "The network.", index=True)
    probing_set_id: Mapped[int] = reference("probing_sets.id", "What it was probed with.", index=True)
    recipe_id: Mapped[int] = mapped_column(
        sa.BigInteger, sa.ForeignKey("recipes.id"), unique=True, comment="Revision, pooling and probing set."
    )
    block_clips: Mapped[int] = mapped_column(
        sa.Integer,
        sa.CheckConstraint("block_clips > 0", name="block_clips"),
        comment="Clips that are recorded at a time.",
    )
    created_at: Mapped[Timestamp] = mapped_column(comment="When it was begun.")


class RecordedLayer(Base):
    __tablename__ = "recorded_layers"
    __table_args__ = ({"comment": "Layers that are complete in a recording: folded, with exemplars and statistics."},)

    recording_id: Mapped[int] = reference("recordings.id", "The recording.", cascade=True, key=True)
    layer_id: Mapped[int] = reference("layers.id", "The layer.", cascade=True, key=True)
    pooling: Mapped[str] = mapped_column(comment="Pooling that was used: first, mean, max or network.")
    completed_at: Mapped[Timestamp] = mapped_column(comment="When its last stretch was folded.")


class ActivationBlock(Base):
    __tablename__ = "activation_blocks"
    __table_args__ = (
        {
            "comment": "Landing place of activations: one row per layer and block of clips, until folded.",
            **BY_RECORDING,
        },
    )

    recording_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The recording.")
    layer_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The layer.")
    block: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="Block, from 0.")
    first_clip: Mapped[int] = mapped_column(sa.Integer, comment="Position of its first clip.")
    n_clips: Mapped[int] = mapped_column(sa.Integer, comment="Number of clips.")
    data: Mapped[bytes] = mapped_column(comment="float16, little endian, C order, [n_clips, n_units].")


class Activation(Base):
    __tablename__ = "activations"
    __table_args__ = (
        {"comment": "Activations of a neuron over a stretch of clips. Join on neuron_id; up to 2,000 clips a row.",
         **BY_RECORDING},
    )  # fmt: skip

    recording_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The recording.")
    neuron_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The neuron.")
    stretch: Mapped[int] = mapped_column(
        sa.Integer, primary_key=True, autoincrement=False, comment="Stretch, from 0: positions 2000 x stretch onwards."
    )
    values: Mapped[Any] = mapped_column(HALFVEC(), nullable=False, comment="One value per clip, in order of position.")


class ActivationCube(Base):
    __tablename__ = "activation_cubes"
    __table_args__ = (
        {"comment": "Activations centred over all clips, cubed and divided by their norm: cubed cosine is <#> on these.",
         **BY_RECORDING},
    )  # fmt: skip

    recording_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The recording.")
    neuron_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The neuron.")
    stretch: Mapped[int] = mapped_column(
        sa.Integer, primary_key=True, autoincrement=False, comment="As in activations."
    )
    values: Mapped[Any] = mapped_column(VECTOR(), nullable=False, comment="One value per clip, in order of position.")


class Exemplar(Base):
    __tablename__ = "exemplars"
    __table_args__ = (
        sa.CheckConstraint("side IN ('high', 'low')", name="side"),
        {"comment": "The clips of highest and of lowest activation of a neuron; unnested in the view exemplar_clips.",
         **BY_RECORDING},
    )  # fmt: skip

    recording_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The recording.")
    neuron_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The neuron.")
    side: Mapped[str] = mapped_column(primary_key=True, comment="high or low.")
    positions: Mapped[list[int]] = mapped_column(
        ARRAY(sa.Integer), comment="Positions in the probing set, most extreme first; ties by position."
    )
    activations: Mapped[list[float]] = mapped_column(comment="The activations there.")


class NeuronStatistics(Base):
    __tablename__ = "neuron_statistics"
    __table_args__ = ({"comment": "Moments of a neuron's activation over the probing set.", **BY_RECORDING},)

    recording_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The recording.")
    neuron_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="The neuron.")
    mean: Mapped[float] = mapped_column(sa.REAL, comment="Mean.")
    sd: Mapped[float] = mapped_column(sa.REAL, comment="Standard deviation (population).")
    min: Mapped[float] = mapped_column(sa.REAL, comment="Smallest activation.")
    max: Mapped[float] = mapped_column(sa.REAL, comment="Largest activation.")
    sparsity: Mapped[float] = mapped_column(sa.REAL, comment="Sparsity of the activations over clips, 0 to 1.")


class TrainingEpoch(Base):
    __tablename__ = "training_epochs"
    __table_args__ = ({"comment": "Epochs of `andp networks train`, as they end."},)

    run_id: Mapped[int] = reference("runs.id", "The run that trains.", cascade=True, key=True)
    epoch: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False, comment="From 1.")
    loss: Mapped[float] = mapped_column(comment="Mean loss over the clips trained on, as varied.")
    learning_rate: Mapped[float] = mapped_column(comment="Learning rate of the head at its end.")
    validation_accuracy: Mapped[float | None] = mapped_column(
        comment="Accuracy on the validation fold, which early stopping looks at; NULL: there is none."
    )
    test_accuracy: Mapped[float | None] = mapped_column(
        comment="Accuracy on the fold held out, which chooses nothing; NULL: not measured."
    )
    seconds: Mapped[float] = mapped_column(comment="Time it took.")
    finished_at: Mapped[Timestamp] = mapped_column(comment="When it ended.")
