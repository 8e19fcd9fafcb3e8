"""Which neurons to ablate, chosen in SQL, and why each. The head is never among them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.names import normalise
from and_platform.errors import IncompleteError, InputError, NotFoundError
from and_platform.queries import unlearning as queries
from and_platform.schema import AblationPlan, Dissection, Network
from and_platform.services import ask, class_mapping, experiments, provenance
from and_platform.services.ask import WORDS
from and_platform.services.experiments import Subject
from and_platform.services.provenance import RecipePlan

CHOSEN = ask.STRATEGIES
DRAWN = ("random", "random_matched")
STRATEGIES = (*CHOSEN, *DRAWN)

RANDOM_NEURONS = 3000
"""Neurons that `random` draws (paper, Table 4), unless there are fewer."""

MEANING_NEURONS = 100
"""Neurons that `meaning` takes where `open` finds none to take as many as."""

_NEAR = 4
_REVISION = "1"


@dataclass(frozen=True)
class Options:
    """What decides a choice beside strategy, concept and seed.

    Attributes
    ----------
    words
        For `open`: `any` or `all` of the concept's content words, or the `phrase`.
    top
        For `closed_*`: the concept is among that many best ones of the neuron.
    max_neurons
        The most neurons that a strategy by concept chooses, best first. `meaning` ranks all neurons, and takes as many as
        `open` chooses for the same concept unless this says how many.
    random_neurons
        How many `random` draws.
    layers
        Pattern on layer names; None: all hidden layers.
    """

    words: str = "any"
    top: int = 3
    max_neurons: int | None = None
    random_neurons: int = RANDOM_NEURONS
    layers: str | None = None

    def __post_init__(self) -> None:
        if self.words not in WORDS:
            raise InputError(f"no value of words '{self.words}'; choose from: {', '.join(WORDS)}")
        for what, n in (("top", self.top), ("neurons", self.max_neurons), ("random neurons", self.random_neurons)):
            if n is not None and n < 1:
                raise InputError(f"the number of {what} is {n}; give at least 1")


@dataclass(frozen=True)
class Plan:
    """A choice of neurons, kept in `ablation_plans`."""

    id: int
    dissection_id: int
    network: str
    strategy: str
    concept: str | None
    target_unit: int | None
    """Unit of the head whose class is the target; None where the concept is no class."""
    target: str | None
    n_neurons: int
    per_layer: dict[str, int]
    """Layer -> neurons chosen, in order of computation; layers without any are missing."""
    max_neurons: int | None
    layers: str | None
    seed: int | None
    compared_with_id: int | None
    params: Mapping[str, Any]
    """Those of the recipe."""
    sha256: str
    created_at: datetime
    n_hidden: int
    """Neurons of all hidden layers."""
    is_new: bool = False


@dataclass(frozen=True)
class Target:
    """A class to unlearn."""

    unit: int
    name: str
    concept: str | None
    """The concept of the concept set that stands for it; None: there is none."""
    given: bool = False
    """The user said which concept it is."""


# ---------------------------------------------------------------------- what there is to ask for


def targets(session: Session, about: Subject) -> list[Target]:
    """The network's classes, each with the concept that stands for it; none where it has no class names.

    The mapping is kept, so the session must be one that may write.
    """
    if not session.get_one(Network, about.network_id).classes:
        return []
    mapped = class_mapping.map_classes(session, about.network_id, about.concept_set_id)
    return [Target(one.unit, one.class_name, one.concept, one.how == "given") for one in mapped]


def target_of(classes: Sequence[Target], concept: str) -> Target | None:
    """The class that a concept names, or that the concept stands for."""
    key = normalise(concept)
    named = [one for one in classes if normalise(one.name) == key]
    return next(iter(named or [one for one in classes if one.concept == key]), None)


def hidden_layers(session: Session, about: Subject, pattern: str | None) -> dict[str, int]:
    """Layer -> units of the hidden layers that match a pattern, or one of several with commas between them.

    Raises
    ------
    InputError
        There is none.
    """
    layers = queries.hidden_layers(session, dissection=about.dissection_id)
    globs = ["*"] if pattern is None else [part.strip() for part in pattern.split(",")]
    chosen = {name: n for name, n in layers.items() if any(fnmatchcase(name, glob) for glob in globs)}
    if not chosen:
        known = ", ".join(list(layers)[:3])
        what = f"no hidden layer of dissection {about.dissection_id} matches '{pattern}'" if layers else (
            f"dissection {about.dissection_id} covers no hidden layer, and the head is never ablated"
        )  # fmt: skip
        todo = f"there are: {known} …" if layers else f"run: andp dissect {about.network} --dataset {about.dataset}"
        raise InputError(f"{what}; {todo}")
    return chosen


def check_data(session: Session, about: Subject, strategy: str) -> None:
    """Refuse a strategy whose data the dissection does not have.

    Raises
    ------
    InputError
        There is no such strategy.
    IncompleteError
        Says which stage to run.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"no strategy '{strategy}'; choose from: {', '.join(STRATEGIES)}")
    if strategy == "open":
        experiments.stage_recipe(session, about, "extract", "the strategy open")
    elif strategy == "meaning":
        recipe = experiments.stage_recipe(session, about, "calibrate", "the strategy meaning")
        if not queries.has_summary_vectors(session, calibrate_recipe=recipe):
            raise IncompleteError(
                f"the summaries of dissection {about.dissection_id} have no vectors, which meaning needs; "
                f"run: andp dissect {about.network} --dataset {about.dataset}"
            )
    elif strategy.startswith("closed_") and (method := strategy.removeprefix("closed_")) not in about.methods:
        needs = {"tab": " --audio-encoder ENCODER", "icl": " --llm LLM"}.get(method, "")
        methods = ",".join([*about.methods, method])
        raise IncompleteError(
            f"dissection {about.dissection_id} was made without the method {method}, which {strategy} needs; "
            f"run: andp dissect {about.network} --dataset {about.dataset} --method {methods}{needs}"
        )


def _near(key: str, *vocabularies: Sequence[str]) -> list[str]:
    """Names like a concept: spelled like it, or sharing a word with it."""
    names = {normalise(name): name for vocabulary in vocabularies for name in reversed(vocabulary)}
    words = set(key.split())
    found = difflib.get_close_matches(key, list(names), n=_NEAR, cutoff=0.6)
    found += [name for name in names if words & set(name.split()) and name not in found]
    return [names[name] for name in found[:_NEAR]]


def _unknown(key: str, where: str, see: str, *vocabularies: Sequence[str]) -> InputError:
    near = _near(key, *vocabularies)
    advice = f"did you mean: {', '.join(near)}" if near else see
    return InputError(f"'{key}' is {where}; {advice}")


# ---------------------------------------------------------------------- making


def make(
    engine: sa.Engine,
    network: str,
    concept: str | None = None,
    strategy: str = "open",
    *,
    words: str = "any",
    top: int = 3,
    max_neurons: int | None = None,
    layers: str | None = None,
    seed: int | None = None,
    compared_with: int | None = None,
    dissection: int | None = None,
) -> Plan:
    """Choose hidden neurons and keep the choice; the same arguments give the same plan.

    Parameters
    ----------
    concept
        What to unlearn: a class, or any word or phrase. `random` draws the same neurons whatever it is.
    strategy
        `open`: the concept's words are among the neuron's open concepts; `closed_db`, `closed_tab`, `closed_icl`: it is
        among the neuron's `top` concepts; `meaning`: the nearest summaries by vector; `random`: drawn from all hidden
        neurons; `random_matched`: drawn, as many from each layer as the plan compared with has there.
    max_neurons
        See `Options`; for `random` how many to draw (default 3,000, or all where there are fewer).
    seed
        Of `random` and `random_matched`; default 0.
    compared_with
        For `random_matched`: the plan; default: `open` for the concept.

    Returns
    -------
    Plan
        It may be of no neurons: nothing responds to the concept.

    Raises
    ------
    InputError
        An argument is wrong; an unknown concept comes with near ones.
    IncompleteError
        The dissection has no data for the strategy.
    """
    options = Options(words, top, None if strategy == "random" else max_neurons, layers=layers)
    if strategy == "random" and max_neurons is not None:
        options = replace(options, random_neurons=max_neurons)
    if strategy in CHOSEN and (seed is not None or compared_with is not None):
        raise InputError(f"'{strategy}' draws nothing: a seed and a plan to compare with are for random strategies")
    if strategy == "random_matched":
        if (layers, max_neurons) != (None, None):
            raise InputError(
                "random_matched draws as many as the plan it is compared with, from the same layers: give that"
            )
        if compared_with is None:
            if concept is None:
                raise InputError("random_matched needs a plan to compare with, or a concept; see: andp unlearn plans")
            compared_with = by_concept(engine, network, concept, "open", options, dissection=dissection).id
        return matched(engine, compared_with, seed or 0, network=network)
    if compared_with is not None:
        raise InputError("a plan to compare with is for random_matched")
    if strategy == "random":
        return drawn(engine, network, options, seed or 0, dissection=dissection)
    if concept is None:
        raise InputError(f"'{strategy}' needs a concept; name it with --concept TEXT")
    return by_concept(engine, network, concept, strategy, options, dissection=dissection)


def by_concept(
    engine: sa.Engine, network: str, concept: str, strategy: str, options: Options, *, dissection: int | None = None
) -> Plan:
    """The neurons that respond to a concept: see `make`."""
    if not (key := normalise(concept)):
        raise InputError("the concept is empty; give a word or phrase")
    with db.transaction(engine) as session:
        about = experiments.subject(session, network, dissection)
        check_data(session, about, strategy)
        classes = targets(session, about)
        target = target_of(classes, key)
        layers = hidden_layers(session, about, options.layers)
        asked = _asked(session, about, strategy, key, target, classes)
    as_many: dict[str, Any] = {}
    n = options.max_neurons
    if strategy == "meaning":
        embed_concepts(engine, about, [asked])
        if n is None:
            as_many = {"as_many_as": "open", "words": options.words}
            n = _as_many_as_open(engine, network, concept, options, about) or MEANING_NEURONS
    params = {
        "concept": asked, "target_unit": target.unit if target else None, "layers": options.layers,
        "max_neurons": options.max_neurons, **as_many,
    }  # fmt: skip
    if strategy == "open":
        params["words"] = options.words
    elif strategy.startswith("closed_"):
        params["top"] = options.top
    row = AblationPlan(
        dissection_id=about.dissection_id, strategy=strategy, concept=target.name if target else concept.strip(),
        target_unit=target.unit if target else None, layers=options.layers, max_neurons=n, n_neurons=0,
    )  # fmt: skip

    def choose(session: Session, plan: int) -> int:
        if strategy == "meaning":  # exactly the nearest ones: the index gives most of them
            session.execute(sa.text("SET LOCAL enable_indexscan = off"))
        return queries.insert_plan_by_concept(
            session, plan=plan, dissection=about.dissection_id, concept=asked, strategy=strategy, words=options.words,
            top=options.top, layers=list(layers), n=n,
        )  # fmt: skip

    return _keep(engine, about, row, params, choose)


def drawn(engine: sa.Engine, network: str, options: Options, seed: int, *, dissection: int | None = None) -> Plan:
    """Neurons drawn from all hidden layers together: see `make`."""
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        layers = hidden_layers(session, about, options.layers)
    n = options.random_neurons
    row = AblationPlan(
        dissection_id=about.dissection_id,
        strategy="random",
        layers=options.layers,
        max_neurons=n,
        seed=seed,
        n_neurons=0,
    )
    params = {"layers": options.layers, "random_neurons": n, "seed": seed}

    def choose(session: Session, plan: int) -> int:
        return queries.insert_plan_at_random(
            session, plan=plan, dissection=about.dissection_id, layers=list(layers), seed=seed, n=n
        )

    return _keep(engine, about, row, params, choose)


def matched(engine: sa.Engine, compared_with: int, seed: int, *, network: str | None = None) -> Plan:
    """As many neurons of each layer as another plan has there, drawn from all of the layer's: see `make`."""
    other = find(engine, compared_with, network=network)
    if other.strategy in DRAWN:
        raise InputError(f"plan {other.id} is drawn at random itself; compare with one that was chosen by a concept")
    with db.reading(engine) as session:
        about = experiments.subject(session, other.network, other.dissection_id)
    row = AblationPlan(
        dissection_id=about.dissection_id, strategy="random_matched", concept=other.concept, target_unit=other.target_unit,
        layers=other.layers, seed=seed, compared_with_id=other.id, n_neurons=0,
    )  # fmt: skip

    def choose(session: Session, plan: int) -> int:
        return queries.insert_plan_matched(session, plan=plan, compared_with=other.id, seed=seed)

    return _keep(engine, about, row, {"compared_with": other.sha256, "seed": seed}, choose)


def _asked(
    session: Session, about: Subject, strategy: str, key: str, target: Target | None, classes: Sequence[Target]
) -> str:
    """The concept as the strategy looks for it."""
    names = [one.name for one in classes]
    if strategy.startswith("closed_"):
        concepts = class_mapping.concept_names(session, about.concept_set_id)
        identity, _ = concepts.find(key)
        found = target.concept if target else concepts.names.get(identity or -1)
        if found is None:
            where = f"not in the concept set '{about.concept_set}' that neurons were matched with"
            raise _unknown(key, where, f"see: andp concepts show {about.concept_set}", list(concepts.names.values()))
        return found
    if strategy == "open" and target is None:
        terms = queries.open_terms(session, dissection=about.dissection_id, concept=key)
        if not any(asked for _, asked in terms):
            where = "no class, and no summary has it among its open concepts"
            raise _unknown(key, where, "try --strategy meaning", names, [term for term, _ in terms])
    return normalise(target.name) if target else key


def embed_concepts(engine: sa.Engine, about: Subject, concepts: Sequence[str]) -> None:
    """Vectors of concepts by the encoder of the summaries, where they have none: what `meaning` compares."""
    from and_platform.backends import registry
    from and_platform.services import embed
    from and_platform.services.texts import text_ids

    with db.reading(engine) as session:
        if not queries.texts_without_vector(session, dissection=about.dissection_id, texts=concepts):
            return
        spec = session.get_one(Dissection, about.dissection_id).config.get("sentence_encoder")
    encoder = registry.create("encoder", spec or "minilm")
    with db.transaction(engine) as session:
        ids = text_ids(session, concepts)
    embed.embed_texts(engine, encoder, list(ids.values()))


def _as_many_as_open(engine: sa.Engine, network: str, concept: str, options: Options, about: Subject) -> int:
    """How many neurons `open` chooses for a concept; 0 where it has nothing to say of it."""
    try:
        return by_concept(engine, network, concept, "open", options, dissection=about.dissection_id).n_neurons
    except (InputError, IncompleteError):
        return 0


def _keep(
    engine: sa.Engine,
    about: Subject,
    row: AblationPlan,
    params: Mapping[str, Any],
    choose: Callable[[Session, int], int],
) -> Plan:
    """The plan of a recipe: the one that is there, else `row` with the neurons that `choose` writes, in one transaction."""
    recipe = RecipePlan(
        "ablation_plan", row.strategy, _REVISION,
        {"dissection": about.sha256, "covered": list(about.layers), **about.state(), **params},
    )  # fmt: skip
    with db.transaction(engine) as session:
        there = sa.select(AblationPlan.id).where(AblationPlan.recipe_id == provenance.recipe_id(session, recipe))
        if (kept := session.scalar(there)) is not None:
            return _plan(queries.plan_rows(session, plan=kept)[0])
        values = {
            column.name: getattr(row, column.name)
            for column in AblationPlan.__table__.columns
            if column.name not in ("id", "recipe_id", "created_at")
        }
        new = session.scalar(
            insert(AblationPlan)
            .values(recipe_id=provenance.recipe_id(session, recipe), **values)
            .on_conflict_do_nothing(index_elements=["recipe_id"])
            .returning(AblationPlan.id)
        )
        if new is not None:
            n = choose(session, new)
            session.execute(sa.update(AblationPlan).where(AblationPlan.id == new).values(n_neurons=n))
        kept = new or session.scalars(there).one()
        return _plan(queries.plan_rows(session, plan=kept)[0], is_new=new is not None)


# ---------------------------------------------------------------------- reading


def find(engine: sa.Engine, plan: int, *, network: str | None = None) -> Plan:
    """A plan that was made.

    Raises
    ------
    NotFoundError
        There is none, or it is of another network.
    """
    with db.reading(engine) as session:
        found = queries.plan_rows(session, plan=plan)
    if not found:
        raise NotFoundError(f"no plan {plan}; see: andp unlearn plans {network or 'NETWORK'}")
    if network not in (None, found[0]["network"]):
        raise NotFoundError(f"plan {plan} is of '{found[0]['network']}', not of '{network}'")
    return _plan(found[0])


def neurons(engine: sa.Engine, plan: int, *, limit: int | None = None) -> list[dict[str, Any]]:
    """The neurons of a plan in order of choice: rank, neuron, score, why."""
    find(engine, plan)
    with db.reading(engine) as session:
        return queries.plan_neurons(session, plan=plan, n=limit)


def listing(engine: sa.Engine, network: str, *, dissection: int | None = None) -> list[dict[str, Any]]:
    """One row per plan of a dissection (default: the current one), with its neurons counted by layer."""
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        return [
            {
                "plan": row["id"], "strategy": row["strategy"], "concept": row["concept"], "is_class": row["target"] is not None,
                "seed": row["seed"], "compared_with": row["compared_with_id"], "neurons": row["n_neurons"],
                "options": _told(row["params"]), "per_layer": row["per_layer"], "created_at": row["created_at"],
            }
            for row in queries.plan_rows(session, dissection=about.dissection_id)
        ]  # fmt: skip


def options_of(plan: Plan, compared: Plan | None = None) -> Options:
    """The options that a plan (or the one it is compared with) was made with; what does not matter to it is the default."""
    params = (compared or plan).params
    return Options(
        **{field.name: params[field.name] for field in fields(Options) if params.get(field.name) is not None}
    )


def _told(params: Mapping[str, Any]) -> str:
    names = {"words": "words", "top": "top", "max_neurons": "at most", "random_neurons": "at most", "layers": "layers"}
    return ", ".join(f"{said} {params[name]}" for name, said in names.items() if params.get(name) is not None)


def _plan(row: Mapping[str, Any], *, is_new: bool = False) -> Plan:
    return Plan(
        id=row["id"], dissection_id=row["dissection_id"], network=row["network"], strategy=row["strategy"],
        concept=row["concept"], target_unit=row["target_unit"], target=row["target"], n_neurons=row["n_neurons"],
        per_layer=dict(row["per_layer"]), max_neurons=row["max_neurons"], layers=row["layers"], seed=row["seed"],
        compared_with_id=row["compared_with_id"], params=row["params"], sha256=row["sha256"],
        created_at=row["created_at"], n_hidden=row["n_hidden"], is_new=is_new,
    )  # fmt: skip
