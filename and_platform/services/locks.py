"""Locks that the database keeps: gone with the process that held them, however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from and_platform import db


@contextmanager
def held(engine: sa.Engine, key: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock `key`, on a connection of its own; `waiting` is called once if someone else has it.

    Asked for again and again rather than waited for in the server: no statement timeout ends the wait, and Ctrl-C does.
    """
    argument = {"key": f"and_platform:{key}"}
    with db.translated(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        take = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:key, 0))")
        told = False
        while not connection.scalar(take, argument):
            if waiting and not told:
                waiting()
                told = True
            time.sleep(0.2)
        try:
            yield
        finally:
            if not connection.invalidated:
                connection.execute(sa.text("SELECT pg_advisory_unlock(hashtextextended(:key, 0))"), argument)
