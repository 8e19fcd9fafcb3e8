"""Activations of a whole AST through Postgres: loading, folding, reading, matching, resuming.

    python benchmarks/database.py --clips 2000 --concepts 50

Makes an embedded server in a temporary folder, writes synthetic float16 activations of 12 blocks x (768, 3072, 768) and a
head of 50 as blocks, as recording does, folds them, and matches them with random clip-concept scores as a dissection
does, all five functions together. Prints a table. Nothing is read from elsewhere, and nothing stays.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from and_platform import db
from and_platform.config import Settings
from and_platform.core.matching import Matcher
from and_platform.core.similarity import SIMILARITIES
from and_platform.embedded import EmbeddedServer
from and_platform.schema import (
    Clip,
    Concept,
    ConceptSet,
    Dataset,
    Layer,
    Network,
    ProbingSet,
    ProbingSetClip,
)
from and_platform.services import activations, match, provenance, record
from and_platform.services.provenance import RecipePlan
from and_platform.services.texts import text_ids

rows: list[tuple[str, float, str]] = []


@contextmanager
def timed(what: str, of: str = "") -> Iterator[None]:
    began = time.perf_counter()
    yield
    rows.append((what, time.perf_counter() - began, of))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--concepts", type=int, default=50)
    parser.add_argument("--blocks", type=int, default=12, help="transformer blocks")
    parser.add_argument("--cubes", action="store_true", help="keep cubed activations too")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="andpb"))
    try:
        run(home, arguments)
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


def run(home: Path, arguments: argparse.Namespace) -> None:
    engine = db.connect(Settings(home=home))
    n, rng = arguments.clips, np.random.default_rng(0)
    kinds = (("attn_out", 768), ("ff_in", 3072), ("ff_out", 768))
    layout: list[tuple[str, int | None, str, int]] = [
        (f"b{block:02d}.{kind}", block, kind, units) for block in range(arguments.blocks) for kind, units in kinds
    ]
    layout.append(("head", None, "head", 50))
    with db.transaction(engine) as session:
        network = Network(
            name="synthetic", source="factory", location="-", revision="0", architecture="-", sample_rate=1,
            n_parameters=0, classes=[], extra={},
        )  # fmt: skip
        dataset = Dataset(name="synthetic", root="/", kind="folder")
        session.add_all([network, dataset])
        session.flush()
        layers = [
            Layer(network_id=network.id, position=i, name=name, module_path=name, block=block, kind=kind, n_units=units,
                  pooling="first", is_default=True)
            for i, (name, block, kind, units) in enumerate(layout)
        ]  # fmt: skip
        session.add_all(layers)
        clips = [
            Clip(dataset_id=dataset.id, path=str(i), sha256=str(i), sample_rate=1, channels=1, duration_s=1,
                 mean_abs_amplitude=0, rms=0, peak=0, silence_share=0)
            for i in range(n)
        ]  # fmt: skip
        probing = ProbingSet(dataset_id=dataset.id, sha256="0", n_clips=n)
        session.add_all([*clips, probing])
        session.flush()
        session.add_all(
            ProbingSetClip(probing_set_id=probing.id, position=i, clip_id=c.id) for i, c in enumerate(clips)
        )
        for layer in layers:
            session.execute(
                sa.text("INSERT INTO neurons (layer_id, unit) SELECT :l, u FROM generate_series(0, :n - 1) u"),
                {"l": layer.id, "n": layer.n_units},
            )
        recorded = RecipePlan("record", "synthetic", "0", {})
        recording_id = record.ensure_recording(session, network.id, probing.id, recorded)
    neurons = sum(layer.n_units for layer in layers)
    megabytes = neurons * n * 2 / 1e6

    blocks = range(-(-n // activations.BLOCK))
    values = {layer.id: rng.normal(size=(activations.BLOCK, layer.n_units)).astype(np.float16) for layer in layers}
    with timed("land all blocks", f"{megabytes:.0f} MB"):
        for block in blocks:
            count = activations.block_bounds(block, n)[1]
            with db.transaction(engine) as session:
                activations.land(session, recording_id, block, n, {k: v[:count] for k, v in values.items()})
    with timed("find what is missing (resumption, all landed)"), db.reading(engine) as session:
        missing = [activations.missing_layers(session, recording_id, b, [x.id for x in layers]) for b in blocks]
        assert not any(missing)
    with timed("fold into one row per neuron", f"{neurons:,} rows"):
        for stretch in activations.stretches(n):
            for layer in layers:
                with db.transaction(engine) as session:
                    activations.fold(session, recording_id, layer, stretch)
    with timed("exemplars and statistics" + (" and cubes" if arguments.cubes else "")):
        for layer in layers:
            with db.transaction(engine) as session:
                activations.complete_layer(session, recording_id, layer, "first", n, cubes=arguments.cubes)
    with timed("read all back", f"{megabytes:.0f} MB"), db.reading(engine) as session:
        for _ in activations.read_layers(session, recording_id, layers, n):
            pass

    p = rng.normal(size=(n, arguments.concepts)).astype(np.float32) * 3
    p = np.exp(p - p.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    with db.transaction(engine) as session:
        concepts = ConceptSet(name="synthetic", source="-", sha256="0")
        session.add(concepts)
        session.flush()
        names = [f"concept {i}" for i in range(arguments.concepts)]
        ids = text_ids(session, names)
        entries = [
            Concept(concept_set_id=concepts.id, position=i, name=name, original_name=name, text_id=ids[name])
            for i, name in enumerate(names)
        ]
        session.add_all(entries)
        session.flush()
        score = match.ScorePlan("db", None, RecipePlan("score", "synthetic", "0", {}), None)  # type: ignore[arg-type]
        scoring_id = match._store(session, score, probing, concepts, [e.id for e in entries], p, np.ones(n, bool))
    size = f"{neurons:,} x {n:,} x {arguments.concepts:,}, all five"
    with timed(f"match {size}, reading included"), db.reading(engine) as session:
        matcher = Matcher(match.read_scores(session, scoring_id)[0], top=match.TOP)
        for _, found in activations.read_layers(session, recording_id, layers, n):
            matcher.layer(found)
    recipes = {name: match.plan_match(recorded, score, name, None) for name in SIMILARITIES}
    with timed("the same, and the best 5 written", f"{neurons * 25:,} rows"):
        match.match(engine, recording_id, scoring_id, layers, recipes)
    with timed("find what is missing (resumption, all matched)"):
        assert match.match(engine, recording_id, scoring_id, layers, recipes) == 0
    with timed("SQL: best 5 concepts of one layer of 768 by cosine"), db.reading(engine) as session:
        session.execute(
            sa.text("SELECT count(*) FROM match_concepts(:r, 'synthetic', 'cos', 5, layer => 'b00.attn_out')"),
            {"r": recording_id},
        )
    with db.reading(engine) as session:
        size = session.scalar(sa.text("SELECT pg_database_size(current_database())"))
        assert provenance.find_recipe(session, recorded)
    print("| step | seconds | of |\n| --- | ---: | --- |")
    for what, seconds, of in rows:
        print(f"| {what} | {seconds:.2f} | {of} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\ndatabase {(size or 0) / 1e6:.0f} MB; peak memory of this process {peak:.0f} MB")


if __name__ == "__main__":
    main()
