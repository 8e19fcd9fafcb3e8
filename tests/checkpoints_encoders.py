"""Checkpoints of encoders with random weights, in each of their published layouts; and an environment with a fake package.

No pytest here: the scripts that compare with other implementations use these too, in environments of their own.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TINY_CLIP: dict[str, int] = {"width": 32, "layers": 2, "vocabulary": 514, "context": 16, "dim": 24}
VIT_B_32: dict[str, int] = {"width": 512, "layers": 12, "vocabulary": 49408, "context": 77, "dim": 512}
LOGIT_SCALE = 3.5


# ---------------------------------------------------------------------- CLIP


def clip_state(width: int, layers: int, vocabulary: int, context: int, dim: int) -> dict[str, Floats]:
    """A CLIP's text tower as OpenAI and open_clip name its tensors; weights of a size that keeps texts apart."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, size: float) -> Floats:
        return rng.normal(0, size, shape).astype(np.float32)

    state = {
        "token_embedding.weight": normal(vocabulary, width, size=0.5),
        "positional_embedding": normal(context, width, size=0.2),
        "ln_final.weight": 1 + normal(width, size=0.1),
        "ln_final.bias": normal(width, size=0.1),
        "text_projection": normal(width, dim, size=width**-0.5),
        "logit_scale": np.array(LOGIT_SCALE, np.float32),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        for part, rows, columns in (("attn.in_proj_", 3 * width, width), ("attn.out_proj.", width, width),
                                    ("mlp.c_fc.", 4 * width, width), ("mlp.c_proj.", width, 4 * width)):  # fmt: skip
            state[f"{block}.{part}weight"] = normal(rows, columns, size=columns**-0.5)
            state[f"{block}.{part}bias"] = normal(rows, size=0.1)
        for norm in ("ln_1", "ln_2"):
            state[f"{block}.{norm}.weight"] = 1 + normal(width, size=0.1)
            state[f"{block}.{norm}.bias"] = normal(width, size=0.1)
    return state


def write_clip(folder: Path, state: Mapping[str, Floats], merges: Sequence[str] = ()) -> None:
    """The text tower as "openai/clip-vit-base-patch32" has it: config.json, model.safetensors, vocab.json, merges.txt."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, width = state["token_embedding.weight"].shape
    context, dim = len(state["positional_embedding"]), state["text_projection"].shape[1]
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
             "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
    theirs = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": np.ascontiguousarray(state["text_projection"].T),
        "logit_scale": state["logit_scale"],
    }
    layers = _layers(state)
    for i in range(layers):
        ours, layer = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            for mine, name in names.items():
                theirs[f"{layer}.{name}.{kind}"] = state[f"{ours}.{mine}.{kind}"]
            for part, rows in zip("qkv", np.split(state[f"{ours}.attn.in_proj_{kind}"], 3), strict=True):
                theirs[f"{layer}.self_attn.{part}_proj.{kind}"] = np.ascontiguousarray(rows)
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    text = {
        "model_type": "clip_text_model", "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": _heads(width), "max_position_embeddings": context,
        "projection_dim": dim, "hidden_act": "quick_gelu", "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip
    config = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": dim, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    words = clip_vocabulary(merges)
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context, "pad_token": "<|endoftext|>", **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_open_clip(folder: Path, state: Mapping[str, Floats]) -> None:
    """The same as a directory for open_clip, with an image tower of one small block, since it wants one."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, width = state["token_embedding.weight"].shape
    dim = state["text_projection"].shape[1]
    image = {f"visual.{key}": value for key, value in clip_state(64, 1, 1, 2, dim).items() if "resblocks" in key}
    zeros = {
        "class_embedding": (64,),
        "positional_embedding": (2, 64),
        "proj": (64, dim),
        "conv1.weight": (64, 3, 32, 32),
    }
    zeros |= {f"ln_{place}.{kind}": (64,) for place in ("pre", "post") for kind in ("weight", "bias")}
    image |= {f"visual.{name}": np.zeros(shape, np.float32) for name, shape in zeros.items()}
    save_file({**state, **image}, folder / "open_clip_model.safetensors")
    text = {
        "context_length": len(state["positional_embedding"]), "vocab_size": vocabulary, "width": width,
        "heads": _heads(width), "layers": _layers(state),
    }  # fmt: skip
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
    model = {"embed_dim": dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))


def clip_vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """CLIP's vocabulary: bytes, bytes that end a word, merged pairs, and the two marks."""
    letters = _letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    return {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}


def _layers(state: Mapping[str, Any]) -> int:
    return len({key.split(".")[2] for key in state if key.startswith("transformer.resblocks.")})


def _heads(width: int) -> int:
    return max(width // 64, 4)


def _letters() -> list[str]:
    """A printable character for each byte: GPT-2's order, those that print first."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in prints]
    return [chr(byte) for byte in prints] + [chr(256 + i) for i in range(len(hidden))]


# ---------------------------------------------------------------------- CLAP

TINY_CLAP: dict[str, Any] = {
    "width": 8, "depths": (2, 1, 1, 1), "heads": (2, 2, 2, 2), "dim": 16, "vocabulary": 261, "positions": 80,
    "text_layers": 1, "text_inner": 64,
}  # fmt: skip
HTSAT_TINY: dict[str, Any] = {
    "width": 96, "depths": (2, 2, 6, 2), "heads": (4, 8, 16, 32), "dim": 512, "vocabulary": 50265, "positions": 514,
    "text_layers": 12, "text_inner": 3072,
}  # fmt: skip


def clap_state(
    width: int, depths: Sequence[int], heads: Sequence[int], dim: int, vocabulary: int, positions: int, text_layers: int,
    text_inner: int,
) -> dict[str, Floats]:  # fmt: skip
    """LAION's CLAP with an HTSAT and RoBERTa, as the package names its tensors; those that it computes are left out."""
    rng = np.random.RandomState(0)  # the one generator of numpy whose numbers never change

    state: dict[str, Floats] = {}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)
        if bias:
            state[f"{name}.bias"] = (rng.standard_normal(rows) * 0.1).astype(np.float32)

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = (1 + rng.standard_normal(size) * 0.1).astype(np.float32)
        state[f"{name}.bias"] = (rng.standard_normal(size) * 0.1).astype(np.float32)

    norm("audio_branch.bn0", 64)
    state["audio_branch.bn0.running_mean"] = (-30 + rng.standard_normal(64)).astype(np.float32)  # dB
    state["audio_branch.bn0.running_var"] = np.full(64, 400, np.float32)
    linear("audio_branch.patch_embed.proj", width, 16)
    state["audio_branch.patch_embed.proj.weight"] = state["audio_branch.patch_embed.proj.weight"].reshape(
        width, 1, 4, 4
    )
    norm("audio_branch.patch_embed.norm", width)
    for i, depth in enumerate(depths):
        size = width * 2**i
        for j in range(depth):
            block = f"audio_branch.layers.{i}.blocks.{j}"
            norm(f"{block}.norm1", size)
            linear(f"{block}.attn.qkv", 3 * size, size)
            table = (rng.standard_normal((15 * 15, heads[i])) * 0.5).astype(np.float32)
            state[f"{block}.attn.relative_position_bias_table"] = table
            linear(f"{block}.attn.proj", size, size)
            norm(f"{block}.norm2", size)
            linear(f"{block}.mlp.fc1", 4 * size, size)
            linear(f"{block}.mlp.fc2", size, 4 * size)
        if i < len(depths) - 1:
            linear(f"audio_branch.layers.{i}.downsample.reduction", 2 * size, 4 * size, bias=False)
            norm(f"audio_branch.layers.{i}.downsample.norm", 4 * size)
    top = width * 2 ** (len(depths) - 1)
    norm("audio_branch.norm", top)
    for name, rows, columns in (("word", vocabulary, 768), ("position", positions, 768), ("token_type", 1, 768)):
        values = (rng.standard_normal((rows, columns)) * 0.5).astype(np.float32)
        state[f"text_branch.embeddings.{name}_embeddings.weight"] = values
    norm("text_branch.embeddings.LayerNorm", 768)
    for i in range(text_layers):
        block = f"text_branch.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{block}.attention.self.{part}", 768, 768)
        linear(f"{block}.attention.output.dense", 768, 768)
        norm(f"{block}.attention.output.LayerNorm", 768)
        linear(f"{block}.intermediate.dense", text_inner, 768)
        linear(f"{block}.output.dense", 768, text_inner)
        norm(f"{block}.output.LayerNorm", 768)
    linear("text_branch.pooler.dense", 768, 768)
    for side, columns in (("audio", top), ("text", 768)):
        linear(f"{side}_projection.0", dim, columns)
        linear(f"{side}_projection.2", dim, dim)
        state[f"logit_scale_{side[0]}"] = np.array(LOGIT_SCALE, np.float32)
    return state


def write_clap(folder: Path, state: Mapping[str, Floats], shape: Mapping[str, Any], epsilon: float = 1e-5) -> None:
    """The same as "laion/clap-htsat-unfused" has it, with a tokenizer of single bytes; `epsilon` of its text model."""
    from safetensors.numpy import save_file

    write_roberta_tokenizer(folder)
    theirs: dict[str, Floats] = {}
    for key, value in state.items():
        name = key.replace("text_branch.", "text_model.").replace("audio_branch.", "audio_model.audio_encoder.")
        for mine, other in (
            (".bn0.", ".batch_norm."), ("_projection.0.", "_projection.linear1."), ("_projection.2.", "_projection.linear2."),
            (".norm1.", ".layernorm_before."), (".norm2.", ".layernorm_after."), (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."), (".attn.proj.", ".attention.output.dense."),
            (".attn.relative", ".attention.self.relative"),
        ):  # fmt: skip
            name = name.replace(mine, other)
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                theirs[name.replace(".attn.qkv.", f".attention.self.{part}.")] = np.ascontiguousarray(rows)
        else:
            theirs[name] = value
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    text = {
        "vocab_size": shape["vocabulary"], "num_hidden_layers": shape["text_layers"], "num_attention_heads": 12,
        "intermediate_size": shape["text_inner"], "max_position_embeddings": shape["positions"], "hidden_size": 768,
        "projection_dim": shape["dim"], "layer_norm_eps": epsilon, "model_type": "clap_text_model",
    }  # fmt: skip
    audio = {
        "patch_embeds_hidden_size": shape["width"], "depths": shape["depths"], "num_attention_heads": shape["heads"],
        "hidden_size": shape["width"] * 8, "projection_dim": shape["dim"], "model_type": "clap_audio_model",
    }  # fmt: skip
    config = {"model_type": "clap", "architectures": ["ClapModel"], "projection_dim": shape["dim"]}
    (folder / "config.json").write_text(json.dumps({**config, "text_config": text, "audio_config": audio}))
    features = {
        "feature_extractor_type": "ClapFeatureExtractor", "feature_size": 64, "sampling_rate": 48000, "hop_length": 480,
        "fft_window_size": 1024, "max_length_s": 10, "frequency_min": 50, "frequency_max": 14000, "padding": "repeatpad",
        "truncation": "rand_trunc", "top_db": None,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    words = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))


def sounds() -> list[Floats]:
    """Clips at 48 kHz: tones and noise for 10 s, a decaying tone for 3 s, and noise that grows for 12.5 s."""
    rng = np.random.RandomState(1)
    long, short, longer = (np.arange(int(48000 * seconds)) / 48000 for seconds in (10, 3, 12.5))
    tones = sum(np.sin(2 * np.pi * f * long) / (i + 2) for i, f in enumerate((220, 660, 3520)))
    bell = 0.7 * np.exp(-2 * short) * np.sin(2 * np.pi * 880 * short)
    wind = rng.standard_normal(longer.size) * longer / 60
    return [
        (0.3 * tones + 0.05 * rng.standard_normal(long.size)).astype(np.float32),
        (bell + 0.002 * rng.standard_normal(short.size)).astype(np.float32),
        wind.astype(np.float32),
    ]


def through_16_bits(waveform: Floats) -> Floats:
    """What LAION's preparation makes of a waveform before all else."""
    return ((np.clip(waveform, -1, 1) * 32767.0).astype(np.int16) / 32767.0).astype(np.float32)


# ---------------------------------------------------------------------- LAION's package


def write_roberta_tokenizer(folder: Path) -> None:
    """A tokenizer of RoBERTa's kind that knows single bytes: vocab.json and merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *_letters(), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")


def laion_state(dim: int = 16, scale: float = 2.5) -> dict[str, Any]:
    """The tensors of a checkpoint by which its shape is told, and one that the fake package computes with."""
    import torch

    torch.manual_seed(0)
    text = "text_branch."
    return {
        "audio_branch.patch_embed.proj.weight": torch.zeros(96, 1, 4, 4),
        "audio_projection.2.weight": torch.randn(dim, 64),
        "logit_scale_a": torch.tensor(scale),
        f"{text}embeddings.word_embeddings.weight": torch.zeros(270, 64),
        f"{text}embeddings.position_embeddings.weight": torch.zeros(80, 64),
        f"{text}embeddings.token_type_embeddings.weight": torch.zeros(1, 64),
        f"{text}embeddings.position_ids": torch.arange(80),
        f"{text}encoder.layer.0.intermediate.dense.weight": torch.zeros(128, 64),
    }


FAKE_LAION_CLAP = '''
"""Stands where the real package cannot be installed: same class, same calls, and it asks the hub for the same things."""

import numpy as np
import torch
from transformers import BartTokenizer, BertTokenizer, RobertaModel, RobertaTokenizer

BertTokenizer.from_pretrained("bert-base-uncased")
BartTokenizer.from_pretrained("facebook/bart-base")
print("a package that prints to standard output")


class CLAP_Module(torch.nn.Module):
    def __init__(self, enable_fusion=False, device=None, amodel="HTSAT-tiny"):
        super().__init__()
        assert (enable_fusion, amodel, device) == (False, "HTSAT-tiny", "cpu")
        text = RobertaModel.from_pretrained("roberta-base").config
        assert (text.vocab_size, text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (270, 64, 1, 128)
        self.model = Model()
        self.tokenize = RobertaTokenizer.from_pretrained("roberta-base")

    def get_text_embedding(self, texts, use_tensor=False):
        if texts == ["die"]:
            raise MemoryError("no memory left")
        rows = [np.bincount(self.tokenize(t, truncation=True, max_length=77)["input_ids"], minlength=64)[:64] for t in texts]
        return self.model(np.array(rows))

    def get_audio_embedding_from_data(self, clips, use_tensor=False):
        assert all(clip.dtype == np.float32 and clip.size <= 480000 for clip in clips)
        return self.model(np.array([[clip.size / 480000, clip[0], clip[-1], *[0] * 61] for clip in clips]))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_buffer(name.replace(".", "_"), torch.empty(shape))

    def state_dict(self):
        return dict.fromkeys(SHAPES)

    def load_state_dict(self, state):
        assert set(state) == set(SHAPES), set(state) ^ set(SHAPES)
        self.matrix = state["audio_projection.2.weight"].numpy()

    def forward(self, rows):
        return rows.astype(np.float32) @ self.matrix.T


SHAPES = {name: tuple(shape) for name, shape in %r.items()}
'''


def write_fake_laion_clap(folder: Path) -> None:
    """A package laion_clap for checkpoints of `laion_state`."""
    package = folder / "laion_clap"
    package.mkdir(parents=True)
    shapes = {key: list(value.shape) for key, value in laion_state().items() if not key.endswith("position_ids")}
    (package / "__init__.py").write_text(FAKE_LAION_CLAP % shapes, "utf-8")


def make_environment(folder: Path, *paths: Path) -> Path:
    """A virtual environment that sees this one's packages and those in `paths`; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    inside = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    seen = [*map(str, paths), *(path for path in sys.path if path.endswith("site-packages"))]
    (Path(inside) / "elsewhere.pth").write_text("\n".join(seen))
    return folder / "bin" / "python"


# ---------------------------------------------------------------------- sentence-transformers


def write_sentence_transformer(folder: Path) -> None:
    """As "sentence-transformers/all-MiniLM-L12-v2": BERT, mean pooling, normalisation; with 12 layers, and a prompt."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rain", "a", "bell", "the", "sound", "of"]
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=12, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join([*words, ""]))
    package = "sentence_transformers.models"
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, Any] = {
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512},
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "the sound of "}, "default_prompt_name": None},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"{package}.{name}"}
            for i, (path, name) in enumerate(parts)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "2_Normalize").mkdir(exist_ok=True)
