"""What commands print: JSON that any reader takes, CSV with its columns, one line for what was typed wrongly."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from pgvector import HalfVector

from and_platform.cli import main, output
from and_platform.cli.sql import _distinct

VALUES = {
    "nan": float("nan"), "average": Decimal("1.5"), "bytes": b"\x00\xff", "object": {"a": [1, float("inf")]},
    "list": [1, 2], "vector": HalfVector([1, 2]), "array": np.array([1.0, np.nan], np.float32), "none": None,
}  # fmt: skip


def test_json_has_numbers_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_rows([VALUES], "json")
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == [
        {
            "nan": None, "average": 1.5, "bytes": "\\x00ff", "object": {"a": [1, None]}, "list": [1, 2],
            "vector": [1.0, 2.0], "array": [1.0, None], "none": None,
        }
    ]  # fmt: skip


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_rows([VALUES], "csv")
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (row["object"], row["list"], row["bytes"]) == ('{"a": [1, null]}', "1;2", "\\x00ff")
    output.show_rows([], "csv", columns=["a", "b"])
    assert capsys.readouterr().out == "a,b\n"


def test_no_column_is_lost() -> None:
    assert _distinct(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_2", "a_2_2", "a_3"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("frobnicate", "andp: No such command 'frobnicate'; see: andp --help\n"),
        ("runs show x", "andp: Invalid value for 'ID': 'x' is not a valid integer; see: andp runs show --help\n"),
        ("sql", "andp: Missing argument 'QUERY'; see: andp sql --help\n"),
    ],
)  # fmt: skip
def test_what_was_typed_wrongly_is_told_in_one_line(
    typed: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["andp", *typed.split()])
    with pytest.raises(SystemExit) as exited:
        main.main()
    assert exited.value.code == 2
    assert capsys.readouterr() == ("", told)


def test_a_group_alone_shows_its_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["andp", "datasets"])
    with pytest.raises(SystemExit):
        main.main()
    assert "relocate" in capsys.readouterr().err


def test_commands_start_without_the_heavy_libraries() -> None:
    """They take seconds to import; a question to the database, or --help, takes less than one."""
    code = (
        "import importlib, sys; from and_platform.cli import main;"
        " [importlib.import_module(f'and_platform.cli.{module}') for module in main.COMMANDS.values()];"
        " print([name for name in ('torch', 'scipy', 'sklearn', 'pandas', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
