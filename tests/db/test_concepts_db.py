from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.errors import AndpError, ConflictError, InputError, ManifestError, NotFoundError
from and_platform.schema import Clip, Concept, ConceptSet, Dataset, Recipe, Scoring, Text
from and_platform.services import concepts
from and_platform.services.datasets import snapshot
from and_platform.services.texts import text_ids


def file(tmp_path: Path, name: str, content: str) -> Path:
    (tmp_path / name).write_text(content, "utf-8")
    return tmp_path / name


def names(engine: sa.Engine, set_name: str) -> list[str]:
    with db.reading(engine) as session:
        query = sa.select(Concept.name).join(ConceptSet).where(ConceptSet.name == set_name).order_by(Concept.position)
        return list(session.scalars(query))


def label_clips(engine: sa.Engine, *labels: list[str]) -> None:
    """The data set 'set', with one clip for each list of labels."""
    with db.transaction(engine) as session:
        dataset = session.scalars(sa.select(Dataset)).one_or_none() or Dataset(name="set", root="/x", kind="folder")
        session.add(dataset)
        session.flush()
        session.execute(sa.update(Clip).values(retired_at=sa.func.now()))
        for number, given in enumerate(labels):
            session.add(
                Clip(
                    dataset_id=dataset.id, path=str(number), sha256=str(number), labels=given, sample_rate=8000,
                    channels=1, duration_s=1.0, mean_abs_amplitude=0.1, rms=0.1, peak=0.1, silence_share=0.0,
                )
            )  # fmt: skip


# ---------------------------------------------------------------------- texts


def test_text_ids_are_in_order_of_first_appearance(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        first = text_ids(session, ["b", "a", "b", "ä", "a "])
    assert list(first) == ["b", "a", "ä", "a "]
    assert list(first.values()) == sorted(first.values())
    with db.transaction(engine) as session:
        second = text_ids(session, ["z", "a", "y"])
        assert text_ids(session, []) == {}
    assert second["a"] == first["a"]
    assert max(first.values()) < second["z"] < second["y"]
    with db.reading(engine) as session:
        assert session.scalar(sa.select(sa.func.count(Text.id))) == 6


def test_sessions_that_add_the_same_texts_in_opposite_order_agree_and_do_not_block_each_other_for_ever(
    engine: sa.Engine,
) -> None:
    texts = [f"text {number}" for number in range(500)]
    orders = [texts, texts[::-1], texts[250:] + texts[:250]]
    found: list[dict[str, int]] = []
    errors: list[Exception] = []
    start = threading.Barrier(len(orders))

    def add(order: list[str]) -> None:
        try:
            with db.transaction(engine) as session:
                start.wait()
                # Twice in one transaction: the second call must not wait for what the first one holds.
                ids = text_ids(session, order[:300]) | text_ids(session, order)
            found.append(ids)
        except (sa.exc.SQLAlchemyError, AndpError) as exc:
            errors.append(exc)

    threads = [threading.Thread(target=add, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == set(texts)


# ---------------------------------------------------------------------- import


def test_import_keeps_names_synonyms_and_kinds(engine: sa.Engine, tmp_path: Path) -> None:
    source = file(
        tmp_path, "Animals.csv", "name,synonyms,kind\nDog_Bark,woof; Barking-dog,event\ncat,,\nDOG BARK,yap,\n"
    )
    with db.transaction(engine) as session:
        imported = concepts.import_file(session, source)
    assert (imported.name, imported.n_concepts, imported.is_new) == ("Animals", 2, True)
    assert imported.merged == [("DOG BARK", "dog bark")]
    with db.reading(engine) as session:
        shown = concepts.show(session, "Animals")
        texts = session.execute(
            sa.select(Concept.name, Text.text).join(Text, Text.id == Concept.text_id).order_by(Concept.position)
        ).all()
    assert shown == [
        {
            "name": "dog bark", "original_name": "Dog_Bark", "synonyms": ["woof", "barking dog", "yap"],
            "kind": "event",
        },
        {"name": "cat", "original_name": "cat", "synonyms": [], "kind": None},
    ]  # fmt: skip
    assert texts == [("dog bark", "dog bark"), ("cat", "cat")]


def test_import_again_does_nothing_and_other_content_is_refused(engine: sa.Engine, tmp_path: Path) -> None:
    with db.transaction(engine) as session:
        first = concepts.import_file(session, file(tmp_path, "a.txt", "dog\ncat\n"), "pets")
    with db.transaction(engine) as session:
        again = concepts.import_file(session, file(tmp_path, "b.json", '["dog", "cat"]'), "pets")
    assert (again.concept_set_id, again.is_new) == (first.concept_set_id, False)
    with (
        db.transaction(engine) as session,
        pytest.raises(ConflictError, match=r"has the name 'pets' \(file a\.txt\)"),
    ):
        concepts.import_file(session, file(tmp_path, "c.txt", "cat\ndog\n"), "pets")
    assert names(engine, "pets") == ["dog", "cat"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.xml", "<a/>", ManifestError, "a concept file is one of .txt"),
        ("a.csv", "label\nx\n", ManifestError, r"a\.csv, line 1: the columns are label"),
        ("a.txt", "\n", ManifestError, "no concept in it"),
        ("esc50.txt", "dog\n", ConflictError, "'esc50' is the name of a concept set that is shipped"),
        (" .txt", "dog\n", InputError, "cannot be the name"),
    ],
)
def test_import_refuses(
    engine: sa.Engine, tmp_path: Path, name: str, content: str, error: type[Exception], message: str
) -> None:
    with db.transaction(engine) as session, pytest.raises(error, match=message):
        concepts.import_file(session, file(tmp_path, name, content))


# ---------------------------------------------------------------------- shipped, labels


def test_ensure_finds_shipped_sets_once(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        first = concepts.ensure(session, "esc50")
        assert concepts.ensure(session, "esc50").id == first.id
    found = names(engine, "esc50")
    assert len(found) == 50 and "door wood knock" in found
    with db.reading(engine) as session:
        rows = {row["name"]: (row["concepts"], row["source"]) for row in concepts.list_sets(session)}
    assert rows["esc50"] == (50, "shipped")
    assert rows["urbansound8k"] == (10, "shipped")
    assert {"esc50", "gtzan", "urbansound8k", "audioset", "acoustic-vocabulary"} <= set(rows)


def test_the_vocabulary_goes_in_whole(engine: sa.Engine) -> None:
    with db.transaction(engine) as session:
        concepts.ensure(session, "acoustic-vocabulary")
    found = names(engine, "acoustic-vocabulary")
    assert len(found) == len(set(found)) >= 5000


def test_ensure_of_an_unknown_name_lists_what_there_is(engine: sa.Engine) -> None:
    with db.transaction(engine) as session, pytest.raises(NotFoundError, match=r"there are: .*esc50.*gtzan"):
        concepts.ensure(session, "nothing")
    with db.transaction(engine) as session, pytest.raises(NotFoundError, match="no concept set 'nothing-labels'"):
        concepts.ensure(session, "nothing-labels")


def test_labels_are_a_set_and_changed_labels_another(engine: sa.Engine) -> None:
    label_clips(engine, ["Dog_bark", "animal"], ["rain"], [])
    with db.transaction(engine) as session:
        first = concepts.labels_of(session, "set")
        assert first.source == "labels of set"
        assert concepts.ensure(session, "set-labels").id == first.id
    assert names(engine, "set-labels") == ["dog bark", "animal", "rain"]  # sorted as written: capitals first

    label_clips(engine, ["rain"], ["wind"])
    with db.transaction(engine) as session:
        second = concepts.labels_of(session, "set")
        assert second.name == "set-labels-2"
        assert concepts.labels_of(session, "set").id == second.id
    assert names(engine, "set-labels-2") == ["rain", "wind"]

    label_clips(engine, ["rain", "animal"], ["Dog_bark"])
    with db.transaction(engine) as session:
        assert concepts.labels_of(session, "set").id == first.id


def test_labels_where_there_are_none(engine: sa.Engine) -> None:
    label_clips(engine, [])
    with db.transaction(engine) as session, pytest.raises(InputError, match="no clip of 'set' has a label"):
        concepts.labels_of(session, "set")
    with db.transaction(engine) as session, pytest.raises(NotFoundError, match="no data set 'x'"):
        concepts.labels_of(session, "x")


# ---------------------------------------------------------------------- drop


def test_drop_refuses_a_set_in_use(engine: sa.Engine, tmp_path: Path) -> None:
    label_clips(engine, ["dog"])
    with db.transaction(engine) as session:
        concept_set = concepts.labels_of(session, "set")
        dataset_id = session.scalars(sa.select(Dataset.id)).one()
        recipe = Recipe(stage="score", backend="b", revision="r", params={}, sha256="x")
        session.add(recipe)
        session.flush()
        probing_set = snapshot(session, dataset_id)
        session.add(
            Scoring(
                recipe_id=recipe.id, probing_set_id=probing_set.id, concept_set_id=concept_set.id, method="db"
            )
        )  # fmt: skip
        concepts.import_file(session, file(tmp_path, "free.txt", "a\nb\n"))
    with db.transaction(engine) as session, pytest.raises(ConflictError, match="is used"):
        concepts.drop(session, "set-labels")
    with db.transaction(engine) as session:
        assert concepts.drop(session, "free") == 2
    with db.transaction(engine) as session, pytest.raises(NotFoundError, match="is in the database"):
        concepts.drop(session, "free")
    assert names(engine, "free") == []
