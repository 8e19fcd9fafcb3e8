"""Text and sound in one space through LAION's own package, in this process or in another environment."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from and_platform.backends.base import BackendRecipe, Clip, Floats
from and_platform.backends.batching import BatchSize, by_length, is_out_of_memory, unit_rows
from and_platform.backends.checkpoint_folder import check_folder
from and_platform.backends.encoders import laion_worker
from and_platform.backends.encoders.clap import check_clips, samples
from and_platform.backends.encoders.scales import learned_scale, settle
from and_platform.backends.weights import find_weights, loading
from and_platform.errors import BackendError, ConfigError, WeightsMissingError

PYTHON_VARIABLE = "ANDP_LAION_CLAP_PYTHON"
TOKENIZER_VARIABLE = "ANDP_LAION_CLAP_TOKENIZER"

_TOKENIZER_FILES = ("vocab.json", "merges.txt")
_HUB_NAMES = ("roberta-base", "FacebookAI/roberta-base")
_ENVIRONMENT = (
    'make an environment for it: python3.11 -m venv CLAP; CLAP/bin/pip install "torch==2.6.*" "torchvision==0.21.*" '
    f'"torchaudio==2.6.*" "numpy<2" "transformers<5" laion-clap; then set {PYTHON_VARIABLE}=CLAP/bin/python'
)
_PATIENCE_S = 5.0
_ERROR = re.compile(r"[\w.]+(Error|Exception): ")


class _Model(Protocol):
    """`laion_worker.Laion`, here or elsewhere."""

    dim: int
    logit_scale: float
    fusion: bool
    architecture: str

    def texts(self, texts: list[str]) -> NDArray[Any]: ...

    def lengths(self, texts: list[str]) -> NDArray[Any]: ...

    def sounds(self, clips: list[NDArray[Any]]) -> NDArray[Any]: ...


class LaionClapEncoder:
    """Text and sound to unit vectors in one space, as the package laion_clap computes them.

    Parameters
    ----------
    checkpoint
        File as LAION publishes it: "630k-audioset-best.pt" is the paper's. HTSAT-tiny, -base and -large, fused or not,
        are told apart by their weights.
    tokenizer
        Directory with RoBERTa's vocab.json and merges.txt. Default: the variable ANDP_LAION_CLAP_TOKENIZER, or
        roberta-base in the cache of the model hub; nothing is fetched.
    python
        Python of another environment that has laion_clap. Default: the variable ANDP_LAION_CLAP_PYTHON, or this process,
        if laion_clap can be imported here.
    scale
        Factor of the cosine before a softmax over concepts, for the use as a text encoder. Default: what the weights
        were trained to.

    Notes
    -----
    The package's own pipeline is kept, which differs from `clap` in three things: sounds go through 16 bits and back,
    the spectrogram is computed by the model, and texts are cut at 77 tokens. Of a clip beyond 10 s the package takes a
    random stretch; this takes the middle, as `clap` does. `laion_worker.Laion` tells the rest.

    Raises
    ------
    ConfigError
        If there is no such Python, or none that has laion_clap.
    WeightsMissingError
        If the checkpoint or the tokenizer is missing or unusable.
    BackendError
        If the other process ends.
    """

    max_tokens = laion_worker.MAX_TOKENS
    rate = laion_worker.RATE
    max_seconds = float(laion_worker.WINDOW_S)

    def __init__(
        self,
        checkpoint: str,
        *,
        tokenizer: str | None = None,
        python: str | None = None,
        scale: float | None = None,
        batch_size: int = 16,
        device: str | None = None,
    ) -> None:
        python = python or os.environ.get(PYTHON_VARIABLE) or None
        if python is None and find_spec("laion_clap") is None:
            raise ConfigError(f"the package laion_clap is not here, and asks for numpy 1: {_ENVIRONMENT}")
        weights = find_weights(checkpoint)
        if not weights.path.is_file():
            raise WeightsMissingError(f"{checkpoint} is no file; give LAION's checkpoint, e.g. 630k-audioset-best.pt")
        files, words = _tokenizer(tokenizer or os.environ.get(TOKENIZER_VARIABLE) or None)
        self._model: _Model
        if python is None:
            with loading(checkpoint):
                try:
                    self._model = cast(_Model, laion_worker.Laion(str(weights.path), str(files), device))
                except RuntimeError as exc:  # tensors that are missing, or of another shape
                    raise ValueError(exc) from exc
        else:
            self._model = Elsewhere(python, str(weights.path.resolve()), str(files.resolve()), device)
        self._batch = BatchSize(batch_size)
        self.dim = self._model.dim
        self.scale, scaled = settle(scale, learned_scale(self._model.logit_scale))
        fuses = self._model.fusion
        crop: dict[str, Any] = {"crop": "fusion", "seed": laion_worker.SEED} if fuses else {"crop": "middle"}
        params = {
            "architecture": self._model.architecture, "tokenizer": words, "max_tokens": self.max_tokens,
            "rate": self.rate, "max_seconds": self.max_seconds, "bits": 16, **crop, **scaled,
        }  # fmt: skip
        self.recipe = BackendRecipe("laion-clap", weights.revision, params, weights.origin)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]; what is beyond `max_tokens` is cut."""
        return unit_rows(by_length(texts, len, self._batch, lambda batch: list(self._model.texts(batch))), self.dim)

    def is_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Bool [len(texts)]: which texts are longer than `max_tokens`."""
        if not texts:
            return np.zeros(0, bool)
        return np.asarray(self._model.lengths(list(texts)) > self.max_tokens, bool)

    def embed_audio(self, clips: Sequence[Clip]) -> Floats:
        """Unit-normalised float32 [len(clips), dim].

        Raises
        ------
        AudioError
            If a clip does not come at `rate` or has no samples.
        """
        check_clips(clips, self.rate)
        return unit_rows(by_length(clips, samples, self._batch, self._embed_clips), self.dim)

    def _embed_clips(self, clips: list[Clip]) -> list[Floats]:
        return list(self._model.sounds([np.asarray(clip.waveform, np.float32) for clip in clips]))


class Elsewhere:
    """`laion_worker.Laion` in a process of another Python, which ends with this object or with this process.

    Raises
    ------
    ConfigError
        If there is no such Python, or if it lacks a package.
    BackendError
        If the process ends, with the last line that it wrote, or if the model fails.
    MemoryError
        If memory runs out there; less at once can be asked.
    """

    def __init__(self, python: str, checkpoint: str, tokenizer: str, device: str | None) -> None:
        self._python = python
        self._loaded = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (_end closes it)
        # Of this environment nothing may reach the other one, and nothing is to be fetched there.
        hidden = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
        try:
            self._process = subprocess.Popen(
                [python, str(Path(laion_worker.__file__))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment,
                start_new_session=True,  # Ctrl-C is for this process; the other one ends when its input does
            )  # fmt: skip
        except OSError as exc:
            self._errors.close()
            raise ConfigError(f"cannot start {python}: {exc.strerror}; {_ENVIRONMENT}") from exc
        self._close = weakref.finalize(self, _end, self._process, self._errors)
        facts, _ = self._ask({"checkpoint": checkpoint, "tokenizer": tokenizer, "device": device})
        self._loaded = True
        self.dim = int(facts["dim"])
        self.logit_scale = float(facts["logit_scale"])
        self.fusion = bool(facts["fusion"])
        self.architecture = str(facts["model"])

    def texts(self, texts: list[str]) -> NDArray[Any]:
        return self._ask({"do": "texts", "texts": texts})[1][0]

    def lengths(self, texts: list[str]) -> NDArray[Any]:
        return self._ask({"do": "lengths", "texts": texts})[1][0]

    def sounds(self, clips: list[NDArray[Any]]) -> NDArray[Any]:
        return self._ask({"do": "sounds"}, clips)[1][0]

    def close(self) -> None:
        """End the other process."""
        self._close()

    def _ask(
        self, message: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        if not self._close.alive:
            raise BackendError(f"LAION's CLAP in {self._python} has ended; make the encoder anew")
        assert self._process.stdin and self._process.stdout
        try:
            laion_worker.send(cast(Any, self._process.stdin), message, list(arrays))
            answer = laion_worker.receive(cast(Any, self._process.stdout))
        except (BrokenPipeError, EOFError):
            answer = None
        except KeyboardInterrupt:
            self._close()  # the answer that is on its way would be taken for that to the next question
            raise
        if answer is None:
            raise self._ended()
        error = str(answer[0].get("error", ""))
        if error.startswith("MemoryError") or is_out_of_memory(RuntimeError(error)):
            raise MemoryError(error)
        if error:
            self._close()  # what is left of a model that failed is not to be relied upon
            raise BackendError(f"LAION's CLAP in {self._python} failed: {error.partition(chr(10))[0]}")
        return answer

    def _ended(self) -> Exception:
        """The error of a process that has ended."""
        try:
            status = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            status = None
        self._errors.seek(0)
        written = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self._close()
        # A traceback ends with the error's name and message, whose first line tells most.
        errors = [line for line in written if _ERROR.match(line)]
        reason = (errors or written or ["it wrote nothing"])[-1].strip()
        name = reason.partition(":")[0].rpartition(".")[2]
        if name in ("ModuleNotFoundError", "ImportError"):
            return ConfigError(f"{self._python} cannot run LAION's CLAP ({reason}); {_ENVIRONMENT}")
        unusable = name in ("ValueError", "UnpicklingError", "SafetensorError")
        if not self._loaded and (unusable or "Error(s) in loading state_dict" in reason):
            return WeightsMissingError(f"cannot load the checkpoint: {reason}")
        how = f"was killed by signal {-status}" if status and status < 0 else f"ended with status {status}"
        return BackendError(f"LAION's CLAP in {self._python} {how}: {reason}")


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """End a process: first by closing its input, then by force."""
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):  # what was not yet written has nobody left to read it
                pipe.close()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()


def _tokenizer(folder: str | None) -> tuple[Path, str]:
    """The directory of RoBERTa's tokenizer, and what identifies its files."""
    from huggingface_hub import try_to_load_from_cache

    if folder is None:
        cached = [try_to_load_from_cache(name, _TOKENIZER_FILES[0]) for name in _HUB_NAMES]
        path = next((Path(file).parent for file in cached if isinstance(file, str)), None)
    else:
        path = Path(folder).expanduser()
    if path is None or not all((path / name).is_file() for name in _TOKENIZER_FILES):
        raise WeightsMissingError(
            f"{'roberta-base is not in the cache' if folder is None else f'{folder} holds no tokenizer'}; download it "
            f"(hf download FacebookAI/roberta-base {' '.join(_TOKENIZER_FILES)} --local-dir DIR) and give tokenizer=DIR, "
            f"or set {TOKENIZER_VARIABLE}=DIR"
        )
    check_folder(path)  # more than these files may be read
    total = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        total.update((path / name).read_bytes())
    return path, f"sha256:{total.hexdigest()[:32]}"
