"""Options of captioners and LLMs on the command line: KEY=VALUE, as TOML or as text."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from and_platform.cli import dissect
from and_platform.services.dissect import Options


def settled(*arguments: str, config: Path | None = None) -> Options:
    """What `andp dissect` would use."""
    seen: list[Options] = []

    @click.command()
    @dissect.options
    def command(**given: object) -> None:
        seen.append(dissect._settle(None, config, given))

    result = CliRunner().invoke(command, arguments)
    if result.exit_code:
        raise ValueError(result.output)
    return seen[0]


def test_values() -> None:
    found = settled(
        "--captioner-option", "max_tokens=64", "--captioner-option", "prompt=What do you hear? Be brief.",
        "--captioner-option", "dtype='float16'", "--captioner-option", "temperature=0.5", "--llm-option", "seed=3",
        "--llm-option", "quantized = true", "--captioner-option", "system=a=b",
    )  # fmt: skip
    assert found.captioner_options == {
        "max_tokens": 64, "prompt": "What do you hear? Be brief.", "dtype": "float16", "temperature": 0.5, "system": "a=b",
    }  # fmt: skip
    assert found.llm_options == {"seed": 3, "quantized": True}
    assert settled().captioner_options == {}


def test_they_go_before_those_of_the_file_one_by_one(tmp_path: Path) -> None:
    config = tmp_path / "dissect.toml"
    config.write_text('[dissect.captioner_options]\nmax_tokens = 64\nprompt = "?"\n')
    found = settled("--captioner-option", "max_tokens=9", config=config)
    assert found.captioner_options == {"max_tokens": 9, "prompt": "?"}


@pytest.mark.parametrize("given", ["max_tokens", "=3", "max tokens=3", ""])
def test_what_is_no_option(given: str) -> None:
    with pytest.raises(ValueError, match="is not KEY=VALUE"):
        settled("--captioner-option", given)
