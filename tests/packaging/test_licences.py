"""The licences of all packages that this one needs: each fits an Apache-2.0 package, and NOTICE names it.

The section of NOTICE is made by `python -m tests.packaging.test_licences`.
"""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SECTION = "Packages that this one needs"

PERMISSIVE = {
    "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC",
    "LLVM-exception", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense", "Zlib",
}  # fmt: skip
WEAK_COPYLEFT = {"LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MPL-2.0"}
"""They reach the library itself and not what calls it."""

NAMES = {
    "Apache": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "New BSD": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",  # python-dateutil, by its file LICENSE
}
"""What metadata without an SPDX expression says, and what it means."""

KNOWN = {"kneed": "BSD-3-Clause"}
"""Packages whose metadata says nothing, by the file LICENSE that they install."""


def needed(extras: Iterable[str]) -> Iterator[importlib.metadata.Distribution]:
    """Yield each installed package that a run of this one needs, with those that they need in turn."""
    waiting = [("and-platform", extra) for extra in ("", *extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of an extra that is not installed
            continue
        if extra == "" and name != "and-platform":
            yield found
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)]


def licence(found: importlib.metadata.Distribution) -> str:
    """Return the SPDX expression of a package's licence; an empty one where its metadata has none."""
    fields = found.metadata
    name = canonicalize_name(found.name)
    if expression := fields.get("License-Expression"):
        return str(expression)
    text = (fields.get("License") or "").strip()
    classifiers = [line.split(" :: ")[-1] for line in fields.get_all("Classifier") or () if line.startswith("License")]
    for said in (text.splitlines()[0].strip() if text else "", *classifiers):
        spelled = NAMES.get(said, said)
        if spelled and parts(spelled) <= PERMISSIVE | WEAK_COPYLEFT:
            return spelled
    return KNOWN.get(name, text.partition("\n")[0] or " ".join(classifiers))


def parts(expression: str) -> set[str]:
    """Return the licences and exceptions that an SPDX expression names."""
    return set(re.split(r"[\s()]+", expression)) - {"AND", "OR", "WITH", ""}


def unfit(found: importlib.metadata.Distribution) -> str | None:
    """Return why a package does not fit, or None."""
    expression = licence(found)
    if not expression:
        return f"{found.name}: its metadata names no licence"
    others = parts(expression) - PERMISSIVE - WEAK_COPYLEFT
    return f"{found.name}: {expression}" if others else None


def section(extras: Iterable[str]) -> str:
    """Return the lines of NOTICE about needed packages."""
    rows = {canonicalize_name(found.name): licence(found) for found in needed(extras)}
    weak = [f"    {name}: {said}" for name, said in sorted(rows.items()) if parts(said) & WEAK_COPYLEFT]
    rest = [f"    {name}: {said}" for name, said in sorted(rows.items()) if not parts(said) & WEAK_COPYLEFT]
    return "\n".join(
        [
            f"{SECTION}, by the licence that each states. None of them is part of this distribution.",
            "",
            "Under the LGPL or the MPL, used as separate libraries and unchanged:",
            *weak,
            "",
            "Under permissive licences:",
            *rest,
        ]
    )


def declared_extras() -> dict[str, list[str]]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {name: lines for name, lines in extras.items() if name != "dev"}


def installed_extras() -> list[str]:
    """Return the extras all of whose packages are here."""
    here = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    return [
        name
        for name, lines in declared_extras().items()
        if all(canonicalize_name(Requirement(line).name) in here | {"and-platform"} for line in lines)
    ]


def test_each_licence_fits() -> None:
    wrong = [reason for found in needed(declared_extras()) if (reason := unfit(found))]
    assert not wrong, "\n".join(wrong)


def test_the_tests_environment_has_the_common_extras() -> None:
    assert {"workers", "tracing", "salmonn", "study"} <= set(installed_extras())


def test_notice_names_each_licence() -> None:
    stated = (ROOT / "NOTICE").read_text()
    stated = stated[stated.index(SECTION) :]

    def rows(text: str) -> dict[str, str]:
        lines = re.findall(r"^    ([a-z0-9.-]+): (.+)$", text, re.MULTILINE)
        return dict(lines)

    # An environment may hold more: packages of one platform, or of an extra of the reader's own.
    missing = {name: said for name, said in rows(section(installed_extras())).items() if rows(stated).get(name) != said}
    assert not missing, f"run: python -m tests.packaging.test_licences, and put into NOTICE: {missing}"
    needed_names = {canonicalize_name(found.name) for found in needed(declared_extras())}
    assert rows(stated).keys() <= needed_names, "NOTICE names what nothing needs any longer"


def _fake(folder: Path, name: str, metadata: str) -> importlib.metadata.Distribution:
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{metadata}")
    return importlib.metadata.PathDistribution(info)


@pytest.mark.parametrize(
    "metadata",
    [
        "License-Expression: GPL-3.0-or-later\n",
        "License-Expression: MIT AND GPL-2.0-only\n",
        "License: GPLv3\n",
        "License: UNKNOWN\n",
        "Classifier: License :: OSI Approved :: GNU Affero General Public License v3\n",
        "",
    ],
)
def test_a_licence_that_does_not_fit_is_seen(tmp_path: Path, metadata: str) -> None:
    assert unfit(_fake(tmp_path, "strange", metadata)) is not None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MPL-2.0 AND (Apache-2.0 OR MIT)\n", "MPL-2.0 AND (Apache-2.0 OR MIT)"),
        ("License: New BSD\n", "BSD-3-Clause"),
        ("License: Copyright (c) 2015 somebody\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
    ],
)
def test_a_licence_that_fits(tmp_path: Path, metadata: str, expected: str) -> None:
    found = _fake(tmp_path, "plain", metadata)
    assert (unfit(found), licence(found)) == (None, expected)


if __name__ == "__main__":
    print(section(installed_extras()))  # noqa: T201
