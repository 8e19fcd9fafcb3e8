"""What shared passes save over evaluating each ablation in full, on the sample network and its held-out clips.

    python benchmarks/ablation.py

Random selections of a twentieth of the units, as many as the sample has classes. In full: for each selection the clips
are decoded and prepared and go through the network, before and after the ablation. Shared: all selections over each
batch together. CPU time of one thread, one run each, in turns; all must give the same logits. Prints a table.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from and_platform.backends import audio
from and_platform.backends.base import Clip
from and_platform.backends.networks import load_network
from and_platform.backends.networks.base import LoadedNetwork
from and_platform.backends.networks.layers import PAPER_KINDS
from and_platform.backends.networks.record import logits_batches
from and_platform.backends.networks.shared_passes import ablated_logits
from and_platform.resources import resource

FOLD = "1"  # what the sample network was not trained on
SHARE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = load_network(resource("networks/sample-ast"))
    folder = resource("sample")
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        paths = [folder / row["path"] for row in csv.DictReader(file) if row["fold"] == FOLD]
    count, last = len(network.classes or []), max(layer.block or 0 for layer in network.layers)
    list(logits_batches(network, decoded(paths[:16], network.rate)))  # warm

    print(
        f"{count} selections of {SHARE:.0%} of the units of the touched layers, {len(paths)} clips, seconds of CPU time:\n"
    )
    print("| touched | each in full | shared input, whole passes | shared passes | in full / shared |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, first in (("all blocks", 0), ("from block 2 on", 2), (f"the last block ({last})", last)):
        layers = [x for x in network.layers if x.kind in PAPER_KINDS and (x.block or 0) >= first]
        rng = np.random.default_rng(0)
        selections = [
            {x.name: rng.choice(x.n_units, max(1, int(SHARE * x.n_units)), replace=False) for x in layers}
            for _ in range(count)
        ]
        began = time.process_time()
        expected = in_full(network, selections, paths, arguments.batch_size)
        times = [time.process_time() - began]
        for share in (False, True):
            began = time.process_time()
            clips = decoded(paths, network.rate)
            parts = ablated_logits(network, selections, clips, batch_size=arguments.batch_size, share=share)
            got = np.concatenate(list(parts), axis=1)
            times.append(time.process_time() - began)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        print(f"| {name} | {times[0]:.1f} | {times[1]:.1f} | {times[2]:.1f} | {times[0] / times[2]:.1f} |")


def decoded(paths: Sequence[Path], rate: int) -> Iterator[Clip]:
    for path in paths:
        waveform, rate = audio.load(path, rate)
        yield Clip(path.name, waveform, rate)


def in_full(
    network: LoadedNetwork, selections: Sequence[Mapping[str, Any]], paths: Sequence[Path], batch_size: int
) -> NDArray[np.float32]:
    """Logits [1 + selections, clips, classes], each selection evaluated by itself, before and after."""

    def evaluated() -> NDArray[np.float32]:
        return np.concatenate(list(logits_batches(network, decoded(paths, network.rate), batch_size=batch_size)))

    rows = []
    for selection in selections:
        intact = evaluated()
        with network.ablated(selection):
            rows.append(evaluated())
    return np.stack([intact, *rows])


if __name__ == "__main__":
    main()
