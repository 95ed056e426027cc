"""Vertex colours in GLB: glTF 2.0 has them linear in ``COLOR_0``, and ours are sRGB."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import trimesh

HIDDEN = "_OLOR_0"  # trimesh reads attributes that begin with "_" as they are


def linear_of(srgb: np.ndarray) -> np.ndarray:
    """uint8 -> float32 in 0..1 (IEC 61966-2-1)."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)[srgb]


def srgb_of(linear: np.ndarray) -> np.ndarray:
    """Integers as shares of their type's largest, or floats in 0..1 (what is beyond is cut off) -> uint8."""
    most = 1 if linear.dtype.kind == "f" else np.iinfo(linear.dtype).max
    share = np.nan_to_num(linear.astype(np.float64) / most).clip(0, 1)
    srgb = np.where(share <= 0.0031308, share * 12.92, 1.055 * share ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().astype(np.uint8)


def glb_of(mesh: Any, vertex_colors: np.ndarray | None) -> bytes:
    """``mesh``: trimesh's, without colours; ``vertex_colors``: (V, 3) uint8.

    trimesh itself writes 8 bits, with which dark colours become one when they are linear; of 16 it reads the lower
    8. So they are floats.
    """
    if vertex_colors is None:
        return bytes(mesh.export(file_type="glb"))
    mesh.vertex_attributes[HIDDEN] = linear_of(vertex_colors)
    return bytes(mesh.export(file_type="glb", tree_postprocessor=_name_colors))


def _name_colors(tree: dict[str, Any]) -> None:
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    attributes["COLOR_0"] = attributes.pop(HIDDEN)


def hide_colors(data: bytes) -> bytes:
    """A GLB whose colours trimesh leaves to :func:`show_colors`; of those with 16 bits it would keep the lower 8."""
    end = 20 + struct.unpack_from("<I", data, 12)[0]
    return data[:20] + data[20:end].replace(b'"COLOR_0"', f'"{HIDDEN}"'.encode()) + data[end:]


def show_colors(scene: trimesh.Scene, old: str) -> None:
    """Gives the surfaces of a loaded GLB their colours, sRGB; those that do not fit its vertices are left out.

    ``old``: what is in the metadata of our own files, whose colours were sRGB while they had 8 bits.
    """
    for shape in scene.geometry.values():
        if not isinstance(shape, trimesh.Trimesh) or HIDDEN not in shape.vertex_attributes:
            continue
        colors = np.asarray(shape.vertex_attributes.pop(HIDDEN))
        if colors.shape not in ((len(shape.vertices), 3), (len(shape.vertices), 4)):
            continue
        ours = colors.dtype == np.uint8 and old in shape.metadata
        visual: Any = shape.visual
        visual.vertex_colors = colors[:, :3] if ours else srgb_of(colors[:, :3])
