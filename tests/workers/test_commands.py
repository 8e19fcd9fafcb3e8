"""Every command that computes is killed and run again, and ends with the rows of one that nobody disturbed.

The short form: each command is killed at a statement and at a moment, both drawn by chance from the date of its first run. The
long form, of some hundred kills, is `benchmarks/faults.py --commands all`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

pytest.importorskip("celery", reason="the extra 'workers' is not installed")

from and_platform.schema import Base
from tests.workers import rows
from tests.workers.cluster import Cluster
from tests.workers.commands import SETTINGS, Script, Told, steps

pytestmark = pytest.mark.timeout(600)

STEPS = [step.name for step in steps()]


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    """All commands done once, undisturbed."""
    with Cluster(environment=SETTINGS) as cluster:
        made = Script(cluster)
        made.undisturbed()
        yield made


@pytest.mark.parametrize("name", STEPS)
def test_a_command_that_was_killed_goes_on_when_it_is_run_again(script: Script, name: str) -> None:
    step, told = script.steps[name], Told()
    script.kill(step, script.moments(step, 2, random.Random(name)), told)
    assert told.kills >= 1, told
    assert not told.wrong, "\n".join(told.examples)
    assert told.rows or name == "db upgrade"


# ---------------------------------------------------------------------- what is compared


def test_each_table_is_compared_or_excluded_with_a_reason() -> None:
    assert rows.unknown(Base.metadata) == []
    assert not rows.KEYS.keys() & rows.EXCLUDED.keys()
    assert rows.KEYS.keys() | rows.EXCLUDED.keys() == Base.metadata.tables.keys()
    assert all(rows.EXCLUDED.values())
    for table, key in rows.KEYS.items():
        assert set(key) <= set(Base.metadata.tables[table].columns.keys()) - {"id"}, table


def test_a_new_table_is_noticed() -> None:
    more = sa.MetaData()
    for table in Base.metadata.tables.values():
        table.to_metadata(more)
    sa.Table("loudness", more, sa.Column("clip_id", sa.ForeignKey("clips.id"), primary_key=True))
    more.tables["studies"].append_column(sa.Column("judge_id", sa.BigInteger))
    assert rows.unknown(more) == ["loudness", "studies.judge_id"]


def test_a_row_that_is_missing_is_noticed_in_each_table(script: Script) -> None:
    full = f"before{script.steps['dissections drop'].number}"
    expected = rows.read(script.cluster.engine(full))
    script.cluster.engine(full).dispose()
    filled = [table for table, found in expected.items() if found]
    assert rows.KEYS.keys() - set(filled) <= {"activation_blocks", "answers", "clip_embeddings", "failures"}
    script.cluster.new_database("spoilt", full)
    engine = script.cluster.engine("spoilt")
    for table in filled:
        with engine.begin() as connection:
            _alone(connection)
            place = tuple(connection.execute(sa.text(f"SELECT tableoid, ctid::text FROM {table} LIMIT 1")).one())
            where = f"WHERE tableoid = {place[0]} AND ctid = '{place[1]}'"
            connection.execute(sa.text(f"CREATE TABLE spare AS SELECT * FROM {table} {where}"))
            connection.execute(sa.text(f"DELETE FROM {table} {where}"))
        difference = rows.compare({table: expected[table]}, rows.read(engine, [table]))
        assert difference.lost == {table: 1} and not difference.duplicates, difference.told()
        with engine.begin() as connection:
            _alone(connection)
            given = [column.name for column in Base.metadata.tables[table].columns if column.computed is None]
            columns = ", ".join(f'"{name}"' for name in given)
            connection.execute(
                sa.text(f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM spare")
            )
            connection.execute(sa.text("DROP TABLE spare"))
    assert not rows.compare(expected, rows.read(engine))

    for table, change in CHANGES.items():
        with engine.begin() as connection:
            _alone(connection)
            connection.execute(
                sa.text(f"UPDATE {table} SET {change} WHERE ctid = (SELECT ctid FROM {table} ORDER BY ctid LIMIT 1)")
            )
        difference = rows.compare({table: expected[table]}, rows.read(engine, [table]))
        assert difference.different == {table: 1}, f"{table}: {difference.told()}"
    engine.dispose()
    script.cluster.tell("DROP DATABASE spoilt WITH (FORCE)", "postgres")


def _alone(connection: sa.Connection) -> None:
    """A row may go although others refer to it."""
    connection.execute(sa.text("SET LOCAL session_replication_role = replica"))


CHANGES = {
    "experiments": """figures = figures || '{"spoilt": 1}'""",
    "last_layer_names": "cosine_sentence = coalesce(cosine_sentence, 0) + 0.01",
    "last_layer_measures": "value = coalesce(value, 0) + 0.01",
    "explanation_scores": "auprc = coalesce(auprc, 0) + 0.01",
    "ablation_plans": "n_neurons = n_neurons + 1",
    "ablation_plan_neurons": "why = why || '!'",
    "ablations": "accuracy_after = array_append(accuracy_after, 0.5)",
    "clusterings": "inertia = inertia + 1",
    "clusters": "n_sentences = n_sentences + 1",
    "cluster_sentences": "cluster = cluster % 3 + 1",
    "study_items": "neuron_id = (SELECT min(id) FROM neurons)",
    "study_descriptions": "text = text || '!'",
    "study_ratings": "rating = rating % 5 + 1",
    "study_summaries": "text = text || '!'",
    "studies": "token = 'another'",
}
"""Table of an experiment -> what may be different in a row of it."""
