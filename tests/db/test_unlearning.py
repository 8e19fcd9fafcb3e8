"""Plans, ablations, sweeps and exports, on a network whose logits can be worked out by hand (tests/hand_network.py)."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.networks import shared_passes
from and_platform.errors import ConfigError, IncompleteError, InputError, NotFoundError
from and_platform.queries import unlearning as queries
from and_platform.schema import Ablation, AblationPlan, Clip, Dissection, Experiment, TextEmbedding
from and_platform.services import ablations, class_mapping, experiments
from and_platform.services.held_out import held_out
from and_platform.services.progress import Silent
from and_platform.services.unlearning import export, plans, runs, sweep, tables
from and_platform.services.unlearning.plans import Options
from tests import factories, hand_network
from tests.factories import Told

DOG, RAIN, SIREN = range(3)


class Listener(Silent):
    """Keeps what is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def hand(engine: sa.Engine, tmp_path: Path) -> sa.Engine:
    """A database with the network `hand`, dissected."""
    hand_network.world(engine, tmp_path)
    return engine


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The selections that were really evaluated."""
    seen: list[Any] = []
    real = shared_passes.ablated_logits

    def spy(network: Any, selections: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(selections)
        return real(network, selections, *args, **kwargs)

    monkeypatch.setattr(shared_passes, "ablated_logits", spy)
    yield seen


def named(engine: sa.Engine, plan: plans.Plan) -> list[str]:
    return [row["neuron"] for row in plans.neurons(engine, plan.id)]


def count(engine: sa.Engine, table: Any) -> int:
    with db.reading(engine) as session:
        return session.scalars(sa.select(sa.func.count()).select_from(table)).one()


def world(
    engine: sa.Engine, layers: dict[str, int] | None = None, told: dict[str, Told] | None = None
) -> factories.World:
    """A dissection of a network of several hidden layers; nothing on disk."""
    with db.transaction(engine) as session:
        return factories.world(session, layers=layers or {"b00.ff_in": 6, "b01.ff_in": 8, "head": 3}, told=told or {
            "b00.ff_in#1": Told(
                points=["A dog."], terms=[("dog", "noun")], closed={"db": ["rain", "siren", "dog"], "icl": ["dog"]}
            ),
            "b00.ff_in#4": Told(points=["A dog barks."], terms=[("dog", "noun"), ("bark", "verb")], closed={"db": ["dog"]}),
            "b01.ff_in#2": Told(points=["Many dogs."], terms=[("dog", "noun")], closed={"db": ["siren"]}),
            "b01.ff_in#7": Told(points=["Heavy rain."], terms=[("rain", "noun")], closed={"db": ["rain"]}),
            "head#0": Told(points=["Dogs bark."], terms=[("dog", "noun")], closed={"db": ["dog"], "icl": ["dog"]}),
        })  # fmt: skip


# ---------------------------------------------------------------------- plans


def test_open_takes_hidden_neurons_with_the_word_those_of_which_least_else_is_said_first(engine: sa.Engine) -> None:
    world(engine)
    plan = plans.make(engine, "net", "dog")
    assert set(named(engine, plan)[:2]) == {"b00.ff_in#1", "b01.ff_in#2"} and named(engine, plan)[2:] == ["b00.ff_in#4"]
    assert (plan.n_neurons, plan.per_layer, plan.n_hidden) == (3, {"b00.ff_in": 2, "b01.ff_in": 1}, 14)
    assert (plan.target, plan.target_unit, plan.is_new) == ("dog", DOG, True)
    assert [row["why"] for row in plans.neurons(engine, plan.id)] == [
        "terms: dog (of 1 open concepts)", "terms: dog (of 1 open concepts)", "terms: dog (of 2 open concepts)"
    ]  # fmt: skip


def test_closed_sets_take_neurons_whose_best_concepts_it_is_among(engine: sa.Engine) -> None:
    world(engine)
    assert named(engine, plans.make(engine, "net", "dog", "closed_db")) == ["b00.ff_in#4", "b00.ff_in#1"]
    assert named(engine, plans.make(engine, "net", "dog", "closed_db", top=2)) == ["b00.ff_in#4"]
    assert named(engine, plans.make(engine, "net", "dog", "closed_icl")) == ["b00.ff_in#1"]
    plan = plans.make(engine, "net", "dog", "closed_db")
    assert [row["why"] for row in plans.neurons(engine, plan.id)] == [
        "rank 1 of db, cos_cubed",
        "rank 3 of db, cos_cubed",
    ]


def test_meaning_takes_the_nearest_summaries_as_many_as_open(engine: sa.Engine) -> None:
    made = world(engine)
    with db.transaction(engine) as session:
        encoder = factories.encoder(session)
        calibrations = factories.calibrations_of(session, made.dissection)
        near = {"b00.ff_in#1": 1, "b00.ff_in#4": 3, "b01.ff_in#2": 2, "b01.ff_in#7": 4, "head#0": 0}
        factories.embed_summaries(
            session, encoder, 3, {calibrations[made.neurons[name]]: [1, far, 0] for name, far in near.items()}
        )
        factories.embed_text(session, encoder, "dog", [1, 0, 0])
    plan = plans.make(engine, "net", "dog", "meaning")
    assert named(engine, plan) == ["b00.ff_in#1", "b01.ff_in#2", "b00.ff_in#4"]
    assert named(engine, plans.make(engine, "net", "dog", "meaning", max_neurons=1)) == ["b00.ff_in#1"]
    assert plans.neurons(engine, plan.id)[0]["why"] == "cosine 0.71 to: A dog."
    with db.reading(engine) as session:
        assert queries.texts_without_vector(session, dissection=made.dissection.id, texts=["dog", "hiss"]) == ["hiss"]
        assert (
            session.scalars(sa.select(sa.func.count()).select_from(TextEmbedding)).one() == 1
        )  # nothing was encoded again


def test_random_is_the_same_for_a_seed_and_never_of_the_head(engine: sa.Engine) -> None:
    world(engine)
    one, other = plans.make(engine, "net", strategy="random", max_neurons=5, seed=1), plans.make(
        engine, "net", strategy="random", max_neurons=5, seed=2
    )  # fmt: skip
    assert len(named(engine, one)) == len(set(named(engine, one))) == 5
    assert named(engine, one) != named(engine, other)
    assert plans.make(engine, "net", strategy="random", max_neurons=5, seed=1).id == one.id
    every = plans.make(engine, "net", strategy="random")
    assert (every.max_neurons, every.n_neurons) == (3000, 14)
    assert not any(name.startswith("head") for name in named(engine, every))
    assert named(engine, every) == _by_md5("0", {"b00.ff_in": 6, "b01.ff_in": 8})


def _by_md5(seed: str, layers: dict[str, int]) -> list[str]:
    """The order in which a seed draws, in any database."""
    import hashlib

    names = [f"{layer}#{unit}" for layer, n in layers.items() for unit in range(n)]
    return sorted(names, key=lambda name: hashlib.md5(f"{seed}{name}".encode(), usedforsecurity=False).hexdigest())


def test_random_matched_draws_as_many_of_each_layer(engine: sa.Engine) -> None:
    world(engine)
    chosen = plans.make(engine, "net", "dog")
    drawn = [
        plans.make(engine, "net", strategy="random_matched", compared_with=chosen.id, seed=seed) for seed in range(4)
    ]
    assert all(plan.per_layer == chosen.per_layer == {"b00.ff_in": 2, "b01.ff_in": 1} for plan in drawn)
    assert all((plan.target, plan.compared_with_id) == ("dog", chosen.id) for plan in drawn)
    assert len({tuple(sorted(named(engine, plan))) for plan in drawn}) > 1
    first = set(_by_md5("0", {"b00.ff_in": 6})[:2] + _by_md5("0", {"b01.ff_in": 8})[:1])
    assert set(named(engine, drawn[0])) == first
    assert plans.make(engine, "net", "dog", "random_matched", seed=3).id == drawn[3].id


def test_layers_and_a_limit_narrow_a_plan(engine: sa.Engine) -> None:
    world(engine)
    assert named(engine, plans.make(engine, "net", "dog", layers="b01.*")) == ["b01.ff_in#2"]
    assert named(engine, plans.make(engine, "net", "dog", layers="b07.*, b01.ff_in")) == ["b01.ff_in#2"]
    assert len(named(engine, plans.make(engine, "net", "dog", max_neurons=2))) == 2
    with pytest.raises(InputError, match=r"no hidden layer .* matches 'head'; there are: b00\.ff_in, b01\.ff_in"):
        plans.make(engine, "net", "dog", layers="head")


def test_words_decide_for_a_concept_of_several(engine: sa.Engine) -> None:
    world(engine, told={
        "b00.ff_in#1": Told(points=["A kick drum."], terms=[("kick", "noun"), ("drum", "noun")]),
        "b00.ff_in#2": Told(points=["A snare drum."], terms=[("snare", "noun"), ("drum", "noun")]),
        "b00.ff_in#3": Told(points=["A drum, a kick."], terms=[("kick", "noun"), ("drum", "noun")]),
    })  # fmt: skip
    found = {words: set(named(engine, plans.make(engine, "net", "kick_drum", words=words))) for words in plans.WORDS}
    assert found == {
        "any": {"b00.ff_in#1", "b00.ff_in#2", "b00.ff_in#3"}, "all": {"b00.ff_in#1", "b00.ff_in#3"}, "phrase": {"b00.ff_in#1"}
    }  # fmt: skip


def test_the_same_arguments_give_the_same_plan(engine: sa.Engine) -> None:
    world(engine)
    first = plans.make(engine, "net", "Dog")
    again = plans.make(engine, "net", "dog")
    assert (again.id, again.is_new, count(engine, AblationPlan)) == (first.id, False, 1)
    assert plans.make(engine, "net", "dog", words="all").id != first.id


def test_a_class_that_no_neuron_responds_to_gives_a_plan_of_none(engine: sa.Engine) -> None:
    world(engine)
    plan = plans.make(engine, "net", "siren")
    assert (plan.target, plan.n_neurons, plan.per_layer, named(engine, plan)) == ("siren", 0, {}, [])
    assert plans.make(engine, "net", strategy="random_matched", compared_with=plan.id).n_neurons == 0


def test_the_listing_counts_by_layer(engine: sa.Engine) -> None:
    world(engine)
    plans.make(engine, "net", "dog", max_neurons=3)
    plans.make(engine, "net", "dog", "random_matched", seed=4)
    rows = plans.listing(engine, "net")
    assert [(row["strategy"], row["seed"], row["neurons"], row["per_layer"]) for row in rows] == [
        ("open", None, 3, {"b00.ff_in": 2, "b01.ff_in": 1}), ("open", None, 3, {"b00.ff_in": 2, "b01.ff_in": 1}),
        ("random_matched", 4, 3, {"b00.ff_in": 2, "b01.ff_in": 1}),
    ]  # fmt: skip
    assert rows[0]["options"] == "words any, at most 3" and rows[2]["compared_with"] == rows[1]["plan"]


@pytest.mark.parametrize(
    ("concept", "options", "message"),
    [
        ("dgo", {}, "'dgo' is no class, and no summary has it among its open concepts; did you mean: dog"),
        ("rian", {"strategy": "closed_db"}, "'rian' is not in the concept set 'concepts of net' .*did you mean: rain"),
        ("zzz", {"strategy": "closed_db"}, "see: andp concepts show concepts of net"),
        ("dog", {"strategy": "nearest"}, "no strategy 'nearest'; choose from: open, closed_db"),
        ("dog", {"words": "some"}, "no value of words 'some'"),
        ("dog", {"max_neurons": 0}, "the number of neurons is 0; give at least 1"),
        ("dog", {"seed": 3}, "'open' draws nothing"),
        (" ", {}, "the concept is empty"),
        (None, {}, "'open' needs a concept"),
        (None, {"strategy": "random_matched"}, "random_matched needs a plan to compare with"),
        (None, {"strategy": "random", "compared_with": 1}, "a plan to compare with is for random_matched"),
        ("dog", {"strategy": "random_matched", "layers": "b00*"}, "from the same layers: give that"),
    ],
)
def test_bad_input_is_told(engine: sa.Engine, concept: str | None, options: dict[str, Any], message: str) -> None:
    world(engine)
    with pytest.raises(InputError, match=message):
        plans.make(engine, "net", concept, **options)


def test_what_is_missing_is_named(engine: sa.Engine) -> None:
    world(engine)
    with pytest.raises(IncompleteError, match=r"without the method tab, .* run: andp dissect net .* --audio-encoder"):
        plans.make(engine, "net", "dog", "closed_tab")
    with pytest.raises(IncompleteError, match="have no vectors, which meaning needs; run: andp dissect net"):
        plans.make(engine, "net", "dog", "meaning")
    with pytest.raises(NotFoundError, match="no plan 99; see: andp unlearn plans net"):
        plans.make(engine, "net", strategy="random_matched", compared_with=99)
    drawn = plans.make(engine, "net", strategy="random")
    with pytest.raises(InputError, match="is drawn at random itself"):
        plans.make(engine, "net", strategy="random_matched", compared_with=drawn.id)


def test_a_dissection_of_the_head_alone_has_nothing_to_ablate(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        made = factories.world(session)
        only = factories.dissection(session, made.recording, made.concepts, factories.TOLD, layers=["head"])
        identity = only.id
    with pytest.raises(
        InputError, match="covers no hidden layer, and the head is never ablated; run: andp dissect net"
    ):
        plans.make(engine, "net", "dog", dissection=identity)


# ---------------------------------------------------------------------- runs


def test_changes_are_those_worked_out_by_hand(hand: sa.Engine) -> None:
    report = runs.run(hand, "hand", concept="dog")
    assert (report.measured, report.reused, report.left_out, report.caution) == (1, 0, {}, None)
    (row,) = tables.overview(hand, report.ablations)
    # Without unit 0 dogs fall from 6 x to 2 x: 3 and 1.5 to 1 and 0.5. Without unit 3 rain falls from 6 to 4.
    assert (row["n_neurons"], row["n_parameters"]) == (2, 8)
    assert (row["d_a"], row["d_r"], row["gap"]) == (-1.5, -2.0, -0.5)
    by_class = {one["class"]: one for one in tables.classes(hand, report.ablations[0])}
    assert [by_class[name]["clips"] for name in hand_network.CLASSES] == [2, 1, 0]
    assert [by_class["dog"][f"logit_{when}"] for when in ("before", "after", "change")] == [2.25, 0.75, -1.5]
    assert [by_class["rain"][f"logit_{when}"] for when in ("before", "after")] == [6.0, 4.0]
    assert by_class["siren"]["logit_before"] is None and by_class["siren"]["accuracy_after"] is None
    before = np.mean([_softmax(3.0), _softmax(1.5)])
    after = np.mean([_softmax(1.0), _softmax(0.5)])
    assert by_class["dog"]["probability_before"] == pytest.approx(before, rel=1e-6)
    assert by_class["dog"]["probability_after"] == pytest.approx(after, rel=1e-6)
    assert by_class["dog"]["is_target"] and not by_class["rain"]["is_target"]


def _softmax(logit: float) -> float:
    """Probability of a class with this logit beside two of 0."""
    return float(np.exp(logit) / (np.exp(logit) + 2))


def test_accuracies_are_shares_of_clips(hand: sa.Engine) -> None:
    report = runs.run(hand, "hand", concept="rain", strategies=["closed_db"])  # units 0, 2, 3: nothing of rain is left
    (row,) = tables.overview(hand, report.ablations)
    assert (row["n_neurons"], row["d_a"], row["d_r"], row["gap"]) == (3, -6.0, -1.5, 4.5)
    assert (row["target_accuracy_before"], row["target_accuracy_after"]) == (1.0, 0.0)
    assert (row["rest_accuracy_before"], row["rest_accuracy_after"]) == (1.0, 1.0)
    with db.reading(hand) as session:
        whole = session.execute(sa.text("SELECT n_clips, accuracy_before, accuracy_after FROM ablation_overview")).one()
    assert tuple(whole) == (3, 1.0, pytest.approx(2 / 3))


def test_each_class_gives_table_4(hand: sa.Engine) -> None:
    listener = Listener()
    report = runs.run(hand, "hand", each_class=True, strategies=["open", "closed_db"], progress=listener)
    assert report.left_out == {"no held-out clip": ["siren"]}
    assert "left out, since no held-out clip is of them: siren" in listener.notes
    rows = {row["strategy"]: row for row in tables.table4(hand, "hand")}
    # open: a dog loses 0 and 3, rain 2 and 3: -6 of rain, nothing of dogs. closed_db: 0; and 0, 2, 3.
    assert [rows["open"][name] for name in ("targets", "neurons", "d_a", "d_r", "gap")] == [2, 2.0, -3.75, -1.0, 2.75]
    assert [rows["closed_db"][name] for name in ("targets", "neurons", "d_a", "d_r", "gap")] == [
        2,
        2.0,
        -3.75,
        -0.75,
        3.0,
    ]
    assert (rows["open"]["gap_low"], rows["open"]["gap_high"]) == (-0.5, 6.0)  # of two classes: one of them twice
    assert rows["open"]["held_out_clips"] == 3 and rows["open"]["status"] == "complete"
    with db.reading(hand) as session:
        kept = session.get_one(Experiment, report.experiment_id).figures
    assert kept["classes_without_clips"] == ["siren"] and kept["clips_without_class"] == {"thunder": 1}


def test_random_is_averaged_over_seeds_and_evaluated_once_for_all_targets(
    hand: sa.Engine, evaluated: list[Any]
) -> None:
    report = runs.run(
        hand, "hand", each_class=True, strategies=["random"], seeds=[0, 1, 2], options=Options(random_neurons=2)
    )
    assert (len(report.ablations), report.measured, len(evaluated)) == (6, 3, 3)
    (row,) = tables.table4(hand, "hand")
    assert (row["targets"], row["seeds"], row["neurons"]) == (2, 3, 2.0)
    cells = tables.by_target(hand, report.experiment_id)
    assert row["gap"] == pytest.approx(np.mean([cell["gap"] for cell in cells]))
    with db.reading(hand) as session:  # the same neurons for both targets: what one calls dA the other calls dR
        found = session.execute(
            sa.text("SELECT seed, target, d_a, d_r FROM ablation_overview ORDER BY seed, target")
        ).all()
    for (_, _, d_a, d_r), (_, _, other_a, other_r) in zip(found[::2], found[1::2], strict=True):
        assert (d_a, d_r) == (other_r, other_a)


def test_nothing_is_measured_twice(hand: sa.Engine, evaluated: list[Any]) -> None:
    first = runs.run(hand, "hand", each_class=True, strategies=["open", "random_matched"], seeds=[0, 1])
    assert first.measured == len(evaluated) == 6
    again = runs.run(hand, "hand", each_class=True, strategies=["open", "random_matched"], seeds=[0, 1])
    assert (again.experiment_id, again.ablations, again.measured) == (first.experiment_id, first.ablations, 0)
    more = runs.run(hand, "hand", each_class=True, strategies=["open", "random_matched"], seeds=[0, 1, 2])
    assert (more.experiment_id, more.measured, len(evaluated)) == (first.experiment_id, 2, 8)
    one = runs.run(hand, "hand", concept="rain", strategies=["open"])
    assert one.measured == 0 and one.ablations[0] in first.ablations
    # Another option makes another experiment; the plan of a dog is the same by either, and so is what it does.
    other = runs.run(hand, "hand", concept="dog", strategies=["open"], options=Options(top=1))
    assert (other.experiment_id != first.experiment_id, other.measured, len(evaluated)) == (True, 0, 8)
    assert tables.overview(hand, other.ablations)[0]["gap"] == -0.5


def test_a_plan_can_be_run_by_number(hand: sa.Engine) -> None:
    matched = plans.make(hand, "hand", "rain", "random_matched", seed=5)
    report = runs.run(hand, "hand", plan=matched.id)
    (row,) = tables.overview(hand, report.ablations)
    assert (row["plan_id"], row["strategy"], row["seed"], row["concept"]) == (matched.id, "random_matched", 5, "rain")
    same = runs.run(hand, "hand", concept="rain", strategies=["random_matched"], seeds=[5])
    assert (same.ablations, same.measured) == (report.ablations, 0)
    assert tables.find(hand, "hand", "Rain", "random_matched") == report.ablations[0]


def test_a_concept_that_is_no_class_has_no_gap_but_changes_by_class(engine: sa.Engine, tmp_path: Path) -> None:
    hand_network.world(
        engine, tmp_path, {**hand_network.TOLD, "hidden#4": Told(points=["A hiss."], terms=[("hiss", "noun")])}
    )
    listener = Listener()
    plans.make(engine, "hand", "hiss")
    report = runs.run(engine, "hand", concept="hiss", progress=listener)
    (row,) = tables.overview(engine, report.ablations)
    assert (row["concept"], row["is_class"], row["n_neurons"]) == ("hiss", False, 1)
    assert (row["d_a"], row["gap"], row["d_r"]) == (None, None, 0.0)
    assert any("'hiss' is no class of 'hand': dA and the gap are undefined" in note for note in listener.notes)
    other = runs.run(engine, "hand", concept="dogs")  # neither a class: each has an experiment of its own
    assert other.experiment_id != report.experiment_id and tables.overview(engine, other.ablations)[0]["n_neurons"] == 2


def test_a_plan_of_no_neurons_changes_nothing(engine: sa.Engine, tmp_path: Path) -> None:
    hand_network.world(
        engine, tmp_path, {"hidden#0": Told(points=["A dog."], terms=[("dog", "noun")], closed={"db": ["dog"]})}
    )
    runs.run(engine, "hand", each_class=True, strategies=["open", "random_matched"], seeds=[0])
    rows = {row["strategy"]: row for row in tables.table4(engine, "hand")}
    assert (rows["open"]["empty_plans"], rows["open"]["neurons"], rows["open"]["gap"]) == (1, 0.5, 0.75)
    assert rows["random_matched"]["empty_plans"] == 1


def test_classes_without_a_concept_are_named(hand: sa.Engine) -> None:
    with db.transaction(hand) as session:
        about = experiments.subject(session, "hand")
        session.execute(sa.text("UPDATE concepts SET name = 'drizzle', original_name = 'drizzle' WHERE name = 'rain'"))
        assert plans.targets(session, about)[RAIN].concept is None
    listener = Listener()
    report = runs.run(hand, "hand", each_class=True, strategies=["closed_db"], progress=listener)
    why = "closed_db: no concept of 'classes' stands for it"
    assert report.left_out == {"no held-out clip": ["siren"], why: ["rain"]}
    assert f"left out of {why}: rain" in listener.notes
    class_mapping.classes(hand, "hand", given={"rain": "drizzle"})
    mapped = runs.run(hand, "hand", each_class=True, strategies=["closed_db"])
    assert (mapped.experiment_id != report.experiment_id, mapped.measured) == (True, 1)  # the dog's was known
    assert named(hand, plans.make(hand, "hand", "drizzle", "closed_db")) == named(
        hand, plans.make(hand, "hand", "rain", "closed_db")
    )


def test_a_stopped_run_goes_on_where_it_was(
    hand: sa.Engine, evaluated: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "AT_ONCE", 1)
    spied, calls = shared_passes.ablated_logits, Counter[str]()

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 3:
            raise KeyboardInterrupt
        return spied(*args, **kwargs)

    monkeypatch.setattr(shared_passes, "ablated_logits", dies)
    asked: dict[str, Any] = {"each_class": True, "strategies": ["open", "closed_db"]}
    with pytest.raises(KeyboardInterrupt):
        runs.run(hand, "hand", **asked)
    assert count(hand, Ablation) == 2
    assert tables.table4(hand, "hand")[0]["status"] == "running"
    report = runs.run(hand, "hand", **asked)
    assert (report.measured, report.reused, count(hand, Ablation), len(evaluated)) == (2, 2, 4, 4)
    assert tables.table4(hand, "hand")[0]["status"] == "complete"


def test_the_default_strategies_are_those_with_data(hand: sa.Engine) -> None:
    report = runs.run(hand, "hand", each_class=True, seeds=[0])
    assert [row["strategy"] for row in tables.table4(hand, "hand")] == ["random", "random_matched", "closed_db", "open"]
    assert len(report.ablations) == 8


@pytest.mark.parametrize(
    ("command", "options", "ablated"),
    [(runs.run, {"strategies": ["open", "closed_db"]}, 4), (sweep.run, {"points": (), "draws": 3}, 8)],
)
def test_two_at_once_evaluate_everything_once(
    hand: sa.Engine, monkeypatch: pytest.MonkeyPatch, command: Any, options: dict[str, Any], ablated: int
) -> None:
    evaluate, evaluated, started, waiter = shared_passes.ablated_logits, list[Any](), threading.Event(), Listener()
    waits = "waiting for another run of the same experiment"

    def slow(network: Any, selections: Any, *args: Any, **kwargs: Any) -> Any:
        evaluated.extend(selections)
        started.set()
        end = time.monotonic() + 60
        while waits not in waiter.notes and time.monotonic() < end:
            time.sleep(0.02)
        return evaluate(network, selections, *args, **kwargs)

    monkeypatch.setattr(shared_passes, "ablated_logits", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(command, hand, "hand", each_class=True, **options)
        assert started.wait(60)
        second = pool.submit(command, hand, "hand", each_class=True, **options, progress=waiter)
        assert (first.result().measured, second.result().measured) == (ablated, 0)
    assert waits in waiter.notes and len(evaluated) == ablated


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, InputError, "say what to unlearn"),
        ({"concept": "dog", "each_class": True}, InputError, "one of them"),
        ({"concept": "siren"}, InputError, "no held-out clip is of 'siren'"),
        ({"concept": "dog", "fold": 9}, InputError, "no clip of 'levels' is in fold 9"),
        ({"each_class": True, "strategies": []}, InputError, "give at least one strategy"),
        ({"each_class": True, "strategies": ["random"], "seeds": []}, InputError, "one seed for the random ones"),
        ({"each_class": True, "matched_to": "random"}, InputError, "cannot be matched to 'random'"),
        ({"each_class": True, "strategies": ["closed_tab"]}, IncompleteError, "without the method tab"),
        ({"concept": "dog", "device": "quantum"}, ConfigError, "the device is 'quantum'"),
        ({"plan": 77}, NotFoundError, "no plan 77"),
    ],
)
def test_runs_refuse_what_cannot_be(
    hand: sa.Engine, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        runs.run(hand, "hand", **options)


def test_reading_what_is_not_there_says_what_to_run(hand: sa.Engine) -> None:
    with pytest.raises(
        NotFoundError, match="nothing was unlearned of 'hand' yet; run: andp unlearn run hand --each-class"
    ):
        tables.table4(hand, "hand")
    with pytest.raises(NotFoundError, match="no ablation 5; see: andp unlearn list NETWORK"):
        tables.classes(hand, 5)
    with pytest.raises(NotFoundError, match="run: andp unlearn run hand --concept 'dog' --strategy open"):
        tables.find(hand, "hand", "dog", "open")
    with pytest.raises(NotFoundError, match="run: andp unlearn sweep hand --each-class --strategy open"):
        sweep.rows(hand, "hand")


def test_another_fold_is_another_experiment_with_a_caution(hand: sa.Engine) -> None:
    first = runs.run(hand, "hand", concept="dog")
    listener = Listener()
    other = runs.run(hand, "hand", concept="dog", fold=2, progress=listener)
    assert other.experiment_id != first.experiment_id and other.measured == 1
    assert "caution: 'hand' was trained on fold 2" in listener.notes
    assert tables.overview(hand, other.ablations)[0]["d_a"] == -2.0  # one dog at 0.5: 3 to 1


# ---------------------------------------------------------------------- sweeps


def test_a_sweep_compares_the_first_neurons_with_draws_from_their_layers(hand: sa.Engine) -> None:
    report = sweep.run(hand, "hand", concept="dog", points=[1, 50], draws=20)
    assert (report.measured, report.reused) == (42, 0)
    one, two = sweep.rows(hand, "hand", concept="dog")
    assert [(row["size"], row["n_neurons"], row["whole_plan"], row["draws"]) for row in (one, two)] == [
        (1, 1, False, 20), (2, 2, True, 20)
    ]  # fmt: skip
    assert (one["d_a"], one["d_r"], one["gap"]) == (-1.5, 0.0, 1.5)  # unit 0 alone, of which nothing else is said
    assert (two["d_a"], two["d_r"], two["gap"]) == (-1.5, -2.0, -0.5)
    with db.reading(hand) as session:
        drawn = session.execute(
            sa.text("SELECT gap FROM ablation_overview WHERE strategy = 'random_matched' AND size = 1 ORDER BY seed")
        ).scalars().all()  # fmt: skip
    # One unit of six: 0 and 1 are the dog's, 2 and 3 rain's, 4 and 5 nobody's here.
    of_unit = {0: 1.5, 1: 0.75, 2: -4.0, 3: -2.0, 4: 0.0, 5: 0.0}
    expected = [of_unit[int(_by_md5(str(seed), {"hidden": 6})[0].split("#")[1])] for seed in range(20)]
    assert drawn == expected
    assert one["draws_gap"] == pytest.approx(np.mean(expected))
    assert (one["draws_gap_low"], one["draws_gap_high"]) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))
    assert one["margin"] == pytest.approx(1.5 - np.mean(expected))
    assert one["p"] == (1 + sum(gap >= 1.5 for gap in expected)) / 21


def test_draws_of_a_seed_are_nested_and_matched_by_layer(engine: sa.Engine) -> None:
    world(engine)
    plan = plans.make(engine, "net", "dog")
    with db.reading(engine) as session:
        first = queries.first_units(session, plan=plan.id, sizes=[1, 2, 3])
        drawn = queries.matched_units(session, plan=plan.id, sizes=[1, 2, 3], seeds=[0, 12])
    assert {size: sum(map(len, units.values())) for size, units in first.items()} == {1: 1, 2: 2, 3: 3}
    for seed in (0, 12):
        for size in (1, 2, 3):
            assert {layer: len(units) for layer, units in drawn[size, seed].items()} == {
                layer: len(units) for layer, units in first[size].items()
            }
        for layer, units in drawn[1, seed].items():
            assert set(units) <= set(drawn[2, seed][layer]) <= set(drawn[3, seed][layer])


def test_each_class_gives_the_margin_with_its_interval(hand: sa.Engine, evaluated: list[Any]) -> None:
    listener = Listener()
    report = sweep.run(hand, "hand", each_class=True, points=(), draws=3, progress=listener)
    assert report.left_out == {"no held-out clip": ["siren"]} and report.measured == len(evaluated) == 8
    rows = sweep.rows(hand, "hand")
    assert [(row["target"], row["whole_plan"]) for row in rows] == [("dog", True), ("rain", True)]
    over = sweep.margin(rows)
    assert over is not None and (over["targets"], over["draws"], over["gap"]) == (2, 3, 2.75)
    margins = [row["margin"] for row in rows]
    assert over["margin"] == pytest.approx(np.mean(margins)) and (over["low"], over["high"]) == pytest.approx(
        (min(margins), max(margins))
    )
    again = sweep.run(hand, "hand", each_class=True, points=(), draws=3)
    assert (again.measured, again.reused, again.experiment_id) == (0, 8, report.experiment_id)
    more = sweep.run(hand, "hand", each_class=True, points=[1], draws=4)
    assert more.measured == 2 * (5 + 5) - 8
    assert sweep.margin([]) is None


def test_a_stopped_sweep_goes_on(hand: sa.Engine, evaluated: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "AT_ONCE", 4)
    spied, calls = shared_passes.ablated_logits, Counter[str]()

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 2:
            raise RuntimeError("killed")
        return spied(*args, **kwargs)

    monkeypatch.setattr(shared_passes, "ablated_logits", dies)
    with pytest.raises(RuntimeError, match="killed"):
        sweep.run(hand, "hand", concept="dog", points=[1], draws=5)
    assert count(hand, Ablation) == 4
    report = sweep.run(hand, "hand", concept="dog", points=[1], draws=5)
    assert (report.measured, report.reused, len(evaluated)) == (8, 4, 12)


def test_sweeps_need_something_to_sweep(hand: sa.Engine) -> None:
    with pytest.raises(InputError, match="there is nothing to sweep: no held-out clip"):
        sweep.run(hand, "hand", concept="siren")
    with pytest.raises(InputError, match="chosen by concept, not 'random'"):
        sweep.run(hand, "hand", concept="dog", strategy="random")
    with pytest.raises(InputError, match="at least 1 draw"):
        sweep.run(hand, "hand", concept="dog", draws=0)
    with pytest.raises(InputError, match="one of them"):
        sweep.run(hand, "hand")


@pytest.mark.parametrize(
    ("n_neurons", "n_hidden", "points"),
    [(875, 4608, [25, 50, 100, 200, 400, 800, 875]), (8, 4608, [8]), (2808, 55296, [200, 400, 800, 1600, 2808])],
)
def test_default_points_suit_small_and_big_networks(n_neurons: int, n_hidden: int, points: list[int]) -> None:
    assert sweep.default_points(n_neurons, n_hidden) == points


# ---------------------------------------------------------------------- export and the rest


def test_a_mask_can_be_taken_out(hand: sa.Engine, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    plan = plans.make(hand, "hand", "dog")
    report = export.export(hand, plan.id, tmp_path / "mask", mask_only=True)
    assert (report.neurons, report.parameters, report.stock, report.files) == (
        2,
        8,
        None,
        ["mask.json", "mask.safetensors"],
    )
    assert load_file(tmp_path / "mask" / "mask.safetensors")["hidden"].tolist() == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    told = json.loads((tmp_path / "mask" / "mask.json").read_text("utf-8"))
    assert told["about"]["concept"] == "dog" and told["layers"]["hidden"]["units"] == [0, 3]
    with pytest.raises(InputError, match="not both"):
        export.export(hand, plan.id, tmp_path / "x", structured=True, mask_only=True)
    empty = plans.make(hand, "hand", "siren")
    with pytest.raises(InputError, match="has no neurons, so there is nothing to take out"):
        export.export(hand, empty.id, tmp_path / "x")


def test_the_papers_table_is_printed_with_where_it_is_off() -> None:
    rows, notes = tables.printed()
    assert {
        "network": "AST (paper)",
        "strategy": "open",
        "neurons": 2808,
        "d_a": -10.73,
        "d_r": -6.83,
        "gap": 3.9,
    } in rows
    assert len(rows) == 12 and any("2,210 neurons" in note for note in notes)


def test_every_query_of_unlearning_finds_something(hand: sa.Engine) -> None:
    report = runs.run(hand, "hand", each_class=True, seeds=[0])
    swept = sweep.run(hand, "hand", each_class=True, points=(), draws=1)
    plan = plans.make(hand, "hand", "dog")
    with Session(hand) as session:
        dissection = plan.dissection_id
        calibration = factories.stage_recipes(session, session.get_one(Dissection, dissection))["calibrate"]
        encoder = factories.encoder(session)
        factories.embed_summaries(
            session, encoder, 3, {session.scalars(sa.text("SELECT id FROM calibrations LIMIT 1")).one(): [1, 0, 0]}
        )
        assert queries.hidden_layers(session, dissection=dissection) == {"hidden": 6}
        assert queries.has_summary_vectors(session, calibrate_recipe=calibration)
        assert queries.texts_without_vector(session, dissection=dissection, texts=["a hiss"]) == ["a hiss"]
        assert queries.open_terms(session, dissection=dissection, concept="dogs") == [("dog", True), ("rain", False)]
        assert queries.plan_rows(session, plan=plan.id)[0]["per_layer"] == {"hidden": 2}
        assert queries.plan_units(session, plans=[plan.id]) == {plan.id: {"hidden": [0, 3]}}
        assert [row["rank"] for row in queries.plan_neurons(session, plan=plan.id)] == [1, 2]
        assert queries.first_units(session, plan=plan.id, sizes=[1]) == {1: {"hidden": [0]}}
        assert len(queries.matched_units(session, plan=plan.id, sizes=[1], seeds=[0])) == 1
        for kind, experiment in (("unlearning", report.experiment_id), ("sweep", swept.experiment_id)):
            (found,) = queries.unlearning_experiments(session, dissection=dissection, kind=kind)
            assert (found["id"], found["n_targets"], found["status"]) == (experiment, 2, "complete")
        assert len(queries.measured_units(session, experiment=report.experiment_id)) == 8
        assert len(queries.target_changes(session, experiment=report.experiment_id)) == 8
        assert len(queries.table_4(session, experiment=report.experiment_id)) == 4
        assert len(queries.ablation_rows(session, dissection=dissection, kinds=["unlearning"])) == 8
        assert len(queries.ablation_by_class(session, ablation=report.ablations[0])) == 3
        one = queries.one_ablation(session, ablation=report.ablations[0])
        assert one is not None and one["dataset"] == "levels"
        assert len(queries.sweep_points(session, experiment=swept.experiment_id, strategy="open")) == 2
        other = experiments.begin(
            session,
            experiments.subject(session, "hand"),
            experiments.plan(
                experiments.subject(session, "hand"),
                "unlearning",
                clips=held_out(session, experiments.subject(session, "hand")).sha256,
            ),
        )
        assert queries.copy_known_ablations(
            session, experiment=other.id, plans=[plan.id], strategies=["open"], targets=[DOG], seeds=[None]
        ) == 1  # fmt: skip


def test_other_labels_of_the_same_clips_are_measured_anew(hand: sa.Engine) -> None:
    first = runs.run(hand, "hand", concept="dog")
    swept = sweep.run(hand, "hand", concept="dog", points=(), draws=1)
    with db.transaction(hand) as session:
        about = experiments.subject(session, "hand")
        held = [clip for clip in held_out(session, about).clips if clip.unit == RAIN]
        session.execute(sa.update(Clip).where(Clip.id == held[0].clip_id).values(labels=["dog"]))
    again = runs.run(hand, "hand", concept="dog")
    assert (again.experiment_id != first.experiment_id, again.measured) == (True, 1)
    assert sweep.run(hand, "hand", concept="dog", points=(), draws=1).experiment_id != swept.experiment_id
    with db.reading(hand) as session:
        clips = [session.get_one(Ablation, run.ablations[0]).n_clips for run in (first, again)]
    assert clips[1][DOG] == clips[0][DOG] + 1


def test_a_plan_for_another_concept_does_not_stand_for_the_class(hand: sa.Engine) -> None:
    old = plans.make(hand, "hand", "rain", "closed_db")
    class_mapping.classes(hand, "hand", given={"rain": "dog"})
    by_number = runs.run(hand, "hand", plan=old.id)
    run = runs.run(hand, "hand", concept="rain", strategies=["closed_db"])
    (row,) = tables.overview(hand, run.ablations)
    assert row["plan_id"] == plans.make(hand, "hand", "rain", "closed_db").id != old.id
    assert by_number.experiment_id != run.experiment_id


def test_names_are_found_however_they_are_written(hand: sa.Engine) -> None:
    with db.transaction(hand) as session:
        session.execute(sa.text("UPDATE networks SET classes = '{Dog_bark,rain,siren}'"))
        session.execute(sa.text("UPDATE clips SET labels = '{dog-bark}' WHERE labels[1] = 'dog'"))
    report = runs.run(hand, "hand", concept="dog bark")
    assert tables.find(hand, "hand", "dog bark", "open") == report.ablations[0]
