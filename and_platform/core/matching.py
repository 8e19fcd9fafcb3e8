"""The best concepts of every neuron, layer by layer, in bounded memory.

Neither a layer's activations in float32 nor its neuron-concept scores are ever held as a whole: activations
pass in blocks of neurons; functions with a prior over the layer keep each neuron's most active clips (a few
hundred bytes) and are scored afterwards in blocks of concepts. The functions themselves are those of
`similarity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from and_platform.core.similarity import (
    SIMILARITIES,
    Features,
    Prepared,
    Similarity,
    Tile,
    check_match,
    top_columns,
)
from and_platform.core.threads import one_thread_each, spread, spread_rows
from and_platform.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Scores held at a time, in elements: 32 MB of float32.
_SCORE_BLOCK = 1 << 23


class TopConcepts(NamedTuple):
    """The best concepts of each neuron, best first; equal scores in the order of the concepts.

    Attributes
    ----------
    concept : int32 array [J, top]
        Column of the clip-concept scores; -1 where there is no score.
    score : float32 array [J, top]
        NaN where there is no score.
    """

    concept: NDArray[np.int32]
    score: NDArray[np.float32]


class Matcher:
    """Matches neurons with concepts; what depends on the concepts alone is computed once for all layers.

    Parameters
    ----------
    match : array [N, M]
        How well each clip matches each concept (P).
    similarities : sequence of str
        Names from `SIMILARITIES`.
    top : int
        Number of concepts to return per neuron; all M if there are fewer.
    valid : bool array [N], optional
        Clips that count. The others (without a caption, say) are dropped from `match`, where their rows may
        hold anything, and from the activations, as if the probing set did not have them.
    clips : int, optional
        Use only this many most active clips of each neuron (a published variant for hidden layers); all by
        default.
    parameters : mapping of name to mapping, optional
        Parameters of single functions, such as `{"wpmi": {"top_k": 10}}`.
    block : int
        Neurons per block.

    Raises
    ------
    InputError
        If a name is unknown, shapes do not fit, no clip counts, or `match` is not finite.
    """

    def __init__(
        self,
        match: ArrayLike | Tensor,
        similarities: Sequence[str] = tuple(SIMILARITIES),
        *,
        top: int = 5,
        valid: ArrayLike | None = None,
        clips: int | None = None,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        block: int = 512,
    ) -> None:
        import torch

        if unknown := {*similarities, *(parameters or {})} - SIMILARITIES.keys():
            raise InputError(
                f"no similarity function {', '.join(sorted(unknown))}; choose from {', '.join(SIMILARITIES)}"
            )
        if top < 1 or block < 1:
            raise InputError(f"top is {top} and block {block}; both must be at least 1")
        scores = torch.as_tensor(match)
        self.n_clips = len(scores)
        self._valid = None if valid is None else _positions(valid, self.n_clips)
        scores = check_match(scores if self._valid is None else scores[torch.from_numpy(self._valid)])
        self.top = min(top, scores.shape[1])
        self._block = block
        self._similarities = [
            replace(SIMILARITIES[name], **{"clips": clips, **(parameters or {}).get(name, {})})
            for name in dict.fromkeys(similarities)
        ]
        self._prepared = {similarity.name: similarity.prepare(scores) for similarity in self._similarities}
        self._deepest = max((similarity.depth(len(scores)) for similarity in self._similarities), default=0)

    def layer(self, activations: ArrayLike | Tensor | Iterator[ArrayLike]) -> dict[str, TopConcepts]:
        """Match all neurons of one layer.

        Parameters
        ----------
        activations : array [J, N], or iterator of arrays [j, N]
            float16 or float32, all neurons of the layer, since `wpmi` and `soft_wpmi` compare with each of
            them.

        Returns
        -------
        dict of name to TopConcepts
            In the order in which the functions were asked for.

        Raises
        ------
        InputError
            If the activations do not have N columns, or there are none.
        """
        import torch

        results: dict[str, TopConcepts] = {}
        with one_thread_each() as n_threads:
            blocks = list(spread(self._block_results, self._blocks(activations), n_threads))
            for position, similarity in enumerate(self._similarities):
                parts = zip(*(block[position] for block in blocks), strict=True)
                if similarity.needs_layer:
                    results[similarity.name] = self._best(similarity, tuple(map(torch.cat, parts)), n_threads)
                else:
                    results[similarity.name] = TopConcepts(*map(np.concatenate, parts))
        return results

    def _block_results(self, activations: Tensor) -> list[Features | TopConcepts]:
        """By function: the best concepts, or the features where the function has to see the whole layer."""
        tile = Tile(activations, self._deepest)
        results: list[Features | TopConcepts] = []
        for similarity in self._similarities:
            features = similarity.features(tile)
            results.append(features if similarity.needs_layer else self._best(similarity, features, n_threads=1))
        return results

    def _blocks(self, activations: ArrayLike | Tensor | Iterator[ArrayLike]) -> Iterator[Tensor]:
        import torch

        tiles: Iterable[Any] = activations if isinstance(activations, Iterator) else [activations]
        empty = True
        for tile in tiles:
            empty = False
            array = np.asarray(tile)
            if array.ndim != 2 or array.shape[1] != self.n_clips:
                raise InputError(f"activations of shape {array.shape}; give neurons x {self.n_clips} clips")
            for start in range(0, max(1, len(array)), self._block):
                block = array[start : start + self._block]
                block = block if self._valid is None else block[:, self._valid]
                # What comes from a database may be big-endian or read-only, and torch takes neither.
                block = block.astype(block.dtype.newbyteorder("="), copy=False)
                yield torch.from_numpy(np.require(block, requirements=["C", "W"]))
        if empty:
            raise InputError("no activations to match; record the layer first")

    def _best(self, similarity: Similarity, features: Features, n_threads: int) -> TopConcepts:
        """Score neurons against all concepts, a block of concepts at a time, and keep the best."""
        import torch

        prepared = self._prepared[similarity.name]
        n_neurons, n_concepts = len(features[0]), prepared[0].shape[1]
        width = max(1, min(n_concepts, _SCORE_BLOCK // max(1, n_neurons)))
        concept = torch.zeros(n_neurons, self.top, dtype=torch.int32)
        score = torch.full((n_neurons, self.top), -torch.inf)
        scores = torch.empty(n_neurons, width)
        for start in range(0, n_concepts, width):
            part: Prepared = tuple(tensor[:, start : start + width] for tensor in prepared)
            scores = scores[:, : part[0].shape[1]]

            def fill(rows: slice, part: Prepared = part, scores: Tensor = scores) -> None:
                scores[rows] = similarity.score(tuple(feature[rows] for feature in features), part)

            spread_rows(fill, n_neurons, self._block, n_threads)
            scores = similarity.settle(scores)

            def keep(rows: slice, start: int = start, scores: Tensor = scores) -> None:
                new = scores[rows].masked_fill(scores[rows].isnan(), -torch.inf)
                chosen = top_columns(new, self.top).long()
                # The best so far stand in front, so that among equals the first concept stays first.
                concepts = torch.cat([concept[rows], chosen.int() + start], dim=1)
                values = torch.cat([score[rows], new.gather(1, chosen)], dim=1)
                chosen = top_columns(values, self.top).long()
                concept[rows], score[rows] = concepts.gather(1, chosen), values.gather(1, chosen)

            spread_rows(keep, n_neurons, self._block, n_threads)
        none = score == -torch.inf
        concept, score = concept.masked_fill(none, -1), score.masked_fill(none, torch.nan)
        return TopConcepts(concept.numpy(), score.numpy())


def _positions(valid: ArrayLike, n_clips: int) -> NDArray[np.intp]:
    mask = np.asarray(valid)
    if mask.dtype != bool or mask.shape != (n_clips,):
        raise InputError(f"the mask of clips is {mask.dtype} of shape {mask.shape}; give {n_clips} booleans")
    if not mask.any():
        raise InputError("no clip counts: every one is masked; caption the clips first")
    return np.flatnonzero(mask)


def match_layer(
    activations: ArrayLike | Tensor | Iterator[ArrayLike],
    match: ArrayLike | Tensor,
    similarities: Sequence[str] = tuple(SIMILARITIES),
    top: int = 5,
    **options: Any,
) -> dict[str, TopConcepts]:
    """Match one layer; for several with the same concepts keep a `Matcher`, whose parameters these are."""
    return Matcher(match, similarities, top=top, **options).layer(activations)
