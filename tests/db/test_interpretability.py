"""Clusters of sentences and uninterpretable neurons: exact counts, against plain Python, and what is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.clustering import Clusters
from and_platform.errors import IncompleteError, InputError, NotFoundError
from and_platform.queries import interpretability as queries
from and_platform.schema import Caption, CaptionSentence, Cluster, Clustering, ClusterSentence, Recipe
from and_platform.services import embed, interpretability
from and_platform.services.texts import text_ids
from tests import factories
from tests.factories import World

LAYERS = {"b00.ff_in": 2, "b01.ff_in": 1, "b01.ff_out": 1, "head": 1}

CLUSTERS: Sequence[Sequence[int]] = ([1], [1, 2], [2], [2, 3], [3], [], [1], [3])
"""Of the captions of clips 0 to 7; clip 5 has none."""

ORDERS = {
    "b00.ff_in#0": (0, 1, 6, 2, 3, 4, 7, 5),
    "b00.ff_in#1": (5, 0, 2, 4, 7, 6, 1, 3),
    "b01.ff_in#0": (4, 0, 7, 3, 2, 1, 5, 6),
    "b01.ff_out#0": (2, 3, 1, 5, 0, 6, 4, 7),
    "head#0": (4, 7, 3, 5, 6, 0, 1, 2),
}
"""The clips of each neuron, the most active first."""


def values() -> dict[str, Any]:
    """Activations that put the clips in that order."""
    found = {name: np.zeros((units, 8)) for name, units in LAYERS.items()}
    for neuron, order in ORDERS.items():
        layer, _, unit = neuron.partition("#")
        found[layer][int(unit), list(order)] = np.arange(8, 0, -1)
    return found


def caption_recipe(session: Session, world: World) -> int:
    return factories.stage_recipes(session, world.dissection)["caption"]


def say(session: Session, world: World, said: Mapping[int, Sequence[str]]) -> None:
    """Give the caption of the clip at each position these sentences; clips without any lose their caption."""
    recipe = caption_recipe(session, world)
    ids = text_ids(session, [text for texts in said.values() for text in texts])
    captions = dict(
        session.execute(
            sa.text(
                "SELECT m.position, c.id FROM probing_set_clips m JOIN captions c ON c.clip_id = m.clip_id"
                " WHERE m.probing_set_id = :probing AND c.recipe_id = :recipe"
            ),
            {"probing": world.probing.id, "recipe": recipe},
        ).all()
    )
    for position, texts in said.items():
        session.execute(sa.delete(CaptionSentence).where(CaptionSentence.caption_id == captions[position]))
        session.add_all(
            CaptionSentence(caption_id=captions[position], ordinal=i, text_id=ids[text]) for i, text in enumerate(texts)
        )
        if not texts:
            session.execute(sa.delete(Caption).where(Caption.id == captions[position]))
    session.flush()


def store(session: Session, world: World, of_sentence: Mapping[str, int], encoder: int) -> int:
    """A clustering with these memberships."""
    row = Clustering(
        recipe_id=factories.recipe(session, "cluster"), probing_set_id=world.probing.id,
        caption_recipe_id=caption_recipe(session, world), encoder_id=encoder, n_clusters=max(of_sentence.values()),
        chosen_by="given", seed=0, inertia=1.0, curve=[],
    )  # fmt: skip
    session.add(row)
    session.flush()
    ids = text_ids(session, list(of_sentence))
    session.add_all(
        ClusterSentence(clustering_id=row.id, text_id=ids[text], cluster=cluster)
        for text, cluster in of_sentence.items()
    )
    session.flush()
    return row.id


@pytest.fixture(scope="module")
def made(shared_engine: sa.Engine) -> tuple[World, int]:
    """The world above, and its clustering."""
    with db.transaction(shared_engine) as session:
        world = factories.world(session, layers=LAYERS, n_clips=8, values=values(), told={})
        # Twice in a caption, and in several captions: memberships do not add up.
        say(session, world, {i: [f"sentence {c}" for c in of for _ in range(2)] for i, of in enumerate(CLUSTERS)})
        clustering = store(session, world, {f"sentence {c}": c for c in (1, 2, 3)}, factories.encoder(session))
        queries.insert_clusters(session, clustering=clustering, words={c: {"rain": c, "wind": 9} for c in (1, 2, 3)})
        return world, clustering


def ask(engine: sa.Engine, query: str, **params: Any) -> list[Any]:
    with db.reading(engine) as session:
        return list(session.execute(sa.text(query), params).all())


def by_hand(order: Sequence[int], clusters: Sequence[Sequence[int]], k: int) -> tuple[int, int | None]:
    """The definition, word for word: exemplars that share a cluster, at most, and which."""
    shared = {c: sum(c in clusters[clip] for clip in order[:k]) for of in clusters for c in of}
    best = max(shared.values(), default=0)
    return best, min((c for c, n in shared.items() if n == best), default=None) if best else None


# ---------------------------------------------------------------------- agreement


def test_agreement_counts_exemplars_that_share_a_cluster(shared_engine: sa.Engine, made: tuple[World, int]) -> None:
    world, clustering = made
    found = ask(
        shared_engine, "SELECT neuron_id, k, agreement, cluster FROM neuron_agreement(:c, :d, '{1,3,5}')",
        c=clustering, d=world.dissection.id,
    )  # fmt: skip
    names = {identity: name for name, identity in world.neurons.items()}
    told = {(names[row.neuron_id], row.k): (row.agreement, row.cluster) for row in found}
    # Worked out on paper. Of equal counts the cluster of the lower number.
    assert told == {
        ("b00.ff_in#0", 1): (1, 1), ("b00.ff_in#0", 3): (3, 1), ("b00.ff_in#0", 5): (3, 1),
        ("b00.ff_in#1", 1): (0, None), ("b00.ff_in#1", 3): (1, 1), ("b00.ff_in#1", 5): (2, 3),
        ("b01.ff_in#0", 1): (1, 3), ("b01.ff_in#0", 3): (2, 3), ("b01.ff_in#0", 5): (3, 3),
        ("b01.ff_out#0", 1): (1, 2), ("b01.ff_out#0", 3): (3, 2), ("b01.ff_out#0", 5): (3, 2),
        ("head#0", 1): (1, 3), ("head#0", 3): (3, 3), ("head#0", 5): (3, 3),
    }  # fmt: skip
    assert told == {(name, k): by_hand(order, CLUSTERS, k) for name, order in ORDERS.items() for k in (1, 3, 5)}


def test_k_is_what_there_is(shared_engine: sa.Engine, made: tuple[World, int]) -> None:
    """Eight clips: K = 10 and K = 20 are both K = 8; a K below 1 is none."""
    world, clustering = made
    found = ask(
        shared_engine, "SELECT DISTINCT k FROM neuron_agreement(:c, :d, '{-1,0,5,10,20,100}') ORDER BY k",
        c=clustering, d=world.dissection.id,
    )  # fmt: skip
    assert [row.k for row in found] == [5, 8]


@pytest.mark.parametrize(
    ("clustering", "dissection", "message", "hint"),
    [
        (999, None, "no clustering 999", "andp interpretability list"),
        (None, 999, "no dissection 999", "andp dissections list"),
    ],
)
def test_what_is_not_there_is_said(
    shared_engine: sa.Engine,
    made: tuple[World, int],
    clustering: int | None,
    dissection: int | None,
    message: str,
    hint: str,
) -> None:
    world, there = made
    with pytest.raises(sa.exc.DBAPIError, match=message) as caught:
        ask(
            shared_engine, "SELECT * FROM uninterpretable_neurons(:c, :d)",
            c=clustering or there, d=dissection or world.dissection.id,
        )  # fmt: skip
    assert isinstance(caught.value.orig, psycopg.Error)
    assert hint in (caught.value.orig.diag.message_hint or "")


# ---------------------------------------------------------------------- shares


def test_uninterpretable_neurons_by_layer_for_all_tau_and_k(shared_engine: sa.Engine, made: tuple[World, int]) -> None:
    world, clustering = made
    found = ask(
        shared_engine, "SELECT * FROM uninterpretable_neurons(:c, :d, '{3,5}')", c=clustering, d=world.dissection.id
    )
    told = {(row.layer, row.k, row.tau): (row.n_uninterpretable, row.n_neurons, row.share) for row in found}
    assert len(told) == len(found) == 4 * (3 + 5)
    assert [told["b00.ff_in", 3, tau] for tau in (1, 2, 3)] == [(0, 2, 0.0), (1, 2, 0.5), (1, 2, 0.5)]
    assert [told["b00.ff_in", 5, tau][0] for tau in (1, 2, 3, 4, 5)] == [0, 0, 1, 2, 2]
    assert [told["b01.ff_in", 3, tau][0] for tau in (1, 2, 3)] == [0, 0, 1]
    assert [told["b01.ff_in", 5, tau][0] for tau in (1, 2, 3, 4, 5)] == [0, 0, 0, 1, 1]
    assert [told["head", 5, tau][0] for tau in (1, 2, 3, 4, 5)] == [0, 0, 0, 1, 1]
    # The head counts with the last block, and stays the head.
    assert {(row.layer, row.block, row.layer_kind) for row in found} == {
        ("b00.ff_in", 0, "ff_in"), ("b01.ff_in", 1, "ff_in"), ("b01.ff_out", 1, "ff_out"), ("head", 1, "head"),
    }  # fmt: skip


def test_blocks_add_their_layers_up_with_wilson_intervals(shared_engine: sa.Engine, made: tuple[World, int]) -> None:
    world, clustering = made
    rows = interpretability.blocks(shared_engine, [world.network.name], ks=(3, 5))
    told = {(row["block"], row["layer_kind"], row["k"], row["tau"]): row for row in rows}
    assert [told[0, "all", 5, tau]["n_uninterpretable"] for tau in (2, 3, 4)] == [0, 1, 2]
    assert [told[1, "all", 3, tau]["n_uninterpretable"] for tau in (1, 2, 3)] == [0, 0, 1]
    assert told[1, "all", 3, 3]["n_neurons"] == 3
    assert told[1, "head", 3, 3]["n_neurons"] == 1
    assert (1, "attn_out", 3, 3) not in told
    for row in rows:
        interval = binomtest(row["n_uninterpretable"], row["n_neurons"]).proportion_ci(method="wilson")
        assert row["share"] == row["n_uninterpretable"] / row["n_neurons"]
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert row["low"] <= row["share"] <= row["high"]
        assert (row["clustering_id"], row["n_clusters"], row["network"]) == (clustering, 3, world.network.name)
    # Of one clip alone: only clip 5 shares nothing.
    alone = interpretability.blocks(shared_engine, [world.network.name], ks=(1,))
    assert alone[0]["chance"] == pytest.approx(1 / 8)
    assert interpretability.footer(rows).endswith("(3 clusters) · n = 5 neurons")


def test_rows_at_tau_and_k(shared_engine: sa.Engine, made: tuple[World, int]) -> None:
    rows = interpretability.blocks(shared_engine, [made[0].network.name])
    assert {(row["k"], row["tau"]) for row in interpretability.at(rows, 4, 5)} == {(5, 4)}
    assert {(row["k"], row["tau"]) for row in interpretability.at(rows, 8, 20)} == {(8, 8)}
    with pytest.raises(InputError, match="tau is 9 of K = 8"):
        interpretability.at(rows, 9, 10)
    with pytest.raises(InputError, match="K is 6, but these rows are of K = 5, 8"):
        interpretability.at(rows, 3, 6)


@pytest.fixture
def scratch(shared_engine: sa.Engine, made: tuple[World, int]) -> Iterator[Session]:
    """A session on the shared world; what is written is forgotten."""
    with Session(shared_engine) as session:
        yield session


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_sql_says_what_the_definition_says(scratch: Session, made: tuple[World, int], data: st.DataObject) -> None:
    world = made[0]
    n_clusters = data.draw(st.integers(1, 5))
    clip = st.lists(st.integers(1, n_clusters), max_size=4)
    clusters = data.draw(st.lists(clip, min_size=8, max_size=8))
    orders = {name: data.draw(st.permutations(range(8))) for name in world.neurons}
    ks = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True))
    try:
        say(scratch, world, {i: [f"new {c}" for c in of] or ["outside"] for i, of in enumerate(clusters) if i != 5})
        encoder = scratch.get_one(Clustering, made[1]).encoder_id
        # "outside" is in no cluster, like a clip without a caption.
        clustering = store(scratch, world, {f"new {c}": c for c in range(1, n_clusters + 1)}, encoder)
        for name, order in orders.items():
            scratch.execute(
                sa.text(
                    "UPDATE exemplars SET positions = :to WHERE recording_id = :r AND neuron_id = :n AND side = 'high'"
                ),
                {"to": list(order), "r": world.recording.id, "n": world.neurons[name]},
            )
        belongs = [of if i != 5 else [] for i, of in enumerate(clusters)]
        agreement = scratch.execute(
            sa.text("SELECT neuron_id, k, agreement, cluster FROM neuron_agreement(:c, :d, :ks)"),
            {"c": clustering, "d": world.dissection.id, "ks": ks},
        ).all()
        names = {identity: name for name, identity in world.neurons.items()}
        told = {(names[row.neuron_id], row.k): (row.agreement, row.cluster) for row in agreement}
        assert told == {(name, k): by_hand(order, belongs, k) for name, order in orders.items() for k in ks}
        shares = scratch.execute(
            sa.text("SELECT layer, k, tau, n_neurons, n_uninterpretable FROM uninterpretable_neurons(:c, :d, :ks)"),
            {"c": clustering, "d": world.dissection.id, "ks": ks},
        ).all()
        assert {tuple(row) for row in shares} == {
            (layer, k, tau, units, sum(by_hand(orders[f"{layer}#{i}"], belongs, k)[0] < tau for i in range(units)))
            for layer, units in LAYERS.items() for k in ks for tau in range(1, k + 1)
        }  # fmt: skip
    finally:
        scratch.rollback()


# ---------------------------------------------------------------------- clusters


SAID = {
    0: ["Rain falls on a roof.", "A dog barks."], 1: ["Rain falls in the street.", "Rain falls on a roof."],
    2: ["A dog barks.", "A dog growls."], 3: ["A siren wails."], 4: ["A siren rises.", "A dog barks."],
    5: [], 6: ["Rain falls on leaves."], 7: ["A siren fades."],
}  # fmt: skip
AXES = {"Rain": 0, "A dog": 1, "A siren": 2}


@pytest.fixture
def told(engine: sa.Engine) -> World:
    """A world whose captions have sentences on three subjects, embedded by the encoder of its calibration."""
    with db.transaction(engine) as session:
        world = factories.world(session, layers=LAYERS, n_clips=8, values=values(), told={})
        say(session, world, SAID)
        encoder = factories.encoder(session, dim=3)
        rng = np.random.default_rng(0)
        for text in sorted({text for texts in SAID.values() for text in texts}):
            axis = next(i for start, i in AXES.items() if text.startswith(start))
            factories.embed_text(session, encoder, text, np.eye(3)[axis] + rng.normal(0, 0.02, 3))
        session.execute(
            sa.text("UPDATE recipes SET parents = ARRAY(SELECT recipe_id FROM encoders WHERE id = :e) WHERE id = :id"),
            {"e": encoder, "id": factories.stage_recipes(session, world.dissection)["calibrate"]},
        )
    return world


def tables(engine: sa.Engine) -> list[Any]:
    with db.reading(engine) as session:
        return [
            session.execute(sa.select(*table.__table__.columns).order_by(*table.__table__.primary_key)).all()
            for table in (Clustering, Cluster, ClusterSentence)
        ]


def test_the_elbow_finds_the_subjects_and_all_is_stored(engine: sa.Engine, told: World) -> None:
    made = interpretability.cluster(engine, "net", max_clusters=7)
    assert (made.n_clusters, made.chosen_by, made.seed, made.computed) == (3, "elbow", 0, True)
    assert (made.n_captions, made.n_sentences) == (7, 11)
    assert [number for number, _ in made.curve] == list(range(1, 8))
    assert made.inertia == dict(made.curve)[3]
    assert "n = 7 captions, 11 sentences" in made.footer
    rows = interpretability.words(engine, made.id)
    # Rain and dogs are said four times each: the first by the order of the sentences is the first.
    assert [(row["cluster"], row["n_captions"], row["n_sentences"]) for row in rows] == [
        (1, 3, 4),
        (2, 3, 4),
        (3, 3, 3),
    ]
    assert [row["example"] for row in rows] == ["A dog barks.", "Rain falls on a roof.", "A siren fades."]
    assert list(rows[0]["words"].items()) == [("dog", 4), ("barks", 3), ("growls", 1)]
    assert interpretability.clusterings(engine)[0]["n_sentences"] == 11
    assert interpretability.find(engine, "net").id == made.id


def test_the_same_again_computes_nothing(engine: sa.Engine, told: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = interpretability.cluster(engine, "net", n_clusters=3)
    before = tables(engine)
    with monkeypatch.context() as patched:
        patched.setattr(interpretability.core, "try_numbers", lambda *_args: pytest.fail("clustered again"))
        again = interpretability.cluster(engine, "net", n_clusters=3)
    assert (again.id, again.computed) == (first.id, False)
    assert tables(engine) == before
    others = [
        interpretability.cluster(engine, "net", n_clusters=2).id,
        interpretability.cluster(engine, "net", n_clusters=3, seed=1).id,
        interpretability.cluster(engine, "net", max_clusters=5).id,
    ]
    assert len({first.id, *others}) == 4
    # The elbow's is the default, whatever else is tried; where there is none, the latest.
    assert interpretability.cluster(engine, "net", n_clusters=4).computed
    assert interpretability.find(engine, "net").id == others[-1]
    with db.transaction(engine) as session:
        session.execute(sa.delete(Clustering).where(Clustering.chosen_by == "elbow"))
    assert interpretability.find(engine, "net").n_clusters == 4
    assert interpretability.find(engine, "net", clustering=first.id).n_clusters == 3


def test_two_networks_share_the_clusters(engine: sa.Engine, told: World) -> None:
    first = interpretability.cluster(engine, "net", n_clusters=3)
    with db.transaction(engine) as session:
        other = factories.network(session, "other", LAYERS)
        recorded = factories.recording(session, other, told.probing, factories.random_values(LAYERS, 8, seed=5))
        dissection = factories.dissection(session, recorded, told.concepts, {})
        # Dissected with the same captions and the same encoder.
        mine = factories.stage_recipes(session, told.dissection)
        for stage in ("caption", "calibrate"):
            session.execute(
                sa.text("UPDATE dissection_recipes SET recipe_id = :r WHERE dissection_id = :d AND stage = :stage"),
                {"r": mine[stage], "d": dissection.id, "stage": stage},
            )
    assert interpretability.cluster(engine, "other", n_clusters=3).id == first.id
    rows = interpretability.blocks(engine, ["net", "other", "net"], ks=(5,))
    assert {row["clustering_id"] for row in rows} == {first.id}
    assert list(dict.fromkeys(row["network"] for row in rows)) == ["net", "other"]
    assert interpretability.footer(rows).startswith("sounds of net · net, other · recipe ")
    assert interpretability.footer(rows).endswith("n = 5 + 5 neurons")


def test_missing_vectors_are_made_by_the_dissections_encoder(
    engine: sa.Engine, told: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from and_platform.backends import registry
    from and_platform.backends.base import BackendRecipe

    class Toy:
        dim, scale, recipe = 3, 1.0, BackendRecipe("toy", "1")

        def embed_texts(self, texts: Sequence[str]) -> Any:
            return np.eye(3, dtype=np.float32)[[AXES[next(s for s in AXES if t.startswith(s))] for t in texts]]

    with db.transaction(engine) as session:
        session.execute(sa.text("DELETE FROM text_embeddings WHERE text_id IN (SELECT text_id FROM caption_sentences)"))
        session.execute(sa.text('UPDATE dissections SET config = \'{"sentence_encoder": "mine"}\''))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(registry, "create", lambda role, spec: asked.append((role, spec)) or Toy())
    made = interpretability.cluster(engine, "net", n_clusters=3)
    assert asked == [("encoder", "mine")]
    assert made.encoder == "toy"
    assert made.inertia == pytest.approx(0, abs=1e-9)
    assert ask(
        engine, "SELECT count(*) FROM text_embeddings e JOIN encoders k ON k.id = e.encoder_id WHERE k.name = 'toy'"
    )[0][0] == len({text for texts in SAID.values() for text in texts})


def test_captions_that_come_later_ask_for_another_clustering(engine: sa.Engine, told: World) -> None:
    first = interpretability.cluster(engine, "net", n_clusters=3)
    with db.transaction(engine) as session:
        say(session, told, {3: ["A siren wails.", "Thunder rolls."]})
    with pytest.raises(IncompleteError, match=r"1 sentences of captions have come since clustering .*run: andp interp"):
        interpretability.blocks(engine, ["net"])
    with db.transaction(engine) as session:
        encoder = session.get_one(Clustering, first.id).encoder_id
        factories.embed_text(session, encoder, "Thunder rolls.", [1, 1, 1])
    second = interpretability.cluster(engine, "net", n_clusters=3)
    assert second.id != first.id and second.computed
    assert {row["clustering_id"] for row in interpretability.blocks(engine, ["net"])} == {second.id}


def test_of_two_at_once_one_is_kept(engine: sa.Engine, told: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one ends while this one computes."""
    real = interpretability.core.try_numbers
    made: list[interpretability.ClusteringReport] = []

    def meanwhile(*arguments: Any) -> dict[int, Clusters]:
        monkeypatch.setattr(interpretability.core, "try_numbers", real)
        made.append(interpretability.cluster(engine, "net", n_clusters=3))
        return real(*arguments)

    monkeypatch.setattr(interpretability.core, "try_numbers", meanwhile)
    assert interpretability.cluster(engine, "net", n_clusters=3).id == made[0].id
    assert [len(rows) for rows in tables(engine)] == [1, 3, len({t for texts in SAID.values() for t in texts})]


def test_a_recipe_says_what_the_result_depends_on(engine: sa.Engine, told: World) -> None:
    made = interpretability.cluster(engine, "net", n_clusters=2, seed=4)
    with db.reading(engine) as session:
        recipe = session.scalars(sa.select(Recipe).where(Recipe.sha256 == made.sha256)).one()
        assert recipe.stage == "cluster"
        assert recipe.params["probing_set"] == told.probing.sha256
        assert {key: recipe.params[key] for key in ("n_clusters", "seed")} == {"n_clusters": 2, "seed": 4}
        assert embed.text_vectors(session, session.get_one(Clustering, made.id).encoder_id, []).size == 0


# ---------------------------------------------------------------------- what cannot be done


def test_what_cannot_be_clustered_is_said(engine: sa.Engine, told: World) -> None:
    with pytest.raises(InputError, match="8 distinct sentences; ask for at most 8 clusters"):
        interpretability.cluster(engine, "net", n_clusters=9)
    with pytest.raises(InputError, match="0 clusters cannot be made"):
        interpretability.cluster(engine, "net", n_clusters=0)
    with pytest.raises(InputError, match="between 1 and 2 clusters"):
        interpretability.cluster(engine, "net", max_clusters=2)
    with pytest.raises(NotFoundError):
        interpretability.cluster(engine, "nothing")
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE text_embeddings SET embedding = '[1,0,0]'"))
    with pytest.raises(InputError, match=r"1 to 8 clusters of 8 distinct sentences has no elbow; .* --clusters N"):
        interpretability.cluster(engine, "net")
    assert tables(engine) == [[], [], []]
    with db.transaction(engine) as session:
        session.execute(sa.delete(CaptionSentence))
    with pytest.raises(IncompleteError, match="no captions to cluster; run: andp dissect net --dataset"):
        interpretability.cluster(engine, "net")


def test_what_cannot_be_asked_is_said(engine: sa.Engine, told: World) -> None:
    with pytest.raises(IncompleteError, match="not been clustered yet; run: andp interpretability cluster net"):
        interpretability.blocks(engine, ["net"])
    with pytest.raises(NotFoundError, match="no clustering 7; see: andp interpretability list"):
        interpretability.blocks(engine, ["net"], clustering=7)
    with pytest.raises(NotFoundError, match="no clustering 7"):
        interpretability.words(engine, 7)
    with pytest.raises(InputError, match="K is 0"):
        interpretability.blocks(engine, ["net"], ks=(0, 5))
    with pytest.raises(InputError, match="name one network"):
        interpretability.blocks(engine, ["net", "other"], dissection=1)
    made = interpretability.cluster(engine, "net", n_clusters=3)
    with db.transaction(engine) as session:
        other = factories.world(session, name="other")
    with pytest.raises(InputError, match=r"is of clips of 'sounds of net' that dissection .* was not probed with"):
        interpretability.blocks(engine, ["other"], clustering=made.id)
    with db.transaction(engine) as session:
        session.execute(
            sa.text(
                "UPDATE dissection_recipes SET recipe_id = :recipe WHERE stage = 'caption' AND dissection_id = :id"
            ),
            {"recipe": factories.recipe(session, "caption"), "id": told.dissection.id},
        )
    with pytest.raises(InputError, match=r"is of other captions than those that .* 'net' was made with; run: andp"):
        interpretability.blocks(engine, ["net"], clustering=made.id)
    with pytest.raises(sa.exc.DBAPIError, match="is of other clips than dissection"):
        ask(engine, "SELECT * FROM neuron_agreement(:c, :d)", c=made.id, d=other.dissection.id)
