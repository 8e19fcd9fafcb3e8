"""How well the concepts found for the last layer agree with the classes that its units stand for."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from and_platform import db, queries
from and_platform.core.names import normalise
from and_platform.core.similarity import SIMILARITIES


def last_layer(engine: sa.Engine, dissection: int) -> list[dict[str, Any]]:
    """Top-1 and top-5 of the true class among the concepts of each unit of the head (paper, Tables 2 and 7).

    Two rows per method and function: over all classes that are concepts, and over those of them that the network itself
    gets right: on the held-out clips of the class its own logit is the largest more often than not.

    Returns
    -------
    list of dict
        method, similarity, over ('all classes' or 'classes it gets right'), classes, top_1, top_5 (shares, None where
        there is no class).
    """
    right = classes_it_gets_right(engine, dissection)
    rows: list[dict[str, Any]] = []
    with db.reading(engine) as session:
        methods = session.scalars(
            sa.text("SELECT unnest(methods) FROM dissections WHERE id = :id"), {"id": dissection}
        ).all()
        known = set(
            session.scalars(
                sa.text(
                    "SELECT c.name FROM concepts c JOIN dissections d ON d.concept_set_id = c.concept_set_id WHERE d.id = :id"
                ),
                {"id": dissection},
            )
        )
        for method in methods:
            for similarity in ("llm",) if method == "icl" else tuple(SIMILARITIES):
                units = queries.last_layer_names(session, dissection=dissection, method=method, similarity=similarity)
                named = [(normalise(u["class_name"]), u["concepts"]) for u in units if u["class_name"]]
                named = [(name, found) for name, found in named if name in known]
                for over, chosen in (
                    ("all classes", named),
                    ("classes it gets right", [(name, found) for name, found in named if name in right]),
                ):
                    n = len(chosen)
                    rows.append(
                        {
                            "method": method, "similarity": similarity, "over": over, "classes": n,
                            "top_1": sum(name in found[:1] for name, found in chosen) / n if n else None,
                            "top_5": sum(name in found[:5] for name, found in chosen) / n if n else None,
                        }
                    )  # fmt: skip
    return rows


def classes_it_gets_right(engine: sa.Engine, dissection: int) -> set[str]:
    """Classes that the network predicts on most of their held-out clips, by the recorded logits.

    Clips of other folds are not looked at: the network was trained on them. Where no fold is held out, all clips count.
    """
    import numpy as np

    from and_platform.schema import Layer
    from and_platform.services.activations import read_layer

    with db.reading(engine) as session:
        head = session.execute(
            sa.text(
                "SELECT l.id, w.classes, w.held_out_fold, w.trained_on = s.name AS same, d.recording_id, p.n_clips,"
                " p.id AS probing"
                " FROM dissections d JOIN networks w ON w.id = d.network_id"
                " JOIN dissected_layers x ON x.dissection_id = d.id JOIN layers l ON l.id = x.layer_id AND l.kind = 'head'"
                " JOIN probing_sets p ON p.id = d.probing_set_id JOIN datasets s ON s.id = p.dataset_id WHERE d.id = :id"
            ),
            {"id": dissection},
        ).one_or_none()
        if head is None or not head.classes:
            return set()
        logits = read_layer(session, head.recording_id, session.get_one(Layer, head.id), head.n_clips)
        clips = queries.probing_clips(session, probing_set=head.probing)
    held_out = head.held_out_fold if head.same else None
    classes = [normalise(name) for name in head.classes]
    predicted = np.asarray(logits, np.float32).argmax(axis=0)
    hits: dict[str, list[bool]] = {}
    for clip, guess in zip(clips, predicted, strict=True):
        if clip["label"] is not None and (held_out is None or clip["fold"] == held_out):
            label = normalise(clip["label"])
            hits.setdefault(label, []).append(classes[guess] == label)
    return {label for label, found in hits.items() if label in classes and 2 * sum(found) > len(found)}
