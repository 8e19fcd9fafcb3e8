"""Embeddings: each distinct text once per encoder, each clip once per text-audio encoder."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector import Vector
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db, queries
from and_platform.backends.base import TextEncoder, Windowed
from and_platform.schema import Encoder, Layer
from and_platform.services import locks, provenance
from and_platform.services.online import online, owner_if_other
from and_platform.services.progress import SILENT, Advance, Progress
from and_platform.services.provenance import RecipePlan

_BATCH = 512
_HNSW_LONGEST = 2000

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CutTexts:
    """How many texts an encoder has read only the beginning of."""

    what: str
    """What the texts are: captions, points, concepts."""
    encoder: str
    max_tokens: int | None
    """Tokens that it reads; None: it does not tell, or reads all."""
    n_texts: int
    n_cut: int


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


@dataclass(frozen=True)
class SummaryIndex:
    """The HNSW index over the summaries' vectors of one encoder, there or not."""

    encoder_id: int
    encoder: str
    dim: int
    n_summaries: int
    valid: bool | None
    """None: it is not there; False: what a killed build left."""
    size_bytes: int

    @property
    def name(self) -> str:
        return index_name(self.encoder_id)

    @property
    def wanted(self) -> bool:
        """pgvector indexes vectors up to 2,000 dimensions; longer ones are scanned. Without vectors there is no need."""
        return not self.valid and self.n_summaries > 0 and self.dim <= _HNSW_LONGEST

    def statement(self, how: str = "") -> str:
        """The DDL; `how`: CONCURRENTLY."""
        return (
            f"CREATE INDEX {how} {self.name} ON summary_embeddings USING hnsw"
            f" ((embedding::vector({self.dim})) vector_cosine_ops) WHERE encoder_id = {self.encoder_id}"
        )


def index_name(encoder_id: int | str = "") -> str:
    """Name of the index of an encoder; without one, what all of them begin with."""
    return f"{db.RUNTIME_PREFIX}hnsw_summaries_{encoder_id}"


def summary_indexes(session: Session, encoder_id: int | None = None) -> list[SummaryIndex]:
    """What there is to index, by encoder: all of them, or one."""
    rows = session.execute(
        sa.text(
            "SELECT e.id, e.name, e.dim,"
            " (SELECT count(*) FROM summary_embeddings s WHERE s.encoder_id = e.id) AS n_summaries,"
            " i.indisvalid, coalesce(pg_relation_size(i.indexrelid), 0) AS size_bytes"
            " FROM encoders e LEFT JOIN pg_index i ON i.indexrelid = to_regclass(:prefix || e.id)"
            " WHERE :encoder IS NULL OR e.id = :encoder ORDER BY e.id"
        ).bindparams(sa.bindparam("encoder", encoder_id, sa.BigInteger)),
        {"prefix": index_name()},
    )
    return [SummaryIndex(*row) for row in rows]


def ensure_summary_index(engine: sa.Engine, encoder_id: int, progress: Progress = SILENT) -> bool:
    """Build the HNSW index over the summaries' vectors of one encoder where it is missing, while others read and write.

    One process builds at a time. Who comes meanwhile, or is not the owner of the table, passes over it: questions are
    answered without it too, by a scan. What a killed build left is built anew.

    Returns
    -------
    bool
        True if it was built now.
    """
    with db.reading(engine) as session:
        there = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
        if session.scalar(there, {"name": index_name(encoder_id)}) or owner_if_other(session, "summary_embeddings"):
            return False
    # One for all encoders: two such builds would wait for each other.
    with locks.held_now(engine, "build an index") as mine:
        if not mine:
            return False
        with db.reading(engine) as session:
            (index,) = summary_indexes(session, encoder_id)
        if not index.wanted:
            return False
        with (
            progress.stage(f"index summaries ({index.encoder})", index.n_summaries, "summaries") as advance,
            online(engine) as connection,
            _followed(engine, connection, advance),
        ):
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {index.name}")
            connection.exec_driver_sql(index.statement("CONCURRENTLY"))
    return True


@contextmanager
def _followed(engine: sa.Engine, builder: sa.Connection, advance: Advance) -> Iterator[None]:
    """Tell how far a build is that `builder` runs meanwhile, as the server reports it."""
    pid = builder.scalar(sa.text("SELECT pg_backend_pid()"))
    ended = threading.Event()

    def follow() -> None:
        told = 0
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not ended.wait(0.5):
                done = connection.scalar(
                    sa.text("SELECT tuples_done FROM pg_stat_progress_create_index WHERE pid = :pid"), {"pid": pid}
                )
                if done and done > told:
                    advance(done - told)
                    told = done

    with ThreadPoolExecutor(1, thread_name_prefix="follow") as pool:
        following = pool.submit(follow)
        try:
            yield
        finally:
            ended.set()
        following.result()


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
                " SELECT FROM text_embeddings e WHERE e.encoder_id = :encoder AND e.text_id = t.id)"
                # Not by id: the batches, and so the last bits of the vectors, do not depend on who came first.
                ' ORDER BY length(t.text), t.text COLLATE "C"'
            ),
            {"ids": list(text_ids), "encoder": encoder_id},
        ).all()

    if missing:
        with progress.stage(name, len(missing), "texts") as advance:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                texts = [row.text for row in batch]
                vectors, cut = encoder.embed_texts(texts), _is_cut(encoder, texts)
                with db.transaction(engine) as session:
                    _insert(session, encoder_id, [row.id for row in batch], vectors, cut)
                advance(len(batch))
    return encoder_id


def embed_summaries(
    engine: sa.Engine,
    encoder: TextEncoder,
    calibrate_recipe_id: int,
    layers: Sequence[Layer],
    progress: Progress = SILENT,
) -> int:
    """Vectors of the calibrated summaries that have none, a layer a transaction; returns how many were made.

    A summary's vector is the normalised mean of its points' vectors. Those are there since calibration, so that
    nothing is encoded, and a summary of many points is not cut at the encoder's longest input.
    """
    with db.transaction(engine) as session:
        encoder_id = ensure_encoder(session, encoder)
    made = 0
    with progress.stage("embed summaries", sum(layer.n_units for layer in layers), "neurons") as advance:
        for layer in layers:
            with db.transaction(engine) as session:
                made += queries.insert_summary_embeddings(
                    session, encoder=encoder_id, calibrate_recipe=calibrate_recipe_id, layer=layer.id
                )
            advance(layer.n_units)
    # Afterwards: to build an index over all vectors takes less time than to add them one by one.
    ensure_summary_index(engine, encoder_id, progress)
    return made


def cut_texts(engine: sa.Engine, encoder: TextEncoder, text_ids: Sequence[int], what: str) -> CutTexts:
    """Count the texts that were longer than an encoder's window, among those that it has embedded (ids may repeat).

    Vectors from before this was kept are caught up on: their texts are split into tokens, not embedded again.
    """
    with db.reading(engine) as session:
        encoder_id = _find_encoder(session, encoder)
        unknown = session.execute(
            sa.text(
                "SELECT t.id, t.text FROM texts t JOIN text_embeddings e ON e.text_id = t.id"
                " WHERE e.encoder_id = :encoder AND e.truncated IS NULL AND t.id = ANY (:ids) ORDER BY t.id"
            ),
            {"ids": sorted(set(text_ids)), "encoder": encoder_id},
        ).all()
    for start in range(0, len(unknown), _BATCH):
        batch = unknown[start : start + _BATCH]
        ids, is_cut = [row.id for row in batch], _is_cut(encoder, [row.text for row in batch]).tolist()
        with db.transaction(engine) as session:
            session.execute(
                sa.text(
                    "UPDATE text_embeddings SET truncated = text_id = ANY (:cut)"
                    " WHERE encoder_id = :encoder AND text_id = ANY (:ids)"
                ),
                {"cut": list(itertools.compress(ids, is_cut)), "ids": ids, "encoder": encoder_id},
            )
    with db.reading(engine) as session:
        return count_cut(session, encoder, text_ids, what)


def count_cut(session: Session, encoder: TextEncoder, text_ids: Sequence[int], what: str) -> CutTexts:
    """As `cut_texts`, by rows alone: a text of which it is not known whether it was cut counts as read in full."""
    n_texts, n_cut = session.execute(
        sa.text(
            "SELECT count(*), count(*) FILTER (WHERE e.truncated) FROM unnest(CAST(:ids AS bigint[])) AS given (id)"
            " JOIN text_embeddings e ON e.text_id = given.id AND e.encoder_id = :encoder"
        ),
        {"ids": list(text_ids), "encoder": _find_encoder(session, encoder)},
    ).one()
    return CutTexts(what, encoder.recipe.name, getattr(encoder, "max_tokens", None), n_texts, n_cut)


def _find_encoder(session: Session, encoder: TextEncoder) -> int | None:
    recipe_id = provenance.find_recipe(session, plan(encoder))
    return session.scalar(sa.select(Encoder.id).where(Encoder.recipe_id == recipe_id))


def _is_cut(encoder: TextEncoder, texts: Sequence[str]) -> NDArray[np.bool_]:
    return encoder.is_cut(texts) if isinstance(encoder, Windowed) else np.zeros(len(texts), bool)


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


def _insert(
    session: Session, encoder_id: int, text_ids: Sequence[int], vectors: Floats, cut: NDArray[np.bool_]
) -> None:
    db.insert_new(
        session,
        "text_embeddings",
        {"encoder_id": "int8", "text_id": "int8", "embedding": "vector", "truncated": "bool"},
        (
            (encoder_id, text_id, Vector(vector), is_cut)
            for text_id, vector, is_cut in zip(text_ids, vectors, cut.tolist(), strict=True)
        ),
    )
