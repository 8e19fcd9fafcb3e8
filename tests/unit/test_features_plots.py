"""Figures of features: what is drawn is what the rows say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from and_platform.errors import InputError
from and_platform.plots import features, style

SOURCE: dict[str, Any] = {"dataset": "sounds", "recipe": "abc"}


def text(figure: Any) -> str:
    return style.render(figure, "svg").decode()


def test_adjectives() -> None:
    rows = [
        {"network": network, "adjective": word, "n_neurons": n, "share": n / 50, "of_neurons": 50, **SOURCE}
        for network, words in {"one": [("loud", 20), ("clear", 5)], "two": [("deep", 1500)]}.items()
        for word, n in words
    ]
    figure = features.adjectives(rows)
    one, two = figure.axes
    assert [bar.get_width() for bar in one.patches] == pytest.approx([40, 10])
    assert [label.get_text() for label in one.get_yticklabels()] == ["loud", "clear"]
    assert one.yaxis_inverted() and two.yaxis_inverted()  # the commonest on top
    drawn = text(figure)
    for told in ("1,500", "sounds · one, two · recipe abc · n = 50 + 50 neurons"):
        assert told in drawn
    with pytest.raises(InputError, match="nothing to draw"):
        features.adjectives([])


def block(network: str, number: int, mean: float, **more: Any) -> dict[str, Any]:
    told = {"low": mean - 1, "high": mean + 1, "fitted": mean, "fitted_low": mean, "fitted_high": mean}
    return {"network": network, "block": number, "mean": mean, **told, **more, **SOURCE}


def test_blocks() -> None:
    lonely = dict.fromkeys(("low", "high", "fitted", "fitted_low", "fitted_high"))
    rows = [block("deep", 0, 3.0), block("deep", 1, 2.0), block("flat", 0, 1.0, **lonely)]
    fits: list[dict[str, Any]] = [
        {"network": "deep", "slope": -1.0, "slope_low": -1.5, "slope_high": -0.5, "n_neurons": 1234},
        {"network": "flat", "slope": None, "slope_low": None, "slope_high": None, "n_neurons": 1},
    ]
    figure = features.blocks(rows, fits)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_legend().get_texts()] == [
        "deep: -1.000 a block [-1.500, -0.500]", "flat",
    ]  # fmt: skip
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]
    assert "n = 1,234 + 1 neurons" in text(figure)


def ablated(criterion: str, share: float, seed: int, n: int, accuracy: float) -> dict[str, Any]:
    return {"criterion": criterion, "share": share, "seed": seed, "n_neurons": n, "actual_share": n / 10, "accuracy": accuracy,
            "accuracy_before": 0.9, "n_clips": 40, "hidden_neurons": 1000, "network": "net", **SOURCE}  # fmt: skip


def test_ablation_has_the_panels_that_there_are_rows_for() -> None:
    rows = [
        ablated("nouns", 2, 0, 20, 0.8), ablated("nouns", 4, 0, 40, 0.6), ablated("nouns", 4, 1, 40, 0.8),
        ablated("adjective:loud", 2, 0, 20, 0.7), ablated("adjective:loud", 4, 0, 30, 0.5),
        ablated("adjective:absent", 2, 0, 0, 0.9), ablated("random", 2, 0, 20, 0.9),
    ]  # fmt: skip
    figure = features.ablation(rows)
    words, single = figure.axes
    assert [ax.get_title(loc="left")[:3] for ax in figure.axes] == ["(a)", "(c)"]
    lines = {line.get_label(): line for line in (*words.get_lines(), *single.get_lines())}
    assert set(lines) == {"intact", "random", "nouns", "loud", "absent (in none)"}
    assert np.asarray(lines["nouns"].get_xydata()) == pytest.approx(np.array([[2, 80], [4, 70]]))
    # fewer neurons than 4 %: drawn where it is, not where it was asked for
    assert np.asarray(lines["loud"].get_xydata()) == pytest.approx(np.array([[2, 70], [3, 50]]))
    assert "40 held-out clips (one: 2.5 %), 1,000 hidden neurons, 2 seeds" in text(figure)


def test_random_alone() -> None:
    (ax,) = features.ablation([ablated("random", 2, 0, 20, 0.9)]).axes
    assert {line.get_label() for line in ax.get_lines()} == {"intact", "random"}


def test_acoustics() -> None:
    told: dict[str, Any] = {
        "network": "net", "word": "loud", "unit": "mean absolute amplitude", "k": 5, "n_with": 3, "n_without": 2,
        "median_with": 2.0, "median_without": 1500.0, "rank_biserial": 0.5, "hedges_g": 1.0, "g_low": 0.5, "g_high": 1.5,
        "values": {"with": [1, 2, 3], "without": [1000, 2000]}, "caution": None, **SOURCE,
    }  # fmt: skip
    figure = features.acoustics(told)
    (ax,) = figure.axes
    legend = ax.get_legend()
    assert {label.get_text() for label in legend.get_texts()} == {
        "2 neurons without it, median 1,500", "3 neurons with it, median 2",
    }  # fmt: skip
    assert legend.get_title().get_text() == "rank-biserial r = +0.50; Hedges' g = +1.00 [+0.50, +1.50]"
    both = features.acoustics([told, {**told, "hedges_g": None, "caution": "made from measurements"}])
    assert both.axes[1].get_legend().get_title().get_text() == "rank-biserial r = +0.50"
    drawn = text(both)
    assert "made from measurements" in drawn and "n = 5 neurons" in drawn
