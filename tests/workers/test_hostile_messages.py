"""Messages that no sender of ours makes, over real brokers: the worker lives, reads on, and runs nothing that they ask for."""

from __future__ import annotations

import bz2
import json
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from struct import pack
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

pytest.importorskip("celery", reason="the extra 'workers' is not installed")

from tests.workers.bench import Bench
from tests.workers.messages import EMBED, Sent, body, envelope, headers, send
from tests.workers.servers import RabbitMQ, Redis
from workers import brokers, validation

pytestmark = pytest.mark.timeout(300)

QUEUE = "andp.cpu"
DIGITS = "1" * 6000
NESTED = "[" * 50_000 + "]" * 50_000


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def evil(bench: Bench) -> dict[str, Any]:
    """A signature; who runs it leaves a trace."""
    return {
        "task": "probe.trace", "args": [str(bench.traces), "evil"], "kwargs": {}, "options": {"queue": QUEUE},
        "subtask_type": None, "immutable": True, "chord_size": None,
    }  # fmt: skip


def everywhere(bench: Bench) -> Iterator[Sent]:
    """Messages that any broker carries, none of which a worker may take."""
    touched = bench.traces.with_name("touched")
    signature = evil(bench)
    for text in (b"", b"no JSON", b"null", b"[]", b"5", b"{}", b'"text"', b"\xff\xfe\x00", DIGITS.encode(), NESTED.encode(),
                 b"[[1], {}]", b"[[1], {}, null]", b"[null, {}, {}]", b"[[1], [], {}]", b'[[1], {}, {"chain": 1}]',
                 b"[[NaN], {}, {}]", b'{"task": "andp.unit", "id": "x", "args": [1], "kwargs": {}}'):  # fmt: skip
        yield Sent(headers(), text)
    yield Sent(headers(), b"[[1], {}, {}]" + b" " * 1_000_000)
    # Ids that are none, arguments that are too many or too few.
    for argument in ("5", "", -1, 0, 2**63, 2**70, 1.0, 1.5, True, None, [1], {"id": 1}, int("9" * 4000)):
        yield Sent(headers(), body(argument))
        yield Sent(headers("andp.advance"), body(argument))
    yield Sent(headers(), body())
    yield Sent(headers(), body(10**15, 1))
    yield Sent(headers(), body(unit_id=10**15))
    yield Sent(headers(), body(kwargs={"unit_id": 1}))
    # Tasks that are not ours, Celery's own among them, which run others.
    for task in ("nothing.known", "", None, 5, ["andp.unit"], {"a": 1}, "celery.backend_cleanup", "x" * 100_000):
        yield Sent(headers(task), body(1))
    yield Sent(headers("celery.map"), body(signature, [1]))
    yield Sent(headers("celery.starmap"), body(signature, [[]]))
    yield Sent(headers("celery.chunks"), body(signature, [[]], 1))
    yield Sent(headers("celery.group"), body([signature], "g", []))
    yield Sent(headers("celery.chain"), body(signature))
    yield Sent(headers("celery.chord_unlock"), body("g", signature))
    yield Sent({}, json.dumps({"task": "celery.map", "id": "a", "args": [signature, [1]], "kwargs": {}}).encode())
    yield Sent(
        {}, json.dumps({"task": "andp.unit", "id": "a", "args": [1], "kwargs": {}, "callbacks": [signature]}).encode()
    )
    # Ours, that ask for others afterwards.
    for name in ("callbacks", "errbacks", "chain"):
        yield Sent(headers(), body(10**15, **{name: [signature]}))
    yield Sent(headers(), body(10**15, chord=signature))
    yield Sent(headers("nothing.known"), body(1, errbacks=[signature]))
    yield Sent(headers(chord=signature), body(1))
    # Moved in time, renamed, without an id, with one that is a text of megabytes.
    for more in ({"eta": "2000-01-01T00:00:00"}, {"eta": "9999-12-31T23:59:59"}, {"eta": "x"}, {"eta": 5},
                 {"expires": "2000-01-01T00:00:00"}, {"expires": "y"}, {"shadow": "andp\x1b[31m"}, {"timelimit": [1, 1]},
                 {"group": "g"}, {"id": None}, {"id": 5}, {"id": ""}, {"id": "x" * 50_000},
                 {"stamped_headers": ["a"], "stamps": {"a": 1}}):  # fmt: skip
        yield Sent(headers(**more), body(1))
    # Other contents.
    pickled = pickle.dumps(([1], {}, EMBED, _Touch(touched)))
    for name in ("x-python-serialize", "x-yaml", "x-msgpack", "data", ""):
        kind = f"application/{name}"
        yield Sent(headers(), pickled, kind, "binary")
    yield Sent(headers(), pickled)
    yield Sent(
        headers(), b"!!python/object/apply:os.system ['touch " + str(touched).encode() + b"']", "application/x-yaml"
    )
    for encoding in ("punycode", "utf-16", "zlib", "binary", "x" * 200):
        yield Sent(headers(), body(1), "application/json", encoding)
    bomb = zlib.compress(b" " * 100_000_000)
    yield Sent(headers(compression="application/x-gzip"), bomb[:60_000])
    yield Sent(headers(compression="application/x-bz2"), bz2.compress(b" " * 100_000_000))
    yield Sent(headers(compression="nothing"), body(1))


# ---------------------------------------------------------------------- each broker's way


def no_envelopes() -> Iterator[Any]:
    """JSON that is no message of Kombu's, or one whose parts are of other types."""
    yield from (None, [], 5, 1.5, True, "text", {}, {"body": 5}, {"body": "e30="}, {"properties": {}}, [[[]]])
    good = envelope(Sent(headers(), b"[[1], {}]"))
    for name, value in (("body", None), ("body", 5), ("body", []), ("body", "not base64"), ("body", "é"), ("body", "A"),
                        ("headers", None), ("headers", []), ("headers", "x"), ("properties", None), ("properties", []),
                        ("content-type", 5), ("content-encoding", [])):  # fmt: skip
        yield {**good, name: value}
    for name, value in (
        ("body_encoding", None),
        ("body_encoding", "zlib"),
        ("body_encoding", []),
        ("delivery_info", None),
    ):
        yield envelope(Sent(headers(), b"[[1], {}]"), **{name: value})
    yield {"__type__": "uuid", "__value__": {"hex": "no"}}


def send_to_pgmq(bench: Bench, engine: sa.Engine) -> int:
    sent = [envelope(one) for one in everywhere(bench)] + list(no_envelopes())
    texts = [json.dumps(one).replace("\\u0000", "") for one in sent]
    texts += ["[" * 1500 + "]" * 1500, f'{{"body": {DIGITS}}}', json.dumps("x" * 5_000_000)]
    with engine.begin() as connection:
        for text in texts:
            connection.execute(sa.text("SELECT pgmq.send('andp_cpu', CAST(:text AS jsonb))"), {"text": text})
        # 100 MB that Postgres keeps in one.
        connection.execute(sa.text("SELECT pgmq.send('andp_cpu', jsonb_build_object('body', repeat('a', 100000000)))"))
    return len(texts) + 1


def send_to_redis(bench: Bench, _engine: sa.Engine) -> int:
    from redis import Redis as Client

    assert isinstance(bench.server, Redis)
    items = [json.dumps(envelope(one)).encode() for one in everywhere(bench)]
    items += [json.dumps(one).encode() for one in no_envelopes()]
    items += [b"", b"no JSON", b"\xff\xfe\x00", NESTED.encode(), DIGITS.encode(), b'{"a":' * 50_000]
    items += [json.dumps({"__type__": kind, "__value__": "A"}).encode() for kind in ("x", "base64", "datetime")]
    items.append(json.dumps("x" * 20_000_000).encode())
    # Where it would go if it were given back.
    elsewhere = {"exchange": "celery", "routing_key": "andp.db"}
    items.append(json.dumps(envelope(Sent(headers("celery.map"), body(1)), delivery_info=elsewhere)).encode())
    with Client.from_url(bench.server.url) as client:
        for item in items:
            client.lpush(QUEUE, item)
        client.lpush(f"{QUEUE}\x06\x163", items[1])  # another priority
    return len(items) + 1


def _short(text: bytes) -> bytes:
    return pack(">B", len(text)) + text


def _table(content: bytes) -> bytes:
    return pack(">I", len(content)) + content


def send_to_rabbitmq(bench: Bench, _engine: sa.Engine) -> int:
    import amqp

    class Raw(amqp.Message):  # type: ignore[misc]
        """A message with the property flags and values as they are on the wire."""

        raw = b""

        def _serialize_properties(self) -> bytes:
            return self.raw

    assert isinstance(bench.server, RabbitMQ)
    sent = list(everywhere(bench))
    raw = []
    with amqp.Connection(f"127.0.0.1:{bench.server.port}", confirm_publish=True) as connection:
        channel = connection.channel()
        for one in sent:
            message = amqp.Message(
                one.body, application_headers=one.headers, content_type=one.content_type,
                content_encoding=one.content_encoding, reply_to="evil", correlation_id="a",
            )  # fmt: skip
            channel.basic_publish(message, routing_key=QUEUE)
        channel.basic_publish(amqp.Message(b""), routing_key=QUEUE)
        channel.basic_publish(amqp.Message(body(1), application_headers=headers()), routing_key=QUEUE)
        # What py-amqp itself cannot read: a table nested deep, a time beyond the calendar, text that is no UTF-8.
        deep = b""
        for _ in range(3000):
            deep = _short(b"a") + b"F" + _table(deep)
        raw = [
            pack(">H", 0x2000) + _table(deep),
            pack(">H", 0x2000) + _table(_short(b"t") + b"T" + pack(">Q", 2**62)),
            pack(">H", 0x8000) + _short(b"\xff\xfe"),
        ]
        for properties in raw:
            message = Raw(body(1))
            message.raw = properties
            channel.basic_publish(message, routing_key=QUEUE)
        channel.exchange_declare("evil", "fanout")
        channel.queue_bind(QUEUE, "evil")
        channel.basic_publish(amqp.Message(body(1)), exchange="evil", routing_key=b"\xff\xfe")
        channel.exchange_delete("evil")
    return len(sent) + len(raw) + 3


SEND: Mapping[str, Callable[[Bench, sa.Engine], int]] = {
    "pgmq": send_to_pgmq, "redis": send_to_redis, "rabbitmq": send_to_rabbitmq,
}  # fmt: skip


# ---------------------------------------------------------------------- what becomes of them


def scalar(engine: sa.Engine, query: str) -> Any:
    with engine.connect() as connection:
        return connection.scalar(sa.text(query))


def refused(bench: Bench) -> int:
    return bench.logs().count("is refused: ")


def test_a_worker_refuses_what_no_sender_of_ours_makes_and_reads_on(bench: Bench, engine: sa.Engine) -> None:
    worker = bench.worker("--queues", "cpu", "--concurrency", "1")
    n = SEND[bench.name](bench, engine)
    bench.wait(lambda: refused(bench) >= n or worker.poll() is not None, 120)
    bench.send("cpu", "good")
    bench.wait(lambda: "end good" in bench.lines())
    bench.wait(lambda: bench.taken() == 0 and not any(brokers.depths().values()))

    assert worker.poll() is None
    assert refused(bench) == n  # each once: none came back
    assert bench.lines() == ["begin good", "end good"]  # nothing else was run
    assert not bench.traces.with_name("touched").exists()
    kept = scalar(engine, "SELECT count(*) FROM failures WHERE stage = 'message' AND scope = 'queue:cpu'")
    assert 80 < kept <= n  # those that are the same to the letter are one
    assert scalar(engine, "SELECT max(length(detail)) FROM failures") < 2 * validation.EXCERPT
    assert max(map(len, bench.logs().splitlines())) < 3 * validation.EXCERPT
    if bench.name == "pgmq":
        assert scalar(engine, "SELECT count(*) FROM pgmq.a_andp_cpu") == n
    if isinstance(bench.server, Redis):
        from redis import Redis as Client

        with Client.from_url(bench.server.url) as client:
            assert {key for key in client.scan_iter() if not key.startswith(b"_kombu.binding")} == set()


@pytest.mark.parametrize("bench", ["pgmq"], indirect=True)
def test_a_message_that_cannot_be_archived_is_deleted(bench: Bench, engine: sa.Engine) -> None:
    worker = bench.worker("--queues", "cpu")
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE pgmq.a_andp_cpu RENAME TO elsewhere"))
    send(Sent(headers(), b"no JSON"), QUEUE, bench.server, engine.url)
    bench.send("cpu", "good")
    bench.wait(lambda: "end good" in bench.lines())
    bench.wait(lambda: bench.taken() == 0 and not any(brokers.depths().values()))
    assert worker.poll() is None and refused(bench) == 1


@pytest.mark.parametrize("bench", ["rabbitmq", "redis"], indirect=True)  # pgmq, as we make it, has no broadcasts
def test_no_worker_listens_to_commands_from_afar(bench: Bench, engine: sa.Engine) -> None:
    from celery import Celery
    from kombu import Connection

    from workers.app import app

    worker = bench.worker("--queues", "cpu")
    afar = Celery(broker=app.conf.broker_url)
    with Connection(app.conf.broker_url, transport_options=app.conf.broker_transport_options) as connection:
        for command in ("shutdown", "pool_shrink", "rate_limit"):
            afar.control.broadcast(command, arguments={}, connection=connection)
    bench.send("cpu", "after", 2.0)
    bench.wait(lambda: "end after" in bench.lines())
    assert worker.poll() is None


def units(engine: sa.Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        query = sa.text("SELECT key, state, attempts, reason FROM work_units ORDER BY key")
        return [tuple(row) for row in connection.execute(query)]


def test_a_message_that_names_a_unit_counts_a_try_of_it(bench: Bench, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        run = connection.scalar(
            sa.text(
                "INSERT INTO runs (command, arguments, versions, machine) VALUES ('dissect', '{}', '{}', '{}') RETURNING id"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO run_steps (run_id, step, ordinal, stage, queue, unit) VALUES (:run, 'fold', 1, 'record', 'cpu', 'n')"
            ),
            {"run": run},
        )
        ids = {
            key: connection.scalar(
                sa.text(
                    "INSERT INTO work_units (run_id, step, queue, key, payload, size, state)"
                    " VALUES (:run, 'fold', 'cpu', :key, '{}', 1, :state) RETURNING id"
                ),
                {"run": run, "key": key, "state": state},
            )
            for key, state in (("once", "sent"), ("thrice", "sent"), ("done", "done"), ("waits", "waiting"))
        }
    bad = [
        Sent(headers(), body(ids["once"], 1)),
        Sent(headers(), body(ids["done"], 1)),
        Sent(headers(), body(ids["waits"], 1)),
    ]
    good = [Sent(headers(), body(10**15)), Sent(headers("andp.advance"), body(10**15))]
    bench.worker("--queues", "cpu")
    for message in (*bad, *good):  # a run or unit that is not there is passed over, and no failure
        send(message, QUEUE, bench.server, engine.url)
    bench.wait(lambda: refused(bench) == 3)
    for attempt in range(3):
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE work_units SET state = 'sent' WHERE key = 'thrice'"))
        send(Sent(headers(), body(ids["thrice"], attempt)), QUEUE, bench.server, engine.url)
        bench.wait(lambda attempt=attempt: refused(bench) == 4 + attempt)  # type: ignore[misc]
        bench.wait(lambda: ("thrice", "sent") not in {unit[:2] for unit in units(engine)})
    bench.wait(lambda: bench.taken() == 0 and not any(brokers.depths().values()))
    bench.wait(lambda: ("thrice", "failed") in {unit[:2] for unit in units(engine)})
    told = "a message was refused: it has 2 arguments, and not one id"
    assert units(engine) == [
        ("done", "done", 0, None), ("once", "waiting", 1, told), ("thrice", "failed", 3, told), ("waits", "waiting", 0, None),
    ]  # fmt: skip
    assert scalar(engine, f"SELECT count(*) FROM failures WHERE run_id = {run} AND stage = 'message'") == 4
    assert scalar(engine, f"SELECT count(*) FROM failures WHERE run_id = {run} AND stage = 'fold'") == 1
    # Of a run that is over.
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET outcome = 'cancelled'"))
    send(Sent(headers(), body(ids["done"])), QUEUE, bench.server, engine.url)
    send(Sent(headers("andp.advance"), body(run)), QUEUE, bench.server, engine.url)
    bench.wait(lambda: bench.taken() == 0 and not any(brokers.depths().values()))
    assert refused(bench) == 6 and units(engine)[0] == ("done", "done", 0, None)


@pytest.mark.parametrize("bench", ["pgmq"], indirect=True)
def test_an_error_that_nobody_expected_does_not_go_round(
    bench: Bench, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery.exceptions import Reject

    from and_platform.errors import DatabaseUnreachableError
    from workers import tasks

    monkeypatch.setattr(tasks.pulse, "worker_id", lambda: 1)
    monkeypatch.setattr(tasks, "engine", lambda: engine)
    monkeypatch.setattr(tasks, "_BREATH_S", 0.0)
    request = SimpleNamespace(id="a-message", delivery_info={"routing_key": "andp.cpu"})
    with pytest.raises(Reject) as found, tasks._kept(request, 10**15):
        raise TypeError("x" * 10_000)
    assert not found.value.requeue
    assert (
        scalar(engine, "SELECT max(length(reason)) FROM failures WHERE stage = 'message' AND unit = 'a-message'") < 600
    )
    with pytest.raises(Reject) as found, tasks._kept(request, 10**15):
        raise DatabaseUnreachableError("away")
    assert found.value.requeue
