"""Language models behind an OpenAI-compatible endpoint: a vLLM server, llama.cpp, or a hosted one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from and_platform.backends.base import BackendRecipe, Form, Generation, Prompt
from and_platform.backends.endpoints import ChatEndpoint, Usage
from and_platform.backends.llms import forms
from and_platform.backends.llms.chat import Answering, turns
from and_platform.errors import ConfigError

_OURS = frozenset(["model", "messages", "temperature", "top_p", "seed", "max_tokens", "stream", "n"])


class OpenAILLM(Answering):
    """Answers from an OpenAI-compatible chat endpoint, many at once.

    Parameters
    ----------
    model
        The model's name at the endpoint.
    base_url
        For instance "http://localhost:8000/v1".
    concurrency
        Requests under way at the same time.
    temperature, top_p, seed
        Sampling; the defaults are the paper's, with a seed.
    timeout_s
        For one request.
    attempts
        How often a prompt is tried when the server is busy, fails, times out or answers garbage. Waits grow
        from `first_wait_s` with jitter, or are as long as the server's Retry-After says, within two minutes.
    revision
        Goes into the recipe, where the name of the model does not say which weights are served.
    structured
        How the server is held to the form of an answer: false or "auto" (not at all, as the server is unknown);
        true or "json_schema" (OpenAI's `response_format`); "vllm" (`structured_outputs` of a vLLM server, 0.11 or
        later); "llama.cpp" (`grammar` of its server). The last two keep answers in the words of the prompts.
    extra_body
        Further fields of each request, such as {"chat_template_kwargs": {"enable_thinking": false}}; they go into
        the recipe.

    Raises
    ------
    ConfigError
        If `base_url` is no address, or an option does not fit.

    Notes
    -----
    A key is taken from the environment variable ANDP_LLM_API_KEY alone, and sent to this endpoint only.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        concurrency: int = 16,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        timeout_s: float = 300.0,
        attempts: int = 6,
        first_wait_s: float = 0.5,
        revision: str = "",
        structured: bool | str = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        offered = {way: way for way in ("json_schema", "vllm", "llama.cpp")}
        self._way = forms.wanted(structured, offered, "openai", auto=False)
        self.structured = bool(self._way)
        if clash := _OURS & set(extra_body or {}):
            raise ConfigError(f"extra_body cannot set {', '.join(sorted(clash))}; there are options for that")
        self._endpoint = ChatEndpoint(
            model,
            base_url,
            name="openai",
            concurrency=concurrency,
            timeout_s=timeout_s,
            attempts=attempts,
            first_wait_s=first_wait_s,
        )
        self._settings = {"temperature": temperature, "top_p": top_p, "seed": seed}
        self._extra = dict(extra_body or {})
        self.recipe = BackendRecipe(
            "openai",
            revision or model,
            {
                "model": model,
                **self._settings,
                **({"structured": self._way} if self._way else {}),
                **({"extra_body": self._extra} if self._extra else {}),
            },
        )

    @property
    def base_url(self) -> str:
        """The endpoint's address."""
        return self._endpoint.base_url

    @property
    def usage(self) -> Usage:
        """What the endpoint was used for so far."""
        return self._endpoint.usage

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Generation | Exception]]:
        """The place of each prompt with its answer, as they come; an exception stands where it finally failed.

        When the endpoint itself is at fault (unreachable after all attempts, key refused, no such model),
        prompts not yet sent fail with the same `EndpointError` at once.
        """
        held, said = self._held(form if self.structured else None)

        def body(prompt: Prompt) -> dict[str, Any]:
            asked = Prompt(f"{prompt.user}{said}", prompt.system)
            return {**self._settings, "max_tokens": max_tokens, "messages": turns(asked), **held, **self._extra}

        return self._endpoint.ask_each(prompts, body)

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _held(self, form: Form | None) -> tuple[dict[str, Any], str]:
        """Fields of a request that hold its answer to a form, and what its prompt has to say of that."""
        if form is None:
            return {}, ""
        if self._way == "vllm":
            return {"structured_outputs": {"regex": forms.regex(form)}}, ""
        if self._way == "llama.cpp":
            return {"grammar": forms.grammar(form)}, ""
        wanted = {"name": "answer", "strict": True, "schema": forms.schema(form)}
        return {"response_format": {"type": "json_schema", "json_schema": wanted}}, f"\n\n{forms.request(form)}"
