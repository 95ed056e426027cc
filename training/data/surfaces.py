"""From the coloured surface of a 3D model to a row of a table of shapes, whatever file the model comes from.

Points are sampled on the surface by area, with their texture or material colour, and binned into a grid over the
model's cube (its longest side is 0.9 of the cube; z up); the colours of a voxel are averaged. Glass is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from training.data.common import encode_webp

RESOLUTION = 64
POINTS = 150_000  # on one model
MIN_POINTS = 200  # on one of its parts
FILLED_SHARE = 0.9
MIN_ALPHA = 0.3  # glass has less
FLAT_SHARE = 0.02  # a shape thinner than this share of its longest side is flat
GREY = (0.7, 0.7, 0.7, 1.0)
ICON_WEBP = {"quality": 92}


@dataclass(frozen=True, eq=False)
class Part:
    """Triangles that look alike. ``corners`` (F, 3, 3), y up.

    ``texture`` (H, W, 4) uint8 RGBA with ``uv`` (F, 3, 2), whose v is 0 at the last row; without it, they are of
    ``color``, RGBA. ``tint`` (F, 3, 3): RGB of the corners that the texture is multiplied by, or None.
    """

    corners: np.ndarray
    texture: np.ndarray | None = None
    uv: np.ndarray | None = None
    color: Sequence[float] = GREY
    tint: np.ndarray | None = None


@dataclass(frozen=True)
class Voxels:
    """``occupied``: (64^3,) bool, index (z*64 + y)*64 + x; ``colors``: (number of occupied, 3) float in [0, 1]."""

    occupied: np.ndarray
    colors: np.ndarray
    is_flat: bool


def opaque(texture: np.ndarray) -> np.ndarray:
    """(H, W, 4) without its transparency."""
    solid = texture.copy()
    solid[..., 3] = 255
    return solid


def sample(parts: Sequence[Part], points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """About ``points`` places (N, 3) on the surface of a model, evenly by area, and their colours (N, 4)."""
    rng = np.random.default_rng(0)
    areas = [_areas(part.corners) for part in parts]
    total = sum(float(area.sum()) for area in areas)
    places, colors = [], []
    for part, area in zip(parts, areas, strict=True):
        faces, weights = _places(area, max(MIN_POINTS, int(points * area.sum() / total)), rng)
        places.append((part.corners[faces] * weights).sum(1))
        colors.append(colors_at(part, faces, weights))
    return np.concatenate(places), np.concatenate(colors)


def _areas(corners: np.ndarray) -> np.ndarray:
    """(F,) of triangles (F, 3, 3), none of them zero."""
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas: np.ndarray = np.nan_to_num(np.linalg.norm(normals, axis=1)) / 2 + 1e-18
    return areas


def _places(areas: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` random places on triangles: face indices (count,) and barycentric weights (count, 3, 1)."""
    faces = rng.choice(len(areas), count, p=areas / areas.sum())
    root, split = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return faces, np.concatenate([1 - root, root * (1 - split), root * split], 1)[..., None]


def colors_at(part: Part, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, 4) RGBA of the texture at these places, else the part's colour."""
    if part.texture is None or part.uv is None:
        return np.tile(np.asarray(part.color, np.float32), (len(faces), 1))
    height, width = part.texture.shape[:2]
    at = np.mod((part.uv[faces] * weights).sum(1), 1)
    rows, columns = ((1 - at[:, 1]) * (height - 1)).astype(int), (at[:, 0] * (width - 1)).astype(int)
    colors = part.texture[rows, columns] / np.float32(255)
    if part.tint is not None:
        colors = colors * np.insert((part.tint[faces] * weights).sum(1), 3, 1, 1)
    return colors


def voxelize(places: np.ndarray, colors: np.ndarray) -> Voxels:
    """Bin surface points (N, 3; y up) with their colours (N, 4) into the grid. Raises :class:`ValueError` for none."""
    keep = (colors[:, 3] > MIN_ALPHA) & np.isfinite(places).all(1)
    if not keep.any():
        raise ValueError("nothing of the model can be seen")
    places, colors = places[keep], colors[keep, :3]
    low, high = places.min(0), places.max(0)
    side = (high - low).max()
    centred = (places - (low + high) / 2) / (side / 2) * FILLED_SHARE
    z_up = centred[:, [0, 2, 1]] * [1, -1, 1]
    x, y, z = np.clip(((z_up + 1) / 2 * RESOLUTION).astype(int), 0, RESOLUTION - 1).T
    cells = (z * RESOLUTION + y) * RESOLUTION + x
    counts = np.bincount(cells, minlength=RESOLUTION**3)
    occupied = counts > 0
    sums = [np.bincount(cells, channel, RESOLUTION**3)[occupied] for channel in colors.T]
    is_flat = bool(((high - low) / side).min() < FLAT_SHARE)
    return Voxels(occupied, np.stack(sums, 1) / counts[occupied, None], is_flat)


def shape_columns(voxels: Voxels, icon: Image.Image) -> dict[str, Any]:
    """What a row of a table says of the shape itself. ``mask`` holds the packed occupancy, ``rgb`` the colours of the
    occupied voxels in the same order, both compressed."""
    return {
        "icon": encode_webp(icon, ICON_WEBP),
        "flat": voxels.is_flat,
        "voxels": int(voxels.occupied.sum()),
        "mask": zlib.compress(np.packbits(voxels.occupied).tobytes(), 9),
        "rgb": zlib.compress((voxels.colors * 255).round().astype(np.uint8).tobytes(), 9),
    }
