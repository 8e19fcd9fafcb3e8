"""The text tower of a CLIP through open_clip: LAION's and OpenAI's weights in their own layout."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

from and_platform.backends.base import BackendRecipe, Floats
from and_platform.backends.batching import BatchSize, by_length, pick_device, unit_rows
from and_platform.backends.encoders.scales import learned_scale, settle
from and_platform.backends.weights import Weights, find_weights, loading
from and_platform.errors import ConfigError, WeightsMissingError


class OpenClipTextEncoder:
    """Text to unit vectors with the text tower of any CLIP that open_clip knows.

    Parameters
    ----------
    source
        A directory or hub id with open_clip_config.json and weights ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), or
        ARCHITECTURE@WEIGHTS with one of open_clip's architectures and a file of weights, or the tag of published ones
        ("ViT-B-32-quickgelu@openai"). OpenAI's weights want the architectures that end in "-quickgelu".
    scale
        Factor of the cosine before a softmax over concepts, for experiments. Default: what the weights were trained to.

    Notes
    -----
    Of a text the first `max_tokens` tokens are read (77, with the two that enclose it). open_clip mends wrongly decoded
    characters and HTML entities first, which the tokenizer of `clip` does not; else both give the same vectors. A file
    is safetensors or a pickle of plain tensors; OpenAI's own .pt files are programs (TorchScript) and are not run.
    """

    def __init__(
        self, source: str, *, scale: float | None = None, batch_size: int = 64, device: str | None = None
    ) -> None:
        open_clip: Any = import_module("open_clip")
        architecture, weights = _find(open_clip, source)
        with loading(source), _quiet():
            try:
                if architecture:
                    self._model: Any = open_clip.create_model(
                        architecture, pretrained=str(weights.path), precision="fp32", weights_only=True
                    )
                    self._tokenize: Any = open_clip.get_tokenizer(architecture)
                else:
                    self._model = open_clip.create_model(
                        f"local-dir:{weights.path}", precision="fp32", weights_only=True, require_pretrained=True
                    )
                    self._tokenize = open_clip.get_tokenizer(f"local-dir:{weights.path}")
            except RuntimeError as exc:  # tensors that are missing, or of another shape
                raise ValueError(exc) from exc
        self._device = pick_device(device)
        self._model.eval().to(self._device)
        self._batch = BatchSize(batch_size)
        self.max_tokens = int(self._tokenize.context_length)
        self.scale, scaled = settle(scale, learned_scale(self._model.logit_scale.item()))
        self.dim = int(self._embed(["a sound"])[0].size)
        params = {"architecture": architecture, "max_tokens": self.max_tokens, **scaled}
        self.recipe = BackendRecipe("open-clip", weights.revision, params, weights.origin)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit-normalised float32 [len(texts), dim]; what is beyond the 77 tokens is cut."""
        return unit_rows(by_length(texts, len, self._batch, self._embed), self.dim)

    def is_cut(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Bool [len(texts)]: which texts are longer than `max_tokens`."""
        if not texts:
            return np.zeros(0, bool)
        places = self.max_tokens + 1
        rows = self._tokenize(list(texts), context_length=self.max_tokens).numpy()
        longer = self._tokenize(list(texts), context_length=places).numpy()
        short = self._tokenize(["a"], context_length=places)[0].numpy()
        # With one place more, a text that was cut differs at the end from one that was padded, or, where padding and
        # the end token are the same, has one token more that is no padding. The last but one of a short text is padding,
        # whether or not something closes it.
        fills = longer[:, -1] != short[-1]
        grows = (longer != short[-2]).sum(axis=1) > (rows != short[-2]).sum(axis=1)
        return np.asarray(fills | grows, bool)

    def _embed(self, texts: list[str]) -> list[Floats]:
        import torch

        with torch.inference_mode():
            vectors = self._model.encode_text(self._tokenize(texts).to(self._device))
        return list(vectors.float().cpu().numpy())


def _find(open_clip: Any, source: str) -> tuple[str | None, Weights]:
    """The architecture, None where a directory says it itself, and the weights."""
    architecture, at, where = source.partition("@")
    if not at or architecture not in open_clip.list_models():
        if at and "/" not in architecture:
            raise ConfigError(
                f"open_clip knows no architecture '{architecture}'; there are, e.g., ViT-B-32, ViT-B-32-quickgelu, "
                "ViT-L-14; all: python -c 'import open_clip; print(open_clip.list_models())'"
            )
        weights = find_weights(source.removeprefix("hf-hub:"))
        if not (weights.path / "open_clip_config.json").is_file():
            raise WeightsMissingError(
                f"{source} has no open_clip_config.json; give a directory or hub id that has one, "
                "or ARCHITECTURE@FILE for a file of weights"
            )
        return None, weights
    if not where:
        raise ConfigError(f"open-clip:{source} names no weights; write open-clip:{architecture}@FILE or a tag")
    published = open_clip.get_pretrained_cfg(architecture, where)
    if published and not Path(where).expanduser().exists():
        return architecture, _published(open_clip, architecture, where, published)
    weights = find_weights(where)
    if not weights.path.is_file():
        raise WeightsMissingError(f"{where} is no file of weights; with an architecture give the file itself")
    if is_zipfile(weights.path) and any(name.endswith("/constants.pkl") for name in ZipFile(weights.path).namelist()):
        raise WeightsMissingError(
            f"{where} is a program (TorchScript), which is never run; the same weights of OpenAI are to be had as "
            "safetensors, e.g. timm/vit_base_patch32_clip_224.openai and openai/clip-vit-base-patch32 on the model hub"
        )
    return architecture, weights


def _published(open_clip: Any, architecture: str, tag: str, published: dict[str, Any]) -> Weights:
    """The file of published weights, from the model hub's cache, or from the hub where that is allowed."""
    hub = str(published.get("hf_hub", ""))
    if not hub:
        raise WeightsMissingError(
            f"the weights '{tag}' of {architecture} are not on the model hub; download {published.get('url', 'them')} "
            f"and give open-clip:{architecture}@FILE"
        )
    if published.get("quick_gelu") and not open_clip.get_model_config(architecture).get("quick_gelu"):
        raise ConfigError(
            f"'{tag}' was trained with another activation; write open-clip:{architecture}-quickgelu@{tag}"
        )
    try:
        file = Path(open_clip.download_pretrained({"hf_hub": hub}))
    except OSError as exc:
        name = hub.rpartition("/")[0]
        raise WeightsMissingError(
            f"the weights '{tag}' of {architecture} are neither in the cache nor to be had from the hub; download them "
            f"elsewhere (hf download {name} --local-dir DIR) and give open-clip:{architecture}@DIR/FILE"
        ) from exc
    found = find_weights(str(file))
    return Weights(found.path, found.revision, f"{hub.rstrip('/')}@{file.parent.name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip tells its steps through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
