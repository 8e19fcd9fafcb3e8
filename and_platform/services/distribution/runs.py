"""Runs that workers do: opened here, driven from step to step, cancelled, retried, watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db, logs
from and_platform.errors import ConfigError, ConflictError, NotFoundError
from and_platform.schema import OPEN, Dissection, Failure, Recording, Run, RunStep, WorkUnit
from and_platform.services import datasets, dissect, embed, generate, networks, provenance, record
from and_platform.services.dissect import Options
from and_platform.services.distribution import ledger, settled, steps, stored, workers
from and_platform.services.distribution.ledger import Messenger, NewUnit


def start(engine: sa.Engine, network: str, options: Options) -> tuple[int, bool]:
    """Open a run that workers do, or find the one that does the same already.

    Nothing is loaded or computed here: the first unit, done by a worker, settles the plan.

    Returns
    -------
    int, bool
        Id of the run, and whether it was there already.

    Raises
    ------
    NotFoundError
        No such network or data set.
    ConfigError
        The options hold a secret.
    """
    request = {"network": network, "options": asdict(options)}
    if provenance.canonical(logs.masked(request)) != provenance.canonical(request):
        raise ConfigError(
            "the options hold a key or a password, which a run that workers do would keep in the database; "
            "give it to the workers instead, as ANDP_LLM_API_KEY or ANDP_LLM_PASSWORD"
        )
    with db.transaction(engine) as session:
        networks.find(session, network)
        datasets.find(session, options.dataset)
        sha256 = provenance.sha256_of(request)
        session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('run:' || :sha256))"), {"sha256": sha256})
        there = session.scalars(
            sa.select(Run.id).where(
                Run.distributed, Run.outcome == "running", Run.arguments["sha256"].astext == sha256
            )
        ).first()  # fmt: skip
        if there is not None:
            return there, True
        run_id = provenance.open_run(session, "dissect", {**request, "sha256": sha256}, distributed=True)
        for ordinal, step in enumerate(steps.steps_of(options)):
            session.add(
                RunStep(
                    run_id=run_id, step=step.name, ordinal=ordinal, stage=step.stage, queue=step.queue(options),
                    unit=step.unit,
                )
            )  # fmt: skip
        session.flush()
        _add_plan(session, run_id, None)
        return run_id, False


def absolute(options: Options) -> Options:
    """The same options with paths that hold from any folder: workers are started elsewhere."""
    given: dict[str, Any] = {}
    for name in ("captioner", "llm", "sentence_encoder", "text_encoder", "audio_encoder"):
        spec = getattr(options, name)
        backend, colon, where = (spec or "").partition(":")
        if colon and where and Path(where).expanduser().exists():
            given[name] = f"{backend}:{Path(where).expanduser().resolve()}"
    return replace(options, **given)


def _add_plan(session: Session, run_id: int, replaces: int | None) -> None:
    """The unit that settles the plan; `replaces`: the recording that some clips cannot be part of."""
    key = f"plan:{run_id}:{replaces or ''}"
    ledger.add_units(session, run_id, "plan", "gpu", [NewUnit(key, {"replaces": replaces}, 1)])
    session.execute(
        sa.update(RunStep)
        .where(RunStep.run_id == run_id, RunStep.step == "plan")
        .values(planned_at=sa.func.now(), finished_at=None)
    )


_PATIENCE_S = 10.0
"""A worker has better to do than to wait for others' transactions: what it leaves is for `andp db vacuum`."""

_LOCK = {"key_share": True}
"""Of a run's row: whoever changes it waits, and rows that point to it may come meanwhile."""


# ---------------------------------------------------------------------- from step to step


def advance(engine: sa.Engine, run_id: int, messenger: Messenger, *, window: int) -> None:
    """See what a run needs next: steps that are over, units of those that can begin, the end. Safe to do at any time."""
    dropped: list[int] = []
    with db.transaction(engine) as session:
        run = session.get(Run, run_id, with_for_update=_LOCK)
        if run is None or run.outcome != "running":
            return
        rows = session.scalars(sa.select(RunStep).where(RunStep.run_id == run_id).order_by(RunStep.ordinal)).all()
        changed, seen = _proceed(session, engine, run, rows)
        while changed:
            changed, seen = _proceed(session, engine, run, rows)
        # What the last pass saw open, and not what is open by now: a unit that has ended since sends an advance of its own.
        if not seen:
            dropped = _close(session, engine, run, rows)
    ledger.top_up(engine, run_id, messenger, window=window)
    for recording_id in dropped:
        record.free_partitions(engine, recording_id, patience=_PATIENCE_S)


def break_off(engine: sa.Engine, run_id: int, reason: str) -> None:
    """End a run of which it cannot be told what it needs next. What is there stays, and it can be retried."""
    with db.transaction(engine) as session:
        run = session.get(Run, run_id, with_for_update=_LOCK)
        if run is not None and run.outcome == "running":
            _stop(session, run, "failed", f"{reason}; when that is put right: andp runs retry {run_id}")


def _stop(session: Session, run: Run, outcome: str, error: str | None) -> int:
    """End a run before all is done; returns how many units were not begun."""
    run.outcome, run.error, run.finished_at = outcome, error, sa.func.now()
    cancelled = session.execute(
        sa.text(
            "UPDATE work_units SET state = 'cancelled', finished_at = now() WHERE id IN (SELECT id FROM work_units"
            " WHERE run_id = :run AND state IN ('waiting', 'sent') ORDER BY id FOR UPDATE) RETURNING id"
        ),
        {"run": run.id},
    ).all()
    return len(cancelled)


def _proceed(session: Session, engine: sa.Engine, run: Run, rows: Sequence[RunStep]) -> tuple[bool, set[str]]:
    """One pass over the steps: whether another one may find more, and the steps that it saw open."""
    session.flush()
    there = {row.step for row in rows}
    over = {row.step for row in rows if row.finished_at is not None}
    blocked = _failed_steps(session, run.id)
    open_ = _open_steps(session, run.id)
    seen = set(open_)
    changed = False
    known: settled.Settled | None = None
    for row in rows:
        if row.finished_at is not None:
            continue
        before = ({"plan", *steps.BY_NAME[row.step].after} & there) - {row.step}
        if not before <= over or before & blocked:
            continue
        if row.planned_at is None:
            known = known or settled.load(engine, session, run)
            _begin_dissection(session, run, known, over | ({"record"} - there))
            units = steps.missing(session, engine, row.step, known)
            ledger.add_units(session, run.id, row.step, row.queue, units)
            # Stretches are folded as they fill up: the step is planned when there is nothing left to fill them.
            if row.step != "fold" or "record" in over:
                row.planned_at = sa.func.now()
                changed = True
            session.flush()
            open_ = _open_steps(session, run.id)
            seen |= open_
        if row.planned_at is not None and row.step not in open_:
            row.finished_at = sa.func.now()
            if row.step == "exemplars":
                known = known or settled.load(engine, session, run)
                record.analyze(engine, known.recording_id)
            changed = True
    return changed, seen


def _begin_dissection(session: Session, run: Run, known: settled.Settled, over: set[str]) -> None:
    """The dissection's row is made when it is settled which clips are in."""
    if run.dissection_id is None and "record" in over:
        run.dissection_id = dissect.ensure_dissection(session, known.plan, known.options, known.recording_id)


def _open_steps(session: Session, run_id: int) -> set[str]:
    return set(
        session.scalars(sa.select(WorkUnit.step).distinct().where(WorkUnit.run_id == run_id, WorkUnit.state.in_(OPEN)))
    )


def _failed_steps(session: Session, run_id: int) -> set[str]:
    """Steps that the later ones cannot do without: with a failed unit, or, where gaps are allowed, with nothing else."""
    found = session.execute(
        sa.select(WorkUnit.step, sa.func.bool_or(WorkUnit.state == "done").label("some"))
        .where(WorkUnit.run_id == run_id)
        .group_by(WorkUnit.step)
        .having(sa.func.bool_or(WorkUnit.state == "failed"))
    )
    return {
        row.step
        for row in found
        if not (steps.BY_NAME[row.step].soft and (row.some or _had_some(session, run_id, row.step)))
    }


def _had_some(session: Session, run_id: int, step: str) -> bool:
    """Whether captions are there from before: a clip that gets none again is a gap, and no reason to end."""
    plan = session.get_one(Run, run_id).plan
    return (
        step == "caption"
        and plan is not None
        and bool(
            session.scalar(
                sa.text(
                    "SELECT EXISTS (SELECT FROM captions c JOIN probing_set_clips m ON m.clip_id = c.clip_id"
                    " WHERE c.recipe_id = :recipe AND m.probing_set_id = :probing)"
                ),
                {"recipe": plan["recipes"]["caption"], "probing": plan["probing_set"]},
            )
        )
    )


def _close(session: Session, engine: sa.Engine, run: Run, rows: Sequence[RunStep]) -> list[int]:
    """The end of a run: nothing is open any more, and nothing more can begin. Returns recordings dropped with it."""
    blocked, dropped = _failed_steps(session, run.id), list[int]()
    whole = all(row.finished_at is not None for row in rows) and not blocked
    counts = _counts(session, run, rows)
    if run.plan is not None:
        known = settled.load(engine, session, run)
        _begin_dissection(session, run, known, {row.step for row in rows} | {"record"} if whole else set())
        if whole and run.dissection_id is not None:
            wanted = known.options.stages or dissect.STAGES
            counts["open_failures"] = dissect.complete_in(session, known.plan, run.dissection_id, wanted)
        dropped = _drop_abandoned(session, run)
        llm = settled.llm_of(engine, known.plan.recipes().values())
        encoded = dissect.encoded_texts(session, known.plan, stored.StoredEncoder(session, known.sentence_encoder))
        cut = [embed.count_cut(session, encoder, texts, what) for what, encoder, texts in encoded]
        usage = None if llm is None else generate.usage(engine, llm)
        counts |= dissect.remarks(dissect.captioned_clips(session, known.plan), cut, usage)
    run.outcome = "ok" if whole else "failed"
    run.counts = counts
    run.finished_at = sa.func.now()
    run.error = None if whole else _why(session, run.id, blocked)
    return dropped


def _why(session: Session, run_id: int, blocked: set[str]) -> str:
    """Why a run cannot go on, in one line."""
    found = session.execute(
        sa.text(
            "SELECT step, count(*) AS units, min(reason) AS reason FROM work_units"
            " WHERE run_id = :run AND state = 'failed' AND step = ANY (:steps) GROUP BY step ORDER BY min(id)"
        ),
        {"run": run_id, "steps": sorted(blocked)},
    ).all()
    units, first = sum(row.units for row in found), found[0]
    told = (
        f"{first.step}: {first.reason}" if units == 1 else f"{units:,} units failed, e.g. {first.step}: {first.reason}"
    )
    return f"{told}; see: andp runs show {run_id}; when the reason is put right: andp runs retry {run_id}"


def _drop_abandoned(session: Session, run: Run) -> list[int]:
    """Recordings that were given up for one on fewer clips go, but for those that another run is still at."""
    assert run.plan is not None
    at_work = set(
        session.scalars(
            sa.text(
                "SELECT CAST(plan ->> 'recording' AS bigint) FROM runs"
                " WHERE distributed AND plan IS NOT NULL AND (outcome = 'running' OR id = :run)"
            ),
            {"run": run.id},
        )
    )
    given_up = sorted({*run.plan.get("abandoned", [])} - at_work)
    return [recording_id for recording_id in given_up if record.drop_abandoned(session, recording_id)]


def _counts(session: Session, run: Run, rows: Sequence[RunStep]) -> dict[str, Any]:
    """What was done, by stage, as other runs tell it; seconds are those of all workers."""
    does = dissect.doers(run.arguments["network"], settled.options_of(run))
    stage_of = {row.step: row.stage for row in rows}
    sizes = session.execute(
        sa.text(
            "SELECT step, sum(size)::bigint AS size, sum(seconds) AS seconds FROM work_units"
            " WHERE run_id = :run AND state = 'done' GROUP BY step"
        ),
        {"run": run.id},
    ).all()
    counts: dict[str, Any] = {}
    for row in sizes:
        stage = stage_of[row.step]
        if stage not in does:
            continue
        told = counts.setdefault(stage, {"computed": 0, "units": 0, "seconds": 0.0, "by": does[stage]})
        told["seconds"] = round(told["seconds"] + (row.seconds or 0), 3)
        if row.step == stage or row.step in ("terms", "pick_concepts", "vectors"):
            told["computed"] = told["units"] = int(row.size)
    return counts


def again(engine: sa.Engine, run_id: int, recording_id: int) -> None:
    """Settle the plan anew, since clips of a recording cannot be read; the rows that were made until then stay."""
    with db.transaction(engine) as session:
        run = session.get(Run, run_id, with_for_update=_LOCK)
        if run is None or run.outcome != "running" or run.plan is None or run.plan["recording"] != recording_id:
            return  # another unit that met the same clip was first
        of_run = sa.select(WorkUnit.id).where(WorkUnit.run_id == run_id, WorkUnit.step != "plan")
        gone = session.scalars(of_run.order_by(WorkUnit.id).with_for_update()).all()  # in the order of `finish`
        session.execute(sa.delete(WorkUnit).where(WorkUnit.id == sa.any_(sa.cast(list(gone), sa.ARRAY(sa.BigInteger)))))
        session.execute(
            sa.update(RunStep)
            .where(RunStep.run_id == run_id, RunStep.step != "plan")
            .values(planned_at=None, finished_at=None)
        )
        run.plan = {**run.plan, "abandoned": sorted({*run.plan.get("abandoned", []), recording_id})}
        _add_plan(session, run_id, recording_id)


# ---------------------------------------------------------------------- what users do with runs


def _distributed(session: Session, run_id: int) -> Run:
    run = session.get(Run, run_id, with_for_update=_LOCK)
    if run is None:
        raise NotFoundError(f"no run {run_id}; see: andp runs list")
    if not run.distributed:
        raise ConflictError(
            f"run {run_id} is done by the process that began it, not by workers; stop that process, or run its command again"
        )
    return run


def cancel(engine: sa.Engine, run_id: int) -> int:
    """Do no more of a run; returns how many units were still to be done. What is there stays.

    Units that a worker is at are finished.

    Raises
    ------
    NotFoundError, ConflictError
        There is no such run, workers do not do it, or it is over.
    """
    with db.transaction(engine) as session:
        run = _distributed(session, run_id)
        if run.outcome != "running":
            raise ConflictError(f"run {run_id} is over already: {run.outcome}")
        return _stop(session, run, "cancelled", None)


def retry(engine: sa.Engine, run_id: int, messenger: Messenger, *, window: int) -> int:
    """Take a run up again: units that failed or were cancelled are tried anew; returns how many.

    Each step is looked at again, too: a clip without a caption, a prompt without an answer is missing again.

    Raises
    ------
    NotFoundError, ConflictError
        There is no such run, workers do not do it, it is still going, or another one does the same.
    """
    with db.transaction(engine) as session:
        run = _distributed(session, run_id)
        if run.outcome == "running" and not session.scalar(
            sa.select(sa.exists().where(WorkUnit.run_id == run_id, WorkUnit.state == "failed"))
        ):
            raise ConflictError(
                f"run {run_id} is still going, and nothing of it has failed; see: andp runs watch {run_id}"
            )
        twin = session.scalars(
            sa.select(Run.id).where(
                Run.distributed, Run.outcome == "running", Run.id != run_id,
                Run.arguments["sha256"].astext == run.arguments["sha256"],
            )
        ).first()  # fmt: skip
        if twin is not None:
            raise ConflictError(f"run {twin} does the same already; see: andp runs watch {twin}")
        still = _open_steps(session, run_id)
        if run.plan is not None and session.get(Recording, run.plan["recording"]) is None:
            session.execute(sa.delete(WorkUnit).where(WorkUnit.run_id == run_id, WorkUnit.step != "plan"))
            run.plan, still = None, set()
            _add_plan(session, run_id, None)
        back = session.execute(
            sa.text(
                # Of steps that are planned anew they come back where they are missing still, and when it is their turn.
                "UPDATE work_units SET state = CASE WHEN step = ANY (:going) THEN 'waiting' ELSE 'cancelled' END,"
                " attempts = 0, not_before = NULL, reason = NULL, traceback = NULL, counts = '{}',"
                " finished_at = NULL, doing = NULL WHERE id IN (SELECT id FROM work_units WHERE run_id = :run AND (state ="
                " 'failed' OR (state = 'cancelled' AND reason IS DISTINCT FROM 'split')) ORDER BY id FOR UPDATE) RETURNING id"
            ),
            {"run": run_id, "going": ["plan", *sorted(still)]},
        ).all()
        # What is under way goes on as it was cut.
        planned = sa.case((RunStep.step.in_({"plan", *still}), RunStep.planned_at), else_=None)
        session.execute(sa.update(RunStep).where(RunStep.run_id == run_id).values(planned_at=planned, finished_at=None))
        session.execute(
            sa.update(Failure)
            .where(Failure.scope == f"run:{run_id}", Failure.resolved_at.is_(None))
            .values(resolved_at=sa.func.now())
        )
        run.outcome, run.error, run.finished_at = "running", None, None
    ledger.top_up(engine, run_id, messenger, window=window)
    messenger.advance(run_id)  # to a worker: what is missing may be told by files that this machine has not
    return len(back)


def progress(session: Session, run_id: int) -> list[dict[str, Any]]:
    """One row per step of a distributed run: counts, rate (units of size a second), seconds left where that can be told."""
    rows = session.execute(
        sa.text("SELECT * FROM run_progress WHERE run_id = :run ORDER BY ordinal"), {"run": run_id}
    ).mappings()
    found = []
    for row in rows:
        left = None
        if row["state"] == "open" and row["rate"] and row["planned_at"] is not None:
            left = row["size_left"] / row["rate"]
        found.append({**row, "seconds_left": left})
    return found


def reasons(session: Session, run_id: int) -> list[dict[str, Any]]:
    """Why units of a run failed or wait, grouped: step, reason, how many, one of them, the latest."""
    rows = session.execute(
        sa.text(
            "SELECT step, state, reason, count(*) AS units, min(id) AS example, max(attempts) AS attempts FROM work_units"
            " WHERE run_id = :run AND reason IS NOT NULL AND state IN ('failed', 'waiting', 'sent', 'running')"
            " GROUP BY step, state, reason ORDER BY units DESC, step LIMIT 50"
        ),
        {"run": run_id},
    ).mappings()
    return [dict(row) for row in rows]


def units(session: Session, run_id: int, state: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """Units of a run, with what their last try came to."""
    rows = session.execute(
        sa.text(
            "SELECT u.id, u.step, u.queue, u.state, u.size, u.attempts, u.doing, u.seconds, w.name AS worker, u.reason,"
            " u.traceback, u.payload FROM work_units u LEFT JOIN workers w ON w.id = u.worker_id WHERE u.run_id = :run"
            " AND (CAST(:state AS text) IS NULL OR u.state = :state) ORDER BY u.id LIMIT :limit"
        ),
        {"run": run_id, "state": state, "limit": limit},
    ).mappings()
    return [dict(row) for row in rows]


def idle_queues(engine: sa.Engine, run_id: int) -> list[str]:
    """Queues in which units of a run wait, or the message to go on with it, and to which no live worker listens."""
    heard = {queue for worker in workers.alive(engine) for queue in _texts(worker["queues"])}
    with db.reading(engine) as session:
        open_ = session.execute(
            sa.text(
                "SELECT DISTINCT queue, state <> 'running' AS waits FROM work_units WHERE run_id = :run"
                " AND state IN ('waiting', 'sent', 'running') ORDER BY 1"
            ),
            {"run": run_id},
        ).all()
    wanted = dict.fromkeys(row.queue for row in open_ if row.waits) if open_ else ["db"]
    return [queue for queue in wanted if queue not in heard]


def _texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return value


def outcome(session: Session, run_id: int) -> dict[str, Any]:
    """How a run stands: outcome, error, dissection_id, distributed.

    Raises
    ------
    NotFoundError
        No such run.
    """
    row = (
        session.execute(
            sa.select(
                Run.outcome, Run.error, Run.dissection_id, Run.distributed, Run.arguments, Run.counts, Dissection.status
            )
            .outerjoin(Dissection, Dissection.id == Run.dissection_id)
            .where(Run.id == run_id)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise NotFoundError(f"no run {run_id}; see: andp runs list")
    return dict(row)
