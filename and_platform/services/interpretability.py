"""Interpretability (paper, 4.5 and appendix G): do the clips that excite a neuron have something in common?

The sentences of all captions of a probing set are clustered once, for all networks. A neuron is interpretable at (tau, K)
if the captions of at least tau of its K high exemplars have a sentence in the same cluster. Algorithm 1 of the paper prints
an intersection over all K; its text and its figures need the count, which is what is followed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.core import clustering as core
from and_platform.errors import IncompleteError, InputError, NotFoundError
from and_platform.queries import interpretability as queries
from and_platform.schema import Clustering, Recipe
from and_platform.services import embed, experiments, provenance
from and_platform.services.progress import SILENT, Progress
from and_platform.services.provenance import RecipePlan

KS = (5, 10, 20)
"""The paper's numbers of exemplars (Figures 11 to 13)."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ClusteringReport:
    """A clustering of the sentences of a probing set's captions."""

    id: int
    dataset: str
    captions: str
    """The captioner."""
    encoder: str
    n_clusters: int
    chosen_by: str
    """elbow or given."""
    seed: int
    inertia: float
    curve: list[tuple[int, float]]
    """(number of clusters, inertia) of the numbers that were tried; empty where the number was given."""
    n_captions: int
    n_sentences: int
    """As often as they occur."""
    sha256: str
    """Hash of its recipe."""
    computed: bool
    """False: it was there already."""

    @property
    def footer(self) -> str:
        """Data set, captions, recipe and n."""
        return (
            f"{self.dataset} · captions: {self.captions} · encoder: {self.encoder} · recipe {self.sha256[:10]} · "
            f"n = {self.n_captions:,} captions, {self.n_sentences:,} sentences"
        )


def cluster(
    engine: sa.Engine,
    network: str,
    *,
    dissection: int | None = None,
    n_clusters: int | None = None,
    seed: int = 0,
    max_clusters: int = 30,
    progress: Progress = SILENT,
) -> ClusteringReport:
    """Cluster the sentences of the captions that a network was dissected with; what is there is not computed again.

    Each distinct sentence is embedded once, by the dissection's sentence encoder, and counts as often as it occurs. Nothing
    depends on the network but which captions are meant: networks that were dissected on the same clips and captions share it.

    Parameters
    ----------
    n_clusters
        Number of clusters; default: the elbow of the curve of inertia over 1 to `max_clusters`.

    Raises
    ------
    IncompleteError
        The dissection has no captions.
    InputError
        There are fewer distinct sentences than clusters, or the curve has no elbow.
    """
    if n_clusters is not None and n_clusters < 1:
        raise InputError(f"{n_clusters} clusters cannot be made; ask for at least 1")
    if n_clusters is None and max_clusters < 3:
        raise InputError(f"an elbow between 1 and {max_clusters} clusters cannot be found; try at least 3")
    with db.reading(engine) as session:
        about = experiments.subject(session, network, dissection)
        captions = experiments.stage_recipe(session, about, "caption", "a clustering of captions")
        sentences = queries.caption_sentences_of(session, probing_set=about.probing_set_id, caption_recipe=captions)
        probing_sha, captions_sha = session.execute(
            sa.text(
                "SELECT p.sha256, r.sha256 FROM probing_sets p, recipes r WHERE p.id = :probing AND r.id = :captions"
            ),
            {"probing": about.probing_set_id, "captions": captions},
        ).one()
    if not sentences:
        raise IncompleteError(
            f"dissection {about.dissection_id} has no captions to cluster; "
            f"run: andp dissect {about.network} --dataset {about.dataset}"
        )
    ids, texts, counts = zip(*sentences, strict=True)
    if n_clusters is not None and n_clusters > len(ids):
        raise InputError(f"the captions have {len(ids)} distinct sentences; ask for at most {len(ids)} clusters")
    encoder_id = _embedded(engine, about, ids, progress)
    with db.reading(engine) as session:
        encoder_sha = session.scalars(
            sa.text("SELECT r.sha256 FROM encoders e JOIN recipes r ON r.id = e.recipe_id WHERE e.id = :id"),
            {"id": encoder_id},
        ).one()
        plan = RecipePlan(
            "cluster", "k-means", "1",
            {
                "probing_set": probing_sha, "captions": captions_sha, "encoder": encoder_sha, "seed": seed,
                # Captions may be added later, where a captioner failed at first.
                "sentences": provenance.sha256_of([list(texts), list(counts)]), "starts": core.STARTS,
                **({"n_clusters": n_clusters} if n_clusters else {"max_clusters": max_clusters}),
            },
        )  # fmt: skip
        there = session.scalar(_with_recipe(plan))
        if there is not None:
            return _report(session, there, computed=False)
        vectors = embed.text_vectors(session, encoder_id, ids)
    weights = np.asarray(counts, np.int64)
    found, curve = _choose(vectors, weights, n_clusters, seed, max_clusters, progress)
    with db.transaction(engine) as session:
        identity = session.scalar(
            insert(Clustering)
            .values(
                recipe_id=provenance.recipe_id(session, plan), probing_set_id=about.probing_set_id,
                caption_recipe_id=captions, encoder_id=encoder_id, n_clusters=int(found.labels.max()),
                chosen_by="given" if n_clusters else "elbow", seed=seed, inertia=found.inertia, curve=curve,
            )
            .on_conflict_do_nothing(index_elements=["recipe_id"])
            .returning(Clustering.id)
        )  # fmt: skip
        if identity is not None:
            _store(session, identity, ids, texts, weights, found.labels)
    with db.reading(engine) as session:
        # None: another command has made the same one in the meantime.
        there = identity if identity is not None else session.scalars(_with_recipe(plan)).one()
        return _report(session, there, computed=identity is not None)


def _with_recipe(plan: RecipePlan) -> sa.Select[int]:
    return sa.select(Clustering.id).join(Recipe, Recipe.id == Clustering.recipe_id).where(Recipe.sha256 == plan.sha256)


def _embedded(engine: sa.Engine, about: experiments.Subject, texts: Sequence[int], progress: Progress) -> int:
    """The id of the encoder that the dissection compared sentences with, with all texts embedded.

    The encoder is loaded only where a text has no vector yet.
    """
    with db.reading(engine) as session:
        known = queries.sentence_encoder(session, dissection=about.dissection_id, texts=texts)
        if known is not None and known[1] == 0:
            return known[0]
        spec = session.scalar(
            sa.text("SELECT config ->> 'sentence_encoder' FROM dissections WHERE id = :id"), {"id": about.dissection_id}
        )
    from and_platform.backends import registry

    encoder = registry.create("encoder", spec or "minilm")
    return embed.embed_texts(engine, encoder, texts, name="embed sentences", progress=progress)


def _choose(
    vectors: NDArray[np.float32],
    weights: NDArray[np.int64],
    n_clusters: int | None,
    seed: int,
    max_clusters: int,
    progress: Progress,
) -> tuple[core.Clusters, list[tuple[int, float]]]:
    """The clusters, and the curve that their number was chosen by."""
    if n_clusters is not None:
        with progress.stage("k-means", 1, "clusterings") as advance:
            return core.try_numbers(vectors, weights, [n_clusters], seed, advance)[n_clusters], []
    numbers = range(1, min(max_clusters, len(vectors)) + 1)
    with progress.stage("k-means", len(numbers), "clusterings") as advance:
        found = core.try_numbers(vectors, weights, numbers, seed, advance)
    curve = [(number, result.inertia) for number, result in found.items()]
    chosen = core.elbow(curve)
    if chosen is None:
        raise InputError(
            f"the inertia of 1 to {numbers[-1]} clusters of {len(vectors):,} distinct sentences has no elbow; "
            "say how many there should be: --clusters N"
        )
    return found[chosen], curve


def _store(
    session: Session,
    identity: int,
    ids: Sequence[int],
    texts: Sequence[str],
    weights: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> None:
    db.copy_columns(
        session, "cluster_sentences",
        {"clustering_id": ("int8", identity), "text_id": ("int8", np.asarray(ids)), "cluster": ("int4", labels)},
    )  # fmt: skip
    said = np.asarray(texts, object)
    words = {
        number: core.top_words(said[labels == number].tolist(), weights[labels == number].tolist())
        for number in range(1, int(labels.max()) + 1)
    }
    queries.insert_clusters(session, clustering=identity, words=words)


# ---------------------------------------------------------------------- what has been clustered


def clusterings(engine: sa.Engine) -> Rows:
    """All clusterings, the latest first."""
    with db.reading(engine) as session:
        return [
            {
                key: row[key] for key in (
                    "id", "dataset", "captions", "encoder", "n_clusters", "chosen_by", "seed", "n_captions", "n_sentences",
                    "created_at",
                )
            }
            for row in queries.clusterings(session)
        ]  # fmt: skip


def find(
    engine: sa.Engine, network: str, *, dissection: int | None = None, clustering: int | None = None
) -> ClusteringReport:
    """The clustering to be used for a network: the one named, else the default of its clips and captions.

    The default is the latest whose number is the elbow's, so that trying other numbers changes nothing elsewhere; where there
    is none, the latest.

    Raises
    ------
    NotFoundError
        There is no such clustering.
    IncompleteError
        The captions have not been clustered yet, or captions have come since; says what to run.
    InputError
        The clustering named is of other clips or captions.
    """
    with db.reading(engine) as session:
        return _find(session, experiments.subject(session, network, dissection), clustering)


def _find(session: Session, about: experiments.Subject, clustering: int | None) -> ClusteringReport:
    remedy = f"andp interpretability cluster {about.network}"
    captions = experiments.stage_recipe(session, about, "caption", "interpretability")
    if clustering is not None:
        found = queries.clusterings(session, clustering=clustering)
        if not found:
            raise NotFoundError(f"no clustering {clustering}; see: andp interpretability list")
        if found[0]["probing_set_id"] != about.probing_set_id:
            raise InputError(
                f"clustering {clustering} is of clips of '{found[0]['dataset']}' that dissection {about.dissection_id} of "
                f"'{about.network}' was not probed with; run: {remedy}"
            )
        if found[0]["caption_recipe_id"] != captions:
            raise InputError(
                f"clustering {clustering} is of other captions than those that dissection {about.dissection_id} of "
                f"'{about.network}' was made with; run: {remedy}"
            )
    else:
        found = queries.clusterings(session, probing_set=about.probing_set_id, caption_recipe=captions)
        if not found:
            raise IncompleteError(
                f"the captions that '{about.network}' was dissected with have not been clustered yet; run: {remedy}"
            )
        found.sort(key=lambda row: row["chosen_by"] != "elbow")
    if found[0]["n_outside"]:
        raise IncompleteError(
            f"{found[0]['n_outside']} sentences of captions have come since clustering {found[0]['id']} was made; "
            f"run: {remedy}"
        )
    return _as_report(found[0], computed=False)


def _report(session: Session, identity: int, *, computed: bool) -> ClusteringReport:
    return _as_report(queries.clusterings(session, clustering=identity)[0], computed=computed)


def _as_report(row: Mapping[str, Any], *, computed: bool) -> ClusteringReport:
    return ClusteringReport(
        row["id"], row["dataset"], row["captions"], row["encoder"], row["n_clusters"], row["chosen_by"], row["seed"],
        row["inertia"], [(int(number), float(inertia)) for number, inertia in row["curve"]], row["n_captions"],
        int(row["n_sentences"]), row["sha256"], computed,
    )  # fmt: skip


# ---------------------------------------------------------------------- what is asked of it


def blocks(
    engine: sa.Engine,
    networks: Sequence[str],
    *,
    clustering: int | None = None,
    ks: Iterable[int] = KS,
    dissection: int | None = None,
) -> Rows:
    """Share of uninterpretable neurons by block and kind of layer, for all tau and K, with Wilson 95 % intervals.

    Counted from the stored memberships and exemplars by one query a network; nothing is computed again.

    Parameters
    ----------
    networks
        Networks to compare; each by its current dissection.
    clustering
        Default: that of each network's clips and captions, see `find`.
    ks
        Numbers of high exemplars. Where fewer are kept (a small data set, or more than the 20 that are kept), K is what
        there is, and `k` says so.
    dissection
        Another dissection than the current one; for one network.

    Returns
    -------
    list of dict
        network, dataset, dissection_id, clustering_id, n_clusters, recipe (hash of the clustering's), then block (the head
        counts with the last one; None outside blocks), layer_kind ('all': the whole block), k, tau (1 to k), n_neurons,
        n_uninterpretable, share, low, high, chance (the share that clips picked at random would give).

    Raises
    ------
    InputError
        A K below 1, a dissection for several networks, or a clustering of other clips or captions.
    IncompleteError, NotFoundError
        As `find`.
    """
    wanted = sorted(set(ks))
    if not wanted or wanted[0] < 1:
        raise InputError(f"K is {wanted[0] if wanted else 'missing'}; give at least 1 exemplar")
    if dissection is not None and len(networks) > 1:
        raise InputError("a dissection is of one network; name one network, or leave --dissection out")
    rows: Rows = []
    for network in dict.fromkeys(networks):
        with db.reading(engine) as session:
            about = experiments.subject(session, network, dissection)
            used = _find(session, about, clustering)
            told = {
                "network": network, "dataset": about.dataset, "dissection_id": about.dissection_id,
                "clustering_id": used.id, "n_clusters": used.n_clusters, "recipe": used.sha256,
            }  # fmt: skip
            found = queries.uninterpretable_blocks(
                session, clustering=used.id, dissection=about.dissection_id, ks=wanted
            )
            by_chance = _chance(session, used, sorted({row["k"] for row in found}))
            rows += [{**told, **row, "chance": by_chance[row["k"], row["tau"]]} for row in found]
    return rows


def _chance(session: Session, used: ClusteringReport, ks: Sequence[int]) -> dict[tuple[int, int], float]:
    """What clips picked at random give."""
    clusters = queries.caption_clusters(session, clustering=used.id)
    member = np.zeros((len(clusters), used.n_clusters), bool)
    for clip, of_clip in enumerate(clusters):
        member[clip, np.asarray(of_clip, np.int64) - 1] = True
    return core.chance(member, ks)


def at(rows: Sequence[Mapping[str, Any]], tau: int, k: int) -> Rows:
    """The rows of `blocks` at one (tau, K); K is the most that there is where that is less.

    Raises
    ------
    InputError
        The rows are of other K, or tau is not between 1 and K.
    """
    ks = sorted({row["k"] for row in rows})
    there = min(k, ks[-1]) if ks else k
    if ks and there not in ks:
        raise InputError(f"K is {k}, but these rows are of K = {', '.join(map(str, ks))}")
    if not 1 <= tau <= there:
        raise InputError(f"tau is {tau} of K = {there} exemplars; give 1 to {there}")
    return [dict(row) for row in rows if row["tau"] == tau and row["k"] == there]


def footer(rows: Sequence[Mapping[str, Any]]) -> str:
    """The line under a figure of rows of `blocks`: data sets, networks, clusterings and numbers of neurons."""
    if not rows:
        return ""
    first = rows[0]
    neurons = {
        network: sum(
            row["n_neurons"] for row in rows
            if row["network"] == network and row["layer_kind"] == "all" and row["k"] == first["k"] and row["tau"] == first["tau"]
        )
        for network in dict.fromkeys(row["network"] for row in rows)
    }  # fmt: skip
    recipes = dict.fromkeys(f"{row['recipe'][:10]} ({row['n_clusters']} clusters)" for row in rows)
    return (
        f"{', '.join(dict.fromkeys(row['dataset'] for row in rows))} · {', '.join(neurons)} · "
        f"recipe {', '.join(recipes)} · n = {' + '.join(f'{n:,}' for n in neurons.values())} neurons"
    )


def words(engine: sa.Engine, clustering: int) -> Rows:
    """The clusters of a clustering (paper, Table 8).

    Returns
    -------
    list of dict
        cluster, n_captions, n_sentences (as often as they occur), words (dict of the most frequent words with their counts,
        in that order), example (the sentence that occurs most often).

    Raises
    ------
    NotFoundError
        There is no such clustering.
    """
    with db.reading(engine) as session:
        rows = queries.clusters_of(session, clustering=clustering)
    if not rows:
        raise NotFoundError(f"no clustering {clustering}; see: andp interpretability list")
    for row in rows:
        row["words"] = dict(sorted(row["words"].items(), key=lambda item: (-item[1], item[0])))
    return rows
