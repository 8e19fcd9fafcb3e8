"""Loading a model of transformers with all of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
        model, found = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    finally:
        logging.set_verbosity(told)
    parameters = {name for name, _ in model.named_parameters()}
    missing = sorted(parameters & set(found["missing_keys"]))  # buffers are computed, whether stored or not
    if missing:
        raise ValueError(f"{len(missing)} weights of a {model_class.__name__} are missing, e.g. {missing[0]}")
    return model.eval()
