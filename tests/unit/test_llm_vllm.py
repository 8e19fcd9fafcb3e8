"""vLLM in this process: what the engine is told (with a stand-in), and the engine itself where it is installed."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from and_platform.backends.base import Form, Generation, Prompt, StreamingLLM
from and_platform.backends.llms import forms
from and_platform.backends.llms.vllm_inprocess import VllmLLM, _names_code
from and_platform.errors import BackendError, ConfigError, GenerationError, WeightsMissingError

pytest_plugins = ["tests.checkpoints_llm"]

HAS_VLLM = find_spec("vllm") is not None


class Engine:
    """Stands in for vllm.LLM, which needs a torch of its own: repeats the letters it was asked, is silent at "b"."""

    made: list[dict[str, Any]]
    calls: list[tuple[list[str], list[Any]]]
    fail: Exception | None
    on_cpu: bool

    def __init__(self, **arguments: Any) -> None:
        from transformers import AutoTokenizer

        Engine.made.append(arguments)
        if arguments.get("tensor_parallel_size", 1) > 1:
            raise RuntimeError("Engine core initialization failed.\nSee root cause above.")
        self._tokenizer = AutoTokenizer.from_pretrained(arguments["model"])

    def get_tokenizer(self) -> Any:
        return self._tokenizer

    def generate(self, prompts: list[dict[str, list[int]]], sampling: list[Any], use_tqdm: bool) -> list[Any]:
        if Engine.fail:
            raise Engine.fail
        texts = [self._tokenizer.decode(prompt["prompt_token_ids"]) for prompt in prompts]
        Engine.calls.append((texts, sampling))
        told = [re.findall(r"\[INST\] (.*) \[/INST\]", text, re.DOTALL)[0].replace("b", "") for text in texts]
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(text=text, token_ids=[1, 2], finish_reason="stop")],
                prompt_token_ids=prompt["prompt_token_ids"],
            )
            for text, prompt in zip(told, prompts, strict=True)
        ]


class EngineArgs:
    """Stands in for vllm.EngineArgs: what the engine would be, without its weights."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments

    def create_model_config(self) -> Any:
        return SimpleNamespace(
            dtype="torch.bfloat16",
            quantization=self._arguments["quantization"],
            max_model_len=self._arguments["max_model_len"] or 512,
        )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    names = ("vllm", "vllm.sampling_params", "vllm.platforms")
    module, parameters, platforms = (ModuleType(name) for name in names)
    vars(module).update(
        LLM=Engine, EngineArgs=EngineArgs, SamplingParams=dict, sampling_params=parameters, platforms=platforms
    )
    vars(parameters).update(StructuredOutputsParams=dict)
    vars(platforms).update(current_platform=SimpleNamespace(is_cpu=lambda: Engine.on_cpu))
    for name, made in zip(names, (module, parameters, platforms), strict=True):
        monkeypatch.setitem(sys.modules, name, made)
    Engine.made, Engine.calls, Engine.fail, Engine.on_cpu = [], [], None, False
    return Engine


def test_what_the_engine_is_asked(engine: type[Engine], llama2_dir: Path) -> None:
    llm = VllmLLM(str(llama2_dir), seed=4, max_model_len=64, tensor_parallel_size=1)
    asked = [Prompt("a", "Be brief."), Prompt("b"), Prompt("x" * 60)]
    good, empty, long = llm.generate(asked, max_tokens=100)
    assert good == Generation("<<SYS>>\nBe rief.\n<</SYS>>\n\na", 45, 2, "stop")
    assert isinstance(empty, GenerationError)
    assert isinstance(long, GenerationError) and "76 tokens, the model's window 64" in str(long)
    assert engine.made == [
        {
            "model": str(llama2_dir), "seed": 4, "max_model_len": 64, "dtype": "auto", "quantization": None,
            "tensor_parallel_size": 1, "enable_prefix_caching": True, "disable_log_stats": True,
        }
    ]  # fmt: skip
    ((texts, sampling),) = engine.calls
    assert texts == ["<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\na [/INST]", "<s>[INST] b [/INST]"]
    drawn = {"temperature": 1.0, "top_p": 1.0, "seed": 4}
    assert sampling == [{"max_tokens": 64 - 45, **drawn}, {"max_tokens": 64 - 17, **drawn}]
    assert llm.generate([], max_tokens=5) == []


def test_seeded_prompts_are_computed_in_one_step_on_a_cpu(engine: type[Engine], llama2_dir: Path) -> None:
    source = str(llama2_dir)
    engine.on_cpu = True
    for options in ({}, {"temperature": 0.0}, {"enable_chunked_prefill": True}):
        VllmLLM(source, **options).generate([Prompt("a")], max_tokens=5)
    assert [made.get("enable_chunked_prefill") for made in engine.made] == [False, None, True]
    assert VllmLLM(source).recipe == VllmLLM(source, enable_chunked_prefill=True).recipe


def test_the_engine_starts_when_it_is_asked_and_stops_when_it_is_let_go(engine: type[Engine], llama2_dir: Path) -> None:
    llm = VllmLLM(str(llama2_dir))
    assert engine.made == []
    llm.generate([Prompt("a")], max_tokens=5)
    llm.generate([Prompt("a")], max_tokens=5)
    assert len(engine.made) == 1
    llm.release()
    llm.generate([Prompt("a")], max_tokens=5)
    assert len(engine.made) == 2


def test_answers_come_in_chunks(engine: type[Engine], llama2_dir: Path) -> None:
    llm = VllmLLM(str(llama2_dir), chunk=2)
    assert isinstance(llm, StreamingLLM)
    stream = llm.stream([Prompt(letter) for letter in "acdef"], max_tokens=5)
    assert next(stream)[0] == 0 and len(engine.calls) == 1
    assert [place for place, _ in stream] == [1, 2, 3, 4]
    assert [len(texts) for texts, _ in engine.calls] == [2, 2, 1]


def test_recipe_has_what_changes_answers(engine: type[Engine], llama2_dir: Path) -> None:
    source = str(llama2_dir)
    plain = VllmLLM(source).recipe
    assert plain.params == {
        "temperature": 1.0, "top_p": 1.0, "seed": 0, "dtype": "torch.bfloat16", "quantization": None, "max_model_len": 512,
    }  # fmt: skip
    assert VllmLLM(source, gpu_memory_utilization=0.5, enforce_eager=True, chunk=1).recipe == plain
    for option in (
        {"quantization": "fp8"},
        {"max_model_len": 100},
        {"kv_cache_dtype": "fp8"},
        {"structured": True},
        {"template_options": {"enable_thinking": False}},
    ):
        assert VllmLLM(source, **option).recipe != plain


def test_forms_are_kept_where_they_are_wanted(engine: type[Engine], llama2_dir: Path) -> None:
    form = Form(("dog", "cat"), "before")
    held, free = VllmLLM(str(llama2_dir), structured="auto"), VllmLLM(str(llama2_dir))
    assert held.structured and not free.structured
    held.generate([Prompt("a")], max_tokens=5, form=form)
    free.generate([Prompt("a")], max_tokens=5, form=form)
    held.generate([Prompt("a")], max_tokens=5)
    sampling = [params for _, (params,) in engine.calls]
    assert sampling[0]["structured_outputs"] == {"regex": forms.regex(form)}
    assert sampling[1] == sampling[2] and "structured_outputs" not in sampling[1]


def test_what_goes_wrong(engine: type[Engine], llama2_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="own code is never run"):
        VllmLLM(str(llama2_dir), trust_remote_code=True)
    with pytest.raises(ConfigError, match=r'it takes false, "auto", true, "regex"'):
        VllmLLM(str(llama2_dir), structured="json")
    with pytest.raises(WeightsMissingError):
        VllmLLM(str(tmp_path / "nothing"))
    with pytest.raises(BackendError, match=r"does not start with .*: Engine core initialization failed\.; its log"):
        VllmLLM(str(llama2_dir), tensor_parallel_size=2).generate([Prompt("a")], max_tokens=5)
    llm = VllmLLM(str(llama2_dir))
    engine.fail = RuntimeError("EngineDeadError\nmore")
    with pytest.raises(BackendError, match=r"vLLM gave up: RuntimeError: EngineDeadError$"):
        llm.generate([Prompt("a")], max_tokens=5)


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM needs an environment of its own")
def test_the_real_engine(llama2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    llm = VllmLLM(
        str(llama2_dir), temperature=1.0, structured=True, max_model_len=256, enforce_eager=True, dtype="bfloat16"
    )
    assert llm.recipe.params["dtype"] == "torch.bfloat16" and llm.recipe.params["max_model_len"] == 256
    asked = [Prompt("Hi"), Prompt("word " * 100), Prompt("What is a bell?")]
    first, long, _ = plain = llm.generate(asked, max_tokens=8)
    assert isinstance(first, Generation) and first.completion_tokens == 8
    assert isinstance(long, GenerationError)
    assert llm.generate(asked[:1], max_tokens=8) == plain[:1]  # seeded by prompt, whatever else is asked
    crowd = [Prompt(f"{place} " * 60) for place in range(100)]  # more than fit into a step
    told = llm.generate(crowd, max_tokens=4)
    assert all(isinstance(answer, Generation) or "empty answer" in str(answer) for answer in told)
    form = Form(("dog", "C++ (loud)", 'a "bell"'), "before", reason_chars=20)
    for answer in llm.generate([asked[0], asked[2]], max_tokens=80, form=form):
        assert isinstance(answer, Generation)
        # The random model writes bytes that are no text; whether a reason stands there, and of what length, is not its doing.
        assert re.search(r'\nAnswer: (dog|C\+\+ \(loud\)|a "bell")$', answer.text), answer


@pytest.mark.parametrize(
    "options",
    [
        {"worker_cls": "evil.Worker"}, {"worker_extension_cls": "evil"}, {"scheduler_cls": "evil:run"},
        {"logits_processors": ["evil.run"]}, {"distributed_executor_backend": "evil.Executor"},
        {"tool_parser_plugin": "/tmp/evil.py"}, {"kv_transfer_config": {"kv_connector_module_path": "evil"}},
        {"compilation_config": {"backend": "evil.backend"}},
    ],
)  # fmt: skip
def test_options_that_name_code_are_refused(options: dict[str, object]) -> None:
    """They may come from the database, where a worker may write them."""
    with pytest.raises(ConfigError, match="names code, which is never run"):
        VllmLLM("/nowhere", **options)  # type: ignore[arg-type]
    assert not any(_names_code(name, value) for name, value in (("kv_cache_dtype", "fp8"), ("revision", "v1.0")))
