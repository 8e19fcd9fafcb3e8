"""Dissections from end to end, in this process: every method, every kind of caption, and what is reused."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import api, db
from and_platform.errors import BackendError, ConfigError, IncompleteError, InputError, NotFoundError
from and_platform.services import activations, ask, dissections, networks
from and_platform.services.dissect import Options
from tests import tiny


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny.sounds(folder / "tones", 4)
    tiny.network(folder / "network")
    return folder


@pytest.fixture
def andp_(engine: sa.Engine, material: Path) -> api.Platform:
    platform = api.Platform(engine)
    platform.ingest(material / "tones", processes=1)
    platform.add_network("tiny", material / "network")
    return platform


def rows(engine: sa.Engine, query: str, **params: Any) -> list[Any]:
    with db.reading(engine) as session:
        return list(session.execute(sa.text(query), params).all())


def current(engine: sa.Engine) -> int:
    with db.reading(engine) as session:
        return ask.choose_dissection(session, "tiny")


class LLMServer:
    """An OpenAI-compatible endpoint that answers by rule and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fail = re.compile("(?!)")
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                user = body["messages"][-1]["content"]
                server.asked.append(user)
                status, content = (400, "no") if server.fail.search(user) else (200, server.answer(user))
                told = {
                    "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": len(user.split()), "completion_tokens": len(content.split())},
                }
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.spec = f"openai:test-model@http://127.0.0.1:{self._http.server_port}/v1"

    @staticmethod
    def answer(user: str) -> str:
        if "Can the adjective" in user:
            return "Yes, it is a property of sound." if "loud" in user else "No. It has nothing to do with sound."
        if "select a classname" in user:
            return (
                "The clips hiss.\nAnswer: noise" if "hiss" in user.rpartition("Description:")[2] else "Answer: quacking"
            )
        hissing = user.count("hissing") >= 2
        kind = "a loud hissing noise without any pitch" if hissing else "a clear and steady tone of one pitch"
        return f"Sure! Here are the commonalities:\n1. All of the clips contain {kind}.\n2. Short.\nLet me know if I can help!"

    def close(self) -> None:
        self._http.shutdown()


@pytest.fixture
def llm() -> Iterator[LLMServer]:
    server = LLMServer()
    yield server
    server.close()


def test_offline(andp_: api.Platform, engine: sa.Engine) -> None:
    report = andp_.dissect("tiny", dataset="tones")
    assert {stage.stage for stage in report.stages} == {
        "record",
        "caption",
        "match",
        "summarise",
        "calibrate",
        "extract",
        "embed",
    }
    neurons = rows(engine, "SELECT * FROM current_neuron_descriptions")
    assert len(neurons) == 16 + 24 + 16 + 3
    assert all(row.closed_db in {"high", "low", "noise"} for row in neurons)
    assert all(row.closed_tab is None and row.closed_icl is None for row in neurons)
    assert all(len(row.exemplar_labels) == 5 for row in neurons)
    assert any(row.calibrated_summary for row in neurons)
    # All five functions for the head, one for the others.
    functions = rows(
        engine,
        "SELECT layer, array_agg(DISTINCT similarity ORDER BY similarity) FROM closed_concepts GROUP BY layer ORDER BY layer",
    )
    assert dict(functions)["head"] == ["cos", "cos_cubed", "rank_reorder", "soft_wpmi", "wpmi"]
    assert all(found == ["cos_cubed"] for layer, found in functions if layer != "head")
    # What the recording holds is what the modules give.
    values, paths, labels = andp_.activations("tiny", "head")
    with db.reading(engine) as session:
        loaded = networks.load(networks.find(session, "tiny"))
    from and_platform.backends import audio
    from and_platform.backends.base import Clip
    from and_platform.backends.networks.record import logits_batches

    root = Path(rows(engine, "SELECT root FROM datasets")[0].root)
    clips = [Clip(path, audio.load(root / path, loaded.rate)[0], loaded.rate) for path in paths]
    logits = next(logits_batches(loaded, clips, batch_size=len(clips)))
    assert values.T.astype("float32") == pytest.approx(logits, abs=2e-3)
    assert labels == [path.split("/")[0] for path in paths]


def test_asking(andp_: api.Platform, engine: sa.Engine, tmp_path: Path) -> None:
    andp_.dissect("tiny", dataset="tones")
    found = andp_.neurons("noise", strategy="closed_db", layer="head")
    assert list(found.columns[:3]) == ["neuron", "network", "layer"]
    assert set(found.layer) == {"head"}
    view = andp_.neuron("tiny", "head#2")
    assert view.description["class_name"] == "noise" and "head#2" in repr(view) and "<table" in view._repr_html_()
    assert len(view.exemplars) == 10
    assert view.exemplars[view.exemplars.side == "high"]["rank"].tolist() == [1, 2, 3, 4, 5]
    assert set(view.matches.similarity) >= {"cos_cubed", "soft_wpmi"}
    word = rows(engine, "SELECT term FROM open_concepts WHERE is_open_concept LIMIT 1")[0].term
    assert not andp_.neurons(word).empty
    assert not andp_.search("a noise that hisses", limit=3).empty
    near = andp_.neurons("a noise that hisses", strategy="meaning", limit=4)
    assert near.score.is_monotonic_decreasing and len(near) == 4
    assert andp_.sql("SELECT 1 AS one").one.tolist() == [1]
    for wrong, error in (
        (lambda: andp_.neuron("tiny", "head"), InputError),
        (lambda: andp_.neuron("tiny", "head#99"), NotFoundError),
        (lambda: andp_.neurons("x", strategy="guess"), InputError),
        (lambda: andp_.neurons("quacking", strategy="closed_db"), InputError),
        (lambda: andp_.neurons(" "), InputError),
        (lambda: andp_.sql("DELETE FROM clips"), InputError),
        (lambda: andp_.sql("SELEC"), InputError),
        (lambda: andp_.sql("SELECT pg_sleep(5)", timeout=0.1), InputError),
        (lambda: andp_.sql("SELECT 1", timeout=-1), InputError),
        (lambda: andp_.sql(" -- nothing"), InputError),
        (lambda: andp_.sql("COPY clips TO STDOUT"), InputError),
        (lambda: andp_.sql("COMMIT; DELETE FROM failures"), InputError),
        (lambda: andp_.neurons("noise", limit=0), InputError),
        (lambda: andp_.search("noise", network="nobody"), NotFoundError),
        (lambda: andp_.dissect("tiny", dataset="tones", top_k="five"), ConfigError),
        (lambda: andp_.ingest("tones", kind="unheard"), InputError),
        (lambda: andp_.dissect("nobody"), NotFoundError),
        (lambda: andp_.dissect("tiny", dataset="tones", colour=1), ConfigError),
    ):
        with pytest.raises(error):
            wrong()
    assert andp_.sql("UPDATE datasets SET name = name", write=True).iloc[0, 0] == 1
    assert andp_.sql("SELECT 1 AS a; SELECT 2 AS b", write=True).b.tolist() == [2]
    assert andp_.sql("CREATE TABLE mine (n int)", write=True).done.tolist() == ["CREATE TABLE"]
    # A later dissection with other concepts takes nothing away from what can be asked of the earlier one.
    tiny.sounds(tmp_path / "others")
    (tmp_path / "others" / "high").rename(tmp_path / "others" / "whistle")
    (tmp_path / "others" / "noise").rename(tmp_path / "others" / "hiss")
    andp_.ingest(tmp_path / "others", processes=1)
    later = andp_.dissect("tiny", dataset="others", layers="head").dissection_id
    assert not andp_.neurons("noise", strategy="closed_db").empty
    assert set(andp_.neurons("hiss", strategy="closed_db", top=3, network="tiny").dissection_id) == {later}


def test_llm(andp_: api.Platform, engine: sa.Engine, llm: LLMServer) -> None:
    report = andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head", "b00.attn_out"])
    assert report.open_failures == 0
    answers = rows(engine, "SELECT prompt FROM answers")
    assert report.llm and report.llm.answers == len(answers) and report.llm.completion_tokens > len(answers)
    assert len(answers) == len(llm.asked) == len(set(llm.asked))  # each prompt once, each answer kept
    # Greetings, offers and points of five words or fewer are gone.
    points = {row.point for row in rows(engine, "SELECT point FROM calibrated_summary_points")}
    assert points and all(point.startswith("All of the clips contain") for point in points)
    assert {row.closed_icl for row in rows(engine, "SELECT DISTINCT closed_icl FROM current_neuron_descriptions")} <= {
        "high", "low", "noise", None,
    }  # fmt: skip
    verdicts = dict(rows(engine, "SELECT t.term, v.accepted FROM term_verdicts v JOIN terms t ON t.id = v.term_id"))
    assert set(verdicts) <= {"loud", "clear", "steady"} and not verdicts.get("clear")
    again = len(llm.asked)
    andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head", "b00.attn_out"])
    assert len(llm.asked) == again


def test_llm_that_fails_for_some(andp_: api.Platform, engine: sa.Engine, llm: LLMServer) -> None:
    llm.fail = re.compile(r"summarize[^\n]*\n\n1\. [^\n]*click")  # the most extreme clip is a click
    report = andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head"], methods=["db"])
    assert report.open_failures > 0
    failed = rows(engine, "SELECT unit, reason FROM failures WHERE stage = 'summarise' AND resolved_at IS NULL")
    assert all(re.fullmatch(r"head#\d (high|low)", row.unit) and row.reason for row in failed)
    llm.fail = re.compile("(?!)")
    report = andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head"], methods=["db"])
    assert report.open_failures == 0
    assert len(rows(engine, "SELECT FROM summaries")) == 6 and len(rows(engine, "SELECT FROM calibrations")) == 3
    assert rows(engine, "SELECT status FROM dissections")[0].status == "complete"


def test_failures_are_resolved_one_by_one(andp_: api.Platform, engine: sa.Engine, llm: LLMServer) -> None:
    def failed(stage: str) -> set[str]:
        found = rows(engine, "SELECT unit FROM failures WHERE stage = :stage AND resolved_at IS NULL", stage=stage)
        return {row.unit for row in found}

    llm.fail = re.compile("summarize")
    andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head"], threshold=1.0)
    assert len(failed("summarise")) == 6
    prompt = next(asked for asked in llm.asked if "summarize" in asked)
    llm.fail = re.compile(re.escape(prompt) + "|Can the adjective")
    andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head"], threshold=1.0)
    assert len(failed("summarise")) == 6 - len(rows(engine, "SELECT FROM summaries")) < 6
    assert failed("judge")
    reasons = rows(engine, "SELECT reason FROM failures WHERE stage = 'judge'")
    assert all("400" in row.reason for row in reasons)
    assert not rows(
        engine, "SELECT FROM finished_layers f JOIN recipes r ON r.id = f.recipe_id WHERE stage = 'extract'"
    )
    llm.fail = re.compile("(?!)")
    report = andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head"], threshold=1.0)
    assert report.open_failures == 0 and not failed("summarise") | failed("judge")
    llm.fail = re.compile("summarize")
    third = andp_.dissect("tiny", dataset="tones", llm=llm.spec, layers=["head"], threshold=1.0, top_k=3)
    assert third.open_failures > 0
    dissections.drop(engine, third.dissection_id)
    assert not failed("summarise")  # with the dissection goes what it left open


def test_tab_with_a_tiny_clap(andp_: api.Platform, engine: sa.Engine, clap_dir: Path) -> None:
    andp_.dissect("tiny", dataset="tones", audio_encoder=f"clap:{clap_dir}")
    neurons = rows(engine, "SELECT closed_db, closed_tab, closed_tab_score FROM current_neuron_descriptions")
    assert all(row.closed_tab in {"high", "low", "noise"} and row.closed_tab_score is not None for row in neurons)
    speaking = rows(engine, "SELECT DISTINCT method, similarity FROM closed_concepts WHERE speaks ORDER BY 1")
    assert speaking == [("db", "cos_cubed"), ("tab", "soft_wpmi")]
    assert len(rows(engine, "SELECT FROM clip_embeddings")) == 12


def test_captions_by_an_audio_language_model(andp_: api.Platform, engine: sa.Engine, whisper_dir: Path) -> None:
    andp_.dissect("tiny", dataset="tones", captioner=f"audio-lm:{whisper_dir}", stages=["record", "caption"],
                  captioner_options={"max_tokens": 16})  # fmt: skip
    captioned = len(rows(engine, "SELECT FROM captions"))
    failed = len(rows(engine, "SELECT FROM failures WHERE stage = 'caption'"))
    assert captioned + failed == 12


def test_captions_from_a_file_with_some_missing(andp_: api.Platform, engine: sa.Engine, tmp_path: Path) -> None:
    told = {
        row.path: f"A {row.label} sound. It is a recording of {row.label}."
        for row in rows(engine, "SELECT path, labels[1] AS label FROM clips ORDER BY id")[:10]
    }
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(told))
    andp_.dissect("tiny", dataset="tones", captioner=f"file:{file}")
    assert rows(engine, "SELECT missing FROM scorings")[0].missing == [10, 11]
    assert all(row.names_label for row in rows(engine, "SELECT names_label FROM captions"))
    assert len(rows(engine, "SELECT FROM closed_concepts WHERE rank = 1 AND speaks")) == 59
    recording = rows(engine, "SELECT id FROM recordings")[0].id
    with pytest.raises(Exception, match="2 clips have no score"):
        rows(engine, "SELECT * FROM match_concepts(:r, 'tones-labels')", r=recording)


def test_layers_are_added_and_dissections_compared(andp_: api.Platform, engine: sa.Engine) -> None:
    first = andp_.dissect("tiny", dataset="tones", layers=["head"])
    second = andp_.dissect("tiny", dataset="tones")
    assert first.dissection_id == second.dissection_id  # the same recipes: one dissection, more layers
    computed = {stage.stage: stage.computed for stage in second.stages}
    assert computed["record"] == 3 and computed["summarise"] == 3 and computed["caption"] == 0
    third = andp_.dissect("tiny", dataset="tones", top_k=3)
    assert third.dissection_id != first.dissection_id
    told = dissections.diff(engine, first.dissection_id, third.dissection_id)
    assert {row["stage"] for row in told["recipes"]} == {"summarise", "calibrate", "extract"}
    assert told["neurons"]["neurons"] == 59 and told["neurons"]["other_closed_db"] == 0
    assert current(engine) == third.dissection_id
    dissections.pin(engine, first.dissection_id)
    assert current(engine) == first.dissection_id
    kept = len(rows(engine, "SELECT FROM concept_matches"))
    assert dissections.drop(engine, third.dissection_id) > 0
    assert len(rows(engine, "SELECT FROM concept_matches")) == kept  # the other one uses them
    assert len(rows(engine, "SELECT FROM current_neuron_descriptions WHERE calibrated_summary IS NOT NULL")) == 59
    with pytest.raises(NotFoundError):
        dissections.show(engine, third.dissection_id)


def test_several_stretches_say_the_same(
    andp_: api.Platform, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = (
        "SELECT neuron, closed_db, closed_db_score, calibrated_summary FROM current_neuron_descriptions ORDER BY neuron"
    )
    andp_.dissect("tiny", dataset="tones")
    whole = rows(engine, query)
    cosines = rows(
        engine, "SELECT * FROM match_concepts((SELECT max(id) FROM recordings), 'tones-labels', 'cos', 3) ORDER BY 1, 2"
    )
    report = andp_.dissections().iloc[0]
    dissections.drop(engine, int(report.id))
    from and_platform.services import record

    record.drop(engine, rows(engine, "SELECT id FROM recordings")[0].id)
    monkeypatch.setattr(activations, "BLOCK", 3)
    monkeypatch.setattr(activations, "STRETCH", 6)
    andp_.dissect("tiny", dataset="tones")
    assert {row.stretch for row in rows(engine, "SELECT DISTINCT stretch FROM activations")} == {0, 1}
    parts = rows(engine, query)
    assert [row[:2] + row[3:] for row in parts] == [row[:2] + row[3:] for row in whole]
    assert [row.closed_db_score for row in parts] == pytest.approx([row.closed_db_score for row in whole], abs=1e-5)
    again = rows(
        engine, "SELECT * FROM match_concepts((SELECT max(id) FROM recordings), 'tones-labels', 'cos', 3) ORDER BY 1, 2"
    )
    assert [row.concept for row in again] == [row.concept for row in cosines]
    assert [row.score for row in again] == pytest.approx([row.score for row in cosines], abs=1e-5)


def test_clips_that_cannot_be_read_are_left_out(andp_: api.Platform, engine: sa.Engine, tmp_path: Path) -> None:
    tiny.sounds(tmp_path / "moving", 4)
    andp_.ingest(tmp_path / "moving", processes=1)
    (tmp_path / "moving" / "low" / "low-1.wav").unlink()
    report = andp_.dissect("tiny", dataset="moving", layers=["head"])
    assert report.failed_clips == ["low/low-1.wav"]
    values, paths, _ = andp_.activations("tiny", "head", dataset="moving")
    assert values.shape == (3, 11) and "low/low-1.wav" not in paths
    assert len(rows(engine, "SELECT FROM recordings")) == 1  # the one that was given up is gone
    # Back again, and ingested again, it is in the next snapshot.
    tiny.sounds(tmp_path / "moving", 4)
    andp_.ingest(tmp_path / "moving", processes=1)
    andp_.dissect("tiny", dataset="moving", layers=["head"])
    assert andp_.activations("tiny", "head", dataset="moving")[0].shape == (3, 12)
    # A data set that is gone as a whole is one error.
    (tmp_path / "moving").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="relocate"):
        andp_.dissect("tiny", dataset="moving", layers=["b00.ff_in"])


def test_a_clip_that_fails_late_costs_one_block(
    andp_: api.Platform, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from and_platform.services import record

    monkeypatch.setattr(activations, "BLOCK", 3)
    monkeypatch.setattr(activations, "STRETCH", 6)
    tiny.sounds(tmp_path / "moving", 4)
    andp_.ingest(tmp_path / "moving", processes=1)
    (tmp_path / "moving" / "noise" / "noise-2.wav").unlink()  # in the last block of the second stretch
    with db.reading(engine) as session:
        network = networks.find(session, "tiny")
    report = record.record(engine, network, networks.load(network), "moving", layers=["head"])
    assert report.failed_clips == ["noise/noise-2.wav"] and report.blocks_computed == 1
    andp_.dissect("tiny", dataset="tones", layers=["head"])
    left, _, _ = andp_.activations("tiny", "head", dataset="moving")
    whole, paths, _ = andp_.activations("tiny", "head", dataset="tones")
    kept = [path != "noise/noise-2.wav" for path in paths]
    assert left.astype("float32") == pytest.approx(whole[:, kept].astype("float32"), abs=2e-3)


def test_a_recording_is_gone_on_with_in_the_blocks_it_was_begun_in(
    andp_: api.Platform, engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with others, and killed; and taken over when a clip cannot be read."""
    from and_platform.services import record

    monkeypatch.setattr(activations, "BLOCK", 3)
    monkeypatch.setattr(activations, "STRETCH", 12)
    tiny.sounds(tmp_path / "moving", 4)
    andp_.ingest(tmp_path / "moving", processes=1)
    with db.reading(engine) as session:
        network = networks.find(session, "tiny")
    loaded, land, landed = networks.load(network), activations.land, []

    def killed(session: Session, recording_id: int, block: int, values: dict[int, activations.Half]) -> None:
        if block == 2:
            raise KeyboardInterrupt
        land(session, recording_id, block, values)
        landed.append((block, {len(of_layer) for of_layer in values.values()}))

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(activations, "land", killed)
        record.record(engine, network, loaded, "moving", layers=["head"])
    assert landed == [(0, {3}), (1, {3})]
    monkeypatch.setattr(activations, "BLOCK", 6)
    (tmp_path / "moving" / "noise" / "noise-2.wav").unlink()  # in the last block
    report = record.record(engine, network, loaded, "moving", layers=["head"])
    assert report.blocks_computed == 1 and report.failed_clips == ["noise/noise-2.wav"]
    assert [row.block_clips for row in rows(engine, "SELECT block_clips FROM recordings")] == [3]
    assert record.record(engine, network, loaded, "tones", layers=["head"]).blocks_computed == 2


def test_nothing_is_made_of_captions_that_are_still_to_come(andp_: api.Platform, engine: sa.Engine) -> None:
    for stage in ("summarise", "match"):
        with pytest.raises(IncompleteError, match="12 clips wait for their captions"):
            andp_.dissect("tiny", dataset="tones", layers=["head"], stages=["record", stage])
    assert not rows(engine, "SELECT FROM summaries") and not rows(engine, "SELECT FROM finished_layers")
    andp_.dissect("tiny", dataset="tones", layers=["head"], stages=["caption"])
    andp_.dissect("tiny", dataset="tones", layers=["head"], stages=["match", "summarise"])
    assert any(row.text for row in rows(engine, "SELECT text FROM summaries"))


def test_a_caption_that_comes_late_is_used(
    andp_: api.Platform, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from and_platform.backends import registry
    from and_platform.backends.base import BackendRecipe
    from and_platform.errors import GenerationError

    broken = {"noise-3"}

    class Captioner:
        recipe = BackendRecipe("fake", "1")
        rate = None
        batch_size = 4

        def caption_batch(self, clips: Any) -> list[str | Exception]:
            return [
                GenerationError("no caption")
                if any(stem in clip.key for stem in broken)
                else f"A sound of the kind {clip.key.split('/')[0]}."
                for clip in clips
            ]

    create = registry.create
    monkeypatch.setattr(
        registry, "create",
        lambda role, spec, **options: Captioner() if role == "captioner" else create(role, spec, **options),
    )  # fmt: skip
    for expected in ([11], [11], []):
        report = andp_.dissect("tiny", dataset="tones", layers=["head"], captioner="fake")
        assert rows(engine, "SELECT missing FROM scorings") == [(expected,)]
        assert report.open_failures == bool(expected)
        assert rows(engine, "SELECT status FROM dissections") == [("complete",)]
        assert len(rows(engine, "SELECT FROM current_neuron_descriptions WHERE calibrated_summary IS NOT NULL")) == 3
        if len(rows(engine, "SELECT FROM runs WHERE command = 'dissect'")) == 2:
            assert all(stage.computed == 0 for stage in report.stages)  # failed again: nothing is made anew
            broken.clear()


def test_captions_that_were_corrected_are_used(andp_: api.Platform, engine: sa.Engine, material: Path) -> None:
    manifest = material / "told.csv"
    for told in ("A gate squeaks.", "A brook babbles."):
        paths = sorted(path.relative_to(material) for path in (material / "tones").rglob("*.wav"))
        manifest.write_text("path,label,caption\n" + "".join(f"{path},{path.parent.name},{told}\n" for path in paths))
        andp_.ingest(manifest, processes=1)
        andp_.dissect("tiny", dataset="told", layers=["head"], captioner="source")
        said = rows(engine, "SELECT DISTINCT summary FROM current_neuron_descriptions WHERE dataset = 'told'")
        assert [row.summary for row in said] == [told]


def test_the_same_network_and_files_under_two_names(
    andp_: api.Platform, engine: sa.Engine, material: Path, tmp_path: Path
) -> None:
    andp_.add_network("twin", material / "network")
    tiny.sounds(tmp_path / "others", 4)
    andp_.ingest(tmp_path / "others", processes=1)
    for network, dataset in (("tiny", "tones"), ("twin", "tones"), ("tiny", "others")):
        andp_.dissect(network, dataset=dataset, layers=["head"])
        assert andp_.activations(network, "head", dataset=dataset)[0].shape == (3, 12)
    shown = rows(engine, "SELECT network, dataset, count(*) FROM exemplar_clips GROUP BY 1, 2 ORDER BY 1, 2")
    assert shown == [("tiny", "others", 72), ("tiny", "tones", 72), ("twin", "tones", 72)]


def test_more_sentences_than_a_statement_has_parameters(andp_: api.Platform, engine: sa.Engine) -> None:
    from and_platform.services.exemplar_captions import read_captions

    andp_.dissect("tiny", dataset="tones", layers=["head"], stages=["caption"])
    with db.transaction(engine) as session:
        session.execute(
            sa.text(
                "WITH made AS (INSERT INTO texts (text) SELECT 'Sentence ' || i FROM generate_series(1, 66000) i"
                " RETURNING id) INSERT INTO caption_sentences (caption_id, ordinal, text_id)"
                " SELECT (SELECT min(id) FROM captions), 100 + row_number() OVER (), id FROM made"
            )
        )
        caption = session.execute(sa.text("SELECT recipe_id FROM captions LIMIT 1")).scalar_one()
        probing = session.execute(sa.text("SELECT id FROM probing_sets")).scalar_one()
        assert len(read_captions(session, probing, 12, caption).texts) > 66_000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 21}, "top_k"),
        ({"threshold": 1.5}, "threshold"),
        ({"stages": ("guess",)}, "no stage 'guess'"),
        ({"methods": ("icl",)}, "needs an LLM"),
        ({"methods": ("tab",)}, "encoder of sound"),
        ({"similarity": "cosine"}, "cos_cubed"),
        ({"judge": "llm"}, "no LLM is set"),
    ],
)
def test_options_that_make_no_sense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Options(**given)


def test_an_llm_that_is_not_there(andp_: api.Platform, engine: sa.Engine, llm: LLMServer) -> None:
    options = {"attempts": 2, "first_wait_s": 0.01}
    with pytest.raises(BackendError, match="is the server running"):
        andp_.dissect(
            "tiny", dataset="tones", llm="openai:m@http://127.0.0.1:9/v1", llm_options=options, layers=["head"]
        )
    assert not rows(engine, "SELECT FROM failures")  # one error, not one for each neuron
    assert rows(engine, "SELECT outcome, error FROM runs ORDER BY id DESC LIMIT 1")[0].outcome == "failed"
    with pytest.raises(ConfigError, match="does not take these options"):
        andp_.dissect("tiny", dataset="tones", llm=llm.spec, llm_options={"colour": 1})
