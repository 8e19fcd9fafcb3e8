"""Asking an LLM: an identical prompt once, every answer stored before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import LLM, Generation, Prompt
from and_platform.errors import BackendError, GenerationError
from and_platform.services import provenance
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan

_BATCH = 64


@dataclass(frozen=True)
class Said:
    """The answer to a prompt, or why there is none."""

    text: str | None
    error: str | None = None


def plan(llm: LLM) -> RecipePlan:
    """The recipe of an LLM's answers."""
    return RecipePlan.of("generate", llm.recipe)


def ask(
    engine: sa.Engine,
    llm: LLM,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    name: str,
    progress: Progress = SILENT,
) -> list[Said]:
    """The answers to prompts, in order; those asked before come from the database.

    Parameters
    ----------
    max_tokens
        Longest answer.
    name
        What the progress bar says.

    Raises
    ------
    BackendError
        The LLM as a whole cannot be asked; what it has answered until then is kept.
    """
    with db.transaction(engine) as session:
        recipe_id = provenance.recipe_id(session, plan(llm))
    keys = [_key(prompt, max_tokens) for prompt in prompts]
    distinct = dict(zip(keys, prompts, strict=True))
    with db.reading(engine) as session:
        said = {key: Said(answer) for key, answer in _stored(session, recipe_id, list(distinct)).items()}
    todo = [(key, prompt) for key, prompt in distinct.items() if key not in said]
    if todo:
        with progress.stage(name, len(todo), "prompts") as advance:
            for start in range(0, len(todo), _BATCH):
                batch = todo[start : start + _BATCH]
                answers = llm.generate([prompt for _, prompt in batch], max_tokens=max_tokens)
                kept = _keep(engine, recipe_id, batch, answers)
                for answer in answers:
                    # The endpoint itself is at fault: no prompt of this or the next batch can do better.
                    if isinstance(answer, BackendError) and not isinstance(answer, GenerationError):
                        raise answer
                for (key, _), answer in zip(batch, answers, strict=True):
                    said[key] = Said(kept[key]) if key in kept else Said(None, f"{type(answer).__name__}: {answer}")
                advance(len(batch))
    return [said[key] for key in keys]


def _keep(
    engine: sa.Engine,
    recipe_id: int,
    batch: Sequence[tuple[str, Prompt]],
    answers: Sequence[Generation | Exception],
) -> dict[str, str]:
    """Store the answers; returns those in the database. Another process may have asked the same, and been first."""
    # Sorted: two processes that insert the same keys in different orders would wait for each other for ever.
    ordered = sorted(zip(batch, answers, strict=True), key=lambda pair: pair[0][0])
    with db.transaction(engine) as session:
        db.insert_new(
            session,
            "answers",
            {
                "recipe_id": "int8", "prompt_sha256": "text", "prompt": "text", "answer": "text",
                "prompt_tokens": "int4", "completion_tokens": "int4", "finish_reason": "text",
            },
            (
                (
                    recipe_id, key, f"{prompt.system}\n\n{prompt.user}".strip(), answer.text.replace("\0", ""),
                    answer.prompt_tokens, answer.completion_tokens, answer.finish_reason,
                )
                for (key, prompt), answer in ordered
                if isinstance(answer, Generation)
            ),
        )  # fmt: skip
        return _stored(session, recipe_id, [key for key, _ in batch])


def _stored(session: Session, recipe_id: int, keys: Sequence[str]) -> dict[str, str]:
    rows = session.execute(
        sa.text("SELECT prompt_sha256, answer FROM answers WHERE recipe_id = :recipe AND prompt_sha256 = ANY (:keys)"),
        {"recipe": recipe_id, "keys": list(keys)},
    )
    return dict(rows.all())


def _key(prompt: Prompt, max_tokens: int) -> str:
    return hashlib.sha256(f"{prompt.system}\0{prompt.user}\0{max_tokens}".encode()).hexdigest()


class Usage(NamedTuple):
    """Answers of an LLM that are in the database, and their tokens."""

    answers: int
    prompt_tokens: int
    completion_tokens: int


def usage(engine: sa.Engine, llm: LLM) -> Usage:
    """What an LLM, with its sampling, has answered so far and what that cost."""
    with db.reading(engine) as session:
        row = session.execute(
            sa.text(
                "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) FROM answers a"
                " JOIN recipes r ON r.id = a.recipe_id WHERE r.sha256 = :sha256"
            ),
            {"sha256": plan(llm).sha256},
        ).one()
        return Usage(*(int(value) for value in row))
