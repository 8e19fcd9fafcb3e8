"""Tiny audio networks with random weights, on disk as the published ones are: names of files, classes and keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLASSES = ("dog", "rain", "clock")
RATE = 16_000
CLAP_RATE = 8_000


def _randomise(model: Any) -> Any:
    """Weights away from zeros and ones everywhere, so that nothing is right by being nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            value += 0.1 * torch.randn(value.shape, generator=generator)
            if name.endswith("original0"):  # the norm of a weight
                value.abs_()
    return model.eval()


def _rename(directory: Path, rename: Callable[[str], str]) -> None:
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    save_file({rename(key): value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def pickled(directory: Path) -> Path:
    """The same checkpoint with a pickle instead of safetensors, as older ones are published."""
    from safetensors.torch import load_file

    file = directory / "model.safetensors"
    torch.save(load_file(file), directory / "pytorch_model.bin")
    file.unlink()
    return directory


def changed(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """The checkpoint after a change to its tensors."""
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def speech(directory: Path, kind: str, *, large: bool = False, **options: Any) -> Path:
    """wav2vec 2.0, HuBERT or WavLM: "HubertModel", "Wav2Vec2ForPreTraining", "Wav2Vec2ForCTC", "WavLMModel" …

    The base size normalises over time (one group norm), the large one over channels, with the norm before each layer.
    As published, the weight norm of the positions is under its old keys, and WavLM's extractor asks for masks at any size.
    """
    import transformers

    torch.manual_seed(0)
    family = kind.partition("For")[0].removesuffix("Model")
    extra: dict[str, Any] = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}
    config = getattr(transformers, f"{family}Config")(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8, 8),
        conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer" if large else "group", do_stable_layer_norm=large, vocab_size=12,
        **(extra if family == "Wav2Vec2" else {}), **options,
    )  # fmt: skip
    _randomise(getattr(transformers, kind)(config)).save_pretrained(directory)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    _rename(directory, lambda key: _replaced(key, old))
    masks = large or family == "WavLM"
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masks, do_normalize=family != "WavLM").save_pretrained(
        directory
    )
    if family == "Hubert":  # whose extractor is known by the model's type alone
        _edit(directory / "preprocessor_config.json", lambda told: told.pop("feature_extractor_type"))
    return directory


def kin(directory: Path, family: str) -> Path:
    """Encoders beside those: "Data2VecAudio", "SEW", "Wav2Vec2Conformer", "Wav2Vec2Bert", with extractors that give masks."""
    import transformers

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 12,
    }  # fmt: skip
    if family == "Wav2Vec2Bert":
        shape |= {"feature_projection_input_dim": 16}
        extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8)
    else:
        shape |= {"conv_dim": (8, 8, 8), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4)}
        shape |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "conv_pos_kernel_size": 5}
        shape |= {"feat_extract_norm": "layer" if family == "Wav2Vec2Conformer" else "group"}
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    config = getattr(transformers, f"{family}Config")(**shape)
    _randomise(getattr(transformers, f"{family}Model")(config)).save_pretrained(directory)
    extractor.save_pretrained(directory)
    return directory


def whisper(directory: Path, kind: str = "WhisperForConditionalGeneration") -> Path:
    """A Whisper that hears one second: "WhisperForConditionalGeneration" as published, or "WhisperModel"."""
    import transformers

    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=60, num_mel_bins=16, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=50,
        max_target_positions=20, bos_token_id=0, eos_token_id=1, pad_token_id=1, decoder_start_token_id=0,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    _randomise(getattr(transformers, kind)(config)).save_pretrained(directory)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(directory)
    return directory


def clap(directory: Path, *, fused: bool = False, kind: str = "ClapModel", **options: Any) -> Path:
    """A CLAP that hears one second at 8 kHz: stages of 2 and 3 blocks over 16 x 16 and 8 x 8 patches, windows of 4 x 4."""
    import transformers

    torch.manual_seed(0)
    bins = 64 if fused else 16  # a fused one's extractor knows no other number
    settings = {
        "spec_size": 4 * bins, "num_mel_bins": bins, "patch_embeds_hidden_size": 8, "depths": [2, 3],
        "num_attention_heads": [2, 2], "hidden_size": 16, "window_size": 4, "patch_size": 16 if fused else 4,
        "patch_stride": [16, 16] if fused else [4, 4], "projection_dim": 12, "num_hidden_layers": 2, "enable_fusion": fused,
    } | options  # fmt: skip
    text = {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 20, "projection_dim": 12,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=settings, projection_dim=12)
    part = config if kind == "ClapModel" else config.audio_config
    model = getattr(transformers, kind)(part)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(1 + torch.rand(buffer.shape, generator=generator))
    _randomise(model).save_pretrained(directory)
    transformers.ClapFeatureExtractor(
        feature_size=bins, sampling_rate=CLAP_RATE, hop_length=32 if fused else 126, max_length_s=1, fft_window_size=256,
        frequency_min=50, frequency_max=4000, truncation="fusion" if fused else "rand_trunc", padding="repeatpad",
    ).save_pretrained(directory)  # fmt: skip
    return directory


def ast(directory: Path, *, headless: bool = False, published: bool = True, **options: Any) -> Path:
    """An AST, under the keys of the published one (MIT's of 2022) or of today's `transformers`."""
    import transformers

    torch.manual_seed(0)
    names = (
        {} if headless else {"id2label": dict(enumerate(CLASSES)), "label2id": {n: i for i, n in enumerate(CLASSES)}}
    )
    settings = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 48,
        "num_mel_bins": 32, "frequency_stride": 10, "time_stride": 10,
    } | options  # fmt: skip
    kind = transformers.ASTModel if headless else transformers.ASTForAudioClassification
    _randomise(kind(transformers.ASTConfig(**settings, **names))).save_pretrained(directory)
    if published:
        inner = {
            "layers.": "encoder.layer.", "attention.q_proj": "attention.attention.query",
            "attention.k_proj": "attention.attention.key", "attention.v_proj": "attention.attention.value",
            "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        }  # fmt: skip
        _rename(directory, lambda key: _replaced(key, inner))
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=48).save_pretrained(directory)
    return directory


def told(directory: Path, **values: Any) -> Path:
    """The checkpoint with other values in config.json; None takes one out."""

    def edit(config: dict[str, Any]) -> None:
        config.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del config[key]

    _edit(directory / "config.json", edit)
    return directory


def _edit(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text("utf-8"))
    edit(content)
    file.write_text(json.dumps(content), "utf-8")


def _replaced(key: str, table: dict[str, str]) -> str:
    for new, old in table.items():
        key = key.replace(new, old)
    return key
