"""Real workers, real brokers, and SIGKILL: whatever is killed, rows are those of a dissection that nobody disturbed.

The long form, with kills at random, is `benchmarks/faults.py`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from and_platform.api import Platform
from tests.workers import backends, messages, rows
from tests.workers.cluster import Cluster, Process
from tests.workers.servers import Server
from tests.workers.storm import Storm

pytest.importorskip("celery", reason="the extra 'workers' is not installed")

pytestmark = pytest.mark.timeout(600)  # they start many processes, which takes its time where others work too

N_CLIPS = 60
SETTINGS = {"ANDP_UNIT_SIZE": "0.003", "ANDP_SILENT_AFTER": "6", "ANDP_DECODE_PROCESSES": "1", "ANDP_POOL_SIZE": "2"}
LIGHT = ("--sentence-encoder", "letters", "--text-encoder", "letters", "--threshold", "0.9")
DISSECT = ("dissect", "tiny", "--dataset", "tones", "--captioner", "describer", *LIGHT)
OTHER = ("dissect", "tiny", "--dataset", "tones", "--captioner", "joined", "--top-k", "3", *LIGHT)


@pytest.fixture(scope="module")
def filled() -> Iterator[Cluster]:
    """A server of our own with the databases `base`, not dissected, and `undisturbed`, dissected by one process."""
    with Cluster(environment=SETTINGS) as cluster:
        cluster.new_database("base")
        cluster.run("db", "upgrade")
        platform = Platform(cluster.engine("base"))
        platform.ingest(backends.sounds(cluster.folder / "tones", N_CLIPS), processes=1)
        platform.add_network("tiny", backends.NETWORK)
        cluster.engine("base").dispose()
        dissected(cluster, "undisturbed", "base", *DISSECT)
        yield cluster


@pytest.fixture
def cluster(filled: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The same server with a copy of `base` for the test, and no workers yet."""
    name = re.sub(r"\W", "_", request.node.name.lower())[:60]
    filled.new_database(name, "base")
    filled.settings = dict(SETTINGS)
    yield filled
    filled.stop_workers()
    filled.engine().dispose()
    filled.broker = None
    filled.tell(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture(params=["pgmq", "rabbitmq", "redis"])
def broker(request: pytest.FixtureRequest) -> Server | None:
    return None if request.param == "pgmq" else request.getfixturevalue(request.param)


def dissected(cluster: Cluster, name: str, template: str, *command: str) -> None:
    """A database in which one process has dissected."""
    before = cluster.database
    cluster.new_database(name, template)
    cluster.run(*command)
    cluster.database = before


def equal(cluster: Cluster, reference: str) -> None:
    """Fail where the rows of the test's database are not those of another one."""
    expected = rows.read(cluster.engine(reference))
    cluster.engine(reference).dispose()
    difference = rows.compare(expected, rows.read(cluster.engine()))
    assert not difference, difference.told()
    assert difference.rows > 1000


def detached(cluster: Cluster, *command: str) -> Process:
    """A client that opens a run and goes."""
    return cluster.start(*command, "--distributed", "--detach", "--json", options=())


def run_of(client: Process) -> dict[str, Any]:
    """What such a client says of the run."""
    assert client.popen.wait(120) == 0, client.said()
    found: dict[str, Any] = json.loads(client.said()[client.said().index("{") :])
    return found


def outcomes(cluster: Cluster) -> list[str]:
    """How distributed runs stand, in the order in which they were opened."""
    return [row[0] for row in cluster.ask("SELECT outcome FROM runs WHERE distributed ORDER BY id")]


def test_whatever_is_killed_rows_are_those_of_an_undisturbed_run(cluster: Cluster, broker: Server | None) -> None:
    cluster.broker = broker
    for _ in range(2):
        cluster.start_worker("--concurrency", "2")
    storm = Storm(cluster, random.Random(0), hang_s=100)
    victims = ["child", "worker", *(["broker"] if broker else []), "postgres", "backend", "client"]
    storm.dissect((*DISSECT, "--distributed"), [5 + 6 * i for i in range(len(victims))], victims)
    assert storm.kills == dict.fromkeys(victims, 1)
    # The client may come back when all is done: the run that it then opens finds nothing to do.
    assert set(outcomes(cluster)) == {"ok"}, f"{storm.state()}\n{cluster.logs()}"
    equal(cluster, "undisturbed")


def test_messages_that_no_sender_of_ours_makes_change_nothing(cluster: Cluster, broker: Server | None) -> None:
    cluster.broker = broker
    cluster.start_worker("--concurrency", "2")
    client = detached(cluster, *DISSECT)
    run_of(client)
    sent = 0
    while outcomes(cluster) == ["running"]:
        for queue in ("andp.cpu", "andp.gpu", "andp.db"):
            messages.send(messages.LITTLE[sent % len(messages.LITTLE)], queue, broker, cluster.url())
            sent += 1
        time.sleep(0.1)
    assert outcomes(cluster) == ["ok"]
    cluster.wait(lambda: sum(worker.said().count("is refused: ") for worker in cluster.workers) == sent)
    assert all(worker.running for worker in cluster.workers) and sent >= len(messages.LITTLE)
    cluster.tell("DELETE FROM failures WHERE stage = 'message'")  # beside the rows of the dissection
    equal(cluster, "undisturbed")


def test_eight_processes_two_clients_of_one_run_and_another_dissection(cluster: Cluster) -> None:
    folder = cluster.folder / "slow"
    folder.mkdir()
    (folder / "waits").write_text("low/1.wav")
    slow = ("dissect", "tiny", "--dataset", "tones", "--captioner", f"fragile:{folder}", *LIGHT)
    for _ in range(2):
        cluster.start_worker("--concurrency", "4")

    first, second = detached(cluster, *slow), detached(cluster, *slow)  # the same at the same moment: one run
    one, other = run_of(first), run_of(second)
    assert one["run"] == other["run"] and {one["attached"], other["attached"]} == {False, True}

    cluster.run(*DISSECT, "--distributed")  # another one does not wait for it
    assert outcomes(cluster) == ["running", "ok"]
    (folder / "waits").unlink()
    cluster.run("runs", "watch", str(one["run"]))
    assert outcomes(cluster) == ["ok", "ok"]
    assert cluster.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    # What both need, activations, is there once; nobody has done it twice.
    assert cluster.ask("SELECT count(*) FROM recordings") == [(1,)]
    assert cluster.ask("SELECT max(attempts) FROM work_units WHERE state = 'done'") == [(1,)]

    dissected(cluster, "two", "undisturbed", *slow)
    equal(cluster, "two")


def test_poison_is_given_up_and_told_and_retried(cluster: Cluster) -> None:
    folder = cluster.folder / "fragile"
    folder.mkdir()
    (folder / "kills").write_text("low/1.wav")
    (folder / "breaks").write_text("noise/2.wav")
    command = ("dissect", "tiny", "--dataset", "tones", "--captioner", f"fragile:{folder}", *LIGHT)
    cluster.settings["ANDP_UNIT_SIZE"] = "0.06"  # two clips for the captioner at a time
    cluster.start_worker("--concurrency", "2")
    cluster.run(*command, "--distributed")
    ((run_id,),) = cluster.ask("SELECT max(id) FROM runs WHERE distributed")

    failed = cluster.ask(
        "SELECT c.path, u.attempts, u.reason, u.traceback FROM work_units u"
        " JOIN clips c ON c.id IN (SELECT jsonb_array_elements_text(u.payload -> 'clips')::bigint)"
        " WHERE u.state = 'failed' ORDER BY 1"
    )
    by_path = {path: rest for path, *rest in failed}
    assert {"low/1.wav", "noise/2.wav"} <= by_path.keys() and len(
        by_path
    ) <= 3  # and who was in one unit with the latter
    attempts, reason, traceback = by_path["low/1.wav"]
    assert "died 4 times" in reason and traceback is None  # three, and once more at the same clip
    attempts, reason, traceback = by_path["noise/2.wav"]
    assert (attempts, reason) == (3, "RuntimeError: noise/2.wav is too much") and "Traceback" in traceback
    # All other clips have a caption, and the neurons are described without those two.
    assert cluster.ask("SELECT count(*) FROM captions") == [(N_CLIPS - 2,)]
    assert cluster.ask("SELECT count(*) > 0 FROM calibrations") == [(True,)]
    failures = cluster.ask("SELECT unit FROM failures WHERE resolved_at IS NULL AND stage = 'caption' ORDER BY 1")
    assert failures == [("low/1.wav",), ("noise/2.wav",)]
    shown = cluster.run("runs", "show", str(run_id), "--failed")
    told = shown.stdout + shown.stderr
    assert "noise/2.wav is too much" in told and "Traceback" in told and f"andp runs retry {run_id}" in told

    for cause in ("kills", "breaks"):
        (folder / cause).unlink()
    cluster.run("runs", "retry", str(run_id))
    assert outcomes(cluster) == ["ok"]
    assert cluster.ask("SELECT count(*) FROM captions") == [(N_CLIPS,)]
    assert cluster.ask("SELECT count(*) FROM work_units WHERE state = 'failed'") == [(0,)]
    assert cluster.ask("SELECT count(*) FROM failures WHERE resolved_at IS NULL") == [(0,)]
    # What was made without the two captions was made anew: but for the failures, kept as resolved, nothing tells of them.
    dissected(cluster, "whole", "base", *command)
    expected = rows.read(cluster.engine("whole"))
    cluster.engine("whole").dispose()
    difference = rows.compare(expected, rows.read(cluster.engine()))
    assert not difference.lost and not difference.different, difference.told()
    assert difference.duplicates == {"failures": 2}, difference.told()


def test_the_comparison_finds_what_is_lost_and_what_is_there_too_often(cluster: Cluster) -> None:
    cluster.tell("CREATE DATABASE spoilt TEMPLATE undisturbed", "postgres")  # nobody is killed here
    for statement in (
        "DELETE FROM exemplars WHERE neuron_id = (SELECT min(neuron_id) FROM exemplars) AND side = 'high'",
        "INSERT INTO texts (text) VALUES ('nobody has said this')",
        "UPDATE neuron_statistics SET mean = mean * 1.001 + 0.1 WHERE neuron_id = (SELECT min(neuron_id) FROM exemplars)",
        "INSERT INTO failures (stage, scope, unit, reason) VALUES ('match', 'a', 'b', 'c'), ('match', 'd', 'b', 'c')",
    ):
        cluster.tell(statement, "spoilt")
    difference = rows.compare(rows.read(cluster.engine("undisturbed")), rows.read(cluster.engine("spoilt")))
    for name in ("undisturbed", "spoilt"):
        cluster.engine(name).dispose()
    assert difference.lost == {"exemplars": 1}
    assert difference.duplicates == {"texts": 1, "failures": 2}
    assert difference.different == {"neuron_statistics": 1}
    assert "nobody has said this" in difference.told()
