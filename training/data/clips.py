"""From a recording to clips: mono, 16 kHz, trimmed, at most 4 s, as Ogg Vorbis.

A clip is the mean of the channels at 16 kHz, mean removed, silence trimmed at both ends and its peak brought to 0.89.
Nothing is padded: a reader that needs a fixed length repeats the clip or pads with silence, as ``loop`` says.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.common import evenly_spread

SAMPLE_RATE = 16_000
MAX_SAMPLES = 4 * SAMPLE_RATE
MIN_SAMPLES = 0.08 * SAMPLE_RATE
MIN_LEVEL_DB = -50
PEAK = 0.89
MAX_FRAMES_READ = 120 * 48_000

_STEP = SAMPLE_RATE // 200  # 5 ms: the grain of silence detection, and the length of fades at cuts


@dataclass(frozen=True)
class Clip:
    """``audio``: Ogg Vorbis bytes; ``duration`` in seconds; ``rms_db`` in dBFS; ``segment``: its index in the file."""

    audio: bytes
    duration: float
    rms_db: float
    segment: int = 0


def read_clips(recording: Path | bytes, most: int) -> list[Clip]:
    """At most ``most`` clips of a sound file (its path or bytes), in their order; none if it is silent."""
    import soundfile

    file = io.BytesIO(recording) if isinstance(recording, bytes) else recording
    samples, sample_rate = soundfile.read(file, dtype="float32", frames=MAX_FRAMES_READ)
    tidied = tidy(samples, sample_rate)
    if tidied is None:
        return []
    clips = [encode(window, segment) for segment, window in enumerate(windows(tidied, most))]
    return [clip for clip in clips if clip.rms_db > MIN_LEVEL_DB]


def tidy(samples: np.ndarray, sample_rate: int) -> np.ndarray | None:
    """``samples`` ((N,) or (N, channels) float32) as mono at 16 kHz without silence at both ends.

    None if too short or silent. Silent is what lies below -55 dBFS and what lies 45 dB below the peak; 10 ms before and
    50 ms after are kept.
    """
    if samples.ndim == 2:
        samples = samples.mean(1)
    samples = np.asarray(samples, np.float32)
    if sample_rate != SAMPLE_RATE:
        import soxr

        samples = soxr.resample(samples, sample_rate, SAMPLE_RATE, quality="VHQ")
    if len(samples) < SAMPLE_RATE // 20:
        return None
    samples = samples - samples.mean()
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak) or peak < 2e-3:
        return None
    steps = len(samples) // _STEP
    levels = np.abs(samples[: steps * _STEP]).reshape(steps, _STEP).max(1)
    loud = np.flatnonzero(levels > max(10 ** (-55 / 20), peak * 10 ** (-45 / 20)))
    if not len(loud):
        return None
    start = max(0, loud[0] * _STEP - SAMPLE_RATE // 100)
    end = min(len(samples), (loud[-1] + 1) * _STEP + SAMPLE_RATE // 20)
    return samples[start:end]


def windows(samples: np.ndarray, most: int) -> list[np.ndarray]:
    """``samples`` if they last 0.08 to 4 s; of longer ones at most ``most`` windows of 4 s, faded at the cuts.

    They are evenly spread. Windows 25 dB below the loudest are dropped. If ``most`` is 8 or more (a rare sound), they
    overlap by half.
    """
    if len(samples) <= MAX_SAMPLES:
        return [samples] if len(samples) >= MIN_SAMPLES else []
    hop = MAX_SAMPLES // 2 if most >= 8 else MAX_SAMPLES
    pieces = [samples[at : at + MAX_SAMPLES] for at in range(0, len(samples) - MAX_SAMPLES // 2, hop)]
    levels = np.array([np.sqrt((piece**2).mean()) + 1e-9 for piece in pieces])
    pieces = [piece for piece, level in zip(pieces, levels, strict=True) if level > levels.max() * 10 ** (-25 / 20)]
    return [_faded(piece) for piece in evenly_spread(pieces, most)]


def _faded(samples: np.ndarray) -> np.ndarray:
    faded = samples.copy()
    faded[:_STEP] *= np.linspace(0, 1, _STEP)
    faded[-_STEP:] *= np.linspace(1, 0, _STEP)
    return faded


def encode(samples: np.ndarray, segment: int = 0) -> Clip:
    """Mono samples at 16 kHz (not all zero) as a clip with its peak at 0.89."""
    import soundfile

    samples = samples * (PEAK / np.abs(samples).max())
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="OGG", subtype="VORBIS", compression_level=0.6)
    rms = float(np.sqrt((samples**2).mean()))
    return Clip(buffer.getvalue(), len(samples) / SAMPLE_RATE, float(20 * np.log10(rms + 1e-9)), segment)
