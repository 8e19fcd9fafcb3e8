"""Models as their rows know them: a worker of the queue `db` reads what they made, and has none of them.

Their recipes are those of the models themselves, so that everything made of them is found under the same hash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.base import BackendRecipe, Form, Generation, Prompt, Token
from and_platform.errors import GenerationError, IncompleteError
from and_platform.schema import Encoder, Failure, Recipe
from and_platform.services import generate, provenance
from and_platform.services.provenance import RecipePlan

ASK = "ask"
"""The stage under which prompts without an answer are kept in `failures`."""


def load_recipe(session: Session, recipe_id: int, known: dict[int, RecipePlan] | None = None) -> RecipePlan:
    """A recipe with its parents, as its rows have it.

    Raises
    ------
    IncompleteError
        The rows are not what was hashed.
    """
    known = {} if known is None else known
    if recipe_id not in known:
        row = session.get_one(Recipe, recipe_id)
        parents = tuple(load_recipe(session, parent, known) for parent in row.parents)
        plan = RecipePlan(row.stage, row.backend, row.revision, row.params, parents, row.origin)
        if plan.sha256 != row.sha256:
            raise IncompleteError(f"recipe {recipe_id} is not what was hashed; was its row changed by hand?")
        known[recipe_id] = plan
    return known[recipe_id]


def parent_of(plan: RecipePlan, stage: str) -> RecipePlan:
    """The recipe of a stage that another one builds on."""
    return next(parent for parent in plan.parents if parent.stage == stage)


def _backend(plan: RecipePlan) -> BackendRecipe:
    return BackendRecipe(plan.backend, plan.revision, dict(plan.params), plan.origin)


class StoredEncoder:
    """An encoder whose vectors are there."""

    def __init__(self, session: Session, plan: RecipePlan) -> None:
        row = session.scalars(
            sa.select(Encoder).where(Encoder.recipe_id == provenance.find_recipe(session, plan))
        ).one()
        self.recipe, self.dim, self.scale, self.id = _backend(plan), row.dim, row.scale, row.id
        self.max_tokens: int | None = plan.params.get("max_tokens")

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise IncompleteError(
            f"{len(texts):,} texts have no vector of {self.recipe.name} yet, e.g. '{texts[0][:60]}'; "
            "see what became of the steps that encode: andp runs show"
        )


class StoredAnswers:
    """An LLM whose answers are there; where one is missing, the reason that was kept with the prompt."""

    def __init__(self, engine: sa.Engine, plan: RecipePlan, *, structured: bool) -> None:
        self._engine, self._plan = engine, plan
        self.recipe, self.structured = _backend(plan), structured

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Generation | Exception]]:
        keys = [generate.key_of(prompt, max_tokens, form) for prompt in prompts]
        with db.reading(self._engine) as session:
            scope = f"recipe:{provenance.find_recipe(session, self._plan)}"
            reasons: dict[str, str] = dict(
                session.execute(
                    sa.select(Failure.unit, Failure.reason).where(
                        Failure.stage == ASK, Failure.scope == scope, Failure.resolved_at.is_(None),
                        Failure.unit == sa.any_(sa.cast(keys, sa.ARRAY(sa.Text))),
                    )
                ).all()
            )  # fmt: skip
        for place, key in enumerate(keys):
            yield place, GenerationError(reasons.get(key, "the LLM was not asked; see: andp runs show"))

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation | Exception]:
        return [answer for _, answer in self.stream(prompts, max_tokens=max_tokens)]


class Heard:
    """An LLM that is listened to: which prompts got no answer, and why, is kept for those that read the answers."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.recipe = llm.recipe
        self.structured = bool(getattr(llm, "structured", False))
        self.asked: list[str] = []
        self.reasons: dict[str, str] = {}
        self.tokens = 0

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Generation | Exception]]:
        keys = [generate.key_of(prompt, max_tokens, form) for prompt in prompts]
        self.asked += keys
        for place, answer in generate.one_by_one(self._llm, prompts, max_tokens, form):
            if isinstance(answer, Generation):
                self.tokens += answer.completion_tokens
            else:
                self.reasons[keys[place]] = str(answer)
            yield place, answer

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation | Exception]:
        found = dict(self.stream(prompts, max_tokens=max_tokens))
        return [found[place] for place in range(len(prompts))]

    def keep(self, session: Session, run_id: int) -> None:
        """Write down which of the prompts that were asked got no answer."""
        scope = f"recipe:{provenance.recipe_id(session, generate.plan(self))}"
        provenance.resolve_failures(
            session, stage=ASK, scope=scope, units=sorted(key for key in self.asked if key not in self.reasons)
        )
        for key, reason in sorted(self.reasons.items()):
            provenance.record_failure(session, stage=ASK, scope=scope, unit=key, reason=reason, run_id=run_id)


class StoredTagger:
    """A tagger whose tags are there."""

    def __init__(self, plan: RecipePlan) -> None:
        self.recipe = _backend(plan)

    def tag(self, texts: Sequence[str]) -> list[list[Token]]:
        raise IncompleteError(f"{len(texts):,} texts have no tags yet; see: andp runs show")


class StoredMaker:
    """Whoever makes captions, known by its recipe alone."""

    def __init__(self, plan: RecipePlan) -> None:
        self.recipe = _backend(plan)

    def has(self, row: object) -> bool:
        raise IncompleteError("captions are made by workers of the queues cpu and gpu")

    def make(self, rows: Sequence[object]) -> Iterator[Any]:
        raise IncompleteError("captions are made by workers of the queues cpu and gpu")


def as_json(plans: Mapping[str, RecipePlan], session: Session) -> dict[str, int]:
    """Stage -> id of its recipe, made where it is new."""
    return {stage: provenance.recipe_id(session, plan) for stage, plan in plans.items()}
