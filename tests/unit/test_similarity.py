"""The similarity functions: recorded outputs, a plain transcription of their definitions, and edge cases."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax

from and_platform.core.similarity import (
    SIMILARITIES,
    Tile,
    cos,
    cosine_scores,
    rank_reorder,
    soft_wpmi,
    softmax_scores,
    top_columns,
    wpmi,
)
from and_platform.errors import InputError

PARITY = Path(__file__).parents[1] / "data" / "parity"
NAMES = ["cos", "cos_cubed", "wpmi", "soft_wpmi", "rank_reorder"]


def example(neurons=12, clips=60, concepts=7, seed=0):
    """Activations rounded coarsely, so that many tie, and softmax scores."""
    generator = np.random.default_rng(seed)
    activations = generator.standard_normal((neurons, clips)).round(1).astype(np.float16)
    match = softmax(3 * generator.standard_normal((clips, concepts)), axis=1).astype(np.float32)
    return torch.from_numpy(activations), torch.from_numpy(match)


def transcription(name, activations, match, true_ranks=False):
    """The definitions written out in float64, one neuron and concept at a time."""
    u, p = activations.double().numpy(), match.double().numpy()
    (neurons, clips), concepts = u.shape, p.shape[1]
    order = np.argsort(-u, axis=1, kind="stable")
    out = np.empty((neurons, concepts))
    for j in range(neurons):
        for m in range(concepts):
            if name in ("cos", "cos_cubed"):
                a, b, least = u[j], p[:, m], 0.0
                if name == "cos_cubed":
                    a, b, least = (a - a.mean()) ** 3, (b - b.mean()) ** 3, 1e-3
                norms = max(np.linalg.norm(a), least) * max(np.linalg.norm(b), least)
                out[j, m] = a @ b / norms
            elif name == "wpmi":
                top = order[j, : min(28, clips)]
                out[j, m] = np.log(np.exp(log_softmax(2 * p, axis=1))[top, m] + 1e-7).sum()
            elif name == "soft_wpmi":
                k = min(100, clips)
                weight = 0.998 - np.arange(k) / k * 0.028
                share = softmax(10 * p, axis=1)[order[j, :k], m]
                out[j, m] = np.log(1 + weight * (share - 1) + 1e-7).sum()
            else:
                top = order[j, : max(2, int(0.05 * clips))]
                t = u[j, top]
                s = t[::-1]
                by_concept = np.argsort(p[top, m], kind="stable")
                if true_ranks:
                    by_concept = np.argsort(by_concept)
                error = (np.abs(t - s[by_concept]) ** 3).mean()
                baseline = (np.abs(s[:, None] - s) ** 3).mean()
                out[j, m] = -error / baseline / np.sqrt(p[top, m].mean()) if baseline else np.nan
    prior = {"wpmi": 0.6, "soft_wpmi": 1.0}.get(name, 0.0)
    return out - prior * (logsumexp(out, axis=0) - np.log(neurons)) if prior else out


@pytest.fixture(params=["db", "tab"])
def parity(request):
    return np.load(PARITY / f"similarity_{request.param}.npz")


@pytest.mark.parametrize("name", ["cos", "cos_cubed", "wpmi", "soft_wpmi"])
def test_equals_the_recorded_cases(parity, name):
    activations, match = torch.from_numpy(parity["U"]).T, torch.from_numpy(parity["P"])
    # A cosine near 0 is known to a float32's rounding of its sum and no better.
    np.testing.assert_allclose(SIMILARITIES[name](activations, match), parity[name], rtol=1e-4, atol=2e-7)


def test_rank_reorder_is_within_the_spread_of_random_baselines(parity):
    activations, match = torch.from_numpy(parity["U"]).T, torch.from_numpy(parity["P"])
    scores = rank_reorder(activations, match, top_fraction=0.25).numpy()
    deviations = np.abs(scores - parity["rank_reorder_mean64"]) / parity["rank_reorder_std64"]
    assert deviations.max() < 0.5
    assert np.array_equal(scores, rank_reorder(activations, match, top_fraction=0.25).numpy())


def test_closed_set_finds_the_class_each_neuron_was_made_for(parity):
    activations, match = torch.from_numpy(parity["U"]).T, torch.from_numpy(parity["P"])
    found = SIMILARITIES["cos_cubed"](activations, match).argmax(dim=1).numpy()
    expected = parity["cos_cubed"].argmax(axis=1)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clips", [5, 28, 60, 250])
def test_equals_the_definition(name, clips):
    activations, match = example(clips=clips)
    expected = transcription(name, activations, match)
    np.testing.assert_allclose(SIMILARITIES[name](activations, match), expected, rtol=2e-4, atol=2e-4)


def test_true_ranks_equal_the_definition_and_differ_from_the_default():
    activations, match = example(clips=250)
    expected = transcription("rank_reorder", activations, match, true_ranks=True)
    scores = rank_reorder(activations, match, true_ranks=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert not torch.allclose(scores, rank_reorder(activations, match))


def test_names_and_defaults():
    assert list(SIMILARITIES) == NAMES
    assert (wpmi.top_k, wpmi.scale, wpmi.prior) == (28, 2.0, 0.6)
    assert (soft_wpmi.top_k, soft_wpmi.scale, soft_wpmi.prior) == (100, 10.0, 1.0)
    assert (soft_wpmi.first, soft_wpmi.last) == (0.998, 0.970)
    assert (rank_reorder.top_fraction, rank_reorder.true_ranks) == (0.05, False)


def test_parameters_are_keywords():
    activations, match = example()
    assert torch.equal(wpmi(activations, match, top_k=3), replace(wpmi, top_k=3)(activations, match))
    assert not torch.equal(wpmi(activations, match, top_k=3), wpmi(activations, match))
    with pytest.raises(TypeError, match="depth_of_field"):
        wpmi(activations, match, depth_of_field=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dead", [0.0, -0.0, 1.5, math.nan, math.inf])
def test_a_neuron_that_is_constant_or_not_finite_has_no_score_and_disturbs_no_other(name, dead):
    activations, match = example()
    with_dead = activations.clone()
    with_dead[4] = dead
    alive = torch.arange(len(activations)) != 4
    scores = SIMILARITIES[name](with_dead, match)
    assert scores[4].isnan().all()
    torch.testing.assert_close(scores[alive], SIMILARITIES[name](activations[alive], match))


@pytest.mark.parametrize("name", NAMES)
def test_one_value_that_is_not_finite_is_enough_for_no_score(name):
    activations, match = example()
    activations[0, 3], activations[1, 3], activations[2, 3] = math.nan, math.inf, -math.inf
    scores = SIMILARITIES[name](activations, match)
    assert scores[:3].isnan().all()
    assert scores[3:].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_without_a_live_neuron(name):
    _, match = example()
    assert SIMILARITIES[name](torch.zeros(3, len(match)), match).isnan().all()
    assert SIMILARITIES[name](torch.zeros(0, len(match)), match).shape == (0, 7)


@pytest.mark.parametrize("name", NAMES)
def test_one_clip_is_no_evidence(name):
    assert SIMILARITIES[name](torch.tensor([[1.0], [2.0]]), torch.ones(1, 3)).isnan().all()


def test_one_concept():
    activations, _ = example()
    match = torch.ones(60, 1)  # what a softmax over one concept gives
    scores = {name: SIMILARITIES[name](activations, match) for name in NAMES}
    assert all(score.shape == (12, 1) and score.isfinite().all() for score in scores.values())
    assert torch.equal(scores["cos_cubed"], torch.zeros(12, 1))  # no clip differs from another
    assert torch.allclose(scores["wpmi"], torch.zeros(12, 1), atol=1e-4)


def test_rank_reorder_has_no_score_where_the_concept_does_not_match_or_the_top_is_flat():
    _, match = example(clips=40)
    match = match - 0.2
    activations = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    top = Tile(activations).top(2).long()
    scores = rank_reorder(activations, match)
    assert torch.equal(scores.isnan(), match[top].mean(dim=1) <= 0)
    assert scores.isnan().any() and not scores.isnan().all()
    flat = torch.zeros(1, 40)
    flat[0, :4] = 1.0
    assert rank_reorder(flat, match.abs() + 1).isnan().all()


def test_rank_reorder_prefers_the_concept_that_orders_the_clips():
    """With true ranks a concept in the order of the activations has no error; the reverse has the largest."""
    activations = torch.arange(40.0)[None] ** 1.5
    match = torch.stack([torch.arange(1, 41.0), torch.arange(1, 41.0).flip(0)], dim=1) / 41
    match[:, 1] += match[-10:].mean(dim=0)[0] - match[-10:].mean(dim=0)[1]  # same mean over the clips used
    best, worst = rank_reorder(activations, match, top_fraction=0.25, true_ranks=True)[0].tolist()
    assert worst < best
    assert worst == pytest.approx(0, abs=1e-6) or best == pytest.approx(0, abs=1e-6)


def test_ties_go_to_the_clip_that_comes_first():
    values = torch.tensor([[0.0, 2.0, -0.0, 2.0, -1.0, 2.0]])
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert top_columns(values.to(dtype), 9).tolist() == [[1, 3, 5, 0, 2, 4]]
        assert top_columns(values.to(dtype), 2).tolist() == [[1, 3]]


def test_more_clips_than_sixteen_bits_can_count():
    values = torch.zeros(1, 70_000, dtype=torch.float16)
    values[0, 66_000] = 1
    assert top_columns(values, 3).tolist() == [[66_000, 0, 1]]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_most_active_clips_as_if_there_were_no_others(name):
    activations, match = example(neurons=1)
    top = Tile(activations).top(8)[0].long()
    restricted = SIMILARITIES[name](activations, match, clips=8)
    # The softmax is over concepts, so leaving clips out changes nothing else.
    torch.testing.assert_close(restricted, SIMILARITIES[name](activations[:, top], match[top]))
    torch.testing.assert_close(SIMILARITIES[name](activations, match, clips=99), SIMILARITIES[name](activations, match))


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_the_order_of_neurons_does_not_matter(name, seed):
    activations, match = example(seed=seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(activations)))
    scores = SIMILARITIES[name](activations, match)
    shuffled = SIMILARITIES[name](activations[order], match)
    # The sums behind soft_wpmi reach hundreds, and float32 keeps seven digits of them.
    torch.testing.assert_close(shuffled, scores[order], rtol=1e-5, atol=1e-4, equal_nan=True)


@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_scale_invariance(seed, factor):
    activations, match = example(seed=seed)
    activations = activations.float()
    torch.testing.assert_close(cos(activations * factor, match), cos(activations, match))
    # A power of two keeps ties and differences as they are; another factor may round them apart.
    factor = 2.0 ** round(math.log2(factor))
    torch.testing.assert_close(
        rank_reorder(activations * factor, match), rank_reorder(activations, match), equal_nan=True
    )


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_top_columns_is_a_stable_sort(rows, columns, k, seed):
    values = np.random.default_rng(seed).integers(-3, 3, (rows, columns)).astype(np.float16)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
    assert np.array_equal(top_columns(torch.from_numpy(values), k), expected)


def test_scores_of_clips_for_concepts():
    clips, concepts = torch.tensor([[2.0, 0.0], [0.0, 0.5]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    cosine = torch.tensor([[1.0, 0.6], [0.0, 0.8]])
    torch.testing.assert_close(cosine_scores(clips, concepts), cosine)
    torch.testing.assert_close(softmax_scores(clips, concepts, scale=5), (5 * cosine).softmax(dim=1))
    torch.testing.assert_close(softmax_scores(clips, concepts), (100 * cosine).softmax(dim=1))


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_embeddings_without_a_direction_are_refused(bad):
    with pytest.raises(InputError, match="clip 1 is zero or not finite"):
        cosine_scores(torch.tensor([[1.0, 2.0], [bad, bad]]), torch.ones(1, 2))


def test_what_does_not_fit_is_refused():
    activations, match = example()
    with pytest.raises(InputError, match=r"\(12, 59\) do not fit 60 clips"):
        cos(activations[:, :-1], match)
    with pytest.raises(InputError, match="one of each at least"):
        cos(activations[:, :0], match[:0])
    with pytest.raises(InputError, match="one of each at least"):
        cos(activations, match[:, :0])
    match[3, 2] = math.nan
    with pytest.raises(InputError, match="not finite"):
        cos(activations, match)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cos", {"clips": 0}),
        ("wpmi", {"top_k": 0}),
        ("soft_wpmi", {"first": 1.5}),
        ("rank_reorder", {"top_fraction": 0.0}),
        ("rank_reorder", {"top_fraction": 1.1}),
    ],
)
def test_parameters_out_of_range_are_refused(name, parameters):
    with pytest.raises(InputError, match="give"):
        SIMILARITIES[name](*example(), **parameters)
