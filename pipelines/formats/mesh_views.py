"""A picture of a mesh: the painter's algorithm, far triangles first, for thumbnails."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

FINER = 2  # drawn as many times larger, so that edges are smooth
AMBIENT = 0.45
GREY = 190  # of a mesh without colours
MARGIN = 0.06


def mesh_view(
    vertices: np.ndarray,
    faces: np.ndarray,
    vertex_colors: np.ndarray | None,
    side: int,
    azimuth_degrees: float = 30.0,
    elevation_degrees: float = 20.0,
) -> np.ndarray:
    """(V, 3) with Y up, (F, 3) and (V, 3) uint8 seen without perspective, on white: (side, side, 3) uint8.

    Azimuth 0 looks at the front, from +z; 90 from the right, +x. Either side of a triangle is lit alike, so that it
    does not matter which way round a file has its corners.
    """
    seen = vertices.astype(np.float64) @ _camera(math.radians(azimuth_degrees), math.radians(elevation_degrees)).T
    low, high = seen.min(0), seen.max(0)
    extent = max(float((high - low)[:2].max()), 1e-9)
    width = side * FINER
    places = (seen[:, :2] - (low + high)[:2] / 2) / extent * width * (1 - 2 * MARGIN)
    places = places * (1, -1) + width / 2
    corners = seen[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    light = np.array([-0.5, 0.8, 1.0]) / math.sqrt(1.89)
    shade = AMBIENT + (1 - AMBIENT) * np.abs(normals @ light)
    colors = np.full((len(faces), 3), GREY) if vertex_colors is None else vertex_colors[faces].mean(1)
    painted = (colors * shade[:, None]).round().astype(np.uint8)
    picture = Image.new("RGB", (width, width), "white")
    draw = ImageDraw.Draw(picture)
    order = corners[:, :, 2].mean(1).argsort()
    outlines = places[faces].reshape(-1, 6)[order].tolist()
    for outline, color in zip(outlines, painted[order].tolist(), strict=True):
        draw.polygon(outline, fill=tuple(color))
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX))


def _camera(azimuth: float, elevation: float) -> np.ndarray:
    """Rows: to the right and to the top of the picture, and towards the viewer."""
    sin_a, cos_a, sin_e, cos_e = math.sin(azimuth), math.cos(azimuth), math.sin(elevation), math.cos(elevation)
    return np.array(
        [[cos_a, 0, -sin_a], [-sin_a * sin_e, cos_e, -cos_a * sin_e], [sin_a * cos_e, sin_e, cos_a * cos_e]]
    )
