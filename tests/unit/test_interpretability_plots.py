"""Figures of clusters and uninterpretable neurons: what they draw, from rows made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from and_platform.errors import InputError
from and_platform.plots import interpretability as plots
from and_platform.plots import style


def rows(*networks: str, ks: tuple[int, ...] = (5,), chance: float = 0.4) -> list[dict[str, Any]]:
    """Two blocks and a head; the share rises with tau and falls with the block."""
    found = []
    for index, network in enumerate(networks or ("net",)):
        for k in ks:
            for tau in range(1, k + 1):
                for block, kind in ((0, "all"), (0, "ff_in"), (1, "all"), (1, "ff_in"), (1, "head")):
                    share = 0.1 * index + 0.6 * tau / k - 0.05 * block
                    found.append(
                        {
                            "network": network, "block": block, "layer_kind": kind, "k": k, "tau": tau, "share": share,
                            "low": max(0, share - 0.04), "high": share + 0.06, "chance": chance,
                        }
                    )  # fmt: skip
    return found


def lines(ax: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> x and y of the lines with a label."""
    handles, labels = ax.get_legend_handles_labels()
    found = {}
    for handle, label in zip(handles, labels, strict=True):
        line = handle.lines[0] if hasattr(handle, "lines") else handle
        found[label] = (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
    return found


def text_of(figure: Any) -> str:
    return style.render(figure, "svg").decode()


def test_blocks_draws_a_line_for_each_network_and_the_level_of_chance() -> None:
    figure = plots.blocks(rows("a", "b"), 4, 5, "sounds · a, b · recipe 0123456789 · n = 9 neurons")
    (ax,) = figure.axes
    drawn = lines(ax)
    assert set(drawn) == {"a", "b", "random clips"}
    assert drawn["a"][1] == pytest.approx([48, 43])
    assert drawn["b"][1] == pytest.approx([58, 53])
    assert drawn["random clips"][1] == pytest.approx([40, 40])
    # Side by side, round the block's number.
    assert np.mean([drawn["a"][0], drawn["b"][0]], axis=0) == pytest.approx([0, 1])
    assert drawn["a"][0][0] < drawn["b"][0][0]
    bottom, top = ax.get_ylim()
    assert bottom < 0 and 64 < top < 103
    assert "recipe 0123456789 · n = 9 neurons" in text_of(figure)
    assert "τ = 4 of K = 5" in text_of(figure)


def test_intervals_are_drawn_from_low_to_high() -> None:
    figure = plots.blocks(rows("a"), 5, 5, "")
    (bars,) = [container for container in figure.axes[0].containers if container.get_label() == "a"]
    ends = [segment[:, 1].tolist() for segment in bars[2][0].get_segments()]
    assert ends == [pytest.approx([56, 66]), pytest.approx([51, 61])]


def test_networks_on_other_clusters_have_a_level_of_their_own() -> None:
    drawn = lines(plots.blocks([*rows("a"), *rows("b", chance=0.7)], 4, 5, "").axes[0])
    assert drawn["random clips, a"][1] == pytest.approx([40, 40])
    assert drawn["random clips, b"][1] == pytest.approx([70, 70])


def test_by_kind_has_a_panel_for_each_network_and_a_point_for_the_head() -> None:
    figure = plots.blocks(rows("a", "b"), 4, 5, "", by_kind=True)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b"]
    drawn = lines(figure.axes[1])
    assert set(drawn) == {"all of the block", "feed-forward, hidden", "head", "random clips"}
    assert drawn["head"][1] == pytest.approx([53])
    assert drawn["all of the block"][1] == pytest.approx([58, 53])


def test_layers_outside_blocks_stand_after_the_last() -> None:
    outside = [{**row, "block": None} for row in rows("a") if row["layer_kind"] == "head"]
    figure = plots.blocks([*rows("a"), *[{**row, "layer_kind": "all"} for row in outside]], 4, 5, "")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "outside"]
    alone = plots.blocks([{**row, "layer_kind": "all"} for row in outside], 4, 5, "")
    assert [label.get_text() for label in alone.axes[0].get_xticklabels()] == ["outside"]


def test_grid_has_a_panel_for_each_k_and_tau_of_the_paper() -> None:
    figure = plots.grid(rows("a", "b", ks=(5, 10, 20)), "of two")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        f"K = {k}, τ = {tau}" for k, taus in ((5, (3, 4, 5)), (10, (6, 8, 10)), (20, (12, 16, 20))) for tau in taus
    ]
    assert lines(figure.axes[4])["a"][1] == pytest.approx([48, 43])
    assert "of two" in text_of(figure)
    assert "head" in lines(plots.grid(rows(ks=(5, 10)), "", by_kind=True).axes[0])


def test_grid_of_a_k_too_small_for_three_tau() -> None:
    figure = plots.grid(rows(ks=(2, 5)), "")
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == [
        "K = 2, τ = 2", "K = 5, τ = 3", "K = 5, τ = 4", "K = 5, τ = 5",
    ]  # fmt: skip


def test_elbow_marks_the_number_chosen() -> None:
    curve = [(1, 9.0), (2, 4.0), (3, 1.0), (4, 0.8)]
    figure = plots.elbow(curve, 3, "captions")
    line, _, mark = figure.axes[0].lines
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == curve
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([3], [1.0])
    assert "3 clusters" in text_of(figure)


CLUSTERS = [
    {"cluster": 1, "n_captions": 1119, "n_sentences": 2565, "words": {"rain": 9, "roof": 4, "wind": 1}},
    {"cluster": 2, "n_captions": 3, "n_sentences": 4, "words": {}},
]


def test_clouds_say_captions_and_sentences_and_are_the_same_each_time() -> None:
    figure = plots.clouds(CLUSTERS, "captions")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Cluster 1  (1,119 / 2,565)", "Cluster 2  (3 / 4)"]
    (image,) = figure.axes[0].images
    pixels = np.asarray(image.get_array())
    assert (pixels < 200).any() and pixels.shape[2] == 3
    assert figure.axes[1].images[:] == []
    assert "stop words alone" in text_of(figure)
    again = np.asarray(plots.clouds(CLUSTERS, "captions").axes[0].images[0].get_array())
    assert (pixels == again).all()


def test_a_cloud_as_svg_has_its_words_as_text() -> None:
    svg = plots.cloud_svg(CLUSTERS[0])
    assert svg.startswith("<svg") and svg == plots.cloud_svg(CLUSTERS[0])
    for word in ("rain", "roof", "wind"):
        assert f">{word}</text>" in svg
    assert style.colour(0) in svg


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(InputError, match="nothing at tau = 9 and K = 5"):
        plots.blocks(rows(), 9, 5, "")
    with pytest.raises(InputError, match="no neurons to draw"):
        plots.grid([], "")
    with pytest.raises(InputError, match="of one network"):
        plots.grid(rows("a", "b"), "", by_kind=True)
    with pytest.raises(InputError, match="the number of clusters was given"):
        plots.elbow([], 3, "")
    with pytest.raises(InputError, match="no clusters to draw"):
        plots.clouds([], "")
