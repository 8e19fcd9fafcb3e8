"""The four queues: what they are called, and for how long a worker may keep a message of each."""

from __future__ import annotations

from collections.abc import Iterable

from and_platform.config import Settings
from and_platform.errors import ConfigError

QUEUES = ("cpu", "gpu", "llm", "db")
"""cpu: decode, acoustics, tagging; gpu: activations, captions, embeddings; llm: generation; db: fold, match, statistics."""

PREFIX = "andp."

VISIBILITY_TIMEOUTS = {"cpu": 300, "gpu": 900, "llm": 1800, "db": 900}
"""Seconds; units take less than a minute by default, and a model may have to be loaded before the first."""


def broker_name(queue: str) -> str:
    """Name of a queue in the broker: `andp.gpu`. pgmq makes `andp_gpu` of it by itself."""
    return PREFIX + queue


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """Queues as a user names them, each once and in the order of `QUEUES`.

    Raises
    ------
    ConfigError
        There is no such queue, or none is named.
    """
    wanted = {name.strip().lower() for name in names} - {""}
    if unknown := sorted(wanted - set(QUEUES)):
        raise ConfigError(f"there is no queue '{unknown[0]}'; the queues are: {', '.join(QUEUES)}")
    if not wanted:
        raise ConfigError(f"no queue is named; the queues are: {', '.join(QUEUES)}")
    return tuple(queue for queue in QUEUES if queue in wanted)


def visibility_timeouts(config: Settings) -> dict[str, int]:
    """Queue -> seconds after which an unfinished unit goes to another worker: its own setting, the one for all, ours.

    Raises
    ------
    ConfigError
        `ANDP_VISIBILITY_TIMEOUTS` names a queue that does not exist.
    """
    own = config.visibility_timeouts
    if unknown := sorted(set(own) - set(QUEUES)):
        raise ConfigError(
            f"ANDP_VISIBILITY_TIMEOUTS: there is no queue '{unknown[0]}'; the queues are: {', '.join(QUEUES)}"
        )
    return {queue: own.get(queue, config.visibility_timeout or VISIBILITY_TIMEOUTS[queue]) for queue in QUEUES}
