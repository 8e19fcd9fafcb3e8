"""Break tiny checkpoints at random, many times over, and load each: the long form of tests/unit/test_broken_checkpoints.py.

python benchmarks/broken_checkpoints.py [--n 2000] [--first 0]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from and_platform.backends.networks import load_network
from tests.unit.test_broken_checkpoints import CHECKPOINTS, broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="broken copies of each checkpoint")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args()
    for kind, write in CHECKPOINTS.items():
        outcomes: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            original = write(Path(folder))
            work = Path(folder) / "work"
            work.mkdir()
            for seed in range(options.first, options.first + options.n):
                try:
                    outcome = broken(load_network, original, work, seed)
                except AssertionError as exc:
                    outcomes["wrong"] += 1
                    print(f"{kind}: {exc}", flush=True)
                else:
                    outcomes["loaded" if outcome is None else "refused"] += 1
        print(kind, dict(outcomes), flush=True)


if __name__ == "__main__":
    main()
