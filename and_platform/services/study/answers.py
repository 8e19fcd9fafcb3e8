"""The files that raters send back: read, checked, stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.errors import ConflictError, InputError, NotFoundError
from and_platform.schema import Study, StudyDescription, StudyRating, StudySummary
from and_platform.services.study import page

_LARGEST = 20 << 20  # bytes; a study of 10,000 neurons takes a few


class Answer(BaseModel):
    """What a rater said of one neuron."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item: Annotated[int, Field(ge=1)]
    summary: Annotated[str, Field(max_length=10_000)] = ""
    """Empty: not written."""
    ratings: dict[str, Annotated[int, Field(ge=1, le=5)]] = Field(default_factory=dict)
    """Slot -> rating; those that are missing were not given."""

    @field_validator("summary")
    @classmethod
    def _storable(cls, text: str) -> str:
        if "\0" in text:
            raise ValueError("holds a NUL character")
        return text.strip()


class Answers(BaseModel):
    """A file of answers. Unfinished ones are as good as whole ones."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["and-platform study answers"]
    version: Literal[1]
    study: str
    """Token of the study."""
    name: str = ""
    """Name of the study: for people, who cannot read tokens."""
    rater: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
    saved_at: str = ""
    answers: list[Answer]

    @field_validator("answers")
    @classmethod
    def _once(cls, answers: list[Answer]) -> list[Answer]:
        seen: set[int] = set()
        for answer in answers:
            if answer.item in seen:
                raise ValueError(f"item {answer.item} stands there twice")
            seen.add(answer.item)
        return answers


@dataclass(frozen=True)
class Imported:
    """What came of a file."""

    file: str
    study: str
    rater: str
    outcome: str
    """imported, replaced, or unchanged: the same answers were there."""
    neurons: int
    """Neurons of which something was said."""
    of_neurons: int
    ratings: int
    of_ratings: int
    summaries: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(path: Path) -> Answers:
    """Read and check a file, as far as that goes without the study.

    Raises
    ------
    InputError
        It cannot be read or is no file of answers; with the reason, without the path.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"larger than {_LARGEST >> 20} MiB: that is no file of answers")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}") from error
    try:
        return Answers.model_validate_json(content)
    except ValidationError as error:
        raise InputError(_reason(error)) from error


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "json_invalid":
        return f"is not JSON, or was cut off: {first['msg'].removeprefix('Invalid JSON: ')}"
    if place in ("format", "") and first["type"] in ("missing", "literal_error", "model_type"):
        return f"is no file of answers (no format '{page.FORMAT}')"
    if place == "version" and first["type"] == "literal_error":
        return (
            f"is of version {first['input']}, this program reads version {page.VERSION}; install a newer and-platform"
        )
    if place == "rater":
        return f"has no usable rater's code ({first['input']!r}): letters, digits, '.', '_' and '-', up to 32"
    told = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {told[:1].lower()}{told[1:]}{more}"


def import_file(engine: sa.Engine, path: Path, *, replace: bool = False) -> Imported:
    """Check a file of answers and store it, in one transaction.

    Parameters
    ----------
    replace
        Forget what the rater has answered in this study before.

    Raises
    ------
    InputError
        The file cannot be read, holds no answer, or speaks of items or descriptions that the study does not have.
    NotFoundError
        There is no such study here.
    ConflictError
        The rater has answered before, and otherwise.
    """
    answers = read(path)
    if not any(answer.summary or answer.ratings for answer in answers.answers):
        raise InputError(f"holds no answer of rater {answers.rater} yet")
    with db.transaction(engine) as session:
        # One rater's files take turns, so that none is half of each.
        study = session.scalars(sa.select(Study).where(Study.token == answers.study).with_for_update()).one_or_none()
        if study is None:
            named = f" ('{answers.name}')" if answers.name else ""
            raise NotFoundError(f"belongs to a study{named} that is not in this database; see: andp study list")
        slots = _slots(session, study)
        _check(answers, slots)
        outcome = _store(session, study, answers, replace)
        said = [answer for answer in answers.answers if answer.summary or answer.ratings]
        return Imported(
            str(path), study.name, answers.rater, outcome, len(said), len(slots),
            sum(len(answer.ratings) for answer in said), sum(map(len, slots.values())),
            sum(bool(answer.summary) for answer in said),
        )  # fmt: skip


def _slots(session: Session, study: Study) -> dict[int, list[str]]:
    """Item -> the slots of its descriptions."""
    found: dict[int, list[str]] = {}
    for item, slot in session.execute(
        sa.select(StudyDescription.item, StudyDescription.slot)
        .where(StudyDescription.study_id == study.id)
        .order_by(StudyDescription.item, StudyDescription.slot)
    ):
        found.setdefault(item, []).append(slot)
    return found


def _check(answers: Answers, slots: dict[int, list[str]]) -> None:
    for answer in answers.answers:
        if answer.item not in slots:
            raise InputError(f"item {answer.item}: the study has items 1 to {max(slots)}")
        if unknown := sorted(set(answer.ratings) - set(slots[answer.item])):
            raise InputError(
                f"item {answer.item}: there is no description {unknown[0]!r}, only {', '.join(slots[answer.item])}"
            )


def _store(session: Session, study: Study, answers: Answers, replace: bool) -> str:
    """Write the answers; returns what was done."""
    ratings = {(answer.item, slot): value for answer in answers.answers for slot, value in answer.ratings.items()}
    summaries = {answer.item: answer.summary for answer in answers.answers if answer.summary}
    of_rater = (StudyRating.study_id == study.id, StudyRating.rater == answers.rater)
    by_rater = (StudySummary.study_id == study.id, StudySummary.rater == answers.rater)
    old_ratings = {(row.item, row.slot): row.rating for row in session.scalars(sa.select(StudyRating).where(*of_rater))}
    old_summaries = {row.item: row.text for row in session.scalars(sa.select(StudySummary).where(*by_rater))}
    before = bool(old_ratings or old_summaries)
    if before and (old_ratings, old_summaries) == (ratings, summaries):
        return "unchanged"
    if before and not replace:
        raise ConflictError(
            f"rater {answers.rater} has answered this study before ({len(old_ratings)} ratings, {len(old_summaries)} "
            "summaries), and otherwise; --replace puts these in their place"
        )
    session.execute(sa.delete(StudyRating).where(*of_rater))
    session.execute(sa.delete(StudySummary).where(*by_rater))
    key = {"study_id": study.id, "rater": answers.rater}
    if ratings:
        session.execute(
            sa.insert(StudyRating),
            [{**key, "item": item, "slot": slot, "rating": value} for (item, slot), value in ratings.items()],
        )
    if summaries:
        session.execute(
            sa.insert(StudySummary), [{**key, "item": item, "text": text} for item, text in summaries.items()]
        )
    return "replaced" if before else "imported"
