"""From a grid of signed distances and colours to a finished object: one closed surface, within a budget of faces.

A half-edge is a side of a face, with a head and a tail, numbered as the corner where it begins. Shapes: V vertices, F
faces, R resolution.
"""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from fast_simplification import simplify
from skimage.measure import marching_cubes
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from pipelines.base import MAX_SEED
from pipelines.edits.surfaces import smoothed
from pipelines.media import Mesh

SMALLEST_PIECE = 0.05  # of all faces: what has fewer hangs in the air and is dropped
FARTHER = (0.0, 0.1, 0.2, 0.35)  # distances at which pieces may meet: up to a voxel and a half of 64 on either side
SMOOTHINGS = 3
ON_THE_SURFACE = 1e-3  # a distance below this counts as this: exactly on a grid point, faces would have no area
APART = 0.01
TAKEN_APART = 2  # times: sheets that came apart at one edge may still meet at the next


class NoSurfaceError(ValueError):
    """The grid is empty, full, or not of finite numbers."""


def no_object(seed: int) -> UserError:
    """What a person is told of a shape without a surface."""
    return UserError(f"No object came of the seed {seed}.", f"Try the seed {(seed + 1) % (MAX_SEED + 1)}.")


def surface(grid: Tensor, faces: int, size_m: float) -> Mesh:
    """What lies inside of a grid (4, R, R, R), coloured, in at most ``faces`` triangles that face outwards.

    The grid is as :class:`models.nets.shape_autoencoder.ShapeAutoencoder` says. The object stands on y = 0, in the
    middle of x and z, and its longest side is ``size_m`` metres. It is closed, also where the grid cuts it off, and
    filled: cavities are dropped, and so are pieces with less than a twentieth of the faces. If what is left is in
    pieces that nearly touch, it is drawn a little thicker, so that they do.

    Raises :class:`NoSurfaceError`.
    """
    grid = grid.float().cpu()
    distances = grid[0].numpy()
    if not grid.isfinite().all() or not distances.min() < 0 < distances.max():
        raise NoSurfaceError("there is nothing inside, or nothing outside")
    vertices, triangles = _whole(distances)
    vertices = smoothed(vertices, triangles, SMOOTHINGS).astype(np.float64)
    if len(triangles) > faces:
        vertices, triangles = simplify(vertices, triangles, target_count=faces)
        for _ in range(TAKEN_APART):
            vertices, triangles = _outside(*_apart(vertices, triangles))  # without the specks that were pinched off
    return Mesh(_placed(vertices, size_m), triangles.astype(np.int32), _colors(grid[1:], vertices))


def is_one_piece(grid: Tensor) -> bool:
    """Whether :func:`surface` makes one thing of a grid (4, R, R, R), and not several or none."""
    distances = grid[0].float().cpu().numpy()
    return bool(np.isfinite(distances).all() and distances.min() < 0 < distances.max()) and (
        _pieces(_whole(distances)[1]) == 1
    )


def _whole(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface as it is if that is one piece, else a little farther out, where thin parts that broke meet again.

    What is in several pieces there too is several things, and stays as it is.
    """
    surfaces = (_outside(*_boundary(distances - farther)) for farther in FARTHER)
    first = next(surfaces)
    return first if _pieces(first[1]) == 1 else next((one for one in surfaces if _pieces(one[1]) == 1), first)


def _pieces(faces: np.ndarray) -> int:
    touching = trimesh.graph.face_adjacency(faces)
    return int(trimesh.graph.connected_component_labels(touching, node_count=len(faces)).max()) + 1


def _boundary(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes: vertices (V, 3) in voxels, faces (F, 3). Around the grid there is nothing, so it is closed."""
    padded = np.pad(distances, 1, constant_values=1.0)
    padded[np.abs(padded) < ON_THE_SURFACE] = ON_THE_SURFACE
    vertices, faces, _, _ = marching_cubes(padded, 0.0)
    return vertices - 1, faces


def _outside(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces that are large enough, facing outwards; the walls of cavities face inwards and are no pieces."""
    touching = trimesh.graph.face_adjacency(faces)
    piece = trimesh.graph.connected_component_labels(touching, node_count=len(faces))
    sizes = np.bincount(piece)
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    volumes = np.bincount(piece, (a * np.cross(b, c)).sum(axis=1))
    largest = sizes.argmax()
    if volumes[largest] < 0:
        faces, volumes = faces[:, ::-1], -volumes
    kept = (volumes > 0) & (sizes >= SMALLEST_PIECE * len(faces))
    kept[largest] = True
    used, renumbered = np.unique(faces[kept[piece]], return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3)


def _apart(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface with a vertex of its own for each of the sheets that simplification pressed together.

    Every half-edge is paired with one the other way, and a vertex is what the ends of pairs join: an edge of four faces
    becomes two of two. Vertices that were one are drawn a little into their own sheet, or a program that merges equal
    ones would undo this.
    """
    faces = _unfolded(faces)
    heads = np.arange(faces.size)
    tails = np.roll(heads.reshape(-1, 3), -1, axis=1).ravel()
    begins, ends = faces.ravel(), faces.ravel()[tails]
    ahead = begins < ends
    lower, upper = np.where(ahead, heads, tails), np.where(ahead, tails, heads)
    edge = np.minimum(begins, ends) * len(vertices) + np.maximum(begins, ends)
    _, edge, count = np.unique(edge, return_inverse=True, return_counts=True)

    def joined(half_edges: np.ndarray, sheet: np.ndarray) -> np.ndarray:
        """The vertex at each corner, by these ``half_edges`` only; pairs are on one ``sheet`` at the lower end."""
        ways = (np.flatnonzero(half_edges & way) for way in (ahead, ~ahead))
        one, other = (way[np.lexsort((sheet[lower[way]], edge[way]))] for way in ways)
        pairs = np.concatenate([np.stack([end[one], end[other]], axis=1) for end in (lower, upper)])
        return trimesh.graph.connected_component_labels(pairs, node_count=faces.size)

    sheets = joined(count[edge] == 2, np.zeros_like(heads))
    corners = joined(np.ones_like(ahead), sheets)
    old = np.zeros(corners.max() + 1, np.int64)
    old[corners] = faces.ravel()
    own, middles = vertices[old], np.zeros((len(old), 3))
    np.add.at(middles, corners, vertices[faces].mean(axis=1).repeat(3, axis=0))
    middles /= np.bincount(corners)[:, None]
    shared = np.bincount(old)[old] > 1
    own[shared] += APART * (middles - own)[shared]
    return own, corners.reshape(-1, 3)


def _unfolded(faces: np.ndarray) -> np.ndarray:
    """Without faces that have two corners in one, and without faces back to back."""
    corners = np.sort(faces, axis=1)
    a, b, c = faces.T
    side = np.where((a < b) ^ (b < c) ^ (c < a), 1, -1)
    _, which = np.unique(corners, axis=0, return_inverse=True)
    seen = np.bincount(which, side)[which] != 0
    return faces[seen & (corners[:, 0] < corners[:, 1]) & (corners[:, 1] < corners[:, 2])]


def _placed(vertices: np.ndarray, size_m: float) -> np.ndarray:
    """In metres, (V, 3) float32."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    foot = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    return ((vertices - foot) * (size_m / (high - low).max())).astype(np.float32)


def _colors(colors: Tensor, vertices: np.ndarray) -> np.ndarray:
    """(V, 3) uint8: what ``colors`` (3, R, R, R) are at vertices (V, 3) in voxels, trilinearly."""
    places = torch.from_numpy(vertices).float() * (2 / (colors.shape[1] - 1)) - 1
    places = places.flip(1)[None, None, None]
    read = F.grid_sample(colors[None], places, padding_mode="border", align_corners=True)[0, :, 0, 0].T
    return (read.clamp(0, 1) * 255).round().byte().numpy()
