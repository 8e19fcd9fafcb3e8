from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from and_platform.backends import audio
from and_platform.backends.audio import decode
from and_platform.config import settings
from and_platform.errors import AudioError
from and_platform.services.measuring import Broken, Job, Measured, measure_file

RATE = 8000
FORMATS = [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]


def noise(seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(0).normal(0, 0.1, (int(seconds * RATE), channels))
    return samples.astype(np.float32)


def write(path: Path, samples: np.ndarray, subtype: str | None = None, rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def reason(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        audio.decode(path)
    assert str(path) not in str(caught.value)
    return str(caught.value)


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_decode_reads_every_bit_depth(tmp_path: Path, subtype: str) -> None:
    samples = noise()[:, 0]
    decoded = audio.decode(write(tmp_path / "a.wav", samples, subtype))
    tolerance = {"PCM_U8": 0.01, "ULAW": 0.05}.get(subtype, 1e-4)
    np.testing.assert_allclose(decoded.waveform, samples, atol=tolerance)
    assert decoded.waveform.dtype == np.float32


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_decode_reads_every_format_and_says_what_it_was(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = write(tmp_path / f"a.{suffix}", noise(channels=2), subtype)
    decoded = audio.decode(path)
    assert (decoded.rate, decoded.channels, decoded.n_frames) == (RATE, 2, RATE)
    assert decoded.waveform.shape == (RATE,)
    assert decoded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.suffix in audio.AUDIO_SUFFIXES


def test_decode_reads_opus(tmp_path: Path) -> None:
    path = tmp_path / "a.opus"
    soundfile.write(path, noise(), 48000, format="OGG", subtype="OPUS")
    assert audio.decode(path).n_frames == RATE


def test_decode_mixes_channels_to_their_mean(tmp_path: Path) -> None:
    samples = noise(channels=3)
    decoded = audio.decode(write(tmp_path / "a.wav", samples, "FLOAT"))
    np.testing.assert_allclose(decoded.waveform, samples.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [4000, 11025, 44100, 192000])
def test_decode_keeps_the_rate(tmp_path: Path, rate: int) -> None:
    assert audio.decode(write(tmp_path / "a.wav", noise(0.1), rate=rate)).rate == rate


def test_longer_than_one_block(tmp_path: Path) -> None:
    samples = noise(20)[:, 0]
    np.testing.assert_array_equal(audio.decode(write(tmp_path / "a.wav", samples, "FLOAT")).waveform, samples)


def test_wav_that_was_streamed_has_no_size_and_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(), "PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert audio.decode(path).n_frames == RATE


def test_chunks_around_the_data_are_no_truncation(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(), "PCM_16")
    content = path.read_bytes()
    odd_chunk = b"note\x03\x00\x00\x00abc\x00"
    path.write_bytes(content[:36] + odd_chunk + content[36:] + odd_chunk)
    assert audio.decode(path).n_frames == RATE


def test_bytes_after_the_end_of_an_ogg_stream_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", noise(), "VORBIS")
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    assert audio.decode(path).n_frames == RATE


def test_missing(tmp_path: Path) -> None:
    assert reason(tmp_path / "a.wav") == "missing: there is no such file"


def test_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    expected = "not a file: a folder, device or pipe stands there"
    assert [reason(tmp_path / "pipe.wav"), reason(tmp_path / "folder.wav")] == [expected] * 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise())
    path.chmod(0)
    assert reason(path) == "no permission: this user may not read the file"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied"), "no permission: this user may not read the file"),
        (OSError(5, "Input/output error"), "unreadable: Input/output error"),
    ],
)
def test_errors_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: str) -> None:
    path = write(tmp_path / "a.wav", noise())

    def refuse(self: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert reason(path) == expected


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.touch()
    assert reason(path) == "empty: the file holds no bytes"


@pytest.mark.parametrize("text", ["this is not sound\n", "\ufeff" + "naïve " * 200, '{"path": "a.wav"}', "ü" * 1023])
def test_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.wav"
    path.write_text(text, encoding="utf-8")
    assert reason(path) == "text: the file holds text, not sound"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(500), b"\xff"])
def test_not_sound(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert reason(path) == "not sound: no known sound format (WAV, FLAC, OGG, MP3)"


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("ogg", "VORBIS")])
def test_no_samples(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = write(tmp_path / f"a.{suffix}", noise(0), subtype)
    assert reason(path) == "no samples: the header is there, but no sound follows it"


@pytest.mark.parametrize(("value", "n"), [(np.nan, 1), (np.inf, 3), (-np.inf, 2)])
def test_not_finite(tmp_path: Path, value: float, n: int) -> None:
    samples = noise()
    samples[100 : 100 + n] = value
    path = write(tmp_path / "a.wav", samples, "FLOAT")
    assert reason(path) == f"not finite: {n} of 8000 samples are NaN or infinite"


def test_wav_cut(tmp_path: Path) -> None:
    path = cut(write(tmp_path / "a.wav", noise(), "PCM_16"), 0.5)
    assert reason(path) == "truncated: the header promises 16000 bytes of sound, the file holds 7978"


def test_ogg_cut_in_a_page(tmp_path: Path) -> None:
    path = cut(write(tmp_path / "a.ogg", noise(3), "VORBIS"), 0.9)
    assert reason(path) == "truncated: the file ends in the middle of an Ogg page"


def test_ogg_cut_between_pages(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", noise(3), "VORBIS")
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"OggS")])
    assert reason(path) == "truncated: the last page of the Ogg stream is missing"


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 1), (44100, 2)])
def test_mp3_cut(tmp_path: Path, rate: int, channels: int) -> None:
    path = write(tmp_path / "a.mp3", noise(10, channels), "MPEG_LAYER_III", rate)
    whole = path.read_bytes()
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    path.write_bytes(tag + whole)
    assert audio.decode(path).channels == channels
    path.write_bytes(tag + whole[: len(whole) // 2])
    expected = f"truncated: the header promises {len(whole)} bytes of sound, the file holds {len(whole) // 2}"
    assert reason(path) == expected


def test_mp3_without_a_header_that_promises_something(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", noise(3), "MPEG_LAYER_III")
    path.write_bytes(path.read_bytes().replace(b"Xing", b"\0" * 4).replace(b"Info", b"\0" * 4))
    assert audio.decode(path).n_frames > 0


def test_mp3_damaged_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", noise(3, 2), "MPEG_LAYER_III", 44100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    assert reason(path).endswith("of the 24000 promised samples could be decoded")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_flac_cut(tmp_path: Path, share: float) -> None:
    path = cut(write(tmp_path / "a.flac", noise(), "PCM_16"), share)
    assert reason(path) == "truncated or damaged: 0 of the 8000 promised samples could be decoded"


def test_flac_damaged_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise(20), "PCM_16")
    content = bytearray(path.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 500] = bytes(500)
    path.write_bytes(content)
    assert reason(path) == "truncated or damaged: 65536 of the 160000 promised samples could be decoded"


def test_ogg_damaged_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", noise(3), "VORBIS")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"OggS", b"xxxx").replace(b"xxxx", b"OggS", 1))
    assert reason(path) == "truncated: the last page of the Ogg stream is missing"


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("mp3", "MPEG_LAYER_III")])
def test_cut_in_the_header(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = write(tmp_path / f"a.{suffix}", noise(), subtype)
    path.write_bytes(path.read_bytes()[:16])
    assert reason(path) == "truncated or damaged: the header cannot be read to its end"


def test_flac_without_a_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise(), "PCM_16")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the last 36 bits before the checksum of STREAMINFO are the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert reason(path) == "no length: the header does not tell how long the sound is; encode the file again"


def test_a_file_that_is_not_the_one_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise())
    sha256 = audio.decode(path).sha256
    assert audio.decode(path, sha256).sha256 == sha256
    write(path, noise(2))
    for read in (lambda: audio.decode(path, sha256), lambda: audio.load(path, RATE, sha256)):
        with pytest.raises(AudioError, match=r"^changed: the file is not the one that was ingested$"):
            read()


def test_load_resamples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(2), "FLOAT")
    waveform, rate = audio.load(path, 16000)
    assert (waveform.shape, waveform.dtype, rate) == ((32000,), np.float32, 16000)
    unchanged, rate = audio.load(path, None)
    np.testing.assert_array_equal(unchanged, noise(2)[:, 0])
    assert rate == RATE


def test_resample_keeps_a_tone_and_drops_what_does_not_fit() -> None:
    def tone(frequency: float, rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * frequency * np.arange(rate) / rate).astype(np.float32)

    inner = slice(500, 7500)
    resampled = audio.resample(tone(440, 44100), 44100, RATE)
    np.testing.assert_allclose(resampled[inner], tone(440, RATE)[inner], atol=1e-3)
    assert np.abs(audio.resample(tone(6000, 44100), 44100, RATE)[inner]).max() < 1e-3


@given(
    st.integers(1, 300),
    st.sampled_from([8000, 16000, 22050, 44100, 48000]),
    st.sampled_from([8000, 16000, 32000]),
)
def test_resample_gives_the_length_it_promises(n: int, rate: int, target: int) -> None:
    resampled = audio.resample(np.ones(n, np.float32), rate, target)
    assert resampled.shape == (max(1, round(n * target / rate)),)
    assert np.isfinite(resampled).all()


def written(path: Path, samples: NDArray[np.float32], rate: int = 8_000, **options: Any) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("ANDP_LONGEST_CLIP", "0.5", "too long: 1 s, the limit is 0 s"),
        ("ANDP_HIGHEST_RATE", "7999", "too high a rate: 8,000 Hz"),
        ("ANDP_MOST_CHANNELS", "1", "too many channels: 2"),
        ("ANDP_LARGEST_CLIP", "63999", "too large: 64,000 bytes after decoding"),
    ],
)
def test_limits_are_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: str, reason: str
) -> None:
    path = written(tmp_path / "a.wav", np.full((8_000, 2), 0.1, np.float32))
    assert decode(path).n_frames == 8_000
    monkeypatch.setenv(limit, value)
    settings.cache_clear()
    try:
        with pytest.raises(AudioError, match=reason):
            decode(path)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_header_may_not_promise_less_than_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_check_limits", counting := Counting())
    decode(written(tmp_path / "a.flac", np.full(200_000, 0.1, np.float32)))
    assert counting.frames == [200_000, 65_536, 131_072, 196_608, 200_000]


class Counting:
    def __init__(self) -> None:
        self.frames: list[int] = []

    def __call__(self, frames: int, channels: int, rate: int) -> None:
        self.frames.append(frames)


def test_a_small_file_that_decodes_to_a_large_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "bomb.flac", np.zeros(12_000_000, np.float32), 48_000)
    assert path.stat().st_size < 60_000
    monkeypatch.setenv("ANDP_LARGEST_CLIP", "40000000")
    settings.cache_clear()
    try:
        with pytest.raises(AudioError, match="too large: 48,000,000 bytes after decoding, the limit is 40,000,000"):
            decode(path)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_samples_that_no_sound_has(tmp_path: Path) -> None:
    for level in (1e20, -3e38):
        path = written(tmp_path / "a.wav", np.full(800, level, np.float32), subtype="FLOAT")
        with pytest.raises(AudioError, match="not sound: a sample is "):
            decode(path)
    scaled = np.full(800, 2.0**31, np.float32)  # whole numbers that a program did not scale
    assert decode(written(tmp_path / "b.wav", scaled, subtype="FLOAT")).waveform.max() == 2.0**31


def _sounds() -> dict[str, bytes]:
    noise = 0.1 * np.random.default_rng(0).standard_normal(2_000).astype(np.float32)
    made = {}
    for kind, options in (
        ("WAV", {}),
        ("FLAC", {}),
        ("OGG", {"subtype": "VORBIS"}),
        ("MP3", {}),
        ("WAV32", {"subtype": "FLOAT"}),
    ):
        buffer = io.BytesIO()
        soundfile.write(buffer, noise, 8_000, format=kind.removesuffix("32"), **options)
        made[kind] = buffer.getvalue()
    return made


SOUNDS = _sounds()


@given(
    st.sampled_from(sorted(SOUNDS)), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=12),
    st.integers(0, 9_000), st.binary(max_size=40),
)  # fmt: skip
@hypothesis.settings(
    max_examples=400, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_whatever_a_file_holds_it_is_sound_or_a_reason(
    tmp_path: Path, kind: str, changes: list[tuple[int, int]], length: int, end: bytes
) -> None:
    content = bytearray(SOUNDS[kind])
    for place, value in changes:
        # Headers are where the harm is: most changes go there.
        content[place % (len(content) if value % 3 == 0 else 64)] = value
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(content[: max(length, 1)]) + end)
    outcome = measure_file(Job(path))
    if isinstance(outcome, Measured):
        numbers = [
            value for value in {**outcome.columns, **outcome.columns["features"]}.values() if isinstance(value, float)
        ]
        assert np.isfinite(numbers).all()
        assert outcome.columns["sample_rate"] <= 1_000_000
    else:
        assert isinstance(outcome, Broken) and outcome.reason and outcome.detail is None
