"""Each regular expression of the package reads hostile text in time that is linear in its length.

Patterns are found in the syntax tree, and as objects of imported modules where they are composed. Each meets texts that are
made of its own parts: a part that repeats, after what must stand before it, with an end that does not match.
"""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _constants as constants
from re import _parser as parser
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
METHODS = ("match", "fullmatch", "search", "sub", "findall", "finditer", "split")
LENGTHS = (*range(14, 30, 2), 250, 2_000, 8_000, 32_000)
"""Characters of a text: they grow, so that an exponential or quadratic pattern is left early."""
SECONDS = 0.8
"""CPU seconds for a text. A linear pattern takes some milliseconds for the longest, a quadratic one 4 s or more."""


class Found:
    """A pattern, where it is, and which of its methods are called there."""

    def __init__(self, where: str, pattern: re.Pattern[str], methods: set[str]) -> None:
        self.where, self.pattern, self.methods = where, pattern, methods


def sources() -> Iterator[Path]:
    for room in ("and_platform", "workers", "migrations"):
        yield from (path for path in sorted((ROOT / room).rglob("*.py")) if "_data" not in path.parts)


def module_of(path: Path) -> ModuleType | None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if name.startswith("migrations"):
        return None
    try:
        return importlib.import_module(name)
    except ImportError:  # of an extra that is not installed
        return None


def patterns() -> list[Found]:
    found: list[Found] = []
    for path in sources():
        text = path.read_text("utf-8")
        if "re." not in text:
            continue
        where = str(path.relative_to(ROOT))
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if _calls_re(node):
                assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                literal = node.args[0]
                if node.func.attr != "compile" and isinstance(literal, ast.Constant):
                    flags = re.MULTILINE if "MULTILINE" in ast.unparse(node) else 0
                    found.append(Found(f"{where}:{node.lineno}", re.compile(literal.value, flags), {node.func.attr}))
        module = module_of(path)
        for name, value in vars(module).items() if module else ():
            found += [
                Found(
                    f"{where}:{name}",
                    pattern,
                    {m for m in METHODS if re.search(rf"\b{name}\.{m}\(", text)} or {*METHODS},
                )
                for pattern in _held(value)
            ]
    return found


def _calls_re(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in {*METHODS, "compile"}
    )


def _held(value: object, depth: int = 3) -> list[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        return [value]
    if depth and isinstance(value, tuple | list | set | frozenset):
        return [pattern for member in value for pattern in _held(member, depth - 1)]
    if depth and isinstance(value, dict):
        return [pattern for member in value.values() for pattern in _held(member, depth - 1)]
    return []


# ---------------------------------------------------------------------- hostile texts


def least(tree: parser.SubPattern, repeat: int = 1) -> str:
    """Return a short text that the tree matches, or nearly: what looks around is passed over."""
    return "".join(_least_of(op, value, repeat) for op, value in tree)


def _least_of(op: object, value: object, repeat: int) -> str:
    if op is constants.LITERAL:
        return chr(value)  # type: ignore[arg-type]
    if op is constants.NOT_LITERAL:
        return "a" if value != ord("a") else "b"
    if op is constants.ANY:
        return "x"
    if op is constants.IN:
        return _member(value)
    if op is constants.BRANCH:
        return least(value[1][0], repeat)  # type: ignore[index]
    if op is constants.SUBPATTERN:
        return least(value[3], repeat)  # type: ignore[index]
    if op is constants.ATOMIC_GROUP:
        return least(value, repeat)  # type: ignore[arg-type]
    if op in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
        low, high, body = value  # type: ignore[misc]
        return least(body, repeat) * max(low, min(high, repeat))
    return ""


_CANDIDATES = "a1 -_.:\"'/@=\n\tA,;*#%&{[(\u2022\\"


def _member(value: object) -> str:
    pattern = re.compile("[" + "".join(_class(op, what) for op, what in value) + "]")  # type: ignore[attr-defined]
    return next((character for character in _CANDIDATES if pattern.match(character)), "a")


def _class(op: object, what: object) -> str:
    categories = {
        constants.CATEGORY_DIGIT: r"\d", constants.CATEGORY_NOT_DIGIT: r"\D", constants.CATEGORY_SPACE: r"\s",
        constants.CATEGORY_NOT_SPACE: r"\S", constants.CATEGORY_WORD: r"\w", constants.CATEGORY_NOT_WORD: r"\W",
    }  # fmt: skip
    if op is constants.NEGATE:
        return "^"
    if op is constants.LITERAL:
        return re.escape(chr(what))  # type: ignore[arg-type]
    if op is constants.RANGE:
        return f"{re.escape(chr(what[0]))}-{re.escape(chr(what[1]))}"  # type: ignore[index]
    return categories[what]  # type: ignore[index]


def repeats(tree: parser.SubPattern, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield what stands before each repetition of the pattern, and the text that repeats."""
    for op, value in tree:
        if op in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
            _, high, body = value
            if high > 8:
                yield before, least(body) or "a"
            yield from repeats(body, before)
        elif op is constants.BRANCH:
            for branch in value[1]:
                yield before, least(branch) or "a"
                yield from repeats(branch, before)
        elif op is constants.SUBPATTERN:
            yield from repeats(value[3], before)
        before += _least_of(op, value, 1)


def hostile(pattern: re.Pattern[str]) -> set[tuple[str, str, str]]:
    """Return (beginning, part that repeats, end) of texts."""
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    whole = least(tree)
    texts = {("", part, end) for part in (*_CANDIDATES, whole, least(tree, 2)) if part for end in ("", "\0")}
    texts |= {("", whole[:n], "\0") for n in range(1, min(len(whole), 12))}
    for before, part in repeats(tree):
        texts |= {(before, part, "\0"), ("", before + part, "\0"), (before, part + " ", "\0"), (whole, part, "\0")}
    return texts


def seconds(run: Callable[[str], object], text: str) -> float:
    began = time.thread_time()
    run(text)
    return time.thread_time() - began


def runner(found: Found, method: str) -> Callable[[str], object]:
    call = getattr(found.pattern, method)
    if isinstance(found.pattern.pattern, bytes):
        of_text = runner(Found(found.where, re.compile(found.pattern.pattern.decode("latin-1")), {method}), method)
        return of_text  # what takes its time is the same
    if method == "sub":
        return lambda text: call("", text)
    if method == "finditer":
        return lambda text: list(call(text))
    return call  # type: ignore[no-any-return]


def too_slow(found: Found) -> str | None:
    """Return the text that takes too long; lengths double, so that a bad pattern is left early."""
    for before, part, end in sorted(hostile(found.pattern)):
        for method in sorted(found.methods):
            run = runner(found, method)
            for length in LENGTHS:
                text = before + part * max(length // len(part), 1) + end
                if (took := seconds(run, text)) > SECONDS:
                    return f"{method} of {before!r} + {part!r} * {length // len(part)} + {end!r} takes {took:.1f} s"
    return None


FOUND = patterns()


def test_patterns_are_found() -> None:
    assert len(FOUND) > 60
    assert {"and_platform/masking.py:_RULES", "and_platform/core/text.py:_EMPHASIS"} <= {found.where for found in FOUND}


@pytest.mark.parametrize("where", sorted({found.where for found in FOUND}))
def test_a_pattern_is_linear(where: str) -> None:
    slow = [told for found in FOUND if found.where == where and (told := too_slow(found))]
    assert not slow, "\n".join(slow)


@pytest.mark.parametrize(
    "pattern", [r"^\s*#+\s*", r"(a+)+$", r"\w+@", r"([a-z][a-z0-9+.-]*://[^\s:@/?#]*:)[^\s\"'<>]*@", r"(x|xy)*z\d+=.*;"]
)
def test_a_quadratic_pattern_is_seen(pattern: str) -> None:
    assert too_slow(Found("here", re.compile(pattern, re.MULTILINE), {"search", "sub"})) is not None
