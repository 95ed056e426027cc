"""Pictures in colours that their sets do not have: "a blue apple" is learnt from an apple with its hue turned.

Only the picture's dominant hue is turned; a red apple keeps its green leaf. What has no dominant hue is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image


@dataclass(frozen=True)
class Colour:
    """``hue`` in degrees; ``saturation`` and ``value`` the mean that the recoloured part is brought to, in [0, 1]."""

    hue: float
    saturation: float
    value: float


COLOURS = {
    "red": Colour(0, 0.85, 0.85),
    "orange": Colour(28, 0.9, 0.97),
    "yellow": Colour(52, 0.8, 0.97),
    "green": Colour(125, 0.7, 0.7),
    "blue": Colour(218, 0.8, 0.9),
    "purple": Colour(278, 0.65, 0.75),
    "pink": Colour(335, 0.5, 0.98),
    "brown": Colour(25, 0.65, 0.5),
}
COLOUR_WORDS = {*COLOURS, "black", "white", "grey", "gray", "golden"}
WINDOW = 35.0


def hue_distance(hue: npt.ArrayLike, centre: float) -> np.ndarray:
    """Degrees between hues, in [0, 180]."""
    return np.abs((np.asarray(hue) - centre + 180) % 360 - 180)


def to_hsv(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> hue in degrees, saturation and value in [0, 1], (H, W, 3) float32."""
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float32)
    return hsv * np.array([360 / 255, 1 / 255, 1 / 255], np.float32)


def dominant_hue(pixels: np.ndarray) -> float | None:
    """The hue around which most coloured pixels lie, in degrees; ``None`` if there are few or they disagree."""
    hue, saturation, value = np.moveaxis(to_hsv(pixels), -1, 0)
    coloured = (saturation > 0.25) & (value > 0.2)
    if coloured.sum() < 0.08 * coloured.size:
        return None
    counts, edges = np.histogram(hue[coloured], bins=36, range=(0, 360), weights=saturation[coloured])
    smooth = counts + np.roll(counts, 1) + np.roll(counts, -1)
    near = hue_distance(hue[coloured], edges[smooth.argmax()] + 5) < WINDOW
    if near.mean() < 0.6:
        return None
    mean = np.exp(1j * np.deg2rad(hue[coloured][near])).mean()
    return float(np.rad2deg(np.angle(mean)) % 360)


def recolour(pixels: np.ndarray, source_hue: float, colour: Colour) -> np.ndarray:
    """``pixels`` (H, W, 3) uint8 with the part around ``source_hue`` turned into ``colour``."""
    hsv = to_hsv(pixels)
    hue, saturation = hsv[..., 0], hsv[..., 1]
    part = (hue_distance(hue, source_hue) < WINDOW + 10) & (saturation > 0.12)
    body = part & (saturation > 0.25)
    turned = hsv.copy()
    turned[..., 0] = np.where(part, (colour.hue + 0.5 * ((hue - source_hue + 180) % 360 - 180)) % 360, hue)
    for channel, target in ((1, colour.saturation), (2, colour.value)):
        gain = target / max(0.05, float(hsv[..., channel][body].mean()))
        turned[..., channel] = np.where(part, np.clip(hsv[..., channel] * gain, 0, 1), hsv[..., channel])
    coded = (turned * np.array([255 / 360, 255, 255], np.float32)).round().clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(coded, "HSV").convert("RGB"))


def recoloured_concept(concept: str, colour: str) -> str:
    """ "red heart" in blue is "blue heart", "apple" in blue is "blue apple"."""
    words = concept.split()
    if words[0] in COLOUR_WORDS:
        words = words[1:]
    return " ".join([colour, *words])
