"""The blocked engine gives what the similarity functions give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from and_platform.core import matching, similarity
from and_platform.core.matching import Matcher, match_layer
from and_platform.core.similarity import SIMILARITIES
from and_platform.core.threads import one_thread_each, spread
from and_platform.errors import InputError

NAMES = list(SIMILARITIES)


def example(neurons=50, clips=200, concepts=30, seed=0):
    generator = np.random.default_rng(seed)
    activations = generator.standard_normal((neurons, clips)).round(2).astype(np.float16)
    match = torch.from_numpy(generator.standard_normal((clips, concepts)).astype(np.float32)).mul(3).softmax(dim=1)
    return activations, match.numpy()


def plain(name, activations, match, top, **parameters):
    """Concepts and scores by the plain function and a stable sort."""
    scores = SIMILARITIES[name](torch.from_numpy(activations), torch.from_numpy(match), **parameters).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isnan(best), -1, order), best


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def tiny_blocks(monkeypatch):
    monkeypatch.setattr(similarity, "_BLOCK", 64)
    monkeypatch.setattr(similarity, "_CONCEPT_BLOCK", 3)
    monkeypatch.setattr(matching, "_SCORE_BLOCK", 50 * 4)  # four concepts of fifty neurons at a time


@pytest.mark.parametrize("clips", [None, 20])
def test_blocks_change_nothing(tiny_blocks, threads, clips):
    activations, match = example()
    results = match_layer(activations, match, NAMES, top=4, block=7, clips=clips)
    assert list(results) == NAMES
    for name, (concept, score) in results.items():
        expected_concept, expected_score = plain(name, activations, match, 4, clips=clips)
        assert concept.dtype == np.int32 and score.dtype == np.float32
        # The sums behind soft_wpmi reach hundreds, and float32 keeps seven digits of them.
        np.testing.assert_allclose(score, expected_score, rtol=1e-5, atol=1e-4, err_msg=name)
        assert np.array_equal(concept, expected_concept), name
    assert torch.get_num_threads() == threads


def test_tiles_of_any_height_make_one_layer():
    activations, match = example()
    whole = match_layer(activations, match)
    tiles = match_layer(iter([activations[:3], activations[3:40], activations[40:]]), match)
    for name in NAMES:
        assert np.array_equal(tiles[name].concept, whole[name].concept)
        np.testing.assert_allclose(tiles[name].score, whole[name].score, rtol=1e-5, atol=1e-6)


def test_layers_do_not_influence_each_other():
    activations, match = example()
    matcher = Matcher(match)
    first, _ = matcher.layer(activations[:20]), matcher.layer(activations[20:])
    again = Matcher(match).layer(activations[:20])
    for name in NAMES:
        assert np.array_equal(first[name].concept, again[name].concept)
        assert np.array_equal(first[name].score, again[name].score)


def test_functions_asked_for_alone_give_the_same():
    activations, match = example()
    together = match_layer(activations, match, NAMES)
    for name in NAMES:
        alone = match_layer(activations, match, [name])
        assert list(alone) == [name]
        assert np.array_equal(alone[name].concept, together[name].concept)
        assert np.array_equal(alone[name].score, together[name].score)


def test_parameters_reach_their_function():
    activations, match = example()
    result = match_layer(activations, match, ["wpmi", "cos"], top=2, parameters={"wpmi": {"top_k": 3}})
    concept, score = plain("wpmi", activations, match, 2, top_k=3)
    assert np.array_equal(result["wpmi"].concept, concept)
    np.testing.assert_allclose(result["wpmi"].score, score, rtol=1e-5)


def test_masked_clips_count_as_if_they_were_not_there():
    activations, match = example()
    valid = np.arange(200) % 3 != 0
    holes = match.copy()
    holes[~valid] = np.nan
    masked = match_layer(activations, holes, valid=valid)
    without = match_layer(activations[:, valid], match[valid])
    for name in NAMES:
        assert np.array_equal(masked[name].concept, without[name].concept)
        assert np.array_equal(masked[name].score, without[name].score)


def test_no_score_is_minus_one_and_nan(tiny_blocks):
    activations, match = example()
    activations[8] = 0.25
    for name, (concept, score) in match_layer(activations, match, top=3, block=7).items():
        assert (concept[8] == -1).all() and np.isnan(score[8]).all(), name
        others = np.arange(50) != 8
        assert (concept[others] >= 0).all() and np.isfinite(score[others]).all(), name


def test_some_concepts_without_a_score_come_last():
    activations, match = example(concepts=3)
    match[:, 1] = -1.0
    concept, score = match_layer(activations, match, ["rank_reorder"])["rank_reorder"]
    assert concept.shape == (50, 3)
    assert set(map(tuple, np.sort(concept, axis=1))) == {(-1, 0, 2)}
    assert (concept[:, 2] == -1).all() and np.isnan(score[:, 2]).all()


def test_equal_scores_keep_the_order_of_the_concepts(tiny_blocks):
    activations, match = example(concepts=1)
    match = np.repeat(match, 10, axis=1)
    for name, (concept, _) in match_layer(activations, match, ["cos", "wpmi", "rank_reorder"], top=6).items():
        assert (concept == np.arange(6)).all(), name


def test_bytes_as_a_database_sends_them():
    activations, match = example()
    sent = np.frombuffer(activations.astype(">f2").tobytes(), ">f2").reshape(activations.shape)
    assert not sent.flags.writeable
    expected = match_layer(activations, match)
    for name, result in match_layer(sent, match).items():
        assert np.array_equal(result.score, expected[name].score)


def test_an_empty_layer():
    _, match = example()
    for concept, score in match_layer(np.empty((0, 200), np.float16), match, top=3).values():
        assert concept.shape == score.shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarities": ["cos", "sinus"]}, "sinus; choose from cos"),
        ({"parameters": {"sinus": {}}}, "sinus; choose from cos"),
        ({"top": 0}, "at least 1"),
        ({"valid": np.zeros(200, bool)}, "every one is masked"),
        ({"valid": np.ones(199, bool)}, "give 200 booleans"),
        ({"valid": np.ones(200, int)}, "give 200 booleans"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Matcher(example()[1], **options)


def test_activations_of_other_clips_are_refused():
    activations, match = example()
    with pytest.raises(InputError, match="200 clips"):
        match_layer(activations[:, 1:], match)
    with pytest.raises(InputError, match="record the layer first"):
        match_layer(iter([]), match)


def test_items_are_taken_only_a_few_ahead():
    """An iterator over a database must not be drained into memory."""
    taken: list[int] = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    with one_thread_each():
        results = spread(lambda item: item * 2, items(), n_threads=2)
        assert next(results) == 0
        assert len(taken) <= 5
        assert list(results) == list(range(2, 200, 2))


def test_an_error_in_a_thread_is_raised_and_the_number_of_threads_restored():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread_each():
        list(spread(lambda item: 1 // item, [1, 0, 2], n_threads=2))
    assert torch.get_num_threads() == before
