"""A tiny Llama in the layout of Llama 2 chat: its marks, its template with the tokenizer, head size 32 as engines want."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from and_platform.backends.llms.chat import TEMPLATES
from tests.checkpoints import _byte_tokenizer


@pytest.fixture(scope="session")
def llama2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama2(tmp_path_factory.mktemp("llama2"), template=TEMPLATES["llama-2"])


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a chat template."""
    return make_llama2(tmp_path_factory.mktemp("llama2-base"), template=None)


def make_llama2(path: Path, *, template: str | None) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    _byte_tokenizer(path, {"<unk>": 0, "<s>": 1, "</s>": 2}, bos="<s>", eos="</s>", template=template)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path
