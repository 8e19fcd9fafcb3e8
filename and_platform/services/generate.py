"""Asking an LLM: an identical prompt once, every answer stored before it is used."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import LLM, Form, Generation, Prompt, StreamingLLM
from and_platform.core import prompts as reading
from and_platform.errors import BackendError, GenerationError
from and_platform.services import provenance
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan

_STORED_TOGETHER = 64
_STORE_AFTER_S = 10.0


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
    form: Form | None = None,
    progress: Progress = SILENT,
) -> list[Said]:
    """The answers to prompts, in order; those asked before come from the database.

    Parameters
    ----------
    max_tokens
        Longest answer.
    name
        What the progress bar says.
    form
        What the answers are held to, where the LLM keeps forms. Its answers may then be JSON (`core.prompts` reads
        either).

    Raises
    ------
    BackendError
        The LLM as a whole cannot be asked; what it has answered until then is kept.
    """
    with db.transaction(engine) as session:
        recipe_id = provenance.recipe_id(session, plan(llm))
    held = form if isinstance(llm, StreamingLLM) and llm.structured else None
    keys = [key_of(prompt, max_tokens, held) for prompt in prompts]
    distinct = dict(zip(keys, prompts, strict=True))
    with db.reading(engine) as session:
        said = {key: said_of(answer) for key, answer in _stored(session, recipe_id, list(distinct)).items()}
    todo = [(key, prompt) for key, prompt in distinct.items() if key not in said]
    if todo:
        with progress.stage(name, len(todo), "prompts") as advance:
            for batch, answers in _in_batches(llm, todo, max_tokens, held):
                kept = _keep(engine, recipe_id, batch, answers)
                for (key, _), answer in zip(batch, answers, strict=True):
                    said[key] = said_of(kept[key]) if key in kept else Said(None, f"{type(answer).__name__}: {answer}")
                advance(len(batch))
    return [said[key] for key in keys]


Asked = tuple[str, Prompt]
"""A prompt with its key before it."""


def _in_batches(
    llm: LLM, todo: Sequence[Asked], max_tokens: int, form: Form | None
) -> Iterator[tuple[list[Asked], list[Generation | Exception]]]:
    """Answers with what they answer, as many at a time as are stored together.

    Raises
    ------
    BackendError
        The LLM itself is at fault: no further prompt can do better. All answers there are come before it.
    """
    batch: list[Asked] = []
    answers: list[Generation | Exception] = []
    fault: BackendError | None = None
    since = time.monotonic()
    try:
        for place, answer in one_by_one(llm, [prompt for _, prompt in todo], max_tokens, form):
            if isinstance(answer, BackendError) and not isinstance(answer, GenerationError):
                fault = fault or answer
                continue
            batch.append(todo[place])
            answers.append(answer)
            if len(batch) >= _STORED_TOGETHER or time.monotonic() - since > _STORE_AFTER_S:
                yield batch, answers
                batch, answers, since = [], [], time.monotonic()
    except BackendError as exc:
        fault = exc
    if batch:
        yield batch, answers
    if fault:
        raise fault


def one_by_one(
    llm: LLM, prompts: Sequence[Prompt], max_tokens: int, form: Form | None
) -> Iterator[tuple[int, Generation | Exception]]:
    """Places of prompts with their answers; an LLM that does not stream is asked a batch at a time."""
    if isinstance(llm, StreamingLLM):
        yield from llm.stream(prompts, max_tokens=max_tokens, form=form)
        return
    for start in range(0, len(prompts), _STORED_TOGETHER):
        answers = llm.generate(prompts[start : start + _STORED_TOGETHER], max_tokens=max_tokens)
        yield from enumerate(answers, start)
        if any(isinstance(answer, BackendError) and not isinstance(answer, GenerationError) for answer in answers):
            return


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


def key_of(prompt: Prompt, max_tokens: int, form: Form | None = None) -> str:
    """What an answer is stored under: the hash of all that it depends on, the LLM aside."""
    held = "" if form is None else f"\0{provenance.canonical(dataclasses.asdict(form))}"
    return hashlib.sha256(f"{prompt.system}\0{prompt.user}\0{max_tokens}{held}".encode()).hexdigest()


def said_of(answer: str) -> Said:
    """What is to be read of an answer as it was kept."""
    text = reading.after_thinking(answer)
    return Said(text) if text else Said(None, "the answer ended before the model had done thinking")


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
