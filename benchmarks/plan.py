"""What a large study will take, from what `benchmarks/scale.py` measured.

    python benchmarks/plan.py docs/explanation/figures/scale.json --neurons 1000000 --clips 100000 --workers 100

Prints tables in Markdown. Each row says what was measured, by how much it is multiplied, and what comes out. Nothing is fitted:
bytes and seconds are those of the largest size of the series, and grow in proportion with neurons x clips, or with neurons.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from and_platform.services.activations import BLOCK, STRETCH
from and_platform.services.distribution.steps import CLIPS, DESCRIBED, NEURONS, PROMPTS, TEXTS

Line = tuple[str, str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="what `scale.py --results` wrote, with `--dissected`")
    parser.add_argument("--neurons", type=int, default=1_000_000)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--concepts", type=int, default=500)
    parser.add_argument("--layer-units", type=int, default=4_096)
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text())
    show("Rows and bytes", ("what", "measured", "times", "plan"), storage(measured, options))
    show("WAL and COPY", ("what", "measured", "times", "plan"), writing(measured, options))
    show("Time of the database's steps", ("step", "measured", "times", "plan"), time(measured, options))
    show("Messages", ("step", "a unit is", "of", "units"), messages(measured, options))


def largest(measured: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = max(measured["series"], key=lambda row: row["payload"])
    return row


def storage(measured: dict[str, Any], options: argparse.Namespace) -> Iterable[Line]:
    """Each table's rows and bytes, heap and indexes."""
    row, n, c = largest(measured), options.neurons, options.clips
    kept = 2 if measured["functions"] else 0

    def table(name: str, rows: float, of: str) -> tuple[Line, float]:
        found = row["relations"][name]
        each = (found["heap"] + found["indexes"]) / found["rows"]
        told = f"{found['heap'] / found['rows']:,.0f} + {found['indexes'] / found['rows']:,.0f} B a row"
        return (f"`{name}`", told, f"{of} = {count(rows)} rows", size(each * rows)), each * rows

    n_stretches = math.ceil(c / STRETCH)
    parts = [
        table("activations", n * n_stretches, f"neurons x {n_stretches} stretches"),
        table("exemplars", 2 * n, "neurons x 2 sides"),
        table("neuron_statistics", n, "neurons"),
        table("concept_matches", n * kept * 5, f"neurons x {kept} methods x 5"),
    ]
    total = sum(part for _, part in parts)
    yield from (line for line, _ in parts)
    landed = row["landed"]["heap"] / (2 * row["neurons"] * min(STRETCH, row["clips"]))
    yield (
        "`activation_blocks`, at most", f"{landed:.2f} B a byte landed", f"a stretch of all neurons = {size(2 * n * STRETCH)}",
        size(landed * 2 * n * STRETCH),
    )  # fmt: skip
    yield "`activation_cubes`, if kept", "4 B a value", "neurons x clips", size(4 * n * c)
    counts, tables = measured["dissected"]["counts"], measured["dissected"]["tables"]
    dissected = counts["summaries"] // 2
    by_neuron = (
        "summaries", "summary_points", "calibrations", "calibrated_points", "neuron_terms", "summary_embeddings", "neurons",
    )  # fmt: skip
    for name in by_neuron:
        each = tables[name] / (counts["neurons"] if name == "neurons" else dissected)
        total += each * n
        yield f"`{name}`", f"{each:,.0f} B a neuron, indexes included", "neurons", size(each * n)
    each = (
        sum(tables[name] for name in ("clips", "captions", "caption_sentences", "probing_set_clips")) / counts["clips"]
    )
    total += each * c
    yield "clips, captions and sentences", f"{each:,.0f} B a clip", "clips", size(each * c)
    yield (
        "`clip_concept_scores`",
        "2 x 4 B a score",
        f"clips x {options.concepts} concepts x {kept} methods",
        size(8 * c * options.concepts * kept),
    )
    total += 8 * c * options.concepts * kept
    units = measured["copy"]["work_units"]
    n_units = sum(number for *_, number in batches(measured, options))
    yield (
        "`work_units`",
        f"{units['bytes'] / units['rows']:,.0f} B a unit",
        f"{n_units:,} units",
        size(units["bytes"] / units["rows"] * n_units),
    )
    yield "**together**, without cubes and landing", "", "", f"**{size(total)}**"
    for built in measured["indexes"][-1:]:
        each = built["index_bytes"] / built["vectors"]
        yield "of it: HNSW index of summaries", f"{each:,.0f} B a vector of {built['dim']}", "neurons", size(each * n)


def writing(measured: dict[str, Any], options: argparse.Namespace) -> Iterable[Line]:
    """WAL a byte of activations, and the rates of COPY on one connection."""
    row, payload = largest(measured), 2 * options.neurons * options.clips
    least = min(measured["series"], key=lambda row: sum(row["wal"].values()) / row["payload"])
    for name, of in (("WAL, while no checkpoint comes between", least), ("WAL, with a checkpoint every 2 GB", row)):
        steps = ("land", "fold", "complete", "read")
        told = ", ".join(f"{step} {of['wal'][step] / of['payload']:.2f}" for step in steps)
        each = sum(of["wal"][step] for step in steps) / of["payload"]
        yield name, f"{each:.1f} B a byte ({told})", size(payload), size(each * payload)
    wide, narrow = measured["copy"]["activations"], measured["copy"]["concept_matches"]
    rate = wide["rows"] * 4_000 / wide["seconds"]["copy"]
    yield "COPY of wide rows (activations)", f"{rate / 1e6:,.0f} MB/s", size(payload), hours(payload / rate)
    rate = narrow["rows"] / narrow["seconds"]["copy"]
    rows = options.neurons * 10
    yield "COPY of narrow rows (matches)", f"{rate:,.0f} rows/s", f"{count(rows)} rows", hours(rows / rate)


def time(measured: dict[str, Any], options: argparse.Namespace) -> Iterable[Line]:
    """Seconds of one process, in proportion with neurons x clips."""
    row, payload = largest(measured), 2 * options.neurons * options.clips
    factor = payload / row["payload"]
    total = 0.0
    for step in ("land", "fold", "complete", "match"):
        total += row["seconds"][step] * factor
        yield (
            step,
            f"{row['seconds'][step]:.1f} s of {size(row['payload'])}",
            f"{factor:.0f}",
            hours(row["seconds"][step] * factor),
        )
    yield "**together**, one process after the other", "", "", f"**{hours(total)}**"
    for memory in dict.fromkeys(built["memory_setting"] for built in measured["indexes"]):
        built = [built for built in measured["indexes"] if built["memory_setting"] == memory][-1]
        each = built["seconds"]["build"] / built["vectors"]
        yield (
            f"HNSW index, maintenance_work_mem {memory}", f"{each * 1e3:.2f} ms a vector at {built['vectors']:,}",
            count(options.neurons), hours(each * options.neurons),
        )  # fmt: skip


def batches(measured: dict[str, Any], options: argparse.Namespace) -> list[tuple[str, str, str, int]]:
    """Units of each step: (step, what a unit is, of how many, units)."""
    n, c = options.neurons, options.clips
    groups = math.ceil(math.ceil(n / options.layer_units) / max(1, NEURONS // options.layer_units))
    counts = measured["dissected"]["counts"]
    points = round(counts["summary_points"] / (counts["summaries"] // 2) * n)
    layers = f"layers of {NEURONS:,} neurons together"
    found = [
        ("record", f"{BLOCK} clips", f"{c:,} clips", math.ceil(c / BLOCK)),
        ("fold", f"a stretch of {layers}", f"{math.ceil(c / STRETCH)} stretches", groups * math.ceil(c / STRETCH)),
        ("exemplars", layers, f"{n:,} neurons", groups),
        ("caption, by a captioner", f"{CLIPS} clips", f"{c:,} clips", math.ceil(c / CLIPS)),
        ("caption, by the describer", f"{DESCRIBED:,} clips", f"{c:,} clips", math.ceil(c / DESCRIBED)),
        ("encode captions", f"{TEXTS} texts", f"{c:,} captions", math.ceil(c / TEXTS)),
        ("encode sounds", f"{CLIPS} clips", f"{c:,} clips", math.ceil(c / CLIPS)),
        ("score, match", layers, "2 methods", 2 + 2 * groups),
        ("ask for summaries", f"{PROMPTS} prompts", f"{2 * n:,} prompts", math.ceil(2 * n / PROMPTS)),
        ("summarise, calibrate, terms, vectors", layers, "4 steps", 4 * groups),
        (
            "encode points, tag",
            f"{TEXTS} texts",
            f"at most {count(points)} points, 2 steps",
            2 * math.ceil(points / TEXTS),
        ),
        ("ask for concepts (icl)", f"{PROMPTS} prompts", f"{n:,} prompts", math.ceil(n / PROMPTS)),
    ]
    return found


def messages(measured: dict[str, Any], options: argparse.Namespace) -> Iterable[Line]:
    """Messages of each step, and their rate."""
    found = batches(measured, options)
    for step, unit, of, number in found:
        yield step, unit, of, f"{number:,}"
    total = sum(number for *_, number in found)
    yield "**together**", "", "", f"**{total:,}**"
    seconds = 30
    yield (
        "rate, if a unit takes 30 s", f"{options.workers} workers", "",
        f"{options.workers / seconds:.1f} a second, for {hours(total * seconds / options.workers)}",
    )  # fmt: skip


def show(title: str, header: tuple[str, ...], lines: Iterable[Line]) -> None:
    print(f"\n### {title}\n")
    print(f"| {' | '.join(header)} |")
    print("| --- | --- | --- | ---: |")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def size(value: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{value / scale:,.{0 if value >= 100 * scale else 1}f} {unit}"
    return f"{value / 1e3:,.0f} kB"


def count(value: float) -> str:
    return f"{value / 1e6:,.1f} M" if value >= 1e6 else f"{value:,.0f}"


def hours(seconds: float) -> str:
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:,.0f} s"


if __name__ == "__main__":
    main()
