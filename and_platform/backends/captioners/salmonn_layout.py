"""Where the four downloads of a SALMONN lie, and the settings that it was trained with."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from and_platform.backends.weights import Weights, find_weights
from and_platform.errors import ConfigError, WeightsMissingError

LAYOUT_FILE = "salmonn.toml"
SPEECH_PLACE = "<SpeechHere>"
_SPEECH = f"<Speech>{SPEECH_PLACE}</Speech>"


@dataclass(frozen=True)
class _Part:
    """One of the downloads: the names under which it is looked for, and what to get where there is none."""

    names: tuple[str, ...]
    download: str
    suffixes: tuple[str, ...] = ()  # of the file that counts; none where the part is a directory


_PARTS = {
    "whisper": _Part(("whisper",), "the Whisper model openai/whisper-large-v2 (a directory)"),
    "beats": _Part(
        ("beats.pt", "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"),
        "the file BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt (BEATs of microsoft/unilm)",
        (".pt", ".pth"),
    ),
    "vicuna": _Part(
        ("vicuna",),
        "the language model lmsys/vicuna-13b-v1.1 for SALMONN-13B, lmsys/vicuna-7b-v1.5 for 7B (a directory)",
    ),
    "checkpoint": _Part(
        ("salmonn.pth", "salmonn_v1.pth", "salmonn_7b_v0.pth"),
        "the file salmonn_v1.pth of tsinghua-ee/SALMONN, or salmonn_7b_v0.pth of tsinghua-ee/SALMONN-7B",
        (".pth", ".pt"),
    ),
}


_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "second_per_window": ("a number of seconds", (int, float)),
    "second_stride": ("a number of seconds", (int, float)),
    "prompt_template": ("a text", (str,)),
}


@dataclass(frozen=True)
class SalmonnSettings:
    """What cannot be read from the weights; the defaults are the published ones.

    Parameters
    ----------
    second_per_window, second_stride
        Length and distance of the windows of which the Q-Former makes tokens, in seconds.
    num_speech_query_token, lora_rank
        Checked against the checkpoint where they are given.
    lora_alpha
        The adapters are scaled by alpha / rank.
    qformer_heads
        Attention heads of the Q-Former; 64 wide each unless it is given.
    prompt_template
        What stands around sound and prompt, with {} in their place.
    """

    second_per_window: float = 0.333333
    second_stride: float = 0.333333
    num_speech_query_token: int | None = None
    lora_rank: int | None = None
    lora_alpha: int = 32
    qformer_heads: int | None = None
    prompt_template: str = "USER: {}\nASSISTANT:"

    def around_speech(self, prompt: str) -> tuple[str, str]:
        """The text before and after the sound, for a prompt.

        Raises
        ------
        ConfigError
            If the template has no place, or more than one, for what is asked.
        """
        if self.prompt_template.count("{}") != 1:
            raise ConfigError(f"the prompt_template {self.prompt_template!r} of a SALMONN needs {{}} once")
        asked = self.prompt_template.replace("{}", f"{_SPEECH} {prompt.strip()}")
        before, _, after = asked.partition(SPEECH_PLACE)
        if SPEECH_PLACE in after:
            raise ConfigError(f"the prompt must not hold {SPEECH_PLACE}: SALMONN hears the sound once, before it")
        return before, after


@dataclass(frozen=True)
class SalmonnLayout:
    """The parts of a SALMONN and its settings."""

    whisper: Weights
    beats: Weights
    vicuna: Weights
    checkpoint: Weights
    settings: SalmonnSettings


def read_layout(source: str) -> SalmonnLayout:
    """Find the parts of a SALMONN.

    Parameters
    ----------
    source
        A directory with the parts under their usual names (`whisper/`, `vicuna/`, `beats.pt`, `salmonn.pth`), or
        with a file `salmonn.toml` that says where they are: `whisper`, `beats`, `vicuna`, `checkpoint`, each a path
        (relative to the directory) or a hub id; and a table `[model]` with settings other than the published ones.

    Raises
    ------
    WeightsMissingError
        If a part is missing; the message says what to download and where to put it.
    ConfigError
        If salmonn.toml cannot be read, or says what it should not.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise WeightsMissingError(
            f"there is no directory {source}; make one that holds {', '.join(part.names[0] for part in _PARTS.values())}"
        )
    written = _read_toml(folder / LAYOUT_FILE)
    settings = _settings(written.pop("model", {}), folder / LAYOUT_FILE)
    if unknown := sorted(written.keys() - _PARTS.keys()):
        raise ConfigError(
            f"{folder / LAYOUT_FILE} has no use for '{unknown[0]}'; it knows {', '.join(_PARTS)} and model"
        )
    return SalmonnLayout(**{name: _find(folder, name, written.get(name)) for name in _PARTS}, settings=settings)


def _read_toml(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file} is no TOML: {exc}") from exc


def _settings(table: Any, file: Path) -> SalmonnSettings:
    if not isinstance(table, dict):
        raise ConfigError(f"'model' of {file} must be a table; write [model] and settings below it")
    known = [field.name for field in fields(SalmonnSettings)]
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"[model] of {file} has no setting '{name}'; there is {', '.join(known)}")
        kind, types = _KINDS.get(name, ("a whole number", (int,)))
        if not isinstance(value, types) or isinstance(value, bool):
            raise ConfigError(f"'{name}' of {file} must be {kind}")
        if isinstance(value, int | float) and value <= 0:
            raise ConfigError(f"'{name}' of {file} must be above 0, not {value}")
    return SalmonnSettings(**table)


def _find(folder: Path, name: str, written: Any) -> Weights:
    part = _PARTS[name]
    if written is not None and (not isinstance(written, str) or not written):
        raise ConfigError(f"'{name}' of {folder / LAYOUT_FILE} must be a path or a hub id")
    candidates = [folder / Path(name).expanduser() for name in ([written] if written else part.names)]
    here = next((path for path in candidates if path.exists()), None)
    if here is None and (written is None or not _may_be_hub_id(written, part)):
        raise WeightsMissingError(
            f"SALMONN has no {name}: download {part.download} to {candidates[0]}, "
            f'or say where it is with {name} = "..." in {folder / LAYOUT_FILE}'
        )
    weights = find_weights(str(here or written))
    if not part.suffixes or weights.path.is_file():
        return weights
    found = sorted(file for file in weights.path.iterdir() if file.suffix in part.suffixes)
    if len(found) != 1:
        raise WeightsMissingError(
            f"{weights.path} holds {len(found)} files that could be the {name} of SALMONN; name one of them "
            f'with {name} = "..." in {folder / LAYOUT_FILE}'
        )
    return Weights(found[0], weights.revision, weights.origin)


def _may_be_hub_id(written: str, part: _Part) -> bool:
    """Whether it is no path for certain: hub ids do not begin like one, or end like the file that is wanted."""
    return not written.startswith((".", "/", "~")) and not written.endswith((*part.suffixes, "/"))
