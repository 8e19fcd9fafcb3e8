"""What a run has settled, as a row: the plan of a dissection for workers that have none of its models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform.backends.base import TextEncoder
from and_platform.core.similarity import SIMILARITIES
from and_platform.errors import IncompleteError
from and_platform.schema import ConceptSet, Dataset, Layer, Network, ProbingSet, Run
from and_platform.services import activations, devices, embed, extract, provenance, record, summarise
from and_platform.services.dissect import Options, Plan, Tools
from and_platform.services.distribution import stored
from and_platform.services.match import ScorePlan
from and_platform.services.provenance import RecipePlan


@dataclass(frozen=True)
class Settled:
    """A plan whose models are known by their rows."""

    run_id: int
    options: Options
    plan: Plan
    recording_id: int
    poolings: dict[str, str]
    """Layer name -> its pooling."""
    dataset: str
    sentence_encoder: RecipePlan

    @property
    def llm(self) -> RecipePlan | None:
        """The LLM that it asks, if any."""
        return llm_in(self.plan.recipes().values())

    def of(self, layer_ids: list[int]) -> Plan:
        """The plan for some of its layers."""
        wanted = set(layer_ids)
        return replace(self.plan, layers=[layer for layer in self.plan.layers if layer.id in wanted])

    def job(self, layer_ids: list[int]) -> summarise.Job:
        """What to summarise and calibrate, for some layers."""
        plan = self.of(layer_ids)
        return summarise.Job(
            self.recording_id, plan.probing, plan.layers, plan.summarise, plan.captioned, self.options.top_k
        )


def save(session: Session, run_id: int, plan: Plan, options: Options, tools: Tools, poolings: Mapping[str, str]) -> int:
    """Make the rows of a plan, and write down in the run which they are; returns the id of the recording."""
    recording_id = record.ensure_recording(
        session, plan.network.id, plan.probing.id, plan.record, block_clips=activations.block_size(devices.device())
    )
    for encoder in (*(score.encoder for score in plan.scores.values()), tools.sentence_encoder):
        embed.ensure_encoder(session, encoder)
    content: dict[str, Any] = {
        "network": plan.network.id, "probing_set": plan.probing.id, "concept_set": plan.concepts.id,
        "recording": recording_id, "layers": [layer.id for layer in plan.layers],
        "recipes": stored.as_json(plan.recipes(), session), "speaks": plan.speaks,
        "encode": provenance.recipe_id(session, embed.plan(tools.sentence_encoder)),
        "poolings": dict(poolings), "own_words": tools.summariser().own_words,
        "structured": bool(options.llm and getattr(tools.llm, "structured", False)),
    }  # fmt: skip
    session.execute(sa.update(Run).where(Run.id == run_id).values(plan=content))
    return recording_id


def options_of(run: Run) -> Options:
    """What a distributed run was asked for."""
    return Options.from_mapping(run.arguments["options"])


def load(engine: sa.Engine, session: Session, run: Run) -> Settled:
    """What a run has settled.

    Raises
    ------
    IncompleteError
        It has settled nothing yet.
    """
    if run.plan is None:
        raise IncompleteError(f"run {run.id} has no plan yet; wait for its first unit: andp runs watch {run.id}")
    told, options = run.plan, options_of(run)
    known: dict[int, RecipePlan] = {}
    recipes = {stage: stored.load_recipe(session, identity, known) for stage, identity in told["recipes"].items()}
    layers = session.scalars(sa.select(Layer).where(Layer.id.in_(told["layers"])).order_by(Layer.position)).all()
    probing = session.get_one(ProbingSet, told["probing_set"])
    scores = {
        method: _score(session, method, recipes[f"score.{method}"])
        for method in told["speaks"]
        if f"score.{method}" in recipes
    }
    matches = {method: {name: recipes[f"match.{method}.{name}"] for name in SIMILARITIES} for method in scores}
    plan = Plan(
        session.get_one(Network, told["network"]), probing, session.get_one(ConceptSet, told["concept_set"]),
        list(layers), recipes["record"], recipes["caption"], scores, matches, dict(told["speaks"]),
        recipes["summarise"], recipes["calibrate"], recipes.get("match.icl.llm"), recipes["extract"], recipes["tag"],
        recipes["judge"], stored.StoredMaker(recipes["caption"]),
    )  # fmt: skip
    dataset = session.get_one(Dataset, probing.dataset_id).name
    encode = stored.load_recipe(session, told["encode"], known)
    return Settled(run.id, options, plan, told["recording"], dict(told["poolings"]), dataset, encode)


def _score(session: Session, method: str, recipe: RecipePlan) -> ScorePlan:
    encoder: TextEncoder = stored.StoredEncoder(session, stored.parent_of(recipe, "encode"))
    captions = next((parent for parent in recipe.parents if parent.stage == "caption"), None)
    return ScorePlan(method, encoder, recipe, captions)


def llm_in(recipes: Iterable[RecipePlan]) -> RecipePlan | None:
    """The LLM that some recipes ask; None where none is asked."""
    return next((parent for recipe in recipes for parent in recipe.parents if parent.stage == "generate"), None)


def llm_of(
    engine: sa.Engine, recipes: Iterable[RecipePlan], *, structured: bool = False
) -> stored.StoredAnswers | None:
    """The LLM that some recipes ask, as its answers know it; None where none is asked."""
    found = llm_in(recipes)
    return None if found is None else stored.StoredAnswers(engine, found, structured=structured)


class StoredTools(Tools):
    """The models of a dissection as their rows know them."""

    def __init__(self, engine: sa.Engine, session: Session, run: Run, options: Options) -> None:
        super().__init__(options)
        assert run.plan is not None
        self._engine = engine
        self._encoder = stored.StoredEncoder(session, stored.load_recipe(session, run.plan["encode"]))
        self._recipes = {
            stage: stored.load_recipe(session, identity) for stage, identity in run.plan["recipes"].items()
        }
        self._structured = bool(run.plan["structured"])

    @property
    def sentence_encoder(self) -> TextEncoder:
        return self._encoder

    @property
    def llm(self) -> stored.StoredAnswers:
        found = llm_of(self._engine, self._recipes.values(), structured=self._structured)
        assert found is not None
        return found

    @property
    def tagger(self) -> stored.StoredTagger:
        return stored.StoredTagger(self._recipes["tag"])


def extract_recipes(session: Session, plan: Plan) -> extract.Recipes:
    """Ids of the recipes that terms are made with."""
    return extract.Recipes(
        *(provenance.recipe_id(session, recipe) for recipe in (plan.extract, plan.calibrate, plan.tag, plan.judge))
    )
