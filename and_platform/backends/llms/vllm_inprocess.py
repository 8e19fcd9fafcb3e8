"""vLLM inside this process (extra `vllm`; it pins a torch of its own, so it wants its own environment)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from and_platform.backends.base import BackendRecipe, Generation, Prompt
from and_platform.backends.weights import find_weights
from and_platform.errors import GenerationError, MissingExtraError


class VllmLLM:
    """Answers from vLLM's engine, which batches by itself: give it as many prompts at once as there are.

    Parameters
    ----------
    source
        Directory or hub id of the model.
    temperature, top_p, seed
        Sampling; the defaults are the paper's, with a seed for each prompt.
    engine
        Further arguments of `vllm.LLM`, such as `tensor_parallel_size` or `max_model_len`.
    """

    def __init__(
        self, source: str, *, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, **engine: Any
    ) -> None:
        try:
            import vllm
        except ImportError as exc:
            raise MissingExtraError("vllm", "vllm") from exc
        weights = find_weights(source)
        self._sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
        self._make_sampling = vllm.SamplingParams
        self._engine = vllm.LLM(model=str(weights.path), seed=seed, **engine)
        self.recipe = BackendRecipe("vllm", weights.revision, dict(self._sampling))

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation | Exception]:
        """One answer per prompt, in order; a GenerationError stands where the model said nothing."""
        if not prompts:
            return []
        outputs = self._engine.chat(
            [_turns(prompt) for prompt in prompts],
            self._make_sampling(max_tokens=max_tokens, **self._sampling),
            use_tqdm=False,
        )
        return [_generation(output) for output in outputs]


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": prompt.user}]


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
