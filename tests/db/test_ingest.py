from __future__ import annotations

import csv
import os
import shutil
import signal
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from and_platform import db
from and_platform.backends.datasets import Source
from and_platform.errors import AndpError, ConflictError, InputError
from and_platform.schema import Clip, Dataset, Failure
from and_platform.services import ingest as module
from and_platform.services import measuring
from and_platform.services.ingest import IngestReport, ingest
from and_platform.services.measuring import Job, Outcome, Work, measure_file

RATE = 8_000


def sound(file: Path, frequency: float, seconds: float = 0.25, **options: Any) -> Path:
    """A tone; another frequency is another content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * RATE)) / RATE
    soundfile.write(file, (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32), RATE, **options)
    return file


def folder(root: Path, n: int = 6) -> Path:
    """Tones of two classes, written in an order that is not that of their names."""
    for number in reversed(range(n)):
        sound(root / ("high" if number % 2 else "low") / f"{number:03d}.wav", 200 + 10 * number)
    return root


def clips(engine: sa.Engine, *, retired: bool = False) -> list[Clip]:
    with db.reading(engine) as session:
        gone = Clip.retired_at.is_not(None) if retired else Clip.retired_at.is_(None)
        return list(session.scalars(sa.select(Clip).where(gone).order_by(Clip.id)))


def open_failures(engine: sa.Engine) -> dict[str, str]:
    with db.reading(engine) as session:
        rows = session.execute(sa.select(Failure.unit, Failure.reason).where(Failure.resolved_at.is_(None)))
        return dict(rows.all())


def figures(report: IngestReport) -> dict[str, int]:
    return report.counts()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker processes, where they are not what is tested."""

    def measured(jobs: Iterable[Job], processes: int, work: Work) -> Generator[Outcome, None, None]:
        yield from map(work, jobs)

    monkeypatch.setattr(module, "measured", measured)


def killing(job: Job) -> Outcome:
    """Stands for a decoder that crashes on one file."""
    if job.path.name == "003.wav":
        os.kill(os.getpid(), signal.SIGSEGV)
    return measure_file(job)


# ---------------------------------------------------------------------- what goes in


def test_clips_go_in_by_path_with_their_measures(engine: sa.Engine, tmp_path: Path) -> None:
    folder(tmp_path / "tones")
    sound(tmp_path / "tones" / "loose.flac", 1000, seconds=0.5)
    report = ingest(engine, Source("folder", tmp_path / "tones"))
    assert figures(report) == {"new": 7}
    assert (report.name, report.kind, report.root) == ("tones", "folder", str(tmp_path / "tones"))
    assert report.audio_s == pytest.approx(2.0)
    rows = clips(engine)
    assert [(row.path, row.labels) for row in rows] == [
        ("high/001.wav", ["high"]),
        ("high/003.wav", ["high"]),
        ("high/005.wav", ["high"]),
        ("loose.flac", []),
        ("low/000.wav", ["low"]),
        ("low/002.wav", ["low"]),
        ("low/004.wav", ["low"]),
    ]
    loose = rows[3]
    assert (loose.sample_rate, loose.channels, loose.duration_s) == (RATE, 1, 0.5)
    assert loose.rms == pytest.approx(0.5 / np.sqrt(2), rel=1e-3)
    assert loose.median_frequency_hz == pytest.approx(1000)
    assert loose.features["pitch_hz"] == pytest.approx(1000, rel=0.01)
    assert loose.fold is None and loose.source_caption is None and loose.extra == {}


def test_broken_files_are_failures_with_their_reason_and_the_rest_goes_in(
    engine: sa.Engine, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sound(tmp_path / "set" / "good.wav", 400).read_bytes()
    broken = tmp_path / "set"
    (broken / "truncated.wav").write_bytes(good[: len(good) // 2])
    (broken / "empty.wav").write_bytes(b"")
    (broken / "text.wav").write_text("This is a text that someone named .wav\n")
    (broken / "loop.wav").symlink_to("loop.wav")
    soundfile.write(broken / "zero.wav", np.zeros(0, np.float32), RATE)
    nan = np.zeros(800, np.float32)
    nan[7] = np.nan
    soundfile.write(broken / "nan.wav", nan, RATE, subtype="FLOAT")
    sound(broken / "forbidden.wav", 500)
    really = Path.read_bytes

    def read_bytes(self: Path) -> bytes:  # root may read everything, so a mode would not do
        if self.name == "forbidden.wav":
            raise PermissionError(13, "Permission denied")
        return really(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    report = ingest(engine, Source("folder", broken))
    assert figures(report) == {"new": 1, "failed": 7}
    assert [row.path for row in clips(engine)] == ["good.wav"]
    kinds = {path: reason.split(":")[0] for path, reason in open_failures(engine).items()}
    assert kinds == {
        "empty.wav": "empty",
        "forbidden.wav": "no permission",
        "loop.wav": "unreadable",
        "nan.wav": "not finite",
        "text.wav": "text",
        "truncated.wav": "truncated",
        "zero.wav": "no samples",
    }
    assert sorted(report.failures) == sorted(open_failures(engine).items())


def test_a_decoder_that_crashes_costs_one_file(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_file", killing)
    report = ingest(engine, Source("folder", folder(tmp_path / "tones")))
    assert figures(report) == {"new": 5, "failed": 1}
    assert open_failures(engine)["high/003.wav"].startswith("the decoder died on it (SIGSEGV(-11))")


def test_nothing_usable_is_an_error_that_leaves_failures_and_no_data_set(
    engine: sa.Engine, tmp_path: Path, in_process: None
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.wav").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 1 files can be used; the first, a\.wav: empty"):
        ingest(engine, Source("folder", tmp_path / "set"))
    assert list(open_failures(engine)) == ["a.wav"]
    with db.reading(engine) as session:
        assert session.scalars(sa.select(Dataset)).all() == []


def test_duplicate_content_is_reported_and_goes_in(engine: sa.Engine, tmp_path: Path, in_process: None) -> None:
    root = folder(tmp_path / "tones", 2)
    shutil.copy(root / "low" / "000.wav", root / "high" / "copy.wav")
    shutil.copy(root / "low" / "000.wav", root / "low" / "another.wav")
    report = ingest(engine, Source("folder", root))
    assert figures(report) == {"new": 4, "duplicates": 2}
    assert report.duplicate_groups == [["high/copy.wav", "low/000.wav", "low/another.wav"]]


# ---------------------------------------------------------------------- again


def test_again_decodes_nothing_and_changes_nothing(
    engine: sa.Engine, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "tones")
    ingest(engine, Source("folder", root))
    before = [(row.id, row.path, row.created_at) for row in clips(engine)]
    sound(root / "low" / "new.wav", 999)
    decoded: list[str] = []
    really = measuring.decode
    monkeypatch.setattr(measuring, "decode", lambda path: (decoded.append(path.name), really(path))[1])
    report = ingest(engine, Source("folder", root))
    assert figures(report) == {"new": 1, "unchanged": 6}
    assert decoded == ["new.wav"]
    assert [(row.id, row.path, row.created_at) for row in clips(engine)][:6] == before


def test_changed_content_is_a_new_clip_and_the_old_one_comes_back_with_its_content(
    engine: sa.Engine, tmp_path: Path, in_process: None
) -> None:
    root = folder(tmp_path / "tones", 2)
    source = Source("folder", root)
    ingest(engine, source)
    old = clips(engine)[1]
    content = (root / old.path).read_bytes()

    sound(root / old.path, 3000)
    report = ingest(engine, source)
    assert figures(report) == {"changed": 1, "unchanged": 1}
    assert [row.id for row in clips(engine, retired=True)] == [old.id]
    new = next(row for row in clips(engine) if row.path == old.path)
    assert new.id > old.id and new.sha256 != old.sha256

    (root / old.path).write_bytes(content)
    assert figures(ingest(engine, source)) == {"restored": 1, "unchanged": 1}
    assert [row.id for row in clips(engine, retired=True)] == [new.id]
    assert old.id in [row.id for row in clips(engine)]


def test_what_a_manifest_says_is_updated_in_place(engine: sa.Engine, tmp_path: Path, in_process: None) -> None:
    root = folder(tmp_path / "tones", 4)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.wav"))

    def manifest(rows: list[dict[str, Any]]) -> Source:
        with (root / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "labels", "caption", "fold", "author"])
            writer.writeheader()
            writer.writerows(rows)
        return Source("manifest", root / "manifest.csv")

    rows: list[dict[str, Any]] = [{"path": path, "labels": "tone;sine", "fold": 1, "author": "A"} for path in paths]
    ingest(engine, manifest(rows))
    first = clips(engine)
    assert (first[0].labels, first[0].fold, first[0].extra) == (["tone", "sine"], 1, {"author": "A"})

    rows[0] |= {"labels": "beep"}
    rows[1] |= {"caption": "A tone."}
    rows[2] |= {"fold": 2, "author": ""}
    assert figures(ingest(engine, manifest(rows))) == {"unchanged": 4, "updated": 3}
    second = clips(engine)
    assert [row.id for row in second] == [row.id for row in first]
    assert [row.labels for row in second] == [["beep"]] + 3 * [["tone", "sine"]]
    assert [row.source_caption for row in second] == [None, "A tone.", None, None]
    assert [(row.fold, row.extra) for row in second][2:] == [(2, {}), (1, {"author": "A"})]

    assert figures(ingest(engine, manifest(rows[1:]))) == {"unchanged": 3, "vanished": 1}


def test_vanished_files_are_reported_and_retired_only_on_request(
    engine: sa.Engine, tmp_path: Path, in_process: None
) -> None:
    root = folder(tmp_path / "tones", 4)
    source = Source("folder", root)
    ingest(engine, source)
    moved = root / "low" / "000.wav"
    moved.rename(tmp_path / "kept.wav")
    report = ingest(engine, source)
    assert figures(report) == {"unchanged": 3, "vanished": 1}
    assert report.vanished_paths == ["low/000.wav"]
    assert len(clips(engine)) == 4
    assert figures(ingest(engine, source, prune=True)) == {"unchanged": 3, "vanished": 1, "pruned": 1}
    assert [row.path for row in clips(engine, retired=True)] == ["low/000.wav"]
    assert figures(ingest(engine, source)) == {"unchanged": 3}
    (tmp_path / "kept.wav").rename(moved)
    assert figures(ingest(engine, source)) == {"unchanged": 3, "restored": 1}
    assert len(clips(engine)) == 4


def test_a_listed_file_that_is_gone_counts_as_vanished_once_it_was_in(
    engine: sa.Engine, tmp_path: Path, in_process: None
) -> None:
    root = folder(tmp_path / "tones", 2)
    (root / "m.csv").write_text("path\nlow/000.wav\nhigh/001.wav\nnever.wav\n")
    source = Source("manifest", root / "m.csv")
    assert figures(ingest(engine, source)) == {"new": 2, "failed": 1}
    (root / "low" / "000.wav").unlink()
    report = ingest(engine, source, prune=True)
    assert figures(report) == {"unchanged": 1, "failed": 1, "vanished": 1, "pruned": 1}
    assert open_failures(engine) == {"never.wav": "missing: there is no such file"}


def test_failures_are_closed_when_the_file_is_put_right_or_taken_away(
    engine: sa.Engine, tmp_path: Path, in_process: None
) -> None:
    root = folder(tmp_path / "tones", 2)
    source = Source("folder", root)
    for name in ("a.wav", "b.wav", "c.wav"):
        (root / name).write_bytes(b"")
    assert figures(ingest(engine, source)) == {"new": 2, "failed": 3}
    sound(root / "a.wav", 700)
    (root / "b.wav").unlink()
    (root / "c.wav").write_text("now a text")
    assert figures(ingest(engine, source)) == {"new": 1, "unchanged": 2, "failed": 1}
    assert open_failures(engine) == {"c.wav": "text: the file holds text, not sound"}


# ---------------------------------------------------------------------- names


def test_a_name_belongs_to_one_folder_and_one_kind(engine: sa.Engine, tmp_path: Path, in_process: None) -> None:
    root = folder(tmp_path / "a" / "tones", 2)
    ingest(engine, Source("folder", root))
    shutil.copytree(root, tmp_path / "b" / "tones")
    with pytest.raises(ConflictError, match=rf"lies in {root}; if it was moved: andp datasets relocate tones"):
        ingest(engine, Source("folder", tmp_path / "b" / "tones"))
    (root / "m.csv").write_text("path\nlow/000.wav\n")
    with pytest.raises(ConflictError, match="was ingested as 'folder', not 'manifest'"):
        ingest(engine, Source("manifest", root / "m.csv"), name="tones")
    report = ingest(engine, Source("folder", tmp_path / "b" / "tones"), name=" others ")
    assert (report.name, report.new) == ("others", 2)
    with pytest.raises(InputError, match="cannot be the name"):
        ingest(engine, Source("folder", root), name=" \n")


def test_the_sample_follows_the_package_when_it_is_installed_elsewhere(
    engine: sa.Engine, tmp_path: Path, in_process: None
) -> None:
    root = folder(tmp_path / "old" / "sample", 2)
    (root / "manifest.csv").write_text("path,label\nlow/000.wav,low\nhigh/001.wav,high\n")
    assert figures(ingest(engine, Source("sample", root / "manifest.csv"))) == {"new": 2}
    (tmp_path / "old").rename(tmp_path / "new")
    report = ingest(engine, Source("sample", tmp_path / "new" / "sample" / "manifest.csv"))
    assert figures(report) == {"unchanged": 2}
    with db.reading(engine) as session:
        (dataset,) = session.scalars(sa.select(Dataset))
    assert (dataset.name, dataset.root) == ("sample", str(tmp_path / "new" / "sample"))


# ---------------------------------------------------------------------- disturbed


def test_an_error_on_the_way_keeps_what_was_committed_and_the_next_ingest_goes_on(
    engine: sa.Engine, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    root = folder(tmp_path / "tones", 10)

    def failing(job: Job) -> Outcome:
        if job.path.name == "002.wav":  # the seventh by path
            raise AndpError("pulled the plug")
        return measure_file(job)

    monkeypatch.setattr(module, "measure_file", failing)
    with pytest.raises(AndpError, match="pulled the plug"):
        ingest(engine, Source("folder", root))
    assert len(clips(engine)) == 4

    monkeypatch.setattr(module, "measure_file", measure_file)
    assert figures(ingest(engine, Source("folder", root))) == {"new": 6, "unchanged": 4}
    paths = [row.path for row in clips(engine)]
    assert paths == sorted(paths) and len(paths) == 10


def test_two_ingests_of_one_folder_take_turns(engine: sa.Engine, tmp_path: Path, in_process: None) -> None:
    root = folder(tmp_path / "tones", 12)
    reports: list[IngestReport] = []
    threads = [
        threading.Thread(target=lambda: reports.append(ingest(engine, Source("folder", root)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, map(figures, reports))) == ["{'new': 12}", "{'unchanged': 12}", "{'unchanged': 12}"]
    assert len(clips(engine)) == 12
