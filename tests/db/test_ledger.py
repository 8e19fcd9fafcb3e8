"""The ledger of units: whatever becomes of messages and workers, each unit is done once and none is lost."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from and_platform import api, db
from and_platform.config import Settings, settings
from and_platform.errors import DatabaseError
from and_platform.schema import RunStep
from and_platform.services import activations, provenance
from and_platform.services.distribution import handling, ledger, runs, work, workers
from and_platform.services.distribution.ledger import Me, NewUnit, Unit
from tests import tiny
from tests.conftest import _cloned
from tests.distributed import Message, Post, Workshop, assert_same, content

MOST = 3
_numbers = itertools.count()


def open_run(engine: sa.Engine, n_units: int = 4, queue: str = "gpu", prefix: str | None = None) -> int:
    """A run of one step with some units; their keys begin with `prefix`, which no other run has unless told so."""
    prefix = f"work {next(_numbers)}" if prefix is None else prefix
    with db.transaction(engine) as session:
        run_id = provenance.open_run(session, "dissect", {"sha256": prefix}, distributed=True)
        session.add(
            RunStep(
                run_id=run_id, step="caption", ordinal=1, stage="caption", queue=queue, unit="clips",
                planned_at=sa.func.now(),
            )
        )  # fmt: skip
        session.flush()
        ledger.add_units(session, run_id, "caption", queue, [NewUnit(f"{prefix}:{i}", {}, 1) for i in range(n_units)])
    return run_id


def me(engine: sa.Engine) -> Me:
    return Me(workers.enlist(engine, "test@here", ["gpu"], 1, "cpu"), set())


def units(engine: sa.Engine, run_id: int) -> list[Any]:
    with db.reading(engine) as session:
        return list(
            session.execute(sa.text("SELECT * FROM work_units WHERE run_id = :run ORDER BY id"), {"run": run_id})
        )


def change(engine: sa.Engine, statement: str, **params: Any) -> None:
    with db.transaction(engine) as session:
        session.execute(sa.text(statement), params)


def gone() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---------------------------------------------------------------------- claims


def test_a_unit_is_one_worker_s_as_long_as_it_lives(engine: sa.Engine) -> None:
    run_id, mine, other = open_run(engine, 1), me(engine), me(engine)
    (row,) = units(engine, run_id)
    claim = ledger.claim(engine, row.id, mine, MOST)
    assert claim.verdict == "todo" and claim.unit is not None and claim.unit.attempts == 1
    # At work in this process, in another one of this machine, on another machine: somebody is at it.
    mine.in_work.add(row.id)
    assert ledger.claim(engine, row.id, mine, MOST).verdict == "elsewhere"
    change(engine, "UPDATE work_units SET pid = :pid", pid=os.getppid())
    assert ledger.claim(engine, row.id, other, MOST).verdict == "elsewhere"
    change(engine, "UPDATE workers SET host = 'far away' WHERE id = :id", id=mine.worker_id)
    assert ledger.claim(engine, row.id, other, MOST).verdict == "elsewhere"
    # Not heard of for as long as counts: it is dead, and this is the second try.
    change(engine, "UPDATE workers SET seen_at = now() - interval '31 s' WHERE id = :id", id=mine.worker_id)
    again = ledger.claim(engine, row.id, other, MOST)
    assert again.verdict == "todo" and again.unit is not None and again.unit.attempts == 2
    # A child that is gone leaves a worker that still beats.
    change(engine, "UPDATE work_units SET pid = :pid", pid=gone())
    assert ledger.claim(engine, row.id, other, MOST).verdict == "todo"
    # A worker that stopped is no worker. That was the last try there is.
    change(engine, "UPDATE work_units SET pid = :pid", pid=os.getppid())
    change(engine, "UPDATE workers SET stopped_at = now() WHERE id = :id", id=other.worker_id)
    assert ledger.claim(engine, row.id, mine, MOST).verdict == "spent"
    assert ledger.claim(engine, row.id, mine, MOST + 1).verdict == "todo"
    assert ledger.claim(engine, 10**9, mine, MOST).verdict == "elsewhere"


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
def test_what_is_over_is_not_done_again(engine: sa.Engine, state: str) -> None:
    run_id = open_run(engine, 1)
    change(engine, "UPDATE work_units SET state = :state", state=state)
    assert ledger.claim(engine, units(engine, run_id)[0].id, me(engine), MOST).verdict == "over"
    assert units(engine, run_id)[0].state == state and units(engine, run_id)[0].attempts == 0


def test_units_of_a_run_that_is_over_are_cancelled_when_they_come(engine: sa.Engine) -> None:
    run_id = open_run(engine, 1)
    change(engine, "UPDATE runs SET outcome = 'cancelled'")
    assert ledger.claim(engine, units(engine, run_id)[0].id, me(engine), MOST).verdict == "over"
    assert units(engine, run_id)[0].state == "cancelled"


def _claims(url: str, unit_ids: list[int], begin: Any, end: Any, told: Any) -> None:
    """Another process that takes what it can get."""
    from sqlalchemy.engine import make_url

    engine = db.make_engine(make_url(url), Settings())
    self = me(engine)
    begin.wait()
    for unit_id in unit_ids:
        verdict = ledger.claim(engine, unit_id, self, MOST).verdict
        if verdict == "todo":
            self.in_work.add(unit_id)
            told.put(unit_id)
    end.wait()  # a process that ends is dead, and its units free
    engine.dispose()


def test_two_processes_at_once(engine: sa.Engine, database_url: URL) -> None:
    """Each unit is one's; and of the same work of two runs one unit waits for the other."""
    one, twin = open_run(engine, 20, prefix="shared"), open_run(engine, 20, prefix="shared")
    context = multiprocessing.get_context("spawn")
    begin, end, told = context.Barrier(3), context.Barrier(3), context.Queue()
    url = database_url.render_as_string(hide_password=False)
    ids = {run_id: [row.id for row in units(engine, run_id)] for run_id in (one, twin)}
    started = [
        context.Process(target=_claims, args=(url, [*ids[one], *ids[twin]], begin, end, told)),
        context.Process(target=_claims, args=(url, [*ids[twin], *ids[one]], begin, end, told)),
    ]
    for process in started:
        process.start()
    begin.wait(60)
    taken = [told.get(timeout=60) for _ in range(20)]
    end.wait(60)
    for process in started:
        process.join(60)
    assert told.empty() and len(set(taken)) == 20
    rows = units(engine, one) + units(engine, twin)
    assert Counter(row.state for row in rows) == {"running": 20, "waiting": 20}
    assert len({row.key for row in rows if row.state == "running"}) == 20
    # When one of them is done, so is the other, and both runs are told.
    row = next(row for row in rows if row.state == "running")
    mine = Unit(row.id, row.run_id, row.step, row.queue, row.key, row.payload, row.size, 1)
    assert ledger.finish(engine, mine, 0.5, {"clips": 1}) == [(one, "caption"), (twin, "caption")]
    both = [row for row in units(engine, one) + units(engine, twin) if row.key == mine.key]
    assert [row.state for row in both] == ["done", "done"] and sorted(row.seconds or 0 for row in both) == [0, 0.5]


# ---------------------------------------------------------------------- queues


def test_queues_stay_short(engine: sa.Engine) -> None:
    """However many fill them at once: no more messages than the window."""
    run_id, post = open_run(engine, 60), Post()
    barrier = threading.Barrier(6)

    def fill() -> None:
        barrier.wait()
        for _ in range(3):
            ledger.top_up(engine, run_id, post, window=7)

    threads = [threading.Thread(target=fill) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(post.messages) == len(set(post.messages)) == 7
    assert Counter(row.state for row in units(engine, run_id)) == {"sent": 7, "waiting": 53}
    self = me(engine)
    for message in post.messages[:3]:
        assert ledger.claim(engine, message.id, self, MOST).verdict == "todo"
    assert ledger.top_up(engine, run_id, post, window=7, queue="gpu") == 3
    assert ledger.top_up(engine, run_id, post, window=7, queue="cpu") == 0
    change(engine, "UPDATE runs SET outcome = 'failed'")
    assert ledger.top_up(engine, run_id, post, window=100) == 0


def test_a_try_that_failed_waits_and_counts_and_one_that_was_refused_does_not(engine: sa.Engine) -> None:
    run_id, post, self = open_run(engine, 2), Post(), me(engine)
    failed, refused = (ledger.claim(engine, row.id, self, MOST).unit for row in units(engine, run_id))
    assert failed and refused
    ledger.release(engine, failed, "it fell over", "Traceback …", 60)
    ledger.put_back(engine, refused, "no package 'torch'", 60)
    one, other = units(engine, run_id)
    assert (one.state, one.attempts, one.reason, one.traceback) == ("waiting", 1, "it fell over", "Traceback …")
    assert (other.state, other.attempts, other.reason) == ("waiting", 0, "no package 'torch'")
    assert ledger.top_up(engine, run_id, post, window=10) == 0
    change(engine, "UPDATE work_units SET not_before = now()")
    assert ledger.top_up(engine, run_id, post, window=10) == 2
    with db.reading(engine) as session:
        told = runs.reasons(session, run_id)
    assert {row["reason"]: row["attempts"] for row in told} == {"it fell over": 1, "no package 'torch'": 0}


def test_units_asked_for_again(engine: sa.Engine) -> None:
    """What was done or cancelled and is missing again is to be done; what is open or failed stays as it is."""
    run_id = open_run(engine, 5, prefix="again")
    states = ["done", "failed", "cancelled", "running", "sent"]
    for row, state in zip(units(engine, run_id), states, strict=True):
        change(engine, "UPDATE work_units SET state = :state, attempts = 2 WHERE id = :id", state=state, id=row.id)
    with db.transaction(engine) as session:
        asked = [NewUnit(f"again:{i}", {}, 1) for i in (0, 1, 2, 3, 4, 5, 5)]
        assert ledger.add_units(session, run_id, "caption", "gpu", asked) == 3
    found = [(row.state, row.attempts) for row in units(engine, run_id)]
    assert found == [("waiting", 0), ("failed", 2), ("waiting", 0), ("running", 2), ("sent", 2), ("waiting", 0)]


# ---------------------------------------------------------------------- what was lost


def sweep(engine: sa.Engine, post: Post) -> ledger.Swept:
    swept = ledger.sweep(engine, post, post.depths, window=10)
    assert swept is not None
    return swept


def test_units_of_a_silent_worker_are_done_by_others(engine: sa.Engine) -> None:
    run_id, post, silent, mine = open_run(engine, 3), Post(), me(engine), me(engine)
    rows = units(engine, run_id)
    for row, worker in zip(rows, (silent, mine, silent), strict=True):
        assert ledger.claim(engine, row.id, worker, MOST).verdict == "todo"
    assert sweep(engine, post) == (0, 0, 0, 0)
    change(engine, "UPDATE workers SET seen_at = now() - interval '29 s' WHERE id = :id", id=silent.worker_id)
    assert sweep(engine, post).abandoned == 0
    change(engine, "UPDATE workers SET seen_at = now() - interval '31 s' WHERE id = :id", id=silent.worker_id)
    assert sweep(engine, post) == (2, 0, 2, 0)
    assert [message.id for message in post.messages] == [rows[0].id, rows[2].id]
    assert "died" in units(engine, run_id)[0].reason
    # It was only slow, and does them after all: they are done, and what others do of them changes nothing.
    for row in (rows[0], rows[2]):
        late = Unit(row.id, row.run_id, row.step, row.queue, row.key, row.payload, row.size, 1)
        assert ledger.finish(engine, late, 1.0, {}) == [(run_id, "caption")]
        assert ledger.claim(engine, row.id, mine, MOST).verdict == "over"


def test_messages_that_the_broker_lost_are_sent_again(engine: sa.Engine) -> None:
    run_id, post = open_run(engine, 3), Post()
    ledger.top_up(engine, run_id, post, window=10)
    lost = list(post.messages)
    change(engine, "UPDATE work_units SET sent_at = now() - interval '21 s'")
    assert sweep(engine, post) == (0, 0, 0, 0)  # as far as is known they wait in the queue
    post.messages.clear()
    assert sweep(engine, post) == (0, 3, 3, 0)
    assert post.messages == lost
    post.messages.clear()
    assert sweep(engine, post) == (0, 0, 0, 0)  # they have just been sent


def test_one_sweeps_at_a_time(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('and_platform:sweep'))"))
        assert ledger.sweep(engine, Post(), dict, window=1) is None
    assert ledger.sweep(engine, Post(), dict, window=1) is not None


@pytest.mark.parametrize("others", [0, 1])
def test_a_run_that_waits_for_a_message_to_go_on(engine: sa.Engine, others: int) -> None:
    """Also where another step of it is still at work."""
    run_id, post, self = open_run(engine, 1), Post(), me(engine)
    if others:
        with db.transaction(engine) as session:
            session.add(
                RunStep(
                    run_id=run_id, step="record", ordinal=0, stage="record", queue="gpu", unit="clips",
                    planned_at=sa.func.now(),
                )
            )  # fmt: skip
            session.flush()
            ledger.add_units(session, run_id, "record", "gpu", [NewUnit("long", {}, 1)])
        assert ledger.claim(engine, units(engine, run_id)[-1].id, self, MOST).verdict == "todo"
    claim = ledger.claim(engine, units(engine, run_id)[0].id, self, MOST)
    assert claim.unit is not None
    ledger.finish(engine, claim.unit, 1.0, {})
    assert sweep(engine, post).nudged == 0
    change(engine, "UPDATE work_units SET finished_at = finished_at - interval '21 s'")
    assert sweep(engine, post).nudged == 0 or not others  # the step has only just been planned
    change(engine, "UPDATE run_steps SET planned_at = planned_at - interval '21 s'")
    post.messages.clear()
    assert sweep(engine, post).nudged == 1 and post.messages == [("advance", "db", run_id)]


def test_units_of_a_child_that_is_gone(engine: sa.Engine) -> None:
    run_id, self = open_run(engine, 3), me(engine)
    for row in units(engine, run_id):
        ledger.claim(engine, row.id, self, MOST)
    rows = units(engine, run_id)
    change(engine, "UPDATE work_units SET pid = :pid WHERE id <> :id", pid=gone(), id=rows[0].id)
    assert ledger.children_lost(engine, self.worker_id) == 0  # their messages may come back by themselves
    change(engine, "UPDATE work_units SET started_at = now() - interval '21 s' WHERE id <> :id", id=rows[2].id)
    assert ledger.children_lost(engine, self.worker_id) == 1
    assert [row.state for row in units(engine, run_id)] == ["running", "waiting", "running"]
    assert ledger.children_lost(engine, me(engine).worker_id) == 0


def test_a_worker_that_comes_and_goes(engine: sa.Engine) -> None:
    self = me(engine)
    assert [row["worker"] for row in workers.alive(engine)] == [self.worker_id]
    workers.discharge(engine, self.worker_id)
    assert not workers.alive(engine)
    workers.beat(engine, self.worker_id)
    assert workers.alive(engine)
    change(engine, "UPDATE workers SET seen_at = now() - interval '31 s'")
    assert not workers.alive(engine)
    assert runs.idle_queues(engine, open_run(engine)) == ["gpu"]
    workers.beat(engine, self.worker_id)
    assert runs.idle_queues(engine, open_run(engine)) == []
    assert runs.idle_queues(engine, open_run(engine, 0)) == ["db"]  # what it waits for is to be told what is next


# ---------------------------------------------------------------------- anything at all


@pytest.fixture(scope="module")
def busy(server_url: URL) -> Iterator[sa.Engine]:
    with _cloned(server_url) as url:
        engine = db.make_engine(url, Settings())
        yield engine
        engine.dispose()


EVENTS = st.lists(st.sampled_from(["deliver", "deliver", "twice", "lose", "die", "sweep", "top up"]), max_size=40)


@hypothesis(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, seed=st.integers(0, 2**16), window=st.integers(1, 4), n_runs=st.integers(1, 2))
def test_whatever_happens_each_unit_is_done_once(
    busy: sa.Engine, events: list[str], seed: int, window: int, n_runs: int
) -> None:
    """Messages in any order, twice, lost; workers that die at work; and in the end all is done, and shared work once."""
    rng, shop = random.Random(seed), Workshop(busy)
    prefix = f"shared {next(_numbers)}"
    started = [open_run(busy, 5, prefix=prefix) for _ in range(n_runs)]
    dead, done = gone(), Counter[str]()

    def deliver(message: Any, *, dies: bool = False) -> None:
        if message.what == "advance":
            return  # here only units count
        claim = ledger.claim(busy, message.id, shop.station.me, most_attempts=1000)
        if claim.verdict == "todo" and claim.unit is not None:
            if dies:
                change(busy, "UPDATE work_units SET pid = :pid WHERE id = :id", pid=dead, id=message.id)
                return
            done[claim.unit.key] += 1
            ended = ledger.finish(busy, claim.unit, 0.1, {})
            ledger.follow(busy, ended, shop.post, window)
        elif claim.verdict == "over" and claim.unit is not None:
            ledger.follow(busy, [(claim.unit.run_id, claim.unit.step)], shop.post, window)

    def happens(event: str) -> None:
        if event == "sweep":
            shop.later()
            ledger.children_lost(busy, shop.worker_id)
            ledger.sweep(busy, shop.post, shop.post.depths, window=window)
        elif event == "top up":
            for run_id in started:
                ledger.top_up(busy, run_id, shop.post, window=window)
        elif shop.post.messages:
            message = shop.next(rng)
            if event != "lose":
                deliver(message, dies=event == "die")
            if event == "twice":
                shop.post.messages.append(message)

    for event in events:
        happens(event)
        for run_id in started:
            assert sum(row.state == "sent" for row in units(busy, run_id)) <= window
    for _ in range(200):
        rows = [row for run_id in started for row in units(busy, run_id)]
        if all(row.state == "done" for row in rows):
            break
        happens("deliver" if shop.post.messages else "sweep")
    assert {row.state for row in rows} == {"done"}
    assert done == {f"{prefix}:{i}": 1 for i in range(5)}
    change(busy, "UPDATE runs SET outcome = 'ok' WHERE id = ANY (:ids)", ids=started)


# ---------------------------------------------------------------------- units that kill their workers


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny.sounds(folder / "tones", 4)
    tiny.network(folder / "network")
    return folder


@pytest.fixture
def shop(engine: sa.Engine, material: Path) -> Workshop:
    platform = api.Platform(engine)
    platform.ingest(material / "tones", processes=1)
    platform.add_network("tiny", material / "network")
    return Workshop(engine)


DEADLY = "low/low-1.wav"


class KilledError(BaseException):
    """What a process that is killed does not live to see."""


def work_with_deaths(shop: Workshop, run_id: int, monkeypatch: pytest.MonkeyPatch, step: str, *, told: bool) -> int:
    """Work through a run in which a clip kills whoever does a step of it; returns how many died. `told`: marks are written."""
    real, dead, deaths = work.do, gone(), 0
    with db.reading(shop.engine) as session:
        clip_id = session.scalars(sa.text("SELECT id FROM clips WHERE path = :path"), {"path": DEADLY}).one()

    def do(engine: sa.Engine, models: Any, unit: Unit, mark: Any = None) -> Any:
        touched = _in_block(engine, unit, clip_id) if step == "record" else clip_id in unit.payload.get("clips", ())
        if unit.step == step and touched:
            if mark is not None and told:
                mark(DEADLY)
            raise KilledError
        return real(engine, models, unit, mark)

    monkeypatch.setattr(handling.work, "do", do)
    while shop.outcome(run_id)["outcome"] == "running":
        if not shop.post.messages:
            shop.later()
            ledger.children_lost(shop.engine, shop.worker_id)
            shop.sweep()
        message = shop.next()
        try:
            shop.deliver(message)
        except KilledError:
            deaths += 1
            change(shop.engine, "UPDATE work_units SET pid = :pid WHERE id = :id", pid=dead, id=message.id)
            shop.post.messages.append(message)  # it was not acknowledged
        assert deaths < 50
    return deaths


def _in_block(engine: sa.Engine, unit: Unit, clip_id: int) -> bool:
    if unit.step != "record":
        return False
    with db.reading(engine) as session:
        positions = session.scalars(
            sa.text(
                "SELECT m.position FROM recordings r JOIN probing_set_clips m ON m.probing_set_id = r.probing_set_id"
                " WHERE r.id = :recording AND m.clip_id = :clip"
            ),
            {"recording": unit.payload["recording"], "clip": clip_id},
        ).all()
        blocks = activations.blocks_of(session, unit.payload["recording"])
    return any(position // blocks.size == unit.payload["block"] for position in positions)


@pytest.mark.parametrize("told", [True, False], ids=["known which", "not known which"])
def test_a_clip_that_kills_the_captioner_fails_alone(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    run_id = shop.start(layers=["head"], captioner="describer")
    deaths = work_with_deaths(shop, run_id, monkeypatch, "caption", told=told)
    ended = shop.outcome(run_id)
    assert ended["outcome"] == "ok" and ended["counts"]["open_failures"] == 1
    assert deaths == 4 if told else deaths > 3  # once more at the same clip, or it might be chance
    with db.reading(shop.engine) as session:
        failures = session.execute(sa.text("SELECT unit, reason FROM failures WHERE resolved_at IS NULL")).all()
        captions = session.scalars(sa.text("SELECT count(*) FROM captions")).one()
    assert captions == 11
    ((unit, reason),) = failures
    assert unit == DEADLY and "died" in reason and f"andp runs retry {run_id}" in reason
    # Put right, it is captioned, and nothing is left open.
    monkeypatch.undo()
    assert runs.retry(shop.engine, run_id, shop.post, window=10) == 1
    shop.work(run_id)
    assert shop.outcome(run_id)["counts"]["open_failures"] == 0
    with db.reading(shop.engine) as session:
        assert session.scalars(sa.text("SELECT count(*) FROM captions")).one() == 12


def test_a_clip_that_kills_the_recorder_is_left_out(
    shop: Workshop, server_url: URL, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that cannot be read."""
    monkeypatch.setattr(activations, "BLOCK", 4)
    monkeypatch.setattr(activations, "STRETCH", 8)
    run_id = shop.start(layers=["head"])
    assert work_with_deaths(shop, run_id, monkeypatch, "record", told=True) == 4
    assert shop.outcome(run_id)["outcome"] == "ok"
    with _cloned(server_url) as url:
        other = db.make_engine(url, Settings())
        root = tiny.sounds(tmp_path / "tones", 4)
        platform = api.Platform(other)
        platform.ingest(root, processes=1)
        platform.add_network("tiny", material / "network")
        (root / "low" / "low-1.wav").unlink()
        platform.dissect("tiny", dataset="tones", layers=["head"])
        expected = content(other)
        other.dispose()
    assert_same(content(shop.engine), expected, leaving_out=("failures",))
    with db.reading(shop.engine) as session:
        ((unit, reason),) = session.execute(
            sa.text("SELECT unit, reason FROM failures WHERE resolved_at IS NULL")
        ).all()
    assert unit == DEADLY and "while it was decoded" in reason


def test_a_recorder_that_dies_of_nobody_knows_what_ends_the_run(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = shop.start(layers=["head"])
    assert work_with_deaths(shop, run_id, monkeypatch, "record", told=False) == 3
    ended = shop.outcome(run_id)
    assert ended["outcome"] == "failed" and "record: the process that does it died 3 times" in ended["error"]
    monkeypatch.undo()
    runs.retry(shop.engine, run_id, shop.post, window=10)
    shop.work(run_id)
    assert shop.outcome(run_id)["outcome"] == "ok"
    with db.reading(shop.engine) as session:  # the failure that was kept is put right
        assert not session.execute(sa.text("SELECT FROM failures WHERE resolved_at IS NULL")).all()


# ---------------------------------------------------------------------- going on


def test_two_advances_at_once(shop: Workshop) -> None:
    run_id = shop.start(layers=["head"])
    shop.deliver(shop.next())
    posts = [Post() for _ in range(3)]
    barrier = threading.Barrier(3)

    def advance(post: Post) -> None:
        barrier.wait()
        runs.advance(shop.engine, run_id, post, window=100)

    threads = [threading.Thread(target=advance, args=(post,)) for post in posts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = [message for post in posts for message in post.messages]
    assert len(sent) == len(set(sent)) == len(units(shop.engine, run_id)) - 1  # each once, the plan is done
    shop.post.messages += sent
    shop.work(run_id)
    assert shop.outcome(run_id)["outcome"] == "ok"
    runs.advance(shop.engine, run_id, shop.post, window=100)  # of a run that is over
    assert shop.outcome(run_id)["outcome"] == "ok"


def test_a_unit_that_ends_while_it_is_seen_what_is_next(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker ends the last open unit after this one has looked: the run is not over, and not broken off."""
    run_id = shop.start(layers=["head"])
    shop.deliver(shop.next())  # the plan
    real, due, beside = runs._proceed, list[Message](), list[threading.Thread]()

    def proceed(*args: Any) -> Any:
        found = real(*args)
        if due:
            message = due.pop()
            beside.append(threading.Thread(target=shop.deliver, args=(message,)))
            beside[-1].start()
            # It is written down as done, but where it waits for a row that this look has locked.
            until = time.monotonic() + 1
            while (
                time.monotonic() < until
                and {unit.id: unit.state for unit in units(shop.engine, run_id)}[message.id] != "done"
            ):
                time.sleep(0.02)
        return found

    monkeypatch.setattr(runs, "_proceed", proceed)
    while shop.outcome(run_id)["outcome"] == "running":
        message = shop.next()
        if message.what == "unit":
            due.append(message)
            runs.advance(shop.engine, run_id, shop.post, window=100)
            beside[-1].join()
        else:
            shop.deliver(message)
    assert shop.outcome(run_id)["outcome"] == "ok", shop.outcome(run_id)
    assert shop.done_keys.most_common(1)[0][1] == 1


def test_a_unit_that_fails_for_ever_is_told_with_its_traceback(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("postgresql://me:hush@db/andp\nis no number")

    monkeypatch.setitem(work._DOERS, "calibrate", broken)
    monkeypatch.setenv("ANDP_MOST_ATTEMPTS", "2")
    settings.cache_clear()
    run_id = shop.start(layers=["head"])
    shop.work(run_id)
    ended = shop.outcome(run_id)
    assert ended["outcome"] == "failed" and "calibrate: ValueError: " in ended["error"]
    assert shop.failures == [("calibrate", "ValueError")] * 2 and shop.retries == 1
    with db.reading(shop.engine) as session:
        (failed,) = runs.units(session, run_id, "failed")
        steps = {row["step"]: row for row in runs.progress(session, run_id)}
        (reason,) = runs.reasons(session, run_id)
    assert failed["attempts"] == 2 and "Traceback" in failed["traceback"] and "hush" not in str(failed)
    assert "hush" not in ended["error"] and "\n" not in ended["error"]
    assert reason["units"] == 1 and reason["step"] == "calibrate"
    # All that does not follow from it was done.
    assert steps["match"]["state"] == "done" and steps["terms"]["done"] in (0, None)
    monkeypatch.undo()
    assert runs.retry(shop.engine, run_id, shop.post, window=10) == 1
    shop.work(run_id)
    assert shop.outcome(run_id)["outcome"] == "ok"


def test_memory_that_runs_out_begins_the_next_try_with_no_model_loaded(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, loaded, met = work.do, [], []

    def do(engine: sa.Engine, models: Any, unit: Unit, mark: Any = None) -> Any:
        if unit.step == "record":
            loaded.append(list(models._kept))
            if not met:
                models.get(("a", "model"), object)
                met.append(unit)
                raise MemoryError("CUDA out of memory")
        return real(engine, models, unit, mark)

    monkeypatch.setattr(handling.work, "do", do)
    run_id = shop.start(layers=["head"], stages=["record"])
    shop.work(run_id)
    assert shop.failures == [("record", "MemoryError")] and shop.retries == 1
    assert loaded[1] == [] and shop.outcome(run_id)["outcome"] == "ok"


def test_what_became_of_a_unit_is_written_down_however_long_it_takes(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as its process lives nobody else would do it, or end it."""
    refused = [DatabaseError("the database's disk is full") for _ in range(3)]
    real = ledger.finish

    def finish(*given: Any, **options: Any) -> Any:
        if refused:
            raise refused.pop()
        return real(*given, **options)

    monkeypatch.setattr(handling.ledger, "finish", finish)
    monkeypatch.setattr(handling, "_BREATH_S", 0.0)
    run_id = shop.start(layers=["head"], stages=["caption"])
    shop.deliver(shop.next())
    assert not refused and not shop.failures
    assert [(row.step, row.state, row.attempts) for row in units(shop.engine, run_id)] == [("plan", "done", 1)]
    # What cannot be written down for another reason is a failure of the unit.
    monkeypatch.setattr(handling.ledger, "finish", lambda *_, **__: json.loads("{"))
    shop.deliver(shop.next())
    shop.deliver(shop.next())
    assert shop.failures == [("caption", "JSONDecodeError")]
    (caption,) = [row for row in units(shop.engine, run_id) if row.step == "caption"]
    assert (caption.state, caption.attempts) == ("waiting", 1)
    monkeypatch.setattr(handling.ledger, "finish", real)
    shop.work(run_id)
    assert shop.outcome(run_id)["outcome"] == "ok"


def test_a_worker_without_the_package_passes_a_unit_on(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """No try is counted; who looks at the run sees why; and one that has the package does it."""
    needed = {"minilm": "no_such_package"}
    from and_platform.backends import registry

    needs = registry.needs
    monkeypatch.setattr(registry, "needs", lambda role: needs(role) | (needed if role == "encoder" else {}))
    workers.packages.cache_clear()
    run_id = shop.start(layers=["head"])
    for _ in range(60):
        if not shop.post.messages:
            shop.later()
            shop.sweep()
        shop.deliver(shop.next())
    assert shop.outcome(run_id)["outcome"] == "running"
    with db.reading(shop.engine) as session:
        told = {row["reason"] for row in runs.reasons(session, run_id)}
    assert told == {
        "no worker of the queue gpu has the package 'no_such_package'; install it there, and start that worker again"
    }
    waiting = [row for row in units(shop.engine, run_id) if row.reason]
    assert waiting and all(row.attempts == 0 and row.state in ("waiting", "sent") for row in waiting)
    assert not shop.failures
    needed.clear()
    workers.packages.cache_clear()
    shop.work(run_id)
    assert shop.outcome(run_id)["outcome"] == "ok"
    workers.packages.cache_clear()
