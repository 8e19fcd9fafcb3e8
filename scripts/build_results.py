"""Make docs/results: every table and figure of the paper, for small networks that anybody can train in minutes.

    python scripts/build_results.py HOME            # HOME: folder of a database of its own; made if need be
    python scripts/build_results.py HOME --only sweep

Trains the networks of the three strategies (unless HOME/networks has them), dissects them, runs every experiment by the
command that a user would type, and writes what the commands print and draw to docs/results/tables and
docs/results/figures. Everything is resumed: what is there is not computed again. The commands themselves are written to
docs/results/commands.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NETWORKS = ("sample-ast", "small-finetuned", "small-frozen")
ALL = " ".join(NETWORKS)

# What is written -> the command that writes it: tables are what it prints as CSV, figures what it draws.
STEPS: tuple[tuple[str, str], ...] = (
    ("", "networks train NETS/small-frozen --recipe frozen"),
    ("", "networks train NETS/small-finetuned --recipe finetuned --pretrained NETS/small-frozen/pretrained"),
    *(("", f"networks add {name} NETS/{name}") for name in NETWORKS[1:]),
    *(("", f"dissect {name} --dataset sample") for name in NETWORKS),
    # Tables 2 and 7
    *((f"last-layer-{name}", f"eval last-layer {name} --plot FIGURE") for name in NETWORKS),
    *((f"explanations-{name}", f"eval explanations {name} --plot FIGURE") for name in NETWORKS),
    # Table 4, Figure 10, the sweep
    *(
        (
            "",
            f"unlearn run {name} --each-class --strategy random --strategy random_matched --strategy closed_db "
            "--strategy meaning --strategy open --seeds 0,1,2,3,4,5,6,7,8,9",
        )
        for name in NETWORKS
    ),
    ("unlearning", f"unlearn table {ALL}"),
    ("unlearning-sample-ast", "unlearn table sample-ast --plot FIGURE"),
    ("unlearning-speech", "unlearn run sample-ast --concept speech --strategy closed_db --plot FIGURE"),
    ("sweep-tabla", "unlearn sweep sample-ast --concept tabla --plot FIGURE"),
    ("sweep-speech-closed-db", "unlearn sweep sample-ast --concept speech --strategy closed_db --plot FIGURE"),
    ("sweep-open", "unlearn sweep sample-ast --each-class --plot FIGURE"),
    ("sweep-closed-db", "unlearn sweep sample-ast --each-class --strategy closed_db --points full --plot FIGURE"),
    # Figures 3, 9, 5, 4, 8
    ("adjectives", f"features adjectives {ALL} --top 20 --plot FIGURE"),
    ("adjectives-by-block", f"features blocks {ALL} --plot FIGURE"),
    ("feature-ablation", "features ablate sample-ast --plot FIGURE"),
    ("acoustics", "features acoustics sample-ast --plot FIGURE"),
    # Figures 6, 11-14, Table 8
    ("", "interpretability cluster sample-ast"),
    ("elbow", "interpretability cluster sample-ast --plot FIGURE"),
    ("uninterpretable", f"interpretability blocks {ALL} --plot FIGURE"),
    ("uninterpretable-tau5", f"interpretability blocks {ALL} --tau 5 --plot FIGURE"),
    ("uninterpretable-all", f"interpretability blocks {ALL} --all --plot FIGURE"),
    ("clusters", "interpretability words sample-ast --plot FIGURE"),
    # Table 6
    ("neurons", "report neurons sample-ast --per-layer 1"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--only", default="", help="regular expression on commands: run only these")
    given = parser.parse_args()
    home = given.home.resolve()
    (RESULTS / "tables").mkdir(parents=True, exist_ok=True)
    (RESULTS / "figures").mkdir(parents=True, exist_ok=True)
    for name, command in STEPS:
        if re.search(given.only, command):
            run(name, command, home)
    (RESULTS / "commands.md").write_text(commands_page(), "utf-8")


def run(name: str, command: str, home: Path) -> None:
    """Run one command as a process, and keep what it prints and draws."""
    words = command.replace("NETS/", f"{home}/networks/").replace("FIGURE", str(RESULTS / "figures" / figure(name)))
    if words.startswith("networks train") and Path(words.split()[2]).exists():
        return
    print(f"andp {command}", flush=True)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "and_platform.cli.main", *words.split(), *(["--csv"] if name else [])],
        env={**os.environ, "ANDP_HOME": str(home)}, stdout=subprocess.PIPE if name else None, text=True, check=True,
    )  # fmt: skip
    if name:
        (RESULTS / "tables" / f"{name}.csv").write_text(done.stdout, "utf-8")


def figure(name: str) -> str:
    """File name of a figure. Word clouds as vectors are a megabyte."""
    return f"{name}.{'png' if name == 'clusters' else 'svg'}"


def commands_page() -> str:
    """The commands, with what each writes."""
    lines = ["# Commands that made these results", "", "Written by `scripts/build_results.py`, which runs them.", ""]
    lines += ["| command | table | figure |", "| --- | --- | --- |"]
    for name, command in STEPS:
        lines.append(f"| `andp {_shown(command, name)}` | {_printed(name)} | {_drawn(name, command)} |")
    return "\n".join(lines) + "\n"


def _shown(command: str, name: str) -> str:
    return command.replace("NETS/", "networks/").replace("FIGURE", figure(name)).replace("|", "\\|")


def _printed(name: str) -> str:
    return f"[{name}.csv](tables/{name}.csv)" if name else ""


def _drawn(name: str, command: str) -> str:
    return f"[{figure(name)}](figures/{figure(name)})" if "FIGURE" in command else ""


if __name__ == "__main__":
    sys.exit(main())
