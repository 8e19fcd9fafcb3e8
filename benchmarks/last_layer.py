"""Do the concepts found for the last layer of sample-ast name its classes? With and without the class name in the captions.

    python benchmarks/last_layer.py

Dissects the sample network twice: with the sample's own captions joined to the describer's (most of them contain the name
of the class: partly circular), and with the describer's alone (which never say what a sound is). Works in a database of
its own, which is gone afterwards. Prints a table.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from and_platform import api
from and_platform.embedded import EmbeddedServer
from and_platform.services import evaluation


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="andpb"))
    try:
        compare(home)
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


def compare(home: Path) -> None:
    andp = api.open(home=home)
    tables = {}
    for captioner in ("joined", "describer"):
        report = andp.dissect("sample-ast", captioner=captioner, layers=["head"])
        captioned, naming = report.captions
        print(f"{captioner}: {naming} of {captioned} captions contain the name of the clip's class")
        tables[captioner] = evaluation.last_layer(andp.engine, report.dissection_id)
    print("\n| function | over | classes | joined: top 1 | top 5 | describer: top 1 | top 5 |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for one, other in zip(tables["joined"], tables["describer"], strict=True):
        figures = " | ".join(f"{row[key]:.0%}" for row in (one, other) for key in ("top_1", "top_5"))
        print(f"| {one['similarity']} | {one['over']} | {one['classes']} | {figures} |")


if __name__ == "__main__":
    main()
