"""Drawing the neurons of a study, and writing the folder that raters open."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db, output_files
from and_platform.errors import AudioError, ConflictError, IncompleteError, InputError
from and_platform.queries import study as queries
from and_platform.schema import Study
from and_platform.services import experiments, provenance
from and_platform.services.progress import SILENT, Advance, Progress
from and_platform.services.study import catalogue, page

METHODS = ("closed_db", "closed_tab", "closed_icl", "summary")
"""Whose descriptions can be judged; those of the paper's Table 3 are asked for by default."""

PAPER_METHODS = ("closed_db", "closed_tab", "summary")

AUDIO = ("flac", "mp3")
"""How the clips are written: without loss, or a quarter of the size."""

_OURS = frozenset({page.INDEX, page.README, page.AUDIO})
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_NEED = {
    "closed_db": "the method db",
    "closed_tab": "the method tab; give it an encoder of sound and text with --audio-encoder clap:DIRECTORY",
    "closed_icl": "the method icl; give it a model with --llm",
    "summary": "calibrated summaries",
}


@dataclass(frozen=True)
class Exported:
    """A study as it was written."""

    name: str
    token: str
    folder: Path
    neurons: int
    descriptions: int
    clips: int
    bytes: int
    new: bool
    """False: a study of this name and with these options was there, and has been written again."""
    methods: list[str]
    notes: list[str] = field(default_factory=list)


def export(
    engine: sa.Engine,
    network: str,
    folder: Path,
    *,
    name: str | None = None,
    dissection: int | None = None,
    per_layer: int = 10,
    layers: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    exemplars: int = 5,
    seed: int = 0,
    audio: str = "flac",
    force: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Draw neurons, keep them as a study, and write the folder that raters open in a browser.

    Neurons are drawn per layer in the order of a hash of the seed and their name, among those of which every method says
    something. Where the files cannot be written, neither they nor a study are left. The same study again is written over
    itself, as after a kill.

    Parameters
    ----------
    name
        What to call the study; default: the network's name. The same name with the same options writes the same study
        again.
    per_layer
        Neurons drawn of each layer.
    layers
        Patterns on layer names; default: all but the head.
    methods
        Of METHODS; default: those of the paper (closed_db, closed_tab, summary) that the dissection has.
    exemplars
        The most active clips of each neuron that are played.
    audio
        flac or mp3.
    force
        Replace a folder that holds another study.

    Raises
    ------
    InputError
        Options that cannot be used, or a folder that holds something.
    IncompleteError
        The dissection has no descriptions by a method, or none at all.
    ConflictError
        There is a study of this name with other options.
    AudioError
        A clip is missing, or has changed since it was ingested.
    """
    _check(per_layer, exemplars, seed, methods, audio)
    folder = folder.expanduser().absolute()
    there = _check_folder(folder)
    arguments = {"network": network, "folder": str(folder), "name": name, "seed": seed}
    with (
        provenance.run(engine, "study export", arguments) as run,
        # The study is kept first, then its folder put in place: a kill in between leaves what the same command finds.
        output_files.folder(folder, ours=_OURS.__contains__) as draft,
        db.transaction(engine) as session,
    ):
        about = experiments.subject(session, network, dissection)
        run.dissection_id = about.dissection_id
        asked: dict[str, Any] = {
            "name": name or about.network, "per_layer": per_layer, "within": sorted(set(layers or [])),
            "methods": _methods(session, about, methods), "exemplars": exemplars, "seed": seed,
        }  # fmt: skip
        notes = _left_out(methods, asked["methods"])
        study, new = _study(session, about, asked)
        if there and not force and there != study.token:
            raise InputError(f"{folder} is not empty; name another folder, or replace a study there with --force")
        if new:
            notes += _draw(session, about, study, asked)
        counts = _write(session, study, asked, draft, audio, progress)
        run.counts |= {"neurons": counts["neurons"], "clips": counts["clips"]}
        made = Exported(study.name, study.token, folder, **counts, new=new, methods=asked["methods"], notes=notes)
    return made


def _check(per_layer: int, exemplars: int, seed: int, methods: Sequence[str] | None, audio: str) -> None:
    if per_layer < 1:
        raise InputError(f"{per_layer} neurons per layer cannot be drawn; ask for at least 1")
    if not 1 <= exemplars <= 20:
        raise InputError(f"{exemplars} exemplars cannot be shown; ask for 1 to 20, which are stored")
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"the seed {seed} is too large; give one of up to 18 digits")
    if unknown := sorted(set(methods or []) - set(METHODS)):
        raise InputError(f"no method '{unknown[0]}'; choose of {', '.join(METHODS)}")
    if audio not in AUDIO:
        raise InputError(f"clips cannot be written as '{audio}'; choose {' or '.join(AUDIO)}")


def _check_folder(folder: Path) -> str | None:
    """The token of the study that is in the folder, or "unknown"; None where the folder is empty or not there."""
    output_files.recover(folder)
    output_files.check_folder(folder)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if other := sorted(there - _OURS):
        raise InputError(f"{folder} holds something else than a study ({other[0]}); name another folder")
    return (page.token_of(folder) or "unknown") if there else None


def _methods(session: Session, about: experiments.Subject, asked: Sequence[str] | None) -> list[str]:
    """The methods to judge, in their fixed order."""
    stages = set(
        session.scalars(
            sa.text("SELECT stage FROM dissection_recipes WHERE dissection_id = :id"), {"id": about.dissection_id}
        )
    )
    there = {method for method in about.methods if any(stage.startswith(f"match.{method}.") for stage in stages)}
    has = {f"closed_{method}" for method in there} | ({"summary"} if "calibrate" in stages else set())
    for method in asked or ():
        if method not in has:
            raise IncompleteError(f"dissection {about.dissection_id} was made without {_NEED[method]}")
    chosen = [method for method in METHODS if method in (asked or PAPER_METHODS) and method in has]
    if not chosen:
        raise IncompleteError(
            f"dissection {about.dissection_id} describes no neuron; run: andp dissect {about.network} --dataset {about.dataset}"
        )
    return chosen


def _left_out(asked: Sequence[str] | None, chosen: Sequence[str]) -> list[str]:
    """Which of the paper's methods the dissection lacks, where nobody chose."""
    missing = [] if asked else [method for method in PAPER_METHODS if method not in chosen]
    return [f"{method} is left out: the dissection was made without {_NEED[method]}" for method in missing]


def _layers(about: experiments.Subject, patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return [layer for layer in about.layers if layer != "head"]
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in about.layers):
            raise InputError(
                f"no layer of dissection {about.dissection_id} matches '{pattern}'; there are: {', '.join(about.layers)}"
            )
    return [layer for layer in about.layers if any(fnmatchcase(layer, pattern) for pattern in patterns)]


def _study(session: Session, about: experiments.Subject, asked: dict[str, Any]) -> tuple[Study, bool]:
    """The study of that name, made if there is none; and whether it is new."""
    # Two exports of the same name at once: the second waits, and finds what the first has made.
    session.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended('study ' || :name, 0))"), {"name": asked["name"]}
    )
    there = session.scalars(sa.select(Study).where(Study.name == asked["name"])).one_or_none()
    if there is not None:
        _check_same(session, there, about, asked)
        return there, False
    recipe = experiments.plan(about, "study", **asked)
    study = Study(
        name=asked["name"], token=recipe.sha256[:24], dissection_id=about.dissection_id,
        recipe_id=provenance.recipe_id(session, recipe),
    )  # fmt: skip
    session.add(study)
    session.flush()
    return study, True


def _check_same(session: Session, there: Study, about: experiments.Subject, asked: dict[str, Any]) -> None:
    made = catalogue.options(session, there)
    other = [
        f"{key.replace('_', '-')} {_told(made[key])} instead of {_told(value)}"
        for key, value in asked.items()
        if made[key] != value
    ]
    if there.dissection_id != about.dissection_id:
        other.insert(0, f"dissection {there.dissection_id} instead of {about.dissection_id}")
    if other:
        raise ConflictError(
            f"there is a study '{there.name}' with {', '.join(other)}; give this one another --name, "
            f"or remove the other: andp study drop {there.name}"
        )


def _told(value: Any) -> str:
    return (",".join(map(str, value)) or "default") if isinstance(value, list) else str(value)


def _draw(session: Session, about: experiments.Subject, study: Study, asked: dict[str, Any]) -> list[str]:
    """Draw the neurons and write their descriptions; returns what a user should know of the draw."""
    layers = _layers(about, asked["within"])
    if not layers:
        raise IncompleteError(
            f"dissection {about.dissection_id} covers no hidden layer; run: andp dissect {about.network} "
            f"--dataset {about.dataset}, or ask for the head with --layers head"
        )
    which: dict[str, Any] = {"study": study.id, "dissection": about.dissection_id}
    queries.insert_study_items(
        session, **which, layers=layers, methods=asked["methods"], per_layer=asked["per_layer"], seed=asked["seed"]
    )
    n = queries.insert_study_descriptions(session, **which, methods=asked["methods"], seed=asked["seed"])
    if not n:
        raise IncompleteError(
            f"no neuron of {', '.join(layers)} is described by {' and '.join(asked['methods'])}; "
            f"run: andp dissect {about.network} --dataset {about.dataset}"
        )
    short = [row for row in queries.study_drawn(session, **which, layers=layers) if row["drawn"] < asked["per_layer"]]
    if not short:
        return []
    told = ", ".join(f"{row['layer']} {row['drawn']}" for row in short[:6]) + (" …" if len(short) > 6 else "")
    return [
        f"fewer than {asked['per_layer']} neurons with a description by every method in {len(short)} of "
        f"{len(layers)} layers ({told})"
    ]


# ---------------------------------------------------------------------- the folder


def _write(
    session: Session, study: Study, asked: dict[str, Any], draft: Path, audio: str, progress: Progress
) -> dict[str, int]:
    """Write page, note and clips."""
    clips = queries.study_clips(session, study=study.id, exemplars=asked["exemplars"])
    shown = queries.study_shown(session, study=study.id)
    distinct = {row["clip_id"]: row for row in clips}
    with progress.stage("write clips", len(distinct), "clips") as advance:
        files = _write_clips(study.token, list(distinct.values()), draft / page.AUDIO, audio, advance)
    page.write(draft, study.token, study.name, shown, [{**row, "file": files[row["clip_id"]]} for row in clips])
    size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    items = {row["item"] for row in shown}
    return {"neurons": len(items), "descriptions": len(shown), "clips": len(distinct), "bytes": size}


def _write_clips(token: str, clips: list[dict[str, Any]], folder: Path, audio: str, advance: Advance) -> dict[int, str]:
    """Clip id -> file name. Names follow from the study and the sound, and tell nothing of either."""
    folder.mkdir()
    names: dict[int, str] = {}
    for row in clips:
        digest = hashlib.sha256(f"{token} {row['sha256']}".encode()).hexdigest()
        names[row["clip_id"]] = f"{digest[:12]}.{audio}"
        _transcode(row["root"], row["path"], row["sha256"], folder / names[row["clip_id"]])
        advance(1)
    return names


def _transcode(root: str, key: str, sha256: str, target: Path) -> None:
    """Write a clip as the network hears it: one channel, at its own loudness; without the tags of its file."""
    import soundfile

    from and_platform.backends import audio

    try:
        sound = audio.decode(audio.at(root, key), sha256)
    except AudioError as error:
        raise AudioError(f"cannot write '{key}': {error}; bring the file back, or ingest the data set again") from error
    waveform, rate = np.clip(sound.waveform, -1, 1), sound.rate
    if target.suffix == ".mp3":
        fitting = next((known for known in _MP3_RATES if known >= rate), _MP3_RATES[-1])
        waveform, rate = np.clip(audio.resample(waveform, rate, fitting), -1, 1), fitting
        soundfile.write(target, waveform, rate, format="MP3")
    else:
        soundfile.write(target, waveform, rate, format="FLAC", subtype="PCM_16")
