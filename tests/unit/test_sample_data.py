"""The sample data set that comes with the package: complete, playable, credited, without leaks."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

import and_platform

ROOT = Path(and_platform.__file__).parent / "_data" / "sample"
LICENSES = {"CC0-1.0", "CC-BY-3.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "MIT"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (ROOT / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_size_and_number_of_clips_and_classes(rows: list[dict[str, str]]) -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 15_000_000
    assert 380 <= len(rows) <= 450
    classes = Counter(row["label"] for row in rows)
    assert 15 <= len(classes) <= 25
    assert min(classes.values()) >= 12
    assert max(classes.values()) <= 30


def test_the_manifest_names_every_file_once(rows: list[dict[str, str]]) -> None:
    listed = [row["path"] for row in rows]
    assert len(set(listed)) == len(listed)
    assert set(listed) == {p.relative_to(ROOT).as_posix() for p in (ROOT / "audio").rglob("*") if p.is_file()}


def test_every_class_is_in_every_fold(rows: list[dict[str, str]]) -> None:
    folds = defaultdict(set)
    for row in rows:
        folds[row["label"]].add(row["fold"])
    assert {label: found for label, found in folds.items() if found != {"1", "2", "3", "4", "5"}} == {}


def test_folds_are_of_like_size(rows: list[dict[str, str]]) -> None:
    sizes = Counter(row["fold"] for row in rows).values()
    assert max(sizes) - min(sizes) <= 0.1 * len(rows) / 5


def test_recordings_never_cross_folds(rows: list[dict[str, str]]) -> None:
    folds = defaultdict(set)
    for row in rows:
        assert row["group"]
        folds[row["group"]].add(row["fold"])
    assert {group: found for group, found in folds.items() if len(found) > 1} == {}
    # one sample of a soundfont or one file of a package is one recording, whatever its group says
    origin = defaultdict(set)
    for row in rows:
        source = json.loads(row["source"])
        recording = source.get("recording", source.get("sample", source["file"]))
        origin[source["package"], recording].add(row["fold"])
    assert {place: found for place, found in origin.items() if len(found) > 1} == {}


def test_every_class_has_a_recording_of_its_own_in_each_fold(rows: list[dict[str, str]]) -> None:
    groups = defaultdict(set)
    for row in rows:
        groups[row["label"]].add(row["group"])
    assert {label: len(found) for label, found in groups.items() if len(found) < 5} == {}


def test_captions_licences_authors_and_sources_are_filled(rows: list[dict[str, str]]) -> None:
    credits = (ROOT / "LICENSES.md").read_text(encoding="utf-8")
    for row in rows:
        assert row["caption"].strip()
        assert row["caption_origin"] in {"source", "metadata"}
        assert row["license"] in LICENSES
        assert row["author"].strip()
        source = json.loads(row["source"])
        assert {"package", "version", "file"} <= source.keys()
        assert f"## {source['package']} {source['version']}\n" in credits
        assert f"| {row['license']} | {row['author']} |" in credits


def test_every_clip_decodes_to_mono_sound_of_one_to_three_seconds(rows: list[dict[str, str]]) -> None:
    for row in rows:
        audio, rate = soundfile.read(ROOT / row["path"], dtype="float32")
        assert (rate, audio.ndim) == (16_000, 1), row["path"]
        assert 1.0 <= len(audio) / rate <= 3.0, row["path"]
        assert np.isfinite(audio).all(), row["path"]
        assert 0.01 < np.abs(audio).max() <= 1.0, row["path"]


def test_loudness_differs_between_clips(rows: list[dict[str, str]]) -> None:
    peaks = [np.abs(soundfile.read(ROOT / row["path"])[0]).max() for row in rows[::4]]
    low, high = np.percentile(peaks, [10, 90])
    assert high / low > 3
