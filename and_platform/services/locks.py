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
    It is a transaction's lock, in a transaction that stays open: a session's would be lost behind a pooler. The
    transaction has no snapshot, so that it keeps no vacuum from its work.
    """
    argument = {"key": f"and_platform:{key}"}
    with db.translated(), engine.connect() as connection:
        take = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))")
        told = False
        while not connection.scalar(take, argument):
            connection.rollback()
            if waiting and not told:
                waiting()
                told = True
            time.sleep(0.2)
        connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield


@contextmanager
def held_now(engine: sa.Engine, key: str) -> Iterator[bool]:
    """Hold the lock `key` if nobody else has it; the context's value says so. As `held`, without waiting."""
    with db.translated(), engine.connect() as connection:
        take = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))")
        mine = bool(connection.scalar(take, {"key": f"and_platform:{key}"}))
        connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        yield mine
