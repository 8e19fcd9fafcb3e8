"""Studies: what is drawn and written, what is taken back in, and what comes out."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa

from and_platform import db
from and_platform.backends import bertscore
from and_platform.errors import (
    AudioError,
    ConflictError,
    IncompleteError,
    InputError,
    MissingExtraError,
    NotFoundError,
)
from and_platform.queries import study as queries
from and_platform.schema import Study, StudyDescription
from and_platform.services import dissections, study
from tests import factories, studies, tiny
from tests.factories import World


@pytest.fixture
def world(engine: sa.Engine, tmp_path: Path) -> World:
    with db.transaction(engine) as session:
        made = studies.world(session, tmp_path / "sounds")
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(engine: sa.Engine, query: str) -> list[Any]:
    with db.reading(engine) as session:
        return list(session.execute(sa.text(query)).all())


# ---------------------------------------------------------------------- export


def test_export_draws_per_layer_and_leaves_out_what_is_not_described(
    engine: sa.Engine, world: World, tmp_path: Path
) -> None:
    done = study.export(engine, "net", tmp_path / "out", per_layer=5, exemplars=3)
    assert (done.name, done.new, done.methods) == ("net", True, ["closed_db", "closed_tab", "summary"])
    # Four of the first layer have all three descriptions; the head is not asked for.
    drawn = Counter(row.layer for row in rows_of(engine, "SELECT DISTINCT item, layer FROM study_results"))
    assert drawn == {"b00.ff_in": 4, "b01.ff_in": 5}
    assert done.notes == ["fewer than 5 neurons with a description by every method in 1 of 2 layers (b00.ff_in 4)"]
    neurons = {row.neuron for row in rows_of(engine, "SELECT neuron FROM study_results")}
    assert not neurons & {"b00.ff_in#0", "b00.ff_in#1"}
    assert (done.neurons, done.descriptions) == (9, 27)
    with db.reading(engine) as session:
        [row] = session.scalars(sa.select(Study)).all()
        drawn_rows = queries.study_drawn(
            session, study=row.id, dissection=world.dissection.id, layers=["b00.ff_in", "head"]
        )
    assert [(one["layer"], one["drawn"], one["n_units"]) for one in drawn_rows] == [("b00.ff_in", 4, 6), ("head", 0, 3)]


def test_the_draw_is_the_smallest_hashes_of_each_layer(engine: sa.Engine, world: World, tmp_path: Path) -> None:
    study.export(engine, "net", tmp_path / "out", per_layer=2, layers=["b01.*"], seed=7)
    drawn = {row.neuron for row in rows_of(engine, "SELECT neuron FROM study_results")}
    hashes = sorted((hashlib.md5(f"7b01.ff_in#{unit}".encode()).hexdigest(), f"b01.ff_in#{unit}") for unit in range(6))
    assert drawn == {name for _, name in hashes[:2]}


def test_the_folder_is_the_same_each_time_and_another_seed_gives_another(
    engine: sa.Engine, world: World, tmp_path: Path
) -> None:
    one = study.export(engine, "net", tmp_path / "one", per_layer=3, exemplars=2)
    two = study.export(engine, "net", tmp_path / "two", per_layer=3, exemplars=2)
    assert (one.token, one.new, two.new) == (two.token, True, False)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    study.drop(engine, "net")
    again = study.export(engine, "net", tmp_path / "again", per_layer=3, exemplars=2)
    assert again.token == one.token
    assert files_of(tmp_path / "one") == files_of(tmp_path / "again")
    other = study.export(engine, "net", tmp_path / "other", name="other", per_layer=3, exemplars=2, seed=1)
    assert other.token != one.token
    assert studies.data_of(tmp_path / "other")["items"] != studies.data_of(tmp_path / "one")["items"]


def test_the_folder_tells_neither_method_nor_neuron_nor_label(engine: sa.Engine, world: World, tmp_path: Path) -> None:
    study.export(engine, "net", tmp_path / "out", name="blind", per_layer=6, exemplars=3)
    data = studies.data_of(tmp_path / "out")
    everything = (tmp_path / "out" / "index.html").read_text("utf-8") + " ".join(files_of(tmp_path / "out"))
    for word in ("closed_", "calibrated", "summary'", "ff_in#", "layer", "net", "sounds of", "siren.", "seed"):
        assert word not in re.sub(r"It sounds like [^\"]*", "", json.dumps(data)), word
    for label in factories.LABELS:
        assert not any(label in name for name in files_of(tmp_path / "out"))
    assert "http://" not in everything.replace("http://www.w3.org/2000/svg", "") and "https://" not in everything
    assert set(data) == {"format", "version", "study", "name", "question", "steps", "items"}
    for item in data["items"]:
        assert set(item) == {"item", "clips", "descriptions"}
        assert [sorted(one) for one in item["descriptions"]] == [["slot", "text"]] * 3
        assert [one["slot"] for one in item["descriptions"]] == ["A", "B", "C"]
        assert all(re.fullmatch(r"audio/[0-9a-f]{12}\.flac", clip) for clip in item["clips"])
    # The order is another one from neuron to neuron: no slot is always the same method.
    slots = rows_of(engine, "SELECT slot, count(DISTINCT method) AS n FROM study_descriptions GROUP BY slot")
    assert all(row.n > 1 for row in slots)
    # What is shown is what the database says, in its slot.
    with db.reading(engine) as session:
        stored = {(row.item, row.slot): row.text for row in session.scalars(sa.select(StudyDescription))}
    assert stored == {
        (item["item"], one["slot"]): one["text"] for item in data["items"] for one in item["descriptions"]
    }
    assert any("</script>" in text for text in stored.values())


@pytest.mark.parametrize("audio", ["flac", "mp3"])
def test_clips_are_the_most_active_ones_and_can_be_played(
    engine: sa.Engine, world: World, tmp_path: Path, audio: str
) -> None:
    done = study.export(engine, "net", tmp_path / "out", per_layer=1, layers=["b01.ff_in"], exemplars=3, audio=audio)
    [(neuron,)] = rows_of(engine, "SELECT DISTINCT neuron FROM study_results")
    values = world.values["b01.ff_in"][int(neuron.partition("#")[2])]
    expected = [200 + 50 * int(i) for i in np.argsort(-values.astype(float), kind="stable")[:3]]
    [item] = studies.data_of(tmp_path / "out")["items"]
    heard = []
    for clip in item["clips"]:
        wave, rate = soundfile.read(tmp_path / "out" / clip)
        assert wave.ndim == 1 and len(wave) / rate >= 0.5
        # One channel of two is silent: the mean of both is what the network hears.
        assert np.abs(wave).max() == pytest.approx(0.25, abs=0.03)
        heard.append(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))
    assert heard == pytest.approx(expected, abs=5)
    assert done.clips == 3


def test_the_note_says_what_to_do(engine: sa.Engine, world: World, tmp_path: Path) -> None:
    study.export(engine, "net", tmp_path / "out", name="pilot", per_layer=1, exemplars=2)
    note = (tmp_path / "out" / "README.txt").read_text("utf-8")
    assert note.startswith("pilot\nA listening study: 2 groups of up to 2 short clips") and "{{" not in note


def test_a_full_folder_is_refused_or_replaced(engine: sa.Engine, world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    study.export(engine, "net", out, per_layer=1)
    files = files_of(out)
    with pytest.raises(InputError, match="is not empty"):
        study.export(engine, "net", out, name="more", per_layer=2)
    assert files_of(out) == files and [row.name for row in rows_of(engine, "SELECT name FROM studies")] == ["net"]
    assert not study.export(engine, "net", out, per_layer=1).new  # the same study, as after a kill
    assert files_of(out) == files
    study.export(engine, "net", out, name="more", per_layer=2, force=True)
    assert studies.data_of(out)["name"] == "more"
    (out / "thesis.tex").write_text("years of work", "utf-8")
    with pytest.raises(InputError, match=r"holds something else than a study \(thesis.tex\)"):
        study.export(engine, "net", out, per_layer=1, force=True)
    with pytest.raises(InputError, match="is a file"):
        study.export(engine, "net", out / "thesis.tex", per_layer=1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_name_stands_for_one_choice_of_options(engine: sa.Engine, world: World, tmp_path: Path) -> None:
    study.export(engine, "net", tmp_path / "out", per_layer=1)
    with pytest.raises(ConflictError, match="'net' with per-layer 1 instead of 2, seed 0 instead of 4; give this one"):
        study.export(engine, "net", tmp_path / "b", per_layer=2, seed=4)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_clip_that_cannot_be_written_leaves_nothing(
    engine: sa.Engine, world: World, tmp_path: Path, damage: str
) -> None:
    for path in (tmp_path / "sounds").rglob("*.wav"):
        if damage == "gone":
            path.unlink()
        else:
            soundfile.write(path, np.zeros(100), studies.RATE)
    with pytest.raises(AudioError, match="missing" if damage == "gone" else "not the one that was ingested"):
        study.export(engine, "net", tmp_path / "out", per_layer=1)
    assert rows_of(engine, "SELECT 1 FROM studies") == []
    assert [path.name for path in tmp_path.iterdir()] == ["sounds"]


def test_options_that_cannot_be_used_are_told(engine: sa.Engine, world: World, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **options: Any) -> None:
        with pytest.raises(error, match=match):
            study.export(engine, "net", tmp_path / "out", **options)

    refused(InputError, "0 neurons per layer", per_layer=0)
    refused(InputError, "21 exemplars", exemplars=21)
    refused(InputError, "up to 18 digits", seed=2**63)
    refused(InputError, "no method 'sumary'; choose of closed_db", methods=["sumary"])
    refused(InputError, "'wav'; choose flac or mp3", audio="wav")
    refused(InputError, r"matches 'b07\.\*'; there are: b00.ff_in, b01.ff_in, head", layers=["b07.*"])
    with pytest.raises(NotFoundError, match="no network 'nett'"):
        study.export(engine, "nett", tmp_path / "out")


def test_a_dissection_without_a_method_says_what_to_run(engine: sa.Engine, tmp_path: Path) -> None:
    with db.transaction(engine) as session:
        factories.world(session)  # db and icl only, few descriptions
        studies.give_sounds(session, tmp_path / "sounds")
    with pytest.raises(IncompleteError, match="made without the method tab; give it an encoder"):
        study.export(engine, "net", tmp_path / "out", methods=["closed_tab"])
    with pytest.raises(
        IncompleteError, match=r"no neuron of b00.ff_in is described by closed_db and summary; run: andp d"
    ):
        study.export(engine, "net", tmp_path / "out")
    done = study.export(engine, "net", tmp_path / "out", layers=["head"], methods=["closed_icl", "summary"])
    assert (done.neurons, done.methods) == (2, ["closed_icl", "summary"])
    by_default = study.export(engine, "net", tmp_path / "b", name="b", layers=["head"])
    assert by_default.notes[0].startswith("closed_tab is left out: the dissection was made without the method tab")


# ---------------------------------------------------------------------- answers


@pytest.fixture
def made(engine: sa.Engine, world: World, tmp_path: Path) -> study.Exported:
    """A study of four neurons, two descriptions each."""
    return study.export(
        engine, "net", tmp_path / "out", per_layer=2, methods=["closed_db", "summary"], exemplars=2, name="pilot"
    )


@pytest.fixture
def methods(engine: sa.Engine, made: study.Exported) -> dict[tuple[int, str], str]:
    """(item, method) -> slot."""
    with db.reading(engine) as session:
        return {(row.item, row.method): row.slot for row in session.scalars(sa.select(StudyDescription))}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, made: study.Exported) -> Write:
    """Write a file of answers; `changes` go over its head."""

    def write(code: str, answers: list[dict[str, Any]], /, **changes: Any) -> Path:
        path = tmp_path / f"{code}.json"
        head = {"format": "and-platform study answers", "version": 1, "study": made.token, "name": made.name}
        content = {**head, "rater": code, "saved_at": "2026-01-01T00:00:00Z", "answers": answers, **changes}
        path.write_text(json.dumps(content), "utf-8")
        return path

    return write


def answer(item: int, summary: str = "", **ratings: int) -> dict[str, Any]:
    return {"item": item, "summary": summary, "ratings": ratings}


def test_import_counts_what_was_answered(engine: sa.Engine, write: Write) -> None:
    path = write("R1", [answer(1, " a dog \n", A=5, B=1), answer(2, A=3), answer(3, "rain"), answer(4)])
    done = study.import_file(engine, path)
    assert (done.outcome, done.study, done.rater) == ("imported", "pilot", "R1")
    assert (done.neurons, done.of_neurons, done.ratings, done.of_ratings, done.summaries) == (3, 4, 3, 8, 2)
    assert rows_of(engine, "SELECT rater, item, slot, rating FROM study_ratings ORDER BY 2, 3") == [
        ("R1", 1, "A", 5), ("R1", 1, "B", 1), ("R1", 2, "A", 3),
    ]  # fmt: skip
    assert rows_of(engine, "SELECT item, text FROM study_summaries ORDER BY 1") == [(1, "a dog"), (3, "rain")]


def test_the_same_file_again_changes_nothing_and_another_needs_replace(engine: sa.Engine, write: Write) -> None:
    study.import_file(engine, write("R1", [answer(1, "a dog", A=5, B=1)]))
    assert study.import_file(engine, write("R1", [answer(1, "a dog", A=5, B=1)])).outcome == "unchanged"
    other = write("R1", [answer(2, "rain", A=2)])
    with pytest.raises(ConflictError, match=r"R1 has answered this study before \(2 ratings, 1 summaries\).*--replace"):
        study.import_file(engine, other)
    assert study.import_file(engine, write("R2", [answer(1, A=4)])).outcome == "imported"
    assert study.import_file(engine, write("R1", [answer(2, "rain", A=2)]), replace=True).outcome == "replaced"
    assert rows_of(engine, "SELECT rater, item, slot, rating FROM study_ratings ORDER BY 1, 2") == [
        ("R1", 2, "A", 2), ("R2", 1, "A", 4),
    ]  # fmt: skip
    assert rows_of(engine, "SELECT item, text FROM study_summaries") == [(2, "rain")]


@pytest.mark.parametrize(
    ("answers", "changes", "reason"),
    [
        ([answer(1, A=6)], {}, r"answers\[0\].ratings.A: input should be less than or equal to 5"),
        ([answer(1, A=0)], {}, "greater than or equal to 1"),
        ([answer(1, A=2.5)], {}, r"answers\[0\].ratings.A"),  # type: ignore[arg-type]
        ([answer(1, A=True)], {}, r"answers\[0\].ratings.A"),
        ([answer(1, A="4")], {}, r"answers\[0\].ratings.A"),  # type: ignore[arg-type]
        ([answer(1, C=4)], {}, "item 1: there is no description 'C', only A, B"),
        ([answer(9, A=4)], {}, "item 9: the study has items 1 to 4"),
        ([answer(1, A=4), answer(1, B=4)], {}, "answers: item 1 stands there twice"),
        ([answer(1, "nul \0", A=4)], {}, "holds a NUL character"),
        ([{"item": 1, "stars": 4}], {}, r"answers\[0\].stars: extra inputs are not permitted"),
        ([answer(1)], {}, "holds no answer of rater R1 yet"),
        ([answer(1, A=4)], {"rater": "Jane Doe"}, "has no usable rater's code"),
        ([answer(1, A=4)], {"version": 2}, "is of version 2, this program reads version 1"),
        ([answer(1, A=4)], {"format": "holiday"}, "is no file of answers"),
        ([answer(1, A=4)], {"study": "f" * 24}, r"belongs to a study \('pilot'\) that is not in this database"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(
    engine: sa.Engine, write: Write, answers: list[dict[str, Any]], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises((InputError, NotFoundError), match=reason):
        study.import_file(engine, write("R1", answers, **changes))
    assert rows_of(engine, "SELECT 1 FROM study_ratings UNION SELECT 1 FROM study_summaries") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"format": "and-pl', "is not JSON, or was cut off"),
        (b"[1, 2]", "is no file of answers"),
        (b"\xff\xfe", "is not JSON"),
        (b'"\\ud800"', "is not JSON"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        study.read(tmp_path / "x.json")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        study.read(tmp_path / "none.json")


# ---------------------------------------------------------------------- results


@pytest.fixture
def judged(engine: sa.Engine, write: Write, methods: dict[tuple[int, str], str]) -> None:
    """Two raters. Summaries: neuron 1 (5, 4), 2 (4, 4), 3 (3). Concepts: neuron 1 (1, 2), 2 (2, 2), 4 (5)."""

    def of(item: int, text: str, **by_method: int) -> dict[str, Any]:
        return answer(item, text, **{methods[item, method]: value for method, value in by_method.items()})

    study.import_file(
        engine, write("R1", [of(1, "a dog barks", summary=5, closed_db=1), of(2, "rain falls", summary=4, closed_db=2)])
    )
    study.import_file(
        engine,
        write(
            "R2",
            [
                of(1, "a loud dog", summary=4, closed_db=2), of(2, "", summary=4, closed_db=2), of(3, "siren", summary=3),
                of(4, "", closed_db=5),
            ],
        ),
    )  # fmt: skip


def test_results_by_hand(engine: sa.Engine, judged: None) -> None:
    found = study.results(engine, "pilot")
    summary, concept = found.rows
    # Neurons: 4.5, 4, 3; mean 3.8333, sd 0.76376; t(0.975, 2) = 4.30265, cut at the end of the scale.
    assert (summary["method"], summary["n_neurons"], summary["n_ratings"]) == ("summary", 3, 5)
    assert summary["rating"] == pytest.approx(23 / 6)
    assert summary["low"] == pytest.approx(23 / 6 - 4.30265 * 0.763763 / 3**0.5, abs=1e-4)
    assert summary["high"] == 5
    assert summary["counts"] == [0, 0, 1, 3, 1]
    # Neurons: 1.5, 2, 5; mean 2.8333.
    assert (concept["method"], concept["rating"]) == ("closed_db", pytest.approx(17 / 6))
    assert concept["counts"] == [1, 3, 0, 0, 1]
    # Neurons with both: 4.5 - 1.5 and 4 - 2; mean 2.5, sd 0.7071, t(0.975, 1) = 12.7062.
    [difference] = found.differences
    assert (difference["method"], difference["than"], difference["n_neurons"]) == ("summary", "closed_db", 2)
    assert difference["difference"] == pytest.approx(2.5)
    assert difference["low"] == pytest.approx(2.5 - 12.7062 * 0.5, abs=1e-3)
    # Shared: (5, 4), (1, 2), (4, 4), (2, 2). Values 1, 2 2 2, 4 4 4, 5; ordinal distances below.
    d12, d45 = (0.5 + 1.5) ** 2, (1.5 + 0.5) ** 2
    d14, d15, d24, d25 = (0.5 + 3 + 1.5) ** 2, (0.5 + 3 + 3 + 0.5) ** 2, (1.5 + 1.5) ** 2, (1.5 + 3 + 0.5) ** 2
    expected = 3 * d12 + 3 * d14 + d15 + 9 * d24 + 3 * d25 + 3 * d45
    assert found.agreement == {
        "alpha": pytest.approx(1 - (8 - 1) * (d45 + d12) / expected), "n_raters": 2, "n_shared": 4,
    }  # fmt: skip
    assert [(row["rater"], row["neurons_rated"], row["ratings"], row["summaries"]) for row in found.raters] == [
        ("R1", 2, 4, 2), ("R2", 4, 6, 2),
    ]  # fmt: skip
    assert (found.about["name"], found.about["ratings"], found.about["raters"]) == ("pilot", 10, 2)
    assert re.fullmatch(r"sounds of net · net · recipe \w{10} · n = 3 neurons, 10 ratings, 2 raters", found.footer)


def test_the_cosine_is_that_of_the_sentence_encoder(engine: sa.Engine, judged: None) -> None:
    from and_platform.backends import registry

    summary = next(row for row in study.results(engine, "pilot").rows if row["method"] == "summary")
    encoder = registry.create("encoder", "minilm", device="cpu")
    generated = {
        row.item: row.text
        for row in rows_of(engine, "SELECT item, text FROM study_descriptions WHERE method = 'summary'")
    }

    def cosine(text: str, item: int) -> float:
        a, b = encoder.embed_texts([text, generated[item]])
        return float(a @ b)

    neurons = [
        (cosine("a dog barks", 1) + cosine("a loud dog", 1)) / 2, cosine("rain falls", 2), cosine("siren", 3),
    ]  # fmt: skip
    assert summary["cosine"] == pytest.approx(np.mean(neurons), abs=1e-4)
    assert summary["n_written"] == 4
    half = 4.30265 * np.std(neurons, ddof=1) / 3**0.5
    assert summary["cosine_high"] == pytest.approx(np.mean(neurons) + half, abs=1e-3)


def test_bertscore_is_computed_once_and_shown_until_somebody_writes_more(
    engine: sa.Engine, judged: None, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = study.results(engine, "pilot")
    assert [row["bertscore"] for row in before.rows] == [None, None]
    assert any("--bertscore-model" in note for note in before.notes)
    if not bertscore.installed():
        assert any("and-platform[study]" in note for note in before.notes)
        with pytest.raises(MissingExtraError):
            study.results(engine, "pilot", bertscore_model="x")
        return
    model = str(tiny.bert(tmp_path))
    found = study.results(engine, "pilot", bertscore_model=model, bertscore_layers=1)
    summary = found.rows[0]
    generated = {
        row.item: row.text
        for row in rows_of(engine, "SELECT item, text FROM study_descriptions WHERE method = 'summary'")
    }
    pairs = [(1, "a dog barks"), (1, "a loud dog"), (2, "rain falls"), (3, "siren")]
    f1 = bertscore.BertScore(model, 1).score([generated[item] for item, _ in pairs], [text for _, text in pairs])
    assert summary["bertscore"] == pytest.approx(((f1[0] + f1[1]) / 2 + f1[2] + f1[3]) / 3, abs=1e-5)
    assert not any("BERTScore" in note for note in found.notes)

    def never(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(bertscore.BertScore, "score", never)
    assert study.results(engine, "pilot", bertscore_model=model, bertscore_layers=1).rows == found.rows
    assert study.results(engine, "pilot").rows == found.rows
    study.import_file(engine, write("R3", [answer(4, "low hum")]))
    assert [row["bertscore"] for row in study.results(engine, "pilot").rows] == [None, None]


def test_without_the_package_the_results_say_how_to_get_it(
    engine: sa.Engine, judged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bertscore, "find_spec", lambda _name: None)
    [note] = [note for note in study.results(engine, "pilot").notes if "BERTScore" in note]
    assert "pip install 'and-platform[study]'" in note


def test_a_study_without_answers_says_so(engine: sa.Engine, made: study.Exported) -> None:
    found = study.results(engine)
    assert [(row["method"], row["n_ratings"], row["rating"], row["low"]) for row in found.rows] == [
        ("closed_db", 0, None, None), ("summary", 0, None, None),
    ]  # fmt: skip
    assert found.agreement == {"alpha": None, "n_raters": 0, "n_shared": 0}
    assert "nobody has rated anything yet" in found.notes[0]


def test_one_rater_has_nobody_to_agree_with(engine: sa.Engine, write: Write) -> None:
    study.import_file(engine, write("R1", [answer(1, A=5, B=1)]))
    found = study.results(engine, "pilot")
    assert found.agreement == {"alpha": None, "n_raters": 1, "n_shared": 0}
    assert found.notes == ["one rater only: there is no agreement to measure"]
    assert [(row["low"], row["high"]) for row in found.rows] == [(None, None)] * 2


def test_the_papers_figures_stand_beside(engine: sa.Engine, judged: None) -> None:
    summary, concept = study.with_published(study.results(engine, "pilot").rows)
    assert (summary["paper_rating"], summary["paper_cosine"], summary["paper_bertscore"]) == (3.49, 0.72, 0.46)
    assert (concept["paper_rating"], concept["paper_cosine"], concept["paper_bertscore"]) == (3.24, 0.57, 0.45)


def test_results_without_a_name_are_of_the_latest_study_with_answers(
    engine: sa.Engine, judged: None, tmp_path: Path
) -> None:
    study.export(engine, "net", tmp_path / "later", name="later", per_layer=1)
    assert [row["name"] for row in study.overview(engine)] == ["later", "pilot"]
    assert study.results(engine).about["name"] == "pilot"
    assert study.results(engine, network="net").about["name"] == "pilot"
    with pytest.raises(NotFoundError, match=r"no study 'pilott'; did you mean pilot\?"):
        study.results(engine, "pilott")
    with pytest.raises(NotFoundError, match="no network 'other'"):
        study.results(engine, network="other")


def test_the_view_says_what_was_judged(engine: sa.Engine, judged: None) -> None:
    [row] = rows_of(
        engine,
        "SELECT neuron, description, n_ratings, rating, ratings, written FROM study_results"
        " WHERE study = 'pilot' AND item = 1 AND method = 'summary'",
    )
    assert row.description.startswith(f"It sounds like {row.neuron.replace('#', ' ')}.")
    assert (row.n_ratings, row.rating, row.ratings) == (2, 4.5, [5, 4])
    assert row.written == ["a dog barks", "a loud dog"]


def test_a_study_goes_with_all_that_was_answered(engine: sa.Engine, judged: None) -> None:
    assert study.drop(engine, "pilot") == 10
    assert rows_of(engine, "SELECT 1 FROM study_ratings UNION SELECT 1 FROM study_summaries") == []
    with pytest.raises(NotFoundError, match="no study 'pilot'; see: andp study list"):
        study.drop(engine, "pilot")


def test_a_dissection_that_people_rate_is_kept(engine: sa.Engine, world: World, judged: None) -> None:
    with pytest.raises(ConflictError, match="andp study drop pilot"):
        dissections.drop(engine, world.dissection.id)
    study.drop(engine, "pilot")
    dissections.drop(engine, world.dissection.id)
    assert study.overview(engine) == []
