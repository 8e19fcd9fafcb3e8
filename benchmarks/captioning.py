"""What captioning in batches gains over one clip at a time.

    python benchmarks/captioning.py                                   # a tiny SALMONN with random weights
    python benchmarks/captioning.py --backend salmonn:DIR --batch 1 8 16 --clips 48
    python benchmarks/captioning.py --backend audio-lm:PATH_OR_ID --option max_tokens=64

Without --backend a SALMONN is made that has the published shape (30 s of Whisper's frames, 88 tokens of sound) at a small
width. Its texts are noise and end where they like, so every answer is made to take --tokens tokens: what is measured is
the arithmetic, not what is said. The same clips, 5 s as in ESC-50, go through each batch size in turns; the least of the
repetitions counts. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from and_platform.backends.base import Captioner, Clip
from and_platform.backends.registry import create

SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", help="a captioner, NAME:WHERE; a tiny SALMONN unless given")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the captioner, as JSON")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer of the tiny SALMONN")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = dict(_option(text) for text in arguments.option)
    with _backend(arguments.backend, arguments.tokens, options) as (spec, options):
        captioners = {size: create("captioner", spec, batch_size=size, **options) for size in arguments.batch}
        fastest = {size: float("inf") for size in captioners}
        clips = _clips(arguments.clips, next(iter(captioners.values())).rate or 16000)
        for _ in range(arguments.repeat):
            for size, captioner in captioners.items():
                fastest[size] = min(fastest[size], _seconds(captioner, clips))
    print(f"{spec.partition(':')[0]}, {options or 'its own settings'}; {len(clips)} clips of {SECONDS:g} s")
    print("| batch | clips a second | ratio |")
    print("| ---: | ---: | ---: |")
    first = fastest[arguments.batch[0]]
    for size, seconds in fastest.items():
        print(f"| {size} | {len(clips) / seconds:.2f} | {first / seconds:.1f} |")


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@contextmanager
def _backend(spec: str | None, tokens: int, options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if spec is not None:
        yield spec, options
        return
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.checkpoints_salmonn import write_salmonn

    with tempfile.TemporaryDirectory() as folder:
        write_salmonn(Path(folder), llm_width=512, llm_layers=6, may_end=False)
        yield f"salmonn:{folder}", {"num_beams": 1, **options, "max_tokens": tokens}


def _clips(number: int, rate: int) -> list[Clip]:
    rng = np.random.default_rng(0)
    samples = int(SECONDS * rate)
    return [Clip(str(i), rng.normal(0, 0.1, samples).astype(np.float32), rate) for i in range(number)]


def _seconds(captioner: Captioner, clips: list[Clip]) -> float:
    start = time.perf_counter()
    captioner.caption_batch(clips)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
