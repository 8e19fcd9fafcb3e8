"""Reading and running the queries kept in `sql/queries/`.

A file holds blocks that begin with `-- name: what it answers.`; parameters are psycopg's `%(name)s`, and the text goes to
the driver as it is, since SQLAlchemy's `text()` would take colons in it for parameters.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from sqlalchemy.orm import Session

from and_platform.resources import resource

_HEADER = re.compile(r"^-- ([a-z_0-9]+): ", re.MULTILINE)


@cache
def all_queries() -> dict[str, str]:
    """Every query by name."""
    found: dict[str, str] = {}
    for path in sorted(resource("sql/queries").glob("*.sql")):
        parts = _HEADER.split(path.read_text("utf-8"))
        for name, body in zip(parts[1::2], parts[2::2], strict=True):
            # The rest of the header line is its description.
            found[name] = body.partition("\n")[2].strip().rstrip(";")
    return found


def rows(session: Session, name: str, **params: Any) -> list[Any]:
    """The rows of a query, as tuples with names."""
    return list(session.connection().exec_driver_sql(all_queries()[name], params).all())


def dicts(session: Session, name: str, **params: Any) -> list[dict[str, Any]]:
    """The rows of a query, as dicts."""
    result = session.connection().exec_driver_sql(all_queries()[name], params)
    return [dict(row) for row in result.mappings()]


def execute(session: Session, name: str, **params: Any) -> int:
    """Run a query that writes; returns the number of rows."""
    return int(session.connection().exec_driver_sql(all_queries()[name], params).rowcount)
