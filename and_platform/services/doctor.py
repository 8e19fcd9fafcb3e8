"""Whether this machine can do what a profile asks of it, and what to do where it cannot."""

from __future__ import annotations

import importlib
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from and_platform import db
from and_platform.config import settings
from and_platform.errors import AndpError
from and_platform.services import provenance
from and_platform.services.profiles import Need, Profile

Status = Literal["ok", "warning", "missing"]

# Imported by transformers where they are installed at all; a broken one breaks models that do not need it.
_BREAKABLE = ("torchvision", "torchaudio")
_FORMATS = ("WAV", "FLAC", "OGG", "MP3")


class Check(NamedTuple):
    """One thing looked at. `missing` stops the profile from working; `advice` says what to do."""

    check: str
    status: Status
    found: str
    advice: str = ""


def examine(profile: Profile) -> list[Check]:
    """Look at the machine, the installation, the database, and everything that the profile needs."""
    checks = [_versions(), _database(), _memory(profile), _disk(profile), _gpu(profile), _decoders()]
    checks += [check for name in _BREAKABLE if (check := _breakable(name)) is not None]
    if any(need.source for need in profile.needs):
        checks.append(_hub(profile))
    return checks + [_need(need) for need in profile.needs]


def _versions() -> Check:
    return Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in provenance.versions().items()))


def _database() -> Check:
    config = settings()
    if config.database_url is None and not (config.home / "postgres").exists():
        return Check("database", "ok", f"embedded, not made yet; will be in {config.home / 'postgres'}")
    try:
        status = db.status(db.make_engine(db.database_url(config), config), config.database_url is None)
    except AndpError as exc:
        return Check("database", "missing", str(exc), "andp db status")
    where = "embedded" if status.embedded else status.url
    told = f"{where}: Postgres {status.server_version}, pgvector {status.pgvector_version or 'none'}"
    if status.pgvector_version is None:
        return Check("database", "missing", told, "install pgvector 0.8 or newer on the server")
    if status.schema_revision not in (None, status.newest_revision):
        return Check("database", "warning", f"{told}, schema {status.schema_revision}", "andp db upgrade")
    return Check("database", "ok", told)


def _memory(profile: Profile) -> Check:
    total = psutil.virtual_memory().total / 1e9
    import torch

    # A model on a GPU needs little beside it; without one it lies in the memory whole.
    needed = min(profile.memory_gb, 16.0) if profile.gpu_gb and torch.cuda.is_available() else profile.memory_gb
    told = f"{total:.0f} GB, {os.cpu_count()} processors"
    if total < needed:
        return Check("memory", "warning", told, f"the profile's largest model takes about {profile.memory_gb:.0f} GB")
    return Check("memory", "ok", told)


def _disk(profile: Profile) -> Check:
    needed = sum(need.gigabytes for need in profile.needs if need.here is False) + 2  # and a database of some size
    from huggingface_hub import constants

    homes = [settings().home, Path(constants.HF_HOME)]
    free, home = min((_free_gb(home), str(home)) for home in homes)
    told = f"{free:.0f} GB free at {home}"
    if free < needed:
        return Check(
            "disk", "missing", told, f"downloads and database take about {needed:.0f} GB; set ANDP_HOME, HF_HOME"
        )
    return Check("disk", "ok", told)


def _free_gb(folder: Path) -> float:
    """Free space where a folder is, or will be made."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free / 1e9


def _gpu(profile: Profile) -> Check:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        told = ", ".join(f"{device.name} ({device.total_memory / 1e9:.0f} GB)" for device in devices)
        largest = max(device.total_memory / 1e9 for device in devices)
        if largest < profile.gpu_gb:
            return Check(
                "GPU", "warning", told,
                f"the largest model wants {profile.gpu_gb:.0f} GB: spread it (tensor_parallel_size), quantise it, or serve "
                "it elsewhere (openai:MODEL@URL)",
            )  # fmt: skip
        return Check("GPU", "ok", told)
    told = "none that torch can use" + ("; Apple's (mps) is there" if torch.backends.mps.is_available() else "")
    if profile.gpu_gb:
        return Check(
            "GPU", "warning", told,
            f"the profile is meant for one of {profile.gpu_gb:.0f} GB; without it, serve the models elsewhere "
            "(openai-audio:MODEL@URL, openai:MODEL@URL)",
        )  # fmt: skip
    return Check("GPU", "ok", f"{told}; none is needed")


def _decoders() -> Check:
    import soundfile

    there = [name for name in _FORMATS if name in soundfile.available_formats()]
    lacking = [name for name in _FORMATS if name not in there]
    if lacking:
        return Check("audio formats", "warning", ", ".join(there), f"no {', '.join(lacking)}: install libsndfile 1.1")
    return Check("audio formats", "ok", ", ".join(there))


def _breakable(name: str) -> Check | None:
    """A package that is installed and cannot be imported; None where all is well."""
    if find_spec(name) is None:
        return None
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as exc:
        reason = str(exc).strip().partition("\n")[0]
        return Check(
            name, "missing", f"installed, but broken: {reason}",
            f"it breaks models that do not need it; pip uninstall {name}, or install the one that belongs to your torch",
        )  # fmt: skip
    return None


def _hub(profile: Profile) -> Check:
    import httpx
    from huggingface_hub import constants

    told = "not asked: HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            httpx.head(constants.ENDPOINT, timeout=5.0)
            return Check("model hub", "ok", f"{constants.ENDPOINT} answers")
        except httpx.HTTPError as exc:
            told = f"{constants.ENDPOINT} cannot be reached ({exc})"
    waiting = sum(bool(need.source) and need.here is False for need in profile.needs)
    if not waiting:
        return Check("model hub", "ok", f"{told}; nothing has to be fetched")
    advice = f"{waiting} models are not here; download them on a machine that reaches the hub, and give their folders"
    return Check("model hub", "missing", told, advice)


def _need(need: Need) -> Check:
    told = need.model + (f", {need.gigabytes:g} GB" if need.gigabytes >= 0.1 else "")
    todo = [need.get] if need.here is False else []
    if need.extra_missing:
        todo.append(f"pip install 'and-platform[{need.extra}]'")
    if need.here is False:
        return Check(need.part, "missing", f"{told}: not here", "; ".join(todo))
    if todo:
        return Check(need.part, "missing", f"{told}: here, but its extra is not", "; ".join(todo))
    if need.here is None and need.how:  # a data set, or a network of the user's making
        return Check(need.part, "warning", f"{told}: see andp {need.part}s list", need.how)
    if need.here is None:
        return Check(need.part, "ok", told)
    return Check(need.part, "ok", f"{told}: here")
