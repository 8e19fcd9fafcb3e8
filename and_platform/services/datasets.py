"""Data sets that are in: looking at them, moving their root, dropping them, and taking the snapshot that is probed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from and_platform.backends.datasets import absolute_path
from and_platform.errors import ConflictError, IncompleteError, InputError, NotFoundError
from and_platform.schema import (
    Clip,
    Dataset,
    Failure,
    Network,
    ProbingSet,
    ProbingSetClip,
    Recording,
    Scoring,
)

Row = dict[str, Any]

SPOT_CHECKS = 20
"""Files whose content is compared when a root moves."""


def scope_of(dataset: str) -> str:
    """The `scope` under which failures of a data set are kept."""
    return f"dataset:{dataset}"


def probing_choices(session: Session, network: str) -> list[str]:
    """Return the data sets that a network may be probed with where none is named; one name is the default.

    It is the data set that the network was trained on, if that is here, or else the only one; without any, the sample.
    """
    names = list(session.scalars(sa.select(Dataset.name).order_by(Dataset.name)))
    trained_on = session.scalar(sa.select(Network.trained_on).where(Network.name == network))
    if trained_on in names:
        return [trained_on]
    return names or ["sample"]


def find(session: Session, name: str) -> Dataset:
    """The data set of this name.

    Raises
    ------
    NotFoundError
        There is none; the message lists those that there are.
    """
    dataset = session.scalars(sa.select(Dataset).where(Dataset.name == name)).one_or_none()
    if dataset is None:
        names = session.scalars(sa.select(Dataset.name).order_by(Dataset.name)).all()
        there = f"there are: {', '.join(names)}" if names else "ingest one with: andp ingest folder DIR"
        raise NotFoundError(f"no data set '{name}'; {there}")
    return dataset


def live(dataset_id: int) -> sa.ColumnElement[bool]:
    """The condition on `clips` that a clip belongs to the data set as it is now."""
    return sa.and_(Clip.dataset_id == dataset_id, Clip.retired_at.is_(None))


def list_datasets(session: Session) -> list[Row]:
    """One row per data set, by name."""
    n_failures = (
        sa.select(sa.func.count())
        .where(Failure.scope == sa.literal(scope_of("")) + Dataset.name, Failure.resolved_at.is_(None))
        .scalar_subquery()
    )
    main_label = Clip.labels[1]
    query = (
        sa.select(
            Dataset.name,
            Dataset.kind,
            sa.func.count(Clip.id).label("clips"),
            sa.func.count(sa.distinct(main_label)).label("labels"),
            sa.func.count(sa.distinct(Clip.fold)).label("folds"),
            sa.func.count(Clip.source_caption).label("captions"),
            (sa.func.coalesce(sa.func.sum(Clip.duration_s), 0.0) / 60).label("minutes"),
            n_failures.label("failures"),
            Dataset.root,
        )
        .outerjoin(Clip, sa.and_(Clip.dataset_id == Dataset.id, Clip.retired_at.is_(None)))
        .group_by(Dataset.id)
        .order_by(Dataset.name)
    )
    return [dict(row) for row in session.execute(query).mappings()]


@dataclass(frozen=True)
class DatasetReport:
    """What there is to know of a data set. Lists of rows are ready to be shown."""

    summary: Row
    labels: list[Row]
    """Clips per label; a clip with several labels counts for each."""
    folds: list[Row]
    formats: list[Row]
    """Clips per rate and channels."""
    measures: list[Row]
    """Least, quartiles, greatest and mean of each acoustic measure."""
    duplicates: list[list[str]]
    """Paths that have one content, by content."""
    failures: list[Row]


MEASURES = (
    "duration_s",
    "mean_abs_amplitude",
    "rms",
    "peak",
    "median_frequency_hz",
    "silence_share",
)


def show(session: Session, name: str) -> DatasetReport:
    """Everything about one data set, of its live clips."""
    dataset = find(session, name)
    mine = live(dataset.id)
    clips = session.scalar(sa.select(sa.func.count()).where(mine)) or 0
    seconds = session.scalar(sa.select(sa.func.sum(Clip.duration_s)).where(mine)) or 0.0
    captions = session.scalar(sa.select(sa.func.count(Clip.source_caption)).where(mine)) or 0
    retired = session.scalar(
        sa.select(sa.func.count()).where(Clip.dataset_id == dataset.id, Clip.retired_at.is_not(None))
    )
    snapshots = session.scalar(sa.select(sa.func.count()).where(ProbingSet.dataset_id == dataset.id))
    label = sa.func.unnest(Clip.labels).label("label")
    labels = sa.select(label).where(mine).subquery()
    count = sa.func.count().label("clips")
    groups = sa.select(sa.func.array_agg(Clip.path)).where(mine).group_by(Clip.sha256).having(sa.func.count() > 1)
    failures = (
        sa.select(Failure.stage, Failure.unit, Failure.reason, Failure.happened_at)
        .where(
            sa.or_(Failure.scope == scope_of(name), Failure.clip_id.in_(sa.select(Clip.id).where(mine))),
            Failure.resolved_at.is_(None),
        )
        .order_by(Failure.stage, Failure.unit)
    )
    return DatasetReport(
        summary={
            "name": dataset.name,
            "kind": dataset.kind,
            "root": dataset.root,
            "root_is_there": Path(dataset.root).is_dir(),
            "clips": clips,
            "minutes": seconds / 60,
            "captions": captions,
            "retired": retired,
            "snapshots": snapshots,
            "created_at": dataset.created_at,
        },
        labels=_rows(
            session,
            sa.select(labels.c.label, count).group_by(labels.c.label).order_by(count.desc(), labels.c.label),
        ),
        folds=_rows(
            session,
            sa.select(Clip.fold, count).where(mine, Clip.fold.is_not(None)).group_by(Clip.fold).order_by(Clip.fold),
        ),
        formats=_rows(
            session,
            sa.select(Clip.sample_rate, Clip.channels, count).where(mine)
            .group_by(Clip.sample_rate, Clip.channels).order_by(count.desc(), Clip.sample_rate),
        ),
        measures=_ranges(session, mine) if clips else [],
        duplicates=sorted(sorted(group) for group in session.scalars(groups)),
        failures=_rows(session, failures),
    )  # fmt: skip


def _ranges(session: Session, mine: sa.ColumnElement[bool]) -> list[Row]:
    """One row per measure: its range over the clips, the NULLs of silent clips left out."""
    columns: list[sa.ColumnElement[Any]] = []
    for measure in MEASURES:
        column = getattr(Clip, measure)
        quartiles = [sa.func.percentile_cont(share).within_group(column) for share in (0.25, 0.5, 0.75)]
        columns += [sa.func.min(column), *quartiles, sa.func.max(column), sa.func.avg(column)]
    values = session.execute(sa.select(*columns).where(mine)).one()
    names = ("least", "quarter", "median", "three_quarters", "greatest", "mean")
    return [
        {"measure": measure, **dict(zip(names, values[6 * place : 6 * place + 6], strict=True))}
        for place, measure in enumerate(MEASURES)
    ]


def _rows(session: Session, query: sa.Executable) -> list[Row]:
    return [dict(row) for row in session.execute(query).mappings()]


# ---------------------------------------------------------------------- moving


@dataclass
class RelocateReport:
    """How well the new root fits."""

    name: str
    old: str
    new: str
    clips: int = 0
    missing: int = 0
    missing_paths: list[str] = field(default_factory=list)
    """The first of them."""
    compared: int = 0
    """Files whose content was compared with what was ingested."""
    different: list[str] = field(default_factory=list)
    """Of these, the ones that hold something else now."""


def relocate(session: Session, name: str, root: Path) -> RelocateReport:
    """Tell the database that the folder of a data set is elsewhere now.

    Every file is looked for; the contents of a few, spread over the data set, are compared. Files that are missing
    or differ are reported, and the root moves all the same; ingesting again brings the data set up to date.

    Raises
    ------
    NotFoundError
        No such data set.
    InputError
        There is no such folder, or none of the files is in it, or none that was compared is the same.
    """
    dataset = find(session, name)
    new = absolute_path(root)
    if not new.is_dir():
        raise InputError(f"there is no folder {new}")
    clips = session.execute(sa.select(Clip.path, Clip.sha256).where(live(dataset.id)).order_by(Clip.id)).all()
    there = [(path, sha256) for path, sha256 in clips if (new / path).is_file()]
    missing = sorted({path for path, _ in clips} - {path for path, _ in there})
    report = RelocateReport(name, dataset.root, str(new), len(clips), len(missing), missing[:SPOT_CHECKS])
    if clips and not there:
        raise InputError(
            f"none of the {len(clips):,} files of '{name}' is in {new}, e.g. {clips[0].path}; nothing was changed"
        )
    chosen = there[:: max(1, len(there) // SPOT_CHECKS)][:SPOT_CHECKS]
    report.compared = len(chosen)
    report.different = [path for path, sha256 in chosen if _sha256(new / path) != sha256]
    if chosen and len(report.different) == len(chosen):
        raise InputError(f"the files in {new} have the names of '{name}' but other contents; nothing was changed")
    dataset.root = str(new)
    return report


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


# ---------------------------------------------------------------------- dropping


def drop(session: Session, name: str) -> int:
    """Remove a data set with its clips, captions and snapshots; the files stay. Returns the number of clips.

    Raises
    ------
    NotFoundError
        No such data set.
    ConflictError
        Recordings were made of it.
    """
    dataset = find(session, name)
    snapshots = sa.select(ProbingSet.id).where(ProbingSet.dataset_id == dataset.id)
    recordings = session.scalar(sa.select(sa.func.count()).where(Recording.probing_set_id.in_(snapshots)))
    if recordings:
        raise ConflictError(
            f"{recordings} recording(s) were made of '{name}', and dissections may read them; drop these first: "
            "andp dissections drop, andp recordings drop"
        )
    session.execute(sa.delete(Scoring).where(Scoring.probing_set_id.in_(snapshots)))
    session.execute(sa.delete(ProbingSet).where(ProbingSet.dataset_id == dataset.id))
    session.execute(sa.delete(Failure).where(Failure.scope == scope_of(name)))
    clips = session.execute(sa.delete(Clip).where(Clip.dataset_id == dataset.id).returning(Clip.id)).all()
    session.delete(dataset)
    return len(clips)


# ---------------------------------------------------------------------- snapshots


def snapshot(session: Session, dataset_id: int) -> ProbingSet:
    """The probing set of a data set as it is now; made where there is none of exactly these clips.

    Members are the live clips in order of id, without those that have an open failure of stage 'record'. Two
    sessions that do this at the same moment get the same row.

    Raises
    ------
    IncompleteError
        No clip is left.
    """
    failed = sa.select(Failure.clip_id).where(
        Failure.stage == "record", Failure.resolved_at.is_(None), Failure.clip_id.is_not(None)
    )
    members = session.execute(
        sa.select(Clip.id, Clip.path, Clip.sha256).where(live(dataset_id), Clip.id.not_in(failed)).order_by(Clip.id)
    ).all()
    if not members:
        raise IncompleteError("the data set has no clip that can be used; see: andp failures, andp ingest")
    sha256 = _members_sha256([(path, content) for _, path, content in members])
    made = session.execute(
        insert(ProbingSet)
        .values(dataset_id=dataset_id, sha256=sha256, n_clips=len(members))
        .on_conflict_do_nothing(index_elements=["dataset_id", "sha256"])
        .returning(ProbingSet.id)
    ).scalar_one_or_none()
    if made is not None:
        # From the ids that were hashed, not from the tables again: an ingest may have changed them meanwhile.
        ids = sa.func.unnest(sa.cast([id_ for id_, _, _ in members], ARRAY(sa.BigInteger)))
        listed = ids.table_valued("clip_id", with_ordinality="place").render_derived()
        session.execute(
            sa.insert(ProbingSetClip).from_select(
                ["probing_set_id", "position", "clip_id"],
                sa.select(sa.literal(made, sa.BigInteger), listed.c.place - 1, listed.c.clip_id),
            )
        )
    return session.scalars(
        sa.select(ProbingSet).where(ProbingSet.dataset_id == dataset_id, ProbingSet.sha256 == sha256)
    ).one()


def _members_sha256(members: Sequence[tuple[str, str]]) -> str:
    """Hash of (path, content) pairs, in order; NUL cannot be part of a path."""
    digest = hashlib.sha256()
    for path, content in members:
        digest.update(f"{path}\0{content}\n".encode())
    return digest.hexdigest()
