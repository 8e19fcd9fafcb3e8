"""What language models are asked, and how their answers are read (paper, Appendix A.1 to A.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

CAPTION_PROMPT = "Please describe the audio in detail."

SUMMARY_INSTRUCTION = (
    "Here are descriptions of some audio clips. Please summarize these descriptions by identifying their commonalities."
)

FILTER_QUESTION = (
    "Can the adjective be used to describe the tone, emotion, or acoustic features of audio, music, or any "
    "other form of sound? Answer yes or no and give the reason."
)

_ICL_SET = "You have a set of object classnames:"
_ICL_TASK = (
    "The following is a description about some audio clips. Based on the description, select a classname out "
    "of the above classnames that matches the description most."
)
_ICL_EXAMPLES = (
    """\
Description: The audio features a car meowing: All of the clips contain the sound of a cat meowing. Loud \
sound: These clips are all of loud sound but with varying degrees of intensity. Repetitive barking: Clips \
1 and 4 are repetitive, with the cat meowing multiple times in each clip. Poor audio quality: All clips \
have poor audio quality, with either distortion, muffling, or apparent background noises.
Response: We know these clips are about the class "cat" in the concept set. We can get this answer since \
the description mentions All of the clips contain the sound of a cat meowing.
Answer: cat""",
    """\
Description: They all feature a person snoring loudly. The snoring starts off slow and gets louder over \
time. The audio is recorded in mono. There are no other sounds in the background. The snoring is described \
as loud and intense. The audio clips differ in the following ways. The first clip features a man snoring, \
while the second and fourth clips feature a person snoring (gender not specified). The third clip features \
a zombie growling and snarling, while the other clips only feature snoring. The third clip is described as \
scary and creepy, while the other clips are not. The third clip is intended for use in a horror movie or \
zombie video game, while the other clips do not have specific intended uses stated. The third clip is of \
poor quality, while the other clips are not specified as such.
Response: Based on the description, the most suitable classname for the audio clips would be "snoring" or \
"zombie growling and snarling". Both of these classnames match the description of loud sounds with a \
strong emotional impact, specifically fear and terror. But "zombie growling and snarling" is not in the \
given classname set. So the answer is "snoring"
Answer: snoring""",
)

_SEVERAL_TASK = (
    "The following is a description about some audio clips. Based on the description, select the {n} classnames out of the "
    'above classnames that match the description most. Write one line that begins with "Answer:", with the {n} '
    "classnames on it, the best one first, separated by semicolons."
)

_ANSWER = re.compile(r"^[^\w\n]{0,40}answer\W{0,40}?[:\-]\s{0,40}(?P<text>.*\S)", re.IGNORECASE | re.MULTILINE)
_ANSWER_MARK = re.compile(r"^[^\w\n]{0,40}answers?\W{0,40}?[:\-]", re.IGNORECASE | re.MULTILINE)
_LISTED = re.compile(r"^\s*(?:\(?\d+[.):]|[-*\u2022])\s*")
_VERDICT_FIRST = re.compile(r"^\W*(?:answer\s*:\W*)?(?P<word>yes|no)\b[\s*\"',.:;!-]*", re.IGNORECASE)
_VERDICT_LATER = re.compile(r"\b(?:the )?answer(?: is|:)\W*(?P<word>yes|no)\b", re.IGNORECASE)


class Verdict(NamedTuple):
    """Whether a word was accepted (None if the answer does not tell), and why."""

    accepted: bool | None
    reason: str


def summary_prompt(captions: Sequence[str]) -> str:
    """Ask for what the captions of one side of a neuron have in common (Appendix A.2)."""
    listed = "\n".join(f"{number}. {caption.strip()}" for number, caption in enumerate(captions, start=1))
    return f"{SUMMARY_INSTRUCTION}\n\n{listed}"


def filter_prompt(adjective: str) -> str:
    """Ask whether an adjective can describe sound (Appendix A.2)."""
    return f"Adjective: {adjective}\n{FILTER_QUESTION}"


def icl_prompt(concepts: Sequence[str], description: str, *, examples: int = 2) -> str:
    """Ask for the concept that a calibrated summary matches best, after worked examples (Table 5).

    Parameters
    ----------
    concepts
        The concept set, in its order.
    description
        The calibrated summary.
    examples
        How many of the paper's two worked examples to show.
    """
    parts = [
        f"{_ICL_SET}\n{', '.join(concepts)}\n{_ICL_TASK}",
        *_ICL_EXAMPLES[:examples],
        f"Description: {description.strip()}\nResponse:",
    ]
    return "\n\n".join(parts)


def icl_answer(answer: str) -> str:
    """The part of an answer that should name the concept: the last "Answer:" line, or else the last line.

    Of an answer that is JSON, its "answer".
    """
    if isinstance(named := _fields(answer).get("answer"), str):
        return named
    lines = [match["text"] for match in _ANSWER.finditer(answer)]
    return (lines or answer.strip().splitlines() or [""])[-1].strip(" \t\"'\u201c\u201d\u2018\u2019*`.")


def parse_icl(answer: str, concepts: Sequence[str]) -> str | None:
    """The concept that an answer names, None if it names none or several.

    A name counts exactly, or as whole words whatever its case, `_` and `-`. Of names inside one another
    ("dog", "dog bark") the longest counts. For None, take the concept nearest to `icl_answer(answer)` by
    sentence embedding.
    """
    said = icl_answer(answer)
    if said in concepts:
        return said
    by_name = {_plain(concept): concept for concept in reversed(concepts)}
    words = _plain(said)
    if words in by_name:
        return by_name[words]
    named = {name for name in by_name if name and f" {name} " in f" {words} "}
    longest = [name for name in named if not any(name != other and f" {name} " in f" {other} " for other in named)]
    return by_name[longest[0]] if len(longest) == 1 else None


def several_prompt(concepts: Sequence[str], description: str, n: int = 5) -> str:
    """Ask for the n concepts that a calibrated summary matches best, best first; for top-5 accuracy of ICL (Table 2)."""
    return (
        f"{_ICL_SET}\n{', '.join(concepts)}\n{_SEVERAL_TASK.format(n=n)}\n\n"
        f"Description: {description.strip()}\nResponse:"
    )


def parse_several(answer: str, concepts: Sequence[str], n: int = 5) -> list[str]:
    """The first n names of an answer to `several_prompt`, in order, each once.

    They may be separated by semicolons, lines (numbered or not) or, where no concept has a comma in its name, commas. A name
    that is a concept but for case, `_` and `-` is given as the concept; another one as it was said, to be taken for the
    concept nearest to it by sentence embedding.
    """
    if isinstance(listed := _fields(answer).get("answer"), list):
        return list(dict.fromkeys(parse_icl(str(word), concepts) or str(word) for word in listed))[:n]
    marks = list(_ANSWER_MARK.finditer(answer))
    told = answer[marks[-1].end() :] if marks else answer
    pieces = [piece for line in told.splitlines() for piece in _at_semicolons(_LISTED.sub("", line), concepts)]
    if not any("," in concept for concept in concepts):
        pieces = [part for piece in pieces for part in piece.split(",")]
    said = [_LISTED.sub("", piece).strip(" \t\"'\u201c\u201d\u2018\u2019*`.") for piece in pieces]
    named = [parse_icl(word, concepts) or word for word in said if word and not word.endswith(":")]
    return list(dict.fromkeys(named))[:n]


def parse_verdict(answer: str) -> Verdict:
    """Read the yes or no of a filter's answer; the rest is the reason."""
    told = _fields(answer)
    if isinstance(word := told.get("answer"), str) and word.lower() in {"yes", "no"}:
        return Verdict(word.lower() == "yes", str(told.get("reason", "")).strip())
    text = answer.strip()
    first = _VERDICT_FIRST.match(text)
    if first:
        return Verdict(first["word"].lower() == "yes", text[first.end() :].strip())
    later = _VERDICT_LATER.search(text)
    return Verdict(later["word"].lower() == "yes" if later else None, text)


def _at_semicolons(line: str, concepts: Sequence[str]) -> list[str]:
    """The parts of a line between semicolons, less those that belong to the name of a concept."""
    if whole := [re.escape(concept) for concept in concepts if ";" in concept]:
        line = re.sub("|".join(whole), lambda name: name[0].replace(";", "\0"), line, flags=re.IGNORECASE)
    return [part.replace("\0", ";") for part in line.split(";")]


def after_thinking(answer: str) -> str:
    """An answer without what a reasoning model thinks aloud before it, between <think> and </think>.

    Empty where the thinking has no end. The first mark is missing where the chat template has written it.
    """
    _, end, told = answer.rpartition("</think>")
    if end:
        return told.strip()
    return "" if answer.lstrip().startswith("<think>") else answer


def _fields(answer: str) -> dict[str, Any]:
    """The fields of an answer that is a JSON object, bare or in a code block; none of any other answer."""
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not text.startswith("{"):
        return {}
    try:
        told = json.loads(text, strict=False)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))
