"""What the figures of unlearning show of their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from and_platform.errors import InputError
from and_platform.plots import style, unlearning

SAID = {"network": "net", "dataset": "levels", "recipe": "0123456789", "held_out_clips": 5, "strategy": "open",
        "concept": "rain", "n_neurons": 1200, "status": "complete"}  # fmt: skip


def classes() -> list[dict[str, Any]]:
    figures = {"dog": (0.9, 0.2), "rain": (0.8, 0.7), "siren": (None, None), "wind": (0.5, 0.6)}
    return [
        {"class": name, "is_target": name == "rain", **SAID,
         **{f"{measure}_{when}": value for measure in unlearning.MEASURES
            for when, value in zip(("before", "after"), values, strict=True)}}
        for name, values in figures.items()
    ]  # fmt: skip


def point(concept: str, n: int, gap: float, *, draws: int = 20, whole: bool = False) -> dict[str, Any]:
    row: dict[str, Any] = {
        **SAID,
        "concept": concept,
        "n_neurons": n,
        "draws": draws,
        "whole_plan": whole,
        "margin": gap,
    }
    for change in ("d_a", "d_r", "gap"):
        row |= {change: gap, f"draws_{change}": 0.0, f"draws_{change}_low": -0.1, f"draws_{change}_high": 0.1}
    return row


def texts(figure: Any) -> list[str]:
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return [text for text in found if text]


def test_the_target_comes_first_then_who_lost_most_and_nobody_without_clips() -> None:
    assert [row["class"] for row in unlearning.ordered(classes(), "probability")] == ["rain", "dog", "wind"]


def test_figure_10_marks_the_target_and_says_where_it_is_from() -> None:
    figure = unlearning.figure10(classes())
    (ax,) = figure.axes
    labels = ax.get_yticklabels()
    assert [label.get_text() for label in labels] == ["rain", "dog", "wind"]
    assert [label.get_color() == style.TARGET for label in labels] == [True, False, False]
    shown = {tuple(float(x) for x in line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2}
    assert shown == {(0.8, 0.7), (0.9, 0.2), (0.5, 0.6)}
    told = texts(figure)
    assert "“rain” ablated: 1,200 neurons, open concepts" in told
    assert "levels · net · recipe 0123456789 · n = 5 held-out clips, 3 classes" in told


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(InputError, match="no measure 'loudness'; choose from: probability, logit, accuracy"):
        unlearning.figure10(classes(), "loudness")


def test_table_4_draws_a_bar_for_each_change_and_its_interval() -> None:
    ends = {
        f"{change}_{end}": value for change in ("d_a", "d_r", "gap") for end, value in (("low", -2.0), ("high", 1.0))
    }
    rows = [
        {**SAID, "strategy": "open", "neurons": 3.5, "targets": 2, "d_a": -1.5, "d_r": -0.5, "gap": 1.0, **ends},
        {**SAID, "strategy": "random", "neurons": 3000.0, "targets": 1, "d_a": -0.2, "d_r": -0.2, "gap": 0.0,
         **dict.fromkeys(ends)},
    ]  # fmt: skip
    figure = unlearning.table4(rows)
    left, right = figure.axes
    assert [patch.get_width() for patch in left.patches] == [-1.5, -0.2, -0.5, -0.2]
    assert [patch.get_width() for patch in right.patches] == [1.0, 0.0]
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "open concepts\n4 neurons",
        "random\n3,000 neurons",
    ]
    assert len(right.containers) == 2  # the bars, and the interval of the one that has one


def test_a_sweep_of_one_target_has_three_panels_along_the_number_of_neurons() -> None:
    figure = unlearning.sweep([point("rain", 10, 0.3), point("rain", 40, 0.7, whole=True)])
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "Target class: ΔA", "Other classes: ΔR", "The gap: ΔR − ΔA"
    ]  # fmt: skip
    line = next(line for line in figure.axes[2].lines if line.get_label() == "open concepts")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([10, 40], [0.3, 0.7])
    assert "95 % of 20 random draws" in texts(figure)


def test_a_concept_that_is_no_class_has_one_panel() -> None:
    rows = [point("hiss", 10, 0.3, whole=True)]
    rows[0] |= {"d_a": None, "gap": None, "margin": None, "draws_d_a": None, "draws_gap": None}
    assert [ax.get_title(loc="left") for ax in unlearning.sweep(rows).axes] == ["Other classes: ΔR"]


def test_several_targets_stand_under_each_other_by_margin() -> None:
    rows = [point("dog", 3, 0.05, whole=True), point("rain", 1, 0.01), point("rain", 7, 0.4, whole=True)]
    figure = unlearning.sweep(rows)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rain · 7", "dog · 3"]
    filled = {
        float(line.get_xdata()[0]): line.get_markerfacecolor()
        for line in ax.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert filled == {0.4: style.TARGET, 0.05: "white"}


def test_a_sweep_without_draws_says_to_go_on() -> None:
    with pytest.raises(InputError, match="run the sweep again"):
        unlearning.sweep([point("rain", 3, 0.1, draws=0)])


def test_the_figures_can_be_written(tmp_path: Path) -> None:
    path = style.save(unlearning.figure10(classes(), "logit"), tmp_path / "figures" / "one.svg")
    assert "“rain” ablated" in path.read_text("utf-8")
