"""CLIP's text tower two ways on the same random weights: transformers (`clip`) and open_clip (`open-clip`).

open_clip needs torchvision, of which there is no build for a CPU torch of this version. It runs in an environment of its
own, which laion_clap can share (Python 3.11; these builds of torch are made for CUDA and run on a CPU too; about 6 GB):

    python3.11 -m venv OTHER
    OTHER/bin/pip install "torch==2.6.0" "torchvision==0.21.0" "torchaudio==2.6.0" "numpy<2" open_clip_torch laion-clap \
        "transformers<5" safetensors

That gave open_clip_torch 3.3.0, laion-clap 1.1.7, transformers 4.57.6, numpy 1.26.4. With BPE the vocabulary that comes with
open_clip (open_clip/bpe_simple_vocab_16e6.txt.gz in its folder):

    PYTHONPATH=. python scripts/equality/clip.py prepare DIR BPE
    PYTHONPATH=. OTHER/bin/python scripts/equality/clip.py other DIR
    PYTHONPATH=. python scripts/equality/clip.py compare DIR [--fixture tests/data/parity/clip.npz]

`prepare` writes a text tower of the shape of OpenAI's ViT-B/32 (512 wide, 12 blocks, 49,408 tokens, 77 places, quick GELU)
in transformers' and in open_clip's layout, and a tiny one; `other` encodes 200 captions with open_clip itself and with
this project's backend over it (a directory, and ARCHITECTURE@FILE); `compare` does so with the `clip` backend.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints_encoders import TINY_CLIP, VIT_B_32, clip_state, write_clip, write_open_clip

Floats = NDArray[np.float32]

UNUSUAL = [
    "", " ", "A", "RAIN FALLS ON A TIN ROOF", "Two  dogs\tbark,\nthen a door slams.", "café, naïve, Ærøskøbing", "雨が屋根に降る",
    "Дождь стучит по крыше", "a 440 Hz tone; 3.5 kHz – and 100% noise!", "it's the dog's bark (loud)", "🐕 woof 🔔",
    "a/b_c-d...e", "rain and bell " * 40, "a " * 75, "a " * 76, "the loud sound of a bell that rings " * 30,
]  # fmt: skip
MENDED = ["it’s a dog’s bark", "rock &amp; roll", "“a bell”, he said", "ﬁre crackles", "cafÃ©"]
"""Texts that open_clip mends before it splits them into tokens (ftfy, HTML entities), and transformers does not."""


def captions() -> list[str]:
    """200 texts: sentences of sounds, and unusual ones."""
    who = [
        "a dog",
        "a large church bell",
        "an engine",
        "rain",
        "a crowd of people",
        "a cat",
        "an acoustic guitar",
        "a siren",
    ]
    does = ["barks", "rings slowly", "starts and idles", "fades away into silence", "is heard in the distance"]
    where = [
        "in a large hall",
        "outdoors",
        "with a high-pitched, metallic tone",
        "while birds sing",
        "over low static noise",
    ]
    said = [f"{a} {b} {c}." for a in who for b in does for c in where]
    return [*UNUSUAL, *MENDED, *said][:200]


def merges(bpe: Path) -> list[str]:
    """The merges of CLIP's vocabulary: the file's, up to 49,408 tokens."""
    with gzip.open(bpe, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]


def prepare(folder: Path, bpe: Path) -> None:
    """Write both models in both layouts."""
    for name, shape, pairs in (("full", VIT_B_32, merges(bpe)), ("tiny", TINY_CLIP, [])):
        state = clip_state(**shape)
        write_clip(folder / name / "transformers", state, pairs)
        write_open_clip(folder / name / "open_clip", state)
        with gzip.open(folder / name / "bpe.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(["#version: 0.2", *pairs]))
    print(f"wrote {folder}")


def other(folder: Path) -> None:
    """In the environment of open_clip: encode with it, and with the backend over it."""
    import open_clip
    import torch
    from safetensors.torch import load_file, save_file

    from and_platform.backends.registry import create

    texts = captions()
    for name in ("full", "tiny"):
        where = folder / name / "open_clip"
        model = open_clip.create_model(f"local-dir:{where}").eval()
        context = len(load_file(where / "open_clip_model.safetensors")["positional_embedding"])
        tokenize = open_clip.SimpleTokenizer(bpe_path=str(folder / name / "bpe.txt.gz"), context_length=context)
        with torch.no_grad():
            tokens = torch.cat([tokenize([text]) for text in texts])
            vectors = torch.cat([model.encode_text(row[None], normalize=True) for row in tokens])
        np.savez(folder / name / "open_clip.npz", vectors=vectors.numpy(), tokens=tokens.numpy())

    encoder = create("encoder", f"open-clip:{folder / 'full' / 'open_clip'}", device="cpu")
    stored = np.load(folder / "full" / "open_clip.npz")
    ours = encoder.embed_texts(texts)
    tell("the backend open-clip (batches of 64) and open_clip itself (one by one)", ours, stored["vectors"])
    print(f"  recipe {encoder.recipe}; scale {encoder.scale}; cut {int(encoder.is_cut(texts).sum())} of {len(texts)}")
    np.savez(folder / "full" / "ours.npz", vectors=ours, cut=encoder.is_cut(texts))

    published = open_clip.create_model("ViT-B-32-quickgelu").state_dict()
    text = load_file(folder / "full" / "open_clip" / "open_clip_model.safetensors")
    published.update({key: value for key, value in text.items() if not key.startswith("visual.")})
    safe, pickle = folder / "full" / "vit-b-32.safetensors", folder / "full" / "vit-b-32.pt"
    save_file({key: value.contiguous() for key, value in published.items()}, safe)
    torch.save({"epoch": 32, "name": "a", "state_dict": {f"module.{k}": v for k, v in published.items()}}, pickle)
    for file in (safe, pickle):
        again = create("encoder", f"open-clip:ViT-B-32-quickgelu@{file}", device="cpu")
        tell(f"ViT-B-32-quickgelu@{file.name} and the directory", again.embed_texts(texts), ours)
    script = folder / "full" / "program.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(script))
    try:
        create("encoder", f"open-clip:ViT-B-32-quickgelu@{script}", device="cpu")
    except Exception as exc:  # noqa: BLE001 (whatever it is, it is shown)
        print(f"a TorchScript file: {type(exc).__name__}: {exc}")


def compare(folder: Path, fixture: Path | None) -> None:
    """Encode with transformers, print the differences, and write the fixture."""
    from and_platform.backends.registry import create

    texts = captions()
    encoder = create("encoder", f"clip:{folder / 'full' / 'transformers'}", device="cpu")
    stored, theirs = np.load(folder / "full" / "open_clip.npz"), np.load(folder / "full" / "ours.npz")
    vectors, tokens = encoder.embed_texts(texts), tokens_of(encoder, texts)
    same = np.array(
        [np.array_equal(row[:77], other[other != 0]) for row, other in zip(tokens, stored["tokens"], strict=True)]
    )
    print(
        f"{same.sum()} of {len(texts)} texts have the same tokens; the others: {[texts[i] for i in np.flatnonzero(~same)]}"
    )
    tell("clip and open_clip, texts of the same tokens", vectors[same], stored["vectors"][same])
    tell("clip and open-clip, texts of the same tokens", vectors[same], theirs["vectors"][same])
    if not same.all():
        tell("clip and open_clip, the others", vectors[~same], stored["vectors"][~same])
    both = (vectors @ vectors.T)[np.triu_indices(len(texts), 1)]
    print(
        f"cosines between different captions: median {np.median(both):.3f}, 1 % to 99 % {np.quantile(both, [0.01, 0.99])}"
    )
    cut = encoder.is_cut(texts)
    print(
        f"cut: {cut.sum()} by clip, {theirs['cut'].sum()} by open-clip, the same texts: {np.array_equal(cut, theirs['cut'])}"
    )
    print(f"scale: {encoder.scale} (e to the {np.log(encoder.scale):.4f})")
    if fixture:
        write_fixture(folder, fixture)


def write_fixture(folder: Path, fixture: Path) -> None:
    """The tiny model's weights, texts whose tokens are the same, and what open_clip returned."""
    from and_platform.backends.registry import create

    texts = captions()
    encoder = create("encoder", f"clip:{folder / 'tiny' / 'transformers'}", device="cpu")
    stored = np.load(folder / "tiny" / "open_clip.npz")
    chosen = [i for i in range(60) if texts[i] not in MENDED]
    tell("tiny: clip and open_clip", encoder.embed_texts([texts[i] for i in chosen]), stored["vectors"][chosen])
    np.savez_compressed(
        fixture, **{f"state/{key}": value for key, value in clip_state(**TINY_CLIP).items()},
        texts=np.array(json.dumps([texts[i] for i in chosen])), vectors=stored["vectors"][chosen],
    )  # fmt: skip
    print(f"wrote {fixture}, {fixture.stat().st_size:,} bytes")


def tokens_of(encoder: Any, texts: list[str]) -> list[NDArray[np.int64]]:
    """The tokens that the `clip` backend's tokenizer gives, cut at 77."""
    ids = encoder._tokenizer(texts, truncation=True, max_length=77)["input_ids"]
    return [np.array(row) for row in ids]


def tell(what: str, ours: Floats, theirs: Floats) -> None:
    """Print how far two sets of unit vectors are apart."""
    cosines = (ours.astype(np.float64) * theirs).sum(axis=1)
    print(
        f"{what}: {len(ours)} texts, max abs difference {np.abs(ours - theirs).max():.2e}, least cosine {cosines.min():.8f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "other", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "bpe", type=Path, nargs="?", default=Path(tempfile.gettempdir()) / "bpe_simple_vocab_16e6.txt.gz"
    )
    parser.add_argument("--fixture", type=Path)
    given = parser.parse_args()
    if given.step == "prepare":
        prepare(given.folder, given.bpe)
    elif given.step == "other":
        other(given.folder)
    else:
        compare(given.folder, given.fixture)


if __name__ == "__main__":
    main()
