"""Where results come from: recipes, runs and failures."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from and_platform import db, logs, masking
from and_platform.backends.base import BackendRecipe
from and_platform.schema import Failure, FinishedLayer, Recipe, Run

_LIBRARIES = ("and-platform", "torch", "transformers", "numpy", "sentence-transformers", "hanta", "pgvector")


def canonical(value: Any) -> str:
    """JSON that is the same for the same content, whatever the order of keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_of(value: Any) -> str:
    """Hash of any JSON-serialisable content."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class RecipePlan:
    """A recipe before it has a row: its hash is known without a database, so that a whole dissection can be planned."""

    stage: str
    backend: str
    revision: str
    params: Mapping[str, Any]
    parents: tuple[RecipePlan, ...] = ()
    origin: str | None = field(default=None, compare=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        content = {
            "stage": self.stage,
            "backend": self.backend,
            "revision": self.revision,
            "params": dict(self.params),
            "parents": [parent.sha256 for parent in self.parents],
        }
        object.__setattr__(self, "sha256", sha256_of(content))

    @classmethod
    def of(cls, stage: str, backend: BackendRecipe, parents: Iterable[RecipePlan] = (), **params: Any) -> RecipePlan:
        """The recipe of a backend's work in a stage; `params` join the backend's own."""
        told = _without_secrets({**backend.params, **params})
        return cls(stage, backend.name, backend.revision, told, tuple(parents), backend.origin)


def _without_secrets(value: Any) -> Any:
    """Keys and passwords by their names, and URLs. Prompts stay to the letter: what they say is part of the recipe."""
    if isinstance(value, Mapping):
        return {
            key: logs.MASK if isinstance(told, str) and logs.names_a_secret(str(key)) else _without_secrets(told)
            for key, told in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(told) for told in value]
    return logs.mask(value) if isinstance(value, str) and "://" in value else value


def recipe_id(session: Session, plan: RecipePlan) -> int:
    """The id of a recipe's row; made, with its parents, where it is new."""
    parents = [recipe_id(session, parent) for parent in plan.parents]
    session.execute(
        insert(Recipe)
        .values(
            stage=plan.stage, backend=plan.backend, revision=plan.revision, params=dict(plan.params),
            parents=parents, sha256=plan.sha256, origin=plan.origin,
        )
        .on_conflict_do_nothing(index_elements=["sha256"])
    )  # fmt: skip
    return session.scalars(sa.select(Recipe.id).where(Recipe.sha256 == plan.sha256)).one()


def find_recipe(session: Session, plan: RecipePlan) -> int | None:
    """The id of a recipe's row, if there is one."""
    return session.scalars(sa.select(Recipe.id).where(Recipe.sha256 == plan.sha256)).one_or_none()


# ---------------------------------------------------------------------- what is finished


def finished_layers(session: Session, recipe: int) -> set[int]:
    """Ids of the layers for which all rows of a recipe are there."""
    return set(session.scalars(sa.select(FinishedLayer.layer_id).where(FinishedLayer.recipe_id == recipe)))


def finish_layer(session: Session, recipe: int, layer_id: int) -> None:
    """Say that all rows of a recipe are there for a layer; in the transaction that wrote the last of them."""
    session.execute(insert(FinishedLayer).values(recipe_id=recipe, layer_id=layer_id).on_conflict_do_nothing())


# ---------------------------------------------------------------------- runs


@dataclass
class RunHandle:
    """A run in progress. `counts` is written with its outcome."""

    id: int
    counts: dict[str, Any] = field(default_factory=dict)
    dissection_id: int | None = None


@contextmanager
def run(engine: sa.Engine, command: str, arguments: Mapping[str, Any]) -> Iterator[RunHandle]:
    """Record an invocation: begun now, finished when the block ends, with how it ended.

    A killed process leaves `outcome = 'running'` with no `finished_at`; the next run of the same host marks it
    'interrupted' where its process is gone.
    """
    with db.transaction(engine) as session:
        handle = RunHandle(open_run(session, command, arguments))
    try:
        yield handle
    except BaseException as exc:
        stopped = isinstance(exc, KeyboardInterrupt | SystemExit)
        _finish(engine, handle, "interrupted" if stopped else "failed", f"{type(exc).__name__}: {exc}")
        raise
    _finish(engine, handle, "ok", None)


def open_run(session: Session, command: str, arguments: Mapping[str, Any], *, distributed: bool = False) -> int:
    """Write down that something begins; returns the run's id. `distributed`: it outlives this process."""
    _mark_interrupted(session)
    row = Run(
        command=command, arguments=logs.masked(json.loads(json.dumps(dict(arguments), default=str))),
        versions=versions(), machine=_machine(), distributed=distributed,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row.id


def _finish(engine: sa.Engine, handle: RunHandle, outcome: str, error: str | None) -> None:
    try:
        with db.transaction(engine) as session:
            session.execute(
                sa.update(Run)
                .where(Run.id == handle.id)
                .values(
                    outcome=outcome, error=None if error is None else masking.reason_of(error), counts=handle.counts,
                    finished_at=sa.func.now(), dissection_id=handle.dissection_id,
                )
            )  # fmt: skip
    except Exception:
        if error is None:  # else the error being reported matters more than the failed note of it
            raise


def _mark_interrupted(session: Session) -> None:
    import psutil

    open_runs = session.scalars(
        sa.select(Run).where(
            Run.outcome == "running", ~Run.distributed, Run.machine["host"].astext == socket.gethostname()
        )
    )
    for row in open_runs:
        try:
            process = psutil.Process(int(row.machine["pid"]))
            alive = abs(process.create_time() - float(row.machine["process_started"])) < 1
        except (psutil.Error, KeyError, TypeError):
            alive = False
        if not alive:
            row.outcome = "interrupted"


def versions() -> dict[str, str]:
    """Versions of Python, of the platform and of the libraries that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    import psutil

    machine: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        machine["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return machine


# ---------------------------------------------------------------------- failures


MESSAGE = "message"
"""The stage of failures that tell of a broker's messages: no command tries those again."""


def record_failure(
    session: Session,
    *,
    stage: str,
    scope: str,
    unit: str,
    reason: str,
    detail: str | None = None,
    run_id: int | None = None,
    clip_id: int | None = None,
) -> None:
    """Keep why a unit of work failed; a unit that fails again is updated, not doubled."""
    statement = insert(Failure).values(
        stage=stage, scope=scope, unit=storable(unit), reason=storable(masking.reason_of(reason)),
        detail=None if detail is None else storable(masking.reason_of(detail, masking.LONGEST_DETAIL)),
        run_id=run_id, clip_id=clip_id,
    )  # fmt: skip
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["stage", "scope", "unit"],
            index_where=Failure.resolved_at.is_(None),
            set_={
                "reason": statement.excluded.reason,
                "detail": statement.excluded.detail,
                "run_id": statement.excluded.run_id,
                "clip_id": statement.excluded.clip_id,
                "happened_at": sa.func.now(),
            },
        )
    )


def resolve_failures(session: Session, *, stage: str, scope: str, units: Iterable[str]) -> int:
    """Mark the open failures of these units as resolved; returns how many there were."""
    # One array, not a parameter for each: a statement has room for 65,535.
    named = sa.cast([storable(unit) for unit in units], ARRAY(sa.Text))
    result = session.execute(
        sa.update(Failure)
        .where(
            Failure.stage == stage,
            Failure.scope == scope,
            Failure.resolved_at.is_(None),
            Failure.unit == sa.any_(named),
        )
        .values(resolved_at=sa.func.now())
    )
    return int(getattr(result, "rowcount", 0))


def storable(text: str) -> str:
    """Text as Postgres takes it: names of files and answers of models may hold NUL or half a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode("utf-8")
