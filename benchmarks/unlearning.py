"""How long does Table 4 take, beside evaluating each of its ablations in full?

    python benchmarks/unlearning.py

Unlearns each of the 22 classes of sample-ast by open concepts, by the closed set, at random and at random matched by layer
(three seeds): once as `andp unlearn run --each-class` does it (clips decoded once, features and untouched layers shared, the
same neurons once for all targets), and once ablation by ablation (clips decoded, features computed, the network run intact
and ablated, for each target). Both are checked to give the same changes. Works in the database that ANDP_DATABASE_URL names,
which must not have this Table 4 yet, else in one of its own. Prints a table.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from and_platform import api, db
from and_platform.backends.networks.shared_passes import ablated_logits
from and_platform.config import settings
from and_platform.core.outcomes import by_class
from and_platform.embedded import EmbeddedServer
from and_platform.queries import unlearning as queries
from and_platform.services import experiments, networks
from and_platform.services.held_out import decoded, held_out
from and_platform.services.unlearning import runs, tables

NETWORK = "sample-ast"
STRATEGIES = ("random", "random_matched", "closed_db", "open")


def main() -> None:
    if os.environ.get("ANDP_DATABASE_URL"):
        compare(api.open())
        return
    home = Path(tempfile.mkdtemp(prefix="andpb"))
    home.chmod(0o711)  # as root the server has a user of its own, who passes through
    try:
        andp = api.open(home=home)
        andp.dissect(NETWORK)
        compare(andp)
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


def compare(andp: api.Platform) -> None:
    began = time.perf_counter()
    report = runs.run(andp.engine, NETWORK, each_class=True, strategies=STRATEGIES)
    together = time.perf_counter() - began
    if report.reused:
        raise SystemExit("this database has some of Table 4 already; name one that has not")
    with db.reading(andp.engine) as session:
        about = experiments.subject(session, NETWORK)
        chosen = held_out(session, about)
        loaded = networks.load(networks.find(session, NETWORK))
        rows = tables.overview(andp.engine, report.ablations)
        selections = queries.plan_units(session, plans=[row["plan_id"] for row in rows])
    true = np.array([clip.unit for clip in chosen.clips])
    units = {name: unit for unit, name in enumerate(chosen.classes)}
    furthest = 0.0
    began = time.perf_counter()
    for row in rows:
        logits = ablated_logits(
            loaded,
            [selections[row["plan_id"]]],
            decoded(chosen, loaded.rate),
            batch_size=settings().batch_size,
            share=False,
        )
        before, after = by_class(np.concatenate(list(logits), axis=1), true).logit
        furthest = max(furthest, abs((after - before)[units[row["concept"]]] - row["d_a"]))
    alone = time.perf_counter() - began
    print(
        f"{len(rows)} ablations ({report.measured} distinct), {len(chosen.clips)} clips; dA differs by at most {furthest:.1e}\n"
    )
    print("| | seconds | per ablation |\n| --- | ---: | ---: |")
    print(f"| each ablation in full | {alone:.1f} | {alone / len(rows):.2f} |")
    print(
        f"| Table 4 in one go, choice of neurons and storing included | {together:.1f} | {together / len(rows):.2f} |"
    )
    print(f"\n{alone / together:.1f} times as fast")


if __name__ == "__main__":
    main()
