"""Captions from an audio language model of transformers: anything with a processor that takes sound.

Two kinds are served: models that are talked to through a chat template (Qwen2-Audio and its like) get the
prompt; encoder-decoder models (Whisper and its like) have none and were trained for the one thing they say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from and_platform.backends.base import BackendRecipe, Clip
from and_platform.backends.batching import by_length, pick_device
from and_platform.backends.weights import find_weights, loading
from and_platform.core.prompts import CAPTION_PROMPT
from and_platform.errors import AudioError, GenerationError

_REFUSAL = re.compile(
    r"^\W*(?:(?:i'm |i am )?(?:very )?sorry\b|i (?:cannot|can't|am unable)\b|as an ai\b|unfortunately, i\b)",
    re.IGNORECASE,
)


class AudioLMCaptioner:
    """One caption per clip, decoded greedily.

    Parameters
    ----------
    source
        Directory or hub id of the model.
    prompt
        What the model is asked; the default is the paper's (Appendix A.1).
    max_tokens
        The longest caption.
    """

    def __init__(
        self,
        source: str,
        *,
        prompt: str = CAPTION_PROMPT,
        max_tokens: int = 256,
        batch_size: int = 8,
        device: str | None = None,
    ) -> None:
        from transformers import (
            AutoConfig,
            AutoModelForMultimodalLM,
            AutoModelForSpeechSeq2Seq,
            AutoProcessor,
        )
        from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

        weights = find_weights(source)
        with loading(source):
            config = AutoConfig.from_pretrained(weights.path)
            self._is_chat = config.model_type not in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
            family = AutoModelForMultimodalLM if self._is_chat else AutoModelForSpeechSeq2Seq
            self._model: Any = family.from_pretrained(weights.path, dtype="auto").eval()
            self._processor: Any = AutoProcessor.from_pretrained(weights.path)
        self._model.to(pick_device(device))
        self._processor.tokenizer.padding_side = "left"
        self.rate: int | None = int(self._processor.feature_extractor.sampling_rate)
        self._prompt, self._max_tokens, self._batch_size = prompt, max_tokens, batch_size
        params: dict[str, Any] = {"max_tokens": max_tokens, "dtype": str(self._model.dtype)}
        if self._is_chat:
            params["prompt"] = prompt
        self.recipe = BackendRecipe("audio-lm", weights.revision, params)

    def caption_batch(self, clips: Sequence[Clip]) -> list[str]:
        """One caption per clip, in order.

        Raises
        ------
        AudioError
            If a clip does not come at `rate`.
        GenerationError
            If a clip gets no caption, or a refusal instead of one.
        """
        for clip in clips:
            if clip.rate != self.rate:
                raise AudioError(f"{clip.key} comes at {clip.rate} Hz, the captioner needs {self.rate} Hz; resample it")
        captions = by_length(clips, lambda clip: int(clip.waveform.size), self._batch_size, self._caption)
        for clip, caption in zip(clips, captions, strict=True):
            if not caption:
                raise GenerationError(f"the captioner said nothing about {clip.key}")
            if _REFUSAL.match(caption.replace("\u2019", "'")):
                raise GenerationError(f"the captioner refused to describe {clip.key}: {caption[:80]}")
        return captions

    def _caption(self, clips: list[Clip]) -> list[str]:
        import torch

        inputs = self._inputs([clip.waveform for clip in clips]).to(self._model.device)
        for name, value in inputs.items():
            if value.is_floating_point():
                inputs[name] = value.to(self._model.dtype)
        with torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :] if self._is_chat else output
        texts: list[str] = self._processor.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _inputs(self, waveforms: list[Any]) -> Any:
        if not self._is_chat:
            return self._processor.feature_extractor(
                waveforms, sampling_rate=self.rate, return_attention_mask=True, return_tensors="pt"
            )
        turn = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": self._prompt}]}
        text = self._processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        return self._processor(
            text=[text] * len(waveforms),
            audio=waveforms,
            sampling_rate=self.rate,
            padding=True,
            return_tensors="pt",
        )
