"""Loading a model of transformers with all of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

_WATCHING = Lock()


def load_complete(model_class: Any, folder: Path) -> Any:
    """A model of transformers in float32, ready for use.

    transformers fills weights that a checkpoint lacks with random ones and says so in its log; here that is an error,
    and what a checkpoint has too much (another tower, a temperature) is not worth a word.

    Raises
    ------
    ValueError
        If the checkpoint lacks weights of the model.
    """
    import torch
    from transformers.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, found = model_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(told)
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(parameters & set(found["missing_keys"]))  # buffers are computed, whether stored or not
    if missing:
        raise ValueError(f"{len(missing)} weights of a {model_class.__name__} are missing, e.g. {missing[0]}")
    return model.eval()


@contextmanager
def watch_missing() -> Iterator[list[str]]:
    """Names of the parameters that checkpoints lack, of each model that transformers loads meanwhile.

    For packages that load a model of transformers themselves and keep to themselves what was not there. Tied weights
    and buffers do not count; both are computed from others.
    """
    from transformers import PreTrainedModel
    from transformers.utils import logging

    missing: list[str] = []
    load: Any = PreTrainedModel.from_pretrained

    def watched(cls: Any, /, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        model, found = load.__func__(cls, *args, output_loading_info=True, **kwargs)
        parameters = {name for name, _ in model.named_parameters()}
        missing.extend(sorted(parameters & set(found["missing_keys"])))
        return (model, found) if output_loading_info else model

    model_class: Any = PreTrainedModel
    with _WATCHING:  # two that put their function in the other's place would not both be taken away
        told = logging.get_verbosity()
        logging.set_verbosity_error()
        original = vars(PreTrainedModel)["from_pretrained"]
        model_class.from_pretrained = classmethod(watched)
        try:
            yield missing
        finally:
            model_class.from_pretrained = original
            logging.set_verbosity(told)
