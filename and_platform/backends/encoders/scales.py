"""The factor of the cosine before a softmax over concepts: it belongs to an encoder's weights, not to who calls it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from and_platform.backends.weights import read_pickle

DEFAULT = 100.0
"""What the paper's method DB uses with CLIP; for encoders whose weights say nothing else."""


def learned_scale(logarithm: float | None) -> float:
    """The scale that a contrastive model was trained to.

    Parameters
    ----------
    logarithm
        Its `logit_scale`: CLIP and CLAP learn the logarithm. None where the weights have none.

    Returns
    -------
    float
        At most 100, to which CLIP clips it (Radford et al. 2021, 2.5), and to four digits, since published weights
        have passed through half precision; `DEFAULT` for None.
    """
    return DEFAULT if logarithm is None else float(f"{min(math.exp(logarithm), 100.0):.4g}")


def settle(asked: float | None, own: float) -> tuple[float, dict[str, Any]]:
    """The scale to use, and what of it is part of the encoder's recipe: one that is not its own."""
    return (own, {}) if asked is None or asked == own else (asked, {"scale": asked})


def stored_number(folder: Path, key: str) -> float | None:
    """A single number in the weights of a folder, without loading the rest; None where they have no such key."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, framework="np") as tensors:
            if key in tensors.keys():  # noqa: SIM118 (no mapping)
                return float(tensors.get_tensor(key).astype("float32"))
    if not files:
        for file in sorted(folder.glob("pytorch_model*.bin")):
            state = read_pickle(file)
            if key in state:
                return float(state[key])
    return None
