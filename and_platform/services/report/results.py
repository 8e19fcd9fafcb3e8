"""The sections of the experiments, from the same calls as their commands; for one network or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from and_platform import db
from and_platform.errors import AndpError
from and_platform.queries import report as queries
from and_platform.services import experiments
from and_platform.services.experiments import Subject
from and_platform.services.report.content import Block, Facts, Missing, Plot, Rows, Table, Text
from and_platform.services.report.work import NotStoredError, Work, missing

if TYPE_CHECKING:
    from and_platform.services.last_layer import LastLayerReport

Made = TypeVar("Made")

_QUICK_SHARES = (4.0, 8.0, 12.0)
_QUICK_SEEDS = (0,)
_QUICK_PERMUTATIONS = 200


# ---------------------------------------------------------------------- evaluation


def last_layer(work: Work) -> Sequence[Block]:
    """Tables 2 and 7, and which concept was found for which class."""
    from and_platform.plots import evaluation as plots
    from and_platform.plots import report as own
    from and_platform.services import last_layer as service

    found: list[Block] = []
    stated: Rows = []
    by_function: Rows = []
    measures: Rows = []
    for about in work.abouts:
        made = _each(work, about, found, _evaluated)
        if made is None:
            continue
        who = {"network": about.network} if work.several else {}
        stated += [who | row for row in service.table_2(made.rows)]
        for over, told in (("all", "all"), ("right", "those it gets right")):
            by_function += [who | {"classes": told} | row for row in service.table_7(made.rows, over)]
        measures += [who | row for row in made.rows]
        if not work.several:
            chance = 1 / made.n_concepts if made.n_concepts else None
            drawn = plots.last_layer(made.rows, made.footer, chance=chance)
            found.append(Plot("last-layer", "Top-1 by method and function", drawn))
        if made.accuracy:
            accuracy = made.accuracy
            found.append(Text(
                f"{about.network} itself gets {100 * accuracy['value']:.1f} % of {accuracy['n_clips']:,} held-out clips right."
            ))  # fmt: skip
        found += [Text(_sentence(note), caution=True) for note in made.notes]
        if not work.several:
            found.append(Table("last-layer-classes", "Class by class", made.names, searchable=len(made.names) > 30,
                               note="concept: what the class is mapped to, and how; right: whether the network gets most of its "
                               "held-out clips right; then what each method found first.", folded=True))  # fmt: skip
    if not measures:
        return found
    if work.several:
        n = f"{max(row['n'] for row in measures):,} classes"
        drawn = own.last_layer(measures, f"{work.footer(n)} · bars: bootstrap 95 % intervals")
        found.insert(0, Plot("last-layer", "Top-1 and top-5 by method and function", drawn))
    tables: list[Block] = [
        Table("last-layer-stated", "The function stated beforehand, and the best by result", stated,
              columns=_heads(stated, {"top_1": "top-1", "top_5": "top-5", "cosine_sentence": "cosine (sentences)",
                                      "cosine_concept": "cosine (concepts)"}),
              note="With bootstrap 95 % intervals over classes. 'Best of' is chosen by its result, as in the paper's Table 2: do "
              "not compare it with anything stated beforehand."),
        Table("last-layer-functions", "Every similarity function", by_function,
              note="top-1 % / top-5 % / mean cosine of names by the sentence encoder"),
    ]  # fmt: skip
    printed, notes = service.paper_table()
    tables.append(
        Table(
            "last-layer-paper",
            "The paper's Table 7: other networks, on ESC-50",
            printed,
            published=True,
            note=" ".join(notes),
        )
    )
    tables.append(
        Table(
            "last-layer-measures",
            "Every measure with its interval",
            measures,
            intervals={"value": ("low", "high")},
            folded=True,
        )
    )
    return [*tables, *found]


def _evaluated(work: Work, about: Subject) -> LastLayerReport:
    from and_platform.services import last_layer as service

    listener = work.stored(service.KIND, f"andp eval last-layer {about.network}", about)
    return service.evaluate(work.engine, about.network, dissection=about.dissection_id, progress=listener)


def quality(work: Work) -> Sequence[Block]:
    """Average precision and the other measures by layer, beside permuted activations."""
    from and_platform.plots import evaluation as plots
    from and_platform.plots import report as own
    from and_platform.services import explanations as service

    found: list[Block] = []
    rows: Rows = []
    for about in work.abouts:
        made = _each(work, about, found, _scored)
        if made is None:
            continue
        shown = [{key: value for key, value in row.items() if key != "auprc"} for row in made]
        rows += [{"network": about.network} | row for row in shown] if work.several else shown
        if not work.several:
            footer = service.footer(work.engine, about.network, made, dissection=about.dissection_id)
            found.append(Plot("quality", "How well descriptions tell on which clips a neuron is active",
                              plots.explanations(made, footer)))  # fmt: skip
    if work.several and rows:
        found.append(
            Plot("quality", "Average precision of descriptions, by layer",
                 own.quality(rows, work.footer(f"{sum(_n_neurons(work, about) for about in work.abouts):,} neurons")))
        )  # fmt: skip
    if rows:
        columns = {
            "network": "network", "layer": "layer", "explanation": "description", "reference": "against", "n_scored": "neurons",
            "mean_auprc": "AUPRC", "null_auprc": "permuted", "mean_pearson": "correlation", "mean_f1": "F1", "mean_iou": "IoU",
            "share_significant": "beyond chance",
        }  # fmt: skip
        found.append(Table(
            "quality", "By layer", rows, columns={k: v for k, v in columns.items() if k in rows[0]},
            shares=("share_significant",), searchable=True, folded=True,
            note="Means over neurons. Beyond chance: share with p < 0.05 after correction for the number of neurons.",
        ))  # fmt: skip
    return found


def _scored(work: Work, about: Subject) -> Rows:
    from and_platform.services import explanations as service

    listener = work.stored(service.KIND, f"andp eval explanations {about.network}", about)
    with db.reading(work.engine) as session:
        there = experiments.latest(session, about, service.KIND) is not None
    if not there:
        service.score(
            work.engine, about.network, dissection=about.dissection_id, progress=listener,
            permutations=_QUICK_PERMUTATIONS if work.options.quick else service.PERMUTATIONS,
        )  # fmt: skip
    return service.by_layer(work.engine, about.network, dissection=about.dissection_id)


# ---------------------------------------------------------------------- words


def adjectives(work: Work) -> Sequence[Block]:
    """Figures 3 and 9."""
    from and_platform.plots import features as plots
    from and_platform.services import features

    rows = features.adjectives(work.engine, work.networks, top=20, dissection=work.only_dissection)
    if not rows:
        return [Missing("No neuron has an adjective among its open concepts.")]
    columns = {"network": "network", "rank": "rank", "adjective": "adjective", "n_neurons": "neurons", "share": "share"}
    return [
        Plot("adjectives", "The 20 adjectives that most neurons have", plots.adjectives(rows)),
        Table("adjectives", "The same as a table", rows, columns=work.columns(columns), shares=("share",), folded=True),
    ]


def blocks(work: Work) -> Sequence[Block]:
    """Figure 5."""
    from and_platform.plots import features as plots
    from and_platform.services import features

    rows, fits = features.blocks(work.engine, work.networks, dissection=work.only_dissection)
    fit_columns = {"network": "network", "slope": "slope, adjectives a block", "p": "p", "intercept": "intercept", "r": "r",
                   "n_neurons": "neurons", "n_blocks": "blocks"}  # fmt: skip
    columns = {"network": "network", "block": "block", "n_neurons": "neurons", "mean": "adjectives per neuron", "sd": "sd",
               "fitted": "line"}  # fmt: skip
    return [
        Plot("blocks", "Adjectives per neuron, by block", plots.blocks(rows, fits)),
        Table("blocks-lines", "The line", fits, columns=work.columns(fit_columns),
              note="Intervals take neurons for independent, which those of one block are not: they are too narrow."),
        Table("blocks", "By block", rows, columns=work.columns(columns), intervals={"mean": ("low", "high"),
              "fitted": ("fitted_low", "fitted_high")}, folded=True),
    ]  # fmt: skip


def ablation(work: Work) -> Sequence[Block]:
    """Figure 4."""
    from and_platform.core import criteria
    from and_platform.plots import features as plots
    from and_platform.services import features

    command = f"andp features ablate {work.network}"
    work.stored("feature_ablation", command)
    wanted = _stored_ablations(work, command) if work.options.stored_only else {}
    if work.options.quick and not wanted:
        wanted = {"shares": _QUICK_SHARES, "seeds": _QUICK_SEEDS}
    rows = features.ablate(work.engine, work.network, dissection=work.dissection, progress=work.progress, **wanted)
    means = [{"chosen_by": criteria.label(row["criterion"]), **row} for row in criteria.over_seeds(rows)]
    columns = {"chosen_by": "chosen by", "share": "share, %", "actual_share": "ablated, %", "n_neurons": "neurons",
               "seeds": "seeds", "accuracy": "accuracy, mean [range] over seeds", "against_random": "less random's"}  # fmt: skip
    return [
        Plot("ablation", "Accuracy after ablating a share of the hidden neurons", plots.ablation(rows)),
        Table("ablation", "By criterion and share", means, columns=columns,
              shares=("accuracy", "against_random"), intervals={"accuracy": ("low", "high")}, searchable=True, folded=True),
        Table("ablation-seeds", "Every seed", rows, folded=True),
    ]  # fmt: skip


def _stored_ablations(work: Work, command: str) -> dict[str, Any]:
    """What to ask for so that nothing has to be computed: the criteria of which every share and seed is there."""
    with db.reading(work.engine) as session:
        there = experiments.latest(session, work.about, "feature_ablation")
        if there is None:
            raise NotStoredError(f"it has not been computed yet; run: {command}")
        grid = queries.stored_ablations(session, experiment=there.id)
        figures = there.figures
    full = max((len(row["units"]) for row in grid), default=0)
    whole = [row for row in grid if len(row["units"]) == full]
    shares = sorted({share for row in whole for share, _ in row["units"]})
    seeds = sorted({int(seed) for row in whole for _, seed in row["units"]})
    if not whole or full < len(shares) * len(seeds):
        raise NotStoredError(f"it is not stored in full; run: {command}")
    return {"criteria": [row["strategy"] for row in whole], "shares": shares, "seeds": seeds,
            "basic": figures.get("basic_adjectives"), "fold": figures.get("fold")}  # fmt: skip


def acoustics(work: Work) -> Sequence[Block]:
    """Figure 8."""
    from and_platform.plots import features as plots
    from and_platform.services import features

    work.stored("word_acoustics", f"andp features acoustics {work.network}")
    found: list[Block] = []
    results: Rows = []
    for word, measure in features.DEFAULT_WORDS.items():
        made = _each(work, work.about, found, partial(_sounding, word=word, measure=measure))
        if made is not None:
            results.append(made)
    if not results:
        return found
    rows = [{key: value for key, value in result.items() if key != "values"} for result in results]
    columns = {
        "word": "word", "unit": "measure", "n_with": "with it", "n_without": "without", "median_with": "median with",
        "median_without": "median without", "rank_biserial": "rank-biserial r", "p_mann_whitney": "p (Mann-Whitney)",
        "hedges_g": "Hedges' g", "p_welch": "p (Welch)",
    }  # fmt: skip
    cautions = dict.fromkeys(result["caution"] for result in results if result["caution"])
    return [
        *(Text(_sentence(caution), caution=True) for caution in cautions),
        Plot("acoustics", "Clips that neurons with and without a word are most active on", plots.acoustics(results)),
        Table(
            "acoustics",
            "Effects and tests",
            rows,
            columns=columns,
            intervals={"hedges_g": ("g_low", "g_high")},
            note="Effects above 0: larger with the word.",
        ),
        *found,
    ]


def _sounding(work: Work, about: Subject, *, word: str, measure: str) -> dict[str, Any]:
    from and_platform.services import features

    return features.acoustics(work.engine, about.network, word, measure, dissection=about.dissection_id)


# ---------------------------------------------------------------------- people


def study(work: Work) -> Sequence[Block]:
    """Table 3."""
    from and_platform.plots import study as plots
    from and_platform.services.study import judged

    listener = work.stored(None, "andp study results")
    made = judged.results(work.engine, network=work.network, progress=listener)
    about = made.about
    facts: list[tuple[str, str]] = [
        ("study", str(about["name"])), ("neurons", f"{about['neurons']:,}"), ("raters", f"{about['raters']:,}"),
        ("ratings", f"{about['ratings']:,}"),
        ("agreement (Krippendorff's alpha)",
         "not defined" if made.agreement["alpha"] is None else f"{made.agreement['alpha']:.2f}"),
    ]  # fmt: skip
    found: list[Block] = [Facts(facts), *(Text(_sentence(note), caution=True) for note in made.notes)]
    if about["dissection"] != work.dissection:
        found.append(
            Text(f"The study is on dissection {about['dissection']}, this report on {work.dissection}.", caution=True)
        )
    if not about["ratings"]:
        return found
    rows = judged.with_published(made.rows)
    columns = {
        "method": "description", "n_neurons": "neurons", "n_ratings": "ratings", "rating": "rating, 1 to 5",
        "cosine": "cosine", "bertscore": "BERTScore", "paper_rating": "paper: rating",
        "paper_cosine": "paper: cosine", "paper_bertscore": "paper: BERTScore",
    }  # fmt: skip
    return [
        *found,
        Plot("study", "Ratings by method", plots.ratings(made.rows, made.footer)),
        Table("study", "By method", rows, columns=columns, intervals={"rating": ("low", "high")},
              note="Means over neurons with 95 % intervals. The paper's figures are of 120 neurons of AST on ESC-50, "
              "rated by other people."),
        Table("study-differences", "Pairs of methods, on the neurons where both were rated", made.differences,
              intervals={"difference": ("low", "high")}, folded=True),
    ]  # fmt: skip


# ---------------------------------------------------------------------- helpers


def _each(work: Work, about: Subject, found: list[Block], make: Callable[[Work, Subject], Made]) -> Made | None:
    """What `make` gives; where it cannot, why is told in its place, and the rest goes on."""
    try:
        return make(work, about)
    except AndpError as error:
        found.append(missing(error, about.network if work.several else None))
        return None


def _n_neurons(work: Work, about: Subject) -> int:
    from and_platform.queries import layer_table

    with db.reading(work.engine) as session:
        return sum(row["neurons"] for row in layer_table(session, dissection=about.dissection_id))


def _heads(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, str]:
    """All columns of rows, some under better names."""
    return {key: names.get(key, key.replace("_", " ")) for key in rows[0]} if rows else {}


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
