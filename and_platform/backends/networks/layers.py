"""Which modules of a network hold neurons, and what to call them.

Names stay the same whatever a library calls its modules: `b03.ff_in` is the first feed-forward layer of the
fourth block in every transformer. The modules are found in the network itself, and one forward pass shows which
of them really run and what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from and_platform.backends.networks.hooks import first_tensor
from and_platform.backends.networks.resizing import FEED_FORWARD

NETWORK_POOLING: Final = "network"
"""The pooling of a head: the network's own logit, after whatever reduction over time the network makes."""

PROBE_CLIPS: Final = 3
"""Clips in the pass that shows what runs: more than one, since some modules see no clips at all (embeddings of
positions, say) or windows of them."""

PAPER_KINDS: Final = ("attn_out", "ff_in", "ff_out")

# the last parts of a module's path inside its block -> kind, in the libraries' various words
_ATTENTION = {
    "query": ("query", "q_proj", "query_proj", "linear_q", "w_q", "to_q"),
    "key": ("key", "k_proj", "key_proj", "linear_k", "w_k", "to_k"),
    "value": ("value", "v_proj", "value_proj", "linear_v", "w_v", "to_v"),
    "attn_out": ("out_proj", "o_proj", "linear_out", "dense", "proj", "to_out"),
}
_FEED_FORWARD = dict(zip(("ff_in", "ff_out"), zip(*FEED_FORWARD, strict=True), strict=True))


_Weighty = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a network.

    `name` is stable ("b00.ff_in"), `module_path` is where its weights are in this version of the library.
    `kind` is query, key, value, attn_out, ff_in, ff_out, head, embed, linear or conv; `block` is None outside the
    blocks. `pooling` is the default: first, mean, max, or network for the head. `time_dim` is the axis of time
    in what the module returns, once `units_last` outputs of four dimensions have their units moved to axis 1.
    `output_path` is the module whose output is this layer's where the layer's own module is never called and its
    weights are used by its parent instead. `windowed` is true of attention within windows, whose linear layers return
    [clips * windows, positions, units], the windows of a clip side by side: their positions follow no order of time.
    """

    name: str
    module_path: str
    block: int | None
    kind: str
    n_units: int
    pooling: str
    time_dim: int = 1
    units_last: bool = True
    output_path: str | None = None
    windowed: bool = False

    @property
    def hook_path(self) -> str:
        """Where to listen."""
        return self.output_path or self.module_path


@dataclass
class _Seen:
    """What one module returned during the probing pass."""

    order: int
    shape: tuple[int, ...]
    grouped: bool = False  # the rows of a clip stand side by side, and there are several
    calls: int = 1


def discover_layers(
    model: nn.Module, probe: Callable[[], Tensor | None], pooling: str
) -> tuple[list[LayerSpec], dict[str, str]]:
    """All linear and convolutional layers that can be recorded, in the order of their modules.

    Parameters
    ----------
    model
        In evaluation mode.
    probe
        Runs one forward pass of `PROBE_CLIPS` times the same clip; returns the logits, or None for a network without
        classes.
    pooling
        Default for all layers but the head, and for those within windows `mean` instead of `first`.

    Returns
    -------
    layers : list of LayerSpec
    left_out : dict
        Module path -> why it has no activation that could be recorded.
    """
    seen, logits = _run(model, probe)
    found: dict[str, tuple[_Weighty, str]] = {}  # module path -> the module, and the path where its output shows
    left_out: dict[str, str] = {}
    blocks, stages = _blocks_and_stages(model)
    for path, module in model.named_modules():
        if path and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            where, reason = _observed(path, module, seen, blocks)
            if where is None:
                left_out[path] = reason
            else:
                found[path] = (module, where)
    head = _head_path(found, seen, blocks, None if logits is None else logits.shape[-1])
    base = _common_prefix(model)

    layers: list[LayerSpec] = []
    taken: dict[str, int] = {}
    for path, (module, where) in found.items():
        linear = isinstance(module, nn.Linear)
        block, inner = _block_of(path, blocks)
        if path == head:
            name = kind = "head"
        elif block is not None:
            kind = _kind_in_block(inner) if linear else "conv"
            name = f"b{block:02d}.{inner if kind in ('linear', 'conv') else kind}"
        elif "patch_embed" in path and not linear:
            name = kind = "embed"
        else:
            kind = "linear" if linear else "conv"
            stage, inner = _block_of(path, stages)
            name = path.removeprefix(base) if stage is None else f"s{stage:02d}.{inner}"
        # a macaron block has two feed-forward pairs: the second is b00.ff_in_2
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}_{taken[name]}"
        windowed = len(seen[where].shape) == 3 and seen[where].shape[0] != PROBE_CLIPS
        layers.append(
            LayerSpec(
                name=name,
                module_path=path,
                block=block,
                kind=kind,
                n_units=int(module.weight.shape[0]),
                pooling=_pooling(pooling, path == head, windowed),
                time_dim=_time_dim(linear, len(seen[where].shape)),
                units_last=linear,
                output_path=None if where == path else where,
                windowed=windowed,
            )
        )
    return layers, left_out


def _pooling(default: str, head: bool, windowed: bool) -> str:
    if head:
        return NETWORK_POOLING
    return "mean" if windowed and default == "first" else default


def _time_dim(linear: bool, n_dims: int) -> int:
    """Time is the axis before or after the units, and the last one of a map of two axes."""
    if n_dims == 4:
        return 3
    return 1 if linear else 2


def _run(model: nn.Module, probe: Callable[[], Tensor | None]) -> tuple[dict[str, _Seen], Tensor | None]:
    seen: dict[str, _Seen] = {}

    def hook(path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if path in seen:
            seen[path].calls += 1
        elif (tensor := first_tensor(output)) is not None:
            seen[path] = _Seen(len(seen), tuple(tensor.shape), _grouped(tensor))

    handles = []
    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_hook(partial(hook, path)))
        with torch.inference_mode():
            logits = probe()
    finally:
        for handle in handles:
            handle.remove()
    return seen, logits


def _grouped(output: Tensor) -> bool:
    """Whether an output of more rows than clips has those of a clip side by side: the probe's clips are all the same."""
    rows = output.shape[0] if output.dim() == 3 else 0
    if rows <= PROBE_CLIPS or rows % PROBE_CLIPS:
        return False
    by_clip = output.unflatten(0, (PROBE_CLIPS, -1))
    # rounding differs with a row's place in a batch
    near = 1e-3 * float(by_clip[0].abs().max())
    return all(torch.allclose(by_clip[0], other, rtol=1e-3, atol=near) for other in by_clip[1:])


def _observed(path: str, module: _Weighty, seen: dict[str, _Seen], blocks: Sequence[str]) -> tuple[str | None, str]:
    """The path of the module whose output is this layer's; None and the reason where there is none."""
    where = path
    if path not in seen:
        # attention written as one fused function uses the weights of its output projection without calling it,
        # and returns what the projection would have returned
        parent, _, leaf = path.rpartition(".")
        if leaf not in _ATTENTION["attn_out"] or not _is_attention(parent) or parent not in seen:
            return None, "its module is not called in the forward pass"
        where = parent
    shape = seen[where].shape
    if seen[where].calls > 1:
        return None, "its module runs more than once in a forward pass"
    n_units = module.weight.shape[0]
    axis = -1 if isinstance(module, nn.Linear) else 1
    if len(shape) in (2, 3, 4) and shape[0] == PROBE_CLIPS and shape[axis] == n_units:
        return where, ""
    number, _ = _block_of(path, blocks)
    if isinstance(module, nn.Linear) and seen[where].grouped and shape[-1] == n_units and number is not None:
        around = seen.get(blocks[number])
        places = shape[0] // PROBE_CLIPS * shape[1]
        if around is not None and around.shape[:2] == (PROBE_CLIPS, places):
            return where, ""
        if around is not None and len(around.shape) == 3 and around.shape[0] == PROBE_CLIPS:
            return None, f"its windows hold {places} positions of {around.shape[1]}: padding, which no mask tells apart"
    return None, f"its output for {PROBE_CLIPS} clips, {shape}, is not [clips, ..., units]"


def _is_attention(path: str) -> bool:
    return "att" in path.rpartition(".")[2].lower()


def _blocks_and_stages(model: nn.Module) -> tuple[list[str], list[str]]:
    """Paths of the blocks in order: the children of the list that holds most of the network's linear layers.

    Where these are stages, each with a list of its own that holds its attention (as in a Swin transformer), the blocks
    are those of all stages, one after the other, and the paths of the stages come second.
    """
    blocks = _largest_list(model, "")
    stages: list[str] = []
    while blocks and all(_is_stage(model, path) for path in blocks):
        stages = blocks
        blocks = [block for stage in stages for block in _largest_list(model.get_submodule(stage), f"{stage}.")]
    return blocks, stages


def _largest_list(model: nn.Module, prefix: str) -> list[str]:
    best: tuple[int, list[str]] = (0, [])
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        counts = [sum(isinstance(inner, nn.Linear) for inner in child.modules()) for child in module]
        children = [f"{prefix}{path}.{i}" if path else f"{prefix}{i}" for i in range(len(counts))]
        # a block has several linear layers, and blocks are alike; a plain stack of layers is no list of blocks
        alike = len({type(child) for child in module}) == 1
        if alike and min(counts, default=0) >= 2 and sum(counts) > best[0]:
            best = (sum(counts), children)
    return best[1]


def _is_stage(model: nn.Module, path: str) -> bool:
    """Whether all attention of a module lies in its list of blocks: experts, say, are a list beside attention."""
    stage = model.get_submodule(path)
    inner = _largest_list(stage, "")
    attention = [
        name
        for name, module in stage.named_modules()
        if isinstance(module, nn.Linear) and any("att" in part.lower() for part in name.split(".")[:-1])
    ]
    return bool(inner and attention) and all(_block_of(name, inner)[0] is not None for name in attention)


def _block_of(path: str, blocks: Sequence[str]) -> tuple[int | None, str]:
    for number, prefix in enumerate(blocks):
        if path.startswith(prefix + "."):
            return number, path[len(prefix) + 1 :]
    return None, path


def _kind_in_block(inner: str) -> str:
    """The kind of a linear layer from its path inside its block."""
    parts = inner.lower().split(".")
    if any("att" in part for part in parts[:-1]):
        return next((kind for kind, words in _ATTENTION.items() if parts[-1] in words), "linear")
    for kind, words in _FEED_FORWARD.items():
        if any(inner == word or inner.endswith(f".{word}") for word in words):
            return kind
    return "linear"


def _head_path(
    found: dict[str, tuple[_Weighty, str]], seen: dict[str, _Seen], blocks: list[str], n_classes: int | None
) -> str | None:
    """The last linear layer to run outside the blocks that has as many units as there are logits."""
    candidates = [
        path
        for path, (module, _) in found.items()
        if isinstance(module, nn.Linear) and module.out_features == n_classes and _block_of(path, blocks)[0] is None
    ]
    return max(candidates, key=lambda path: seen[found[path][1]].order, default=None)


def _common_prefix(model: nn.Module) -> str:
    """The name under which `transformers` keeps the network inside its classifier, with a dot."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""
