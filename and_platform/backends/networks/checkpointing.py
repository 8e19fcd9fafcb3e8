"""Where a training run stands, on disk: enough of it that a killed run goes on as if nothing had happened.

There is always a whole file (`output_files`). They hold tensors and plain values only, and are read with `weights_only`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from and_platform import output_files


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file in one piece: whoever looks at `path` sees the old file or the new one, never half of one."""
    with output_files.file(path) as new, new.open("wb") as stream:
        write(stream)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One JSON document, in one piece."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda stream: stream.write(text.encode("utf-8")))


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Tensors and plain values, in one piece; `weights.read_pickle` reads them."""
    write_whole(path, lambda stream: torch.save(dict(content), stream))


def random_state() -> dict[str, Any]:
    """The states of all random numbers that a forward pass may draw: torch's, on all devices, and numpy's."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave; the states of GPUs only where there are as many of them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
