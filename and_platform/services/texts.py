"""Texts: each distinct caption, sentence, point or name has one row, on which its embeddings and tags hang."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

_FIND = sa.text(
    "SELECT wanted.text, texts.id FROM unnest(CAST(:wanted AS text[])) AS wanted (text) "
    "JOIN texts ON md5(texts.text) = md5(wanted.text)"
)
_ADD = sa.text(
    "INSERT INTO texts (text) "
    "SELECT text FROM unnest(CAST(:missing AS text[])) WITH ORDINALITY AS missing (text, place) "
    "ORDER BY place ON CONFLICT (md5(text)) DO NOTHING RETURNING text, id"
)
# Two sessions that add the same texts in different orders would wait for each other for ever.
_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtextextended('and_platform:texts', 0))")


def text_ids(session: Session, texts: Sequence[str]) -> dict[str, int]:
    """The row of each distinct text; those that are new are added, with ids in order of their first appearance.

    Sessions that add texts take turns: the second one waits until the first has committed or rolled back, so keep
    the transaction short. Where nothing is new, nobody waits.

    Parameters
    ----------
    texts
        Any number of texts, repetitions allowed.

    Returns
    -------
    dict
        Text -> `texts.id`, one entry per distinct text.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    ids = _find(session, distinct)
    missing = [text for text in distinct if text not in ids]
    if not missing:
        return ids
    session.execute(_LOCK)
    ids |= dict(session.execute(_ADD, {"missing": missing}).all())
    # Another session may have added some between the look-up and the lock.
    elsewhere = [text for text in missing if text not in ids]
    return ids | _find(session, elsewhere) if elsewhere else ids


def _find(session: Session, texts: list[str]) -> dict[str, int]:
    return dict(session.execute(_FIND, {"wanted": texts}).all())
