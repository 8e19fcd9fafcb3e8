"""`andp interpretability`: whether the clips that excite a neuron have something in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from and_platform import db, output_files
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, plot_option, save_figure, show_rows
from and_platform.core.clustering import thresholds
from and_platform.core.exemplars import EXEMPLARS_KEPT
from and_platform.plots import interpretability as plots
from and_platform.services import interpretability as service
from and_platform.services import provenance

_DISSECTION = click.option("--dissection", type=int, help="A dissection; default: the network's current one.")
_CLUSTERING = click.option(
    "--clustering", type=int, metavar="ID",
    help="A clustering; default: of the network's clips and captions the latest by the elbow, else the latest.",
)  # fmt: skip


_PLOT = plot_option()


@click.group("interpretability")
def command() -> None:
    """Uninterpretable neurons: cluster the captions' sentences, and see whose exemplars share no cluster."""


@command.command()
@click.argument("network")
@click.option(
    "--clusters", "n_clusters", type=click.IntRange(1), metavar="N",
    help="Number of clusters; default: the elbow of the curve of inertia.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of k-means.")
@click.option(
    "--max-clusters",
    type=click.IntRange(3),
    default=30,
    show_default=True,
    help="The most clusters to try for the elbow.",
)
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def cluster(
    ctx: click.Context,
    network: str,
    n_clusters: int | None,
    seed: int,
    max_clusters: int,
    dissection: int | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Cluster the sentences of the captions that NETWORK was dissected with (paper, 4.5).

    k-means over the vectors of all sentences, each as often as it occurs. All networks that were dissected on the same
    clips and captions share the clusters. What has been clustered once is not computed again. --plot draws the elbow.

    \b
    Examples:
      andp interpretability cluster sample-ast --plot elbow.svg
      andp interpretability cluster sample-ast --clusters 11
    """
    if plot is not None and n_clusters is not None:
        raise click.UsageError("--plot draws the elbow, and with --clusters there is none; leave one of them out")
    listener = bars(ctx)
    engine = db.connect(tell=listener.note)
    arguments = {"network": network, "clusters": n_clusters, "seed": seed, "max_clusters": max_clusters}
    with provenance.run(engine, "interpretability cluster", arguments) as run:
        made = service.cluster(
            engine, network, dissection=dissection, n_clusters=n_clusters, seed=seed, max_clusters=max_clusters,
            progress=listener,
        )  # fmt: skip
        run.counts = {"clustering": made.id, "computed": made.computed}
    _show_clusters(service.words(engine, made.id), made, output_format)
    default = service.find(engine, network, dissection=dissection).id
    if default != made.id:
        messages().print(f"clustering {default} stays the default; to use this one: --clustering {made.id}")
    if plot is not None:
        save_figure(plots.elbow(made.curve, made.n_clusters, made.footer), plot)


@command.command()
@click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
@click.option(
    "--tau", type=click.IntRange(1), help="Exemplars that must share a cluster.  [default: 80 % of K: 4 of 5]"
)
@click.option(
    "--k",
    type=click.IntRange(1, EXEMPLARS_KEPT),
    default=5,
    show_default=True,
    help="K: the most active clips of a neuron.",
)
@click.option(
    "--by", type=click.Choice(["block", "kind"]), default="block", show_default=True,
    help="A line per network, or one per kind of layer.",
)  # fmt: skip
@click.option(
    "--all", "everything", is_flag=True, help="K = 5, 10, 20 with tau = 60, 80 and 100 % of it (Figures 11-13)."
)
@_CLUSTERING
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def blocks(
    ctx: click.Context,
    networks: Sequence[str],
    tau: int | None,
    k: int,
    by: str,
    everything: bool,
    clustering: int | None,
    dissection: int | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Show the share of uninterpretable neurons by block (paper, Figures 6 and 11-14).

    A neuron is uninterpretable if fewer than tau of its K most active clips have captions that share a cluster. A caption
    belongs to every cluster that one of its sentences falls into, a clip without a caption to none. Intervals are Wilson's,
    95 %; neurons of a layer are not independent, so they are too narrow. The head counts with the last block. 'chance' is the
    share that clips picked at random would give: with captions of many sentences it may be small too.

    \b
    Examples:
      andp interpretability blocks sample-ast --plot uninterpretable.svg
      andp interpretability blocks sample-ast --tau 8 --k 10 --by kind
      andp interpretability blocks supervised finetuned frozen --all --plot grid.png
    """
    if everything and (tau is not None or ctx.get_parameter_source("k") is not click.core.ParameterSource.DEFAULT):
        raise click.UsageError("--all shows the paper's tau and K; leave --tau and --k out")
    engine = db.connect(tell=bars(ctx).note)
    rows = service.blocks(
        engine, networks, clustering=clustering, ks=service.KS if everything else (k,), dissection=dissection
    )
    kept = max((row["k"] for row in rows), default=k)
    asked = max(service.KS) if everything else k
    if kept < asked:
        messages().print(f"only {kept} exemplars of a neuron are kept, so K = {asked} is K = {kept}")
    if everything:
        chosen = [row for row in rows if row["tau"] in thresholds(row["k"])]
    else:
        tau = tau if tau is not None else thresholds(kept)[len(thresholds(kept)) // 2]
        chosen = service.at(rows, tau, k)
    shown = [row for row in chosen if (row["layer_kind"] == "all") == (by == "block")]
    columns = ("network", "block", *(("layer_kind",) if by == "kind" else ()), "k", "tau", "n_neurons", "n_uninterpretable",
               "share", "low", "high", "chance")  # fmt: skip
    show_rows(
        [{key: row[key] for key in columns} for row in shown] if output_format == "table" else shown, output_format,
        title=_title(rows), columns=columns,
    )  # fmt: skip
    if plot is not None:
        by_kind = by == "kind"
        told = service.footer(rows)
        save_figure(
            plots.grid(rows, told, by_kind=by_kind) if everything or tau is None
            else plots.blocks(rows, tau, kept, told, by_kind=by_kind),
            plot,
        )  # fmt: skip


@command.command()
@click.argument("network")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Write the cloud of each cluster as an SVG of its own.",
)  # fmt: skip
@_CLUSTERING
@_DISSECTION
@_PLOT
@format_options
@click.pass_context
def words(
    ctx: click.Context,
    network: str,
    output: Path | None,
    clustering: int | None,
    dissection: int | None,
    plot: Path | None,
    output_format: str,
) -> None:
    """Show the clusters: captions, sentences, most frequent words (paper, Table 8). --plot draws word clouds.

    \b
    Examples:
      andp interpretability words sample-ast --plot clouds.png
      andp interpretability words sample-ast -o clouds/ --json
    """
    engine = db.connect(tell=bars(ctx).note)
    used = service.find(engine, network, dissection=dissection, clustering=clustering)
    rows = service.words(engine, used.id)
    _show_clusters(rows, used, output_format)
    if plot is not None:
        save_figure(plots.clouds(rows, used.footer), plot)
    if output is not None:
        drawn = [row for row in rows if row["words"]]
        with output_files.folder(output, ours=_is_cloud, keep_others=True) as folder:
            for row in drawn:
                (folder / f"cluster-{row['cluster']:02d}.svg").write_text(plots.cloud_svg(row), "utf-8")
        messages().print(f"wrote {len(drawn)} clouds to {output}", markup=False)


@command.command("list")
@format_options
@click.pass_context
def list_(ctx: click.Context, output_format: str) -> None:
    """List what has been clustered.

    \b
    Example:
      andp interpretability list
    """
    show_rows(
        service.clusterings(db.connect(tell=bars(ctx).note)), output_format,
        empty="nothing has been clustered yet; run: andp interpretability cluster NETWORK",
    )  # fmt: skip


def _is_cloud(name: str) -> bool:
    """Whether a file in the folder of `words -o` is of a former run."""
    return re.fullmatch(r"cluster-\d{2,}\.svg", name) is not None


def _show_clusters(rows: Sequence[dict[str, Any]], about: service.ClusteringReport, output_format: str) -> None:
    shown = rows
    if output_format == "table":
        shown = [
            {
                "cluster": row["cluster"], "captions": row["n_captions"], "sentences": row["n_sentences"],
                "words": ", ".join(list(row["words"])[:8]) or "(stop words alone)", "commonest_sentence": row["example"],
            }
            for row in rows
        ]  # fmt: skip
    how = "by the elbow method" if about.chosen_by == "elbow" else "as asked for"
    show_rows(
        shown, output_format,
        title=f"clustering {about.id}: {about.n_clusters} clusters, {how} (seed {about.seed}), of "
        f"{about.n_sentences:,} sentences of {about.n_captions:,} captions of {about.dataset}",
    )  # fmt: skip


def _title(rows: Sequence[dict[str, Any]]) -> str:
    """Which clusters the shares are by; they are compared only where that is one."""
    used = dict.fromkeys((row["clustering_id"], row["n_clusters"], row["dataset"]) for row in rows)
    told = ", ".join(f"clustering {number} ({n} clusters, {dataset})" for number, n, dataset in used)
    return f"uninterpretable neurons by {told}" + ("; not the same clusters" if len(used) > 1 else "")
