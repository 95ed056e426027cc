"""Pictures of a grid: a plain renderer in torch, for previews and contact sheets."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

STEP = 0.75  # voxels from one place on a ray to the next
AMBIENT = 0.4


def shaded(grid: Tensor, azimuth_degrees: float, elevation_degrees: float, side: int) -> Tensor:
    """A grid (4, R, R, R) seen without perspective, on white: (side, side, 3) uint8, rows from the top.

    The grid is as :class:`models.nets.shape_autoencoder.ShapeAutoencoder` says. Azimuth 0 looks at its front, from +z;
    90 from the right, +x. Elevation 90 looks from above. The shape fills the picture, equally large from every azimuth.
    The light comes over the viewer's left shoulder.
    """
    inside = (grid[0] < 0).nonzero()
    if not len(inside):
        return torch.full((side, side, 3), 255, dtype=torch.uint8)
    right, up, back = _camera(math.radians(azimuth_degrees), math.radians(elevation_degrees))
    half, depth = _extent(inside, grid.shape[1], math.radians(elevation_degrees))
    across = ((torch.arange(side) + 0.5) / side * 2 - 1) * half
    rays = across[None, :, None] * right - across[:, None, None] * up
    depths = torch.linspace(depth, -depth, math.ceil(depth * grid.shape[1] / STEP))
    distances = _distances(grid, rays + depths[:, None, None, None] * back)
    entered = distances < 0
    hit = entered.any(0)
    # Where a ray enters the shape, else where it passes nearest to it.
    last = torch.where(hit, entered.int().argmax(0), distances.argmin(0)).clamp(min=1)[None]
    before, after = distances.gather(0, last - 1)[0], distances.gather(0, last)[0]
    share = torch.where(hit, before / (before - after), 1.0).clamp(0, 1)
    places = rays + torch.lerp(depths[last[0] - 1], depths[last[0]], share)[..., None] * back
    slopes = _slopes(grid, places)
    steepness = slopes.norm(dim=-1).clamp(min=1e-6)
    light = F.normalize(0.8 * up - 0.5 * right + back, dim=0)
    shade = AMBIENT + (1 - AMBIENT) * (slopes @ light / steepness).clamp(min=0)
    # A ray that misses the shape by less than a pixel is a soft edge.
    missed = torch.where(hit, 0.0, after / steepness) / (2 * half / side)
    colors = _read(grid[1:], places, "border").clamp(0, 1).permute(1, 2, 0) * shade[..., None]
    return (torch.lerp(colors, torch.ones(()), missed.clamp(max=1)[..., None]) * 255).round().to(torch.uint8)


def _camera(azimuth: float, elevation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors to the right and to the top of the picture, and from the shape to the viewer."""
    sin_a, cos_a, sin_e, cos_e = math.sin(azimuth), math.cos(azimuth), math.sin(elevation), math.cos(elevation)
    right = torch.tensor([cos_a, 0.0, -sin_a])
    up = torch.tensor([-sin_a * sin_e, cos_e, -cos_a * sin_e])
    return right, up, torch.tensor([sin_a * cos_e, sin_e, cos_a * cos_e])


def _extent(inside: Tensor, size: int, elevation: float) -> tuple[float, float]:
    """Half the side of the picture, and of the depth, that hold the voxels (K, 3) of a grid from any azimuth."""
    x, y, z = ((2 * inside + 1) / size - 1).unbind(1)
    radius = float((x.square() + z.square()).max().sqrt()) + 2 / size
    height = float(y.abs().max()) + 2 / size
    sin_e, cos_e = abs(math.sin(elevation)), abs(math.cos(elevation))
    return max(radius, height * cos_e + radius * sin_e), radius * cos_e + height * sin_e


def _slopes(grid: Tensor, places: Tensor) -> Tensor:
    """The gradient of the distance at (..., 3), by differences over two voxels: (..., 3), outwards."""
    voxel = 2 / grid.shape[1]
    steps = (torch.eye(3) * voxel).view(3, *(1,) * (places.ndim - 1), 3)
    return ((_distances(grid, places + steps) - _distances(grid, places - steps)) / (2 * voxel)).movedim(0, -1)


def _distances(grid: Tensor, points: Tensor) -> Tensor:
    """Distances at (..., 3); beyond the grid there is nothing."""
    return 1 - _read(1 - grid[:1], points, "zeros")[0]


def _read(values: Tensor, points: Tensor, beyond: str) -> Tensor:
    """(C, R, R, R) at points (..., 3), (x, y, z) in [-1, 1], trilinearly: (C, ...)."""
    places = points.flip(-1).reshape(1, 1, 1, -1, 3)
    return F.grid_sample(values[None], places, padding_mode=beyond, align_corners=False).view(-1, *points.shape[:-1])
