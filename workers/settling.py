"""Acknowledging over a connection that is lost, for those brokers whose messages Kombu itself counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.transport.virtual import QoS


class Settling:
    """Comes before a channel of Kombu's, which reads on although it could not acknowledge.

    An error leaves a message on Kombu's list of those in work, and Celery only logs it. A worker all of whose messages met
    one would not ask for others, and so not even notice that its connection is lost.
    """

    qos: Any
    connection: Any

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message."""
        self._settle(super().basic_ack, delivery_tag, multiple=multiple)  # type: ignore[misc]

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, or up."""
        self._settle(super().basic_reject, delivery_tag, requeue=requeue)  # type: ignore[misc]

    def mend(self) -> None:
        """Let lost connections go, before the second and last try."""

    def _settle(self, how: Callable[..., None], delivery_tag: str, **options: bool) -> None:
        lost = self.connection.connection_errors
        try:
            try:
                how(delivery_tag, **options)
            except lost:
                self.mend()
                how(delivery_tag, **options)
        except lost:
            # It comes back after its timeout; its unit is done by then, and passed over.
            QoS.ack(self.qos, delivery_tag)  # type: ignore[no-untyped-call]
            raise
