"""What every backend of a role promises, run over each of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from and_platform.backends import registry
from and_platform.backends.base import (
    LLM,
    Captioner,
    Clip,
    Generation,
    Prompt,
    Tagger,
    TextAudioEncoder,
    TextEncoder,
    Windowed,
)
from and_platform.backends.captioners.audio_lm import AudioLMCaptioner
from and_platform.backends.registry import available, create
from and_platform.errors import (
    AudioError,
    ConfigError,
    GenerationError,
    MissingExtraError,
    WeightsMissingError,
)
from tests.checkpoints_audio_lm import (  # noqa: F401  # fixtures
    audio_flamingo3_dir,
    phi4_dir,
    qwen2_5_omni_dir,
    qwen3_omni_dir,
    voxtral_dir,
)
from tests.checkpoints_encoders import TINY_CLIP, clip_state, write_open_clip, write_sentence_transformer
from tests.checkpoints_salmonn import salmonn_dir  # noqa: F401  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter")

TEXTS = [
    "a dog barks",
    "rain",
    "the loud sound of a bell that rings and rings",
    "a cat",
    "an engine runs",
    "a dog barks",
]
PROMPTS = [
    Prompt("Hi"),
    Prompt("Say how the rain sounds.", "Be short."),
    Prompt("What is a bell?"),
    Prompt("Go"),
]

ENCODERS = ["minilm", "sentence-transformers", "clip", "open-clip", "clap"]
LLMS = ["transformers", "llamacpp"]
CAPTIONERS = ["whisper", "qwen_audio", "qwen2_5_omni", "qwen3_omni", "audio_flamingo3", "voxtral", "phi4", "salmonn"]
TAGGERS = ["hanta", "spacy"]


@pytest.fixture(scope="session", params=ENCODERS)
def make_encoder(request: pytest.FixtureRequest) -> Callable[..., TextEncoder]:
    return _maker("encoder", request.param, request)


@pytest.fixture(scope="session", params=LLMS)
def make_llm(request: pytest.FixtureRequest) -> Callable[..., LLM]:
    if request.param == "llamacpp":
        pytest.importorskip("xllamacpp")
    make = _maker("llm", request.param, request)
    return lambda **options: make(temperature=0.0, **options)


@pytest.fixture(scope="session", params=CAPTIONERS)
def make_captioner(request: pytest.FixtureRequest) -> Callable[..., Captioner]:
    if request.param == "voxtral":
        pytest.importorskip("mistral_common")
    name = "salmonn" if request.param == "salmonn" else "audio-lm"
    spec = f"{name}:{request.getfixturevalue(f'{request.param}_dir')}"
    return lambda **options: create("captioner", spec, max_tokens=10, **options)


@pytest.fixture(scope="session", params=TAGGERS)
def tagger(request: pytest.FixtureRequest) -> Tagger:
    if request.param == "spacy":
        pytest.importorskip("spacy")
    return create("tagger", request.param)


@pytest.fixture(scope="session")
def sentences_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sentences")
    write_sentence_transformer(path)
    return path


@pytest.fixture(scope="session")
def open_clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    path = tmp_path_factory.mktemp("open-clip")
    write_open_clip(path, clip_state(**{**TINY_CLIP, "vocabulary": 49408}))
    return path


def _maker(role: str, name: str, request: pytest.FixtureRequest) -> Callable[..., Any]:
    folders = {
        "sentence-transformers": "sentences_dir",
        "clip": "clip_dir",
        "open-clip": "open_clip_dir",
        "clap": "clap_dir",
        "transformers": "llama_dir",
    }
    spec = f"{name}:{request.getfixturevalue(folders[name])}" if name in folders else name
    made: dict[str, Any] = {}  # loading is what takes the time

    def make(**options: Any) -> Any:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = create(role, spec, **options)
        return made[key]

    return make


def clips(rate: int | None = 8000) -> list[Clip]:
    rng = np.random.default_rng(0)
    sizes = [4000, 8000, 20000, 6000]
    return [Clip(f"{n}.wav", rng.normal(0, 0.1, n).astype(np.float32), rate or 8000) for n in sizes]


def same_recipe(one: Any, other: Any) -> bool:
    """Equal, and equal after a trip through JSON."""
    written = json.loads(json.dumps(dataclasses.asdict(one.recipe)))
    return one.recipe == other.recipe and written == dataclasses.asdict(other.recipe)


class TestTextEncoders:
    def test_unit_vectors_of_the_declared_dimension(self, make_encoder: Callable[..., TextEncoder]) -> None:
        encoder = make_encoder()
        vectors = encoder.embed_texts(TEXTS)
        assert isinstance(encoder, TextEncoder)
        assert vectors.shape == (len(TEXTS), encoder.dim)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert 0 < encoder.scale <= 100

    def test_order_and_batch_do_not_matter(self, make_encoder: Callable[..., TextEncoder]) -> None:
        together = make_encoder().embed_texts(TEXTS)
        alone = make_encoder(batch_size=1).embed_texts(TEXTS[::-1])[::-1]
        assert np.allclose(together, alone, atol=1e-5)
        assert np.array_equal(together[0], together[5])
        assert np.abs(together[0] - together[1]).max() > 1e-3

    def test_nothing_in_nothing_out(self, make_encoder: Callable[..., TextEncoder]) -> None:
        encoder = make_encoder()
        assert encoder.embed_texts([]).shape == (0, encoder.dim)

    def test_texts_beyond_the_window_and_empty_ones_are_embedded(
        self, make_encoder: Callable[..., TextEncoder]
    ) -> None:
        vectors = make_encoder().embed_texts(["rain and bell " * 400, ""])
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_texts_beyond_the_window_are_told(self, make_encoder: Callable[..., TextEncoder]) -> None:
        encoder = make_encoder()
        assert isinstance(encoder, Windowed)
        assert encoder.max_tokens is not None
        long = "rain and bell " * encoder.max_tokens
        assert encoder.is_cut(["rain", long, ""]).tolist() == [False, True, False]
        assert encoder.is_cut([]).shape == (0,)
        whole, longer = encoder.embed_texts([long, long + "and a dog"])
        assert np.allclose(whole, longer, atol=1e-6)

    def test_recipe(self, make_encoder: Callable[..., TextEncoder]) -> None:
        assert same_recipe(make_encoder(), make_encoder(batch_size=2))

    def test_another_scale_is_another_recipe(self, make_encoder: Callable[..., TextEncoder]) -> None:
        own = make_encoder()
        other = make_encoder(scale=own.scale / 2)
        assert other.scale == own.scale / 2
        assert other.recipe.params == {**own.recipe.params, "scale": own.scale / 2}
        assert same_recipe(make_encoder(scale=own.scale), own)


class TestTextAudioEncoder:
    def test_sound(self, clap_dir: Path) -> None:
        encoder = create("encoder", f"clap:{clap_dir}")
        assert isinstance(encoder, TextAudioEncoder)
        together = encoder.embed_audio(clips())
        alone = np.vstack([encoder.embed_audio([clip]) for clip in clips()])
        assert together.shape == (4, encoder.dim)
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
        assert np.allclose(together, alone, atol=1e-5)
        assert encoder.embed_audio([]).shape == (0, encoder.dim)

    def test_of_a_long_clip_the_middle_is_heard(self, clap_dir: Path) -> None:
        encoder = create("encoder", f"clap:{clap_dir}")
        long = clips()[2]
        middle = Clip("middle.wav", long.waveform[6000:14000], 8000)
        heard = encoder.embed_audio([long, middle])
        assert np.allclose(heard[0], heard[1], atol=1e-6)

    @pytest.mark.parametrize(
        ("clip", "message"),
        [
            (Clip("fast.wav", np.zeros(10, np.float32), 44100), "fast.wav comes at 44100 Hz"),
            (Clip("none.wav", np.zeros(0, np.float32), 8000), "none.wav has no samples"),
        ],
    )
    def test_unfit_clips(self, clap_dir: Path, clip: Clip, message: str) -> None:
        with pytest.raises(AudioError, match=message):
            create("encoder", f"clap:{clap_dir}").embed_audio([clip])


class TestLLMs:
    def test_answers_come_in_order_whatever_the_batch(self, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm()
        together = llm.generate(PROMPTS, max_tokens=6)
        alone = [llm.generate([prompt], max_tokens=6)[0] for prompt in PROMPTS]
        assert isinstance(llm, LLM)
        answered = [(a, b) for a, b in zip(together, alone, strict=True) if isinstance(a, Generation)]
        assert len(answered) >= 2
        for a, b in answered:
            assert isinstance(b, Generation)
            assert (a.text, a.prompt_tokens) == (b.text, b.prompt_tokens)
            assert a.prompt_tokens > 0
            assert 0 < a.completion_tokens <= 6

    def test_no_prompts(self, make_llm: Callable[..., LLM]) -> None:
        assert make_llm().generate([], max_tokens=6) == []

    def test_recipe(self, make_llm: Callable[..., LLM]) -> None:
        assert same_recipe(make_llm(), make_llm())
        assert make_llm(seed=3).recipe != make_llm().recipe


def test_transformers_samples_the_same_with_the_same_seed(llama_dir: Path) -> None:
    first, again, other = (
        create("llm", f"transformers:{llama_dir}", temperature=1.0, seed=seed).generate(PROMPTS, max_tokens=12)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_transformers_uses_the_chat_template(llama_dir: Path) -> None:
    (answer,) = create("llm", f"transformers:{llama_dir}", temperature=0.0).generate([Prompt("Hi")], max_tokens=4)
    assert isinstance(answer, Generation)
    # begin, user, H, i, assistant
    assert answer.prompt_tokens == 5


class TestCaptioners:
    def test_one_caption_for_each_clip(self, make_captioner: Callable[..., Captioner]) -> None:
        captioner = make_captioner()
        heard = clips(captioner.rate)
        together = captioner.caption_batch(heard)
        assert isinstance(captioner, Captioner)
        assert all(isinstance(said, str) for said in together)
        assert together == make_captioner(batch_size=1).caption_batch(heard)
        assert captioner.caption_batch([]) == []

    def test_recipe(self, make_captioner: Callable[..., Captioner]) -> None:
        assert same_recipe(make_captioner(), make_captioner(batch_size=1))

    def test_wrong_rate(self, make_captioner: Callable[..., Captioner]) -> None:
        captioner = make_captioner()
        with pytest.raises(AudioError, match=rf"a\.wav comes at 22050 Hz, the captioner needs {captioner.rate} Hz"):
            captioner.caption_batch([Clip("a.wav", np.zeros(100, np.float32), 22050)])


def test_a_new_prompt_is_a_new_recipe_of_a_model_that_is_asked(qwen_audio_dir: Path, whisper_dir: Path) -> None:
    def recipes(path: Path) -> set[str]:
        prompts = ["Please describe the audio in detail.", "What do you hear?"]
        return {str(create("captioner", f"audio-lm:{path}", prompt=prompt).recipe) for prompt in prompts}

    assert len(recipes(qwen_audio_dir)) == 2
    assert len(recipes(whisper_dir)) == 1


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("", "said nothing about 4000.wav"),
        ("I'm sorry, but I cannot listen to audio.", "refused to describe 4000.wav"),
        ("As an AI, I have no ears.", "refused to describe 4000.wav"),
    ],
)
def test_no_caption_is_an_error(whisper_dir: Path, monkeypatch: pytest.MonkeyPatch, said: str, message: str) -> None:
    captioner = create("captioner", f"audio-lm:{whisper_dir}")
    monkeypatch.setattr(
        AudioLMCaptioner,
        "_caption",
        lambda self, batch: [said if clip.key == "4000.wav" else "Rain." for clip in batch],
    )
    none, *captions = captioner.caption_batch(clips())
    assert isinstance(none, GenerationError)
    assert message in str(none)
    assert captions == ["Rain."] * 3


class TestTaggers:
    def test_penn_tags_and_lemmas(self, tagger: Tagger) -> None:
        (tokens,) = tagger.tag(["Two dogs are barking loudly."])
        assert isinstance(tagger, Tagger)
        assert [(token.text, token.lemma, token.tag) for token in tokens] == [
            ("Two", "two", "CD"),
            ("dogs", "dog", "NNS"),
            ("are", "be", "VBP"),
            ("barking", "bark", "VBG"),
            ("loudly", "loudly", "RB"),
            (".", ".", "."),
        ]

    def test_hyphens_stay_and_contractions_part(self, tagger: Tagger) -> None:
        (tokens,) = tagger.tag(["It isn't a high-pitched tone."])
        assert [token.text for token in tokens] == ["It", "is", "n't", "a", "high-pitched", "tone", "."]
        assert tokens[4].tag == "JJ"

    def test_one_result_per_text_in_order(self, tagger: Tagger) -> None:
        texts = ["A dog barks.", "", "Rain falls. A bell rings."]
        assert tagger.tag(texts) == [tagger.tag([text])[0] for text in texts]
        assert tagger.tag(texts)[1] == []
        assert tagger.tag([]) == []

    def test_recipe(self, tagger: Tagger) -> None:
        assert same_recipe(tagger, tagger)


class TestRegistry:
    def test_every_backend_is_listed_by_name(self) -> None:
        listed = {role: [backend.name for backend in available(role)] for role in registry.ROLES}
        assert listed == {
            "encoder": ["clap", "clip", "laion-clap", "minilm", "open-clip", "sentence-transformers"],
            "captioner": ["audio-lm", "openai-audio", "salmonn"],
            "llm": ["llamacpp", "openai", "transformers", "vllm"],
            "tagger": ["hanta", "spacy"],
        }

    @pytest.mark.parametrize(
        ("role", "spec", "message"),
        [
            ("oracle", "x", "there is no role 'oracle'"),
            ("tagger", "nltk", r"there is no tagger 'nltk'; there is: hanta, spacy\[:PIPELINE\]"),
            ("encoder", "clip", "needs more; write clip:PATH_OR_ID"),
            ("encoder", "clip:", "needs more; write clip:PATH_OR_ID"),
            ("tagger", "hanta:x", "takes nothing after its name"),
            ("llm", "openai:model", "names no endpoint"),
            ("llm", "openai:model@localhost:8000", "is no address of an endpoint"),
        ],
    )
    def test_what_cannot_be(self, role: str, spec: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            create(role, spec)

    def test_a_missing_package_names_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"and-platform\[vllm\]"):
            create("llm", "vllm:some/model")
        assert not any(backend.installed for backend in available("llm"))

    def test_no_model_there(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissingError, match="there is no model at"):
            create("encoder", f"clip:{tmp_path / 'none'}")
        with pytest.raises(WeightsMissingError, match="holds no model"):
            create("encoder", f"clip:{tmp_path}")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(WeightsMissingError, match="cannot load a model from"):
            create("encoder", f"clip:{tmp_path}")

    def test_other_distributions_add_their_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        info = tmp_path / "echo_backends-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-backends\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[and_platform.backends]\nllm.echo = echo_backends:Echo\n")
        (tmp_path / "echo_backends.py").write_text(
            "class Echo:\n    def __init__(self, how='', loud=False):\n        self.how, self.loud = how, loud\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        echo = create("llm", "echo:twice", loud=True)
        assert (echo.how, echo.loud) == ("twice", True)
        assert ("echo", True, "", "from echo-backends") in available("llm")


def test_a_revision_tells_weights_apart(clip_dir: Path, clap_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in clip_dir.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "README.md").write_text("no part of the model")
    original = create("encoder", f"clip:{clip_dir}").recipe
    assert create("encoder", f"clip:{copy}").recipe == original
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert create("encoder", f"clip:{copy}").recipe.revision != original.revision
