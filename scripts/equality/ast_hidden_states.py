"""What our hooks read against the hidden states that `transformers` itself returns.

Needs nothing beyond the project's own environment (torch, transformers). From the root of a checkout:

    PYTHONPATH=. python scripts/equality/ast_hidden_states.py            # every family
    PYTHONPATH=. python scripts/equality/ast_hidden_states.py ast clap   # some

Shapes are those published for MIT/ast-finetuned-audioset-10-10-0.4593, facebook/wav2vec2-base, facebook/hubert-base-ls960
and microsoft/wavlm-base-plus, their large variants (two blocks of them), openai/whisper-base, and laion/clap-htsat-unfused;
weights are random, float32. Of each block, with the hidden states of the model's own pass (`output_hidden_states=True`)
and the weights as they are stored:

ff_in      the output at the hook of the first feed-forward layer, minus F.linear of its weights and the norm of (hidden
           state + output at the attention's hook)
ff_out     the output at the hook of the second, minus F.linear of its weights and the activation of the first's
residual   the next hidden state, minus what the residual stream becomes with the outputs at the hooks
recorded   what `record_batches` gives, in float16, minus the float64 pooling of the outputs at the hooks

CLAP's tower returns hidden states by stage: its residual stream is followed from stage to stage, with the windows of the
attention put back in their places by a function here that knows nothing of the platform's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from and_platform.backends.base import Clip
from and_platform.backends.networks.base import LoadedNetwork
from and_platform.backends.networks.hooks import recording
from and_platform.backends.networks.record import record_batches

Figures = dict[str, float]


def compare(network: LoadedNetwork, seconds: tuple[float, ...], pooling: str | None = None) -> Figures:
    """Largest absolute differences over all blocks, and the largest value there is ("largest").

    Parameters
    ----------
    network
        An encoder or a classifier of `transformers`.
    seconds
        Lengths of the clips of noise; all alike where the network wants that.
    """
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, int(length * network.rate)).astype(np.float32) for length in seconds]
    layers = [layer for layer in network.layers if layer.block is not None and layer.kind in _KINDS]
    chosen = network.select([layer.name for layer in layers], pooling)
    batch = network.prepare(sounds)
    inputs = {key: value for key, value in batch.items() if key != "n_samples"}
    paths = {layer.name: layer.hook_path for layer in layers}
    with torch.inference_mode(), recording(network.model, paths) as outputs:
        told = network.model(**inputs, output_hidden_states=True)
    with torch.inference_mode():
        figures = _by_stages(network, told, outputs) if "clap" in _type(network) else _by_blocks(network, told, outputs)
    clips = [Clip(f"{number}.wav", sound, network.rate) for number, sound in enumerate(sounds)]
    recorded = next(record_batches(network, chosen, clips))
    figures["recorded"] = 0.0
    for layer in chosen:
        expected = _pooled(network, layer, outputs[layer.name], batch)
        # relative to the value: half precision keeps eleven bits
        off = np.abs(recorded[layer.name] - expected) / np.maximum(np.abs(expected), 2**-10)
        figures["recorded"] = max(figures["recorded"], float(off.max()))
    figures["largest"] = max(float(output.abs().max()) for output in outputs.values())
    return figures


_KINDS = ("attn_out", "ff_in", "ff_out")


def _type(network: LoadedNetwork) -> str:
    return str(network.model.config.model_type)


def _block(network: LoadedNetwork, number: int) -> tuple[Any, str]:
    """A block and its path, by the path of its layers."""
    path = network.layer(f"b{number:02d}.ff_in").module_path
    for inner in ("mlp.fc1", "feed_forward.intermediate_dense", "intermediate.dense", "fc1"):
        if path.endswith(f".{inner}"):
            path = path.removesuffix(f".{inner}")
            return network.model.get_submodule(path), path
    raise ValueError(path)


def _activation(block: Any) -> Callable[[Tensor], Tensor]:
    for owner in (
        getattr(block, "mlp", None),
        getattr(block, "feed_forward", None),
        getattr(block, "intermediate", None),
        block,
    ):
        for name in ("activation_fn", "intermediate_act_fn"):
            if hasattr(owner, name):
                found: Callable[[Tensor], Tensor] = getattr(owner, name)
                return found
    raise ValueError(type(block).__name__)


def _linear(network: LoadedNetwork, weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    path = network.layer(name).module_path
    return F.linear(x, weights[f"{path}.weight"], weights[f"{path}.bias"])


def _feed_forward(
    network: LoadedNetwork, number: int, outputs: Mapping[str, Tensor], middle: Tensor, figures: Figures
) -> Tensor:
    """The feed-forward half of a block from the stream before it, against the hooks; returns the output at the hook."""
    block, _ = _block(network, number)
    weights = network.model.state_dict()
    inner, outer = outputs[f"b{number:02d}.ff_in"], outputs[f"b{number:02d}.ff_out"]
    again = _linear(network, weights, f"b{number:02d}.ff_in", middle)
    _note(figures, "ff_in", inner - again)
    again = _linear(network, weights, f"b{number:02d}.ff_out", _activation(block)(again))
    _note(figures, "ff_out", outer - again)
    return outer


def _by_blocks(network: LoadedNetwork, told: Any, outputs: Mapping[str, Tensor]) -> Figures:
    hidden = told.hidden_states
    figures: Figures = {}
    n_blocks = len(hidden) - 1
    kind = _type(network)
    for number in range(n_blocks):
        block, path = _block(network, number)
        stream = hidden[number] + outputs[f"b{number:02d}.attn_out"]
        if kind == "audio-spectrogram-transformer":
            reached = stream + _feed_forward(network, number, outputs, block.layernorm_after(stream), figures)
        elif kind == "whisper" or network.model.config.do_stable_layer_norm:
            reached = stream + _feed_forward(network, number, outputs, block.final_layer_norm(stream), figures)
        else:
            stream = block.layer_norm(stream)
            reached = block.final_layer_norm(stream + _feed_forward(network, number, outputs, stream, figures))
        if number == n_blocks - 1 and kind == "whisper":  # whose last hidden state is given after the last norm
            reached = network.model.get_submodule(path.rpartition("layers")[0] + "layer_norm")(reached)
        _note(figures, "residual", hidden[number + 1] - reached)
    return figures


def _by_stages(network: LoadedNetwork, told: Any, outputs: Mapping[str, Tensor]) -> Figures:
    encoder = next(module for module in network.model.modules() if type(module).__name__ == "ClapAudioEncoder")
    figures: Figures = {}
    number = 0
    stream = told.hidden_states[0].flatten(2).transpose(1, 2)
    for stage, after in zip(encoder.layers, told.hidden_states[1:], strict=True):
        for block in stage.blocks:
            places = _in_place(outputs[f"b{number:02d}.attn_out"], block, len(stream))
            stream = stream + places
            stream = stream + _feed_forward(network, number, outputs, block.layernorm_after(stream), figures)
            number += 1
        if stage.downsample is not None:
            stream = stage.downsample(stream, stage.blocks[0].input_resolution)
        _note(figures, "residual", after.flatten(2).transpose(1, 2) - stream)
    return figures


def _in_place(windows: Tensor, block: Any, n_clips: int) -> Tensor:
    """[clips * windows, positions of a window, units] -> [clips, positions, units], each at its place."""
    height, width = block.input_resolution
    size, shift = int(block.window_size), int(block.shift_size)
    grid = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    order = torch.cat(
        [
            grid[top : top + size, left : left + size].flatten()
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
    )
    flat = windows.reshape(n_clips, -1, windows.shape[-1])
    placed = torch.empty_like(flat)
    placed[:, order] = flat
    return placed


def _pooled(network: LoadedNetwork, layer: Any, output: Tensor, batch: Mapping[str, Tensor]) -> Any:
    """Pooling in float64, clip by clip, with the mask as the network tells it."""
    n_clips = len(next(iter(batch.values())))
    values = output.reshape(n_clips, -1, output.shape[-1]).double().numpy()
    mask = None if layer.pooling == "first" else network.frame_mask(dict(batch), layer, values.shape[1])
    rows = []
    for clip in range(n_clips):
        sound = values[clip] if mask is None else values[clip][mask[clip].numpy()]
        rows.append({"first": values[clip][0], "mean": sound.mean(0), "max": sound.max(0)}[layer.pooling])
    return np.stack(rows)


def _note(figures: Figures, name: str, difference: Tensor) -> None:
    figures[name] = max(figures.get(name, 0.0), float(difference.abs().max()))


def _shapes() -> dict[str, tuple[Callable[[], LoadedNetwork], tuple[float, ...]]]:
    """Networks of the published shapes with random weights, and the clips to look at."""
    import transformers as t

    from and_platform.backends.networks.transformers_audio import ASTNetwork, ClapNetwork, TransformersNetwork

    large = {
        "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 4096,
        "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
    }  # fmt: skip

    def speech(family: str, **shape: Any) -> Callable[[], LoadedNetwork]:
        def build() -> LoadedNetwork:
            model = getattr(t, f"{family}Model")(getattr(t, f"{family}Config")(**shape))
            extractor = t.Wav2Vec2FeatureExtractor(return_attention_mask=bool(shape))
            return TransformersNetwork(model, extractor, family, classifies=False)

        return build

    def whisper() -> LoadedNetwork:
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config = t.WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048)
        return TransformersNetwork(WhisperEncoder(config), t.WhisperFeatureExtractor(), "whisper", classifies=False)

    def clap() -> LoadedNetwork:
        config = t.ClapAudioConfig(patch_embeds_hidden_size=96, hidden_size=768, depths=[2, 2, 6, 2])
        extractor = t.ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)
        return ClapNetwork(t.ClapAudioModelWithProjection(config), extractor, "clap")

    def ast() -> LoadedNetwork:
        return ASTNetwork(t.ASTForAudioClassification(t.ASTConfig(num_labels=527)), t.ASTFeatureExtractor(), "ast")

    alike, mixed = (1.0, 1.0), (2.0, 1.0)
    return {
        "ast": (ast, (10.24, 5.0)),
        "wav2vec2": (speech("Wav2Vec2"), alike),
        "hubert": (speech("Hubert"), alike),
        "wavlm": (speech("WavLM"), alike),
        "wav2vec2-large": (speech("Wav2Vec2", **large), mixed),
        "hubert-large": (speech("Hubert", **large), mixed),
        "wavlm-large": (speech("WavLM", **large), mixed),
        "whisper": (whisper, (30.0, 5.0)),
        "clap": (clap, (10.0, 5.0)),
    }


def main() -> None:
    shapes = _shapes()
    print(f"torch {torch.__version__}; largest absolute differences, but `recorded`: relative, 2^-11 = 4.9e-04")
    print(f"{'family':15} {'neurons':>8} {'largest':>8} {'ff_in':>9} {'ff_out':>9} {'residual':>9} {'recorded':>9}")
    for family in sys.argv[1:] or shapes:
        build, seconds = shapes[family]
        torch.manual_seed(0)
        network = build()
        with torch.no_grad():
            for name, parameter in sorted(network.model.named_parameters()):
                if parameter.dim() == 1 and "original" not in name:  # biases and norms away from zeros and ones
                    parameter += 0.1 * torch.randn(parameter.shape)
        found = compare(network, seconds)
        neurons = sum(layer.n_units for layer in network.layers if layer.kind in _KINDS)
        columns = " ".join(f"{found[name]:9.1e}" for name in ("ff_in", "ff_out", "residual", "recorded"))
        print(f"{family:15} {neurons:8,} {found['largest']:8.2f} {columns}", flush=True)


if __name__ == "__main__":
    main()
