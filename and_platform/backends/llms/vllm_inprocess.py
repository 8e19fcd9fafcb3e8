"""vLLM inside this process (extra `vllm`; it pins a torch of its own, so it wants its own environment)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from and_platform.backends.base import BackendRecipe, Form, Generation, Prompt
from and_platform.backends.lazy import Lazy
from and_platform.backends.llms import forms
from and_platform.backends.llms.chat import Answering, Chat, template_params
from and_platform.backends.weights import find_weights, loading
from and_platform.errors import BackendError, ConfigError, GenerationError, MissingExtraError

# Engine options that change how fast answers come and where they are computed, not what they say.
_SPEED_ONLY = frozenset(
    [
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "data_parallel_size",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "pipeline_parallel_size",
        "swap_space",
        "tensor_parallel_size",
    ]
)


# Options come from rows of the database too, which a worker may write. In vLLM some of them are imported.
_CODE_OPTION = re.compile(r"_cls$|_class$|plugin|processors?$|module|connector")
_CODE_VALUE = re.compile(r"[^\W\d]\w*([.:][^\W\d]\w*)+")


def _names_code(name: str, value: Any) -> bool:
    """Whether an option, or something in it, is the name of a module, class or function."""
    if _CODE_OPTION.search(name) and value:
        return True
    if isinstance(value, dict):
        return any(_names_code(str(key), member) for key, member in value.items())
    if isinstance(value, list | tuple):
        return any(_names_code("", member) for member in value)
    return isinstance(value, str) and _CODE_VALUE.fullmatch(value) is not None


class _Running(NamedTuple):
    """vLLM's engine at work, and how prompts are written for its model."""

    engine: Any
    chat: Chat


class VllmLLM(Answering):
    """Answers from vLLM's engine, which batches by itself: give it as many prompts at once as there are.

    Parameters
    ----------
    source
        Directory or hub id of the model.
    temperature, top_p, seed
        Sampling; the defaults are the paper's, with a seed for each prompt, so that its answer does not depend on
        what else is asked.
    structured
        Whether answers are held to their form: false, true or "auto" (true).
    chat_template, template_options
        As of `llms.chat.Chat`.
    dtype, quantization, max_model_len
        As of `vllm.LLM`; what comes of them is in the recipe.
    chunk
        Prompts handed to the engine at a time; their answers are there together.
    engine
        Further arguments of `vllm.LLM`, such as `tensor_parallel_size` or `gpu_memory_utilization`. Those not
        known to change speed alone go into the recipe.
    """

    def __init__(
        self,
        source: str,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        structured: bool | str = False,
        chat_template: str | None = None,
        template_options: dict[str, Any] | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        chunk: int = 512,
        **engine: Any,
    ) -> None:
        way = forms.wanted(structured, {"regex": "regex"}, "vllm", auto=True)
        if engine.get("trust_remote_code"):
            raise ConfigError("a model's own code is never run; choose a model that vLLM knows itself")
        for name, value in engine.items():
            if _names_code(name, value):
                raise ConfigError(f"the option {name} names code, which is never run; leave it out")
        if engine.get("load_format") == "dummy":
            raise ConfigError("load_format = 'dummy' makes random weights; leave it out")
        try:
            import vllm
        except ImportError as exc:
            raise MissingExtraError("vllm", "vllm") from exc
        weights = find_weights(source)
        # Prompts of one kind begin alike (instruction, concept set, examples): computed once, with prefix caching.
        options = {"enable_prefix_caching": True, "disable_log_stats": True, **engine}
        if temperature > 0 and _on_cpu():
            # A prompt computed in several steps dies there: vLLM (0.32) then winds back the generator of a seeded
            # request, which generators of a CPU cannot do.
            options.setdefault("enable_chunked_prefill", False)
        options |= {
            "model": str(weights.path), "seed": seed, "dtype": dtype, "quantization": quantization,
            "max_model_len": max_model_len,
        }  # fmt: skip
        with loading(source):
            config = vllm.EngineArgs(**options).create_model_config()

        def start() -> _Running:
            with loading(source):
                try:
                    engine = vllm.LLM(**options)
                except RuntimeError as exc:
                    raise BackendError(
                        f"vLLM does not start with {source}: {_first_line(exc)}; its log says why"
                    ) from exc
            chat = Chat(
                engine.get_tokenizer(), template=chat_template, options=template_options,
                window=config.max_model_len, source=source,
            )  # fmt: skip
            return _Running(engine, chat)

        self._lazy = Lazy(start)
        self._sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
        self._chunk = chunk
        self.structured = bool(way)
        changing = {name: value for name, value in engine.items() if name not in _SPEED_ONLY}
        self.recipe = BackendRecipe(
            "vllm",
            weights.revision,
            {
                **self._sampling,
                "dtype": str(config.dtype),
                "quantization": config.quantization,
                "max_model_len": config.max_model_len,
                **template_params(chat_template, template_options),
                **({"structured": way} if way else {}),
                **({"engine": changing} if changing else {}),
            },
            weights.origin,
        )

    def release(self) -> None:
        """Stop the engine; it is started again when it is used again."""
        self._lazy.release()

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Generation | Exception]]:
        """Answers chunk by chunk; a GenerationError stands where a prompt is too long or the model said nothing.

        Raises
        ------
        BackendError
            The engine refuses the requests or has died.
        """
        engine, chat = self._lazy.get()
        asked, refused = chat.all_tokens(prompts)
        yield from refused.items()
        places = list(asked)
        for start in range(0, len(places), self._chunk):
            some = places[start : start + self._chunk]
            sampling = [self._params(chat.room(asked[place], max_tokens), form) for place in some]
            try:
                outputs = engine.generate(
                    [{"prompt_token_ids": asked[place]} for place in some], sampling, use_tqdm=False
                )
            except Exception as exc:
                # vLLM's own kinds of errors differ from version to version; none is of one prompt alone.
                raise BackendError(f"vLLM gave up: {type(exc).__name__}: {_first_line(exc)}") from exc
            for place, output in zip(some, outputs, strict=True):
                yield place, _generation(output)

    def _params(self, max_tokens: int, form: Form | None) -> Any:
        from vllm import SamplingParams

        if form is None or not self.structured:
            return SamplingParams(max_tokens=max_tokens, **self._sampling)
        from vllm.sampling_params import StructuredOutputsParams

        held = StructuredOutputsParams(regex=forms.regex(form))
        return SamplingParams(max_tokens=max_tokens, structured_outputs=held, **self._sampling)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0]


def _generation(output: Any) -> Generation | Exception:
    answer = output.outputs[0]
    if not answer.text.strip():
        return GenerationError(f"the model gave an empty answer ({answer.finish_reason})")
    return Generation(
        text=answer.text.strip(),
        prompt_tokens=len(output.prompt_token_ids),
        completion_tokens=len(answer.token_ids),
        finish_reason=answer.finish_reason or "stop",
    )
