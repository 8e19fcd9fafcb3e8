from __future__ import annotations

import pytest

from and_platform.core.prompts import (
    filter_prompt,
    icl_answer,
    icl_prompt,
    parse_icl,
    parse_several,
    parse_verdict,
    several_prompt,
    summary_prompt,
)

CONCEPTS = ["dog", "dog_bark", "Clock-Tick", "rain", "cat"]


def test_summary_prompt_lists_the_captions_after_the_instruction() -> None:
    assert summary_prompt(["A dog barks. ", "Rain."]) == (
        "Here are descriptions of some audio clips. Please summarize these descriptions by identifying their "
        "commonalities.\n\n1. A dog barks.\n2. Rain."
    )


def test_filter_prompt_names_the_adjective() -> None:
    assert filter_prompt("loud") == (
        "Adjective: loud\nCan the adjective be used to describe the tone, emotion, or acoustic features of audio, "
        "music, or any other form of sound? Answer yes or no and give the reason."
    )


@pytest.mark.parametrize(("examples", "answers"), [(2, ["cat", "snoring"]), (1, ["cat"]), (0, [])])
def test_icl_prompt_has_the_concepts_the_examples_and_the_description(examples: int, answers: list[str]) -> None:
    prompt = icl_prompt(CONCEPTS, " A dog is heard. ", examples=examples)
    names = "dog, dog_bark, Clock-Tick, rain, cat"
    assert prompt.startswith(f"You have a set of object classnames:\n{names}\nThe following")
    assert prompt.endswith("\n\nDescription: A dog is heard.\nResponse:")
    assert [line[8:] for line in prompt.splitlines() if line.startswith("Answer: ")] == answers
    assert prompt.count("Description: ") == examples + 1


@pytest.mark.parametrize(
    ("answer", "concept"),
    [
        ("They bark.\nAnswer: dog_bark", "dog_bark"),
        ("Answer: cat\nNo, wait.\nAnswer: dog", "dog"),
        ("**Answer:** Dog Bark.", "dog_bark"),
        ('Answer: "clock tick"', "Clock-Tick"),
        ("Answer: The class is rain", "rain"),
        ("Answer: it is the dog-bark class", "dog_bark"),
        ("rain", "rain"),
        ("I think of nothing else.\nrain", "rain"),
        ("Answer: dog or cat", None),
        ("Answer: zombie", None),
        ("Answer: category", None),
        ("", None),
    ],
)
def test_parse_icl(answer: str, concept: str | None) -> None:
    assert parse_icl(answer, CONCEPTS) == concept


def test_the_first_of_concepts_with_the_same_words_is_named() -> None:
    assert parse_icl("Answer: DOG BARK", ["dog-bark", "dog_bark"]) == "dog-bark"
    assert parse_icl("Answer: dog_bark", ["dog-bark", "dog_bark"]) == "dog_bark"


def test_icl_answer_is_what_to_embed_where_no_concept_is_named() -> None:
    assert icl_answer('So.\nAnswer: "a growling zombie".') == "a growling zombie"
    assert icl_answer("One line.\nAnother line.") == "Another line"
    assert icl_answer(" ") == ""


@pytest.mark.parametrize(
    ("answer", "accepted", "reason"),
    [
        ("Yes, it describes volume.", True, "it describes volume."),
        ("**No**. It is about food.", False, "It is about food."),
        ("Answer: yes - often", True, "often"),
        ("yes", True, ""),
        ("I think the answer is no, as it is visual.", False, "I think the answer is no, as it is visual."),
        ("There is no reason against it.", None, "There is no reason against it."),
        ("Nothing", None, "Nothing"),
        ("", None, ""),
    ],
)
def test_parse_verdict(answer: str, accepted: bool | None, reason: str) -> None:
    assert parse_verdict(answer) == (accepted, reason)


SOUNDS = ("dog", "water drops", "rain", "glass breaking", "clock alarm", "cat")


def test_five_names_are_asked_for_with_the_set_and_the_summary() -> None:
    asked = several_prompt(SOUNDS, "A dog barks. ")
    assert "dog, water drops, rain, glass breaking, clock alarm, cat" in asked
    assert "select the 5 classnames" in asked
    assert asked.endswith("Description: A dog barks.\nResponse:")


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("Answer: dog; rain; cat; clock alarm; water drops", ["dog", "rain", "cat", "clock alarm", "water drops"]),
        ("I think so.\nAnswer: Dog; RAIN; Water_Drops", ["dog", "rain", "water drops"]),
        ("Answer: dog, cat, rain", ["dog", "cat", "rain"]),
        ("Here they are:\n1. cat\n2. dog\n3) \"rain\"", ["cat", "dog", "rain"]),
        ("Answers:\n- cat\n- dog", ["cat", "dog"]),
        ("Answer: dog; dog; DOG; cat", ["dog", "cat"]),
        ("Answer: puppy; rain", ["puppy", "rain"]),
        ("Answer: dog; cat; rain; clock alarm; glass breaking; water drops",
         ["dog", "cat", "rain", "clock alarm", "glass breaking"]),
        ("", []),
    ],
)  # fmt: skip
def test_several_names_are_read_however_they_are_written(answer: str, names: list[str]) -> None:
    assert parse_several(answer, SOUNDS) == names


def test_names_with_commas_are_not_taken_apart() -> None:
    concepts = ("male speech, man speaking", "dog")
    assert parse_several("Answer: male speech, man speaking; dog", concepts) == list(concepts)
