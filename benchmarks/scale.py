"""Time, bytes and memory of a recording and its matches, by the number of neurons and of clips.

    python benchmarks/scale.py --neurons 5000 20000 55346 --clips 2000 6000 20000
    python benchmarks/scale.py --figure docs/explanation/figures/scale.svg --results docs/explanation/figures/scale.json

Makes an embedded server in a temporary folder. For each number of neurons and each of clips, a process of its own writes
synthetic float16 activations in blocks of 250 clips, as recording does, folds them, completes the layers, reads all back,
and matches them with random clip-concept scores, by the functions that a dissection uses; then the recording is dropped.
Prints a table: seconds, WAL and bytes of each step, and the highest memory of the process. The series has to be linear: the
table ends with the exponent of each step's time in the amount of work. Nothing is read from elsewhere, and nothing stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from pgvector import Vector

from and_platform import db
from and_platform.config import Settings
from and_platform.embedded import EmbeddedServer
from and_platform.schema import (
    Clip,
    Concept,
    ConceptSet,
    Dataset,
    Encoder,
    Layer,
    Network,
    ProbingSet,
    ProbingSetClip,
)
from and_platform.services import activations, embed, match, provenance, record, storage
from and_platform.services.provenance import RecipePlan
from and_platform.services.texts import text_ids

HEAD = 50
"""Units of the last layer, as of a classifier of 50 classes."""

STEPS = ("land", "fold", "complete", "read", "match", "drop")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, nargs="+", default=[5_000, 20_000, 55_346])
    parser.add_argument("--clips", type=int, nargs="+", default=[2_000, 6_000, 20_000])
    parser.add_argument("--layer-units", type=int, default=3_072, help="units of a layer; the last one has the rest")
    parser.add_argument("--concepts", type=int, default=50)
    parser.add_argument("--functions", nargs="+", default=["cos_cubed", "soft_wpmi"], help="similarity functions")
    parser.add_argument("--cubes", action="store_true", help="keep cubed activations too")
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000], help="sizes of HNSW indexes to build")
    parser.add_argument(
        "--build-memory", nargs="+", default=["256MB"], help="maintenance_work_mem of the server, for them"
    )
    parser.add_argument(
        "--dissected", help="URL of a database with one dissection: what its other tables take a neuron"
    )
    parser.add_argument("--dim", type=int, default=384, help="dimensions of those vectors")
    parser.add_argument("--results", type=Path, help="write what was measured (JSON)")
    parser.add_argument("--figure", type=Path, help="draw time and size against work (.svg, .png, .pdf)")
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)  # the child processes' server
    options = parser.parse_args()
    if options.home:
        (n_neurons,), (n_clips,) = options.neurons, options.clips
        print(json.dumps(measure(db.connect(Settings(home=options.home)), options, n_neurons, n_clips)))
        return
    home = Path(tempfile.mkdtemp(prefix="andpb"))
    home.chmod(0o711)  # as root the server has a user of its own, who passes through
    try:
        db.connect(Settings(home=home)).dispose()
        series = [
            apart(home, options, n_neurons, n_clips)
            for n_neurons, n_clips in itertools.product(options.neurons, options.clips)
        ]
        engine = db.connect(Settings(home=home))
        rates = copying(engine)
        indexes = [index(engine, n, options.dim, memory) for memory in options.build_memory for n in options.vectors]
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)
    results = {
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(), "layer_units": options.layer_units,
        "concepts": options.concepts, "functions": options.functions, "series": series, "copy": rates, "indexes": indexes,
        "dissected": dissected(options.dissected) if options.dissected else None,
    }  # fmt: skip
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    if options.figure:
        draw(results, options.figure)


def apart(home: Path, options: argparse.Namespace, n_neurons: int, n_clips: int) -> Row:
    """One size in a process of its own, so that its highest memory is its own."""
    command = [
        sys.executable, __file__, "--home", str(home), "--neurons", str(n_neurons), "--clips", str(n_clips),
        "--layer-units", str(options.layer_units), "--concepts", str(options.concepts),
        "--functions", *options.functions, *(["--cubes"] if options.cubes else []),
    ]  # fmt: skip
    print(f"{n_neurons:,} neurons x {n_clips:,} clips …", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout)
    told = ", ".join(f"{step} {row['seconds'][step]:.1f} s" for step in STEPS)
    print(f"  {told}; {row['peak_mb']:,.0f} MB of memory", file=sys.stderr, flush=True)
    return row


# ---------------------------------------------------------------------- one size


def measure(engine: sa.Engine, options: argparse.Namespace, n_neurons: int, n_clips: int) -> Row:
    """Record, complete, read, match and drop one size."""
    name = f"{n_neurons} x {n_clips}"
    layers, probing, recorded, recording_id = prepare(engine, name, n_neurons, n_clips, options.layer_units)
    row: Row = {
        "neurons": n_neurons, "clips": n_clips, "payload": 2 * n_neurons * n_clips, "seconds": {}, "cpu": {}, "wal": {},
        "memory": {"before": peak_mb()},
    }  # fmt: skip

    rng = np.random.default_rng(0)
    with db.reading(engine) as session:
        blocks = activations.blocks_of(session, recording_id)
    noise = {layer.id: rng.normal(size=(blocks.size, layer.n_units)).astype(np.float16) for layer in layers}
    with step(engine, row, "land", each=True) as timed:
        for block in range(len(blocks)):
            n = blocks.bounds(block)[1]
            # Other values in each block, without drawing 10^9 numbers.
            values = {key: np.roll(of_layer, 7 * block, axis=0)[:n] for key, of_layer in noise.items()}
            with timed(), db.transaction(engine) as session:
                activations.land(session, recording_id, block, values)
            del values
            if blocks.ends_stretch(block):  # as recording does: what has landed is folded soon
                if "landed" not in row:
                    row["landed"] = relation(engine, "activation_blocks", recording_id)
                with step(engine, row, "fold"):
                    record.fold_stretch(engine, recording_id, layers, blocks.stretch(block), n_clips)
    del noise
    with step(engine, row, "complete"):
        for layer in layers:
            with db.transaction(engine) as session:
                activations.complete_layer(session, recording_id, layer, "first", n_clips, cubes=options.cubes)
    record.analyze(engine, recording_id)
    with step(engine, row, "read"), db.reading(engine) as session:
        for layer in layers:
            for _ in activations.read_tiles(session, recording_id, layer, n_clips):
                pass

    scoring_id, score = scores(engine, name, probing, options.concepts)
    recipes = {function: match.plan_match(recorded, score, function, None) for function in options.functions}
    with step(engine, row, "match"):
        match.match(engine, recording_id, scoring_id, layers, recipes)
    row["peak_mb"] = peak_mb()
    with step(engine, row, "resume"):
        assert not any(
            activations.missing_layers(session, recording_id, block, [layer.id for layer in layers])
            for block in blocks
            for session in sessions(engine)
        )
        assert match.match(engine, recording_id, scoring_id, layers, recipes) == 0
    with step(engine, row, "sql"), db.reading(engine) as session:
        best = sa.text("SELECT count(*) FROM match_concepts(:recording, :name, 'cos', 5, layer => 'head')")
        assert session.scalar(best, {"recording": recording_id, "name": name}) == 5 * HEAD
    row["relations"] = {table: relation(engine, table, recording_id) for table in activations.PARTITIONED}
    with db.reading(engine) as session:
        row["database"] = session.scalar(sa.text("SELECT pg_database_size(current_database())"))
    with step(engine, row, "drop"):
        row["freed"] = record.drop(engine, recording_id)
    return row


def sessions(engine: sa.Engine) -> Iterator[Any]:
    with db.reading(engine) as session:
        yield session


def prepare(
    engine: sa.Engine, name: str, n_neurons: int, n_clips: int, layer_units: int
) -> tuple[list[Layer], ProbingSet, RecipePlan, int]:
    """Rows of a network and of a data set of the given sizes, and an empty recording."""
    with db.transaction(engine) as session:
        network = Network(
            name=name, source="factory", location="-", revision=name, architecture="-", sample_rate=1,
            n_parameters=0, classes=[], extra={},
        )  # fmt: skip
        dataset = Dataset(name=name, root="/", kind="folder")
        session.add_all([network, dataset])
        session.flush()
        head = min(HEAD, n_neurons // 2)
        widths = [min(layer_units, n_neurons - head - first) for first in range(0, n_neurons - head, layer_units)]
        layers = [
            Layer(network_id=network.id, position=i, name=f"b{i:02d}.ff_in", module_path="-", block=i, kind="ff_in",
                  n_units=n_units, pooling="first", is_default=True)
            for i, n_units in enumerate(widths)
        ]  # fmt: skip
        if head:
            layers.append(
                Layer(network_id=network.id, position=len(widths), name="head", module_path="-", kind="head", n_units=head,
                      pooling="network", is_default=True)
            )  # fmt: skip
        probing = ProbingSet(dataset_id=dataset.id, sha256=name, n_clips=n_clips)
        session.add_all([*layers, probing])
        session.flush()
        session.execute(
            sa.text(
                "INSERT INTO neurons (layer_id, unit)"
                " SELECT l.id, u FROM layers l, generate_series(0, l.n_units - 1) u WHERE l.network_id = :id"
            ),
            {"id": network.id},
        )
        session.execute(
            sa.insert(Clip),
            [
                {"dataset_id": dataset.id, "path": str(i), "sha256": str(i), "sample_rate": 1, "channels": 1, "duration_s": 1,
                 "mean_abs_amplitude": 0, "rms": 0, "peak": 0, "silence_share": 0}
                for i in range(n_clips)
            ],
        )  # fmt: skip
        clips = session.scalars(sa.select(Clip.id).where(Clip.dataset_id == dataset.id).order_by(Clip.id)).all()
        session.execute(
            sa.insert(ProbingSetClip),
            [{"probing_set_id": probing.id, "position": i, "clip_id": clip} for i, clip in enumerate(clips)],
        )
        recorded = RecipePlan("record", name, "0", {})
        return layers, probing, recorded, record.ensure_recording(session, network.id, probing.id, recorded)


def scores(engine: sa.Engine, name: str, probing: ProbingSet, n_concepts: int) -> tuple[int, match.ScorePlan]:
    """Random clip-concept scores, stored as a dissection stores them."""
    p = np.random.default_rng(1).normal(size=(probing.n_clips, n_concepts)).astype(np.float32) * 3
    p = np.exp(p - p.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    with db.transaction(engine) as session:
        concepts = ConceptSet(name=name, source="-", sha256=name)
        session.add(concepts)
        session.flush()
        names = [f"concept {i}" for i in range(n_concepts)]
        ids = text_ids(session, names)
        entries = [
            Concept(concept_set_id=concepts.id, position=i, name=concept, original_name=concept, text_id=ids[concept])
            for i, concept in enumerate(names)
        ]
        session.add_all(entries)
        session.flush()
        plan = match.ScorePlan("db", None, RecipePlan("score", name, "0", {}), None)  # type: ignore[arg-type]
        valid = np.ones(probing.n_clips, bool)
        return match._store(session, plan, probing, concepts, [entry.id for entry in entries], p, valid), plan


@contextmanager
def step(engine: sa.Engine, row: Row, name: str, *, each: bool = False) -> Iterator[Any]:
    """Add what the block takes, in seconds, CPU seconds of this process and bytes of WAL, to a step; with `each`, what the
    blocks of the context's value take."""

    @contextmanager
    def timed() -> Iterator[None]:
        wal, began, cpu = written(engine), time.perf_counter(), time.process_time()
        yield
        took = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "wal": written(engine) - wal}
        for key, value in took.items():
            row[key][name] = row[key].get(name, 0) + value
        row["memory"][name] = peak_mb()

    if each:
        yield timed
    else:
        with timed():
            yield timed


def written(engine: sa.Engine) -> int:
    """Bytes of WAL that the server has written since it was made."""
    with db.reading(engine) as session:
        return int(session.execute(sa.text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")).scalar_one())


def relation(engine: sa.Engine, table: str, recording_id: int) -> Row:
    """Rows and bytes of a recording's partition."""
    name = f"{db.RUNTIME_PREFIX}{table}_{recording_id}"
    with db.reading(engine) as session:
        found = session.execute(
            sa.text(
                f"SELECT (SELECT count(*) FROM {name}) AS rows, pg_table_size(:name) AS heap, pg_indexes_size(:name) AS indexes"
            ),
            {"name": name},
        ).one()
    return dict(found._mapping)


def peak_mb() -> float:
    """The highest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------- rates and sizes of rows


def copying(engine: sa.Engine) -> dict[str, Row]:
    """COPY alone, without reading or computing: wide rows (activations), narrow ones (matches), and rows of work."""
    print("COPY …", file=sys.stderr, flush=True)
    _, _, _, recording_id = prepare(engine, "copy", 100, 1, 100)
    narrow, wide = 1_000_000, 100_000
    rng = np.random.default_rng(3)
    tables: dict[str, tuple[int, dict[str, tuple[str, Any]]]] = {
        "concept_matches": (
            narrow,
            {
                "recording_id": ("int8", recording_id), "recipe_id": ("int8", 1),
                "neuron_id": ("int8", np.repeat(np.arange(narrow // 5), 5)),
                "rank": ("int2", np.tile(np.arange(5), narrow // 5)),
                "concept_id": ("int8", rng.integers(50, size=narrow)),
                "score": ("float4", rng.random(narrow).astype(np.float32)),
            },
        ),
        "activations": (
            wide,
            {
                "recording_id": ("int8", recording_id), "neuron_id": ("int8", np.arange(wide)), "stretch": ("int4", 0),
                "values": ("halfvec", np.broadcast_to(rng.normal(size=2_000).astype(np.float16), (wide, 2_000))),
            },
        ),
    }  # fmt: skip
    rates = {}
    for table, (n, columns) in tables.items():
        row: Row = {"rows": n, "seconds": {}, "cpu": {}, "wal": {}, "memory": {}}
        with step(engine, row, "copy"), db.transaction(engine) as session:
            db.copy_columns(session, table, columns)
        row |= {"relation": relation(engine, table, recording_id)}
        rates[table] = row
    record.drop(engine, recording_id)
    n = 20_000
    with db.transaction(engine) as session:
        session.execute(
            sa.text(
                "WITH made AS (INSERT INTO runs (command, arguments, versions, machine) VALUES ('x', '{}', '{}', '{}')"
                " RETURNING id), step AS (INSERT INTO run_steps (run_id, step, ordinal, stage, queue, unit)"
                " SELECT id, 'record', 0, 'record', 'gpu', 'clips' FROM made RETURNING run_id)"
                " INSERT INTO work_units (run_id, step, queue, key, payload, size, state, started_at, finished_at, seconds)"
                " SELECT run_id, 'record', 'gpu', 'ask_summaries:12345:' || g, '{\"layer\": 12, \"units\": [64, 128]}', 64,"
                " 'done', now(), now(), 1 FROM step, generate_series(1, :n) g"
            ),
            {"n": n},
        )
        size = session.scalar(sa.text("SELECT pg_total_relation_size('work_units')"))
    return {**rates, "work_units": {"rows": n, "bytes": size}}


def dissected(url: str) -> Row:
    """Bytes of the tables of a database that holds one dissection, indexes included, beside those measured here."""
    engine = db.make_engine(db.database_url(Settings(database_url=url)))
    with db.reading(engine) as session:
        counts = {
            name: session.scalar(sa.text(f"SELECT count(*) FROM {name}"))
            for name in ("neurons", "clips", "summary_points", "summaries", "texts", "dissections")
        }
        tables = {table.name: table.total_bytes for table in storage.tables(session) if table.partition is None}
    assert counts["dissections"] == 1
    return {"counts": counts, "tables": {name: size for name, size in tables.items() if size > 1e5}}


# ---------------------------------------------------------------------- vector index


def index(engine: sa.Engine, n_vectors: int, dim: int, memory: str) -> Row:
    """Build an HNSW index over unit vectors of summaries, online, as `andp db index` does."""
    print(f"HNSW of {n_vectors:,} vectors of {dim}, {memory} …", file=sys.stderr, flush=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER SYSTEM SET maintenance_work_mem = '{memory}'")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    engine.dispose()
    name = f"hnsw {n_vectors} x {dim}, {memory}"
    layers, *_ = prepare(engine, name, n_vectors, 1, n_vectors)
    row: Row = {"vectors": n_vectors, "dim": dim, "seconds": {}, "cpu": {}, "wal": {}, "memory": {}}
    # A thousand directions with noise around them: sentences of neurons gather, they do not fill the sphere.
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(1_000, dim))
    with db.transaction(engine) as session:
        recipe = provenance.recipe_id(session, RecipePlan("encode", name, "0", {}))
        made = Encoder(recipe_id=recipe, name=name, dim=dim, scale=1.0)
        session.add(made)
        session.flush()
        encoder = made.id
        session.execute(
            sa.text(
                "INSERT INTO summaries (recipe_id, neuron_id, side, text)"
                " SELECT :recipe, n.id, s.side, '' FROM neurons n, (VALUES ('high'), ('low')) AS s (side)"
                " WHERE n.layer_id = ANY (:layers)"
            ),
            {"recipe": recipe, "layers": [layer.id for layer in layers]},
        )
        session.execute(sa.text("ANALYZE summaries"))  # or the join below goes through all pairs
        ids = session.scalars(
            sa.text(
                "INSERT INTO calibrations (recipe_id, neuron_id, high_summary_id, low_summary_id, summary, n_kept, n_dropped)"
                " SELECT :recipe, h.neuron_id, h.id, l.id, '', 0, 0 FROM summaries h JOIN summaries l"
                " ON l.recipe_id = h.recipe_id AND l.neuron_id = h.neuron_id AND l.side = 'low'"
                " WHERE h.recipe_id = :recipe AND h.side = 'high' RETURNING id"
            ),
            {"recipe": recipe},
        ).all()
    size = sa.text("SELECT pg_total_relation_size('summary_embeddings')")
    with db.reading(engine) as session:
        before = session.scalar(size) or 0
    with step(engine, row, "insert"), db.transaction(engine) as session:
        vectors = centres[rng.integers(len(centres), size=len(ids))] + rng.normal(size=(len(ids), dim)) * 0.5
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        db.copy_rows(
            session, "summary_embeddings", {"encoder_id": "int8", "calibration_id": "int8", "embedding": "vector"},
            ((encoder, key, Vector(vector)) for key, vector in zip(ids, vectors.astype(np.float32), strict=True)),
        )  # fmt: skip
    with db.reading(engine) as session:
        row["table_bytes"] = (session.scalar(size) or 0) - before
    with step(engine, row, "build"):
        assert embed.ensure_summary_index(engine, encoder)
    with db.reading(engine) as session:
        (found,) = embed.summary_indexes(session, encoder)
        row["memory_setting"] = session.scalar(sa.text("SHOW maintenance_work_mem"))
        assert found.valid
        row["index_bytes"] = found.size_bytes
    return row


# ---------------------------------------------------------------------- what is shown


def exponents(series: Sequence[Row]) -> dict[str, float]:
    """The power of the work (neurons x clips) with which the time of each step grows, by least squares of logarithms."""
    work = np.log([row["payload"] for row in series])
    if len(set(work)) < 2:
        return {}
    return {
        name: float(np.polyfit(work, np.log([row["seconds"][name] for row in series]), 1)[0])
        for name in STEPS
        if name != "drop"
    }


def show(results: Row) -> None:
    """The table, in Markdown."""
    print(
        "| neurons | clips | MB | "
        + " | ".join(f"{name}, s" for name in STEPS)
        + " | on disk, MB | WAL, MB | memory, MB |"
    )
    print("| ---: " * (len(STEPS) + 6) + "|")
    for row in results["series"]:
        disk = sum(part["heap"] + part["indexes"] for part in row["relations"].values())
        cells = [f"{row['neurons']:,}", f"{row['clips']:,}", f"{row['payload'] / 1e6:,.0f}"]
        cells += [f"{row['seconds'][name]:,.2f}" for name in STEPS]
        cells += [f"{disk / 1e6:,.0f}", f"{sum(row['wal'].values()) / 1e6:,.0f}", f"{row['peak_mb']:,.0f}"]
        print("| " + " | ".join(cells) + " |")
    found = exponents(results["series"])
    if found:
        print(
            "\ntime grows with neurons x clips to the power of: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items())
        )
    for row in results["indexes"]:
        print(
            f"HNSW of {row['vectors']:,} vectors of {row['dim']} with {row['memory_setting']}: "
            f"{row['seconds']['build']:.1f} s, {row['index_bytes'] / 1e6:.1f} MB"
        )


def draw(results: Row, path: Path) -> None:
    """Time and size against work, both axes logarithmic, with the line of what grows in proportion."""
    from and_platform.plots import style

    @style.styled
    def figure() -> Any:
        drawn, (left, right) = style.new(2, width=9.0, height=4.0)
        series = sorted(results["series"], key=lambda row: row["payload"])
        work = np.array([row["neurons"] * row["clips"] for row in series], float)
        names = [name for name in STEPS if name != "drop"]
        for i, name in enumerate(names):
            seconds = [row["seconds"][name] for row in series]
            left.loglog(work, seconds, "o-", ms=3.5, color=style.colour(i), label=name)
        left.loglog(work, [row["seconds"]["drop"] for row in series], "o:", ms=3.5, color=style.QUIET, label="drop")
        sizes = {
            "values": [row["payload"] / 1e6 for row in series],
            "on disk": [sum(p["heap"] + p["indexes"] for p in row["relations"].values()) / 1e6 for row in series],
            "WAL": [sum(row["wal"].values()) / 1e6 for row in series],
            "memory of the process": [row["peak_mb"] for row in series],
        }
        for i, (name, values) in enumerate(sizes.items()):
            right.loglog(work, values, "o-", ms=3.5, color=style.colour(i), label=name)
        for axes, label in ((left, "seconds"), (right, "MB")):
            low, high = axes.get_ylim()
            anchor = math.sqrt(low * high)
            middle = math.sqrt(work[0] * work[-1])
            axes.loglog(work, anchor * work / middle, "--", lw=1, color=style.QUIET, label="in proportion", zorder=0)
            axes.set_ylim(low, high)
            axes.set_xlabel("neurons x clips")
            axes.set_ylabel(label)
            axes.legend(ncols=2)
        left.set_title("Time")
        right.set_title("Size")
        return drawn

    print(f"wrote {style.save(figure(), path)}", file=sys.stderr)


if __name__ == "__main__":
    main()
