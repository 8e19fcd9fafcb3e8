"""Which concept of a set stands for a class of a network: by name, or as the user says; never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.names import normalise
from and_platform.errors import InputError
from and_platform.schema import ClassConcept, Concept, Network
from and_platform.services import experiments


class MappedClass(NamedTuple):
    """A class, the concept that stands for it, and how that was found: exact, normalised, synonym, given or none."""

    unit: int
    class_name: str
    concept_id: int | None
    concept: str | None
    how: str


class ConceptNames:
    """The names of a concept set, to look classes and labels up in."""

    def __init__(self, concepts: Iterable[tuple[int, str, str, Sequence[str]]]) -> None:
        """`concepts`: (id, normalised name, name as imported, synonyms) in order of position; the first one wins."""
        self.names: dict[int, str] = {}
        self._exact: dict[str, int] = {}
        self._normalised: dict[str, int] = {}
        self._synonyms: dict[str, int] = {}
        for identity, name, original, synonyms in concepts:
            self.names[identity] = name
            for written in (original, name):
                self._exact.setdefault(written, identity)
                self._normalised.setdefault(normalise(written), identity)
            for other in synonyms:
                self._synonyms.setdefault(normalise(other), identity)

    def find(self, name: str) -> tuple[int | None, str]:
        """The concept of a class or label, and how it was found."""
        plain = normalise(name)
        for how, key, names in (
            ("exact", name, self._exact),
            ("normalised", plain, self._normalised),
            ("synonym", plain, self._synonyms),
        ):
            if key in names:
                return names[key], how
        return None, "none"

    def near(self, name: str) -> list[str]:
        """Names of concepts that are written like it."""
        plain = normalise(name)
        inside = [known for known in self.names.values() if plain and (plain in known or known in plain)]
        return list(dict.fromkeys([*get_close_matches(plain, self.names.values(), 3), *inside]))[:3]


def concept_names(session: Session, concept_set_id: int) -> ConceptNames:
    """The names of a stored concept set."""
    rows = session.execute(
        sa.select(Concept.id, Concept.name, Concept.original_name, Concept.synonyms)
        .where(Concept.concept_set_id == concept_set_id)
        .order_by(Concept.position)
    )
    return ConceptNames((row.id, row.name, row.original_name, row.synonyms) for row in rows)


def map_classes(session: Session, network_id: int, concept_set_id: int) -> list[MappedClass]:
    """The concept of every class of a network, in order of the head's units; stored, what the user gave is kept.

    Raises
    ------
    InputError
        The network has no class names.
    """
    network = session.get_one(Network, network_id)
    if not network.classes:
        raise InputError(
            f"'{network.name}' has no class names, so its last layer cannot be evaluated; "
            "add it with them under a new name: id2label in its configuration, or the option 'classes'; an encoder gets "
            "its classes by fine-tuning: andp networks train DIRECTORY --from LOCATION"
        )
    known = concept_names(session, concept_set_id)
    given = {
        row.unit: row.concept_id
        for row in session.scalars(
            sa.select(ClassConcept).where(
                ClassConcept.network_id == network_id,
                ClassConcept.concept_set_id == concept_set_id,
                ClassConcept.how == "given",
            )
        )
    }
    mapped = []
    for unit, name in enumerate(network.classes):
        identity, how = (given[unit], "given") if unit in given else known.find(name)
        mapped.append(MappedClass(unit, name, identity, None if identity is None else known.names[identity], how))
    statement = insert(ClassConcept).values(
        [
            {
                "network_id": network_id, "concept_set_id": concept_set_id, "unit": one.unit,
                "class_name": one.class_name, "concept_id": one.concept_id, "how": one.how,
            }
            for one in mapped
        ]
    )  # fmt: skip
    fresh = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["network_id", "concept_set_id", "unit"],
            set_={"class_name": fresh.class_name, "concept_id": fresh.concept_id, "how": fresh.how},
            where=(ClassConcept.how != "given")
            & (
                ClassConcept.concept_id.is_distinct_from(fresh.concept_id)
                | (ClassConcept.how != fresh.how)
                | (ClassConcept.class_name != fresh.class_name)
            ),
        )
    )
    return mapped


def without_concept(mapped: Iterable[MappedClass]) -> list[str]:
    """Names of the classes for which there is no concept."""
    return [one.class_name for one in mapped if one.concept_id is None]


def classes(
    engine: sa.Engine,
    network: str,
    *,
    dissection: int | None = None,
    given: Mapping[str, str] | None = None,
) -> list[MappedClass]:
    """Show the mapping for the concept set of a dissection, or change it first.

    Parameters
    ----------
    given
        Class -> concept that stands for it; an empty text takes back what was given before.

    Raises
    ------
    InputError
        No such class or concept: names those that are written like it.
    """
    with db.transaction(engine) as session:
        about = experiments.subject(session, network, dissection)
        mapped = map_classes(session, about.network_id, about.concept_set_id)
        if not given:
            return mapped
        known = concept_names(session, about.concept_set_id)
        units = {normalise(one.class_name): one.unit for one in mapped}
        for name, concept in given.items():
            unit = units.get(normalise(name))
            if unit is None:
                near = get_close_matches(normalise(name), units, 3)
                raise InputError(f"'{about.network}' has no class '{name}'{_perhaps(near)}")
            row = session.get_one(ClassConcept, (about.network_id, about.concept_set_id, unit))
            if not concept.strip():
                row.concept_id, row.how = known.find(row.class_name)
                continue
            identity, _ = known.find(concept)
            if identity is None:
                raise InputError(
                    f"'{concept}' is no concept of '{about.concept_set}'{_perhaps(known.near(concept))}; "
                    f"see: andp concepts show {about.concept_set}"
                )
            row.concept_id, row.how = identity, "given"
        session.flush()
        return map_classes(session, about.network_id, about.concept_set_id)


def label_concepts(session: Session, network_id: int, concept_set_id: int, labels: Iterable[str]) -> dict[str, int]:
    """Label of clips -> the concept that it names, as classes are mapped; labels without a concept are not in it.

    What the user gave for a class of that name goes first.
    """
    known = concept_names(session, concept_set_id)
    by_class = {
        normalise(row.class_name): row.concept_id
        for row in session.scalars(
            sa.select(ClassConcept).where(
                ClassConcept.network_id == network_id,
                ClassConcept.concept_set_id == concept_set_id,
                ClassConcept.how == "given",
            )
        )
    }
    found: dict[str, int] = {}
    for label in labels:
        identity = by_class.get(normalise(label)) or known.find(label)[0]
        if identity is not None:
            found[label] = identity
    return found


def _perhaps(near: Sequence[str]) -> str:
    named = "', '".join(near)
    return f"; perhaps '{named}'" if near else ""
