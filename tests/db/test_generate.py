"""Asking an LLM: what is stored when, forms, and an LLM that fails as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.backends.base import BackendRecipe, Form, Generation, Prompt
from and_platform.errors import BackendError, GenerationError
from and_platform.services import generate

FORM = Form(("dog", "cat"))
PROMPTS = [Prompt(letter) for letter in "abcdef"]

Answer = Generation | Exception


class Plain:
    """An LLM with nothing but what the protocol asks for."""

    recipe = BackendRecipe("parrot", "1")

    def __init__(self, **answers: Answer) -> None:
        self.asked: list[str] = []
        self.answers = answers

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Answer]:
        self.asked += [prompt.user for prompt in prompts]
        return [self.answers.get(prompt.user, Generation(prompt.user.upper())) for prompt in prompts]


class Streaming(Plain):
    """An LLM that hands out the last answer first, and dies at `dies_after` of them."""

    def __init__(self, structured: bool = False, dies_after: int | None = None, **answers: Answer) -> None:
        super().__init__(**answers)
        self.structured, self.dies_after = structured, dies_after
        self.forms: list[Form | None] = []

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Answer]]:
        self.forms.append(form)
        for told, place in enumerate(reversed(range(len(prompts)))):
            if told == self.dies_after:
                raise BackendError("the engine has died")
            yield place, self.generate([prompts[place]], max_tokens=max_tokens)[0]


def ask(engine: sa.Engine, llm: Plain, form: Form | None = None, max_tokens: int = 5) -> list[str | None]:
    return [said.text for said in generate.ask(engine, llm, PROMPTS, max_tokens=max_tokens, name="ask", form=form)]


def stored(engine: sa.Engine) -> int:
    with db.reading(engine) as session:
        return int(session.execute(sa.text("SELECT count(*) FROM answers")).scalar_one())


@pytest.mark.parametrize("kind", [Plain, Streaming])
def test_answers_come_in_order_and_are_asked_for_once(engine: sa.Engine, kind: type[Plain]) -> None:
    llm = kind(c=GenerationError("empty"))
    assert ask(engine, llm) == ["A", "B", None, "D", "E", "F"]
    assert stored(engine) == 5
    again = kind()
    assert ask(engine, again) == ["A", "B", "C", "D", "E", "F"]
    assert again.asked == ["c"]


@pytest.mark.parametrize("kind", [Plain, Streaming])
def test_an_llm_at_fault_keeps_what_it_has_answered(engine: sa.Engine, kind: type[Plain]) -> None:
    with pytest.raises(BackendError, match="no such model"):
        ask(engine, kind(b=BackendError("no such model")))
    assert stored(engine) == 5


def test_an_engine_that_dies_keeps_what_it_has_answered(engine: sa.Engine) -> None:
    with pytest.raises(BackendError, match="has died"):
        ask(engine, Streaming(dies_after=4))
    assert stored(engine) == 4


def test_answers_are_stored_while_others_are_waited_for(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Watched(Streaming):
        def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Answer]:
            seen.append(stored(engine))
            return super().generate(prompts, max_tokens=max_tokens)

    monkeypatch.setattr(generate, "_STORED_TOGETHER", 2)
    ask(engine, Watched())
    assert seen == [0, 0, 2, 2, 4, 4]


def test_a_form_is_part_of_the_question(engine: sa.Engine) -> None:
    llm = Streaming(structured=True)
    ask(engine, llm)
    assert ask(engine, llm, FORM) == ["A", "B", "C", "D", "E", "F"]
    ask(engine, llm, FORM)
    ask(engine, llm, Form(("dog", "cat"), "before"))
    assert llm.forms == [None, FORM, Form(("dog", "cat"), "before")]
    assert stored(engine) == 18


@pytest.mark.parametrize("kind", [Plain, Streaming])
def test_an_llm_that_keeps_no_forms_is_asked_in_plain_text(engine: sa.Engine, kind: type[Plain]) -> None:
    llm = kind()
    ask(engine, llm, FORM)
    ask(engine, llm)
    assert stored(engine) == len(llm.asked) == 6
    assert getattr(llm, "forms", [None]) == [None]


def test_the_longest_answer_is_part_of_the_question(engine: sa.Engine) -> None:
    llm = Plain()
    ask(engine, llm, max_tokens=5)
    ask(engine, llm, max_tokens=6)
    assert stored(engine) == 12


def test_thinking_is_kept_but_not_read(engine: sa.Engine) -> None:
    llm = Plain(a=Generation("<think>Hm.</think>\n\nA dog."), b=Generation("<think>Without end"))
    said = generate.ask(engine, llm, PROMPTS[:2], max_tokens=5, name="ask")
    assert said[0] == generate.Said("A dog.")
    assert said[1] == generate.Said(None, "the answer ended before the model had done thinking")
    assert stored(engine) == 2
