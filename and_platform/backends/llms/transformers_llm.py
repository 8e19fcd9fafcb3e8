"""Language models in this process through transformers, with their own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from and_platform.backends.base import BackendRecipe, Generation, Prompt
from and_platform.backends.batching import by_length, pick_device
from and_platform.backends.weights import find_weights, loading
from and_platform.errors import GenerationError


class TransformersLLM:
    """Answers from a causal language model of transformers.

    Parameters
    ----------
    source
        Directory or hub id ("meta-llama/Llama-2-13b-chat-hf" is the paper's).
    temperature
        0 decodes greedily. Above 0 the same answers are promised for the same prompts in the same call only:
        a batch draws from one random stream, seeded anew with `seed`.
    """

    def __init__(
        self,
        source: str,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        weights = find_weights(source)
        with loading(source):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(weights.path, padding_side="left")
            self._model: Any = AutoModelForCausalLM.from_pretrained(weights.path, dtype="auto").eval()
        self._model.to(pick_device(device))
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._batch_size = batch_size
        self.recipe = BackendRecipe(
            "transformers",
            weights.revision,
            {"temperature": temperature, "top_p": top_p, "seed": seed, "dtype": str(self._model.dtype)},
        )

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation | Exception]:
        """One answer per prompt, in order; a GenerationError stands where the model said nothing."""
        texts = [self._chat(prompt) for prompt in prompts]
        return by_length(texts, len, self._batch_size, lambda batch: self._answer(batch, max_tokens))

    def _chat(self, prompt: Prompt) -> str:
        turns = [{"role": "user", "content": prompt.user}]
        if prompt.system:
            turns.insert(0, {"role": "system", "content": prompt.system})
        if self._tokenizer.chat_template is None:
            return "\n\n".join(turn["content"] for turn in turns)
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _answer(self, texts: list[str], max_tokens: int) -> list[Generation | Exception]:
        import torch

        templated = self._tokenizer.chat_template is not None
        # The template writes the special tokens itself.
        tokens = self._tokenizer(
            texts,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not templated,
            return_token_type_ids=False,
        ).to(self._model.device)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self._temperature > 0:
            drawn = {"temperature": self._temperature, "top_p": self._top_p, "top_k": 0}
            sampling = {"do_sample": True, **drawn}
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed)
            output = self._model.generate(
                **tokens, max_new_tokens=max_tokens, pad_token_id=self._tokenizer.pad_token_id, **sampling
            )
        asked = tokens["attention_mask"].sum(dim=1).tolist()
        return [
            self._generation(answer, n)
            for answer, n in zip(output[:, tokens["input_ids"].shape[1] :].tolist(), asked, strict=True)
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
