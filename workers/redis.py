"""The broker Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.utils.json import loads

from workers.settling import Settling
from workers.validation import EXCERPT, MOST_BYTES, Refused, check_envelope, refuse


def _legible(item: bytes | str) -> bytes | str:
    """An item that Kombu can read: the item itself, or its beginning as a JSON string where it would raise."""
    if len(item) <= 4 * MOST_BYTES:  # a longer one is refused all the same
        try:
            loads(item)  # type: ignore[no-untyped-call]
            return item
        except Exception:  # noqa: BLE001 (it decodes values of many types, and each may raise what it likes)
            pass
    start = item[:EXCERPT]
    return json.dumps(start if isinstance(start, str) else start.decode("utf-8", "backslashreplace"))


def _reading(client_class: Callable[..., Any], **options: Any) -> Any:
    """A client of Kombu's that never hands on an item which cannot be read: Redis has no copy of it any more."""
    client = client_class(**options)
    parse = client.parse_response

    def parse_response(connection: Any, command_name: Any, **given: Any) -> Any:
        found = parse(connection, command_name, **given)
        if command_name == "BRPOP" and found:
            queue, item = found
            return queue, _legible(item)
        return found

    client.parse_response = parse_response
    return client


class Channel(Settling, kombu_redis.Channel):
    """Kombu's channel, which reads on although it could not acknowledge, and hands on only what was checked."""

    def _get_client(self) -> Any:
        return partial(_reading, super()._get_client())  # type: ignore[no-untyped-call]

    def basic_consume(self, queue: str, *args: Any, **options: Any) -> Any:
        """Consume from a queue; the callback gets messages that were checked."""
        made = super().basic_consume(queue, *args, **options)  # type: ignore[no-untyped-call]
        callbacks = self.connection._callbacks
        receive = callbacks[queue]

        def received(payload: Any) -> Any:
            found = check_envelope(payload, queue)
            if isinstance(found, Refused):  # it left the queue when it was read
                refuse(found, queue)
                return None
            return receive(found)

        callbacks[queue] = received
        return made


class Transport(kombu_redis.Transport):
    """Kombu's transport, with this channel."""

    Channel = Channel
