"""Dissection: every stage in order, each doing what is missing and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db, logs
from and_platform.backends import registry
from and_platform.backends.base import LLM, Tagger, TextAudioEncoder, TextEncoder
from and_platform.core.exemplars import EXEMPLARS_KEPT
from and_platform.core.similarity import SIMILARITIES
from and_platform.errors import ConfigError, IncompleteError
from and_platform.schema import (
    Caption,
    Concept,
    ConceptSet,
    DissectedLayer,
    Dissection,
    DissectionRecipe,
    Layer,
    Network,
    ProbingSet,
    ProbingSetClip,
)
from and_platform.services import (
    calibrate,
    caption,
    concepts,
    datasets,
    embed,
    extract,
    generate,
    icl,
    match,
    networks,
    provenance,
    record,
    summarise,
)
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan

if TYPE_CHECKING:
    from and_platform.backends.networks.base import LoadedNetwork

STAGES = ("record", "caption", "match", "summarise", "calibrate", "icl", "extract", "embed")
METHODS = ("db", "tab", "icl")


@dataclass(frozen=True)
class Options:
    """What a dissection is made with; each field is an option of `andp dissect` and a key of its config file."""

    dataset: str = "sample"
    """Data set to probe with."""
    concepts: str | None = None
    """Concept set; default: the data set's own labels."""
    layers: tuple[str, ...] = ()
    """Patterns on layer names; default: the paper's choice."""
    pooling: str | None = None
    """first, mean or max; default: each layer's own."""
    top_k: int = 5
    """K: exemplars a side that summaries are made of."""
    threshold: float = 0.7
    """t: cosine above which a low point removes a high one."""
    methods: tuple[str, ...] = ()
    """Closed-set methods: db, tab, icl; default: those for which there are models."""
    similarity: str | None = None
    """The function that fills closed_db and closed_tab; default: cos_cubed and soft_wpmi."""
    all_similarities: bool = False
    """All five functions for hidden layers too, not for the head alone."""
    clips: int | None = None
    """Match hidden layers on that many most active clips only; default: all."""
    captioner: str = "auto"
    """auto, source, describer, joined, file:PATH, or a captioner of the registry."""
    summariser: str | None = None
    """extractive or llm; default: llm where one is set."""
    llm: str | None = None
    """An LLM of the registry, for summaries, ICL and the filter of adjectives."""
    judge: str | None = None
    """anchor or llm: who judges adjectives; default: llm where one is set."""
    sentence_encoder: str = "minilm"
    """Encoder of sentences: calibration, search by meaning."""
    text_encoder: str = "minilm"
    """Encoder of captions and concepts (db); the paper uses CLIP's text tower."""
    audio_encoder: str | None = None
    """Encoder of sound and text (tab), e.g. clap:DIRECTORY."""
    sentence_encoder_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the encoder of sentences: prompt_name, device …"""
    text_encoder_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the encoder of captions and concepts."""
    audio_encoder_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the encoder of sound and text: python, tokenizer …"""
    tagger: str = "hanta"
    """Part-of-speech tagger."""
    min_support: tuple[int, ...] = (3, 2)
    """m of the extractive summariser: captions of K that must agree; several are tried in turn."""
    stages: tuple[str, ...] = ()
    """Only these stages; default: all."""
    captioner_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the captioner backend: prompt, max_tokens …"""
    llm_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the LLM backend: temperature, seed, concurrency …"""

    def __post_init__(self) -> None:
        _check("stage", self.stages, STAGES)
        _check("method", self.methods, METHODS)
        _check("similarity", [self.similarity] if self.similarity else [], tuple(SIMILARITIES))
        _check("summariser", [self.summariser] if self.summariser else [], ("extractive", "llm"))
        _check("judge", [self.judge] if self.judge else [], ("anchor", "llm"))
        _check("pooling", [self.pooling] if self.pooling else [], ("first", "mean", "max"))
        if not 1 <= self.top_k <= EXEMPLARS_KEPT:
            raise ConfigError(f"top_k is {self.top_k}; between 1 and {EXEMPLARS_KEPT} exemplars a side are kept")
        if self.clips is not None and self.clips < 1:
            raise ConfigError(f"clips is {self.clips}; match on at least one clip, or leave it out for all")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}; a cosine lies between -1 and 1")
        if self.llm is None:
            for name, value in (("summariser", self.summariser), ("judge", self.judge)):
                if value == "llm":
                    raise ConfigError(
                        f"{name} is 'llm', but no LLM is set; give --llm, e.g. openai:MODEL@http://localhost:8000/v1"
                    )
            if "icl" in self.methods:
                raise ConfigError("the method icl needs an LLM; give --llm, e.g. openai:MODEL@http://localhost:8000/v1")
        if "tab" in self.methods and self.audio_encoder is None:
            raise ConfigError("the method tab needs an encoder of sound and text; give --audio-encoder clap:DIRECTORY")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Options:
        """Options from a config file's table or a notebook's keywords.

        Raises
        ------
        ConfigError
            For a key that is no option, or a value of another type.
        """
        known = {item.name: item for item in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"no option '{unknown[0]}'; there are: {', '.join(sorted(known))}")
        try:
            settled: Options = TypeAdapter(cls).validate_python(
                {key: _several(cls, key, value) for key, value in values.items()}
            )
        except ValidationError as exc:
            first = exc.errors()[0]
            raise ConfigError(f"{first['loc'][0]} = {first['input']!r}: {first['msg'].lower()}") from exc
        return settled

    def chosen_methods(self) -> tuple[str, ...]:
        """The methods asked for, or all for which there are models."""
        possible = {"db": True, "tab": self.audio_encoder is not None, "icl": self.llm is not None}
        return tuple(method for method in METHODS if (method in self.methods if self.methods else possible[method]))


def _several(options: type[Options], key: str, value: Any) -> Any:
    """What several may be given of, from text with commas too, as on the command line."""
    if isinstance(value, str) and isinstance(getattr(options, key, None), tuple):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for value in given:
        if value not in known:
            raise ConfigError(f"no {what} '{value}'; choose from: {', '.join(known)}")


def doers(network: str, options: Options) -> dict[str, str]:
    """Stage -> the network or model that does it: what its time depends on."""
    scorers = {"db": options.text_encoder, "tab": options.audio_encoder}
    llm = logs.mask(str(options.llm))
    summariser = options.summariser or ("llm" if options.llm else "extractive")
    judge = options.judge or ("llm" if options.llm else "anchor")
    return {
        "record": network,
        "caption": logs.mask(options.captioner),
        "match": ", ".join(
            f"{method} by {scorers[method]}" for method in options.chosen_methods() if method in scorers
        ),
        "summarise": llm if summariser == "llm" else summariser,
        "calibrate": options.sentence_encoder,
        "icl": llm,
        "extract": f"{options.tagger}, adjectives judged by {llm if judge == 'llm' else judge}",
        "embed": options.sentence_encoder,
    }


class Tools:
    """The models of a dissection, each made when it is first needed and once."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._made: dict[tuple[str, str, str], Any] = {}

    def _get(self, role: str, spec: str, **keywords: Any) -> Any:
        key = (role, spec, repr(sorted(keywords.items())))
        if key not in self._made:
            self._made[key] = registry.create(role, spec, **keywords)
        return self._made[key]

    @property
    def sentence_encoder(self) -> TextEncoder:
        encoder: TextEncoder = self._get(
            "encoder", self._options.sentence_encoder, **self._options.sentence_encoder_options
        )
        return encoder

    def scoring_encoder(self, method: str) -> TextEncoder:
        """The encoder that makes P."""
        options = self._options
        spec = options.text_encoder if method == "db" else options.audio_encoder
        assert spec is not None
        keywords = options.text_encoder_options if method == "db" else options.audio_encoder_options
        encoder: TextEncoder = self._get("encoder", spec, **keywords)
        if method == "tab" and not isinstance(encoder, TextAudioEncoder):
            raise ConfigError(f"'{spec}' embeds no sound; the method tab needs an encoder such as clap:DIRECTORY")
        return encoder

    @property
    def llm(self) -> LLM:
        assert self._options.llm is not None
        llm: LLM = self._get("llm", self._options.llm, **self._options.llm_options)
        return llm

    @property
    def tagger(self) -> Tagger:
        tagger: Tagger = self._get("tagger", self._options.tagger)
        return tagger

    def summariser(self) -> summarise.Summariser:
        wanted = self._options.summariser or ("llm" if self._options.llm else "extractive")
        if wanted == "llm":
            return summarise.Generative(self.llm)
        return summarise.Extractive(self.sentence_encoder, min_support=self._options.min_support)

    def judge(self) -> extract.Judge:
        wanted = self._options.judge or ("llm" if self._options.llm else "anchor")
        return extract.LLMJudge(self.llm) if wanted == "llm" else extract.AnchorJudge(self.sentence_encoder)


@dataclass(frozen=True)
class Plan:
    """A dissection before any of it is computed: every recipe is known."""

    network: Network
    probing: ProbingSet
    concepts: ConceptSet
    layers: list[Layer]
    record: RecipePlan
    captioned: RecipePlan
    scores: dict[str, match.ScorePlan]
    matches: dict[str, dict[str, RecipePlan]]
    speaks: dict[str, str]
    summarise: RecipePlan
    calibrate: RecipePlan
    icl: RecipePlan | None
    extract: RecipePlan
    tag: RecipePlan
    judge: RecipePlan
    caption_maker: caption.CaptionMaker

    def recipes(self) -> dict[str, RecipePlan]:
        """Stage (with method and function) -> recipe."""
        named = {"record": self.record, "caption": self.captioned, "summarise": self.summarise}
        named |= {"calibrate": self.calibrate, "extract": self.extract, "tag": self.tag, "judge": self.judge}
        named |= {f"score.{method}": score.recipe for method, score in self.scores.items()}
        for method, by_function in self.matches.items():
            named |= {f"match.{method}.{name}": recipe for name, recipe in by_function.items()}
        if self.icl:
            named["match.icl.llm"] = self.icl
        return named

    def speaking(self) -> set[str]:
        """The match recipes that fill closed_db, closed_tab and closed_icl."""
        return {f"match.{method}.{name}" for method, name in self.speaks.items()}

    @property
    def sha256(self) -> str:
        """What identifies the dissection."""
        return provenance.sha256_of(
            {
                "network": self.network.id,
                "probing_set": self.probing.sha256,
                "concept_set": self.concepts.sha256,
                "recipes": {stage: recipe.sha256 for stage, recipe in self.recipes().items()},
                "speaks": sorted(self.speaking()),
            }
        )


@dataclass
class StageReport:
    """What a stage did: units computed now, of how many, and the time it took."""

    stage: str
    computed: int
    total: int
    unit: str
    seconds: float


@dataclass
class DissectReport:
    """What `andp dissect` tells at the end."""

    dissection_id: int
    stages: list[StageReport]
    failed_clips: list[str]
    captions: tuple[int, int]
    """Clips with a caption, and how many of these captions name the clip's class."""
    open_failures: int
    llm: generate.Usage | None = None
    """What the LLM has been asked so far in this database, where one is set."""
    cut: list[embed.CutTexts] = field(default_factory=list)
    """Texts of this dissection that were longer than their encoder's window."""


def make_plan(
    engine: sa.Engine,
    network_name: str,
    options: Options,
    tools: Tools,
    loaded: LoadedNetwork | None = None,
    probing_set_id: int | None = None,
) -> Plan:
    """Settle what is to be done: the snapshot (default: of the data set as it is now), the concepts, every recipe."""
    with db.transaction(engine) as session:
        network = networks.find(session, network_name)
        dataset = datasets.find(session, options.dataset)
        concept_set = (
            concepts.ensure(session, options.concepts)
            if options.concepts
            else concepts.labels_of(session, options.dataset)
        )
        if probing_set_id is None:
            probing = datasets.snapshot(session, dataset.id)
        else:
            probing = session.get_one(ProbingSet, probing_set_id)
        rows = {layer.name: layer for layer in networks.layers(session, network)}
    loaded = loaded or networks.load(network)
    specs = record.choose_layers(loaded, options.layers or None, options.pooling)
    recorded = record.plan(network, loaded, dataset.name, probing, options.pooling)
    maker = caption.maker(engine, probing, options.captioner, options.captioner_options)
    captions = caption.plan(maker)
    methods = options.chosen_methods()
    scores = {
        method: match.plan_scores(
            method, tools.scoring_encoder(method), concept_set, probing, captions if method == "db" else None
        )
        for method in methods
        if method != "icl"
    }
    speaks = {method: options.similarity or match.SPEAKS[method] for method in scores}
    matches = {
        method: {name: match.plan_match(recorded, score, name, options.clips) for name in SIMILARITIES}
        for method, score in scores.items()
    }
    summaries = tools.summariser().plan(recorded, captions, options.top_k)
    calibrated = calibrate.plan(summaries, tools.sentence_encoder, rules(options, tools))
    picked = icl.plan(calibrated, tools.llm, tools.sentence_encoder, concept_set) if "icl" in methods else None
    if picked:
        speaks["icl"] = "llm"
    judge = tools.judge()
    return Plan(
        network, probing, concept_set, [rows[spec.name] for spec in specs], recorded, captions, scores, matches, speaks,
        summaries, calibrated, picked, extract.plan(calibrated, tools.tagger, judge), extract.plan_tags(tools.tagger),
        judge.plan(), maker,
    )  # fmt: skip


def rules(options: Options, tools: Tools) -> calibrate.Rules:
    """How points are compared. An LLM's are taken as they are; points from captions keep to one side of a facet."""
    return calibrate.Rules(options.threshold, facets=not tools.summariser().own_words)


def dissect(
    engine: sa.Engine,
    network_name: str,
    options: Options,
    *,
    progress: Progress = SILENT,
    run: provenance.RunHandle | None = None,
) -> DissectReport:
    """Run all stages, or those of `options.stages`; what is there already is not computed again.

    Raises
    ------
    AndpError
        As the stages do. What was done until then stays, and the next call goes on from there.
    """
    run_id = run.id if run else None
    tools = Tools(options)
    wanted = options.stages or STAGES
    reports: list[StageReport] = []
    with db.reading(engine) as session:
        network = networks.find(session, network_name)
        datasets.find(session, options.dataset)
    if caption.only_describes(engine, options.dataset, options.captioner):
        progress.note(f"note: {caption.OFFLINE_CAPTIONS}")
    loaded = networks.load(network)
    plan = make_plan(
        engine, network_name, options, tools, loaded
    )  # what is named wrongly is told before anything is done
    failed_clips: list[str] = []

    def timed(stage: str, unit: str, total: int, work: Callable[[], int]) -> None:
        if stage in wanted:
            began = time.monotonic()
            computed = work()
            reports.append(StageReport(stage, computed, total, unit, time.monotonic() - began))

    if "record" in wanted:
        began = time.monotonic()
        recorded = record.record(
            engine, network, loaded, options.dataset, layers=options.layers or None, pooling=options.pooling,
            progress=progress, run_id=run_id,
        )  # fmt: skip
        failed_clips = recorded.failed_clips
        if (
            recorded.probing_set_id != plan.probing.id
        ):  # clips that cannot be read are not in it; all else follows from it
            plan = make_plan(engine, network_name, options, tools, loaded, recorded.probing_set_id)
        total = recorded.layers_recorded + recorded.layers_reused
        reports.append(StageReport("record", recorded.layers_recorded, total, "layers", time.monotonic() - began))
    with db.transaction(engine) as session:
        recording_id = record.ensure_recording(session, plan.network.id, plan.probing.id, plan.record)
        dissection_id = ensure_dissection(session, plan, options, recording_id)
    if run:
        run.dissection_id = dissection_id
    layers, neurons = plan.layers, len(plan.layers)
    timed(
        "caption", "clips", plan.probing.n_clips,
        lambda: caption.caption(engine, plan.probing, plan.caption_maker, progress=progress, run_id=run_id),
    )  # fmt: skip
    if "caption" not in wanted:
        refuse_uncaptioned(engine, plan, wanted)
    with db.reading(engine) as session:
        captions = captioned_clips(session, plan)
    for report in reports:
        if report.stage == "caption":
            report.total = captions[0]  # clips that have none to be had are not reused
    timed("match", "layers", neurons, lambda: match_layers(engine, plan, options, recording_id, progress, run_id))
    summariser = tools.summariser()
    job = summarise.Job(recording_id, plan.probing, layers, plan.summarise, plan.captioned, options.top_k)
    timed(
        "summarise", "layers", neurons,
        lambda: summarise.summarise(engine, summariser, job, progress=progress, run_id=run_id),
    )  # fmt: skip
    timed(
        "calibrate", "layers", neurons,
        lambda: calibrate.calibrate(
            engine, tools.sentence_encoder, rules(options, tools), job, plan.calibrate, progress=progress
        ),
    )  # fmt: skip
    if plan.icl:
        timed(
            "icl", "layers", neurons,
            lambda: icl.pick(
                engine, tools.llm, tools.sentence_encoder, recording_id, plan.concepts, layers, plan.calibrate,
                progress=progress, run_id=run_id,
            ),
        )  # fmt: skip
    timed(
        "extract", "layers", neurons,
        lambda: extract.extract(
            engine, tools.tagger, tools.judge(), layers, plan.calibrate, progress=progress, run_id=run_id
        ),
    )  # fmt: skip
    timed("embed", "summaries", sum(layer.n_units for layer in layers), lambda: _embed(engine, plan, tools, progress))
    open_failures = complete(engine, plan, dissection_id, wanted)
    usage = generate.usage(engine, tools.llm) if options.llm else None
    with db.reading(engine) as session:
        encoded = encoded_texts(session, plan, tools.sentence_encoder)
    cut = [embed.cut_texts(engine, encoder, texts, what) for what, encoder, texts in encoded]
    if run:
        run.counts.update(stage_counts(plan, reports, doers(network_name, options)))
        run.counts.update(remarks(captions, cut, usage), open_failures=open_failures)
    return DissectReport(dissection_id, reports, failed_clips, captions, open_failures, usage, cut)


def refuse_uncaptioned(engine: sa.Engine, plan: Plan, wanted: Sequence[str]) -> None:
    """Without captions, what is made of them would be finished without them.

    Raises
    ------
    IncompleteError
        A stage that reads captions is wanted, and clips wait for theirs.
    """
    if "summarise" in wanted or ("match" in wanted and "db" in plan.scores):
        waiting = caption.waiting(engine, plan.probing, plan.caption_maker)
        if waiting:
            raise IncompleteError(f"{waiting:,} clips wait for their captions; run the stage caption first")


def stage_counts(plan: Plan, reports: Sequence[StageReport], does: Mapping[str, str]) -> dict[str, Any]:
    """What a run keeps of its stages; `units` are clips or neurons, from which later runs estimate their time."""
    neurons = sum(layer.n_units for layer in plan.layers)
    counts: dict[str, Any] = {}
    for report in reports:
        share = min(report.computed / report.total, 1.0) if report.total else 0.0
        units = share * (plan.probing.n_clips if report.stage in ("record", "caption") else neurons)
        counts[report.stage] = {
            "computed": report.computed, "units": round(units), "seconds": round(report.seconds, 3),
            "by": does[report.stage],
        }  # fmt: skip
    return counts


def match_layers(
    engine: sa.Engine, plan: Plan, options: Options, recording_id: int, progress: Progress, run_id: int | None
) -> int:
    done = 0
    for method, score in plan.scores.items():
        scoring_id, _ = match.score(engine, plan.probing, plan.concepts, score, progress=progress, run_id=run_id)
        done += match.match(
            engine, recording_id, scoring_id, plan.layers, plan.matches[method],
            only_head=only_head(plan, options, method), clips=options.clips, progress=progress,
        )  # fmt: skip
    return done


def only_head(plan: Plan, options: Options, method: str) -> tuple[str, ...]:
    """The functions that are computed for the head alone: all but the one that speaks, unless all are asked for."""
    return () if options.all_similarities else tuple(name for name in SIMILARITIES if name != plan.speaks[method])


def _embed(engine: sa.Engine, plan: Plan, tools: Tools, progress: Progress) -> int:
    with db.reading(engine) as session:
        recipe_id = provenance.find_recipe(session, plan.calibrate)
    if recipe_id is None:
        return 0
    return embed.embed_summaries(engine, tools.sentence_encoder, recipe_id, plan.layers, progress)


def captioned_clips(session: Session, plan: Plan) -> tuple[int, int]:
    """Clips with a caption, and how many of these captions name the clip's class."""
    recipe_id = provenance.find_recipe(session, plan.captioned)
    return caption.caption_overview(session, plan.probing.id, recipe_id) if recipe_id else (0, 0)


def scored_texts(session: Session, plan: Plan) -> dict[str, dict[str, Sequence[int]]]:
    """What each method's encoder reads: ids of the texts (which may repeat) by method, and by what they are."""
    captions = session.scalars(
        sa.select(Caption.text_id)
        .join(ProbingSetClip, ProbingSetClip.clip_id == Caption.clip_id)
        .where(
            ProbingSetClip.probing_set_id == plan.probing.id,
            Caption.recipe_id == provenance.find_recipe(session, plan.captioned),
        )
    ).all()
    concepts = session.scalars(sa.select(Concept.text_id).where(Concept.concept_set_id == plan.concepts.id)).all()
    return {
        method: {"concepts": concepts, **({"captions": captions} if method == "db" else {})} for method in plan.scores
    }


def encoded_texts(
    session: Session, plan: Plan, sentence_encoder: TextEncoder
) -> list[tuple[str, TextEncoder, Sequence[int]]]:
    """All that a dissection encodes: what, by which encoder, and ids of the texts (which may repeat)."""
    summaries = provenance.find_recipe(session, plan.summarise)
    points = summarise.point_texts(session, summaries, [layer.id for layer in plan.layers]) if summaries else {}
    scored = [
        (what, plan.scores[method].encoder, ids)
        for method, texts in scored_texts(session, plan).items()
        for what, ids in texts.items()
    ]
    return [*scored, ("points", sentence_encoder, list(points))]


def remarks(captions: tuple[int, int], cut: Sequence[embed.CutTexts], usage: generate.Usage | None) -> dict[str, Any]:
    """What a run keeps of what its reader should know: captions that name the class, texts that were cut, answers of the LLM."""
    captioned, naming = captions
    told: dict[str, Any] = {
        "captions": {"clips": captioned, "naming": naming}, "cut_texts": [vars(texts) for texts in cut]
    }  # fmt: skip
    return told | ({"llm": usage._asdict()} if usage else {})


def ensure_dissection(session: Session, plan: Plan, options: Options, recording_id: int) -> int:
    made = session.scalars(
        insert(Dissection)
        .values(
            network_id=plan.network.id, probing_set_id=plan.probing.id, concept_set_id=plan.concepts.id,
            recording_id=recording_id, sha256=plan.sha256, status="running", top_k=options.top_k,
            methods=list(plan.speaks), config=logs.masked(asdict(options)),
        )
        .on_conflict_do_nothing(index_elements=["sha256"])
        .returning(Dissection.id)
    ).one_or_none()  # fmt: skip
    dissection_id = made or session.scalars(sa.select(Dissection.id).where(Dissection.sha256 == plan.sha256)).one()
    speaking = plan.speaking()
    for stage, recipe in plan.recipes().items():
        session.execute(
            insert(DissectionRecipe)
            .values(
                dissection_id=dissection_id, stage=stage, recipe_id=provenance.recipe_id(session, recipe),
                speaks=stage in speaking,
            )
            .on_conflict_do_nothing()
        )  # fmt: skip
    for layer in plan.layers:
        session.execute(
            insert(DissectedLayer).values(dissection_id=dissection_id, layer_id=layer.id).on_conflict_do_nothing()
        )
    return dissection_id


def complete(engine: sa.Engine, plan: Plan, dissection_id: int, wanted: Sequence[str]) -> int:
    """As `complete_in`, in a transaction of its own."""
    with db.transaction(engine) as session:
        return complete_in(session, plan, dissection_id, wanted)


def complete_in(session: Session, plan: Plan, dissection_id: int, wanted: Sequence[str]) -> int:
    """Mark the dissection complete if it is; returns how many units failed and wait for another run.

    It is complete when every stage has been through, units that failed aside, or when the tables say that nothing is
    missing (stages may have been run one by one).
    """
    recipes = plan.recipes()
    needed = {"summarise", "calibrate", "extract", *plan.speaking()}
    ids = {stage: provenance.recipe_id(session, recipe) for stage, recipe in recipes.items()}
    open_failures = session.scalars(
        sa.text("SELECT count(*) FROM failures WHERE resolved_at IS NULL AND scope = ANY (:scopes)"),
        {"scopes": [f"recipe:{identity}" for identity in ids.values()]},
    ).one()
    layers = {layer.id for layer in plan.layers}
    nothing_missing = all(layers <= provenance.finished_layers(session, ids[stage]) for stage in needed)
    if nothing_missing or set(wanted) == set(STAGES):
        changed = session.execute(
            sa.update(DissectedLayer)
            .where(
                DissectedLayer.dissection_id == dissection_id,
                DissectedLayer.layer_id.in_(layers),
                DissectedLayer.completed_at.is_(None),
            )
            .values(completed_at=sa.func.now())
            .returning(DissectedLayer.layer_id)
        ).all()
        # Layers of another call that was killed are still open; asked for again with nothing to do, it keeps its date.
        open_layers = sa.select(DissectedLayer.layer_id).where(
            DissectedLayer.dissection_id == dissection_id, DissectedLayer.completed_at.is_(None)
        )
        if changed and not session.scalar(sa.select(open_layers.exists())):
            session.execute(
                sa.update(Dissection)
                .where(Dissection.id == dissection_id)
                .values(status="complete", completed_at=sa.func.now())
            )
    return int(open_failures)
