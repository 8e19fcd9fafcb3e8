"""A network whose every logit can be worked out by hand, its sounds, and a dissection of it.

A clip of a class is three stretches of constant level, silence but for the stretch of its class. The network takes the level
of each stretch x [3]; hidden units 2c and 2c + 1 are x[c] and the logit of class c is 4 of the one and 2 of the other:
6 x[c] intact, 2 x[c] without unit 2c, 4 x[c] without unit 2c + 1, 0 without both. Every other logit of the clip is 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from torch import Tensor, nn

from and_platform import db
from and_platform.schema import Clip, Dataset, Dissection, Network
from and_platform.services import datasets, networks
from tests import factories
from tests.factories import Told

RATE = 16_000
CLASSES = ("dog", "rain", "siren")
STRETCH = 800
HIDDEN = "hidden"

# Label, fold, level: the held-out clips are those of fold 1; there is none of a siren.
SOUNDS = (
    ("dog", 1, 0.5), ("dog", 1, 0.25), ("rain", 1, 1.0), ("dog", 2, 0.5), ("rain", 2, 0.5), ("siren", 2, 0.5),
    ("siren", 3, 0.25), ("thunder", 1, 0.5),
)  # fmt: skip


class Levels(nn.Module):
    """Hidden units that copy levels, and a head that adds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 6)
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.eye(3).repeat_interleave(2, dim=0))
            self.hidden.bias.zero_()
            self.head.weight.copy_(torch.kron(torch.eye(3), torch.tensor([[4.0, 2.0]])))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Any:
        """Logits of levels [clips, 3]."""
        return self.head(self.hidden(x))


def prepare(waveforms: list[Any]) -> Tensor:
    """The level of each stretch of each waveform."""
    return torch.stack([torch.from_numpy(np.resize(w, 3 * STRETCH)).reshape(3, STRETCH).mean(1) for w in waveforms])


def build() -> tuple[nn.Module, dict[str, Any]]:
    """What `andp networks add NAME tests.hand_network:build` loads."""
    return Levels(), {"rate": RATE, "classes": list(CLASSES), "prepare": prepare}


TOLD: Mapping[str, Told] = {
    f"{HIDDEN}#0": Told(
        points=["A dog, close by."], terms=[("dog", "noun")], closed={"db": ["dog", "rain", "siren"]}
    ),
    f"{HIDDEN}#2": Told(points=["Rain falls."], terms=[("rain", "noun")], closed={"db": ["rain"]}),
    f"{HIDDEN}#3": Told(
        points=["Rain, and a dog, far off."], terms=[("dog", "noun"), ("rain", "noun")],
        closed={"db": ["siren", "rain"]},
    ),
    "head#0": Told(points=["A dog."], terms=[("dog", "noun")], closed={"db": ["dog"]}),
}  # fmt: skip
"""`open` chooses hidden units 0 and 3 for a dog, 2 and 3 for rain; `closed_db` 0 for a dog, 0, 2 and 3 for rain."""


def world(engine: Engine, folder: Path, told: Mapping[str, Told] = TOLD) -> tuple[Network, Dissection]:
    """The sounds on disk, the network `hand`, and a dissection that says `told`."""
    with db.transaction(engine) as session:
        probing = _sounds(session, folder)
    network = networks.add(engine, "hand", "tests.hand_network:build", trained_on="levels", held_out_fold=1)
    with db.transaction(engine) as session:
        units = {name: layer.n_units for name, layer in factories.layers_of(session, network).items()}
        recording = factories.recording(session, network, probing, factories.random_values(units, len(SOUNDS)))
        concepts = factories.concept_set(session, CLASSES, "classes")
        return network, factories.dissection(session, recording, concepts, told)


def _sounds(session: Session, folder: Path) -> Any:
    row = Dataset(name="levels", root=str(folder), kind="folder")
    session.add(row)
    session.flush()
    for number, (label, fold, level) in enumerate(SOUNDS):
        wave = np.zeros((3, STRETCH), np.float32)
        wave[CLASSES.index(label) if label in CLASSES else 0] = level
        file = folder / f"{number}-{label}.wav"
        soundfile.write(file, wave.ravel(), RATE, subtype="FLOAT")
        session.add(
            Clip(
                dataset_id=row.id, path=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest(), labels=[label],
                fold=fold, sample_rate=RATE, channels=1, duration_s=0.15, mean_abs_amplitude=0.1, rms=0.1, peak=level,
                median_frequency_hz=440.0, silence_share=0.0,
            )
        )  # fmt: skip
    session.flush()
    return datasets.snapshot(session, row.id)
