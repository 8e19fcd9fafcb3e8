"""Brokers for the tests of the workers: one of each a session, skipped with a reason where its program is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from and_platform.config import settings
from tests.workers.servers import ProgramMissingError, RabbitMQ, Redis, Server

if TYPE_CHECKING:
    from tests.workers.bench import Bench


def _started(server: Server) -> Iterator[Server]:
    try:
        server.start()
    except ProgramMissingError as missing:
        server.close()
        pytest.skip(str(missing))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[Server]:
    """A RabbitMQ node for the session; a test that kills it starts it again."""
    pytest.importorskip("amqp", reason="the extra 'workers' is not installed")
    yield from _started(RabbitMQ())


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A Redis server for the session; a test that kills it starts it again."""
    pytest.importorskip("redis", reason="the extra 'workers' is not installed")
    yield from _started(Redis())


@pytest.fixture
def rabbitmq(rabbitmq_server: RabbitMQ) -> RabbitMQ:
    """The session's RabbitMQ node, running and without queues."""
    if not rabbitmq_server.running:
        rabbitmq_server.start()
    for name in rabbitmq_server.queues():
        rabbitmq_server.control("delete_queue", name)
    return rabbitmq_server


@pytest.fixture
def redis(redis_server: Redis) -> Redis:
    """The session's Redis server, running and empty."""
    from redis import Redis as Client

    if not redis_server.running:
        redis_server.start()
    with Client.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server


@pytest.fixture(params=["pgmq", "rabbitmq", "redis"])
def bench(
    request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    from tests.workers.bench import VISIBLE, Bench
    from workers.app import drop_connections, settle

    server = None if request.param == "pgmq" else request.getfixturevalue(request.param)
    variables = {
        "ANDP_DATABASE_URL": environment["ANDP_DATABASE_URL"],
        "ANDP_VISIBILITY_TIMEOUT": str(VISIBLE),
        "OMP_NUM_THREADS": "1",
        **({"ANDP_BROKER_URL": server.url} if server else {}),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    settle()
    made = Bench(request.param, server, {**environment, **variables}, tmp_path)
    yield made
    made.close()
    drop_connections()
