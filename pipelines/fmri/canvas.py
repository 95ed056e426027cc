"""What drawings of scans share: a sheet with a heading and a scale, and colours for values below and above zero."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

WIDTH, MARGIN = 1200, 40
HEADING, FOOT = 128, 128  # heights
TITLE, NOTE, LABEL = 46, 37, 36  # sizes of letters, still read when the sheet is as narrow as a telephone
Colour = tuple[int, int, int]
INK: Colour = (41, 37, 49)
FAINT: Colour = (100, 93, 105)
BLANK: Colour = (222, 219, 214)
PAPER: Colour = (255, 255, 255)
_SCALE = np.array([[16, 50, 122], [84, 142, 204], [247, 245, 242], [229, 121, 82], [126, 16, 38]])
_BAR = (460, 34)
_ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


def colours(values: np.ndarray, limit: float) -> np.ndarray:
    """(...,) -> (..., 3) uint8: blue at ``-limit`` and below, nearly white at 0, red at ``limit`` and above, grey where
    there is no number."""
    known = np.isfinite(values)
    place = (np.clip(np.where(known, values, 0) / limit, -1, 1) + 1) * (len(_SCALE) - 1) / 2
    parts = [np.interp(place, np.arange(len(_SCALE)), _SCALE[:, channel]) for channel in range(3)]
    return np.where(known[..., None], np.rint(np.stack(parts, -1)), BLANK).astype(np.uint8)


def limit_of(values: np.ndarray) -> float:
    """A round number, above zero, that all but the 2 % most extreme values lie within."""
    known = np.abs(values[np.isfinite(values)])
    extreme = float(np.percentile(known, 98)) if known.size else 0.0
    if extreme <= 0:
        return 1.0
    unit = 10.0 ** np.floor(np.log10(extreme))
    return float(next(step * unit for step in _ROUND if step * unit >= extreme))


class Sheet:
    """White, :data:`WIDTH` wide, with a heading of two lines; between :data:`HEADING` and ``foot`` is room to draw."""

    def __init__(self, height: int, title: str, note: str) -> None:
        self.image = PillowImage.new("RGB", (WIDTH, HEADING + height + FOOT), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.foot = HEADING + height
        self.write((MARGIN, 24), title, TITLE)
        self.write((MARGIN, 80), note, NOTE, FAINT)

    @property
    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.asarray(self.image)

    def write(
        self,
        at: tuple[float, float],
        words: str,
        size: int = LABEL,
        colour: Colour = INK,
        anchor: str = "la",
        halo: int = 0,
    ) -> None:
        """``anchor``: Pillow's, of the place ``at``; ``halo``: the width of a white line around the letters."""
        self.draw.text(at, words, colour, _font(size), anchor, stroke_width=halo, stroke_fill=PAPER)

    def paste(self, pixels: np.ndarray, left: int, top: int) -> None:
        self.image.paste(PillowImage.fromarray(pixels), (left, top))

    def scale(self, limit: float, units: str) -> None:
        """What the colours mean, at the foot."""
        width, height = _BAR
        left, top = (WIDTH - width) // 2, self.foot + 26
        bar = np.broadcast_to(colours(np.linspace(-limit, limit, width), limit), (height, width, 3))
        self.paste(np.ascontiguousarray(bar), left, top)
        self.draw.rectangle((left, top, left + width - 1, top + height - 1), outline=FAINT)
        for value, x in ((-limit, left), (0.0, left + width / 2), (limit, left + width)):
            self.write((x, top + height + 8), signed(value), LABEL, anchor="ma")
        self.write((left + width + 40, top + height / 2), units, LABEL, FAINT, anchor="lm")


def signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
