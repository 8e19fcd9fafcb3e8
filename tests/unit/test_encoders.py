"""Encoders: equal to other implementations, their own scale and window, long clips, and the process in another environment."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from and_platform.backends.base import Clip, TextAudioEncoder, Windowed
from and_platform.backends.batching import TooLargeError
from and_platform.backends.encoders import laion_clap, laion_worker
from and_platform.backends.encoders.laion_clap import PYTHON_VARIABLE, TOKENIZER_VARIABLE, LaionClapEncoder
from and_platform.backends.encoders.open_clip_text import OpenClipTextEncoder
from and_platform.backends.encoders.scales import learned_scale
from and_platform.backends.registry import create
from and_platform.errors import AudioError, BackendError, ConfigError, MissingExtraError, WeightsMissingError
from tests.checkpoints_encoders import (
    LOGIT_SCALE,
    TINY_CLAP,
    TINY_CLIP,
    clap_state,
    clip_state,
    laion_state,
    make_environment,
    sounds,
    through_16_bits,
    write_clap,
    write_clip,
    write_fake_laion_clap,
    write_open_clip,
    write_roberta_tokenizer,
    write_sentence_transformer,
)

PARITY = Path(__file__).parent.parent / "data" / "parity"
RATE = laion_worker.RATE
SENTENCE_FILES = ("config.json", "vocab.txt", "tokenizer_config.json", "sentence_bert_config.json")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "clip"
    write_clip(folder, clip_state(**TINY_CLIP))
    return folder


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "clap"
    write_clap(folder, clap_state(**TINY_CLAP), TINY_CLAP)
    return folder


class TestClip:
    def test_the_same_vectors_as_open_clip(self, tmp_path: Path) -> None:
        """Made with open_clip 3.3.0 by scripts/equality/clip.py."""
        stored = np.load(PARITY / "clip.npz")
        state = {key.removeprefix("state/"): stored[key] for key in stored if key.startswith("state/")}
        write_clip(tmp_path / "clip", state)
        vectors = create("encoder", f"clip:{tmp_path / 'clip'}").embed_texts(json.loads(str(stored["texts"])))
        np.testing.assert_allclose(vectors, stored["vectors"], atol=1e-6)

    def test_the_scale_is_that_of_the_weights(self, clip_folder: Path, tmp_path: Path) -> None:
        assert create("encoder", f"clip:{clip_folder}").scale == pytest.approx(np.exp(LOGIT_SCALE), rel=1e-3)
        state = load_file(clip_folder / "model.safetensors")
        pickled, without = tmp_path / "pickled", tmp_path / "without"
        for folder in (pickled, without):
            write_clip(folder, clip_state(**TINY_CLIP))
        (pickled / "model.safetensors").unlink()
        state["logit_scale"] = np.array(4.8, np.float32)
        torch.save(
            {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}, pickled / "pytorch_model.bin"
        )
        assert create("encoder", f"clip:{pickled}").scale == 100
        del state["logit_scale"]
        save_file(state, without / "model.safetensors", metadata={"format": "pt"})
        assert create("encoder", f"clip:{without}").scale == 100

    def test_weights_that_are_not_there_are_not_made_up(self, tmp_path: Path) -> None:
        write_clip(tmp_path, clip_state(**TINY_CLIP))
        state = load_file(tmp_path / "model.safetensors")
        del state["text_projection.weight"]
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            WeightsMissingError, match=r"1 weights of a CLIPTextModel.* missing, e\.g\. text_projection"
        ):
            create("encoder", f"clip:{tmp_path}")

    def test_exactly_full_is_not_cut(self, clip_folder: Path) -> None:
        encoder = create("encoder", f"clip:{clip_folder}")
        places = encoder.max_tokens - 2  # a token a letter, and the two marks
        assert encoder.max_tokens == 16
        assert encoder.is_cut(["a" * places, "a" * (places + 1)]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("logarithm", "scale"), [(None, 100), (np.log(100), 100), (4.7, 100), (0.0, 1), (2.6592, 14.28)]
)
def test_learned_scale(logarithm: float | None, scale: float) -> None:
    assert learned_scale(logarithm) == pytest.approx(scale)


class TestOpenClip:
    @pytest.mark.skipif(find_spec("open_clip") is not None, reason="open_clip is here")
    def test_without_the_package(self) -> None:
        with pytest.raises(MissingExtraError, match=r"and-platform\[clip\]"):
            create("encoder", "open-clip:ViT-B-32@openai")

    def test_a_directory(self, tmp_path: Path) -> None:
        pytest.importorskip("open_clip")
        write_open_clip(tmp_path, clip_state(**{**TINY_CLIP, "vocabulary": 49408}))
        encoder = create("encoder", f"open-clip:{tmp_path}")
        assert isinstance(encoder, Windowed)
        vectors = encoder.embed_texts(["", "a", "a"])
        assert vectors.shape == (3, TINY_CLIP["dim"])
        assert np.array_equal(vectors[1], vectors[2])
        assert encoder.scale == pytest.approx(np.exp(LOGIT_SCALE), rel=1e-3)
        places = encoder.max_tokens - 2
        assert encoder.is_cut(["a " * places, "a " * (places + 1), ""]).tolist() == [False, True, False]
        assert encoder.recipe.params == {"architecture": None, "max_tokens": 16}

    @pytest.mark.parametrize(("end", "padding", "start"), [(2, 0, [1]), (1, 1, []), (0, 0, [])])
    def test_what_is_cut_whatever_pads(self, end: int, padding: int, start: list[int]) -> None:
        """CLIP pads with zeros, SigLIP with its end token; a third kind has no end token at all (0 here)."""

        def tokenize(texts: list[str], context_length: int) -> torch.Tensor:
            rows, marks = [], [end] if end else []
            for text in texts:
                letters = [ord(letter) for letter in text][: context_length - len(start) - len(marks)]
                row = [*start, *letters, *marks]
                rows.append(row + [padding] * (context_length - len(row)))
            return torch.tensor(rows)

        encoder = object.__new__(OpenClipTextEncoder)
        encoder.max_tokens, encoder._tokenize = 16, tokenize
        places = 16 - len(start) - bool(end)
        texts = ["", "a", "a" * (places - 1), "a" * places, "a" * (places + 1), "a" * 40]
        assert encoder.is_cut(texts).tolist() == [False, False, False, False, True, True]

    def test_what_cannot_be(self, tmp_path: Path) -> None:
        pytest.importorskip("open_clip")
        with pytest.raises(ConfigError, match="knows no architecture 'ViT-X'"):
            create("encoder", "open-clip:ViT-X@openai")
        with pytest.raises(ConfigError, match="names no weights"):
            create("encoder", "open-clip:ViT-B-32@")
        with pytest.raises(ConfigError, match="write open-clip:ViT-B-32-quickgelu@openai"):
            create("encoder", "open-clip:ViT-B-32@openai")
        with pytest.raises(WeightsMissingError, match="neither in the cache nor to be had"):
            create("encoder", "open-clip:ViT-B-32-quickgelu@openai")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(WeightsMissingError, match=r"has no open_clip_config\.json"):
            create("encoder", f"open-clip:{tmp_path}")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
        with pytest.raises(WeightsMissingError, match="is a program"):
            create("encoder", f"open-clip:ViT-B-32-quickgelu@{tmp_path / 'program.pt'}")
        torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
        with pytest.raises(WeightsMissingError, match="cannot load a model"):
            create("encoder", f"open-clip:ViT-B-32-quickgelu@{tmp_path / 'other.pt'}")


class TestClap:
    def test_the_same_vectors_as_laion_clap(self, clap_folder: Path) -> None:
        """Made with laion_clap 1.1.7 by scripts/equality/clap.py."""
        stored = np.load(PARITY / "clap.npz")
        encoder = create("encoder", f"clap:{clap_folder}")
        texts = encoder.embed_texts(json.loads(str(stored["texts"])))
        np.testing.assert_allclose(texts, stored["text_vectors"], atol=2e-6)
        clips = [Clip(str(i), through_16_bits(sound), RATE) for i, sound in enumerate(sounds())]
        np.testing.assert_allclose(encoder.embed_audio(clips), stored["sounds"], atol=5e-6)
        assert encoder.recipe.params == {"rate": RATE, "max_seconds": 10.0, "crop": "middle"}
        assert encoder.scale == pytest.approx(np.exp(LOGIT_SCALE), rel=1e-3)

    def test_fusion_is_deterministic_and_only_of_long_clips(self, tmp_path: Path) -> None:
        from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

        torch.manual_seed(0)
        text = {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 4, "max_position_embeddings": 34}  # fmt: skip
        audio = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 16,
                 "enable_fusion": True, "num_hidden_layers": 2}  # fmt: skip
        config = ClapConfig(
            text_config=ClapTextConfig(**text, projection_dim=8).to_dict(),
            audio_config=ClapAudioConfig(**audio, projection_dim=8).to_dict(),
            projection_dim=8,
        )
        write_clap(tmp_path, clap_state(**TINY_CLAP), TINY_CLAP)
        ClapModel(config).save_pretrained(tmp_path)
        features = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**features, "truncation": "fusion"}))
        encoder = create("encoder", f"clap:{tmp_path}")
        assert {**encoder.recipe.params, "max_seconds": 10} == {
            "rate": RATE,
            "max_seconds": 10,
            "crop": "fusion",
            "seed": 0,
        }
        rng = np.random.default_rng(0)
        lengths = (3.0, 10.0, 10.005, 12.5, 31.0)
        clips = [Clip(str(s), rng.normal(0, 0.1, int(s * RATE)).astype(np.float32), RATE) for s in lengths]
        np.random.seed(5)
        before = np.random.get_state()[1].tolist()
        together = encoder.embed_audio(clips)
        assert np.random.get_state()[1].tolist() == before
        for clip, vector in zip(clips[::-1], together[::-1], strict=True):
            np.testing.assert_allclose(encoder.embed_audio([clip])[0], vector, atol=1e-6)
        assert encoder._fused(clips)["is_longer"].ravel().tolist() == [False, False, False, True, True]


@pytest.fixture(scope="module")
def sentences_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences") / "all-MiniLM-L12-v2"
    write_sentence_transformer(folder)
    return folder


class TestSentenceTransformers:
    def test_the_published_layout(self, sentences_folder: Path) -> None:
        encoder = create("encoder", f"sentence-transformers:{sentences_folder}")
        assert (encoder.dim, encoder.scale, encoder.max_tokens) == (32, 100, 12)
        assert encoder.recipe.params == {"max_tokens": 12}
        assert encoder.is_cut(["rain " * 10, "rain " * 11]).tolist() == [False, True]
        one, same, other = encoder.embed_texts(["rain " * 10, "rain " * 30, "a bell"])
        np.testing.assert_allclose(one, same, atol=1e-6)
        assert np.abs(one - other).max() > 1e-3

    def test_prompts_and_length_are_part_of_the_recipe(self, sentences_folder: Path) -> None:
        plain, query, short = (
            create("encoder", f"sentence-transformers:{sentences_folder}", **options)
            for options in ({}, {"prompt_name": "query"}, {"max_seq_length": 5})
        )
        assert query.recipe.params == {"max_tokens": 12, "prompt": "the sound of "}
        assert short.recipe.params == {"max_tokens": 5}
        np.testing.assert_allclose(query.embed_texts(["rain"]), plain.embed_texts(["the sound of rain"]), atol=1e-6)
        assert query.is_cut(["rain " * 7, "rain " * 8]).tolist() == [False, True]
        assert short.is_cut(["rain " * 3, "rain " * 4]).tolist() == [False, True]
        with pytest.raises(ConfigError, match="has no prompt 'passage'; it has: query"):
            create("encoder", f"sentence-transformers:{sentences_folder}", prompt_name="passage")

    @pytest.mark.parametrize("layout", ["safetensors", "pickle", "shards", "subfolder"])
    def test_weights_that_are_not_there_are_not_made_up(self, layout: str, tmp_path: Path) -> None:
        write_sentence_transformer(tmp_path)
        file = tmp_path / "model.safetensors"
        complete = load_file(file)
        no_pooler = {name: value for name, value in complete.items() if not name.startswith("pooler.")}
        lacking = {name: value for name, value in complete.items() if not name.startswith("encoder.layer.5.output.")}
        if layout == "subfolder":
            (tmp_path / "0_Transformer").mkdir()
            for moved in (file, *(tmp_path / name for name in SENTENCE_FILES)):
                moved.rename(tmp_path / "0_Transformer" / moved.name)
            modules = json.loads((tmp_path / "modules.json").read_text())
            modules[0]["path"] = "0_Transformer"
            (tmp_path / "modules.json").write_text(json.dumps(modules))
            file = tmp_path / "0_Transformer" / file.name

        def write(state: dict[str, Any]) -> None:
            file.unlink(missing_ok=True)
            if layout == "pickle":
                torch.save({k: torch.from_numpy(v) for k, v in state.items()}, file.with_name("pytorch_model.bin"))
            elif layout == "shards":
                names = sorted(state)
                shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
                for shard, part in shards.items():
                    save_file({name: state[name] for name in part}, tmp_path / shard, metadata={"format": "pt"})
                where = {name: shard for shard, part in shards.items() for name in part}
                index = {"metadata": {}, "weight_map": where}
                (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
            else:
                save_file(state, file, metadata={"format": "pt"})

        write(no_pooler)  # mean pooling does not read it
        assert create("encoder", f"sentence-transformers:{tmp_path}").dim == 32
        write(lacking)
        with pytest.raises(WeightsMissingError, match=r"4 weights .* missing, e\.g\. encoder\.layer\.5\.output\."):
            create("encoder", f"sentence-transformers:{tmp_path}")

    def test_code_of_a_model_is_not_run(self, tmp_path: Path) -> None:
        write_sentence_transformer(tmp_path)
        modules = json.loads((tmp_path / "modules.json").read_text())
        modules[1]["type"] = "evil.Pooling"
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Pooling: pass\n")
        with pytest.raises(BackendError, match=r"asks for the class 'evil\.Pooling'"):
            create("encoder", f"sentence-transformers:{tmp_path}")
        assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def laion_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("laion")
    write_fake_laion_clap(folder / "packages")
    write_roberta_tokenizer(folder / "tokenizer")
    state = {f"module.{key}": value for key, value in laion_state().items()}
    torch.save({"epoch": 45, "best": np.float64(0.5), "state_dict": state}, folder / "audioset-best.pt")
    return {
        "checkpoint": folder / "audioset-best.pt", "tokenizer": folder / "tokenizer", "packages": folder / "packages",
        "python": make_environment(folder / "other", folder / "packages"), "bare": make_environment(folder / "bare"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def make(laion_files: dict[str, Path]) -> Callable[..., LaionClapEncoder]:
    """An encoder in the other environment."""

    def make(**options: Any) -> LaionClapEncoder:
        given = {
            "python": str(laion_files["python"]),
            "tokenizer": str(laion_files["tokenizer"]),
            "device": "cpu",
            **options,
        }
        checkpoint = given.pop("checkpoint", laion_files["checkpoint"])
        encoder: LaionClapEncoder = create("encoder", f"laion-clap:{checkpoint}", **given)
        return encoder

    return make


def failing(folder: Path, raised: str, where: str = "texts == ['die']") -> Path:
    """The Python of an environment whose laion_clap raises an error for some texts."""
    write_fake_laion_clap(folder / "packages")
    python = make_environment(folder / "environment", folder / "packages")
    changed = 0
    for file in (folder / "packages").rglob("*.py"):
        text = file.read_text()
        changed += text.count('MemoryError("no memory left")')
        file.write_text(
            text.replace('MemoryError("no memory left")', raised).replace('if texts == ["die"]', f"if {where}")
        )
    assert changed == 1
    return python


@pytest.fixture(scope="module")
def elsewhere(make: Callable[..., LaionClapEncoder]) -> LaionClapEncoder:
    return make(batch_size=2)


@pytest.fixture
def make_here(
    make: Callable[..., LaionClapEncoder], laion_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LaionClapEncoder]]:
    """An encoder in this process, which sees the package meanwhile."""
    monkeypatch.syspath_prepend(laion_files["packages"])
    yield partial(make, python=None)
    sys.modules.pop("laion_clap", None)


class TestLaionClap:
    """The real package cannot be installed beside this program; a package of its name and calls stands in for it."""

    def test_texts_and_sounds(self, elsewhere: LaionClapEncoder) -> None:
        assert isinstance(elsewhere, TextAudioEncoder)
        assert isinstance(elsewhere, Windowed)
        texts = ["rain", "a dog barks", "雨", "", "rain " * 30]
        together = elsewhere.embed_texts(texts)
        assert together.shape == (5, elsewhere.dim)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(np.vstack([elsewhere.embed_texts([text]) for text in texts]), together, atol=1e-6)
        assert elsewhere.is_cut(["a" * 75, "a" * 76, ""]).tolist() == [False, True, False]
        ramp = np.linspace(-0.5, 0.5, 12 * RATE, dtype=np.float32)
        long, middle, short = (Clip("c", w, RATE) for w in (ramp, ramp[RATE : 11 * RATE], ramp[:100]))
        heard = elsewhere.embed_audio([short, long, middle])
        np.testing.assert_array_equal(heard[1], heard[2])
        assert np.abs(heard[0] - heard[1]).max() > 1e-3
        assert elsewhere.embed_texts([]).shape == elsewhere.embed_audio([]).shape == (0, elsewhere.dim)
        with pytest.raises(AudioError, match="comes at 16000 Hz, CLAP needs 48000 Hz"):
            elsewhere.embed_audio([Clip("c", ramp, 16000)])

    def test_here_and_elsewhere_are_the_same(
        self, elsewhere: LaionClapEncoder, make_here: Callable[..., LaionClapEncoder], tmp_path: Path
    ) -> None:
        from safetensors.torch import save_file as save
        from transformers import RobertaTokenizer

        loader = RobertaTokenizer.from_pretrained
        here = make_here()
        assert isinstance(here._model, laion_worker.Laion)
        assert RobertaTokenizer.from_pretrained == loader
        texts = ["rain", "a bell"]
        np.testing.assert_array_equal(here.embed_texts(texts), elsewhere.embed_texts(texts))
        assert here.recipe == elsewhere.recipe
        assert here.scale == elsewhere.scale == pytest.approx(np.exp(2.5), rel=1e-3)
        save(laion_state(), tmp_path / "best.safetensors")
        safe = make_here(checkpoint=tmp_path / "best.safetensors")
        np.testing.assert_array_equal(here.embed_texts(texts), safe.embed_texts(texts))

    def test_recipe(self, make_here: Callable[..., LaionClapEncoder], tmp_path: Path) -> None:
        encoder = make_here()
        words = encoder.recipe.params["tokenizer"]
        assert encoder.recipe.params == {
            "architecture": "HTSAT-tiny", "tokenizer": words, "max_tokens": 77, "rate": RATE, "max_seconds": 10.0,
            "bits": 16, "crop": "middle",
        }  # fmt: skip
        write_roberta_tokenizer(tmp_path)
        (tmp_path / "merges.txt").write_text("#version: 0.3\n")
        assert make_here(tokenizer=str(tmp_path)).recipe.params["tokenizer"] != words
        assert make_here(scale=50.0).recipe.params["scale"] == make_here(scale=50.0).scale == 50

    def test_where_it_looks(
        self, make: Callable[..., LaionClapEncoder], laion_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ConfigError, match=r"laion_clap is not here.*python3\.11 -m venv"):
            make(python=None)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        with pytest.raises(WeightsMissingError, match=r"roberta-base is not in the cache; .*--local-dir DIR"):
            make(tokenizer=None)
        monkeypatch.setattr(
            "huggingface_hub.try_to_load_from_cache", lambda _, name: str(laion_files["tokenizer"] / name)
        )
        monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
        with pytest.raises(ConfigError, match="cannot start /nowhere/python: No such file"):
            make(python=None, tokenizer=None)
        monkeypatch.setenv(TOKENIZER_VARIABLE, str(laion_files["packages"]))
        with pytest.raises(WeightsMissingError, match="packages holds no tokenizer"):
            make(tokenizer=None)

    def test_an_environment_without_the_package(
        self, make: Callable[..., LaionClapEncoder], laion_files: dict[str, Path]
    ) -> None:
        with pytest.raises(
            ConfigError, match=r"ModuleNotFoundError: No module named 'laion_clap'\); make an environment"
        ):
            make(python=str(laion_files["bare"]))

    def test_checkpoints_that_will_not_do(
        self,
        make: Callable[..., LaionClapEncoder],
        make_here: Callable[..., LaionClapEncoder],
        laion_files: dict[str, Path],
        tmp_path: Path,
    ) -> None:
        torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
        with pytest.raises(WeightsMissingError, match="holds no CLAP of LAION"):
            make_here(checkpoint=tmp_path / "other.pt")
        with pytest.raises(WeightsMissingError, match="is no file"):
            make_here(checkpoint=laion_files["tokenizer"])
        ran = tmp_path / "ran"

        class Code:
            def __reduce__(self) -> Any:
                return open, (str(ran), "w")

        torch.save({"state_dict": laion_state(), "more": Code()}, tmp_path / "code.pt")
        for anywhere in (make, make_here):
            with pytest.raises(WeightsMissingError, match=r"cannot load .*Weights only load failed"):
                anywhere(checkpoint=tmp_path / "code.pt")
        assert not ran.exists()

    @pytest.mark.parametrize(
        ("raised", "told"),
        [
            ("ValueError('a bad text')", "ended with status 1: ValueError: a bad text"),
            ("RuntimeError('shapes do not fit')", "failed: RuntimeError: shapes do not fit"),
        ],
    )
    def test_the_other_process_dies(
        self, make: Callable[..., LaionClapEncoder], tmp_path: Path, raised: str, told: str
    ) -> None:
        encoder = make(python=str(failing(tmp_path, raised)))
        with pytest.raises(BackendError, match=told):
            encoder.embed_texts(["die"])
        with pytest.raises(BackendError, match="has ended; make the encoder anew"):
            encoder.embed_texts(["rain"])

    @pytest.mark.parametrize("raised", ["MemoryError()", "RuntimeError('CUDA error: out of memory')"])
    def test_memory_that_runs_out_there(
        self, make: Callable[..., LaionClapEncoder], elsewhere: LaionClapEncoder, tmp_path: Path, raised: str
    ) -> None:
        encoder = make(python=str(failing(tmp_path, raised, "len(texts) > 2 or texts == ['die']")), batch_size=8)
        texts = ["rain", "a bell", "a dog", "wind", "sea"]
        np.testing.assert_allclose(encoder.embed_texts(texts), elsewhere.embed_texts(texts), atol=1e-6)
        assert encoder._batch.size == 2
        with pytest.raises(TooLargeError, match="even alone"):
            encoder.embed_texts(["die"])
        assert encoder.embed_texts(["rain"]).shape == (1, encoder.dim)

    def test_the_other_process_is_killed(self, make: Callable[..., LaionClapEncoder]) -> None:
        encoder = make()
        assert isinstance(encoder._model, laion_clap.Elsewhere)
        os.kill(encoder._model._process.pid, signal.SIGKILL)
        with pytest.raises(BackendError, match="was killed by signal 9"):
            encoder.embed_texts(["rain"])

    def test_it_ends_with_the_encoder(self, make: Callable[..., LaionClapEncoder]) -> None:
        encoder = make()
        assert isinstance(encoder._model, laion_clap.Elsewhere)
        process = encoder._model._process
        assert process.poll() is None
        del encoder
        gc.collect()
        assert process.poll() == 0
