"""Captions from an audio language model behind an OpenAI-compatible endpoint: a vLLM server, or a hosted one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from and_platform.backends.audio import encode_wav
from and_platform.backends.base import BackendRecipe, Clip, Generation
from and_platform.backends.captioners.answers import check_captions, check_rate
from and_platform.backends.endpoints import ChatEndpoint, Usage
from and_platform.core.prompts import CAPTION_PROMPT
from and_platform.errors import ConfigError

_PARTS = ("input_audio", "audio_url")
_AT_ONCE = 4  # batches of so many times the concurrency: few connections idle while the last of a batch is answered


class OpenAIAudioCaptioner:
    """One caption per clip from an OpenAI-compatible chat endpoint, many at once.

    A clip travels as a mono WAV file of 16 bits, in base64.

    Parameters
    ----------
    model
        The model's name at the endpoint.
    base_url
        For instance "http://localhost:8000/v1".
    prompt
        What the model is asked; the default is the paper's (Appendix A.1).
    system
        A system prompt, if any.
    max_tokens
        The longest caption.
    temperature, top_p, seed
        Sampling; greedy by default.
    rate
        Sampling rate of what is sent, Hz.
    audio_part
        How the request holds the sound: "input_audio" (vLLM, OpenAI), or "audio_url", a data URI (older vLLM).
    concurrency, timeout_s, attempts, first_wait_s
        See `endpoints.ChatEndpoint`; the key is the one of ANDP_LLM_API_KEY.
    revision
        Goes into the recipe, where the name of the model does not say which weights are served.

    Raises
    ------
    ConfigError
        If `base_url` is no address, or there is no such `audio_part`.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        prompt: str = CAPTION_PROMPT,
        system: str = "",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        rate: int = 16_000,
        audio_part: str = "input_audio",
        concurrency: int = 16,
        timeout_s: float = 300.0,
        attempts: int = 6,
        first_wait_s: float = 0.5,
        revision: str = "",
    ) -> None:
        if audio_part not in _PARTS:
            raise ConfigError(f"there is no audio_part '{audio_part}'; there is: {', '.join(_PARTS)}")
        self._endpoint = ChatEndpoint(
            model,
            base_url,
            name="openai-audio",
            concurrency=concurrency,
            timeout_s=timeout_s,
            attempts=attempts,
            first_wait_s=first_wait_s,
        )
        self.rate: int | None = rate
        self.batch_size = _AT_ONCE * concurrency
        self._prompt, self._system, self._audio_part = prompt, system, audio_part
        self._settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        said = {"prompt": prompt, **({"system": system} if system else {})}
        self.recipe = BackendRecipe(
            "openai-audio", revision or model, {"model": model, "rate": rate, **said, **self._settings}
        )

    @property
    def usage(self) -> Usage:
        """What the endpoint was used for so far."""
        return self._endpoint.usage

    def caption_batch(self, clips: Sequence[Clip]) -> list[str | Exception]:
        """One caption per clip, in order; an exception stands where a clip got none.

        When the endpoint itself is at fault (unreachable, key refused, no such model), clips not yet sent fail with
        the same `EndpointError` at once.

        Raises
        ------
        AudioError
            If a clip does not come at `rate`, or has no samples.
        """
        check_rate(clips, self.rate)
        answers = self._endpoint.ask_all(clips, self._body)
        return check_captions(clips, [said.text if isinstance(said, Generation) else said for said in answers])

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _body(self, clip: Clip) -> dict[str, Any]:
        sound = base64.b64encode(encode_wav(clip.waveform, clip.rate)).decode()
        if self._audio_part == "input_audio":
            part: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
        else:
            part = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{sound}"}}
        system = [{"role": "system", "content": self._system}] if self._system else []
        asked = {"role": "user", "content": [part, {"type": "text", "text": self._prompt}]}
        return {**self._settings, "messages": [*system, asked]}
