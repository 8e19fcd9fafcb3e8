"""The queries of `sql/queries/`, and the views and functions that users see."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from and_platform import db, queries
from and_platform.core.matching import Matcher
from and_platform.core.similarity import SIMILARITIES
from and_platform.schema import Term
from and_platform.services import activations
from tests import factories
from tests.factories import Told, World

VIEWS = {
    "adjective_counts", "neuron_acoustics", "neuron_word_counts",
    "calibrated_summary_points", "closed_concepts", "current_neuron_descriptions", "dissection_overview",
    "exemplar_clips", "layer_overview", "neuron_descriptions", "open_concepts",
}  # fmt: skip
# Of experiments, which no world has: their own tests read them.
EXPERIMENT_VIEWS = {"ablation_classes", "ablation_overview", "study_results"}


@pytest.fixture(scope="module")
def shared(shared_engine: sa.Engine) -> World:
    """A world for the tests that leave it as it is."""
    with db.transaction(shared_engine) as session:
        return factories.world(session)


@pytest.fixture
def world(engine: sa.Engine) -> World:
    """A world of the test's own."""
    with db.transaction(engine) as session:
        return factories.world(session)


@pytest.fixture
def scratch(shared_engine: sa.Engine, shared: World) -> Iterator[Session]:
    """A session on the shared world; what is written is forgotten."""
    with Session(shared_engine) as session:
        yield session


def ask(engine: sa.Engine, query: str, **params: Any) -> list[dict[str, Any]]:
    with db.reading(engine) as session:
        return [dict(row) for row in session.execute(sa.text(query), params).mappings()]


def refused(engine: sa.Engine, query: str, **params: Any) -> tuple[str, str]:
    """Message and hint of the error that a query of the user's ends with."""
    with pytest.raises(sa.exc.DBAPIError) as caught:
        ask(engine, query, **params)
    assert isinstance(caught.value.orig, psycopg.Error)
    diagnosis = caught.value.orig.diag
    return diagnosis.message_primary or "", diagnosis.message_hint or ""


# ---------------------------------------------------------------------- each query


def test_every_query_has_its_function_and_every_function_its_query() -> None:
    modules = [
        importlib.import_module(f"{queries.__name__}.{module.name}")
        for module in pkgutil.iter_modules(queries.__path__)
        if module.name != "files"
    ]
    functions = {
        name for module in modules for name, it in inspect.getmembers(module, inspect.isfunction)
        if it.__module__ == module.__name__ and not name.startswith("_")
    }  # fmt: skip
    assert set(queries.all_queries()) == functions


def arguments(session: Session, world: World) -> dict[str, dict[str, Any]]:
    """Arguments for each query that make it find something."""
    stages = factories.stage_recipes(session, world.dissection)
    neuron, dissection = world.neurons["head#0"], world.dissection.id
    fresh = factories.recipe(session, "tag")
    encoder = factories.encoder(session)
    for told in factories.TOLD.values():
        for point in told.points:
            factories.embed_text(session, encoder, point, [1, 2, 2])
    return {
        "untagged_points": {
            "calibrate_recipe": stages["calibrate"], "tag_recipe": fresh, "layers": [world.layers["head"].id],
        },
        "unjudged_adjectives": {
            "judge_recipe": fresh, "tag_recipe": stages["tag"], "calibrate_recipe": stages["calibrate"],
            "layers": [world.layers["head"].id],
        },
        "insert_neuron_terms": {
            "recipe": fresh, "calibrate_recipe": stages["calibrate"], "tag_recipe": stages["tag"],
            "judge_recipe": stages["judge"], "layer": world.layers["head"].id,
        },
        "insert_summary_embeddings": {
            "encoder": encoder, "calibrate_recipe": stages["calibrate"], "layer": world.layers["head"].id,
        },
        "search_summaries": {
            "text": "dog", "encoder": encoder, "vector": "[1,0,0]", "network": None,
            "dissection": None, "n": 5,
        },
        "neurons_for_concept": {
            "concept": "dog", "strategy": "closed_db", "network": "net", "dissection": None, "words": "any", "top": 3,
            "layer": "head%", "n": 5,
        },
        "describe_neuron": {"dissection": dissection, "layer": "head", "unit": 0},
        "neuron_exemplars": {
            "dissection": dissection, "recording": world.recording.id, "neuron": neuron, "n": 2,
        },
        "neuron_points": {"calibration": factories.calibrations_of(session, world.dissection)[neuron]},
        "neuron_matches": {"dissection": dissection, "neuron": neuron, "n": 3},
        "neuron_terms_of": {"dissection": dissection, "neuron": neuron},
        "current_dissections": {"network": None},
        "layer_table": {"dissection": dissection},
        "probing_clips": {"probing_set": world.probing.id},
    }  # fmt: skip


def test_draws_are_in_order_of_bytes_whatever_the_database_sorts_by() -> None:
    drawn = set()
    for name, text in queries.all_queries().items():
        for line in text.splitlines():
            if re.search(r"md5\(.*seed", line):
                drawn.add(name)
                assert 'COLLATE "C"' in line.partition("md5(")[2], line
    assert drawn >= {"insert_study_items", "drawn_neurons", "insert_plan_at_random", "neurons_by_criterion"}


@pytest.mark.parametrize("name", sorted(set(queries.__all__) - {"all_queries"}))
def test_each_query_runs_and_finds_something(scratch: Session, shared: World, name: str) -> None:
    given = arguments(scratch, shared)
    assert name in given, f"tell test_queries.py how to call {name}"
    assert getattr(queries, name)(scratch, **given[name])


def test_untagged_points_are_the_kept_ones_that_were_not_tagged(scratch: Session, shared: World) -> None:
    stages = factories.stage_recipes(scratch, shared.dissection)
    every: dict[str, Any] = {
        "calibrate_recipe": stages["calibrate"],
        "layers": [layer.id for layer in shared.layers.values()],
    }
    fresh = factories.recipe(scratch, "tag")
    found = queries.untagged_points(scratch, tag_recipe=fresh, **every)
    assert [text for _, text in found] == ["A dog barks loudly nearby.", "Rain falls on a high-pitched metal roof."]
    assert queries.untagged_points(scratch, tag_recipe=stages["tag"], **every) == []


def test_unjudged_adjectives_are_those_without_a_verdict(scratch: Session, shared: World) -> None:
    stages = factories.stage_recipes(scratch, shared.dissection)
    every: dict[str, Any] = {
        "tag_recipe": stages["tag"],
        "calibrate_recipe": stages["calibrate"],
        "layers": [layer.id for layer in shared.layers.values()],
    }
    assert queries.unjudged_adjectives(scratch, judge_recipe=stages["judge"], **every) == []
    fresh = factories.recipe(scratch, "judge")
    words = [word for _, word in queries.unjudged_adjectives(scratch, judge_recipe=fresh, **every)]
    assert words == ["edible", "high-pitched", "loud"]


def test_insert_neuron_terms_again_follows_the_verdicts(scratch: Session, shared: World) -> None:
    """Twice does nothing; with another verdict it updates."""
    stages = factories.stage_recipes(scratch, shared.dissection)
    given = {
        "recipe": stages["extract"], "calibrate_recipe": stages["calibrate"], "tag_recipe": stages["tag"],
        "judge_recipe": stages["judge"], "layer": shared.layers["head"].id,
    }  # fmt: skip
    before = scratch.execute(sa.text("SELECT * FROM neuron_terms ORDER BY 1, 2, 3")).all()
    queries.insert_neuron_terms(scratch, **given)
    assert scratch.execute(sa.text("SELECT * FROM neuron_terms ORDER BY 1, 2, 3")).all() == before
    scratch.execute(sa.text("UPDATE term_verdicts SET accepted = true"))
    queries.insert_neuron_terms(scratch, **given)
    closed = scratch.scalars(
        sa.text("SELECT x.term FROM neuron_terms t JOIN terms x ON x.id = t.term_id WHERE NOT t.is_open_concept")
    ).all()
    assert closed == ["near"]  # prepositions are never open concepts


# ---------------------------------------------------------------------- views


def test_the_views_are_those_that_are_tested(shared_engine: sa.Engine) -> None:
    assert {
        row["viewname"] for row in ask(shared_engine, "SELECT viewname FROM pg_views WHERE schemaname = 'public'")
    } == VIEWS | EXPERIMENT_VIEWS | {"run_progress"}  # which test_run_progress.py looks at


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_each_view_finds_something(shared_engine: sa.Engine, shared: World, view: str) -> None:
    assert ask(shared_engine, f"SELECT * FROM {view}")


def test_neuron_descriptions(shared_engine: sa.Engine, shared: World) -> None:
    rows = {row["neuron"]: row for row in ask(shared_engine, "SELECT * FROM neuron_descriptions")}
    assert list(rows) == list(shared.neurons) or set(rows) == set(shared.neurons)
    dog = rows["head#0"]
    order = np.argsort(-shared.values["head"][0].astype(float), kind="stable")[:2]
    assert {key: dog[key] for key in (
        "network", "dataset", "layer", "layer_kind", "block", "unit", "class_name", "summary", "low_summary",
        "calibrated_summary", "points_kept", "points_dropped", "support", "closed_db", "closed_db_score", "closed_tab",
        "closed_tab_score", "closed_icl", "open_concepts", "exemplar_labels",
    )} == {
        "network": "net", "dataset": "sounds of net", "layer": "head", "layer_kind": "head", "block": None, "unit": 0,
        "class_name": "dog", "summary": "A dog barks loudly nearby.\nThe recording has a low hum.",
        "low_summary": "There is a low hum in the recording.", "calibrated_summary": "A dog barks loudly nearby.",
        "points_kept": 1, "points_dropped": 1, "support": 1.0, "closed_db": "dog", "closed_db_score": 1.0,
        "closed_tab": None, "closed_tab_score": None, "closed_icl": "dog", "open_concepts": ["bark", "dog", "loud"],
        "exemplar_labels": [factories.LABELS[position % 3] for position in order],
    }  # fmt: skip
    empty, unknown = rows["b00.ff_in#2"], rows["b00.ff_in#0"]
    assert (empty["calibrated_summary"], empty["closed_db"], empty["open_concepts"], empty["block"]) == (
        "",
        "siren",
        None,
        0,
    )
    assert (unknown["summary"], unknown["closed_db"], len(unknown["exemplar_labels"])) == (None, None, 2)


def test_layer_overview(engine: sa.Engine) -> None:
    values = factories.random_values({"b00.ff_in": 4, "head": 3}, 8)
    values["b00.ff_in"][3] = 2  # constant
    with db.transaction(engine) as session:
        factories.world(session, values=values)
    hidden, head = ask(engine, "SELECT * FROM layer_overview ORDER BY position")
    assert (hidden["layer"], hidden["n_units"], hidden["n_constant"], hidden["n_described"]) == ("b00.ff_in", 4, 1, 0)
    assert (hidden["commonest_closed_db"], hidden["commonest_closed_db_neurons"]) == ("siren", 1)
    assert (head["layer"], head["n_constant"], head["n_described"]) == ("head", 0, 2)
    assert (head["mean_kept"], head["mean_dropped"], head["mean_support"]) == (1.0, 0.5, 1.0)
    # dog, bark, loud; rain, high-pitched, roof: six terms, two of them adjectives, over three neurons
    assert head["mean_open_concepts"] == pytest.approx(2.0)
    assert head["mean_adjectives"] == pytest.approx(2 / 3)


def test_calibrated_summary_points(shared_engine: sa.Engine, shared: World) -> None:
    rows = ask(shared_engine, "SELECT * FROM calibrated_summary_points WHERE neuron = 'head#0' ORDER BY ordinal")
    assert [(row["point"], row["kept"], row["nearest_low_point"]) for row in rows] == [
        ("A dog barks loudly nearby.", True, "There is a low hum in the recording."),
        ("The recording has a low hum.", False, "There is a low hum in the recording."),
    ]


def test_exemplar_clips(shared_engine: sa.Engine, shared: World) -> None:
    rows = ask(shared_engine, "SELECT * FROM exemplar_clips WHERE neuron = 'head#1' ORDER BY side, rank")
    values = shared.values["head"][1].astype(float)
    for side, order in (("high", np.argsort(-values, kind="stable")), ("low", np.argsort(values, kind="stable"))):
        mine = [row for row in rows if row["side"] == side]
        assert [row["rank"] for row in mine] == list(range(1, 9))
        assert [row["position"] for row in mine] == order.tolist()
        assert [row["activation"] for row in mine] == pytest.approx(values[order].tolist(), rel=1e-6)
        assert [row["label"] for row in mine] == [factories.LABELS[position % 3] for position in order]
        assert all(row["path"].startswith(row["label"]) for row in mine)


def test_open_concepts_show_the_verdicts(shared_engine: sa.Engine, shared: World) -> None:
    rows = ask(shared_engine, "SELECT * FROM open_concepts WHERE neuron = 'head#0' ORDER BY term")
    assert [(row["term"], row["is_open_concept"], row["verdict_reason"]) for row in rows] == [
        ("bark", True, None), ("dog", True, None), ("edible", False, "because"), ("loud", True, "because"),
        ("near", False, None),
    ]  # fmt: skip


def test_a_dissection_shows_only_the_layers_it_covers(engine: sa.Engine) -> None:
    """Two dissections may share the recipes of a stage and differ in what they cover."""
    with db.transaction(engine) as session:
        world = factories.world(session, name="one")
        stages = factories.stage_recipes(session, world.dissection)
        other = factories.dissection(session, world.recording, world.concepts, {}, layers=["b00.ff_in"]).id
        for stage in ("match.db.cos_cubed", "extract", "calibrate"):
            session.execute(
                sa.text(
                    "UPDATE dissection_recipes SET recipe_id = :recipe WHERE dissection_id = :id AND stage = :stage"
                ),
                {"recipe": stages[stage], "id": other, "stage": stage},
            )
    for view in ("closed_concepts", "open_concepts", "neuron_descriptions", "layer_overview"):
        layers = ask(engine, f"SELECT DISTINCT layer FROM {view} WHERE dissection_id = :id", id=other)
        assert [row["layer"] for row in layers] in ([], ["b00.ff_in"])
    for strategy, concept in (("open", "dog"), ("closed_db", "dog"), ("closed_db", "siren")):
        found = ask(
            engine, "SELECT layer FROM neurons_for_concept(:c, :s, dissection => :d)", c=concept, s=strategy, d=other
        )
        assert {row["layer"] for row in found} <= {"b00.ff_in"}
    assert (
        ask(engine, "SELECT * FROM neurons_for_concept('barks loudly', words => 'phrase', dissection => :d)", d=other)
        == []
    )


# ---------------------------------------------------------------------- which dissection is current


@pytest.mark.parametrize(
    ("states", "current"),
    [
        ([{}], 0),
        ([{"status": "running"}], None),
        ([{"status": "failed"}], None),
        ([{"completed": "2026-01-01"}, {"completed": "2026-01-02"}], 1),
        ([{"completed": "2026-01-02"}, {"completed": "2026-01-01"}], 0),
        ([{}, {"status": "running"}], 0),
        ([{}, {"status": "failed"}], 0),
        ([{"pinned": True, "completed": "2026-01-01"}, {"completed": "2026-01-02"}], 0),
        ([{"pinned": True, "status": "running"}, {}], 0),
        ([{"completed": "2026-01-01"}, {"completed": "2026-01-01"}], 1),
    ],
)
def test_the_current_dissection(engine: sa.Engine, states: list[dict[str, Any]], current: int | None) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session)
        made = [
            factories.dissection(session, world.recording, world.concepts, factories.TOLD, **state).id
            for state in states
        ]
        session.execute(sa.text("DELETE FROM dissections WHERE id = :id"), {"id": world.dissection.id})
    found = [row["dissection_id"] for row in ask(engine, "SELECT * FROM dissection_overview WHERE is_current")]
    assert found == ([] if current is None else [made[current]])
    shown = ask(engine, "SELECT DISTINCT dissection_id FROM current_neuron_descriptions")
    assert [row["dissection_id"] for row in shown] == found


def test_each_network_has_a_current_dissection_of_its_own(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        worlds = [factories.world(session, name=name) for name in ("one", "two")]
    rows = ask(engine, "SELECT dissection_id, network FROM dissection_overview WHERE is_current ORDER BY 1")
    assert [(row["dissection_id"], row["network"]) for row in rows] == [
        (world.dissection.id, world.network.name) for world in worlds
    ]


# ---------------------------------------------------------------------- neurons_for_concept


def neurons(engine: sa.Engine, concept: str, strategy: str = "open", **more: Any) -> list[str]:
    extra = "".join(f", {name} => :{name}" for name in more)
    rows = ask(
        engine,
        f"SELECT * FROM neurons_for_concept(:concept, :strategy{extra})",
        concept=concept,
        strategy=strategy,
        **more,
    )
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["neuron"] for row in rows]


@pytest.mark.parametrize(
    ("concept", "words", "found"),
    [
        ("dog", "any", ["head#0"]),
        ("Dogs", "any", ["head#0"]),
        ("barking_dog", "any", ["head#0"]),
        ("dog in the rain", "any", ["head#0", "head#1"]),
        ("rain on a roof", "any", ["head#1"]),
        ("a loud roof", "any", ["head#0", "head#1"]),
        ("do", "any", []),  # no substring of a word
        ("the of", "any", []),
        ("", "any", []),
        ("edible", "any", []),  # refused by the judge
        ("near", "any", []),  # a preposition
        ("high-pitched", "any", ["head#1"]),
        ("high_pitched", "all", ["head#1"]),
        ("high", "any", []),  # of a compound all parts must be asked for
        ("high-pitched rain", "all", ["head#1"]),
        ("barking dog", "all", ["head#0"]),
        ("dog on the roof", "all", []),
        ("the of", "all", []),
        ("dog barks", "phrase", ["head#0"]),
        ("barking loudly", "phrase", ["head#0"]),
        ("barks dog", "phrase", []),
        ("low hum", "phrase", []),  # that point was dropped
        ("high-pitched metal", "phrase", ["head#1"]),
        ("the of", "phrase", []),
    ],
)
def test_open_strategy(shared_engine: sa.Engine, shared: World, concept: str, words: str, found: list[str]) -> None:
    assert neurons(shared_engine, concept, words=words) == found


def test_open_strategy_puts_more_words_first_and_says_why(shared_engine: sa.Engine, shared: World) -> None:
    rows = ask(shared_engine, "SELECT * FROM neurons_for_concept('a dog, the high-pitched rain')")
    assert [(row["neuron"], row["why"]) for row in rows] == [
        ("head#1", "terms: high-pitched, rain"), ("head#0", "terms: dog"),
    ]  # fmt: skip
    assert [row["score"] for row in rows] == pytest.approx([3 / 4, 1 / 4])
    assert {(row["neuron_network"], row["layer"], row["block"], row["dissection_id"]) for row in rows} == {
        ("net", "head", None, shared.dissection.id)
    }
    assert [row["unit"] for row in rows] == [1, 0]


@pytest.mark.parametrize(
    ("strategy", "concept", "more", "found"),
    [
        ("closed_db", "dog", {}, ["head#0", "b00.ff_in#2", "head#1"]),
        ("closed_db", "DOG", {"top": 1}, ["head#0"]),
        ("closed_db", "dog", {"max_results": 2}, ["head#0", "b00.ff_in#2"]),
        ("closed_db", "cat", {}, []),
        ("closed_icl", "rain", {}, ["head#1"]),
        ("closed_tab", "rain", {}, []),
    ],
)
def test_closed_strategies(
    shared_engine: sa.Engine, shared: World, strategy: str, concept: str, more: dict[str, Any], found: list[str]
) -> None:
    # Of equal rank and score the neuron with the lower id comes first: ids follow the layers.
    assert neurons(shared_engine, concept, strategy, **more) == found


def test_by_meaning(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        encoder = factories.encoder(session)
        calibrations = factories.calibrations_of(session, world.dissection)
        vectors = {calibrations[world.neurons[name]]: v for name, v in (("head#0", [1, 0, 0]), ("head#1", [1, 2, 0]))}
        factories.embed_summaries(session, encoder, 3, vectors)
        factories.embed_text(session, encoder, "hound", [1, 0.1, 0])
        factories.embed_text(session, encoder, "wet roof", [0, 1, 0])
        # A second encoder, under which only one summary has a vector and "hound" has none.
        factories.embed_summaries(session, factories.encoder(session, name="other"), 3, dict(list(vectors.items())[:1]))
    assert neurons(engine, "hound", "meaning") == ["head#0", "head#1"]
    assert neurons(engine, "wet_roof", "meaning") == ["head#1", "head#0"]
    assert neurons(engine, "hound", "meaning", max_results=1) == ["head#0"]
    row = ask(engine, "SELECT score, why FROM neurons_for_concept('wet roof', 'meaning') LIMIT 1")[0]
    assert row["score"] == pytest.approx(2 / 5**0.5)
    assert row["why"] == "cosine 0.89 to: Rain falls on a high-pitched metal roof."
    message, hint = refused(engine, "SELECT * FROM neurons_for_concept('unheard', 'meaning')")
    assert message == "the text 'unheard' has no embedding by toy"
    assert "andp neurons --concept" in hint


def test_the_index_answers_by_meaning(engine: sa.Engine) -> None:
    """Nearest first through HNSW, filtered by the dissection: the same as the exact scan."""
    rng = np.random.default_rng(0)
    told = {f"head#{i}": Told(points=[f"Sound number {i} of many is heard."]) for i in range(120)}
    with db.transaction(engine) as session:
        world = factories.world(session, layers={"head": 120}, told=told, n_clips=3)
        encoder = factories.encoder(session, dim=8)
        calibrations = factories.calibrations_of(session, world.dissection)
        vectors = {calibrations[neuron]: rng.normal(size=8) for neuron in world.neurons.values()}
        factories.embed_summaries(session, encoder, 8, vectors)
        query = rng.normal(size=8)
        factories.embed_text(session, encoder, "query", query)
    cosines = {
        name: float(v @ query / np.linalg.norm(v)) for name, v in zip(world.neurons, vectors.values(), strict=True)
    }
    expected = sorted(cosines, key=cosines.__getitem__, reverse=True)[:20]
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        found = connection.exec_driver_sql(
            "SELECT neuron FROM neurons_for_concept('query', 'meaning', max_results => 20)"
        ).scalars().all()  # fmt: skip
    assert len(set(found) & set(expected)) >= 18  # approximate by its nature
    assert neurons(engine, "query", "meaning", max_results=120) == sorted(
        cosines, key=cosines.__getitem__, reverse=True
    )


def test_restricted_to_a_network_or_a_dissection(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        one, two = (factories.world(session, name=name) for name in ("one", "two"))
        old = factories.dissection(
            session, one.recording, one.concepts, {"head#2": factories.TOLD["head#0"]}, completed="2020-01-01"
        )
    assert neurons(engine, "dog") == ["head#0", "head#0"]
    assert neurons(engine, "dog", network="two") == ["head#0"]
    assert neurons(engine, "dog", dissection=old.id) == ["head#2"]
    assert neurons(engine, "dog", dissection=two.dissection.id) == ["head#0"]


def test_what_neurons_for_concept_refuses(engine: sa.Engine) -> None:
    nothing = refused(engine, "SELECT * FROM neurons_for_concept('dog')")
    assert nothing == ("no complete dissection of network (any)", "see: SELECT * FROM dissection_overview")
    with db.transaction(engine) as session:
        factories.world(session)
    assert refused(engine, "SELECT * FROM neurons_for_concept('dog', network => 'nope')")[0].endswith("of network nope")
    assert refused(engine, "SELECT * FROM neurons_for_concept('dog', dissection => 99)")[0].startswith(
        "no complete dissection"
    )
    message, hint = refused(engine, "SELECT * FROM neurons_for_concept('dog', 'opne')")
    assert (message, hint) == ("unknown strategy opne", "one of: open, closed_db, closed_tab, closed_icl, meaning")
    message, hint = refused(engine, "SELECT * FROM neurons_for_concept('dog', words => 'some')")
    assert (message, hint) == ("unknown value some for words", "one of: any, all, phrase")
    assert refused(engine, "SELECT * FROM neurons_for_concept('dog', 'meaning')") == (
        "the summaries of this dissection have no embeddings", "run: andp dissect",
    )  # fmt: skip


def test_stems_meet(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        session.add_all(Term(term=term, part_of_speech="noun") for term in ("barking", "Bark", "the"))
        session.flush()
        stems = session.scalars(sa.select(Term.stem).order_by(Term.id)).all()
    assert stems == ["bark", "bark", "the"]


# ---------------------------------------------------------------------- match_concepts


def sql_matches(
    engine: sa.Engine, world: World, similarity: str, k: int, concepts: str | None = None, **more: Any
) -> dict[str, list[tuple[str, float]]]:
    extra = "".join(f", {name} => :{name}" for name in more)
    rows = ask(
        engine, f"SELECT * FROM match_concepts(:recording, :concepts, :similarity, :k{extra})",
        recording=world.recording.id, concepts=concepts or world.concepts.name, similarity=similarity, k=k, **more,
    )  # fmt: skip
    names = {identity: name for name, identity in world.neurons.items()}
    found: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        mine = found.setdefault(names[row["neuron_id"]], [])
        mine.append((row["concept"], row["score"]))
        assert row["rank"] == len(mine)
    return found


def compare(engine: sa.Engine, world: World, names: list[str], similarity: str, k: int) -> int:
    """Compare with the functions of core, neuron by neuron; returns how many neurons have matches."""
    found = sql_matches(engine, world, similarity, k)
    n_compared = 0
    for layer, values in world.values.items():
        scores = SIMILARITIES[similarity](torch.from_numpy(values), torch.from_numpy(world.p)).numpy()
        best = Matcher(world.p, [similarity], top=k).layer(values)[similarity]
        for unit, expected in enumerate(scores):
            mine = found.get(f"{layer}#{unit}", [])
            if np.isnan(expected).all():
                assert mine == []
                continue
            assert len(mine) == min(k, len(names))
            by_name = dict(zip(names, expected, strict=True))
            np.testing.assert_allclose([score for _, score in mine], [by_name[name] for name, _ in mine], atol=1e-4)
            np.testing.assert_allclose([score for _, score in mine], best.score[unit], atol=1e-4)
            assert {name for name, _ in mine} == {names[column] for column in best.concept[unit]}
            n_compared += 1
    return n_compared


@pytest.mark.parametrize("similarity", ["cos", "cos_cubed"])
@pytest.mark.parametrize("n_clips", [7, 8, 43])
def test_match_concepts_agrees_with_core(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, similarity: str, n_clips: int
) -> None:
    """Over one stretch, exactly one, and several with a rest."""
    monkeypatch.setattr(activations, "BLOCK", 4)
    monkeypatch.setattr(activations, "STRETCH", 8)
    names = [f"concept {i:02d}" for i in range(12)]
    values = factories.random_values({"b00.ff_in": 40, "head": 5}, n_clips)
    values["head"][1] = 3.0  # constant
    values["head"][2] = 0.0  # dead
    values["b00.ff_in"][0] *= np.float16(1e-3)  # cubes below the smallest norm
    with db.transaction(engine) as session:
        world = factories.world(session, values=values, layers={"b00.ff_in": 40, "head": 5}, n_clips=n_clips,
                                concepts=names, told={})  # fmt: skip
    assert compare(engine, world, names, similarity, 5) == 43
    assert compare(engine, world, names, similarity, 100) == 43


@pytest.mark.parametrize("similarity", ["cos", "cos_cubed"])
def test_match_concepts_with_a_concept_that_says_nothing(engine: sa.Engine, similarity: str) -> None:
    """A column of zeros scores 0, as in core, and ties go to the concept that comes first."""
    with db.transaction(engine) as session:
        world = factories.world(session, told={}, concepts=["a", "b", "c"])
        p = np.zeros((8, 3), np.float32)
        p[:, 2] = world.p[:, 2]
        factories.scoring(session, world.probing, world.concepts, p)
    world.p = p
    compare(engine, world, ["a", "b", "c"], similarity, 3)
    for mine in sql_matches(engine, world, similarity, 3).values():
        order = [name for name, _ in mine]
        assert order.index("a") < order.index("b")


def test_match_concepts_uses_the_latest_scores_of_the_method(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        p = np.roll(world.p, 1, axis=1)
        factories.scoring(session, world.probing, world.concepts, p)
        factories.scoring(session, world.probing, world.concepts, world.p, method="tab")
    tab = sql_matches(engine, world, "cos", 3, method="tab")
    world.p, old = p, world.p
    assert compare(engine, world, list(factories.LABELS), "cos", 3) == 7
    expected = SIMILARITIES["cos"](torch.from_numpy(world.values["head"]), torch.from_numpy(old)).numpy()
    assert dict(tab["head#0"])["rain"] == pytest.approx(expected[0, 1], abs=1e-4)


def test_match_concepts_of_one_layer(shared_engine: sa.Engine, shared: World) -> None:
    found = sql_matches(shared_engine, shared, "cos_cubed", 1, layer="head")
    assert sorted(found) == ["head#0", "head#1", "head#2"]
    every = sql_matches(shared_engine, shared, "cos_cubed", 1)
    assert {name: every[name] for name in found} == found
    assert sql_matches(shared_engine, shared, "cos", 1, layer="nope") == {}


def test_what_match_concepts_refuses(engine: sa.Engine, world: World) -> None:
    call = "SELECT * FROM match_concepts(:recording, 'concepts of net', :similarity)"
    good = {"recording": world.recording.id, "similarity": "cos"}
    message, hint = refused(engine, call, **{**good, "similarity": "wpmi"})
    assert message == "match_concepts knows cos and cos_cubed, not 'wpmi'"
    assert "andp dissect" in hint
    assert refused(engine, call, **{**good, "recording": 99})[0].startswith(
        "no db scores of concept set 'concepts of net'"
    )
    message, hint = refused(engine, "SELECT * FROM match_concepts(:r, 'nope')", r=world.recording.id)
    assert message == f"no db scores of concept set 'nope' for recording {world.recording.id}"
    assert hint.endswith("--concepts nope")
    with db.transaction(engine) as session:
        factories.scoring(session, world.probing, world.concepts, world.p, missing=[1, 4])
    message, hint = refused(engine, call, **good)
    assert message == "2 clips have no score (no caption), and vectors cannot leave them out"
    assert "concept_matches" in hint


def test_match_concepts_without_cubes_says_so(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        world = factories.world(session)
        session.execute(sa.text("DELETE FROM activation_cubes"))
    message, hint = refused(engine, "SELECT * FROM match_concepts(:r, 'concepts of net')", r=world.recording.id)
    assert message == f"recording {world.recording.id} keeps no cubed activations"
    assert "ANDP_MATERIALISE_CUBES=true" in hint
    assert compare(engine, world, list(factories.LABELS), "cos", 2) == 7
