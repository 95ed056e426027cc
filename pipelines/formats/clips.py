"""Frames with time stamps as a clip of a steady rate, small enough to be held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from models.errors import UserError

# Of all frames together, as they are held: 0.4 GiB, so that a clip and what an edit makes of it stay within the
# gigabyte that the models leave. At 30 Hz 2 seconds of 1080p stay whole, 10 of it or of 4K become 891 x 501, 34 (as
# much 4K as is read) 483 x 272, and 121 (as much 1080p as is read) 256 x 144.
MAX_CLIP_PIXELS = 128 * 2**20
MAX_DECODED_PIXELS = 2**33  # of all frames together, as they are stored: 34 seconds of 4K at 30 Hz
MAX_FRAME_PIXELS = 2**25  # 8K
MAX_FRAMES = 2**16
MAX_FRAME_RATE = 240.0
SMALLEST_SIDE = 256  # pixels: no clip is scaled down so far that its longer side has fewer

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Timing:
    """When the frames of a clip are shown: ``rate`` in Hz, ``start`` in seconds, ``length`` in frames."""

    rate: float
    start: float
    length: int


def steady(starts: np.ndarray, end: float, declared: float | None = None) -> Timing:
    """The timing of a clip whose frames are shown from ``starts`` on (seconds, sorted), the last one until ``end``.

    Its rate is that of the frames that follow each other closely, so that where a phone or a screen recorder left
    frames out, the one before is repeated. The rate that a file declares is taken if it gives as many frames.
    """
    gaps = np.diff(starts, append=end)
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return Timing(min(declared or 25.0, MAX_FRAME_RATE), float(starts[0]), 1)
    usual = gaps[gaps <= 1.5 * np.quantile(gaps, 0.1, method="lower")]
    rate, seconds = 1 / float(usual.mean()), float(end - starts[0])
    if declared and abs(declared - rate) * seconds < 0.5:
        rate = declared
    rate = min(rate, MAX_FRAME_RATE)
    return Timing(rate, float(starts[0]), max(1, round(seconds * rate)))


def size_within(width: int, height: int, count: int, timing: Timing) -> tuple[int, int]:
    """The width and height to which ``count`` stored frames are scaled down, so that the clip can be held.

    Raises :class:`UserError` for frames that are too large, and for more of them than scaling down makes room for.
    """
    pixels = width * height
    if pixels > MAX_FRAME_PIXELS:
        raise UserError(f"The clip has pictures of {width} x {height} pixels.", "Use one of at most 7680 x 4320.")
    smallest = pixels * min(1, SMALLEST_SIDE / max(width, height)) ** 2
    most = min(MAX_CLIP_PIXELS / smallest, MAX_DECODED_PIXELS / pixels, MAX_FRAMES)
    if max(count, timing.length) > most:
        raise UserError(
            f"The clip is too long: of {width} x {height} pixels at {timing.rate:.4g} frames a second, at most "
            f"{most / timing.rate:.0f} seconds can be read.",
            "Cut it, or save it smaller.",
        )
    scale = min(1, math.sqrt(MAX_CLIP_PIXELS / (pixels * timing.length)))
    return max(1, int(width * scale)), max(1, int(height * scale))


def clip_of(
    shown: Iterable[tuple[float, Shown]], pixels_of: Callable[[Shown], np.ndarray], timing: Timing
) -> np.ndarray:
    """(length, H, W, 3) uint8, read-only: at each of its times the frame that is shown then.

    ``shown``: from when on, in seconds, and a frame, of which ``pixels_of`` gives (H, W, 3) uint8. Raises
    :class:`UserError` if there is none.
    """
    # Each frame of the clip is looked up in its middle, where the rounding of time stamps does not matter.
    due = timing.start + (np.arange(timing.length) + 0.5) / timing.rate
    clip = np.empty((0, 0, 0, 3), np.uint8)
    done = 0
    for frame, until in _until_the_next(shown):
        upto = int(np.searchsorted(due, until))
        if upto > done:
            pixels = pixels_of(frame)
            if not done:
                clip = np.empty((timing.length, *pixels.shape), np.uint8)
            clip[done:upto] = pixels
            done = upto
    if not done:
        raise no_picture()
    clip.setflags(write=False)
    return clip


def no_picture() -> UserError:
    return UserError("The clip has no picture in it.", "Use one with pictures, or attach it as a sound.")


def _until_the_next(shown: Iterable[tuple[float, Shown]]) -> Iterable[tuple[Shown, float]]:
    """Each frame, and when the next one replaces it."""
    held: list[Shown] = []
    for when, frame in shown:
        if held:
            yield held[0], when
        held = [frame]
    for frame in held:
        yield frame, math.inf
