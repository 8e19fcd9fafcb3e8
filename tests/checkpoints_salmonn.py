"""A tiny SALMONN on disk, all four parts in the published layout.

Weights follow from a tensor's name and shape alone and are exact in half precision, so that every version of every
library fills them alike; tests/data/parity/salmonn.npz was computed elsewhere on the same ones.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

WORDS = ("USER", "ASSISTANT", "Spe", "ech", "audio", "the", "detail", "a", "dog", "barks", "rain", "loud", "bell")
QFORMER_WIDTH, QFORMER_HEADS, QFORMER_FF, QFORMER_LAYERS = 16, 2, 32, 2
SPEECH_WIDTH, AUDIO_WIDTH = 16, 24
RANK, ALPHA = 4, 8
OFTEN_SAID = 420
# so that what is said depends on what is heard
_PICKY = re.compile(r"model\.layers.*[qk]_proj|lm_head|llama_proj|crossattention\.(self\.value|output\.dense)")


def filled(shapes: Mapping[str, Iterable[int]]) -> dict[str, torch.Tensor]:
    """Weights for these names: scales of norms near 1, other vectors near 0, matrices that keep the variance."""
    state = {}
    for name, shape in shapes.items():
        shape = tuple(shape)
        drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) == 1:
            values = 0.1 * drawn + ("norm" in name.lower() and name.endswith("weight"))
        elif name.endswith(("weight_g", "grep_a")):
            values = 1 + 0.1 * drawn
        elif "embed" in name or "query_tokens" in name or "bias" in name:
            values = drawn
        else:
            gain = 4.0 if _PICKY.search(name) else 1.5
            values = drawn * gain / np.sqrt(np.prod(shape[1:]))
        state[name] = torch.from_numpy(values.astype(np.float16).astype(np.float32))
    return state


def write_salmonn(folder: Path, *, llm_width: int = 32, llm_layers: int = 2, may_end: bool = True) -> Path:
    """Write `whisper/`, `vicuna/`, `beats.pt`, `salmonn.pth` and `salmonn.toml`.

    Unless it `may_end`, the language model goes on until it has said as much as it is allowed to.
    """
    write_whisper(folder / "whisper")
    write_beats(folder / "beats.pt")
    write_vicuna(folder / "vicuna", llm_width, llm_layers, may_end=may_end)
    write_checkpoint(folder / "salmonn.pth", llm_width, llm_layers)
    (folder / "salmonn.toml").write_text(f"[model]\nqformer_heads = {QFORMER_HEADS}\nlora_alpha = {ALPHA}\n")
    return folder


def write_whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "vocab_size": 40,
        "num_mel_bins": 80,
        "d_model": SPEECH_WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_source_positions": 1500,
        "max_target_positions": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "decoder_start_token_id": 0,
    }
    model = WhisperForConditionalGeneration(WhisperConfig(**{k: v for k, v in config.items() if k != "model_type"}))
    _write(folder, config, {name: value for name, value in model.state_dict().items() if name != "proj_out.weight"})
    WhisperFeatureExtractor().save_pretrained(folder)


def write_beats(file: Path) -> None:
    from and_platform.backends.beats import Beats, BeatsConfig

    config = BeatsConfig(
        embed_dim=16,
        encoder_layers=2,
        encoder_embed_dim=AUDIO_WIDTH,
        encoder_ffn_embed_dim=32,
        encoder_attention_heads=2,
        conv_pos=8,
        conv_pos_groups=4,
        deep_norm=True,
        relative_position_embedding=True,
        num_buckets=32,
        max_distance=80,
        gru_rel_pos=True,
        finetuned_model=True,
        predictor_class=5,
    )
    state = filled({name: value.shape for name, value in Beats(config).state_dict().items()})
    for name in state:  # one table, listed for each block
        if name.endswith("relative_attention_bias.weight"):
            state[name] = state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    torch.save({"cfg": config.to_dict(), "model": state}, file)


def write_vicuna(folder: Path, width: int, layers: int, *, may_end: bool = True) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    pieces = sentencepiece_model(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": pieces,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    ours = {name: value for name, value in config.items() if name not in ("model_type", "torch_dtype")}
    state = {name: value.half() for name, value in LlamaForCausalLM(LlamaConfig(**ours)).state_dict().items()}
    _write(folder, config, state, end_as=OFTEN_SAID if may_end else 0)
    # A Vicuna brings defaults of its own for drawing; they must not change a search.
    own = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6, "max_length": 9}
    (folder / "generation_config.json").write_text(json.dumps(own))


def sentencepiece_model(folder: Path) -> int:
    """A tokenizer.model of bytes, letters and a few words as Llama's, without tokenizer.json; the number of pieces."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = []
    for word in WORDS:
        for whole in (word, f"▁{word}"):
            texts += [whole[:end] for end in range(2, len(whole) + 1)]
    texts = list(dict.fromkeys(texts))
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    model = pb.ModelProto()
    for place, piece in enumerate(pieces + texts + letters):
        kind = 2 if place == 0 else 3 if place < 3 else 6 if place < 259 else 1
        score = -float(place - 259) if place >= 259 else 0.0
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    added = {"add_bos_token": True, "add_eos_token": False, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **added, **special}))
    return len(model.pieces)


def checkpoint_shapes(llm_width: int, llm_layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what was trained, as published (LAVIS names for the Q-Former, peft names for the adapters)."""
    shapes: dict[str, tuple[int, ...]] = {
        "speech_query_tokens": (1, 1, QFORMER_WIDTH),
        "ln_speech.weight": (SPEECH_WIDTH,),
        "ln_speech.bias": (SPEECH_WIDTH,),
        "ln_audio.weight": (AUDIO_WIDTH,),
        "ln_audio.bias": (AUDIO_WIDTH,),
    }

    def layer(name: str, wide: int, deep: int) -> None:
        shapes.update({f"{name}.weight": (wide, deep), f"{name}.bias": (wide,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.LayerNorm.weight": (QFORMER_WIDTH,), f"{name}.LayerNorm.bias": (QFORMER_WIDTH,)})

    layer("speech_llama_proj", llm_width, QFORMER_WIDTH)
    norm("speech_Qformer.bert.embeddings")
    for number in range(QFORMER_LAYERS):
        block = f"speech_Qformer.bert.encoder.layer.{number}"
        for attention, seen in (("attention", QFORMER_WIDTH), ("crossattention", SPEECH_WIDTH + AUDIO_WIDTH)):
            layer(f"{block}.{attention}.self.query", QFORMER_WIDTH, QFORMER_WIDTH)
            layer(f"{block}.{attention}.self.key", QFORMER_WIDTH, seen)
            layer(f"{block}.{attention}.self.value", QFORMER_WIDTH, seen)
            layer(f"{block}.{attention}.output.dense", QFORMER_WIDTH, QFORMER_WIDTH)
            norm(f"{block}.{attention}.output")
        layer(f"{block}.intermediate_query.dense", QFORMER_FF, QFORMER_WIDTH)
        layer(f"{block}.output_query.dense", QFORMER_WIDTH, QFORMER_FF)
        norm(f"{block}.output_query")
    for number in range(llm_layers):
        for module in ("q_proj", "v_proj"):
            name = f"llama_model.base_model.model.model.layers.{number}.self_attn.{module}"
            shapes[f"{name}.lora_A.default.weight"] = (RANK, llm_width)
            shapes[f"{name}.lora_B.default.weight"] = (llm_width, RANK)
    return shapes


def write_checkpoint(file: Path, llm_width: int, llm_layers: int, **changed: torch.Tensor | None) -> None:
    """The trained parts and the tables that were saved along; `changed` replaces tensors, or leaves them out (None)."""
    state: dict[str, torch.Tensor | None] = dict(filled(checkpoint_shapes(llm_width, llm_layers)))
    state["speech_Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    for number in range(llm_layers):
        table = f"llama_model.base_model.model.model.layers.{number}.self_attn.rotary_emb.inv_freq"
        state[table] = 10000.0 ** -torch.arange(0, 1, 8 / llm_width)
    state |= changed
    kept = {name: value for name, value in state.items() if value is not None}
    torch.save({"model": kept, "epoch": 3}, file)


def parity_clips() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Sounds at 16 kHz by name: shorter than a second, of some seconds, longer than what is heard."""
    lengths = {"short": 0.4, "one": 1.0, "some": 3.37, "long": 30.5}
    lengths |= {f"other{number}": 0.7 + 0.61 * number for number in range(8)}
    heard = {}
    for seed, (name, seconds) in enumerate(lengths.items()):
        drawn = np.random.RandomState(seed)
        loud, noisy, hertz, drift = drawn.uniform([0.0, 0.0, 100.0, -0.1], [0.3, 0.2, 4000.0, 0.1])
        time = np.arange(int(seconds * 16000)) / 16000
        tone = np.sin(2 * np.pi * hertz * time * (1 + drift * time))
        heard[name] = (loud * tone + noisy * drawn.standard_normal(time.size)).astype(np.float32)
    return heard


def _write(folder: Path, config: dict[str, Any], state: Mapping[str, torch.Tensor], end_as: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = filled({name: value.shape for name, value in state.items()})
    if "lm_head.weight" in weights:  # its end is a little likelier than what is said most often; or never is
        weights["lm_head.weight"][2] = weights["lm_head.weight"][end_as] * (1.03125 if end_as else 0)
    torch.save({name: value.to(state[name].dtype) for name, value in weights.items()}, folder / "pytorch_model.bin")


@pytest.fixture(scope="session")
def salmonn_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    return write_salmonn(tmp_path_factory.mktemp("salmonn"))
