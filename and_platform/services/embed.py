"""Embeddings: each distinct text once per encoder, each clip once per text-audio encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector import Vector
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import TextEncoder
from and_platform.schema import Encoder
from and_platform.services import provenance
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan

_BATCH = 512
_HNSW_LONGEST = 2000

Floats = NDArray[np.float32]


def plan(encoder: TextEncoder) -> RecipePlan:
    """The recipe of an encoder's vectors."""
    return RecipePlan.of("encode", encoder.recipe)


def ensure_encoder(session: Session, encoder: TextEncoder) -> int:
    """The id of an encoder's row."""
    recipe_id = provenance.recipe_id(session, plan(encoder))
    session.execute(
        insert(Encoder)
        .values(recipe_id=recipe_id, name=encoder.recipe.name, dim=encoder.dim, scale=encoder.scale)
        .on_conflict_do_nothing(index_elements=["recipe_id"])
    )
    return session.scalars(sa.select(Encoder.id).where(Encoder.recipe_id == recipe_id)).one()


def ensure_summary_index(session: Session, encoder_id: int, dim: int) -> None:
    """The HNSW index over the summaries' vectors of one encoder."""
    if dim > _HNSW_LONGEST:
        return  # pgvector indexes vectors up to 2,000 dimensions; longer ones are scanned
    session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('summary index'), :id)"), {"id": encoder_id})
    name = f"{db.RUNTIME_PREFIX}hnsw_summaries_{encoder_id}"
    session.connection().exec_driver_sql(
        f"CREATE INDEX IF NOT EXISTS {name} ON summary_embeddings"
        f" USING hnsw ((embedding::vector({dim})) vector_cosine_ops) WHERE encoder_id = {encoder_id}"
    )


def embed_texts(
    engine: sa.Engine,
    encoder: TextEncoder,
    text_ids: Sequence[int],
    *,
    name: str = "embed texts",
    progress: Progress = SILENT,
) -> int:
    """Embed the texts that this encoder has not embedded yet; returns the encoder's id."""
    with db.transaction(engine) as session:
        encoder_id = ensure_encoder(session, encoder)
        missing = session.execute(
            sa.text(
                "SELECT t.id, t.text FROM texts t WHERE t.id = ANY (:ids) AND NOT EXISTS ("
                " SELECT FROM text_embeddings e WHERE e.encoder_id = :encoder AND e.text_id = t.id) ORDER BY t.id"
            ),
            {"ids": list(text_ids), "encoder": encoder_id},
        ).all()

    def write(session: Session, rows: Sequence[Any], vectors: Floats) -> None:
        _insert(session, "text_embeddings", "text_id", encoder_id, [row.id for row in rows], vectors)

    _in_batches(
        engine, missing, lambda rows: encoder.embed_texts([row.text for row in rows]), write, name, "texts", progress
    )
    return encoder_id


def embed_summaries(
    engine: sa.Engine, encoder: TextEncoder, calibrate_recipe_id: int, layer_ids: Sequence[int], progress: Progress
) -> int:
    """Embed the calibrated summaries that have no vector yet; equal summaries are encoded once. Returns how many."""
    with db.transaction(engine) as session:
        encoder_id = ensure_encoder(session, encoder)
        ensure_summary_index(session, encoder_id, encoder.dim)
        missing = session.execute(
            sa.text(
                "SELECT c.summary AS text, array_agg(c.id ORDER BY c.id) AS ids FROM calibrations c"
                " JOIN neurons n ON n.id = c.neuron_id WHERE c.recipe_id = :recipe AND n.layer_id = ANY (:layers)"
                " AND c.summary <> '' AND NOT EXISTS (SELECT FROM summary_embeddings e"
                "   WHERE e.encoder_id = :encoder AND e.calibration_id = c.id)"
                " GROUP BY c.summary ORDER BY min(c.id)"
            ),
            {"recipe": calibrate_recipe_id, "encoder": encoder_id, "layers": list(layer_ids)},
        ).all()

    def write(session: Session, rows: Sequence[Any], vectors: Floats) -> None:
        ids = [identity for row in rows for identity in row.ids]
        spread = vectors.repeat([len(row.ids) for row in rows], axis=0)
        _insert(session, "summary_embeddings", "calibration_id", encoder_id, ids, spread)

    _in_batches(
        engine, missing, lambda rows: encoder.embed_texts([row.text.replace("\n", " ") for row in rows]), write,
        "embed summaries", "summaries", progress,
    )  # fmt: skip
    return sum(len(row.ids) for row in missing)


def text_vectors(session: Session, encoder_id: int, text_ids: Sequence[int]) -> Floats:
    """Vectors of the texts, in the order given (ids may repeat); all of them must have been embedded."""
    distinct, places = np.unique(np.asarray(text_ids, np.int64), return_inverse=True)
    vectors = db.read_vectors(
        session,
        "SELECT embedding FROM text_embeddings WHERE encoder_id = %s AND text_id = ANY (%s) ORDER BY text_id",
        (encoder_id, distinct.tolist()),
    )
    if len(vectors) != len(distinct):
        raise LookupError(f"{len(distinct) - len(vectors)} texts have no vector of encoder {encoder_id}")
    return vectors[places]


def _in_batches(
    engine: sa.Engine,
    rows: Sequence[Any],
    encode: Callable[[Sequence[Any]], Floats],
    write: Callable[[Session, Sequence[Any], Floats], None],
    name: str,
    unit: str,
    progress: Progress,
) -> None:
    if not rows:
        return
    with progress.stage(name, len(rows), unit) as advance:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            vectors = encode(batch)
            with db.transaction(engine) as session:
                write(session, batch, vectors)
            advance(len(batch))


def _insert(session: Session, table: str, key: str, encoder_id: int, ids: Sequence[int], vectors: Floats) -> None:
    db.insert_new(
        session,
        table,
        {"encoder_id": "int8", key: "int8", "embedding": "vector"},
        ((encoder_id, identity, Vector(vector)) for identity, vector in zip(ids, vectors, strict=True)),
    )
