"""Captioners: audio language models of transformers, those behind an endpoint, and what both say no to."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from and_platform.backends.base import Captioner, Clip
from and_platform.backends.batching import TooLargeError
from and_platform.backends.captioners import audio_lm
from and_platform.backends.captioners.answers import check_captions, check_rate
from and_platform.backends.captioners.audio_lm import AudioLMCaptioner
from and_platform.backends.captioners.openai_audio import OpenAIAudioCaptioner
from and_platform.backends.endpoints import EndpointError
from and_platform.backends.registry import create
from and_platform.errors import AudioError, ConfigError, GenerationError, MissingExtraError, WeightsMissingError
from tests.checkpoints_audio_lm import (  # noqa: F401
    audio_flamingo3_dir,
    phi4_dir,
    qwen2_5_omni_dir,
    qwen3_omni_dir,
    voxtral_dir,
)

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter")

FAMILIES = ["qwen2_5_omni", "qwen3_omni", "audio_flamingo3", "voxtral", "phi4"]


def clip(seconds: float, rate: int = 16000, seed: int = 0, loudness: float = 0.1) -> Clip:
    samples = np.random.default_rng(seed).normal(0, loudness, round(seconds * rate)).astype(np.float32)
    return Clip(f"{seconds}-{seed}.wav", samples, rate)


class TestAnswers:
    @pytest.mark.parametrize(
        "said",
        [
            "I'm sorry, but I cannot listen to audio.",
            "I\u2019m so sorry, I can\u2019t do that.",
            "Sorry, no audio was given.",
            "I apologize, but I cannot help with that.",
            "As an AI language model, I have no ears.",
            "As a text-based assistant, I can't hear.",
            "I cannot listen to audio files.",
            "I'm unable to process sound.",
            "I don't have the ability to listen to audio.",
            "Unfortunately, I have not received a file.",
            "Please provide the audio so that I can describe it.",
            '"Sorry, I cannot."',
            "As an AI, I have no ears.",
            "I cannot listen to or process audio",
            "I am unable to hear the audio you mention",
            "Unfortunately, I can't assist with that",
            "Sorry, I can't help with that.",
            "I'm unable to access audio files",
            "I cannot hear audio.",
        ],
    )
    def test_refusals(self, said: str) -> None:
        (answer,) = check_captions([clip(1)], [said])
        assert isinstance(answer, GenerationError)
        assert str(answer).startswith("the captioner refused to describe 1-0.wav: ")

    @pytest.mark.parametrize(
        "said",
        [
            "A man says he is sorry.",
            "A sorry-looking tune on a piano.",
            "I hear a dog that barks.",
            'A woman says: "I cannot come."',
            "As a bell rings, a dog barks.",
            "An aircraft passes.",
            '"Sorry," a man says, while cars pass.',
            "\u201cI\u2019m sorry, I can\u2019t help you,\u201d a woman says.",
            "'I can't help it,' a man says, and laughs.",
            "Sorry, a man says quietly.",
            "I cannot hear any speech, only wind and rain.",
            "I can't tell which bird it is, but a bird sings loudly.",
            "Unfortunately, I only hear static noise.",
        ],
    )
    def test_captions_stay(self, said: str) -> None:
        assert check_captions([clip(1)], [f" {said}\n"]) == [said]

    def test_one_answer_does_not_touch_another(self) -> None:
        failed = GenerationError("too large")
        answers = check_captions([clip(n) for n in (1, 2, 3)], ["Rain.", " \n", failed])
        assert answers[0] == "Rain."
        assert str(answers[1]) == "the captioner said nothing about 2-0.wav"
        assert answers[2] is failed

    def test_what_cannot_be_heard(self) -> None:
        check_rate([clip(1, 8000), clip(1, 16000)], None)
        with pytest.raises(AudioError, match=r"comes at 8000 Hz, the captioner needs 16000 Hz; resample it"):
            check_rate([clip(1, 8000)], 16000)
        with pytest.raises(AudioError, match=r"none\.wav has no samples"):
            check_rate([Clip("none.wav", np.zeros(0, np.float32), 16000)], 16000)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param == "voxtral":
        pytest.importorskip("mistral_common")
    found: Path = request.getfixturevalue(f"{request.param}_dir")
    return found


def make(folder: Path, **options: Any) -> AudioLMCaptioner:
    return AudioLMCaptioner(str(folder), **{"max_tokens": 10, "prompt": "What?", **options})


class TestAudioLMs:
    def test_the_batch_changes_nothing(self, folder: Path) -> None:
        captioner = make(folder)
        clips = [clip(0.5), clip(1.2, seed=1), clip(0.001), clip(0.3, seed=2), clip(0.5, loudness=0.01)]
        together = captioner.caption_batch(clips)
        assert isinstance(captioner, Captioner)
        assert together == [captioner.caption_batch([one])[0] for one in clips]
        assert all(isinstance(said, str) and said for said in together)
        assert len(set(map(str, together))) > 1  # what is heard matters
        assert captioner.batch_size == 8

    def test_what_is_sampled_depends_on_seed_and_clip_alone(self, folder: Path) -> None:
        clips = [clip(0.5), clip(0.5), clip(0.5, seed=1)]
        one, again, other = (make(folder, temperature=1.0, top_p=0.95, seed=seed) for seed in (1, 1, 2))
        together = one.caption_batch(clips)
        assert together[0] == together[1]
        assert together == [again.caption_batch([each])[0] for each in clips]
        assert together != other.caption_batch(clips)
        assert one.recipe == again.recipe != other.recipe
        assert one.recipe.params.items() >= {"temperature": 1.0, "top_p": 0.95, "seed": 1}.items()

    def test_beams(self, folder: Path) -> None:
        captioner = make(folder, num_beams=2)
        clips = [clip(0.5), clip(0.9, seed=1)]
        alone = [captioner.caption_batch([one])[0] for one in clips]
        assert list(map(str, captioner.caption_batch(clips))) == list(map(str, alone))
        assert captioner.recipe.params["num_beams"] == 2
        assert captioner.recipe != make(folder).recipe

    def test_prompts_are_heard_and_known(self, folder: Path) -> None:
        plain, asked = make(folder), make(folder, prompt="Say it.")
        given = [captioner._inputs([clip(0.5).waveform])["input_ids"] for captioner in (plain, asked)]
        assert not torch.equal(given[0][:, -20:], given[1][:, -20:])
        assert plain.recipe != asked.recipe
        assert plain.recipe.params["prompt"] == "What?"
        assert "seed" not in plain.recipe.params
        assert make(folder, batch_size=1, seed=3).recipe == plain.recipe

    def test_system_prompts(self, folder: Path) -> None:
        if (folder / "tekken.json").exists():
            with pytest.raises(ConfigError, match="takes no system prompt; leave 'system' out"):
                make(folder, system="Be brief.")
            return
        plain, told = make(folder), make(folder, system="Be brief.")
        given = [captioner._inputs([clip(0.5).waveform])["input_ids"] for captioner in (plain, told)]
        assert given[1].shape[1] > given[0].shape[1] + len("Be brief.")
        assert told.recipe.params == {**plain.recipe.params, "system": "Be brief."}

    def test_memory_that_runs_out(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        captioner = make(folder)
        clips = [clip(0.3, seed=seed) for seed in range(6)]
        expected = captioner.caption_batch(clips)
        generate = captioner._model.generate

        def tight(**inputs: Any) -> Any:
            if len(inputs["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return generate(**inputs)

        monkeypatch.setattr(captioner._model, "generate", tight)
        assert captioner.caption_batch(clips) == expected
        assert captioner.batch_size == 1
        monkeypatch.setattr(captioner._model, "generate", lambda **_: torch.empty(10**15))
        assert all(isinstance(said, TooLargeError) for said in captioner.caption_batch(clips[:2]))

    def test_weights_that_are_not_there(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "copy")
        file = tmp_path / "copy" / "model.safetensors"
        tensors = load_file(file)
        tensors.pop(next(name for name in sorted(tensors) if "audio" in name and "conv" in name))
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(WeightsMissingError, match=r"1 weights are not in the files, .*conv"):
            make(tmp_path / "copy").caption_batch([clip(0.3)])

    def test_the_model_is_loaded_when_it_is_used_and_after_it_was_let_go(self, folder: Path) -> None:
        captioner = make(folder)
        captioner.release()
        assert captioner._lazy._made == []
        said = captioner.caption_batch([clip(0.3)])
        assert len(captioner._lazy._made) == 1
        captioner.release()
        assert captioner._lazy._made == []
        assert captioner.caption_batch([clip(0.3)]) == said

    def test_other_numbers(self, folder: Path) -> None:
        captioner = make(folder, dtype="bfloat16")
        assert captioner._model.dtype == torch.bfloat16
        assert captioner.recipe.params["dtype"] == "bfloat16"
        assert isinstance(captioner.caption_batch([clip(0.3)])[0], str)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        (
            "qwen2_5_omni",
            ["thinker.model.layers.0.self_attn.q_proj.weight", "thinker.audio_tower.conv1.weight",
             "thinker.visual.blocks.0.attn.proj.weight", "thinker.lm_head.weight"],
        ),
        (
            "qwen3_omni",
            ["thinker.model.layers.0.mlp.experts.3.gate_proj.weight", "thinker.audio_tower.conv2d1.weight",
             "thinker.model.layers.0.mlp.gate.weight", "thinker.lm_head.weight"],
        ),
        (
            "audio_flamingo3",
            ["language_model.model.layers.0.self_attn.q_proj.weight", "audio_tower.conv1.weight",
             "multi_modal_projector.linear_1.weight"],
        ),
        (
            "voxtral",
            ["language_model.model.layers.0.self_attn.q_proj.weight", "audio_tower.conv1.weight",
             "multi_modal_projector.linear_1.weight"],
        ),
    ],
)  # fmt: skip
def test_the_files_are_named_as_published(family: str, names: list[str], request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{family}_dir")
    assert set(names) <= set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen3_omni"])
def test_only_what_thinks_and_hears_is_loaded(family: str, request: pytest.FixtureRequest) -> None:
    captioner = make(request.getfixturevalue(f"{family}_dir"))
    assert type(captioner._model).__name__.endswith("ThinkerForConditionalGeneration")
    assert captioner._processor.image_processor is None
    assert captioner._processor.video_processor is None


def test_an_adapter_is_heard_through_and_must_be_there(phi4_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    captioner = make(phi4_dir)
    assert any("lora_A" in name for name, _ in captioner._model.named_parameters())
    adapted = captioner.caption_batch([clip(0.5)])
    captioner._model.disable_adapters()
    assert captioner.caption_batch([clip(0.5)]) != adapted
    shutil.copytree(phi4_dir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "speech-lora")
    with pytest.raises(WeightsMissingError, match="speech-lora"):
        make(tmp_path / "copy")


def test_the_window(
    qwen2_5_omni_dir: Path, audio_flamingo3_dir: Path  # noqa: F811
) -> None:  # fmt: skip
    for folder in (qwen2_5_omni_dir, audio_flamingo3_dir):
        captioner = make(folder)
        assert captioner.recipe.params["max_seconds"] == 2.0
        long = clip(3.0)
        start = Clip("start.wav", long.waveform[:32000], 16000)
        assert captioner.caption_batch([long]) == captioner.caption_batch([start])


def test_no_window(voxtral_dir: Path) -> None:  # noqa: F811
    pytest.importorskip("mistral_common")
    captioner = make(voxtral_dir)
    assert "max_seconds" not in captioner.recipe.params
    inputs = captioner._inputs([clip(31.0).waveform, clip(1.0).waveform])
    assert inputs["input_features"].shape == (3, 16, 3000)
    assert (inputs["input_ids"] == 24).sum(dim=1).tolist() == [2 * 375, 375]


def test_a_package_of_one_family(voxtral_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(audio_lm, "find_spec", lambda name: None if name == "mistral_common" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"'mistral_common' is not installed.*and-platform\[voxtral\]"):
        make(voxtral_dir)


def test_a_template_of_texts_gets_the_sound_in_its_text(qwen_audio_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen_audio_dir, tmp_path / "copy")
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "copy" / "chat_template.jinja").write_text(template)
    tokenizer = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    (tmp_path / "copy" / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": template}))
    captioner = make(tmp_path / "copy", system="Be brief.")
    clips = [clip(0.5, 8000), clip(0.9, 8000)]
    inputs = captioner._inputs([each.waveform for each in clips])
    assert (inputs["input_ids"] == 3).sum(dim=1).tolist() == [12, 22]
    assert captioner.caption_batch(clips) == [captioner.caption_batch([each])[0] for each in clips]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 1.0, "num_beams": 2}, ConfigError, "samples .* or searches"),
        ({"quantization": "2bit"}, ConfigError, "there is no quantization '2bit'; there is: 4bit, 8bit"),
        ({"dtype": "float99"}, ConfigError, "there is no dtype 'float99'"),
    ],
)
def test_what_cannot_be_asked(
    qwen_audio_dir: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(qwen_audio_dir, **options)


def test_quantization_needs_a_package(qwen_audio_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_lm, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        make(qwen_audio_dir, quantization="4bit")


def test_a_model_without_ears(llama_dir: Path) -> None:
    with pytest.raises(WeightsMissingError, match="takes no sound; name an audio language model"):
        make(llama_dir)


Reply = tuple[int, dict[str, str], Any]


def completion(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


class Listener:
    """A server that decodes the WAV files it is sent; `reply` gets samples, rate and how often they came before."""

    def __init__(self) -> None:
        self.reply: Callable[[np.ndarray, int, int], Reply] = lambda wave, rate, before: (
            200, {}, completion(f"{len(wave)} samples at {rate} Hz, as loud as {np.abs(wave).max():.2f}.")
        )  # fmt: skip
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busiest = 0
        self._heard: dict[bytes, int] = {}
        self._busy = 0
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                (part,) = (part for part in body["messages"][-1]["content"] if part["type"] != "text")
                if part["type"] == "input_audio":
                    assert part["input_audio"]["format"] == "wav"
                    data = part["input_audio"]["data"]
                else:
                    kind, _, data = part["audio_url"]["url"].partition(",")
                    assert kind == "data:audio/wav;base64"
                content = base64.b64decode(data, validate=True)
                file = soundfile.SoundFile(io.BytesIO(content))
                assert (file.channels, file.format, file.subtype) == (1, "WAV", "PCM_16")
                wave = file.read(dtype="float32")
                with listener._lock:
                    listener.bodies.append(body)
                    listener.keys.append(self.headers["authorization"])
                    before = listener._heard.get(content, 0)
                    listener._heard[content] = before + 1
                    listener._busy += 1
                    listener.busiest = max(listener.busiest, listener._busy)
                status, headers, answer = listener.reply(wave, file.samplerate, before)
                with listener._lock:
                    listener._busy -= 1
                told = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(told))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def asking(listener: Listener, **options: Any) -> OpenAIAudioCaptioner:
    return OpenAIAudioCaptioner("tiny", listener.url, **{"first_wait_s": 0.01, "attempts": 3, **options})


class TestOpenAIAudio:
    def test_what_is_sent_and_said(self, listener: Listener) -> None:
        captioner = create(
            "captioner", f"openai-audio:tiny@{listener.url}", system="Be brief.", max_tokens=9, temperature=0.5, seed=3
        )
        loud = Clip("loud.wav", np.array([0.25, -2.0, 0.5], np.float32), 16000)
        assert isinstance(captioner, Captioner)
        assert captioner.caption_batch([clip(0.5), loud]) == [
            f"8000 samples at 16000 Hz, as loud as {np.abs(clip(0.5).waveform).max():.2f}.",
            "3 samples at 16000 Hz, as loud as 1.00.",  # clipped to full scale, not wrapped
        ]
        body = listener.bodies[0]
        assert {name: body[name] for name in body if name != "messages"} == {
            "model": "tiny", "max_tokens": 9, "temperature": 0.5, "top_p": 1.0, "seed": 3,
        }  # fmt: skip
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert [part["type"] for part in body["messages"][1]["content"]] == ["input_audio", "text"]
        assert body["messages"][1]["content"][1]["text"] == "Please describe the audio in detail."
        assert captioner.caption_batch([]) == []

    def test_older_servers_and_other_rates(self, listener: Listener) -> None:
        captioner = asking(listener, audio_part="audio_url", rate=8000)
        (said,) = captioner.caption_batch([clip(0.5, 8000)])
        assert str(said).startswith("4000 samples at 8000 Hz")
        assert listener.bodies[0]["messages"][-1]["content"][0]["type"] == "audio_url"
        with pytest.raises(AudioError, match="needs 8000 Hz"):
            captioner.caption_batch([clip(0.5)])

    def test_many_at_once_in_order(self, listener: Listener) -> None:
        def slow(wave: np.ndarray, rate: int, before: int) -> Reply:
            time.sleep(0.02 if len(wave) % 2 else 0.05)
            return 200, {}, completion(str(len(wave)))

        listener.reply = slow
        captioner = asking(listener, concurrency=4)
        clips = [Clip(str(n), np.zeros(n, np.float32), 16000) for n in range(10, 26)]
        assert captioner.caption_batch(clips) == [str(n) for n in range(10, 26)]
        assert listener.busiest == 4
        assert captioner.batch_size == 16

    def test_a_clip_that_fails_fails_alone(self, listener: Listener) -> None:
        def reply(wave: np.ndarray, rate: int, before: int) -> Reply:
            match len(wave):
                case 10:
                    return 400, {}, {"error": "audio is too short"}
                case 20:
                    return 200, {}, completion("I'm sorry, I cannot hear.")
                case 30:
                    return 200, {}, completion(" ")
                case 40:
                    return (200 if before else 503), {"Retry-After": "0.05"}, completion("at last")
                case _:
                    return 200, {}, completion("fine")

        listener.reply = reply
        captioner = asking(listener)
        clips = [Clip(str(n), np.zeros(n, np.float32), 16000) for n in (10, 20, 30, 40, 50)]
        short, refused, empty, late, fine = captioner.caption_batch(clips)
        assert isinstance(short, GenerationError)
        assert "audio is too short" in str(short)
        assert isinstance(refused, GenerationError)
        assert "refused to describe 20" in str(refused)
        assert isinstance(empty, GenerationError)
        assert (late, fine) == ("at last", "fine")
        assert (captioner.usage.requests, captioner.usage.retries) == (6, 1)

    @pytest.mark.parametrize(("status", "message"), [(401, "set ANDP_LLM_API_KEY"), (404, "does not serve the model")])
    def test_a_fault_of_the_endpoint_stops_the_rest(self, listener: Listener, status: int, message: str) -> None:
        listener.reply = lambda wave, rate, before: (status, {}, {"error": "no"})
        answers = asking(listener, concurrency=1).caption_batch([clip(0.01, seed=seed) for seed in range(6)])
        assert all(isinstance(answer, EndpointError) and message in str(answer) for answer in answers)
        assert len(listener.bodies) == 1

    def test_nobody_there(self) -> None:
        captioner = OpenAIAudioCaptioner("tiny", "http://127.0.0.1:9/v1", attempts=2, first_wait_s=0.01, concurrency=1)
        answers = captioner.caption_batch([clip(0.01), clip(0.02)])
        assert all(isinstance(answer, EndpointError) and "is the server running?" in str(answer) for answer in answers)
        captioner.close()

    def test_the_key_is_sent_and_never_told(self, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANDP_LLM_API_KEY", "secret")
        captioner = asking(listener)
        captioner.caption_batch([clip(0.01)])
        assert listener.keys == ["Bearer secret"]
        assert "secret" not in repr(captioner.recipe)

    def test_recipe(self, listener: Listener) -> None:
        own = asking(listener)
        assert own.recipe.revision == "tiny"
        assert own.recipe.params == {
            "model": "tiny", "rate": 16000, "prompt": "Please describe the audio in detail.", "max_tokens": 256,
            "temperature": 0.0, "top_p": 1.0, "seed": 0,
        }  # fmt: skip
        assert asking(listener, concurrency=2, audio_part="audio_url").recipe == own.recipe
        others = [
            {"prompt": "?"},
            {"system": "s"},
            {"rate": 8000},
            {"temperature": 1.0},
            {"seed": 1},
            {"revision": "r"},
        ]
        assert own.recipe not in [asking(listener, **other).recipe for other in others]

    def test_what_cannot_be(self, listener: Listener) -> None:
        with pytest.raises(ConfigError, match="there is no audio_part 'mp3'; there is: input_audio, audio_url"):
            asking(listener, audio_part="mp3")
        with pytest.raises(ConfigError, match="write openai-audio:MODEL@http://host:port/v1"):
            create("captioner", "openai-audio:tiny@localhost:8000")
        with pytest.raises(ConfigError, match="names no endpoint; write openai-audio:MODEL@http"):
            create("captioner", "openai-audio:tiny")
