"""The app as Flower needs it: `celery -A workers.flower flower`. It asks from many threads at once.

Each of them holds a connection while it waits for another one; with the few that a worker needs they wait for ever.
"""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES

from workers.app import PLAIN_TRANSPORTS, app

app.conf.broker_pool_limit = None
# It reads what workers tell of themselves, and takes no tasks: ours refuse all but our own tasks' messages.
TRANSPORT_ALIASES.update(PLAIN_TRANSPORTS)
