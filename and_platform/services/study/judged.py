"""What people judged: Table 3."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core.agreement import SCALE, matrix_of, ordinal_alpha, t_interval
from and_platform.errors import NotFoundError
from and_platform.queries import study as queries
from and_platform.schema import Dissection, Experiment, Recipe, Study
from and_platform.services import embed, experiments, networks, provenance, published
from and_platform.services.progress import SILENT, Progress
from and_platform.services.study import catalogue
from and_platform.services.texts import text_ids

KIND = "study_bertscore"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class StudyResults:
    """Table 3 of one study."""

    about: dict[str, Any]
    """name, network, dataset, dissection, neurons, methods, raters, ratings, summaries, created_at, seed, exemplars."""
    rows: Rows
    """One per method, the best rated first: n_neurons, n_ratings, rating with low and high (95 % interval by Student's t over
    neurons), counts of each step 1 to 5, alpha, cosine with its interval, n_written, bertscore with its interval."""
    agreement: dict[str, Any]
    """alpha (None: not defined), n_raters, n_shared: descriptions that at least two have rated."""
    differences: Rows
    """One per pair of methods: how much higher `method` is rated than `than`, on the neurons where both were, with interval."""
    raters: Rows
    """One per rater: how much was answered, and the mean rating."""
    footer: str
    """Data set, network, recipe and n, for under a figure."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know, or could still do."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def results(
    engine: sa.Engine,
    name: str | None = None,
    *,
    network: str | None = None,
    bertscore_model: str | None = None,
    bertscore_layers: int | None = None,
    progress: Progress = SILENT,
) -> StudyResults:
    """Ratings by method, agreement of raters, and how near what they wrote is to what was generated.

    A neuron counts once, however many people rated it: its value is the mean over its raters, and means and intervals are
    over neurons. Texts are embedded once and kept, and so are BERTScores: they are computed when a model is named, and shown
    from then on while nobody writes more.

    Parameters
    ----------
    name
        The study; default: the latest with answers, else the latest.
    network
        Of this network only.
    bertscore_model
        Directory or hub id of the model to compute BERTScore with.
    bertscore_layers
        Take its vectors after this many layers.

    Raises
    ------
    NotFoundError
        There is no such study or network.
    MissingExtraError, WeightsMissingError
        BERTScore was asked for and cannot be computed.
    """
    with db.reading(engine) as session:
        study = _choose(session, name, network)
        pairs = queries.study_pairs(session, study=study.id)
        encoder_spec = session.get_one(Dissection, study.dissection_id).config.get("sentence_encoder") or "minilm"
    encoder_id = _embed(engine, str(encoder_spec), pairs, progress) if pairs else None
    scored = _bertscores(engine, study, pairs, bertscore_model, bertscore_layers, progress)
    with db.reading(engine) as session:
        return _gather(session, study, encoder_id, scored, bool(pairs))


def with_published(rows: Rows) -> Rows:
    """The rows with the paper's figures beside them (120 neurons of AST on ESC-50, rated by its authors)."""
    printed = {row["method"]: row for row in published.figures()["study"]}
    return [
        {
            **row,
            **{f"paper_{key}": printed.get(row["method"], {}).get(key) for key in ("rating", "cosine", "bertscore")},
        }
        for row in rows
    ]


def _choose(session: Session, name: str | None, network: str | None) -> Study:
    if name is not None:
        return catalogue.find(session, name)
    if network is not None:
        networks.find(session, network)
    there = queries.list_studies(session, network=network)
    if not there:
        whose = f" of '{network}'" if network else ""
        raise NotFoundError(f"no study{whose} yet; run: andp study export {network or 'NETWORK'} -o DIR")
    answered = [row for row in there if row["raters"]]
    return catalogue.find(session, (answered or there)[0]["name"])


def _embed(engine: sa.Engine, spec: str, pairs: Rows, progress: Progress) -> int:
    """Vectors of all texts of both kinds, by the encoder that calibrated the summaries; returns the encoder's id."""
    from and_platform.backends import registry
    from and_platform.services.devices import device

    with db.transaction(engine) as session:
        ids = text_ids(session, [row[kind] for row in pairs for kind in ("written", "generated")])
    encoder = registry.create("encoder", spec, device=device())
    return embed.embed_texts(engine, encoder, list(ids.values()), progress=progress)


def _gather(session: Session, study: Study, encoder_id: int | None, scored: _Scored, written: bool) -> StudyResults:
    about = next(row for row in queries.list_studies(session, network=None) if row["name"] == study.name)
    made = catalogue.options(session, study)
    matrix = queries.study_rating_matrix(session, study=study.id)
    cosines = {
        row["method"]: row
        for row in (queries.study_cosines(session, study=study.id, encoder=encoder_id) if encoder_id else [])
    }
    bertscores = {
        row["method"]: row
        for row in (queries.study_bertscores(session, experiment=scored.experiment) if scored.experiment else [])
    }
    ratings = {row["method"]: row for row in queries.study_ratings_by_method(session, study=study.id)}
    order = sorted(about["methods"], key=lambda method: -ratings[method]["rating"] if method in ratings else 0.0)
    rows = [
        _row(method, ratings.get(method, {}), cosines.get(method, {}), bertscores.get(method, {}), matrix)
        for method in order
    ]
    differences = []
    for row in queries.study_differences(session, study=study.id):
        low, high = t_interval(row["difference"], row.pop("sd"), row["n_neurons"])
        differences.append({**row, "low": low, "high": high})
    raters = queries.study_raters(session, study=study.id)
    n_neurons = max((row["n_neurons"] for row in rows), default=0)
    recipe = session.scalars(sa.select(Recipe.sha256).where(Recipe.id == study.recipe_id)).one()
    return StudyResults(
        {**about, "seed": made["seed"], "exemplars": made["exemplars"]},
        rows,
        {"alpha": _alpha(matrix), "n_raters": len({row["rater"] for row in matrix}), "n_shared": _n_shared(matrix)},
        differences,
        raters,
        f"{about['dataset']} · {about['network']} · recipe {recipe[:10]} · "
        f"n = {n_neurons:,} neurons, {len(matrix):,} ratings, {about['raters']} raters",
        _notes(about, written, scored),
    )


def _row(
    method: str, rated: dict[str, Any], near: dict[str, Any], scored: dict[str, Any], matrix: Rows
) -> dict[str, Any]:
    low, high = t_interval(rated.get("rating"), rated.get("sd"), rated.get("n_neurons", 0), within=SCALE)
    cosine = near.get("cosine")
    cosine_low, cosine_high = t_interval(cosine, near.get("sd"), near.get("n_neurons", 0), within=(-1, 1))
    bertscore = scored.get("bertscore")
    bert_low, bert_high = t_interval(bertscore, scored.get("sd"), scored.get("n_neurons", 0), within=(-1, 1))
    return {
        "method": method,
        "n_neurons": rated.get("n_neurons", 0), "n_ratings": rated.get("n_ratings", 0),
        "rating": rated.get("rating"), "low": low, "high": high,
        "counts": rated.get("counts", [0] * (SCALE[1] - SCALE[0] + 1)),
        "alpha": _alpha([row for row in matrix if row["method"] == method]),
        "n_written": near.get("n_written", 0),
        "cosine": cosine, "cosine_low": cosine_low, "cosine_high": cosine_high,
        "bertscore": bertscore, "bertscore_low": bert_low, "bertscore_high": bert_high,
    }  # fmt: skip


def _alpha(matrix: Rows) -> float | None:
    if not matrix:
        return None
    return ordinal_alpha(
        matrix_of([row["rater"] for row in matrix], [row["unit"] for row in matrix], [row["rating"] for row in matrix])
    )


def _n_shared(matrix: Rows) -> int:
    """Descriptions that at least two have rated; a rater rates each once."""
    times: dict[int, int] = {}
    for row in matrix:
        times[row["unit"]] = times.get(row["unit"], 0) + 1
    return sum(n >= 2 for n in times.values())


def _notes(about: dict[str, Any], written: bool, scored: _Scored) -> list[str]:
    notes = []
    if not about["ratings"]:
        notes.append("nobody has rated anything yet; bring files of answers in with: andp study import FILE")
    elif about["raters"] < 2:
        notes.append("one rater only: there is no agreement to measure")
    if written and scored.why:
        notes.append(scored.why)
    return notes


# ---------------------------------------------------------------------- BERTScore


@dataclass(frozen=True)
class _Scored:
    """The experiment that holds the scores, or why there are none."""

    experiment: int | None = None
    why: str = ""


def _bertscores(
    engine: sa.Engine, study: Study, pairs: Rows, model: str | None, layers: int | None, progress: Progress
) -> _Scored:
    """The scores of all pairs: of the model named, else those that were computed last for the same texts."""
    from and_platform.backends import bertscore

    written = provenance.sha256_of(sorted([row["rater"], row["item"], row["written"]] for row in pairs))
    if model is None:
        with db.reading(engine) as session:
            found = session.scalars(
                sa.select(Experiment.id)
                .where(
                    Experiment.kind == KIND, Experiment.status == "complete",
                    Experiment.dissection_id == study.dissection_id,
                    Experiment.figures["study"].astext == study.token,
                    Experiment.figures["written"].astext == written,
                )
                .order_by(Experiment.completed_at.desc(), Experiment.id.desc())
                .limit(1)
            ).first()  # fmt: skip
        if found is not None:
            return _Scored(found)
        how = "name a model with --bertscore-model"
        if not bertscore.installed():
            how = f"install it with: pip install 'and-platform[{bertscore.EXTRA}]', then {how}"
        return _Scored(why=f"BERTScore is not computed: {how}")

    from and_platform.services.devices import device

    scorer = bertscore.BertScore(model, layers, device=device())
    if not pairs:
        return _Scored()
    with db.transaction(engine) as session:
        subject = experiments.subject(session, None, study.dissection_id)
        plan = experiments.plan(
            subject, KIND, study=study.token, written=written, model=scorer.recipe.revision, **scorer.recipe.params
        )
        row = experiments.begin(session, subject, plan)
        if row.status == "complete":
            # Asked for again: it is the one to show from now on.
            session.execute(sa.update(Experiment).where(Experiment.id == row.id).values(completed_at=sa.func.now()))
            return _Scored(row.id)
        experiment_id = row.id
    with progress.stage("BERTScore", len(pairs), "pairs") as advance:
        f1 = scorer.score([pair["generated"] for pair in pairs], [pair["written"] for pair in pairs])
        advance(len(pairs))
    scores = [
        [pair["item"], pair["method"], pair["rater"], round(float(value), 6)]
        for pair, value in zip(pairs, f1, strict=True)
    ]
    with db.transaction(engine) as session:
        figures = {"study": study.token, "written": written, "model": model, **scorer.recipe.params, "scores": scores}
        experiments.complete(session, experiment_id, figures)
    return _Scored(experiment_id)
