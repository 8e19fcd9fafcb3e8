"""Captions from acoustics alone: how a clip sounds, never what makes the sound.

Words such as "loud" or "bright" are relative to the probing dataset: `fit` takes the quantiles of its
features. Each aspect of a sound has its own sentence, always the same for the same property, so that what
several clips share can be read off their captions. An aspect that is unremarkable is passed over.

The wording serves what comes after. Every sentence has more than five words, since shorter points are dropped
from summaries. Sentences on opposite properties are phrased differently, so that a sentence encoder
(all-MiniLM-L6) puts them below the calibration threshold of 0.7: "It is loud." and "It is quiet." are at 0.78
and would cancel each other out.

A relative word also needs a difference that can be heard (`_AUDIBLE`), and never goes against common sense:
in a collection of bass drums none is high-pitched (`_LIMITS`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from and_platform.core.acoustics import FEATURE_NAMES, AcousticFeatures, feature_table

VERSION = "1"
"""Part of the recipe of the captions: raised whenever the same features may give another text."""

QUANTILES = (0.25, 0.5, 0.75)

MOST_SENTENCES = 7

SILENT = "The clip is silent from beginning to end."

_PITCHED = 0.6  # share of the power that has a pitch, from which the sound as a whole does
_NOISY = 0.45  # harmonicity below which no tone is heard
_SHORT_S = 0.6
_CHORD_FLATNESS = 0.02  # several tones at once have no period in common, but leave gaps in the spectrum
_MIXTURE_FLATNESS = 0.12
_MIDDLE_PITCH_HZ = (160.0, 900.0)
_MIDDLE_NOISE_HZ = (450.0, 3000.0)

_LOGARITHMIC = frozenset({"centroid_hz", "pitch_hz", "noise_hz", "active_s"})

_AUDIBLE = {
    "level_db": 3.0,
    "centroid_hz": math.log(1.25),
    "pitch_hz": math.log(1.2),
    "noise_hz": math.log(1.4),
    "active_s": math.log(1.5),
}
"""Least distance from the median at which a relative word is said; of the logarithm for `_LOGARITHMIC`."""

_LIMITS = {
    "level_db": (-14.0, -45.0),
    "centroid_hz": (4000.0, 900.0),
    "pitch_hz": (400.0, 300.0),
    "noise_hz": (2500.0, 1000.0),
    "active_s": (2.0, 0.7),
}
"""The value above which nothing is called low, and that below which nothing is called high."""


@dataclass(frozen=True)
class Thresholds:
    """Quantiles (QUANTILES) over a probing dataset, by name of the feature; not there if no clip has it."""

    quantiles: Mapping[str, tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; part of the recipe of the captions."""
        return {name: list(values) for name, values in self.quantiles.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Thresholds:
        """The inverse of `to_dict`."""
        return cls({name: tuple(float(value) for value in row) for name, row in values.items()})

    def grade(self, name: str, value: float) -> int:
        """Where a value stands in the data set: -1 low, 0 unremarkable, 1 high."""
        if name not in self.quantiles:
            return 0
        low, middle, high = self.quantiles[name]
        never_low, never_high = _LIMITS[name]
        distance = _scale(name, value) - _scale(name, middle)
        if abs(distance) < _AUDIBLE[name]:
            return 0
        if value <= low and value <= never_low:
            return -1
        if value >= high and value >= never_high:
            return 1
        return 0


def fit(features: ArrayLike) -> Thresholds:
    """Quantiles over a data set, without its silent clips.

    Parameters
    ----------
    features : float [n_clips, n_features], columns as FEATURE_NAMES (see `feature_table`); n_clips may be 0
    """
    table = np.asarray(features, np.float64).reshape(-1, len(FEATURE_NAMES))
    column = {name: table[:, index] for index, name in enumerate(FEATURE_NAMES)}
    heard = column["silence_share"] < 1
    pitched = column["pitched_share"] >= _PITCHED
    populations = {
        "level_db": column["level_db"][heard],
        "centroid_hz": column["centroid_hz"][heard],
        "active_s": column["active_s"][heard],
        "pitch_hz": column["pitch_hz"][heard & pitched],
        "noise_hz": column["median_frequency_hz"][heard & ~pitched],  # what a sound without pitch has in its place
    }
    return Thresholds(
        {name: tuple(np.quantile(values, QUANTILES).tolist()) for name, values in populations.items() if values.size}
    )


def describe(features: AcousticFeatures, thresholds: Thresholds) -> str:
    """One to MOST_SENTENCES sentences on how the clip sounds, the most telling first."""
    if features.silence_share >= 1:
        return SILENT
    sentences = (aspect(features, thresholds) for aspect in _ASPECTS)
    return " ".join([sentence for sentence in sentences if sentence][:MOST_SENTENCES])


def describe_many(features: Sequence[AcousticFeatures], thresholds: Thresholds | None = None) -> list[str]:
    """A description per clip; relative to these clips themselves where no thresholds are given."""
    if thresholds is None:
        thresholds = fit(feature_table(features))
    return [describe(clip, thresholds) for clip in features]


def _scale(name: str, value: float) -> float:
    return math.log(max(value, 1e-3)) if name in _LOGARITHMIC else value


def _is_pitched(clip: AcousticFeatures) -> bool:
    return clip.pitched_share >= _PITCHED


def _is_noisy(clip: AcousticFeatures) -> bool:
    # The lowest sounds change too fast for their period to be found, without being noise.
    return not _is_pitched(clip) and clip.harmonicity < _NOISY and clip.low_share < 0.6


def _is_continuous(clip: AcousticFeatures) -> bool:
    """Sound from one end to the other, without a break or a fall."""
    return (
        clip.silence_share < 0.1
        and clip.n_gaps == 0
        and clip.level_variation_db < 5
        and clip.end_level_db > -15
        and clip.active_s > 0.5
    )


def _is_repeating(clip: AcousticFeatures) -> bool:
    return clip.n_events >= 3 and clip.regularity >= 0.5


def _is_series(clip: AcousticFeatures) -> bool:
    return clip.n_events >= 3 and (clip.n_gaps >= 2 or clip.level_variation_db >= 5)


def _is_struck(clip: AcousticFeatures) -> bool:
    return clip.attack_s <= 0.03 and clip.level_trend_db < -10


def _place(height: float, middle: tuple[float, float]) -> int:
    """0 low, 1 middle, 2 high."""
    low, high = middle
    return 0 if height < low else 1 if height <= high else 2


def _timbre(clip: AcousticFeatures, thresholds: Thresholds) -> str:
    if _is_series(clip):
        kind = "series"
    elif clip.active_s < _SHORT_S:
        kind = "short"
    else:
        kind = "struck" if _is_struck(clip) else "sustained"
    if _is_pitched(clip):
        if kind == "sustained" and clip.harmonicity >= 0.85 and clip.centroid_hz > 10 * clip.pitch_hz:
            return "There is a harsh, buzzing tone."
        if kind == "series" and clip.pitch_wander_st + abs(clip.pitch_change_st) >= 2 and clip.pitch_hz < 450:
            return "There is a lively, syllabic flow of tones."
        return _TONES[kind][_place(clip.pitch_hz, _MIDDLE_PITCH_HZ)]
    # Half the power of a snare drum lies low, but nobody calls it dull: the median alone will not do.
    height = math.sqrt(clip.median_frequency_hz * clip.centroid_hz)
    place = _place(height, _MIDDLE_NOISE_HZ)
    if clip.harmonicity >= _NOISY and kind in _MIXTURES:
        if clip.flatness < _CHORD_FLATNESS and clip.low_share < 0.6 and kind != "short":
            return "There is a blend of several tones."
        if place == 1 and clip.flatness < _MIXTURE_FLATNESS:
            return _MIXTURES[kind]
    return _NOISES[kind][place]


_TONES = {
    "series": (
        "There is a succession of low notes.",
        "There is a succession of several notes.",
        "There is a succession of high beeps.",
    ),
    "short": (
        "There is a short, deep thump.",
        "There is a short, resonant tone.",
        "There is a short, high beep.",
    ),
    "struck": (
        "There is a deep, booming resonance.",
        "There is a mellow tone that decays.",
        "There is a high, shimmering ring that lingers.",
    ),
    "sustained": (
        "There is a low, steady humming.",
        "There is a sustained, singing tone.",
        "There is a high, whistling tone.",
    ),
}

_MIXTURES = {
    "short": "There is a short, hollow knocking sound.",
    "struck": "There is a clanging sound that decays.",
    "sustained": "There is a mixture of tone and noise.",
}

_NOISES = {
    "series": (
        "There is a series of dull thuds.",
        "There is a series of knocking sounds.",
        "There is a series of sharp clicks.",
    ),
    "short": (
        "There is a short, dull thud.",
        "There is a short knocking or slapping noise.",
        "There is a short, sharp click.",
    ),
    "struck": (
        "There is a deep, heavy boom.",
        "There is a crashing, clattering noise.",
        "There is a sizzling, metallic noise.",
    ),
    "sustained": (
        "There is a low, rumbling noise.",
        "There is a rushing, roaring noise.",
        "There is a hissing, airy noise.",
    ),
}


def _course(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    if _is_repeating(clip):
        if clip.events_per_s < 1.5:
            return _SLOW_REPETITIONS[round(clip.events_per_s)]
        n = round(clip.events_per_s)
        if n > 8:
            return "It flutters, repeating more than 8 times per second."
        return f"It repeats rhythmically, about {n} times per second."
    if _is_continuous(clip):
        return "It goes on continuously at a steady level."
    if _is_series(clip):
        return "Several separate sounds follow one another irregularly."
    return None


_SLOW_REPETITIONS = (
    "It pulses slowly, once every few seconds.",
    "It pulses slowly, about once per second.",
)


def _singleness(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    is_single = clip.n_events == 1 and clip.n_gaps == 0 and not _is_continuous(clip)
    return "It is a single, isolated event." if is_single else None


def _loudness(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    return _LOUDNESS[thresholds.grade("level_db", clip.level_db)]


_LOUDNESS = {-1: "It is quiet, soft and faint.", 0: None, 1: "The sound is loud and powerful."}


def _pitch(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    if _is_pitched(clip):
        return _PITCH[thresholds.grade("pitch_hz", clip.pitch_hz)]
    return _PITCH[thresholds.grade("noise_hz", clip.median_frequency_hz)]


_PITCH = {
    -1: "It is low-pitched, with a deep, heavy bass.",
    0: None,
    1: "It is high-pitched, thin and piercing.",
}


def _movement(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    if not _is_pitched(clip) or clip.active_s < 0.15:
        return None
    if abs(clip.pitch_change_st) >= 2 and abs(clip.pitch_change_st) > 2 * clip.pitch_wander_st:
        rises = clip.pitch_change_st > 0
        return "It glides upward, rising in pitch." if rises else "The pitch sinks lower and lower."
    if clip.pitch_wander_st >= 2.5:
        return "Its melody jumps up and down in pitch."
    if clip.pitch_wander_st >= 0.4:
        return "It wavers in pitch, like a vibrato."
    if clip.active_s >= 0.5 and abs(clip.pitch_change_st) < 1:
        return "It holds one steady note without change."
    return None


def _brightness(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    return _BRIGHTNESS[thresholds.grade("centroid_hz", clip.centroid_hz)]


_BRIGHTNESS = {-1: "It sounds muffled, dark and dull.", 0: None, 1: "It sounds bright, crisp and clear."}


def _onset(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    if _is_continuous(clip):
        return None
    if clip.attack_s <= 0.02:
        return "It starts suddenly, with a sharp attack."
    if clip.attack_s >= 0.15 and clip.n_events < 3:
        return "It builds up gradually, swelling from nothing."
    return None


def _ending(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    if _is_continuous(clip):
        return None
    if clip.end_level_db > -12:
        grows = clip.level_trend_db > 9
        return "It grows louder towards the end." if grows else "It ends abruptly, as if cut off."
    if clip.n_events >= 3:
        return None
    if clip.decay_s >= 0.7:
        return "It rings on and slowly fades out." if _is_pitched(clip) else "It slowly fades away into silence."
    if clip.decay_s <= 0.15:
        return "It dies away quickly after the start."
    return None


def _texture(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    if _is_noisy(clip):
        is_loud = thresholds.grade("level_db", clip.level_db) > 0
        is_bright = thresholds.grade("centroid_hz", clip.centroid_hz) > 0
        if is_loud and is_bright:
            return "It is harsh, noisy and abrasive."
        return "It is noisy, without a clear pitch."
    if clip.roughness >= 0.3 and clip.active_s >= 0.5 and clip.low_share < 0.5:
        return "It has a rough, rattling, grainy texture."
    has_few_overtones = clip.harmonicity >= 0.97 and clip.centroid_hz < 6 * clip.pitch_hz
    if _is_pitched(clip) and has_few_overtones and clip.roughness < 0.1 and clip.attack_s > 0.02:
        return "It is smooth and pure in tone."
    if _is_pitched(clip) and clip.harmonicity >= 0.9 and clip.pitch_wander_st < 1.5:
        return "Its tone is clear and musical."
    return None


def _length(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    return _LENGTH[thresholds.grade("active_s", clip.active_s)]


_LENGTH = {-1: "It is brief and over in a moment.", 0: None, 1: "It is long and drawn out."}


def _silence(clip: AcousticFeatures, thresholds: Thresholds) -> str | None:
    if clip.silence_share >= 0.6:
        return "Most of the clip is silent."
    if clip.n_gaps >= 2:
        return "Silent gaps break it up into pieces."
    if clip.leading_silence_s >= 0.5:
        return "It begins late, after an initial silence."
    return None


_ASPECTS: tuple[Callable[[AcousticFeatures, Thresholds], str | None], ...] = (
    _timbre,
    _course,
    _loudness,
    _pitch,
    _brightness,
    _movement,
    _texture,
    _silence,
    _ending,
    _onset,
    _length,
    _singleness,
)
"""In the order in which they are said; what comes after MOST_SENTENCES is left out."""
