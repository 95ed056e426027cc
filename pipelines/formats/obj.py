"""OBJ with its colours in a texture: a 3-D object as other programs show it, who mostly ignore colours of vertices.

Each face has a triangle of the texture of its own, two of them in a square cell. Within a face colours change evenly,
so a few texels hold them exactly; around it they go on changing, so that nothing bleeds in.

Shapes: V vertices, F faces, C texels a side of a cell, L of a triangle's legs.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

SMALLEST_CELL, LARGEST_CELL = 8, 32
USUAL_SIDE = 1024  # texels; more where there are so many faces that cells would be too small
MOST_TEXTURED = 2**20  # faces
APART = 4  # texels of a cell that belong to neither triangle, so that none is read with the other's
# Fully rough and without shine: the colours are what is seen.
MATERIAL = "newmtl colours\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\nmap_Kd {texture}\n"


def textured_obj(plain: str, faces: np.ndarray, vertex_colors: np.ndarray, name: str) -> dict[str, bytes]:
    """The object, its material and its texture as files by name; ``plain``: the object as an OBJ without texture.

    ``faces``: (F, 3); ``vertex_colors``: (V, 3) uint8; ``name``: of the object's file. With more than
    ``MOST_TEXTURED`` faces, the object alone, whose colours are at its vertices.
    """
    if len(faces) > MOST_TEXTURED:
        return {name: plain.encode()}
    # A blank would end the name; and what is called as the object but for its ending may be somebody's picture.
    known_as = re.sub(r"\s+", "_", name)
    texture, places = baked(vertex_colors[faces].astype(np.float32))
    corners = np.arange(1, 3 * len(faces) + 1).reshape(-1, 3)
    numbers = np.stack([faces + 1, corners], axis=2).reshape(-1, 6).tolist()
    lines = [f"mtllib {known_as}.mtl", plain.partition("\nf ")[0].rstrip()]
    lines += ["vt {:.7f} {:.7f}".format(*place) for place in places.reshape(-1, 2).tolist()]
    lines += ["usemtl colours", *("f {}/{} {}/{} {}/{}".format(*row) for row in numbers)]
    stored = io.BytesIO()
    Image.fromarray(texture).save(stored, "PNG")
    return {
        name: ("\n".join(lines) + "\n").encode(),
        f"{known_as}.mtl": MATERIAL.format(texture=f"{known_as}.png").encode(),
        f"{known_as}.png": stored.getvalue(),
    }


def baked(corner_colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (F, 3, 3) at the corners of faces, 0 to 255 -> a texture (S, S, 3) uint8, and places (F, 3, 2) on it.

    Places are as OBJ has them: from the lower left, of the texture's side.
    """
    cells = -(-len(corner_colors) // 2)
    across = int(np.ceil(np.sqrt(cells)))
    size = int(np.clip(USUAL_SIDE // across, SMALLEST_CELL, LARGEST_CELL))
    leg = size - APART
    # The lower triangle's right angle is next to the cell's first texel, the upper one's next to its last.
    middles = np.arange(size) + 0.5
    down, right = np.meshgrid(middles, middles, indexing="ij")
    is_upper = right + down > size
    weights = np.where(is_upper, size - 1 - right, right - 1) / leg, np.where(is_upper, size - 1 - down, down - 1) / leg
    first = np.stack([1 - weights[0] - weights[1], *weights])  # (3, C, C)
    padded = np.zeros((across * across, 2, 3, 3), np.float32)
    padded.reshape(-1, 3, 3)[: len(corner_colors)] = corner_colors
    texture = np.empty((across, size, across, size, 3), np.uint8)
    for row, pairs in enumerate(padded.reshape(across, across, 2, 3, 3)):
        mixed = np.einsum("kyx,ntkc->tynxc", first, pairs).round().clip(0, 255)
        texture[row] = np.where(is_upper[:, None, :, None], mixed[1], mixed[0])
    numbers = np.arange(len(corner_colors))
    cell, upper = numbers // 2, (numbers % 2)[:, None, None]
    origin = np.stack([cell % across, cell // across], axis=1)[:, None] * size
    corners = np.array([[1, 1], [1 + leg, 1], [1, 1 + leg]])
    places = (origin + np.where(upper, size - corners, corners)) / (across * size)
    places[:, :, 1] = 1 - places[:, :, 1]
    return texture.reshape(across * size, across * size, 3), places


def without_texture(data: bytes) -> bytes:
    """An OBJ file's corners as vertices alone: at the seams of a texture they would count as several."""
    return re.sub(rb"(?m)^f\s.*$", lambda line: re.sub(rb"/[\d/-]*", b"", line[0]), data)
