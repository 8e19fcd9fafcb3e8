"""Concept sets in the database. A set never changes once it is in: scores and dissections point to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform.core import concepts as core
from and_platform.errors import ConflictError, InputError, ManifestError, NotFoundError
from and_platform.resources import resource
from and_platform.schema import Clip, Concept, ConceptSet, Dataset, Dissection, Scoring
from and_platform.services.datasets import find as find_dataset
from and_platform.services.datasets import live
from and_platform.services.texts import text_ids

Row = dict[str, Any]

SHIPPED = "shipped"
_LABELS = "-labels"


@dataclass(frozen=True)
class Imported:
    """The outcome of an import."""

    name: str
    concept_set_id: int
    n_concepts: int
    is_new: bool
    """False: the same content was there under this name."""
    merged: list[tuple[str, str]]
    """Entries that were joined to an earlier one of the same normalised name: (spelling, the name)."""


def import_file(session: Session, path: Path, name: str | None = None) -> Imported:
    """Read a concept set from a text, CSV or JSON file. Importing the same content again does nothing.

    Raises
    ------
    ManifestError
        The file cannot be read, or an entry cannot be a concept.
    ConflictError
        Another set has the name.
    """
    concepts = _parse(path)
    return _store(session, _checked(name or path.stem), f"file {path.name}", concepts)


def ensure(session: Session, name: str) -> ConceptSet:
    """The concept set of this name: in the database, shipped with the package, or `<data set>-labels`.

    Raises
    ------
    NotFoundError
        There is none; the message lists those that there are.
    """
    found = _find(session, name)
    if found is not None:
        return found
    if name in (files := shipped()):
        _store(session, name, SHIPPED, _parse(files[name]))
    elif name.endswith(_LABELS) and _dataset_exists(session, name.removesuffix(_LABELS)):
        return labels_of(session, name.removesuffix(_LABELS))
    else:
        raise NotFoundError(
            f"no concept set '{name}'; there are: {', '.join(_names(session))}; or: andp concepts import FILE"
        )
    return session.scalars(sa.select(ConceptSet).where(ConceptSet.name == name)).one()


def shipped() -> dict[str, Path]:
    """Name -> file of the sets that travel with the package."""
    folder = resource("concepts")
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in core.PARSERS}


def labels_of(session: Session, dataset: str) -> ConceptSet:
    """The labels of a data set's live clips, sorted, as the concept set `<data set>-labels`.

    Where the labels are no longer those of the set that has this name, the next free one of `<data set>-labels-2`,
    `-3` … is taken: what was computed with the old set keeps it.

    Raises
    ------
    NotFoundError
        No such data set.
    InputError
        None of its clips has a label.
    """
    row = find_dataset(session, dataset)
    label = sa.func.unnest(Clip.labels).label("label")
    used = session.scalars(sa.select(label).distinct().where(live(row.id))).all()
    if not used:
        raise InputError(f"no clip of '{dataset}' has a label; name another concept set, e.g. {', '.join(shipped())}")
    concepts = core.parse_json(json.dumps(sorted(used)))
    sha256 = core.sha256_of(concepts)
    for number in count(1):
        name = f"{dataset}{_LABELS}" + (f"-{number}" if number > 1 else "")
        found = _find(session, name)
        if found is None:
            _store(session, name, f"labels of {dataset}", concepts)
        elif found.sha256 != sha256:
            continue
        return session.scalars(sa.select(ConceptSet).where(ConceptSet.name == name)).one()
    raise AssertionError("unreachable")  # pragma: no cover


def list_sets(session: Session) -> list[Row]:
    """One row per set in the database, then the shipped ones that are not in it yet."""
    query = (
        sa.select(
            ConceptSet.name, sa.func.count(Concept.id).label("concepts"), ConceptSet.source, ConceptSet.created_at
        )
        .outerjoin(Concept)
        .group_by(ConceptSet.id)
        .order_by(ConceptSet.name)
    )
    rows = [dict(row) for row in session.execute(query).mappings()]
    there = {row["name"] for row in rows}
    return rows + [
        {"name": name, "concepts": len(_parse(file)), "source": SHIPPED, "created_at": None}
        for name, file in shipped().items()
        if name not in there
    ]


def show(session: Session, name: str) -> list[Row]:
    """The concepts of a set, in order; a shipped one that is not in the database is read from its file."""
    found = _find(session, name)
    if found is None:
        if name not in (files := shipped()):
            raise NotFoundError(f"no concept set '{name}'; there are: {', '.join(_names(session))}")
        return [
            {"name": c.name, "original_name": c.original_name, "synonyms": list(c.synonyms), "kind": c.kind}
            for c in _parse(files[name])
        ]
    query = (
        sa.select(Concept.name, Concept.original_name, Concept.synonyms, Concept.kind)
        .where(Concept.concept_set_id == found.id)
        .order_by(Concept.position)
    )
    return [dict(row) for row in session.execute(query).mappings()]


def drop(session: Session, name: str) -> int:
    """Remove a concept set; returns the number of its concepts.

    Raises
    ------
    NotFoundError
        It is not in the database.
    ConflictError
        Scores or dissections were made with it.
    """
    found = _find(session, name)
    if found is None:
        raise NotFoundError(f"no concept set '{name}' is in the database; see: andp concepts list")
    for table, what in ((Dissection, "dissection"), (Scoring, "matrix of scores")):
        users = session.scalar(sa.select(sa.func.count()).where(table.concept_set_id == found.id))
        if users:
            raise ConflictError(f"the concept set '{name}' is used ({what}: {users}); drop the dissections first")
    n = session.scalar(sa.select(sa.func.count()).where(Concept.concept_set_id == found.id)) or 0
    session.delete(found)
    return n


# ---------------------------------------------------------------------- how


def _store(session: Session, name: str, source: str, concepts: Sequence[core.Concept]) -> Imported:
    """Write a set, or find that it is there. Whoever comes second waits for the first one's commit, and compares."""
    sha256 = core.sha256_of(concepts)
    made = session.execute(
        insert(ConceptSet)
        .values(name=name, source=source, sha256=sha256)
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(ConceptSet.id)
    ).scalar_one_or_none()
    merged = [(spelling, concept.name) for concept in concepts for spelling in concept.merged]
    if made is None:
        found = session.scalars(sa.select(ConceptSet).where(ConceptSet.name == name)).one()
        if found.sha256 != sha256:
            raise ConflictError(
                f"another concept set has the name '{name}' ({found.source}); give another with --name, "
                f"or drop it: andp concepts drop {name}"
            )
        return Imported(name, found.id, len(concepts), False, merged)
    # A concept's text is its normalised name: what an encoder reads.
    ids = text_ids(session, [concept.name for concept in concepts])
    session.execute(
        sa.insert(Concept),
        [
            {
                "concept_set_id": made,
                "position": position,
                "name": concept.name,
                "original_name": concept.original_name,
                "synonyms": list(concept.synonyms),
                "kind": concept.kind,
                "text_id": ids[concept.name],
            }
            for position, concept in enumerate(concepts)
        ],
    )
    return Imported(name, made, len(concepts), True, merged)


def _parse(path: Path) -> list[core.Concept]:
    parser = core.PARSERS.get(path.suffix.lower())
    if parser is None:
        raise ManifestError(f"{path}: a concept file is one of {', '.join(core.PARSERS)}")
    try:
        return parser(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{path} is not UTF-8 text; save it as UTF-8") from exc
    except OSError as exc:
        raise ManifestError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except ManifestError as exc:
        raise ManifestError(f"{path}, {exc}") from exc


def _checked(name: str) -> str:
    name = name.strip()
    if not name or not name.isprintable():
        raise InputError(f"{name!r} cannot be the name of a concept set; give another one with --name")
    if name in shipped():
        raise ConflictError(f"'{name}' is the name of a concept set that is shipped; give another one with --name")
    return name


def _find(session: Session, name: str) -> ConceptSet | None:
    return session.scalars(sa.select(ConceptSet).where(ConceptSet.name == name)).one_or_none()


def _dataset_exists(session: Session, name: str) -> bool:
    return session.scalar(sa.select(sa.exists().where(Dataset.name == name))) or False


def _names(session: Session) -> list[str]:
    return sorted({*session.scalars(sa.select(ConceptSet.name)), *shipped()})
