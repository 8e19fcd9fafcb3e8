"""A dissection that workers do: row for row that of one process, for every kind of model, option and interruption."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform import api, db
from and_platform.config import Settings, settings
from and_platform.errors import ConfigError, ConflictError, IncompleteError, NotFoundError
from and_platform.services import activations
from and_platform.services.distribution import runs, work
from tests import tiny
from tests.checkpoints_encoders import TINY_CLIP, clip_state, write_clip
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
    monkeypatch.setenv("ANDP_UNIT_SIZE", "0.01")
    settings.cache_clear()


@pytest.fixture(scope="module")
def template(server_url: URL, material: Path) -> Iterator[str]:
    """Name of a database with a data set and a network."""
    with _cloned(server_url) as url:
        engine = db.make_engine(url, Settings())
        platform = api.Platform(engine)
        platform.ingest(material / "tones", processes=1)
        platform.add_network("tiny", material / "network")
        engine.dispose()
        assert url.database is not None
        yield url.database


@pytest.fixture
def database_url(server_url: URL, template: str) -> Iterator[URL]:
    with _cloned(server_url, template) as url:
        yield url


@pytest.fixture
def here(engine: sa.Engine) -> api.Platform:
    """A database that one process dissects."""
    return api.Platform(engine)


@pytest.fixture
def shop(server_url: URL, template: str) -> Iterator[Workshop]:
    """Another one with the same content, that workers dissect."""
    with _cloned(server_url, template) as url:
        engine = db.make_engine(url, Settings())
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


CAPTIONS = {
    f"{label}/{label}-{i}.wav": f"A {label} sound. It is number {i}." for label in tiny.CLASSES for i in range(3)
}


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


def test_captions_of_a_data_set_and_of_a_file(
    engine: sa.Engine, shop: Workshop, material: Path, tmp_path: Path
) -> None:
    """Brought by the data set, by a file for some clips only, and joined with what the describer says."""
    manifest = material / "told.csv"
    lines = [f"tones/{path},{path.partition('/')[0]},{told}\n" for path, told in CAPTIONS.items()]
    manifest.write_text("path,label,caption\n" + "".join(lines), "utf-8")
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(CAPTIONS), "utf-8")
    here = api.Platform(engine)
    for platform in (here, api.Platform(shop.engine)):
        platform.ingest(manifest, processes=1)
    for given in (
        {"dataset": "told", "captioner": "source"},
        {"dataset": "told", "captioner": "auto"},
        {"dataset": "tones", "captioner": f"file:{file}"},
    ):
        here.dissect("tiny", layers=["head"], **given)
        ended = shop.dissect(layers=["head"], **given)
        assert ended["outcome"] == "ok", ended
    assert_same(content(shop.engine), content(engine))
    assert rows(shop.engine, "SELECT missing FROM scorings ORDER BY id")[-1].missing == [3, 7, 11]


def test_captions_of_an_audio_language_model(
    here: api.Platform, engine: sa.Engine, shop: Workshop, whisper_dir: Path
) -> None:
    given = {"captioner": f"audio-lm:{whisper_dir}", "captioner_options": {"max_tokens": 16}, "layers": ["head"]}
    here.dissect("tiny", dataset="tones", **given)
    ended = shop.dissect(**given)
    assert ended["outcome"] == "ok", ended
    # What an untrained model says of all clips is much the same: which concept is nearest is left to the last digit.
    assert_same(content(shop.engine), content(engine), leaving_out=("concept_matches",))
    assert shop.done_steps["caption"] == 12  # a clip each, and the model stays loaded
    assert sum(name.startswith("captioner") for name in shop.loaded) == 1


def test_the_method_tab(
    here: api.Platform, engine: sa.Engine, shop: Workshop, clap_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained encoder tells sounds apart by the last digit: it has to meet the batches that one process makes.
    monkeypatch.setenv("ANDP_UNIT_SIZE", "1")
    settings.cache_clear()
    here.dissect("tiny", dataset="tones", audio_encoder=f"clap:{clap_dir}")
    ended = shop.dissect(audio_encoder=f"clap:{clap_dir}")
    assert ended["outcome"] == "ok", ended
    assert_same(content(shop.engine), content(engine))
    assert shop.done_steps["encode_sounds"] == 1
    # One encoder for both methods: the texts of both are known by the same key.
    both = {"audio_encoder": f"clap:{clap_dir}", "text_encoder": f"clap:{clap_dir}"}
    here.dissect("tiny", dataset="tones", **both)
    assert shop.dissect(**both)["outcome"] == "ok"
    assert_same(content(shop.engine), content(engine))


def test_what_the_encoders_cut_is_told(here: api.Platform, shop: Workshop, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", clip_state(**TINY_CLIP))
    given = {"text_encoder": f"clip:{tmp_path / 'clip'}", "layers": ["head"]}
    report = here.dissect("tiny", dataset="tones", **given)
    counts = shop.dissect(**given)["counts"]
    assert counts["cut_texts"] == [vars(cut) for cut in report.cut]
    captions = {"what": "captions", "encoder": "clip", "max_tokens": 16, "n_texts": 12, "n_cut": 12}
    assert captions in counts["cut_texts"]
    captioned, naming = report.captions
    assert counts["captions"] == {"clips": captioned, "naming": naming}


def other_weights(checkpoint: Path) -> None:
    """Train a checkpoint on, as it were: its files are the same, its weights are not."""
    from safetensors.torch import load_file, save_file

    file = checkpoint / "model.safetensors"
    save_file({name: (w * 1.5 if w.is_floating_point() else w) for name, w in load_file(file).items()}, file)


def test_weights_that_change_between_two_runs(
    here: api.Platform,
    engine: sa.Engine,
    shop: Workshop,
    clap_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that keeps a model loaded does not take it for what is in its files by now."""
    monkeypatch.setenv("ANDP_UNIT_SIZE", "1")
    settings.cache_clear()
    clap = Path(shutil.copytree(clap_dir, tmp_path / "clap"))
    given = {"audio_encoder": f"clap:{clap}", "text_encoder": f"clap:{clap}", "layers": ["head"]}
    for change in (lambda _: None, other_weights):
        change(clap)
        here.dissect("tiny", dataset="tones", **given)
        assert shop.dissect(**given)["outcome"] == "ok"
    # Untrained weights hardly tell concepts apart: which one is nearest is left to the last digit.
    assert_same(content(shop.engine), content(engine), leaving_out=("concept_matches",))
    assert rows(engine, "SELECT count(DISTINCT id) FROM encoders WHERE name = 'clap'") == [(2,)]


def test_weights_that_change_in_a_run(shop: Workshop, clap_dir: Path, tmp_path: Path) -> None:
    clap = Path(shutil.copytree(clap_dir, tmp_path / "clap"))
    run_id = shop.start(audio_encoder=f"clap:{clap}", layers=["head"])
    shop.deliver(shop.next())  # the plan
    other_weights(clap)
    shop.work(run_id)
    ended = shop.outcome(run_id)
    assert ended["outcome"] == "failed"
    assert "the encoder 'clap' of the method tab is not what the run was planned with" in ended["error"]
    assert not rows(shop.engine, "SELECT FROM clip_embeddings")
    assert set(shop.failures) >= {("encode_sounds", "ConfigError")}


def test_an_llm(here: api.Platform, engine: sa.Engine, shop: Workshop, llm: LLMServer) -> None:
    given = {"llm": llm.spec, "layers": ["head", "b00.attn_out"]}
    here.dissect("tiny", dataset="tones", **given)
    asked = len(llm.asked)
    ended = shop.dissect(**given)
    assert ended["outcome"] == "ok", ended
    assert_same(content(shop.engine), content(engine))
    assert len(llm.asked) == 2 * asked  # each prompt once by either
    assert shop.done_steps["ask_summaries"] > 1 < shop.done_steps["ask_concepts"]
    assert ended["counts"]["open_failures"] == 0 and ended["counts"]["llm"]["answers"] == asked


class Some:
    """Prompts that the endpoint refuses: a third of them, always the same ones; and all about adjectives."""

    def search(self, prompt: str) -> bool:
        return "Can the adjective" in prompt or zlib.crc32(prompt.encode()) % 3 == 0


def test_prompts_without_an_answer(here: api.Platform, engine: sa.Engine, shop: Workshop, llm: LLMServer) -> None:
    given = {"llm": llm.spec, "layers": ["head", "b00.attn_out"], "threshold": 1.0}
    llm.fail = Some()  # type: ignore[assignment]
    here.dissect("tiny", dataset="tones", **given)
    ended = shop.dissect(**given)
    assert ended["outcome"] == "ok" and ended["counts"]["open_failures"] > 0
    failures = content(engine)["failures"]
    assert {row[0] for row in failures} >= {"summarise", "judge"}
    assert_same(content(shop.engine), content(engine))
    # Asked again when the endpoint answers: nothing is left open, and all is as if it had answered at once.
    llm.fail = re.compile("(?!)")
    here.dissect("tiny", dataset="tones", **given)
    runs.retry(shop.engine, ended["run"], shop.post, window=10)
    shop.work(ended["run"])
    assert shop.outcome(ended["run"])["counts"]["open_failures"] == 0
    assert_same(content(shop.engine), content(engine))
    assert not rows(shop.engine, "SELECT FROM failures WHERE resolved_at IS NULL")


def test_an_llm_that_is_not_there(shop: Workshop) -> None:
    """One reason, not a failure for each neuron."""
    ended = shop.dissect(
        llm="openai:m@http://127.0.0.1:9/v1", layers=["head"], llm_options={"attempts": 1, "first_wait_s": 0.01}
    )
    assert ended["outcome"] == "failed"
    assert "ask_summaries: " in ended["error"] and "is the server running" in ended["error"]
    assert f"andp runs retry {ended['run']}" in ended["error"]
    assert not rows(shop.engine, "SELECT FROM failures WHERE stage = 'summarise'")
    assert shop.failures and shop.retries
    assert not rows(shop.engine, "SELECT FROM summaries")


def test_stages_one_by_one(here: api.Platform, engine: sa.Engine, shop: Workshop) -> None:
    here.dissect("tiny", dataset="tones", layers=["head"])
    for stage in ("record", "caption", "match", "summarise", "calibrate", "extract", "embed"):
        ended = shop.dissect(layers=["head"], stages=[stage])
        assert ended["outcome"] == "ok", (stage, ended)
        assert set(ended["counts"]) - {"open_failures", "captions", "cut_texts"} == {stage}
    assert ended["status"] == "complete"
    assert_same(content(shop.engine), content(engine))


def test_nothing_is_made_of_captions_that_are_still_to_come(here: api.Platform, shop: Workshop) -> None:
    for stage in ("match", "summarise"):
        with pytest.raises(IncompleteError) as refused:
            here.dissect("tiny", dataset="tones", layers=["head"], stages=["record", stage])
        ended = shop.dissect(layers=["head"], stages=["record", stage])
        assert ended["outcome"] == "failed" and str(refused.value) in ended["error"]
        assert shop.failures.pop() == ("plan", "IncompleteError") and not shop.retries  # it is not tried in vain
    assert not rows(shop.engine, "SELECT FROM summaries")
    # With captions it goes on.
    assert shop.dissect(layers=["head"], stages=["record", "caption"])["outcome"] == "ok"
    runs.retry(shop.engine, ended["run"], shop.post, window=10)
    shop.work(ended["run"])
    assert shop.outcome(ended["run"])["outcome"] == "ok"
    assert rows(shop.engine, "SELECT FROM summaries")


# ---------------------------------------------------------------------- many clips, and clips that cannot be read


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "BLOCK", 2)
    monkeypatch.setattr(activations, "STRETCH", 4)


def test_stretches_are_folded_while_others_are_recorded(
    short_blocks: None, here: api.Platform, engine: sa.Engine, shop: Workshop
) -> None:
    here.dissect("tiny", dataset="tones")
    run_id = shop.start()
    overlapped = False
    while shop.outcome(run_id)["outcome"] == "running":
        shop.deliver(shop.post.messages.pop())  # the newest, as where each queue has workers of its own
        recording = rows(shop.engine, "SELECT FROM work_units WHERE step = 'record' AND state <> 'done'")
        overlapped |= bool(recording) and shop.done_steps["fold"] > 0
    assert overlapped
    assert shop.done_steps["record"] == 6 and shop.done_steps["fold"] >= 3
    assert_same(content(shop.engine), content(engine))


def moving(shop: Workshop, engine: sa.Engine, material: Path, folder: Path) -> tuple[api.Platform, Path]:
    """A data set `moving` in both databases, whose files a test may spoil."""
    root = tiny.sounds(folder / "moving", 4)
    here = api.Platform(engine)
    for platform in (here, api.Platform(shop.engine)):
        platform.ingest(root, processes=1)
    return here, root


SPOILED = ["high/high-1.wav", "low/low-2.wav", "noise/noise-3.wav"]


@pytest.mark.parametrize("order", ["as sent", "at once"])
def test_clips_that_cannot_be_read(
    short_blocks: None, engine: sa.Engine, shop: Workshop, material: Path, tmp_path: Path, order: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("and_platform.services.record._MOST_MISSING", 0.5)
    here, root = moving(shop, engine, material, tmp_path)
    (root / SPOILED[0]).unlink()
    (root / SPOILED[1]).write_bytes(b"no sound")
    (root / SPOILED[2]).write_bytes(b"")
    report = here.dissect("tiny", dataset="moving")
    assert sorted(report.failed_clips) == SPOILED
    run_id = shop.start(dataset="moving")
    if order == "as sent":
        shop.work(run_id)
    else:  # all blocks are read before any of them tells that the run has to begin again
        shop.deliver(shop.next())
        shop.deliver(shop.next())
        blocks = [shop.next() for _ in range(6)]
        read, real, one = threading.Barrier(len(blocks)), work.do, threading.Lock()

        def do(*given: Any) -> work.Done:
            with one:  # they share a network
                done = real(*given)
            read.wait(60)
            return done

        with monkeypatch.context() as patched:
            patched.setattr(work, "do", do)
            threads = [threading.Thread(target=shop.deliver, args=(block,)) for block in blocks]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        shop.work(run_id, rng=random.Random(1))
    ended = shop.outcome(run_id)
    assert ended["outcome"] == "ok", ended
    assert_same(content(shop.engine), content(engine))
    assert (
        len(rows(shop.engine, "SELECT FROM recordings")) == 1
    )  # those that were given up are gone, partitions and all
    left = rows(shop.engine, "SELECT FROM pg_class WHERE relname ~ '^andp_activations_[0-9]+$' AND relkind = 'r'")
    assert len(left) == 1


def test_a_data_set_that_has_moved_is_one_error(
    short_blocks: None, engine: sa.Engine, shop: Workshop, material: Path, tmp_path: Path
) -> None:
    _, root = moving(shop, engine, material, tmp_path)
    root.rename(tmp_path / "moved")
    ended = shop.dissect(dataset="moving")
    assert ended["outcome"] == "failed" and "andp datasets relocate moving" in ended["error"]
    assert not rows(shop.engine, "SELECT FROM failures WHERE stage = 'record' AND scope LIKE 'dataset:%'")
    # Once it is where it was, the same run goes on.
    (tmp_path / "moved").rename(root)
    runs.retry(shop.engine, ended["run"], shop.post, window=10)
    shop.work(ended["run"])
    assert shop.outcome(ended["run"])["outcome"] == "ok"


def test_all_the_clips_of_one_block(
    short_blocks: None, engine: sa.Engine, shop: Workshop, material: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A tenth of a data set may be missing, also where that is the whole of a block."""
    monkeypatch.setattr("and_platform.services.record._MOST_MISSING", 0.2)
    here, root = moving(shop, engine, material, tmp_path)
    for name in ("high/high-0.wav", "high/high-1.wav"):
        (root / name).unlink()
    here.dissect("tiny", dataset="moving", layers=["head"])
    assert shop.dissect(dataset="moving", layers=["head"])["outcome"] == "ok"
    assert_same(content(shop.engine), content(engine))


# ---------------------------------------------------------------------- what may go wrong with messages


@pytest.mark.parametrize("seed", range(3))
def test_messages_in_any_order_twice_and_never(
    short_blocks: None, here: api.Platform, engine: sa.Engine, shop: Workshop, seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("ANDP_QUEUE_WINDOW", "3")
    settings.cache_clear()
    here.dissect("tiny", dataset="tones", layers=["head", "b00.*"])
    rng = random.Random(seed)
    run_id = shop.start(layers=["head", "b00.*"])
    shop.work(run_id, rng=rng, twice=0.3, lost=0.2)
    while shop.post.messages:  # those that are late change nothing
        shop.deliver(shop.next(rng))
    ended = shop.outcome(run_id)
    assert ended["outcome"] == "ok", ended
    assert_same(content(shop.engine), content(engine))
    assert set(shop.done_keys.values()) == {1}
    units = rows(shop.engine, "SELECT key, state, attempts FROM work_units")
    assert {unit.key for unit in units} == set(shop.done_keys)
    assert {(unit.state, unit.attempts) for unit in units} == {("done", 1)}


def test_two_runs_share_their_work(here: api.Platform, engine: sa.Engine, shop: Workshop) -> None:
    for top_k in (5, 3):
        here.dissect("tiny", dataset="tones", layers=["head"], top_k=top_k)
    one, other = shop.start(layers=["head"]), shop.start(layers=["head"], top_k=3)
    assert shop.start(layers=["head"]) == one  # a second client joins the first
    shop.work(one, other, rng=random.Random(0), twice=0.2)
    assert {shop.outcome(run_id)["outcome"] for run_id in (one, other)} == {"ok"}
    assert_same(content(shop.engine), content(engine))
    assert set(shop.done_keys.values()) == {1}
    shared = rows(shop.engine, "SELECT key FROM work_units GROUP BY key HAVING count(*) = 2")
    assert {row.key.partition(":")[0] for row in shared} & {"record", "caption", "score"}


def test_two_runs_that_meet_the_same_clip(
    short_blocks: None, engine: sa.Engine, shop: Workshop, material: Path, tmp_path: Path
) -> None:
    here, root = moving(shop, engine, material, tmp_path)
    (root / SPOILED[1]).unlink()
    for top_k in (5, 3):
        here.dissect("tiny", dataset="moving", layers=["head"], top_k=top_k)
    started = [shop.start(dataset="moving", layers=["head"], top_k=top_k) for top_k in (5, 3)]
    shop.work(*started, rng=random.Random(2))
    assert {shop.outcome(run_id)["outcome"] for run_id in started} == {"ok"}
    assert_same(content(shop.engine), content(engine))


def test_cancelled_and_taken_up_again(here: api.Platform, engine: sa.Engine, shop: Workshop) -> None:
    here.dissect("tiny", dataset="tones", layers=["head"])
    run_id = shop.start(layers=["head"])
    while not shop.done_steps["record"]:  # one of two
        shop.deliver(shop.next())
    assert runs.cancel(shop.engine, run_id) > 0
    with pytest.raises(ConflictError, match="is over already: cancelled"):
        runs.cancel(shop.engine, run_id)
    done = sum(shop.done_steps.values())
    while shop.post.messages:  # nothing more is done
        shop.deliver(shop.next())
    shop.later()
    shop.sweep()
    assert not shop.post.messages and sum(shop.done_steps.values()) == done
    assert shop.outcome(run_id)["outcome"] == "cancelled"
    assert runs.retry(shop.engine, run_id, shop.post, window=10) > 0
    with pytest.raises(ConflictError, match="is still going"):
        runs.retry(shop.engine, run_id, shop.post, window=10)
    shop.work(run_id, rng=random.Random(0))
    assert shop.outcome(run_id)["outcome"] == "ok"
    assert_same(content(shop.engine), content(engine))
    # Retried once more, there is nothing to do; the same request as a run of its own is refused while it goes.
    assert runs.retry(shop.engine, run_id, shop.post, window=10) == 0
    shop.work(run_id)
    assert shop.outcome(run_id)["outcome"] == "ok"
    twin = shop.start(layers=["head"])
    with pytest.raises(ConflictError, match=f"run {twin} does the same"):
        runs.retry(shop.engine, run_id, shop.post, window=10)


def test_what_cannot_be_steered(here: api.Platform, engine: sa.Engine, shop: Workshop) -> None:
    here.dissect("tiny", dataset="tones", layers=["head"])
    (run,) = rows(engine, "SELECT id FROM runs WHERE command = 'dissect'")
    for steer in (
        lambda run_id: runs.cancel(engine, run_id),
        lambda run_id: runs.retry(engine, run_id, shop.post, window=1),
    ):
        with pytest.raises(ConflictError, match="by the process that began it"):
            steer(run.id)
        with pytest.raises(NotFoundError, match="no run 999"):
            steer(999)
    with pytest.raises(NotFoundError):
        shop.start("nobody")
    with pytest.raises(ConfigError, match="ANDP_LLM_API_KEY") as refused:
        shop.start(llm="openai:m@http://127.0.0.1:9/v1", llm_options={"api_key": "hush-hush"})
    assert "hush" not in str(refused.value)


def test_a_failed_clip_that_comes_late_is_used(
    here: api.Platform, engine: sa.Engine, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip that fails for good leaves a gap of its own; retried after all the rest was done, it fills it."""
    monkeypatch.setenv("ANDP_UNIT_SIZE", "1")  # all clips in one unit
    settings.cache_clear()
    from and_platform.backends import registry
    from and_platform.backends.base import BackendRecipe

    broken = {"noise-3"}

    class Captioner:
        recipe = BackendRecipe("fake", "1")
        rate = None
        batch_size = 4

        def caption_batch(self, clips: Any) -> list[str]:
            if any(stem in clip.key for clip in clips for stem in broken):
                raise RuntimeError("the model fell over")
            return [f"A sound of the kind {clip.key.split('/')[0]}." for clip in clips]

    create = registry.create
    monkeypatch.setattr(
        registry, "create",
        lambda role, spec, **options: Captioner() if role == "captioner" else create(role, spec, **options),
    )  # fmt: skip
    ended = shop.dissect(layers=["head"], captioner="fake")
    assert ended["outcome"] == "ok" and ended["counts"]["open_failures"] == 1
    assert set(shop.failures) == {("caption", "RuntimeError")} and shop.retries == 2
    (failure,) = rows(shop.engine, "SELECT unit, reason, detail FROM failures WHERE resolved_at IS NULL")
    assert failure.unit == "noise/noise-3.wav" and "the model fell over" in failure.reason
    assert f"andp runs retry {ended['run']}" in failure.reason and "Traceback" in failure.detail
    assert rows(shop.engine, "SELECT missing FROM scorings")[0].missing == [11]
    broken.clear()
    assert runs.retry(shop.engine, ended["run"], shop.post, window=10) == 1
    shop.work(ended["run"])
    assert shop.outcome(ended["run"])["counts"]["open_failures"] == 0
    here.dissect("tiny", dataset="tones", layers=["head"], captioner="fake")
    assert_same(content(shop.engine), content(engine))


def test_a_run_that_cannot_be_planned_on_ends(shop: Workshop, tmp_path: Path) -> None:
    """A file that is gone when the run gets there: the run says so, and does not wait for ever."""
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(CAPTIONS), "utf-8")
    run_id = shop.start(layers=["head"], captioner=f"file:{file}")
    shop.deliver(shop.next())
    file.unlink()
    shop.work(run_id)
    ended = shop.outcome(run_id)
    assert ended["outcome"] == "failed" and "cannot read the captions" in ended["error"]
    file.write_text(json.dumps(CAPTIONS), "utf-8")
    runs.retry(shop.engine, run_id, shop.post, window=10)
    shop.work(run_id)
    assert shop.outcome(run_id)["outcome"] == "ok"
