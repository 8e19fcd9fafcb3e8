from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.errors import ConflictError, IncompleteError, InputError, NotFoundError
from and_platform.schema import Clip, Dataset, Network, ProbingSet, ProbingSetClip, Recipe, Recording
from and_platform.services import datasets, journal
from and_platform.services.provenance import record_failure, resolve_failures


def add_clips(engine: sa.Engine, names: list[str], *, name: str = "set", root: str = "/nowhere") -> int:
    """A data set whose clips' contents are their names."""
    with db.transaction(engine) as session:
        dataset = session.scalars(sa.select(Dataset).where(Dataset.name == name)).one_or_none()
        if dataset is None:
            dataset = Dataset(name=name, root=root, kind="folder")
            session.add(dataset)
            session.flush()
        for number, path in enumerate(names):
            session.add(
                Clip(
                    dataset_id=dataset.id, path=path, sha256=hashlib.sha256(path.encode()).hexdigest(),
                    labels=["dog", "animal"] if number % 2 else ["rain"], fold=1 + number % 2, sample_rate=16_000,
                    channels=1, duration_s=1.0 + number, mean_abs_amplitude=0.1, rms=0.1, peak=0.5,
                    median_frequency_hz=None if number == 0 else 100.0 * number, silence_share=0.0,
                )
            )  # fmt: skip
            session.flush()
        return dataset.id


def record(engine: sa.Engine, probing_set_id: int) -> None:
    with db.transaction(engine) as session:
        network = Network(
            name="n", source="factory", location="m:f", revision="r", architecture="A", sample_rate=16_000,
            n_parameters=1,
        )  # fmt: skip
        recipe = Recipe(stage="record", backend="b", revision="r", params={}, sha256="x")
        session.add_all([network, recipe])
        session.flush()
        session.add(
            Recording(network_id=network.id, probing_set_id=probing_set_id, recipe_id=recipe.id, block_clips=250)
        )


def members(engine: sa.Engine, probing_set_id: int) -> list[tuple[int, str]]:
    with db.reading(engine) as session:
        query = (
            sa.select(ProbingSetClip.position, Clip.path)
            .join(Clip, Clip.id == ProbingSetClip.clip_id)
            .where(ProbingSetClip.probing_set_id == probing_set_id)
            .order_by(ProbingSetClip.position)
        )
        return [(position, path) for position, path in session.execute(query)]


def snapshot(engine: sa.Engine, dataset_id: int) -> ProbingSet:
    with db.transaction(engine) as session:
        return datasets.snapshot(session, dataset_id)


# ---------------------------------------------------------------------- snapshots


def test_snapshot_is_of_live_clips_in_order_of_id_and_does_not_change(engine: sa.Engine) -> None:
    dataset_id = add_clips(engine, ["b", "c", "a"])
    add_clips(engine, ["x"], name="another")
    first = snapshot(engine, dataset_id)
    assert first.n_clips == 3
    assert members(engine, first.id) == [(0, "b"), (1, "c"), (2, "a")]
    assert snapshot(engine, dataset_id).id == first.id

    add_clips(engine, ["d"])
    with db.transaction(engine) as session:
        session.execute(sa.update(Clip).where(Clip.path == "c").values(retired_at=sa.func.now()))
    second = snapshot(engine, dataset_id)
    assert second.id != first.id
    assert members(engine, second.id) == [(0, "b"), (1, "a"), (2, "d")]
    assert members(engine, first.id) == [(0, "b"), (1, "c"), (2, "a")]


def test_snapshot_leaves_out_clips_that_failed_in_recording(engine: sa.Engine) -> None:
    dataset_id = add_clips(engine, ["a", "b", "c"])
    whole = snapshot(engine, dataset_id)
    with db.transaction(engine) as session:
        clip_id = session.scalars(sa.select(Clip.id).where(Clip.path == "b")).one()
        record_failure(session, stage="record", scope="recipe:1", unit="b", reason="why", clip_id=clip_id)
        record_failure(session, stage="caption", scope="recipe:2", unit="a", reason="why", clip_id=clip_id - 1)
        record_failure(session, stage="record", scope="recipe:1", unit="block 3", reason="why")
    assert members(engine, snapshot(engine, dataset_id).id) == [(0, "a"), (1, "c")]
    with db.transaction(engine) as session:
        assert resolve_failures(session, stage="record", scope="recipe:1", units=["b"]) == 1
    assert snapshot(engine, dataset_id).id == whole.id


def test_snapshot_of_nothing(engine: sa.Engine) -> None:
    with pytest.raises(IncompleteError, match="no clip that can be used"):
        snapshot(engine, add_clips(engine, []))


def test_snapshots_at_the_same_moment_are_one(engine: sa.Engine) -> None:
    dataset_id = add_clips(engine, [f"{number:03d}" for number in range(300)])
    found: list[int] = []
    start = threading.Barrier(4)

    def take() -> None:
        start.wait()
        found.append(snapshot(engine, dataset_id).id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert [path for _, path in members(engine, found[0])] == [f"{number:03d}" for number in range(300)]


# ---------------------------------------------------------------------- looking


def test_list_and_show(engine: sa.Engine) -> None:
    dataset_id = add_clips(engine, ["a", "b", "c", "d"])
    add_clips(engine, ["x"], name="other")
    with db.transaction(engine) as session:
        session.execute(sa.update(Clip).where(Clip.path == "d").values(sha256="same", source_caption="Rain falls."))
        session.execute(sa.update(Clip).where(Clip.path == "c").values(sha256="same"))
        clip_id = session.scalars(sa.select(Clip.id).where(Clip.path == "a")).one()
        record_failure(session, stage="ingest", scope="dataset:set", unit="z.wav", reason="empty")
        record_failure(session, stage="record", scope="recipe:1", unit="a", reason="loud", clip_id=clip_id)
        record_failure(session, stage="ingest", scope="dataset:other", unit="y.wav", reason="text")
    snapshot(engine, dataset_id)
    with db.reading(engine) as session:
        rows = datasets.list_datasets(session)
        report = datasets.show(session, "set")
    assert [row["name"] for row in rows] == ["other", "set"]
    assert rows[1] == {
        "name": "set", "kind": "folder", "clips": 4, "labels": 2, "folds": 2, "captions": 1,
        "minutes": pytest.approx(10 / 60), "failures": 1, "root": "/nowhere",
    }  # fmt: skip
    summary = report.summary
    assert (summary["clips"], summary["captions"], summary["retired"], summary["snapshots"]) == (4, 1, 0, 1)
    assert summary["root_is_there"] is False
    assert report.labels == [
        {"label": "animal", "clips": 2}, {"label": "dog", "clips": 2}, {"label": "rain", "clips": 2},
    ]  # fmt: skip
    assert report.folds == [{"fold": 1, "clips": 2}, {"fold": 2, "clips": 2}]
    assert report.formats == [{"sample_rate": 16_000, "channels": 1, "clips": 4}]
    assert report.duplicates == [["c", "d"]]
    assert [(row["stage"], row["unit"]) for row in report.failures] == [("ingest", "z.wav"), ("record", "a")]
    measures = {row["measure"]: row for row in report.measures}
    assert (measures["duration_s"]["least"], measures["duration_s"]["greatest"]) == (1.0, 4.0)
    assert measures["median_frequency_hz"]["median"] == 200.0  # the silent clip has none


def test_a_name_that_is_not_there(engine: sa.Engine) -> None:
    with db.reading(engine) as session, pytest.raises(NotFoundError, match="andp ingest folder DIR"):
        datasets.find(session, "none")
    add_clips(engine, ["a"])
    with db.reading(engine) as session, pytest.raises(NotFoundError, match="there are: set"):
        datasets.find(session, "none")


def test_failures_by_stage_and_data_set(engine: sa.Engine) -> None:
    add_clips(engine, ["a"])
    with db.transaction(engine) as session:
        clip_id = session.scalars(sa.select(Clip.id)).one()
        record_failure(session, stage="ingest", scope="dataset:set", unit="z.wav", reason="empty")
        record_failure(session, stage="record", scope="recipe:1", unit="a", reason="loud", clip_id=clip_id)
        record_failure(session, stage="ingest", scope="dataset:never-in", unit="y.wav", reason="text")
        resolve_failures(session, stage="ingest", scope="dataset:set", units=["z.wav"])
    with db.reading(engine) as session:
        assert [row["unit"] for row in journal.failures(session)] == ["a", "y.wav"]
        assert [row["unit"] for row in journal.failures(session, stage="record")] == ["a"]
        assert [row["unit"] for row in journal.failures(session, dataset="set")] == ["a"]
        assert [row["unit"] for row in journal.failures(session, dataset="set", resolved=True)] == ["z.wav", "a"]
        assert [row["unit"] for row in journal.failures(session, dataset="never-in")] == ["y.wav"]
        with pytest.raises(NotFoundError):
            journal.failures(session, dataset="unknown")


# ---------------------------------------------------------------------- moving and dropping


def write(root: Path, names: list[str]) -> None:
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).write_text(name)


def test_relocate(engine: sa.Engine, tmp_path: Path) -> None:
    names = [f"{number:02d}" for number in range(30)]
    add_clips(engine, names, root=str(tmp_path / "old"))
    write(tmp_path / "new", names)
    (tmp_path / "new" / "07").unlink()
    (tmp_path / "new" / "00").write_text("something else")
    with db.transaction(engine) as session:
        report = datasets.relocate(session, "set", tmp_path / "somewhere" / ".." / "new")
    assert (report.old, report.new) == (str(tmp_path / "old"), str(tmp_path / "new"))
    assert (report.clips, report.missing, report.missing_paths) == (30, 1, ["07"])
    assert report.compared == 20 and report.different == ["00"]
    with db.reading(engine) as session:
        assert datasets.find(session, "set").root == str(tmp_path / "new")


def test_relocate_to_a_folder_of_something_else_changes_nothing(engine: sa.Engine, tmp_path: Path) -> None:
    add_clips(engine, ["a", "b"], root="/old")
    write(tmp_path / "new", ["x"])
    with db.transaction(engine) as session, pytest.raises(InputError, match=r"none of the 2 files of 'set' is in"):
        datasets.relocate(session, "set", tmp_path / "new")
    shutil.copy(tmp_path / "new" / "x", tmp_path / "new" / "a")
    with db.transaction(engine) as session, pytest.raises(InputError, match="but other contents"):
        datasets.relocate(session, "set", tmp_path / "new")
    with db.transaction(engine) as session, pytest.raises(InputError, match="there is no folder"):
        datasets.relocate(session, "set", tmp_path / "none")
    with db.reading(engine) as session:
        assert datasets.find(session, "set").root == "/old"


def test_drop_removes_everything_of_a_data_set_that_was_not_recorded(engine: sa.Engine) -> None:
    dataset_id = add_clips(engine, ["a", "b"])
    other = snapshot(engine, add_clips(engine, ["x"], name="other"))
    kept = snapshot(engine, dataset_id)
    with db.transaction(engine) as session:
        record_failure(session, stage="ingest", scope="dataset:set", unit="z.wav", reason="empty")
    record(engine, other.id)
    with db.transaction(engine) as session, pytest.raises(ConflictError, match="1 recording"):
        datasets.drop(session, "other")
    with db.transaction(engine) as session:
        assert datasets.drop(session, "set") == 2
    with db.reading(engine) as session:
        assert [row["name"] for row in datasets.list_datasets(session)] == ["other"]
        assert session.get(ProbingSet, kept.id) is None
        assert journal.failures(session) == []
