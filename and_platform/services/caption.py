"""Captions: from the data set, from the acoustic describer, from both, from a file, or from an audio language model."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends import audio, registry
from and_platform.backends.base import BackendRecipe, Captioner, Releasable
from and_platform.backends.base import Clip as DecodedClip
from and_platform.core import acoustics, describer
from and_platform.core.text import cut_repeats, names_label, split_sentences
from and_platform.errors import AudioError, BackendError, GenerationError, ManifestError
from and_platform.schema import Caption, Clip, Dataset, Failure, ProbingSet, ProbingSetClip
from and_platform.services import provenance
from and_platform.services.dissections import forget_without
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan
from and_platform.services.texts import text_ids

_BATCH = 200
_DECODED_AHEAD = 2  # batches of a model that wait in memory
_DECODERS = 4

_Made = list[tuple["_Row", str | Exception]]

OFFLINE_CAPTIONS = (
    "these captions come from acoustic measurements: they say how a clip sounds, not what it is. "
    "For better ones bring captions (andp ingest manifest, --captioner file:CAPTIONS.csv), "
    "or name an audio language model (--captioner audio-lm:DIRECTORY)."
)


@dataclass(frozen=True)
class _Row:
    clip_id: int
    path: str
    root: str
    labels: tuple[str, ...]
    source_caption: str | None
    features: Mapping[str, Any]
    duration_s: float
    sha256: str


class CaptionMaker(Protocol):
    """Makes captions of clips in the database; `recipe` says how."""

    recipe: BackendRecipe

    def has(self, row: _Row) -> bool:
        """Whether there is a caption to be made of this clip."""
        ...

    def make(self, rows: Sequence[_Row]) -> Iterator[_Made]:
        """A caption per clip, an exception where there is none to be had, in lists that are to be kept at once.

        `rows` are clips that there is a caption to be made of; they may come back in another order.
        """
        ...


class _Source:
    """The captions that came with the data set."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self.recipe = BackendRecipe("source", _told_sha256(rows))

    def has(self, row: _Row) -> bool:
        return bool(row.source_caption)

    def make(self, rows: Sequence[_Row]) -> Iterator[_Made]:
        for part in _parts(rows):
            yield [(row, row.source_caption or "") for row in part]


class _Describer:
    """What the clips' acoustic features say, relative to the probing set."""

    def __init__(self, probing: ProbingSet, thresholds: describer.Thresholds) -> None:
        self._thresholds = thresholds
        self.recipe = BackendRecipe("describer", str(describer.VERSION), {"probing_set": probing.sha256})

    def has(self, row: _Row) -> bool:
        return True

    def describe(self, rows: Sequence[_Row]) -> list[str]:
        """What there is to say of each clip."""
        features = [acoustics.AcousticFeatures(**row.features) for row in rows]
        return describer.describe_many(features, self._thresholds)

    def make(self, rows: Sequence[_Row]) -> Iterator[_Made]:
        for part in _parts(rows):
            yield list(zip(part, self.describe(part), strict=True))


class _Joined:
    """The source's caption where there is one, then what the describer says."""

    def __init__(self, describer_maker: _Describer, rows: Sequence[_Row]) -> None:
        self._describer = describer_maker
        described = describer_maker.recipe
        params = {**described.params, "source_captions": _told_sha256(rows)}
        self.recipe = BackendRecipe("joined", described.revision, params)

    def has(self, row: _Row) -> bool:
        return True

    def make(self, rows: Sequence[_Row]) -> Iterator[_Made]:
        for part in _parts(rows):
            yield [(row, self._join(row, said)) for row, said in zip(part, self._describer.describe(part), strict=True)]

    @staticmethod
    def _join(row: _Row, said: str) -> str:
        source = (row.source_caption or "").strip()
        if source and source[-1] not in ".!?":
            source += "."
        return f"{source} {said}".strip()


class _File:
    """Captions made elsewhere: JSON (path -> caption, or a list of objects) or CSV (columns path, caption)."""

    def __init__(self, path: Path) -> None:
        content = _read(path)
        self._captions = _captions_of(path, content)
        self.recipe = BackendRecipe("file", hashlib.sha256(content).hexdigest())

    def _caption(self, row: _Row) -> str | None:
        return self._captions.get(row.path) or self._captions.get(Path(row.path).name)

    def has(self, row: _Row) -> bool:
        return bool(self._caption(row))

    def make(self, rows: Sequence[_Row]) -> Iterator[_Made]:
        for part in _parts(rows):
            yield [(row, self._caption(row) or "") for row in part]


class _Model:
    """An audio language model.

    The longest clips come first, over all that wait: a batch holds clips of like length, and whether the longest fit
    into memory shows at once. While the model works on a batch, the next ones are decoded.
    """

    def __init__(self, captioner: Captioner, *, keep: bool = False) -> None:
        self._captioner = captioner
        self._keep = keep
        self.recipe = captioner.recipe

    def has(self, row: _Row) -> bool:
        return True

    def make(self, rows: Sequence[_Row]) -> Iterator[_Made]:
        try:
            for batch in self._decoded(sorted(rows, key=lambda row: -row.duration_s)):
                failed: _Made = [(row, clip) for row, clip in batch if isinstance(clip, AudioError)]
                clips = [(row, clip) for row, clip in batch if not isinstance(clip, AudioError)]
                said = self._caption([clip for _, clip in clips])
                yield failed + list(zip((row for row, _ in clips), said, strict=True))
        finally:
            if isinstance(self._captioner, Releasable) and not self._keep:  # the language model needs the memory next
                self._captioner.release()

    def _caption(self, clips: Sequence[DecodedClip]) -> Sequence[str | Exception]:
        if not clips:
            return []
        try:
            return self._captioner.caption_batch(clips)
        except GenerationError as exc:  # of all of them
            return [exc] * len(clips)

    def _decoded(self, rows: Sequence[_Row]) -> Iterator[list[tuple[_Row, DecodedClip | AudioError]]]:
        """Batches of decoded clips in the order of `rows`; no more than a few of them are in memory."""
        waiting = deque(rows)
        ahead: deque[list[tuple[_Row, Future[DecodedClip | AudioError]]]] = deque()
        pool = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        try:
            while waiting or ahead:
                while waiting and len(ahead) < _DECODED_AHEAD:
                    batch = [waiting.popleft() for _ in range(min(self._captioner.batch_size, len(waiting)))]
                    ahead.append([(row, pool.submit(self._decode, row)) for row in batch])
                yield [(row, decoded.result()) for row, decoded in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, row: _Row) -> DecodedClip | AudioError:
        try:
            waveform, rate = audio.load(audio.at(row.root, row.path), self._captioner.rate, row.sha256)
        except AudioError as exc:
            return exc
        return DecodedClip(row.path, waveform, rate, row.source_caption, row.labels)


def _parts(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """Stretches of clips whose captions are kept at once."""
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _told_sha256(rows: Sequence[_Row]) -> str:
    """Identifies the captions that a data set brings: an ingest may correct them without changing any file."""
    return provenance.sha256_of([[row.path, row.source_caption] for row in rows])


def needs_model(spec: str) -> bool:
    """Whether a captioner is a model of the registry, and not one of ours that reads the database."""
    return spec.partition(":")[0] not in ("auto", "source", "describer", "joined", "file")


def maker(
    engine: sa.Engine,
    probing: ProbingSet,
    spec: str,
    options: Mapping[str, Any] | None = None,
    model: Captioner | None = None,
) -> CaptionMaker:
    """What makes the captions of a probing set.

    Parameters
    ----------
    spec
        `source`, `describer`, `joined`, `file:PATH`, a captioner of the registry (`audio-lm:DIRECTORY`), or `auto`:
        `joined` where the data set brings captions, else `describer`.
    options
        Keywords of a captioner of the registry: `prompt`, `max_tokens` …
    model
        A captioner of the registry that was made before; it stays loaded.
    """
    rows: list[_Row] = []
    if spec in ("auto", "source", "describer", "joined"):
        with db.reading(engine) as session:
            rows = _rows(session, probing.id)
    if spec == "auto":
        spec = "joined" if any(row.source_caption for row in rows) else "describer"
    match spec.partition(":"):
        case ("source", _, _):
            return _Source(rows)
        case ("file", _, path):
            return _File(Path(path).expanduser())
        case ("describer" | "joined", _, _):
            features = [acoustics.AcousticFeatures(**row.features) for row in rows]
            described = _Describer(probing, describer.fit(acoustics.feature_table(features)))
            return described if spec == "describer" else _Joined(described, rows)
        case _:
            return _Model(model or registry.create("captioner", spec, **(options or {})), keep=model is not None)


def only_describes(engine: sa.Engine, dataset: str, spec: str) -> bool:
    """Whether captions would come from acoustic measurements alone: worth knowing before anything is computed."""
    if spec != "auto":
        return spec == "describer"
    with db.reading(engine) as session:
        told = sa.select(Clip.id).join(Dataset, Dataset.id == Clip.dataset_id)
        told = told.where(Dataset.name == dataset, Clip.retired_at.is_(None), Clip.source_caption.is_not(None))
        return not session.scalar(sa.select(told.exists()))


def plan(captions: CaptionMaker) -> RecipePlan:
    """The recipe of captions."""
    return RecipePlan.of("caption", captions.recipe)


def waiting(engine: sa.Engine, probing: ProbingSet, captions: CaptionMaker) -> int:
    """How many clips of a probing set have a caption coming: neither written nor failed."""
    return len(uncaptioned(engine, probing, captions, tried=False))


def uncaptioned(engine: sa.Engine, probing: ProbingSet, captions: CaptionMaker, *, tried: bool = True) -> list[int]:
    """Ids of the clips that have a caption coming, the longest first; with `tried`, those too that failed before."""
    with db.reading(engine) as session:
        recipe_id = provenance.find_recipe(session, plan(captions))
        failed = set(
            session.scalars(
                sa.select(Failure.clip_id).where(
                    Failure.stage == "caption", Failure.scope == f"recipe:{recipe_id}", Failure.resolved_at.is_(None)
                )
            )
        )
        rows = _rows(session, probing.id, without=recipe_id or 0)
    found = [row for row in rows if (tried or row.clip_id not in failed) and captions.has(row)]
    return [row.clip_id for row in sorted(found, key=lambda row: (-row.duration_s, row.path))]


def without_caption(session: Session, probing: ProbingSet, recipe_id: int) -> list[int]:
    """Ids of the clips of a probing set that have no caption of a recipe, the longest first."""
    there = sa.select(Caption.id).where(Caption.clip_id == Clip.id, Caption.recipe_id == recipe_id)
    return list(
        session.scalars(
            sa.select(Clip.id)
            .join(ProbingSetClip, ProbingSetClip.clip_id == Clip.id)
            .where(ProbingSetClip.probing_set_id == probing.id, ~there.exists())
            .order_by(Clip.duration_s.desc(), Clip.path)
        )
    )


def caption(
    engine: sa.Engine,
    probing: ProbingSet,
    captions: CaptionMaker,
    *,
    progress: Progress = SILENT,
    run_id: int | None = None,
    clips: Sequence[int] | None = None,
    mark: Callable[[str | None], None] | None = None,
) -> int:
    """Caption the clips of a probing set that have no caption of this recipe; returns how many were written.

    Each batch is kept as soon as it is made, so that a run that is killed loses one batch at most. A clip that gets no
    caption is a failure, which the next call tries again.

    Parameters
    ----------
    clips
        Ids of the only clips to caption; default: all.
    mark
        Called with each clip's path before it is captioned, one at a time, and with None afterwards: a clip that kills the
        process is known then.

    Raises
    ------
    BackendError
        If the captioner as a whole is at fault (an endpoint that does not answer); what was made before is kept.
    """
    with db.transaction(engine) as session:
        recipe_id = provenance.recipe_id(session, plan(captions))
        rows = [row for row in _rows(session, probing.id, without=recipe_id, clips=clips) if captions.has(row)]
    if not rows:
        return 0
    written = 0
    with progress.stage("caption", len(rows), "clips") as advance:
        for batch in captions.make(rows) if mark is None else _watched(captions, rows, mark):
            fault = next((said for _, said in batch if _concerns_all(said)), None)
            made = [(row, said) for row, said in batch if not _concerns_all(said)]
            with db.transaction(engine) as session:
                written += _write(session, recipe_id, made, run_id)
            advance(len(made))
            if isinstance(fault, BackendError):
                raise fault
    return written


def _watched(captions: CaptionMaker, rows: Sequence[_Row], mark: Callable[[str | None], None]) -> Iterator[_Made]:
    """Captions, one clip at a time, each announced."""
    for row in rows:
        mark(row.path)
        yield from captions.make([row])
    mark(None)


def _concerns_all(said: str | Exception) -> bool:
    """Whether it is no answer about a clip, but a fault that every clip would meet."""
    return isinstance(said, BackendError) and not isinstance(said, GenerationError)


def _write(session: Session, recipe_id: int, made: Sequence[tuple[_Row, str | Exception]], run_id: int | None) -> int:
    scope = f"recipe:{recipe_id}"
    ready: list[tuple[_Row, str, str, list[str]]] = []
    failed: list[tuple[_Row, str]] = []
    for row, said in made:
        if isinstance(said, Exception) or not said.strip():
            failed.append((row, str(said) if isinstance(said, Exception) else "the caption is empty"))
            continue
        cut = cut_repeats(said.strip())
        ready.append((row, said.strip(), cut.text, split_sentences(cut.text)))
    # Texts before failures: who waits for its turn to add texts must hold no row that the one before it may need.
    ids = text_ids(session, [text for _, _, used, sentences in ready for text in (used, *sentences)])
    for row, reason in failed:
        provenance.record_failure(
            session, stage="caption", scope=scope, unit=row.path, clip_id=row.clip_id, run_id=run_id, reason=reason
        )
    values = [
        {
            "clip_id": row.clip_id, "recipe_id": recipe_id, "text": used, "text_id": ids[used],
            "original": said if said != used else None, "names_label": names_label(used, row.labels),
        }
        for row, said, used, _ in ready
    ]  # fmt: skip
    if not values:
        return 0
    statement = insert(Caption).values(values).on_conflict_do_nothing(index_elements=["clip_id", "recipe_id"])
    new = dict(session.execute(statement.returning(Caption.clip_id, Caption.id)).all())
    db.copy_rows(
        session,
        "caption_sentences",
        {"caption_id": "int8", "ordinal": "int4", "text_id": "int8"},
        (
            (new[row.clip_id], ordinal, ids[sentence])
            for row, _, _, sentences in ready
            if row.clip_id in new
            for ordinal, sentence in enumerate(sentences)
        ),
    )
    if new:
        forget_without(session, recipe_id, list(new))
    provenance.resolve_failures(session, stage="caption", scope=scope, units=[row.path for row, _, _, _ in ready])
    return len(new)


def _rows(
    session: Session, probing_set_id: int, *, without: int | None = None, clips: Sequence[int] | None = None
) -> list[_Row]:
    query = (
        sa.select(
            Clip.id,
            Clip.path,
            Dataset.root,
            Clip.labels,
            Clip.source_caption,
            Clip.features,
            Clip.duration_s,
            Clip.sha256,
        )
        .join(ProbingSetClip, ProbingSetClip.clip_id == Clip.id)
        .join(Dataset, Dataset.id == Clip.dataset_id)
        .where(ProbingSetClip.probing_set_id == probing_set_id)
        .order_by(ProbingSetClip.position)
    )
    if without is not None:
        there = sa.select(Caption.id).where(Caption.clip_id == Clip.id, Caption.recipe_id == without)
        query = query.where(~there.exists())
    if clips is not None:
        query = query.where(Clip.id == sa.any_(sa.cast(list(clips), ARRAY(sa.BigInteger))))
    return [
        _Row(clip, path, root, tuple(labels), source, features, duration_s, sha256)
        for clip, path, root, labels, source, features, duration_s, sha256 in session.execute(query)
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ManifestError(f"cannot read the captions in {path}: {exc.strerror}") from exc


def _captions_of(path: Path, content: bytes) -> dict[str, str]:
    try:
        text = content.decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            told = json.loads(text)
            rows = [{"path": key, "caption": value} for key, value in told.items()] if isinstance(told, dict) else told
        else:
            rows = list(csv.DictReader(text.splitlines()))
        return {str(row["path"]).replace("\\", "/"): str(row["caption"]) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ManifestError(
            f"{path} does not hold captions; give JSON (path -> caption, or objects with path and caption) "
            f"or CSV with the columns path, caption"
        ) from exc


def caption_overview(session: Session, probing_set_id: int, recipe_id: int) -> tuple[int, int]:
    """How many clips of a probing set have a caption of this recipe, and how many of these name the clip's class."""
    row = session.execute(
        sa.select(sa.func.count(), sa.func.count().filter(Caption.names_label))
        .select_from(Caption)
        .join(ProbingSetClip, ProbingSetClip.clip_id == Caption.clip_id)
        .where(ProbingSetClip.probing_set_id == probing_set_id, Caption.recipe_id == recipe_id)
    ).one()
    return int(row[0]), int(row[1])
