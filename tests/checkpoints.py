"""Tiny checkpoints with random weights, saved to disk: backends load them the way they load real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from and_platform.backends.base import TextEncoder
from and_platform.backends.registry import create


@pytest.fixture(scope="session")
def minilm() -> TextEncoder:
    return create("encoder", "minilm")


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), positions=16)


def write_clip(path: Path, positions: int = 77) -> Path:
    """The text tower of a CLIP that reads bytes, quickly loaded."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=24,
        max_position_embeddings=positions,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    CLIPTextModelWithProjection(config).save_pretrained(path)
    vocab = _byte_vocab("</w>")
    vocab |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(path).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def clap_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    path = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    text = ClapTextConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=34,
        pad_token_id=1,
        projection_dim=24,
    )
    audio = ClapAudioConfig(
        spec_size=64,
        num_mel_bins=16,
        patch_embeds_hidden_size=16,
        depths=[1, 1],
        num_attention_heads=[2, 2],
        hidden_size=32,
        window_size=4,
        patch_size=4,
        patch_stride=[4, 4],
        projection_dim=24,
        num_hidden_layers=2,
    )
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=24)
    ClapModel(config).save_pretrained(path)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=4000,
        truncation="rand_trunc",
        padding="repeatpad",
    ).save_pretrained(path)
    _byte_tokenizer(path, {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, pad="<pad>")
    return path


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    special = {"<s>": 0, "</s>": 1, "<|user|>": 2, "<|assistant|>": 3, "<|system|>": 4}
    template = (
        "{{ bos_token }}{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    _byte_tokenizer(path, special, bos="<s>", eos="</s>", template=template)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def whisper_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    path = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(1)
    _byte_tokenizer(path, {"<s>": 0, "</s>": 1}, bos="<s>", eos="</s>", pad="</s>")
    _log_mel().save_pretrained(path)
    config = WhisperConfig(
        vocab_size=300,
        num_mel_bins=16,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperForConditionalGeneration(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def qwen_audio_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
    )

    path = tmp_path_factory.mktemp("qwen-audio")
    torch.manual_seed(0)
    special = {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
        "<|AUDIO|>": 3,
        "<|audio_bos|>": 4,
        "<|audio_eos|>": 5,
    }
    tokenizer = _byte_tokenizer(path, special, eos="<|im_end|>", pad="<|endoftext|>")
    Qwen2AudioProcessor(_log_mel(), tokenizer).save_pretrained(path)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 16,
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": 50,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        audio_token_index=3,
    )
    Qwen2AudioForConditionalGeneration(config).save_pretrained(path)
    return path


def _log_mel() -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=16, sampling_rate=8000, hop_length=80, chunk_length=1, n_fft=400)


def _byte_vocab(end: str = "", first: int = 0) -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pieces = letters + [letter + end for letter in letters] if end else letters
    return {piece: first + i for i, piece in enumerate(pieces)}


def _byte_tokenizer(
    path: Path,
    special: dict[str, int],
    *,
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
    template: str | None = None,
) -> Any:
    """A tokenizer that knows bytes and a few special tokens, as tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = _byte_vocab(first=len(special))
    inner = Tokenizer(models.BPE(vocab={**special, **vocab}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=list(special),
        chat_template=template,
        **{name: token for name, token in names.items() if token},
    )
    tokenizer.save_pretrained(path)
    return tokenizer
