"""Bad items among good ones: each is a failure with its reason, and the rest goes in."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

Andp = Callable[..., subprocess.CompletedProcess[str]]


def tone(path: Path, level: float = 0.1, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(4_000, level, np.float32) * np.sin(np.arange(4_000)), 8_000, **options)
    return path


def failures(andp: Andp, name: str) -> dict[str, str]:
    listed = json.loads(andp("failures", "--dataset", name, "--json").stdout)
    return {row["unit"]: row["reason"] for row in listed}


def labels(andp: Andp) -> dict[str, list[str]]:
    rows = json.loads(andp("sql", "--json", "SELECT path, labels FROM clips").stdout)
    return {row["path"]: row["labels"] for row in rows}


def test_sounds_that_cannot_be_measured(andp: Andp, tmp_path: Path) -> None:
    root = tmp_path / "sounds"
    for number in range(4):
        tone(root / f"{number}.wav")
    tone(root / "huge.wav", 1e20, subtype="FLOAT")
    fast = bytearray(tone(root / "fast.wav").read_bytes())
    struct.pack_into("<I", fast, 24, 1_690_000_000)
    (root / "fast.wav").write_bytes(fast)
    soundfile.write(root / "bomb.flac", np.zeros(6_000_000, np.float32), 48_000)
    result = andp("ingest", "folder", str(root), "--name", "s", env={"ANDP_LARGEST_CLIP": "20000000"})
    assert "4 new" in result.stderr and "Traceback" not in result.stderr
    told = failures(andp, "s")
    assert set(told) == {"huge.wav", "fast.wav", "bomb.flac"}
    assert told["huge.wav"].startswith("not sound: a sample is 1e+20")
    assert told["fast.wav"].startswith("too high a rate: 1,690,000,000 Hz")
    assert told["bomb.flac"].startswith("too large: 24,000,000 bytes after decoding")
    again = andp("ingest", "folder", str(root), "--name", "s")
    assert "1 new" in again.stderr and "4 unchanged" in again.stderr  # the limit was the reason for one of them


# ruff: noqa: UP031 (braces belong to the JSON)
BAD_LINES = {
    "5 MB of label": '{"path": "b0.wav", "label": "%s"}' % ("x" * 5_000_000),
    "a number of 6,000 digits": '{"path": "b1.wav", "n": %s}' % ("9" * 6_000),
    "nested 600 deep": '{"path": "b2.wav", "a": %s1%s}' % ("[" * 600, "]" * 600),
    "nested 100,000 deep": '{"path": "b3.wav", "a": %s1%s}' % ("[" * 100_000, "]" * 100_000),
    "a fold of 6,000 digits": '{"path": "b4.wav", "fold": "%s"}' % ("9" * 6_000),
    "a NUL": '{"path": "b5.wav", "label": "a\\u0000b"}',
    "half a surrogate pair": '{"path": "b6.wav", "label": "a\\ud800b"}',
    "2 MB of column": '{"path": "b7.wav", "note": "%s"}' % ("y" * 2_000_000),
    "30,000 labels": '{"path": "b8.wav", "labels": %s}' % json.dumps([str(n) for n in range(30_000)]),
    "a path of 10,000 characters": '{"path": "%s.wav"}' % ("z" * 10_000),
    "labels that are nested": '{"path": "b9.wav", "labels": "%s"}' % ("[" * 100_000),
}


def test_rows_of_a_manifest_that_cannot_be_kept(andp: Andp, tmp_path: Path) -> None:
    lines = ['{"path": "0.wav", "label": "good"}']
    for number, line in enumerate(BAD_LINES.values()):
        tone(tmp_path / f"b{number}.wav")
        lines += [line, f'{{"path": "{number + 1}.wav", "label": "good"}}']
    for number in range(len(BAD_LINES) + 1):
        tone(tmp_path / f"{number}.wav")
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    result = andp("ingest", "manifest", str(tmp_path / "set.jsonl"), check=False)
    assert "Traceback" not in result.stderr, result.stderr[-3_000:]
    assert result.returncode == 0 and f"{len(BAD_LINES) + 1} new" in result.stderr, result.stderr[-3_000:]
    assert labels(andp) == {f"{number}.wav": ["good"] for number in range(len(BAD_LINES) + 1)}
    told = failures(andp, "set")
    assert len(told) == len(BAD_LINES) and all(len(reason) < 500 for reason in told.values())
    reasons = " | ".join(told.values())
    for expected in (
        "too long: the label has a size of 5,000,000", "a number of 6,000 digits", "nested deeper than 32 levels",
        "not a whole number", "not valid Unicode", "too long: the rest of the row", "too long: the list of labels",
        "too long: the path",
    ):  # fmt: skip
        assert expected in reasons, expected


def test_a_long_label_in_csv(andp: Andp, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tone(tmp_path / f"{name}.wav")
    (tmp_path / "set.csv").write_text(f"path,label\na.wav,{'x' * 5_000_000}\nb.wav,good\n")
    assert "1 new" in andp("ingest", "manifest", str(tmp_path / "set.csv")).stderr
    assert labels(andp) == {"b.wav": ["good"]}


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 6_000, '{"a": %s}' % ("9" * 6_000)])
def test_files_of_concepts_and_captions_that_are_no_json(andp: Andp, tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    result = andp("concepts", "import", str(tmp_path / "c.json"), "--name", "c", check=False)
    assert result.returncode == 2 and result.stderr.startswith("andp: ") and "Traceback" not in result.stderr
