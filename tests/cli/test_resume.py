"""A dissection that is killed at any point and run again ends with the rows of an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import URL

from and_platform.embedded import EmbeddedServer
from tests import forked, tiny
from tests.cli.killed import die_at, small_blocks
from tests.homes import new_home

CLIPS = 18

# Every table a dissection fills, by names in place of keys: keys may differ, rows may not.
CONTENT = {
    "clips": "SELECT path, sha256, labels FROM clips ORDER BY 1",
    "captions": "SELECT c.path, a.text, r.sha256 FROM captions a JOIN clips c ON c.id = a.clip_id"
    " JOIN recipes r ON r.id = a.recipe_id ORDER BY 1, 3",
    "sentences": "SELECT c.path, s.ordinal, t.text FROM caption_sentences s JOIN captions a ON a.id = s.caption_id"
    " JOIN clips c ON c.id = a.clip_id JOIN texts t ON t.id = s.text_id ORDER BY 1, 2, 3",
    "blocks left": "SELECT count(*) FROM activation_blocks",
    "activations": "SELECT l.name, n.unit, a.stretch, a.values::text FROM activations a JOIN neurons n ON n.id = a.neuron_id"
    " JOIN layers l ON l.id = n.layer_id ORDER BY 1, 2, 3",
    "cubes": "SELECT l.name, n.unit, a.stretch, a.values::text FROM activation_cubes a JOIN neurons n ON n.id = a.neuron_id"
    " JOIN layers l ON l.id = n.layer_id ORDER BY 1, 2, 3",
    "exemplars": "SELECT l.name, n.unit, e.side, e.positions, e.activations FROM exemplars e"
    " JOIN neurons n ON n.id = e.neuron_id JOIN layers l ON l.id = n.layer_id ORDER BY 1, 2, 3",
    "statistics": "SELECT l.name, n.unit, s.mean, s.sd, s.min, s.max, s.sparsity FROM neuron_statistics s"
    " JOIN neurons n ON n.id = s.neuron_id JOIN layers l ON l.id = n.layer_id ORDER BY 1, 2",
    "matches": "SELECT neuron, method, similarity, rank, concept, score FROM closed_concepts ORDER BY 1, 2, 3, 4",
    "scores": "SELECT c.name, s.stretch, s.scores::text, s.cubed::text FROM clip_concept_scores s"
    " JOIN concepts c ON c.id = s.concept_id ORDER BY 1, 2",
    "descriptions": "SELECT neuron, summary, low_summary, calibrated_summary, points_kept, points_dropped, support,"
    " closed_db, open_concepts, exemplar_labels FROM current_neuron_descriptions ORDER BY 1",
    "points": "SELECT neuron, ordinal, point, kept, nearest_low_point, cosine, support FROM calibrated_summary_points"
    " ORDER BY 1, 2",
    "terms": "SELECT neuron, term, part_of_speech, occurrences, is_open_concept, verdict_reason FROM open_concepts"
    " ORDER BY 1, 2, 3",
    "embedded summaries": "SELECT count(*) FROM summary_embeddings",
    "recipes": "SELECT sha256 FROM recipes ORDER BY 1",
    "texts": "SELECT text FROM texts ORDER BY 1",
    "dissections": "SELECT status, sha256 FROM dissections",
}

POINTS = [
    ("and_platform.services.activations.land", 2, "after"),  # inside the transaction of the second block
    ("and_platform.services.activations.fold", 3, "after"),
    ("and_platform.services.activations.complete_layer", 2, "after"),
    ("and_platform.services.caption._write", 1, "after"),
    ("and_platform.services.match._store", 1, "after"),
    ("and_platform.services.provenance.finish_layer", 3, "before"),
    ("and_platform.services.summarise._write", 2, "before"),
    ("and_platform.services.calibrate._calibrate_layer", 3, "after"),
    ("and_platform.services.extract._keep_tags", 1, "after"),
    ("and_platform.queries.insert_neuron_terms", 2, "before"),
    ("and_platform.queries.insert_summary_embeddings", 2, "after"),
]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny.sounds(folder / "tones", CLIPS // len(tiny.CLASSES))
    tiny.network(folder / "network")
    return folder


def contents(url: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as connection:
        return {name: connection.execute(query).fetchall() for name, query in CONTENT.items()}


def run(
    environment: dict[str, str], *arguments: str, die: tuple[str, int, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `andp ARGUMENTS` with small blocks; `die`: where it is killed."""
    before = partial(die_at, *die) if die else small_blocks
    return forked.run("-q", *arguments, environment=environment, before=before)


def prepare(environment: dict[str, str], material: Path) -> None:
    for arguments in (
        ("ingest", "folder", str(material / "tones"), "--processes", "1"),
        ("networks", "add", "tiny", str(material / "network")),
    ):
        result = run(environment, *arguments)
        assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def prepared(
    server_url: URL, material: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """A function that gives the environment of a fresh database in which data set and network are."""
    import os

    from tests.conftest import ROOT, TEMPLATE, _admin

    def environment(name: str) -> dict[str, str]:
        url = server_url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
        return {
            **os.environ, "ANDP_DATABASE_URL": url, "ANDP_HOME": str(tmp_path_factory.mktemp("home")),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip

    with _admin(server_url) as connection:
        connection.execute(f"CREATE DATABASE andp_prepared TEMPLATE {TEMPLATE}")
    prepare(environment("andp_prepared"), material)

    def fresh(name: str) -> dict[str, str]:
        with _admin(server_url) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE andp_prepared")
        return environment(name)

    return fresh


@pytest.fixture(scope="module")
def undisturbed(prepared: Callable[[str], dict[str, str]]) -> dict[str, list[Any]]:
    environment = prepared("andp_undisturbed")
    result = run(environment, "dissect", "tiny", "--dataset", "tones")
    assert result.returncode == 0, result.stderr
    found = contents(environment["ANDP_DATABASE_URL"])
    assert found["dissections"][0][0] == "complete"
    assert all(found[name] for name in CONTENT)
    return found


@pytest.mark.parametrize(
    "point", POINTS, ids=lambda point: f"{point[0].removeprefix('and_platform.services.')}-{point[1]}"
)
def test_killed_and_run_again(
    point: tuple[str, int, str], prepared: Callable[[str], dict[str, str]], undisturbed: dict[str, list[Any]]
) -> None:
    environment = prepared(f"andp_killed_{POINTS.index(point)}")
    killed = run(environment, "dissect", "tiny", "--dataset", "tones", die=point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run(environment, "dissect", "tiny", "--dataset", "tones")
    assert again.returncode == 0, again.stderr
    found = contents(environment["ANDP_DATABASE_URL"])
    for name, rows in undisturbed.items():
        assert found[name] == rows, name


def test_the_server_is_killed_in_the_middle(material: Path, tmp_path: Path, undisturbed: dict[str, list[Any]]) -> None:
    import os
    import shutil
    import time

    home = new_home("andpk")
    try:
        environment = {
            **os.environ,
            "ANDP_HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(forked.ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        environment.pop("ANDP_DATABASE_URL", None)
        prepare(environment, material)
        server = EmbeddedServer(home)
        with ThreadPoolExecutor(1) as beside:
            going = beside.submit(run, environment, "dissect", "tiny", "--dataset", "tones")
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not going.done():
                with psycopg.connect(server.url) as connection:
                    row = connection.execute("SELECT count(*) FROM captions").fetchone()
                if row and row[0]:
                    break
                time.sleep(0.02)
            pid = server.status().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            ended = going.result()
        told = ended.stderr
        assert ended.returncode == 4, told  # a database error, in one line
        assert told.startswith("andp: ") and len(told.strip().splitlines()) == 1, told
        again = run(environment, "dissect", "tiny", "--dataset", "tones")
        assert again.returncode == 0, again.stderr
        found = contents(server.url)
        for name, rows in undisturbed.items():
            assert found[name] == rows, name
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


def test_two_at_once(prepared: Callable[[str], dict[str, str]], undisturbed: dict[str, list[Any]]) -> None:
    environment = prepared("andp_two_at_once")
    with ThreadPoolExecutor(2) as beside:
        both = [beside.submit(run, environment, "dissect", "tiny", "--dataset", "tones") for _ in range(2)]
    for going in both:
        assert going.result().returncode == 0, going.result().stderr
    found = contents(environment["ANDP_DATABASE_URL"])
    for name, rows in undisturbed.items():
        assert found[name] == rows, name


def test_again_does_nothing(prepared: Callable[[str], dict[str, str]]) -> None:
    import json

    environment = prepared("andp_again")
    assert run(environment, "dissect", "tiny", "--dataset", "tones").returncode == 0
    again = run(environment, "dissect", "tiny", "--dataset", "tones", "--json")
    assert all(stage["computed"] == 0 for stage in json.loads(again.stdout)["stages"])
    # Another threshold: calibration and what follows from it, nothing else.
    other = run(environment, "dissect", "tiny", "--dataset", "tones", "--threshold", "0.4", "--json")
    computed = {stage["stage"]: stage["computed"] > 0 for stage in json.loads(other.stdout)["stages"]}
    assert {stage for stage, now in computed.items() if now} <= {"calibrate", "extract", "embed"}
    assert computed["calibrate"] and computed["extract"]
