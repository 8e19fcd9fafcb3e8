"""Messages for the queues that none of our senders makes."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any, NamedTuple

import psycopg
from sqlalchemy.engine import URL

from tests.workers.servers import RabbitMQ, Redis, Server

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Sent(NamedTuple):
    """What a sender may choose with every broker."""

    headers: Any
    body: bytes
    content_type: Any = "application/json"
    content_encoding: Any = "utf-8"


def headers(task: Any = "andp.unit", **more: Any) -> dict[str, Any]:
    """Those that Celery gives."""
    task_id = str(uuid.uuid4())
    return {
        "lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "group": None, "eta": None,
        "expires": None, "retries": 0, "timelimit": [None, None], "argsrepr": "(1,)", "kwargsrepr": "{}", "shadow": None,
        "origin": "gen1@here", "ignore_result": False, "stamped_headers": None, "stamps": {}, **more,
    }  # fmt: skip


def body(*args: Any, kwargs: Any = None, **embed: Any) -> bytes:
    """A body of Celery's second protocol."""
    return json.dumps([args, kwargs or {}, {**EMBED, **embed}]).encode()


def envelope(sent: Sent, **properties: Any) -> dict[str, Any]:
    """What Kombu keeps in pgmq and Redis."""
    return {
        "body": base64.b64encode(sent.body).decode(), "content-type": sent.content_type,
        "content-encoding": sent.content_encoding, "headers": sent.headers,
        "properties": {
            "correlation_id": "a", "reply_to": "evil", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()), "delivery_info": {"exchange": "andp", "routing_key": "andp.cpu"}, **properties,
        },
    }  # fmt: skip


def send(sent: Sent, queue: str, server: Server | None, database: URL) -> None:
    """Put a message into a queue, past all that our senders check; without a server into pgmq's in the database."""
    match server:
        case Redis():
            from redis import Redis as Client

            with Client.from_url(server.url) as client:
                client.lpush(queue, json.dumps(envelope(sent)))
        case RabbitMQ():
            import amqp

            with amqp.Connection(f"127.0.0.1:{server.port}", confirm_publish=True) as connection:
                message = amqp.Message(
                    sent.body,
                    application_headers=sent.headers,
                    content_type=sent.content_type,
                    content_encoding=sent.content_encoding,
                )
                connection.channel().basic_publish(message, routing_key=queue)
        case _:
            plain = database.set(drivername="postgresql").render_as_string(hide_password=False)
            with psycopg.connect(plain, autocommit=True, application_name="test") as connection:
                given = (queue.replace(".", "_"), json.dumps(envelope(sent)))
                connection.execute("SELECT pgmq.send(%s, CAST(%s AS jsonb))", given)


LITTLE = (
    Sent(headers(), b"no JSON"),
    Sent(headers(), body("5")),
    Sent(headers(), body(2**70)),
    Sent(headers("celery.map"), body({"task": "andp.advance", "args": [1]}, [1])),
    Sent(headers(), body(10**15, callbacks=[{"task": "andp.advance", "args": [1]}])),
    Sent(headers("nothing.known"), body(1)),
    Sent(headers(), b"[[1], {}, {}]", "application/x-python-serialize", "binary"),
    Sent(headers(eta="2999-01-01T00:00:00"), body(10**15)),
)
"""A few of each kind that name no unit, so that no try is counted."""
