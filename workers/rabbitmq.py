"""The broker RabbitMQ: Kombu's transport, with a channel that hands on only what `workers.validation` has checked."""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Any

from amqp import method_framing, spec  # type: ignore[import-untyped]
from amqp.basic_message import Message  # type: ignore[import-untyped]
from kombu.transport import pyamqp

from workers.validation import Checked, Refused, check, refuse

_UNREADABLE = "andp_unreadable"


class _Message(Message):  # type: ignore[misc]
    """A message whose properties may be wrong: py-amqp would raise before any channel hears of it, at each delivery anew."""

    def _load_properties(self, class_id: int, buf: Any, offset: int) -> int:
        try:
            return int(super()._load_properties(class_id, buf, offset))
        except Exception as exc:  # noqa: BLE001 (times beyond the calendar, tables nested deep, text that is no UTF-8 ...)
            self.properties = {_UNREADABLE: f"{type(exc).__name__}: {exc}"[:200]}
            return offset


# What makes messages of frames is a function with this name inside, and takes no other class.
method_framing.Message = _Message


class Channel(pyamqp.Channel):
    """Kombu's channel."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # The sender names the encoding, and some of Python's take time that grows with the square of the length.
        super().__init__(*args, **{**options, "auto_decode": False})

    def basic_consume(self, queue: str = "", *args: Any, callback: Any = None, **options: Any) -> Any:
        """Consume from a queue; the callback gets messages that were checked."""
        return super().basic_consume(queue, *args, callback=self._checking(queue, callback), **options)

    def _checking(self, queue: str, callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def received(message: Any) -> Any:
            props = message.properties
            if _UNREADABLE in props:
                found: Checked | Refused = Refused("its properties cannot be read", props[_UNREADABLE], None)
            else:
                headers = props.get("application_headers") or {}
                body = getattr(message, "body", b"")  # a message without any has none
                found = check(headers, body, props.get("content_type"), props.get("content_encoding"))
            if isinstance(found, Refused):
                refuse(found, queue)
                self.basic_reject(message.delivery_tag, requeue=False)
                return None
            message.body = found.body
            message.properties = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "application_headers": found.headers,
                "correlation_id": found.headers["id"],
            }
            return callback(message)

        return received


class Connection(pyamqp.Connection):
    """Kombu's connection."""

    Channel = Channel

    def on_inbound_method(self, channel_id: int, method_sig: Any, payload: Any, content: Any) -> Any:
        """Pass on what came. A routing key is bytes to RabbitMQ; py-amqp raises where they are no UTF-8."""
        try:
            return super().on_inbound_method(channel_id, method_sig, payload, content)
        except UnicodeDecodeError as exc:
            if method_sig != spec.Basic.Deliver:
                raise
            refuse(Refused("its routing key is no text", str(exc), None), "")
            (length,) = unpack_from(">B", payload, 4)
            (delivery_tag,) = unpack_from(">Q", payload, 5 + length)
            return self.channels[channel_id].basic_reject(delivery_tag, requeue=False)


class Transport(pyamqp.Transport):
    """Kombu's transport, with this channel."""

    Connection = Connection


class SSLTransport(pyamqp.SSLTransport):
    """Kombu's transport for amqps://, with this channel."""

    Connection = Connection
