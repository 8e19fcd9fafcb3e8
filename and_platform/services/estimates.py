"""What a dissection would compute, and about how long that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.backends.weights import is_here
from and_platform.config import settings
from and_platform.errors import MissingExtraError, NotFoundError, WeightsMissingError
from and_platform.schema import Clip, Concept, ConceptSet, Dataset, Layer, Network, Run
from and_platform.services import activations, caption, provenance
from and_platform.services.dissect import STAGES, Options, Plan, Tools, doers, make_plan
from and_platform.services.networks import SAMPLE
from and_platform.services.profiles import Profile

# Seconds a unit on two slow cores, of what is used unless another model is named: until this database has runs of its own.
_MEASURED = {
    "record": {SAMPLE: 0.02},
    "caption": dict.fromkeys(("auto", "joined", "describer", "source"), 0.005),
    "match": {"db by minilm": 0.001},
    "summarise": {"extractive": 0.001},
    "calibrate": {"minilm": 0.0005},
    "extract": {"hanta, adjectives judged by anchor": 0.0005},
    "embed": {"minilm": 0.005},
}


# Backends whose weights come from a model hub unless a path is given.
_FROM_HUB = ("audio-lm", "transformers", "vllm", "sentence-transformers", "clip", "clap")


@dataclass(frozen=True)
class Estimate:
    """What a dissection would compute.

    `rows` has one entry a stage: `stage`, `does` (what does it), `to_compute`, `of`, `unit`, `prompts` (what an LLM is asked,
    at most), `about_seconds` (None where nothing tells) and `basis` (where that is from). `notes` say what had to be assumed.
    """

    rows: list[dict[str, Any]]
    notes: list[str]

    @property
    def about_seconds(self) -> float:
        """All stages of which it is known."""
        return float(sum(row["about_seconds"] or 0 for row in self.rows))


class _Size(NamedTuple):
    """What the work is counted in."""

    clips: int
    concepts: int
    layers: int
    neurons: int


class _Work(NamedTuple):
    """A stage: how much is missing, of how much."""

    stage: str
    by: str
    does: str
    to_compute: int
    of: int
    unit: str
    prompts: int | None = None


def estimate(engine: sa.Engine, network: str, options: Options, profile: Profile | None = None) -> Estimate:
    """What is missing, of how much, and about how many seconds it takes.

    Seconds come from the latest run in this database that did the stage, else from the profile, else from a rough table. Where a
    model is not here yet, the whole is counted from the sizes of data set and network, or from those that the profile gives.

    Raises
    ------
    NotFoundError
        Network or data set are not there, and no profile tells their size.
    """
    absent = _absent(engine, network, options)
    if absent and not (profile and profile.counts):
        raise NotFoundError(absent[0])
    fetched = [] if absent else _not_here(options)
    try:
        plan = None if absent or fetched else make_plan(engine, network, options, Tools(options))
    except (WeightsMissingError, MissingExtraError) as exc:
        plan, fetched = None, [str(exc)]
    if plan is None:
        size = _size(engine, network, options, profile)
        work = _outline(network, options, size)
        notes = [*absent, *fetched, "so everything is counted, as if nothing had been computed"]
    else:
        with db.reading(engine) as session:
            work = _missing(session, plan, options)
        notes = []
    with db.reading(engine) as session:
        rates = _rates(session)
    notes.append(_storage(work))
    chosen = options.stages or STAGES
    return Estimate([_priced(item, rates, profile) for item in work if item.stage in chosen], notes)


def _absent(engine: sa.Engine, network: str, options: Options) -> list[str]:
    """What is not in the database yet, of network and data set."""
    with db.reading(engine) as session:
        has_network = session.scalar(sa.select(sa.exists().where(Network.name == network)))
        has_dataset = session.scalar(sa.select(sa.exists().where(Dataset.name == options.dataset)))
    told = []
    if not has_network:
        told.append(f"no network '{network}' yet; see: andp networks list")
    if not has_dataset:
        told.append(f"no data set '{options.dataset}' yet; see: andp datasets list")
    return told


def _not_here(options: Options) -> list[str]:
    """The models of the hub that would have to be downloaded: a plan fetches nothing."""
    specs = (options.captioner, options.llm, options.sentence_encoder, options.text_encoder, options.audio_encoder)
    told = []
    for spec in dict.fromkeys(spec for spec in specs if spec):
        name, _, source = spec.partition(":")
        if name in _FROM_HUB and not source.startswith((".", "/", "~")) and not is_here(source):
            told.append(f"{source} would be downloaded first")
    return told


def _storage(work: Sequence[_Work]) -> str:
    """What the activations take: two bytes a neuron and clip, and twice that for the cubes that SQL matching reads."""
    clips, neurons = (next(item.of for item in work if item.unit == unit) for unit in ("clips", "neurons"))
    half = clips * neurons * 2 / 1e9
    cubes = f", and {2 * half:.2g} GB more for matching in SQL" if settings().materialise_cubes else ""
    return f"the activations take about {half:.2g} GB in the database{cubes}"


def _priced(work: _Work, rates: Mapping[tuple[str, str], float], profile: Profile | None) -> dict[str, Any]:
    """A stage with the time it takes, and where that is known from."""
    own = rates.get((work.stage, work.by))
    told = profile.seconds.get(work.stage) if profile else None
    if profile and told and work.stage != "record":
        published = doers(str(profile.network), Options.from_mapping(profile.dissect))
        told = told if work.by == published[work.stage] else None  # another model takes another time
    if own is not None:
        rate, basis = own, "the latest run of it in this database"
    elif told is not None:
        rate, basis = told.value, told.basis
    elif work.by in _MEASURED.get(work.stage, {}):
        rate, basis = _MEASURED[work.stage][work.by], "two slow processor cores"
    else:
        rate, basis = None, "not known"
    told_of = {key: value for key, value in work._asdict().items() if key != "by"}
    return {**told_of, "about_seconds": None if rate is None else round(work.to_compute * rate, 1), "basis": basis}


def _size(engine: sa.Engine, network: str, options: Options, profile: Profile | None) -> _Size:
    """The sizes of what is there, and of what is not as the profile has it."""
    counts = dict(profile.counts) if profile else {}
    with db.reading(engine) as session:
        clips = session.scalar(
            sa.select(sa.func.count())
            .select_from(Clip)
            .join(Dataset, Dataset.id == Clip.dataset_id)
            .where(Dataset.name == options.dataset, Clip.retired_at.is_(None))
        )
        labels = session.scalar(
            sa.select(sa.func.count(sa.distinct(Clip.labels[1])))
            .join(Dataset, Dataset.id == Clip.dataset_id)
            .where(Dataset.name == options.dataset, Clip.retired_at.is_(None))
        )
        concepts = session.scalar(
            sa.select(sa.func.count())
            .select_from(Concept)
            .join(ConceptSet, ConceptSet.id == Concept.concept_set_id)
            .where(ConceptSet.name == options.concepts)
        )
        layers = session.execute(
            sa.select(Layer.name, Layer.module_path, Layer.n_units, Layer.is_default)
            .join(Network, Network.id == Layer.network_id)
            .where(Network.name == network)
        ).all()
    chosen = [row.n_units for row in layers if _is_chosen(row, options.layers)]
    return _Size(
        clips or counts.get("clips", 0), concepts or labels or counts.get("concepts", 0),
        len(chosen) or counts.get("layers", 0), sum(chosen) or counts.get("neurons", 0),
    )  # fmt: skip


def _is_chosen(layer: Any, globs: Sequence[str]) -> bool:
    if not globs:
        return bool(layer.is_default)
    return any(fnmatchcase(layer.name, glob) or fnmatchcase(layer.module_path, glob) for glob in globs)


def _outline(network: str, options: Options, size: _Size) -> list[_Work]:
    """All of the work, counted without any model."""
    does = doers(network, options)
    neurons, clips = size.neurons, size.clips
    prompts = {"summarise": 2 * neurons if does["summarise"] == options.llm else None, "icl": neurons}
    told = {
        "record": f"{network}, {size.layers} layers, {neurons:,} neurons",
        "match": f"{size.concepts} concepts, {does['match']}",
    }
    return [
        _Work(stage, does[stage], told.get(stage, does[stage]), units, units, unit, prompts.get(stage))
        for stage in STAGES
        if stage != "icl" or "icl" in options.chosen_methods()
        for units, unit in [(clips, "clips") if stage in ("record", "caption") else (neurons, "neurons")]
    ]


def _missing(session: Session, plan: Plan, options: Options) -> list[_Work]:
    """The work of which the tables tell that it is not done."""
    n_concepts = session.scalar(
        sa.select(sa.func.count()).select_from(Concept).where(Concept.concept_set_id == plan.concepts.id)
    )
    size = _Size(plan.probing.n_clips, n_concepts or 0, len(plan.layers), sum(layer.n_units for layer in plan.layers))
    left = []
    for whole in _outline(plan.network.name, options, size):
        missing = _to_compute(session, plan, whole.stage)
        asked = None if whole.prompts is None else missing * (whole.prompts // max(whole.of, 1))
        left.append(whole._replace(to_compute=missing, prompts=asked))
    return left


def _to_compute(session: Session, plan: Plan, stage: str) -> int:
    """Clips or neurons that a stage has not been through."""
    if stage == "record":
        return _missing_clips(session, plan)
    if stage == "caption":
        recipe = provenance.find_recipe(session, plan.captioned)
        there = caption.caption_overview(session, plan.probing.id, recipe)[0] if recipe else 0
        return plan.probing.n_clips - there
    recipes = {
        "match": [
            recipe for name, recipe in plan.recipes().items() if name in plan.speaking() and recipe is not plan.icl
        ],
        "icl": [plan.icl] if plan.icl else [],
        "summarise": [plan.summarise],
        "calibrate": [plan.calibrate],
        "extract": [plan.extract],
        "embed": [plan.calibrate],  # a summary is embedded once it is calibrated
    }[stage]
    ids = [provenance.find_recipe(session, recipe) for recipe in recipes]
    done = [provenance.finished_layers(session, recipe) if recipe else set() for recipe in ids]
    return sum(layer.n_units for layer in plan.layers if any(layer.id not in finished for finished in done))


def _missing_clips(session: Session, plan: Plan) -> int:
    """Clips whose activations are neither folded nor landed for some layer."""
    recipe = provenance.find_recipe(session, plan.record)
    recording = session.scalar(sa.text("SELECT id FROM recordings WHERE recipe_id = :id"), {"id": recipe})
    if recording is None:
        return plan.probing.n_clips
    done = set(
        session.scalars(sa.text("SELECT layer_id FROM recorded_layers WHERE recording_id = :id"), {"id": recording})
    )
    layers = [layer.id for layer in plan.layers if layer.id not in done]
    if not layers:
        return 0
    blocks = activations.blocks_of(session, recording)
    return sum(
        blocks.bounds(block)[1]
        for block in range(len(blocks))
        if activations.missing_layers(session, recording, block, layers)
    )


def _rates(session: Session) -> dict[tuple[str, str], float]:
    """Seconds a unit by stage and by what did it, of the latest run that did."""
    rates: dict[tuple[str, str], float] = {}
    counts = session.scalars(
        sa.select(Run.counts).where(Run.command == "dissect", Run.outcome == "ok").order_by(Run.id.desc()).limit(50)
    )
    for of_run in counts:
        for stage, told in of_run.items():
            if isinstance(told, dict) and told.get("units") and told.get("by"):
                rates.setdefault((stage, told["by"]), told["seconds"] / told["units"])
    return rates
