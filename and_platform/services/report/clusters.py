"""The section on interpretability: Figures 6 and 11 to 14, Table 8."""

from __future__ import annotations

from collections.abc import Sequence

from and_platform.errors import AndpError, IncompleteError
from and_platform.services import published
from and_platform.services.experiments import Subject
from and_platform.services.interpretability import ClusteringReport
from and_platform.services.report.content import Block, Missing, Plot, Table, Text
from and_platform.services.report.work import NotStoredError, Work, missing

_K = 5


def interpretability(work: Work) -> Sequence[Block]:
    """Share of uninterpretable neurons by block and kind of layer, and the clusters that they are counted by."""
    from and_platform.core.clustering import thresholds
    from and_platform.plots import interpretability as plots
    from and_platform.services import interpretability as service

    absent: list[Block] = []
    used: dict[int, ClusteringReport] = {}
    there: list[Subject] = []
    for about in work.abouts:
        try:
            found = _clustering(work, about)
        except AndpError as error:
            absent.append(missing(error, about.network if work.several else None))
            continue
        used[found.id] = found
        there.append(about)
    if not there:
        return absent
    rows = service.blocks(
        work.engine, [about.network for about in there], dissection=work.only_dissection, ks=service.KS
    )
    if not rows:
        return [Missing("There are no neurons in blocks to count."), *absent]
    footer = service.footer(rows)
    k = min(_K, max(row["k"] for row in rows))
    tau = thresholds(k)[len(thresholds(k)) // 2]
    clustering = next(iter(used.values()))
    found_by = "by the elbow method" if clustering.chosen_by == "elbow" else "a number that was given"
    paper = published.figures()["interpretability"]["n_clusters"]
    blocks: list[Block] = [
        Text(
            f"{clustering.n_clusters} clusters, {found_by}, of {clustering.n_sentences:,} sentences of "
            f"{clustering.n_captions:,} captions; the paper has {paper} for its captions of ESC-50. The dotted lines are what "
            "clips picked at random would give: where captions have many sentences of a few kinds, chance alone makes most "
            "neurons interpretable."
        )
    ]
    if len(used) > 1:
        blocks.append(
            Text("The networks were dissected with different captions, so that their clusters differ.", caution=True)
        )
    blocks += [
        Plot("uninterpretable", "Uninterpretable neurons by block", plots.blocks(rows, tau, k, footer)),
        Plot("uninterpretable-grid", "The same for other K and tau", plots.grid(rows, footer)),
        Plot("uninterpretable-kinds", "By kind of layer", plots.blocks(rows, tau, k, footer, by_kind=True)),
    ]
    if not work.several:
        title = "By kind of layer, for other K and tau"
        blocks.append(Plot("uninterpretable-kinds-grid", title, plots.grid(rows, footer, by_kind=True)))
    columns = {"network": "network", "block": "block", "layer_kind": "kind of layer", "k": "K", "tau": "tau",
               "n_neurons": "neurons", "n_uninterpretable": "uninterpretable", "share": "share",
               "chance": "random clips"}  # fmt: skip
    blocks.append(
        Table("uninterpretable", "Every K and tau", rows, columns=work.columns(columns), shares=("share", "chance"),
              intervals={"share": ("low", "high")}, searchable=True, folded=True,
              note="With Wilson 95 % intervals, which take neurons for independent and are too narrow.")
    )  # fmt: skip
    blocks += absent
    if not work.several:
        blocks += _clusters(work, clustering)
    return blocks


def _clusters(work: Work, clustering: ClusteringReport) -> list[Block]:
    """Table 8, with word clouds, and the elbow."""
    from and_platform.plots import interpretability as plots
    from and_platform.services import interpretability as service

    words = service.words(work.engine, clustering.id)
    shown = [
        {
            "cluster": row["cluster"], "n_captions": row["n_captions"], "n_sentences": row["n_sentences"],
            "commonest_words": list(row["words"])[:10], "commonest_sentence": row["example"], "words": row["words"],
        }
        for row in words
    ]  # fmt: skip
    columns = {"cluster": "cluster", "n_captions": "captions", "n_sentences": "sentences", "commonest_words": "commonest words",
               "commonest_sentence": "commonest sentence"}  # fmt: skip
    blocks: list[Block] = [
        Table("clusters", "The clusters", shown, columns=columns),
        Plot("clouds", "Their words", plots.clouds(words, clustering.footer)),
    ]
    if clustering.curve:
        drawn = plots.elbow(clustering.curve, clustering.n_clusters, clustering.footer)
        blocks.append(Plot("elbow", "How many clusters", drawn))
    return blocks


def _clustering(work: Work, about: Subject) -> ClusteringReport:
    """The clustering of a network's captions; made where it is not there and may be."""
    from and_platform.services import interpretability as service

    try:
        return service.find(work.engine, about.network, dissection=about.dissection_id)
    except IncompleteError as error:
        if work.options.stored_only:
            raise NotStoredError(str(error)) from error
    return service.cluster(work.engine, about.network, dissection=about.dissection_id, progress=work.progress)
