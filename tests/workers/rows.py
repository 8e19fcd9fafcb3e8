"""Two databases' results compared row for row, whatever their surrogate keys.

    expected, found = rows.read(undisturbed), rows.read(engine)
    difference = rows.compare(expected, found)
    assert not difference, difference.told()

A row is known by names: of its network, layer and unit, its clip's path, its recipe's hash. Texts, positions, ranks and
flags have to be the same to the letter. Floats may differ by what another batch makes of them: float32 by 1e-4 of their
size or 1e-5, float16 by two units in the last place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from pgvector import HalfVector, Vector

from and_platform import db
from and_platform.schema import Base

SINGLE = {"rtol": 1e-4, "atol": 1e-5}
HALF = {"rtol": 2e-3, "atol": 1e-4}
"""What np.allclose is given for float32 and for float16."""

KEYS: dict[str, tuple[str, ...]] = {
    "datasets": ("name",),
    "clips": ("dataset_id", "path"),
    "probing_sets": ("dataset_id", "sha256"),
    "probing_set_clips": ("probing_set_id", "position"),
    "networks": ("name",),
    "layers": ("network_id", "name"),
    "neurons": ("layer_id", "unit"),
    "recipes": ("stage", "sha256"),
    "encoders": ("recipe_id",),
    "texts": ("text",),
    "terms": ("term", "part_of_speech"),
    "concept_sets": ("name",),
    "concepts": ("concept_set_id", "position"),
    "class_concepts": ("network_id", "concept_set_id", "unit"),
    "recordings": ("network_id", "probing_set_id", "recipe_id"),
    "recorded_layers": ("recording_id", "layer_id"),
    "activation_blocks": ("recording_id", "layer_id", "block"),
    "activations": ("recording_id", "neuron_id", "stretch"),
    "activation_cubes": ("recording_id", "neuron_id", "stretch"),
    "exemplars": ("recording_id", "neuron_id", "side"),
    "neuron_statistics": ("recording_id", "neuron_id"),
    "captions": ("clip_id", "recipe_id"),
    "caption_sentences": ("caption_id", "ordinal"),
    "answers": ("recipe_id", "prompt_sha256"),
    "text_embeddings": ("encoder_id", "text_id"),
    "clip_embeddings": ("encoder_id", "clip_id"),
    "scorings": ("recipe_id", "probing_set_id", "concept_set_id"),
    "clip_concept_scores": ("scoring_id", "concept_id", "stretch"),
    "concept_matches": ("recording_id", "recipe_id", "neuron_id", "rank"),
    "summaries": ("recipe_id", "neuron_id", "side"),
    "summary_points": ("summary_id", "ordinal"),
    "calibrations": ("recipe_id", "neuron_id"),
    "calibrated_points": ("calibration_id", "ordinal"),
    "summary_embeddings": ("encoder_id", "calibration_id"),
    "text_tags": ("recipe_id", "text_id"),
    "term_verdicts": ("recipe_id", "term_id"),
    "neuron_terms": ("recipe_id", "neuron_id", "term_id"),
    "finished_layers": ("recipe_id", "layer_id"),
    "dissections": ("sha256",),
    "dissected_layers": ("dissection_id", "layer_id"),
    "dissection_recipes": ("dissection_id", "stage"),
    "failures": ("stage", "unit"),
    "experiments": ("recipe_id",),
    "last_layer_names": ("experiment_id", "method", "similarity", "neuron_id", "rank"),
    "last_layer_measures": ("experiment_id", "method", "similarity", "over", "measure"),
    "explanation_scores": ("experiment_id", "neuron_id", "explanation", "reference"),
    "ablation_plans": ("recipe_id",),
    "ablation_plan_neurons": ("plan_id", "neuron_id"),
    "ablations": ("experiment_id", "strategy", "target_unit", "size", "share", "seed"),
    "clusterings": ("recipe_id",),
    "clusters": ("clustering_id", "cluster"),
    "cluster_sentences": ("clustering_id", "text_id"),
    "studies": ("name",),
    "study_items": ("study_id", "item"),
    "study_descriptions": ("study_id", "item", "slot"),
    "study_ratings": ("study_id", "rater", "item", "slot"),
    "study_summaries": ("study_id", "rater", "item"),
}
"""Table -> the columns that say which row it is."""

EXCLUDED = {
    "runs": "one row for each command that was begun: a command that was killed and run again has two",
    "run_steps": "steps of a run",
    "work_units": "units of a run",
    "training_epochs": "epochs of a run; one that was killed keeps those that it came to",
    "workers": "processes",
}
"""Tables that are not compared, and why. A table is here or in `KEYS`; a test says so."""

_BESIDES = {
    "id", "block_clips", "created_at", "completed_at", "finished_at", "happened_at", "resolved_at", "retired_at", "run_id",
    "root", "location", "origin", "scope", "reason", "detail",
}  # fmt: skip
"""Columns that say when, where, by whom and in which portions."""

_TIMES = {"seconds"}
"""Members of JSON that say how long something took."""

_REFERS = {
    **{"terms": "terms", "parents": "recipes"},
    **{f"{table[:-1]}_id": table for table in ("recordings", "layers", "neurons", "recipes", "concepts")},
}
"""Columns that no foreign key tells of, lists of ids and those of partitioned tables -> the table whose ids these are."""

Key = tuple[Any, ...]
Row = dict[str, Any]
Table = dict[Key, list[Row]]


@dataclass
class Difference:
    """What is not as it should be; false where nothing is."""

    rows: int = 0
    """Rows compared."""
    lost: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    """Rows that are there more than once, or that nobody asked for."""
    different: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicates or self.different)

    def told(self) -> str:
        """For people."""
        counts = ", ".join(
            f"{name} {dict(found)}"
            for name, found in (("lost", self.lost), ("duplicates", self.duplicates), ("different", self.different))
            if found
        )
        return f"{self.rows:,} rows compared; {counts or 'all equal'}" + "".join(
            f"\n  {line}" for line in self.examples
        )

    def _note(self, kind: str, table: str, key: Key, more: str = "") -> None:
        counter: Counter[str] = getattr(self, kind)
        counter[table] += 1
        if counter[table] <= 3:
            self.examples.append(f"{kind}: {table} {' | '.join(map(str, key))[:300]} {more}")


def read(engine: sa.Engine, tables: Iterable[str] = KEYS) -> dict[str, Table]:
    """All results of a database, or those in some tables, under natural keys."""
    named = _Names(engine)
    return {table: _read(engine, table, KEYS[table], named) for table in tables}


def unknown(metadata: sa.MetaData) -> list[str]:
    """Tables that are neither compared nor excluded, and columns with ids of which it is not known whose they are."""
    tables = [name for name in metadata.tables if name not in KEYS and name not in EXCLUDED]
    columns = [
        f"{name}.{column.name}"
        for name, table in metadata.tables.items()
        for column in table.columns
        if name in KEYS
        and column.name.endswith(("_id", "_ids"))
        and column.name not in _BESIDES
        and refers(name, column.name, metadata) is None
    ]
    return sorted(tables + columns)


def compare(expected: Mapping[str, Table], found: Mapping[str, Table]) -> Difference:
    """Count rows of `found` that are missing, too many, or not equal."""
    difference = Difference()
    for table, wanted in expected.items():
        there = found[table]
        difference.rows += sum(map(len, there.values()))
        for key in wanted.keys() | there.keys():
            asked, got = wanted.get(key, []), there.get(key, [])
            for _ in range(len(got) - len(asked)):
                difference._note("duplicates", table, key, f"is there {len(got)} times, not {len(asked)}")
            for _ in range(len(asked) - len(got)):
                difference._note("lost", table, key, f"is there {len(got)} times, not {len(asked)}")
            if not asked or not got:
                continue
            one, other = asked[0], got[0]
            for column in one:
                if not _equal(one[column], other[column]):
                    difference._note("different", table, key, _told(column, one[column], other[column]))
                    break
    return difference


# ---------------------------------------------------------------------- reading


class _Names:
    """Table -> id -> natural key, read when first asked for."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._known: dict[str, dict[int, Key]] = {}

    def of(self, table: str) -> dict[int, Key]:
        if table not in self._known:
            key = KEYS[table]
            names = [self.resolver(table, column) for column in key]
            with db.reading(self._engine) as session:
                found = session.execute(sa.text(f"SELECT id, {', '.join(key)} FROM {table}")).all()
            self._known[table] = {
                row[0]: tuple(name(value) for name, value in zip(names, row[1:], strict=True)) for row in found
            }
        return self._known[table]

    def resolver(self, table: str, column: str) -> Callable[[Any], Any]:
        """What makes names of a column's values."""
        target = refers(table, column)
        if target is None:
            return _plain
        known = self.of(target)

        def name(value: Any) -> Any:
            if isinstance(value, list):
                return tuple(map(name, value))
            # What its row is gone of is told by the id: it can only be found as a difference.
            return known.get(value, f"no {column} {value}") if value is not None else None

        return name


def refers(table: str, column: str, metadata: sa.MetaData = Base.metadata) -> str | None:
    """The table whose ids a column holds, also where it holds them by way of another table's key."""
    for key in metadata.tables[table].columns[column].foreign_keys:
        there = key.column
        return there.table.name if there.name == "id" else refers(there.table.name, there.name, metadata)
    return _REFERS.get(column)


def _plain(value: Any) -> Any:
    """Numbers as arrays, the rest as it is."""
    match value:
        case HalfVector():
            return np.asarray(value.to_list(), np.float16)
        case Vector():
            return np.asarray(value.to_list(), np.float32)
        case float():
            return np.float32(value)
        case memoryview():
            return bytes(value)
        case list() if any(isinstance(one, float) for one in value) and all(
            isinstance(one, float | None) for one in value
        ):
            return np.asarray(value, np.float32)  # NULL: not a number
        case _:
            return value


def _read(engine: sa.Engine, table: str, key: tuple[str, ...], named: _Names) -> Table:
    columns = [column.name for column in Base.metadata.tables[table].columns if column.name not in _BESIDES]
    names = {column: named.resolver(table, column) for column in columns}
    rest = [column for column in columns if column not in key]
    kept: Table = {}
    with db.reading(engine) as session:
        for row in session.execute(sa.text(f"SELECT {', '.join(columns)} FROM {table}")).mappings():
            values = {column: names[column](row[column]) for column in columns}
            kept.setdefault(tuple(values[column] for column in key), []).append(
                {column: values[column] for column in rest}
            )
    return kept


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray | np.floating):
        if not isinstance(other, np.ndarray | np.floating) or np.shape(one) != np.shape(other):
            return False
        allowed = HALF if one.dtype == np.float16 else SINGLE
        return bool(np.allclose(np.float64(one), np.float64(other), equal_nan=True, **allowed))
    match one, other:  # what JSON holds
        case float(), int() | float():
            return bool(np.isclose(one, other, equal_nan=True, **SINGLE))
        case dict(), dict():
            return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one.keys() - _TIMES)
        case list(), list():
            return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _told(name: str, one: Any, other: Any) -> str:
    """Two values that are not the same; of JSON the first member that is not."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if key not in _TIMES and not _equal(one.get(key), other.get(key)):
                return _told(f"{name}.{key}", one.get(key), other.get(key))
    return f"{name}: {one!r:.80} and {other!r:.80}"


def total(tables: Mapping[str, Table], names: Iterable[str] = KEYS) -> int:
    """Rows of some tables."""
    return sum(sum(map(len, tables[name].values())) for name in names)
