"""Shapes as three small pictures: coloured signed distance grids to latents on a tri-plane (arXiv 2112.07945) and back.

A grid is looked through along each of its axes, which gives three pictures; a transformer over the cells of all three
makes the latents. Another one and convolutions turn latents into three planes of features, and a small MLP reads
distance and colour at any point from where it falls on the planes, so the resolution is free.

Axes are glTF's, (x, y, z) = (right, up, towards the viewer), and a grid covers the cube [-1, 1]. Plane 0 lies across x
(rows y, columns z), plane 1 across y (rows x, columns z), plane 2 across z (rows x, columns y).

Shapes: B batch, S side of a grid, p side of a latent plane, C latent channels, F features, N points, R resolution.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.nets.attention import attention
from models.packing import pack_int8, unpack_int8

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "ShapeAutoencoder"
TRUNCATION = 4  # voxels of a grid of 64: a distance of 1 is this many of them, and none is greater
POINTS_AT_ONCE = 65_536
# Where each plane's rows and columns are among a point's coordinates.
ROWS_AND_COLUMNS = ((1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class ShapeAutoencoderConfig:
    """``size`` of a grid's side and ``plane`` of a latent plane's, ``size`` = ``plane`` times a power of two;
    ``channels`` of the latents; ``width``, ``layers`` and ``heads`` of either transformer, ``width`` halved at each
    doubling of the resolution; ``features`` of a plane; ``hidden`` width of the MLP."""

    size: int = 64
    channels: int = 12
    plane: int = 8
    width: int = 256
    layers: int = 4
    heads: int = 4
    features: int = 16
    hidden: int = 64

    @property
    def widths(self) -> list[int]:
        """Of a picture as large as the grid, of one half as large, ..., of the latents' cells."""
        doublings = (self.size // self.plane).bit_length() - 1
        return [self.width >> i for i in range(doublings, -1, -1)]


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        parts = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        x = x + self.mix(attention(q, k, v).transpose(1, 2).flatten(2))
        return cast(Tensor, x + self.reduce(F.gelu(self.expand(self.mlp_norm(x)))))


class Transformer(nn.Module):
    """Over the cells of all three planes, which know where they are by a learned vector each."""

    def __init__(self, config: ShapeAutoencoderConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(3, config.plane, config.plane, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, 3, p, p, width) -> the same."""
        x = (cells + self.positions).flatten(1, 3)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x).view(cells.shape))


class Down(nn.Linear):
    """Four cells, two by two, to one."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__(4 * width, wider)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2h, 2w, width) -> (B, h, w, wider)."""
        return super().forward(x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3))


class Up(nn.Module):
    """One cell to four, two by two, and a convolution across their seams."""

    def __init__(self, width: int, narrower: int) -> None:
        super().__init__()
        self.split = nn.Linear(width, 4 * narrower)
        self.convolution = nn.Conv2d(narrower, narrower, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, width) -> (B, 2h, 2w, narrower)."""
        x = self.split(x).unflatten(-1, (2, 2, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x + cast(Tensor, self.convolution(F.gelu(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ShapeAutoencoder(nn.Module):
    """``encode`` and ``grid`` between grids and latents of about zero mean and unit deviation.

    A grid (4, S, S, S), indexed by x, y and z, holds signed distances, negative inside, in units of
    :data:`TRUNCATION` voxels and cut off at -1 and 1, then red, green and blue in [0, 1] of the nearest surface.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: ShapeAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.columns = nn.ModuleList(nn.Linear(4 * config.size, widths[0]) for _ in range(3))
        self.downs = nn.ModuleList(Down(*pair) for pair in pairwise(widths))
        self.encoder = Transformer(config)
        self.to_latents = nn.Linear(config.width, config.channels)
        self.from_latents = nn.Linear(config.channels, config.width)
        self.decoder = Transformer(config)
        self.ups = nn.ModuleList(Up(*pair) for pair in pairwise(widths[::-1]))
        self.to_features = nn.Conv2d(widths[0], config.features, 3, padding=1)
        # The first layer of the MLP over the features of all three planes, one part a plane.
        self.read = nn.ModuleList(nn.Linear(config.features, config.hidden) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.SiLU(), nn.Linear(config.hidden, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 4)
        )
        self.register_buffer("shift", torch.zeros(config.channels))
        self.register_buffer("scale", torch.ones(config.channels))
        self.apply(partial(_initialise, layers=config.layers))

    def encode(self, grids: Tensor) -> Tensor:
        """(B, 4, S, S, S) -> latents (B, 3, C, p, p). Raises :class:`ValueError` for other shapes."""
        size = self.config.size
        if grids.ndim != 5 or grids.shape[1:] != (4, size, size, size):
            raise ValueError(f"expected (B, 4, {size}, {size}, {size}), not {tuple(grids.shape)}")
        seen = (grids.permute(0, 3, 4, 1, 2), grids.permute(0, 2, 4, 1, 3), grids.permute(0, 2, 3, 1, 4))
        x = torch.stack([layer(along.flatten(3)) for layer, along in zip(self.columns, seen, strict=True)], 1)
        x = x.flatten(0, 1)
        for down in self.downs:
            x = down(F.gelu(x))
        latents = self.to_latents(self.encoder(x.unflatten(0, (-1, 3)))).float()
        return ((latents - self.shift) * self.scale).permute(0, 1, 4, 2, 3)

    def planes(self, latents: Tensor) -> Tensor:
        """Latents (B, 3, C, p, p) -> features (B, 3, F, S, S). Raises :class:`ValueError` for other shapes."""
        expected = (3, self.config.channels, self.config.plane, self.config.plane)
        if latents.ndim != 5 or latents.shape[1:] != expected:
            raise ValueError(f"expected (B, {', '.join(map(str, expected))}), not {tuple(latents.shape)}")
        cells = latents.permute(0, 1, 3, 4, 2) / self.scale + self.shift
        x = self.decoder(self.from_latents(cells)).flatten(0, 1)
        for up in self.ups:
            x = up(x)
        return cast(Tensor, self.to_features(F.gelu(x).permute(0, 3, 1, 2)).float().unflatten(0, (-1, 3)))

    def query(self, planes: Tensor, points: Tensor) -> Tensor:
        """What ``planes`` (B, 3, F, S, S) say of points (B, N, 3), (x, y, z) in [-1, 1]: (B, N, 4), as in a grid."""
        places = torch.stack([points[..., [column, row]] for row, column in ROWS_AND_COLUMNS], 1)
        sampled = F.grid_sample(
            planes.flatten(0, 1), places.flatten(0, 1)[:, None], padding_mode="border", align_corners=False
        )
        features = sampled.unflatten(0, (-1, 3))[:, :, :, 0].transpose(2, 3)
        return self._finish(sum(layer(features[:, i]) for i, layer in enumerate(self.read)))

    @torch.no_grad()
    def grid(self, latents: Tensor, resolution: int) -> Tensor:
        """Latents (B, 3, C, p, p) -> (B, 4, R, R, R), what ``query`` says of the middles of R^3 voxels."""
        planes = self.planes(latents)
        pictures = F.interpolate(planes.flatten(0, 1), (resolution, resolution), mode="bilinear", align_corners=False)
        pictures = pictures.unflatten(0, (-1, 3)).permute(1, 0, 3, 4, 2)
        # Voxels in a row share their place on a plane, so the first layer is computed once for all of them.
        across_x, across_y, across_z = (layer(picture) for layer, picture in zip(self.read, pictures, strict=True))
        values = latents.new_empty(len(latents), 4, resolution, resolution, resolution)
        slab = max(1, POINTS_AT_ONCE // (len(latents) * resolution**2))
        for start in range(0, resolution, slab):
            part = slice(start, start + slab)
            hidden = across_x[:, None] + across_y[:, part, None] + across_z[:, part, :, None]
            values[:, :, part] = self._finish(hidden).permute(0, 4, 1, 2, 3)
        return values

    def _finish(self, hidden: Tensor) -> Tensor:
        """The rest of the MLP after its first layer: (..., hidden) -> (..., 4)."""
        read = self.mlp(hidden).float()
        return torch.cat([read[..., :1].tanh(), read[..., 1:].sigmoid()], -1)

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors``, large tensors as int8 rows (:mod:`models.packing`)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps({"_class_name": KIND, **asdict(self.config)}, indent=2) + "\n")
        save_file(pack_int8(self.state_dict()), folder / WEIGHTS)


def _initialise(module: nn.Module, layers: int) -> None:
    """Every layer keeps the size of what it is given: torch's own start leaves so little of the latents in the planes
    that training stood still for hundreds of steps. A transformer's blocks add little to begin with."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Block):
        for layer in (module.mix, module.reduce):
            nn.init.trunc_normal_(layer.weight, std=(2 * layers * layer.in_features) ** -0.5)


def load_shape_autoencoder(folder: Path) -> ShapeAutoencoder:
    """A folder as :meth:`ShapeAutoencoder.save_pretrained` writes it; float32 on the CPU.

    Raises :class:`UserError` if it holds something else.
    """
    config = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    if config.pop("_class_name", None) != KIND:
        raise UserError(f"The weights in '{folder}' are no shape autoencoder.", f"It must be a {KIND}.")
    model = ShapeAutoencoder(ShapeAutoencoderConfig(**config))
    model.load_state_dict(unpack_int8(load_file(folder / WEIGHTS)))
    return model.eval()
