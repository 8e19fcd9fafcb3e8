"""Figures of the evaluation."""

from __future__ import annotations

from typing import Any

from and_platform.plots import evaluation, style


def layer(name: str, explanation: str, reference: str, auprc: list[float]) -> dict[str, Any]:
    return {"layer": name, "explanation": explanation, "reference": reference, "auprc": auprc, "null_auprc": 0.1}


def test_a_panel_for_each_explanation_that_has_scores() -> None:
    rows = [
        layer("b00.ff_in", "best_label", "labels", [0.2, 0.4, 0.9]),
        layer("b00.ff_in", "summary", "scores", [0.3]),
        layer("b00.ff_in", "closed_db", "labels", []),
        layer("head", "best_label", "labels", [0.9, 1.0]),
    ]
    figure = evaluation.explanations(rows, "sounds · net · recipe 0123456789 · n = 5 neurons")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in shown] == ["Best label", "Calibrated summary, against captions"]
    assert [text.get_text() for text in shown[0].get_xticklabels()] == ["b00.ff_in", "head"]
    medians = [line.get_ydata()[0] for line in shown[0].lines if len(set(line.get_ydata())) == 1]
    assert {0.4, 0.95} <= {round(float(value), 6) for value in medians}
    assert "recipe 0123456789" in figure.get_supxlabel()
    assert style.render(figure, "svg").startswith(b"<?xml")


def test_nothing_scored_is_an_empty_figure() -> None:
    assert style.render(evaluation.explanations([], "nothing"), "png").startswith(b"\x89PNG")


def test_the_stated_function_is_filled() -> None:
    def row(similarity: str, value: float | None, speaks: bool) -> dict[str, Any]:
        return {
            "method": "db", "similarity": similarity, "speaks": speaks, "over": "all", "measure": "top_1", "value": value,
            "low": None if value is None else value - 0.1, "high": value,
        }  # fmt: skip

    rows = [row("cos", 0.5, False), row("cos_cubed", 0.8, True), row("wpmi", None, False)]
    figure = evaluation.last_layer(rows, "n = 3 classes", chance=0.2)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "by captions (DB), cos",
        "by captions (DB), cos cubed",
    ]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [point.get_markerfacecolor() for point in points] == ["white", style.colour(0)]
