"""Every command explains itself, and the reference pages say what the commands and the database say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform.cli.main import cli

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "build_reference.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_reference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script()
COMMANDS: dict[str, click.Command] = {
    context.command_path: command for command, context in reference.commands(cli, click.Context(cli, info_name="andp"))
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    command = COMMANDS[name]
    text = command.help or ""
    assert text.strip(), f"{name} has no help"
    if not isinstance(command, click.Group) and any(isinstance(param, click.Argument) for param in command.params):
        assert "Example" in text and name in text, f"{name} takes arguments and shows no example"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    for param in COMMANDS[name].params:
        if isinstance(param, click.Option) and not param.hidden:
            assert param.help, f"{name} {param.opts[-1]} has no help"


def test_every_command_is_in_the_reference() -> None:
    headings = {
        line.lstrip("#").strip()
        for line in (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8").splitlines()
        if line.startswith("#")
    }
    assert set(COMMANDS) <= headings


def test_examples_stay_code_and_text_stays_text() -> None:
    @click.command()
    def command() -> None:
        """Take a_b and *c*.

        \b
        Examples:
          andp x
            andp y
        """

    assert list(reference._help(command.help or "")) == [
        "Take a\\_b and \\*c\\*.\n", "Examples:\n", "```text\nandp x\n  andp y\n```\n",
    ]  # fmt: skip


def test_the_reference_is_current(database_url: URL, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check", "--database-url", environment["ANDP_DATABASE_URL"]],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_reference_is_told(
    database_url: URL, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(reference, "REFERENCE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build_reference.py", "--database-url", environment["ANDP_DATABASE_URL"]])
    assert reference.main() == 0
    (tmp_path / "cli.md").write_text("something else", "utf-8")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--check"])
    assert reference.main() == 1
    assert capsys.readouterr().err == "docs/reference/cli.md is stale; run: make docs\n"
    assert (tmp_path / "cli.md").read_text("utf-8") == "something else"


def test_the_schema_page_follows_the_database(engine: sa.Engine) -> None:
    before = reference.schema_page(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("COMMENT ON COLUMN datasets.name IS 'Another | word.'"))
    assert "| `name` | `text` | Another \\| word. |" in reference.schema_page(engine)
    assert "| `name` | `text` | Another \\| word. |" not in before
    for name in ("neuron_descriptions", "neurons_for_concept", "match_concepts", "activations", "runs"):
        assert f"\n### {name}\n" in before
