from __future__ import annotations

import pickle
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from and_platform.core import acoustics
from and_platform.core.acoustics import describe_features, feature_table, measure, median_frequency

RATE = 16000


def seconds(duration: float, rate: int = RATE) -> np.ndarray:
    return np.arange(round(duration * rate)) / rate


def sine(frequency: float, duration: float = 1.0, amplitude: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * seconds(duration, rate))).astype(np.float32)


def noise(duration: float = 1.0, amplitude: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, amplitude, round(duration * RATE)).astype(np.float32)


def glide(semitones: float, duration: float = 2.0) -> np.ndarray:
    t = seconds(duration)
    frequency = 400 * 2 ** (semitones / 12 * t / duration)
    return (0.5 * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)).astype(np.float32)


clips = st.builds(
    lambda n, seed, kind, gain: {
        "noise": np.random.default_rng(seed).normal(0, gain, n),
        "silence": np.zeros(n),
        "constant": np.full(n, gain),
        "clipped": np.clip(np.random.default_rng(seed).normal(0, 100, n), -1, 1),
        "impulse": gain * np.eye(1, n, seed % n)[0],
        "tone": gain * np.sin(np.arange(n) * 0.3),
    }[kind].astype(np.float32),
    st.integers(1, 4000),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["noise", "silence", "constant", "clipped", "impulse", "tone"]),
    st.sampled_from([1e-30, 1e-4, 0.1, 1.0, 1e4]),
)


@pytest.mark.parametrize("amplitude", [0.01, 0.5, 1.0])
def test_amplitudes_of_a_sine(amplitude: float) -> None:
    figures = measure(sine(440, amplitude=amplitude), RATE)
    assert figures.mean_abs_amplitude == pytest.approx(2 / np.pi * amplitude, rel=1e-3)
    assert figures.rms == pytest.approx(amplitude / np.sqrt(2), rel=1e-5)
    assert figures.peak == pytest.approx(amplitude, rel=1e-3)
    assert figures.duration_s == 1.0


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("frequency", [100, 440, 3000])
def test_median_frequency_of_a_sine_is_its_frequency(frequency: float, rate: int) -> None:
    assert median_frequency(sine(frequency, rate=rate), rate) == pytest.approx(frequency, abs=1.0)


def test_median_frequency_of_white_noise_is_half_of_the_band() -> None:
    assert median_frequency(noise(5), RATE) == pytest.approx(RATE / 4, rel=0.02)


def test_median_frequency_is_where_half_of_the_power_lies() -> None:
    two_tones = sine(500, amplitude=0.3) + sine(2000, amplitude=0.2)
    assert median_frequency(two_tones, RATE) == pytest.approx(500, abs=1)
    assert median_frequency(two_tones + sine(2500, amplitude=0.3), RATE) == pytest.approx(2000, abs=1)


def test_median_frequency_counts_both_sides_of_the_spectrum() -> None:
    # Power 1/2 at 2 kHz on each side, 0.36 at the Nyquist frequency, which is there but once.
    at_nyquist = 0.6 * np.cos(np.pi * np.arange(RATE))
    mixed = (sine(2000, amplitude=1.0) + at_nyquist).astype(np.float32)
    assert median_frequency(mixed, RATE) == pytest.approx(2000, abs=1)


def test_median_frequency_ignores_an_offset() -> None:
    assert median_frequency(sine(440) + np.float32(0.4), RATE) == pytest.approx(440, abs=1)
    assert median_frequency(np.full(1000, 0.4, np.float32), RATE) == 0


def test_median_frequency_of_a_clip_of_several_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acoustics, "_FFT_SAMPLES", 1 << 12)
    halves = np.concatenate([sine(500, amplitude=0.2), sine(3000, amplitude=0.5)])
    assert median_frequency(halves, RATE) == pytest.approx(3000, abs=RATE / 2**12)


def test_silence_share_counts_frames() -> None:
    frame = RATE // 40
    figures = measure(np.concatenate([np.zeros(30 * frame), sine(440)[: 10 * frame]]).astype(np.float32), RATE)
    assert figures.silence_share == 0.75


@pytest.mark.parametrize(("dbfs", "share"), [(-59, 0.0), (-61, 1.0)])
def test_silence_floor(dbfs: float, share: float) -> None:
    assert measure(sine(400, amplitude=np.sqrt(2) * 10 ** (dbfs / 20)), RATE).silence_share == share


@given(clips, st.sampled_from([2, 8, 8000, 44100, 192000]))
@settings(max_examples=200, deadline=None)
def test_figures_and_features_are_finite(waveform: np.ndarray, rate: int) -> None:
    with np.errstate(all="raise", under="ignore"):
        values = [*astuple(measure(waveform, rate)), *astuple(describe_features(waveform, rate))]
    assert all(type(value) is float for value in values)
    assert np.isfinite(values).all()


@given(clips.filter(lambda clip: np.ptp(clip) > 0.01), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
@settings(max_examples=50, deadline=None)
def test_gain_scales_amplitudes_and_leaves_the_median_frequency(waveform: np.ndarray, gain: float) -> None:
    before, after = measure(waveform, RATE), measure(waveform * np.float32(gain), RATE)
    assert after.mean_abs_amplitude == pytest.approx(gain * before.mean_abs_amplitude, rel=1e-6)
    assert after.rms == pytest.approx(gain * before.rms, rel=1e-6)
    assert after.peak == gain * before.peak
    assert after.median_frequency_hz == before.median_frequency_hz


def test_silent_clip() -> None:
    features = describe_features(np.zeros(RATE, np.float32), RATE)
    assert (features.silence_share, features.level_db, features.duration_s) == (1, -120, 1)
    assert sum(astuple(features)) == pytest.approx(1 - 120 + 1)


@pytest.mark.parametrize("frequency", [60.0, 110.0, 440.0, 2500.0, 4000.0])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_pitch_of_a_tone(frequency: float, rate: int) -> None:
    features = describe_features(sine(frequency, rate=rate), rate)
    assert features.pitch_hz == pytest.approx(frequency, rel=0.01)
    assert features.pitched_share > 0.95
    assert features.harmonicity > 0.95
    assert abs(features.pitch_change_st) < 0.2
    assert features.level_db == pytest.approx(-9.03, abs=0.1)


def test_pitch_of_a_sawtooth_is_its_fundamental() -> None:
    saw = (0.4 * (2 * (seconds(1) * 130 % 1) - 1)).astype(np.float32)
    features = describe_features(saw, RATE)
    assert features.pitch_hz == pytest.approx(130, rel=0.01)
    assert features.centroid_hz > 5 * features.pitch_hz


@pytest.mark.parametrize("semitones", [-12.0, -5.0, 7.0, 12.0])
def test_pitch_change(semitones: float) -> None:
    features = describe_features(glide(semitones), RATE)
    assert features.pitch_change_st == pytest.approx(semitones, rel=0.1)
    assert features.pitch_wander_st < 0.3


def test_vibrato_wanders() -> None:
    t = seconds(2)
    vibrato = (0.5 * np.sin(2 * np.pi * 440 * t + 6 * np.sin(2 * np.pi * 5 * t))).astype(np.float32)
    features = describe_features(vibrato, RATE)
    assert features.pitch_wander_st > 0.5
    assert abs(features.pitch_change_st) < 0.3


def test_noise_has_no_pitch_and_is_flat() -> None:
    features = describe_features(noise(), RATE)
    assert features.pitched_share == 0
    assert features.harmonicity < 0.3
    assert features.flatness == pytest.approx(0.56, abs=0.02)
    assert features.centroid_hz == pytest.approx(RATE / 4, rel=0.02)
    assert features.n_events == 1


@pytest.mark.parametrize("rate_of_events", [1, 2, 4, 8])
def test_repetition(rate_of_events: int) -> None:
    clicks = np.zeros(4 * RATE, np.float32)
    burst = noise(0.05) * np.exp(-seconds(0.05) / 0.02).astype(np.float32)
    for start in range(RATE // 10, clicks.size - burst.size, RATE // rate_of_events):
        clicks[start : start + burst.size] += burst
    features = describe_features(clicks, RATE)
    assert features.n_events == pytest.approx(4 * rate_of_events, abs=rate_of_events // 8)
    assert features.events_per_s == pytest.approx(rate_of_events, rel=0.05)
    assert features.regularity > 0.7
    if rate_of_events <= 4:
        assert features.n_gaps == 4 * rate_of_events - 1


def test_one_sound_between_silences() -> None:
    clip = np.concatenate([np.zeros(RATE), sine(440), np.zeros(2 * RATE)]).astype(np.float32)
    features = describe_features(clip, RATE)
    assert features.leading_silence_s == pytest.approx(1, abs=0.05)
    assert features.trailing_silence_s == pytest.approx(2, abs=0.05)
    assert features.active_s == pytest.approx(1, abs=0.08)
    assert features.silence_share == pytest.approx(0.75, abs=0.02)
    assert features.level_db == pytest.approx(-9, abs=0.5)
    assert (features.n_gaps, features.n_events) == (0, 1)


@pytest.mark.parametrize("attack", [0.1, 0.5])
def test_attack(attack: float) -> None:
    swell = sine(440, 1.0) * np.minimum(seconds(1.0) / attack, 1).astype(np.float32)
    assert describe_features(swell, RATE).attack_s == pytest.approx(0.7 * attack, abs=0.03)
    assert describe_features(sine(440), RATE).attack_s <= 0.01


@pytest.mark.parametrize("time_constant", [0.05, 0.3])
def test_decay(time_constant: float) -> None:
    fading = sine(440, 2.0) * np.exp(-seconds(2.0) / time_constant).astype(np.float32)
    features = describe_features(fading, RATE)
    assert features.decay_s == pytest.approx(time_constant * np.log(10), abs=0.02)
    assert features.end_level_db < -40
    assert features.level_trend_db < -20


def test_level_trend_of_a_crescendo() -> None:
    rising = sine(440, 3.0) * (seconds(3.0) / 3).astype(np.float32)
    features = describe_features(rising, RATE)
    assert features.level_trend_db > 10
    assert features.end_level_db > -1


def test_roughness_is_fast_modulation() -> None:
    def modulated(rate: float) -> np.ndarray:
        return sine(1000, 2.0) * (1 + np.sin(2 * np.pi * rate * seconds(2.0))).astype(np.float32)

    assert describe_features(modulated(40), RATE).roughness > 0.4
    assert describe_features(modulated(4), RATE).roughness < 0.1


def test_blocks_do_not_change_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = np.concatenate([sine(440), noise(), glide(7)])
    whole = describe_features(clip, RATE)
    monkeypatch.setattr(acoustics, "_BLOCK_FRAMES", 7)
    np.testing.assert_allclose(astuple(describe_features(clip, RATE)), astuple(whole), rtol=1e-4, atol=1e-5)


def test_feature_table_has_a_column_per_feature() -> None:
    features = describe_features(noise(0.2), RATE)
    table = feature_table([features, replace(features, n_events=9.0)])
    assert table.shape == (2, len(acoustics.FEATURE_NAMES))
    assert table[:, acoustics.FEATURE_NAMES.index("n_events")].tolist() == [1, 9]
    assert feature_table([]).shape == (0, len(acoustics.FEATURE_NAMES))


def test_functions_and_results_travel_to_a_process_pool() -> None:
    measure_there, features_there = pickle.loads(pickle.dumps((measure, describe_features)))
    clip = noise(0.2)
    assert pickle.loads(pickle.dumps(measure_there(clip, RATE))) == measure(clip, RATE)
    assert pickle.loads(pickle.dumps(features_there(clip, RATE))) == describe_features(clip, RATE)
