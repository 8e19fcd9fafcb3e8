"""Folders and files are written whole: a kill at any step leaves the old version or the new one."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from and_platform import output_files
from and_platform.errors import InputError

OURS = frozenset({"index.html", "tables"}).__contains__
STEPS = ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink", "open", "write")


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text("utf-8") for path in sorted(folder.rglob("*")) if path.is_file()
    }


def version(number: int) -> dict[str, str]:
    return {"index.html": f"page {number}", "tables/a.csv": f"a,{number}", f"tables/only-{number}.csv": ""}


def fill(folder: Path, number: int) -> None:
    for name, text in version(number).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def write(target: Path, number: int, **options: Any) -> None:
    with output_files.folder(target, ours=OURS, **options) as new:
        fill(new, number)


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def die_at_step(number: int, *, exchange: bool) -> None:
    """Patch what reaches the disk, so that this process kills itself before its number-th call."""
    calls = itertools.count(1)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for step in STEPS:
        setattr(os, step, counted(getattr(os, step)))
    swap = output_files._exchange if exchange else lambda _one, _other: False
    output_files._exchange = counted(swap)


def in_child(work: Callable[[], None]) -> int:
    """Run a function in a forked process; its exit status, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 (nothing of the parent's may run in the child)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def killed_at_every_step(work: Callable[[], None], *, exchange: bool = True) -> Iterator[int]:
    """Run it in processes that die at their first, second … step, until one gets through."""
    for number in itertools.count(1):

        def dying(number: int = number) -> None:
            die_at_step(number, exchange=exchange)
            work()

        status = in_child(dying)
        if status == 0:
            assert number > 10  # else nothing was counted
            return
        assert status == -signal.SIGKILL
        yield number


# ---------------------------------------------------------------------- kills


@pytest.mark.parametrize("there", ["nothing", "empty", "old"])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_old_or_new_wherever_it_is_killed(tmp_path: Path, there: str, exchange: bool) -> None:
    target = tmp_path / "sub" / "out"
    target.parent.mkdir()

    def reset() -> None:
        shutil.rmtree(target, ignore_errors=True)
        if there != "nothing":
            target.mkdir()
        if there == "old":
            fill(target, 1)

    reset()
    seen = set()
    for number in killed_at_every_step(lambda: write(target, 2), exchange=exchange):
        if not exchange and not target.exists():
            output_files.recover(target)  # between two renames it is nowhere, and comes back
        if target.exists() and any(target.iterdir()):
            assert tree(target) in (version(1), version(2)), number
            seen.add(target.joinpath("index.html").read_text())
        else:
            assert there != "old", number
        write(target, 2)  # the same command again
        assert tree(target) == version(2)
        assert hidden(tmp_path) == [], number
        reset()
    assert seen == ({"page 1", "page 2"} if there == "old" else {"page 2"})


def test_a_file_is_old_or_new_wherever_it_is_killed(tmp_path: Path) -> None:
    target, seen = tmp_path / "figure.svg", set()
    for number in killed_at_every_step(lambda: output_files.write(target, "new")):
        seen.add(target.read_text() if target.exists() else "")
        output_files.write(target, "new")
        assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"], number
        target.write_text("old")
    assert seen == {"", "old", "new"}


def test_beside_other_files_a_kill_is_finished_by_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def reset() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        fill(target, 1)
        (target / "thesis.tex").write_text("years of work")

    reset()
    mixed = 0
    for number in killed_at_every_step(lambda: write(target, 2, keep_others=True)):
        assert (target / "thesis.tex").read_text() == "years of work"
        output_files.recover(target)
        found = tree(target)
        del found["thesis.tex"]
        assert found in (version(1), version(2)), number
        mixed += found == version(2)
        write(target, 2, keep_others=True)
        assert tree(target) == version(2) | {"thesis.tex": "years of work"}
        assert hidden(tmp_path) == [], number
        reset()
    assert mixed > 3


def test_recovery_may_be_killed_too(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def killed_between_renames() -> None:
        output_files._exchange = lambda _one, _other: False
        real = os.rename

        def rename(one: Any, other: Any) -> None:
            real(one, other)
            if Path(other).name == "old":
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename  # type: ignore[assignment]
        write(target, 2)

    def begin() -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        fill(target, 1)
        assert in_child(killed_between_renames) == -signal.SIGKILL
        assert not target.exists()

    begin()
    for number in killed_at_every_step(lambda: [output_files.recover(target) for _ in range(9)] and None):
        output_files.recover(target)
        assert tree(target) == version(1), number
        assert hidden(tmp_path) == [], number
        begin()


# ---------------------------------------------------------------------- whose it is


def test_only_drafts_of_dead_processes_are_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    planted = tmp_path / ".out.andp-mine"
    planted.mkdir()
    (planted / "thesis.tex").write_text("years of work")
    link = tmp_path / ".out.andp-link"
    link.symlink_to(planted)
    other = tmp_path / ".outer.andp-x"
    other.mkdir()
    with output_files.folder(target) as new:  # another command, at work
        (new / "index.html").write_text("slow")
        write(target, 1)
        output_files.recover(target)
        assert (new / "index.html").read_text() == "slow"
        shutil.rmtree(target)
    assert tree(target) == {"index.html": "slow"}
    assert tree(planted) == {"thesis.tex": "years of work"} and link.is_symlink() and other.is_dir()


def test_a_live_draft_is_told_from_a_dead_one_by_another_process(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from and_platform import output_files\n"
        "with output_files.folder(pathlib.Path(sys.argv[1])) as new:\n"
        "    (new / 'a').write_text('a'); print(new, flush=True); sys.stdin.read()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None
    new = Path(writer.stdout.readline().strip())
    output_files.recover(tmp_path / "out")
    assert (new / "a").read_text() == "a"
    writer.kill()
    writer.wait()
    assert new.exists()
    output_files.recover(tmp_path / "out")
    assert not new.parent.exists()
    writer.stdout.close()
    assert writer.stdin is not None
    writer.stdin.close()


def test_without_locks_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(output_files.fcntl, "flock", unsupported)
    target = tmp_path / "out"
    with output_files.folder(target) as new:
        output_files.recover(target)
        assert new.is_dir()
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        mark = new.parent / output_files.MARK
        mark.write_text(mark.read_text().replace(str(os.getpid()), str(dead.pid)))
        output_files.recover(target)
        assert not new.exists()
        new.mkdir(parents=True)
    assert target.is_dir()


def test_many_at_once_leave_one_whole_version(tmp_path: Path) -> None:
    target, wrong = tmp_path / "out", []

    def work(number: int) -> None:
        for _ in range(10):
            try:
                write(target, number)
            except InputError as exc:
                wrong.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        output_files.recover(target)
    assert wrong == []
    assert tree(target) in [version(number) for number in range(4)]
    assert hidden(tmp_path) == []


def test_a_folder_that_must_be_new_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        pytest.raises(InputError, match="another command has written it meanwhile"),
        output_files.folder(target, replace=False) as new,
    ):
        fill(new, 1)
        write(target, 2)
    assert tree(target) == version(2)


# ---------------------------------------------------------------------- what is in the way


def test_other_files_are_refused_or_stay(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, 1)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds something else \(thesis.tex\)"):
        write(target, 2)
    assert tree(target) == version(1) | {"thesis.tex": "years of work"}
    write(target, 2, keep_others=True)
    assert tree(target) == version(2) | {"thesis.tex": "years of work"}
    # Put there while the new version was written.
    shutil.rmtree(target)
    write(target, 1)
    with pytest.raises(InputError, match=r"\(thesis\.tex\)"), output_files.folder(target, ours=OURS) as new:
        fill(new, 2)
        (target / "thesis.tex").write_text("years of work")
    assert tree(target) == version(1) | {"thesis.tex": "years of work"}
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("write_one", [output_files.write, lambda target, _: write(target, 1)], ids=["file", "folder"])
def test_what_cannot_be_written_is_one_line(tmp_path: Path, write_one: Any) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    wrong = {
        "link": "is a symbolic link; name what it points to",
        "dangling": "is a symbolic link",
        "circle": "is a symbolic link",
        "circle/x": "cannot be written",
        "there/mine/x": "is no folder that you may write to",
        "pipe": "regular file|is a file",
        "x" * 300: "File name too long",
    }
    for name, told in wrong.items():
        with pytest.raises(InputError, match=told) as error:
            write_one(tmp_path / name, "x")
        assert "\n" not in str(error.value)
    assert tree(tmp_path / "there") == {"mine": "mine"} and not (tmp_path / "nowhere").exists()
    assert hidden(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; name a folder"):
        write(tmp_path / "file", 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder; name a file"):
        output_files.write(tmp_path / "folder", "x")


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", 1)
    output_files.write(tmp_path / "c" / "d" / "e.txt", "x")
    assert tree(tmp_path / "a" / "b") == version(1) and (tmp_path / "c" / "d" / "e.txt").read_text() == "x"


def test_a_folder_that_may_not_be_written_is_told() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)  # root's are another user's, who is to come in
        status = in_child(lambda: _unwritable(place))
        (place / "closed").chmod(0o755)
    assert status == 0


def _unwritable(place: Path) -> None:
    """Check, in a child, what becomes of targets in a folder that may not be written."""
    closed, mine = place / "closed", place / "closed" / "mine"
    mine.mkdir(parents=True)
    fill(mine, 1)
    closed.chmod(0o555)
    if os.geteuid() == 0:  # who may write everywhere
        for path in (mine, *mine.rglob("*")):
            os.chown(path, 65534, 65534)
        os.chdir("/")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    for target in (closed / "new", closed / "a" / "b"):
        with pytest.raises(InputError, match="is no folder that you may write to"):
            write(target, 1)
        with pytest.raises(InputError, match="is no folder that you may write to"):
            output_files.write(target, "x")
    write(mine, 2)  # the folder itself may be written, so its entries are moved one by one
    assert tree(mine) == version(2)


def test_the_working_directory_is_not_pulled_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", 1)
    before = (tmp_path / "out").stat().st_ino
    monkeypatch.chdir(tmp_path / "out")
    for target in (Path(), tmp_path / "out"):
        write(target, 2)
        assert tree(tmp_path / "out") == version(2) and (tmp_path / "out").stat().st_ino == before
    monkeypatch.chdir(tmp_path / "out" / "tables")
    write(Path(".."), 3)
    assert tree(tmp_path / "out") == version(3) and hidden(tmp_path) == []


# ---------------------------------------------------------------------- a disk that is full


def _fails_whole(tmp_path: Path, big: Callable[[Path], None], told: str) -> None:
    """A write that runs out of space leaves both old versions."""
    target = tmp_path / "out"
    write(target, 1)
    output_files.write(tmp_path / "file", "old")
    with pytest.raises(InputError, match=told) as error, output_files.folder(target, ours=OURS) as new:
        big(new / "index.html")
    assert "free some space" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=told), output_files.file(tmp_path / "file") as new:
        big(new)
    assert tree(target) == version(1) and (tmp_path / "file").read_text() == "old"
    assert hidden(tmp_path) == []


def _plain(path: Path) -> None:
    path.write_bytes(bytes(20_000_000))


def _safetensors(path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(20_000_000, np.int8)}, path)


def _torch(path: Path) -> None:
    import torch

    with path.open("wb") as stream:  # as the platform does: by name, torch tells no reason
        torch.save({"x": torch.zeros(20_000_000, dtype=torch.int8)}, stream)


def _sound(path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 10_000_000), 16_000, format="FLAC")


MNT_DETACH = 2  # a library may hold the file that it could not write open
WRITERS = [_plain, _safetensors, _torch, _sound]


@pytest.mark.parametrize("big", WRITERS)
def test_a_full_disk_is_one_line_and_the_old_version_stays(tmp_path: Path, big: Callable[[Path], None]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=4m") != 0:
        pytest.skip("only root may mount a small disk")
    try:
        _fails_whole(disk, big, "No space left on device")
    finally:
        assert libc.umount2(os.fsencode(disk), MNT_DETACH) == 0


@pytest.mark.parametrize("big", WRITERS[:3])
def test_a_limit_of_the_size_of_files_is_one_line(tmp_path: Path, big: Callable[[Path], None]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, before[1]))
    try:
        _fails_whole(tmp_path, big, "File too large|No space left on device")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_errors_of_other_things_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), output_files.folder(tmp_path / "out"):
        Path("/nowhere/at-all").read_text()
    with pytest.raises(ZeroDivisionError), output_files.file(tmp_path / "file"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- modes


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with output_files.folder(tmp_path / "out") as new:
            assert stat.S_IMODE(new.parent.stat().st_mode) == 0o700  # nobody else reads it before it is whole
            fill(new, 1)
            (new / "index.html").chmod(0o600)  # as safetensors does
        with output_files.file(tmp_path / "file") as path:
            path.touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
    for path in (tmp_path / "out" / "index.html", tmp_path / "out" / "tables" / "a.csv", tmp_path / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    (tmp_path / "out").chmod(0o750)
    (tmp_path / "file").chmod(0o640)
    write(tmp_path / "out", 2)
    output_files.write(tmp_path / "file", "x")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
