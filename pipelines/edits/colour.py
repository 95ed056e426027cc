"""Colours of pictures and of objects alike."""

from __future__ import annotations

import numpy as np
from PIL import ImageColor

AT_ONCE = 1 << 20  # colours that are turned together


def turn_hue(colours: np.ndarray, degrees: float) -> np.ndarray:
    """``colours`` (..., 3) uint8 sRGB with their HSV hue turned: 120 makes red green; greys stay.

    In floats, because Pillow's HSV has 8 bits a channel and would not give a colour back exactly; some at a time, since
    they take thirty times the room.
    """
    turned = np.empty(colours.shape, np.uint8)
    given, into = colours.reshape(-1, 3), turned.reshape(-1, 3)
    for start in range(0, len(given), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        into[some] = _turned(given[some], degrees)
    return turned


def _turned(colours: np.ndarray, degrees: float) -> np.ndarray:
    rgb = colours.astype(np.float32) / 255
    red, green, blue = np.moveaxis(rgb, -1, 0)
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    chroma = high - low
    scale = np.where(chroma > 0, chroma, 1)
    sextant = np.select(
        [high == red, high == green], [(green - blue) / scale, (blue - red) / scale + 2], (red - green) / scale + 4
    )
    sextant = sextant + np.float32(degrees / 60)
    turned = [np.clip(np.abs((sextant + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    return np.rint(255 * (low[..., None] + chroma[..., None] * np.stack(turned, axis=-1))).astype(np.uint8)


def rgb_of(colour: str) -> tuple[int, ...]:
    """Red, green and blue, 0 to 255; raises ``ValueError`` for what is no colour."""
    try:
        rgb: tuple[int, ...] = ImageColor.getrgb(colour)[:3]
    except ValueError:
        rgb = ()
    if len(rgb) < 3 or max(rgb) > 255:
        raise ValueError("It is not the name of a colour, and not like '#c0392b'")
    return rgb
