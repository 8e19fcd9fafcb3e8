"""Every command that computes, one after the other on a small world, and what becomes of each when it is killed.

    with Cluster(environment=SETTINGS) as cluster:
        script = Script(cluster)
        script.undisturbed()
        script.kill(script.steps["dissect"], Timer(0.4))

`undisturbed` runs all commands once and keeps the database and the folder before and after each. `kill` begins from what was
there before a command, kills it by SIGKILL at a moment or at a statement, runs the same command again until it ends well, and
compares all rows, all tables and indexes, and the names of all files with what the undisturbed command left.

For a test and for `benchmarks/faults.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from tests import forked, studies
from tests.workers import backends, rows
from tests.workers.cluster import Cluster

SETTINGS = {
    "ANDP_UNIT_SIZE": "0.02", "ANDP_SILENT_AFTER": "6", "ANDP_DECODE_PROCESSES": "1", "ANDP_POOL_SIZE": "2",
    "ANDP_BATCH_SIZE": "16",
}  # fmt: skip
N_CLIPS = 36
MOST_RUNS = 3
"""Times that a killed command is run again before it counts as one that does not go on."""
LIGHT = ("--sentence-encoder", "letters", "--text-encoder", "letters", "--threshold", "0.9", "--top-k", "5")
DISSECT = ("dissect", "tiny", "--dataset", "tones", "--captioner", "describer", *LIGHT)


@dataclass
class Step:
    """A command. `{out}` in its arguments is the folder that it may write to, `{data}` the one with its input."""

    name: str
    arguments: tuple[str, ...]
    workers: bool = False
    """Workers do its work."""
    gone: int = 0
    """Exit status, beside 0, of one that is run again when all was done: 3 where there is nothing any more."""
    number: int = 0
    seconds: float = 0.0
    statements: int = 0
    """Statements, commits and copies that it sends to the server."""


def steps() -> list[Step]:
    """The commands, in an order in which each finds what it needs."""
    return [
        Step("db upgrade", ("db", "upgrade")),
        Step("ingest", ("ingest", "manifest", "{data}/tones/manifest.csv", "--name", "tones", "--processes", "1")),
        Step("concepts import", ("concepts", "import", "{data}/words.csv", "--name", "words")),
        Step("networks add", ("networks", "add", "tiny", "tests.workers.backends:network_in_blocks")),
        Step(
            "networks train",
            ("networks", "train", "{out}/small", "--dataset", "tones", "--epochs", "2", "--add", "small"),
        ),
        Step("dissect", (*DISSECT, "--concepts", "words")),
        Step(
            "dissect --distributed",
            ("dissect", "tiny", "--dataset", "tones", "--captioner", "joined", "--pooling", "max", *LIGHT, "--distributed"),
            workers=True,
        ),
        Step("eval classes", ("eval", "classes", "tiny", "--dissection", "1", "--map", "noise=rumble")),
        Step("eval last-layer", ("eval", "last-layer", "tiny", "--dissection", "1", "--no-llm")),
        Step("eval explanations", ("eval", "explanations", "tiny", "--dissection", "1", "--permutations", "20")),
        Step("unlearn plan", ("unlearn", "plan", "tiny", "--dissection", "1", "--strategy", "random", "--max-neurons", "9")),
        Step(
            "unlearn run",
            ("unlearn", "run", "tiny", "--dissection", "1", "--each-class", "--strategy", "open", "--strategy", "random",
             "--random-neurons", "9", "--seeds", "0,1", "--fold", "1"),
        ),
        Step(
            "unlearn sweep",
            ("unlearn", "sweep", "tiny", "--dissection", "1", "--each-class", "--points", "4,8", "--draws", "2", "--fold", "1"),
        ),
        Step("unlearn export", ("unlearn", "export", "1", "-o", "{out}/mask", "--mask-only")),
        Step("features adjectives", ("features", "adjectives", "tiny", "--dissection", "1", "--plot", "{out}/adjectives.svg")),
        Step("features blocks", ("features", "blocks", "tiny", "--dissection", "1", "--plot", "{out}/blocks.svg")),
        Step("features acoustics", ("features", "acoustics", "tiny", "--dissection", "1", "--word", "low-pitched")),
        Step(
            "features ablate",
            ("features", "ablate", "tiny", "--dissection", "1", "--shares", "10,20", "--seeds", "0,1", "--fold", "1"),
        ),
        Step("interpretability cluster", ("interpretability", "cluster", "tiny", "--dissection", "1", "--clusters", "3")),
        Step("interpretability blocks", ("interpretability", "blocks", "tiny", "--dissection", "1")),
        Step("interpretability words", ("interpretability", "words", "tiny", "--dissection", "1")),
        Step(
            "study export",
            ("study", "export", "tiny", "--dissection", "1", "-o", "{out}/study", "--name", "pilot", "--per-layer", "2",
             "--exemplars", "3", "--force"),
        ),
        Step("study import", ("study", "import", "{data}/R1.json", "{data}/R2.json")),
        Step("report", ("report", "network", "tiny", "--dissection", "1", "-o", "{out}/report", "--quick")),
        Step("db index", ("db", "index")),
        Step("dissections drop", ("dissections", "drop", "2"), gone=3),
        Step("recordings drop", ("recordings", "drop", "--unused", "--yes")),
        Step("db vacuum", ("db", "vacuum")),
    ]  # fmt: skip


# ---------------------------------------------------------------------- how a command is killed


class Timer(NamedTuple):
    """Kill a command some seconds after it has begun."""

    seconds: float

    def arm(self) -> None:
        thread = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
        thread.daemon = True
        thread.start()


class Statement(NamedTuple):
    """Kill a command at a statement, from 1: before it is sent, or when it is answered."""

    number: int
    after: bool

    def arm(self) -> None:
        calls = itertools.count(1)

        def at(_connection: Any, wait: Callable[[], Any]) -> Any:
            due = next(calls) == self.number
            if due and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = wait()
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        _around_statements(at)


def _around_statements(at: Callable[[Any, Callable[[], Any]], Any]) -> None:
    """Have a function called around each answer of the server that psycopg waits for."""
    import psycopg

    real = psycopg.Connection.wait

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        return at(self, lambda: real(self, *args, **kwargs))

    psycopg.Connection.wait = wait  # type: ignore[method-assign]


def count_statements(path: Path) -> None:
    """Write to a file, after each statement of this process, how many there were."""
    calls = itertools.count(1)

    def at(_connection: Any, wait: Callable[[], Any]) -> Any:
        result = wait()
        path.write_text(str(next(calls)))
        return result

    _around_statements(at)


# ---------------------------------------------------------------------- what was found


@dataclass
class Told:
    """What came of the kills of one command."""

    kills: int = 0
    late: int = 0
    """The command had ended before the moment came."""
    again: int = 0
    """Times that it was run again."""
    stuck: int = 0
    """It did not end well in `MOST_RUNS` runs."""
    rows: int = 0
    duplicates: int = 0
    losses: int = 0
    different: int = 0
    files: int = 0
    """Files and indexes that were missing or too many."""
    examples: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        if len(self.examples) < 10:
            self.examples.append(line[:1500])

    @property
    def wrong(self) -> int:
        """What is not as it should be."""
        return self.stuck + self.duplicates + self.losses + self.different + self.files


class State(NamedTuple):
    """What a command leaves."""

    tables: dict[str, rows.Table]
    objects: Counter[str]
    files: Counter[str]


class Script:
    """The commands on a cluster.

    Parameters
    ----------
    only
        Names of the commands that are to be killed; default: all. Those that they need are done all the same.
    """

    def __init__(self, cluster: Cluster, only: Iterable[str] = ()) -> None:
        self.cluster = cluster
        found = steps()
        wanted = set(only) or {step.name for step in found}
        assert wanted <= {step.name for step in found}, wanted
        last = max(number for number, step in enumerate(found) if step.name in wanted)
        self.steps = {step.name: step for step in found[: last + 1]}
        for number, step in enumerate(self.steps.values()):
            step.number = number
        self.wanted = [step for step in self.steps.values() if step.name in wanted]
        self.data = cluster.folder / "data"
        self.expected: dict[str, State] = {}
        self._kills = itertools.count(1)

    # ------------------------------------------------------------------ the undisturbed run

    def undisturbed(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Run each command once; the database before step N is kept as `beforeN`, the folder as `outN`."""
        cluster = self.cluster
        _inputs(self.data)
        cluster.new_database("before0")
        self._out(0).mkdir()
        for step in self.steps.values():
            if step.name == "study import":
                _answers(self._out(step.number) / "study", self.data)
            cluster.new_database("now", f"before{step.number}")
            out = self._out(step.number + 1)
            shutil.copytree(self._out(step.number), out)
            counted = cluster.folder / "statements"
            counted.write_text("0")
            began = time.monotonic()
            with _Workers(cluster, step):
                done = self._run(step, out, partial(count_statements, counted))
            assert done.returncode == 0, (
                f"{step.name} → {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
            step.seconds, step.statements = time.monotonic() - began, int(counted.read_text())
            if step in self.wanted:
                self.expected[step.name] = self._state("now", out)
            cluster.engine("now").dispose()
            cluster.tell(f"ALTER DATABASE now RENAME TO before{step.number + 1}", "postgres")
            tell(f"{step.name}: {step.seconds:.1f} s, {step.statements} statements")

    def _out(self, number: int) -> Path:
        return self.cluster.folder / f"out{number}"

    def _run(self, step: Step, out: Path, before: Callable[[], Any] | None = None) -> Any:
        arguments = [argument.format(out=out, data=self.data) for argument in step.arguments]
        return forked.run(*arguments, environment=self.cluster.environment, before=before, timeout=600)

    def _state(self, database: str, out: Path) -> State:
        engine = self.cluster.engine(database)
        with engine.connect() as connection:
            found = connection.execute(
                sa.text(
                    "SELECT c.relkind::text || ' ' || c.relname || CASE WHEN i.indisvalid = false THEN ' not valid' ELSE '' END"
                    " FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid"
                    " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'i', 'I', 'v', 'S')"
                )
            ).scalars()
            # Partitions have the number of their recording in their names.
            objects = Counter(re.sub(r"(?<=_)\d+", "N", name) for name in found)
        files = Counter(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        return State(rows.read(engine), objects, files)

    # ------------------------------------------------------------------ kills

    def moments(self, step: Step, n: int, draw: random.Random) -> list[Timer | Statement]:
        """Half of them at random moments of the command, half at random statements."""
        found: list[Timer | Statement] = []
        for number in range(n):
            if number % 2 == 0 and step.statements:
                found.append(Statement(draw.randint(1, step.statements), draw.random() < 0.5))
            else:
                found.append(Timer(draw.uniform(0.02, 0.9) * step.seconds))
        return found

    def kill(self, step: Step, moments: Sequence[Timer | Statement], told: Told) -> None:
        """Kill a command at each of these moments in turn, from one database; at last let it end, and compare."""
        cluster = self.cluster
        database = f"killed{next(self._kills)}"
        cluster.new_database(database, f"before{step.number}")
        out = cluster.folder / database
        shutil.copytree(self._out(step.number), out)
        try:
            with _Workers(cluster, step):
                for moment in moments:
                    done = self._run(step, out, moment.arm)
                    if done.returncode == -signal.SIGKILL:
                        told.kills += 1
                    elif done.returncode == 0:
                        told.late += 1
                        break
                    else:
                        told.note(f"after a kill: {done.returncode}: {done.stderr.strip()[-500:]}")
                ended = self._again(step, out, told)
            if ended:
                self._compare(step, self._state(database, out), told, moments)
        finally:
            cluster.engine(database).dispose()
            cluster.tell(f"DROP DATABASE {database} WITH (FORCE)", "postgres")
            shutil.rmtree(out, ignore_errors=True)

    def _again(self, step: Step, out: Path, told: Told) -> bool:
        done = None
        for _ in range(MOST_RUNS):
            told.again += 1
            done = self._run(step, out)
            if done.returncode in (0, step.gone):
                return True
        assert done is not None
        told.stuck += 1
        told.note(f"does not go on: {done.returncode}: {done.stderr.strip()[-1000:]}")
        return False

    def _compare(self, step: Step, found: State, told: Told, moments: Sequence[Timer | Statement]) -> None:
        expected = self.expected[step.name]
        difference = rows.compare(expected.tables, found.tables)
        told.rows += difference.rows
        told.duplicates += difference.duplicates.total()
        told.losses += difference.lost.total()
        told.different += difference.different.total()
        if difference:
            told.note(f"{moments}: {difference.told()}")
        for wanted, there in ((expected.objects, found.objects), (expected.files, found.files)):
            wrong = [*(wanted - there), *(f"{name} (not expected)" for name in there - wanted)]
            told.files += len(wrong)
            if wrong:
                told.note(f"{moments}: {', '.join(wrong)[:800]}")


class _Workers:
    """A worker while a command that needs one runs."""

    def __init__(self, cluster: Cluster, step: Step) -> None:
        self._cluster, self._wanted = cluster, step.workers

    def __enter__(self) -> None:
        if self._wanted:
            self._cluster.start_worker("--concurrency", "2")

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            self._cluster.stop_workers()


# ---------------------------------------------------------------------- what the commands are given


def _inputs(data: Path) -> None:
    backends.sounds(data / "tones", N_CLIPS)
    paths = sorted((data / "tones").rglob("*.wav"))
    lines = [f"{path.relative_to(data / 'tones')},{path.parent.name},{i % 3 + 1}" for i, path in enumerate(paths)]
    (data / "tones" / "manifest.csv").write_text("\n".join(["path,label,fold", *lines]) + "\n")
    (data / "words.csv").write_text("name,synonyms,kind\nhigh,,\nlow,,\nrumble,hum;drone,\nhiss,,\n")


def _answers(folder: Path, data: Path) -> None:
    """What two raters send back of a study."""
    shown = studies.data_of(folder)
    for rater in ("R1", "R2"):
        content = {
            "format": shown["format"],
            "version": shown["version"],
            "study": shown["study"],
            "rater": rater,
            "answers": [
                {"item": item["item"], "summary": f"{rater} hears a hum", "ratings": {"A": 4}}
                for item in shown["items"]
            ],
        }
        (data / f"{rater}.json").write_text(json.dumps(content), "utf-8")
