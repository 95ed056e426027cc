"""Edits of sounds."""

from __future__ import annotations

from dataclasses import replace

import av
import numpy as np
from pydantic import Field

from models.errors import UserError
from pipelines.base import Params, Route
from pipelines.edits.base import Edit
from pipelines.formats.audio import MAX_SAMPLES
from pipelines.media import Audio

SOUND_TO_SOUND = (Route(("audio",), "audio"),)
# People read durations rounded: a cut at the "2.0 s" of a sound of 1.98 s is at its end.
TOLERANCE_SECONDS = 0.05
LIMITER_SECONDS = 0.01
RESAMPLER_RATE = 48_000


class GainParams(Params):
    gain: float = Field(6.0, ge=-60, le=24, description="Decibels: 6 is clearly louder, -6 clearly quieter.")


class AudioGain(Edit[Audio, GainParams]):
    name = "audio-gain"
    title = "Louder or quieter sound"
    summary = "Turn a sound up or down. What would become too loud is held back, so that nothing clips."
    routes = SOUND_TO_SOUND
    params_type = GainParams

    def change(self, given: Audio, params: GainParams) -> Audio:
        return replace(given, samples=limited(given.samples * np.float32(10 ** (params.gain / 20)), given.sample_rate))


class TrimParams(Params):
    start: float = Field(0.0, ge=0, description="Where the part to keep begins, in seconds.")
    end: float = Field(0.0, ge=0, description="Where it ends, in seconds; 0 is at the very end.")
    length: float = Field(0.0, ge=0, description="How long it is, in seconds, instead of where it ends.")
    share: float = Field(1.0, gt=0, le=1, description="How much of that to keep: 0.5 is its first half.")


class AudioTrim(Edit[Audio, TrimParams]):
    name = "audio-trim"
    title = "Trim a sound"
    summary = "Keep a part of a sound."
    routes = SOUND_TO_SOUND
    params_type = TrimParams

    def change(self, given: Audio, params: TrimParams) -> Audio:
        first, last = part_to_keep(params, given.duration, given.sample_rate, "sound")
        return replace(given, samples=given.samples[:, first:last])


class FadeParams(Params):
    fade_in: float = Field(0.0, ge=0, le=60, description="Seconds to rise from silence at the start.")
    fade_out: float = Field(1.0, ge=0, le=60, description="Seconds to sink into silence at the end.")


class AudioFade(Edit[Audio, FadeParams]):
    name = "audio-fade"
    title = "Fade a sound"
    summary = "Let a sound rise from silence, or sink into it."
    routes = SOUND_TO_SOUND
    params_type = FadeParams

    def change(self, given: Audio, params: FadeParams) -> Audio:
        if params.fade_in + params.fade_out > given.duration + TOLERANCE_SECONDS:
            raise UserError(
                f"The sound is {given.duration:.2f} s long, which is too short for these fades.",
                "Choose fades that take no longer than the sound.",
            )
        count = given.samples.shape[1]
        samples = given.samples.copy()
        rise, fall = (
            _rise(round(seconds * given.sample_rate))[:count] for seconds in (params.fade_in, params.fade_out)
        )
        samples[:, : len(rise)] *= rise
        samples[:, count - len(fall) :] *= fall[::-1]
        return replace(given, samples=samples)


class SpeedParams(Params):
    factor: float = Field(1.5, ge=0.25, le=4, description="2 is twice as fast, 0.5 half as fast.")


class AudioSpeed(Edit[Audio, SpeedParams]):
    name = "audio-speed"
    title = "Faster or slower sound"
    summary = "Play a sound faster and higher, or slower and lower, as a tape would."
    routes = SOUND_TO_SOUND
    params_type = SpeedParams

    def change(self, given: Audio, params: SpeedParams) -> Audio:
        return at_speed(given, params.factor)


class AudioReverse(Edit[Audio, Params]):
    name = "audio-reverse"
    title = "Reverse a sound"
    summary = "Play a sound backwards."
    routes = SOUND_TO_SOUND
    params_type = Params

    def change(self, given: Audio, params: Params) -> Audio:
        return replace(given, samples=given.samples[:, ::-1])


def part_to_keep(params: TrimParams, duration: float, rate: float, thing: str) -> tuple[int, int]:
    """The first sample (or frame) to keep and the first to drop after it, of a ``thing`` of ``duration`` seconds.

    ``rate`` in Hz. Raises :class:`UserError` for times that are not in it, and if nothing would be left.
    """
    if params.end and params.length:
        raise UserError(f"Both an end and a length of the {thing} are given.", "Set one of them to 0.")
    end = params.start + params.length if params.length else params.end or duration
    if max(params.start, end) > duration + TOLERANCE_SECONDS:
        raise UserError(
            f"The {thing} is {duration:.2f} s long, so it cannot be cut at {max(params.start, end):g} s.",
            f"Choose times up to {duration:.2f} s.",
        )
    end = params.start + (min(end, duration) - params.start) * params.share
    first, last = round(params.start * rate), round(end * rate)
    if first >= last:
        raise UserError(f"Nothing of the {thing} would be left.", "Choose an end that is later than the start.")
    return first, last


def limited(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """``samples`` (channels, N) within [-1, 1]: unchanged if they are, else turned down around the peaks.

    A look-ahead limiter: the gain each moment needs is held over a window and then averaged over one as long. Every
    average is of gains that the moment's own peak has lowered, so none is too high, and it moves without a jump.
    """
    needed = 1 / np.maximum(np.abs(samples).max(axis=0), 1).astype(np.float64)
    if needed.min() == 1:
        return samples
    doublings = max(1, round(np.log2(LIMITER_SECONDS * sample_rate)))
    window = 2**doublings
    held = np.pad(needed, window - 1, constant_values=1.0)
    for doubling in range(doublings):
        held = np.minimum(held[: -(2**doubling)], held[2**doubling :])
    sums = np.concatenate([[0.0], np.cumsum(held)])
    gain = (sums[window:] - sums[:-window]) / window
    return np.clip(samples * gain, -1, 1).astype(np.float32)  # the clip is for the last bit of the sums


def at_speed(sound: Audio, factor: float) -> Audio:
    """``sound`` played ``factor`` times as fast at the same sample rate, by libswresample."""
    if factor == 1:
        return sound
    count = max(1, round(sound.samples.shape[1] / factor))
    _refuse_too_long(count * sound.samples.shape[0])
    channels = [_resampled(channel, factor)[:count] for channel in sound.samples]
    samples = np.stack([np.pad(channel, (0, count - len(channel))) for channel in channels])
    return replace(sound, samples=limited(samples, sound.sample_rate))


def fitted(sound: Audio, seconds: float, loop: bool) -> Audio:
    """``sound`` cut, or else repeated or followed by silence, so that it lasts ``seconds``."""
    channels, length = sound.samples.shape
    count = max(1, round(seconds * sound.sample_rate))
    _refuse_too_long(count * channels)
    if loop:
        return replace(sound, samples=np.stack([np.resize(channel, count) for channel in sound.samples]))
    return replace(sound, samples=np.pad(sound.samples[:, :count], ((0, 0), (0, max(0, count - length)))))


def _resampled(channel: np.ndarray, factor: float) -> np.ndarray:
    """(N,) float32 to about N / factor samples."""
    frame = av.AudioFrame.from_ndarray(channel[None], format="fltp", layout="mono")
    frame.sample_rate = round(RESAMPLER_RATE * factor)  # only the ratio of the rates counts
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=RESAMPLER_RATE)
    blocks = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([block.to_ndarray()[0] for block in blocks] or [np.zeros(0, np.float32)])


def _rise(count: int) -> np.ndarray:
    """Half a cosine from 0 towards 1, without a corner at either end."""
    return (0.5 - 0.5 * np.cos(np.pi * np.arange(count) / max(1, count))).astype(np.float32)


def _refuse_too_long(samples: int) -> None:
    if samples > MAX_SAMPLES:
        raise UserError("The sound would become too long.", "Use a shorter one.")
