"""Build the sample data set: about 400 short clips of real sounds with captions, authors, licences and folds.

Everything comes from Debian packages, which are downloaded and unpacked into a cache folder, never installed:
recorded one-shots (sonic-pi-samples), field recordings (openttd-opensfx, minetest-data,
minetest-mod-homedecor, minetest-mod-xdecor), telephone prompts (asterisk-core-sounds-*-wav), and recorded
instrument notes played back through a soundfont synthesiser (fluidr3mono-gm-soundfont).

Clips that are cuts or renders of one recording share a group, and a group never crosses folds. For the
soundfont the recording is the sample that it plays for a program, key and velocity, read from the soundfont's
own tables; only notes for which exactly one sample sounds are used, and all notes of a clip play that one.

    python scripts/build_sample.py --cache ~/.cache/andp-sample

The same versions of the packages, soundfile and soxr give the same bytes. Needs Debian's `apt-get` and `dpkg`
for the packages, and `pip` for the synthesiser, which goes into the cache folder too.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
FOLDS = 5
CLIPS_PER_CLASS = 20
"""At most; a class with fewer recordings has fewer clips."""
MAX_SECONDS = 3.0
PEAK = 0.9
"""Louder clips are scaled down to this, so that lossy coding does not exceed full scale."""
SAME_TAKE = 0.85
"""Clips of two names that correlate more than this at their onset count as one recording."""
COMPRESSION = 0.4
"""Of Vorbis as libsndfile counts it: 0 is the best quality, 1 the smallest file."""
MIN_SECONDS = 1.0
"""Shorter recordings are followed by silence up to this length."""

DEBIAN_PACKAGES = {
    "sonic-pi-samples": "3.2.2~repack-8",
    "openttd-opensfx": "1.0.3-2",
    "fluidr3mono-gm-soundfont": "2.315-7",
    "asterisk-core-sounds-en-wav": "1.6.1-1",
    "asterisk-core-sounds-es-wav": "1.6.1-1",
    "asterisk-core-sounds-fr-wav": "1.6.1-1",
    "asterisk-core-sounds-it-wav": "1.6.1-1",
    "asterisk-core-sounds-ru-wav": "1.6.1-1",
    "minetest-data": "5.6.1+dfsg+~1.9.0mt8+dfsg-2",
    "minetest-mod-homedecor": "20210327.1-2",
    "minetest-mod-xdecor": "1.0+dfsg1-2",
}
SYNTHESISER = "tinysoundfont==0.3.7"
COLUMNS = ("path", "label", "caption", "caption_origin", "fold", "license", "author", "source", "group")

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """One clip of the data set, before it has a fold. `group` names the recording that it was made from."""

    label: str
    audio: Audio
    caption: str
    caption_origin: str
    license: str
    author: str
    source: str
    group: str


# --- Fetching and plain audio work ---


def fetch(cache: Path) -> dict[str, Path]:
    """Download and unpack what is not in the cache yet; return the root folder of each package."""
    roots: dict[str, Path] = {}
    for package, version in DEBIAN_PACKAGES.items():
        root = cache / f"{package}_{version}"
        if not root.exists():
            partial = root.with_name(root.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            subprocess.run(["apt-get", "download", f"{package}={version}"], cwd=partial, check=True)
            (deb,) = partial.glob("*.deb")
            subprocess.run(["dpkg", "-x", str(deb), str(partial)], check=True)
            deb.unlink()
            partial.rename(root)
        roots[package] = root
    library = cache / SYNTHESISER.replace("==", "_")
    if not library.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(library), SYNTHESISER], check=True)
    sys.path.insert(0, str(library))
    return roots


def resample(audio: NDArray[Any], rate: int) -> Audio:
    """Mono float32 at `SAMPLE_RATE` from (T,) or (T, channels) at `rate`."""
    mono = audio.mean(axis=1) if audio.ndim == 2 else audio
    changed = soxr.resample(mono.astype(np.float32), rate, SAMPLE_RATE, quality="HQ")
    return np.asarray(changed, dtype=np.float32)


def read(path: Path) -> Audio:
    """A sound file as mono float32 at `SAMPLE_RATE`."""
    return resample(*soundfile.read(path, dtype="float32", always_2d=True))


def finish(audio: Audio) -> Audio:
    """Fit a clip into the length limits, fade a cut end, keep it within full scale; else levels stay."""
    limit = int(MAX_SECONDS * SAMPLE_RATE)
    if len(audio) > limit:
        audio = audio[:limit].copy()
        fade = SAMPLE_RATE // 20
        audio[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    audio = np.pad(audio, (0, max(0, int(MIN_SECONDS * SAMPLE_RATE) - len(audio))))
    return audio / max(1.0, float(np.abs(audio).max()) / PEAK)


def cuts(audio: Audio, seconds: float, most: int) -> list[Audio]:
    """Up to `most` cuts of equal length that do not overlap, none much shorter than `seconds`."""
    count = max(1, min(most, round(len(audio) / (seconds * SAMPLE_RATE))))
    return [np.asarray(part) for part in np.array_split(audio, count)]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items taken evenly from all of `items`, in order."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]


# --- Instruments: recorded notes in a soundfont ---

NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

INSTRUMENTS: dict[str, list[tuple[int, int, int, str]]] = {
    # label: (program, lowest key, highest key, words for the caption); the keys span what players use
    "piano": [(0, 28, 100, "grand piano")],
    "acoustic guitar": [(24, 40, 84, "nylon-string guitar"), (25, 40, 84, "steel-string guitar")],
    "distorted guitar": [(29, 40, 84, "overdriven electric guitar"),
                         (30, 40, 84, "distorted electric guitar")],
    "bass guitar": [(33, 28, 60, "fingered bass guitar"), (34, 28, 60, "picked bass guitar"),
                    (35, 28, 60, "fretless bass guitar")],
    "violin": [(40, 55, 96, "violin")],
    "saxophone": [(64, 56, 87, "soprano saxophone"), (65, 49, 80, "alto saxophone"),
                  (66, 44, 75, "tenor saxophone"), (67, 37, 68, "baritone saxophone")],
    "pizzicato strings": [(45, 36, 88, "pizzicato string section")],
    "cello": [(42, 36, 76, "cello")],
    "trombone": [(57, 40, 72, "trombone")],
    "church organ": [(19, 36, 96, "church organ")],
    "choir": [(52, 41, 81, "choir"), (53, 41, 81, "choir of soft voices")],
    "xylophone": [(13, 65, 108, "xylophone")],
}  # fmt: skip

SUSTAINING = {"violin", "cello", "saxophone", "trombone", "church organ", "choir"}

INSTRUMENT_GAIN = 2.0
"""The soundfont mixes melodic instruments far below its drums; this factor is the same for all of them."""

EFFECTS = [
    # label, program, key, words for the caption
    ("water", 122, 60, "Waves on a sea shore."),
    ("vehicle", 125, 60, "A helicopter flies."),
]

DRUM_KITS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 25, 32, 40, 48)
DRUMS: dict[str, list[tuple[int, str]]] = {
    # label: (key of the drum kit, words for the caption)
    "kick drum": [(35, "kick drum"), (36, "kick drum")],
    "snare drum": [(38, "snare drum"), (40, "snare drum")],
    "cymbal": [(42, "closed hi-hat"), (46, "open hi-hat"), (49, "crash cymbal"), (57, "crash cymbal"),
               (51, "ride cymbal"), (59, "ride cymbal"), (55, "splash cymbal"), (52, "china cymbal")],
    "tom": [(41, "floor tom"), (43, "floor tom"), (45, "low tom"),
            (47, "mid tom"), (48, "mid tom"), (50, "high tom")],
}  # fmt: skip


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a RIFF body. The soundfont read here does not pad chunks of odd length."""
    start = 0
    while start + 8 <= len(data):
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        yield data[start : start + 4], data[start + 8 : start + 8 + size]
        start += 8 + size


class SoundFont:
    """Which recorded sample a soundfont plays for a program, key and velocity (SoundFont 2.04, section 7).

    Only the tables are read. They are the same in SF2 and SF3.
    """

    INSTRUMENT, KEY_RANGE, VELOCITY_RANGE, SAMPLE = 41, 43, 44, 53

    def __init__(self, path: Path) -> None:
        lists = [body for name, body in riff_chunks(path.read_bytes()[12:]) if name == b"LIST"]
        tables = dict(riff_chunks(next(body[4:] for body in lists if body.startswith(b"pdta"))))
        bag = [("generator", "<u2"), ("modulator", "<u2")]
        generator = [("operator", "<u2"), ("amount", "<u2")]
        preset = [("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("unused", "<u4", 3)]
        sample = [("name", "S20"), ("places", "<u4", 5), ("pitch", "u1", 2), ("link", "<u2"), ("type", "<u2")]
        self.presets = np.frombuffer(tables[b"phdr"], preset)
        self.instruments = np.frombuffer(tables[b"inst"], [("name", "S20"), ("bag", "<u2")])
        self.samples = np.frombuffer(tables[b"shdr"], sample)
        self.preset_zones = np.frombuffer(tables[b"pbag"], bag), np.frombuffer(tables[b"pgen"], generator)
        self.instrument_zones = np.frombuffer(tables[b"ibag"], bag), np.frombuffer(tables[b"igen"], generator)

    @staticmethod
    def _zones(
        headers: NDArray[Any], index: int, zones: tuple[NDArray[Any], NDArray[Any]], terminal: int
    ) -> Iterator[dict[int, int]]:
        """Zones as generator -> amount; a first one without `terminal` holds for all the others."""
        bags, generators = zones
        common: dict[int, int] = {}
        for bag in range(headers[index]["bag"], headers[index + 1]["bag"]):
            rows = generators[bags[bag]["generator"] : bags[bag + 1]["generator"]]
            zone = {int(row["operator"]): int(row["amount"]) for row in rows}
            if terminal in zone:
                yield common | zone
            elif bag == headers[index]["bag"]:
                common = zone

    def _plays(self, zone: dict[int, int], key: int, velocity: int) -> bool:
        ranges = ((self.KEY_RANGE, key), (self.VELOCITY_RANGE, velocity))
        limits = [(zone.get(operator, 127 << 8), value) for operator, value in ranges]
        return all((limit & 0xFF) <= value <= (limit >> 8) for limit, value in limits)

    def recordings(self, bank: int, program: int, key: int, velocity: int) -> list[str]:
        """Names of the recordings that sound. The two halves of a stereo pair are one recording."""
        (found,) = np.flatnonzero((self.presets["bank"] == bank) & (self.presets["program"] == program))[:1]
        sounding: dict[str, None] = {}
        for outer in self._zones(self.presets, int(found), self.preset_zones, self.INSTRUMENT):
            if self._plays(outer, key, velocity):
                instrument = outer[self.INSTRUMENT]
                for zone in self._zones(self.instruments, instrument, self.instrument_zones, self.SAMPLE):
                    if self._plays(zone, key, velocity):
                        name = self.samples[zone[self.SAMPLE]]["name"].decode("latin-1")
                        sounding[re.sub(r"\((L|R)?\)?$", "", name).strip()] = None
        return list(sounding)


class Player:
    """Renders notes of a soundfont."""

    RATE = 44_100

    def __init__(self, path: Path) -> None:
        # tinysoundfont imports pyaudio for live output, which rendering does not touch
        sys.modules.setdefault("pyaudio", types.ModuleType("pyaudio"))
        import tinysoundfont

        self.synth = tinysoundfont.Synth(samplerate=self.RATE, gain=-3)
        self.font = self.synth.sfload(str(path))

    def play(self, bank: int, program: int, notes: Iterable[tuple[int, int, float]], gap: float, tail: float) -> Audio:
        """Notes (key, velocity, seconds) in turn, `gap` seconds between them and `tail` seconds to fade."""
        self.synth.sounds_off()
        self.synth.program_select(0, self.font, bank, program, bank == 128)
        parts = []
        for key, velocity, seconds in notes:
            self.synth.noteon(0, key, velocity)
            parts.append(self._generate(seconds))
            self.synth.noteoff(0, key)
            parts.append(self._generate(gap))
        parts.append(self._generate(tail))
        return resample(np.concatenate(parts), self.RATE)

    def _generate(self, seconds: float) -> Audio:
        frames = round(seconds * self.RATE)
        return np.frombuffer(self.synth.generate(frames), dtype=np.float32).reshape(frames, 2).copy()


def soundfont_clip(label: str, audio: Audio, caption: str, place: dict[str, Any], recording: str) -> Clip:
    """A clip rendered from the soundfont; `place` says how, for the source column."""
    package = "fluidr3mono-gm-soundfont"
    source = {"package": package, "version": DEBIAN_PACKAGES[package], "file": "FluidR3Mono_GM.sf3", **place}
    author = "Frank Wen, Michael Cowgill and contributors"
    group = f"fluidr3:{recording}"
    return Clip(label, audio, caption, "metadata", "MIT", author, json.dumps(source), group)


def loudness_word(velocity: int) -> str:
    """How loudly a note was struck, where that stands out."""
    return "softly" if velocity < 70 else "loudly" if velocity > 105 else ""


def instrument_clips(root: Path) -> Iterator[Clip]:
    """Notes of each instrument; a recorded note that is used again is played in another manner."""
    path = root / "usr/share/fluidr3mono-gm-soundfont/FluidR3Mono_GM.sf3"
    font, player = SoundFont(path), Player(path)
    for label, programs in INSTRUMENTS.items():
        keys: dict[tuple[int, str, str], list[int]] = defaultdict(list)
        for program, low, high, words in programs:
            for key in range(low, high + 1):
                sounding = font.recordings(0, program, key, 90)
                # two recordings that sound together would tie their folds together
                if len(sounding) == 1:
                    keys[program, words, sounding[0]].append(key)
        chosen = spread(list(keys.items()), CLIPS_PER_CLASS)
        for n in range(CLIPS_PER_CLASS):
            (program, words, recording), zone = chosen[n % len(chosen)]
            turn = n + n // len(chosen)
            key, velocity = zone[turn % len(zone)], (90, 120, 60, 100, 75)[turn % 5]
            manner, notes, gap, tail = manners(key, velocity, zone, label)[turn % 3]
            if any(font.recordings(0, program, k, v) != [recording] for k, v, _ in notes):
                raise ValueError(f"{label}: {notes} do not all play {recording} alone")
            audio = finish(INSTRUMENT_GAIN * player.play(0, program, notes, gap, tail))
            verb = "sings" if label == "choir" else "plays"
            caption = f"{article(words)} {verb} {manner} {loudness_word(velocity)}".strip() + "."
            place = {"bank": 0, "program": program, "sample": recording, "notes": notes}
            yield soundfont_clip(label, audio, caption, place, recording)
    for label, program, key, caption in EFFECTS:
        (recording,) = font.recordings(0, program, key, 90)
        notes = [(key, 90, 4.0)]
        place = {"bank": 0, "program": program, "sample": recording, "notes": notes}
        for part in cuts(INSTRUMENT_GAIN * player.play(0, program, notes, 0.0, 0.0), 2.0, 2):
            yield soundfont_clip(label, finish(part), caption, place, recording)
    yield from drum_clips(font, player)


def manners(
    key: int, velocity: int, zone: Sequence[int], label: str
) -> list[tuple[str, list[tuple[int, int, float]], float, float]]:
    """Ways to play a recorded note: words, notes (key, velocity, seconds), gap and tail in seconds."""
    name = f"{NOTES[key % 12]}{key // 12 - 1}"
    run = [k for k in zone if k >= key][:3] or [key]
    moved = [(k, velocity, 0.45) for k in run]
    steps = ("one short", "two rising notes from", "three rising notes from")[len(run) - 1] + f" {name}"
    return [
        (f"{'a long' if label in SUSTAINING else 'a single'} {name}", [(key, velocity, 1.9)], 0.0, 0.5),
        (f"{name} four times", [(key, velocity, 0.28)] * 4, 0.14, 0.4),
        (steps, moved, 0.05, 0.7),
    ]


def article(words: str) -> str:
    """The words with their indefinite article, to begin a sentence."""
    return f"{'An' if words[0] in 'aeiou' else 'A'} {words}"


def drum_clips(font: SoundFont, player: Player) -> Iterator[Clip]:
    """Single strokes and short patterns on drums and cymbals, each recording at most twice."""
    for label, places in DRUMS.items():
        found: dict[str, tuple[int, int, str]] = {}
        for kit in DRUM_KITS:
            for key, words in places:
                sounding = font.recordings(128, kit, key, 100)
                if len(sounding) == 1 and not re.search("Timpani|Swirl", sounding[0]):
                    found.setdefault(sounding[0], (kit, key, words))
        for n, (recording, (kit, key, words)) in enumerate(found.items()):
            velocity = (110, 80, 95, 60)[n % 4]
            patterns = [
                (f"{article(words)} is struck once", [(key, velocity, 1.2)], 0.0),
                (f"{article(words)} is struck four times in a row", [(key, velocity, 0.3)] * 4, 0.1),
            ]
            for manner, notes, gap in spread(patterns[:: 1 - 2 * (n % 2)], 2 if len(found) < 9 else 1):
                audio = finish(player.play(128, kit, notes, gap, 0.6))
                caption = f"{manner} {loudness_word(velocity)}".strip() + "."
                place = {"bank": 128, "program": kit, "sample": recording, "notes": notes}
                yield soundfont_clip(label, audio, caption, place, recording)


# --- One-shots: sonic-pi-samples ---

ONE_SHOTS: dict[str, dict[str, str]] = {
    "kick drum": {
        "drum_heavy_kick": "A heavy kick drum is struck once.",
        "drum_bass_hard": "A bass drum is struck hard, once.",
        "drum_bass_soft": "A bass drum is struck softly, once.",
        "bd_ada": "A short kick drum stroke.",
        "bd_boom": "A booming kick drum with a long decay.",
        "bd_fat": "A fat kick drum stroke.",
        "bd_gas": "A kick drum stroke.",
        "bd_haus": "A house-music kick drum stroke.",
        "bd_klub": "A club-music kick drum stroke.",
        "bd_pure": "A pure, deep kick drum stroke.",
        "bd_808": "The kick drum of an analogue drum machine.",
        "bd_tek": "A techno kick drum stroke.",
    },
    "snare drum": {
        "drum_snare_hard": "A snare drum is struck hard, once.",
        "drum_snare_soft": "A snare drum is struck softly, once.",
        "drum_roll": "A drum roll on a snare drum.",
        "sn_dolf": "A snare drum is struck once.",
        "sn_dub": "A dub snare drum stroke.",
        "sn_zome": "A snare drum is struck once.",
        "sn_generic": "A plain snare drum stroke.",
        "elec_snare": "An electronic snare drum stroke.",
        "elec_lo_snare": "A low electronic snare drum stroke.",
        "elec_mid_snare": "A mid-pitched electronic snare drum stroke.",
        "elec_hi_snare": "A high electronic snare drum stroke.",
    },
    "cymbal": {
        "drum_cymbal_closed": "A closed hi-hat is struck once.",
        "drum_cymbal_open": "An open hi-hat is struck once.",
        "drum_cymbal_hard": "A cymbal is struck hard, once.",
        "drum_cymbal_soft": "A cymbal is struck softly, once.",
        "drum_splash_hard": "A splash cymbal is struck hard, once.",
        "drum_splash_soft": "A splash cymbal is struck softly, once.",
        "elec_cymbal": "An electronic cymbal.",
    },
    "tom": {
        "drum_tom_hi_hard": "A high tom is struck hard, once.",
        "drum_tom_hi_soft": "A high tom is struck softly, once.",
        "drum_tom_mid_hard": "A mid tom is struck hard, once.",
        "drum_tom_mid_soft": "A mid tom is struck softly, once.",
        "drum_tom_lo_hard": "A low tom is struck hard, once.",
        "drum_tom_lo_soft": "A low tom is struck softly, once.",
        "elec_fuzz_tom": "A fuzzy electronic tom.",
    },
    "tabla": {},  # every file named tabla_*, see one_shot_clips
    "choir": {"ambi_choir": "A choir sings a sustained chord."},
    "door": {"perc_door": "A door closes."},
}


def one_shot_clips(root: Path) -> Iterator[Clip]:
    """Recorded single sounds; authors come from the list that the package ships with them."""
    package = "sonic-pi-samples"
    folder = root / "usr/share/sonic-pi/samples"
    listing = re.findall(r"`:(\w+)`.*?people/([^/]+)/sounds/(\d+)", (folder / "README.md").read_text())
    credits = {name.replace("_", ""): (user.replace("%20", " "), number) for name, user, number in listing}
    # strokes under a tenth of a second are clicks that no listener would name
    tabla = [p for p in sorted(folder.glob("tabla_*.flac")) if soundfile.info(p).duration > 0.1]
    strokes = {path.stem: path.stem.split("_")[1].rstrip("0123456789") for path in tabla}
    table = ONE_SHOTS | {"tabla": {stem: f"A single stroke, {stroke}, on a tabla." for stem, stroke in strokes.items()}}
    for label, files in table.items():
        for name, caption in spread(list(files.items()), CLIPS_PER_CLASS):
            user, number = credits[name.replace("_", "")]
            source = {"package": package, "version": DEBIAN_PACKAGES[package], "file": f"{name}.flac"}
            source["recording"] = f"freesound.org {number}"
            audio = finish(read(folder / f"{name}.flac"))
            author = f"{user} (freesound.org)"
            group = f"freesound:{number}"
            yield Clip(label, audio, caption, "metadata", "CC0-1.0", author, json.dumps(source), group)


# --- Field recordings: openttd-opensfx, minetest ---

OPENSFX: dict[str, list[tuple[int, int, str]]] = {
    # label: (number in the file, cuts at most, caption; "" takes the title given by the source)
    "vehicle": [
        (8, 2, "Propeller plane starting"), (9, 2, ""), (24, 2, ""), (25, 2, ""), (27, 2, ""), (28, 2, ""),
        (59, 2, ""), (61, 2, ""), (65, 1, ""), (69, 2, "Propeller plane take off"), (71, 2, ""),
    ],
    "water": [(51, 3, "Bubbling water"), (46, 1, "Bubbles")],
}  # fmt: skip
OPENSFX_LICENSES = {
    "Creative Commons Zero 1.0": "CC0-1.0",
    "Creative Commons Attribution 3.0": "CC-BY-3.0",
    "Creative Commons Attribution 3.0 Unported": "CC-BY-3.0",
    "Creative Commons Attribution-ShareAlike 3.0 Unported": "CC-BY-SA-3.0",
}


def opensfx_entries(path: Path) -> list[tuple[str, bytes]]:
    """Description and WAV bytes of each entry of a sound catalogue: offsets and sizes, then name and RIFF."""
    data = path.read_bytes()
    # the highest bit of an offset only says that the catalogue is of the newer kind
    first = int.from_bytes(data[:4], "little") & 0x7FFFFFFF
    offsets = np.frombuffer(data, "<u4", count=first // 4)[::2] & 0x7FFFFFFF
    entries = []
    for offset in offsets.tolist():
        name_end = offset + 1 + data[offset]
        size = int.from_bytes(data[name_end + 4 : name_end + 8], "little") + 8
        entries.append((data[offset + 1 : name_end - 1].decode("latin-1"), data[name_end : name_end + size]))
    return entries


def opensfx_clips(root: Path) -> Iterator[Clip]:
    """Field recordings; titles, authors and licences are inside the catalogue itself."""
    package = "openttd-opensfx"
    file = root / "usr/share/games/openttd/baseset/opensfx/opensfx.cat"
    entries = opensfx_entries(file)
    for label, items in OPENSFX.items():
        for number, most, caption in items:
            description, wav = entries[number]
            title = description.split('"')[1]
            licence = re.findall(r"License: (Creative Commons .*? \d\.\d(?: Unported)?)\.", description)[0]
            credit = re.sub(r'^"[^"]*"\. | *License: .*$', "", description).strip(" .")
            originals = re.findall(r'"([^"]+\.(?:wav|mp3|flac|aif|ogg))"', description) or [title]
            source = {
                "package": package,
                "version": DEBIAN_PACKAGES[package],
                "file": f"opensfx.cat#{number}",
            }
            source["recording"] = " + ".join(originals)
            audio = resample(*soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True))
            origin = "metadata" if caption else "source"
            for part in cuts(audio, 1.5, most):
                yield Clip(label, finish(part), caption or title, origin, OPENSFX_LICENSES[licence], credit,
                           json.dumps(source), f"opensfx:{originals[0]}")  # fmt: skip


GAME, HOMEDECOR, XDECOR = "minetest-data", "minetest-mod-homedecor", "minetest-mod-xdecor"
MODS = {
    GAME: "usr/share/games/minetest/games/minetest_game/mods",
    HOMEDECOR: "usr/share/games/minetest/mods/homedecor",
    XDECOR: "usr/share/games/minetest/mods/xdecor",
}
STEPS: list[tuple[str, int, str, str, str, str]] = [
    # stem, files, surface, author, licence, recording
    ("default_dirt_footstep", 2, "dirt", "Mito551", "CC-BY-SA-3.0", ""),
    ("default_grass_footstep", 3, "grass", "Mito551", "CC-BY-SA-3.0", ""),
    ("default_gravel_footstep", 4, "gravel", "Mito551", "CC-BY-SA-3.0", ""),
    ("default_wood_footstep", 2, "wood", "Mito551", "CC-BY-SA-3.0", ""),
    ("default_hard_footstep", 3, "a hard floor", "Erdie", "CC-BY-3.0", "freesound.org 41579"),
    ("default_metal_footstep", 3, "metal", "mypantsfelldown", "CC0-1.0", "freesound.org 398937"),
    ("default_sand_footstep", 3, "sand", "worthahep88", "CC0-1.0", "freesound.org 319224"),
    ("default_snow_footstep", 5, "snow", "Ryding", "CC0-1.0", "freesound.org 94337"),
    ("default_ice_footstep", 3, "ice", "InspectorJ", "CC-BY-3.0", "freesound.org 416967"),
]
CREDITS: dict[str, tuple[str, str, str]] = {
    # short name: (author, licence, recording where it is known)
    "Yuval": ("Yuval", "CC0-1.0", "freesound.org 197023"),
    "AGFX": ("AGFX", "CC-BY-3.0", "freesound.org AGFX pack 1253"),
    "Vanessa": ("Vanessa Ezekowitz and contributors", "CC-BY-SA-4.0", ""),
    "Audionautics": ("Audionautics", "CC-BY-3.0", "freesound.org 133901"),
    "CGEffex": ("CGEffex, modified by BlockMen", "CC-BY-3.0", ""),
    "bennstir": ("bennstir", "CC-BY-3.0", ""),
    "mhtaylor67": ("mhtaylor67", "CC0-1.0", "freesound.org 126041"),
    "BarkersPinhead": ("BarkersPinhead and rivernile7", "CC-BY-3.0", "freesound.org 274807, 249573"),
    "HazMattt": ("HazMattt", "CC-BY-3.0", "freesound.org 187283"),
    "SkeetMasterFunk69": ("SkeetMasterFunk69", "CC0-1.0", "freesound.org 235546"),
}
RECORDINGS: list[tuple[str, str, str, str, str, int]] = [
    # label, package, file, caption, credit, cuts at most
    ("water", GAME, "env_sounds/sounds/env_sounds_water.1.ogg", "Flowing water", "Yuval", 2),
    ("water", GAME, "env_sounds/sounds/env_sounds_water.2.ogg", "Flowing water", "Yuval", 1),
    ("water", GAME, "env_sounds/sounds/env_sounds_water.3.ogg", "Flowing water", "Yuval", 1),
    ("water", GAME, "default/sounds/default_water_footstep.1.ogg", "Splashing steps in water", "AGFX", 1),
    ("water", GAME, "default/sounds/default_water_footstep.2.ogg", "Splashing steps in water", "AGFX", 1),
    ("water", GAME, "default/sounds/default_water_footstep.3.ogg", "Splashing steps in water", "AGFX", 1),
    ("water", HOMEDECOR, "homedecor_bathroom/sounds/homedecor_shower.ogg", "A shower running", "Vanessa", 3),
    ("water", HOMEDECOR, "homedecor_bathroom/sounds/homedecor_toilet_flush.ogg",
     "A toilet being flushed", "Vanessa", 2),
    ("water", HOMEDECOR, "homedecor_common/sounds/homedecor_faucet.ogg",
     "Water running from a faucet", "Vanessa", 2),
    ("water", XDECOR, "sounds/xdecor_boiling_water.ogg", "Boiling water", "Audionautics", 1),
    ("door", GAME, "doors/sounds/doors_door_open.ogg", "A wooden door opens", "CGEffex", 1),
    ("door", GAME, "doors/sounds/doors_door_close.ogg", "A wooden door closes", "bennstir", 1),
    ("door", GAME, "doors/sounds/doors_fencegate_open.ogg", "A fence gate opens", "mhtaylor67", 1),
    ("door", GAME, "doors/sounds/doors_fencegate_close.ogg", "A fence gate closes", "BarkersPinhead", 1),
    ("door", GAME, "doors/sounds/doors_steel_door_open.ogg", "A steel door opens", "HazMattt", 1),
    ("door", GAME, "doors/sounds/doors_steel_door_close.ogg", "A steel door closes", "HazMattt", 1),
    ("door", GAME, "doors/sounds/doors_glass_door_open.ogg", "A glass door opens", "SkeetMasterFunk69", 1),
    ("door", GAME, "doors/sounds/doors_glass_door_close.ogg", "A glass door closes", "SkeetMasterFunk69", 1),
    ("door", HOMEDECOR, "homedecor_doors_and_gates/sounds/homedecor_door_open.ogg",
     "A door opens", "Vanessa", 1),
    ("door", HOMEDECOR, "homedecor_doors_and_gates/sounds/homedecor_door_close.ogg",
     "A door closes", "Vanessa", 1),
    ("door", HOMEDECOR, "homedecor_doors_and_gates/sounds/homedecor_gate_open_close.ogg",
     "A gate moves", "Vanessa", 1),
]  # fmt: skip


def footstep_clips(root: Path) -> Iterator[Clip]:
    """Walks on one surface, made by placing its recorded single steps one after the other at an even pace."""
    folder = root / MODS[GAME] / "default/sounds"
    for n, (stem, files, surface, author, licence, recording) in enumerate(STEPS):
        steps = [read(folder / f"{stem}.{i}.ogg") for i in range(1, files + 1)]
        for pace, count, words in ((0.62, 4, "slow"), (0.4, 6, "fast")):
            walk = np.zeros(int((pace * (count - 1) + 0.8) * SAMPLE_RATE), dtype=np.float32)
            for i in range(count):
                step = steps[(n + i) % files]
                start = int(i * pace * SAMPLE_RATE)
                walk[start : start + len(step)] += step[: len(walk) - start]
            source = {"package": GAME, "version": DEBIAN_PACKAGES[GAME], "file": f"{stem}.1-{files}.ogg",
                      "made": f"{count} steps, {pace} s apart"}  # fmt: skip
            source |= {"recording": recording} if recording else {}
            caption = f"{words.capitalize()} footsteps on {surface}."
            group = f"minetest:{recording or stem}"
            yield Clip("footsteps", finish(walk), caption, "metadata", licence, author, json.dumps(source), group)


def game_clips(roots: dict[str, Path]) -> Iterator[Clip]:
    """Water and doors from games; authors and licences are those that the packages' own files state."""
    for label, package, file, caption, credit, most in RECORDINGS:
        author, licence, recording = CREDITS[credit]
        source = {"package": package, "version": DEBIAN_PACKAGES[package], "file": file}
        source |= {"recording": recording} if recording else {}
        for part in cuts(read(roots[package] / MODS[package] / file), 1.8, most):
            yield Clip(label, finish(part), f"{caption}.", "metadata", licence, author, json.dumps(source),
                       f"minetest:{recording or Path(file).stem}")  # fmt: skip


# --- Speech: Asterisk's prompts ---

VOICES = {
    # package ending: (folder, who, language, author, licence)
    "en": ("en_US_f_Allison", "woman", "English", "Allison Smith", "CC-BY-SA-3.0"),
    "es": ("es_MX_f_Allison", "woman", "Spanish", "Allison Smith", "CC-BY-SA-3.0"),
    "fr": ("fr_CA_f_June", "woman", "French", "June Wallack", "CC-BY-SA-3.0"),
    "it": ("it_IT_m_Carlo", "man", "Italian", "Carlo Flora", "CC-BY-3.0"),
    "ru": ("ru_RU_f_IvrvoiceRU", "woman", "Russian", "Maxim Topal (ivrvoice.ru)", "CC-BY-3.0"),
}


def speech_clips(roots: dict[str, Path]) -> Iterator[Clip]:
    """Telephone prompts in five languages by four speakers; each prompt is one recording."""
    for language, (folder, who, name, author, licence) in VOICES.items():
        package = f"asterisk-core-sounds-{language}-wav"
        files = sorted((roots[package] / "usr/share/asterisk/sounds" / folder).glob("*.wav"))
        # another stretch of the alphabet for each language, so that the prompts differ
        fit = [path for path in files if 1.5 <= soundfile.info(path).duration <= MAX_SECONDS]
        offset = 3 * list(VOICES).index(language)
        for path in spread(fit[offset : len(fit) - 12 + offset], 4):
            source = {"package": package, "version": DEBIAN_PACKAGES[package]}
            source["file"] = f"{folder}/{path.name}"
            caption = f"A {who} speaks a telephone prompt in {name}."
            yield Clip("speech", finish(read(path)), caption, "metadata", licence, author, json.dumps(source),
                       f"asterisk:{folder}/{path.stem}")  # fmt: skip


# --- Folds and files ---


def join_same_takes(clips: Sequence[Clip]) -> list[Clip]:
    """Give one group to recordings that a package has under two names.

    Half a second from the onset of each clip is compared with that of every other by the largest absolute
    value of their normalised cross-correlation.
    """
    length = SAMPLE_RATE // 2
    starts = np.zeros((len(clips), length), dtype=np.float32)
    for row, clip in zip(starts, clips, strict=True):
        onset = int(np.argmax(np.abs(clip.audio) > 0.02 * np.abs(clip.audio).max()))
        part = clip.audio[onset : onset + length]
        row[: len(part)] = part / np.linalg.norm(part)
    spectra = np.fft.rfft(starts, 2 * length)
    name = {clip.group: clip.group for clip in clips}
    for i, clip in enumerate(clips):
        likeness = np.abs(np.fft.irfft(spectra[i:] * spectra[i].conj(), 2 * length)).max(axis=1)
        for j in (np.flatnonzero(likeness > SAME_TAKE) + i).tolist():
            old, new = name[clips[j].group], name[clip.group]
            name = {group: new if joined == old else joined for group, joined in name.items()}
    return [replace(clip, group=name[clip.group]) for clip in clips]


def assign_folds(labels: Sequence[str], groups: Sequence[str]) -> list[int]:
    """Folds 1 to `FOLDS`: a group is never divided, and each label is spread as evenly as its groups allow.

    Groups are placed from the largest to the smallest, each in the fold that has the fewest clips of its
    label, then the fewest clips altogether.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for label, group in zip(labels, groups, strict=True):
        members[group].append(label)
    per_label: Counter[tuple[str, int]] = Counter()
    per_fold: Counter[int] = Counter()
    chosen: dict[str, int] = {}
    for group in sorted(members, key=lambda g: (-len(members[g]), min(members[g]), g)):
        label = members[group][0]
        fold = min(range(1, FOLDS + 1), key=lambda f: (per_label[label, f], per_fold[f], f))
        chosen[group] = fold
        per_fold[fold] += len(members[group])
        for member in members[group]:
            per_label[member, fold] += 1
    return [chosen[group] for group in groups]


def crc_table() -> list[int]:
    """Checksums of the 256 byte values for Ogg pages: polynomial 0x04C11DB7, most significant bit first."""
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
        table.append(value)
    return table


CRC_TABLE = crc_table()


def encode(audio: Audio, serial: int) -> bytes:
    """Ogg Vorbis bytes that depend on nothing but the audio and `serial`.

    The encoder gives each stream a random serial number; it is replaced, and the checksum of each page made
    anew (RFC 3533, section 6).
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, format="OGG", subtype="VORBIS", compression_level=COMPRESSION)
    data = bytearray(buffer.getvalue())
    start = 0
    while start < len(data):
        segments = data[start + 26]
        end = start + 27 + segments + sum(data[start + 27 : start + 27 + segments])
        data[start + 14 : start + 18] = serial.to_bytes(4, "little")
        data[start + 22 : start + 26] = bytes(4)
        crc = 0
        for byte in data[start:end]:
            crc = (crc << 8 & 0xFFFFFFFF) ^ CRC_TABLE[crc >> 24 ^ byte]
        data[start + 22 : start + 26] = crc.to_bytes(4, "little")
        start = end
    return bytes(data)


def build(cache: Path, out: Path) -> None:
    """Make the data set in `out`, replacing what an earlier run made."""
    roots = fetch(cache)
    clips: list[Clip] = [
        *instrument_clips(roots["fluidr3mono-gm-soundfont"]),
        *one_shot_clips(roots["sonic-pi-samples"]),
        *opensfx_clips(roots["openttd-opensfx"]),
        *footstep_clips(roots[GAME]),
        *game_clips(roots),
        *speech_clips(roots),
    ]
    by_label: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_label[clip.label].append(clip)
    clips = [clip for label in sorted(by_label) for clip in spread(by_label[label], CLIPS_PER_CLASS)]
    clips = join_same_takes(clips)
    folds = assign_folds([clip.label for clip in clips], [clip.group for clip in clips])
    shutil.rmtree(out / "audio", ignore_errors=True)
    numbers: Counter[str] = Counter()
    with (out / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for clip, fold in zip(clips, folds, strict=True):
            numbers[clip.label] += 1
            folder = re.sub(r"\W+", "-", clip.label)
            path = Path("audio") / folder / f"{folder}-{numbers[clip.label]:02d}.ogg"
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(encode(clip.audio, serial=sum(numbers.values())))
            row = {name: getattr(clip, name) for name in COLUMNS if name not in ("path", "fold")}
            writer.writerow({"path": path.as_posix(), "fold": fold, **row})
    soundfont = "fluidr3mono-gm-soundfont"
    terms = (roots[soundfont] / "usr/share/doc" / soundfont / "copyright").read_text(encoding="utf-8")
    (out / "LICENSES.md").write_text(credits_page(clips, terms), encoding="utf-8")
    report(clips, folds, out)


LICENSE_URLS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}


def credits_page(clips: Sequence[Clip], soundfont_terms: str) -> str:
    """The text of LICENSES.md: authors and licence of every recording, by package."""
    lines = [
        "# Where the sounds of the sample data set come from",
        "",
        "Each clip keeps the licence of its recording; `manifest.csv` gives them one by one.",
        "All recordings were changed: mixed to mono, resampled to 16 kHz, cut, padded or scaled down where",
        "needed, and encoded as Ogg Vorbis. Footsteps were placed one after the other; instrument notes were",
        "rendered from recorded samples. The authors named here endorse neither changes nor project.",
        "",
        *(f"- {name}: <{url}>" for name, url in LICENSE_URLS.items()),
        "- MIT: the terms of the soundfont stand at the end of this page",
    ]
    packages: dict[str, Counter[tuple[str, str, str]]] = defaultdict(Counter)
    for clip in clips:
        source = json.loads(clip.source)
        name = "recorded samples of the soundfont" if "sample" in source else source["file"]
        if "recording" in source:
            name += f" (from {source['recording']})"
        packages[f"{source['package']} {source['version']}"][name, clip.license, clip.author] += 1
    for package in sorted(packages):
        lines += ["", f"## {package}", ""]
        lines += ["| recording | licence | author | clips |", "| --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(entry)} | {count} |" for entry, count in sorted(packages[package].items())]
    return "\n".join([*lines, "", "## Terms of the soundfont", "", "```", soundfont_terms.strip(), "```", ""])


def report(clips: Sequence[Clip], folds: Sequence[int], out: Path) -> None:
    """Print the number of clips of each class and fold, and the size of the whole."""
    table = Counter((clip.label, fold) for clip, fold in zip(clips, folds, strict=True))
    for label in dict.fromkeys(clip.label for clip in clips):
        groups = len({clip.group for clip in clips if clip.label == label})
        counts = " ".join(f"{table[label, fold]:3d}" for fold in range(1, FOLDS + 1))
        print(f"{label:20s} {counts}   {sum(c.label == label for c in clips):3d} clips, {groups} recordings")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    seconds = sum(len(clip.audio) for clip in clips) / SAMPLE_RATE
    print(f"{len(clips)} clips, {seconds:.0f} s, {size / 1e6:.2f} MB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloaded packages")
    default = Path(__file__).resolve().parent.parent / "and_platform/_data/sample"
    parser.add_argument("--out", type=Path, default=default, help="folder of the data set")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    build(arguments.cache.expanduser().resolve(), arguments.out)


if __name__ == "__main__":
    main()
