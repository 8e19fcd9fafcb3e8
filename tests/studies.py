"""A network whose descriptions people can judge: every clip has a file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform.schema import Clip, Dataset
from tests import factories
from tests.factories import Told, World

LAYERS = {"b00.ff_in": 6, "b01.ff_in": 6, "head": 3}
RATE = 8000


def told() -> dict[str, Told]:
    """Every neuron is described by all methods, but for two of the first layer."""
    every = {
        f"{layer}#{unit}": Told(
            points=[f"It sounds like {layer} {unit}.", "It is <b>loud</b> & </script> steady."],
            terms=[("loud", "adjective")],
            closed={"db": ["dog"], "tab": ["rain"], "icl": ["siren"]},
        )
        for layer, units in LAYERS.items()
        for unit in range(units)
    }
    every["b00.ff_in#0"] = Told(points=[], closed={"db": ["dog"], "tab": ["rain"], "icl": ["siren"]})
    every["b00.ff_in#1"] = Told(points=["It hums."], closed={"db": ["dog"]})
    return every


def give_sounds(session: Session, folder: Path) -> None:
    """Files for the clips of a world: tones, the second channel silent."""
    for i, clip in enumerate(session.scalars(sa.select(Clip).order_by(Clip.id))):
        path = folder / clip.path
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = 0.5 * np.sin(2 * np.pi * (200 + 50 * i) * np.arange(RATE // 2) / RATE)
        soundfile.write(path, np.stack([tone, 0 * tone], axis=1), RATE)
        clip.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    session.execute(sa.update(Dataset).values(root=str(folder)))


def world(session: Session, sounds: Path) -> World:
    """A dissected network of two hidden layers and a head, with sounds."""
    made = factories.world(session, layers=LAYERS, told=told())
    give_sounds(session, sounds)
    return made


def data_of(folder: Path) -> dict[str, Any]:
    """What the page knows."""
    found = re.search(r'id="study-data">(.*?)</script>', (folder / "index.html").read_text("utf-8"), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data
