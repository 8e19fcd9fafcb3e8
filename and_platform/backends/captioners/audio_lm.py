"""Captions from an audio language model of transformers: anything with a processor that takes sound.

Two kinds are served. Models that are talked to (Qwen2-Audio, the thinkers of Qwen2.5-Omni and Qwen3-Omni, Audio
Flamingo 3, Voxtral and their like) get the prompt and the sound through their chat template; encoder-decoder models
(Whisper and its like) have no prompt and were trained for the one thing they say.

Of a clip that is longer than the model's window its processor decides: most cut it (`max_seconds` in the recipe), some
go on in windows. No text is cut.
"""

from __future__ import annotations

import base64
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from and_platform.backends.audio import encode_wav
from and_platform.backends.base import BackendRecipe, Clip, Floats
from and_platform.backends.batching import BatchSize, pick_device, pick_dtype
from and_platform.backends.captioners.local import LocalCaptioner
from and_platform.backends.lazy import Lazy
from and_platform.backends.weights import LOCAL, check_whole, find_weights, loading
from and_platform.core.prompts import CAPTION_PROMPT
from and_platform.errors import ConfigError, MissingExtraError, WeightsMissingError

_VISION = ("image_processor", "video_processor")
_SHORTEST_S = 0.1  # below that some encoders have no frame left after their convolutions
_BITS = {"4bit": "load_in_4bit", "8bit": "load_in_8bit"}


class _Family(NamedTuple):
    """What sets a family of models apart from the shared interface."""

    takes_files: bool = False  # sound comes as a file in the chat, not as samples
    has_window: bool = True  # what is beyond the extractor's window is cut
    needs: str = ""  # a package that its tokenizer is read with
    adapter: str = ""  # a folder beside the weights, with what the language model hears through
    pads_leak: bool = False  # what sound is padded with changes what is heard: only clips of one length share a batch


_FAMILIES = {
    "phi4_multimodal": _Family(adapter="speech-lora", pads_leak=True),
    "voxtral": _Family(takes_files=True, has_window=False, needs="mistral_common"),
}


class AudioLMCaptioner(LocalCaptioner[Any]):
    """One caption per clip, the same whatever else is in its batch.

    Parameters
    ----------
    source
        Directory or hub id of the model.
    prompt
        What the model is asked; the default is the paper's (Appendix A.1).
    system
        A system prompt; empty for what the model's chat template says.
    max_tokens
        The longest caption.
    temperature, top_p, seed
        0 decodes greedily; above 0 samples, each clip with a seed of its own made of `seed` and its samples.
    num_beams
        Beams of a search; only at temperature 0.
    dtype
        "auto", or the name of one: see `batching.pick_dtype`.
    quantization
        "4bit" or "8bit": weights in fewer bits through bitsandbytes.
    device_map
        "auto" spreads a model that is larger than one GPU over all of them.

    Raises
    ------
    ConfigError
        If options do not go together.
    MissingExtraError
        If bitsandbytes (for quantization) or mistral-common (for Voxtral) is needed and not installed.
    WeightsMissingError
        If there is no such model, or it takes no sound.
    """

    def __init__(
        self,
        source: str,
        *,
        prompt: str = CAPTION_PROMPT,
        system: str = "",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        num_beams: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        batch_size: int = 8,
        device: str | None = None,
        device_map: str | None = None,
    ) -> None:
        from transformers import AutoConfig

        if temperature > 0 and num_beams > 1:
            raise ConfigError("a captioner samples (temperature) or searches (num_beams), not both; leave one out")
        if quantization is not None and quantization not in _BITS:
            raise ConfigError(f"there is no quantization '{quantization}'; there is: {', '.join(_BITS)}")
        if quantization and find_spec("bitsandbytes") is None:
            raise MissingExtraError("bitsandbytes", "large-models")
        weights = find_weights(source)
        where = pick_device(device)
        with loading(source):
            config = AutoConfig.from_pretrained(weights.path, **LOCAL)
            self._is_asked = not config.is_encoder_decoder
            self._family = _FAMILIES.get(config.model_type, _Family())
            if self._family.needs and find_spec(self._family.needs) is None:
                raise MissingExtraError(self._family.needs, config.model_type)
            self._processor: Any = _load_processor(weights.path, config)
            extractor = _extractor(self._processor, source)
            # Of a model that also speaks, only what thinks and writes is needed.
            config = getattr(config, "thinker_config", config)
            wanted = pick_dtype(dtype, where, config.dtype)
        adapter = weights.path / self._family.adapter if self._family.adapter else None
        if adapter is not None and not adapter.is_dir():
            raise WeightsMissingError(f"the model at {source} lacks its adapter {adapter.name}; download it whole")

        def load() -> Any:
            with loading(source):
                model = _load_model(weights.path, config, wanted, quantization, device_map or where)
                if adapter is not None:
                    model.load_adapter(str(adapter))
            return model

        self._lazy = Lazy(load)
        self._processor.tokenizer.padding_side = "left"
        self.rate: int | None = int(extractor.sampling_rate)
        self._prompt, self._system = prompt, system
        self._is_inline = self._is_asked and not self._family.takes_files and self._template_lacks_sound(source)
        if system and self._family.takes_files:
            self._check_system()
        self._max_tokens, self._num_beams = max_tokens, num_beams
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._batches = BatchSize(batch_size)
        params: dict[str, Any] = {"max_tokens": max_tokens, "dtype": str(wanted).removeprefix("torch.")}
        if self._is_asked:
            params |= {"prompt": prompt, **({"system": system} if system else {})}
        if temperature > 0:
            params |= {"temperature": temperature, "top_p": top_p, "seed": seed}
        if num_beams > 1:
            params["num_beams"] = num_beams
        if quantization:
            params["quantization"] = quantization
        if window := _window_s(self._processor, extractor, self._family):
            params["max_seconds"] = window
        self.recipe = BackendRecipe("audio-lm", weights.revision, params, origin=weights.origin)

    def _caption(self, clips: list[Clip]) -> list[str]:
        """What is said of clips that come in order of length."""
        if not self._family.pads_leak:
            return self._answer(clips)
        alike = groupby(clips, key=lambda clip: clip.waveform.size)
        return [said for _, group in alike for said in self._answer(list(group))]

    def _answer(self, clips: list[Clip]) -> list[str]:
        import torch

        inputs = self._inputs([_long_enough(clip) for clip in clips]).to(self._model.device)
        for name, value in inputs.items():
            if value.is_floating_point():
                inputs[name] = value.to(self._model.dtype)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=self._max_tokens,
                num_beams=self._num_beams,
                do_sample=False,
                # The checkpoint's own sampling must not speak where ours does.
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=self._choice(clips),
            )
        answers = output[:, inputs["input_ids"].shape[1] :] if self._is_asked else output
        texts: list[str] = self._processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _inputs(self, waveforms: list[Floats]) -> Any:
        """What the model is given for some clips: token ids, features and masks."""
        if not self._is_asked:
            return self._processor.feature_extractor(
                waveforms, sampling_rate=self.rate, return_attention_mask=True, return_tensors="pt"
            )
        if self._is_inline:
            text = self._processor.tokenizer.apply_chat_template(
                self._turns(f"{self._processor.audio_token}{self._prompt}"), add_generation_prompt=True, tokenize=False
            )
            return self._processor(
                text=[text] * len(waveforms), audio=waveforms, return_tensors="pt", text_kwargs={"padding": True}
            )
        return self._processor.apply_chat_template(
            [self._turns([self._sound(wave), {"type": "text", "text": self._prompt}]) for wave in waveforms],
            add_generation_prompt=not self._family.takes_files,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            # Of the text alone: sound is padded as the model wants it.
            processor_kwargs={"text_kwargs": {"padding": True}},
        )

    def _sound(self, waveform: Floats) -> dict[str, Any]:
        if not self._family.takes_files:
            return {"type": "audio", "audio": waveform}
        assert self.rate is not None
        return {"type": "audio", "base64": base64.b64encode(encode_wav(waveform, self.rate, "FLOAT")).decode()}

    def _turns(self, content: Any) -> list[dict[str, Any]]:
        told: Any = self._system if isinstance(content, str) else [{"type": "text", "text": self._system}]
        system = [{"role": "system", "content": told}] if self._system else []
        return [*system, {"role": "user", "content": content}]

    def _check_system(self) -> None:
        """Some tokenizers take no system prompt beside sound, which they say only when they are given both."""
        import numpy as np

        assert self.rate is not None
        try:
            self._inputs([np.zeros(self.rate, np.float32)])
        except ValueError as exc:
            raise ConfigError(f"this captioner takes no system prompt; leave 'system' out ({exc})") from exc

    def _template_lacks_sound(self, source: str) -> bool:
        """Whether the chat template knows texts alone, so that the sound's mark has to stand in the text."""
        from jinja2 import TemplateError

        mark = getattr(self._processor, "audio_token", None)
        if self._processor.chat_template is None and self._processor.tokenizer.chat_template is None:
            raise WeightsMissingError(
                f"the model at {source} has no chat template; take one that was trained to answer"
            )
        try:
            shown = self._processor.apply_chat_template(
                self._turns([{"type": "audio"}, {"type": "text", "text": self._prompt}]),
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TypeError, ValueError, TemplateError):
            return True
        return mark is not None and mark not in shown


def _load_processor(path: Path, config: Any) -> Any:
    """The model's processor; without its eyes, which need packages that sound does not."""
    from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    made: Any = PROCESSOR_MAPPING.get(type(config), None)
    if made is None or not any(part in made.get_attributes() for part in _VISION):
        return AutoProcessor.from_pretrained(path, **LOCAL)

    class Hearing(made):  # type: ignore[misc]  # the class is known only here
        """A processor that may lack what it would see with."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return argument and super().check_argument_for_proper_class(argument_name, argument)

    parts = [
        None
        if name in _VISION
        else (AutoTokenizer if "tokenizer" in name else AutoFeatureExtractor).from_pretrained(path, **LOCAL)
        for name in made.get_attributes()
    ]
    settings, _ = made.get_processor_dict(path)
    return Hearing.from_args_and_dict(parts, settings)


def _extractor(processor: Any, source: str) -> Any:
    """The part of a processor that takes sound."""
    for name in ("feature_extractor", "audio_processor"):
        if hasattr(getattr(processor, name, None), "sampling_rate"):
            return getattr(processor, name)
    raise WeightsMissingError(f"the model at {source} takes no sound; name an audio language model")


def _load_model(path: Path, config: Any, dtype: Any, quantization: str | None, device_map: str) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.models.auto import modeling_auto as auto

    known = (
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    )
    made: Any = next((mapping[type(config)] for mapping in known if type(config) in mapping), None)
    if made is None:
        raise ValueError(f"a '{config.model_type}' is no model that transformers can let write about sound")
    options: dict[str, Any] = {}
    if quantization:
        options["quantization_config"] = BitsAndBytesConfig(**{_BITS[quantization]: True}, bnb_4bit_compute_dtype=dtype)
    model, found = made.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        local_files_only=True,
        device_map=device_map,
        output_loading_info=True,
        **options,
    )
    check_whole(found["missing_keys"])
    return model.eval()


def _window_s(processor: Any, extractor: Any, family: _Family) -> float | None:
    """Seconds of sound that a processor takes; None where it has no limit that it tells."""
    if not family.has_window:
        return None
    told = getattr(processor, "max_audio_len", None) or getattr(extractor, "chunk_length", None)
    return float(told) if told else None


def _long_enough(clip: Clip) -> Floats:
    """The clip's samples, with silence after them where it is shorter than any encoder's step."""
    import numpy as np

    missing = max(0, round(_SHORTEST_S * clip.rate) - clip.waveform.size)
    return np.pad(clip.waveform, (0, missing))
