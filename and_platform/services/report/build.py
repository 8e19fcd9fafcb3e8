"""Making a report: its sections, the page, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import sqlalchemy as sa

from and_platform import db
from and_platform.errors import InputError
from and_platform.services.experiments import subject
from and_platform.services.progress import SILENT, Progress
from and_platform.services.report import about, clusters, neurons, results, sections, unlearned, writing
from and_platform.services.report.content import Section
from and_platform.services.report.sounds import Store
from and_platform.services.report.work import SECTIONS, Builder, Options, Work, section
from and_platform.services.report.writing import Report

BUILDERS: dict[str, Builder] = {
    "about": sections.about,
    "layers": sections.layers,
    "last-layer": results.last_layer,
    "quality": results.quality,
    "adjectives": results.adjectives,
    "blocks": results.blocks,
    "ablation": results.ablation,
    "acoustics": results.acoustics,
    "interpretability": clusters.interpretability,
    "unlearning": unlearned.unlearning,
    "sweep": unlearned.sweep,
    "study": results.study,
    "neurons": sections.outputs,
    "pipeline": sections.pipeline,
}


COMPARED: dict[str, Builder] = {
    "about": sections.compared,
    "last-layer": results.last_layer,
    "quality": results.quality,
    "adjectives": results.adjectives,
    "blocks": results.blocks,
    "interpretability": clusters.interpretability,
    "unlearning": unlearned.unlearning,
}
"""Sections of a report on several networks."""


def network(
    engine: sa.Engine,
    network: str,
    folder: Path,
    options: Options | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Write the report of a network: `index.html`, `tables/*.csv`, `figures/*.svg` and `*.png`.

    Experiments that are missing are run and stored, as their own commands would; those that are there are read. A section that
    cannot be made says why in its place.

    Parameters
    ----------
    folder
        Where it is written. A report that is there is replaced.
    force
        Write beside other things that lie in the folder.

    Raises
    ------
    NotFoundError
        There is no such network, or no dissection of it.
    InputError
        The folder holds something else, or cannot be written; or there is no such neuron.
    """
    options = options or Options()
    writing.check(folder, force=force)
    with db.reading(engine) as session:
        work = Work(engine, [subject(session, network, options.dissection)], options, progress)
        neurons.check(session, work.about, options.neurons)
        facts = about.header(session, work.about)
    return writing.write(
        folder, _sections(work, BUILDERS), work.store,
        title=f"What the neurons of {network} respond to",
        subtitle=f"{network}, dissected with {work.about.n_clips:,} clips of {work.about.dataset}. "
        "Every figure and table is also a file beside this page.",
        facts=facts, made=_made(options),
    )  # fmt: skip


def compare(
    engine: sa.Engine,
    networks: Sequence[str],
    folder: Path,
    options: Options | None = None,
    *,
    force: bool = False,
    progress: Progress = SILENT,
) -> Report:
    """Write a report that puts networks side by side: their current dissections with one data set.

    Raises
    ------
    InputError
        Fewer than two networks, or dissected with different data sets; or the folder holds something else.
    NotFoundError
        There is no such network, or no dissection of it.
    """
    options = options or Options()
    names = list(dict.fromkeys(networks))
    if len(names) < 2:
        raise InputError("name at least two networks to compare; for one: andp report NETWORK -o DIR")
    writing.check(folder, force=force)
    with db.reading(engine) as session:
        abouts = [subject(session, name) for name in names]
    if len({about.dataset for about in abouts}) > 1:
        told = ", ".join(f"{about.network} with {about.dataset}" for about in abouts)
        raise InputError(
            f"the networks were dissected with different data sets ({told}), so their figures cannot be compared; "
            "run: andp dissect NETWORK --dataset DATASET, with the same data set for all"
        )
    work = Work(engine, abouts, options, progress)
    on = abouts[0].dataset
    return writing.write(
        folder, _sections(work, COMPARED), work.store,
        title=f"{', '.join(names[:-1])} and {names[-1]}, side by side",
        subtitle=f"{len(names)} networks, dissected with {on}. Every figure and table is also a file beside this page.",
        facts=[("networks", str(len(names))), ("data set", f"{on}, {abouts[0].n_clips:,} clips")],
        made=_made(options),
    )  # fmt: skip


def _sections(work: Work, builders: dict[str, Builder]) -> list[Section]:
    """The sections that were not left out, in order."""
    # Without a stage of its own: the experiments show theirs, and those of two at once would overwrite each other.
    wanted = [key for key in SECTIONS if key in builders and key not in work.options.skip]
    return [section(work, key, builders[key]) for key in wanted]


def write_stories(
    engine: sa.Engine, network: str, names: Sequence[str], path: Path, *, dissection: int | None = None
) -> Path:
    """Write a page that shows the way of neurons through the pipeline (paper, Figure 7).

    Raises
    ------
    InputError
        There is no such neuron, or the file cannot be written.
    """
    found = neurons.stories(engine, network, names, dissection=dissection)
    with db.reading(engine) as session:
        on = subject(session, network, dissection)
        facts = about.header(session, on)
    store = Store()
    work = Work(engine, [on], Options(dissection=dissection, neurons=tuple(names)), store=store)
    part = section(work, "pipeline", lambda _: sections.stories(found, store))
    which = ", ".join(story.about["neuron"] for story in found)
    return writing.write_page(
        path, [part], store, title=f"{network} {which}", subtitle=f"Dissected with {on.dataset}.", facts=facts,
        made=_made(Options()),
    )  # fmt: skip


def _made(options: Options) -> str:
    """When and by what the page was made."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        version = f" {metadata.version('and-platform')}"
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        version = ""
    told = f"Made on {now} by and-platform{version}."
    return f"{told} Made with --quick: experiments with fewer draws and seeds." if options.quick else told
