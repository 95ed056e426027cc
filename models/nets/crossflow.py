"""CrossFlow (arXiv 2412.15213): text evolves into a picture along a flow, with neither noise input nor cross-attention.

Two networks in one module, with the parameter names of the released checkpoints (github.com/qihao067/CrossFlow, MIT):

- ``context_encoder``, the text variational encoder: token states -> mean and log-variance of a latent z0 that has the
  shape of the picture's latents (paper section 3.2);
- ``stages``, the DiMR backbone: velocity of z_t at several resolutions, coarse to fine (arXiv 2406.09416). Time enters
  only through the norms' parameters, guidance through one indicator token (paper section 3.3).

Shapes: B batch, L text tokens, C channels, H x W latent grid, P exported channels of the previous stage.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.nets.attention import attention
from models.nets.variational_encoder import TextVariationalEncoder
from models.packing import pack_int8, unpack_int8

FAINT = 0.7  # of a picture's latents: what our recipe trains the mean of the source latents to be


@dataclass(frozen=True)
class StageConfig:
    """One resolution of the backbone. ``blocks`` is odd; ``heads`` is used by a transformer only."""

    kind: Literal["transformer", "convnext"]
    grid: int
    width: int
    hidden: int
    blocks: int
    heads: int = 16


@dataclass(frozen=True)
class CrossFlowConfig:
    """``compressed_width``: width that wide (T5) token states are first reduced to, ``None`` to keep them.

    ``faint``: what the mean of the source latents is of the picture's latents; ``None`` where, as in the released
    checkpoints, nothing in the training made them alike.
    """

    latent_channels: int
    latent_size: int
    tokens: int
    text_width: int
    compressed_width: int | None
    encoder_layers: int
    encoder_hidden: int
    encoder_heads: int
    encoder_head: Literal["linear", "adaptor"]
    stages: tuple[StageConfig, ...]
    faint: float | None = FAINT

    @property
    def latent_elements(self) -> int:
        return self.latent_channels * self.latent_size**2

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CrossFlowConfig:
        return cls(**{**values, "stages": tuple(StageConfig(**stage) for stage in values["stages"])})


# ---------------------------------------------------------------------------------------- time-dependent norms


class TimeDependent(nn.Module):
    """A vector that moves from ``param0`` to ``param1`` as t goes from 0 to 1, by a learned sigmoid."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.param0 = nn.Parameter(torch.full((width,), value))
        self.param1 = nn.Parameter(torch.full((width,), value))
        self.nodecay_weight = nn.Parameter(torch.zeros(width))
        self.nodecay_bias = nn.Parameter(torch.zeros(width))

    def forward(self, tau: Tensor) -> Tensor:
        """``tau`` = 1 - 2t, (B,) float32 -> (B, width)."""
        share = torch.sigmoid(tau[:, None] * (1 + self.nodecay_weight) + self.nodecay_bias)
        return torch.lerp(self.param1.expand_as(share), self.param0.expand_as(share), share)


def _over_positions(vector: Tensor, x: Tensor) -> Tensor:
    """(B, C) -> (B, 1, ..., 1, C), to broadcast over the positions of ``x``."""
    return vector.view(len(vector), *(1,) * (x.ndim - 2), -1)


class TimeDependentRmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = TimeDependent(width, 1.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        x = x.float()
        rms = x.square().mean(-1, keepdim=True).sqrt()
        return x / (rms + 1e-8) * _over_positions(self.scale(tau), x)


class TimeDependentLayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = TimeDependent(width, 1.0)
        self.bias = TimeDependent(width, 0.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        normal = F.layer_norm(x.float(), x.shape[-1:], eps=1e-5)
        return normal * _over_positions(self.weight(tau), x) + _over_positions(self.bias(tau), x)


# ---------------------------------------------------------------------------------------- blocks of a stage


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = TimeDependentRmsNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        q, k, v = self.query_key_value(self.norm(x, tau)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attention(q, k, v)
        return cast(Tensor, self.dense(mixed.transpose(1, 2).flatten(2)))


class DepthwiseConvolution(nn.Sequential):
    """7x7 over (B, H, W, C), with no norm before it."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Identity(), nn.Conv2d(width, width, 7, padding=3, groups=width))

    def forward(self, x: Tensor, _tau: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GatedMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = TimeDependentRmsNorm(width)
        self.w0 = nn.Linear(width, hidden)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        h = self.norm(x, tau)
        return cast(Tensor, self.w2(F.gelu(self.w0(h)) * self.w1(h)))


class Block(nn.Module):
    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        transformer = config.kind == "transformer"
        self.block1 = SelfAttention(config.width, config.heads) if transformer else DepthwiseConvolution(config.width)
        self.block2 = GatedMlp(config.width, config.hidden)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        x = x + self.block1(x, tau)
        return x + self.block2(x, tau)


class PositionTable(nn.Module):
    """Learned embedding of each cell, row by row, added to (B, H, W, C)."""

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(grid**2, width)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1) + self.position_embeddings.weight.view(1, *x.shape[2:], -1)


class PixelShuffleUp(nn.Module):
    """Twice the resolution: each cell's output is read as (row offset, column offset, channel)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(channels, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, P) -> (B, 2H, 2W, width)."""
        cells = self.kernel(x).unflatten(-1, (2, 2, -1))
        return cast(Tensor, cells.transpose(2, 3).flatten(3, 4).flatten(1, 2))


# ---------------------------------------------------------------------------------------- stages and the whole


class Stage(nn.Module):
    """One resolution: embeds z_t, adds what the coarser stage exports, runs its U of blocks, predicts a velocity."""

    def __init__(self, config: StageConfig, latent_channels: int, latent_size: int, exported: int | None) -> None:
        super().__init__()
        self.transformer = config.kind == "transformer"
        width, kernel = config.width, latent_size // config.grid
        if exported is None:
            self.tensor_true = nn.Parameter(torch.tensor([-1.0]))
            self.tensor_false = nn.Parameter(torch.tensor([1.0]))
        else:
            self.upsample = nn.ModuleList(
                [TimeDependentLayerNorm(exported), PixelShuffleUp(exported, width), TimeDependentLayerNorm(width)]
            )
        self.input_layer = nn.Sequential(
            nn.Identity(),
            nn.Conv2d(latent_channels, width, kernel, stride=kernel),
            nn.Identity(),
            PositionTable(config.grid, width),
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.skip_denses = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(config.blocks // 2))
        self.output_layer = nn.ModuleList(
            [TimeDependentLayerNorm(width), nn.Identity(), nn.Conv2d(width, latent_channels, 3, padding=1)]
        )

    def forward(self, z: Tensor, tau: Tensor, null: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """``z`` (B, C, H, W), ``previous`` (B, h, w, P) -> velocity (B, C, g, g) and exported (B, g, g, P')."""
        x = self.input_layer(z)
        grid = x.shape[1:3]
        if previous is not None:
            up_norm, up, norm = self.upsample
            x = x + norm(up(up_norm(previous, tau)), tau)
        if self.transformer:
            indicator = torch.where(null, self.tensor_true, self.tensor_false).to(x.dtype)
            x = torch.cat([indicator[:, None, None].expand(-1, 1, x.shape[-1]), x.flatten(1, 2)], dim=1)
        features = self._u_shaped(x, tau)
        if self.transformer:
            features = [feature[:, 1:].unflatten(1, grid) for feature in features]
        norm, _, convolution = self.output_layer
        velocity = convolution(norm(features[-1], tau).permute(0, 3, 1, 2))
        return velocity, torch.cat(features, dim=-1)

    def _u_shaped(self, x: Tensor, tau: Tensor) -> list[Tensor]:
        """The input of the first block, then every block's output; later blocks are fed the mirrored earlier one."""
        features = [x]
        skips: list[Tensor] = []
        half = len(self.skip_denses)
        for index, block in enumerate(self.blocks):
            if index > half:
                x = self.skip_denses[index - half - 1](torch.cat([x, skips.pop()], dim=-1))
            x = block(x, tau)
            if index < half:
                skips.append(x)
            features.append(x)
        return features


class CrossFlow(nn.Module):
    """Text variational encoder and velocity network."""

    def __init__(self, config: CrossFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.context_encoder = TextVariationalEncoder(config)
        exported: list[int | None] = [None, *((stage.blocks + 1) * stage.width for stage in config.stages[:-1])]
        self.stages = nn.ModuleList(
            Stage(stage, config.latent_channels, config.latent_size, channels)
            for stage, channels in zip(config.stages, exported, strict=True)
        )
        self.stages.apply(_initialise)

    def encode_text(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token states (B, L, d), mask (B, L) -> mean and log-variance of z0, each (B, C, H, W)."""
        shape = (-1, self.config.latent_channels, self.config.latent_size, self.config.latent_size)
        mean, log_variance = self.context_encoder(states, mask)
        return mean.view(shape), log_variance.view(shape)

    def forward(self, z: Tensor, t: Tensor, null: Tensor) -> list[Tensor]:
        """Velocity at each stage's grid, coarse to fine, of ``z`` (B, C, H, W) at times ``t`` (B,) in [0, 1].

        ``null`` (B,) bool: true asks for the unconditional velocity. Sampling uses the last of the list.
        """
        tau = 1 - 2 * t.float()
        velocities, exported = [], None
        for stage in self.stages:
            velocity, exported = stage(z, tau, null, exported)
            velocities.append(velocity.float())
        return velocities

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors``, large tensors as int8 rows (:mod:`models.packing`)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        save_file(pack_int8(self.state_dict()), folder / "model.safetensors")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)


def published_config(pixels: Literal[256, 512], text: Literal["clip", "t5"]) -> CrossFlowConfig:
    """The configuration of one of the four released DiMR checkpoints."""
    grids = (16, 32) if pixels == 256 else (16, 32, 64)
    kinds = ("transformer", "convnext", "convnext")
    stages = tuple(
        StageConfig(kind, grid, 1024 >> i, 2048 >> i, 65 if i == 0 else 33)  # type: ignore[arg-type]
        for i, (kind, grid) in enumerate(zip(kinds, grids, strict=False))
    )
    return CrossFlowConfig(
        latent_channels=4,
        latent_size=pixels // 8,
        tokens=77,
        text_width=768 if text == "clip" else 4096,
        compressed_width=None if text == "clip" else 1024,
        encoder_layers=11,
        encoder_hidden=1024,
        encoder_heads=8,
        encoder_head="linear" if pixels == 256 else "adaptor",
        stages=stages,
        faint=None,
    )


def load_crossflow(folder: Path) -> CrossFlow:
    """A folder with ``config.json`` and ``model.safetensors``, as :meth:`CrossFlow.save_pretrained` writes it."""
    config = CrossFlowConfig.from_dict(json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        model = CrossFlow(config)
    model.load_state_dict(unpack_int8(load_file(folder / "model.safetensors")), strict=True, assign=True)
    return model.eval()


def load_published(path: Path, config: CrossFlowConfig) -> CrossFlow:
    """A released ``.pth``, a flat dict of tensors. The image tower (``open_clip*``) is for training and is dropped."""
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = {name.removeprefix("module."): value for name, value in stored.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith("open_clip")}
    with torch.device("meta"):
        model = CrossFlow(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()
