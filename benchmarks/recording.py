"""What recording costs over the bare forward pass, on the sample network.

    python benchmarks/recording.py

The same batches, prepared beforehand, go through the network alone and through recording (hooks, pooling, rounding to
float16), in turns; CPU time of one thread, the least of the repetitions. Feature extraction is in neither. Prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from and_platform.backends.base import Clip
from and_platform.backends.networks import load_network
from and_platform.backends.networks.base import Batch, LoadedNetwork, with_pooling
from and_platform.backends.networks.record import record_batches
from and_platform.resources import resource

CLIPS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = load_network(resource("networks/sample-ast"))
    rng = np.random.default_rng(0)
    clips = [Clip(str(i), rng.normal(0, 0.1, network.rate * 2).astype(np.float32), network.rate) for i in range(CLIPS)]
    cases = {
        f"the default {len(network.default_layers)} layers": network.default_layers,
        f"all {len(network.layers)} layers": network.layers,
        f"all {len(network.layers)} layers, mean over time": with_pooling(network.layers, "mean"),
    }
    print("| layers | batch | forward pass alone, ms a clip | with recording | overhead |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, layers in cases.items():
        for size in (16, 32):
            bare, recorded = compare(network, layers, clips, size, arguments.repeat)
            print(f"| {name} | {size} | {bare:.2f} | {recorded:.2f} | {recorded / bare - 1:+.1%} |")


def compare(network: LoadedNetwork, layers: Any, clips: list[Clip], size: int, repeat: int) -> tuple[float, float]:
    """Milliseconds a clip without and with recording."""
    batches = [network.prepare([c.waveform for c in clips[i : i + size]]) for i in range(0, CLIPS, size)]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                network.forward(batch)

    def recording() -> None:
        waiting = iter(batches)
        prepare: Callable[..., Batch] = lambda _waveforms: next(waiting)  # noqa: E731
        network.prepare, kept = prepare, network.prepare  # type: ignore[method-assign]
        try:
            for _ in record_batches(network, layers, clips, batch_size=size):
                pass
        finally:
            network.prepare = kept  # type: ignore[method-assign]

    best = {"bare": np.inf, "recording": np.inf}
    bare(), recording()
    for _ in range(repeat):
        for name, work in (("bare", bare), ("recording", recording)):
            began = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - began)
    return best["bare"] / CLIPS * 1e3, best["recording"] / CLIPS * 1e3


if __name__ == "__main__":
    main()
