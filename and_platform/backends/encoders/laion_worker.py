"""LAION's own CLAP, with the preparation of texts and sounds of the package laion_clap.

The package wants other versions of its neighbours than this program does, so that it usually lives in an environment of
its own. This file runs there: alone (`python laion_worker.py`), with numpy, torch and laion_clap and nothing of
and_platform, answering requests on standard input until that is closed. See `laion_clap.LaionClapEncoder`.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import struct
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

RATE = 48_000
WINDOW_S = 10
MAX_TOKENS = 77
SEED = 0

_ARCHITECTURES = {96: "HTSAT-tiny", 128: "HTSAT-base", 256: "HTSAT-large"}
_TOKENIZERS = ("BertTokenizer", "RobertaTokenizer", "BartTokenizer")


class Laion:
    """The model of a checkpoint.

    Parameters
    ----------
    checkpoint
        File as published ("630k-audioset-best.pt"), or the same tensors as safetensors. Which audio encoder it has, and
        whether it fuses long clips, is read off it.
    tokenizer
        Directory with RoBERTa's vocab.json and merges.txt.

    Notes
    -----
    Imported as it is, laion_clap fetches three tokenizers and a text model whose weights the checkpoint replaces. The one
    tokenizer that counts comes from `tokenizer` here, the text model is made in the checkpoint's shape, and nothing is
    fetched.

    Sounds go the package's way: through 16 bits and back, repeated and then padded with zeros to 10 s. Of longer ones
    the package takes a random 10 s; this takes the middle. Fusing checkpoints draw three stretches at random, here with
    the same seed for each clip.
    """

    def __init__(self, checkpoint: str, tokenizer: str, device: str | None = None) -> None:
        if find_spec("laion_clap") is None:  # before gigabytes are read for nothing
            raise ModuleNotFoundError("No module named 'laion_clap'")
        state = read_state(checkpoint)
        width = int(state["audio_branch.patch_embed.proj.weight"].shape[0])
        self.architecture = _ARCHITECTURES.get(width, f"HTSAT of width {width}")
        self.fusion = any(key.startswith("audio_branch.patch_embed.fusion_model") for key in state)
        with _from_files(tokenizer, state):
            module: Any = importlib.import_module("laion_clap")
            self._clap: Any = module.CLAP_Module(
                enable_fusion=self.fusion, amodel=self.architecture, device=device or _device()
            )
        if "text_branch.embeddings.position_ids" not in self._clap.model.state_dict():
            state.pop("text_branch.embeddings.position_ids", None)  # a buffer of older versions of transformers
        self._clap.model.load_state_dict(state)
        self._clap.eval()
        self.logit_scale = float(state["logit_scale_a"])
        self.dim = int(state["audio_projection.2.weight"].shape[0])

    def texts(self, texts: list[str]) -> Array:
        """float32 [len(texts), dim]."""
        import torch

        with torch.inference_mode():
            rows: Array = self._clap.get_text_embedding(texts, use_tensor=False)
        return rows.astype(np.float32)

    def lengths(self, texts: list[str]) -> Array:
        """int64 [len(texts)]: tokens, with the two that enclose a text."""
        ids = self._clap.tokenize(texts, truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) for row in ids], np.int64)

    def sounds(self, clips: list[Array]) -> Array:
        """float32 [len(clips), dim] of mono clips at 48 kHz."""
        if not self.fusion:
            return self._sounds([middle(clip) for clip in clips])
        rows, before = [], np.random.get_state()
        try:
            for clip in clips:
                np.random.seed(SEED)  # the package draws from numpy's global generator
                rows.append(self._sounds([clip]))
        finally:
            np.random.set_state(before)
        return np.concatenate(rows)

    def _sounds(self, clips: list[Array]) -> Array:
        import torch

        with torch.inference_mode():
            rows: Array = self._clap.get_audio_embedding_from_data(clips, use_tensor=False)
        return rows.astype(np.float32)


def middle(clip: Array) -> Array:
    """The middle 10 s of a clip, or all of a shorter one."""
    start = max(0, (clip.size - RATE * WINDOW_S) // 2)
    return np.ascontiguousarray(clip[start : start + RATE * WINDOW_S])


def read_state(checkpoint: str) -> dict[str, Any]:
    """The tensors of a checkpoint, on the CPU; nothing in it is executed.

    Raises
    ------
    ValueError
        If it holds no CLAP with an HTSAT.
    """
    import torch

    if checkpoint.endswith(".safetensors"):
        from safetensors.torch import load_file

        state: dict[str, Any] = load_file(checkpoint)
    else:
        with torch.serialization.safe_globals(_numbers()):
            read = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state = read.get("state_dict", read) if isinstance(read, dict) else {}
    state = {key[7:] if key.startswith("module.") else key: value for key, value in state.items()}
    if "audio_branch.patch_embed.proj.weight" not in state or "logit_scale_a" not in state:
        raise ValueError(f"{checkpoint} holds no CLAP of LAION with an HTSAT as its audio encoder")
    return state


def _numbers() -> list[Any]:
    """What a pickle may hold besides tensors: numpy's plain numbers (the published files keep a metric of training)."""
    core: Any = importlib.import_module("numpy._core.multiarray" if np.__version__ >= "2" else "numpy.core.multiarray")
    allowed: list[Any] = [np.dtype, (core.scalar, "numpy.core.multiarray.scalar")]
    allowed.append((core.scalar, "numpy._core.multiarray.scalar"))
    return allowed + [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")]


@contextmanager
def _from_files(tokenizer: str, state: dict[str, Any]) -> Iterator[None]:
    """Give laion_clap, while it is imported and built, what it would ask the model hub for."""
    transformers: Any = importlib.import_module("transformers")

    def text_model(cls: Any, *_: Any, **__: Any) -> Any:
        return cls(_text_config(transformers, state))

    def files_of(load: Any) -> Any:
        def from_files(cls: Any, name: str, *_: Any, **__: Any) -> Any:
            return load(tokenizer) if name == "roberta-base" else None

        return classmethod(from_files)

    given = {getattr(transformers, name) for name in _TOKENIZERS}  # newer versions have one class for two of them
    own = [(cls, files_of(cls.from_pretrained)) for cls in given]
    own.append((transformers.RobertaModel, classmethod(text_model)))
    inherited = [(cls, cls.__dict__.get("from_pretrained")) for cls, _ in own]
    try:
        for cls, method in own:
            cls.from_pretrained = method
        yield
    finally:
        for cls, method in inherited:
            if method is None:
                del cls.from_pretrained
            else:
                cls.from_pretrained = method


def _text_config(transformers: Any, state: dict[str, Any]) -> Any:
    """RoBERTa's configuration in the shape of a checkpoint's text model."""
    vocabulary, width = state["text_branch.embeddings.word_embeddings.weight"].shape
    layers = {key.split(".")[3] for key in state if key.startswith("text_branch.encoder.layer.")}
    return transformers.RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // 64,
        intermediate_size=state["text_branch.encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["text_branch.embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=state["text_branch.embeddings.token_type_embeddings.weight"].shape[0],
        layer_norm_eps=1e-5,
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------------- messages
# A message is a length (4 bytes), a JSON object, and as many arrays as its "arrays" says: a length (8 bytes) and .npy each.


def send(stream: BinaryIO, message: dict[str, Any], arrays: list[Array]) -> None:
    """Write a message."""
    header = json.dumps({**message, "arrays": len(arrays)}).encode()
    stream.write(struct.pack("<I", len(header)) + header)
    for array in arrays:
        written = io.BytesIO()
        np.save(written, array, allow_pickle=False)
        stream.write(struct.pack("<Q", written.tell()))
        stream.write(written.getbuffer())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[Array]] | None:
    """Read a message; None where the stream has ended.

    Raises
    ------
    EOFError
        If it ends within a message.
    """
    start = stream.read(4)
    if not start:
        return None
    message = json.loads(_exactly(stream, struct.unpack("<I", start)[0]))
    arrays = []
    for _ in range(message.pop("arrays")):
        (size,) = struct.unpack("<Q", _exactly(stream, 8))
        arrays.append(np.load(io.BytesIO(_exactly(stream, size)), allow_pickle=False))
    return message, arrays


def _exactly(stream: BinaryIO, size: int) -> bytes:
    read = stream.read(size)
    if len(read) < size:
        raise EOFError("the stream ended within a message")
    return read


def main() -> None:
    """Answer requests until standard input ends. An error ends the process: its last line tells why.

    A MemoryError or RuntimeError of a request is an answer instead, {"error": ...}: where memory ran out, less at once
    can be asked.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    requests = sys.stdin.buffer
    started = receive(requests)
    if started is None:
        return
    model = Laion(**started[0])
    facts = {"dim": model.dim, "logit_scale": model.logit_scale, "fusion": model.fusion, "model": model.architecture}
    send(answers, facts, [])
    for request, arrays in iter(lambda: receive(requests), None):
        failed, result = _attempt(model, request, arrays)
        if result is None:
            _free_memory()  # only here has the exception gone, and with it the frames that held tensors
            send(answers, {"error": failed}, [])
        else:
            send(answers, {}, [result])


def _attempt(model: Laion, request: dict[str, Any], arrays: list[Array]) -> tuple[str, Array | None]:
    """The result, or what went wrong; which errors are for want of memory, the other process knows."""
    try:
        if request["do"] == "sounds":
            return "", model.sounds(arrays)
        if request["do"] == "texts":
            return "", model.texts(request["texts"])
        return "", model.lengths(request["texts"])
    except (RuntimeError, MemoryError) as exc:
        return f"{type(exc).__name__}: {exc}", None


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent  # whose modules have names of packages
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != folder]
    main()
