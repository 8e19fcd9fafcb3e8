"""Measures of explanations: exactly scikit-learn's, and what chance gives."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from and_platform.core import metrics


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Activations with many ties, and which clips are positive."""
    n = draw(st.integers(2, 25))
    rows = draw(hnp.arrays(np.float16, (3, n), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0])))
    rows[2] = rows[2, 0]  # constant
    positives = draw(hnp.arrays(bool, n))
    positives[draw(st.integers(0, n - 1))] = True
    return rows, positives


@given(cases())
@settings(max_examples=200, deadline=None)
def test_average_precision_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    rows, positives = case
    expected = [average_precision_score(positives, row) for row in rows]
    ranks = metrics.rank(rows)
    assert metrics.average_precision(ranks, positives) == pytest.approx(expected, abs=1e-12)
    each = np.tile(np.flatnonzero(positives), (3, 1))
    assert metrics.average_precision(ranks, each) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_all_labels_at_once() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 5, (6, 30)).astype(np.float16)
    labels = np.eye(4, dtype=bool)[rng.integers(0, 4, 30)]
    found = metrics.label_average_precision(metrics.rank(rows), labels)
    expected = [[average_precision_score(column, row) for column in labels.T] for row in rows]
    assert found == pytest.approx(np.array(expected), abs=1e-12)


def test_without_a_positive_clip_there_is_no_measure() -> None:
    ranks = metrics.rank(np.arange(8.0).reshape(2, 4))
    none = np.zeros(4, bool)
    assert np.isnan(metrics.average_precision(ranks, none)).all()
    assert np.isnan(metrics.f1_iou(ranks, none)).all()


def test_ranks_break_ties_by_position() -> None:
    ranks = metrics.rank(np.array([[1.0, 3.0, 1.0, 2.0]]))
    assert ranks.place.tolist() == [[2, 0, 3, 1]]
    assert ranks.at_least.tolist() == [[4, 1, 4, 2]]


@given(hnp.arrays(np.float16, (2, 12), elements=st.floats(-100, 100, width=16)))
def test_float16_is_ranked_like_any_other(rows: np.ndarray) -> None:
    rows[0, :3] = [0.0, -0.0, 0.0]
    for one, other in zip(metrics.rank(rows), metrics.rank(rows.astype(float)), strict=True):
        assert one.tolist() == other.tolist()


def test_f1_and_iou_are_those_of_the_most_active_clips() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(5, 20))
    positives = np.zeros(20, bool)
    positives[rng.choice(20, 6, replace=False)] = True
    f1, iou = metrics.f1_iou(metrics.rank(rows), positives)
    for row, one, other in zip(rows, f1, iou, strict=True):
        active = np.zeros(20, bool)
        active[np.argsort(-row)[:6]] = True
        assert one == pytest.approx(f1_score(positives, active))
        assert other == pytest.approx(jaccard_score(positives, active))


def test_ties_at_the_threshold_go_by_position() -> None:
    ranks = metrics.rank(np.array([[2.0, 1.0, 1.0, 0.0]]))
    assert metrics.f1_iou(ranks, np.array([0, 1]))[0] == 1.0
    assert metrics.f1_iou(ranks, np.array([0, 2]))[0] == 0.5


def test_pearson_is_numpy_s() -> None:
    rng = np.random.default_rng(2)
    rows, target = rng.normal(size=(4, 30)), rng.normal(size=(30, 3))
    expected = [[np.corrcoef(row, column)[0, 1] for column in target.T] for row in rows]
    assert metrics.pearson(rows, target) == pytest.approx(np.array(expected))
    assert metrics.pearson(rows, target[:, 1]) == pytest.approx(np.array(expected)[:, 1])


def test_what_does_not_vary_has_no_correlation() -> None:
    rows = np.array([[1.0, 1.0, 1.0], [0.1, 0.2, 0.1]])
    assert np.isnan(metrics.pearson(rows, np.array([0.0, 1.0, 0.0]))).tolist() == [True, False]
    assert np.isnan(metrics.pearson(rows, np.ones(3))).all()
    found = metrics.correlation(rows, np.tile([0.0, 1.0, 0.0], (2, 1)), 20)
    assert np.isnan(found.p).tolist() == np.isnan(found.observed).tolist() == [True, False]


# ---------------------------------------------------------------------- sanity tests (Oikarinen et al., 2025)


@pytest.fixture
def concept() -> tuple[np.ndarray, np.ndarray]:
    """Twenty neurons that follow a concept with some noise, and the clips that carry it."""
    rng = np.random.default_rng(3)
    labels = np.zeros(400, bool)
    labels[:60] = True
    return labels + 0.3 * rng.normal(size=(20, 400)), labels


@pytest.mark.parametrize("measure", ["auprc", "pearson", "f1", "iou"])
@pytest.mark.parametrize("damage", ["missing", "extra"])
def test_a_measure_falls_when_labels_are_missing_or_too_many(
    concept: tuple[np.ndarray, np.ndarray], measure: str, damage: str
) -> None:
    rows, labels = concept
    rng = np.random.default_rng(4)
    wrong = labels.copy()
    if damage == "missing":
        wrong[rng.choice(np.flatnonzero(labels), 30, replace=False)] = False
    else:
        wrong[rng.choice(np.flatnonzero(~labels), 60, replace=False)] = True

    def of(chosen: np.ndarray) -> np.ndarray:
        ranks = metrics.rank(rows)
        f1, iou = metrics.f1_iou(ranks, chosen)
        found = {"auprc": metrics.average_precision(ranks, chosen), "pearson": metrics.pearson(rows, chosen)}
        return (found | {"f1": f1, "iou": iou})[measure]

    assert (of(wrong) < of(labels) - 0.1).all()


# ---------------------------------------------------------------------- chance


def test_the_null_is_that_of_permuted_activations() -> None:
    """Against permuting one neuron's activations and measuring anew."""
    rng = np.random.default_rng(5)
    permuted = metrics.rank(rng.permuted(np.tile(np.arange(40.0), (4000, 1)), axis=1))
    positives = np.arange(7)
    f1, iou = metrics.f1_iou(permuted, positives)
    found = metrics.null(40, 7, 4000)
    direct = np.sort(metrics.average_precision(permuted, positives))
    assert np.quantile(found.average_precision, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(direct, [0.1, 0.5, 0.9]), rel=0.06
    )
    assert found.f1 == pytest.approx(f1.mean(), rel=0.05)
    assert found.iou == pytest.approx(iou.mean(), rel=0.07)
    assert np.all(np.diff(found.average_precision) >= 0)


def test_p_counts_the_permutations_that_reach_the_value() -> None:
    null = np.array([0.1, 0.2, 0.2, 0.5])
    found = metrics.p_values(np.array([0.6, 0.5, 0.2, 0.05, np.nan]), null)
    assert found[:4].tolist() == [1 / 5, 2 / 5, 4 / 5, 1.0]
    assert np.isnan(found[4])


def test_the_best_of_many_is_compared_with_the_best_of_many() -> None:
    """On activations that mean nothing, the best label is 'significant' in 5 % of neurons, and not in 60 %."""
    rng = np.random.default_rng(6)
    labels = np.eye(20, dtype=bool)[np.arange(200) % 20]
    ranks = metrics.rank(rng.normal(size=(2000, 200)))
    best = metrics.label_average_precision(ranks, labels).max(axis=1)
    positives = [np.flatnonzero(column) for column in labels.T]
    fair = metrics.p_values(best, metrics.null_of_best(200, positives, 1000))
    naive = metrics.p_values(best, metrics.null(200, 10, 1000).average_precision)
    assert np.mean(fair < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(naive < 0.05) > 0.5
    as_rows = metrics.null_of_best(200, np.array(positives), 1000)
    assert as_rows.tolist() == metrics.null_of_best(200, positives, 1000).tolist()


def test_permuted_correlations_are_those_of_a_shuffle() -> None:
    rng = np.random.default_rng(7)
    values = rng.exponential(size=(3, 60))
    target = np.zeros((3, 60))
    target[:, :6] = 1
    target[0] += 0.3 * values[0]
    found = metrics.correlation(values, target, 4000)
    for row in range(3):
        shuffled = metrics.pearson(rng.permuted(np.tile(values[row], (4000, 1)), axis=1), target[row])
        assert found.observed[row] == pytest.approx(np.corrcoef(values[row], target[row])[0, 1])
        assert found.null_95[row] == pytest.approx(np.quantile(shuffled, 0.95), abs=0.03)
        assert found.p[row] == pytest.approx(np.mean(shuffled >= found.observed[row]), abs=0.03)


def test_permuted_correlations_hold_their_level() -> None:
    rng = np.random.default_rng(8)
    values, target = rng.normal(size=(2000, 50)), (rng.random((2000, 50)) < 0.2).astype(float)
    assert np.mean(metrics.correlation(values, target, 200).p < 0.05) == pytest.approx(0.05, abs=0.02)


def test_chance_is_the_same_every_time_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    values, target = rng.normal(size=(7, 30)), rng.normal(size=(7, 30))
    whole = metrics.correlation(values, target, 50)
    monkeypatch.setattr(metrics, "_CELLS", 100)
    parts = metrics.correlation(values, target, 50)
    assert whole.p.tolist() == parts.p.tolist()
    assert len(metrics.null(30, 4, 50).average_precision) == 50


# ---------------------------------------------------------------------- intervals


def test_bootstrap_interval() -> None:
    values = np.repeat([0.0, 1.0], [5, 15])
    low, high = metrics.bootstrap_interval(values)
    assert (low, high) == (pytest.approx(0.55, abs=0.051), pytest.approx(0.95, abs=0.051))
    assert metrics.bootstrap_interval(values) == (low, high)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.bootstrap_interval(np.ones(4)) == (1.0, 1.0)
        assert np.isnan(metrics.bootstrap_interval(np.ones(1))).all()
