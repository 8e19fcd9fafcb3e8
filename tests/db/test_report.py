"""Reports on small dissected networks: what is asked of the database, and what ends up in the folder."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from and_platform import db
from and_platform.errors import InputError, NotFoundError
from and_platform.queries import layer_table
from and_platform.queries import report as queries
from and_platform.schema import Ablation, Clip, Run
from and_platform.services import experiments, report
from and_platform.services.report import Options, formats
from tests import factories
from tests.factories import Told

LAYERS = {"b00.ff_in": 4, "b01.ff_in": 3, "head": 3}

TOLD = {
    **factories.TOLD,
    "b00.ff_in#1": Told(
        points=["A dog barks at the gate.", "There is a low hum somewhere."],
        low=["Rain falls on a tin roof.", "The recording has a low hum."],
        dropped=[1],
        terms=[("dog", "noun"), ("loud", "adjective"), ("edible", "adjective")],
        closed={"db": ["dog", "rain"], "icl": ["dog"]},
    ),
    "b01.ff_in#2": Told(
        points=["Something <odd> & loud happens here.", "There is a low hum somewhere."],
        low=["The recording has a low hum."],
        dropped=[1],
        closed={"db": ["siren"]},
    ),
}


@dataclass
class Small:
    """A dissected network whose clips lie on disk."""

    engine: sa.Engine
    dissection: int
    neurons: dict[str, int]
    recording: int


def sounds(engine: sa.Engine, folder: Path, dataset: str) -> None:
    """Files for the clips of a data set of `factories`; the last one is missing."""
    with db.transaction(engine) as session:
        session.execute(
            sa.text("UPDATE datasets SET root = :root WHERE name = :name"), {"root": str(folder), "name": dataset}
        )
        clips = session.scalars(
            sa.select(Clip).where(
                Clip.dataset_id == sa.text("(SELECT id FROM datasets WHERE name = :n)").bindparams(n=dataset)
            )
        ).all()
        for place, clip in enumerate(sorted(clips, key=lambda one: one.path)[:-1]):
            path = folder / clip.path
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.3 * np.sin(np.arange(4000) * 0.1 * (place + 1)), 8000)
            clip.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def small(shared_engine: sa.Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with db.transaction(shared_engine) as session:
        world = factories.world(session, layers=LAYERS, told=TOLD)
        made = Small(shared_engine, world.dissection.id, world.neurons, world.recording.id)
    sounds(shared_engine, tmp_path_factory.mktemp("sounds"), "sounds of net")
    yield made


# ---------------------------------------------------------------------- what is asked


def test_the_same_seed_draws_the_same_neurons_of_every_layer(small: Small) -> None:
    with db.reading(small.engine) as session:
        one = queries.drawn_neurons(session, dissection=small.dissection, per_layer=2, seed=0)
        again = queries.drawn_neurons(session, dissection=small.dissection, per_layer=2, seed=0)
        others = [
            queries.drawn_neurons(session, dissection=small.dissection, per_layer=1, seed=seed) for seed in range(8)
        ]
    assert one == again
    assert [name.partition("#")[0] for name in one] == ["b00.ff_in"] * 2 + ["b01.ff_in"] * 2 + ["head"] * 2
    assert len(set(one)) == 6
    assert len({tuple(names) for names in others}) > 1


def test_calibrated_neurons_are_hidden_and_of_different_layers(small: Small) -> None:
    with db.reading(small.engine) as session:
        found = queries.calibrated_neurons(session, dissection=small.dissection, n=5, seed=0)
        assert len(queries.calibrated_neurons(session, dissection=small.dissection, n=1, seed=0)) == 1
    assert sorted(found) == ["b00.ff_in#1", "b01.ff_in#2"]


def test_low_points_say_what_they_removed(small: Small) -> None:
    (story,) = report.stories(small.engine, "net", ["b00.ff_in#1"])
    # The factory lets the first low point remove what was dropped.
    assert [(row["point"], row["removed"]) for row in story.low_points] == [
        ("Rain falls on a tin roof.", ["There is a low hum somewhere."]), ("The recording has a low hum.", []),
    ]  # fmt: skip
    assert [(row["kept"], row["low"]) for row in story.points] == [(True, 1), (False, 1)]
    assert [row["rank"] for row in story.high] == [1, 2]
    assert all(row["caption"].startswith("the sound of a ") and row["sha256"] for row in story.low)
    assert [row["concept"] for row in story.closed["db"]] == ["dog", "rain"]
    assert {row["term"]: row["is_open_concept"] for row in story.terms} == {"dog": True, "loud": True, "edible": False}


def test_outputs_are_in_the_order_asked_for(small: Small) -> None:
    rows = report.outputs(small.engine, "net", ["head#1", "b00.ff_in#1", "b00.ff_in#2"])
    assert [row["neuron"] for row in rows] == ["head#1", "b00.ff_in#1", "b00.ff_in#2"]
    assert [(row["class_name"], row["closed_db"], row["closed_icl"], row["summary"] or None) for row in rows] == [
        ("rain", "rain", "rain", "Rain falls on a high-pitched metal roof."),
        (None, "dog", "dog", "A dog barks at the gate."),
        (None, "siren", None, None),
    ]
    assert all(len(row["exemplar_labels"]) == 2 for row in rows)


def test_a_neuron_that_is_not_there_is_told(small: Small) -> None:
    for name in ("b00.ff_in#99", "nonsense"):
        with pytest.raises(InputError, match=f"no neuron '{name}' in dissection .* layers b00.ff_in, b01.ff_in, head"):
            report.stories(small.engine, "net", [name])
        with pytest.raises(InputError, match=f"no neuron '{name}'"):
            report.outputs(small.engine, "net", [name])
    with pytest.raises(InputError, match="ask for at least 1"):
        report.outputs(small.engine, "net", per_layer=0)


def test_what_a_dissection_was_made_with(small: Small) -> None:
    with db.transaction(small.engine) as session:
        session.add(
            Run(
                command="dissect",
                outcome="ok",
                dissection_id=small.dissection,
                versions={"torch": "1"},
                machine={},
                arguments={},
            )
        )
        session.flush()
        recipes = queries.dissection_recipe_rows(session, dissection=small.dissection)
        figures = queries.probing_set_figures(session, dissection=small.dissection)
        run = queries.versions_of(session, dissection=small.dissection)
    assert {"record", "caption", "match.db.cos_cubed", "extract"} <= {row["stage"] for row in recipes}
    assert all(len(row["recipe"]) == 10 for row in recipes)
    assert [figures[key] for key in ("clips", "labels", "folds", "captions", "naming")] == [8, 3, 5, 8, 8]
    assert figures["minutes"] == pytest.approx(8 / 60)
    assert run is not None and run["versions"] == {"torch": "1"}


def test_which_ablations_are_stored(small: Small) -> None:
    with db.transaction(small.engine) as session:
        about = experiments.subject(session, "net")
        row = experiments.begin(session, about, experiments.plan(about, "feature_ablation", number=1))
        nothing = {
            f"{key}_{when}": [0.0] for key in ("logit", "probability", "accuracy") for when in ("before", "after")
        }
        session.add_all(
            Ablation(experiment_id=row.id, strategy=strategy, share=share, seed=0, n_neurons=1, n_parameters=1, n_clips=[1],
                     **nothing)
            for strategy, share in (("nouns", 2.0), ("nouns", 4.0), ("random", 2.0))
        )  # fmt: skip
        session.flush()
        found = queries.stored_ablations(session, experiment=row.id)
    assert found == [
        {"strategy": "nouns", "units": [[2, 0], [4, 0]]}, {"strategy": "random", "units": [[2, 0]]},
    ]  # fmt: skip


# ---------------------------------------------------------------------- what is written


def test_stored_only_writes_what_is_there_and_computes_nothing(small: Small, tmp_path: Path) -> None:
    def counts() -> list[int]:
        with db.reading(small.engine) as session:
            return [
                session.scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0
                for table in ("experiments", "ablations", "clusterings", "explanation_scores", "texts", "runs")
            ]

    before = counts()
    made = report.network(small.engine, "net", tmp_path, Options(stored_only=True))
    assert counts() == before
    assert made.page == tmp_path / "index.html"
    assert {"last-layer", "quality", "acoustics", "interpretability", "unlearning", "sweep", "study"} <= set(
        made.missing
    )
    assert made.missing["last-layer"] == [
        "Not in this report: it has not been computed yet; run: andp eval last-layer net"
    ]
    assert "andp interpretability cluster net" in made.missing["interpretability"][0]
    with db.reading(small.engine) as session:
        assert (tmp_path / "tables" / "layers.csv").read_text("utf-8") == formats.to_csv(
            layer_table(session, dissection=small.dissection)
        )
    read = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "neurons.csv").read_text("utf-8"))))
    rows = report.outputs(small.engine, "net")
    assert [row["neuron"] for row in read] == [row["neuron"] for row in rows]
    assert [row["summary"] for row in read] == [row["summary"] or "" for row in rows]
    assert sorted(path.stem for path in (tmp_path / "figures").glob("*.svg")) == made.figures
    assert sorted(path.stem for path in (tmp_path / "figures").glob("*.png")) == made.figures


def test_skipped_sections_and_chosen_neurons(small: Small, tmp_path: Path) -> None:
    options = Options(stored_only=True, skip=("layers", "neurons"), neurons=("b01.ff_in#2",))
    made = report.network(small.engine, "net", tmp_path, options)
    assert "layers" not in made.sections and "pipeline" in made.sections
    text = made.page.read_text("utf-8")
    assert 'id="neuron-b01-ff_in-2"' in text
    assert "Something &lt;odd&gt; &amp; loud happens here." in text and "<odd>" not in text


def test_a_neuron_that_is_not_there_is_said_before_anything_is_computed(small: Small, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no neuron 'b01"):
        report.network(small.engine, "net", tmp_path / "out", Options(neurons=("b01.ff_in#99",)))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="is no folder that you may write to"):
        report.network(small.engine, "net", tmp_path / "file" / "out", Options(stored_only=True))


def test_a_page_on_neurons(small: Small, tmp_path: Path) -> None:
    page = report.write_stories(small.engine, "net", ["head#0", "b00.ff_in#1"], tmp_path / "sub" / "neurons.html")
    text = page.read_text("utf-8")
    assert "<title>net head#0, b00.ff_in#1</title>" in text
    assert text.count('<article class="story"') == 2
    assert [path.name for path in page.parent.iterdir()] == ["neurons.html"]


def test_networks_are_compared_on_one_data_set(engine: sa.Engine, tmp_path: Path) -> None:
    with db.transaction(engine) as session:
        first = factories.world(session, layers=LAYERS, told=TOLD)
        second = factories.network(session, "second", {"b00.ff_in": 5, "head": 3})
        values = factories.random_values({"b00.ff_in": 5, "head": 3}, first.probing.n_clips, seed=3)
        recording = factories.recording(session, second, first.probing, values)
        factories.dissection(session, recording, first.concepts, factories.TOLD)
        factories.world(session, name="elsewhere")
    made = report.compare(engine, ["net", "second", "net"], tmp_path / "out", Options(stored_only=True))
    assert made.sections == ["about", "last-layer", "quality", "adjectives", "blocks", "interpretability", "unlearning"]
    assert {"networks", "adjectives", "blocks"} <= set(made.tables) and {"adjectives", "blocks"} <= set(made.figures)
    told = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tables" / "networks.csv").read_text("utf-8"))))
    assert [(row["network"], row["neurons"]) for row in told] == [("net", "10"), ("second", "8")]
    text = made.page.read_text("utf-8")
    assert "net and second, side by side" in text
    assert "Not in this report of second: it has not been computed yet; run: andp eval last-layer second" in text
    assert "The dissections have different captions" in text
    with pytest.raises(
        InputError, match=r"different data sets \(net with sounds of net, elsewhere with sounds of elsewhere\)"
    ):
        report.compare(engine, ["net", "elsewhere"], tmp_path / "no")
    with pytest.raises(InputError, match="at least two networks"):
        report.compare(engine, ["net", "net"], tmp_path / "no")
    with pytest.raises(NotFoundError):
        report.compare(engine, ["net", "nobody"], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_can_never_be_computed_is_not_asked_for(engine: sa.Engine, tmp_path: Path) -> None:
    with db.transaction(engine) as session:
        factories.world(session)
        session.execute(sa.text("UPDATE networks SET classes = '{}'"))
    made = report.network(engine, "net", tmp_path / "report", report.Options(stored_only=True))
    for section in ("last-layer", "unlearning", "ablation"):
        told = " ".join(made.missing[section])
        assert "has no class names" in told
        assert "run: andp" not in told
