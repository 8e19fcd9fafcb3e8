"""The figure of people's ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from and_platform.plots import study, style


def row(method: str, counts: list[int], rating: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"method": method, "counts": counts, "n_ratings": sum(counts), "rating": rating, "low": low, "high": high}


def test_bars_are_shares_and_points_are_means(tmp_path: Path) -> None:
    figure = study.ratings(
        [
            row("summary", [0, 1, 1, 0, 2], 3.75, 3.0, 4.5),
            row("closed_db", [4, 0, 0, 0, 0], 1.0, None, None),
            row("closed_tab", [0] * 5, None, None, None),
        ],
        "sample · net · recipe 0123456789 · n = 4 neurons",
    )
    shares, means = figure.axes
    assert [label.get_text() for label in shares.get_yticklabels()] == [
        "calibrated summary",
        "concept by captions (DB)",
    ]
    widths = [[bar.get_width() for bar in bars] for bars in shares.containers]
    assert widths == [[0, 100], [25, 0], [25, 0], [0, 0], [50, 0]]
    interval, *points = [line.get_xdata() for line in means.lines]
    assert list(interval) == [3.0, 4.5]
    assert [float(x[0]) for x in points] == pytest.approx([3.75, 1.0])
    text = style.save(figure, tmp_path / "ratings.svg").read_text("utf-8")
    assert "n = 4 neurons" in text and "closed_tab" not in text
