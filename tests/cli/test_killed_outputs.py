"""Commands that write folders are killed at each step of writing: the old version or the new one is there, whole, and the
same command again succeeds and leaves nothing else."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform import db
from and_platform.services import datasets, networks, study
from and_platform.services.unlearning import plans
from tests import factories, forked, studies, tiny
from tests.checkpoints_beats import write_beats
from tests.cli.killed import die_at_output
from tests.factories import Told

Andp = Callable[..., subprocess.CompletedProcess[str]]
Content = dict[str, str]

MNT_DETACH = 2

# What a page or a record says of the time at which it was made.
_TIME = re.compile(rb'Made on [\d: -]+ UTC|"seconds": [\d.]+|"(report_|run )[^"]*"')


def content(folder: Path) -> Content:
    """Name -> hash of each file, without times; nothing where there is no folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_TIME.sub(b"", path.read_bytes())).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_overs(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.andp-*"))


class Killed:
    """A command that is killed at its first, second … step, until it gets through; or at each third, say."""

    def __init__(self, environment: dict[str, str], *arguments: str, exchange: bool = True, every: int = 1) -> None:
        self._environment, self._arguments, self._exchange, self._every = environment, arguments, exchange, every

    def run(self) -> subprocess.CompletedProcess[str]:
        return forked.run("-q", *self._arguments, environment=self._environment)

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count(1, self._every):
            before = partial(die_at_output, number, exchange=self._exchange)
            done = forked.run("-q", *self._arguments, environment=self._environment, before=before)
            if done.returncode == 0:
                assert number > 4, "no step was seen"
                return
            assert done.returncode == -signal.SIGKILL, done.stderr
            yield number


def check_all(killed: Killed, out: Path, reset: Callable[[], None], old: Content, new: Content) -> set[str]:
    """Kill at each step; which versions were found after the kills."""
    seen = set()
    reset()
    for number in killed:
        found = content(out) if out.exists() else {}
        found = {name: value for name, value in found.items() if ".andp-" not in name}
        assert found in (old, new), (number, sorted(found))
        seen.add("old" if found == old else "new")
        again = killed.run()
        assert again.returncode == 0, (number, again.stderr)
        assert content(out) == new, number
        assert left_overs(out.parent) == [], number
        reset()
    return seen


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_study_export(engine: sa.Engine, environment: dict[str, str], tmp_path: Path, exchange: bool) -> None:
    with db.transaction(engine) as session:
        studies.world(session, tmp_path / "sounds")
    out = tmp_path / "place" / "out"
    asked = (
        "study",
        "export",
        "net",
        "-o",
        str(out),
        "--name",
        "more",
        "--per-layer",
        "2",
        "--exemplars",
        "1",
        "--force",
    )
    study.export(engine, "net", tmp_path / "old", name="old", per_layer=1, exemplars=1)
    study.export(engine, "net", tmp_path / "new", name="more", per_layer=2, exemplars=1)
    old, new = content(tmp_path / "old"), content(tmp_path / "new")

    def reset() -> None:
        with db.transaction(engine) as session:
            session.execute(sa.text("DELETE FROM studies WHERE name = 'more'"))
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)

    if exchange:
        assert check_all(Killed(environment, *asked), out, reset, old, new) == {"old", "new"}
        return
    reset()
    nowhere = 0
    killed = Killed(environment, *asked, exchange=False)
    for number in killed:
        nowhere += not out.exists()
        assert not out.exists() or content(out) in (old, new), number
        assert killed.run().returncode == 0, number
        assert content(out) == new and left_overs(out.parent) == [], number
        reset()
    assert nowhere == 1  # between the two renames; the next command found the old version


def test_a_new_study(engine: sa.Engine, environment: dict[str, str], tmp_path: Path) -> None:
    """Without --force: the folder that the killed command has written is the same study's."""
    with db.transaction(engine) as session:
        studies.world(session, tmp_path / "sounds")
    out = tmp_path / "place" / "out"
    study.export(engine, "net", tmp_path / "new", per_layer=1, exemplars=1)

    def reset() -> None:
        with db.transaction(engine) as session:
            session.execute(sa.text("DELETE FROM studies"))
        shutil.rmtree(out, ignore_errors=True)

    killed = Killed(environment, "study", "export", "net", "-o", str(out), "--per-layer", "1", "--exemplars", "1")
    assert check_all(killed, out, reset, {}, content(tmp_path / "new")) == {"old", "new"}


def test_report(engine: sa.Engine, environment: dict[str, str], andp: Andp, tmp_path: Path) -> None:
    with db.transaction(engine) as session:
        studies.world(session, tmp_path / "sounds")
    out = tmp_path / "place" / "out"
    asked = ("report", "net", "--stored-only", "--skip", "neurons,pipeline,acoustics,sweep,unlearning,study")
    andp(*asked, "-o", str(tmp_path / "new"))
    andp(*asked, "-o", str(tmp_path / "old"), "--seed", "3", "--skip", "layers,neurons,pipeline")
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    assert old != new

    def reset() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)

    killed = Killed(environment, *asked, "-o", str(out))
    assert check_all(killed, out, reset, old, new) == {"old", "new"}


@pytest.fixture
def pruned(engine: sa.Engine, tmp_path: Path) -> int:
    """A plan of a tiny AST."""
    network = networks.add(engine, "tiny", str(tiny.network(tmp_path / "network")))
    with db.transaction(engine) as session:
        sounds = factories.dataset(session, "sounds", n_clips=8)
        probing = datasets.snapshot(session, sounds.id)
        units = {name: layer.n_units for name, layer in factories.layers_of(session, network).items()}
        recording = factories.recording(session, network, probing, factories.random_values(units, 8))
        told = {"b00.ff_in#3": Told(points=["A dog."], terms=[("dog", "noun")], closed={"db": ["dog"]})}
        factories.dissection(session, recording, factories.concept_set(session, ["dog", "rain"], "words"), told)
    plan = plans.make(engine, "tiny", "dog")
    assert plan.n_neurons
    return plan.id


@pytest.mark.parametrize("options", [(), ("--structured",), ("--mask-only",)], ids=" ".join)
def test_unlearn_export(
    pruned: int, environment: dict[str, str], andp: Andp, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "place" / "out"
    asked = ("unlearn", "export", str(pruned), *options, "-o")
    andp(*asked, str(tmp_path / "new"))
    killed = Killed(environment, *asked, str(out))
    reset = partial(shutil.rmtree, out, ignore_errors=True)
    assert check_all(killed, out, reset, {}, content(tmp_path / "new")) == {"old", "new"}
    if options == ():  # another export may not take its place
        andp(*asked, str(out))
        refused = andp("unlearn", "export", str(pruned), "--structured", "-o", str(out), check=False)
        assert refused.returncode and "there is a network in" in refused.stderr
        assert content(out) == content(tmp_path / "new")


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=3m") != 0:
        pytest.skip("only root may mount a small disk")
    yield disk
    assert libc.umount2(os.fsencode(disk), MNT_DETACH) == 0


def test_a_full_disk(
    engine: sa.Engine, pruned: int, andp: Andp, environment: dict[str, str], tmp_path: Path, little_disk: Path
) -> None:
    with db.transaction(engine) as session:
        studies.world(session, tmp_path / "sounds")
    commands = {
        "study": ("study", "export", "net", "--per-layer", "2", "--exemplars", "2", "--force", "-o"),
        "report": ("report", "net", "--stored-only", "-o"),
        "page.html": ("report", "neuron", "net", "head#0", "-o"),
        "pruned": ("unlearn", "export", str(pruned), "-o"),
    }
    for name, arguments in commands.items():
        andp(*arguments, str(little_disk / name))
    before = content(little_disk)
    assert len(before) > 10
    with (little_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    for name, arguments in commands.items():
        full = andp(*arguments, str(little_disk / name), check=False)
        assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
        last = full.stderr.splitlines()[-1]
        assert last.startswith("andp: cannot write ") and "No space left on device" in last, last
        assert str(little_disk / name) in last and "free some space" in last
    (little_disk / "filler").unlink()
    assert content(little_disk) == before and left_overs(little_disk) == []
    for name, arguments in commands.items():
        andp(*arguments, str(little_disk / name))


@pytest.fixture
def tones(andp: Andp, tmp_path: Path) -> str:
    """Nine short tones in the database, three of each class, in the folds 1 to 3."""
    tiny.sounds(tmp_path / "tones", per_class=3)
    manifest = ["path,label,fold"]
    manifest += [f"{label}/{label}-{i}.wav,{label},{i + 1}" for label in tiny.CLASSES for i in range(3)]
    (tmp_path / "tones" / "manifest.csv").write_text("\n".join(manifest) + "\n")
    andp("ingest", "manifest", str(tmp_path / "tones" / "manifest.csv"), "--name", "tones")
    return "tones"


def test_networks_train(tones: str, environment: dict[str, str], andp: Andp, tmp_path: Path) -> None:
    """From nothing, with an encoder that is pretrained on the way and used again."""
    out = tmp_path / "place" / "out"
    asked = ("--dataset", tones, "--recipe", "frozen", "--epochs", "1", "--pretrain-epochs", "1", "--add", "made")
    andp("networks", "train", str(tmp_path / "whole"), *asked)
    weights = ("model.safetensors", "pretrained/model.safetensors")
    whole = [(tmp_path / "whole" / name).read_bytes() for name in weights]
    names = sorted(content(tmp_path / "whole"))
    killed = Killed(environment, "networks", "train", str(out), *asked)
    seen = set()
    for number in killed:
        there = [name for name in sorted(content(out)) if ".andp-" not in name] if out.exists() else []
        encoder = [name for name in names if name.startswith("pretrained/")]
        assert there in ([], encoder, names), (number, there)
        seen.add(len(there))
        again = killed.run()
        assert again.returncode == 0, (number, again.stderr)
        assert sorted(content(out)) == names and left_overs(out.parent) == [], number
        assert [(out / name).read_bytes() for name in weights] == whole, number
        shutil.rmtree(out)
    assert seen == {0, len(encoder), len(names)}


def test_networks_train_from_published_weights(
    tones: str, environment: dict[str, str], andp: Andp, tmp_path: Path
) -> None:
    source, out = str(write_beats(tmp_path / "BEATs_tiny.pt")), tmp_path / "place" / "out"
    asked = ("--dataset", tones, "--from", source, "--recipe", "frozen", "--epochs", "1", "--batch-size", "4")
    andp("networks", "train", str(tmp_path / "whole"), *asked)
    whole, names = (tmp_path / "whole" / "model.safetensors").read_bytes(), sorted(content(tmp_path / "whole"))
    killed = Killed(environment, "networks", "train", str(out), *asked, every=3)
    for number in killed:
        there = {path.name for path in out.iterdir() if ".andp-" not in path.name} if out.exists() else set()
        assert there in (set(), {"checkpoint"}, set(names)), (number, there)
        again = killed.run()
        assert again.returncode == 0, (number, again.stderr)
        assert sorted(content(out)) == names and left_overs(out.parent) == [], number
        assert (out / "model.safetensors").read_bytes() == whole, number
        shutil.rmtree(out)


def test_two_at_once(tones: str, environment: dict[str, str], andp: Andp, tmp_path: Path) -> None:
    source, out = str(tiny.network(tmp_path / "published")), tmp_path / "out"
    asked = ("--dataset", tones, "--from", source, "--epochs", "6", "--batch-size", "4")
    andp("networks", "train", str(tmp_path / "whole"), *asked)
    with ThreadPoolExecutor(3) as beside:
        all_of_them = [
            beside.submit(forked.run, "-q", "networks", "train", str(out), *asked, environment=environment)
            for _ in range(3)
        ]
    done = [one.result() for one in all_of_them]
    assert [one.returncode for one in done].count(0) >= 1
    for one in done:
        assert one.returncode == 0 or re.search("another command (is training|has written it)", one.stderr), one.stderr
        assert len(one.stderr.strip().splitlines()) <= 1 or one.returncode == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert sorted(content(out)) == sorted(content(tmp_path / "whole")) and left_overs(tmp_path) == []
