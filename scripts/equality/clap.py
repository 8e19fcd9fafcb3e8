"""CLAP two ways on the same random weights: transformers (`clap`) and LAION's own package (`laion-clap`).

The package laion_clap asks for numpy 1 and torchvision and runs in an environment of its own, OTHER, made as
scripts/equality/clip.py says. It is built without the model hub, by what `laion_worker` does: the text model in the
checkpoint's shape, a tokenizer from files.

    PYTHONPATH=. python scripts/equality/clap.py prepare DIR
    PYTHONPATH=. OTHER/bin/python scripts/equality/clap.py other DIR
    PYTHONPATH=. python scripts/equality/clap.py compare DIR --python OTHER/bin/python [--fixture tests/data/parity/clap.npz]

`prepare` writes a checkpoint of the shape of 630k-audioset-best.pt (HTSAT-tiny and RoBERTa, 153 M weights) as LAION
publishes them and as transformers does, and a tiny one. `other` runs the package itself: its own loader, its own
preparation. `compare` runs both backends of this project, `laion-clap` in OTHER as a user would.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.checkpoints_encoders import (
    HTSAT_TINY,
    TINY_CLAP,
    clap_state,
    sounds,
    through_16_bits,
    write_clap,
    write_roberta_tokenizer,
)

Floats = NDArray[np.float32]

TEXTS = [
    "a dog barks", "Rain falls on a tin roof.", "The LOUD sound of a bell!", "", "café 雨 🔔",
    "an engine starts, idles and stops", "a high-pitched tone with a metallic quality", "rain", "rain " * 40,
]  # fmt: skip
SHAPES = {"full": HTSAT_TINY, "tiny": TINY_CLAP}


def prepare(folder: Path) -> None:
    """Write both models in both layouts."""
    for name, shape in SHAPES.items():
        where = folder / name
        state = clap_state(**shape)
        write_clap(where / "transformers", state, shape)
        write_roberta_tokenizer(where / "tokenizer")
        tensors = {f"module.{key}": torch.from_numpy(np.asarray(value)) for key, value in state.items()}
        tensors["module.text_branch.embeddings.position_ids"] = torch.arange(shape["positions"])[None]
        # As published: beside the tensors the epoch and figures of training, of which one is a number of numpy's.
        torch.save({"epoch": 45, "name": "model", "top": np.float64(0.5), "state_dict": tensors}, where / "weights.pt")
    print(f"wrote {folder}")


def other(folder: Path) -> None:
    """In LAION's environment: what its package computes."""
    from and_platform.backends.encoders import laion_worker

    for name, shape in SHAPES.items():
        where = folder / name
        state = laion_worker.read_state(str(where / "weights.pt"))
        with laion_worker._from_files(str(where / "tokenizer"), state):
            import laion_clap

            if name == "full":
                package = laion_clap.CLAP_Module(enable_fusion=False, device="cpu", amodel="HTSAT-tiny")
            else:
                package = tiny(shape)
        # What the package computes itself (windows, filters, masks) and heads that no embedding uses complete the file.
        complete = {**package.model.state_dict(), **state}
        complete = {f"module.{key}": value for key, value in complete.items()}
        torch.save({"epoch": 45, "name": "model", "top": np.float64(0.5), "state_dict": complete}, where / "laion.pt")
        package.load_ckpt(str(where / "laion.pt"), verbose=False)
        package.eval()
        clips = sounds()
        clips[2] = laion_worker.middle(clips[2])  # the package would take a random stretch
        with torch.no_grad():
            branch = package.model.audio_branch
            waves = torch.stack([torch.from_numpy(through_16_bits(clip)) for clip in (clips[0], clips[2])])
            np.savez(
                where / "laion.npz",
                texts=package.get_text_embedding(TEXTS),
                sounds=package.get_audio_embedding_from_data(clips),
                mel=branch.logmel_extractor(branch.spectrogram_extractor(waves)).numpy(),
                exact=np.concatenate(
                    [package.get_audio_embedding_from_data([torch.from_numpy(clip)], use_tensor=True) for clip in clips]
                ),
            )
        print(f"{name}: {sum(p.numel() for p in package.model.parameters()):,} weights")


def tiny(shape: dict[str, Any]) -> Any:
    """LAION's module around a small HTSAT of its own class."""
    import laion_clap
    from clap_module import htsat, model
    from transformers import RobertaTokenizer

    def small(audio_cfg: Any, enable_fusion: bool = False, fusion_type: str = "None") -> Any:
        return htsat.HTSAT_Swin_Transformer(
            embed_dim=shape["width"], depths=list(shape["depths"]), num_heads=list(shape["heads"]), config=audio_cfg
        )

    with (Path(laion_clap.__file__).parent / "clap_module" / "model_configs" / "HTSAT-tiny.json").open() as file:
        settings = json.load(file)
    settings["text_cfg"]["model_type"] = "roberta"
    module = laion_clap.CLAP_Module.__new__(laion_clap.CLAP_Module)
    torch.nn.Module.__init__(module)
    module.enable_fusion, module.model_cfg = False, settings
    module.tokenize = RobertaTokenizer.from_pretrained("roberta-base")
    original, model.create_htsat_model = model.create_htsat_model, small
    try:
        made = {**settings, "embed_dim": shape["width"] * 8}
        module.model = model.CLAP(**made, joint_embed_shape=shape["dim"])
    finally:
        model.create_htsat_model = original
    return module


def compare(folder: Path, python: str, fixture: Path | None) -> None:
    """Run both backends, print the differences, and write the fixture."""
    from and_platform.backends.base import Clip
    from and_platform.backends.registry import create

    clips = [Clip(str(i), clip, 48000) for i, clip in enumerate(sounds())]
    rounded = [dataclasses.replace(clip, waveform=through_16_bits(clip.waveform)) for clip in clips]
    for name, shape in SHAPES.items():
        where = folder / name
        stored = np.load(where / "laion.npz")
        print(f"\n{name}")
        if name == "full":
            laion = create(
                "encoder",
                f"laion-clap:{where / 'laion.pt'}",
                tokenizer=str(where / "tokenizer"),
                python=python,
                device="cpu",
            )
            print(laion.recipe)
            print(f"scale {laion.scale}; cut: {laion.is_cut(TEXTS).tolist()}")
            tell("backend laion-clap and the package: texts", laion.embed_texts(TEXTS), stored["texts"])
            tell("backend laion-clap and the package: sounds", laion.embed_audio(clips), stored["sounds"])
        clap = create("encoder", f"clap:{where / 'transformers'}", device="cpu")
        vectors = clap.embed_texts(TEXTS)
        fits = np.array([len(text) < 75 for text in TEXTS])
        tell("clap and the package: texts up to 77 tokens", vectors[fits], stored["texts"][fits])
        tell(
            "clap and the package: a text of 200 tokens (cut at 77 by the package)",
            vectors[~fits],
            stored["texts"][~fits],
        )
        write_clap(folder / "epsilon", clap_state(**shape), shape, epsilon=1e-12)
        other_clap = create("encoder", f"clap:{folder / 'epsilon'}", device="cpu")
        tell(
            "  with layer_norm_eps 1e-12, transformers' default",
            other_clap.embed_texts(TEXTS)[fits],
            stored["texts"][fits],
        )
        whole = [rounded[0], rounded[2]]
        mel = clap._features([clap._middle(clip) for clip in whole], sampling_rate=48000, return_tensors="np")
        ours = np.asarray(mel["input_features"])
        print(f"log mel spectrograms, dB: max abs difference {np.abs(ours - stored['mel']).max():.2e}, "
              f"mean {np.abs(ours - stored['mel']).mean():.2e}")  # fmt: skip
        with torch.inference_mode():
            same = clap._model.get_audio_features(
                input_features=torch.from_numpy(stored["mel"]), is_longer=torch.zeros(2, 1, dtype=torch.bool)
            ).pooler_output.numpy()
        tell("clap and the package: sounds, from the package's spectrograms", same, stored["sounds"][[0, 2]])
        tell("clap and the package: sounds, both through 16 bits", clap.embed_audio(rounded), stored["sounds"])
        tell("clap and the package: sounds, both without", clap.embed_audio(clips), stored["exact"])
        tell(
            "clap and the package: sounds, as each is (16 bits in the package)",
            clap.embed_audio(clips),
            stored["sounds"],
        )
        both = clap.embed_audio(clips)
        print(f"cosines between different sounds: {np.round((both @ both.T)[np.triu_indices(3, 1)], 3)}")
        between = (vectors @ vectors.T)[np.triu_indices(len(TEXTS), 1)]
        print(
            f"cosines between different texts: median {np.median(between):.3f}, {between.min():.3f} to {between.max():.3f}"
        )
    if fixture:
        texts = [text for text in TEXTS if len(text) < 75]
        np.savez_compressed(
            fixture, texts=np.array(json.dumps(texts)), text_vectors=stored["texts"][fits], sounds=stored["sounds"]
        )
        print(f"wrote {fixture}, {fixture.stat().st_size:,} bytes")


def tell(what: str, ours: Floats, theirs: Floats) -> None:
    """Print how far two sets of unit vectors are apart."""
    cosines = (ours.astype(np.float64) * theirs).sum(axis=1)
    print(
        f"{what}: {len(ours)}, max abs difference {np.abs(ours - theirs).max():.2e}, least cosine {cosines.min():.8f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "other", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="python")
    parser.add_argument("--fixture", type=Path)
    given = parser.parse_args()
    if given.step == "prepare":
        prepare(given.folder)
    elif given.step == "other":
        other(given.folder)
    else:
        compare(given.folder, given.python, given.fixture)


if __name__ == "__main__":
    main()
