"""Clusters of sentences: k-means on their vectors, the number of clusters by the elbow, the words of each.

Paper, 4.5 and G.2: k-means over the sentences of all captions, the number of clusters by the elbow method (Thorndike,
Who belongs in the family?, Psychometrika 1953), found as a knee by Satopaa et al. (Finding a "Kneedle" in a Haystack, 2011).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from and_platform.core.terms import stop_words
from and_platform.core.threads import one_thread_each, spread

STARTS = 10
"""k-means is started that many times, and the best result is taken."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

DRAWS = 20_000
"""Random sets of clips that the level of chance is estimated from: its standard error is 0.4 percentage points at most."""

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Curve = list[tuple[int, float]]


class Clusters(NamedTuple):
    """Labels [sentences] from 1, the largest cluster first, and the sum of squared distances to the nearest centre."""

    labels: Ints
    inertia: float


def k_means(vectors: Floats, weights: NDArray[np.integer], n_clusters: int, seed: int = 0) -> Clusters:
    """Cluster vectors by k-means (scikit-learn, k-means++), each counted as often as its weight says.

    The result depends on the arguments and the order of the rows alone: sums are made in one thread, whatever there is,
    since their order would change the last digits and with them a sentence that lies between two clusters.

    Parameters
    ----------
    vectors
        [sentences, dim].
    weights
        [sentences], how often each occurs.

    Returns
    -------
    Clusters
        Numbered by the weight in them, ties by the first row. Fewer than `n_clusters` where fewer rows differ.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    differing = len(np.unique(vectors, axis=0))
    model = KMeans(min(n_clusters, differing), n_init=STARTS, random_state=seed, algorithm="lloyd")
    with threadpool_limits(1):
        model.fit(np.asarray(vectors, np.float64), sample_weight=np.asarray(weights, np.float64))
    return Clusters(_by_size(np.asarray(model.labels_), np.asarray(weights)), float(model.inertia_))


def _by_size(labels: NDArray[np.integer], weights: NDArray[np.integer]) -> Ints:
    """Number clusters from 1 by the weight in them, ties by the first row."""
    _, first, plain = np.unique(labels, return_index=True, return_inverse=True)
    sizes = np.bincount(plain, weights=weights)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    return number[plain]


def try_numbers(
    vectors: Floats,
    weights: NDArray[np.integer],
    numbers: Sequence[int],
    seed: int = 0,
    done: Callable[[int], None] = lambda _n: None,
) -> dict[int, Clusters]:
    """k-means for each number of clusters, several side by side; `done` is called with 1 after each."""
    from threadpoolctl import threadpool_limits

    found: dict[int, Clusters] = {}
    # BLAS is limited for the whole process: a worker that ends must not give others their threads back.
    with threadpool_limits(1, user_api="blas"), one_thread_each() as n_threads:
        results = spread(lambda n: k_means(vectors, weights, n, seed), numbers, n_threads)
        for number, result in zip(numbers, results, strict=True):
            found[number] = result
            done(1)
    return found


def elbow(curve: Sequence[tuple[int, float]]) -> int | None:
    """The number of clusters at the elbow of the curve of inertia; None where it has none.

    Parameters
    ----------
    curve
        (number of clusters, inertia), in order of the number.
    """
    from kneed import KneeLocator

    if len(curve) < 3 or curve[0][1] <= curve[-1][1]:
        return None
    numbers, inertia = zip(*curve, strict=True)
    found = KneeLocator(numbers, inertia, curve="convex", direction="decreasing").elbow
    return None if found is None else int(found)


def top_words(sentences: Sequence[str], counts: Sequence[int], n: int = 60) -> dict[str, int]:
    """The most frequent words of sentences with their counts, stop words left out, the most frequent first.

    Parameters
    ----------
    counts
        How often each sentence occurs; a word counts as often.
    """
    total: Counter[str] = Counter()
    for sentence, count in zip(sentences, counts, strict=True):
        for match in _WORD.finditer(sentence.lower()):
            word = re.sub(r"['’]s$", "", match.group())
            if len(word) > 1 and word not in stop_words():
                total[word] += int(count)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))[:n])


def thresholds(k: int) -> tuple[int, ...]:
    """The tau of the paper's Figures 11 to 13 for K: 60, 80 and 100 % of it (3, 4, 5 of 5; 12, 16, 20 of 20)."""
    return tuple(sorted({-(-k * share // 5) for share in (3, 4, 5)}))


def chance(
    member: NDArray[np.bool_], ks: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> dict[tuple[int, int], float]:
    """Share of random sets of K clips of which fewer than tau share a cluster: what a neuron that picks clips at random gives.

    Where captions have many sentences, most of them share a cluster whatever the clips: a share of uninterpretable neurons
    says little without this one beside it.

    Parameters
    ----------
    member
        [clips, clusters], whether the clip's caption belongs to the cluster.
    ks
        Numbers of clips, each at most the number of all.

    Returns
    -------
    dict
        (K, tau) -> share, for tau from 1 to K. The sets are disjoint pieces of random orders of all clips: each is a simple
        random sample without replacement.
    """
    rng = np.random.default_rng(seed)
    n_clips, n_clusters = member.shape
    found: dict[tuple[int, int], float] = {}
    for k in ks:
        pieces = n_clips // k
        agreement = np.concatenate(
            [
                member[rng.permutation(n_clips)[: pieces * k]]
                .reshape(pieces, k, n_clusters)
                .sum(axis=1)
                .max(axis=1, initial=0)
                for _ in range(-(-draws // pieces))
            ]
        )
        found |= {(k, tau): float((agreement < tau).mean()) for tau in range(1, k + 1)}
    return found
