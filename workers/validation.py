"""Which messages a worker takes: those that our own senders make, and no others.

A broker may hold anything: a message of another program, of another version, or of somebody who wants a worker to run
something. Celery would run any task of its registry (`celery.map` and `celery.chunks` call others), send the signatures in a
message's callbacks, unpack a compressed body of any size, and end the worker where a message is no mapping. So each message is
read here before Celery sees it. Celery then gets one that is made anew from what was checked: the task, its arguments, an
identifier, and the headers of a trace. Nothing else of the original goes on.

A message that is refused leaves its queue, is logged, and is kept in the table of failures; see `refuse`. The channels of
`workers.pgmq`, `workers.rabbitmq` and `workers.redis` call this module.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from and_platform.errors import MessageError

log = logging.getLogger(__name__)

MOST_BYTES = 65_536
"""Of a body, and of a whole message in pgmq and Redis; ours have less than 2,000."""
EXCERPT = 500
"""Characters of a refused message that are logged and kept."""
_MOST_HEADER = 512
"""Characters of a header that is passed on."""
_LARGEST_ID = 2**63 - 1
_UNIT = "andp.unit"

_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TRACE = {"traceparent": re.compile(r"[0-9a-f-]{1,64}"), "tracestate": re.compile(rf"[ -~]{{1,{_MOST_HEADER}}}")}
_WITHOUT = (
    "eta",
    "expires",
    "group",
    "shadow",
    "chord",
    "chain",
    "callbacks",
    "errbacks",
    "compression",
    "stamped_headers",
)
"""Headers that our senders leave empty: they move a task in time, rename it, or make the worker send others."""


def one_id(args: list[Any]) -> None:
    """Check the arguments of a task that takes one id.

    Raises
    ------
    MessageError
        There is not one argument, or it is no id.
    """
    if len(args) != 1:
        raise MessageError(f"it has {len(args)} arguments, and not one id")
    if not _is_id(args[0]):
        raise MessageError("its argument is no id")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_ID  # a bool is an int, too


TASKS: dict[str, Callable[[list[Any]], None]] = {_UNIT: one_id, "andp.advance": one_id}
"""Task -> what checks its arguments. A worker runs no other task."""


class Checked(NamedTuple):
    """A message that a worker may take."""

    headers: dict[str, Any]
    """Celery's, made anew."""
    body: str
    """JSON, made anew."""


class Refused(NamedTuple):
    """What is kept of a message that a worker does not take."""

    reason: str
    raw: Any
    unit_id: int | None
    """The unit that it names, if it names one."""


def check(headers: Any, body: Any, content_type: Any, content_encoding: Any) -> Checked | Refused:
    """Read a message, whatever it holds.

    Parameters
    ----------
    headers, content_type, content_encoding
        As the sender has given them, of any type.
    body
        Bytes or text.
    """
    args: Any = None
    raw = {"headers": headers, "body": body, "content-type": content_type, "content-encoding": content_encoding}
    try:
        task, task_id = _check_headers(headers)
        args = _arguments(body, content_type, content_encoding)
        TASKS[task](args)
    except MessageError as exc:
        return Refused(str(exc), raw, _named_unit(headers, args))
    kept = {
        name: value
        for name, pattern in _TRACE.items()
        if isinstance(value := headers.get(name), str) and pattern.fullmatch(value)
    }
    made = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": repr(args)[:EXCERPT],
        "kwargsrepr": "{}",
        "origin": "",
        "ignore_result": True,
        **kept,
    }
    embed = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))
    return Checked(made, json.dumps([args, {}, embed]))


def _check_headers(headers: Any) -> tuple[str, str]:
    """The task and the id of the message."""
    if not isinstance(headers, Mapping):
        raise MessageError("its headers are no mapping")
    task, task_id = headers.get("task"), headers.get("id")
    if not isinstance(task, str):
        raise MessageError("it names no task")
    if task not in TASKS:
        raise MessageError(f"there is no task {task[:80]!r} here")
    if not (isinstance(task_id, str) and _TASK_ID.fullmatch(task_id)):
        raise MessageError("it has no id of its own")
    for name in _WITHOUT:
        if headers.get(name):
            raise MessageError(f"it has the header '{name}', which no sender of ours gives")
    if headers.get("timelimit") not in (None, [None, None], (None, None)):
        raise MessageError("it has a time limit, which no sender of ours gives")
    return task, task_id


def _arguments(body: Any, content_type: Any, content_encoding: Any) -> list[Any]:
    """The positional arguments in a body: the only ones there may be."""
    if content_type != "application/json":
        raise MessageError("its content is not application/json")
    if content_encoding not in ("utf-8", "utf8", "UTF-8"):
        raise MessageError("its content is not in UTF-8")
    match parsed(body):
        case [list() as args, dict() as kwargs, dict() as embed]:
            if kwargs:
                raise MessageError("it has named arguments")
            if any(embed.values()):
                raise MessageError("it asks for other tasks after this one")
            return args
        case _:
            raise MessageError("its body is not [arguments, named arguments, callbacks]")


def parsed(text: Any, most: int = MOST_BYTES) -> Any:
    """JSON of bounded length.

    Raises
    ------
    MessageError
        It is none, or longer than `most`.
    """
    if not isinstance(text, str | bytes | bytearray | memoryview):
        raise MessageError("its body is no text")
    if len(text) > most:
        raise MessageError(f"it is longer than {most:,} bytes")
    try:
        return json.loads(bytes(text) if isinstance(text, memoryview) else text)
    except (ValueError, RecursionError) as exc:  # numbers of thousands of digits and bytes that are no UTF-8, too
        raise MessageError("its body is not JSON that can be read") from exc


def _named_unit(headers: Any, args: Any) -> int | None:
    if not isinstance(headers, Mapping) or headers.get("task") != _UNIT:
        return None
    return args[0] if isinstance(args, list) and args and _is_id(args[0]) else None


# ---------------------------------------------------------------------- Kombu's envelope, in pgmq and Redis


def check_envelope(payload: Any, queue: str) -> dict[str, Any] | Refused:
    """Read a message as Kombu keeps it in pgmq and Redis; returns one that is made anew.

    Its delivery tag is new: Redis keeps messages in work under it, where two with one tag would be one. Its exchange and its
    routing key are those of the queue that it was in: it goes back to there.
    """
    match payload:
        case {"body": str() as body, "properties": {"body_encoding": "base64"}} if len(body) <= 2 * MOST_BYTES:
            try:
                content = b64decode(body, validate=True)
            except ValueError:
                return Refused("its body is not base64", payload, None)
        case {"body": str(), "properties": {"body_encoding": "base64"}}:
            return Refused(f"it is longer than {MOST_BYTES:,} bytes", payload, None)
        case _:
            return Refused("it is no message of Kombu's", payload, None)
    found = check(payload.get("headers"), content, payload.get("content-type"), payload.get("content-encoding"))
    if isinstance(found, Refused):
        return found
    return {
        "body": b64encode(found.body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": found.headers,
        "properties": {
            "correlation_id": found.headers["id"],
            "body_encoding": "base64",
            "priority": 0,
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


# ---------------------------------------------------------------------- what is not taken


def refuse(refused: Refused, queue: str) -> None:
    """Log a message that is not taken, and keep it with the failures; a try of the unit that it names is counted.

    Never raises: the worker reads on.
    """
    text = refused.raw if isinstance(refused.raw, str) else repr(_shortened(refused.raw))
    excerpt = text if len(text) <= EXCERPT else f"{text[:EXCERPT]} … ({len(text):,} characters)"
    log.error("a message in the queue %s is refused: %s; %s", queue, refused.reason, excerpt)
    name = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    try:
        from and_platform.services.distribution import handling
        from workers import tasks

        handling.refuse(tasks.engine(), queue.removeprefix("andp."), name, refused.reason, excerpt, refused.unit_id)
    except Exception as exc:  # noqa: BLE001 (the log has it; a worker that ends of it would be what the sender wants)
        log.error("cannot keep that a message was refused: %s", exc)


def _shortened(value: Any, depth: int = 4) -> Any:
    """A value with no more of each text, list and mapping than anybody reads: `repr` of what is nested deep fails."""
    if isinstance(value, str | bytes | bytearray):
        return value[:EXCERPT]
    if isinstance(value, memoryview):
        return bytes(value[:EXCERPT])
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {str(key)[:80]: _shortened(value[key], depth - 1) for key in list(value)[:40]}
    if isinstance(value, list | tuple):
        return [_shortened(one, depth - 1) for one in value[:20]]
    if isinstance(value, int) and value.bit_length() > 4096:
        return f"a number of {value.bit_length():,} bits"
    return value
