"""SALMONN two ways on the same weights: ours, and the published class as its authors wrote it.

The published code asks for libraries of 2023, so it runs in an environment of its own (Python 3.11; torch as here, the
rest as in its requirements.txt where that still installs):

    python -m venv OTHER
    OTHER/bin/pip install torch==2.13.0 "numpy<2" transformers==4.28.0 tokenizers==0.13.3 sentencepiece "protobuf<4" soundfile
    OTHER/bin/pip install --no-deps peft==0.3.0 accelerate==0.20.3 psutil pyyaml "setuptools<80"

It needs `torchaudio.compliance.kaldi`, one file of Python that runs without the rest of torchaudio: take it out of the
wheel (`pip download --no-deps torchaudio==2.9.0`, unzip). PUBLISHED is a copy of bytedance/SALMONN. Then

    PYTHONPATH=. python scripts/equality/salmonn.py prepare DIR
    OTHER/bin/python scripts/equality/salmonn.py published DIR PUBLISHED KALDI_PY
    PYTHONPATH=. python scripts/equality/salmonn.py compare DIR [--fixture tests/data/parity/salmonn.npz]

Three things are changed in the published class from outside, none of them arithmetic: the Q-Former's width (it would
fetch bert-base-uncased's), tensors stay on the CPU where it says `.cuda()`, and everything computes in float32.

Where a search of several beams ends is up to transformers, and it changed since (for `early_stopping=False`, the
published setting): 4.28 counted the first token as one of an answer, and asked whether its best candidate, ended or
not, could still be better; today's asks that of the candidates that go on. So "beams" need not agree, while "first_beams",
which ends with the fourth answer (`early_stopping=True`), must.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = "Please describe the audio in detail."
TEMPLATE = "USER: {}\nASSISTANT:"
MAX_TOKENS = 60
BOS, EOS = 1, 2
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 4},
    "first_beams": {"num_beams": 4, "early_stopping": True},
}


def words(said: list[int], bos: int, eos: int) -> list[int]:
    """The tokens of an answer between its beginning, where it has one, and its end."""
    said = said[1:] if said[:1] == [bos] else said
    return said[: said.index(eos)] if eos in said else said


def prepare(folder: Path) -> None:
    """Write the tiny model and the clips."""
    from tests.checkpoints_salmonn import parity_clips, write_salmonn

    folder.mkdir(parents=True, exist_ok=True)
    write_salmonn(folder)
    np.savez(folder / "clips.npz", **parity_clips())
    print(f"wrote {folder}")


def published(folder: Path, code: Path, kaldi: Path) -> None:
    """Run the published class, one clip at a time; write what it computed to published.npz."""
    import torch
    import transformers  # looks for torchaudio when it is imported, so before something stands in for it

    torchaudio, compliance = types.ModuleType("torchaudio"), types.ModuleType("torchaudio.compliance")
    sys.modules |= {"torchaudio": torchaudio, "torchaudio.compliance": compliance}
    spec = importlib.util.spec_from_file_location("torchaudio.compliance.kaldi", kaldi)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    compliance.kaldi = module  # type: ignore[attr-defined]
    sys.path.insert(0, str(code))

    import soundfile
    from models import Qformer, salmonn
    from transformers import WhisperFeatureExtractor
    from utils import prepare_one_sample

    small = Qformer.BertConfig(hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=30)
    salmonn.BertConfig.from_pretrained = staticmethod(lambda name: small)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment]
    model = salmonn.SALMONN.from_config(
        {
            "llama_path": str(folder / "vicuna"),
            "whisper_path": str(folder / "whisper"),
            "beats_path": str(folder / "beats.pt"),
            "ckpt": str(folder / "salmonn.pth"),
            "lora_rank": 4,
            "lora_alpha": 8,
        }
    )
    model.float().eval()
    model.llama_tokenizer.batch_decode = lambda ids, **kwargs: ids.tolist()
    generate = model.llama_model.generate
    extractor = WhisperFeatureExtractor.from_pretrained(folder / "whisper")
    results: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__}
    asked = TEMPLATE.format("<Speech><SpeechHere></Speech> " + PROMPT)
    for name, wave in np.load(folder / "clips.npz").items():
        file = folder / f"{name}.wav"
        soundfile.write(file, wave, 16000, subtype="FLOAT")
        sample = prepare_one_sample(file, extractor, cuda_enabled=False)
        sample["raw_wav"] = sample["raw_wav"].float()
        with torch.no_grad():
            sound, _ = model.encode_speech(sample["spectrogram"], sample["raw_wav"], sample["padding_mask"])
            wrapped, _ = model.prompt_wrap(sound, torch.ones(sound.shape[:2]), [asked], multi_prompt=True)
            results[f"{name}_sound"] = sound[0].numpy()
            results[f"{name}_prompt"] = wrapped[0].numpy()
            for search, options in SEARCHES.items():
                model.llama_model.generate = partial(generate, early_stopping=options.get("early_stopping", False))
                said = model.generate(
                    sample, {"max_new_tokens": MAX_TOKENS, "num_beams": options["num_beams"]}, prompts=[asked]
                )[0]
                results[f"{name}_{search}"] = np.int64(words(said, BOS, EOS))
    np.savez_compressed(folder / "published.npz", **results)
    print(f"wrote {folder / 'published.npz'}")


def compare(folder: Path, fixture: Path | None) -> None:
    """Print how far ours is from what the published class computed; write the fixture of the tests."""
    from and_platform.backends.base import Clip
    from and_platform.backends.captioners.salmonn import SalmonnCaptioner

    theirs = dict(np.load(folder / "published.npz"))
    waves = dict(np.load(folder / "clips.npz"))
    clips = [Clip(name, wave, 16000) for name, wave in waves.items()]
    print(f"published class on transformers {theirs['transformers']}, torch {theirs['torch']}; ours in one batch")
    captioner = SalmonnCaptioner(str(folder))
    model = captioner._model
    sound = model.encode(list(waves.values()))
    prompt = model.prompt_embeddings(sound, *captioner._around)
    print(f"{'clip':<8}{'sound: largest difference':>28}{'spread':>8}{'prompt: largest':>18}")
    for place, name in enumerate(waves):
        differs = np.abs(sound[place].numpy() - theirs[f"{name}_sound"]).max()
        spread = theirs[f"{name}_sound"].std()
        # the published class puts the first token before the prompt later
        asked = np.abs(prompt[place, 1:].detach().numpy() - theirs[f"{name}_prompt"]).max()
        print(f"{name:<8}{differs:>28.1e}{spread:>8.2f}{asked:>18.1e}")
    for theirs_of, options in [*SEARCHES.items(), ("beams", {"num_beams": 4, "early_stopping": "never"})]:
        ours = SalmonnCaptioner(str(folder), max_tokens=MAX_TOKENS, **options)._answer(clips)
        wanted = [theirs[f"{name}_{theirs_of}"].tolist() for name in waves]
        same = sum(one == other for one, other in zip(ours, wanted, strict=True))
        lengths = [round(float(np.mean([len(said) for said in answers])), 1) for answers in (ours, wanted)]
        print(
            f"{theirs_of} (ours with {options}): {same} of {len(clips)} answers have the same tokens; "
            f"mean length {lengths[0]}, {lengths[1]}"
        )
    if fixture is not None:
        kept = {key: value for key, value in theirs.items() if not key.endswith("_prompt")}
        np.savez_compressed(fixture, **kept)
        print(f"wrote {fixture}, {fixture.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("prepare", "published", "compare"):
        step = steps.add_parser(name)
        step.add_argument("folder", type=Path)
        if name == "published":
            step.add_argument("code", type=Path)
            step.add_argument("kaldi", type=Path)
        if name == "compare":
            step.add_argument("--fixture", type=Path)
    arguments = parser.parse_args()
    if arguments.step == "prepare":
        prepare(arguments.folder)
    elif arguments.step == "published":
        published(arguments.folder, arguments.code, arguments.kaldi)
    else:
        compare(arguments.folder, arguments.fixture)


if __name__ == "__main__":
    main()
