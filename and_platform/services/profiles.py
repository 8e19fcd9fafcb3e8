"""Profiles: sets of models that belong together, with what they need.

A profile is a file in `_data/profiles`: the options of a dissection, and for each of its models where it comes from, how
large it is, under which licence, and why it was chosen. `{models}` in it is the folder ANDP_MODELS.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from and_platform.backends import registry
from and_platform.backends.weights import is_here
from and_platform.config import settings
from and_platform.errors import NotFoundError
from and_platform.resources import resource
from and_platform.services.dissect import Options

DEFAULT = "offline"
_WITH_OPTIONS = ("captioner", "llm", "sentence_encoder", "text_encoder", "audio_encoder")


@dataclass(frozen=True)
class Need:
    """One model or data set of a profile.

    `part` is the option it stands for; `source` an id of the model hub, `path` a file or folder, `package` a Python
    package that brings it; `gigabytes` is what is downloaded, `memory_gb` what it takes while it works, `gpu_gb` the GPU
    memory without which it is too slow to be of use.
    """

    part: str
    model: str
    gigabytes: float
    memory_gb: float
    licence: str
    why: str
    source: str = ""
    path: str = ""
    package: str = ""
    extra: str = ""
    how: str = ""
    gpu_gb: float = 0.0

    @property
    def here(self) -> bool | None:
        """Whether it is on this machine; None where that cannot be told from files (a data set, a trained network)."""
        if self.package:
            return find_spec(self.package) is not None
        if self.path:
            return Path(self.path).exists()
        if self.source and self.part != "network":
            return is_here(self.source)
        return None

    @property
    def get(self) -> str:
        """How to get it."""
        if self.how:
            return self.how
        if self.source:
            return f"hf download {self.source} (or nothing: it is downloaded when it is first used)"
        return f"pip install {self.package}" if self.package else "it is here"

    @property
    def extra_missing(self) -> bool:
        """Whether the extra of the platform that it needs is not installed."""
        return bool(self.extra) and any(
            backend.extra == self.extra and not backend.installed
            for role in registry.ROLES
            for backend in registry.available(role)
        )


@dataclass(frozen=True)
class Rate:
    """Seconds a unit of a stage, and where that is from."""

    value: float
    basis: str


@dataclass(frozen=True)
class Profile:
    """A profile.

    `dissect` are options of a dissection; `network` the network it is about, if it is about one; `counts` the clips,
    concepts, layers and neurons to plan with where data set or network are not in the database; `seconds` rates by stage.
    """

    name: str
    description: str
    dissect: Mapping[str, Any]
    needs: tuple[Need, ...]
    network: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, Rate] = field(default_factory=dict)

    @property
    def gigabytes(self) -> float:
        """What has to be downloaded in all."""
        return sum(need.gigabytes for need in self.needs)

    @property
    def memory_gb(self) -> float:
        """What the largest of its models takes; they work one after the other."""
        return max(need.memory_gb for need in self.needs)

    @property
    def gpu_gb(self) -> float:
        """The GPU memory of the largest, 0 where no GPU is needed."""
        return max(need.gpu_gb for need in self.needs)


def names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in resource("profiles").glob("*.toml"))


def load(name: str) -> Profile:
    """The profile of that name.

    Raises
    ------
    NotFoundError
        There is none.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        raise NotFoundError(f"no profile '{name}'; there are: {', '.join(near or names())}")
    told = tomllib.loads(resource(f"profiles/{name}.toml").read_text("utf-8"))
    return TypeAdapter(Profile).validate_python({"name": name, **_placed(told, str(settings().models_folder))})


def _placed(value: Any, models: str) -> Any:
    """The same with `{models}` filled in."""
    if isinstance(value, str):
        return value.replace("{models}", models)
    if isinstance(value, dict):
        return {key: _placed(item, models) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, models) for item in value]
    return value


def settle(profile: Profile | None, *overrides: Mapping[str, Any]) -> Options:
    """The options of a dissection: the profile's, then each of the others, later ones before earlier ones.

    Tables of options (`llm_options` …) are joined key by key. Where another model takes the place of a profile's, the options
    that the profile has for its own do not go to it.

    Raises
    ------
    ConfigError
        As `Options.from_mapping`.
    """
    given = _joined(overrides)
    values = dict(profile.dissect) if profile else {}
    for role in _WITH_OPTIONS:
        if role in given and given[role] != values.get(role):
            values.pop(f"{role}_options", None)
    return Options.from_mapping(_joined([values, given]))


def _joined(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(joined.get(key), Mapping)
            joined[key] = {**joined[key], **value} if both else value
    return joined
