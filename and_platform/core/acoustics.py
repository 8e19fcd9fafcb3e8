"""What can be measured of a clip: a few figures for the database, and features for the acoustic describer.

All functions take mono samples with full scale 1 and give finite numbers for any clip, silent or one sample
long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SILENCE_FLOOR_DBFS = -60.0
"""Frames whose RMS is below this count as silent."""

LOWEST_DB = -120.0
"""Stands for the level of digital silence."""

_SILENCE_FRAME_S = 0.025
_FFT_SAMPLES = 1 << 20  # bounds the memory of the spectrum of an hour of sound; 24 s at 44.1 kHz

_FRAME_S, _HOP_S = 0.064, 0.016  # three periods of the lowest pitch; the rate of onset strength
_BLOCK_FRAMES = 512
_ENVELOPE_S = 0.005
_RELATIVE_FLOOR_DB = 45.0  # what is that far below the loudest frame is heard as silence beside it
_PITCH_HZ = (40.0, 5000.0)
_VOICED = 0.75  # autocorrelation at the period from which a frame counts as pitched
_VALLEY = 0.3
_OCTAVE_COST = 0.03  # prefers the shortest of equally good periods [Boersma 1993]
_LOW_HZ = 200.0
_FLATNESS_HZ = (100.0, 8000.0)
_N_BANDS = 32


@dataclass(frozen=True)
class ClipAcoustics:
    """Figures of one clip. Amplitudes are linear, full scale 1."""

    duration_s: float
    mean_abs_amplitude: float
    rms: float
    peak: float
    median_frequency_hz: float
    silence_share: float


@dataclass(frozen=True)
class AcousticFeatures:
    """How a clip sounds, in figures. Silence here means below -60 dBFS or 45 dB below the loudest frame.

    Spectral and level features are means over the frames that are not silent, weighted by their power. All
    are 0 for a silent clip, but `duration_s`, `silence_share` (1) and `level_db` (-120).
    """

    duration_s: float
    active_s: float
    """From the first frame that is not silent to the last."""
    level_db: float
    """RMS of the frames that are not silent, dBFS."""
    median_frequency_hz: float
    centroid_hz: float
    """Spectral centroid of magnitudes: brightness."""
    low_share: float
    """Share of the power below 200 Hz."""
    flatness: float
    """Geometric over arithmetic mean of the power between 100 Hz and 8 kHz: 0 a tone, 0.56 white noise."""
    harmonicity: float
    """Height of the highest peak of the normalised autocorrelation: 1 periodic, about 0.2 white noise."""
    pitched_share: float
    """Share of the power in frames that have a pitch."""
    pitch_hz: float
    """Median fundamental of these frames, 0 without any."""
    pitch_change_st: float
    """Semitones from the beginning to the end of a line fitted to the pitch: above 0 rising."""
    pitch_wander_st: float
    """Standard deviation of the pitch around that line, semitones."""
    attack_s: float
    """From 10 % to 80 % of the highest level."""
    decay_s: float
    """From the last time at half the highest level to the last at 5 % of it, or to the end of the clip."""
    end_level_db: float
    """Level of the last 20 ms relative to the highest."""
    level_trend_db: float
    """Level of the last third of the active part over that of the first."""
    level_variation_db: float
    """Standard deviation of the level, over 80 ms, within the active part."""
    roughness: float
    """Depth of the envelope's modulation between 20 and 90 Hz."""
    n_events: float
    """Onsets."""
    events_per_s: float
    """Rate of a regular repetition; where there is none, onsets per second of the active part."""
    regularity: float
    """Height of the peak of the autocorrelation of onset strength: 1 for an exact repetition."""
    silence_share: float
    leading_silence_s: float
    trailing_silence_s: float
    n_gaps: float
    """Silences of 100 ms or more inside the active part."""


FEATURE_NAMES = tuple(field.name for field in fields(AcousticFeatures))
"""The columns of `feature_table`."""


def feature_table(features: Sequence[AcousticFeatures]) -> Doubles:
    """Features of many clips as [n_clips, n_features], columns as FEATURE_NAMES."""
    return np.array([astuple(clip) for clip in features], np.float64).reshape(len(features), len(FEATURE_NAMES))


def measure(waveform: Floats, rate: int) -> ClipAcoustics:
    """The figures that the database keeps of a clip.

    `mean_abs_amplitude` is the mean of the absolute samples, and `median_frequency_hz` the measure of the
    same name, both as in appendix C and figure 8 of the AND paper. `silence_share` is the share of 25 ms
    frames (the last may be shorter) whose RMS around the clip's mean is below SILENCE_FLOOR_DBFS.

    Parameters
    ----------
    waveform : float32 [n_samples], mono, full scale 1; n_samples > 0
    rate : Hz
    """
    samples = np.asarray(waveform, np.float64)
    magnitudes = np.abs(samples)
    frame = max(1, round(_SILENCE_FRAME_S * rate))
    silent = _frame_power(samples - samples.mean(), frame) < 10 ** (SILENCE_FLOOR_DBFS / 10)
    return ClipAcoustics(
        duration_s=samples.size / rate,
        mean_abs_amplitude=float(magnitudes.mean()),
        rms=float(np.sqrt(np.square(samples).mean())),
        peak=float(magnitudes.max()),
        median_frequency_hz=median_frequency(waveform, rate),
        silence_share=float(silent.mean()),
    )


def median_frequency(waveform: Floats, rate: int) -> float:
    """The frequency in Hz below which half of the spectral power lies; 0 for a clip that is constant.

    The power spectrum is that of one FFT over the whole clip without a window, the mean removed (clips
    beyond 2**20 samples: the sum of those of successive stretches of that length). The answer is the first
    bin at which the cumulative power, both sides of the spectrum counted, reaches half.
    """
    import scipy.fft

    samples = np.asarray(waveform, np.float32)
    samples = samples - samples.mean(dtype=np.float64).astype(np.float32)
    # The power spectrum does not care about scale, squares of tiny samples do.
    highest = np.abs(samples).max()
    if highest <= np.finfo(np.float32).tiny:
        return 0.0
    samples = samples / highest
    n_fft = scipy.fft.next_fast_len(min(samples.size, _FFT_SAMPLES), real=True)
    power = np.zeros(n_fft // 2 + 1)
    for start in range(0, samples.size, n_fft):
        power += _power(scipy.fft.rfft(samples[start : start + n_fft], n_fft))
    power[0] = 0  # each stretch has a mean of its own
    power[1 : (n_fft + 1) // 2] *= 2
    cumulative = np.cumsum(power)
    return float(np.searchsorted(cumulative, cumulative[-1] / 2) * rate / n_fft)


def describe_features(waveform: Floats, rate: int) -> AcousticFeatures:
    """How a clip sounds: level, pitch, brightness, noisiness, shape in time, repetition and silence.

    Parameters
    ----------
    waveform : float32 [n_samples], mono, full scale 1; n_samples > 0
    rate : Hz
    """
    import scipy.ndimage

    samples = np.asarray(waveform, np.float32)
    duration = samples.size / rate
    samples = samples - samples.mean(dtype=np.float64).astype(np.float32)
    frames = _analyse_frames(samples, rate)
    floor_db = max(SILENCE_FLOOR_DBFS, float(frames.level_db.max()) - _RELATIVE_FLOOR_DB)
    active = frames.level_db >= floor_db
    if not active.any():
        return _silent(duration)

    power = np.where(active, 10 ** (frames.level_db / 10), 0.0)
    weight = power / power.sum()
    step = min(_HOP_S, duration)
    first, last = np.flatnonzero(active)[[0, -1]]
    span = slice(first, last + 1)
    active_s = float(min(duration, (last + 1 - first) * step))
    pitched_share, pitch, change, wander = _pitch_movement(frames, weight, step)
    attack_s, decay_s, end_level_db, roughness = _envelope_shape(samples, rate)
    n_events, events_per_s, regularity = _repetition(frames, active_s, step)
    levels = scipy.ndimage.uniform_filter1d(frames.level_db[span].clip(floor_db), 5)
    third = max(1, levels.size // 3)
    quiet_runs, n_runs = scipy.ndimage.label(~active[span])
    run_lengths = np.bincount(quiet_runs, minlength=1)[1:] if n_runs else np.zeros(0)
    return AcousticFeatures(
        duration_s=duration,
        active_s=active_s,
        level_db=float(10 * np.log10(power[active].mean())),
        median_frequency_hz=median_frequency(samples, rate),
        centroid_hz=float(weight @ frames.centroid_hz),
        low_share=float(weight @ frames.low_share),
        flatness=float(weight @ frames.flatness),
        harmonicity=float(weight @ frames.harmonicity),
        pitched_share=pitched_share,
        pitch_hz=pitch,
        pitch_change_st=change,
        pitch_wander_st=wander,
        attack_s=attack_s,
        decay_s=decay_s,
        end_level_db=end_level_db,
        level_trend_db=float(levels[-third:].mean() - levels[:third].mean()),
        level_variation_db=float(levels.std()),
        roughness=roughness,
        n_events=float(n_events),
        events_per_s=events_per_s,
        regularity=regularity,
        silence_share=float(1 - active.mean()),
        leading_silence_s=float(first * step),
        trailing_silence_s=float((active.size - 1 - last) * step),
        n_gaps=float(np.count_nonzero(run_lengths * step >= 0.1)),
    )


def _silent(duration_s: float) -> AcousticFeatures:
    values = dict.fromkeys(FEATURE_NAMES, 0.0)
    values |= {"duration_s": duration_s, "level_db": LOWEST_DB, "silence_share": 1.0}
    return AcousticFeatures(**values)


@dataclass(frozen=True, eq=False)
class _Frames:
    """One value per frame; `band_db` [n_frames, _N_BANDS]."""

    level_db: Doubles
    centroid_hz: Doubles
    low_share: Doubles
    flatness: Doubles
    harmonicity: Doubles
    pitch_hz: Doubles
    band_db: Doubles


def _analyse_frames(samples: Floats, rate: int) -> _Frames:
    """Spectra and autocorrelation of overlapping frames, from one FFT each; in blocks, so memory stays flat.

    librosa's yin tells a period but not how periodic the frame is, and compiles for seconds in each process.
    """
    import scipy.fft
    import scipy.signal

    size = max(16, round(_FRAME_S * rate))
    hop = max(1, round(_HOP_S * rate))
    n_fft = scipy.fft.next_fast_len(2 * size, real=True)  # twice the frame: the autocorrelation must not wrap
    n_frames = max(1, -(-samples.size // hop))
    padded = np.pad(samples, (size // 2, size + hop))
    centres = np.arange(n_frames) * hop
    n_inside = np.minimum(centres + size - size // 2, samples.size) - np.maximum(centres - size // 2, 0)
    views = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:n_frames]
    window = scipy.signal.windows.hann(size, sym=False).astype(np.float32)
    frequencies = scipy.fft.rfftfreq(n_fft, 1 / rate).astype(np.float32)
    edges = np.linspace(_mel(30.0), _mel(max(60.0, min(16000.0, rate / 2))), _N_BANDS + 1)
    band_of = np.digitize(_mel(frequencies), edges) - 1
    bands = np.zeros((frequencies.size, _N_BANDS), np.float32)
    inside = (band_of >= 0) & (band_of < _N_BANDS)
    bands[np.flatnonzero(inside), band_of[inside]] = 1
    flat_range = (frequencies >= min(_FLATNESS_HZ[0], rate / 8)) & (frequencies <= _FLATNESS_HZ[1])
    low_range = frequencies < _LOW_HZ
    shortest = max(2, int(rate / _PITCH_HZ[1]))
    n_lags = max(shortest + 2, min(size // 2, int(rate / _PITCH_HZ[0])) + 2)
    window_correlation = scipy.fft.irfft(_power(scipy.fft.rfft(window, n_fft)), n_fft)[:n_lags]
    window_correlation /= np.square(window).sum()

    parts = []
    for start in range(0, n_frames, _BLOCK_FRAMES):
        block = views[start : start + _BLOCK_FRAMES]
        level = np.square(block).sum(axis=1, dtype=np.float64) / n_inside[start : start + _BLOCK_FRAMES]
        # Each frame at full scale: squares of quiet ones would underflow.
        scale = np.abs(block).max(axis=1, keepdims=True)
        spectrum = scipy.fft.rfft(block / np.where(scale > 0, scale, 1) * window, n_fft, axis=1)
        power = _power(spectrum) + np.float32(1e-10)
        magnitude = np.sqrt(power)
        total = power.sum(axis=1)
        band_gain = 20 * np.log10(scale + 1e-12)
        flat = power[:, flat_range]
        correlation = scipy.fft.irfft(power, n_fft, axis=1)
        harmonicity, lag = _periods(correlation[:, :n_lags] / correlation[:, :1] / window_correlation, shortest)
        parts.append(
            (
                10 * np.log10(level + 10 ** (LOWEST_DB / 10)),
                magnitude @ frequencies / magnitude.sum(axis=1),
                power[:, low_range].sum(axis=1) / total,
                np.exp(np.log(flat).mean(axis=1)) / flat.mean(axis=1),
                harmonicity,
                rate / lag,
                10 * np.log10(power @ bands + 1e-12) + band_gain,
            )
        )
    return _Frames(*(np.concatenate(values).astype(np.float64) for values in zip(*parts, strict=True)))


def _periods(correlation: Floats, shortest: int) -> tuple[Floats, Floats]:
    """Height and place (in samples, interpolated) of the best peak of each row of `correlation` [n, n_lags].

    Low sounds correlate highly with themselves at all short lags: a peak only counts after a valley.
    """
    lags = np.arange(shortest, correlation.shape[1] - 1)
    before, here, after = (
        correlation[:, shortest - 1 : -2],
        correlation[:, shortest:-1],
        correlation[:, shortest + 1 :],
    )
    lowest = np.minimum.accumulate(correlation, axis=1)[:, shortest:-1]
    is_peak = (here > before) & (here >= after) & (here - lowest > _VALLEY)
    # A parabola through three points: at a few samples per period the tallest sample is far from the top.
    curvature = np.where(is_peak, before - 2 * here + after, -1)
    shift = 0.5 * (before - after) / curvature
    height = here - 0.25 * (before - after) * shift
    score = np.where(is_peak, height - _OCTAVE_COST * np.log2(lags / shortest), -np.inf)
    rows, best = np.arange(len(score)), score.argmax(axis=1)
    found = is_peak[rows, best]
    return np.where(found, height[rows, best].clip(0, 1), 0), np.where(found, lags[best] + shift[rows, best], 1)


def _pitch_movement(frames: _Frames, weight: Doubles, step: float) -> tuple[float, float, float, float]:
    """Share of power that is pitched, median pitch in Hz, its change and its wander in semitones."""
    import scipy.ndimage

    voiced = (frames.harmonicity >= _VOICED) & (weight > 0.02 * weight.max())
    share = float(weight[voiced].sum())
    if not voiced.any():
        return 0.0, 0.0, 0.0, 0.0
    semitones = 12 * np.log2(frames.pitch_hz[voiced])
    semitones = scipy.ndimage.median_filter(semitones, 5, mode="nearest")
    middle = float(np.median(semitones))
    # What is farther away than an octave is a wrong octave or another sound.
    near = np.abs(semitones - middle) <= 12
    semitones, times = semitones[near], np.flatnonzero(voiced)[near] * step
    if semitones.size < 4:
        return share, float(2 ** (middle / 12)), 0.0, 0.0
    slope, offset = np.polyfit(times - times[0], semitones, 1)
    change = float(slope * (times[-1] - times[0]))
    wander = float((semitones - offset - slope * (times - times[0])).std())
    return share, float(2 ** (middle / 12)), change, wander


def _envelope_shape(samples: Floats, rate: int) -> tuple[float, float, float, float]:
    """Attack and decay in seconds, level at the end in dB below the highest, and roughness."""
    import scipy.ndimage

    frame = max(1, round(_ENVELOPE_S * rate))
    step = frame / rate
    raw = np.sqrt(_frame_power(samples.astype(np.float64), frame))
    envelope = scipy.ndimage.uniform_filter1d(raw, 3, mode="nearest")
    peak = int(envelope.argmax())
    relative = envelope / envelope[peak]
    begin = _last(relative[: peak + 1] < 0.1) + 1
    attack = int(np.argmax(relative[begin:] >= 0.8)) * step
    half, faded = _last(relative >= 0.5), _last(relative >= 0.05)
    end = relative[-max(1, round(0.02 / step)) :].mean()
    audible = raw[begin : faded + 1]
    return attack, (faded - half) * step, float(20 * np.log10(max(end, 1e-6))), _roughness(audible, step)


def _roughness(envelope: Doubles, step: float) -> float:
    """RMS of the envelope between 20 and 90 Hz over its RMS; 0 where there is less than 50 ms."""
    import scipy.fft

    if envelope.size * step < 0.05:
        return 0.0
    modulation = _power(scipy.fft.rfft(envelope))
    frequencies = scipy.fft.rfftfreq(envelope.size, step)
    modulation[1 : (envelope.size + 1) // 2] *= 2
    fast = (frequencies >= 20) & (frequencies <= 90)
    return float(np.sqrt(modulation[fast].sum() / modulation.sum()))


def _repetition(frames: _Frames, active_s: float, step: float) -> tuple[int, float, float]:
    """Number of onsets, their rate per second, and how regular they are."""
    import scipy.fft
    import scipy.signal

    # Silence stands before the clip, so that a sound that is there at once is an onset.
    bands = np.maximum(frames.band_db, frames.band_db.max() - _RELATIVE_FLOOR_DB)
    bands = np.pad(bands, ((3, 0), (0, 0)), constant_values=bands.min())
    # A mean over the bands that hold something: a bass drum has few, but one alone may fluctuate at random.
    n_bands = max(8, np.count_nonzero(bands.max(axis=0) > bands.min() + 10))
    strength = np.clip(bands[2:] - bands[:-2], 0, None).sum(axis=1) / n_bands
    # A sound that stops short splatters over the bands, be it cut off by the end of the clip.
    level = np.pad(frames.level_db, (3, 0), constant_values=LOWEST_DB)
    strength[level[2:] < level[:-2] - 1] = 0
    strength[max(3, strength.size - 2) :] = 0
    threshold = max(4.0, 0.3 * float(strength.max()))
    onsets, _ = scipy.signal.find_peaks(
        np.pad(strength, 1), height=threshold, prominence=0.5 * threshold, distance=max(1, round(0.08 / step))
    )
    n_onsets = len(onsets)
    rate = float(n_onsets / active_s)
    longest = strength.size // 2
    shortest = max(1, round(0.07 / step))
    if n_onsets < 3 or longest <= shortest + 1:
        return n_onsets, rate, 0.0
    steady = strength - strength.mean()
    n_fft = scipy.fft.next_fast_len(2 * steady.size, real=True)
    correlation = scipy.fft.irfft(_power(scipy.fft.rfft(steady, n_fft)), n_fft)[: longest + 1]
    correlation *= steady.size / (steady.size - np.arange(longest + 1))  # fewer products at longer lags
    correlation /= correlation[0]
    peaks, _ = scipy.signal.find_peaks(correlation[shortest:])
    if not peaks.size:
        return n_onsets, rate, 0.0
    peaks = peaks + shortest
    heights = correlation[peaks]
    best = peaks[np.flatnonzero(heights >= 0.85 * heights.max())[0]]  # the period, not a multiple of it
    regularity = float(np.clip(correlation[best], 0, 1))
    return n_onsets, (float(1 / (best * step)) if regularity >= 0.5 else rate), regularity


def _frame_power(samples: Doubles, frame: int) -> Doubles:
    """Mean square of successive frames [ceil(n / frame)]; the last may be shorter."""
    starts = np.arange(0, samples.size, frame)
    sizes = np.diff(np.append(starts, samples.size))
    return np.add.reduceat(np.square(samples), starts) / sizes


def _power(spectrum: NDArray[np.complexfloating]) -> NDArray[np.floating]:
    power: NDArray[np.floating] = np.square(spectrum.real) + np.square(spectrum.imag)
    return power


def _mel(frequency: float | Floats) -> Floats:
    return np.asarray(1127 * np.log1p(np.asarray(frequency, np.float32) / 700), np.float32)


def _last(mask: NDArray[np.bool_]) -> int:
    """Index of the last True, -1 without any."""
    return int(mask.size - 1 - np.argmax(mask[::-1])) if mask.any() else -1
