"""Pictures of a mesh: a rasteriser with a depth buffer, in numpy, for thumbnails, turntables and sheets of views.

Shapes: V vertices, F faces; a corner is one of a face's three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import trimesh
from PIL import Image

FINER = 2  # drawn as many times larger, so that edges are smooth
AMBIENT = 0.45
LIGHT = np.array([-0.5, 0.8, 1.0]) / math.sqrt(1.89)  # over the viewer's left shoulder
GREY = 190  # of a mesh without colours
WHITE = (255, 255, 255)
MARGIN = 0.06
CREASE = math.cos(math.radians(40))  # faces that meet more sharply than this have an edge between them
AT_ONCE = 2**21  # pixels of the boxes around the faces that are drawn together
THINNEST = 1e-9  # square pixels: smaller faces are edges on


@dataclass(frozen=True)
class Frame:
    """What of the picture's plane is shown: a square around ``middle`` (2,) with a side of ``extent``, without margin.

    In the mesh's unit, along the camera's axes.
    """

    middle: np.ndarray
    extent: float


def mesh_view(
    vertices: np.ndarray,
    faces: np.ndarray,
    vertex_colors: np.ndarray | None,
    side: int,
    azimuth_degrees: float = 30.0,
    elevation_degrees: float = 20.0,
) -> np.ndarray:
    """One view that fills the picture, on white; see :class:`MeshViews`."""
    return MeshViews(vertices, faces, vertex_colors).drawn(side, azimuth_degrees, elevation_degrees)


class MeshViews:
    """A mesh, (V, 3) with Y up, (F, 3) and (V, 3) uint8, to be seen without perspective from many sides.

    Azimuth 0 looks at the front, from +z; 90 from the right, +x. Elevation 90 looks from above. Either side of a face
    is lit alike, so that it does not matter which way round a file has its corners.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, vertex_colors: np.ndarray | None) -> None:
        self.vertices = vertices.astype(np.float64)
        self.faces = faces
        colors = np.full(vertices.shape, GREY, np.uint8) if vertex_colors is None else vertex_colors
        self.corner_colors = colors[faces].astype(np.float64)
        self.face_normals, self.corner_normals = smooth_normals(self.vertices, faces)

    def frame(self, azimuth_degrees: float, elevation_degrees: float) -> Frame:
        """What just holds the mesh in this view."""
        seen = self.vertices @ _camera(azimuth_degrees, elevation_degrees)[:2].T
        low, high = seen.min(0), seen.max(0)
        return Frame((low + high) / 2, float((high - low).max()))

    def turning_frame(self, elevation_degrees: float) -> Frame:
        """What just holds the mesh from every azimuth; it has to stand with its axis in x = z = 0."""
        elevation = math.radians(elevation_degrees)
        radii, heights = np.hypot(self.vertices[:, 0], self.vertices[:, 2]), self.vertices[:, 1] * math.cos(elevation)
        reach = radii * abs(math.sin(elevation))
        low, high = float((heights - reach).min()), float((heights + reach).max())
        return Frame(np.array([0.0, (low + high) / 2]), max(high - low, 2 * float(radii.max())))

    def drawn(
        self,
        side: int,
        azimuth_degrees: float,
        elevation_degrees: float,
        frame: Frame | None = None,
        background: tuple[int, ...] = WHITE,
    ) -> np.ndarray:
        """(side, side, 3) uint8; ``frame``: :meth:`frame`, if it is not given."""
        frame = frame or self.frame(azimuth_degrees, elevation_degrees)
        camera = _camera(azimuth_degrees, elevation_degrees)
        width = side * FINER
        scale = width * (1 - 2 * MARGIN) / max(frame.extent, 1e-9)
        places = (self.vertices @ camera.T - (*frame.middle, 0)) * (scale, -scale, scale) + (width / 2, width / 2, 0)
        faces = _Faces.of(places[self.faces])
        nearest = faces.nearest(width)
        pixels = (nearest >= 0).nonzero()[0]
        face = nearest[pixels]
        # Normals on the side that is seen.
        facing = np.where(self.face_normals @ camera[2] < 0, -1, 1)[:, None]
        shades = AMBIENT + (1 - AMBIENT) * (facing * (self.corner_normals @ (LIGHT @ camera))).clip(0)
        lit = (self.corner_colors * shades[:, :, None]).astype(np.float32)
        weights = np.stack(faces.weights(face, pixels % width + 0.5, pixels // width + 0.5), axis=1).astype(np.float32)
        painted, covered = np.zeros((width * width, 3), np.uint8), np.zeros(width * width, np.uint8)
        painted[pixels] = (weights[:, None] @ lit[face])[:, 0].clip(0, 255)
        covered[pixels] = 255
        objects, mask = (_shrunk(layer.reshape(width, width, -1), side) for layer in (painted, covered))
        return (objects + (1 - mask / 255) * np.array(background)).round().astype(np.uint8)


def _shrunk(layer: np.ndarray, side: int) -> np.ndarray:
    """(W, W, C) uint8 -> (side, side, C)."""
    picture = Image.fromarray(layer.squeeze()).resize((side, side), Image.Resampling.BOX)
    return np.asarray(picture).reshape(side, side, -1)


def _camera(azimuth_degrees: float, elevation_degrees: float) -> np.ndarray:
    """Rows: to the right and to the top of the picture, and towards the viewer."""
    azimuth, elevation = math.radians(azimuth_degrees), math.radians(elevation_degrees)
    sin_a, cos_a, sin_e, cos_e = math.sin(azimuth), math.cos(azimuth), math.sin(elevation), math.cos(elevation)
    return np.array(
        [[cos_a, 0, -sin_a], [-sin_a * sin_e, cos_e, -cos_a * sin_e], [sin_a * cos_e, sin_e, cos_a * cos_e]]
    )


def smooth_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals of the faces (F, 3) and at their corners (F, 3, 3).

    A corner's is the mean of those faces around it, large ones first, to which it leads over edges that are no creases.
    """
    _, places = np.unique(vertices, axis=0, return_inverse=True)
    welded = places[faces]
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    areas = np.cross(b - a, c - a)
    normals = _unit(areas)
    pairs, edges = trimesh.graph.face_adjacency(welded, return_edges=True)
    soft = (normals[pairs[:, 0]] * normals[pairs[:, 1]]).sum(1) > CREASE
    pairs, edges = pairs[soft], edges[soft]
    # At either end of such an edge, the corner of one face and the corner of the other.
    ends = [
        3 * pairs + (welded[pairs] == edges[:, None, None, end]).argmax(2) if len(pairs) else pairs for end in (0, 1)
    ]
    group = trimesh.graph.connected_component_labels(np.concatenate(ends), node_count=faces.size)
    around = areas.repeat(3, axis=0)
    sums = np.stack([np.bincount(group, column) for column in around.T], axis=1)
    return normals, _unit(sums)[group].reshape(-1, 3, 3)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-30)


@dataclass(frozen=True)
class _Faces:
    """Faces on a picture: ``corners`` (F, 3, 3) in pixels, z towards the viewer.

    ``across`` and ``down`` (F, 3): how the weights of a face's corners change from pixel to pixel; ``broad``: the
    numbers of those faces that are not seen edge on.
    """

    corners: np.ndarray
    across: np.ndarray
    down: np.ndarray
    broad: np.ndarray

    @classmethod
    def of(cls, corners: np.ndarray) -> _Faces:
        sides = np.roll(corners, -2, axis=1) - np.roll(corners, -1, axis=1)  # that opposite of each corner
        area = sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]
        broad = (np.abs(area) > THINNEST).nonzero()[0]
        area = np.where(np.abs(area) > THINNEST, area, np.inf)[:, None]
        return cls(corners, -sides[:, :, 1] / area, sides[:, :, 0] / area, broad)

    def weights(self, face: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
        """Of each corner of the faces (N,) at the places x, y (N,)."""
        x, y = x - self.corners[face, 0, 0], y - self.corners[face, 0, 1]
        second, third = (x * self.across[face, corner] + y * self.down[face, corner] for corner in (1, 2))
        return [1 - second - third, second, third]

    def nearest(self, width: int) -> np.ndarray:
        """The number of the face that is seen at each pixel (width * width,), -1 where there is none."""
        nearest, depths = np.full(width * width, -1), np.full(width * width, -np.inf)
        low, high = (_pixel(end(self.corners[:, :, :2], axis=1), width) for end in (np.min, np.max))
        boxes = np.cumsum((high - low)[self.broad].prod(1))
        cuts = np.searchsorted(boxes, np.arange(AT_ONCE, boxes[-1:].sum(), AT_ONCE))
        deepening = (self.across * self.corners[:, :, 2]).sum(1)
        for part in np.split(self.broad, np.unique(cuts)):
            height = high[part, 1] - low[part, 1]
            face, row = part.repeat(height), _ranges(low[part, 1], height)
            start, end = (_pixel(place, width) for place in self._spans(face, row + 0.5))
            length = (end - start).clip(0)
            weights = self.weights(face, start + 0.5, row + 0.5)
            begin = sum(weight * self.corners[face, corner, 2] for corner, weight in enumerate(weights))
            along = _ranges(np.zeros_like(length), length)
            pixel = (row * width + start).repeat(length) + along
            depth = begin.repeat(length) + along * deepening[face].repeat(length)
            np.maximum.at(depths, pixel, depth)
            seen = depth == depths[pixel]
            nearest[pixel[seen]] = face.repeat(length)[seen]
        return nearest

    def _spans(self, face: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From where to where each ``face`` (N,) covers the horizontal at the height ``line`` (N,)."""
        start, end = np.full(len(face), np.inf), np.full(len(face), -np.inf)
        for corner in range(3):
            here, there = self.corners[:, corner], self.corners[:, corner - 1]
            rise = there[:, 1] - here[:, 1]
            slope = (there[:, 0] - here[:, 0]) / np.where(rise == 0, 1, rise)
            from_here = line - here[face, 1]
            crosses = (from_here >= 0) != (line >= there[face, 1])
            place = here[face, 0] + from_here * slope[face]
            np.minimum(start, place, out=start, where=crosses)
            np.maximum(end, place, out=end, where=crosses)
        return start, end


def _pixel(place: np.ndarray, width: int) -> np.ndarray:
    """The first pixel whose middle lies there or beyond."""
    return np.ceil(place - 0.5).clip(0, width).astype(np.int64)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The ``lengths`` (N,) numbers from each of ``starts`` on, one after the other."""
    return np.arange(lengths.sum()) + (starts - np.cumsum(lengths) + lengths).repeat(lengths)
