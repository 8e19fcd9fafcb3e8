from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform.core.acoustics import FEATURE_NAMES, AcousticFeatures, describe_features, feature_table
from and_platform.core.describer import (
    MOST_SENTENCES,
    SILENT,
    Thresholds,
    describe,
    describe_many,
    fit,
)

RATE = 16000

# A clip about which there is nothing to say: no aspect but its timbre is remarkable.
PLAIN = AcousticFeatures(
    duration_s=2.0,
    active_s=1.5,
    level_db=-25.0,
    median_frequency_hz=1200.0,
    centroid_hz=2000.0,
    low_share=0.1,
    flatness=0.2,
    harmonicity=0.5,
    pitched_share=0.3,
    pitch_hz=300.0,
    pitch_change_st=0.0,
    pitch_wander_st=0.0,
    attack_s=0.06,
    decay_s=0.4,
    end_level_db=-40.0,
    level_trend_db=-3.0,
    level_variation_db=3.0,
    roughness=0.1,
    n_events=2.0,
    events_per_s=1.0,
    regularity=0.0,
    silence_share=0.2,
    leading_silence_s=0.0,
    trailing_silence_s=0.3,
    n_gaps=0.0,
)
PITCHED = replace(PLAIN, pitched_share=0.95, harmonicity=0.85)
THRESHOLDS = Thresholds(
    {
        "level_db": (-35.0, -25.0, -18.0),
        "centroid_hz": (800.0, 2000.0, 5000.0),
        "active_s": (0.5, 1.5, 4.0),
        "pitch_hz": (150.0, 300.0, 800.0),
        "noise_hz": (300.0, 1200.0, 4000.0),
    }
)

features = st.builds(
    AcousticFeatures,
    **{
        name: st.floats(1e-3, 1.0) if name.endswith(("share", "regularity", "harmonicity", "flatness")) else values
        for name, values in (
            (name, st.floats(-60, 20) if name.endswith(("_db", "_st")) else st.floats(0, 8000) | st.just(0.0))
            for name in FEATURE_NAMES
        )
    },
).map(lambda clip: replace(clip, centroid_hz=clip.centroid_hz + 1, active_s=clip.active_s + 1e-5))


def sentences(clip: AcousticFeatures, thresholds: Thresholds = THRESHOLDS) -> list[str]:
    return [sentence + "." for sentence in describe(clip, thresholds).removesuffix(".").split(". ")]


def test_an_unremarkable_clip_gets_one_sentence() -> None:
    assert describe(PLAIN, THRESHOLDS) == "There is a rushing, roaring noise."
    assert describe(PITCHED, THRESHOLDS).startswith("There is a sustained, singing tone.")


def test_silence() -> None:
    assert describe(describe_features(np.zeros(RATE, np.float32), RATE), THRESHOLDS) == SILENT


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"level_db": -15.0}, "The sound is loud and powerful."),
        ({"level_db": -40.0}, "It is quiet, soft and faint."),
        ({"median_frequency_hz": 5000.0}, "It is high-pitched, thin and piercing."),
        ({"median_frequency_hz": 200.0}, "It is low-pitched, with a deep, heavy bass."),
        ({"centroid_hz": 6000.0}, "It sounds bright, crisp and clear."),
        ({"centroid_hz": 500.0}, "It sounds muffled, dark and dull."),
        ({"harmonicity": 0.2}, "It is noisy, without a clear pitch."),
        ({"harmonicity": 0.2, "level_db": -10.0, "centroid_hz": 6000.0}, "It is harsh, noisy and abrasive."),
        ({"roughness": 0.5}, "It has a rough, rattling, grainy texture."),
        ({"attack_s": 0.005}, "It starts suddenly, with a sharp attack."),
        ({"attack_s": 0.4}, "It builds up gradually, swelling from nothing."),
        ({"decay_s": 1.2}, "It slowly fades away into silence."),
        ({"decay_s": 0.05}, "It dies away quickly after the start."),
        ({"end_level_db": -3.0}, "It ends abruptly, as if cut off."),
        ({"end_level_db": -1.0, "level_trend_db": 15.0}, "It grows louder towards the end."),
        ({"active_s": 0.3}, "It is brief and over in a moment."),
        ({"active_s": 6.0}, "It is long and drawn out."),
        ({"n_events": 1.0}, "It is a single, isolated event."),
        (
            {"n_events": 8.0, "regularity": 0.9, "events_per_s": 3.8},
            "It repeats rhythmically, about 4 times per second.",
        ),
        (
            {"n_events": 8.0, "regularity": 0.9, "events_per_s": 1.1},
            "It pulses slowly, about once per second.",
        ),
        (
            {"n_events": 8.0, "regularity": 0.9, "events_per_s": 0.3},
            "It pulses slowly, once every few seconds.",
        ),
        (
            {"n_events": 30.0, "regularity": 0.9, "events_per_s": 12.0},
            "It flutters, repeating more than 8 times per second.",
        ),
        ({"n_events": 5.0, "n_gaps": 3.0}, "Several separate sounds follow one another irregularly."),
        ({"silence_share": 0.8}, "Most of the clip is silent."),
        ({"n_gaps": 3.0}, "Silent gaps break it up into pieces."),
        ({"leading_silence_s": 1.0}, "It begins late, after an initial silence."),
        (
            {"silence_share": 0.0, "end_level_db": -1.0, "trailing_silence_s": 0.0},
            "It goes on continuously at a steady level.",
        ),
    ],
)
def test_each_property_has_its_sentence(change: dict[str, float], sentence: str) -> None:
    assert sentence not in sentences(PLAIN)
    assert sentence in sentences(replace(PLAIN, **change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pitch_hz": 1000.0}, "It is high-pitched, thin and piercing."),
        ({"pitch_hz": 100.0}, "It is low-pitched, with a deep, heavy bass."),
        ({"pitch_change_st": 5.0}, "It glides upward, rising in pitch."),
        ({"pitch_change_st": -5.0}, "The pitch sinks lower and lower."),
        ({"pitch_wander_st": 0.8}, "It wavers in pitch, like a vibrato."),
        ({"pitch_wander_st": 4.0}, "Its melody jumps up and down in pitch."),
        ({"harmonicity": 0.93}, "Its tone is clear and musical."),
        ({"harmonicity": 0.99, "roughness": 0.0, "centroid_hz": 900.0}, "It is smooth and pure in tone."),
        ({"decay_s": 1.2}, "It rings on and slowly fades out."),
    ],
)
def test_each_property_of_a_pitch_has_its_sentence(change: dict[str, float], sentence: str) -> None:
    assert sentence not in sentences(PITCHED)
    assert sentence in sentences(replace(PITCHED, **change))
    assert "It holds one steady note without change." in sentences(PITCHED)


def test_the_middle_half_is_unremarkable() -> None:
    for level in (-34.9, -25.0, -18.1):
        assert describe(replace(PLAIN, level_db=level), THRESHOLDS) == describe(PLAIN, THRESHOLDS)


def test_words_are_relative_to_the_data_set() -> None:
    clips = [replace(PLAIN, level_db=level) for level in np.linspace(-40, -20, 9)]
    captions = describe_many(clips)
    assert ["loud" in caption for caption in captions] == [False] * 6 + [True] * 3
    assert ["quiet" in caption for caption in captions] == [True] * 3 + [False] * 6
    louder = describe_many([replace(clip, level_db=clip.level_db + 5) for clip in clips])
    assert captions == louder


def test_no_relative_word_without_an_audible_difference() -> None:
    clips = [replace(PLAIN, level_db=-25 + 0.1 * step) for step in range(20)]
    assert set(describe_many(clips)) == {describe(PLAIN, THRESHOLDS)}


def test_no_relative_word_against_common_sense() -> None:
    drums = [replace(PITCHED, pitch_hz=frequency) for frequency in (40.0, 50.0, 60.0, 80.0, 120.0, 160.0)]
    assert not any("high-pitched" in caption for caption in describe_many(drums))
    whistles = [replace(PITCHED, pitch_hz=frequency) for frequency in (1000.0, 1500.0, 2000.0, 3000.0, 4000.0)]
    assert not any("low-pitched" in caption for caption in describe_many(whistles))


def test_thresholds_leave_out_silent_clips_and_pitches_that_are_none() -> None:
    silent = describe_features(np.zeros(RATE, np.float32), RATE)
    table = feature_table([PITCHED, replace(PITCHED, pitch_hz=500.0), PLAIN, silent])
    quantiles = fit(table).quantiles
    assert quantiles["pitch_hz"] == (350.0, 400.0, 450.0)
    assert quantiles["noise_hz"] == (1200.0, 1200.0, 1200.0)
    assert quantiles["level_db"] == (-25.0, -25.0, -25.0)


def test_fit_of_nothing_says_no_relative_word() -> None:
    assert fit(feature_table([])) == Thresholds({})
    assert describe(replace(PITCHED, pitch_hz=5.0), fit(feature_table([PLAIN]))).count("pitched") == 0


def test_thresholds_survive_json() -> None:
    thresholds = fit(feature_table([PLAIN, PITCHED]))
    assert Thresholds.from_dict(json.loads(json.dumps(thresholds.to_dict()))) == thresholds


def test_describe_many_uses_the_thresholds_it_is_given() -> None:
    loud = replace(PLAIN, level_db=-10.0)
    assert describe_many([PLAIN, loud], THRESHOLDS) == [
        describe(PLAIN, THRESHOLDS),
        describe(loud, THRESHOLDS),
    ]


@given(features)
def test_any_clip_gets_few_whole_sentences(clip: AcousticFeatures) -> None:
    caption = describe(clip, THRESHOLDS)
    said = sentences(clip)
    assert caption == describe(clip, THRESHOLDS)
    assert " ".join(said) == caption
    assert 1 <= len(said) <= MOST_SENTENCES
    assert len(set(said)) == len(said)
    # Points of five words or fewer do not survive the cleaning of summaries.
    assert min(len(sentence.split()) for sentence in said) > 5


def sine(frequency: float, duration: float) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(round(duration * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("waveform", "first"),
    [
        (sine(100, 2), "There is a low, steady humming."),
        (sine(440, 2), "There is a sustained, singing tone."),
        (sine(2000, 2), "There is a high, whistling tone."),
        (sine(2000, 0.2), "There is a short, high beep."),
        (
            np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32),
            "There is a hissing, airy noise.",
        ),
        (
            np.cumsum(np.random.default_rng(0).normal(0, 0.01, 2 * RATE)).astype(np.float32),
            "There is a low, rumbling noise.",
        ),
        (
            np.random.default_rng(0).normal(0, 0.3, RATE // 10).astype(np.float32)
            * np.exp(-np.arange(RATE // 10) / 200).astype(np.float32),
            "There is a short, sharp click.",
        ),
    ],
)
def test_plain_sounds_get_their_usual_name(waveform: np.ndarray, first: str) -> None:
    assert sentences(describe_features(waveform, RATE))[0] == first
