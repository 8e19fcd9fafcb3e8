"""How a report shows values, holds sounds, takes figures in, and says how to make it again."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from and_platform.errors import InputError
from and_platform.escaping import for_spreadsheet
from and_platform.plots import report as plots
from and_platform.plots import style
from and_platform.services.experiments import Subject
from and_platform.services.report import formats, render, sounds, writing
from and_platform.services.report.about import commands
from and_platform.services.report.work import Options

# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "decimals", "told"),
    [
        (1234.5678, 1, "1,234.6"), (-0.5, 2, "−0.50"), (-0.001, 2, "0.00"), (0.0, 0, "0"), (math.nan, 2, "–"),
        (math.inf, 2, "–"),
    ],
)  # fmt: skip
def test_number(value: float, decimals: int, told: str) -> None:
    assert formats.number(value, decimals) == told


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        ([], 0), ([1, 2, 30], 0), ([None, 2.0], 0), ([0.5, 0.25], 3), ([1.5, 12.25], 2), ([150.5, 2.5], 1), ([1500.5, 20.5], 0),
        ([0.0123], 4), ([0.0303, 1781.0], None), ([math.nan, 0.5], 3),
    ],
)  # fmt: skip
def test_a_column_has_one_number_of_decimals(values: list[Any], decimals: int | None) -> None:
    assert formats.decimals_of(values) == decimals


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"), (True, "yes"), (False, "no"), (7, "7"), (-7, "−7"), (12_345, "12,345"), (Decimal("0.5"), "0.50"),
        (0.125, "0.12"),
        (["a", None], "a, –"), ([], "–"), ({"a": 1}, "a 1"), ("", "–"), ("x", "x"),
    ],
)  # fmt: skip
def test_cell(value: Any, told: str) -> None:
    assert formats.cell(value) == told


def test_shares_p_values_and_sizes() -> None:
    assert [formats.share(v) for v in (None, 0.0, 0.635, 1)] == ["–", "0.0 %", "63.5 %", "100.0 %"]
    assert [formats.p_value(v) for v in (None, 0.0, 0.0009, 0.001, 0.25)] == [
        "–",
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.250",
    ]
    assert [formats.size(n) for n in (10, 999_000, 1_300_000)] == ["1 kB", "999 kB", "1.3 MB"]


def test_an_interval_stands_in_the_cell_of_its_value() -> None:
    rows = [
        {"who": "a", "gap": 1.5, "gap_low": -0.25, "gap_high": 2.0, "mean": 0.5, "lo": 0.25, "hi": 0.75, "p": 0.0},
        {"who": "b", "gap": 2.0, "gap_low": None, "gap_high": None, "mean": None, "lo": None, "hi": None, "p": 0.5},
    ]
    headings, cells = formats.grid(
        rows,
        {"who": "who", "gap": "gap", "mean": "share", "p": "p"},
        shares=("mean",),
        intervals={"mean": ("lo", "hi")},
    )
    assert [(h["text"], h["numeric"]) for h in headings] == [
        ("who", False),
        ("gap", True),
        ("share", True),
        ("p", True),
    ]
    assert cells == [
        ["a", "1.50 [−0.25, 2.00]", "50.0 [25.0, 75.0] %", "< 0.001"],
        ["b", "2.00", "–", "0.500"],
    ]


def test_without_columns_all_are_shown_but_the_ends_of_intervals() -> None:
    headings, cells = formats.grid([{"n_clips": 3, "gap": 1.5, "gap_low": 1.0, "gap_high": 2.0, "told": "1 / 2.5"}])
    assert [h["text"] for h in headings] == ["n clips", "gap", "told"]
    assert all(h["numeric"] for h in headings)
    assert cells == [["3", "1.50 [1.00, 2.00]", "1 / 2.5"]]
    assert formats.grid([]) == ([], [])


@given(
    st.lists(
        st.fixed_dictionaries({
            "a": st.integers() | st.none(),
            "b": st.text(st.characters(codec="utf-8", exclude_characters="\r\0")),
        }),
        min_size=1, max_size=5,
    )
)  # fmt: skip
def test_csv_holds_what_the_rows_hold(rows: list[dict[str, Any]]) -> None:
    read = list(csv.DictReader(io.StringIO(formats.to_csv(rows))))
    assert read == [
        {
            key: "" if value is None else for_spreadsheet(value) if key == "b" else str(value)
            for key, value in row.items()
        }
        for row in rows
    ]


def test_csv_joins_arrays_and_writes_objects_as_json() -> None:
    assert formats.to_csv([{"a": ["x", "y"], "b": {"c": 1}}]) == 'a,b\nx;y,"{""c"": 1}"\n'
    assert formats.to_csv([]) == ""


# ---------------------------------------------------------------------- sounds


def _tone(rate: int, seconds: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def _file(folder: Path, name: str, rate: int = 8000, seconds: float = 0.5) -> tuple[str, str]:
    soundfile.write(folder / name, _tone(rate, seconds), rate)
    return name, hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(("rate", "kept"), [(8000, 8000), (44_100, 32_000)])
def test_a_sound_is_encoded_small_and_can_be_read_again(rate: int, kept: int) -> None:
    content = sounds.encode(_tone(rate, 1.0), rate)
    wave, found = soundfile.read(io.BytesIO(content))
    assert found == kept
    assert len(wave) == pytest.approx(kept, rel=0.01)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.1)
    assert len(content) < 2 * rate / 4


def test_each_clip_is_held_once(tmp_path: Path) -> None:
    name, sha = _file(tmp_path, "a.wav")
    store = sounds.Store()
    assert store.add(1, str(tmp_path), name, "dog", sha)
    spent = store.spent
    assert store.add(1, str(tmp_path), name, "dog", sha)
    assert (len(store.sounds), store.spent, store.notes()) == (1, spent, [])
    kind, _, content = store.sounds[1].uri.partition(",")
    assert kind == "data:audio/ogg;base64"
    assert len(base64.b64decode(content)) == spent


def test_what_a_page_does_without_is_said(tmp_path: Path) -> None:
    short, long, changed = _file(tmp_path, "a.wav"), _file(tmp_path, "b.wav", seconds=12.0), _file(tmp_path, "c.wav")
    store = sounds.Store(budget=len(sounds.encode(_tone(8000, 10.0), 8000)) + 10)
    assert store.add(1, str(tmp_path), long[0], None, long[1])
    assert not store.add(2, str(tmp_path), short[0], None, short[1])
    assert not store.add(3, str(tmp_path), "no.wav", None, "")
    assert not store.add(4, str(tmp_path), changed[0], None, "another hash")
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(store.sounds[1].uri.partition(",")[2])))
    assert len(wave) / rate == pytest.approx(10.0, abs=0.1)
    assert (store.cut, store.beyond, set(store.unreadable)) == ({1}, {2}, {"no.wav", "c.wav"})
    assert store.unreadable["c.wav"] == "changed: the file is not the one that was ingested"
    assert len(store.notes()) == 3


# ---------------------------------------------------------------------- figures and text


def test_a_figure_in_a_page_has_ids_of_its_own() -> None:
    rows = [{"layer": "head", "neurons": 3, "described": 2, "points_kept": 1.5, "points_dropped": 0.5}]
    drawn = style.render(plots.layers(rows, "sounds · net · recipe 0123456789 · n = 3 neurons"), "svg").decode()
    text = render.inline_svg(drawn, "layers", "Summaries <by> layer")
    assert text.startswith("<svg") and "<metadata>" not in text and "<?xml" not in text
    assert all(name.startswith("layers-") for name in re.findall(r'\bid="([^"]+)"', text))
    pointed = {name for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text) for name in pair if name}
    assert pointed <= set(re.findall(r'\bid="([^"]+)"', text))
    assert 'aria-label="Summaries &lt;by&gt; layer"' in text
    assert "n = 3 neurons" in text
    ElementTree.fromstring(text)


def test_quality_of_several_networks_shares_axes() -> None:
    rows = [
        {"network": network, "layer": layer, "explanation": "closed_db", "reference": "labels", "mean_auprc": value,
         "null_auprc": 0.1}
        for network, values in (("a", [0.2, 0.4, 0.6]), ("b", [0.3, None]))
        for layer, value in zip(("b00", "b01", "head"), values, strict=False)
    ]  # fmt: skip
    (axis,) = plots.quality(rows, "footer").axes
    drawn = [line.get_xydata().tolist() for line in axis.lines]
    assert drawn[0] == [[0.0, 0.2], [0.5, 0.4], [1.0, 0.6]]
    assert drawn[2] == [[0.0, 0.3]]
    assert axis.get_title(loc="left") == "Concept by captions, against labels"


def test_networks_stand_on_the_rungs_of_one_axis() -> None:
    rows = [
        {"network": network, "chosen_by": how, **dict.fromkeys(("d_a", "d_r", "gap"), value),
         **{f"{key}_{end}": value + step for key in ("d_a", "d_r", "gap") for end, step in (("low", -1), ("high", 1))}}
        for network, how, value in (("a", "random", 0.0), ("a", "open", 2.0), ("b", "open", 3.0))
    ]  # fmt: skip
    axes = plots.unlearning(rows, "footer").axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["random", "open"]
    by_network = {line.get_label(): line.get_xydata() for line in axes[2].lines if not line.get_label().startswith("_")}
    assert [x for x, _ in by_network["a"]] == [0.0, 2.0] and [x for x, _ in by_network["b"]] == [3.0]
    assert by_network["a"][1][1] < 1 < by_network["b"][0][1]
    measured = [
        {"network": network, "method": "db", "similarity": "cos", "over": over, "measure": measure, "value": value, "low": 0.1,
         "high": 0.9}
        for network in ("a", "b") for over in ("all", "right") for measure, value in (("top_1", 0.25), ("top_5", 0.5))
    ]  # fmt: skip
    top_1, top_5 = plots.last_layer(measured, "footer").axes
    assert [line.get_xdata().tolist() for line in top_1.lines] == [[0.25], [0.25]]
    assert [line.get_xdata().tolist() for line in top_5.lines] == [[0.5], [0.5]]


def test_points_are_marked_in_captions() -> None:
    points = [{"point": "It is <loud>.", "kept": True}, {"point": "It hums.", "kept": False}]
    assert render.marked("A dog. It is <loud>. It hums.", points) == (
        'A dog. <mark class="kept">It is &lt;loud&gt;.</mark> <mark class="gone">It hums.</mark>'
    )
    removing = [{"point": "It hums.", "removed": ["It hums."]}, {"point": "A dog.", "removed": []}]
    assert render.marked("A dog. It hums.", removing) == (
        '<mark class="kept">A dog.</mark> <mark class="gone">It hums.</mark>'
    )


# ---------------------------------------------------------------------- settings and places


ABOUT = Subject(1, "f" * 64, 1, "my net", "sounds", 1, 1, "animals", 1, 8, 5, ["db"], ["head"])


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ({}, ["andp dissect 'my net' --dataset sounds"]),
        ({"dataset": "sounds", "top_k": 5, "methods": [], "min_support": [3, 2]}, ["andp dissect 'my net' --dataset sounds"]),
        (
            {"top_k": 10, "layers": ["b0*", "head"], "all_similarities": True, "methods": ["db", "tab"], "stages": ["match"]},
            ["andp dissect 'my net' --dataset sounds --top-k 10 --layers 'b0*,head' --all-similarities --method db,tab"],
        ),
        (
            {"min_support": [4]},
            ["andp dissect 'my net' --dataset sounds --config dissect.toml", "# dissect.toml, [dissect]: min_support = [4]"],
        ),
    ],
)  # fmt: skip
def test_the_command_of_a_dissection(config: dict[str, Any], lines: list[str]) -> None:
    assert commands(ABOUT, config) == lines


def test_an_unknown_section_is_told() -> None:
    with pytest.raises(InputError, match="no section 'sweeps' to skip; choose from: about, "):
        Options(skip=("sweeps",))


def test_a_report_goes_where_nothing_else_lies(tmp_path: Path) -> None:
    writing.check(tmp_path / "new")
    writing.check(tmp_path)
    (tmp_path / "index.html").write_text('<meta name="generator" content="andp report">')
    writing.check(tmp_path)
    (tmp_path / "index.html").write_text("<p>mine</p>")
    with pytest.raises(InputError, match="holds something else"):
        writing.check(tmp_path)
    writing.check(tmp_path, force=True)
    with pytest.raises(InputError, match="is a file"):
        writing.check(tmp_path / "index.html", force=True)


def test_what_lay_there_stays_and_an_old_report_goes(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "old.csv").write_text("a\n1\n")
    made = writing.write(tmp_path, [], sounds.Store(), title="T <1>", subtitle="", facts=[], made="now")
    assert made.page == tmp_path / "index.html"
    assert "<title>T &lt;1&gt;</title>" in made.page.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "index.html", "notes.txt", "tables"]
    assert list((tmp_path / "tables").iterdir()) == []


def test_a_page_is_written_as_html_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end it with \.html"):
        writing.write_page(tmp_path / "x.txt", [], sounds.Store(), title="", subtitle="", facts=[], made="")
