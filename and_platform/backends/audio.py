"""Decoding sound files: bytes to mono float32 samples, with an exact reason where a file cannot be used; and back.

libsndfile accepts a WAV or Ogg file that was cut off and returns what is left of it. A clip of which half is
missing would go on to get a caption, activations and a place among exemplars, so we check what the container
promises against what it holds.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import posixpath
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from and_platform.config import settings
from and_platform.errors import AudioError

Floats = NDArray[np.float32]

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
"""Suffixes, in lower case, of files that are taken for sound."""

EMPTY = "empty: the file holds no bytes"
MISSING = "missing: there is no such file"
CHANGED = "changed: the file is not the one that was ingested"
OUTSIDE = "outside: the path leads out of the data set's folder; it has been changed since it was ingested"
NOT_A_FILE = "not a file: a folder, device or pipe stands there"
NO_PERMISSION = "no permission: this user may not read the file"
TEXT = "text: the file holds text, not sound"
NOT_SOUND = "not sound: no known sound format (WAV, FLAC, OGG, MP3)"
NO_SAMPLES = "no samples: the header is there, but no sound follows it"
NO_LENGTH = "no length: the header does not tell how long the sound is; encode the file again"
BAD_HEADER = "truncated or damaged: the header cannot be read to its end"
CUT_PAGE = "truncated: the file ends in the middle of an Ogg page"
NO_LAST_PAGE = "truncated: the last page of the Ogg stream is missing"

_BLOCK_FRAMES = 1 << 16
_HIGHEST_SAMPLE = 2.0**32
"""Full scale is 1, or 2**31 where a program forgot to scale whole numbers; what is higher still is no sound."""
_UNKNOWN_FRAMES = 1 << 48  # libsndfile reports nearly 2**63 frames for a FLAC that does not state its length
_MP3_HEADERS = (b"Xing", b"Info")
_STREAMED_SIZES = (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)  # written by programs that send a WAV through a pipe


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded file: mono float32 `waveform` [n_frames], full scale 1, and what the file itself was.

    `channels` counts those of the file, before they were mixed; `sha256` is the hex digest of its bytes.
    """

    waveform: Floats
    rate: int
    channels: int
    n_frames: int
    sha256: str


def at(root: str | Path, path: str) -> Path:
    """Where a clip lies, whose row says `path` below `root`.

    Ingest lets no path in that leads out of the root, and a row that has one now was tampered with. Links are not looked
    at again: what they lead to is held to the hash of its content.

    Raises
    ------
    AudioError
        The path leads out of the root.
    """
    if leads_out(path):
        raise AudioError(OUTSIDE)
    return Path(root) / path


def leads_out(path: str) -> bool:
    """Whether a relative path is none, or leads out of the folder that it is relative to; going by its text."""
    normal = posixpath.normpath(path)
    return normal in (".", "..") or normal.startswith(("../", "/"))


def decode(path: Path, sha256: str | None = None) -> Decoded:
    """Read, check and decode one file; several channels become their mean.

    Lossy formats and float files may go a little beyond [-1, 1]; nothing is clipped. `sha256` is what the file held when it
    was ingested, where that matters.

    Raises
    ------
    AudioError
        With the reason and without the path; the kind of reason stands before a colon: missing, not a file,
        no permission, unreadable, empty, text, not sound, truncated, truncated or damaged, no length, too long,
        too large, too high a rate, too many channels, no samples, not finite, changed, cannot be decoded.
    MemoryError
        There is too little memory: no fault of the file, which is within the limits.
    """
    try:
        return _decode(path, sha256)
    except (AudioError, MemoryError):
        raise
    except Exception as error:  # a library's fault is this file's failure, and no other's
        raise AudioError(f"cannot be decoded: {type(error).__name__}: {error}") from error


def _decode(path: Path, sha256: str | None) -> Decoded:
    content = _read_bytes(path)
    if not content:
        raise AudioError(EMPTY)
    if content.startswith((b"RIFF", b"RIFX")):
        _check_wav(content)
    elif content.startswith(b"OggS"):
        _check_ogg(content)
    elif _is_mp3(content):
        _check_mp3(content)
    elif _is_text(content):
        raise AudioError(TEXT)
    waveform, rate, channels = _decode_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise AudioError(CHANGED)
    return Decoded(waveform, rate, channels, waveform.size, digest)


def load(path: Path, rate: int | None, sha256: str | None = None) -> tuple[Floats, int]:
    """The mono waveform [n] of a file at `rate` Hz (None: as it is in the file), and its rate.

    Raises
    ------
    AudioError
        As `decode`.
    """
    decoded = decode(path, sha256)
    if rate is None:
        return decoded.waveform, decoded.rate
    return resample(decoded.waveform, decoded.rate, rate), rate


def resample(waveform: Floats, rate: int, target_rate: int) -> Floats:
    """`waveform` [n] at `rate` Hz brought to `target_rate` Hz by soxr at its HQ setting.

    Gives round(n * target_rate / rate) samples, at least one.
    """
    import soxr

    if rate == target_rate:
        return waveform
    length = max(1, round(waveform.size * target_rate / rate))
    resampled = np.asarray(soxr.resample(waveform, rate, target_rate, quality="HQ"), np.float32)[:length]
    # soxr rounds down and gives nothing at all for the shortest clips.
    return np.pad(resampled, (0, length - resampled.size))


def encode_wav(waveform: Floats, rate: int, subtype: str = "PCM_16") -> bytes:
    """`waveform` [n] as a mono WAV file at `rate` Hz: 16 bits, clipped to full scale, or "FLOAT" as it is."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def _read_bytes(path: Path) -> bytes:
    """The file in memory: hashed and decoded from the same bytes, even if it changes on disk meanwhile."""
    try:
        if path.exists() and not path.is_file():
            raise AudioError(NOT_A_FILE)  # opening a named pipe would wait for ever
        # No format takes more than 8 bytes for a sample, where decoding gives 4; a header comes on top.
        largest = 2 * settings().largest_clip + (1 << 20)
        if path.stat().st_size > largest:
            raise AudioError(f"too large: the file has more than {largest:,} bytes; {_RAISE.format('LARGEST_CLIP')}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise AudioError(MISSING) from error
    except PermissionError as error:
        raise AudioError(NO_PERMISSION) from error
    except OSError as error:
        raise AudioError(f"unreadable: {error.strerror or error}") from error


_RAISE = "cut it into shorter clips, or raise ANDP_{}"


def _check_limits(frames: int, channels: int, rate: int) -> None:
    """Raise AudioError where a sound is beyond the limits that the settings have."""
    limits = settings()
    if rate > limits.highest_rate:
        raise AudioError(
            f"too high a rate: {rate:,} Hz, the limit is {limits.highest_rate:,}; if it is true, raise ANDP_HIGHEST_RATE"
        )
    if channels > limits.most_channels:
        raise AudioError(
            f"too many channels: {channels:,}, the limit is {limits.most_channels:,}; if it is true, raise ANDP_MOST_CHANNELS"
        )
    if frames > limits.longest_clip * rate:
        raise AudioError(
            f"too long: {frames / rate:,.0f} s, the limit is {limits.longest_clip:,.0f} s; {_RAISE.format('LONGEST_CLIP')}"
        )
    if 4 * frames * channels > limits.largest_clip:
        raise AudioError(
            f"too large: {4 * frames * channels:,} bytes after decoding, the limit is {limits.largest_clip:,}; "
            + _RAISE.format("LARGEST_CLIP")
        )


def _mixed(frames: Floats) -> Floats:
    """One channel [n] of a block [n, channels]: their mean.

    Raises
    ------
    AudioError
        A sample is beyond what any sound has.
    """
    if frames.size and (highest := float(np.abs(frames).max())) > _HIGHEST_SAMPLE:
        raise AudioError(f"not sound: a sample is {highest:.3g}, where full scale is 1")
    return np.ascontiguousarray(frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32))


def _decode_bytes(content: bytes) -> tuple[Floats, int, int]:
    """The samples [n_frames], mixed, the rate and the number of channels."""
    import soundfile

    try:
        sound = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        raise AudioError(BAD_HEADER if _has_known_start(content) else NOT_SOUND) from error
    with sound:
        promised = sound.frames
        if promised == 0:
            raise AudioError(NO_SAMPLES)
        if promised > _UNKNOWN_FRAMES:
            raise AudioError(NO_LENGTH)
        _check_limits(promised, sound.channels, sound.samplerate)
        # By blocks, so that a header that promises the moon does not make us allocate it.
        blocks: list[Floats] = []
        decoded = not_finite = 0
        failure: Exception | None = None
        try:
            for block in sound.blocks(_BLOCK_FRAMES, dtype="float32", always_2d=True):
                decoded += len(block)
                _check_limits(decoded, sound.channels, sound.samplerate)  # a header may lie
                if wrong := int(np.count_nonzero(~np.isfinite(block))):
                    not_finite += wrong
                elif not not_finite:
                    blocks.append(_mixed(block))
        except soundfile.LibsndfileError as error:
            failure = error
        if failure is not None or decoded < promised:
            raise AudioError(
                f"truncated or damaged: {decoded} of the {promised} promised samples could be decoded"
            ) from failure
        if not_finite:
            samples = decoded * sound.channels
            raise AudioError(f"not finite: {not_finite} of {samples} samples are NaN or infinite")
        return np.concatenate(blocks), sound.samplerate, sound.channels


def _has_known_start(content: bytes) -> bool:
    """Whether the first bytes are those of a format we read."""
    return content.startswith((b"RIFF", b"RIFX", b"fLaC", b"OggS")) or _is_mp3(content)


def _is_mp3(content: bytes) -> bool:
    """Whether the file begins with an ID3 tag or with the sync bits of a layer III frame."""
    is_frame = len(content) > 1 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2
    return is_frame or content.startswith(b"ID3")


def _is_text(content: bytes) -> bool:
    """Whether the beginning is UTF-8 without control characters, which no sound format is."""
    beginning = content[:1024]
    decoder = codecs.getincrementaldecoder("utf-8")()  # a character may be cut at the end of the beginning
    try:
        text = decoder.decode(beginning)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text.lstrip("\ufeff"))


def _truncated(promised: int, held: int) -> AudioError:
    return AudioError(f"truncated: the header promises {promised} bytes of sound, the file holds {held}")


def _check_wav(content: bytes) -> None:
    """Raise AudioError where the data chunk is missing or states more bytes than follow it."""
    endian = ">" if content.startswith(b"RIFX") else "<"
    position = 12
    while position + 8 <= len(content):
        name = content[position : position + 4]
        (size,) = struct.unpack_from(f"{endian}I", content, position + 4)
        position += 8
        if name == b"data":
            held = len(content) - position
            if size > held and size not in _STREAMED_SIZES:
                raise _truncated(size, held)
            return
        position += size + size % 2
    raise AudioError(BAD_HEADER)


def _check_ogg(content: bytes) -> None:
    """Raise AudioError where a page is cut, or the last page is not marked as the end of its stream."""
    position = 0
    ended = False
    while content.startswith(b"OggS", position):
        if position + 27 > len(content):
            raise AudioError(CUT_PAGE)
        flags, n_segments = content[position + 5], content[position + 26]
        sizes = content[position + 27 : position + 27 + n_segments]
        position += 27 + n_segments + sum(sizes)
        if position > len(content) or len(sizes) < n_segments:
            raise AudioError(CUT_PAGE)
        ended = bool(flags & 0x04)
    # What follows the marked end (a tag that some program appended) does no harm.
    if not ended:
        raise AudioError(NO_LAST_PAGE)


def _check_mp3(content: bytes) -> None:
    """Raise AudioError where the header that most encoders write states more bytes than there are."""
    start = 0
    if content.startswith(b"ID3") and len(content) >= 10:
        size = 0
        for byte in content[6:10]:  # seven bits each
            size = size << 7 | byte
        start = 10 + size
    # The header stands behind the side information of the first frame, whose size depends on the channels.
    places = (start + 13, start + 21, start + 36)
    found = next((at for at in places if content[at : at + 4] in _MP3_HEADERS), None)
    if found is None or len(content) < found + 16:
        return
    flags, _, promised = struct.unpack_from(">III", content, found + 4)
    has_frames_and_bytes = flags & 0b11 == 0b11
    held = len(content) - start
    if has_frames_and_bytes and promised > held:
        raise _truncated(promised, held)
