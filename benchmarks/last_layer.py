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
from and_platform.services import last_layer


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="andpb"))
    home.chmod(0o711)  # as root the server has a user of its own, who passes through
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
        tables[captioner] = last_layer.evaluate(andp.engine, "sample-ast", dissection=report.dissection_id)
    print("\n| function | over | classes | joined: top 1 | top 5 | describer: top 1 | top 5 |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in tables["joined"].rows:
        if row["measure"] == "top_1":
            figures = [
                tables[captioner].value(row["method"], row["similarity"], measure, row["over"])
                for captioner in tables
                for measure in ("top_1", "top_5")
            ]
            told = " | ".join("–" if value is None else f"{value:.0%}" for value in figures)
            print(f"| {row['similarity']} | {row['over']} | {row['n']} | {told} |")


if __name__ == "__main__":
    main()
