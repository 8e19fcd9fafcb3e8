"""Time and peak memory of matching neurons with concepts.

    python benchmarks/matching.py                          # 55,346 neurons x 2,000 clips x 50 concepts
    python benchmarks/matching.py --concepts 5000 --repeat 1

Each row runs in a process of its own, so that the peak is its own; the best of the repetitions is shown. The
time spent in the source of the activations counts for the sources in `COUNTED`, and so not for `synthetic`,
which only makes random numbers. CPU seconds add up over cores; on a busy machine they say more than seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Layers = Iterator[tuple[str, NDArray[np.float16]]]


def layer_sizes(neurons: int) -> list[tuple[str, int]]:
    """Layers of AST (12 blocks and the head of 50 classes) up to a number of neurons."""
    kinds = (("attn_out", 768), ("ff_in", 3072), ("ff_out", 768))
    layout = [(f"b{block:02d}.{kind}", size) for block in range(12) for kind, size in kinds] + [("head", 50)]
    sizes: list[tuple[str, int]] = []
    for name, size in layout:
        size = min(size, neurons - sum(size for _, size in sizes))
        if size > 0:
            sizes.append((name, size))
    return sizes


def synthetic(neurons: int, clips: int) -> Layers:
    """Random activations, layer by layer."""
    generator = np.random.default_rng(0)
    for name, size in layer_sizes(neurons):
        yield name, generator.standard_normal((size, clips), dtype=np.float32).astype(np.float16)


SOURCES: dict[str, Callable[[int, int], Layers]] = {"synthetic": synthetic}
"""Where activations come from: (neurons, clips) -> layers. Whether reading counts is said in `COUNTED`."""
COUNTED: set[str] = set()


def measure(source: str, neurons: int, clips: int, concepts: int, names: list[str]) -> dict[str, float]:
    """Match every layer once; seconds, seconds of CPU and peak memory in MB."""
    import torch

    from and_platform.core.matching import Matcher
    from and_platform.core.similarity import softmax_scores

    generator = torch.Generator().manual_seed(0)
    captions, words = (torch.randn(n, 384, generator=generator) for n in (clips, concepts))
    match = softmax_scores(captions, words)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start, start_cpu = time.perf_counter(), time.process_time()
    matcher = Matcher(match, names, top=5)
    preparing, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    matching = reading = 0.0
    layers = SOURCES[source](neurons, clips)
    while True:
        start = time.perf_counter()
        layer = next(layers, None)
        reading += time.perf_counter() - start
        if layer is None:
            break
        start, start_cpu = time.perf_counter(), time.process_time()
        matcher.layer(layer[1])
        matching += time.perf_counter() - start
        cpu += time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = preparing + matching + (reading if source in COUNTED else 0.0)
    return {"seconds": seconds, "cpu": cpu, "reading": reading, "base": base, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=SOURCES, default="synthetic")
    parser.add_argument("--neurons", type=int, default=sum(size for _, size in layer_sizes(1 << 62)))
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--concepts", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help="one row: names of functions with commas, printed as JSON")
    options = parser.parse_args()
    if options.only:
        names = options.only.split(",")
        row = measure(options.source, options.neurons, options.clips, options.concepts, names)
        print(json.dumps(row))
        return
    functions = ["cos", "cos_cubed", "wpmi", "soft_wpmi", "rank_reorder"]
    print(f"{options.neurons:,} neurons x {options.clips:,} clips x {options.concepts:,} concepts\n")
    print("| functions | seconds | CPU seconds | peak MB | of it before matching |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for names in [*([name] for name in functions), functions]:
        command = [sys.executable, __file__, "--only", ",".join(names), "--source", options.source]
        for option in ("neurons", "clips", "concepts"):
            command += [f"--{option}", str(getattr(options, option))]
        rows = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(options.repeat)
        ]
        seconds, cpu = (min(row[key] for row in rows) for key in ("seconds", "cpu"))
        peak = max(row["peak"] for row in rows)
        label = names[0] if len(names) == 1 else "all five together"
        print(f"| {label} | {seconds:.2f} | {cpu:.2f} | {peak:.0f} | {rows[0]['base']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
