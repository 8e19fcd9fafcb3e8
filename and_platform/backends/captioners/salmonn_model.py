"""The network of SALMONN (Tang et al. 2024, ICLR): two encoders, a window-level Q-Former, adapters on a language model.

Every part is kept elsewhere: Whisper's encoder, the Q-Former of BLIP-2 and the language model in transformers, the
adapters (LoRA) in peft, BEATs in `backends.beats`. Here they are put together as published, and the published
checkpoint is loaded into them. Of the published names only the Q-Former's differ from those of its parts:

=============================================  =============================================
in the checkpoint (`speech_Qformer.bert.` + )  in `Blip2QFormerModel`
=============================================  =============================================
`embeddings.LayerNorm`                         `layernorm`
`encoder.layer.N.attention.self`               `encoder.layer.N.attention.attention`
`encoder.layer.N.crossattention.self`          `encoder.layer.N.crossattention.attention`
`....output`, `intermediate_query`,            the same
`output_query`
=============================================  =============================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from and_platform.backends import beats
from and_platform.backends.captioners.salmonn_layout import SalmonnLayout, SalmonnSettings
from and_platform.backends.weights import LOCAL, loading, read_pickle
from and_platform.errors import WeightsMissingError

SHORTEST_S = 1.0

_QFORMER = "speech_Qformer.bert."
_LLM = "llama_model."
_LORA = re.compile(r"^(?P<module>.+\.(?P<name>\w+))\.lora_(?P<side>[AB])(?:\.default)?\.weight$")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
# Counters and tables that older versions of the parts kept beside their weights; they hold nothing that was trained.
_CONSTANT = re.compile(r"(?:\.position_ids|\.rotary_emb\.inv_freq)$")
_HEAD_WIDTH = 64
_CROSS_KEY = "encoder.layer.0.crossattention.attention.key.weight"


@dataclass(frozen=True)
class SalmonnWeights:
    """A published checkpoint, sorted by the part that each tensor belongs to, under the names of these parts."""

    qformer: dict[str, Tensor]
    connector: dict[str, Tensor]  # ln_speech, ln_audio, speech_query_tokens, speech_llama_proj
    lora: dict[str, Tensor]  # by the language model's module, as peft names it
    rank: int
    targets: tuple[str, ...]  # names of the modules that have an adapter: q_proj, v_proj
    llm_layers: int


def read_checkpoint(path: Path) -> SalmonnWeights:
    """Read and sort the tensors of a published checkpoint, `{"model": {...}}` as `torch.save` wrote it.

    Raises
    ------
    WeightsMissingError
        If the file is none, lacks a trained part, or holds a tensor that no part takes.
    """
    written = read_pickle(path)
    state = written.get("model") if isinstance(written, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsMissingError(f"{path} is no checkpoint of SALMONN: it has no 'model' that holds tensors")
    parts: dict[str, dict[str, Tensor]] = {"qformer": {}, "connector": {}, "lora": {}}
    ranks: set[int] = set()
    targets: set[str] = set()
    layers: set[int] = set()
    for name, value in state.items():
        if _CONSTANT.search(name):
            continue
        if name.startswith(_QFORMER):
            parts["qformer"][_qformer_name(name.removeprefix(_QFORMER))] = value
        elif name.startswith(("ln_speech.", "ln_audio.", "speech_llama_proj.")) or name == "speech_query_tokens":
            parts["connector"][name] = value
        elif name.startswith(_LLM) and (adapter := _LORA.match(name.removeprefix(_LLM))):
            parts["lora"][f"{adapter['module']}.lora_{adapter['side']}.default.weight"] = value
            ranks.add(value.shape[0] if adapter["side"] == "A" else value.shape[1])
            targets.add(adapter["name"])
            layers.update(int(number) for number in _LAYER.findall(name))
        else:
            raise WeightsMissingError(f"{path} is no checkpoint of SALMONN as published: nothing takes its '{name}'")
    lacks = [name for name, held in parts.items() if not held]
    lacks += sorted(_connector_names() - parts["connector"].keys())
    lacks += [] if _CROSS_KEY in parts["qformer"] else [f"{_QFORMER}{_CROSS_KEY}"]
    if lacks:
        raise WeightsMissingError(f"{path} is no whole checkpoint of SALMONN: it lacks {', '.join(lacks)}")
    if len(ranks) != 1:
        raise WeightsMissingError(f"the adapters in {path} have several ranks: {sorted(ranks)}")
    return SalmonnWeights(
        **parts, rank=ranks.pop(), targets=tuple(sorted(targets)), llm_layers=max(layers, default=-1) + 1
    )


def _connector_names() -> set[str]:
    layers = ("ln_speech", "ln_audio", "speech_llama_proj")
    return {"speech_query_tokens"} | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def _qformer_name(name: str) -> str:
    name = name.replace("attention.self.", "attention.attention.")
    return name.replace("embeddings.LayerNorm.", "layernorm.")


class Connector(nn.Module):
    """From the frames of both encoders to vectors that the language model takes for words.

    Frames are normalised for each encoder, laid side by side, cut into windows; the Q-Former turns each window into
    `num_queries` vectors, which are projected to the width of the language model.

    Parameters
    ----------
    weights
        The trained parts; all widths are read from them.
    kernel, stride
        Length and distance of the windows, in frames.
    heads
        Attention heads of the Q-Former.
    """

    def __init__(self, weights: SalmonnWeights, kernel: int, stride: int, heads: int | None = None) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        held = weights.connector
        queries = held["speech_query_tokens"]
        hidden = queries.shape[-1]
        config = Blip2QFormerConfig(
            hidden_size=hidden,
            num_hidden_layers=len(
                {name.split(".")[2] for name in weights.qformer if name.startswith("encoder.layer.")}
            ),
            num_attention_heads=heads or max(1, hidden // _HEAD_WIDTH),
            intermediate_size=weights.qformer["encoder.layer.0.intermediate_query.dense.weight"].shape[0],
            encoder_hidden_size=weights.qformer[_CROSS_KEY].shape[1],
            cross_attention_frequency=1,
        )
        self.ln_speech = nn.LayerNorm(held["ln_speech.weight"].shape[0])
        self.ln_audio = nn.LayerNorm(held["ln_audio.weight"].shape[0])
        self.speech_query_tokens = nn.Parameter(torch.zeros(queries.shape))
        self.speech_llama_proj = nn.Linear(hidden, held["speech_llama_proj.weight"].shape[0])
        self.qformer = Blip2QFormerModel(config)
        self.kernel, self.stride = kernel, stride
        self.load_state_dict({**held, **{f"qformer.{name}": value for name, value in weights.qformer.items()}})

    @property
    def llm_width(self) -> int:
        """Width of the vectors that come out."""
        return self.speech_llama_proj.out_features

    def forward(self, speech: Tensor, audio: Tensor, audio_mask: Tensor | None) -> Tensor:
        """The sound as a sequence of vectors.

        Parameters
        ----------
        speech
            Frames of Whisper's encoder, [B, T, speech width].
        audio, audio_mask
            Frames of BEATs, [B, P, audio width], and which of them are sound, [B, P] (None: all). The shorter of
            both sequences is filled with zeros behind its end.

        Returns
        -------
        Tensor
            [B, number of windows x number of queries, llm_width]
        """
        speech, audio = self.ln_speech(speech), self.ln_audio(audio)
        if audio_mask is not None:  # behind its end a clip has zeros, however long its neighbours are
            audio = audio * audio_mask.unsqueeze(-1)
        frames = max(speech.shape[1], audio.shape[1])
        both = torch.cat(
            [functional.pad(stream, (0, 0, 0, frames - stream.shape[1])) for stream in (speech, audio)], dim=-1
        )
        windows = both.unfold(1, self.kernel, self.stride).transpose(2, 3)  # [B, windows, kernel, width]
        flat = windows.reshape(-1, self.kernel, both.shape[-1])
        queries = self.speech_query_tokens.expand(flat.shape[0], -1, -1)
        said = self.qformer(query_embeds=queries, encoder_hidden_states=flat).last_hidden_state
        projected: Tensor = self.speech_llama_proj(said)
        return projected.reshape(both.shape[0], -1, self.llm_width)


class Hearing(NamedTuple):
    """What of a SALMONN is known before its weights are read: rate (Hz), longest clip (s), window and step in frames."""

    rate: int
    longest_s: float
    kernel: int
    stride: int

    @classmethod
    def of(cls, layout: SalmonnLayout) -> Hearing:
        """From the configuration of its Whisper and the settings.

        Raises
        ------
        WeightsMissingError
            The Whisper is none, or hears at another rate than BEATs.
        """
        from transformers import WhisperConfig, WhisperFeatureExtractor

        with loading(str(layout.whisper.path)):
            extractor = WhisperFeatureExtractor.from_pretrained(layout.whisper.path, local_files_only=True)
            frames = WhisperConfig.from_pretrained(layout.whisper.path, local_files_only=True).max_source_positions
        rate, longest_s = int(extractor.sampling_rate), float(extractor.chunk_length)
        if rate != beats.RATE:
            raise WeightsMissingError(
                f"the Whisper in {layout.whisper.path} hears {rate} Hz, BEATs {beats.RATE} Hz; SALMONN needs equal ones"
            )
        settings = layout.settings
        return cls(
            rate, longest_s, _frames_of(settings.second_per_window, frames, longest_s),
            _frames_of(settings.second_stride, frames, longest_s),
        )  # fmt: skip


class Salmonn:
    """A SALMONN that is ready to hear.

    Parameters
    ----------
    layout
        Where its parts are.
    device
        "cpu", "cuda", "cuda:1" ...
    dtype
        Of the language model. The rest has float32 weights, and multiplies in `dtype` (autocast), as published.
    quantization
        "4bit" or "8bit": weights of the language model in fewer bits, through bitsandbytes.

    Raises
    ------
    WeightsMissingError
        If a part cannot be loaded, or the parts do not belong together.
    """

    def __init__(self, layout: SalmonnLayout, device: str, dtype: torch.dtype, quantization: str | None = None) -> None:
        from transformers import AutoTokenizer, WhisperFeatureExtractor

        settings = layout.settings
        weights = read_checkpoint(layout.checkpoint.path)
        _check_settings(settings, weights, layout)
        self.device, self.dtype = torch.device(device), dtype
        hearing = Hearing.of(layout)
        self.rate, self.longest_s = hearing.rate, hearing.longest_s
        with loading(str(layout.whisper.path)):
            self._extractor: Any = WhisperFeatureExtractor.from_pretrained(layout.whisper.path, local_files_only=True)
        self._speech_encoder = _whisper_encoder(layout.whisper.path).to(self.device)
        self._beats = beats.load_beats(layout.beats.path).to(self.device)
        try:
            self.connector = (
                Connector(weights, hearing.kernel, hearing.stride, settings.qformer_heads).to(self.device).eval()
            )
        except (KeyError, RuntimeError, ValueError) as exc:
            reason = " ".join(str(exc).split())[:300]
            raise WeightsMissingError(
                f"the Q-Former in {layout.checkpoint.path} is not the published one ({reason})"
            ) from exc
        with loading(str(layout.vicuna.path)):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(layout.vicuna.path, **LOCAL)
        llm = _language_model(layout.vicuna.path, self.device, dtype, quantization)
        _check_fit(layout, weights, self._speech_encoder.config.d_model, self._beats.config.encoder_embed_dim, llm)
        self.llm: Any = _with_adapters(llm, weights, settings.lora_alpha, layout)

    def encode(self, waveforms: Sequence[NDArray[np.float32]]) -> Tensor:
        """Clips at `rate` as vectors for the language model, [B, tokens, width of the language model].

        Whisper hears a clip filled with silence up to `longest_s`, BEATs its own length and no less than a second; what
        lies behind `longest_s` is not heard. So every clip makes the same number of tokens, and a clip's do not
        depend on what else is in the batch.
        """
        heard = [wave[: int(self.longest_s * self.rate)] for wave in waveforms]
        spectrogram = self._extractor(heard, sampling_rate=self.rate, return_tensors="pt")["input_features"]
        shortest = int(SHORTEST_S * self.rate)
        sizes = [max(wave.size, shortest) for wave in heard]
        padded = torch.zeros(len(heard), max(sizes))
        for row, wave in zip(padded, heard, strict=True):
            row[: wave.size] = torch.from_numpy(wave)
        with torch.inference_mode():  # its energies do not fit into 16 bits
            fbank, frame_mask = beats.fbank(padded.to(self.device), torch.tensor(sizes, device=self.device))
        with torch.inference_mode(), self._autocast():
            audio, patch_mask = self._beats(fbank, frame_mask)
            speech = self._speech_encoder(spectrogram.to(self.device)).last_hidden_state
            encoded: Tensor = self.connector(speech, audio, patch_mask)
        return encoded

    def prompt_embeddings(self, sound: Tensor, before: str, after: str) -> Tensor:
        """Beginning, text, sound, text as vectors, [B, length, width]: what the language model goes on from."""
        embed = self.llm.get_input_embeddings()

        def words(ids: list[int]) -> Tensor:
            vectors: Tensor = embed(torch.tensor([ids], device=self.device))
            return vectors.expand(sound.shape[0], -1, -1)

        def tokens(text: str) -> list[int]:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        opening = [self.tokenizer.bos_token_id, *tokens(before)]
        return torch.cat([words(opening), sound.to(self.dtype), words(tokens(after))], dim=1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def _frames_of(seconds: float, frames: int, longest_s: float) -> int:
    return max(1, min(frames, round(frames * seconds / longest_s)))


def _whisper_encoder(path: Path) -> Any:
    from transformers import WhisperModel

    with loading(str(path)):
        model, report = WhisperModel.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    if lost := sorted(name for name in report["missing_keys"] if "encoder." in name):
        raise WeightsMissingError(f"{path} holds no encoder of Whisper: it lacks {lost[0]}")
    return model.get_encoder().eval()


def _language_model(path: Path, device: torch.device, dtype: torch.dtype, quantization: str | None) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    if quantization:
        options["quantization_config"] = BitsAndBytesConfig(
            **{f"load_in_{quantization}": True}, bnb_4bit_compute_dtype=dtype
        )
    with loading(str(path)):
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map={"": device}, output_loading_info=True, **LOCAL, **options
        )
    if lost := sorted(report["missing_keys"]):
        raise WeightsMissingError(f"{path} holds no whole language model: it lacks {lost[0]}")
    return model.eval()


def _with_adapters(llm: Any, weights: SalmonnWeights, alpha: int, layout: SalmonnLayout) -> Any:
    """The language model with the trained adapters in it. They stay apart from its weights, as published."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=weights.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(weights.targets),
    )
    adapted = get_peft_model(llm, config)
    missing, unexpected = adapted.load_state_dict(weights.lora, strict=False)
    wrong = [*unexpected, *(name for name in missing if ".lora_" in name)]
    if wrong:
        raise WeightsMissingError(
            f"the adapters in {layout.checkpoint.path} are not for the language model in {layout.vicuna.path}: "
            f"{wrong[0]} is in one of them only"
        )
    return adapted.get_base_model().eval()


def _check_settings(settings: SalmonnSettings, weights: SalmonnWeights, layout: SalmonnLayout) -> None:
    there = {
        "lora_rank": weights.rank,
        "num_speech_query_token": weights.connector["speech_query_tokens"].shape[1],
    }
    for name, value in there.items():
        wanted = getattr(settings, name)
        if wanted is not None and wanted != value:
            raise WeightsMissingError(f"{layout.checkpoint.path} has {name} {value}, the settings say {wanted}")


def _check_fit(layout: SalmonnLayout, weights: SalmonnWeights, speech: int, audio: int, llm: Any) -> None:
    """Widths of the parts against those that the checkpoint was trained for."""
    trained = {
        "whisper": (weights.connector["ln_speech.weight"].shape[0], speech),
        "beats": (weights.connector["ln_audio.weight"].shape[0], audio),
        "vicuna": (weights.connector["speech_llama_proj.weight"].shape[0], llm.config.hidden_size),
    }
    for name, (wanted, there) in trained.items():
        if wanted != there:
            raise WeightsMissingError(
                f"{layout.checkpoint.path} was trained with a {name} of width {wanted}, "
                f"{getattr(layout, name).path} is {there} wide; 13B and 7B must not be mixed"
            )
    if weights.llm_layers != llm.config.num_hidden_layers:
        raise WeightsMissingError(
            f"{layout.checkpoint.path} adapts {weights.llm_layers} layers of a language model, "
            f"{layout.vicuna.path} has {llm.config.num_hidden_layers}; 13B and 7B must not be mixed"
        )
