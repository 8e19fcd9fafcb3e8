"""Ingest: from files on disk to rows of `clips`.

The audio stays where it is. A clip is a path with a content: a file that changed becomes a new clip, and the old one
is retired, because what was computed from it stays true of what it was. A content that comes back brings its clip back.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends import audio
from and_platform.backends.datasets import Item, Listing, Source, read
from and_platform.config import settings
from and_platform.errors import ConflictError, DatabaseError, InputError
from and_platform.schema import Clip, Dataset, Failure
from and_platform.services import locks
from and_platform.services.datasets import live as live_clips
from and_platform.services.datasets import scope_of
from and_platform.services.measuring import Broken, Job, Measured, Outcome, measure_file, measured
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RunHandle, record_failure, resolve_failures

STAGE = "ingest"
BATCH = 200
"""Clips a transaction: what a kill can lose."""
SHOWN = 20
"""Failures and groups of duplicates that a report lists; the database has all."""


@dataclass
class IngestReport:
    """What an ingest did. A file counts once among `new`, `changed`, `restored`, `unchanged` and `failed`."""

    name: str
    root: str
    kind: str
    dataset_id: int | None = None
    new: int = 0
    changed: int = 0
    """Other content than before under the same path: the old clip was retired."""
    restored: int = 0
    """A content that had been there before: its clip is live again."""
    unchanged: int = 0
    updated: int = 0
    """Files with the content they had, but another label, fold, caption or column."""
    failed: int = 0
    vanished: int = 0
    """Clips whose file is gone, or is no longer listed."""
    pruned: int = 0
    """Of these, how many were retired."""
    duplicates: int = 0
    """Live clips whose content another one has too, less one for each content."""
    audio_s: float = 0.0
    """Duration of all live clips."""
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """The first of them: (path, reason)."""
    duplicate_groups: list[list[str]] = field(default_factory=list)
    """The first of them: paths with one content."""
    vanished_paths: list[str] = field(default_factory=list)
    """The first of them."""

    @property
    def usable(self) -> int:
        """Files that are in the data set after this ingest."""
        return self.new + self.changed + self.restored + self.unchanged

    def counts(self) -> dict[str, int]:
        """The figures that are not 0, as a run keeps them."""
        names = ("new", "changed", "restored", "unchanged", "updated", "failed", "vanished", "pruned", "duplicates")
        return {name: n for name in names if (n := getattr(self, name))}


def ingest(
    engine: sa.Engine,
    source: Source,
    *,
    name: str | None = None,
    progress: Progress = SILENT,
    processes: int | None = None,
    prune: bool = False,
    run: RunHandle | None = None,
) -> IngestReport:
    """Bring a data set in, or up to date.

    Files are measured in worker processes and written 200 a transaction, in order of their paths, so that ids of clips
    are in that order the first time. A broken file is a row in `failures`; the rest goes in. Killed and run again it
    goes on: contents that are in are hashed, not decoded. Two ingests of one name take turns.

    Parameters
    ----------
    name
        Name of the data set; default: of the folder, or of the published data set.
    processes
        Worker processes; default: `ANDP_DECODE_PROCESSES`, or one per core.
    prune
        Retire clips whose files are gone. Otherwise they are only reported.

    Raises
    ------
    InputError, ManifestError
        The source is not what its kind should be, or none of its files can be used.
    ConflictError
        The name belongs to a data set of another folder or kind.
    """
    began = time.monotonic()
    listing = read(source)
    name = checked_name(name or listing.name)

    def waiting() -> None:
        progress.note(f"another ingest of '{name}' is running; waiting for it …")

    with locks.held(engine, f"ingest:{name}", waiting):
        report = IngestReport(name, str(listing.root), source.kind)
        with db.transaction(engine) as session:
            report.dataset_id = _existing(session, listing, source, name, progress)
        _Ingest(engine, listing, report, prune, run).work(progress, _processes(processes, len(listing.items)))
    report.seconds = time.monotonic() - began
    if run:
        run.counts |= report.counts()
    if not report.usable:
        first = f"; the first, {report.failures[0][0]}: {report.failures[0][1]}" if report.failures else ""
        raise InputError(f"none of the {report.failed:,} files can be used{first}; see: andp failures --dataset {name}")
    return report


def checked_name(name: str) -> str:
    """A name that can be used on a command line and in a message.

    Raises
    ------
    InputError
        If it is empty or holds control characters.
    """
    name = name.strip()
    if not name or not name.isprintable():
        raise InputError(f"{name!r} cannot be the name of a data set; give another one with --name")
    return name


def _processes(wanted: int | None, n_files: int) -> int:
    from loky import cpu_count  # it knows the limits of a container

    most = wanted or settings().decode_processes or cpu_count()
    return max(1, min(most, n_files // 8))


def _existing(session: Session, listing: Listing, source: Source, name: str, progress: Progress) -> int | None:
    """The id of the data set of this name, if there is one, and if it is this one."""
    dataset = session.scalars(sa.select(Dataset).where(Dataset.name == name)).one_or_none()
    if dataset is None:
        return None
    if dataset.kind != source.kind:
        raise ConflictError(
            f"the data set '{name}' was ingested as '{dataset.kind}', not '{source.kind}'; give another --name"
        )
    if dataset.root != str(listing.root):
        if source.kind != "sample":
            raise ConflictError(
                f"the data set '{name}' lies in {dataset.root}; if it was moved: andp datasets relocate {name} "
                f"{listing.root}; if this is another one, give it another name with --name"
            )
        progress.note(f"the sample's folder is now {listing.root}")  # the package was installed anew
        dataset.root = str(listing.root)
    return dataset.id


class _Row(NamedTuple):
    """A clip that the database has for a path."""

    id: int
    path: str
    sha256: str
    live: bool
    about: dict[str, Any]


_ABOUT = ("labels", "fold", "source_caption", "extra")


def _about(item: Item) -> dict[str, Any]:
    """What a source says of a file, as columns of `clips`."""
    return {"labels": list(item.labels), "fold": item.fold, "source_caption": item.caption, "extra": item.extra}


class _Ingest:
    """One ingest under way."""

    def __init__(
        self, engine: sa.Engine, listing: Listing, report: IngestReport, prune: bool, run: RunHandle | None
    ) -> None:
        self.engine = engine
        self.listing = listing
        self.report = report
        self.prune = prune
        self.run_id = run.id if run else None
        self.scope = scope_of(report.name)
        self.gone: list[_Row] = []
        self.open_failures: set[str] = set()

    def work(self, progress: Progress, processes: int) -> None:
        with db.transaction(self.engine) as session:
            self.open_failures = set(session.scalars(
                sa.select(Failure.unit)
                .where(Failure.stage == STAGE, Failure.scope == self.scope, Failure.resolved_at.is_(None))
            ))  # fmt: skip
            for unit, reason in self.listing.problems:
                self._fail(session, unit, Broken(reason))
        dispatched: deque[tuple[Item, list[_Row]]] = deque()
        with (
            progress.stage(f"ingest {self.report.name}", len(self.listing.items), "clips") as advance,
            closing(measured(self._jobs(dispatched), processes, measure_file)) as outcomes,
        ):
            # The jobs run ahead of the outcomes, in the same order: what was looked up waits in `dispatched`.
            while batch := [
                (*dispatched.popleft(), self._told(advance, outcome)) for outcome in islice(outcomes, BATCH)
            ]:
                self._keep(batch)
        with db.transaction(self.engine) as session:
            self._finish(session)

    @staticmethod
    def _told(advance: Any, outcome: Outcome) -> Outcome:
        advance(1)
        return outcome

    def _jobs(self, dispatched: deque[tuple[Item, list[_Row]]]) -> Iterator[Job]:
        for start in range(0, len(self.listing.items), BATCH):
            items = self.listing.items[start : start + BATCH]
            known = self._known([item.path for item in items])
            for item in items:
                rows = known.get(item.path, [])
                dispatched.append((item, rows))
                yield Job(self.listing.root / item.path, frozenset(row.sha256 for row in rows))

    def _known(self, paths: Sequence[str]) -> dict[str, list[_Row]]:
        """All clips, live and retired, of these paths."""
        if self.report.dataset_id is None:
            return {}
        about = [getattr(Clip, column) for column in _ABOUT]
        query = sa.select(Clip.id, Clip.path, Clip.sha256, Clip.retired_at.is_(None), *about).where(
            Clip.dataset_id == self.report.dataset_id, Clip.path.in_(paths)
        )
        found: dict[str, list[_Row]] = {}
        with db.reading(self.engine) as session:
            for id_, path, sha256, live, *values in session.execute(query):
                row = _Row(id_, path, sha256, live, dict(zip(_ABOUT, values, strict=True)))
                found.setdefault(path, []).append(row)
        return found

    def _keep(self, batch: Sequence[tuple[Item, list[_Row], Outcome]]) -> None:
        """Write a batch; where the database refuses a value, each clip for itself, and the one at fault as a failure."""
        counted, gone = copy.deepcopy(vars(self.report)), list(self.gone)
        try:
            with db.transaction(self.engine) as session:
                self._write(session, batch)
            return
        except (sa.exc.DBAPIError, DatabaseError) as exc:
            if (reason := _refusal_of_value(exc)) is None:
                raise
            vars(self.report).update(counted)
            self.gone = gone
        if len(batch) > 1:
            for one in batch:
                self._keep([one])
            return
        with db.transaction(self.engine) as session:
            self._fail(session, batch[0][0].path, Broken(f"the database refuses it: {reason}"))

    def _write(self, session: Session, batch: Sequence[tuple[Item, list[_Row], Outcome]]) -> None:
        """One transaction: retire what changed, then bring in what is new, in order of path."""
        report = self.report
        added: list[dict[str, Any]] = []
        resolved: list[str] = []
        readable: list[str] = []
        for item, rows, outcome in batch:
            live = next((row for row in rows if row.live), None)
            if isinstance(outcome, Broken):
                if live and outcome.reason == audio.MISSING:
                    self.gone.append(live)
                else:
                    self._fail(session, item.path, outcome)
                continue
            readable.append(item.path)
            if item.path in self.open_failures:
                resolved.append(item.path)
            same = next((row for row in rows if row.sha256 == outcome.sha256), None)
            about = _about(item)
            if live and live is same:
                report.unchanged += 1
                if live.about != about:
                    report.updated += 1
                    _update(session, live.id, about)
                continue
            if live:
                _retire(session, [live.id])
            if same:
                report.restored += 1
                _update(session, same.id, {**about, "retired_at": None})
                continue
            assert isinstance(outcome, Measured)  # a known content has a row
            added.append({"path": item.path, "sha256": outcome.sha256, **about, **outcome.columns})
            if live:
                report.changed += 1
            else:
                report.new += 1
        if added:
            dataset_id = report.dataset_id or self._make_dataset(session)
            session.execute(sa.insert(Clip), [{"dataset_id": dataset_id, **clip} for clip in added])
        # A clip that could not be read when it was recorded is in the next snapshot again.
        resolve_failures(session, stage="record", scope=self.scope, units=readable)
        if resolved:
            resolve_failures(session, stage=STAGE, scope=self.scope, units=resolved)

    def _make_dataset(self, session: Session) -> int:
        """With the first clip, so that a source of which nothing can be used leaves no data set behind."""
        dataset = Dataset(name=self.report.name, root=self.report.root, kind=self.report.kind)
        session.add(dataset)
        session.flush()
        self.report.dataset_id = dataset.id
        return dataset.id

    def _fail(self, session: Session, path: str, broken: Broken) -> None:
        self.report.failed += 1
        if len(self.report.failures) < SHOWN:
            self.report.failures.append((path, broken.reason))
        record_failure(
            session, stage=STAGE, scope=self.scope, unit=path, reason=broken.reason, detail=broken.detail,
            run_id=self.run_id,
        )  # fmt: skip

    def _finish(self, session: Session) -> None:
        report = self.report
        listed = {item.path for item in self.listing.items} | {unit for unit, _ in self.listing.problems}
        if stale := self.open_failures - listed:  # nobody asks for these files any more
            resolve_failures(session, stage=STAGE, scope=self.scope, units=stale)
        if report.dataset_id is None:
            return
        mine = live_clips(report.dataset_id)
        unlisted = session.execute(sa.select(Clip.id, Clip.path).where(mine).order_by(Clip.path)).yield_per(5000)
        gone = [(row.id, row.path) for row in self.gone] + [(id_, path) for id_, path in unlisted if path not in listed]
        report.vanished = len(gone)
        report.vanished_paths = [path for _, path in gone[:SHOWN]]
        if self.prune and gone:
            _retire(session, [id_ for id_, _ in gone])
            report.pruned = len(gone)
        groups = (
            sa.select(sa.func.array_agg(aggregate_order_by(Clip.path, Clip.path)))
            .where(mine).group_by(Clip.sha256).having(sa.func.count() > 1)
        )  # fmt: skip
        found = sorted(list(group) for group in session.scalars(groups))
        report.duplicates = sum(len(group) - 1 for group in found)
        report.duplicate_groups = found[:SHOWN]
        report.audio_s = (
            session.scalar(sa.select(sa.func.coalesce(sa.func.sum(Clip.duration_s), 0.0)).where(mine)) or 0.0
        )


def _refusal_of_value(exc: Exception) -> str | None:
    """The server's words where it refuses what a row holds: not of its type (class 22), or beyond a limit of it (54)."""
    error = exc if isinstance(exc, sa.exc.DBAPIError) else exc.__cause__
    original = getattr(error, "orig", None)
    state = getattr(original, "sqlstate", None) or ""
    return str(original).splitlines()[0] if state[:2] in ("22", "54") else None


def _retire(session: Session, ids: Sequence[int]) -> None:
    session.execute(sa.update(Clip).where(Clip.id.in_(ids)).values(retired_at=sa.func.now()))


def _update(session: Session, clip_id: int, values: dict[str, Any]) -> None:
    session.execute(sa.update(Clip).where(Clip.id == clip_id).values(**values))
