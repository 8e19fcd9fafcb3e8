"""A form of answers, as each engine wants it written down.

Engines that take a regular expression or a grammar give plain text in the words of the prompts: "REASON", a new line
and "Answer: CHOICE", or "CHOICE. REASON". Endpoints that take a JSON schema give an object of "answer" and "reason".
"""

from __future__ import annotations

import json
import re
from typing import Any

from and_platform.backends.base import Form
from and_platform.errors import ConfigError

_SEPARATOR = "; "
_META = re.compile(r"[\\^$.|?*+()\[\]{}/]")


def wanted(structured: bool | str, offered: dict[str, str], name: str, auto: bool) -> str:
    """How a backend is to keep forms: one of the values of `offered`, "" for not at all.

    Parameters
    ----------
    structured
        The user's choice: false, true (the first way that is offered), "auto", or a way by its name.
    offered
        The ways by name.
    name
        The backend, for the message.
    auto
        Whether "auto" means the first way that is offered.

    Raises
    ------
    ConfigError
        The backend has no such way.
    """
    if structured is False or (structured == "auto" and not (auto and offered)):
        return ""
    if structured in {True, "auto"} and offered:
        return next(iter(offered.values()))
    if isinstance(structured, str) and structured in offered:
        return offered[structured]
    values = ["false", '"auto"', *(["true"] if offered else []), *(f'"{way}"' for way in offered)]
    raise ConfigError(f"'{name}' cannot take structured = {json.dumps(structured)}; it takes {', '.join(values)}")


def regex(form: Form) -> str:
    """The regular expression that a whole answer fits; for vLLM, and to check answers with."""
    choice = f"({'|'.join(_META.sub(lambda sign: chr(92) + sign[0], choice) for choice in form.choices)})"
    named = _SEPARATOR.join([choice] * form.count)
    reason = f"[^\\r\\n]{{1,{form.reason_chars}}}"
    if form.reason == "after":
        return f"{choice}[.,] {reason}"
    return f"{reason}\\nAnswer: {named}" if form.reason == "before" else f"Answer: {named}"


def grammar(form: Form) -> str:
    """The same in llama.cpp's notation of grammars (GBNF)."""
    named = f' "{_SEPARATOR}" '.join(["choice"] * form.count)
    reason = f"[^\\r\\n]{{1,{form.reason_chars}}}"
    told = f'"Answer: " {named}'
    if form.reason == "after":
        told = f'choice [.,] " " {reason}'
    elif form.reason == "before":
        told = f'{reason} "\\n" {told}'
    choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in form.choices)
    return f"root ::= {told}\nchoice ::= {choices}\n"


def schema(form: Form) -> dict[str, Any]:
    """The JSON schema of an answer as an object, in the subset that strict endpoints take (no lengths)."""
    answer: dict[str, Any] = {"type": "string", "enum": list(form.choices)}
    if form.count > 1:
        answer = {"type": "array", "items": answer, "minItems": form.count, "maxItems": form.count}
    reason = {"type": "string", "description": f"at most {form.reason_chars} characters"}
    fields = {
        "none": {"answer": answer},
        "before": {"reason": reason, "answer": answer},
        "after": {"answer": answer, "reason": reason},
    }[form.reason]
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def request(form: Form) -> str:
    """What a prompt has to say in addition where the answer will be JSON."""
    named = "one of the allowed values" if form.count == 1 else f"a list of {form.count} of the allowed values"
    told = {
        "none": f'"answer" ({named})',
        "before": f'"reason" (at most {form.reason_chars} characters) and "answer" ({named})',
        "after": f'"answer" ({named}) and "reason" (at most {form.reason_chars} characters)',
    }[form.reason]
    return f"Give your response as a JSON object with {told}."
