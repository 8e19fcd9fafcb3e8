"""Features of neurons: views, order of ablation, experiments that are kept, on hand-made words and a tiny real network."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from and_platform import api, db
from and_platform.backends import audio
from and_platform.backends.networks import shared_passes
from and_platform.errors import IncompleteError, InputError, NotFoundError
from and_platform.queries import features as queries
from and_platform.services import ablations, experiments, features, networks
from and_platform.services.held_out import decoded, held_out
from tests import factories, tiny
from tests.factories import Told, World

LAYERS = {"b00.ff_in": 4, "b01.ff_in": 3, "head": 3}
HIDDEN = [(layer, unit) for layer, units in LAYERS.items() if layer != "head" for unit in range(units)]

WORDS = {
    "b00.ff_in#0": Told(
        points=["A loud clear sound of a dog.", "It ends."],
        terms=[("loud", "adjective"), ("clear", "adjective"), ("dog", "noun")],
    ),
    "b00.ff_in#1": Told(
        points=["A loud clear dramatic edible thing near us."],
        terms=[
            ("loud", "adjective"),
            ("clear", "adjective"),
            ("dramatic", "adjective"),
            ("edible", "adjective"),
            ("near", "preposition"),
        ],
    ),
    "b01.ff_in#0": Told(
        points=["Dramatic rain falls on a dog."],
        terms=[("dramatic", "adjective"), ("rain", "noun"), ("dog", "noun"), ("fall", "verb")],
    ),
    "b01.ff_in#2": Told(points=["Loud."], terms=[("loud", "adjective")]),
    "head#0": Told(points=["A loud dog."], terms=[("loud", "adjective"), ("dog", "noun")]),
}
"""Nothing is said of b00.ff_in#2, b00.ff_in#3, b01.ff_in#1, head#1 and head#2; edible was refused."""

N_CLIPS = 4
# Units of a layer, clips 0 to 3: the two most active clips are 3 and 2, 0 and 1, 1 and 2; the last neuron is constant.
ACTIVE = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 9, 8, 0], [5, 5, 5, 5]])


def make(session: Any, **options: Any) -> World:
    values = {layer: ACTIVE[:units] for layer, units in LAYERS.items()}
    return factories.world(session, layers=LAYERS, n_clips=N_CLIPS, values=values, told=WORDS, **options)


@pytest.fixture(scope="module")
def shared(shared_engine: sa.Engine) -> World:
    with db.transaction(shared_engine) as session:
        found = make(session)
        # clips 0 to 3: amplitudes 1, 2, 4, 8; median frequencies 100, 200, none, none
        session.execute(sa.text(
            "UPDATE clips c SET mean_abs_amplitude = 2 ^ m.position,"
            " median_frequency_hz = CASE WHEN m.position < 2 THEN 100 * (m.position + 1) END"
            " FROM probing_set_clips m WHERE m.clip_id = c.id"
        ))  # fmt: skip
        return found


def ask(engine: sa.Engine, query: str) -> list[tuple[Any, ...]]:
    with db.reading(engine) as session:
        return [tuple(row) for row in session.execute(sa.text(query))]


# ---------------------------------------------------------------------- counting


def test_adjective_counts(shared_engine: sa.Engine, shared: World) -> None:
    found = ask(shared_engine, "SELECT * FROM adjective_counts ORDER BY n_neurons DESC, adjective")
    told = [(d, network, word, n, times, round(share, 6)) for d, network, word, n, times, share in found]
    identity = shared.dissection.id
    assert told == [
        (identity, "net", "loud", 4, 4, 0.4),
        (identity, "net", "clear", 2, 2, 0.2),
        (identity, "net", "dramatic", 2, 2, 0.2),
    ]


def test_layers_outside_the_dissection_do_not_count(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        found = make(session)
        few = factories.dissection(session, found.recording, found.concepts, WORDS, layers=["b01.ff_in", "head"])
    counts = ask(engine, f"SELECT adjective, n_neurons, share::numeric(5, 3)::float FROM adjective_counts"
                 f" WHERE dissection_id = {few.id} ORDER BY 1")  # fmt: skip
    assert counts == [("dramatic", 1, 0.167), ("loud", 2, 0.333)]
    assert len(ask(engine, f"SELECT 1 FROM neuron_word_counts WHERE dissection_id = {few.id}")) == 6
    with db.reading(engine) as session:
        assert queries.dissected_neurons(session, dissection=few.id) == (6, 3)
        assert queries.open_words(session, dissection=few.id, part_of_speech="noun") == {"dog": 2, "rain": 1}


def test_neuron_word_counts(shared_engine: sa.Engine, shared: World) -> None:
    found = ask(
        shared_engine,
        "SELECT neuron, n_nouns, n_adjectives, n_verbs, n_prepositions, n_words FROM neuron_word_counts ORDER BY neuron_id",
    )
    assert found == [
        ("b00.ff_in#0", 1, 2, 0, 0, 9), ("b00.ff_in#1", 0, 3, 0, 1, 8), ("b00.ff_in#2", 0, 0, 0, 0, 0),
        ("b00.ff_in#3", 0, 0, 0, 0, 0), ("b01.ff_in#0", 2, 1, 1, 0, 6), ("b01.ff_in#1", 0, 0, 0, 0, 0),
        ("b01.ff_in#2", 0, 1, 0, 0, 1), ("head#0", 1, 1, 0, 0, 3), ("head#1", 0, 0, 0, 0, 0), ("head#2", 0, 0, 0, 0, 0),
    ]  # fmt: skip


def test_adjectives(shared_engine: sa.Engine, shared: World) -> None:
    rows = features.adjectives(shared_engine, ["net"], top=2)
    assert [(row["rank"], row["adjective"], row["n_neurons"], round(row["share"], 6)) for row in rows] == [
        (1, "loud", 4, 0.4), (2, "clear", 2, 0.2),
    ]  # fmt: skip
    assert (rows[0]["of_neurons"], rows[0]["dataset"]) == (10, "sounds of net")
    assert len(features.adjectives(shared_engine, ["net"], top=None)) == 3
    with pytest.raises(NotFoundError, match="no network 'nobody'"):
        features.adjectives(shared_engine, ["nobody"])
    with pytest.raises(InputError, match="one network"):
        features.adjectives(shared_engine, ["net", "other"], dissection=shared.dissection.id)


def test_blocks_with_the_head_in_the_last(shared_engine: sa.Engine, shared: World) -> None:
    rows, (fit,) = features.blocks(shared_engine, ["net"])
    assert [(row["block"], row["n_neurons"], row["mean"]) for row in rows] == [(0, 4, 1.25), (1, 6, 0.5)]
    assert (fit["n_neurons"], fit["n_blocks"]) == (10, 2)
    assert (fit["slope"], fit["intercept"]) == pytest.approx((-0.75, 1.25))
    assert fit["slope_low"] < -0.75 < fit["slope_high"]
    # the line over neurons goes through the means of two blocks
    assert [row["fitted"] for row in rows] == pytest.approx([1.25, 0.5])


def test_one_block_has_no_line_and_no_block_no_figure(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        factories.world(session)
        factories.world(session, name="flat", layers={"conv": 2, "head": 3}, told={})
    rows, (fit,) = features.blocks(engine, ["net"])
    assert [(row["block"], row["n_neurons"], row["fitted"]) for row in rows] == [(0, 7, None)]
    assert fit["slope"] is None and fit["p"] is None
    with pytest.raises(InputError, match="'flat' has no layers in blocks"):
        features.blocks(engine, ["flat"])


def test_a_dissection_without_terms_says_what_to_run(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        make(session)
        session.execute(sa.text("DELETE FROM dissection_recipes WHERE stage = 'extract'"))
    for call in (
        lambda: features.adjectives(engine, ["net"]),
        lambda: features.blocks(engine, ["net"]),
        lambda: features.acoustics(engine, "net", "loud", "mdf"),
        lambda: features.ablate(engine, "net"),
    ):
        with pytest.raises(IncompleteError, match="run: andp dissect net"):
            call()


# ---------------------------------------------------------------------- which neurons are ablated


def drawn(neurons: list[tuple[str, int]], seed: int) -> list[tuple[str, int]]:
    """Neurons in the random order of a seed."""
    return sorted(neurons, key=lambda it: hashlib.md5(f"{seed}{it[0]}#{it[1]}".encode()).hexdigest())


def order(engine: sa.Engine, world: World, criterion: str, words: list[str], seed: int, n: int = 99) -> list[Any]:
    with db.reading(engine) as session:
        return queries.neurons_by_criterion(
            session, dissection=world.dissection.id, criterion=criterion, words=words, seed=seed, n=n
        )


BASIC = ["loud", "clear"]
COUNTS = {
    "nouns": {2: [("b01.ff_in", 0)], 1: [("b00.ff_in", 0)]},
    "adjectives": {
        3: [("b00.ff_in", 1)],
        2: [("b00.ff_in", 0)],
        1: [("b01.ff_in", 0), ("b01.ff_in", 2)],
    },
    "verbs": {1: [("b01.ff_in", 0)]},
    "prepositions": {1: [("b00.ff_in", 1)]},
    "length": {
        9: [("b00.ff_in", 0)],
        8: [("b00.ff_in", 1)],
        6: [("b01.ff_in", 0)],
        1: [("b01.ff_in", 2)],
    },
    "basic": {2: [("b00.ff_in", 0), ("b00.ff_in", 1)], 1: [("b01.ff_in", 2)]},
    "high_level": {1: [("b00.ff_in", 1), ("b01.ff_in", 0)]},
    "random": {},
}  # fmt: skip


@pytest.mark.parametrize("criterion", COUNTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_order_by_count_then_at_random_never_the_head(
    shared_engine: sa.Engine, shared: World, criterion: str, seed: int
) -> None:
    counts = COUNTS[criterion]
    counted = [it for tied in counts.values() for it in tied]
    ranked = counts | {0: [it for it in HIDDEN if it not in counted]}
    expected = [(*it, value) for value, tied in ranked.items() for it in drawn(tied, seed)]
    assert order(shared_engine, shared, criterion, BASIC, seed) == expected
    assert order(shared_engine, shared, criterion, BASIC, seed, n=3) == expected[:3]


def test_seeds_draw_differently(shared_engine: sa.Engine, shared: World) -> None:
    assert len({tuple(order(shared_engine, shared, "random", BASIC, seed)) for seed in range(6)}) == 6


def test_a_single_adjective_takes_only_neurons_that_have_it(shared_engine: sa.Engine, shared: World) -> None:
    loud = [("b00.ff_in", 0), ("b00.ff_in", 1), ("b01.ff_in", 2)]
    for seed in range(4):
        expected = [(*it, 1) for it in drawn(loud, seed)]
        assert order(shared_engine, shared, "adjective", ["loud"], seed) == expected  # all of them, and no more
        assert order(shared_engine, shared, "adjective", ["loud"], seed, n=2) == expected[:2]  # some of them, at random
    assert order(shared_engine, shared, "adjective", ["edible"], 0) == []  # the judge refused it


def test_neurons_with_features(shared_engine: sa.Engine, shared: World) -> None:
    with db.reading(shared_engine) as session:
        found = queries.neurons_with_features(
            session, dissection=shared.dissection.id, basic=BASIC, words=["dramatic", "absent"]
        )
    assert found == {
        "nouns": 2, "adjectives": 4, "verbs": 1, "prepositions": 1, "length": 4, "basic": 3, "high_level": 2, "random": 7,
        "adjective:loud": 3, "adjective:clear": 2, "adjective:dramatic": 2, "adjective:absent": 0,
    }  # fmt: skip


# ---------------------------------------------------------------------- acoustics


def test_neuron_acoustics(shared_engine: sa.Engine, shared: World) -> None:
    found = ask(
        shared_engine,
        "SELECT unit, is_constant, n_clips, mean_abs_amplitude, median_frequency_hz FROM neuron_acoustics"
        " WHERE layer = 'b00.ff_in' ORDER BY unit",
    )
    # the dissection's K is 2; clips without a median frequency are left out
    assert found == [(0, False, 2, 6, None), (1, False, 2, 1.5, 150), (2, False, 2, 3, 200), (3, True, 2, 1.5, 150)]


def test_acoustics(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        make(session)
        session.execute(sa.text(
            "UPDATE clips c SET mean_abs_amplitude = 2 ^ m.position,"
            " median_frequency_hz = CASE WHEN m.position < 2 THEN 100 * (m.position + 1) END"
            " FROM probing_set_clips m WHERE m.clip_id = c.id"
        ))  # fmt: skip
    told = features.acoustics(engine, "net", " Loud", "amplitude")
    # loud: b00#0, b00#1, b01#2, head#0; the others without b00#3, which is constant
    assert told["values"] == {"with": [6, 1.5, 3, 6], "without": [3, 6, 1.5, 1.5, 3]}
    assert {key: told[key] for key in ("n_with", "n_without", "neurons_left_out", "median_with", "median_without")} == {
        "n_with": 4, "n_without": 5, "neurons_left_out": 1, "median_with": 4.5, "median_without": 3,
    }  # fmt: skip
    # larger in 4.5 + 1 + 3 + 4.5 of 20 pairs
    assert (told["u"], told["rank_biserial"]) == pytest.approx((13, 0.3))
    assert told["mean_with"] == pytest.approx(4.125)
    assert told["caution"] is None and told["k"] == 2
    # kept: the second time nothing is computed
    first = ask(engine, "SELECT id, kind, status, completed_at, figures ->> 'u' FROM experiments")
    assert features.acoustics(engine, "net", "loud", "amplitude") == told
    assert ask(engine, "SELECT id, kind, status, completed_at, figures ->> 'u' FROM experiments") == first
    assert [row[1:3] for row in first] == [("word_acoustics", "complete")]
    by_frequency = features.acoustics(engine, "net", "loud", "mdf")
    assert by_frequency["experiment"] != told["experiment"]
    # neurons whose exemplars have no median frequency are left out: b00#0, b01#0, head#0
    assert by_frequency["values"] == {"with": [150, 200], "without": [200, 150, 150, 200]}


def test_acoustics_of_words_that_cannot_be_compared(shared_engine: sa.Engine, shared: World) -> None:
    with pytest.raises(NotFoundError, match="'lout' in C_open; did you mean: loud"):
        features.acoustics(shared_engine, "net", "lout", "amplitude")
    with pytest.raises(NotFoundError, match="common words: loud"):
        features.acoustics(shared_engine, "net", "xyzzy", "amplitude")
    with pytest.raises(InputError, match="1 neurons with 'rain'"):
        features.acoustics(shared_engine, "net", "rain", "amplitude")
    with pytest.raises(InputError, match="no measure 'pitch'"):
        features.acoustics(shared_engine, "net", "loud", "pitch")


def test_captions_made_of_measurements_are_told(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        make(session)
        session.execute(sa.text("UPDATE recipes SET backend = 'describer' WHERE stage = 'caption'"))
    assert "by construction" in features.acoustics(engine, "net", "loud", "amplitude")["caution"]


def test_measures_of_words() -> None:
    assert features.measures_of("loud") == ["amplitude"]
    assert features.measures_of("high-pitched") == ["mdf"]
    assert features.measures_of("loud", "mdf") == ["mdf"]
    assert features.measures_of("deep") == ["amplitude", "mdf"]


# ---------------------------------------------------------------------- ablation of a real network


class Notes:
    """What progress was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = self.done = 0

    @contextmanager
    def stage(self, _name: str, total: int | None, _unit: str) -> Iterator[Any]:
        self.total += total or 0

        def advance(n: int) -> None:
            self.done += n

        yield advance

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny.sounds(folder / "tones", 3)
    tiny.network(folder / "network")
    return folder


@pytest.fixture
def dissected(engine: sa.Engine, material: Path) -> sa.Engine:
    andp = api.Platform(engine)
    andp.ingest(material / "tones", processes=1)
    andp.add_network("tiny", material / "network")
    andp.dissect("tiny", dataset="tones")
    return engine


def test_ablate_a_real_network(dissected: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"criteria": ["adjectives", "adjective:clear", "adjective:purple", "random"], "shares": [5.0, 50.0],
             "seeds": [0, 1], "basic": ["Clear", "loud"]}  # fmt: skip
    evaluate, calls = shared_passes.ablated_logits, 0

    def twice(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(ablations, "AT_ONCE", 4)
    monkeypatch.setattr(shared_passes, "ablated_logits", twice)
    with pytest.raises(KeyboardInterrupt):
        features.ablate(dissected, "tiny", **asked)
    # four were kept at a time, those of a criterion: two criteria of four
    assert ask(dissected, "SELECT strategy, count(*) FROM ablations GROUP BY 1 ORDER BY 1") == [
        ("adjective:clear", 4), ("adjectives", 4),
    ]  # fmt: skip
    assert ask(dissected, "SELECT status FROM experiments") == [("running",)]
    calls = 10
    listener = Notes()
    rows = features.ablate(dissected, "tiny", **asked, progress=listener)
    assert calls == 12
    assert (listener.total, listener.done) == (8 * 9, 8 * 9)  # eight of sixteen, nine clips
    assert any("no hidden neuron has the adjective 'purple'" in note for note in listener.notes)
    assert any("not known what 'tiny' was trained on" in note for note in listener.notes)
    assert ask(dissected, "SELECT kind, status, figures ->> 'hidden_neurons' FROM experiments") == [
        ("feature_ablation", "complete", "56"),
    ]  # fmt: skip

    # again: the same rows, nothing evaluated; one seed more: that one only
    assert features.ablate(dissected, "tiny", **asked) == rows
    assert calls == 12
    more = features.ablate(dissected, "tiny", **{**asked, "criteria": ["random"], "seeds": [1, 2]})
    assert calls == 13
    assert more[0] == next(row for row in rows if row["criterion"] == "random" and row["seed"] == 1)
    assert ask(dissected, "SELECT count(*) FROM experiments") == [(1,)]
    assert ask(dissected, "SELECT count(*) FROM ablations") == [(16 + 2,)]

    assert [(row["criterion"], row["share"], row["seed"]) for row in rows] == [
        (criterion, share, seed) for criterion in asked["criteria"] for share in (5, 50) for seed in (0, 1)
    ]  # fmt: skip
    by_unit = {(row["criterion"], row["share"], row["seed"]): row for row in rows}
    assert [by_unit["random", share, 0]["n_neurons"] for share in (5, 50)] == [3, 28]
    assert by_unit["random", 5, 0]["actual_share"] == pytest.approx(300 / 56)
    absent = by_unit["adjective:purple", 50, 0]
    assert (absent["n_neurons"], absent["n_parameters"], absent["change"]) == (0, 0, 0)
    with db.reading(dissected) as session:
        about = experiments.subject(session, "tiny")
        counts = queries.neurons_with_features(session, dissection=about.dissection_id, basic=["clear"], words=[])
        clear = by_unit["adjective:clear", 50, 0]["n_neurons"]
        assert 0 < clear == min(28, counts["adjective:clear"])
        _check_figures(session, about, by_unit["random", 50, 1])


def _check_figures(session: Any, about: Any, row: dict[str, Any]) -> None:
    """The stored figures are those of the network with these units zeroed, evaluated in full."""
    chosen = held_out(session, about)
    loaded = networks.load(networks.find(session, "tiny"))
    selection: dict[str, list[int]] = {}
    for layer, unit, _ in queries.neurons_by_criterion(
        session, dissection=about.dissection_id, criterion="random", words=[], seed=1, n=28
    ):
        selection.setdefault(layer, []).append(unit)
    assert "head" not in selection
    batch = loaded.prepare([clip.waveform for clip in decoded(chosen, loaded.rate)])
    with loaded.ablated(selection):
        logits = loaded.forward(batch)
    assert logits is not None
    right = [int(z.argmax()) == clip.unit for z, clip in zip(logits, chosen.clips, strict=True)]
    assert row["accuracy"] == pytest.approx(sum(right) / len(right))
    probability = [float(z.softmax(-1)[clip.unit].detach()) for z, clip in zip(logits, chosen.clips, strict=True)]
    assert row["probability"] == pytest.approx(sum(probability) / len(right), abs=1e-5)
    sizes = {"b00.attn_out": 16 + 1, "b00.ff_in": 16 + 1, "b00.ff_out": 24 + 1}
    assert row["n_parameters"] == sum(sizes[layer] * len(units) for layer, units in selection.items())


def test_clips_are_decoded_once(dissected: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "AT_ONCE", 2)
    read = audio.decode
    paths: list[Path] = []

    def noted(path: Path, *args: Any) -> Any:
        paths.append(path)
        return read(path, *args)

    monkeypatch.setattr(audio, "decode", noted)
    features.ablate(dissected, "tiny", criteria=["random"], shares=[5, 10, 50], seeds=[0, 1])
    assert len(paths) == len(set(paths)) == 9


def test_two_at_once_evaluate_everything_once(dissected: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"criteria": ["random", "adjectives"], "shares": [5.0, 50.0], "seeds": [0, 1]}
    evaluate, evaluated, started, waiter = shared_passes.ablated_logits, list[Any](), threading.Event(), Notes()
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
        first = pool.submit(features.ablate, dissected, "tiny", **asked)
        assert started.wait(60)
        second = pool.submit(features.ablate, dissected, "tiny", **asked, progress=waiter)
        assert first.result() == second.result()
    assert waits in waiter.notes and len(evaluated) == 8


def test_ablate_refuses_what_it_cannot_do(shared_engine: sa.Engine, shared: World) -> None:
    for given, told in [
        ({"shares": [0]}, "above 0"), ({"shares": [101]}, "101 %"), ({"shares": []}, "at least one"),
        ({"seeds": []}, "at least one"), ({"criteria": ["noun"]}, "did you mean 'nouns'"), ({"basic": [" "]}, "--basic"),
        ({"fold": 9}, "fold 9"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=told):
            features.ablate(shared_engine, "net", **given)


def test_the_head_alone_cannot_be_ablated(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        found = make(session)
        head = factories.dissection(session, found.recording, found.concepts, WORDS, layers=["head"])
    with pytest.raises(InputError, match="no hidden layer"):
        features.ablate(engine, "net", dissection=head.id)
