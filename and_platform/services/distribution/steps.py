"""The steps of a dissection, in which order they can be done, and which units of each are missing.

A unit is what one worker does at a time: under a minute, and safe to do twice. Its payload holds ids and names, not what they
stand for. What is in one unit does not depend on who does it, so that an encoder meets the same batches however often it is
killed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import queries
from and_platform.config import settings
from and_platform.schema import Caption, CaptionSentence, Concept, Layer, ProbingSetClip, Recording
from and_platform.services import activations, caption, match, provenance, summarise
from and_platform.services.dissect import Options, only_head, scored_texts
from and_platform.services.distribution.ledger import NewUnit
from and_platform.services.distribution.settled import Settled

NEURONS, CLIPS, DESCRIBED, TEXTS, WORDS, PROMPTS = 8192, 32, 2000, 512, 2000, 64
"""Work in a unit: neurons of whole layers, clips for a model, clips to describe, texts, words to judge, prompts."""


@dataclass(frozen=True)
class Step:
    """A step. `after`: those that must be over before it; `wanted`: whether the options ask for it."""

    name: str
    stage: str
    queue: Callable[[Options], str]
    unit: str
    after: tuple[str, ...] = ()
    wanted: Callable[[Options], bool] = lambda _options: True
    soft: bool = False
    """A unit of it that fails leaves a gap that the others can do without; it is kept in `failures`."""


def _on(queue: str) -> Callable[[Options], str]:
    return lambda _options: queue


def _by_llm(options: Options, field: str) -> bool:
    return (getattr(options, field) or ("llm" if options.llm else "")) == "llm"


STEPS = (
    Step("plan", "plan", _on("gpu"), "networks"),
    Step("record", "record", _on("gpu"), "clips", ("plan",)),
    Step("fold", "record", _on("db"), "neurons", ("plan",)),
    Step("exemplars", "record", _on("db"), "neurons", ("record", "fold")),
    Step(
        "caption", "caption", lambda o: "gpu" if caption.needs_model(o.captioner) else "cpu", "clips", ("record",),
        soft=True,
    ),
    Step(
        "encode_captions", "match", _on("gpu"), "texts", ("caption",), lambda o: {"db", "tab"} & {*o.chosen_methods()} != set()
    ),
    Step(
        "encode_sounds", "match", _on("gpu"), "clips", ("record",), lambda o: "tab" in o.chosen_methods(), soft=True
    ),
    Step("score", "match", _on("db"), "concepts", ("encode_captions", "encode_sounds")),
    Step("match", "match", _on("db"), "neurons", ("exemplars", "score")),
    Step(
        "encode_sentences", "summarise", _on("gpu"), "texts", ("caption",), lambda o: not _by_llm(o, "summariser")
    ),
    Step(
        "ask_summaries", "summarise", _on("llm"), "prompts", ("caption", "exemplars"),
        lambda o: _by_llm(o, "summariser"), soft=True,
    ),
    Step("summarise", "summarise", _on("db"), "neurons", ("exemplars", "encode_sentences", "ask_summaries")),
    Step("encode_points", "calibrate", _on("gpu"), "texts", ("summarise",)),
    Step("calibrate", "calibrate", _on("db"), "neurons", ("encode_points",)),
    Step(
        "ask_concepts", "icl", _on("llm"), "prompts", ("calibrate",), lambda o: "icl" in o.chosen_methods(), soft=True
    ),
    Step("pick_concepts", "icl", _on("gpu"), "neurons", ("ask_concepts",), lambda o: "icl" in o.chosen_methods()),
    Step("tag", "extract", _on("cpu"), "texts", ("calibrate",)),
    Step(
        "judge", "extract", lambda o: "llm" if _by_llm(o, "judge") else "gpu", "words", ("tag",), soft=True
    ),
    Step("terms", "extract", _on("db"), "neurons", ("judge",)),
    Step("vectors", "embed", _on("db"), "neurons", ("calibrate",)),
)  # fmt: skip

BY_NAME = {step.name: step for step in STEPS}


def steps_of(options: Options) -> list[Step]:
    """The steps of a run: the plan, and those of the stages asked for."""
    return [
        step
        for step in STEPS
        if step.stage == "plan" or ((not options.stages or step.stage in options.stages) and step.wanted(options))
    ]


def missing(session: Session, engine: sa.Engine, step: str, settled: Settled) -> list[NewUnit]:
    """The units of a step that are still to be done."""
    return _MISSING[step](session, engine, settled)


def _scaled(usual: int) -> int:
    return max(1, round(usual * settings().unit_size))


def hash_of(ids: Iterable[Any]) -> str:
    """Few letters for many ids."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def _chunks(ids: Sequence[int], usual: int) -> Iterable[Sequence[int]]:
    size = _scaled(usual)
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _groups(layers: Sequence[Layer]) -> Iterable[list[Layer]]:
    """Neighbouring layers that make up a unit together."""
    most, group = _scaled(NEURONS), list[Layer]()
    for layer in layers:
        if group and sum(other.n_units for other in group) + layer.n_units > most:
            yield group
            group = []
        group.append(layer)
    if group:
        yield group


def _of_layers(what: str, settled: Settled, lacking: Iterable[Layer], **more: Any) -> list[NewUnit]:
    """The groups of which a layer is lacking; groups are cut over all layers, so that they stay the same ones."""
    wanted = {layer.id for layer in lacking}
    return [
        NewUnit(
            f"{what}:{hash_of(layer.id for layer in group)}", {"layers": [layer.id for layer in group], **more},
            sum(layer.n_units for layer in group),
        )
        for group in _groups(settled.plan.layers)
        if wanted & {layer.id for layer in group}
    ]  # fmt: skip


def _of_ids(what: str, name: str, ids: Sequence[int], usual: int, **more: Any) -> list[NewUnit]:
    return [NewUnit(f"{what}:{hash_of(part)}", {name: list(part), **more}, len(part)) for part in _chunks(ids, usual)]


# ---------------------------------------------------------------------- record


def _unrecorded(session: Session, settled: Settled) -> list[Layer]:
    done = activations.recorded(session, session.get_one(Recording, settled.recording_id))
    return [layer for layer in settled.plan.layers if layer.id not in done]


def _record(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    layers, units = _unrecorded(session, settled), []
    by_id = {layer.id: layer.name for layer in layers}
    blocks = activations.blocks_of(session, settled.recording_id)
    for block in range(len(blocks) if layers else 0):
        lacking = sorted(activations.missing_layers(session, settled.recording_id, block, list(by_id)))
        if lacking:
            units.append(
                NewUnit(
                    f"record:{settled.recording_id}:{block}:{hash_of(lacking)}",
                    {
                        "recording": settled.recording_id,
                        "block": block,
                        "stretch": blocks.stretch(block),
                        "layers": [by_id[layer] for layer in lacking],
                    },
                    blocks.bounds(block)[1],
                )
            )
    return units


def _fold(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    """Those stretches of which no block is missing any more; the others come when the step is asked again."""
    layers = _unrecorded(session, settled)
    recorded_at = set(
        session.scalars(
            sa.text(
                "SELECT DISTINCT CAST(payload ->> 'stretch' AS int) FROM work_units WHERE run_id = :run AND step = 'record'"
                " AND state IN ('waiting', 'sent', 'running', 'failed')"
            ),
            {"run": settled.run_id},
        )
    )
    units = []
    for part in activations.stretches(settled.plan.probing.n_clips):
        if part.index in recorded_at:
            continue
        done = activations.folded_layers(
            session, settled.recording_id, part.index, [layer.id for layer in layers]
        )  # fmt: skip
        lacking = [layer for layer in layers if layer.id not in done]
        units += _of_layers(
            f"fold:{settled.recording_id}:{part.index}",
            settled,
            lacking,
            recording=settled.recording_id,
            stretch=part.index,
        )
    return units


def _exemplars(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    lacking = _unrecorded(session, settled)
    return _of_layers(f"exemplars:{settled.recording_id}", settled, lacking, recording=settled.recording_id)


# ---------------------------------------------------------------------- captions, encoding


def _caption(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    options, recipe_id = settled.options, provenance.recipe_id(session, settled.plan.captioned)
    # Which clips have a caption coming is known without the model: those of ours read rows and files alone.
    if caption.needs_model(options.captioner):
        ids = caption.without_caption(session, settled.plan.probing, recipe_id)
        usual = CLIPS
    else:
        maker = caption.maker(engine, settled.plan.probing, options.captioner, options.captioner_options)
        ids, usual = caption.uncaptioned(engine, settled.plan.probing, maker), DESCRIBED
    return _of_ids(f"caption:{recipe_id}", "clips", ids, usual)


def _unencoded(session: Session, encoder_id: int, text_ids: Iterable[int]) -> list[int]:
    """Texts without a vector, in an order that does not depend on who added them: the batches are the same everywhere."""
    return list(
        session.scalars(
            sa.text(
                "SELECT t.id FROM texts t WHERE t.id = ANY (:ids) AND NOT EXISTS (SELECT FROM text_embeddings e"
                ' WHERE e.encoder_id = :encoder AND e.text_id = t.id) ORDER BY length(t.text), t.text COLLATE "C"'
            ),
            {"ids": sorted(set(text_ids)), "encoder": encoder_id},
        )
    )


def _encode(session: Session, which: str, encoder_id: int, text_ids: Iterable[int]) -> list[NewUnit]:
    return _of_ids(
        f"encode:{encoder_id}", "texts", _unencoded(session, encoder_id, text_ids), TEXTS, encoder=which
    )  # fmt: skip


def _encode_captions(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    units = []
    for method, texts in scored_texts(session, settled.plan).items():
        score = settled.plan.scores[method]
        if not _scored(session, score.recipe):
            wanted = itertools.chain.from_iterable(texts.values())
            units += _encode(session, method, score.encoder.id, wanted)  # type: ignore[attr-defined]
    return units


def _scored(session: Session, recipe: provenance.RecipePlan) -> bool:
    return bool(
        session.scalar(
            sa.text("SELECT EXISTS (SELECT FROM scorings WHERE recipe_id = :recipe)"),
            {"recipe": provenance.recipe_id(session, recipe)},
        )
    )


def _encode_sounds(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    score = settled.plan.scores["tab"]
    if _scored(session, score.recipe):
        return []
    encoder_id = score.encoder.id  # type: ignore[attr-defined]
    return _of_ids(
        f"sounds:{encoder_id}", "clips", match.unheard(engine, settled.plan.probing, encoder_id), CLIPS,
        encoder_id=encoder_id,
    )  # fmt: skip


def _sentences(session: Session, settled: Settled) -> list[int]:
    plan = settled.plan
    return list(
        session.scalars(
            sa.select(CaptionSentence.text_id)
            .join(Caption, Caption.id == CaptionSentence.caption_id)
            .join(ProbingSetClip, ProbingSetClip.clip_id == Caption.clip_id)
            .where(
                ProbingSetClip.probing_set_id == plan.probing.id,
                Caption.recipe_id == provenance.recipe_id(session, plan.captioned),
            )
            .distinct()
        )
    )


def _sentence_encoder(session: Session, settled: Settled) -> int:
    from and_platform.schema import Run

    plan = session.get_one(Run, settled.run_id).plan
    assert plan is not None
    return int(
        session.scalars(sa.text("SELECT id FROM encoders WHERE recipe_id = :recipe"), {"recipe": plan["encode"]}).one()
    )


def _encode_sentences(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    if not _unfinished(session, settled, settled.plan.summarise):
        return []
    return _encode(session, "sentence", _sentence_encoder(session, settled), _sentences(session, settled))


def _encode_points(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    layers = _unfinished(session, settled, settled.plan.calibrate)
    if not layers:
        return []
    recipe_id = provenance.recipe_id(session, settled.plan.summarise)
    points = summarise.point_texts(session, recipe_id, [layer.id for layer in layers])
    wanted = [*points, *_sentences(session, settled)]
    return _encode(session, "sentence", _sentence_encoder(session, settled), wanted)


# ---------------------------------------------------------------------- neurons


def _unfinished(session: Session, settled: Settled, recipe: provenance.RecipePlan) -> list[Layer]:
    done = provenance.finished_layers(session, provenance.recipe_id(session, recipe))
    return [layer for layer in settled.plan.layers if layer.id not in done]


def _score(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    return [
        NewUnit(
            f"score:{provenance.recipe_id(session, score.recipe)}", {"method": method},
            session.scalars(
                sa.select(sa.func.count()).where(Concept.concept_set_id == settled.plan.concepts.id)
            ).one(),
        )
        for method, score in settled.plan.scores.items()
        if not _scored(session, score.recipe)
    ]  # fmt: skip


def _match(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    units = []
    for method, recipes in settled.plan.matches.items():
        ids = {name: provenance.recipe_id(session, recipe) for name, recipe in recipes.items()}
        todo = match.missing(session, ids, settled.plan.layers, only_head(settled.plan, settled.options, method))
        units += _of_layers(
            f"match:{hash_of(sorted(ids.values()))}:{settled.options.all_similarities}", settled, [layer for layer, _ in todo],
            method=method,
        )  # fmt: skip
    return units


def _by_recipe(what: str, of: Callable[[Settled], provenance.RecipePlan]) -> Callable[..., list[NewUnit]]:
    def units(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
        recipe = of(settled)
        return _of_layers(
            f"{what}:{provenance.recipe_id(session, recipe)}", settled, _unfinished(session, settled, recipe)
        )  # fmt: skip

    return units


def _vectors(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    recipe = provenance.recipe_id(session, settled.plan.calibrate)
    encoder = _sentence_encoder(session, settled)
    lacking = set(
        session.scalars(
            sa.text(
                "SELECT DISTINCT n.layer_id FROM calibrations c JOIN neurons n ON n.id = c.neuron_id"
                " WHERE c.recipe_id = :recipe AND n.layer_id = ANY (:layers) AND c.n_kept > 0 AND NOT EXISTS ("
                "  SELECT FROM summary_embeddings e WHERE e.encoder_id = :encoder AND e.calibration_id = c.id)"
            ),
            {"recipe": recipe, "encoder": encoder, "layers": [layer.id for layer in settled.plan.layers]},
        )
    )
    layers = [layer for layer in settled.plan.layers if layer.id in lacking]
    return _of_layers(f"vectors:{encoder}:{recipe}", settled, layers)


def _asked(what: str, of: Callable[[Settled], provenance.RecipePlan], sides: int) -> Callable[..., list[NewUnit]]:
    """Slices of layers, each of about as many prompts."""

    def units(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
        recipe = of(settled)
        recipe_id, step = provenance.recipe_id(session, recipe), max(1, _scaled(PROMPTS) // sides)
        return [
            NewUnit(
                f"{what}:{recipe_id}:{layer.id}:{first}-{end}",
                {"layer": layer.id, "units": [first, end]},
                sides * (end - first),
            )
            for layer in _unfinished(session, settled, recipe)
            for first in range(0, layer.n_units, step)
            for end in [min(first + step, layer.n_units)]
        ]

    return units


def _picked(settled: Settled) -> provenance.RecipePlan:
    assert settled.plan.icl is not None
    return settled.plan.icl


def _tag(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    plan = settled.plan
    layers = _unfinished(session, settled, plan.extract)
    tag_id = provenance.recipe_id(session, plan.tag)
    untagged = queries.untagged_points(
        session, calibrate_recipe=provenance.recipe_id(session, plan.calibrate), tag_recipe=tag_id,
        layers=[layer.id for layer in layers],
    )  # fmt: skip
    ids = [identity for identity, _ in sorted(untagged, key=lambda row: row[1])]
    return _of_ids(f"tag:{tag_id}", "texts", ids, TEXTS)


def unjudged(session: Session, settled: Settled, layers: Sequence[Layer]) -> list[tuple[int, str]]:
    """Adjectives of layers that have no verdict: (term id, word)."""
    plan = settled.plan
    return list(
        queries.unjudged_adjectives(
            session, judge_recipe=provenance.recipe_id(session, plan.judge),
            tag_recipe=provenance.recipe_id(session, plan.tag),
            calibrate_recipe=provenance.recipe_id(session, plan.calibrate), layers=[layer.id for layer in layers],
        )
    )  # fmt: skip


def _judge(session: Session, engine: sa.Engine, settled: Settled) -> list[NewUnit]:
    words = unjudged(session, settled, _unfinished(session, settled, settled.plan.extract))
    usual = PROMPTS if _by_llm(settled.options, "judge") else WORDS
    judge_id = provenance.recipe_id(session, settled.plan.judge)
    return _of_ids(f"judge:{judge_id}", "words", [identity for identity, _ in words], usual)


_MISSING: dict[str, Callable[[Session, sa.Engine, Settled], list[NewUnit]]] = {
    "record": _record,
    "fold": _fold,
    "exemplars": _exemplars,
    "caption": _caption,
    "encode_captions": _encode_captions,
    "encode_sounds": _encode_sounds,
    "score": _score,
    "match": _match,
    "encode_sentences": _encode_sentences,
    "ask_summaries": _asked("ask summaries", lambda settled: settled.plan.summarise, 2),
    "summarise": _by_recipe("summarise", lambda settled: settled.plan.summarise),
    "encode_points": _encode_points,
    "calibrate": _by_recipe("calibrate", lambda settled: settled.plan.calibrate),
    "ask_concepts": _asked("ask concepts", _picked, 1),
    "pick_concepts": _by_recipe("pick", _picked),
    "tag": _tag,
    "judge": _judge,
    "terms": _by_recipe("terms", lambda settled: settled.plan.extract),
    "vectors": _vectors,
}


def stretch_over(session: Session, run_id: int, stretch: int) -> bool:
    """Whether no block of a stretch is still to be recorded: it can be folded."""
    return not session.scalar(
        sa.text(
            "SELECT EXISTS (SELECT FROM work_units WHERE run_id = :run AND step = 'record'"
            " AND state IN ('waiting', 'sent', 'running')"
            " AND CAST(payload ->> 'stretch' AS int) = :stretch)"
        ),
        {"run": run_id, "stretch": stretch},
    )
