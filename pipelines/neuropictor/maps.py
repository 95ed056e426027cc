"""Simulated brains (``sim-v1``) on a map of the visual cortex, as NeuroPictor (arXiv 2403.18211) reads brains.

No subject has a folded surface, so the map is of the model cortex: the left hemisphere on the left, the right one
mirrored, V1 in the middle, and each area a rectangle. Within it neighbours see neighbouring parts of the picture: from
the fovea outwards along one side, from the lower field to the upper one along the other. A pixel shows the nearest
voxel of its area, as pixels of a real map show the nearest vertex; around the cortex it is 0. It is a scheme of our
own: the published model, which knows its authors' maps of folded cortex, cannot read it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from torch import Tensor

from pipelines.fmri.flat_map import EDGE, FOVEA, Places, area_shares, known_places

SIDE = 64  # about two pixels for each voxel
MARGIN = 4  # pixels of background at the outer edges
# From the middle outwards, and those of one strip from top to bottom.
STRIPS = (("V1",), ("V2",), ("V3", "V4"), ("LO", "parahippocampal"), ("ventral",), ("dorsal",))


def rectangles() -> dict[str, tuple[slice, slice]]:
    """Rows and columns of every area, with columns counted from the middle outwards; as large as its share of the
    cortex."""
    shares = area_shares()
    widths = np.cumsum([0, *(sum(shares[name] for name in strip) for strip in STRIPS)])
    edges = np.rint(widths * (SIDE // 2 - MARGIN)).astype(int)
    found = {}
    for strip, start, stop in zip(STRIPS, edges[:-1], edges[1:], strict=True):
        heights = np.cumsum([0, *(shares[name] for name in strip)]) / sum(shares[name] for name in strip)
        rows = np.rint(MARGIN + heights * (SIDE - 2 * MARGIN)).astype(int)
        for name, top, bottom in zip(strip, rows[:-1], rows[1:], strict=True):
            found[name] = slice(top, bottom), slice(start, stop)
    return found


@cache
def pixels_of(subject: str) -> np.ndarray:
    """(64, 64) int64: which voxel of a simulated subject, "S1" to "S8", a pixel shows, -1 for none."""
    places = known_places()[subject]
    shown = np.full((SIDE, SIDE), -1)
    for area, (rows, columns) in rectangles().items():
        for left in (True, False):
            own = np.flatnonzero((places.area == area) & (places.left == left))
            side = shown[:, SIDE // 2 - 1 :: -1] if left else shown[:, SIDE // 2 :]
            side[rows, columns] = own[_nearest(places, own, *side[rows, columns].shape)]
    return shown


def _nearest(places: Places, own: np.ndarray, height: int, width: int) -> np.ndarray:
    """Of each pixel of an area's rectangle, (height, width): the nearest of the voxels ``own``, by number in these."""
    x, y = places.sees[own].T
    out = height * np.log(np.hypot(x, y) / FOVEA) / np.log(EDGE / FOVEA)
    up = width * (np.arctan2(y, np.abs(x)) / np.pi + 0.5)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    apart = np.hypot(rows[:, None, None] - out, columns[None, :, None] - up)
    nearest: np.ndarray = apart.argmin(2)
    return nearest


def maps_of(values: Tensor, shown: Tensor) -> Tensor:
    """Voxels (B, V) on a map: (B, 1, 64, 64); ``shown``: as :func:`pixels_of` has it."""
    pixels = values[:, shown.clamp(min=0).flatten()].view(-1, 1, *shown.shape)
    return pixels * (shown >= 0)
