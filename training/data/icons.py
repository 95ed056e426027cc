"""A picture of a model that came without one: textured and lit, in three-quarter view on white."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.data.common import SIZE, on_white
from training.data.surfaces import MIN_ALPHA, Part, colors_at

AZIMUTH, ELEVATION = math.radians(30), math.radians(20)  # the viewer stands to the right of the front, and higher
SIDE = 2 * SIZE  # drawn larger, then reduced: soft edges
TOGETHER = 1_000_000  # pixels that are tried at once
MARGIN = 0.04  # of the icon, on either side
AMBIENT = 0.55
LIGHT = (-0.5, 0.8, 1.0)  # over the viewer's left shoulder: right, up, towards the viewer


def draw_icon(parts: Sequence[Part]) -> Image.Image:
    """128x128 RGB. Raises :class:`ValueError` if nothing of the ``parts`` can be seen."""
    axes = _axes()
    seen = [part.corners @ axes.T for part in parts]
    low = np.min([corners.min((0, 1)) for corners in seen], 0)
    high = np.max([corners.max((0, 1)) for corners in seen], 0)
    scale = (SIDE - 1) / max(float((high - low)[:2].max()), 1e-12)
    found = [_fragments(part, (corners - low) * scale) for part, corners in zip(parts, seen, strict=True)]
    pixels, depths, colors = (np.concatenate(columns) for columns in zip(*found, strict=True))
    if not len(pixels):
        raise ValueError("nothing of the model can be seen")
    order = np.argsort(depths, kind="stable")
    picture = np.zeros((SIDE * SIDE, 4), np.uint8)
    picture[pixels[order]] = colors[order]  # what is nearest is written last
    image = Image.fromarray(picture.reshape(SIDE, SIDE, 4)[::-1], "RGBA")
    drawn = image.crop(image.getbbox())
    return on_white(drawn, math.ceil(max(drawn.size) / (1 - 2 * MARGIN)))


def _axes() -> np.ndarray:
    """Unit vectors to the right and to the top of the picture, and from the model to the viewer."""
    sin_a, cos_a, sin_e, cos_e = math.sin(AZIMUTH), math.cos(AZIMUTH), math.sin(ELEVATION), math.cos(ELEVATION)
    up, back = (-sin_a * sin_e, cos_e, -cos_a * sin_e), (sin_a * cos_e, sin_e, cos_a * cos_e)
    return np.array([(cos_a, 0, -sin_a), up, back])


def _fragments(part: Part, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a part covers. ``corners``: (F, 3, 3) in pixels to the right, pixels up, and towards the viewer.

    Returns the pixel (N,) counted from below, the depth (N,), the greater the nearer, and the colour (N, 4) uint8.
    """
    pixels, places, numbers = _covered(corners[..., :2])
    colors = colors_at(part, numbers, places)
    opaque = colors[:, 3] > MIN_ALPHA
    depths = (corners[numbers, :, 2] * places[..., 0]).sum(1)
    lit = colors[:, :3] * _shades(corners)[numbers, None]
    rgba = np.insert((lit * 255).round().clip(0, 255), 3, 255, 1).astype(np.uint8)
    return pixels[opaque], depths[opaque], rgba[opaque]


def _covered(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (N,) within triangles (F, 3, 2), the weights (N, 3, 1) of the corners there, and which triangles (N,).

    Triangles of like size are done together: each is tried at all pixels of a square that holds it.
    """
    low = np.ceil(corners.min(1)).astype(int)
    sides = (np.floor(corners.max(1)).astype(int) - low).max(1) + 1
    (x1, y1), (x2, y2) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    areas = x1 * y2 - x2 * y1
    found = [(np.empty(0, int), np.empty((0, 3, 1)), np.empty(0, int))]
    for size in 2 ** np.arange(math.ceil(math.log2(SIDE)) + 1):
        chosen = np.flatnonzero((sides > size // 2) & (sides <= size) & (np.abs(areas) > 1e-9))
        for some in np.array_split(chosen, len(chosen) * size**2 // TOGETHER + 1):
            grid = low[some, None, None] + np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1)
            x, y = np.moveaxis(grid - corners[some, None, None, 0], 3, 0)
            ax, ay, bx, by, area = (values[some, None, None] for values in (x1, y1, x2, y2, areas))
            second, third = (x * by - bx * y) / area, (ax * y - x * ay) / area
            inside = (second >= -1e-9) & (third >= -1e-9) & (second + third <= 1 + 1e-9)
            second, third = second[inside], third[inside]
            weights = np.stack([1 - second - third, second, third], 1)[..., None]
            columns, rows = grid[inside].T
            found.append((rows * SIDE + columns, weights, some[np.nonzero(inside)[0]]))
    pixels, weights, faces = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return pixels, weights, faces


def _shades(corners: np.ndarray) -> np.ndarray:
    """How bright triangles (F, 3, 3) are, (F,): both sides alike, as the files do not agree on which is the front."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals *= np.where(normals[:, 2:] < 0, -1, 1) / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    light = np.asarray(LIGHT) / np.linalg.norm(LIGHT)
    shades: np.ndarray = AMBIENT + (1 - AMBIENT) * (normals @ light).clip(0)
    return shades
