"""Reading what modules return during a forward pass."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from and_platform.errors import ActivationError

Reduce = Callable[[str, Tensor], Tensor]


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path; ActivationError names the nearest paths where there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError as exc:
        paths = [name for name, _ in model.named_modules() if name]
        near = difflib.get_close_matches(path, paths, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "list the layers of the network for its paths"
        raise ActivationError(f"the network has no module '{path}'; {hint}") from exc


def first_tensor(output: Any) -> Tensor | None:
    """The output itself, or the first tensor of a tuple, list or mapping of outputs (None where there is none)."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


@contextmanager
def recording(model: nn.Module, paths: Mapping[str, str], reduce: Reduce | None = None) -> Iterator[dict[str, Tensor]]:
    """Capture module outputs by forward hooks, which go again whatever happens.

    Parameters
    ----------
    model
        Any module; its outputs are only looked at.
    paths
        The name to capture under -> the module's path, as `get_submodule` takes it.
    reduce
        Called as `reduce(name, output)` at the moment of capture; what it returns is kept instead of the whole
        output, so that wide layers need no memory until the end of the pass.

    Yields
    ------
    dict
        Name -> output (the first tensor where a module returns several). Clear it between forward passes: a
        module that runs twice before that has no single output, and the second run raises ActivationError.

    Raises
    ------
    ActivationError
        A path leads nowhere, a module ran twice, or returns no tensor.
    """
    captured: dict[str, Tensor] = {}

    def hook(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if name in captured:
            raise ActivationError(
                f"the module '{paths[name]}' ran twice in one forward pass, so its activation is not one number a "
                "clip; leave this layer out"
            )
        tensor = first_tensor(output)
        if tensor is None:
            raise ActivationError(f"the module '{paths[name]}' returns no tensor but a {type(output).__name__}")
        captured[name] = tensor if reduce is None else reduce(name, tensor)

    modules = {name: find_module(model, path) for name, path in paths.items()}
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(partial(hook, name)))
        yield captured
    finally:
        for handle in handles:
            handle.remove()
