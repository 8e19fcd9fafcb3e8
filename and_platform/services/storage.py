"""What the database holds on disk, and giving back what nobody needs."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.errors import DatabaseError, NotFoundError
from and_platform.schema import Base, Recording
from and_platform.services import activations, embed, online, provenance
from and_platform.services.progress import SILENT, Progress

STALE_WORKERS = "7 days"
"""A worker that was not heard of for so long is forgotten, and so is a message that was refused so long ago."""

_GROUPS = {
    "corpus": "data sets, concepts, texts",
    "network": "networks and recordings, but activations",
    "dissection": "dissections",
    "experiment": "experiments, studies, reports",
    "work": "work and workers",
}
_PARTITION = re.compile(rf"^{db.RUNTIME_PREFIX}({'|'.join(activations.PARTITIONED)})_(\d+)$")


@dataclass(frozen=True)
class TableSize:
    """One table on disk. Bytes; rows as the server last counted or estimated them."""

    name: str
    rows: int
    dead_rows: int
    table_bytes: int
    toast_bytes: int
    index_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.table_bytes + self.toast_bytes + self.index_bytes

    @property
    def partition(self) -> tuple[str, int] | None:
        """For a partition: the table it belongs to, and the recording."""
        found = _PARTITION.match(self.name)
        return (found[1], int(found[2])) if found else None


def tables(session: Session) -> list[TableSize]:
    """Every table beside ours, partitions for themselves, indexes and out-of-line values (TOAST) apart."""
    rows = session.execute(
        sa.text(
            "SELECT c.relname, CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE coalesce(s.n_live_tup, 0) END::bigint AS rows,"
            " coalesce(s.n_dead_tup, 0) AS dead_rows,"
            " pg_table_size(c.oid) - coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS table_bytes,"
            " coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS toast_bytes,"
            " pg_indexes_size(c.oid) AS index_bytes"
            " FROM pg_class c LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid"
            " WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(:ours))"
            " AND pg_table_size(c.oid) IS NOT NULL"  # dropped since
            " ORDER BY c.relname"
        ),
        {"ours": Recording.__tablename__},
    )
    return [TableSize(*row) for row in rows]


def sizes(engine: sa.Engine, *, by_table: bool = False) -> list[dict[str, Any]]:
    """What takes how much: by recording and by subject, or by table; the last row is the whole database.

    Returns
    -------
    list of dict
        Keys `what`, `rows`, `dead_rows` and, in MB, `table_mb`, `toast_mb`, `index_mb`, `total_mb`.
    """
    with db.reading(engine) as session:
        found = tables(session)
        recordings = {
            row.id: f"recording {row.id} ({row.network}, {row.dataset})"
            for row in session.execute(
                sa.text(
                    "SELECT r.id, w.name AS network, d.name AS dataset FROM recordings r"
                    " JOIN networks w ON w.id = r.network_id JOIN probing_sets p ON p.id = r.probing_set_id"
                    " JOIN datasets d ON d.id = p.dataset_id ORDER BY r.id"
                )
            )
        }
        whole = session.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0
    subjects = {
        mapper.local_table.name: mapper.class_.__module__.rpartition(".")[2]  # type: ignore[attr-defined]
        for mapper in Base.registry.mappers
    }

    def group(table: TableSize) -> str:
        if by_table:
            return table.partition[0] if table.partition else table.name
        if table.partition:
            recording = table.partition[1]
            return recordings.get(recording, f"left of recording {recording}, dropped: andp db vacuum")
        subject = subjects.get(table.name)
        return _GROUPS.get(subject, subject) if subject else "other tables"

    groups: dict[str, list[TableSize]] = {}
    for table in sorted(found, key=lambda table: (table.partition or ("", math.inf))[1]):
        groups.setdefault(group(table), []).append(table)
    rows = [
        {
            "what": name,
            "rows": sum(part.rows for part in parts),
            "dead_rows": sum(part.dead_rows for part in parts),
            "table_mb": _mb(sum(part.table_bytes for part in parts)),
            "toast_mb": _mb(sum(part.toast_bytes for part in parts)),
            "index_mb": _mb(sum(part.index_bytes for part in parts)),
            "total_mb": _mb(sum(part.total_bytes for part in parts)),
        }
        for name, parts in groups.items()
    ]
    if by_table:
        rows.sort(key=lambda row: -float(str(row["total_mb"])))
    ours = sum(table.total_bytes for table in found)
    empty = {"rows": None, "dead_rows": None, "table_mb": None, "toast_mb": None, "index_mb": None}
    return [
        *rows,
        {"what": "the server's own", **empty, "total_mb": _mb(whole - ours)},
        {"what": "database", **empty, "total_mb": _mb(whole)},
    ]


def vacuum(engine: sa.Engine, recording_id: int | None = None, *, progress: Progress = SILENT) -> list[dict[str, Any]]:
    """Give back what nobody needs, and let the planner know what is there; readers and writers go on meanwhile.

    Partitions that a killed drop left; landed blocks whose stretch is folded; workers that were not heard of for a week, and
    failures that tell of messages refused before that; then VACUUM and ANALYZE of our tables. Space inside a table is free
    for its own new rows; the server gives back only what is empty at its end.

    Parameters
    ----------
    recording_id
        Only this recording's partitions.

    Returns
    -------
    list of dict
        Keys `what`, `count` and `freed_mb`.

    Raises
    ------
    NotFoundError
        There is no such recording.
    DatabaseError
        The tables are another user's.
    """
    with db.transaction(engine) as session:
        _refuse_others(session, "gives space back")
        gone = activations.leftover(session)
        if recording_id is not None:
            gone = [recording for recording in gone if recording == recording_id]
            if not gone and session.get(Recording, recording_id) is None:
                raise NotFoundError(f"no recording {recording_id}; see: andp recordings list")
        blocks = _folded_blocks(session, recording_id)
        workers = 0 if recording_id is not None else _stale_workers(session)
        messages = 0 if recording_id is not None else _stale_messages(session)
    dropped = 0
    with progress.stage("drop leftover partitions", len(gone), "recordings") as advance:
        for recording in gone:
            dropped += activations.drop_partitions(
                engine, recording, waiting=lambda who: progress.note(f"waiting for the transaction of {who} …")
            )
            advance(1)
    with db.reading(engine) as session:
        ours = set(Base.metadata.tables)
        found = [
            table
            for table in tables(session)
            if (table.partition and recording_id in (None, table.partition[1]))
            or (recording_id is None and table.name in ours)
        ]
    freed = 0
    with progress.stage("vacuum and analyse", len(found), "tables") as advance, online.online(engine) as connection:
        for table in found:
            if online.vacuum(connection, table.name, "ANALYZE"):
                now = connection.scalar(
                    sa.text("SELECT pg_total_relation_size(to_regclass(:name))"), {"name": table.name}
                )
                freed += max(0, table.total_bytes - (now or 0))
            advance(1)
    return [
        {"what": "partitions of dropped recordings", "count": len(gone), "freed_mb": _mb(dropped)},
        {"what": "landed blocks that are folded", "count": blocks, "freed_mb": None},
        {"what": f"workers not heard of for {STALE_WORKERS}", "count": workers, "freed_mb": None},
        {"what": f"messages refused more than {STALE_WORKERS} ago", "count": messages, "freed_mb": None},
        {
            "what": f"dead rows of {len(found):,} tables",
            "count": sum(table.dead_rows for table in found) + blocks + workers + messages,
            "freed_mb": _mb(freed),
        },
    ]


def build_indexes(engine: sa.Engine, *, progress: Progress = SILENT) -> list[dict[str, Any]]:
    """Build the HNSW indexes that are missing, or that a killed build left, one after the other; others go on meanwhile.

    Returns
    -------
    list of dict
        Keys `index`, `encoder`, `dim`, `summaries`, `state`, `seconds`, `size_mb`, a row for each encoder with summaries.

    Raises
    ------
    DatabaseError
        The tables are another user's.
    """
    with db.reading(engine) as session:
        _refuse_others(session, "builds its indexes")
        before = embed.summary_indexes(session)
    took: dict[int, float] = {}
    for index in before:
        began = time.monotonic()
        if index.wanted and embed.ensure_summary_index(engine, index.encoder_id, progress):
            took[index.encoder_id] = time.monotonic() - began
    with db.reading(engine) as session:
        after = embed.summary_indexes(session)
    return [
        {
            "index": index.name,
            "encoder": index.encoder,
            "dim": index.dim,
            "summaries": index.n_summaries,
            "state": _state(index, index.encoder_id in took),
            "seconds": round(took[index.encoder_id], 1) if index.encoder_id in took else None,
            "size_mb": _mb(index.size_bytes),
        }
        for index in after
        if index.n_summaries or index.valid is not None
    ]


def _state(index: embed.SummaryIndex, built: bool) -> str:
    if built:
        return "built now"
    if index.valid:
        return "there"
    return "another process is building" if index.wanted else "none: too many dimensions, scanned"


def _refuse_others(session: Session, what: str) -> None:
    owner = online.owner_if_other(session, Recording.__tablename__)
    if owner:
        raise DatabaseError(f"only the owner of the database {what}; connect as '{owner}'")


def _folded_blocks(session: Session, recording_id: int | None) -> int:
    """Delete the landed blocks whose stretch is folded, or whose layer is complete."""
    result = session.execute(
        sa.text(
            "DELETE FROM activation_blocks b WHERE (b.recording_id = :recording OR :recording IS NULL) AND ("
            " EXISTS (SELECT FROM recorded_layers r WHERE r.recording_id = b.recording_id AND r.layer_id = b.layer_id)"
            " OR EXISTS (SELECT FROM neurons n JOIN activations a ON a.neuron_id = n.id"
            "  WHERE n.layer_id = b.layer_id AND n.unit = 0 AND a.recording_id = b.recording_id"
            "  AND a.stretch = b.first_clip / :stretch))"
        ).bindparams(sa.bindparam("recording", recording_id, sa.BigInteger)),
        {"stretch": activations.STRETCH},
    )
    return int(getattr(result, "rowcount", 0))


def _stale_workers(session: Session) -> int:
    result = session.execute(
        sa.text(
            "DELETE FROM workers w WHERE w.seen_at < now() - CAST(:age AS interval)"
            " AND NOT EXISTS (SELECT FROM work_units u WHERE u.worker_id = w.id AND u.state = 'running')"
        ),
        {"age": STALE_WORKERS},
    )
    return int(getattr(result, "rowcount", 0))


def _stale_messages(session: Session) -> int:
    result = session.execute(
        sa.text("DELETE FROM failures WHERE stage = :stage AND happened_at < now() - CAST(:age AS interval)"),
        {"stage": provenance.MESSAGE, "age": STALE_WORKERS},
    )
    return int(getattr(result, "rowcount", 0))


def _mb(size: int) -> float:
    return round(size / 1e6, 1)
