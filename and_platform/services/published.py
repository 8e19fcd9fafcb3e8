"""The paper's own figures, to show beside one's own."""

from __future__ import annotations

import tomllib
from functools import cache
from typing import Any

from and_platform.resources import resource


@cache
def figures() -> dict[str, Any]:
    """Everything in `_data/paper.toml`: `accuracy`, `last_layer`, `study`, `unlearning` and notes on where they are off."""
    return tomllib.loads(resource("paper.toml").read_text("utf-8"))
