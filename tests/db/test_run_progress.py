"""The view of what workers do: counts, sizes, rates and time left of each step."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.schema import Run, RunStep
from and_platform.services.distribution import runs

UNITS = """
INSERT INTO work_units (run_id, step, queue, key, payload, size, state, attempts, started_at, finished_at, seconds, reason)
VALUES
    (:run, 'caption', 'gpu', 'a', '{}', 32, 'done', 1, '2026-01-01 00:00:00Z', '2026-01-01 00:00:04Z', 4, NULL),
    (:run, 'caption', 'gpu', 'b', '{}', 32, 'done', 3, '2026-01-01 00:00:02Z', '2026-01-01 00:00:08Z', 6, NULL),
    (:run, 'caption', 'gpu', 'c', '{}', 32, 'running', 1, '2026-01-01 00:00:08Z', NULL, NULL, NULL),
    (:run, 'caption', 'gpu', 'd', '{}', 16, 'waiting', 1, NULL, NULL, NULL, 'out of memory'),
    (:run, 'caption', 'gpu', 'e', '{}', 16, 'failed', 3, NULL, NULL, 2, 'out of memory')
"""


@pytest.fixture
def run_id(engine: sa.Engine) -> int:
    """A run with a step that is over, one that is open, and one that waits."""
    with db.transaction(engine) as session:
        run = Run(command="dissect", arguments={}, versions={}, machine={}, distributed=True)
        session.add(run)
        session.flush()
        for ordinal, step in enumerate(("plan", "caption", "score")):
            session.add(RunStep(run_id=run.id, step=step, ordinal=ordinal, stage="match", queue="gpu", unit="clips"))
        session.flush()
        session.execute(sa.text("UPDATE run_steps SET planned_at = now() WHERE step <> 'score'"))
        session.execute(sa.text("UPDATE run_steps SET finished_at = now() WHERE step = 'plan'"))
        session.execute(sa.text(UNITS), {"run": run.id})
        return run.id


def test_each_step_has_its_counts_and_the_time_left(engine: sa.Engine, run_id: int) -> None:
    with db.reading(engine) as session:
        plan, caption, score = runs.progress(session, run_id)
    assert (plan["state"], plan["units"], plan["seconds_left"]) == ("done", 0, None)
    assert (score["state"], score["units"], score["rate"]) == ("waiting", 0, None)
    told = {name: caption[name] for name in ("state", "units", "done", "running", "failed", "cancelled", "retries")}
    assert told == {
        "state": "open", "units": 5, "done": 2, "running": 1, "failed": 1, "cancelled": 0, "retries": 4,
    }  # fmt: skip
    assert (caption["size"], caption["size_done"], caption["seconds"], caption["longest_s"]) == (128, 64, 12, 6)
    assert caption["rate"] == 8  # 64 clips from the first beginning to the latest end, 8 s
    assert (caption["size_left"], caption["seconds_left"]) == (48, 6)  # what has failed is not to come


def test_reasons_are_grouped(engine: sa.Engine, run_id: int) -> None:
    with db.reading(engine) as session:
        found = runs.reasons(session, run_id)
    assert [(row["step"], row["state"], row["reason"], row["units"], row["attempts"]) for row in found] == [
        ("caption", "failed", "out of memory", 1, 3),
        ("caption", "waiting", "out of memory", 1, 1),
    ]
