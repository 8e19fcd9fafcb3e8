"""The evaluation: class mapping, the last layer, explanations of every neuron. Exact numbers on small worlds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from and_platform import db
from and_platform.backends import registry
from and_platform.backends.base import BackendRecipe, Generation, Prompt
from and_platform.errors import GenerationError, IncompleteError, InputError, NotFoundError
from and_platform.queries import evaluation as queries
from and_platform.schema import DissectionRecipe, Experiment, Scoring
from and_platform.services import class_mapping, embed, explanations, last_layer
from and_platform.services.texts import text_ids
from tests import factories
from tests.factories import Told, World

VECTORS = {"dog": [1, 0, 0], "rain": [0, 1, 0], "siren": [0.6, 0.8, 0], "drizzle": [0.1, 0.99, 0]}


class Encoder:
    """Three dimensions: one for dogs, one for rain, one for the rest."""

    recipe = BackendRecipe("toy", "1")
    dim = 3
    scale = 100.0
    asked = 0

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        Encoder.asked += len(texts)
        rows = np.array(
            [VECTORS.get(text) or [("dog" in text) + 0.1, ("rain" in text.lower()) + 0.1, 0.5] for text in texts]
        )
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class LLM:
    """Names rain first, whatever it is asked."""

    recipe = BackendRecipe("parrot", "1")

    def __init__(self, answer: str | Exception = "Answer: drizzle; DOG; Siren") -> None:
        self.answer = answer
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation | Exception]:
        self.asked += [prompt.user for prompt in prompts]
        return [self.answer if isinstance(self.answer, Exception) else Generation(self.answer) for _ in prompts]


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "create", lambda role, spec, **_: Encoder())
    Encoder.asked = 0


TOLD = {
    **factories.TOLD,
    "head#2": Told(points=["A siren wails in the rain."], closed={"db": ["dog", "siren"], "icl": ["siren"]}),
    "b00.ff_in#0": Told(points=["Rain."], closed={"db": ["rain", "dog"]}),
}
# Clips are dog, rain, siren in turn. The head gets every dog and rain right, and one of four sirens.
HEAD = np.array(
    [
        [5, 1, 4, 6, 0, 3, 5, 1, 4, 7, 2, 0],
        [1, 5, 0, 2, 6, 0, 1, 7, 0, 0, 5, 0],
        [0, 2, 1, 0, 1, 2, 0, 0, 1, 1, 1, 9],
    ]
)
HIDDEN = np.array(
    [
        [0, 5, 0, 1, 5, 1, 0, 4, 3, 0, 0, 2],
        [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2],
        [1, 1, 3, 0, 0, 3, 1, 0, 3, 0, 1, 0],
        [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2],
    ]
)


def make(engine: sa.Engine, **options: Any) -> World:
    """A world of twelve clips, whose dissection knows its scores and whose sentences have vectors."""
    given = {"n_clips": 12, "values": {"b00.ff_in": HIDDEN, "head": HEAD}, "told": TOLD} | options
    with db.transaction(engine) as session:
        world = factories.world(session, **given)
        recipe = session.get_one(Scoring, world.scoring_id).recipe_id
        session.add(DissectionRecipe(dissection_id=world.dissection.id, stage="score.db", recipe_id=recipe))
        points = text_ids(session, [point for told in given["told"].values() for point in told.points])
    embed.embed_texts(engine, Encoder(), list(points.values()))
    Encoder.asked = 0
    return world


@pytest.fixture
def world(engine: sa.Engine) -> World:
    return make(engine)


def ask(engine: sa.Engine, query: str, **params: Any) -> list[dict[str, Any]]:
    with db.reading(engine) as session:
        return [dict(row) for row in session.execute(sa.text(query), params).mappings()]


# ---------------------------------------------------------------------- classes


def test_classes_are_mapped_by_name_and_not_by_position(engine: sa.Engine) -> None:
    make(engine, concepts=["siren", "hound", "dog", "rain"])
    found = {one.class_name: (one.concept, one.how) for one in class_mapping.classes(engine, "net")}
    assert found == {name: (name, "exact") for name in factories.LABELS}


def test_what_the_user_gives_is_kept_and_taken_back(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE networks SET classes = '{dog,hail,SIREN}'"))
    found = class_mapping.classes(engine, "net")
    assert [(one.concept, one.how) for one in found] == [("dog", "exact"), (None, "none"), ("siren", "normalised")]
    assert class_mapping.without_concept(found) == ["hail"]
    given = class_mapping.classes(engine, "net", given={"Hail": "Rain"})
    assert (given[1].concept, given[1].how) == ("rain", "given")
    assert class_mapping.classes(engine, "net") == given
    assert class_mapping.classes(engine, "net", given={"hail": ""}) == found
    with pytest.raises(InputError, match="has no class 'hali'; perhaps 'hail'"):
        class_mapping.classes(engine, "net", given={"hali": "rain"})
    with pytest.raises(InputError, match="'sirens' is no concept of 'concepts of net'; perhaps 'siren'"):
        class_mapping.classes(engine, "net", given={"hail": "sirens"})


def test_labels_follow_what_was_given_for_a_class(engine: sa.Engine, world: World) -> None:
    class_mapping.classes(engine, "net", given={"dog": "rain"})
    with db.reading(engine) as session:
        found = class_mapping.label_concepts(session, world.network.id, world.concepts.id, ["Dog", "rain", "hail"])
        names = class_mapping.concept_names(session, world.concepts.id).names
    assert {label: names[concept] for label, concept in found.items()} == {"Dog": "rain", "rain": "rain"}


def test_a_network_without_classes(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE networks SET classes = '{}'"))
    with pytest.raises(InputError, match="'net' has no class names"):
        last_layer.evaluate(engine, "net")


# ---------------------------------------------------------------------- last layer


def test_last_layer_exactly(engine: sa.Engine, world: World) -> None:
    found = last_layer.evaluate(engine, "net")
    assert found.accuracy is not None
    # four dogs and four rains right; of the sirens the last one alone
    assert (found.accuracy["value"], found.accuracy["n_clips"]) == (9 / 12, 12)
    assert found.accuracy["by_class"] == [1, 1, 0.25]
    values = {(r["over"], r["measure"]): (r["n"], r["value"]) for r in found.rows if r["method"] == "db"}
    third = pytest.approx(2.6 / 3)
    assert values == {
        ("all", "top_1"): (3, pytest.approx(2 / 3)), ("all", "top_5"): (3, 1),
        ("all", "cosine_sentence"): (3, third), ("all", "cosine_concept"): (3, third),
        ("right", "top_1"): (2, 1), ("right", "top_5"): (2, 1),
        ("right", "cosine_sentence"): (2, pytest.approx(1)), ("right", "cosine_concept"): (2, pytest.approx(1)),
    }  # fmt: skip
    assert {row["similarity"]: row["speaks"] for row in found.rows} == {"cos_cubed": True, "llm": True}
    assert [(row["class_name"], row["db"], row["icl"], row["right"]) for row in found.names] == [
        ("dog", "dog", "dog", True), ("rain", "rain", "rain", True), ("siren", "dog", "siren", False),
    ]  # fmt: skip
    top = next(row for row in found.rows if (row["method"], row["over"], row["measure"]) == ("db", "all", "top_1"))
    assert (top["low"], top["high"]) == (0, 1)
    assert any("may have seen these clips" in note for note in found.notes)
    assert "n = 3 of 3 classes" in found.footer


def test_icl_without_an_llm_has_no_top_5(engine: sa.Engine, world: World) -> None:
    found = last_layer.evaluate(engine, "net")
    assert found.value("icl", "llm", "top_1") == 1
    assert found.value("icl", "llm", "top_5") is None


def test_five_names_of_an_llm_are_asked_for_once(engine: sa.Engine, world: World) -> None:
    """drizzle is no concept: rain is nearest to it."""
    llm = LLM()
    found = last_layer.evaluate(engine, "net", llm=llm)
    assert len(llm.asked) == 3
    five = {row["class_name"]: row["concepts"] for row in found.found if row["similarity"] == last_layer.FIVE}
    assert five == {name: ["rain", "dog", "siren"] for name in factories.LABELS}
    assert (found.value("icl", "llm", "top_1"), found.value("icl", "llm", "top_5")) == (1, 1)
    last_layer.evaluate(engine, "net", llm=llm)
    assert len(llm.asked) == 3


def test_an_llm_that_does_not_answer_leaves_the_evaluation_open(engine: sa.Engine, world: World) -> None:
    with pytest.raises(IncompleteError, match=r"no five names for 3 of 3 units \(head#0, head#1, head#2\)"):
        last_layer.evaluate(engine, "net", llm=LLM(GenerationError("no")))
    assert last_layer.evaluate(engine, "net", llm=LLM()).value("icl", "llm", "top_5") == 1
    assert last_layer.evaluate(engine, "net", ask=False).value("icl", "llm", "top_5") is None


def test_the_same_evaluation_is_not_computed_twice(engine: sa.Engine, world: World) -> None:
    first = last_layer.evaluate(engine, "net")
    asked = Encoder.asked
    assert asked > 0
    assert last_layer.evaluate(engine, "net") == first
    assert Encoder.asked == asked
    # another mapping is another evaluation
    class_mapping.classes(engine, "net", given={"siren": "dog"})
    second = last_layer.evaluate(engine, "net")
    assert second.experiment_id != first.experiment_id
    assert second.value("db", "cos_cubed", "top_1") == 1


def test_classes_without_a_concept_are_left_out_and_named(engine: sa.Engine) -> None:
    told = {"head#0": Told(closed={"db": ["dog", "rain"]}), "head#1": Told(closed={"db": ["dog"]})}
    make(engine, concepts=["dog", "rain"], told=told)
    found = last_layer.evaluate(engine, "net")
    assert found.unmapped == ["siren"]
    assert found.notes[0].startswith(
        "1 of 3 classes have no concept in 'concepts of net' and are left out: siren; name one"
    )
    assert {row["n"] for row in found.rows if row["over"] == "all"} == {2}
    assert found.value("db", "cos_cubed", "top_1") == 0.5


def test_a_unit_without_any_concept_is_a_miss(engine: sa.Engine) -> None:
    make(engine, told={"head#0": Told(closed={"db": ["dog"]})})
    found = last_layer.evaluate(engine, "net")
    assert found.value("db", "cos_cubed", "top_1") == pytest.approx(1 / 3)
    assert [row["n"] for row in found.rows if row["measure"] == "cosine_sentence" and row["over"] == "all"] == [1]


def test_without_held_out_clips_there_is_no_accuracy(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE networks SET trained_on = 'sounds of net'"))
    found = last_layer.evaluate(engine, "net")
    assert found.accuracy is None
    assert found.value("db", "cos_cubed", "top_1") == pytest.approx(2 / 3)
    assert any("names no held-out fold" in note for note in found.notes)


def test_what_the_last_layer_needs(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        other = factories.dissection(session, world.recording, world.concepts, {}, layers=["b00.ff_in"]).id
        plain = factories.dissection(session, world.recording, world.concepts, {}).id
    with pytest.raises(IncompleteError, match="does not cover the head of 'net'; run: andp dissect net"):
        last_layer.evaluate(engine, "net", dissection=other)
    with pytest.raises(InputError, match=r"no concepts picked by an LLM; run: andp dissect net .* --llm"):
        last_layer.evaluate(engine, "net", dissection=plain, llm=LLM())
    with pytest.raises(NotFoundError, match="nobody"):
        last_layer.evaluate(engine, "nobody")


def test_the_papers_tables() -> None:
    def row(similarity: str, measure: str, value: float, speaks: bool = False) -> dict[str, Any]:
        return {
            "method": "db", "similarity": similarity, "speaks": speaks, "over": "all", "measure": measure, "n": 10,
            "value": value, "low": value - 0.1, "high": value,
        }  # fmt: skip

    rows = [row("cos", m, v) for m, v in zip(last_layer.MEASURES, (0.9, 1.0, 0.95, 0.9), strict=True)]
    rows += [row("cos_cubed", m, v, True) for m, v in zip(last_layer.MEASURES, (0.8, 1.0, 0.85, 0.9), strict=True)]
    assert last_layer.table_7(rows) == [{"method": "db", "cos": "90 / 100 / 0.95", "cos_cubed": "80 / 100 / 0.85"}]
    stated, best = last_layer.table_2(rows)
    assert (stated["function"], stated["chosen"], stated["top_1"]) == ("cos_cubed", "stated", "80 % [70, 80]")
    assert (best["function"], best["chosen"], best["top_1"]) == ("cos", "best of 2", "90 % [80, 90]")
    paper, notes = last_layer.paper_table()
    assert {"network": "AST", "method": "db"}.items() <= paper[2].items()
    assert (paper[2]["cos_cubed"], paper[2]["soft_wpmi"]) == ("100 / 100 / 1.00", "2 / 10 / 0.24")
    assert any("defect" in note for note in notes)


# ---------------------------------------------------------------------- explanations


def scores(engine: sa.Engine) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = ask(
        engine,
        "SELECT l.name || '#' || n.unit AS neuron, s.* FROM explanation_scores s JOIN neurons n ON n.id = s.neuron_id"
        " JOIN layers l ON l.id = n.layer_id",
    )
    return {(row["neuron"], row["explanation"], row["reference"]): row for row in rows}


def labels(*names: str) -> np.ndarray:
    return np.array([factories.LABELS[i % 3] in names for i in range(12)])


def test_concepts_against_labels_are_what_scikit_learn_says(engine: sa.Engine, world: World) -> None:
    report = explanations.score(engine, "net", permutations=50)
    assert (report.computed, report.waiting, report.without_label) == (["b00.ff_in", "head"], [], [])
    found = scores(engine)
    for neuron, values, concept in (
        ("head#0", HEAD[0], "dog"), ("head#2", HEAD[2], "dog"), ("b00.ff_in#0", HIDDEN[0], "rain"),
        ("b00.ff_in#2", HIDDEN[2], "siren"),
    ):  # fmt: skip
        row, positives = found[neuron, "closed_db", "labels"], labels(concept)
        active = np.zeros(12, bool)
        active[np.argsort(-values, kind="stable")[:4]] = True
        assert (row["concept"], row["n_positive"]) == (concept, 4)
        assert row["auprc"] == pytest.approx(average_precision_score(positives, values), rel=1e-6)
        assert row["pearson"] == pytest.approx(np.corrcoef(values, positives)[0, 1], rel=1e-5)
        assert row["f1"] == pytest.approx(f1_score(positives, active), rel=1e-6)
        assert row["iou"] == pytest.approx(jaccard_score(positives, active), rel=1e-6)
        assert row["null_f1"] == pytest.approx(1 / 3, rel=1e-6)
        assert 1 / 51 - 1e-6 <= row["p_auprc"] <= 1
        best = found[neuron, "best_label", "labels"]
        every = {name: average_precision_score(labels(name), values) for name in factories.LABELS}
        assert (best["concept"], best["auprc"]) == (
            max(every, key=every.__getitem__),
            pytest.approx(max(every.values())),
        )
        assert best["p_pearson"] is None
        assert best["null_auprc"] == pytest.approx(row["null_auprc"])  # every label is a concept here
    assert found["head#0", "closed_icl", "labels"]["auprc"] == found["head#0", "closed_db", "labels"]["auprc"]
    assert not any(neuron == "b00.ff_in#1" for neuron, *_ in found), "the same activation everywhere"


def test_concepts_against_scores(engine: sa.Engine, world: World) -> None:
    """Two positives: K is 2, and 5 % of twelve clips is one."""
    explanations.score(engine, "net", permutations=50)
    row = scores(engine)["head#1", "closed_db", "scores"]
    column = world.p[:, 1]
    positives = np.zeros(12, bool)
    positives[np.argsort(-column, kind="stable")[:2]] = True
    assert (row["concept"], row["n_positive"]) == ("rain", 2)
    assert row["auprc"] == pytest.approx(average_precision_score(positives, HEAD[1]), rel=1e-6)
    assert row["pearson"] == pytest.approx(np.corrcoef(HEAD[1], column)[0, 1], rel=1e-5)


def test_a_summary_is_scored_on_the_clips_it_was_not_made_of(engine: sa.Engine, world: World) -> None:
    explanations.score(engine, "net", permutations=50)
    row = scores(engine)["head#1", "summary", "scores"]
    order = np.argsort(-HEAD[1], kind="stable")
    low = np.argsort(HEAD[1], kind="stable")[:2]
    unseen = np.array([clip for clip in range(12) if clip not in {*order[:2], *low}])
    encoder = Encoder()
    captions = encoder.embed_texts([f"the sound of a {factories.LABELS[i % 3]}" for i in range(12)])
    cosine = (captions @ encoder.embed_texts(["Rain falls on a high-pitched metal roof."])[0])[unseen]
    positives = np.zeros(8, bool)
    positives[np.argsort(-cosine, kind="stable")[:2]] = True
    assert (row["concept"], row["n_positive"]) == (None, 2)
    assert row["auprc"] == pytest.approx(average_precision_score(positives, HEAD[1][unseen]), rel=1e-6)
    assert row["pearson"] == pytest.approx(np.corrcoef(HEAD[1][unseen], cosine)[0, 1], rel=1e-4)
    assert ("b00.ff_in#2", "summary", "scores") not in scores(engine), "its summary is empty"


def test_clips_without_a_label_and_clips_of_two(engine: sa.Engine) -> None:
    world = make(engine)
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE clips SET labels = '{}' WHERE path LIKE '%00000.wav'"))
        session.execute(sa.text("UPDATE clips SET labels = '{siren,Dog}' WHERE path LIKE '%00002.wav'"))
    explanations.score(engine, "net", permutations=20)
    row = scores(engine)["head#0", "closed_db", "labels"]
    assert world.probing.n_clips == 12
    positives = labels("dog")
    positives[2] = True
    assert row["n_positive"] == 4
    assert row["auprc"] == pytest.approx(average_precision_score(positives[1:], HEAD[0][1:]), rel=1e-6)


def test_concepts_that_are_no_label_have_no_score_against_labels(engine: sa.Engine) -> None:
    make(engine, concepts=["dog", "thunder"], told={"head#0": Told(closed={"db": ["thunder", "dog"]})})
    report = explanations.score(engine, "net", permutations=20)
    assert report.without_label == ["thunder"]
    found = scores(engine)
    assert ("head#0", "closed_db", "labels") not in found
    assert found["head#0", "closed_db", "scores"]["concept"] == "thunder"


def test_the_same_scores_are_not_computed_twice(
    engine: sa.Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = explanations.score(engine, "net", permutations=50)
    before = ask(engine, "SELECT * FROM explanation_scores ORDER BY 1, 2, 3, 4")
    monkeypatch.setattr(explanations, "_Judge", None)  # would fail if it were needed
    again = explanations.score(engine, "net", permutations=50)
    assert (again.experiment_id, again.computed, again.reused) == (first.experiment_id, [], ["b00.ff_in", "head"])
    assert ask(engine, "SELECT * FROM explanation_scores ORDER BY 1, 2, 3, 4") == before


def test_other_labels_or_another_mapping_are_scored_anew(engine: sa.Engine, world: World) -> None:
    first = explanations.score(engine, "net", permutations=50).experiment_id
    shown = "SELECT closed_db_auprc AS shown FROM neuron_descriptions WHERE neuron = 'head#0'"
    before = ask(engine, shown)
    class_mapping.classes(engine, "net", given={"rain": "dog"})
    second = explanations.score(engine, "net", permutations=50)
    assert (second.experiment_id != first, second.computed) == (True, ["b00.ff_in", "head"])
    assert ask(engine, shown) != before
    class_mapping.classes(engine, "net", given={"rain": ""})
    assert explanations.score(engine, "net", permutations=50).experiment_id == first
    assert ask(engine, shown) == before  # asked for again, it is the latest
    evaluated = last_layer.evaluate(engine, "net").experiment_id
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE clips SET labels = '{rain}' WHERE labels[1] = 'siren'"))
    assert explanations.score(engine, "net", permutations=50).experiment_id not in (first, second.experiment_id)
    assert last_layer.evaluate(engine, "net").experiment_id != evaluated


def test_a_scoring_that_was_killed_goes_on_where_it_was(
    engine: sa.Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = explanations._write

    def once(engine: sa.Engine, about: Any, experiment: int, layer: Any, columns: Any) -> None:
        if layer.name == "head":
            raise KeyboardInterrupt
        write(engine, about, experiment, layer, columns)

    with monkeypatch.context() as patch:
        patch.setattr(explanations, "_write", once)
        with pytest.raises(KeyboardInterrupt):
            explanations.score(engine, "net", permutations=50)
    assert {neuron.split("#")[0] for neuron, *_ in scores(engine)} == {"b00.ff_in"}
    assert ask(engine, "SELECT best_label FROM neuron_descriptions WHERE neuron = 'b00.ff_in#0'") == [
        {"best_label": None}
    ]
    report = explanations.score(engine, "net", permutations=50)
    assert (report.computed, report.reused, report.waiting) == (["head"], ["b00.ff_in"], [])
    killed = ask(engine, "SELECT * FROM explanation_scores ORDER BY 2, 3, 4")
    with db.transaction(engine) as session:
        session.execute(sa.delete(Experiment))
    explanations.score(engine, "net", permutations=50)
    whole = ask(engine, "SELECT * FROM explanation_scores ORDER BY 2, 3, 4")
    for row in (*killed, *whole):
        del row["experiment_id"]
    assert killed == whole


def test_one_layer_alone_and_then_the_rest(engine: sa.Engine, world: World) -> None:
    with pytest.raises(IncompleteError, match="have not been scored; run: andp eval explanations net"):
        explanations.by_layer(engine, "net")
    report = explanations.score(engine, "net", layers=["h*"], permutations=50)
    assert (report.computed, report.waiting) == (["head"], ["b00.ff_in"])
    assert {row["layer"] for row in explanations.by_layer(engine, "net")} == {"head"}
    assert explanations.score(engine, "net", permutations=50).computed == ["b00.ff_in"]
    with pytest.raises(InputError, match=r"has no layer 'b9\*'; it covers: b00.ff_in, head"):
        explanations.score(engine, "net", layers="b9*")
    with pytest.raises(InputError, match="0 permutations say nothing"):
        explanations.score(engine, "net", permutations=0)


def test_layers_in_numbers(engine: sa.Engine, world: World) -> None:
    explanations.score(engine, "net", permutations=200)
    rows = {(row["layer"], row["explanation"], row["reference"]): row for row in explanations.by_layer(engine, "net")}
    row = rows["head", "closed_db", "labels"]
    each = [scores(engine)[f"head#{unit}", "closed_db", "labels"] for unit in range(3)]
    assert row["auprc"] == pytest.approx([one["auprc"] for one in each])
    assert (row["n"], row["n_scored"]) == (3, 3)
    assert row["mean_auprc"] == pytest.approx(np.mean(row["auprc"]))
    assert row["median_auprc"] == pytest.approx(np.median(row["auprc"]))
    # Benjamini and Hochberg by hand: the largest k with p(k) <= k / 3 x 0.05
    p = np.sort([one["p_auprc"] for one in each])
    assert row["share_significant"] == max([0, *[k for k in (1, 2, 3) if p[k - 1] < k / 3 * 0.05]]) / 3
    assert [row["explanation"] for row in explanations.by_layer(engine, "net", layers="head")] == [
        "best_label", "closed_db", "closed_db", "closed_icl", "summary",
    ]  # fmt: skip
    top = explanations.by_neuron(engine, "net", limit=2)
    assert len(top) == 2
    assert top[0]["auprc"] >= top[1]["auprc"]
    assert "n = 6 neurons, 12 clips" in explanations.footer(engine, "net", list(rows.values()))


def test_neuron_descriptions_show_the_scores_of_the_latest_complete_scoring(engine: sa.Engine, world: World) -> None:
    explanations.score(engine, "net", permutations=50)
    explanations.score(engine, "net", permutations=60)
    explanations.score(engine, "net", permutations=70, layers="head")  # not complete
    latest = ask(engine, "SELECT id FROM experiments WHERE status = 'complete' ORDER BY id DESC LIMIT 1")[0]["id"]
    kept = {
        (row["explanation"], row["reference"]): row
        for row in ask(
            engine, "SELECT * FROM explanation_scores WHERE experiment_id = :id AND neuron_id = :neuron",
            id=latest, neuron=world.neurons["head#0"],
        )
    }  # fmt: skip
    shown = {row["neuron"]: row for row in ask(engine, "SELECT * FROM current_neuron_descriptions")}
    assert len(shown) == 7
    row, label = shown["head#0"], kept["closed_db", "labels"]
    assert [row[f"closed_db_{name}"] for name in ("auprc", "pearson", "f1", "iou", "p")] == [
        label[name] for name in ("auprc", "pearson", "f1", "iou", "p_auprc")
    ]
    assert row["closed_icl_auprc"] == kept["closed_icl", "labels"]["auprc"]
    assert row["closed_tab_auprc"] is None
    assert [row[name] for name in ("best_label", "best_label_auprc", "best_label_p")] == [
        kept["best_label", "labels"][name] for name in ("concept", "auprc", "p_auprc")
    ]
    summary = kept["summary", "scores"]
    assert [row[f"summary_{name}"] for name in ("pearson", "auprc", "p")] == [
        summary[name] for name in ("pearson", "auprc", "p_auprc")
    ]
    assert shown["b00.ff_in#1"]["best_label"] is None
    columns = list(row)
    assert columns[25:27] == ["recording_id", "closed_db_auprc"], "what was there before keeps its place"


def test_what_explanations_need(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        session.execute(sa.delete(DissectionRecipe).where(DissectionRecipe.stage == "score.db"))
    with pytest.raises(IncompleteError, match=r"has no stage 'score\.db'"):
        explanations.score(engine, "net", permutations=20)


# ---------------------------------------------------------------------- each query


def test_each_query_finds_something(engine: sa.Engine, world: World) -> None:
    evaluated = last_layer.evaluate(engine, "net").experiment_id
    scored = explanations.score(engine, "net", permutations=20).experiment_id
    encoder = embed.embed_texts(engine, Encoder(), [])
    dissection, head = world.dissection.id, world.layers["head"].id
    with db.reading(engine) as session:
        stages = factories.stage_recipes(session, world.dissection)
        assert [row.class_name for row in queries.head_units(session, dissection=dissection)] == list(factories.LABELS)
        assert len(queries.head_matches(session, dissection=dissection)) == 10
        assert len(queries.last_layer_measures(session, experiment=evaluated)) == 16
        assert len(queries.last_layer_names(session, experiment=evaluated)) == 6
        assert queries.clip_labels(session, probing_set=world.probing.id)[:2] == [["dog"], ["rain"]]
        assert len(queries.best_concepts(session, dissection=dissection, layer=head)) == 6
        assert queries.summarised_units(
            session, calibrate_recipe=stages["calibrate"], encoder=encoder, layer=head
        ) == [0, 1, 2]  # fmt: skip
        captioned = queries.captioned_clips(session, probing_set=world.probing.id, caption_recipe=stages["caption"])
        assert [row.position for row in captioned] == list(range(12))
        assert queries.explanation_layers(session, experiment=scored, layers=["head"])
        assert queries.explanation_neurons(session, experiment=scored, layers=None, n=3)
