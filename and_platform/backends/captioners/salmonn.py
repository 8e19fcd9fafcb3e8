"""Captions from SALMONN (Tang et al. 2024, ICLR), the captioner of the paper, many clips at a time."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from and_platform.backends.base import BackendRecipe, Clip
from and_platform.backends.batching import BatchSize, pick_device, pick_dtype
from and_platform.backends.captioners.local import LocalCaptioner
from and_platform.backends.captioners.salmonn_layout import SalmonnLayout, read_layout
from and_platform.backends.lazy import Lazy
from and_platform.core.prompts import CAPTION_PROMPT
from and_platform.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from and_platform.backends.captioners.salmonn_model import Salmonn

_QUANTISATIONS = ("4bit", "8bit")


class SalmonnCaptioner(LocalCaptioner["Salmonn"]):
    """One caption per clip, the same whatever else is in its batch: by beam search as published, or sampled.

    Of a clip the first 30 s are heard, the window of the Whisper encoder; one that is shorter than 1 s is followed by
    silence. Both are as published.

    Parameters
    ----------
    source
        Directory with the four parts of a SALMONN, see `salmonn_layout.read_layout`.
    prompt
        What the model is asked; the default is the paper's (Appendix A.1).
    num_beams, repetition_penalty, length_penalty, max_tokens
        Of the search; the defaults are the published ones.
    early_stopping
        When a search of several beams ends, as transformers has it: False (published), True, or "never" before nothing
        better can come. Under the same setting transformers today ends some searches sooner than the version that
        SALMONN was published with did; "never" comes closest to that one, and takes longer.
    temperature, top_p, seed
        0 searches; above 0 samples, each clip with a seed of its own made of `seed` and its samples; `num_beams` 1.
    dtype
        Of the language model: "auto", or the name of one, see `batching.pick_dtype`. The other parts keep float32 and
        multiply in it, as published.
    quantization
        "4bit" or "8bit": weights of the language model in fewer bits through bitsandbytes.

    Raises
    ------
    ConfigError
        If options do not go together, or salmonn.toml is wrong.
    MissingExtraError
        If bitsandbytes (for quantization) is not installed.
    WeightsMissingError
        If a part is missing, or the parts do not belong together.
    """

    def __init__(
        self,
        source: str,
        *,
        prompt: str = CAPTION_PROMPT,
        num_beams: int = 4,
        early_stopping: bool | str = False,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        max_tokens: int = 200,
        temperature: float = 0.0,
        top_p: float = 0.9,
        seed: int = 0,
        dtype: str = "auto",
        quantization: str | None = None,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        if temperature > 0 and num_beams > 1:
            raise ConfigError(
                "a captioner samples (temperature) or searches (num_beams), not both; set num_beams to 1 to sample"
            )
        if early_stopping not in (False, True, "never"):
            raise ConfigError(f"early_stopping is false, true or \"never\", not '{early_stopping}'")
        if quantization is not None and quantization not in _QUANTISATIONS:
            raise ConfigError(f"there is no quantization '{quantization}'; there is: {', '.join(_QUANTISATIONS)}")
        if quantization and find_spec("bitsandbytes") is None:
            raise MissingExtraError("bitsandbytes", "large-models")
        layout = read_layout(source)
        settings = layout.settings
        self._around = settings.around_speech(prompt)

        from transformers import AutoConfig

        from and_platform.backends.captioners.salmonn_model import SHORTEST_S, Hearing
        from and_platform.backends.weights import LOCAL, loading

        where = pick_device(device)
        with loading(str(layout.vicuna.path)):
            stored = AutoConfig.from_pretrained(layout.vicuna.path, **LOCAL).dtype
        wanted = pick_dtype(dtype, where, stored)
        hearing = Hearing.of(layout)
        search = {
            "max_new_tokens": max_tokens, "num_beams": num_beams, "do_sample": False,
            "repetition_penalty": repetition_penalty, "length_penalty": length_penalty, "early_stopping": early_stopping,
        }  # fmt: skip
        self._lazy = Lazy(lambda: _load(layout, where, wanted, quantization, search))
        self.rate: int | None = hearing.rate
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._batches = BatchSize(batch_size)
        params: dict[str, Any] = {
            "prompt": prompt,
            "prompt_template": settings.prompt_template,
            "num_beams": num_beams,
            "repetition_penalty": repetition_penalty,
            "max_tokens": max_tokens,
            "dtype": str(wanted).removeprefix("torch."),
            "lora_alpha": settings.lora_alpha,
            "window_frames": [hearing.kernel, hearing.stride],
            "min_seconds": SHORTEST_S,
            "max_seconds": hearing.longest_s,
            "whisper": layout.whisper.revision,
            "beats": layout.beats.revision,
            "vicuna": layout.vicuna.revision,
        }
        if settings.qformer_heads is not None:
            params["qformer_heads"] = settings.qformer_heads
        if num_beams > 1:
            params |= {"length_penalty": length_penalty, "early_stopping": early_stopping}
        if temperature > 0:
            params |= {"temperature": temperature, "top_p": top_p, "seed": seed}
        if quantization:
            params["quantization"] = quantization
        self.recipe = BackendRecipe("salmonn", layout.checkpoint.revision, params, layout.checkpoint.origin)

    def _caption(self, clips: list[Clip]) -> list[str]:
        texts: list[str] = self._model.tokenizer.batch_decode(self._answer(clips), skip_special_tokens=True)
        return texts

    def _answer(self, clips: list[Clip]) -> list[list[int]]:
        """The tokens that the language model goes on with, up to its end of text."""
        import torch

        model = self._model
        with torch.inference_mode():
            asked = model.prompt_embeddings(model.encode([clip.waveform for clip in clips]), *self._around)
            # All clips make equally many tokens, so that nothing is padded and everything is attended to.
            attended = torch.ones(asked.shape[:2], dtype=torch.long, device=asked.device)
            output = model.llm.generate(
                inputs_embeds=asked, attention_mask=attended, logits_processor=self._choice(clips)
            )
        end = model.tokenizer.eos_token_id
        return [ids[: ids.index(end)] if end in ids else ids for ids in output.tolist()]


def _load(layout: SalmonnLayout, device: str, dtype: Any, quantization: str | None, search: dict[str, Any]) -> Salmonn:
    from transformers import GenerationConfig

    from and_platform.backends.captioners.salmonn_model import Salmonn

    model = Salmonn(layout, device, dtype, quantization)
    end = model.tokenizer.eos_token_id
    # Nothing of the language model's own defaults may change the search.
    model.llm.generation_config = GenerationConfig(
        **search, bos_token_id=model.tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end
    )
    return model
