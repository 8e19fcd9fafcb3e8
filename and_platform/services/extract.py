"""Module C: the terms of calibrated summaries, and which adjectives describe sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db, queries
from and_platform.backends.base import LLM, Form, Prompt, Tagger, TextEncoder
from and_platform.core import acoustic_words, prompts, terms
from and_platform.core.facets import REVISION
from and_platform.schema import Layer, Term
from and_platform.services import embed, generate, provenance
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan

MAX_TOKENS = 128
VERDICT = Form(("Yes", "No"), "after", reason_chars=300)
_BATCH = 500

Judged = tuple[bool, float | None, str]
"""Accepted, score, reason."""


class Judge(Protocol):
    """Says which adjectives can describe sound."""

    def plan(self) -> RecipePlan: ...

    def verdicts(self, engine: sa.Engine, adjectives: Sequence[str], progress: Progress) -> list[Judged | str]:
        """Accepted, score and reason of each; where there is no verdict, why."""
        ...


class AnchorJudge:
    """By the cosine of the bare word to an anchor phrase."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder

    def plan(self) -> RecipePlan:
        params = {"anchor": acoustic_words.ANCHOR, "threshold": acoustic_words.THRESHOLD, "facets": REVISION}
        return RecipePlan("judge", "anchor", "1", params, (embed.plan(self.encoder),))

    def verdicts(self, engine: sa.Engine, adjectives: Sequence[str], progress: Progress) -> list[Judged | str]:
        vectors = self.encoder.embed_texts([acoustic_words.ANCHOR, *adjectives])
        found = acoustic_words.judge_words(adjectives, vectors[1:], vectors[0])
        return [(verdict.accepted, verdict.score, verdict.reason) for verdict in found]


class LLMJudge:
    """By asking an LLM (paper, Appendix A.2)."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def plan(self) -> RecipePlan:
        params = {"prompt": prompts.FILTER_QUESTION, "max_tokens": MAX_TOKENS}
        return RecipePlan("judge", "llm", "1", params, (generate.plan(self.llm),))

    def verdicts(self, engine: sa.Engine, adjectives: Sequence[str], progress: Progress) -> list[Judged | str]:
        asked = [Prompt(prompts.filter_prompt(word)) for word in adjectives]
        said = generate.ask(
            engine, self.llm, asked, max_tokens=MAX_TOKENS, name="ask: adjectives", form=VERDICT, progress=progress
        )
        found: list[Judged | str] = []
        for answer in said:
            if answer.text is None:
                found.append(answer.error or "no answer")
                continue
            # An answer is kept for good, so that asking again would not help: no yes is a no.
            verdict = prompts.parse_verdict(answer.text)
            reason = verdict.reason if verdict.accepted is not None else f"neither yes nor no: {verdict.reason}"
            found.append((bool(verdict.accepted), None, reason))
        return found


def plan_tags(tagger: Tagger) -> RecipePlan:
    """The recipe of terms found in texts."""
    return RecipePlan.of("tag", tagger.recipe, negation_window=terms.NEGATION_WINDOW, rules="1")


def plan(calibrated: RecipePlan, tagger: Tagger, judge: Judge) -> RecipePlan:
    """The recipe of neurons' terms."""
    return RecipePlan("extract", "terms", "1", {}, (calibrated, plan_tags(tagger), judge.plan()))


def extract(
    engine: sa.Engine,
    tagger: Tagger,
    judge: Judge,
    layers: Sequence[Layer],
    calibrated: RecipePlan,
    *,
    progress: Progress = SILENT,
    run_id: int | None = None,
) -> int:
    """Terms of the neurons of layers that lack them, a layer a transaction; returns how many layers.

    Each distinct point is tagged once, and each adjective of the whole run is judged once, as a set.
    """
    with db.transaction(engine) as session:
        recipe_id = provenance.recipe_id(session, plan(calibrated, tagger, judge))
        calibrate_id = provenance.recipe_id(session, calibrated)
        tag_id = provenance.recipe_id(session, plan_tags(tagger))
        judge_id = provenance.recipe_id(session, judge.plan())
        done = provenance.finished_layers(session, recipe_id)
        ready = provenance.finished_layers(session, calibrate_id)
        todo = [layer for layer in layers if layer.id not in done]
        if not todo:
            return 0
        untagged = queries.untagged_points(
            session, calibrate_recipe=calibrate_id, tag_recipe=tag_id, layers=[layer.id for layer in todo]
        )
    tag(engine, tagger, tag_id, untagged, progress=progress)
    with db.reading(engine) as session:
        adjectives = queries.unjudged_adjectives(
            session, judge_recipe=judge_id, tag_recipe=tag_id, calibrate_recipe=calibrate_id,
            layers=[layer.id for layer in todo],
        )  # fmt: skip
    unjudged = judge_words(engine, judge, judge_id, adjectives, progress=progress, run_id=run_id)
    recipes = Recipes(recipe_id, calibrate_id, tag_id, judge_id)
    with progress.stage("extract terms", len(todo), "layers") as advance:
        for layer in todo:
            write(engine, recipes, layer, whole=layer.id in ready and not unjudged)
            advance(1)
    return len(todo)


class Recipes(NamedTuple):
    """Ids of the recipes that terms are made with."""

    extract: int
    calibrate: int
    tag: int
    judge: int


def write(engine: sa.Engine, recipes: Recipes, layer: Layer, *, whole: bool) -> None:
    """Write the terms of a layer's neurons; `whole`: nothing they are made of is missing, the layer is finished with it."""
    with db.transaction(engine) as session:
        queries.insert_neuron_terms(
            session, recipe=recipes.extract, calibrate_recipe=recipes.calibrate, tag_recipe=recipes.tag,
            judge_recipe=recipes.judge, layer=layer.id,
        )  # fmt: skip
        if whole:
            provenance.finish_layer(session, recipes.extract, layer.id)


def tag(
    engine: sa.Engine, tagger: Tagger, recipe_id: int, texts: Sequence[tuple[int, str]], *, progress: Progress = SILENT
) -> None:
    """Keep the terms of some texts (id, text)."""
    with progress.stage("tag", len(texts), "texts") as advance:
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            tagged = tagger.tag([text for _, text in batch])
            with db.transaction(engine) as session:
                found = [terms.extract_terms(tokens) for tokens in tagged]
                _keep_tags(session, recipe_id, [text_id for text_id, _ in batch], found)
            advance(len(batch))


def _keep_tags(
    session: Session, recipe_id: int, text_ids: Sequence[int], found: Sequence[Sequence[terms.Term]]
) -> None:
    # Sorted: two processes that insert the same terms in different orders would wait for each other for ever.
    wanted = sorted({(term.term, str(term.pos)) for of_text in found for term in of_text})
    if wanted:
        session.execute(
            insert(Term)
            .values([{"term": term, "part_of_speech": pos} for term, pos in wanted])
            .on_conflict_do_nothing(index_elements=["term", "part_of_speech"])
        )
    rows = session.execute(
        sa.select(Term.id, Term.term, Term.part_of_speech).where(Term.term.in_([w for w, _ in wanted]))
    )
    ids = {(term, pos): identity for identity, term, pos in rows}
    db.insert_new(
        session,
        "text_tags",
        {"recipe_id": "int8", "text_id": "int8", "terms": "int8[]"},
        (
            (recipe_id, text_id, [ids[term.term, str(term.pos)] for term in of_text for _ in range(term.occurrences)])
            for text_id, of_text in zip(text_ids, found, strict=True)
        ),
    )


def judge_words(
    engine: sa.Engine,
    judge: Judge,
    judge_id: int,
    adjectives: Sequence[tuple[int, str]],
    *,
    progress: Progress = SILENT,
    run_id: int | None = None,
) -> int:
    """Judge adjectives (term id, word) and keep the verdicts; returns for how many there is still none."""
    if not adjectives:
        return 0
    with progress.stage("judge adjectives", len(adjectives), "words") as advance:
        found = judge.verdicts(engine, [word for _, word in adjectives], progress)
        advance(len(adjectives))
    scope = f"recipe:{judge_id}"
    with db.transaction(engine) as session:
        db.insert_new(
            session,
            "term_verdicts",
            {"recipe_id": "int8", "term_id": "int8", "accepted": "bool", "score": "float4", "reason": "text"},
            (
                (judge_id, term_id, *verdict)
                for (term_id, _), verdict in zip(adjectives, found, strict=True)
                if not isinstance(verdict, str)
            ),
        )
        missing = {word: why for (_, word), why in zip(adjectives, found, strict=True) if isinstance(why, str)}
        for word, why in missing.items():
            provenance.record_failure(session, stage="judge", scope=scope, unit=word, run_id=run_id, reason=why)
        provenance.resolve_failures(
            session, stage="judge", scope=scope, units={word for _, word in adjectives} - missing.keys()
        )
    return len(missing)
