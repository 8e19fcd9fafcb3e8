"""The sections that every dissection has: what it is, its layers, and some of its neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from and_platform import db
from and_platform.queries import layer_table
from and_platform.services.report import about as about_it
from and_platform.services.report import neurons
from and_platform.services.report.content import Block, Outputs, Plot, Stories, Table, Text
from and_platform.services.report.neurons import Story
from and_platform.services.report.sounds import Store
from and_platform.services.report.work import Work


def about(work: Work) -> Sequence[Block]:
    """What was dissected, with what, and how to do it again."""
    with db.reading(work.engine) as session:
        return about_it.blocks(session, work.about)


def compared(work: Work) -> Sequence[Block]:
    """The networks that are put side by side."""
    with db.reading(work.engine) as session:
        return about_it.side_by_side(session, work.abouts)


def layers(work: Work) -> Sequence[Block]:
    """Layer by layer: points kept and dropped, open concepts, the commonest concept."""
    from and_platform.plots import report as plots

    with db.reading(work.engine) as session:
        rows = layer_table(session, dissection=work.dissection)
    n = f"{sum(row['neurons'] for row in rows):,} neurons"
    columns = {
        "layer": "layer", "neurons": "neurons", "constant": "constant", "described": "described",
        "points_kept": "points kept", "points_dropped": "points dropped", "support": "support",
        "open_concepts": "open concepts", "commonest_concept": "commonest concept (DB)", "of_neurons": "neurons with it",
    }  # fmt: skip
    return [
        Plot("layers", "Summaries by layer", plots.layers(rows, work.footer(n))),
        Table(
            "layers", "Layer by layer", rows, columns=columns, shares=("support",),
            note="Points, support and open concepts: means per neuron. Constant: the same activation on every clip.",
        ),
    ]  # fmt: skip


def outputs(work: Work) -> Sequence[Block]:
    """Table 6, with the sounds."""
    rows = neurons.outputs(
        work.engine, work.network, dissection=work.dissection, per_layer=work.options.per_layer, seed=work.options.seed
    )
    with db.reading(work.engine) as session:
        sounds = neurons.sounds_of(session, work.about, [row["neuron"] for row in rows])
    for clips in sounds.values():
        add_sounds(work.store, clips)
    computed = [method for method in neurons.METHODS if method in work.about.methods]
    absent = [neurons.METHODS[method] for method in neurons.METHODS if method not in computed]
    each = "One neuron" if work.options.per_layer == 1 else f"{work.options.per_layer} neurons"
    return [
        Outputs(rows, sounds, computed),
        Table("neurons", "The same without sound", rows, folded=True),
        Text(
            f"{each} of each layer, drawn at random with seed {work.options.seed} from all its neurons."
            + (
                f" Not computed: {', '.join(absent)}; see andp dissect --help for the models they need."
                if absent
                else ""
            )
        ),
    ]


def pipeline(work: Work) -> Sequence[Block]:
    """Figure 7 for the neurons that were asked for, else some drawn at random."""
    found = neurons.stories(
        work.engine, work.network, work.options.neurons, dissection=work.dissection, seed=work.options.seed
    )
    for story in found:
        add_sounds(work.store, [*story.high, *story.low])
    if work.options.neurons:
        how = "These neurons were asked for."
    else:
        how = (
            "Hidden neurons of which calibration kept some points and dropped others, drawn at random with seed "
            f"{work.options.seed}, each from another layer."
        )
    return [Text(how if found else "No hidden neuron has points that were kept and points that were dropped."),
            Stories(found)]  # fmt: skip


def stories(found: Sequence[Story], store: Store) -> Sequence[Block]:
    """Neurons on a page of their own."""
    for story in found:
        add_sounds(store, [*story.high, *story.low])
    return [Stories(found)]


def add_sounds(store: Store, clips: Sequence[Mapping[str, Any]]) -> None:
    """Take the files of exemplars into the page."""
    for clip in clips:
        store.add(clip["clip_id"], clip["root"], clip["path"], clip["label"], clip["sha256"])
