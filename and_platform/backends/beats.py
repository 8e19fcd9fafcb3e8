"""BEATs, a transformer over patches of a spectrogram (Chen et al. 2022, "BEATs: Audio Pre-Training with Acoustic Tokenizers").

The modules carry the names of the published checkpoints, so that these load strictly. Where one batch holds clips of
several lengths, each gives what it gives alone: the mask keeps whole columns of patches, and what it hides is zero
before the convolution over positions and no key of any attention. (The published code masks a column that the sound
ends in frequency by frequency, so there a clip's neighbours change its result a little.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from and_platform.backends.weights import read_pickle
from and_platform.errors import WeightsMissingError

RATE: Final = 16_000
MEL_BINS: Final = 128
MEAN: Final = 15.41663  # of the log mel energies of AudioSet, as published with the checkpoints
STD: Final = 6.55582
WINDOW: Final = 400  # samples of a frame: 25 ms
HOP: Final = 160  # samples between frames: 10 ms
PATCH: Final = 16  # frames and mel bins of a patch
SHORTEST: Final = WINDOW + (PATCH - 1) * HOP  # samples of one column of patches

CHECKPOINTS: Final = ("BEATs_iter3_plus_AS2M.pt", "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt")
"""The published files that the platform is meant for: pretrained, and fine-tuned on the 527 classes of AudioSet."""

_FFT = 512
_MOST, _MOST_BLOCKS = 1_000_000, 1_000
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_accurate": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


@dataclass(frozen=True)
class BeatsConfig:
    """The shape of a network, by the keys of a checkpoint's `cfg`; the defaults are those of the published code.

    `feed_forward_sizes` is the platform's own: inner sizes of the blocks of a pruned network, where they differ.
    """

    input_patch_size: int = PATCH
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_wise_gradient_decay_ratio: float = 1.0
    layer_norm_first: bool = False
    deep_norm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    dropout_input: float = 0.0
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False
    finetuned_model: bool = False
    predictor_dropout: float = 0.1
    predictor_class: int = 527
    feed_forward_sizes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> BeatsConfig:
        """From a checkpoint's `cfg`; keys that do not shape the network are passed over.

        Raises
        ------
        ValueError
            It asks for something that no published checkpoint has.
        """
        config = cls(**{field.name: cfg[field.name] for field in fields(cls) if field.name in cfg})
        config._check_values()
        if config.activation_fn not in _ACTIVATIONS:
            raise ValueError(f"activation_fn is '{config.activation_fn}'; known are {', '.join(_ACTIVATIONS)}")
        if config.deep_norm and config.layer_norm_first:
            raise ValueError("deep_norm and layer_norm_first exclude each other")
        if config.input_patch_size != PATCH:
            raise ValueError(f"input_patch_size is {config.input_patch_size}; patches are of {PATCH}")
        if config.encoder_embed_dim % config.encoder_attention_heads:
            raise ValueError("encoder_embed_dim cannot be divided among encoder_attention_heads")
        return config if config.feed_forward_sizes is None else config.resized(config.feed_forward_sizes)

    def _check_values(self) -> None:
        """ValueError where a value is of another kind than its default, or out of bounds that no network comes near."""
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is type(None):
                fits = value is None or isinstance(value, list | tuple)
                fits = fits and all(type(size) is int and 0 < size <= _MOST for size in value or ())
            elif kind is int:
                fits = type(value) is int and 0 < value <= (_MOST_BLOCKS if field.name == "encoder_layers" else _MOST)
            else:
                fits = type(value) in ((int, float) if kind is float else (kind,)) and value == value
            if not fits:
                raise ValueError(f"{field.name} is {ascii(value)[:80]}")

    def resized(self, sizes: Sequence[int]) -> BeatsConfig:
        """With feed-forward networks of these inner sizes, block by block; ValueError where their number does not fit."""
        if len(sizes) != self.encoder_layers or min(sizes, default=0) < 1:
            raise ValueError(f"feed_forward_sizes are {list(sizes)}, for {self.encoder_layers} blocks")
        if len(set(sizes)) == 1:
            return replace(self, encoder_ffn_embed_dim=sizes[0], feed_forward_sizes=None)
        return replace(self, feed_forward_sizes=tuple(sizes))

    def to_dict(self) -> dict[str, Any]:
        """A checkpoint's `cfg`."""
        return {key: value for key, value in asdict(self).items() if value is not None}


# --- input


def fbank(waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Log mel energies as Kaldi computes them, normalised as the published checkpoints expect.

    Frames of 25 ms every 10 ms, without their mean, pre-emphasised (0.97) under Povey's window; power spectrum of 512
    points; 128 triangles on the mel scale from 20 Hz to 8 kHz; logarithm, floored at float32's epsilon.

    Parameters
    ----------
    waveforms
        Float [B, n_samples] in [-1, 1] at 16 kHz; padded with zeros where they fill less than one patch.
    lengths
        Samples that are sound, int [B]; all of them by default.

    Returns
    -------
    features : Tensor
        [B, n_frames, 128].
    frame_mask : Tensor or None
        Bool [B, n_frames], True where all of a frame is sound (and for the whole first patch); None where all are.
    """
    total = waveforms.shape[-1]
    if lengths is not None:
        inside = torch.arange(total, device=waveforms.device) < lengths.to(waveforms.device)[:, None]
        waveforms = waveforms.masked_fill(~inside, 0.0)
    waveforms = functional.pad(waveforms, (0, max(0, SHORTEST - total)))
    frames = (waveforms.float() * 2.0**15).unfold(-1, WINDOW, HOP)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - _PREEMPHASIS * before) * _window().to(frames.device)
    power = torch.fft.rfft(frames, n=_FFT).abs().square()
    energies = power @ _mel_weights().to(power.device)
    energies = energies.clamp(min=torch.finfo(torch.float32).eps).log()
    features = (energies - MEAN) / (2 * STD)
    if lengths is None:
        return features, None
    n_frames = features.shape[1]
    valid = (1 + (lengths.to(features.device) - WINDOW).div(HOP, rounding_mode="floor")).clamp(PATCH, n_frames)
    if bool((valid == n_frames).all()):
        return features, None
    return features, torch.arange(n_frames, device=features.device) < valid[:, None]


@cache
@torch.inference_mode(False)  # what is kept may be needed where gradients are
def _window() -> Tensor:
    """Povey's window: Hann's to the power of 0.85."""
    return torch.hann_window(WINDOW, periodic=False, dtype=torch.float64).pow(0.85).float()


@cache
@torch.inference_mode(False)
def _mel_weights() -> Tensor:
    """[257, 128]: triangles of equal width on the mel scale, that are measured there too."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    hertz = torch.arange(_FFT // 2 + 1, dtype=torch.float64) * RATE / _FFT
    lowest, highest = mel(torch.tensor([_LOWEST_HZ, RATE / 2], dtype=torch.float64)).tolist()
    corners = torch.linspace(lowest, highest, MEL_BINS + 2, dtype=torch.float64)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    points = mel(hertz)[:, None]
    weights = torch.minimum((points - left) / (centre - left), (right - points) / (right - centre)).clamp(min=0)
    weights[-1] = 0  # Kaldi leaves the highest frequency out
    return weights.float()


# --- the network


class Beats(nn.Module):
    """The encoder, and the predictor of a fine-tuned network."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, PATCH, stride=PATCH, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, width) if config.embed_dim != width else None
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.encoder = _Encoder(config)
        self.predictor_dropout = nn.Dropout(config.predictor_dropout)
        self.predictor = nn.Linear(width, config.predictor_class) if config.finetuned_model else None

    def forward(self, fbank: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features of patches.

        Parameters
        ----------
        fbank
            [B, n_frames, 128] as `fbank` returns them; frames after the last whole patch are not heard.
        frame_mask
            Bool [B, n_frames], True where there is sound.

        Returns
        -------
        features : Tensor
            [B, P, D], P = 8 patches for each 16 frames: in order of time, and of frequency within a time.
        patch_mask : Tensor or None
            Bool [B, P], True where all frames of a patch are sound (and for the first ones); None where all are.
        """
        patches = self.patch_embedding(fbank[:, None])
        grid = patches.shape[2:]
        mask = None if frame_mask is None else patch_mask(frame_mask, *grid)
        x = self.layer_norm(patches.flatten(2).transpose(1, 2))
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)
        return self.encoder(self.dropout_input(x), mask), mask

    def classify(self, features: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Logits [B, C] of what `forward` returned, before any sigmoid: the mean over the patches that are sound.

        Raises
        ------
        ValueError
            The network has no predictor.
        """
        if self.predictor is None:
            raise ValueError("a pretrained BEATs has no predictor; fine-tune it, or load a fine-tuned one")
        logits: Tensor = self.predictor(self.predictor_dropout(features))
        if patch_mask is None:
            return logits.mean(1)
        return logits.masked_fill(~patch_mask[:, :, None], 0.0).sum(1) / patch_mask.sum(1, keepdim=True)


def patch_mask(frame_mask: Tensor, columns: int, rows: int) -> Tensor | None:
    """Bool [B, columns * rows], True where all frames of a patch are sound; None where they are everywhere.

    `rows` patches of different frequency share a column of 16 frames. The first column of a clip always counts.
    """
    sound = frame_mask[:, : columns * PATCH].unflatten(1, (columns, PATCH)).all(-1)
    sound[:, 0] = True
    return None if bool(sound.all()) else sound.repeat_interleave(rows, dim=1)


class _Encoder(nn.Module):
    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        self.pos_conv = nn.Sequential(_PositionConv(width, config.conv_pos, config.conv_pos_groups), nn.GELU())
        sizes = config.feed_forward_sizes or [config.encoder_ffn_embed_dim] * config.encoder_layers
        self.layers = nn.ModuleList(_Layer(config, size) for size in sizes)
        self.layer_norm = nn.LayerNorm(width)
        self._initialise()
        if config.relative_position_embedding:
            for layer in self._layers[1:]:
                layer.self_attn.relative_attention_bias = self._layers[0].self_attn.relative_attention_bias

    @property
    def _layers(self) -> list[_Layer]:
        return [cast(_Layer, layer) for layer in self.layers]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, P, D] to [B, P, D]; `mask` is True where there is sound."""
        config = self.config
        if mask is not None:
            x = x.masked_fill(~mask[:, :, None], 0.0)
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not config.layer_norm_first:
            x = self.layer_norm(x)
        x = functional.dropout(x, config.dropout, self.training)
        hidden = None
        if mask is not None:
            hidden = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -math.inf)[:, None, None, :]
        position = self._position_bias(x.shape[1])
        for layer in self.layers:
            if x.requires_grad and config.layer_wise_gradient_decay_ratio != 1.0:
                # the block alone uses x, so this is all of its gradient
                x.register_hook(partial(torch.mul, config.layer_wise_gradient_decay_ratio))
            if not self.training or float(torch.rand(())) >= config.encoder_layerdrop:
                x = layer(x, position, hidden)
        return self.layer_norm(x) if config.layer_norm_first else x

    def _position_bias(self, n: int) -> Tensor | None:
        """[heads, n, n]: a learned number for each bucket of distances, the same in all blocks before their gates."""
        table = self._layers[0].self_attn.relative_attention_bias
        if table is None:
            return None
        device = table.weight.device
        distance = torch.arange(1 - n, n, device=device)
        half = self.config.num_buckets // 2
        exact = half // 2
        far = distance.abs().clamp(min=1).float() / exact
        log = exact + (torch.log(far) / math.log(self.config.max_distance / exact) * (half - exact)).long()
        bucket = torch.where(distance.abs() < exact, distance.abs(), log.clamp(max=half - 1))
        bucket = bucket + half * (distance > 0)
        where = torch.arange(n, device=device)
        return cast(Tensor, table(bucket)[where[None, :] - where[:, None] + n - 1]).permute(2, 0, 1)

    @torch.no_grad()
    def _initialise(self) -> None:
        """As published: small weights; with deep norm, Xavier's, of which those on the residual path shrink with depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if self.config.deep_norm:
            beta = (8 * self.config.encoder_layers) ** -0.25
            for layer in self._layers:
                attention = layer.self_attn
                for linear in (attention.q_proj, attention.k_proj):
                    nn.init.xavier_normal_(linear.weight)
                for linear in (attention.v_proj, attention.out_proj, layer.fc1, layer.fc2):
                    nn.init.xavier_normal_(linear.weight, gain=beta)


class _PositionConv(nn.Module):
    """A convolution over patches with as many outputs as inputs, its weights normalised for each place in the kernel."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.bias = nn.Parameter(torch.zeros(width))
        weight = torch.randn(width, width // groups, kernel) * math.sqrt(4 / (kernel * width))
        self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
        self.weight_v = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        y = functional.conv1d(x, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return y[..., : x.shape[-1]]  # an even kernel gives one more


class _Layer(nn.Module):
    def __init__(self, config: BeatsConfig, inner: int) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.norm_first = config.layer_norm_first
        self.residual_scale = math.pow(2 * config.encoder_layers, 0.25) if config.deep_norm else 1.0
        self.activation = _ACTIVATIONS[config.activation_fn]
        self.self_attn = _Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor, position: Tensor | None, hidden: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), position, hidden))
            z: Tensor = x + self.dropout(self._feed_forward(self.final_layer_norm(x)))
            return z
        scale = self.residual_scale
        x = self.self_attn_layer_norm(x * scale + self.dropout(self.self_attn(x, position, hidden)))
        y: Tensor = self.final_layer_norm(x * scale + self.dropout(self._feed_forward(x)))
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.activation_dropout(self.activation(self.fc1(x))))
        return y


class _Attention(nn.Module):
    """Self-attention with a bias for distance, gated by the query (WavLM's gate, on the projected query)."""

    relative_attention_bias: nn.Embedding | None

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.dropout = config.attention_dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.relative_attention_bias = None
        if config.relative_position_embedding:
            self.relative_attention_bias = nn.Embedding(config.num_buckets, self.heads)
        self.gated = config.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(width // self.heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, x: Tensor, position: Tensor | None, hidden: Tensor | None) -> Tensor:
        """[B, P, D] to [B, P, D].

        `position` [heads, P, P] is added to the scores after the gate, `hidden` [B, 1, 1, P] as it is. The published code
        divides the scores and takes their largest away to spare half precision: a softmax does not see it.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = hidden
        if position is not None:
            bias = position[None] * self._gate(q) if self.gated else position[None]
            bias = (bias if hidden is None else bias + hidden).to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        z: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return z

    def _gate(self, q: Tensor) -> Tensor:
        """[B, heads, P, 1]: about 1 or 2 where the gates are shut or open."""
        a, b = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)
        gate: Tensor = a * (b * self.grep_a - 1.0) + 2.0
        return gate


# --- checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """What a published file holds. `labels` are the names of its classes in order, None where it gives none."""

    config: BeatsConfig
    state: dict[str, Tensor]
    labels: list[str] | None = None


def read(path: str | Path) -> Checkpoint:
    """Read a file of the published layout: `{"cfg": {...}, "model": weights, "label_dict": {index: class}}`.

    Only tensors and plain values are ever unpickled.

    Raises
    ------
    WeightsMissingError
        There is no such file, or it holds something else; the message says what to get.
    """
    file = Path(path).expanduser()
    get = (
        f"get {CHECKPOINTS[0]} (pretrained) or {CHECKPOINTS[1]} (fine-tuned on AudioSet) from the BEATs page of "
        "Microsoft's unilm repository, put it in a folder of your own and give its path"
    )
    if not file.is_file():
        raise WeightsMissingError(f"there is no BEATs checkpoint '{file}'; {get}")
    try:
        content = read_pickle(file)
    except WeightsMissingError as exc:
        raise WeightsMissingError(f"{exc}; {get}") from exc
    parts = [content.get(key) for key in ("cfg", "model")] if isinstance(content, Mapping) else []
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        raise WeightsMissingError(f"'{file}' is no BEATs checkpoint: it lacks 'cfg' or 'model'; {get}")
    if "quantize.embedding.weight" in content["model"]:
        raise WeightsMissingError(f"'{file}' is a tokenizer of BEATs, not an encoder; {get}")
    try:
        config = BeatsConfig.of(content["cfg"])
    except Exception as exc:  # a pickle may hold anything that is a mapping of sorts
        raise WeightsMissingError(f"'{file}' is a BEATs of another kind ({exc}); {get}") from exc
    labels: Any = content.get("label_dict")
    names = None
    if config.finetuned_model and isinstance(labels, Mapping) and set(labels) == set(range(config.predictor_class)):
        names = [str(labels[i]) for i in range(config.predictor_class)]
    return Checkpoint(config, dict(content["model"]), names)


def read_checkpoint(path: str | Path) -> tuple[BeatsConfig, dict[str, Tensor]]:
    """Shape and weights of a published file: see `read`."""
    checkpoint = read(path)
    return checkpoint.config, checkpoint.state


def build(config: BeatsConfig, state: Mapping[str, Tensor], source: str | Path) -> Beats:
    """A network of these weights, in float32 and evaluation mode.

    Raises
    ------
    WeightsMissingError
        Weights are missing, too many, or of another shape; `source` is what the message calls them.
    """
    try:
        with torch.device("meta"):
            model = Beats(config)
        _check_shapes(model, state)
        # the blocks share one table of distances, which a file lists once for each: copies keep it shared
        model.to_empty(device="cpu").load_state_dict(state, strict=True)
    except Exception as exc:  # sizes that exclude each other, or what a file holds in place of tensors
        reason = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise WeightsMissingError(
            f"the weights of '{source}' do not fit its cfg ({reason}); get the file again"
        ) from exc
    return model.float().eval()


def _check_shapes(model: Beats, state: Mapping[str, Any]) -> None:
    """ValueError where weights are not the model's: before it takes the memory that a configuration claims."""
    for name, wanted in model.state_dict().items():
        if name not in state:
            raise ValueError(f"Missing key: {name}")
        given = state[name]
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} is no tensor")
        if given.shape != wanted.shape:
            raise ValueError(f"size mismatch for {name}: {tuple(given.shape)}, not {tuple(wanted.shape)}")


def load_beats(path: str | Path) -> Beats:
    """A network from a published file, in float32 and evaluation mode; WeightsMissingError where there is none."""
    config, state = read_checkpoint(path)
    return build(config, state, path)
