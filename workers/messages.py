"""Sending messages: the broker's side of the ledger."""

from __future__ import annotations

from workers import tracing
from workers.app import app
from workers.queues import broker_name


class CeleryMessenger:
    """Sends by name, so that a client need not import what workers do."""

    def unit(self, queue: str, unit_id: int) -> None:
        """Tell a worker of a queue to do a unit."""
        app.send_task("andp.unit", (unit_id,), queue=broker_name(queue), headers=tracing.headers())

    def advance(self, run_id: int) -> None:
        """Tell a worker to see what a run needs next."""
        app.send_task("andp.advance", (run_id,), queue=broker_name("db"), headers=tracing.headers())


MESSENGER = CeleryMessenger()
