"""Real brokers and real workers: what is delivered where, once more after a kill, and told when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform.config import Settings, settings
from and_platform.errors import BrokerError, BrokerUnreachableError, ConfigError, MissingExtraError
from tests.conftest import _admin
from tests.workers.servers import ProgramMissingError, RabbitMQ, Redis, free_port

pytest.importorskip("celery", reason="the extra 'workers' is not installed")

from tests.workers.bench import ROOT, VISIBLE, Bench, kill
from workers import brokers, queues
from workers.app import configuration, drop_connections, kind, settle

Andp = Callable[..., subprocess.CompletedProcess[str]]


# ---------------------------------------------------------------------- delivery


def test_messages_go_to_workers_of_their_queue_and_no_worker_hoards(bench: Bench) -> None:
    for queue in queues.QUEUES:
        bench.send(queue, f"first-{queue}", 1.0)
        bench.send(queue, f"second-{queue}")
    assert brokers.depths() == dict.fromkeys(queues.QUEUES, 2)

    bench.worker("--queues", "gpu,db")
    bench.wait(lambda: any(line.startswith("begin first") for line in bench.lines()))
    assert bench.taken() == 1  # one unit in work, and none that waits behind it where others could do it
    bench.wait(lambda: len(bench.lines()) == 8)
    bench.wait(lambda: brokers.depths() == {"cpu": 2, "gpu": 0, "llm": 2, "db": 0})
    assert set(bench.lines()) == {
        f"{what} {which}-{queue}"
        for what in ("begin", "end")
        for which in ("first", "second")
        for queue in ("gpu", "db")
    }
    bench.wait(lambda: bench.taken() == 0)


def test_a_killed_child_and_a_killed_worker_lose_nothing(bench: Bench) -> None:
    worker = bench.worker("--queues", "cpu")
    bench.send("cpu", "child", 1.5)
    bench.wait(lambda: "begin child" in bench.lines())
    os.kill(bench.pid("child"), signal.SIGKILL)
    bench.wait(lambda: bench.lines() == ["begin child", "begin child", "end child"])
    bench.wait(lambda: bench.taken() == 0)

    bench.send("cpu", "worker", 1.5)
    bench.wait(lambda: "begin worker" in bench.lines())
    kill(worker)
    bench.worker("--queues", "cpu")
    bench.wait(lambda: bench.lines()[3:] == ["begin worker", "begin worker", "end worker"])
    bench.wait(lambda: bench.taken() == 0 and not any(brokers.depths().values()))


@pytest.mark.parametrize("bench", ["rabbitmq", "redis"], indirect=True)  # pgmq is as durable as the database
def test_a_broker_that_dies_comes_back_with_its_messages(bench: Bench) -> None:
    assert bench.server is not None
    bench.worker("--queues", "cpu")
    bench.send("gpu", "kept")
    bench.send("cpu", "long", 3.0)
    bench.wait(lambda: "begin long" in bench.lines())
    bench.server.restart()

    bench.wait(lambda: "end long" in bench.lines())  # it was not cancelled
    bench.send("cpu", "after", 1.0)  # the client reconnects
    bench.wait(lambda: "begin after" in bench.lines())  # and the worker
    assert bench.lines().count("begin after") == 1
    bench.server.kill()
    bench.wait(lambda: "end after" in bench.lines())  # nobody takes its acknowledgement
    time.sleep(0.5)
    bench.server.start()
    bench.send("cpu", "last")
    bench.wait(lambda: "end last" in bench.lines())
    assert brokers.depths()["gpu"] == 1
    assert bench.lines().count("begin last") == 1


@pytest.mark.parametrize("bench", ["pgmq"], indirect=True)
def test_a_queue_in_a_database_that_failed_over_is_read_on(bench: Bench, engine: sa.Engine, server_url: URL) -> None:
    """A worker none of whose units can be acknowledged, for its connections broke while they ran, takes others all the same."""
    bench.environment["ANDP_SILENT_AFTER"] = "600"  # no pulse that asks the broker, too, and would find out first
    bench.worker("--queues", "cpu", "--concurrency", "2")
    database = engine.url.database
    cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s AND application_name = ''"
    for number in range(6):  # Kombu looks at its connections every two seconds: they are to break between two looks
        texts = {f"{number}a", f"{number}b"}
        for text in texts:
            bench.send("cpu", text, 0.5)
        bench.wait(lambda texts=texts: {f"begin {text}" for text in texts} <= set(bench.lines()))  # type: ignore[misc]
        away = number % 3 == 2
        with _admin(server_url) as outside:
            if away:
                outside.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
            assert outside.execute(cut, [database]).fetchone() != (0,)
            bench.wait(lambda texts=texts: {f"end {text}" for text in texts} <= set(bench.lines()))  # type: ignore[misc]
            if away:
                time.sleep(0.5)
                outside.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
        drop_connections()  # this process's own, which it has cut, too
    bench.wait(lambda: bench.taken() == 0 and not any(brokers.depths().values()))


@pytest.mark.parametrize("bench", ["pgmq"], indirect=True)
def test_who_has_sent_holds_no_connection(bench: Bench, engine: sa.Engine) -> None:
    def connections() -> int:
        with engine.connect() as connection:
            asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = ''"
            return int(connection.scalar(sa.text(asked)) or 0)

    with brokers.sending(settings()) as messenger:
        messenger.unit("cpu", 1)
        assert connections() > 0
    bench.wait(lambda: connections() == 0, 10)
    assert brokers.depths()["cpu"] == 1


def test_a_misspelt_queue_is_refused_where_it_is_sent(bench: Bench) -> None:
    from tests.workers.probe import nothing

    with pytest.raises(BrokerError, match="the queues are: cpu, gpu, llm, db"):
        nothing.apply_async(queue="andp.gpx")


# ---------------------------------------------------------------------- the command


def test_ctrl_c_ends_after_the_units_in_work_and_twice_at_once(bench: Bench) -> None:
    worker = bench.worker("--queues", "db")
    bench.send("db", "warm", 2.0)
    bench.wait(lambda: "begin warm" in bench.lines())
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 0
    assert bench.lines() == ["begin warm", "end warm"]
    assert bench.logs().count("andp: stopping after the units in work") == 1
    assert bench.taken() == 0 and brokers.depths()["db"] == 0

    worker = bench.worker("--queues", "db")
    bench.send("db", "cold", 60.0)
    bench.wait(lambda: "begin cold" in bench.lines())
    child = bench.pid("cold")
    worker.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert worker.poll() is None
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) != 0
    assert not psutil.pid_exists(child)
    bench.wait(lambda: brokers.depths()["db"] == 1)  # for others


def test_a_worker_says_in_one_line_why_it_does_not_start(andp: Andp, engine: sa.Engine) -> None:
    def refused(*arguments: str, **variables: str) -> tuple[int, str]:
        done = andp("worker", *arguments, check=False, env=variables)
        assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        return done.returncode, done.stderr.strip()

    assert refused("--queues", "gpx") == (2, "andp: there is no queue 'gpx'; the queues are: cpu, gpu, llm, db")
    for scheme in ("amqp", "redis"):
        status, told = refused(ANDP_BROKER_URL=f"{scheme}://andp:secret@127.0.0.1:{free_port()}/0")
        assert status == 6 and told.startswith("andp: cannot use the broker: ") and "secret" not in told
    assert refused(ANDP_BROKER_URL="sqs://key:secret@") == (
        2, "andp: ANDP_BROKER_URL is no broker's; give pgmq://…, amqp://… or redis://…",
    )  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0005'"))
    status, told = refused()
    assert status == 4 and told.startswith("andp: the schema is at 0005") and told.endswith("run: andp db upgrade")


def test_a_queue_of_another_kind_is_refused_when_a_worker_starts(andp: Andp, rabbitmq: RabbitMQ) -> None:
    from amqp import Connection

    with Connection(f"127.0.0.1:{rabbitmq.port}") as connection:
        channel = connection.channel()
        channel.queue_declare("andp.gpu", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    done = andp("worker", check=False, env={"ANDP_BROKER_URL": rabbitmq.url})
    assert done.returncode == 6 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("andp: cannot use the broker: ") and "x-queue-type" in done.stderr


def test_a_worker_may_do_all_in_one_process(bench: Bench) -> None:
    worker = bench.worker("--queues", "llm", "--pool", "solo", "--name", "alone")
    bench.send("llm", "one")
    bench.wait(lambda: bench.lines() == ["begin one", "end one"])
    assert bench.pid("one") == worker.pid
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 0


def test_what_the_command_is_given_reaches_the_units(andp: Andp, environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; from workers import program\n"
        "def run(queues, **given):\n"
        "    from and_platform.config import settings\n"
        "    found = settings(); given.pop('tell')\n"
        "    print(queues, given, found.device, found.warm_up, found.metrics_port); return 7\n"
        "program.run = run\n"
        "sys.argv = ['andp', 'worker', '--queues', 'DB,gpu', '-c', '3', '--device', 'cuda:0', '--no-warm-up',\n"
        "            '--metrics-port', '9464', '--pool', 'solo', '--name', 'one']\n"
        "from and_platform.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == (
        "('gpu', 'db') {'concurrency': 3, 'pool': 'solo', 'events': False, 'name': 'one'} cuda:0 False 9464\n"
    ), done.stderr
    assert done.returncode == 7


# ---------------------------------------------------------------------- settings


def test_queues_are_chosen_by_name() -> None:
    assert queues.chosen(["db", " GPU", "db", ""]) == ("gpu", "db")
    with pytest.raises(ConfigError, match="no queue is named"):
        queues.chosen([""])


def test_visibility_timeouts_are_the_queues_own_then_the_one_for_all() -> None:
    assert queues.visibility_timeouts(Settings()) == {"cpu": 300, "gpu": 900, "llm": 1800, "db": 900}
    found = queues.visibility_timeouts(Settings(visibility_timeout=60, visibility_timeouts={"llm": 7200}))
    assert found == {"cpu": 60, "gpu": 60, "llm": 7200, "db": 60}
    with pytest.raises(ConfigError, match="ANDP_VISIBILITY_TIMEOUTS: there is no queue 'gpx'"):
        queues.visibility_timeouts(Settings(visibility_timeouts={"gpx": 1}))


@pytest.mark.parametrize("value", ["gpu=1800", '{"gpu": "soon"}', '{"gpu": 0}', "[1]"])
def test_a_visibility_timeout_that_is_none_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDP_VISIBILITY_TIMEOUTS", value)
    settings.cache_clear()
    with pytest.raises(ConfigError, match=r"^ANDP_VISIBILITY_TIMEOUTS"):
        settings()


def test_each_broker_gets_the_timeout_that_holds_for_its_workers(
    database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANDP_DATABASE_URL", database_url.set(drivername="postgresql").render_as_string(False))
    monkeypatch.setenv("ANDP_VISIBILITY_TIMEOUTS", '{"db": 1000}')
    settings.cache_clear()
    assert configuration(["cpu", "db"])["broker_transport_options"]["visibility_timeout"] == 1000  # those it reads

    monkeypatch.setenv("ANDP_BROKER_URL", "redis://queue.example/0")
    settings.cache_clear()
    options = configuration(["cpu"])["broker_transport_options"]
    assert options["visibility_timeout"] == 1800  # it brings back the messages of all
    assert (options["unacked_restore_interval"], options["unacked_restore_throttle"]) == (2, 1)

    monkeypatch.setenv("ANDP_BROKER_URL", "amqp://queue.example//")
    settings.cache_clear()
    assert configuration()["broker_transport_options"] == {"confirm_publish": True}


def test_pgmq_and_a_pooler_exclude_each_other() -> None:
    from workers.pgmq import SCHEME, connection_string

    with pytest.raises(ConfigError, match="pgmq:// prepares statements, which ANDP_POOLER rules out"):
        connection_string(SCHEME, Settings(pooler=True))
    url = "pgmq://andp@db.example/andp"
    assert connection_string(url, Settings(pooler=True)) == "postgresql://andp@db.example/andp"


def test_a_broker_whose_client_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers import app as module

    with pytest.raises(MissingExtraError, match=r"'no_such_client' is not installed; .*\[workers\]"):
        module._require("no_such_client")


def test_a_client_hears_that_there_is_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.workers.probe import nothing

    monkeypatch.setenv("ANDP_BROKER_URL", f"amqp://andp:secret@127.0.0.1:{free_port()}//")
    settings.cache_clear()
    settle()
    with pytest.raises(BrokerUnreachableError, match=r"^cannot send to the broker: .*refused") as caught:
        nothing.apply_async(queue="andp.cpu", retry=False)
    assert "secret" not in str(caught.value)
    with pytest.raises(BrokerUnreachableError):
        brokers.depths()


# ---------------------------------------------------------------------- check


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {finding["subject"]: finding for finding in json.loads(done.stdout)}


def enlist(engine: sa.Engine, queues: str, seen: str = "now()", stopped: str = "NULL") -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO workers (name, host, pid, queues, concurrency, device, version, packages, seen_at, stopped_at)"
                f" VALUES ('w', 'h', 1, '{queues}', 1, 'cpu', '1', '{{}}', {seen}, {stopped})"
            )
        )


def test_check_tells_what_waits_and_who_works(bench: Bench, andp: Andp, engine: sa.Engine) -> None:
    enlist(engine, "{gpu,llm}")
    enlist(engine, "{cpu}", seen="now() - interval '40 s'")
    enlist(engine, "{db}", stopped="now()")
    first = found(andp("broker", "check", "--json", env=bench.environment))
    assert {name: first[f"queue {name}"]["level"] for name in queues.QUEUES} == {
        "cpu": "warn", "gpu": "ok", "llm": "ok", "db": "warn",
    }  # fmt: skip
    assert all(finding["level"] == "ok" for name, finding in first.items() if not name.startswith("queue"))

    bench.send("cpu", "waits")
    bench.send("gpu", "waits")
    done = andp("broker", "check", "--json", env=bench.environment, check=False)
    assert done.returncode == 1
    second = found(done)
    assert second["queue cpu"]["level"] == "error" and second["queue cpu"]["found"].startswith("1 waiting")
    assert second["queue cpu"]["advice"] == "start one: andp worker --queues cpu"
    assert second["queue gpu"]["level"] == "ok" and second["queue gpu"]["found"].endswith("1 live worker")
    table = andp("broker", "check", env=bench.environment, check=False)
    assert table.returncode == 1 and "start one: andp worker --queues cpu" in table.stdout


def test_check_compares_timeouts_with_the_longest_unit(bench: Bench, andp: Andp, engine: sa.Engine) -> None:
    seconds = 1000.0 if bench.name == "rabbitmq" else VISIBLE * 0.6
    with engine.begin() as connection:
        run = connection.scalar(
            sa.text(
                "INSERT INTO runs (command, arguments, versions, machine) VALUES ('dissect', '{}', '{}', '{}') RETURNING id"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO run_steps (run_id, step, ordinal, stage, queue, unit)"
                f" VALUES ({run}, 'record', 1, 'record', 'gpu', 'clips'), ({run}, 'fold', 2, 'record', 'db', 'neurons')"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO work_units (run_id, step, queue, key, payload, size, seconds)"
                f" VALUES ({run}, 'record', 'gpu', 'a', '{{}}', 1, {seconds}), ({run}, 'fold', 'db', 'b', '{{}}', 1, 1.5)"
            )
        )
    told = found(andp("broker", "check", "--json", env=bench.environment))
    assert {name: told[f"timeout {name}"]["level"] for name in queues.QUEUES} == {
        "cpu": "ok", "gpu": "warn", "llm": "ok", "db": "ok",
    }  # fmt: skip
    assert f"longest unit, {seconds:.1f} s" in told["timeout gpu"]["found"]
    wanted = "consumer_timeout in rabbitmq.conf to 4000000" if bench.name == "rabbitmq" else '{"gpu": 10}'
    assert wanted in told["timeout gpu"]["advice"]


def test_check_warns_of_a_redis_that_forgets(andp: Andp) -> None:
    pytest.importorskip("redis", reason="the extra 'workers' is not installed")
    server = Redis(options={"appendonly": "no", "maxmemory-policy": "allkeys-lru"})
    try:
        server.start()
        told = found(andp("broker", "check", "--json", env={"ANDP_BROKER_URL": server.url}))
    except ProgramMissingError as missing:
        pytest.skip(str(missing))
    finally:
        server.close()
    assert (told["Redis on disk"]["level"], told["Redis memory"]["level"]) == ("warn", "warn")
    assert "appendonly yes" in told["Redis on disk"]["advice"]
    assert "allkeys-lru" in told["Redis memory"]["found"]


def test_check_names_a_broker_that_cannot_be_used_without_its_secrets(andp: Andp) -> None:
    url = f"redis://andp:secret@127.0.0.1:{free_port()}/3?ssl_password=secret"
    done = andp("broker", "check", check=False, env={"ANDP_BROKER_URL": url})
    assert done.returncode == 1 and "redis://***@127.0.0.1" in done.stdout and "cannot reach the broker" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_check_makes_nothing_and_says_who_may(andp: Andp, engine: sa.Engine, database_url: URL) -> None:
    first = found(andp("broker", "check", "--json"))
    assert first["schema pgmq"]["level"] == "warn"
    with engine.begin() as connection:
        assert connection.scalar(sa.text("SELECT to_regnamespace('pgmq')")) is None
        connection.execute(sa.text(f"REVOKE ALL ON DATABASE {database_url.database} FROM PUBLIC"))
        connection.execute(sa.text("CREATE ROLE probe_reader LOGIN; GRANT pg_read_all_data TO probe_reader"))
        connection.execute(sa.text(f"GRANT CONNECT ON DATABASE {database_url.database} TO probe_reader"))
    try:
        reader = database_url.set(drivername="postgresql", username="probe_reader").render_as_string(False)
        done = andp("broker", "check", "--json", check=False, env={"ANDP_DATABASE_URL": reader})
        assert done.returncode == 1, done.stderr
        assert found(done)["schema pgmq"]["level"] == "error"
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("DROP OWNED BY probe_reader; DROP ROLE probe_reader"))


def test_only_brokers_that_are_tested_are_taken() -> None:
    assert [kind(Settings(broker_url=url)) for url in (None, "amqps://q", "rediss://q", "pgmq://q/andp")] == [
        "pgmq", "rabbitmq", "redis", "pgmq",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no broker's"):
        kind(Settings(broker_url="memory://"))
