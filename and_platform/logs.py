"""The log on standard error: lines for people, or JSON for machines, each with the run, stage and unit it belongs to.

Modules log as always, with `logging.getLogger(__name__)`; whoever starts a piece of work says what it is:

    with logs.bound(run=12, stage="caption", unit=345):
        ...

A line that is not written costs nothing here: fields are looked up, and secrets masked, when a line is formatted.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TextIO

from and_platform.errors import ConfigError
from and_platform.escaping import for_terminal
from and_platform.masking import MASK, mask, masked, names_a_secret, shortened

__all__ = ["FIELDS", "LONGEST_LINE", "MASK", "bound", "configure", "mask", "masked", "names_a_secret"]

Format = Literal["text", "json"]
FIELDS = ("run", "stage", "unit", "worker")
LONGEST_LINE = 32_768
"""Characters of a line; the middle of a longer one is left out."""

_NOTHING: Mapping[str, Any] = {}
_bound: ContextVar[Mapping[str, Any]] = ContextVar("andp_log_fields", default=_NOTHING)

_FIRST = ("time", "level", "logger", "message", *FIELDS)  # the order in a JSON line; what else there is comes after
_RENAMED = {"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"}


# ---------------------------------------------------------------------- what a line is about


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Lines logged inside the block say what they are about.

    Parameters
    ----------
    **fields
        `run`, `stage`, `unit`; those of an outer block stay unless they are named again. They hold for this thread
        (or asyncio task) and for processes forked from it, not for other threads.

    Raises
    ------
    TypeError
        A field is not one of `FIELDS`.
    """
    if unknown := fields.keys() - set(FIELDS):
        raise TypeError(f"no field '{min(unknown)}' in a log line; there are {', '.join(FIELDS)}")
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


class _Handler(logging.StreamHandler[TextIO]):
    """The one handler of this module; a second `configure` finds it by its class and replaces it."""

    def __init__(self, stream: TextIO, worker: str | None) -> None:
        super().__init__(stream)
        self._always: Mapping[str, Any] = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        fields = {**self._always, **_bound.get()}
        for name in FIELDS:
            setattr(record, name, fields.get(name))
        return super().format(record)


# ---------------------------------------------------------------------- how a line looks


class _Text(logging.Formatter):
    """`LEVEL logger [run 12 caption unit 345]: message`; a worker's lines begin with the time, in UTC."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, timed: bool) -> None:
        super().__init__(("%(asctime)s " if timed else "") + "%(levelname)s %(name)s%(about)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        named = (("run ", "run"), ("", "stage"), ("unit ", "unit"))
        words = [f"{word}{value}" for word, name in named if (value := getattr(record, name)) is not None]
        record.about = f" [{' '.join(words)}]" if words else ""
        return for_terminal(shortened(mask(super().format(record)), LONGEST_LINE))


def _json() -> logging.Formatter:
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        ["levelname", "name", "message", *FIELDS],
        timestamp="time", rename_fields=_RENAMED, json_serializer=_dumps,
        reserved_attrs=[*RESERVED_ATTRS, "about", "data"],  # `data`: Celery's message once more, with its arguments
    )  # fmt: skip


def _dumps(line: dict[str, Any], **options: Any) -> str:
    there = {key: value for key, value in line.items() if value is not None}
    ordered = {key: there.pop(key) for key in _FIRST if key in there} | there
    short = {
        key: shortened(value, LONGEST_LINE) if isinstance(value, str) else value
        for key, value in masked(ordered).items()
    }
    return json.dumps(short, **{**options, "ensure_ascii": False})


# ---------------------------------------------------------------------- setting it up


def configure(
    level: str | int, format: Format = "text", *, worker: str | None = None, stream: TextIO | None = None
) -> None:
    """Set up the log of this process. Called again, it replaces what it had set up, and touches nobody else's handlers.

    Parameters
    ----------
    level
        The least level that is written: `DEBUG`, `INFO`, `WARNING`, `ERROR`, `CRITICAL`, or its number.
    format
        `text`, for people; `json`: one object a line with time (UTC, ISO 8601), level, logger, message and, where there
        are any, run, stage, unit, worker, exception.
    worker
        Name of this worker, for each of its lines; in text, lines get the time as well.
    stream
        Where lines go; standard error unless given.

    Raises
    ------
    ConfigError
        There is no such level.
    """
    if isinstance(level, str):
        number = logging.getLevelNamesMapping().get(level.upper())
        if number is None:
            raise ConfigError(f"ANDP_LOG_LEVEL is '{level.upper()}'; give DEBUG, INFO, WARNING or ERROR")
        level = number
    handler = _Handler(stream or sys.stderr, worker)
    handler.setFormatter(_json() if format == "json" else _Text(timed=worker is not None))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("alembic").setLevel(max(level, logging.WARNING))  # a line for each look at the schema's version
    # A warning that a library prints would be the one line that is not JSON, or has no time.
    logging.captureWarnings(format == "json" or worker is not None)
