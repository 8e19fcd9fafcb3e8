"""What all experiments share: recipes, rows, held-out clips, published figures."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.errors import AudioError, ConflictError, DatabaseError, IncompleteError, InputError, NotFoundError
from and_platform.schema import Clip, Clustering, Dissection, Experiment, Network, ProbingSetClip, Study
from and_platform.services import datasets, dissections, experiments, provenance, published, record
from and_platform.services.held_out import decoded, held_out
from tests import factories
from tests.factories import World
from tests.tiny import RATE, sounds


@pytest.fixture
def world(engine: sa.Engine) -> World:
    with db.transaction(engine) as session:
        return factories.world(session, n_clips=10)


def test_subject_is_the_current_dissection_with_its_names(engine: sa.Engine, world: World) -> None:
    with db.reading(engine) as session:
        about = experiments.subject(session, "net")
        assert about == experiments.subject(session, None, world.dissection.id)
        assert (about.dissection_id, about.network, about.dataset) == (world.dissection.id, "net", "sounds of net")
        assert (about.n_clips, about.top_k, about.layers) == (10, 2, ["b00.ff_in", "head"])
        with pytest.raises(NotFoundError, match="no network 'nobody'"):
            experiments.subject(session, "nobody")


def test_a_missing_stage_says_what_to_run(engine: sa.Engine, world: World) -> None:
    with db.reading(engine) as session:
        about = experiments.subject(session, "net")
        assert experiments.stage_recipe(session, about, "extract", "counting words") > 0
        with pytest.raises(IncompleteError, match=r"no stage 'embed'.* needs; run: andp dissect net --dataset"):
            experiments.stage_recipe(session, about, "embed", "it")


def test_the_same_recipe_is_one_experiment(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        about = experiments.subject(session, "net")
        first = experiments.begin(session, about, experiments.plan(about, "sweep", seed=0)).id
        assert experiments.begin(session, about, experiments.plan(about, "sweep", seed=0)).id == first
        assert experiments.begin(session, about, experiments.plan(about, "sweep", seed=1)).id != first
        assert experiments.latest(session, about, "sweep") is None
        experiments.complete(session, first, {"gap": 1.5})
    with db.reading(engine) as session:
        latest = experiments.latest(session, about, "sweep")
        assert latest is not None
        assert (latest.id, latest.status, latest.figures) == (first, "complete", {"gap": 1.5})
        told = experiments.footer(session, about, first, "3 neurons")
        assert re.fullmatch(r"sounds of net · net · recipe [0-9a-f]{10} · n = 3 neurons", told)
        assert told != experiments.footer(session, about, None, "3 neurons")


def test_more_layers_are_another_experiment(engine: sa.Engine, world: World) -> None:
    with db.reading(engine) as session:
        about = experiments.subject(session, "net")
    more = about._replace(layers=[*about.layers, "b01.ff_in"])
    assert experiments.plan(about, "sweep").sha256 != experiments.plan(more, "sweep").sha256


def test_what_failed_and_came_later_is_another_experiment(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE dissected_layers SET completed_at = now()"))
        whole = experiments.subject(session, "net")
        assert whole.waiting is None
        scope = f"recipe:{factories.stage_recipes(session, world.dissection)['summarise']}"
        provenance.record_failure(session, stage="summarise", scope="recipe:0", unit="head#0 high", reason="no answer")
        assert experiments.subject(session, "net") == whole  # somebody else's
        provenance.record_failure(session, stage="summarise", scope=scope, unit="head#0 high", reason="no answer")
        partial = experiments.subject(session, "net")
        assert experiments.plan(partial, "sweep").sha256 != experiments.plan(whole, "sweep").sha256
        provenance.resolve_failures(session, stage="summarise", scope=scope, units=["head#0 high"])
        assert experiments.subject(session, "net") == whole
        session.execute(sa.text("UPDATE dissected_layers SET completed_at = NULL"))
        begun = experiments.subject(session, "net").waiting
        provenance.finish_layer(
            session, factories.stage_recipes(session, world.dissection)["summarise"],
            session.scalars(sa.text("SELECT layer_id FROM dissected_layers LIMIT 1")).one(),
        )  # fmt: skip
        assert None is not begun != experiments.subject(session, "net").waiting


def test_experiments_go_with_their_dissection(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        about = experiments.subject(session, "net")
        experiments.begin(session, about, experiments.plan(about, "sweep"))
    dissections.drop(engine, world.dissection.id)
    with db.reading(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Experiment)) == 0


def test_what_people_rated_keeps_its_dissection(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        made = factories.recipe(session, "study")
        session.add(Study(name="first", token="t", dissection_id=world.dissection.id, recipe_id=made))
    with pytest.raises(ConflictError, match="andp study drop first"):
        dissections.drop(engine, world.dissection.id)
    with db.reading(engine) as session:
        assert session.get(Dissection, world.dissection.id) is not None


def test_what_was_made_of_captions_that_are_made_again_is_forgotten(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        about = experiments.subject(session, "net")
        stages = factories.stage_recipes(session, world.dissection)
        session.execute(
            sa.text(
                "UPDATE recipes SET parents = ARRAY[CAST(:caption AS bigint)],"
                " params = params || jsonb_build_object('probing_set', CAST(:sha AS text)) WHERE id = :summarise"
            ),
            {"caption": stages["caption"], "sha": world.probing.sha256, "summarise": stages["summarise"]},
        )
        made = experiments.begin(session, about, experiments.plan(about, "sweep")).id
        experiments.complete(session, made)
        clustering = Clustering(
            recipe_id=factories.recipe(session, "cluster"), probing_set_id=about.probing_set_id, n_clusters=1,
            caption_recipe_id=stages["caption"], encoder_id=factories.encoder(session), chosen_by="given", seed=0,
            inertia=0.0, curve=[],
        )  # fmt: skip
        session.add(clustering)
    with db.transaction(engine) as session:
        clip = session.scalars(sa.select(ProbingSetClip.clip_id)).first()
        assert clip is not None
        dissections.forget_without(session, stages["caption"], [clip])
    with db.reading(engine) as session:
        assert session.get(Experiment, made) is None
        assert session.scalars(sa.select(Clustering)).all() == []


def test_clusters_go_with_the_clips_they_were_made_of(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        stages = factories.stage_recipes(session, world.dissection)
        session.add(
            Clustering(
                recipe_id=factories.recipe(session, "cluster"), probing_set_id=world.probing.id, n_clusters=1,
                caption_recipe_id=stages["caption"], encoder_id=factories.encoder(session), chosen_by="given", seed=0,
                inertia=0.0, curve=[],
            )
        )  # fmt: skip
    dissections.drop(engine, world.dissection.id)
    record.drop(engine, world.recording.id)
    with db.transaction(engine) as session:
        assert datasets.drop(session, "sounds of net") == 10
        assert session.scalars(sa.select(Clustering)).all() == []


# ---------------------------------------------------------------------- held-out clips


def trained(session: Session, on: str | None, fold: int | None, classes: list[str] | None = None) -> None:
    values = {"trained_on": on, "held_out_fold": fold, **({} if classes is None else {"classes": classes})}
    session.execute(sa.update(Network).values(**values))


def test_clips_of_the_held_out_fold_of_the_data_set_it_was_trained_on(engine: sa.Engine, world: World) -> None:
    # labels go round dog, rain, siren and folds round 1 … 5
    with db.transaction(engine) as session:
        trained(session, "sounds of net", 2, ["Siren", "DOG", "rain"])
        about = experiments.subject(session, "net")
        chosen = held_out(session, about)
    assert [(clip.position, clip.unit) for clip in chosen.clips] == [(1, 2), (6, 1)]
    assert (chosen.fold, chosen.n_clips, chosen.caution, chosen.without_class) == (2, [0, 1, 1], None, {})


def test_all_clips_of_a_data_set_it_was_not_trained_on(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        trained(session, "something else", 2)
        about = experiments.subject(session, "net")
        assert held_out(session, about).n_clips == [4, 3, 3]
        assert held_out(session, about, fold=1).n_clips == [1, 0, 1]


def test_where_training_is_unknown_or_was_on_these_clips_it_is_said(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        about = experiments.subject(session, "net")
        assert "not known" in str(held_out(session, about).caution)
        trained(session, "sounds of net", 2)
        assert "was trained on fold 3" in str(held_out(session, about, fold=3).caution)
        trained(session, "sounds of net", None)
        with pytest.raises(InputError, match="--fold"):
            held_out(session, about)
        assert "not recorded which fold" in str(held_out(session, about, fold=3).caution)


def test_labels_that_are_no_class_are_counted(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        trained(session, None, None, ["dog", "cat"])
        session.execute(sa.update(Clip).where(Clip.path.like("siren%")).values(labels=[]))
        chosen = held_out(session, experiments.subject(session, "net"))
        assert (chosen.n_clips, chosen.without_class) == ([4, 0], {"rain": 3, "(no label)": 3})
        trained(session, None, None, ["cat"])
        with pytest.raises(InputError, match=r"no clip .* carries a class of 'net'"):
            held_out(session, experiments.subject(session, "net"))


def test_a_network_without_classes_or_an_empty_fold_cannot_be_evaluated(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        about = experiments.subject(session, "net")
        with pytest.raises(InputError, match="no clip of 'sounds of net' is in fold 9"):
            held_out(session, about, fold=9)
        trained(session, None, None, [])
        with pytest.raises(InputError, match="no class names"):
            held_out(session, about)


def test_held_out_clips_are_decoded_at_the_networks_rate(engine: sa.Engine, world: World, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "sounds", per_class=2)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav"))
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE datasets SET root = :root"), {"root": str(folder)})
        ids = session.scalars(
            sa.select(Clip.id).join(ProbingSetClip, ProbingSetClip.clip_id == Clip.id).order_by(ProbingSetClip.position)
        ).all()
        for clip, file in zip(ids, files, strict=False):
            sha256 = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            session.execute(sa.update(Clip).where(Clip.id == clip).values(path=file, sha256=sha256))
        chosen = held_out(session, experiments.subject(session, "net"), fold=1)
    assert len(chosen.clips) == 2
    clips = list(decoded(chosen, RATE // 2))
    assert [clip.rate for clip in clips] == [8000, 8000]
    assert [clip.waveform.size for clip in clips] == [4000, 4000]
    assert clips[0].waveform.dtype == np.float32
    chosen.clips[0].path.write_bytes(chosen.clips[1].path.read_bytes())
    with pytest.raises(AudioError, match=f"cannot use '{chosen.clips[0].key}': changed: .*; bring the file back"):
        list(decoded(chosen, RATE))
    chosen.clips[0].path.unlink()
    with pytest.raises(AudioError, match=f"cannot use '{chosen.clips[0].key}': missing"):
        list(decoded(chosen, RATE))


def test_published_figures_are_there() -> None:
    found = published.figures()
    assert [row["network"] for row in found["unlearning"]] == ["AST", "BEATs-finetuned", "BEATs-frozen"]
    for row in found["unlearning"]:
        for strategy in ("random", "closed_tab", "closed_db", "open"):
            _, target, rest, gap = row[strategy]
            assert gap == pytest.approx(rest - target, abs=0.011), (row["network"], strategy)


def test_a_dissection_dropped_under_an_experiment_is_one_line(engine: sa.Engine, world: World) -> None:
    with db.transaction(engine) as session:
        about = experiments.subject(session, "net")
    dissections.drop(engine, world.dissection.id)
    with (
        pytest.raises(DatabaseError, match="dropped meanwhile by another command"),
        db.transaction(engine) as session,
    ):
        experiments.begin(session, about, experiments.plan(about, "sweep"))
