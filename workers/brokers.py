"""What the broker holds, and what is wrong with it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
import sqlalchemy as sa

from and_platform import db
from and_platform.config import Settings
from and_platform.errors import AndpError
from and_platform.schema import WorkUnit
from and_platform.services.distribution import workers
from workers import pgmq
from workers.app import UNACKED, app, drop_connections, kind, reached, settle
from workers.messages import MESSENGER, CeleryMessenger
from workers.queues import QUEUES, broker_name, visibility_timeouts

if TYPE_CHECKING:
    from celery import Celery

CONSUMER_TIMEOUT = 1800
"""Seconds after which RabbitMQ, where nobody has set it, closes the channel of a worker that does not acknowledge."""

OLDEST_REDIS = (6, 2)

Level = Literal["ok", "warn", "error"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: Level
    subject: str
    found: str
    advice: str = ""


class Depth(NamedTuple):
    """Messages of a queue."""

    waiting: int
    taken: int | None
    """With workers that have not acknowledged them yet; None: the broker does not say."""


def masked(config: Settings) -> str:
    """The broker's address without user's password and options."""
    if config.broker_url is None:
        return "pgmq:// in the platform's database"
    parts = urlsplit(config.broker_url.get_secret_value())
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, f"***@{place}" if "@" in parts.netloc else place, parts.path, "", ""))


def configure(config: Settings, queues: Sequence[str] = QUEUES) -> None:
    """Settle the app's settings for these queues, and fail now, in one line, where the broker cannot be used.

    Raises
    ------
    ConfigError, MissingExtraError, DatabaseError, BrokerUnreachableError
    """
    settle(queues)
    with reached("use"), app.connection_for_read(connect_timeout=config.connect_timeout) as connection:
        connection.ensure_connection(max_retries=1)
        for queue in app.amqp.queues.values():
            queue.bind(connection.default_channel).declare()  # one that is there, but of another kind, is refused here


@contextmanager
def sending(config: Settings) -> Iterator[CeleryMessenger]:
    """Somebody who sends, and goes: a client that watches a run for hours needs no connection to the broker for it.

    Raises
    ------
    ConfigError, MissingExtraError, DatabaseError, BrokerUnreachableError
        As `configure`.
    """
    configure(config)
    try:
        yield MESSENGER
    finally:
        drop_connections()


def depths(application: Celery = app) -> dict[str, int]:
    """Queue -> messages that wait for a worker; cheap: one short question a queue, over a pooled connection.

    Raises
    ------
    BrokerUnreachableError
    """
    with reached(), application.pool.acquire(block=True) as connection:
        try:
            found = _depths(connection)
        except connection.connection_errors:  # of the pool's connection; the broker may have been restarted since
            connection.collect()
            found = _depths(connection)
        return {queue: depth.waiting for queue, depth in found.items()}


def _depths(connection: Any, *, taken: bool = False) -> dict[str, Depth]:
    """Depths over a Kombu connection; who has taken what is asked of Redis only where wanted, for it reads each message."""
    connection.ensure_connection(max_retries=1)
    match connection.transport.driver_type:
        case "pgmq":
            with connection.default_channel.pgmq.pool.connection() as server:
                return {queue: Depth(*found) for queue, found in pgmq.depths(server).items()}
        case "redis":
            client = connection.default_channel.client
            with client.pipeline(transaction=False) as pipeline:
                for queue in QUEUES:
                    pipeline.llen(broker_name(queue))
                waiting = pipeline.execute()
            routes = [json.loads(raw)[2] for raw in client.hvals(UNACKED)] if taken else []
            return {
                queue: Depth(n, routes.count(broker_name(queue)) if taken else None)
                for queue, n in zip(QUEUES, waiting, strict=True)
            }  # fmt: skip
        case _:
            return {queue: Depth(_declared(connection, queue), None) for queue in QUEUES}


def _declared(connection: Any, queue: str) -> int:
    """Messages of a RabbitMQ queue that are ready; 0 where the queue is not made yet."""
    channel = connection.channel()  # of its own: the server closes it where there is no such queue
    try:
        return int(channel.queue_declare(broker_name(queue), passive=True).message_count)
    except connection.channel_errors as exc:
        if getattr(exc, "reply_code", None) != 404:
            raise
        return 0
    finally:
        channel.close()


# ---------------------------------------------------------------------- check


def check(config: Settings, engine: sa.Engine) -> list[Finding]:
    """Look at the broker, its queues and their workers. Changes nothing.

    Returns
    -------
    list of Finding
        In the order in which one would look: broker, queues, workers, timeouts, then what is particular to it. Where
        the broker cannot be reached, what the database knows.
    """
    findings, depths_found = _broker(config)
    findings += _queues(engine, depths_found)
    return findings + _timeouts(config, engine)


def _broker(config: Settings) -> tuple[list[Finding], dict[str, Depth]]:
    """What is to be said about the broker itself, and what its queues hold."""
    try:
        which = kind(config)
        look = {"pgmq": _look_at_pgmq, "rabbitmq": _look_at_rabbitmq, "redis": _look_at_redis}[which]
        with reached():
            findings, found = look(config)
    except AndpError as exc:
        return [Finding("error", "broker", f"{masked(config)} cannot be used", str(exc))], {}
    return [Finding("ok", "broker", f"{which} answers at {masked(config)}"), *findings], found


def _look_at_pgmq(config: Settings) -> tuple[list[Finding], dict[str, Depth]]:
    url = config.broker_url.get_secret_value() if config.broker_url else pgmq.SCHEME
    with db.translated(), psycopg.connect(
        pgmq.connection_string(url, config), connect_timeout=config.connect_timeout
    ) as connection:  # fmt: skip
        found = {queue: Depth(*numbers) for queue, numbers in pgmq.depths(connection).items()}
        if pgmq.installed(connection):
            return [], found
        may = connection.execute("SELECT has_database_privilege(current_database(), 'CREATE')").fetchone() == (True,)
    if may:
        return [Finding("warn", "schema pgmq", "not made yet", "the first worker makes it: andp worker")], found
    told = "let the owner of the database start the first worker, or set ANDP_BROKER_URL to another broker"
    return [Finding("error", "schema pgmq", "not made yet, and this user may not make it", told)], found


def _look_at_rabbitmq(config: Settings) -> tuple[list[Finding], dict[str, Depth]]:
    with _connection(config) as connection:
        version = str(connection.connection.server_properties.get("version", "unknown"))
        found = _depths(connection)
    return [Finding("ok", "RabbitMQ", f"version {version}; each message is confirmed and on disk")], found


def _look_at_redis(config: Settings) -> tuple[list[Finding], dict[str, Depth]]:
    with _connection(config) as connection:
        info = connection.default_channel.client.info()
        found = _depths(connection, taken=True)
    version = str(info["redis_version"])
    findings = [Finding("ok", "Redis", f"version {version}")]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        findings = [Finding("error", "Redis", f"version {version}", "install Redis 6.2 or newer")]
    if int(info["aof_enabled"]):
        findings.append(Finding("ok", "Redis on disk", "the append-only file is on"))
    else:
        findings.append(
            Finding("warn", "Redis on disk", "appendonly no: a restart loses messages",
                    "redis-cli CONFIG SET appendonly yes, and the same in redis.conf")
        )  # fmt: skip
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        findings.append(Finding("ok", "Redis memory", "nothing is evicted"))
    else:
        findings.append(
            Finding("warn", "Redis memory", f"maxmemory-policy {policy}: messages may be thrown away",
                    "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf")
        )  # fmt: skip
    return findings, found


@contextmanager
def _connection(config: Settings) -> Iterator[Any]:
    settle()
    with app.connection_for_read(connect_timeout=config.connect_timeout) as connection:
        connection.connect()
        yield connection


def _queues(engine: sa.Engine, found: dict[str, Depth]) -> list[Finding]:
    """What each queue holds, and who works at it."""
    at_work = Counter(queue for worker in workers.alive(engine) for queue in worker["queues"])  # type: ignore[attr-defined]
    findings = []
    for queue in QUEUES:
        depth, n = found.get(queue), at_work[queue]
        told = [f"{depth.waiting} waiting"] if depth else []
        if depth and depth.taken is not None:
            told.append(f"{depth.taken} with workers")
        told.append(f"{n} live worker{'' if n == 1 else 's'}")
        level: Level = "ok" if n else "error" if depth and depth.waiting else "warn"
        advice = "" if n else f"start one: andp worker --queues {queue}"
        findings.append(Finding(level, f"queue {queue}", ", ".join(told), advice))
    return findings


def _timeouts(config: Settings, engine: sa.Engine) -> list[Finding]:
    """Visibility timeouts, or RabbitMQ's own, against the longest unit of each queue."""
    try:
        which, timeouts = kind(config), visibility_timeouts(config)
    except AndpError as exc:
        return [Finding("error", "timeouts", "cannot be read", str(exc))]
    with db.reading(engine) as session:
        rows = session.execute(sa.select(WorkUnit.queue, sa.func.max(WorkUnit.seconds)).group_by(WorkUnit.queue))
        longest: dict[str, float | None] = dict(rows.tuples().all())
    findings = []
    for queue in QUEUES:
        if which == "rabbitmq":
            limit, name = CONSUMER_TIMEOUT, f"consumer_timeout {CONSUMER_TIMEOUT} s unless rabbitmq.conf says otherwise"
            advice = "raise consumer_timeout in rabbitmq.conf to {} milliseconds; rabbitmqctl environment shows it"
            scale = 1000
        else:
            limit = max(timeouts.values()) if which == "redis" else timeouts[queue]  # as in `configuration`
            name, advice, scale = (
                f"visibility timeout {limit} s",
                f"set ANDP_VISIBILITY_TIMEOUTS='{{{{\"{queue}\": {{}}}}}}'",
                1,
            )
        seen = longest.get(queue)
        if seen is None or 2 * seen <= limit:
            told = "no unit seen yet" if seen is None else f"longest unit {seen:.1f} s"
            findings.append(Finding("ok", f"timeout {queue}", f"{name}; {told}"))
        else:
            told = f"{name}, less than twice the longest unit, {seen:.1f} s"
            findings.append(Finding("warn", f"timeout {queue}", told, advice.format(math.ceil(4 * seen) * scale)))
    return findings
