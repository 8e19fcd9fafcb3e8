"""The epochs of a run of training are rows; an interrupted run leaves its own, and the one that goes on leaves the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from and_platform.backends.datasets import Source
from and_platform.backends.networks import finetuning
from and_platform.errors import ConfigError, NotFoundError
from and_platform.services import networks, training
from and_platform.services.ingest import ingest
from and_platform.services.progress import Silent
from tests import tiny
from tests.checkpoints_beats import write_beats

OPTIONS = {"epochs": 4, "batch_size": 4, "learning_rate": 1e-3}


class StoppedError(Exception):
    pass


class Watching(Silent):
    """Keeps the notes, and stops once it has heard enough of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.notes: list[str] = []
        self._stop_after = stop_after

    def note(self, text: str) -> None:
        self.notes.append(text)
        if len(self.notes) == self._stop_after:
            raise StoppedError


@pytest.fixture
def tones(engine: sa.Engine, tmp_path: Path) -> str:
    """Twelve short tones, four of each class, in the folds 1 to 4."""
    tiny.sounds(tmp_path / "tones", per_class=4)
    rows = [f"{label}/{label}-{i}.wav,{label},{i + 1}" for label in tiny.CLASSES for i in range(4)]
    (tmp_path / "tones" / "manifest.csv").write_text("\n".join(["path,label,fold", *rows]) + "\n")
    ingest(engine, Source("manifest", tmp_path / "tones" / "manifest.csv"), name="tones", processes=1)
    return "tones"


def epochs(engine: sa.Engine) -> list[Any]:
    query = (
        "SELECT run_id, epoch, loss, learning_rate, validation_accuracy, test_accuracy, seconds FROM training_epochs"
    )
    with engine.connect() as connection:
        return list(connection.execute(sa.text(f"{query} ORDER BY run_id, epoch")))


def runs(engine: sa.Engine) -> list[Any]:
    query = "SELECT id, outcome, arguments, counts FROM runs WHERE command = 'networks train' ORDER BY id"
    with engine.connect() as connection:
        return list(connection.execute(sa.text(query)))


def test_epochs_are_rows_as_they_end(engine: sa.Engine, tones: str, tmp_path: Path) -> None:
    source = str(tiny.network(tmp_path / "ast"))
    watching = Watching()
    result = training.finetune(
        engine, tmp_path / "out", tones, 1, source, validation_fold=2, options=OPTIONS, progress=watching
    )
    (run,) = runs(engine)
    rows = epochs(engine)
    assert [(row.run_id, row.epoch) for row in rows] == [(run.id, epoch) for epoch in (1, 2, 3, 4)]
    for row, metrics in zip(rows, result.epochs, strict=True):
        told = (row.loss, row.learning_rate, row.validation_accuracy, row.seconds)
        assert told == (metrics.loss, metrics.learning_rate, metrics.validation_accuracy, metrics.seconds)
    measured = {row.epoch: row.test_accuracy for row in rows if row.test_accuracy is not None}
    assert measured == {result.saved_epoch: result.test_accuracy}
    assert run.outcome == "ok" and run.counts["epochs"] == 4 and run.counts["clips"] == 6
    assert run.counts["test_accuracy"] == result.test_accuracy and run.counts["saved_epoch"] == result.saved_epoch
    assert run.arguments["from"] == source and run.arguments["learning_rate"] == 1e-3
    assert (run.arguments["dataset"], run.arguments["held_out_fold"], run.arguments["recipe"]) == (
        "tones",
        1,
        "finetuned",
    )
    assert len(watching.notes) == 4 and watching.notes[0].startswith("epoch 1 of 4: loss ")
    assert watching.notes[3].endswith(f"{result.epochs[3].validation_accuracy:.3f} of fold 2 right")

    network = networks.add(engine, "fine", str(tmp_path / "out"))
    assert (network.trained_on, network.held_out_fold, network.classes) == ("tones", 1, list(tiny.CLASSES))
    assert network.extra["strategy"] == "finetuned" and network.extra["from"]["location"] == source


def test_a_run_that_goes_on_leaves_the_rest(engine: sa.Engine, tones: str, tmp_path: Path) -> None:
    source = str(write_beats(tmp_path / "beats.pt"))

    def train(directory: str, stop_after: int | None = None) -> Watching:
        watching = Watching(stop_after)
        training.finetune(engine, tmp_path / directory, tones, 2, source, options=OPTIONS, progress=watching)
        return watching

    train("whole")
    with pytest.raises(StoppedError):
        train("parts", stop_after=3)  # within the third epoch's end: its row is there, its weights are not
    again = train("parts")
    assert again.notes[0] == "going on after epoch 2 of 4"
    done = train("parts")
    assert "no epoch was left to do" in done.notes[0]

    first, killed, rest, nothing = runs(engine)
    assert [run.outcome for run in (first, killed, rest, nothing)] == ["ok", "failed", "ok", "ok"]
    assert killed.counts["epochs"] == 3 and (rest.counts["epochs"], rest.counts["begun_at"]) == (2, 3)
    assert nothing.counts["epochs"] == 0
    rows = epochs(engine)
    by_run = {run.id: [row.epoch for row in rows if row.run_id == run.id] for run in (first, killed, rest, nothing)}
    assert list(by_run.values()) == [[1, 2, 3, 4], [1, 2, 3], [3, 4], []]
    course = {row.epoch: (row.loss, row.learning_rate) for row in rows if row.run_id == first.id}
    assert all(course[row.epoch] == (row.loss, row.learning_rate) for row in rows)
    files = [(tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts")]
    assert files[0] == files[1]

    network = networks.add(engine, "beats", str(tmp_path / "parts"))
    assert (network.source, network.architecture, network.held_out_fold) == ("beats", "Beats", 2)


def test_the_test_accuracy_finds_the_row_of_an_earlier_call(
    engine: sa.Engine, tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tiny.network(tmp_path / "ast"))

    def train(directory: str, watching: Watching | None = None) -> finetuning.FineTuneResult:
        return training.finetune(
            engine, tmp_path / directory, tones, 1, source, validation_fold=2, options=OPTIONS,
            progress=watching or Watching(),
        )  # fmt: skip

    def measured() -> list[tuple[int, int, float]]:
        return [(row.run_id, row.epoch, row.test_accuracy) for row in epochs(engine) if row.test_accuracy is not None]

    def stop(*_: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(finetuning._Run, "confusion", stop)  # after the last epoch
        train("late")
    assert not measured()
    late = train("late")
    killed = runs(engine)[0].id
    expected = [(killed, late.saved_epoch, late.test_accuracy)]
    assert late.begun_at == 5 and measured() == expected
    train("late")  # where nothing is left to do, nothing is added
    assert measured() == expected and len(epochs(engine)) == 4

    told = iter([(1.0, 0.1), (0.5, 0.9), (0.5, 0.9), (0.5, 0.9), (0.5, 0.9)])
    with monkeypatch.context() as patch:
        patch.setattr(finetuning._Run, "_validate", lambda *_: next(told))
        with pytest.raises(StoppedError):
            train("early", Watching(stop_after=3))
        killed = runs(engine)[-1].id
        early = train("early")
    assert (early.saved_epoch, early.begun_at) == (1, 3)
    expected.append((killed, 1, early.test_accuracy))
    assert measured() == expected

    with engine.begin() as connection:  # as in another database
        connection.execute(sa.text("DELETE FROM training_epochs"))
    train("early")
    (row,) = epochs(engine)
    saved = early.epochs[0]
    assert (row.run_id, row.epoch, row.loss, row.seconds) == (runs(engine)[-1].id, 1, saved.loss, saved.seconds)
    assert row.test_accuracy == pytest.approx(early.test_accuracy, abs=1e-4)


def test_frozen_is_the_head_alone(engine: sa.Engine, tones: str, tmp_path: Path) -> None:
    source = str(tiny.network(tmp_path / "ast"))
    training.finetune(engine, tmp_path / "ice", tones, 1, source, recipe="frozen", options={"epochs": 30})
    network = networks.add(engine, "ice", str(tmp_path / "ice"))
    assert (network.extra["strategy"], network.extra["trainable"]) == ("frozen", "head")
    rows = epochs(engine)
    assert len(rows) == 30 and rows[-1].loss < rows[0].loss and {row.validation_accuracy for row in rows} == {None}


def test_refusals_are_recorded(engine: sa.Engine, tones: str, tmp_path: Path) -> None:
    source = str(tiny.network(tmp_path / "ast"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        training.finetune(engine, tmp_path / "mine", tones, 1, source, options=OPTIONS)
    with pytest.raises(NotFoundError, match="no clips with a label and a fold"):
        training.finetune(engine, tmp_path / "out", "nothing", 1, source, options=OPTIONS)
    with pytest.raises(ConfigError, match="which this machine does not have"):
        training.finetune(engine, tmp_path / "out", tones, 1, source, device="cuda:7")
    assert [run.outcome for run in runs(engine)] == ["failed", "failed"]
    assert not epochs(engine) and not (tmp_path / "out").exists()
