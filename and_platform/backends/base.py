"""What each kind of backend promises: one small protocol per role.

A backend never sees the database. Whatever changes its results is in `recipe`, which is hashed into the
provenance of every row computed with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BackendRecipe:
    """What identifies a backend's results: part of the provenance of each row.

    `name` as the registry knows it ("minilm"), `revision` of the weights or of the algorithm, and every
    parameter that changes the result. Nothing secret and nothing that only changes speed belongs here.
    `origin` says where the weights were taken from; the same weights from elsewhere are the same recipe.
    """

    name: str
    revision: str
    params: dict[str, Any] = field(default_factory=dict)
    origin: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Clip:
    """A decoded clip: mono float32 samples in [-1, 1] (shape [n_samples]) at `rate` Hz.

    `key` names the clip in messages (its path in the data set); `source_caption` and `labels` are what the
    data set says of it.
    """

    key: str
    waveform: Floats
    rate: int
    source_caption: str | None = None
    labels: tuple[str, ...] = ()


class Token(NamedTuple):
    """One token of a tagged text. `tag` is a Penn Treebank tag (JJ, NN, VBG, IN …), `lemma` in lower case."""

    text: str
    lemma: str
    tag: str


@dataclass(frozen=True)
class Prompt:
    """What an LLM is asked: `system` (may be empty) and `user` texts of one turn."""

    user: str
    system: str = ""


@dataclass(frozen=True)
class Form:
    """What an answer must look like, for engines that can be held to it while they decode.

    `count` of the `choices` are named, and a free `reason` of at most `reason_chars` characters stands before or
    after them, or nowhere. `backends.llms.forms` writes a form down for each engine.
    """

    choices: tuple[str, ...]
    reason: Literal["none", "before", "after"] = "none"
    count: int = 1
    reason_chars: int = 600

    def __post_init__(self) -> None:
        if not self.choices or any(not choice.strip() or not choice.isprintable() for choice in self.choices):
            raise ValueError("a form needs choices, and each of them some text on one line")
        if self.reason == "after" and self.count != 1:
            raise ValueError("only a single choice can have its reason after it")


@dataclass(frozen=True)
class Generation:
    """One answer of an LLM, with what it cost."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"


@runtime_checkable
class Backend(Protocol):
    """Common to all roles."""

    @property
    def recipe(self) -> BackendRecipe: ...


@runtime_checkable
class Releasable(Protocol):
    """A backend whose model is large: it can be let go when its work is done, and loads again when it is used again."""

    def release(self) -> None: ...


@runtime_checkable
class TextEncoder(Backend, Protocol):
    """Text to unit vectors. `scale` multiplies the cosine before a softmax over concepts.

    `dim` and `scale` are the encoder's own, as is the normalisation: nobody who uses one assumes them.
    """

    dim: int
    scale: float

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]."""
        ...


@runtime_checkable
class Windowed(Protocol):
    """An encoder that reads only the beginning of a long text, and tells so; one that does not is taken to read all."""

    max_tokens: int | None
    """Tokens that it reads of a text, those that enclose it included; None: all."""

    def is_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Bool [len(texts)]: which texts are longer. Cheap: they are split into tokens, not embedded."""
        ...


@runtime_checkable
class TextAudioEncoder(TextEncoder, Protocol):
    """Text and sound to unit vectors in one space."""

    rate: int

    def embed_audio(self, clips: Sequence[Clip]) -> Floats:
        """Unit-normalised float32 [len(clips), dim]. Clips come at `rate`."""
        ...


@runtime_checkable
class Captioner(Backend, Protocol):
    """Sound to text.

    `rate` is the sampling rate the clips must come in, None for any; `batch_size` how many clips it wants at a time.
    It may shrink where memory runs out.
    """

    rate: int | None

    @property
    def batch_size(self) -> int: ...

    def caption_batch(self, clips: Sequence[Clip]) -> list[str | Exception]:
        """One caption per clip, in order; an exception stands where a clip got none.

        A `GenerationError` concerns that clip alone, any other `BackendError` the backend as a whole.
        """
        ...


@runtime_checkable
class LLM(Backend, Protocol):
    """Prompts to answers, many at once."""

    def generate(self, prompts: Sequence[Prompt], *, max_tokens: int) -> list[Generation | Exception]:
        """One answer per prompt, in order; an exception stands where a prompt finally failed."""
        ...


@runtime_checkable
class StreamingLLM(LLM, Protocol):
    """An LLM that hands out each answer when it is there, and may keep forms.

    `structured` says whether forms are kept; where they are not, none is given to it.
    """

    structured: bool

    def stream(
        self, prompts: Sequence[Prompt], *, max_tokens: int, form: Form | None = None
    ) -> Iterator[tuple[int, Generation | Exception]]:
        """The place of each prompt with its answer, in any order; an exception stands where it finally failed."""
        ...


@runtime_checkable
class Tagger(Backend, Protocol):
    """Texts to tokens with Penn Treebank tags and lemmas."""

    def tag(self, texts: Sequence[str]) -> list[list[Token]]:
        """The tokens of each text, in order."""
        ...
