"""A grid of signed distances and colours as views of it, differentiably, in plain torch and fast on a CPU.

A distance is a density as in VolSDF (arXiv 2106.12052): the Laplace distribution's share of it that is inside. Most of
the places on a camera's rays are in the air or behind a surface. They are found without gradients, in two steps, and
left out: first by blocks of the grid, several places at once, then by the light that still gets there. What is left is
a twentieth, and only that is read and differentiated, for all cameras at once.

Shapes: R resolution of a grid, B cameras, S side of a view, P places on a ray, N places that matter, C values of a
voxel. Grids and views are those of ``models/nets/shape_autoencoder.py`` and ``models/nets/view_diffusion.py``; there is
no perspective. Angles are in radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from models.nets.shape_autoencoder import TRUNCATION
from models.nets.view_diffusion import CHANNELS, COLORS, MASK, NORMALS
from pipelines.xbind.views import AMBIENT

PLACES = 64  # on a ray
UNIT = TRUNCATION * 2 / 64  # a distance of 1, in the units of [-1, 1]
SOFTEST, SHARPEST = 0.2, 0.1  # deviation of a surface, in distances: below a tenth, places on a ray would miss it
BLOCKS, TOGETHER = 16, 4  # of a grid's side; of the places on a ray: as long as two blocks at most
NEGLIGIBLE = 2e-3  # of a ray's light: a place that takes less is left out
EMPTY = 7.0  # deviations from a surface where there is nothing of it any more
FLAT = 0.02  # change of a distance over two voxels: half of one at a true surface
FARTHEST = 0.95  # distances are cut off at 1, so beyond this they say nothing, and there is nothing


@dataclass(frozen=True)
class Cameras:
    """``azimuths`` and ``elevations`` (B,), as :func:`pipelines.xbind.views.shaded` counts them."""

    azimuths: Tensor
    elevations: Tensor

    @classmethod
    def of(cls, *degrees: tuple[float, float]) -> Self:
        """(azimuth, elevation) of each."""
        azimuths, elevations = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32)).unbind(1)
        return cls(azimuths, elevations)

    def __len__(self) -> int:
        return len(self.azimuths)

    def __getitem__(self, chosen: slice | list[int]) -> Cameras:
        return Cameras(self.azimuths[chosen], self.elevations[chosen])

    def axes(self) -> Tensor:
        """(B, 3, 3): unit vectors to the right and to the top of a view, and from the object to the viewer."""
        sin_a, cos_a, sin_e, cos_e = (
            wave for angles in (self.azimuths, self.elevations) for wave in (angles.sin(), angles.cos())
        )
        rows = (
            (cos_a, torch.zeros_like(sin_a), -sin_a),
            (-sin_a * sin_e, cos_e, -cos_a * sin_e),
            (sin_a * cos_e, sin_e, cos_a * cos_e),
        )
        return torch.stack([torch.stack(row, -1) for row in rows], 1)


@dataclass(frozen=True)
class Framing:
    """How much of space the views of one object show: a cylinder about it, ``radius`` and half ``height`` in [-1, 1]'s
    units. It is the same for all of them, however the object changes meanwhile."""

    radius: float
    height: float

    @classmethod
    def of(cls, distances: Tensor) -> Self:
        """Of what is inside of (R, R, R). Raises :class:`ValueError` if nothing is."""
        inside = (distances < 0).nonzero()
        if not len(inside):
            raise ValueError("there is nothing inside")
        size = distances.shape[0]
        x, y, z = ((2 * inside + 1) / size - 1).unbind(1)
        margin = 0.5 * UNIT
        return cls(float((x.square() + z.square()).max().sqrt()) + margin, float(y.abs().max()) + margin)

    def extent(self, elevations: Tensor) -> tuple[Tensor, Tensor]:
        """Half the side of a view, and half its depth, (B,) both."""
        sin_e, cos_e = elevations.sin().abs(), elevations.cos()
        halves = (self.height * cos_e + self.radius * sin_e).clamp(min=self.radius)
        return halves, self.radius * cos_e + self.height * sin_e


@dataclass(frozen=True)
class Places:
    """The places on rays that matter: ``points`` (N, 3); ``rays`` (N,), the number of each one's pixel among all
    B S S; ``numbers`` (N,), how far along its ray it is, of P; ``lengths`` (N,) of the step to it, in distances."""

    points: Tensor
    rays: Tensor
    numbers: Tensor
    lengths: Tensor


def render(grid: Tensor, cameras: Cameras, framing: Framing, side: int, softness: float = SHARPEST) -> Tensor:
    """Views (B, 7, S, S) of a grid (4, R, R, R); gradients go to the grid. ``softness``: deviation of its surface, in
    distances."""
    places = find(grid[0], cameras, framing, side, softness)
    values = read(torch.cat([grid, slopes(grid[0])]), places.points)
    weights = _weights(density(values[0], softness) * places.lengths, places)
    return _composed(places, weights, values[1:4], values[4:7], cameras, side)


@dataclass(frozen=True)
class Frozen:
    """Views of a geometry that stays, from cameras that stay: how much of a pixel each place gives is known, so that
    colours are all that is still read."""

    places: Places
    weights: Tensor
    slopes: Tensor
    cameras: Cameras
    side: int

    @classmethod
    @torch.no_grad()
    def of(cls, distances: Tensor, cameras: Cameras, framing: Framing, side: int) -> Self:
        """Of (R, R, R)."""
        places = find(distances, cameras, framing, side, SHARPEST)
        values = read(torch.cat([distances[None], slopes(distances)]), places.points)
        weights = _weights(density(values[0], SHARPEST) * places.lengths, places)
        return cls(places, weights, values[1:4], cameras, side)

    def paint(self, colors: Tensor) -> Tensor:
        """Views (B, 7, S, S) in colours (3, R, R, R); gradients go to the colours."""
        return _composed(
            self.places, self.weights, read(colors, self.places.points), self.slopes, self.cameras, self.side
        )


def lit(views: Tensor) -> Tensor:
    """Views (B, 7, S, S) as pictures (B, 3, S, S) in [-1, 1] in the light of :func:`pipelines.xbind.views.shaded`."""
    light = F.normalize(views.new_tensor([-0.5, 0.8, 1.0]), dim=0)[:, None, None]
    # Colours are on white, which must stay white: only what the object covers is in shade.
    shade = (1 - AMBIENT) * (views[:, MASK].add(1) / 2 - (views[:, NORMALS] * light).sum(1, keepdim=True).clamp(min=0))
    covered = views[:, COLORS].add(1) / 2 - (1 - views[:, MASK]) / 2
    return views[:, COLORS] - 2 * covered * shade.clamp(0, 1)


# ------------------------------------------------------------------------------------------------------------- places


def rays(cameras: Cameras, framing: Framing, side: int) -> tuple[Tensor, Tensor]:
    """Where each pixel's ray crosses the middle of the depth, (B, S S, 3), rows from the top; and the way from there to
    each of its places, nearest first, (B, P, 3)."""
    right, up, back = cameras.axes().unbind(1)
    halves, depths = framing.extent(cameras.elevations)
    across = ((torch.arange(side, device=halves.device) + 0.5) / side * 2 - 1) * halves[:, None]
    origins = across[:, None, :, None] * right[:, None, None] - across[:, :, None, None] * up[:, None, None]
    along = depths[:, None] * torch.linspace(1, -1, PLACES, device=halves.device)
    return origins.flatten(1, 2), along[..., None] * back[:, None]


@torch.no_grad()
def find(distances: Tensor, cameras: Cameras, framing: Framing, side: int, softness: float) -> Places:
    """The places on the rays of all cameras through (R, R, R) that take a share of their rays' light."""
    origins, ways = rays(cameras, framing, side)
    close = min(EMPTY * softness, FARTHEST)
    which, pixel, number = _may_matter(distances < close, origins, ways)
    points = origins[which, pixel] + ways[which, number]
    values = read(distances[None], points)[0]
    near = (values < close) & (points.abs().amax(1) < 1)
    which, pixel, number, points, values = (part[near] for part in (which, pixel, number, points, values))
    lengths = (ways[:, 0] - ways[:, 1]).norm(dim=-1)[which] / UNIT
    found = Places(points, which * side**2 + pixel, number, lengths)
    matters = _weights(density(values, softness) * lengths, found) > NEGLIGIBLE
    return Places(points[matters], found.rays[matters], number[matters], lengths[matters])


def _may_matter(occupied: Tensor, origins: Tensor, ways: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Camera, pixel and number of all places that are near to what is occupied of (R, R, R) bool, and of some others.

    Looked up for a few places at once. What none of these can reach, and no voxel next to it, is at least a block away
    from the one in their middle.
    """
    count = min(BLOCKS, len(occupied))
    blocks = F.adaptive_max_pool3d(occupied[None, None].float(), count)
    # Dilated by a block, and once more for the border, which stands for all that is outside.
    blocks = F.max_pool3d(F.pad(blocks, (2, 2, 2, 2, 2, 2)), 3, 1).flatten() > 0
    middles = ways.unflatten(1, (-1, TOGETHER)).mean(2)
    start, step = (origins + 1) * (count / 2) + 1, middles * (count / 2)
    index = torch.zeros((), dtype=torch.int32, device=origins.device)
    for axis in range(3):
        block = (start[:, :, None, axis] + step[:, None, :, axis]).clamp_(0.5, count + 1.5).to(torch.int32)
        index = index * (count + 2) + block
    which, pixel, group = blocks[index].nonzero(as_tuple=True)
    within = torch.arange(TOGETHER, device=group.device)
    number = (group[:, None] * TOGETHER + within).flatten()
    return which.repeat_interleave(TOGETHER), pixel.repeat_interleave(TOGETHER), number


def _weights(taken: Tensor, places: Places) -> Tensor:
    """The share of its ray's light that each place sends, (N,), of the optical depth ``taken`` (N,) there."""
    _, row = torch.unique_consecutive(places.rays, return_inverse=True)
    count = int(row[-1]) + 1 if len(row) else 0
    index = row * PLACES + places.numbers
    depths = taken.new_zeros(count * PLACES).scatter(0, index, taken).view(count, PLACES)
    before = depths.cumsum(1) - depths
    return ((-before).exp() * (1 - (-depths).exp())).flatten().gather(0, index)


def density(distances: Tensor, softness: float) -> Tensor:
    """How much light is lost on a way as long as a distance of 1."""
    share = 0.5 - 0.5 * distances.sign() * (1 - (-distances.abs() / softness).exp())
    return share / softness


def _composed(places: Places, weights: Tensor, colors: Tensor, ways: Tensor, cameras: Cameras, side: int) -> Tensor:
    """Colours (3, N) and slopes (3, N) of places to views (B, 7, S, S)."""
    values = torch.cat([colors, normals(ways), torch.ones_like(weights)[None]]) * weights
    pixels = values.new_zeros(len(cameras) * side**2, CHANNELS).index_add(0, places.rays, values.T)
    seen = pixels.view(len(cameras), side, side, CHANNELS).permute(0, 3, 1, 2)
    covered = seen[:, MASK]
    turned = torch.einsum("bij,bjhw->bihw", cameras.axes(), seen[:, NORMALS])
    return torch.cat([2 * (seen[:, COLORS] + 1 - covered) - 1, turned, 2 * covered - 1], 1)


def slopes(distances: Tensor) -> Tensor:
    """(R, R, R) -> its gradient by differences over two voxels, (3, R, R, R), outwards."""
    padded = F.pad(distances[None, None], (1, 1, 1, 1, 1, 1), mode="replicate")[0, 0]
    size = len(distances)
    middle = slice(1, size + 1)
    return torch.stack(
        [
            padded[2:, middle, middle] - padded[:-2, middle, middle],
            padded[middle, 2:, middle] - padded[middle, :-2, middle],
            padded[middle, middle, 2:] - padded[middle, middle, :-2],
        ]
    )


def normals(slopes_there: Tensor) -> Tensor:
    """(3, N) -> about unit vectors (3, N); shorter where a distance hardly changes, as there is no surface."""
    return slopes_there / (slopes_there.square().sum(0, keepdim=True) + FLAT**2).sqrt()


def read(values: Tensor, points: Tensor) -> Tensor:
    """(C, R, R, R) at points (N, 3), (x, y, z) in [-1, 1], trilinearly: (C, N)."""
    places = points.flip(-1)[None, None, None]
    return F.grid_sample(values[None], places, padding_mode="border", align_corners=False)[0, :, 0, 0]
