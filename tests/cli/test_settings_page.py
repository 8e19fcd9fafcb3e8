"""The page of settings lists them all, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from and_platform.config import Settings

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"ANDP_ENV_FILE", "ANDP_SECRETS_DIR", "ANDP_LAION_CLAP_PYTHON", "ANDP_LAION_CLAP_TOKENIZER"}
"""Read from the environment alone, where they are needed."""


def test_every_setting_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8")
    listed = re.findall(r"^\| `(ANDP_\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted({f"ANDP_{name.upper()}" for name in Settings.model_fields} | ELSEWHERE)
