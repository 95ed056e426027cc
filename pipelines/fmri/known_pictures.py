"""A gallery in which what was decoded is looked up: the nearest of some known pictures, which is no reconstruction.

Something is always nearest. What that is worth is told by scans of nothing: by how many of them, their voxels shuffled,
the nearest picture is less near, the second nearest than their second nearest, and so on.

Shapes: K pictures, B scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from models.nets.brain_subjects import similarities
from pipelines.fmri.canvas import FAINT, HEADING, INK, LABEL, MARGIN, WIDTH, Sheet, colours

FOLDER = Path(__file__).parents[2] / "assets" / "known-pictures"
SHEET, TABLE = "pictures.webp", "pictures.npz"
SIDE = 96  # pixels of a picture
NEAREST = 5
ROW, SHOWN = 168, 144  # pixels of the drawing: a row, and a picture in it


class Neighbour(NamedTuple):
    """``row`` of the picture in the gallery; ``cosine`` between its vector and what was decoded, both as seen from the
    mean of all pictures; ``above``: the share of scans of shuffled voxels whose neighbour of this rank is less near."""

    row: int
    cosine: float
    above: float


@dataclass(frozen=True, eq=False)
class KnownPictures:
    """``pixels`` (K, 96, 96, 3) uint8; ``vectors`` (K, 256), of unit length; ``names``: what they show, "bell"."""

    names: tuple[str, ...]
    pixels: np.ndarray
    vectors: Tensor

    def nearest(self, semantic: Tensor, shuffled: Tensor, center: Tensor) -> list[Neighbour]:
        """``semantic`` (1, 256) and of scans of ``shuffled`` voxels (B, 256); ``center`` (256,): the mean picture's."""
        vectors = self.vectors.to(semantic)
        best = similarities(semantic, vectors, center)[0].topk(NEAREST)
        others = similarities(shuffled, vectors, center).topk(NEAREST, dim=1).values
        above = (others < best.values).float().mean(0)
        rows = zip(best.indices.tolist(), best.values.tolist(), above.tolist(), strict=True)
        return [Neighbour(*row) for row in rows]


@cache
def known_pictures() -> KnownPictures:
    with np.load(FOLDER / TABLE, allow_pickle=False) as table:
        names, vectors = tuple(map(str, table["names"])), torch.from_numpy(table["vectors"]).float()
    with PillowImage.open(FOLDER / SHEET) as sheet:
        cells = np.asarray(sheet.convert("RGB"))
    rows, columns = cells.shape[0] // SIDE, cells.shape[1] // SIDE
    pixels = cells.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    return KnownPictures(names, pixels[: len(names)], vectors)


def draw_neighbours(known: KnownPictures, found: Sequence[Neighbour], whose: str) -> np.ndarray:
    """(H, 1200, 3) uint8: a row for each, with its name, its similarity as a bar, and what shuffled scans say."""
    title = f"Nearest of {len(known.names)} known pictures"
    sheet = Sheet(ROW * len(found) - 24, title, f"{whose}; not a reconstruction")
    left, right, last = MARGIN + SHOWN + 32, 800, WIDTH - MARGIN
    sheet.write((left, HEADING + 50), "similarity", LABEL, FAINT, "ls")
    sheet.write((last, HEADING + 50), "above shuffled", LABEL, FAINT, "rs")
    red, green, blue = colours(np.array(0.6), 1.0).tolist()
    for place, neighbour in enumerate(found):
        top = HEADING + 76 + place * ROW
        small = PillowImage.fromarray(known.pixels[neighbour.row])
        sheet.paste(np.asarray(small.resize((SHOWN, SHOWN), PillowImage.Resampling.LANCZOS)), MARGIN, top)
        sheet.write((left, top + 26), known.names[neighbour.row], LABEL)
        end = left + round((right - left) * min(1.0, max(0.0, neighbour.cosine)))
        bar = top + 88, top + 114
        sheet.draw.rectangle((left, bar[0], right, bar[1]), outline=FAINT)
        sheet.draw.rectangle((left, bar[0], end, bar[1]), (red, green, blue), FAINT)
        sheet.write((right + 20, sum(bar) / 2), f"{neighbour.cosine:.2f}", LABEL, INK, "lm")
        sheet.write((last, sum(bar) / 2), f"{100 * neighbour.above:.0f} %", LABEL, INK, "rm")
    return sheet.pixels
