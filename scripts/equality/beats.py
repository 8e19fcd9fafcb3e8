"""Our BEATs beside the original one and speechbrain's, on the same random weights.

Environment: the project's own (torch 2.13, transformers 5.18), and two source trees that are only read:

- `microsoft/unilm`, its folder `beats` (BEATs.py, backbone.py, modules.py), the original code (MIT);
- speechbrain 1.1.2 unpacked (`pip download --no-deps speechbrain==1.1.2` and unzip), Apache-2.0.

Both take their spectrogram from `torchaudio.compliance.kaldi`. There is no build of torchaudio for a CPU torch of this
version, but that is one file of Python which runs without the rest: take it out of a wheel (`pip download --no-deps
torchaudio==2.9.0`, unzip) and name it with `--kaldi`. The rest of torchaudio, and speechbrain's data-loading package, of
which its BEATs needs one function of two lines, have stand-ins here.

The spectrogram is also compared with transformers' numpy routine in double precision, set as Kaldi's filterbank (Povey's
window, 128 bins from 20 Hz in triangles on the mel scale).

Run::

    python scripts/equality/beats.py --microsoft unilm/beats --speechbrain speechbrain-1.1.2 --kaldi kaldi.py \
        [--large] [--fixture tests/data/parity/beats.npz]

`--large` adds a network of the size of the published ones (12 blocks of 768). `--fixture` writes what the project's tests
compare with: tiny weights, clips, and what the ORIGINAL code returned for each clip alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from and_platform.backends import beats

TINY: dict[str, Any] = {
    "input_patch_size": 16, "embed_dim": 24, "conv_bias": False, "encoder_layers": 3, "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4, "activation_fn": "gelu", "conv_pos": 16,
    "conv_pos_groups": 4, "relative_position_embedding": True, "num_buckets": 32, "max_distance": 80,
    "gru_rel_pos": True, "deep_norm": True, "layer_norm_first": False, "dropout": 0.0, "attention_dropout": 0.0,
    "predictor_dropout": 0.0, "layer_wise_gradient_decay_ratio": 1.0, "finetuned_model": True, "predictor_class": 5,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "iter3-like, tiny": {},
    "pretrained": {"finetuned_model": False},
    "layer norm first": {"deep_norm": False, "layer_norm_first": True},
    "no gate": {"gru_rel_pos": False},
    "no positions": {"gru_rel_pos": False, "relative_position_embedding": False},
    "no projection": {"embed_dim": 32},
    "odd kernel": {"conv_pos": 15},
}
LARGE = TINY | {
    "embed_dim": 512, "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12, "conv_pos": 128, "conv_pos_groups": 16, "num_buckets": 320, "max_distance": 800,
    "predictor_class": 527,
}  # fmt: skip
LENGTHS = (20_000, 11_800, 5_200)  # samples: 123, 72 and 31 frames; the last column of patches is never full


def clips(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Noise, a chirp and a decaying tone, as 16 bits hold them."""
    rng = np.random.default_rng(3)
    made = []
    for i, n in enumerate(lengths):
        t = np.arange(n) / beats.RATE
        wave = [
            0.2 * rng.normal(size=n).clip(-4, 4),
            0.5 * np.sin(2 * np.pi * (200 * t + 1500 * t**2)) + 0.01 * rng.normal(size=n),
            0.8 * np.exp(-6 * t) * np.sin(2 * np.pi * 440 * t),
        ][i % 3]
        made.append(torch.from_numpy((np.round(wave * 32767) / 32768).astype(np.float32)))
    return made


# --- the other implementations


def stand_ins(kaldi: Path) -> Any:
    """Put in place what the two source trees import and this environment has not; returns torchaudio's kaldi module."""

    def length_to_mask(lengths: Tensor, longest: int, device: Any = None) -> Tensor:
        return torch.arange(longest, device=device)[None, :] < lengths[:, None]

    data = ModuleType("speechbrain.dataio.dataio")
    vars(data)["length_to_mask"] = length_to_mask
    for name in ("torchaudio", "torchaudio.compliance", "speechbrain", "speechbrain.dataio"):
        sys.modules[name] = ModuleType(name)
    sys.modules[data.__name__] = data
    module = module_at(kaldi, "torchaudio.compliance.kaldi")
    vars(sys.modules["torchaudio"])["compliance"] = sys.modules["torchaudio.compliance"]
    vars(sys.modules["torchaudio.compliance"])["kaldi"] = module
    return module


def module_at(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"there is no {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def original(module: Any, cfg: Mapping[str, Any], seed: int = 0, spread: float = 0.2) -> Any:
    """A network of the original code, with weights that let every part be heard, as half precision holds them."""
    torch.manual_seed(seed)
    model = module.BEATs(module.BEATsConfig(dict(cfg))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + spread * torch.randn_like(parameter)).half().float())
    return model


def padded(waves: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(wave) for wave in waves])
    return nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths


def padding(waves: list[Tensor]) -> Tensor:
    """True where there is padding, as the original code wants it."""
    batch, lengths = padded(waves)
    return torch.arange(batch.shape[1])[None, :] >= lengths[:, None]


@contextmanager
def heard(model: nn.Module, paths: list[str], time_first: bool) -> Iterator[dict[str, Tensor]]:
    """What the modules return, [B, P, units]."""
    outputs: dict[str, Tensor] = {}

    def listen(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[path] = output.detach().transpose(0, 1) if time_first else output.detach()

        return hook

    handles = [model.get_submodule(path).register_forward_hook(listen(path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def our_mask(model: Any, waves: list[Tensor]) -> Iterator[None]:
    """Let the original code mask whole columns of patches, as ours does."""
    batch, lengths = padded(waves)
    features, frame_mask = beats.fbank(batch, lengths)
    columns = features.shape[1] // beats.PATCH
    patch_mask = None if frame_mask is None else beats.patch_mask(frame_mask, columns, 8)

    def mask(shaped: Tensor, given: Tensor) -> Tensor:
        for ours in (frame_mask, patch_mask):
            if ours is not None and ours.shape == shaped.shape[:2]:
                return ~ours
        return given.new_zeros(shaped.shape[:2])

    model.forward_padding_mask = mask
    try:
        yield
    finally:
        del model.forward_padding_mask


# --- comparisons


def worst(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def compare_spectrograms(kaldi: Any) -> NDArray[np.float32]:
    """Ours beside transformers' in double precision and torchaudio's; returns the latter for the short chirp, normalised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a triangle so narrow that no line of the spectrum is in it
        filters = mel_filter_bank(
            257, 128, 20, 8000, 16000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
        )
    window = window_function(400, "povey", periodic=False)

    def reference(wave: Tensor) -> NDArray[np.float64]:
        energies = spectrogram(
            wave.double().numpy() * 2**15, window, 400, 160, fft_length=512, power=2.0, center=False, preemphasis=0.97,
            mel_filters=filters, log_mel="log", mel_floor=float(np.finfo(np.float32).eps), remove_dc_offset=True,
            dtype=np.float64,
        )  # fmt: skip
        return (energies.T - beats.MEAN) / (2 * beats.STD)

    def published(wave: Tensor, precision: torch.dtype) -> NDArray[Any]:
        energies = kaldi.fbank(
            wave[None].to(precision) * 2**15, num_mel_bins=128, sample_frequency=16000, frame_length=25, frame_shift=10
        )
        normalised: NDArray[Any] = ((energies - beats.MEAN) / (2 * beats.STD)).numpy()
        return normalised

    print("spectrogram, largest differences (normalised units) from transformers' in double precision")
    print(f"  {'':<14} {'ours':>9} {'torchaudio':>11} {'its double':>11}   ours and torchaudio's: largest, mean")
    made = clips((80_000, 80_000, 80_000))
    names = ("noise", "chirp", "decaying tone", "silence", "impulse")
    impulse = torch.zeros(80_000)
    impulse[40_000] = 1.0
    for name, wave in zip(names, [*made, torch.zeros(80_000), impulse], strict=True):
        ours = beats.fbank(wave[None])[0][0].numpy()
        exact, single = reference(wave), published(wave, torch.float32)
        far = [np.abs(x - exact).max() for x in (ours, single, published(wave, torch.float64))]
        off = np.abs(ours - single)
        print(f"  {name:<14} {far[0]:9.2e} {far[1]:11.2e} {far[2]:11.2e}   {off.max():.2e} {off.mean():.2e}")
    short: NDArray[np.float32] = published(clips()[1], torch.float32)
    return short


def compare_network(name: str, cfg: Mapping[str, Any], microsoft: Any, speechbrain: Any, waves: list[Tensor]) -> None:
    theirs = original(microsoft, cfg)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        torch.save({"cfg": dict(cfg), "model": theirs.state_dict()}, file)
        ours = beats.load_beats(file)
        third = speechbrain.BEATs(str(file))
    blocks = range(cfg["encoder_layers"])
    paths = [f"encoder.layers.{i}.{part}" for i in blocks for part in ("fc1", "fc2")]
    head = ["predictor"] if cfg["finetuned_model"] else []
    layers = dict.fromkeys([*paths, *head], 0.0)
    answers, whole, others, scale = 0.0, 0.0, 0.0, 0.0
    alone: list[Tensor] = []
    with torch.inference_mode():
        for wave in waves:
            with heard(theirs, paths, True) as a, heard(theirs, head, False) as a_head:
                result, _ = theirs.extract_features(wave[None], padding_mask=None)
            with heard(ours, [*paths, *head], False) as b:
                x, _ = ours(theirs.preprocess(wave[None]))
                answer = ours.classify(x).sigmoid() if head else x
            heard_by_us, _ = ours(*beats.fbank(wave[None]))
            from_our_spectrogram = ours.classify(heard_by_us).sigmoid() if head else heard_by_us
            for path, value in (a | a_head).items():
                layers[path] = max(layers[path], worst(value, b[path]))
                scale = max(scale, float(value.abs().max()))
            answers = max(answers, worst(result, answer))
            whole = max(whole, worst(result, from_our_spectrogram))
            other = third(wave[None], torch.ones(1))
            others = max(others, worst(other[1] if head else other[0], answer), worst(other[0], x))
            alone.append(result[0])

        batch, lengths = padded(waves)
        x, mask = ours(*beats.fbank(batch, lengths))
        answer = ours.classify(x, mask).sigmoid() if head else x
        as_it_is, _ = theirs.extract_features(batch.clone(), padding_mask=padding(waves))
        with our_mask(theirs, waves):
            masked, _ = theirs.extract_features(batch.clone(), padding_mask=padding(waves))

    def rows(value: Tensor) -> list[Tensor]:
        return [value[i] if head else value[i, : len(alone[i])] for i in range(len(waves))]

    def off(value: Tensor, reference: list[Tensor]) -> float:
        return max(worst(a, b) for a, b in zip(rows(value), reference, strict=True))

    print(
        f"{name}: {sum(p.numel() for p in ours.parameters()):,} parameters, {'probabilities' if head else 'features'}"
    )
    print("  each clip alone, from the same spectrogram")
    print(f"    theirs and ours: layers {max(layers.values()):.2e} of up to {scale:.1f}, answers {answers:.2e}")
    print(f"    speechbrain's and ours: features and answers {others:.2e}")
    print(f"  each clip alone, each from its own spectrogram: answers {whole:.2e}")
    print(f"  one padded batch, theirs with our mask and ours: {off(answer, rows(masked)):.2e}")
    print(f"  ours, padded batch and alone:   {off(answer, alone):.2e}")
    print(f"  theirs, padded batch and alone: {off(as_it_is, alone):.2e}")
    if name == "large":
        for path, value in layers.items():
            print(f"    {path:<28} {value:.2e}")


def compare_gradients(microsoft: Any, waves: list[Tensor]) -> None:
    """Of the same loss, with the gradient scaled from block to block as it is when published networks are fine-tuned.

    The original's scaling does nothing but hand gradients on, times the ratio: so does ours.
    """
    cfg = TINY | {"layer_wise_gradient_decay_ratio": 0.6}
    theirs = original(microsoft, cfg)
    ours = beats.build(beats.BeatsConfig.of(cfg), theirs.state_dict(), "the original")
    batch, lengths = padded(waves)
    with our_mask(theirs, waves):
        theirs.extract_features(batch.clone(), padding_mask=padding(waves))[0].square().sum().backward()
    _, frame_mask = beats.fbank(batch, lengths)
    ours.classify(*ours(theirs.preprocess(batch), frame_mask)).sigmoid().square().sum().backward()
    expected = {key: value.grad for key, value in theirs.named_parameters()}
    got = {key: value.grad for key, value in ours.named_parameters()}
    if set(expected) != set(got):
        raise SystemExit(f"parameters differ: {sorted(set(expected) ^ set(got))}")
    # a bias of all keys moves no softmax: its gradient is noise around zero
    relative = max(
        worst(expected[key], got[key]) / float(expected[key].abs().max())
        for key in expected
        if not key.endswith("k_proj.bias")
    )
    print(f"gradients of {len(got)} parameters: {relative:.2e} of the largest of each")


def write_fixture(file: Path, microsoft: Any, filterbank: NDArray[np.float32]) -> None:
    model = original(microsoft, TINY | {"encoder_layers": 2})
    waves = clips()
    cfg = TINY | {"encoder_layers": 2}
    stored: dict[str, Any] = {"cfg": np.array(json.dumps(cfg)), "fbank_1": filterbank}
    stored |= {
        f"weights/{key}": value.numpy().astype(np.float16)
        for key, value in model.state_dict().items()
        if key != "encoder.layers.1.self_attn.relative_attention_bias.weight"
    }
    paths = ["encoder.layers.0.fc1", "encoder.layers.1.fc2", "encoder.layers.1.final_layer_norm"]
    with torch.inference_mode():
        for i, wave in enumerate(waves):
            with heard(model, paths, True) as outputs:
                probabilities, _ = model.extract_features(wave[None], padding_mask=None)
            stored[f"clip_{i}"] = (wave.numpy() * 32768).astype(np.int16)
            stored[f"probabilities_{i}"] = probabilities[0].numpy()
            for path, value in outputs.items():
                stored[f"{path.removeprefix('encoder.layers.')}_{i}"] = value[0].numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **stored)
    print(f"written: {file.name}, {file.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--microsoft", type=Path, required=True, help="folder with BEATs.py")
    parser.add_argument("--speechbrain", type=Path, required=True, help="folder with speechbrain/lobes/models/beats.py")
    parser.add_argument("--kaldi", type=Path, required=True, help="torchaudio's compliance/kaldi.py")
    parser.add_argument("--large", action="store_true", help="a network of published size too")
    parser.add_argument("--fixture", type=Path, help="file to write")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # the original's weight norm

    kaldi = stand_ins(arguments.kaldi)
    sys.path.insert(0, str(arguments.microsoft.resolve()))
    microsoft = module_at(arguments.microsoft / "BEATs.py", "original_beats")
    speechbrain = module_at(arguments.speechbrain / "speechbrain/lobes/models/beats.py", "speechbrain_beats")
    filterbank = compare_spectrograms(kaldi)
    for name, variant in VARIANTS.items():
        compare_network(name, TINY | variant, microsoft, speechbrain, clips())
    compare_gradients(microsoft, clips())
    if arguments.large:
        compare_network("large", LARGE, microsoft, speechbrain, clips((80_000, 48_000)))
    if arguments.fixture:
        write_fixture(arguments.fixture, microsoft, filterbank)


if __name__ == "__main__":
    main()
