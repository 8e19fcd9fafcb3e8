"""The Celery app. Its settings are read, and its broker made ready, when it is first used and not at import."""

from __future__ import annotations

from typing import Any

from and_platform.config import settings
from and_platform.errors import MissingExtraError

try:
    from celery import Celery
except ImportError as exc:
    raise MissingExtraError("celery", "workers") from exc


def configuration() -> dict[str, Any]:
    """Celery's settings.

    Raises
    ------
    ConfigError, DatabaseError
        The broker cannot be used; see `workers.pgmq.broker`.
    """
    from workers import pgmq

    config = settings()
    url = config.broker_url.get_secret_value() if config.broker_url else pgmq.SCHEME
    transport: dict[str, Any] = {"visibility_timeout": config.visibility_timeout}
    if url.startswith(pgmq.SCHEME):
        url, options = pgmq.broker(url, config)
        transport |= options
    return {
        "broker_url": url,
        "broker_transport_options": transport,
        "broker_connection_retry_on_startup": True,
        # A message stays with the broker until its task has ended, and goes to another worker if this one dies.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_lost_wait": 2.0,  # a dead child's last word is not worth Celery's ten seconds: tasks may run twice
        "worker_prefetch_multiplier": 1,
        "task_ignore_result": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "worker_enable_remote_control": False,  # it needs broadcasts, which not every broker has
        "task_default_queue": "andp",
    }


app = Celery("and_platform", include=["workers.tasks"])
app.add_defaults(configuration)
