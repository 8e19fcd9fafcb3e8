"""Tokens a second of vLLM and of transformers, by how many prompts are under way, on the same model and prompts.

    python benchmarks/llms.py MODEL_DIRECTORY --vllm-python vllm-env/bin/python
    python benchmarks/llms.py MODEL_DIRECTORY --vllm-python vllm-env/bin/python --at-once 1,8,32 --max-tokens 64

Each engine runs in a process of its own, through the platform's backend, vLLM in the environment that the interpreter
belongs to (`scripts/vllm_check.py` says how one is made). Decoding is greedy; the prompts ask for a summary, so that
nearly all answers are as long as they may be. The best of the repetitions is shown, with different prompts in each, so
that no answer comes from a cache. On a machine with other load trust the ratios, and look at the load above the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOUNDS = (
    "A dog barks",
    "Rain falls",
    "A bell rings",
    "An engine runs",
    "A child laughs",
    "Waves break",
    "A clock ticks",
)
WAYS = ("loudly", "far away", "again and again", "in a large hall", "for a short time", "while people talk", "at night")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="directory of a chat model")
    parser.add_argument("--vllm-python", default=sys.executable, help="interpreter of an environment with vLLM")
    parser.add_argument("--at-once", default="1,8,32")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine", choices=["vllm", "transformers"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(measure(options)))
        return
    print(f"load before: {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores")
    found = {
        engine: run(python, engine, options)
        for engine, python in (("vllm", options.vllm_python), ("transformers", sys.executable))
    }
    print(f"load after:  {', '.join(f'{load:.1f}' for load in os.getloadavg())}")
    print(f"{'at once':>8}{'vLLM tok/s':>13}{'transformers tok/s':>20}{'ratio':>8}")
    for n in map(int, options.at_once.split(",")):
        vllm, transformers = (found[engine][str(n)] for engine in ("vllm", "transformers"))
        print(f"{n:>8}{vllm:>13.1f}{transformers:>20.1f}{vllm / transformers:>8.2f}")


def run(python: str, engine: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure an engine in a process of its own."""
    command = [
        python, __file__, options.model, "--engine", engine, "--at-once", options.at_once, "--dtype", options.dtype,
        "--max-tokens", str(options.max_tokens), "--repeat", str(options.repeat),
    ]  # fmt: skip
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", **os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-3000:]}")
    told: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def measure(options: argparse.Namespace) -> dict[int, float]:
    """Tokens a second by how many prompts are given at once; the model is loaded once."""
    from and_platform.backends.base import Generation
    from and_platform.backends.registry import create

    counts = [int(n) for n in options.at_once.split(",")]
    shared: dict[str, Any] = {"temperature": 0.0, "dtype": options.dtype}
    if options.engine == "vllm":
        llm = create("llm", f"vllm:{options.model}", max_model_len=1024, max_num_seqs=max(counts), **shared)
    best: dict[int, float] = {}
    used = 0
    for n in counts:
        if options.engine == "transformers":
            llm = create("llm", f"transformers:{options.model}", batch_size=n, **shared)
        llm.generate(prompts(used, n), max_tokens=4)  # warm
        for _ in range(options.repeat):
            used += n
            started = time.perf_counter()
            answers = llm.generate(prompts(used, n), max_tokens=options.max_tokens)
            took = time.perf_counter() - started
            tokens = sum(answer.completion_tokens for answer in answers if isinstance(answer, Generation))
            best[n] = max(best.get(n, 0.0), tokens / took)
        used += n
    return best


def prompts(first: int, n: int) -> list[Any]:
    """Requests for summaries of five captions, no two alike."""
    from and_platform.backends.base import Prompt
    from and_platform.core.prompts import summary_prompt

    return [
        Prompt(summary_prompt([f"{SOUNDS[(i + k) % 7]} {WAYS[(i // 7 + 3 * k) % 7]}, {i} times." for k in range(5)]))
        for i in range(first, first + n)
    ]


if __name__ == "__main__":
    main()
