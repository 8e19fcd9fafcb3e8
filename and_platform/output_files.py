"""Writing folders and files so that a kill leaves the old version or the new one, whole.

What a command writes goes into a draft first: a hidden folder `.NAME.andp-XXXXXXXX` beside the target. The draft is flushed
to disk and then put into the target's place: by one rename, or, where something is there already, by an exchange of the two
(`renameat2` of Linux) or by two renames. A draft holds a mark, which the process that writes it keeps locked as long as it
lives. The next command that writes the same target removes drafts whose lock is free, and puts an old version back that a
kill left inside one. Folders without a mark, and folders of another user, are not touched.

A folder in which other files lie, a mount point, the working directory, and a folder whose parent cannot be written are not
exchanged as a whole. The draft is then made inside the folder and its entries are moved one after the other, by a list that
is on disk before the first move: a kill in between leaves some entries to be moved, and the next command moves them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from and_platform.errors import AndpError, InputError

MARK: Final = "andp-draft.json"
_LONGEST_NAME = 40  # characters of the target's name in that of a draft: at most 160 of a name's 255 bytes
_TRIES = 5

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_TOLD: Final = re.compile(rf"No space left on device|os error (?:{errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b")
_PROBE = 1 << 16  # bytes that are written to see whether the disk takes any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM})

IsOurs = Callable[[str], bool]


# ---------------------------------------------------------------------- what commands call


@contextmanager
def folder(
    target: Path,
    *,
    ours: IsOurs = lambda _name: False,
    carry: Collection[str] = (),
    keep_others: bool = False,
    replace: bool = True,
) -> Iterator[Path]:
    """Give an empty folder to write into; when the block ends without an error, put it into the place of `target`.

    Modes of files follow the umask; a folder that is replaced passes its mode on to the new one.

    Parameters
    ----------
    target
        The folder to write; it and its parents are made where they are missing.
    ours
        Whether an entry of that name in `target` is of a former output: it goes when the new one comes.
    carry
        Entries of `target` that belong to the new version too, as they are.
    keep_others
        Leave other entries of `target` where they are; without it they are an error.
    replace
        Whether `target` may hold anything.

    Raises
    ------
    InputError
        The target is a link or a file, or holds something else, or cannot be written.
    """
    place = _absolute(target)
    recover(target)
    check_folder(target)
    with _one_line(target, place), _draft(place, inside=_inside(place, ours, carry)) as draft:
        yield draft.new
        _settle_modes(draft.new)
        if draft.around != place:
            _carry(place, draft.new, carry)
        if place.is_dir():
            _take_over(place, draft.new)
        _sync_tree(draft.new)
        with _locked(draft.around):
            others = _others(target, place, draft, ours, replace=replace) - set(carry)
            if others and not (keep_others and draft.around == place):
                raise InputError(f"'{target}' holds something else ({min(others)}); name another folder")
            if draft.around == place:
                _put_entries(draft, ours)
            else:
                _put_whole(draft, place)


@contextmanager
def file(target: Path) -> Iterator[Path]:
    """Give a path to write a file at; when the block ends without an error, put the file into the place of `target`.

    Raises
    ------
    InputError
        The target is a link, a folder or a device, or cannot be written.
    """
    place = _absolute(target)
    recover(target)
    check_file(target)
    with _one_line(target, place), _draft(place) as draft:
        new = draft.new / place.name
        yield new
        _settle_modes(draft.new)
        if place.is_file():
            _take_over(place, new)
        _sync(new)
        with _locked(draft.around):
            check_file(target)
            os.replace(new, place)  # noqa: PTH105 (the renames of this module look alike)
            _sync(draft.around)


def write(target: Path, content: bytes | str) -> None:
    """Write a file whole; text as UTF-8.

    Raises
    ------
    InputError
        As `file`.
    """
    with file(target) as new:
        new.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def recover(target: Path) -> None:
    """Remove drafts of `target` that dead processes left; first finish or undo what one of them had begun to move."""
    place = _absolute(target)
    for around in (place.parent, place):
        for root in _drafts(around, place.name):
            with _left_over(root, place.name) as draft, _locked(around):
                if draft is not None and _finish(draft, place):
                    _remove(draft)


def check_folder(target: Path) -> None:
    """Check that a folder can be written at `target`.

    Raises
    ------
    InputError
        The target is a link or a file, or neither it nor its parent can be written.
    """
    _check_link(target)
    if target.exists() and not target.is_dir():
        raise InputError(f"'{target}' is a file; name a folder")
    _check_writable(target, _absolute(target))


def check_file(target: Path) -> None:
    """Check that a file can be written at `target`.

    Raises
    ------
    InputError
        The target is a link, a folder or a device, or its folder cannot be written.
    """
    _check_link(target)
    if target.is_dir():
        raise InputError(f"'{target}' is a folder; name a file")
    if target.exists() and not target.is_file():
        raise InputError(f"'{target}' is no regular file; name another one")
    _check_writable(target, _absolute(target).parent)


def out_of_space(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk or a quota is full."""
    return any(
        (isinstance(one, OSError) and one.errno in _FULL) or _FULL_TOLD.search(str(one)) is not None
        for one in _causes(error)
    )


# ---------------------------------------------------------------------- checks and errors


def _absolute(target: Path) -> Path:
    """The target with links in its parents resolved; a link at its end stays."""
    try:
        if target.name in ("", ".."):
            return target.resolve()
        return target.parent.resolve() / target.name
    except (OSError, RuntimeError) as exc:  # a circle of links
        raise InputError(f"'{target}' cannot be written: {exc}; name another place") from exc


def _check_link(target: Path) -> None:
    try:
        is_link = stat.S_ISLNK(os.lstat(target).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        raise _unwritable(target, exc) from exc
    if is_link:
        raise InputError(f"'{target}' is a symbolic link; name what it points to, or another place")


def _check_writable(target: Path, place: Path) -> None:
    """Check the nearest folder that is there: `place`, or the one in which its missing parents will be made."""
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"'{target}' cannot be written: '{there}' is no folder that you may write to; name another one"
        )


def _others(target: Path, place: Path, draft: _Draft, ours: IsOurs, *, replace: bool) -> set[str]:
    """What else is in the target, looked at just before it is replaced: somebody may have written to it since."""
    _check_link(target)
    there = _entries(place)
    if there and not replace:
        raise InputError(f"'{target}' is not empty: another command has written it meanwhile; name a new folder")
    coming = {entry.name for entry in draft.new.iterdir()}
    return {name for name in there if not ours(name) and name not in coming}


def _entries(place: Path) -> list[str]:
    """Names in a folder, without drafts; none where there is no folder."""
    if not place.is_dir():
        return []
    prefix = _prefix(place.name)
    return [entry.name for entry in place.iterdir() if not entry.name.startswith(prefix)]


def _inside(place: Path, ours: IsOurs, carry: Collection[str]) -> bool:
    """Whether the draft has to be made inside the target, since the target cannot be exchanged as a whole."""
    if not place.is_dir():
        return False
    if place.is_mount() or not os.access(place.parent, os.W_OK | os.X_OK):
        return True
    with suppress(FileNotFoundError):  # the working directory is gone
        here = Path.cwd()
        if place in (here, *here.parents):
            return True
    return any(not ours(name) and name not in carry for name in _entries(place))


@contextmanager
def _one_line(target: Path, place: Path) -> Iterator[None]:
    """Turn what keeps the target from being written into an InputError; errors of anything else pass."""
    try:
        yield
    except OSError as exc:
        about = exc.filename2 or exc.filename
        if exc.errno in _FULL or about is None or Path(os.fsdecode(about)).is_relative_to(place.parent):
            raise _unwritable(target, exc) from exc
        raise


def _unwritable(target: Path, exc: OSError) -> InputError:
    advice = "free some space, or name another place" if exc.errno in _FULL else "name another place"
    return InputError(f"cannot write '{target}' ({exc.strerror or exc}); {advice}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


# ---------------------------------------------------------------------- drafts


@dataclass(frozen=True)
class _Draft:
    """A hidden folder with a mark, in which an output is written."""

    root: Path

    @property
    def around(self) -> Path:
        """The folder that the draft is in."""
        return self.root.parent

    @property
    def mark(self) -> Path:
        return self.root / MARK

    @property
    def new(self) -> Path:
        return self.root / "new"

    @property
    def old(self) -> Path:
        return self.root / "old"

    @property
    def moves(self) -> Path:
        """The list of moves, while entries are moved one after the other."""
        return self.root / "moves.json"


def _prefix(name: str) -> str:
    return f".{name[:_LONGEST_NAME]}.andp-"


def _drafts(around: Path, name: str) -> list[Path]:
    """Whatever is named like a draft of a target of that name; nothing behind a link."""
    try:
        if around.is_symlink():
            return []
        return [entry for entry in around.iterdir() if entry.name.startswith(_prefix(name))]
    except OSError:  # no such folder, or one that cannot be listed
        return []


@contextmanager
def _draft(place: Path, *, inside: bool = False) -> Iterator[_Draft]:
    """A draft that is locked while the block lasts, and gone afterwards."""
    around = place if inside else place.parent
    around.mkdir(parents=True, exist_ok=True)
    draft, lock = _begin(around, place.name)
    try:
        draft.new.mkdir()
        yield draft
    except Exception as exc:
        if not isinstance(exc, OSError | AndpError):
            _raise_if_full(draft, exc)  # libraries have errors of their own for it
        raise
    finally:
        # The list is there still where moves failed half-way and could not be undone: the next command goes on with it.
        if not draft.moves.exists():
            _remove(draft)
        os.close(lock)


def _begin(around: Path, name: str) -> tuple[_Draft, int]:
    """Make a draft with a locked mark; returns the lock's descriptor too."""
    for _ in range(_TRIES):
        draft = _Draft(Path(tempfile.mkdtemp(prefix=_prefix(name), dir=around)))
        try:
            lock = os.open(draft.mark, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # another command took the empty folder for a leftover
            continue
        try:
            os.write(lock, json.dumps({"target": name, "pid": os.getpid()}).encode())
        except OSError:
            os.close(lock)
            _remove(draft)
            raise
        if _is_free(lock, unsupported=True) and _is_open_at(lock, draft.mark):
            return draft, lock
        os.close(lock)
    raise InputError(f"cannot write in '{around}': other commands remove what this one begins; try again")


@contextmanager
def _left_over(root: Path, name: str) -> Iterator[_Draft | None]:
    """The draft, locked, where it is of this user and this target and its writer is dead; else None."""
    draft, lock = _Draft(root), -1
    try:
        try:
            about = root.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                yield None
                return
            with suppress(OSError):
                root.rmdir()  # where it is empty: killed before the mark was written, or after it was removed
            lock = os.open(draft.mark, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # no mark, so it is not ours; or another command has just removed it
            yield None
            return
        told = _read_mark(lock)
        free = _is_free(lock, unsupported=not _is_alive(told.get("pid"))) and _is_open_at(lock, draft.mark)
        yield draft if free and told.get("target", name) == name else None
    finally:
        if lock >= 0:
            os.close(lock)


def _read_mark(lock: int) -> dict[str, Any]:
    """What a mark says; nothing where its writer was killed before it wrote it."""
    try:
        told = json.loads(os.pread(lock, 4096, 0))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _is_free(lock: int, *, unsupported: bool) -> bool:
    """Take the lock of a mark; False where another process has it. `unsupported`: the answer without locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unsupported
    return True


def _is_alive(pid: object) -> bool:
    return isinstance(pid, int) and psutil.pid_exists(pid)


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether the file is still that of the path: another command may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


@contextmanager
def _locked(around: Path) -> Iterator[None]:
    """Only one command at a time moves something in a folder; without locks of folders, whoever wants to."""
    try:
        descriptor = os.open(around, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # it can be written, but not read
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _finish(draft: _Draft, place: Path) -> bool:
    """Finish what a dead process had begun to move; False where that cannot be done."""
    try:
        if draft.moves.exists():
            _move_entries(draft)
            draft.moves.unlink()
        elif draft.around == place.parent and draft.old.exists() and not os.path.lexists(place):
            os.rename(draft.old, place)  # noqa: PTH104
            _sync(draft.around)
    except (OSError, ValueError):
        return False
    return True


def _remove(draft: _Draft) -> None:
    """Remove a draft, its mark last: a kill in between leaves a draft that the next command removes."""
    with suppress(OSError):
        for entry in draft.root.iterdir():
            if entry == draft.mark:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        draft.mark.unlink()
        draft.root.rmdir()


def _raise_if_full(draft: _Draft, error: Exception) -> None:
    """Raise OSError where a library's error comes from a full disk."""
    if out_of_space(error):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    probe = draft.root / "probe"
    with probe.open("wb") as stream:
        stream.write(bytes(_PROBE))
        stream.flush()
        os.fsync(stream.fileno())
    probe.unlink()


# ---------------------------------------------------------------------- to disk, and into the place


def _settle_modes(new: Path) -> None:
    """Give files the mode of the umask: some libraries leave theirs to their owner alone."""
    mode = stat.S_IMODE(new.stat().st_mode) & 0o666  # mkdir has asked the umask
    for path in new.rglob("*"):
        about = path.lstat()
        if stat.S_ISREG(about.st_mode) and stat.S_IMODE(about.st_mode) != mode:
            path.chmod(mode)


def _take_over(old: Path, new: Path) -> None:
    """Give the new version mode and owner of the old one."""
    about = old.stat()
    new.chmod(stat.S_IMODE(about.st_mode))
    with suppress(OSError):  # only root may give files away
        if (about.st_uid, about.st_gid) != (new.stat().st_uid, new.stat().st_gid):
            os.chown(new, about.st_uid, about.st_gid)


def _carry(place: Path, new: Path, names: Collection[str]) -> None:
    """Bring entries of the old version into the new one: as links, where the file system has them."""
    for name in names:
        old = place / name
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, new / name, symlinks=True, copy_function=_link)
        elif os.path.lexists(old):
            _link(old, new / name)


def _link(old: Path | str, new: Path | str) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # a file system that cannot do this for folders
            raise
    finally:
        os.close(descriptor)


def _sync_tree(new: Path) -> None:
    for path in new.rglob("*"):
        if not path.is_symlink():
            _sync(path)
    _sync(new)
    _sync(new.parent)


def _put_whole(draft: _Draft, place: Path) -> None:
    """Put the new folder into the place of the old one, beside which the draft is."""
    if not _entries(place):
        os.rename(draft.new, place)  # noqa: PTH104 (it takes the place of an empty folder, too)
    elif not _exchange(draft.new, place):
        os.rename(place, draft.old)  # noqa: PTH104
        try:
            os.rename(draft.new, place)  # noqa: PTH104
        except OSError:
            os.rename(draft.old, place)  # noqa: PTH104
            raise
    _sync(draft.around)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _put_entries(draft: _Draft, ours: IsOurs) -> None:
    """Move the new entries into the folder in which the draft is, and those of a former output out of it."""
    coming = sorted(entry.name for entry in draft.new.iterdir())
    going = sorted(name for name in _entries(draft.around) if ours(name) and name not in coming)
    draft.old.mkdir()
    part = draft.root / "moves.part"
    part.write_text(json.dumps({"coming": coming, "going": going}), "utf-8")
    _sync(part)
    os.rename(part, draft.moves)  # noqa: PTH104
    _sync(draft.root)
    try:
        _move_entries(draft)
    except OSError:
        _move_back(draft)
        raise
    finally:
        _sync(draft.around)
    draft.moves.unlink()


def _move_entries(draft: _Draft) -> None:
    """Make those moves of the list that have not been made. Where each entry is tells which."""
    moves = json.loads(draft.moves.read_text("utf-8"))
    for name in moves["coming"]:
        new, place, old = draft.new / name, draft.around / name, draft.old / name
        if not os.path.lexists(new):
            continue
        if os.path.lexists(place):
            if os.path.lexists(old):  # somebody has made it anew since the kill: that stays
                continue
            os.rename(place, old)  # noqa: PTH104
        os.rename(new, place)  # noqa: PTH104
    for name in moves["going"]:
        place, old = draft.around / name, draft.old / name
        if os.path.lexists(place) and not os.path.lexists(old):
            os.rename(place, old)  # noqa: PTH104
    _sync(draft.around)


def _move_back(draft: _Draft) -> None:
    """Undo the moves that were made, and forget the list; where that fails, the list stays."""
    moves = json.loads(draft.moves.read_text("utf-8"))
    for name in moves["coming"]:
        new, place = draft.new / name, draft.around / name
        if not os.path.lexists(new) and os.path.lexists(place):
            os.rename(place, new)  # noqa: PTH104
    for name in (*moves["coming"], *moves["going"]):
        place, old = draft.around / name, draft.old / name
        if os.path.lexists(old) and not os.path.lexists(place):
            os.rename(old, place)  # noqa: PTH104
    draft.moves.unlink()
