"""Queries of clusters of sentences, and of what exemplars have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries.files import dicts, execute, rows


def caption_sentences_of(session: Session, *, probing_set: int, caption_recipe: int) -> list[tuple[int, str, int]]:
    """Id, text and number of occurrences of the distinct sentences of a probing set's captions, in order of the text."""
    found = rows(session, "caption_sentences_of", probing_set=probing_set, caption_recipe=caption_recipe)
    return [(row.id, row.text, row.n) for row in found]


def sentence_encoder(session: Session, *, dissection: int, texts: Sequence[int]) -> tuple[int, int] | None:
    """Id of the encoder that compared a dissection's sentences, and how many of some texts it has not embedded."""
    found = rows(session, "sentence_encoder", dissection=dissection, texts=list(texts))
    return (found[0].id, found[0].missing) if found else None


def clusterings(
    session: Session,
    *,
    clustering: int | None = None,
    probing_set: int | None = None,
    caption_recipe: int | None = None,
) -> list[dict[str, Any]]:
    """What has been clustered, the latest first: one, those of a probing set and its captions, or all."""
    return dicts(session, "clusterings", clustering=clustering, probing_set=probing_set, caption_recipe=caption_recipe)


def insert_clusters(session: Session, *, clustering: int, words: Mapping[int, Mapping[str, int]]) -> int:
    """Write the clusters of stored memberships, with their counts; returns how many."""
    return execute(session, "insert_clusters", clustering=clustering, words=json.dumps(words))


def clusters_of(session: Session, *, clustering: int) -> list[dict[str, Any]]:
    """The clusters of a clustering with counts, words and an example, in order of their number."""
    return dicts(session, "clusters_of", clustering=clustering)


def caption_clusters(session: Session, *, clustering: int) -> list[list[int]]:
    """The clusters that each clip's caption belongs to, in order of position; none for a clip without caption."""
    return [row.clusters for row in rows(session, "caption_clusters", clustering=clustering)]


def uninterpretable_blocks(
    session: Session, *, clustering: int, dissection: int, ks: Sequence[int]
) -> list[dict[str, Any]]:
    """Share of uninterpretable neurons by block (layer_kind 'all'), and by block and kind of layer, for all tau and K."""
    return dicts(session, "uninterpretable_blocks", clustering=clustering, dissection=dissection, ks=list(ks))
