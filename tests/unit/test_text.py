from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform.core import text as text_module
from and_platform.core.text import clean_points, cut_repeats, names_label, split_sentences

ANSWER = """Sure! Here are the commonalities among the descriptions:

1. **Loud sounds:** All of the clips feature loud and intense sounds.
2. High-pitched: Four of the five clips have high-pitched tones,
   some of them piercing.
3. Short duration

Overall, these commonalities suggest that the clips could be used in a film.
I hope this helps! Let me know if you have any further questions about it."""


def test_split_sentences() -> None:
    text = "The sound is loud.  Mr. Smith says e.g. hello.\n\n...\nIt lasts 0.5 s and ends"
    assert split_sentences(text) == [
        "The sound is loud.",
        "Mr. Smith says e.g. hello.",
        "It lasts 0.5 s and ends",
    ]
    assert split_sentences(" \n ") == []


def test_points_of_a_listed_answer() -> None:
    assert clean_points(ANSWER) == [
        "Loud sounds: All of the clips feature loud and intense sounds.",
        "High-pitched: Four of the five clips have high-pitched tones, some of them piercing.",
        "Overall, these commonalities suggest that the clips could be used in a film.",
    ]


@pytest.mark.parametrize("mark", ["-", "*", "\u2022", "1)", "(1)", "12."])
def test_marks_of_lists(mark: str) -> None:
    assert clean_points(f"{mark} All of the clips contain a bell.") == ["All of the clips contain a bell."]


@pytest.mark.parametrize(
    "small_talk",
    [
        "Sure, here is a summary of all the commonalities I found.",
        "Based on the five descriptions you gave, here are the commonalities.",
        "Of course! I can help you to summarize these descriptions.",
        "The audio clips that you described have these properties in common:",
        "Would you like me to write more about these clips?",
        "Please don\u2019t hesitate to ask me any further questions.",
        "If you have any other audio clips, I will gladly summarize them.",
        "Thank you for the descriptions of these five audio clips.",
    ],
)
def test_small_talk_goes(small_talk: str) -> None:
    assert clean_points(small_talk) == []
    assert clean_points(f"{small_talk}\nAll of the clips contain a loud bell.") == [
        "All of the clips contain a loud bell."
    ]


def test_an_interjection_goes_and_its_sentence_stays() -> None:
    assert clean_points("Sure, all of the clips contain barking dogs.") == ["All of the clips contain barking dogs."]


def test_points_of_five_words_go_unless_asked_for() -> None:
    answer = "The sound is loud. A dog barks at a man."
    assert clean_points(answer) == ["A dog barks at a man."]
    assert clean_points("One two three four five.") == []
    assert clean_points("One two three four five six.") == ["One two three four five six."]
    assert clean_points(answer, min_words=1) == ["The sound is loud.", "A dog barks at a man."]


@given(st.text())
def test_points_of_anything_have_enough_words(text: str) -> None:
    assert all(len(point.split()) >= 1 and point == point.strip() for point in clean_points(text))


def test_a_stuck_caption_is_cut_at_its_first_sentence() -> None:
    stuck = "A bell rings. " + "The bell of the church rings in the old town " * 2
    assert cut_repeats(stuck) == ("A bell rings.", True)


def test_repeats_are_of_eight_words_whatever_their_case() -> None:
    seven = "The bell of the church rings loudly. One dog. The bell of the church rings loudly. A cat."
    assert cut_repeats(seven) == (seven, False)
    eight = "One two three four five six seven eight. ONE, two three four five six seven eight!"
    assert cut_repeats(eight) == ("One two three four five six seven eight.", True)
    assert cut_repeats("") == ("", False)


@given(st.lists(st.sampled_from(["bell", "dog", "rings", "."]), max_size=40).map(" ".join))
def test_cutting_keeps_a_beginning(text: str) -> None:
    cut, was_cut = cut_repeats(text)
    assert was_cut == (cut != text)
    assert text.strip().startswith(cut.strip())


@pytest.mark.parametrize(
    ("caption", "labels", "expected"),
    [
        ("A dog is barking far away.", ["dog_bark"], True),
        ("Drops of water fall.", ["water-drops"], True),
        ("Someone claps.", ["cat", "clapping"], True),
        ("THE CLOCK TICKS", ["clock tick"], True),
        ("The sound of rain", ["sound_of_rain"], True),
        ("A cattle herd", ["cat"], False),
        ("A dog runs.", ["dog_bark"], False),
        ("The sound is loud.", [], False),
        ("Anything at all", ["_"], False),
    ],
)
def test_captions_that_name_a_label(caption: str, labels: list[str], expected: bool) -> None:
    assert names_label(caption, labels) is expected


@given(st.text(alphabet=" \n\t#*_`ab", max_size=40))
def test_marks_of_markdown_go_as_one_pattern_would_take_them(text: str) -> None:
    # The pattern that says it best is quadratic in empty lines.
    plain = re.sub(r"\*\*|__|`|^\s*#+\s*", "", text, flags=re.MULTILINE)
    assert text_module._EMPHASIS.sub(text_module._unmarked, text) == plain
