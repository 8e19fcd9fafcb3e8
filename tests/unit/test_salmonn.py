"""SALMONN from its published parts: what it computes, what a batch changes, and what is said when parts are wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft")

from and_platform.backends.base import Clip
from and_platform.backends.captioners.salmonn import SalmonnCaptioner
from and_platform.backends.captioners.salmonn_layout import SalmonnSettings, read_layout
from and_platform.backends.captioners.salmonn_model import read_checkpoint
from and_platform.backends.registry import create
from and_platform.errors import ConfigError, GenerationError, MissingExtraError, WeightsMissingError
from tests.checkpoints_salmonn import parity_clips, salmonn_dir, write_checkpoint, write_salmonn, write_vicuna

__all__ = ["salmonn_dir"]

FIXTURE = Path(__file__).parent.parent / "data" / "parity" / "salmonn.npz"
SOUND = "llama_model.base_model.model.model.layers"


@pytest.fixture(scope="module")
def greedy(salmonn_dir: Path) -> SalmonnCaptioner:
    return create("captioner", f"salmonn:{salmonn_dir}", num_beams=1, max_tokens=24)


@pytest.fixture
def copied(salmonn_dir: Path, tmp_path: Path) -> Path:
    """A SALMONN to break: its files are the fixture's, its settings and checkpoint its own."""
    for name in ("whisper", "vicuna", "beats.pt"):
        (tmp_path / name).symlink_to(salmonn_dir / name)
    for name in ("salmonn.pth", "salmonn.toml"):
        shutil.copy(salmonn_dir / name, tmp_path / name)
    return tmp_path


def clips() -> list[Clip]:
    """All but the long one, with which a batch takes its time."""
    return [Clip(name, wave, 16000) for name, wave in parity_clips().items() if name != "long"]


class TestAsPublished:
    """Against the published class on the same weights: scripts/equality/salmonn.py wrote the fixture."""

    def test_sound(self, greedy: SalmonnCaptioner) -> None:
        published = np.load(FIXTURE)
        waves = parity_clips()
        sound = greedy._model.encode(list(waves.values())).numpy()
        assert sound.shape == (12, 88, 32)
        for ours, name in zip(sound, waves, strict=True):
            assert np.abs(ours - published[f"{name}_sound"]).max() < 2e-4  # of a spread of 5
        assert sound.std(axis=0).max() > 1  # it does depend on the clip

    @pytest.mark.parametrize(
        ("search", "options"),
        [("greedy", {"num_beams": 1}), ("first_beams", {"num_beams": 4, "early_stopping": True})],
    )
    def test_answers(self, salmonn_dir: Path, search: str, options: dict[str, Any]) -> None:
        published = np.load(FIXTURE)
        answers = SalmonnCaptioner(str(salmonn_dir), max_tokens=60, **options)._answer(clips())
        assert answers == [published[f"{clip.key}_{search}"].tolist() for clip in clips()]
        assert len({tuple(answer) for answer in answers}) > 6

    def test_the_prompt_stands_around_the_sound(self) -> None:
        before, after = SalmonnSettings().around_speech(" What is {this}? ")
        assert before == "USER: <Speech>"
        assert after == "</Speech> What is {this}?\nASSISTANT:"


class TestBatches:
    def test_a_clip_is_described_alike_alone(self, greedy: SalmonnCaptioner) -> None:
        some = clips()[1:6]
        assert greedy._answer(some) == [greedy._answer([clip])[0] for clip in some]

    def test_no_neighbour_changes_the_sound(self, greedy: SalmonnCaptioner) -> None:
        short, long = parity_clips()["some"], parity_clips()["long"]
        alone = greedy._model.encode([short])
        together = greedy._model.encode([long, short])[1:]
        assert (alone - together).abs().max() < 1e-4

    def test_sampling_depends_on_seed_and_clip_only(self, salmonn_dir: Path) -> None:
        def sampled(seed: int) -> SalmonnCaptioner:
            return SalmonnCaptioner(str(salmonn_dir), num_beams=1, temperature=3.0, seed=seed, max_tokens=8)

        first, again, other = sampled(1), sampled(1), sampled(2)
        together = first._answer(clips()[:3])
        assert together == [again._answer([clip])[0] for clip in clips()[:3]]
        assert together != other._answer(clips()[:3])
        assert first.recipe == again.recipe != other.recipe

    def test_what_is_beyond_half_a_minute_is_not_heard(self, greedy: SalmonnCaptioner) -> None:
        long = parity_clips()["long"]
        heard = greedy._model.encode([long, long[: 30 * 16000]])
        assert torch.allclose(heard[0], heard[1], atol=1e-4)

    def test_less_than_a_second_is_followed_by_silence(self, greedy: SalmonnCaptioner) -> None:
        short = parity_clips()["short"]
        heard = greedy._model.encode([short, np.pad(short, (0, 16000 - short.size))])
        assert torch.allclose(heard[0], heard[1], atol=1e-4)

    def test_an_empty_answer_is_a_failure_of_its_clip(
        self, greedy: SalmonnCaptioner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            SalmonnCaptioner, "_caption", lambda self, batch: ["" if c.key == "one" else "A dog." for c in batch]
        )
        said = dict(zip((clip.key for clip in clips()), greedy.caption_batch(clips()), strict=True))
        assert isinstance(said.pop("one"), GenerationError)
        assert set(said.values()) == {"A dog."}

    def test_half_precision_hears_nearly_the_same(self, salmonn_dir: Path, greedy: SalmonnCaptioner) -> None:
        half = SalmonnCaptioner(str(salmonn_dir), num_beams=1, dtype="bfloat16", max_tokens=4)
        wave = parity_clips()["some"]
        whole, rounded = (model._model.encode([wave]).float() for model in (greedy, half))
        assert half._model.llm.dtype == torch.bfloat16
        assert 1e-5 < (whole - rounded).abs().mean() < 0.2
        assert len(half.caption_batch(clips()[:2])) == 2


class TestRecipe:
    def test_what_changes_captions_is_in_it(self, salmonn_dir: Path, copied: Path) -> None:
        own = SalmonnCaptioner(str(salmonn_dir)).recipe
        assert own.name == "salmonn"
        assert own.params["prompt"] == "Please describe the audio in detail."
        assert (own.params["num_beams"], own.params["max_tokens"], own.params["max_seconds"]) == (4, 200, 30.0)
        assert own.params["window_frames"] == [17, 17]
        assert SalmonnCaptioner(str(salmonn_dir), batch_size=1, seed=5).recipe == own
        for options in ({"prompt": "What?"}, {"num_beams": 2}, {"early_stopping": "never"}, {"dtype": "bfloat16"}):
            assert SalmonnCaptioner(str(salmonn_dir), **options).recipe != own
        write_checkpoint(copied / "salmonn.pth", 32, 2, speech_query_tokens=torch.zeros(1, 1, 16))
        assert SalmonnCaptioner(str(copied)).recipe.revision != own.revision

    def test_settings_of_the_directory(self, copied: Path) -> None:
        (copied / "salmonn.toml").write_text(
            "[model]\nqformer_heads = 2\nlora_alpha = 16\nsecond_per_window = 0.5\nsecond_stride = 0.25\n"
            'lora_rank = 4\nnum_speech_query_token = 1\nprompt_template = "Q {} A"\n'
        )
        captioner = SalmonnCaptioner(str(copied), max_tokens=4)
        assert captioner.recipe.params["window_frames"] == [25, 12]
        assert captioner.recipe.params["prompt_template"] == "Q {} A"
        # (1500 - 25) // 12 + 1 windows that overlap
        assert captioner._model.encode([parity_clips()["one"]]).shape == (1, 123, 32)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"temperature": 1.0}, ConfigError, "set num_beams to 1"),
            ({"early_stopping": "soon"}, ConfigError, "early_stopping is"),
            ({"quantization": "3bit"}, ConfigError, "there is no quantization '3bit'"),
            ({"dtype": "float12"}, ConfigError, "there is no dtype 'float12'"),
            ({"prompt": "What is in <SpeechHere>?"}, ConfigError, "must not hold <SpeechHere>"),
        ],
    )
    def test_unfit(self, salmonn_dir: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            SalmonnCaptioner(str(salmonn_dir), **options)

    def test_fewer_bits_need_a_package(self, salmonn_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("and_platform.backends.captioners.salmonn.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match="bitsandbytes"):
            SalmonnCaptioner(str(salmonn_dir), quantization="8bit")


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def settings(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "salmonn.toml").write_text(text)

    return write


def checkpoint(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: write_checkpoint(folder / "salmonn.pth", 32, 2, **changed)


def another_vicuna(width: int, layers: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "vicuna").unlink()
        write_vicuna(folder / "vicuna", width, layers)

    return write


class TestParts:
    def test_parts_by_their_published_names_and_by_path(self, copied: Path, tmp_path_factory: Any) -> None:
        said = SalmonnCaptioner(str(copied), max_tokens=4).caption_batch(clips()[:2])
        (copied / "salmonn.pth").rename(copied / "salmonn_7b_v0.pth")
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        (elsewhere / "beats").mkdir()
        shutil.copy(copied / "beats.pt", elsewhere / "beats" / "any.pt")
        (copied / "beats.pt").unlink()
        with (copied / "salmonn.toml").open("r+") as file:
            rest = file.read()
            file.seek(0)
            file.write(f'beats = "{elsewhere / "beats"}"\nwhisper = "./whisper"\n{rest}')
        moved = SalmonnCaptioner(str(copied), max_tokens=4)
        assert moved.caption_batch(clips()[:2]) == said
        assert moved.recipe.origin == str(copied / "salmonn_7b_v0.pth")

    def test_both_published_widths(self, tmp_path: Path) -> None:
        write_salmonn(tmp_path, llm_width=40, llm_layers=3)
        captioner = SalmonnCaptioner(str(tmp_path), max_tokens=4)
        assert captioner._model.connector.llm_width == 40
        assert len(captioner.caption_batch(clips()[:1])) == 1

    def test_adapters_of_older_peft(self, copied: Path) -> None:
        file = copied / "salmonn.pth"
        own = read_checkpoint(file)
        state = torch.load(file, weights_only=True)["model"]
        torch.save({"model": {name.replace(".default", ""): value for name, value in state.items()}}, file)
        older = read_checkpoint(file)
        assert older.lora.keys() == own.lora.keys()
        assert (own.rank, own.targets, own.llm_layers) == (4, ("q_proj", "v_proj"), 2)

    @pytest.mark.parametrize(
        ("break_it", "error", "message"),
        [
            (
                remove("whisper"),
                WeightsMissingError,
                r"no whisper: download .*whisper-large-v2.* to .*/whisper, or say",
            ),
            (remove("vicuna"), WeightsMissingError, r"no vicuna: download .*vicuna-13b-v1\.1 for SALMONN-13B"),
            (remove("beats.pt"), WeightsMissingError, r"no beats: download .*AS2M_cpt2\.pt.* to .*/beats\.pt"),
            (remove("salmonn.pth"), WeightsMissingError, r"no checkpoint: download .*salmonn_v1\.pth"),
            (settings("beats = 'none.pt'"), WeightsMissingError, r"no beats: download .* to .*/none\.pt"),
            (settings("[model"), ConfigError, "salmonn.toml is no TOML"),
            (settings("llama = 'x'"), ConfigError, "has no use for 'llama'; it knows whisper, beats, vicuna"),
            (settings("beats = 3"), ConfigError, "'beats' of .* must be a path"),
            (settings("model = 3"), ConfigError, "must be a table"),
            (settings("[model]\nwindow = 1"), ConfigError, r"\[model\] of .* has no setting 'window'"),
            (settings("[model]\nlora_alpha = 'x'"), ConfigError, "'lora_alpha' of .* must be a whole number"),
            (settings("[model]\nsecond_stride = 'x'"), ConfigError, "must be a number of seconds"),
            (settings("[model]\nlora_alpha = 0"), ConfigError, "must be above 0, not 0"),
            (settings("[model]\nprompt_template = 'ask'"), ConfigError, "needs {} once"),
            (settings("[model]\nlora_rank = 8"), WeightsMissingError, "has lora_rank 4, the settings say 8"),
            (settings("[model]\nqformer_heads = 3"), WeightsMissingError, "Q-Former in .* not the published one"),
            (checkpoint(ln_audio=torch.ones(1)), WeightsMissingError, "nothing takes its 'ln_audio'"),
            (checkpoint(**{"ln_audio.bias": None}), WeightsMissingError, "lacks ln_audio.bias"),
            (
                checkpoint(**{"speech_Qformer.bert.encoder.layer.1.output_query.dense.bias": None}),
                WeightsMissingError,
                "Q-Former in .* is not the published one .*output_query.dense.bias",
            ),
            (
                checkpoint(**{"speech_Qformer.bert.pooler.dense.bias": torch.ones(1)}),
                WeightsMissingError,
                "Q-Former in .* is not the published one .*pooler",
            ),
            (
                checkpoint(**{f"{SOUND}.1.self_attn.v_proj.lora_B.default.weight": None}),
                WeightsMissingError,
                "adapters in .* are not for the language model .*layers.1.self_attn.v_proj.lora_B",
            ),
            (
                checkpoint(**{f"{SOUND}.1.self_attn.v_proj.lora_B.default.weight": torch.ones(32, 5)}),
                WeightsMissingError,
                r"several ranks: \[4, 5\]",
            ),
            (
                another_vicuna(48, 2),
                WeightsMissingError,
                "trained with a vicuna of width 32, .* is 48 wide; 13B and 7B",
            ),
            (another_vicuna(32, 3), WeightsMissingError, "adapts 2 layers of a language model, .* has 3"),
        ],
    )
    def test_wrong_parts_are_named(
        self, copied: Path, break_it: Callable[[Path], None], error: type[Exception], message: str
    ) -> None:
        break_it(copied)
        with pytest.raises(error, match=message) as told:
            SalmonnCaptioner(str(copied)).caption_batch(clips()[:1])
        assert "\n" not in str(told.value)

    def test_no_code_of_a_checkpoint_runs(self, copied: Path) -> None:
        torch.save({"model": {"x": Path("/")}}, copied / "salmonn.pth")
        with pytest.raises(WeightsMissingError, match="never run"):
            SalmonnCaptioner(str(copied)).caption_batch(clips()[:1])

    def test_something_else_is_no_checkpoint(self, copied: Path) -> None:
        torch.save({"state": {}}, copied / "salmonn.pth")
        with pytest.raises(WeightsMissingError, match="has no 'model'"):
            SalmonnCaptioner(str(copied)).caption_batch(clips()[:1])

    def test_two_candidates(self, copied: Path) -> None:
        (copied / "both").mkdir()
        for name in ("a.pth", "b.pth"):
            shutil.copy(copied / "salmonn.pth", copied / "both" / name)
        (copied / "salmonn.toml").write_text('checkpoint = "both"')
        with pytest.raises(WeightsMissingError, match="holds 2 files that could be the checkpoint"):
            read_layout(str(copied))

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissingError, match="there is no directory"):
            read_layout(str(tmp_path / "nowhere"))
