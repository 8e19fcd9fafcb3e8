"""The data set that `andp dissect` takes where none is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform.cli import dissect
from and_platform.errors import InputError
from and_platform.schema import Dataset
from tests import factories


def put(engine: sa.Engine, *names: str, trained_on: str | None = None) -> None:
    with Session(engine) as session, session.begin():
        for name in names:
            session.add(Dataset(name=name, root=f"/sounds/{name}", kind="folder"))
        network = factories.network(session, name="cnn")
        network.trained_on = trained_on


@pytest.mark.parametrize(
    ("names", "trained_on", "expected"),
    [
        ((), None, "sample"), (("mine",), None, "mine"), (("mine",), "elsewhere", "mine"),
        (("a", "b", "c"), "b", "b"), (("mine", "sample"), "sample", "sample"),
    ],
)  # fmt: skip
def test_it_is_what_the_network_was_trained_on_or_the_only_one(
    engine: sa.Engine, names: tuple[str, ...], trained_on: str | None, expected: str
) -> None:
    put(engine, *names, trained_on=trained_on)
    assert dissect._default_dataset(engine, "cnn") == expected


def test_several_are_an_error_that_lists_them(engine: sa.Engine) -> None:
    put(engine, "a", "b", trained_on="gone")
    with pytest.raises(InputError, match="there are 2 data sets; say which one with --dataset: a, b"):
        dissect._default_dataset(engine, "cnn")


def test_a_terminal_is_asked(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    put(engine, "a", "b")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    asked: list[object] = []
    monkeypatch.setattr(dissect.click, "prompt", lambda *told, **_options: asked.append(told) or "b")
    assert dissect._default_dataset(engine, "cnn") == "b" and asked


def test_the_sample_network_takes_the_sample(engine: sa.Engine) -> None:
    put(engine, "a", "b")
    assert dissect._default_dataset(engine, "sample-ast") == "sample"


def test_a_named_one_goes_first() -> None:
    assert dissect._names_dataset(None, None, {"dataset": "x"})
    assert not dissect._names_dataset(None, None, {"dataset": None})


def test_a_config_file_names_one(tmp_path: Path) -> None:
    config = tmp_path / "dissect.toml"
    config.write_text('[dissect]\ndataset = "x"\n')
    assert dissect._names_dataset(None, config, {"dataset": None})
