"""Language models of transformers: chat templates, windows, placement."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from and_platform.backends.base import Form, Generation, Prompt, StreamingLLM
from and_platform.backends.llms.transformers_llm import TransformersLLM
from and_platform.errors import ConfigError, GenerationError, MissingExtraError

pytest_plugins = ["tests.checkpoints_llm"]

ASKED = Prompt(" What is heard? ", "Be brief.")
PUBLISHED = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is heard? [/INST]"


def test_the_models_own_template_writes_llama_2_as_published(llama2_dir: Path) -> None:
    llm = TransformersLLM(str(llama2_dir))
    assert llm._chat.text(ASKED) == PUBLISHED
    assert llm._chat.text(Prompt("Hi")) == "<s>[INST] Hi [/INST]"
    ids = llm._chat.tokens(ASKED)
    assert ids.count(1) == 1 and ids[0] == 1  # begun once, by the template
    assert len(ids) == 1 + len(PUBLISHED.removeprefix("<s>"))
    assert "chat_template" not in llm.recipe.params


def test_a_template_can_be_given(base_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plain = TransformersLLM(str(base_dir))
    assert "has no chat template" in caplog.text
    assert plain._chat.text(ASKED) == "Be brief.\n\n What is heard? "
    caplog.clear()
    named = TransformersLLM(str(base_dir), chat_template="llama-2")
    assert not caplog.text
    assert named._chat.text(ASKED) == PUBLISHED
    assert named.recipe.params["chat_template"] != plain.recipe.params.get("chat_template")
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}{% if loud %}!{% endif %}")
    own = TransformersLLM(str(base_dir), chat_template=str(tmp_path / "own.jinja"), template_options={"loud": True})
    assert own._chat.text(Prompt("Hi")) == "Hi!"
    assert own.recipe.params["template_options"] == {"loud": True}
    with pytest.raises(ConfigError, match=r"no chat template 'vicuna'.*llama-2"):
        TransformersLLM(str(base_dir), chat_template="vicuna")


def test_a_prompt_that_is_refused_fails_alone(llama2_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system text') }}{% endif %}{{ messages[0].content }}"
    )
    llm = TransformersLLM(str(llama2_dir), chat_template=str(tmp_path / "t.jinja"), temperature=0.0)
    refused, answered, long = llm.generate([ASKED, Prompt("Hi"), Prompt("word " * 200)], max_tokens=4)
    assert isinstance(refused, GenerationError) and "no system text" in str(refused)
    assert isinstance(answered, Generation)
    assert isinstance(long, GenerationError)
    assert str(long) == "the prompt has 1000 tokens, the model's window 512"


def test_an_answer_ends_at_the_window(llama2_dir: Path) -> None:
    llm = TransformersLLM(str(llama2_dir), temperature=0.0, batch_size=2)
    long, short = llm.generate([Prompt("x" * 490), Prompt("y")], max_tokens=16)
    room = 512 - len(llm._chat.tokens(Prompt("x" * 490)))
    assert 0 < room < 16
    assert isinstance(long, Generation) and long.completion_tokens <= room
    assert isinstance(short, Generation)


def test_an_answer_does_not_depend_on_what_else_is_asked(llama2_dir: Path) -> None:
    asked = [Prompt("a"), Prompt("a longer one"), Prompt("abc")]
    together, alone, other = (
        TransformersLLM(str(llama2_dir), batch_size=size, seed=seed, dtype="float32").generate(asked, max_tokens=6)
        for size, seed in ((3, 0), (1, 0), (3, 1))
    )
    assert together == alone != other


def test_streaming_gives_every_place_once(llama2_dir: Path) -> None:
    llm = TransformersLLM(str(llama2_dir), temperature=0.0, batch_size=2)
    assert isinstance(llm, StreamingLLM) and not llm.structured
    asked = [Prompt("a"), Prompt("a longer one"), Prompt("abc")]
    told = list(llm.stream(asked, max_tokens=3, form=Form(("x",))))
    assert [place for place, _ in told] == [1, 2, 0]  # the longest first
    assert [answer for _, answer in sorted(told)] == llm.generate(asked, max_tokens=3)


def test_dtype_is_in_the_recipe(llama2_dir: Path) -> None:
    half = TransformersLLM(str(llama2_dir), dtype="bfloat16")
    assert half.recipe.params["dtype"] == "torch.bfloat16"
    assert half.recipe != TransformersLLM(str(llama2_dir), dtype="float32").recipe
    with pytest.raises(ConfigError, match="dtype"):
        TransformersLLM(str(llama2_dir), dtype="int3")


def test_where_weights_cannot_go(llama2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(llama2_dir)
    with pytest.raises(ConfigError, match="contradict"):
        TransformersLLM(source, device="cpu", device_map="auto")
    with pytest.raises(ConfigError, match="it can be 4bit or 8bit"):
        TransformersLLM(source, quantization="2bit")
    with pytest.raises(ConfigError, match="structured"):
        TransformersLLM(source, structured=True)
    assert not TransformersLLM(source, structured="auto").structured
    there = {"accelerate", "bitsandbytes"}
    monkeypatch.setattr(
        "and_platform.backends.llms.transformers_llm.find_spec",
        lambda name: ModuleType(name) if name in there else None,
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a GPU, and the device is 'cpu'"):
        TransformersLLM(source, quantization="4bit")
    there -= {"bitsandbytes"}
    with pytest.raises(MissingExtraError, match=r"'bitsandbytes'.*large-models"):
        TransformersLLM(source, quantization="8bit")
    there.clear()
    with pytest.raises(MissingExtraError, match="'accelerate'"):
        TransformersLLM(source, device_map="auto")


@pytest.mark.skipif(
    find_spec("bitsandbytes") is None or find_spec("accelerate") is None or not torch.cuda.is_available(),
    reason="needs a GPU, bitsandbytes and accelerate",
)
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised(llama2_dir: Path, bits: str) -> None:
    llm = TransformersLLM(str(llama2_dir), quantization=bits, temperature=0.0)
    assert llm.recipe.params["quantization"] == bits
    (answer,) = llm.generate([Prompt("Hi")], max_tokens=4)
    assert isinstance(answer, Generation)
