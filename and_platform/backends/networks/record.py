"""All chosen layers of a network in one forward pass a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from and_platform.backends.base import Clip
from and_platform.backends.networks.base import Batch, LoadedNetwork
from and_platform.backends.networks.hooks import recording
from and_platform.backends.networks.layers import NETWORK_POOLING, LayerSpec
from and_platform.core.pooling import pool
from and_platform.errors import ActivationError

HALF_MAX: Final = 65504.0


class UnstorableValueError(ActivationError):
    """An activation that float16 cannot hold. `layer`, `unit` and `clip` (its key) say which."""

    def __init__(self, layer: str, unit: int, clip: str, value: float) -> None:
        super().__init__(
            f"the activation of {layer}#{unit} on clip '{clip}' is {value:g}, which half precision cannot hold; "
            "leave this clip or this layer out"
        )
        self.layer, self.unit, self.clip = layer, unit, clip


def record_batches(
    network: LoadedNetwork,
    layers: Sequence[LayerSpec],
    clips: Iterable[Clip],
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
) -> Iterator[dict[str, NDArray[np.float16]]]:
    """Activations of all layers, one forward pass a batch, pooled where they arise and rounded to float16 once.

    Parameters
    ----------
    network
        Moved to `device` and left there.
    layers
        With the pooling to use in each (`LoadedNetwork.select`, `base.with_pooling`).
    clips
        At the network's rate; taken `batch_size` at a time.

    Yields
    ------
    dict
        Layer name -> float16 [clips of the batch, units], in the order of the clips.

    Raises
    ------
    UnstorableValueError
        A value is not finite or beyond 65,504: names layer, unit and clip.
    ActivationError
        A clip has another rate or no samples, or a layer returns nothing that can be pooled.
    """
    if not layers:
        raise ActivationError("no layer was chosen to record")
    names = [layer.name for layer in layers]
    for clips_of_batch, pooled, _ in _passes(network, layers, clips, device, batch_size):
        values = _to_half(pooled, layers, clips_of_batch)
        edges = np.cumsum([layer.n_units for layer in layers])[:-1]
        yield dict(zip(names, np.split(values, edges, axis=1), strict=True))


def logits_batches(
    network: LoadedNetwork, clips: Iterable[Clip], *, device: str | torch.device = "cpu", batch_size: int = 16
) -> Iterator[NDArray[np.float32]]:
    """The network's logits, float32 [clips of the batch, classes]; ActivationError where it has none."""
    for _, _, logits in _passes(network, [], clips, device, batch_size):
        if logits is None:
            raise ActivationError(f"the network '{network.name}' gives no logits")
        yield logits.float().cpu().numpy()


def _passes(
    network: LoadedNetwork,
    layers: Sequence[LayerSpec],
    clips: Iterable[Clip],
    device: str | torch.device,
    batch_size: int,
) -> Iterator[tuple[list[Clip], Tensor, Tensor | None]]:
    """Per batch: its clips, the pooled values of all layers side by side [B, units], and the logits [B, C]."""
    network.to(device)
    specs = {layer.name: layer for layer in layers}
    batch: Batch = {}
    n_clips = 0

    def reduce(name: str, output: Tensor) -> Tensor:
        return _pooled(network, specs[name], output, batch, n_clips)

    stream = iter(clips)
    while taken := list(islice(stream, batch_size)):
        check_clips(network, taken)
        order: list[int] = []
        values: list[Tensor] = []
        logits: list[Tensor | None] = []
        for members in together(network, taken):
            n_clips = len(members)
            batch = network.prepare([taken[i].waveform for i in members])
            batch = {key: tensor.to(device) for key, tensor in batch.items()}
            paths = {layer.name: layer.hook_path for layer in layers}
            with torch.inference_mode(), recording(network.model, paths, reduce) as captured:
                out = network.forward(batch)
                values.append(_side_by_side(network, layers, captured, out, n_clips))
            logits.append(out)
            order += members
        back = torch.tensor(order).argsort()
        whole = None if any(part is None for part in logits) else torch.cat([p for p in logits if p is not None])
        yield (
            taken,
            torch.cat(values)[back.to(values[0].device)],
            None if whole is None else whole[back.to(whole.device)],
        )


def _pooled(network: LoadedNetwork, layer: LayerSpec, output: Tensor, batch: Batch, n_clips: int) -> Tensor:
    if layer.windowed:
        output = _by_clip(layer, output, n_clips)
    if layer.pooling == NETWORK_POOLING:
        # a head that runs before the reduction over time is replaced by the logits after the pass
        return output.clone() if output.dim() == 2 else output[:0]
    if output.dim() == 4 and layer.units_last:
        output = output.movedim(-1, 1)
    mask = None
    if layer.pooling != "first" and output.dim() > 2:
        mask = network.frame_mask(batch, layer, output.shape[layer.time_dim])
    try:
        # a copy, since a view would keep the whole output of the layer in memory
        return pool(output, layer.pooling, mask, layer.time_dim if output.dim() > 2 else None).clone()
    except ActivationError as exc:
        raise ActivationError(f"layer {layer.name}: {exc}") from exc


def _by_clip(layer: LayerSpec, output: Tensor, n_clips: int) -> Tensor:
    """[clips * windows, positions, units] as [clips, windows * positions, units]."""
    if output.dim() != 3 or output.shape[0] % n_clips:
        raise ActivationError(f"layer {layer.name} gave {tuple(output.shape)} values within windows of {n_clips} clips")
    grouped: Tensor = output.unflatten(0, (n_clips, -1)).flatten(1, 2)
    return grouped


def _side_by_side(
    network: LoadedNetwork,
    layers: Sequence[LayerSpec],
    captured: dict[str, Tensor],
    logits: Tensor | None,
    n_clips: int,
) -> Tensor:
    columns: list[Tensor] = []
    for layer in layers:
        values = captured.get(layer.name)
        if values is None:
            raise ActivationError(
                f"the module '{layer.hook_path}' of layer {layer.name} did not run in the pass of '{network.name}'"
            )
        if layer.pooling == NETWORK_POOLING and values.dim() != 2:
            if logits is None:
                raise ActivationError(f"'{network.name}' gives no logits, so layer {layer.name} has no value")
            values = logits
        if tuple(values.shape) != (n_clips, layer.n_units):
            raise ActivationError(
                f"layer {layer.name} gave {tuple(values.shape)} values for {n_clips} clips and {layer.n_units} units; "
                "is time on another axis than the second?"
            )
        columns.append(values.float())
    return torch.cat(columns, dim=1) if columns else torch.empty(n_clips, 0)


def _to_half(values: Tensor, layers: Sequence[LayerSpec], clips: Sequence[Clip]) -> NDArray[np.float16]:
    bad = ~(values.abs() <= HALF_MAX)  # also true of what is not a number
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        value = float(values[row, column])
        for layer in layers:
            if column < layer.n_units:
                raise UnstorableValueError(layer.name, column, clips[row].key, value)
            column -= layer.n_units
    half: NDArray[Any] = values.to(torch.float16).cpu().numpy()
    return half


def check_clips(network: LoadedNetwork, clips: Sequence[Clip]) -> None:
    """ActivationError where a clip has another rate than the network takes, or no samples."""
    for clip in clips:
        if clip.rate != network.rate:
            raise ActivationError(
                f"clip '{clip.key}' is at {clip.rate} Hz and the network '{network.name}' takes {network.rate} Hz; "
                "resample it"
            )
        if clip.waveform.ndim != 1 or clip.waveform.size == 0:
            raise ActivationError(f"clip '{clip.key}' is not a mono waveform with samples: leave it out")


def together(network: LoadedNetwork, clips: Sequence[Clip]) -> list[list[int]]:
    """Indices of the clips that may share a forward pass."""
    if not network.uniform_length:
        return [list(range(len(clips)))]
    by_length: dict[int, list[int]] = {}
    for index, clip in enumerate(clips):
        by_length.setdefault(clip.waveform.size, []).append(index)
    return list(by_length.values())
