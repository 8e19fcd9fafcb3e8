"""Checkpoints broken at random: a seed says how."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    10**4,
    -(10**9),
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "None",
    "0",
    "float32",
    "a" * 5000,
    "\ud800",
    "\0",
    [],
    [0],
    [1, 2, 3],
    [None],
    ["x"],
    [[]],
    {},
    {"": 1},
    {"0": "x"},
    {"a": {"b": {}}},
    {"-1": "a", "x": "b"},
]


def mutate(file: Path, chance: random.Random) -> str:
    """Break a file in one of several ways; tells how."""
    if file.suffix == ".json" and chance.random() < 0.85:
        return _mutate_json(file, chance)
    content = bytearray(file.read_bytes())
    how = chance.choice(["flip", "flip", "cut", "insert", "repeat", "zero", "head", "length"])
    place = chance.randrange(max(1, len(content)))
    match how:
        case "flip":
            # Headers come first, a pickle may be anywhere.
            for _ in range(chance.choice([1, 4, 40])):
                at = chance.randrange(min(len(content), chance.choice([64, 2000, 10**9])))
                content[at] ^= 1 << chance.randrange(8)
        case "cut":
            del content[place:]
        case "insert":
            content[place:place] = chance.randbytes(chance.choice([1, 8, 100]))
        case "repeat":
            content[place:place] = content[: chance.choice([1, 100])]
        case "zero":
            content[place : place + 100] = bytes(100)
        case "head":
            del content[: chance.choice([1, 8, 100])]
        case "length":
            content[:8] = chance.choice([0, 1, 2**40, 2**64 - 1, len(content)]).to_bytes(8, "little")
    file.write_bytes(content)
    return f"{file.name}: {how} at {place}"


def _mutate_json(file: Path, chance: random.Random) -> str:
    content = json.loads(file.read_text())
    if chance.random() < 0.05:
        file.write_text(json.dumps(chance.choice(_VALUES)))
        return f"{file.name}: replaced"
    told = []
    for _ in range(chance.choice([1, 1, 2])):
        inside = content
        while isinstance(inside, dict) and inside:
            key = chance.choice(sorted(inside, key=str))
            if not isinstance(inside[key], dict) or not inside[key] or chance.random() < 0.3:
                break
            inside = inside[key]
        if not isinstance(inside, dict) or not inside:
            break
        if chance.random() < 0.15:
            del inside[key]
            told.append(f"no {key}")
        else:
            inside[key] = copy.deepcopy(chance.choice(_VALUES))
            told.append(f"{key} = {str(inside[key])[:20]!r}")
    file.write_text(json.dumps(content))
    return f"{file.name}: {', '.join(told)}"
