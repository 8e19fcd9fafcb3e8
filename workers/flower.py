"""The app as Flower needs it: `celery -A workers.flower flower`. It asks from many threads at once.

Each of them holds a connection while it waits for another one; with the few that a worker needs they wait for ever.
"""

from __future__ import annotations

from workers.app import app

app.conf.broker_pool_limit = None
