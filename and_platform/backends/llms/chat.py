"""How a prompt is written for a model in this process: its chat template, and the tokens that come of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from and_platform.backends.base import Form, Generation, Prompt
from and_platform.errors import ConfigError, GenerationError

log = logging.getLogger(__name__)

TEMPLATES = {
    # One turn of Llama 2 chat as its authors publish it: the system text goes into the user's turn, between marks.
    "llama-2": (
        "{% set ns = namespace(system='') %}{% for turn in messages %}"
        "{% if turn.role == 'system' %}{% set ns.system = '<<SYS>>\\n' + turn.content + '\\n<</SYS>>\\n\\n' %}"
        "{% elif turn.role == 'user' %}{{ bos_token }}[INST] {{ ns.system }}{{ turn.content | trim }} [/INST]"
        "{% else %} {{ turn.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
}


class Answering:
    """All answers at once, for backends that stream them."""

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Generation | Exception]]:
        raise NotImplementedError

    def generate(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> list[Generation | Exception]:
        """One answer per prompt, in order; an exception stands where a prompt finally failed."""
        answers = dict(self.stream(prompts, max_tokens=max_tokens, form=form))
        return [answers[place] for place in range(len(prompts))]


def turns(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the messages of a chat; no system message where its text is empty."""
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": prompt.user}]


class Chat:
    """Writes prompts as the model was trained to read them, and counts their tokens.

    Parameters
    ----------
    tokenizer
        Of transformers.
    template
        None for the model's own; else a name of `TEMPLATES`, or the path of a Jinja file. A model that has none
        and gets none reads plain text, and the log says so.
    options
        Variables of the template, such as `enable_thinking`.
    window
        Tokens that prompt and answer may have together; None for no limit.

    Raises
    ------
    ConfigError
        If there is no such template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None,
        options: Mapping[str, Any] | None,
        window: int | None,
        source: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._options = dict(options or {})
        self._window = window
        self._given = None if template is None else _template(template)
        self._templated = self._given is not None or bool(getattr(tokenizer, "chat_template", None))
        if not self._templated:
            log.warning(
                "%s has no chat template, so that it reads prompts as plain text; if it is a chat model, give "
                "chat_template",
                source,
            )

    def text(self, prompt: Prompt) -> str:
        """The prompt as the model reads it.

        Raises
        ------
        GenerationError
            The template refuses it.
        """
        from jinja2 import TemplateError

        if not self._templated:
            return "\n\n".join(turn["content"] for turn in turns(prompt))
        try:
            text = self._tokenizer.apply_chat_template(
                turns(prompt),
                tokenize=False,
                add_generation_prompt=True,
                **({"chat_template": self._given} if self._given is not None else {}),
                **self._options,
            )
        except TemplateError as exc:
            raise GenerationError(f"the model's chat template refuses the prompt: {exc}") from exc
        return str(text)

    def tokens(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens.

        Raises
        ------
        GenerationError
            The template refuses it, or it leaves no room for an answer.
        """
        # A template writes the special tokens itself.
        ids = self._tokenizer.encode(self.text(prompt), add_special_tokens=not self._templated)
        if self._window is not None and len(ids) >= self._window:
            raise GenerationError(f"the prompt has {len(ids)} tokens, the model's window {self._window}")
        return list(ids)

    def room(self, ids: Sequence[int], max_tokens: int) -> int:
        """How many tokens the answer to a prompt may have."""
        return max_tokens if self._window is None else min(max_tokens, self._window - len(ids))

    def all_tokens(self, prompts: Sequence[Prompt]) -> tuple[dict[int, list[int]], dict[int, GenerationError]]:
        """By the places of prompts, the tokens of those that can be asked, and why the others cannot."""
        good: dict[int, list[int]] = {}
        bad: dict[int, GenerationError] = {}
        for place, prompt in enumerate(prompts):
            try:
                good[place] = self.tokens(prompt)
            except GenerationError as exc:
                bad[place] = exc
        return good, bad


def template_params(template: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of a chat template and its variables changes answers and is not in the revision of the weights; for the recipe.

    Raises
    ------
    ConfigError
        If there is no such template.
    """
    params: dict[str, Any] = {"template_options": dict(options)} if options else {}
    if template is not None:
        params["chat_template"] = hashlib.sha256(_template(template).encode()).hexdigest()[:32]
    return params


def _template(given: str) -> str:
    if given in TEMPLATES:
        return TEMPLATES[given]
    try:
        return Path(given).expanduser().read_text("utf-8")
    except OSError as exc:
        names = ", ".join(TEMPLATES)
        raise ConfigError(f"there is no chat template '{given}'; give the path of a Jinja file, or: {names}") from exc
