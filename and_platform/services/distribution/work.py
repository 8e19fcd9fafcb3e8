"""Doing one unit of work: what a worker's message comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from and_platform import db
from and_platform.backends.base import TextAudioEncoder, TextEncoder
from and_platform.config import settings
from and_platform.errors import IncompleteError
from and_platform.schema import Caption, Clip, ClipEmbedding, Layer, ProbingSet, Recording, Run
from and_platform.services import (
    activations,
    calibrate,
    caption,
    dissect,
    embed,
    extract,
    icl,
    match,
    networks,
    provenance,
    record,
    summarise,
)
from and_platform.services.distribution import ledger, runs, settled, steps
from and_platform.services.distribution.ledger import NewUnit, Unit
from and_platform.services.distribution.models import Models
from and_platform.services.distribution.settled import Settled, StoredTools
from and_platform.services.distribution.stored import Heard
from and_platform.services.progress import SILENT

Mark = Callable[[str | None], None]


@dataclass
class Done:
    """What a unit came to. `counts` are kept with it: clips, neurons, tokens …"""

    counts: dict[str, Any] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    """Clips of a recording that cannot be read: the run has to settle its plan anew."""


@dataclass(frozen=True)
class _Bench:
    """What the doing of a unit needs."""

    engine: sa.Engine
    models: Models
    unit: Unit
    known: Settled
    run: Run
    mark: Mark | None

    @property
    def payload(self) -> Mapping[str, Any]:
        return self.unit.payload

    @property
    def layers(self) -> list[Layer]:
        return self.known.of(self.payload["layers"]).layers

    @property
    def tools(self) -> dissect.Tools:
        """The models of the run."""
        return self.models.tools_of(self.known)

    def stored(self) -> StoredTools:
        """The models of the run as their rows know them."""
        with db.reading(self.engine) as session:
            return StoredTools(self.engine, session, self.run, self.known.options)


def do(engine: sa.Engine, models: Models, unit: Unit, mark: Mark | None = None) -> Done:
    """Do a unit. Its rows are written in transactions of their own; what is there already is passed over.

    Parameters
    ----------
    mark
        Is told which clip is next, where a unit has killed its worker before.

    Raises
    ------
    AndpError
        As the services do.
    """
    with db.reading(engine) as session:
        run = session.get_one(Run, unit.run_id)
        known = None if unit.step == "plan" else settled.load(engine, session, run)
    if known is None:
        return _plan(engine, models, unit, run)
    if unit.payload.get("recording", known.recording_id) != known.recording_id:
        return Done()  # meanwhile the run has begun again on another one
    return _DOERS[unit.step](_Bench(engine, models, unit, known, run, mark))


def model_of(engine: sa.Engine, models: Models, unit: Unit) -> None:
    """Load what a unit needs, before it is taken. Where that fails, the unit will say so."""
    with db.reading(engine) as session:
        run = session.get_one(Run, unit.run_id)
        network = networks.find(session, run.arguments["network"])
    options = settled.options_of(run)
    if unit.step in ("plan", "record"):
        models.network(network)
    elif unit.step == "caption" and caption.needs_model(options.captioner):
        models.captioner(options)
    elif unit.step in ("ask_summaries", "ask_concepts") or (unit.step == "judge" and unit.queue == "llm"):
        _ = models.tools(options).llm
    elif unit.step in ("encode_captions", "encode_sounds"):
        _ = models.tools(options).scoring_encoder(unit.payload.get("encoder", "tab"))
    elif unit.step in ("encode_sentences", "encode_points", "pick_concepts", "judge"):
        _ = models.tools(options).sentence_encoder
    elif unit.step == "tag":
        _ = models.tools(options).tagger


def needs(run_options: dissect.Options, step: str, payload: Mapping[str, Any]) -> str:
    """The optional package without which a step cannot be done; empty where the default install will do."""
    from and_platform.backends import registry

    judge_by_llm = (run_options.judge or ("llm" if run_options.llm else "anchor")) == "llm"
    role, spec = {
        "caption": ("captioner", run_options.captioner if caption.needs_model(run_options.captioner) else None),
        "encode_captions": ("encoder", _encoder_spec(run_options, payload)),
        "encode_sounds": ("encoder", run_options.audio_encoder),
        "encode_sentences": ("encoder", run_options.sentence_encoder),
        "encode_points": ("encoder", run_options.sentence_encoder),
        "pick_concepts": ("encoder", run_options.sentence_encoder),
        "ask_summaries": ("llm", run_options.llm),
        "ask_concepts": ("llm", run_options.llm),
        "judge": ("llm", run_options.llm) if judge_by_llm else ("encoder", run_options.sentence_encoder),
        "tag": ("tagger", run_options.tagger),
    }.get(step, ("", None))
    return registry.needs(role).get(spec.partition(":")[0], "") if spec else ""


def _encoder_spec(options: dissect.Options, payload: Mapping[str, Any]) -> str | None:
    return options.text_encoder if payload.get("encoder") == "db" else options.audio_encoder


# ---------------------------------------------------------------------- units, by step


def _plan(engine: sa.Engine, models: Models, unit: Unit, run: Run) -> Done:
    options = settled.options_of(run)
    with db.reading(engine) as session:
        network = networks.find(session, run.arguments["network"])
    loaded = models.network(network)
    tools = dissect.Tools(options)  # for their recipes alone: none of them works here
    replaces = unit.payload.get("replaces")
    if replaces is not None:
        record.restart(engine, network, loaded, options.dataset, options.pooling, replaces)
    plan = dissect.make_plan(engine, network.name, options, tools, loaded)
    if options.stages and "caption" not in options.stages:
        dissect.refuse_uncaptioned(engine, plan, options.stages)
    specs = record.choose_layers(loaded, options.layers or None, options.pooling)
    with db.transaction(engine) as session:
        before = session.get_one(Run, run.id, with_for_update=True).plan or {}
        settled.save(session, run.id, plan, options, tools, {spec.name: spec.pooling for spec in specs})
        if before.get("abandoned"):
            session.flush()
            saved = session.get_one(Run, run.id, populate_existing=True)
            saved.plan = {**(saved.plan or {}), "abandoned": before["abandoned"]}
    return Done({"layers": len(plan.layers), "clips": plan.probing.n_clips})


def _record(bench: _Bench) -> Done:
    known, payload = bench.known, bench.payload
    loaded = bench.models.network(known.plan.network)
    n, unreadable = record.record_block(
        bench.engine, known.plan.network, loaded, known.dataset, known.recording_id, payload["block"],
        payload["layers"], known.options.pooling, mark=bench.mark, run_id=bench.unit.run_id,
    )  # fmt: skip
    return Done({"clips": n}, unreadable)


def _fold(bench: _Bench) -> Done:
    known = bench.known
    folded = record.fold_stretch(
        bench.engine, known.recording_id, bench.layers, bench.payload["stretch"], known.plan.probing.n_clips
    )
    if lacking := record.missing_blocks(bench.engine, known.recording_id, bench.layers, bench.payload["stretch"]):
        raise IncompleteError(f"blocks of {len(lacking)} layers are missing, e.g. of {lacking[0]}")
    return Done({"layers": folded})


def _exemplars(bench: _Bench) -> Done:
    known = bench.known
    completed = record.complete_layers(
        bench.engine, known.recording_id, bench.layers, known.poolings, known.plan.probing.n_clips
    )
    with db.reading(bench.engine) as session:
        done = activations.recorded(session, session.get_one(Recording, known.recording_id))
    if lacking := [layer.name for layer in bench.layers if layer.id not in done]:
        raise IncompleteError(f"stretches of {len(lacking)} layers are not folded, e.g. of {lacking[0]}")
    return Done({"layers": completed, "neurons": bench.unit.size})


def _caption(bench: _Bench) -> Done:
    options, probing = bench.known.options, bench.known.plan.probing

    def make() -> caption.CaptionMaker:
        model = bench.models.captioner(options) if caption.needs_model(options.captioner) else None
        return caption.maker(bench.engine, probing, options.captioner, options.captioner_options, model)

    name, planned = f"the captioner '{options.captioner}'", bench.known.plan.captioned
    maker = bench.models.as_planned(name, make, caption.plan, planned)
    written = caption.caption(
        bench.engine, probing, maker, run_id=bench.unit.run_id, clips=bench.payload["clips"], mark=bench.mark
    )
    return Done({"clips": written})


def _encoder(bench: _Bench) -> TextEncoder:
    which = bench.payload.get("encoder", "sentence")
    return bench.tools.sentence_encoder if which == "sentence" else bench.tools.scoring_encoder(which)


def _encode(bench: _Bench) -> Done:
    embed.embed_texts(bench.engine, _encoder(bench), bench.payload["texts"])
    return Done({"texts": bench.unit.size})


def _encode_sounds(bench: _Bench) -> Done:
    encoder = bench.tools.scoring_encoder("tab")
    assert isinstance(encoder, TextAudioEncoder)
    heard = match.embed_sounds(
        bench.engine, bench.known.plan.probing, encoder, bench.payload["encoder_id"], clips=bench.payload["clips"],
        run_id=bench.unit.run_id, mark=bench.mark or (lambda _key: None),
    )  # fmt: skip
    return Done({"clips": heard})


def _score(bench: _Bench) -> Done:
    plan = bench.known.plan
    match.score(bench.engine, plan.probing, plan.concepts, plan.scores[bench.payload["method"]])
    return Done({"concepts": bench.unit.size})


def _match(bench: _Bench) -> Done:
    known, method = bench.known, bench.payload["method"]
    plan = known.plan
    scoring_id, _ = match.score(bench.engine, plan.probing, plan.concepts, plan.scores[method])
    match.match(
        bench.engine, known.recording_id, scoring_id, bench.layers, plan.matches[method],
        only_head=dissect.only_head(plan, known.options, method), clips=known.options.clips,
    )  # fmt: skip
    return Done({"neurons": bench.unit.size})


def _ask_summaries(bench: _Bench) -> Done:
    llm = Heard(bench.tools.llm)
    job = bench.known.job([bench.payload["layer"]])
    first, end = bench.payload["units"]
    summarise.ask(bench.engine, summarise.Generative(llm), job, job.layers[0], (first, end))
    return _heard(bench, llm)


def _ask_concepts(bench: _Bench) -> Done:
    llm = Heard(bench.tools.llm)
    plan = bench.known.of([bench.payload["layer"]])
    with db.transaction(bench.engine) as session:
        calibrate_id = provenance.recipe_id(session, plan.calibrate)
    first, end = bench.payload["units"]
    icl.ask(bench.engine, llm, plan.concepts, plan.layers[0], calibrate_id, (first, end))
    return _heard(bench, llm)


def _heard(bench: _Bench, llm: Heard) -> Done:
    with db.transaction(bench.engine) as session:
        llm.keep(session, bench.unit.run_id)
    return Done({"prompts": len(llm.asked), "tokens": llm.tokens, "unanswered": len(llm.reasons)})


def _summarise(bench: _Bench) -> Done:
    tools = bench.stored()
    summarise.summarise(
        bench.engine, tools.summariser(), bench.known.job(bench.payload["layers"]), run_id=bench.unit.run_id
    )
    return Done({"neurons": bench.unit.size})


def _calibrate(bench: _Bench) -> Done:
    tools = bench.stored()
    calibrate.calibrate(
        bench.engine, tools.sentence_encoder, dissect.rules(bench.known.options, tools),
        bench.known.job(bench.payload["layers"]), bench.known.plan.calibrate,
    )  # fmt: skip
    return Done({"neurons": bench.unit.size})


def _pick(bench: _Bench) -> Done:
    known = bench.known
    icl.pick(
        bench.engine, bench.stored().llm, bench.tools.sentence_encoder, known.recording_id,
        known.plan.concepts, bench.layers, known.plan.calibrate, run_id=bench.unit.run_id,
    )  # fmt: skip
    return Done({"neurons": bench.unit.size})


def _tag(bench: _Bench) -> Done:
    with db.transaction(bench.engine) as session:
        recipe_id = provenance.recipe_id(session, bench.known.plan.tag)
        rows = session.execute(
            sa.text(
                "SELECT t.id, t.text FROM texts t WHERE t.id = ANY (:ids) AND NOT EXISTS ("
                " SELECT FROM text_tags g WHERE g.recipe_id = :recipe AND g.text_id = t.id) ORDER BY t.text"
            ),
            {"ids": bench.payload["texts"], "recipe": recipe_id},
        ).all()
    texts = [(int(row.id), str(row.text)) for row in rows]
    extract.tag(bench.engine, bench.tools.tagger, recipe_id, texts)
    return Done({"texts": len(texts)})


def _judge(bench: _Bench) -> Done:
    tools = bench.tools
    with db.transaction(bench.engine) as session:
        judge_id = provenance.recipe_id(session, bench.known.plan.judge)
        rows = session.execute(
            sa.text(
                "SELECT t.id, t.term FROM terms t WHERE t.id = ANY (:ids) AND NOT EXISTS ("
                " SELECT FROM term_verdicts v WHERE v.recipe_id = :recipe AND v.term_id = t.id) ORDER BY t.term"
            ),
            {"ids": bench.payload["words"], "recipe": judge_id},
        ).all()
    words = [(int(row.id), str(row.term)) for row in rows]
    extract.judge_words(bench.engine, tools.judge(), judge_id, words, run_id=bench.unit.run_id)
    return Done({"words": len(words)})


def _terms(bench: _Bench) -> Done:
    with db.transaction(bench.engine) as session:
        recipes = settled.extract_recipes(session, bench.known.plan)
        ready = provenance.finished_layers(session, recipes.calibrate)
        unjudged = {layer.id: bool(steps.unjudged(session, bench.known, [layer])) for layer in bench.layers}
    for layer in bench.layers:
        extract.write(bench.engine, recipes, layer, whole=layer.id in ready and not unjudged[layer.id])
    return Done({"neurons": bench.unit.size})


def _vectors(bench: _Bench) -> Done:
    with db.transaction(bench.engine) as session:
        recipe_id = provenance.recipe_id(session, bench.known.plan.calibrate)
    made = embed.embed_summaries(bench.engine, bench.stored().sentence_encoder, recipe_id, bench.layers, SILENT)
    return Done({"summaries": made})


_DOERS: dict[str, Callable[[_Bench], Done]] = {
    "record": _record,
    "fold": _fold,
    "exemplars": _exemplars,
    "caption": _caption,
    "encode_captions": _encode,
    "encode_sounds": _encode_sounds,
    "score": _score,
    "match": _match,
    "encode_sentences": _encode,
    "ask_summaries": _ask_summaries,
    "summarise": _summarise,
    "encode_points": _encode,
    "calibrate": _calibrate,
    "ask_concepts": _ask_concepts,
    "pick_concepts": _pick,
    "tag": _tag,
    "judge": _judge,
    "terms": _terms,
    "vectors": _vectors,
}


# ---------------------------------------------------------------------- giving up


def give_up(
    engine: sa.Engine, unit: Unit, reason: str, traceback: str | None, *, died: bool, divide: bool = False
) -> None:
    """End a unit that was tried often enough, so that the rest can go on.

    Where it is known of which clip the worker dies, that clip is the failure, and the others are tried without it. Where it is
    not, a unit of several clips or texts that kills its workers is cut in two, until the one is alone; with `divide`, one
    that fails otherwise, too.
    """
    culprit = unit.doing if died else None
    items = next((name for name in ("clips", "texts", "words") if name in unit.payload), None)
    parts = list(unit.payload[items]) if items else []
    if culprit is not None and unit.step == "record":
        _blame(engine, unit, culprit, reason)
        runs.again(engine, unit.run_id, unit.payload["recording"])
        return
    with db.transaction(engine) as session:
        if culprit is not None and items == "clips":
            blamed = session.scalars(
                sa.select(Clip.id).where(Clip.path == culprit, Clip.id.in_(parts))
            ).one_or_none()  # fmt: skip
            if blamed is not None:
                rest = [part for part in parts if part != blamed]
                alone = _part(unit, "clips", [blamed])
                ledger.split(session, unit, [alone, *([_part(unit, "clips", rest)] if rest else [])], 0)
                single = session.execute(
                    sa.text("SELECT id FROM work_units WHERE run_id = :run AND step = :step AND key = :key"),
                    {"run": unit.run_id, "step": unit.step, "key": alone.key},
                ).scalar_one()
                _end(
                    session, replace(unit, id=single, payload=alone.payload, size=1), f"{culprit}: {reason}", traceback
                )
                return
        if (died or divide) and items is not None and len(parts) > 1:
            middle = len(parts) // 2
            halves = [_part(unit, items, half) for half in (parts[:middle], parts[middle:])]
            ledger.split(session, unit, halves, settings().most_attempts - 1)
            return
        _end(session, unit, reason, traceback)


def _part(unit: Unit, items: str, ids: list[int]) -> NewUnit:
    payload = {**unit.payload, items: ids}
    return NewUnit(f"{unit.key}/{steps.hash_of(ids)}", payload, len(ids))


def _end(session: Any, unit: Unit, reason: str, traceback: str | None) -> None:
    """The unit is failed, and so are the clips of it that came to nothing, where others know clips by their failures."""
    if not ledger.fail(session, unit, reason, traceback):
        return  # meanwhile it was done after all, or the run has begun again without it
    run = session.get_one(Run, unit.run_id)
    told = run.plan or {}
    stage, scope = unit.step, f"run:{unit.run_id}"
    rows: list[tuple[str, int | None]] = [(f"unit {unit.id}", None)]
    if unit.step in ("caption", "encode_sounds"):
        there = sa.select(Caption.id).where(Caption.clip_id == Clip.id)
        if unit.step == "caption":
            scope = f"recipe:{told['recipes']['caption']}"
            there = there.where(Caption.recipe_id == told["recipes"]["caption"])
        else:
            stage, scope = match.SOUNDS, f"encoder:{unit.payload['encoder_id']}"
            there = sa.select(ClipEmbedding.clip_id).where(
                ClipEmbedding.clip_id == Clip.id, ClipEmbedding.encoder_id == unit.payload["encoder_id"]
            )
        clips = session.execute(
            sa.select(Clip.id, Clip.path).where(Clip.id.in_(unit.payload["clips"]), ~there.exists()).order_by(Clip.path)
        ).all()
        rows = [(path, identity) for identity, path in clips]
    for name, clip_id in rows:
        provenance.record_failure(
            session, stage=stage, scope=scope, unit=name, reason=f"{reason} (andp runs retry {unit.run_id})",
            detail=traceback, run_id=unit.run_id, clip_id=clip_id,
        )  # fmt: skip


def _blame(engine: sa.Engine, unit: Unit, key: str, reason: str) -> None:
    """A clip that kills who reads it leaves the recording, as one that cannot be read does."""
    with db.transaction(engine) as session:
        probing = session.get_one(ProbingSet, session.get_one(Recording, unit.payload["recording"]).probing_set_id)
        clip_id = session.scalars(
            sa.text(
                "SELECT c.id FROM clips c JOIN probing_set_clips m ON m.clip_id = c.id"
                " WHERE m.probing_set_id = :probing AND c.path = :path"
            ),
            {"probing": probing.id, "path": key},
        ).one()
        dataset = settled.options_of(session.get_one(Run, unit.run_id)).dataset
        provenance.record_failure(
            session, stage="record", scope=f"dataset:{dataset}", unit=key, reason=f"{reason} while it was decoded",
            run_id=unit.run_id, clip_id=clip_id,
        )  # fmt: skip
