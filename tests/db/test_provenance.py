"""Recipes, runs and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.backends.base import BackendRecipe
from and_platform.errors import InputError
from and_platform.schema import Failure, Recipe, Run
from and_platform.services import provenance
from and_platform.services.provenance import RecipePlan
from tests import factories

PARENT = RecipePlan("caption", "describer", "2", {"quantiles": [0.2, 0.8]})
PLAN = RecipePlan(
    "summarise", "llm", "1", {"prompt": "Summarise.", "seed": 3, "sampling": {"p": 1, "t": 0.7}}, (PARENT,)
)


# ---------------------------------------------------------------------- recipes


def test_the_hash_is_stable() -> None:
    """Changing how it is made orphans everything in users' databases; so it is written down here."""
    assert RecipePlan("record", "ast", "abc", {"pooling": "first", "é": 1}).sha256 == (
        "47d2f0d66b7802cf16a657bc3e21198ca4014525ba59c72a6148baee22d2b158"
    )


def test_the_order_of_keys_does_not_matter() -> None:
    other = {"sampling": {"t": 0.7, "p": 1}, "seed": 3, "prompt": "Summarise."}
    assert replace(PLAN, params=other).sha256 == PLAN.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "icl"},
        {"backend": "extractive"},
        {"revision": "2"},
        {"params": {**PLAN.params, "seed": 4}},
        {"params": {**PLAN.params, "prompt": "Summarise!"}},
        {"params": {**PLAN.params, "more": None}},
        {"params": {key: value for key, value in PLAN.params.items() if key != "seed"}},
        {"parents": ()},
        {"parents": (PARENT, PARENT)},
        {"parents": (replace(PARENT, revision="3"),)},
        {"parents": (replace(PARENT, parents=(RecipePlan("record", "x", "1", {}),)),)},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_changes_the_result_changes_the_hash(change: dict[str, object]) -> None:
    assert replace(PLAN, **change).sha256 != PLAN.sha256  # type: ignore[arg-type]


def test_a_backends_own_parameters_join_those_of_the_stage() -> None:
    backend = BackendRecipe("minilm", "r1", {"normalise": True})
    plan = RecipePlan.of("encode", backend, [PARENT], scale=100)
    assert plan == RecipePlan("encode", "minilm", "r1", {"normalise": True, "scale": 100}, (PARENT,))


def test_a_recipe_has_one_row_with_its_parents(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        assert provenance.find_recipe(session, PLAN) is None
        identity = provenance.recipe_id(session, PLAN)
        assert provenance.recipe_id(session, PLAN) == identity == provenance.find_recipe(session, PLAN)
        row = session.get_one(Recipe, identity)
        assert (row.stage, row.backend, row.revision, row.sha256) == ("summarise", "llm", "1", PLAN.sha256)
        assert row.params == PLAN.params
        assert row.parents == [provenance.find_recipe(session, PARENT)]
        assert session.scalars(sa.select(sa.func.count()).select_from(Recipe)).one() == 2


def test_two_that_make_the_same_recipe_get_the_same_row(engine: sa.Engine) -> None:
    start = threading.Barrier(2)

    def make(_: int) -> int:
        start.wait()
        with db.transaction(engine) as session:
            return provenance.recipe_id(session, PLAN)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(make, range(2))
    assert one == two


def test_finished_layers(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        layers = factories.layers_of(session, factories.network(session))
        recipe = factories.recipe(session, "match")
        for _ in range(2):
            provenance.finish_layer(session, recipe, layers["head"].id)
        assert provenance.finished_layers(session, recipe) == {layers["head"].id}
        assert provenance.finished_layers(session, recipe + 1) == set()


# ---------------------------------------------------------------------- runs


def only_run(engine: sa.Engine) -> Run:
    with db.reading(engine) as session:
        row = session.scalars(sa.select(Run)).one()
        session.expunge(row)
        return row


def test_a_run_that_ends_well(engine: sa.Engine) -> None:
    with provenance.run(engine, "ingest folder", {"path": os.fspath, "n": 3}) as handle:
        begun = only_run(engine)
        assert (begun.outcome, begun.finished_at) == ("running", None)
        handle.counts["clips"] = 7
    row = only_run(engine)
    assert (row.outcome, row.error, row.counts, row.command) == ("ok", None, {"clips": 7}, "ingest folder")
    assert row.arguments["n"] == 3
    assert row.finished_at is not None and row.finished_at >= row.started_at
    assert row.machine["pid"] == os.getpid()
    assert row.versions["python"] == sys.version.split()[0]
    assert "torch" in row.versions


@pytest.mark.parametrize(
    ("error", "outcome", "noted"),
    [
        (InputError("no such folder"), "failed", "InputError: no such folder"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: "),
        (SystemExit(1), "interrupted", "SystemExit: 1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_does_not(engine: sa.Engine, error: BaseException, outcome: str, noted: str) -> None:
    with pytest.raises(type(error)), provenance.run(engine, "dissect", {}) as handle:
        handle.counts["layers"] = 1
        raise error
    row = only_run(engine)
    assert (row.outcome, row.error, row.counts) == (outcome, noted, {"layers": 1})
    assert row.finished_at is not None


def test_the_error_that_matters_is_the_one_that_ended_it(engine: sa.Engine) -> None:
    """Even if the note of it cannot be written, the database having gone."""
    with pytest.raises(InputError, match="the first"), provenance.run(engine, "dissect", {}):
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE runs RENAME TO gone")
        raise InputError("the first")


def test_a_killed_run_is_marked_by_the_next(engine: sa.Engine, environment: dict[str, str]) -> None:
    code = (
        "import os, signal\n"
        "from and_platform import db\n"
        "from and_platform.services import provenance\n"
        "with provenance.run(db.connect(), 'dissect', {}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert only_run(engine).outcome == "running"
    with provenance.run(engine, "ingest", {}), provenance.run(engine, "search", {}), db.reading(engine) as session:
        outcomes = session.execute(sa.select(Run.command, Run.outcome).order_by(Run.id)).all()
    # Those of this process are left alone: it lives.
    assert [tuple(row) for row in outcomes] == [
        ("dissect", "interrupted"),
        ("ingest", "running"),
        ("search", "running"),
    ]


def test_a_run_of_another_machine_is_left_alone(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        machine = {"host": "elsewhere", "pid": 1, "process_started": 0}
        session.add(Run(command="dissect", arguments={}, versions={}, machine=machine))
    with provenance.run(engine, "ingest", {}):
        pass
    with db.reading(engine) as session:
        assert session.scalars(sa.select(Run.outcome).order_by(Run.id)).all() == ["running", "ok"]


# ---------------------------------------------------------------------- failures


def fail(engine: sa.Engine, unit: str, reason: str, **more: str) -> None:
    with db.transaction(engine) as session:
        provenance.record_failure(session, stage="ingest", scope="dataset:x", unit=unit, reason=reason, **more)  # type: ignore[arg-type]


def listed(engine: sa.Engine) -> list[tuple[str, str, bool]]:
    with db.reading(engine) as session:
        rows = session.scalars(sa.select(Failure).order_by(Failure.id)).all()
        return [(row.unit, row.reason, row.resolved_at is not None) for row in rows]


def resolve(engine: sa.Engine, *units: str, stage: str = "ingest", scope: str = "dataset:x") -> int:
    with db.transaction(engine) as session:
        return provenance.resolve_failures(session, stage=stage, scope=scope, units=units)


def test_a_unit_that_fails_again_is_updated(engine: sa.Engine) -> None:
    fail(engine, "a.wav", "it is empty")
    fail(engine, "b.wav", "it is empty")
    fail(engine, "a.wav", "it is truncated", detail="at 3 s")
    assert listed(engine) == [("a.wav", "it is truncated", False), ("b.wav", "it is empty", False)]


def test_resolved_failures_stay_as_history(engine: sa.Engine) -> None:
    fail(engine, "a.wav", "it is empty")
    assert resolve(engine, "a.wav", "never failed") == 1
    assert resolve(engine, "a.wav") == 0
    fail(engine, "a.wav", "it is empty again")
    assert listed(engine) == [("a.wav", "it is empty", True), ("a.wav", "it is empty again", False)]


def test_only_what_is_named_is_resolved(engine: sa.Engine) -> None:
    fail(engine, "a.wav", "it is empty")
    assert resolve(engine, "a.wav", stage="record") == 0
    assert resolve(engine, "a.wav", scope="dataset:y") == 0
    assert resolve(engine) == 0
    assert listed(engine) == [("a.wav", "it is empty", False)]


def test_any_number_of_units_is_resolved(engine: sa.Engine) -> None:
    """More than a statement has room for as parameters of their own."""
    fail(engine, "69999", "it is empty")
    assert resolve(engine, *map(str, range(70_000))) == 1


def test_reasons_and_units_hold_what_files_and_models_throw_up(engine: sa.Engine) -> None:
    """Postgres takes neither NUL nor half of a surrogate pair, and a file's name may hold the latter."""
    fail(engine, "caf\udce9.wav", "found \0 in it", detail="\ud800")
    fail(engine, "caf\udce9.wav", "found \0 again")
    [(unit, reason, _)] = listed(engine)
    assert unit.startswith("caf") and "\0" not in reason and reason.endswith("again")
    assert resolve(engine, "caf\udce9.wav") == 1
