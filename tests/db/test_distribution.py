"""A dissection that workers do: row for row that of one process, for every kind of model, option and interruption."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform import api, db
from and_platform.config import Settings, settings
from and_platform.errors import AndpError, ConfigError, ConflictError, IncompleteError, NotFoundError
from and_platform.services import activations
from and_platform.services.dissect import Options
from and_platform.services.distribution import runs
from tests import tiny
from tests.conftest import _cloned
from tests.db.test_dissect import LLMServer
from tests.distributed import Workshop, assert_same, content


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny.sounds(folder / "tones", 4)
    tiny.network(folder / "network", blocks=2)
    return folder


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units so small that each step has several."""
    monkeypatch.setenv("ANDP_UNIT_SIZE", "0.002")
    settings.cache_clear()


def filled(engine: sa.Engine, material: Path, sounds: Path | None = None) -> api.Platform:
    platform = api.Platform(engine)
    platform.ingest(sounds or material / "tones", processes=1)
    platform.add_network("tiny", material / "network")
    return platform


@pytest.fixture
def here(engine: sa.Engine, material: Path) -> api.Platform:
    """A database that one process dissects."""
    return filled(engine, material)


@pytest.fixture
def shop(server_url: URL, material: Path) -> Iterator[Workshop]:
    """Another one with the same content, that workers dissect."""
    with _cloned(server_url) as url:
        engine = db.make_engine(url, Settings())
        filled(engine, material)
        yield Workshop(engine)
        engine.dispose()


@pytest.fixture
def llm() -> Iterator[LLMServer]:
    server = LLMServer()
    yield server
    server.close()


def rows(engine: sa.Engine, query: str, **params: Any) -> list[Any]:
    with db.reading(engine) as session:
        return list(session.execute(sa.text(query), params).all())


CAPTIONS = {f"{label}/{label}-{i}.wav": f"A {label} sound. It is number {i}." for label in tiny.CLASSES for i in range(3)}


@pytest.mark.parametrize(
    "options",
    [
        {"captioner": "describer"},
        {"captioner": "joined", "top_k": 3, "threshold": 0.5},
        {"layers": ["head"]},
        {"layers": ["b01.*"], "pooling": "mean"},
        {"all_similarities": True, "similarity": "wpmi"},
        {"clips": 5, "layers": ["b00.*", "head"]},
        {"min_support": [2]},
    ],
    ids=repr,
)
def test_the_same_rows(here: api.Platform, engine: sa.Engine, shop: Workshop, options: dict[str, Any]) -> None:
    here.dissect("tiny", dataset="tones", **options)
    ended = shop.dissect(**options)
    assert ended["outcome"] == "ok", ended
    assert_same(content(shop.engine), content(engine))
    assert shop.done_keys.most_common(1)[0][1] == 1  # nothing was done twice
    assert not shop.failures and not shop.retries
    assert rows(shop.engine, "SELECT DISTINCT state FROM work_units") == [("done",)]
    # What is there is not done again, by workers or by one process.
    shop.done_keys.clear()
    assert shop.dissect(**options)["outcome"] == "ok"
    assert set(shop.done_steps) and {key.partition(":")[0] for key in shop.done_keys} == {"plan"}
    report = api.Platform(shop.engine).dissect("tiny", dataset="tones", **options)
    assert all(stage.computed == 0 for stage in report.stages)
