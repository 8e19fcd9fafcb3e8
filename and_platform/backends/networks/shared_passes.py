"""Many ablations of one network over the same clips, without computing twice what they share.

Everything that ran before the first ablated layer is the same as in the intact network. The intact pass keeps what the
modules returned; the pass of an ablated network puts these outputs in the place of every module that had finished before
the first ablated one began. Which modules these are is seen in a traced pass, not read from names, so that it works for
any module: blocks before the first touched one are skipped whole, and inside it what comes before the touched layer.
A module whose output cannot stand for it is run again: one that runs twice, changes its input or has its output changed
in place, takes or returns something else than tensors in tuples, lists and mappings.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from and_platform.backends.base import Clip
from and_platform.backends.networks.ablation import Units
from and_platform.backends.networks.base import Batch, LoadedNetwork
from and_platform.backends.networks.hooks import find_module
from and_platform.backends.networks.record import check_clips, together
from and_platform.errors import ActivationError

Selection = Mapping[str, Units]
"""Layer name -> unit indices."""

_Units = dict[str, tuple[int, ...]]
_CONSTANTS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))


def ablated_logits(
    network: LoadedNetwork,
    selections: Sequence[Selection],
    clips: Iterable[Clip],
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    share: bool = True,
    advance: Callable[[int], None] | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Logits of the intact network and of each ablated one, batch by batch.

    Parameters
    ----------
    network
        Moved to `device` and left there. Its weights are as they were whenever a batch is handed out, and after an error.
    selections
        What to ablate each time. The head is refused. Equal selections are evaluated once, an empty one not at all.
    clips
        At the network's rate; taken and prepared `batch_size` at a time, once for all selections. With `share`, the
        outputs to put in again (for each block that a selection begins in, the output of the block before, and of a few
        modules inside it) are held for one batch.
    share
        False computes every pass in full.
    advance
        Called with how many evaluations (a selection on a clip) are done since the last call; in all there are
        selections x clips.

    Yields
    ------
    ndarray
        float32 [1 + selections, clips of the batch, classes]: row 0 is the intact network, row s + 1 the network with
        `selections[s]` ablated.

    Raises
    ------
    ActivationError
        At the call: a selection touches the head, or a unit does not exist. While it runs: a clip cannot be used, or the
        network gives no logits.
    NotFoundError
        At the call: no such layer.
    """
    rows: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
    for row, selection in enumerate(selections, start=1):
        rows.setdefault(tuple(units_of(network, selection).items()), []).append(row)
    tasks = [(dict(key), places) for key, places in rows.items()]
    return _batches(network, tasks, 1 + len(selections), clips, device, batch_size, share, advance)


def units_of(network: LoadedNetwork, selection: Selection) -> dict[str, tuple[int, ...]]:
    """A selection in one way of writing it: layers in order of their names, units ascending and once, no empty layer.

    Raises
    ------
    ActivationError, NotFoundError
        It is not one that can be ablated: see `LoadedNetwork.ablated`.
    """
    with network.ablated(selection):
        pass
    return {
        name: tuple(np.unique(np.asarray(selection[name], dtype=np.int64)).tolist())
        for name in sorted(selection)
        if len(selection[name])
    }


def _batches(
    network: LoadedNetwork,
    tasks: Sequence[tuple[_Units, list[int]]],
    n_rows: int,
    clips: Iterable[Clip],
    device: str | torch.device,
    batch_size: int,
    share: bool,
    advance: Callable[[int], None] | None,
) -> Iterator[NDArray[np.float32]]:
    network.to(device)
    groups: list[_Group] | None = None if share else [_Group([], list(tasks))]
    stream = iter(clips)
    while taken := list(islice(stream, batch_size)):
        check_clips(network, taken)
        parts: list[tuple[list[int], NDArray[np.float32]]] = []
        for members in together(network, taken):
            if groups is None:
                one = network.prepare([taken[members[0]].waveform])
                groups = _plan(network, _to(one, device), tasks)
            batch = _to(network.prepare([taken[i].waveform for i in members]), device)
            parts.append((members, _evaluate(network, groups, batch, n_rows, len(members), advance)))
        whole = np.empty((n_rows, len(taken), parts[0][1].shape[2]), dtype=np.float32)
        for members, values in parts:
            whole[:, members] = values
        yield whole


def _to(batch: Batch, device: str | torch.device) -> Batch:
    return {key: tensor.to(device) for key, tensor in batch.items()}


def _evaluate(
    network: LoadedNetwork,
    groups: Sequence[_Group],
    batch: Batch,
    n_rows: int,
    n_clips: int,
    advance: Callable[[int], None] | None,
) -> NDArray[np.float32]:
    """Logits [rows, clips, classes] of one prepared batch."""
    kept = _Kept({module for group in groups for module in group.replayed})
    with _forwards(kept.keeping()):
        intact = _logits(network, batch)
    result: list[Tensor] = [intact] * n_rows
    for number, group in enumerate(groups):
        with _forwards(kept.replaying(group.replayed)):
            for units, places in group.tasks:
                if units:
                    with network.ablated(units):
                        logits = _logits(network, batch)
                    for place in places:
                        result[place] = logits
                if advance is not None:
                    advance(len(places) * n_clips)
        kept.forget({module for later in groups[number + 1 :] for module in later.replayed})
    values: NDArray[np.float32] = torch.stack(result).float().cpu().numpy()
    return values


def _logits(network: LoadedNetwork, batch: Batch) -> Tensor:
    # not inference mode: its tensors do not count how often they were changed
    with torch.no_grad():
        logits = network.forward(batch)
    if logits is None:
        raise ActivationError(f"the network '{network.name}' gives no logits")
    return logits


# --- what a pass shares with the intact one


@dataclass
class _Group:
    """Selections whose first touched module is the same, and the modules whose outputs are put in again."""

    replayed: list[nn.Module]
    tasks: list[tuple[_Units, list[int]]]


@dataclass(eq=False)
class _Call:
    """One call of a module: when it began and ended, and what it called."""

    module: nn.Module
    began: int
    ended: int = 0
    replayable: bool = False
    inner: list[_Call] = field(default_factory=list)


def _plan(network: LoadedNetwork, batch: Batch, tasks: Sequence[tuple[_Units, list[int]]]) -> list[_Group]:
    """Group selections by where they begin, the last first, and try each way of replaying on one clip.

    The last come first so that modules which keep something of their last run keep that of the intact network until
    no replay needs it, and so that kept outputs can be given up on the way.
    """
    root, calls = _trace(network, batch)
    first: dict[nn.Module, int] = {}
    for call in calls:
        first.setdefault(call.module, call.began)
    began: dict[int, list[tuple[_Units, list[int]]]] = {}
    for task in tasks:
        began.setdefault(min((_begin(network, name, first) for name in task[0]), default=0), []).append(task)

    while True:
        groups = [_Group(_finished(root, when), began[when]) for when in sorted(began, reverse=True)]
        kept = _Kept({module for group in groups for module in group.replayed})
        with _forwards(kept.keeping()):
            _logits(network, batch)
        changed = kept.changed()
        if not changed:
            break
        for call in calls:
            call.replayable = call.replayable and call.module not in changed

    for group in groups:
        if group.replayed and not _agrees(network, group, kept, batch):
            group.replayed = []
    return groups


def _trace(network: LoadedNetwork, batch: Batch) -> tuple[_Call, list[_Call]]:
    """The calls of one pass, as a tree and in the order in which they began."""
    clock = count(1)
    root = _Call(network.model, 0)
    stack, calls = [root], list[_Call]()

    def traced(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            call = _Call(module, next(clock))
            stack[-1].inner.append(call)
            calls.append(call)
            stack.append(call)
            given = _versions((args, kwargs))
            try:
                output = forward(*args, **kwargs)
            finally:
                stack.pop()
                call.ended = next(clock)
            unchanged = given is not None and _same(given, _versions((args, kwargs)))
            call.replayable = unchanged and _versions(output) is not None
            return output

        return run

    with _forwards({module: traced(module) for module in network.model.modules() if _open(module)}):
        _logits(network, batch)
    times = Counter(call.module for call in calls)
    for call in calls:
        call.replayable = call.replayable and times[call.module] == 1
    return root, calls


def _begin(network: LoadedNetwork, layer: str, calls: Mapping[nn.Module, int]) -> int:
    """When the weights of a layer were first used: by the module itself, or by the one around it that was called."""
    path = network.layer(layer).module_path
    weights = {id(p) for p in find_module(network.model, path).parameters(recurse=False)}
    users = [
        name
        for name, module in network.model.named_modules()
        if any(id(p) in weights for p in module.parameters(recurse=False))
    ]
    return min(_first_call(network.model, user, calls) for user in users)


def _first_call(model: nn.Module, path: str, calls: Mapping[nn.Module, int]) -> int:
    while path and (module := find_module(model, path)) not in calls:
        path = path.rpartition(".")[0]
    return calls[module] if path else 0


def _finished(call: _Call, when: int) -> list[nn.Module]:
    """The outermost modules inside a call that had finished by then and whose outputs can stand for them."""
    found: list[nn.Module] = []
    for inner in call.inner:
        if inner.replayable and inner.ended < when:
            found.append(inner.module)
        elif inner.began < when:
            found += _finished(inner, when)
    return found


def _agrees(network: LoadedNetwork, group: _Group, kept: _Kept, batch: Batch) -> bool:
    """Whether the first selection of a group comes out the same replayed and computed in full."""
    with network.ablated(group.tasks[0][0]):
        with _forwards(kept.replaying(group.replayed)):
            replayed = _logits(network, batch)
        whole = _logits(network, batch)
    return torch.allclose(whole, replayed, rtol=1e-5, atol=1e-6, equal_nan=True)


class _Kept:
    """Outputs of modules from the intact pass over one batch."""

    def __init__(self, modules: set[nn.Module]) -> None:
        self._modules = modules
        self._outputs: dict[nn.Module, list[Any]] = {module: [] for module in modules}
        self._versions: dict[nn.Module, list[tuple[Tensor, int]] | None] = {}

    def keeping(self) -> dict[nn.Module, Callable[..., Any]]:
        """Forward functions that keep what they return."""

        def kept(module: nn.Module) -> Callable[..., Any]:
            forward = module.forward

            @wraps(forward)
            def run(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                self._outputs[module].append(output)
                self._versions[module] = _versions(output)
                return output

            return run

        return {module: kept(module) for module in self._modules}

    def changed(self) -> set[nn.Module]:
        """Modules whose output is not what they returned, since it was changed in place."""
        return {
            module
            for module, versions in self._versions.items()
            if versions is None or any(tensor._version != version for tensor, version in versions)
        }

    def replaying(self, modules: Sequence[nn.Module]) -> dict[nn.Module, Callable[..., Any]]:
        """Forward functions that return what was kept; none where this batch took another way than the traced one."""

        def replayed(module: nn.Module) -> Callable[..., Any]:
            output = self._outputs[module][0]

            @wraps(module.forward)
            def run(*_args: Any, **_kwargs: Any) -> Any:
                return copy.copy(output) if isinstance(output, list | Mapping) else output

            return run

        if not self.changed().isdisjoint(modules) or any(len(self._outputs[module]) != 1 for module in modules):
            return {}
        return {module: replayed(module) for module in modules}

    def forget(self, but: set[nn.Module]) -> None:
        """Give up the outputs of all modules but these."""
        for module in self._modules - but:
            self._outputs[module] = []
            self._versions.pop(module, None)


@contextmanager
def _forwards(functions: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Put functions in the place of the modules' `forward` for a while."""
    before = {module: vars(module).get("forward") for module in functions}
    try:
        for module, function in functions.items():
            vars(module)["forward"] = function
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


def _open(module: nn.Module) -> bool:
    """Whether a module is called through a `forward` that can be replaced."""
    return not isinstance(module, torch.jit.ScriptModule)


def _versions(value: Any) -> list[tuple[Tensor, int]] | None:
    """The tensors in a value with how often each was changed in place; None where that cannot be known."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else [(value, value._version)]
    if isinstance(value, _CONSTANTS):
        return []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, tuple | list):
        return None
    found: list[tuple[Tensor, int]] = []
    for item in value:
        versions = _versions(item)
        if versions is None:
            return None
        found += versions
    return found


def _same(before: list[tuple[Tensor, int]], after: list[tuple[Tensor, int]] | None) -> bool:
    return (
        after is not None
        and len(before) == len(after)
        and all(a is b and i == j for (a, i), (b, j) in zip(before, after, strict=True))
    )
