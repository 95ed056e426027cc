"""Triangle surfaces made simpler and smoother, in numpy: trimesh would need further libraries for either."""

from __future__ import annotations

import numpy as np

COARSEST_GRID, FINEST_GRID = 0.5, 2.0**20  # cells along the longest side
# Of a cell's quadric: directions that bend the surface less than this, relative to the most, count as flat.
FLAT = 1e-3
# Taubin's pair: a step that shrinks, then one that swells a little more, which together keep the size.
SHRINK, SWELL = 0.5, -0.53


def simplified(vertices: np.ndarray, faces: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most ``budget`` of ``faces`` (F, 3) over ``vertices`` (V, 3), by clustering (Lindstrom 2000).

    The vertices of each cell of a grid become one, where the planes of the cell's faces meet best. Returns vertices
    (W, 3) float32, faces (G, 3) int32, maybe none, and for each vertex the number of the old one nearest to it (W,).
    """
    points = vertices.astype(np.float64)
    cells = _cells(points, faces, budget)
    _, clusters = np.unique(cells, axis=0, return_inverse=True)
    corners = clusters[faces]
    middles = _best_points(points, faces, corners, clusters)
    nearest = _nearest(points, middles, clusters)
    kept = corners[_has_area(corners)]
    # Each triangle once, written from its smallest corner on, which keeps the side it faces.
    first = kept.argmin(axis=1)[:, None]
    kept = np.unique(np.take_along_axis(kept, (first + np.arange(3)) % 3, axis=1), axis=0)
    used, renumbered = np.unique(kept, return_inverse=True)
    return middles[used].astype(np.float32), renumbered.reshape(-1, 3).astype(np.int32), nearest[used]


def smoothed(vertices: np.ndarray, faces: np.ndarray, num_iterations: int) -> np.ndarray:
    """``vertices`` (V, 3) float32 after Taubin's smoothing over the edges of ``faces`` (F, 3).

    Vertices at the same place move together, so that seams of colour do not open.
    """
    points, places = np.unique(vertices, axis=0, return_inverse=True)
    points = points.astype(np.float64)
    welded = places[faces]
    edges = np.concatenate([welded[:, [0, 1]], welded[:, [1, 2]], welded[:, [2, 0]]])
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    ends, others = np.concatenate([edges, edges[:, ::-1]]).T
    neighbours = np.bincount(ends, minlength=len(points))[:, None]
    for _ in range(num_iterations):
        for step in (SHRINK, SWELL):
            means = _sums(points[others], ends, len(points)) / np.maximum(neighbours, 1)
            points += step * np.where(neighbours > 0, means - points, 0)
    return points[places].astype(np.float32)


def _cells(points: np.ndarray, faces: np.ndarray, budget: int) -> np.ndarray:
    """(V, 3) int64: each point's cell in the finest grid that leaves at most ``budget`` faces.

    Grids are centred, so that what is symmetric stays nearly so: on a cell, or on the corner of eight.
    """
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    offsets = (points - middle) / max(np.ptp(points, axis=0).max(), np.finfo(float).tiny)
    best, most = np.zeros(points.shape, np.int64), 0
    for shift in (0.5, 0.0):
        coarse, fine = COARSEST_GRID, FINEST_GRID
        for _ in range(16):
            between = float(np.sqrt(coarse * fine))
            cells = np.floor(offsets * between + shift).astype(np.int64)
            count = int(_has_area(_numbered(cells)[faces]).sum())
            if count > budget:
                fine = between
                continue
            coarse = between
            if count > most:
                best, most = cells, count
    return best


def _numbered(cells: np.ndarray) -> np.ndarray:
    """(V,) one number for each cell."""
    x, y, z = cells.T
    return x + (y + z * 2**21) * 2**21


def _has_area(corners: np.ndarray) -> np.ndarray:
    a, b, c = corners.T
    return (a != b) & (b != c) & (c != a)


def _best_points(points: np.ndarray, faces: np.ndarray, corners: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(W, 3): for each cluster the point with the least squared distance to the planes of its faces.

    Along directions in which these planes say nothing it stays at the mean of the cluster's vertices, and it never
    leaves their bounding box.
    """
    count = clusters.max() + 1
    means = _sums(points, clusters, count) / np.bincount(clusters)[:, None]
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)  # as long as the face is large, so that large faces count more
    quadrics, pulls = np.zeros((count, 3, 3)), np.zeros((count, 3))
    outer = normals[:, :, None] * normals[:, None, :]
    for corner in range(3):
        cluster = corners[:, corner]
        height = (normals * (a - means[cluster])).sum(axis=1)
        quadrics += _sums(outer.reshape(-1, 9), cluster, count).reshape(-1, 3, 3)
        pulls += _sums(normals * height[:, None], cluster, count)
    best = means + (np.linalg.pinv(quadrics, rcond=FLAT, hermitian=True) @ pulls[:, :, None])[:, :, 0]
    lowest, highest = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    np.minimum.at(lowest, clusters, points)
    np.maximum.at(highest, clusters, points)
    return np.clip(best, lowest, highest)


def _nearest(points: np.ndarray, middles: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(W,): of each cluster the vertex nearest to its point."""
    distances = np.linalg.norm(points - middles[clusters], axis=1)
    order = np.lexsort((distances, clusters))
    return order[np.unique(clusters[order], return_index=True)[1]]


def _sums(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(count, K): the rows of ``values`` (N, K) added up by their group."""
    return np.stack([np.bincount(groups, column, count) for column in values.T], axis=1)
