"""The sections on unlearning: Table 4, Figure 10 and the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from and_platform.errors import AndpError, NotFoundError
from and_platform.services.experiments import Subject
from and_platform.services.report.content import Block, Plot, Rows, Table, Text
from and_platform.services.report.work import Work, missing

_QUICK_SEEDS = (0,)
_MAIN = "open"
"""The strategy that the paper is about."""


def unlearning(work: Work) -> Sequence[Block]:
    """Table 4, and Figure 10 for the class with the largest gap."""
    from and_platform.plots import report as own
    from and_platform.plots import unlearning as plots
    from and_platform.services.unlearning import tables

    found: list[Block] = []
    rows: Rows = []
    for about in work.abouts:
        try:
            table = _table4(work, about)
        except AndpError as error:
            found.append(missing(error, about.network if work.several else None))
            continue
        rows += [{"chosen_by": plots.name(row["strategy"]), **row} for row in table]
        if work.several:
            continue
        found.append(Plot("unlearning", "What the target class and the others lose, by strategy", plots.table4(table)))
        found += _figure10(work, about, table)
    if not rows:
        return found
    if work.several:
        n = f"{rows[0]['held_out_clips']:,} held-out clips, {max(row['targets'] for row in rows):,} target classes"
        drawn = own.unlearning(rows, f"{work.footer(n)} · bars: 95 % bootstrap intervals")
        found.insert(0, Plot("unlearning", "What the target class and the others lose, by strategy", drawn))
    columns = {
        "network": "network", "chosen_by": "neurons chosen by", "targets": "classes", "seeds": "seeds", "neurons": "neurons",
        "d_a": "dA", "d_r": "dR", "gap": "gap dR − dA",
        "target_accuracy_after": "target: accuracy after", "rest_accuracy_after": "others: accuracy after",
    }  # fmt: skip
    printed, notes = tables.printed()
    printed = [{"network": row["network"], "chosen_by": plots.name(row["strategy"]), **row} for row in printed]
    told = {"chosen_by": "neurons chosen by", "neurons": "neurons", "d_a": "dA", "d_r": "dR", "gap": "gap dR − dA"}
    first = rows[0]
    before = {key: first[f"{key}_accuracy_before"] for key in ("target", "rest")}
    intact = " and ".join(
        f"{100 * value:.1f} % on {'the target classes' if key == 'target' else 'the others'}"
        for key, value in before.items()
        if value is not None
    )
    return [
        Table(
            "unlearning", "By strategy", rows, columns=work.columns(columns),
            shares=("target_accuracy_after", "rest_accuracy_after"),
            note="Changes of the mean logit of the true class on held-out clips, means over target classes with bootstrap "
            "95 % intervals."
            + ("" if work.several or not intact else f" Intact, the network is right on {intact}."),
        ),
        Table("unlearning-paper", "The paper's Table 4: other networks, on ESC-50", printed,
              columns={"network": "network", **told}, published=True, note=" ".join(notes)),
        *found,
    ]  # fmt: skip


def _table4(work: Work, about: Subject) -> Rows:
    """Table 4 as it is stored; made where it is not and may be."""
    from and_platform.services.unlearning import runs, tables

    try:
        rows = tables.table4(work.engine, about.network, about.dissection_id)
        if rows and rows[0]["status"] == "complete" and _all_classes(work, about, rows):
            return rows
    except NotFoundError:
        rows = []
    if work.options.stored_only:
        raise work.not_stored(f"andp unlearn run {about.network} --each-class", about)
    runs.run(
        work.engine, about.network, each_class=True, dissection=about.dissection_id, progress=work.progress,
        seeds=_QUICK_SEEDS if work.options.quick else runs.SEEDS,
    )  # fmt: skip
    return tables.table4(work.engine, about.network, about.dissection_id)


def _all_classes(work: Work, about: Subject, rows: Rows) -> bool:
    """Whether each class with held-out clips was a target: the run of one concept is no Table 4."""
    from and_platform.services.unlearning import tables

    one = tables.by_target(work.engine, rows[0]["experiment"])[0]
    ablation = tables.find(work.engine, about.network, one["target"], one["strategy"], dissection=about.dissection_id)
    with_clips = sum(bool(row["clips"]) for row in tables.classes(work.engine, ablation))
    return bool(max(row["targets"] for row in rows) >= with_clips)


def _figure10(work: Work, about: Subject, table: Rows) -> list[Block]:
    """Figure 10 for the class with the largest gap, and what each class lost."""
    from and_platform.plots import unlearning as plots
    from and_platform.services.unlearning import tables

    cells = tables.by_target(work.engine, table[0]["experiment"])
    best = _largest(cells)
    if best is None:
        return []
    ablation = tables.find(work.engine, about.network, best["target"], best["strategy"], dissection=about.dissection_id)
    classes = tables.classes(work.engine, ablation)
    name = plots.name(best["strategy"])
    cells = [{"chosen_by": plots.name(cell["strategy"]), **cell} for cell in cells]
    columns = {"chosen_by": "neurons chosen by", "target": "target", "seed": "seed", "n_neurons": "neurons", "d_a": "dA",
               "d_r": "dR", "gap": "gap dR − dA"}  # fmt: skip
    lost = {"class": "class", "clips": "clips", "logit_before": "logit before", "logit_after": "after",
            "probability_before": "probability before", "probability_after": "after", "accuracy_before": "accuracy before",
            "accuracy_after": "after"}  # fmt: skip
    return [
        Text(
            f"Below, “{best['target']}” with neurons chosen by {name}: of all classes the one with the largest gap, "
            f"{best['gap']:.2f}. It was chosen by its result, and is no typical class: the mean stands in the table above."
        ),
        Plot("unlearning-class", f"Confidence by class, before and after unlearning “{best['target']}”", plots.figure10(classes)),
        Table("unlearning-class", "The same as a table", classes, columns=lost,
              shares=("accuracy_before", "accuracy_after"), folded=True),
        Table("unlearning-targets", "Every target class", cells, columns=columns, searchable=True, folded=True),
    ]  # fmt: skip


def _largest(cells: Rows) -> dict[str, Any] | None:
    """The target with the largest gap by the main strategy, else by any that chooses by concept."""
    there = [cell for cell in cells if cell["gap"] is not None and cell["n_neurons"]]
    chosen = [cell for cell in there if cell["strategy"] == _MAIN] or [cell for cell in there if cell["seed"] is None]
    return max(chosen, key=lambda cell: float(cell["gap"]), default=None)


def sweep(work: Work) -> Sequence[Block]:
    """The class with the largest gap along the number of neurons; every class's whole plan beside random draws."""
    from and_platform.plots import unlearning as plots
    from and_platform.services.unlearning import sweep as service
    from and_platform.services.unlearning import tables

    try:
        table = tables.table4(work.engine, work.network, work.dissection)
        best = _largest(tables.by_target(work.engine, table[0]["experiment"]))
    except NotFoundError:
        best = None
    rows = _sweep_rows(work, best)
    found: list[Block] = []
    points: dict[str, Rows] = {}
    for row in rows:
        points.setdefault(row["concept"], []).append(row)
    one = (
        best["target"]
        if best and len(points.get(best["target"], ())) > 1
        else max(points, key=lambda c: len(points[c]))
    )
    if len(points[one]) > 1:
        told = (
            "the class with the largest gap in Table 4"
            if best and one == best["target"]
            else "the class with most points"
        )
        found.append(Plot("sweep", f"“{one}”, {told}: the more neurons are ablated", plots.sweep(points[one])))
    if len(points) > 1:
        margin = service.margin(rows)
        if margin is not None:
            found.append(Text(
                f"Over {margin['targets']} classes the gap of the whole choice is {_signed(margin['gap'])}, that of as many "
                f"neurons drawn from the same layers {_signed(margin['draws_gap'])}: a margin of {_signed(margin['margin'])}"
                + ("" if margin["low"] is None else f" [{_signed(margin['low'])}, {_signed(margin['high'])}]")
                + f" (bootstrap 95 % interval over classes). The gap of {margin['above']} of {margin['targets']} classes is "
                f"above that of 97.5 % of their {margin['draws']} draws; chance alone would give {margin['targets'] * 0.025:.1f}."
            ))  # fmt: skip
        found.append(Plot("sweep-classes", "Each class beside random draws from the same layers", plots.sweep(rows)))
    columns = {"concept": "target", "n_neurons": "neurons", "d_a": "dA", "d_r": "dR", "gap": "gap dR − dA",
               "draws_gap": "gap of draws", "margin": "margin", "p": "p", "draws": "draws"}  # fmt: skip
    found.append(
        Table("sweep", "Every point", rows, columns=columns, searchable=True, folded=True,
              note="The draws' interval holds 95 % of them; p: share of draws with at least this gap, (1 + count) / (1 + draws).")
    )  # fmt: skip
    return found


def _sweep_rows(work: Work, best: dict[str, Any] | None) -> Rows:
    """The sweep as it is stored; made where it is not and may be."""
    from and_platform.services.unlearning import sweep as service

    if not work.options.stored_only:
        if best is not None:
            service.run(
                work.engine, work.network, concept=best["target"], strategy=best["strategy"], dissection=work.dissection,
                progress=work.progress,
            )  # fmt: skip
        if best is None or not work.options.quick:
            service.run(
                work.engine,
                work.network,
                each_class=True,
                points=(),
                dissection=work.dissection,
                progress=work.progress,
            )
    strategy = best["strategy"] if best else _MAIN
    return service.rows(work.engine, work.network, strategy=strategy, dissection=work.dissection)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
