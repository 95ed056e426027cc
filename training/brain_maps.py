"""Simulated brains (``sim-v1``) on a flat map of the visual cortex, as NeuroPictor (arXiv 2403.18211) reads brains.

No subject has a folded surface, so the map is of the model cortex: the left hemisphere on the left, the right one
mirrored, V1 in the middle, and each area a rectangle. Within it neighbours see neighbouring parts of the picture: from
the fovea outwards along one side, from the lower field to the upper one along the other. A pixel shows the nearest
voxel of its area, as pixels of a real map show the nearest vertex; around the cortex it is 0.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.brain_simulator import AREAS, FOVEA, HALF_WIDTH, LEFT, Subject, model_cortex

SIDE = 64  # about two pixels for each voxel
FILE_SIDE = 256  # of the maps that people upload
MARGIN = 4  # pixels of background at the outer edges
# From the middle outwards, and those of one strip from top to bottom.
STRIPS = (("V1",), ("V2",), ("V3", "V4"), ("LO", "parahippocampal"), ("ventral",), ("dorsal",))


class Places(NamedTuple):
    """Of places or pixels: the ``area``, counted on through both hemispheres, -1 where there is none, and how far from
    the fovea (``out``) and from the lower to the upper field (``up``), in pixels."""

    area: np.ndarray
    out: np.ndarray
    up: np.ndarray


@cache
def map_places() -> tuple[Places, Places]:
    """Of every pixel (64, 64), and of every place on the model cortex (8921,), on the same rectangles."""
    area = np.full((SIDE, SIDE), -1)
    out, up = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    heights, widths = np.zeros(2 * len(AREAS)), np.zeros(2 * len(AREAS))
    shares = {one.name: one.share for one in AREAS}
    names = [one.name for one in AREAS]
    edges = np.rint(np.cumsum([0, *(sum(shares[name] for name in strip) for strip in STRIPS)]) * (SIDE // 2 - MARGIN))
    for strip, start, stop in zip(STRIPS, edges[:-1].astype(int), edges[1:].astype(int), strict=True):
        tall = np.cumsum([0, *(shares[name] for name in strip)]) / sum(shares[name] for name in strip)
        rows = np.rint(MARGIN + tall * (SIDE - 2 * MARGIN)).astype(int)
        for name, top, bottom in zip(strip, rows[:-1], rows[1:], strict=True):
            for right in (False, True):
                number = names.index(name) + right * len(names)
                columns = np.arange(start, stop)
                columns = SIDE // 2 + columns if right else SIDE // 2 - 1 - columns
                here = np.ix_(np.arange(top, bottom), columns)
                area[here] = number
                out[here] = np.arange(bottom - top)[:, None] + 0.5
                up[here] = np.arange(stop - start)[None] + 0.5
                heights[number], widths[number] = bottom - top, stop - start
    cortex = model_cortex()
    of_places = cortex.area + len(names) * (np.arange(len(cortex.area)) >= LEFT)
    far = np.log(np.hypot(cortex.x, cortex.y) / FOVEA) / np.log(HALF_WIDTH / FOVEA)
    high = np.arctan2(cortex.y, np.abs(cortex.x)) / np.pi + 0.5
    return Places(area, out, up), Places(of_places, far * heights[of_places], high * widths[of_places])


def pixels_of(subject: Subject) -> np.ndarray:
    """(64, 64) int64: which of the subject's voxels a pixel shows, -1 for none."""
    pixels, places = map_places()
    voxels = np.flatnonzero(subject.mask)
    shown = np.full((SIDE, SIDE), -1)
    for number in range(2 * len(AREAS)):
        own, here = np.flatnonzero(places.area[voxels] == number), pixels.area == number
        apart = [
            getattr(pixels, axis)[here][:, None] - getattr(places, axis)[voxels[own]][None] for axis in ("out", "up")
        ]
        shown[here] = own[np.hypot(*apart).argmin(1)]
    return shown


def painted(values: Tensor, shown: Tensor) -> Tensor:
    """Voxels (B, V) on a map: (B, 1, 64, 64); ``shown``: as :func:`pixels_of` has it."""
    pixels = values[:, shown.clamp(min=0).flatten()].view(-1, 1, *shown.shape)
    return pixels * (shown >= 0)


def as_uploaded(maps: Tensor) -> np.ndarray:
    """Maps (B, 1, 64, 64) as files have them: (B, 1, 256, 256) float32, each pixel four times as high and wide."""
    larger: np.ndarray = torch.nn.functional.interpolate(maps, FILE_SIDE, mode="nearest").numpy()
    return larger
