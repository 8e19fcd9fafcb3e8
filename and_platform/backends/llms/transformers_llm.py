"""Language models in this process through transformers, with their own chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from and_platform.backends.base import BackendRecipe, Form, Generation, Prompt
from and_platform.backends.batching import BatchSize, TooLargeError, each_by_length, pick_device, pick_dtype
from and_platform.backends.lazy import Lazy
from and_platform.backends.llms import forms
from and_platform.backends.llms.chat import Answering, Chat, template_params
from and_platform.backends.sampling import seed_of, seeded_choice
from and_platform.backends.weights import LOCAL, check_whole, find_weights, loading
from and_platform.errors import ConfigError, GenerationError, MissingExtraError

EXTRA = "large-models"


class TransformersLLM(Answering):
    """Answers from a causal language model of transformers.

    Parameters
    ----------
    source
        Directory or hub id ("meta-llama/Llama-2-13b-chat-hf" is the paper's).
    temperature
        0 decodes greedily. Above 0 each prompt draws with a seed of its own, made of `seed` and its tokens: what else
        is asked does not change its answer, but for rounding.
    structured
        False or "auto": this backend holds no answer to a form.
    chat_template, template_options
        As of `llms.chat.Chat`.
    dtype
        "auto" (as the weights are stored), "float32", "bfloat16" or "float16".
    quantization
        "4bit" (NF4, double quantization) or "8bit" through bitsandbytes, on a GPU; weights that are stored quantised
        (GPTQ, AWQ, ...) need nothing said.
    batch_size
        Prompts in a batch; halved where memory runs out.
    device
        As torch names it; or `device_map="auto"`, which spreads a model over all GPUs and, if they do not suffice,
        the memory of the machine.

    Raises
    ------
    ConfigError
        Options that do not fit one another or this machine.
    MissingExtraError
        bitsandbytes or accelerate is wanted, and not installed.
    WeightsMissingError
        There is no such model.
    """

    structured = False

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
        batch_size: int = 8,
        device: str | None = None,
        device_map: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoTokenizer

        forms.wanted(structured, {}, "transformers", auto=False)
        where = _placement(quantization, device, device_map, dtype)
        weights = find_weights(source)
        with loading(source):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(weights.path, padding_side="left", **LOCAL)
            config: Any = AutoConfig.from_pretrained(weights.path, **LOCAL)
        on = pick_device(device)
        wanted = (config.dtype or torch.float32) if dtype == "auto" else pick_dtype(dtype, on)

        def load() -> Any:
            from transformers import AutoModelForCausalLM

            with loading(source):
                model, found = AutoModelForCausalLM.from_pretrained(
                    weights.path, dtype=wanted, output_loading_info=True, **LOCAL, **where
                )
                check_whole(found["missing_keys"])
            return model.eval() if where else model.eval().to(on)

        self._lazy = Lazy(load)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._chat = Chat(
            self._tokenizer, template=chat_template, options=template_options,
            window=getattr(config, "max_position_embeddings", None), source=source,
        )  # fmt: skip
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._batches, self._at_once = BatchSize(batch_size), batch_size
        self.recipe = BackendRecipe(
            "transformers",
            weights.revision,
            {
                "temperature": temperature,
                "top_p": top_p,
                "seed": seed,
                "dtype": str(wanted),
                **template_params(chat_template, template_options),
                **({"quantization": quantization} if quantization else {}),
                **({"draws": "per prompt"} if temperature > 0 else {}),
            },
            weights.origin,
        )

    @property
    def _model(self) -> Any:
        return self._lazy.get()

    def release(self) -> None:
        """Give the model's memory back; it is loaded again when it is used again."""
        self._lazy.release()

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Generation | Exception]]:
        """Answers batch by batch, the longest prompts first; a GenerationError stands where there is none."""
        asked, refused = self._chat.all_tokens(prompts)
        yield from refused.items()
        order = sorted(asked, key=lambda place: -len(asked[place]))
        for start in range(0, len(order), self._at_once):
            places = order[start : start + self._at_once]
            answers = each_by_length(
                [asked[place] for place in places], len, self._batches, lambda batch: self._answer(batch, max_tokens)
            )
            for place, answer in zip(places, answers, strict=True):
                yield place, GenerationError(str(answer)) if isinstance(answer, TooLargeError) else answer

    def _answer(self, prompts: list[list[int]], max_tokens: int) -> list[Generation | Exception]:
        import torch

        tokens = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self._model.device)
        chosen: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self._temperature > 0:
            seeds = [seed_of(self._seed, repr(ids).encode()) for ids in prompts]
            chosen["logits_processor"] = seeded_choice(seeds, self._temperature, self._top_p)
        with torch.inference_mode():
            output = self._model.generate(
                **tokens,
                max_new_tokens=max(self._chat.room(ids, max_tokens) for ids in prompts),
                pad_token_id=self._tokenizer.pad_token_id,
                num_beams=1,
                **chosen,
            )
        answers = output[:, tokens["input_ids"].shape[1] :].tolist()
        return [
            self._generation(answer[: self._chat.room(ids, max_tokens)], len(ids))
            for answer, ids in zip(answers, prompts, strict=True)
        ]

    def _generation(self, ids: list[int], prompt_tokens: int) -> Generation | Exception:
        ends = self._model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or [])
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        said = ids if stop is None else ids[:stop]
        text = str(self._tokenizer.decode(said, skip_special_tokens=True)).strip()
        if not text:
            return GenerationError("the model gave an empty answer")
        return Generation(text, prompt_tokens, len(said), "length" if stop is None else "stop")


def _placement(quantization: str | None, device: str | None, device_map: str | None, dtype: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where the weights go; none where the model is moved there later."""
    if device and device_map:
        raise ConfigError("device and device_map contradict each other; give one")
    if quantization not in {None, "4bit", "8bit"}:
        raise ConfigError(f"the quantization is '{quantization}'; it can be 4bit or 8bit")
    if quantization is None and device_map is None:
        return {}
    if find_spec("accelerate") is None:
        raise MissingExtraError("accelerate", EXTRA)
    if quantization is None:
        return {"device_map": device_map}
    import torch

    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", EXTRA)
    on = pick_device(device)
    if not on.startswith("cuda") or not torch.cuda.is_available():
        raise ConfigError(
            f"quantization = '{quantization}' needs a GPU, and the device is '{on}'; for a CPU take a GGUF file "
            "with llamacpp"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": device_map or {"": on}}
    compute = torch.bfloat16 if dtype == "auto" else pick_dtype(dtype, on)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": config, "device_map": device_map or {"": on}}
