"""Tiny audio language models with random weights, on disk in the layouts that the real ones are published in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import _byte_tokenizer

RATE = 16000

_OMNI_TOKENS = {
    "<|endoftext|>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": 2,
    "<|AUDIO|>": 3,
    "<|audio_bos|>": 4,
    "<|audio_eos|>": 5,
    "<|IMAGE|>": 6,
    "<|VIDEO|>": 7,
    "<|vision_bos|>": 8,
    "<|vision_eos|>": 9,
}
_OMNI_NAMED = {
    "audio_token": "<|AUDIO|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
}
_MISTRAL = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 11: "<pad>", 14: "[PREFIX]", 15: "[MIDDLE]",
    16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 19: "[TOOL_CONTENT]", 24: "[AUDIO]",
    25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]",
}  # fmt: skip
_PARTS = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n"
    "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'audio' %%}%s{%% elif 'text' in part %%}{{ part['text'] }}{%% endif %%}"
    "{%% endfor %%}{%% endif %%}<|im_end|>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
_TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SOUND = {
    "num_mel_bins": 16,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
}


def _extractor(seconds: int, mels: int = 16) -> dict[str, Any]:
    """What preprocessor_config.json says of a log-mel extractor."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "chunk_length": seconds,
        "feature_size": mels,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": seconds * RATE,
        "nb_max_frames": seconds * RATE // 160,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": RATE,
    }


def _write(path: Path, name: str, content: Any) -> None:
    (path / name).write_text(json.dumps(content, indent=1))


def _save(model: Any, path: Path, loud: float = 8) -> None:
    """Save a model whose answers depend on what it hears: weights as small as they are drawn say the same of anything."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in name:
                weight.mul_(loud)
    model.save_pretrained(path)


def _omni_files(path: Path, processor: str) -> None:
    tokenizer = _byte_tokenizer(path, _OMNI_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
    tokenizer.save_pretrained(path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    _write(
        path, "tokenizer_config.json", {**settings, "extra_special_tokens": _OMNI_NAMED, "processor_class": processor}
    )
    eyes = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    _write(path, "preprocessor_config.json", {**_extractor(2), **eyes, "processor_class": processor})
    _write(path, "chat_template.json", {"chat_template": _PARTS % "<|audio_bos|><|AUDIO|><|audio_eos|>"})


@pytest.fixture(scope="session")
def qwen2_5_omni_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinker, talker-less, with `spk_dict.pt` and the talker's weights left out of the files."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    path = tmp_path_factory.mktemp("qwen2-5-omni")
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    config = Qwen2_5OmniConfig(
        thinker_config={
            "audio_config": {**_SOUND, "max_source_positions": 100, "n_window": 20, "output_dim": 32},
            "vision_config": {
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
                "fullatt_block_indexes": [0],
            },
            "text_config": {k: v for k, v in _TEXT.items() if k != "head_dim"} | {"rope_parameters": rope},
            "audio_token_index": 3, "image_token_index": 6, "video_token_index": 7,
            "audio_start_token_id": 4, "audio_end_token_id": 5, "vision_start_token_id": 8, "vision_end_token_id": 9,
        },
        enable_audio_output=False,
    )  # fmt: skip
    _save(Qwen2_5OmniForConditionalGeneration(config), path)
    _omni_files(path, "Qwen2_5OmniProcessor")
    return path


@pytest.fixture(scope="session")
def qwen3_omni_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

    path = tmp_path_factory.mktemp("qwen3-omni")
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    config = Qwen3OmniMoeConfig(
        thinker_config={
            "audio_config": {
                **_SOUND, "max_source_positions": 100, "n_window": 50, "n_window_infer": 100, "output_dim": 32,
                "downsample_hidden_size": 8,
            },
            "vision_config": {
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
                "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
            },
            "text_config": {
                **_TEXT, "rope_parameters": rope, "moe_intermediate_size": 16, "num_experts": 4,
                "num_experts_per_tok": 2,
            },
            "audio_token_id": 3, "image_token_id": 6, "video_token_id": 7, "audio_start_token_id": 4, "vision_start_token_id": 8,
        },
        enable_audio_output=False,
    )  # fmt: skip
    _save(Qwen3OmniMoeForConditionalGeneration(config), path)
    _omni_files(path, "Qwen3OmniMoeProcessor")
    return path


@pytest.fixture(scope="session")
def audio_flamingo3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration

    path = tmp_path_factory.mktemp("audio-flamingo3")
    torch.manual_seed(0)
    special = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<sound>": 3}
    _byte_tokenizer(path, special, eos="<|im_end|>", pad="<|endoftext|>")
    _write(path, "preprocessor_config.json", _extractor(1))
    _write(
        path,
        "processor_config.json",
        {"processor_class": "AudioFlamingo3Processor", "audio_token": "<sound>", "max_audio_len": 2},
    )
    (path / "chat_template.jinja").write_text(_PARTS % "<sound>")
    config = AudioFlamingo3Config(
        audio_config={
            "model_type": "audioflamingo3_encoder", "num_mel_bins": 16, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "max_source_positions": 50,
        },
        text_config={"model_type": "qwen2", **{k: v for k, v in _TEXT.items() if k != "head_dim"}},
        audio_token_id=3,
    )  # fmt: skip
    _save(AudioFlamingo3ForConditionalGeneration(config), path)
    return path


@pytest.fixture(scope="session")
def voxtral_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tekken.json, the tokenizer of mistral-common; its window is 30 s, as that is written in its processor."""
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    path = tmp_path_factory.mktemp("voxtral")
    torch.manual_seed(2)
    named = [_MISTRAL.get(rank, f"<SPECIAL_{rank}>") for rank in range(35)]
    tekken = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+", "num_vocab_tokens": 256,
            "default_vocab_size": 256 + len(named), "default_num_special_tokens": len(named), "version": "v7",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)
        ],
        "special_tokens": [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(named)],
        "audio": {
            "sampling_rate": RATE, "frame_rate": 12.5, "chunk_length_s": 30.0,
            "audio_encoding_config": {"num_mel_bins": 16, "hop_length": 160, "window_size": 400},
        },
    }  # fmt: skip
    _write(path, "tekken.json", tekken)
    _write(path, "preprocessor_config.json", {**_extractor(30), "processor_class": "VoxtralProcessor"})
    config = VoxtralConfig(
        audio_config={
            "num_mel_bins": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 64, "max_source_positions": 1500,
        },
        text_config={
            **_TEXT, "model_type": "llama", "vocab_size": 256 + len(named), "bos_token_id": 1, "pad_token_id": 11,
            "max_position_embeddings": 4096,
        },
        audio_token_id=24,
    )  # fmt: skip
    _save(VoxtralForConditionalGeneration(config), path, loud=3)
    return path


@pytest.fixture(scope="session")
def phi4_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the adapter in speech-lora/ that its language model hears through."""
    from peft import LoraConfig, get_peft_model
    from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

    path = tmp_path_factory.mktemp("phi4")
    torch.manual_seed(0)
    special = {
        "<|endoftext|>": 0,
        "<|user|>": 1,
        "<|end|>": 2,
        "<|audio|>": 3,
        "<|image|>": 4,
        "<|assistant|>": 5,
        "<|system|>": 6,
    }
    template = (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'audio' %}<|audio|>"
        "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    _byte_tokenizer(path, special, bos="<|endoftext|>", eos="<|end|>", pad="<|endoftext|>")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    named = {"audio_token": "<|audio|>", "image_token": "<|image|>"}
    _write(path, "tokenizer_config.json", {**settings, "extra_special_tokens": named})
    (path / "chat_template.jinja").write_text(template)
    _write(
        path,
        "preprocessor_config.json",
        {
            "feature_extractor_type": "Phi4MultimodalFeatureExtractor", "feature_size": 80, "sampling_rate": RATE,
            "image_processor_type": "Phi4MultimodalImageProcessor", "processor_class": "Phi4MultimodalProcessor",
        },
    )  # fmt: skip
    config = Phi4MultimodalConfig(
        **{k: v for k, v in _TEXT.items() if k != "head_dim"},
        original_max_position_embeddings=4096,
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "crop_size": 28, "image_token_id": 4,
        },
        audio_config={
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 2, "num_attention_heads": 2, "kernel_size": 3,
            "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 8,
            "audio_token_id": 3, "bias_max_distance": 50,
        },
    )  # fmt: skip
    model = Phi4MultimodalForCausalLM(config)
    _save(model, path)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=4, target_modules=["qkv_proj", "o_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(path / "speech-lora")
    return path
