"""The Celery app. Its settings are read, and its broker made ready, when it is first used and not at import."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from and_platform.config import Settings, settings
from and_platform.errors import BrokerError, BrokerUnreachableError, ConfigError, MissingExtraError
from workers.queues import QUEUES, broker_name, visibility_timeouts

try:
    from celery import Celery
    from celery.exceptions import QueueNotFound
    from celery.loaders.app import AppLoader
    from kombu import pools
    from kombu.entity import Queue
    from kombu.exceptions import OperationalError
    from kombu.transport import TRANSPORT_ALIASES
except ImportError as exc:
    raise MissingExtraError("celery", "workers") from exc

CONFIRM_SECONDS = 10.0
"""How long a sender waits for RabbitMQ to say that a message is safe."""

KINDS = {
    "pgmq": "pgmq", "amqp": "rabbitmq", "amqps": "rabbitmq", "pyamqp": "rabbitmq", "redis": "redis", "rediss": "redis"
}  # fmt: skip

PLAIN_TRANSPORTS = {
    scheme: TRANSPORT_ALIASES[scheme] for scheme in KINDS if scheme != "pgmq" and scheme in TRANSPORT_ALIASES
}
"""Kombu's own, for programs that take no tasks."""

# By scheme and not by `broker_transport`, which would take precedence over the scheme, and so the TLS from rediss://.
TRANSPORT_ALIASES |= {
    "pgmq": "workers.pgmq:Transport",
    "amqp": "workers.rabbitmq:Transport",
    "pyamqp": "workers.rabbitmq:Transport",
    "amqps": "workers.rabbitmq:SSLTransport",
    "redis": "workers.redis:Transport",
    "rediss": "workers.redis:Transport",
}


def kind(config: Settings) -> str:
    """Which broker is set: pgmq, rabbitmq or redis.

    Raises
    ------
    ConfigError
        Another one is.
    """
    scheme = urlsplit(_given(config) or "pgmq://").scheme
    if scheme not in KINDS:
        raise ConfigError("ANDP_BROKER_URL is no broker's; give pgmq://…, amqp://… or redis://…")
    return KINDS[scheme]


def _given(config: Settings) -> str:
    return config.broker_url.get_secret_value() if config.broker_url else ""


def configuration(queues: Sequence[str] = QUEUES) -> dict[str, Any]:
    """Celery's settings.

    Parameters
    ----------
    queues
        The queues that this process takes messages from; for pgmq the longest of their visibility timeouts holds.

    Raises
    ------
    ConfigError, MissingExtraError, DatabaseError
        The broker cannot be used; see `workers.pgmq.broker`.
    """
    config = settings()
    which = kind(config)
    timeouts = visibility_timeouts(config)
    match which:
        case "pgmq":
            from workers import pgmq

            # Given with each read: a worker of several queues takes the longest of theirs.
            url, options = pgmq.broker(_given(config) or pgmq.SCHEME, config)
            options["visibility_timeout"] = max(timeouts[queue] for queue in queues)
        case "rabbitmq":
            url, options = _given(config), dict(_RABBITMQ)
        case _:
            _require("redis")
            # Whoever looks for overdue messages finds those of all queues: the longest of all holds for everyone.
            url, options = _given(config), {**_REDIS, "visibility_timeout": max(timeouts.values())}
    return {
        "broker_url": url,
        "broker_transport_options": options,
        # Reconnect for ever; a channel that the broker has closed (RabbitMQ's consumer_timeout) counts as a lost connection.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_connection_timeout": float(config.connect_timeout),
        "broker_heartbeat": 30,  # seconds after which a silent RabbitMQ, or a silent worker, is taken for lost
        "broker_pool_limit": 2,
        "task_publish_retry_policy": {"max_retries": 6, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 2},
        # A misspelt queue is an error and not a queue that nobody reads. pgmq's are made with its schema.
        "task_create_missing_queues": False,
        "task_queues": [
            Queue(  # type: ignore[no-untyped-call]
                broker_name(queue), routing_key=broker_name(queue), durable=True, no_declare=which == "pgmq"
            )
            for queue in QUEUES
        ],
        "task_default_queue": broker_name("cpu"),
        "task_default_exchange": "andp",
        "task_default_delivery_mode": "persistent",
        # A message stays with the broker until its task has ended, and goes to another worker if this one dies.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_lost_wait": 2.0,  # a dead child's last word is not worth Celery's ten seconds: tasks may run twice
        "worker_prefetch_multiplier": 1,
        # A unit whose connection is lost is worth finishing: its rows count, and when it is delivered again it is passed
        # over. To cancel it would kill the process and the models that it has loaded.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_proc_alive_timeout": 600.0,  # a child may load models before it reports
        # What came of a task is in our tables: no result backend.
        "task_ignore_result": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "worker_enable_remote_control": False,  # it needs broadcasts, which not every broker has
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


_RABBITMQ = {
    "confirm_publish": True,  # a send has ended when the message is on disk
}

UNACKED = "andp.unacked"
"""Where Redis keeps messages that workers have."""

_REDIS = {
    # Names of our own: another application that shares the server would bring our messages back by its own timeout.
    "unacked_key": UNACKED,
    "unacked_index_key": "andp.unacked_index",
    "unacked_mutex_key": "andp.unacked_mutex",
    "unacked_mutex_expire": 30,  # who dies while it looks for overdue messages holds the others up no longer than this
    "unacked_restore_interval": 2,
    "unacked_restore_throttle": 1,
    "socket_timeout": CONFIRM_SECONDS,  # else a send waits for ever on a connection whose other end is gone
    "socket_connect_timeout": 10.0,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError(package, "workers")


@contextmanager
def reached(doing: str = "reach") -> Iterator[None]:
    """Turn what Celery and the brokers' clients raise about the connection into one line.

    Raises
    ------
    BrokerError, BrokerUnreachableError
    """
    try:
        yield
    except QueueNotFound as exc:
        raise BrokerError(f"there is no queue {exc}; the queues are: {', '.join(QUEUES)}") from exc
    except _client_errors() as exc:
        cause = exc.__cause__ if isinstance(exc, OperationalError) and exc.__cause__ else exc
        told = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
        raise BrokerUnreachableError(
            f"cannot {doing} the broker: {told[:200]}; check ANDP_BROKER_URL and that the broker runs"
        ) from exc


def _client_errors() -> tuple[type[Exception], ...]:
    transport = app.connection_for_read().transport
    found = (*transport.connection_errors, *transport.channel_errors)
    return (OperationalError, *(error for error in found if error is not KeyError))  # which Kombu counts as Redis's


class _Loader(AppLoader):  # type: ignore[misc]
    """Celery's loader, without the working folder, which Celery puts first on the search path for each import."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> Any:
        return (imp or importlib.import_module)(module, package)


class UnitApp(Celery):  # type: ignore[misc]
    """Sends for good: the broker has a message when `send_task` returns, or the caller hears why not, in one line.

    A broker that is away is tried again for 8 s.
    """

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        with reached("send to"):
            return super().send_task(name, *args, **{"confirm_timeout": CONFIRM_SECONDS, **options})


app = UnitApp("and_platform", include=["workers.tasks"], loader=_Loader)
app.add_defaults(configuration)


def settle(queues: Sequence[str] = QUEUES) -> None:
    """Have the app follow the settings as they are now, with a broker of another kind, too.

    Raises
    ------
    ConfigError, MissingExtraError, DatabaseError
        As `configuration`.
    """
    drop_connections()
    app.conf.update(configuration(queues))


def drop_connections() -> None:
    """Close what this process has open to the broker; the next message connects anew."""
    pools.reset()  # type: ignore[no-untyped-call]
    app._pool = None
    app.__dict__.pop("amqp", None)  # Celery keeps queues and senders there once they are made
