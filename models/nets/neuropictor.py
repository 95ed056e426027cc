"""What NeuroPictor (arXiv 2403.18211) reads maps of the visual cortex with, at any size.

A map is one picture of brain activity: pixels of the flattened visual cortex, the left hemisphere on the left, and 0
around it. :class:`MapEncoder` makes tokens of it, one for each patch and one for the whole. From them
:class:`SemanticHead` makes what stands in for the token states of a caption, and :class:`ControlMapper` a picture of
features in the grid of the generator's latents, which steers how things are laid out.

The parameters are called as in the published checkpoints (github.com/jingyanghuo/neuropictor, which names no licence).

Shapes: B maps, S = 1 + patches tokens of width W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.nets.attention import attention

EXPANSION = 4  # of a block's hidden layer
OCTAVES = 10_000.0  # between the shortest and the longest wave of a position


@dataclass(frozen=True)
class MapEncoderConfig:
    """``side`` of a map and of its square patches in pixels, of which the first is a multiple; ``width`` of a token, a
    multiple of 4 and of ``heads``; ``dropout`` behind attention and hidden layers."""

    side: int
    patch: int
    width: int
    blocks: int
    heads: int
    dropout: float = 0.0

    @property
    def tokens(self) -> int:
        return 1 + (self.side // self.patch) ** 2


def positions(grid: int, width: int) -> Tensor:
    """(1 + grid^2, width): sines and cosines, half of them of the column and half of the row; 0 for the whole map."""
    waves = OCTAVES ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * waves
    along = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = along.repeat(grid, 1), along.repeat_interleave(grid, 0)
    return torch.cat([torch.zeros(1, width), torch.cat([columns, rows], 1).float()])


class SelfAttention(nn.Module):
    def __init__(self, config: MapEncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attention(q, k, v).transpose(1, 2).flatten(2)
        return cast(Tensor, self.drop(self.proj(mixed)))


class Mlp(nn.Module):
    def __init__(self, config: MapEncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, EXPANSION * config.width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(EXPANSION * config.width, config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.drop(self.fc2(self.act(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, config: MapEncoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, config: MapEncoderConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, config.width, config.patch, stride=config.patch)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 1, side, side) -> (B, patches, W), row by row."""
        return cast(Tensor, self.proj(maps).flatten(2).transpose(1, 2))


class MapEncoder(nn.Module):
    """A vision transformer over the patches of a map, whose positions are fixed."""

    pos_embed: Tensor

    def __init__(self, config: MapEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.register_buffer("pos_embed", positions(config.side // config.patch, config.width)[None])
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.apply(_initialise)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 1, side, side) -> (B, S, W), the token of the whole map first."""
        whole = self.cls_token.expand(len(maps), -1, -1)
        x = torch.cat([whole, self.patch_embed(maps)], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))


@dataclass(frozen=True)
class SemanticHeadConfig:
    """``count`` and ``width`` of the tokens that come out; ``hidden``: how many there are between."""

    count: int
    width: int
    hidden: int


class SemanticHead(nn.Module):
    """Mixes the ``tokens`` of a map into fewer ones. A second branch of the same shape starts silent; it is trained
    where the first one was trained for everybody and is refined for somebody."""

    def __init__(self, tokens: int, width: int, config: SemanticHeadConfig) -> None:
        super().__init__()
        self.channel_mapper = nn.Sequential(
            nn.Conv1d(tokens, config.hidden, 1), nn.Conv1d(config.hidden, config.count, 1)
        )
        self.dim_mapper = nn.Linear(width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.extra_clip = nn.Sequential(
            nn.Conv1d(tokens, config.hidden, 1),
            nn.Conv1d(config.hidden, config.count, 1),
            nn.Linear(width, config.width),
            nn.LayerNorm(config.width),
        )
        self.extra_clip_out = _silent(nn.Conv1d(config.count, config.count, 3, padding=1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, W) -> what the generator is told, and that without the second branch, which is what was trained to be
        like the states of a caption: (B, count, width) both."""
        captions = self.norm(self.dim_mapper(self.channel_mapper(tokens)))
        return captions + self.extra_clip_out(self.extra_clip(tokens)), captions


@dataclass(frozen=True)
class ControlMapperConfig:
    """``channels`` and ``side`` of the grid that comes out; ``hidden``: how many tokens there are between."""

    channels: int
    side: int
    hidden: int


class ControlMapper(nn.Module):
    """Each channel of the generator's grid is a mixture of the ``tokens`` of a map. At first all are 0."""

    def __init__(self, tokens: int, width: int, config: ControlMapperConfig) -> None:
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Sequential(
            nn.Conv1d(tokens, config.hidden, 1), nn.Conv1d(config.hidden, config.channels, 1)
        )
        self.dim_mapper = nn.Sequential(nn.Linear(width, config.side**2), nn.SiLU())
        self.out = _silent(nn.Conv1d(config.channels, config.channels, 3, padding=1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S, W) -> (B, channels, side, side)."""
        cells = self.out(self.dim_mapper(self.channel_mapper(tokens)))
        return cast(Tensor, cells.unflatten(2, (self.config.side, self.config.side)))


def _silent(layer: nn.Conv1d) -> nn.Conv1d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def side_of_square(cells: int) -> int:
    """Of a grid of so many cells. Raises :class:`ValueError` for one that is not square."""
    side = math.isqrt(cells)
    if side**2 != cells:
        raise ValueError(f"{cells} cells are no square")
    return side
