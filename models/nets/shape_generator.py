"""Shapes from one vector: a diffusion transformer (arXiv 2212.09748) over the cells of a tri-plane, by flow matching.

The condition is a unit vector of a space that words and pictures share, and enters with the time through adaptive layer
norms that begin at zero. What is learned is the velocity from noise (t = 0) to latents (t = 1) along a straight line
(arXiv 2210.02747). Latents are those of :class:`models.nets.shape_autoencoder.ShapeAutoencoder`.

Shapes: B shapes, D dimensions of a condition, C channels and p cells a side of a latent plane, L = 3 p^2 cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
KIND = "ShapeGenerator"
MOST_STEPS = 1000
# Times are moved towards the noise, t -> t / (SHIFT + (1 - SHIFT) t), in training and in sampling (arXiv 2403.03206,
# section 5.3.2). Over all the numbers of a shape's latents the noise averages out, so which shape it will be is settled
# by t = 0.15 (measured), and steps of equal length would leave that to the first three.
SHIFT = 3.0
WAVES = 256  # of the embedding of a time
LONGEST_WAVE = 10_000.0
TIME_SCALE = 1000.0  # the embedding was made for steps of a schedule


@dataclass(frozen=True)
class ShapeGeneratorConfig:
    """``channels`` and ``plane`` (cells a side) of the latents; ``condition_width``: D; ``width``, ``layers`` and
    ``heads`` of the transformer."""

    channels: int = 12
    plane: int = 8
    condition_width: int = 256
    width: int = 256
    layers: int = 8
    heads: int = 4


class ModulatedBlock(nn.Module):
    """Transformer layer whose norms and residuals are scaled by a context; at first it changes nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = _zero(nn.Linear(width, 6 * width))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, L, width) and (B, width) -> (B, L, width)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(context)[:, None].chunk(6, -1)
        parts = self.query_key_value(_modulated(x, shift, scale)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        x = x + gate * self.mix(attention(q, k, v).transpose(1, 2).flatten(2))
        hidden = F.gelu(self.expand(_modulated(x, mlp_shift, mlp_scale)), approximate="tanh")
        return cast(Tensor, x + mlp_gate * self.reduce(hidden))


class ShapeGenerator(nn.Module):
    """``null_condition`` (D,), learned, stands for "any shape"."""

    def __init__(self, config: ShapeGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.null_condition = nn.Parameter(torch.zeros(config.condition_width))
        self.condition = nn.Linear(config.condition_width, width)
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(config.channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(3 * config.plane**2, width))
        self.blocks = nn.ModuleList(ModulatedBlock(width, config.heads) for _ in range(config.layers))
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.leave = _zero(nn.Linear(width, config.channels))

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Of one shape: (3, C, p, p)."""
        return 3, self.config.channels, self.config.plane, self.config.plane

    def forward(self, noisy: Tensor, times: Tensor, conditions: Tensor) -> Tensor:
        """The velocity (B, 3, C, p, p) float32 of noisy latents of that shape, at times (B,) in [0, 1].

        Conditions (B, D) are unit vectors or the null condition.
        """
        # A unit vector's entries are about 1 / sqrt(D): brought to unit deviation, as the time's are.
        given = self.condition(conditions * math.sqrt(self.config.condition_width))
        context = F.silu(self.time(_waves(times)) + given)
        cells = noisy.permute(0, 1, 3, 4, 2)
        x = self.enter(cells.flatten(1, 3)) + self.positions
        for block in self.blocks:
            x = block(x, context)
        shift, scale = self.modulation(context)[:, None].chunk(2, -1)
        velocity = self.leave(_modulated(x, shift, scale)).float()
        return cast(Tensor, velocity.view(cells.shape).permute(0, 1, 4, 2, 3))

    def sample(self, conditions: Tensor, steps: int, guidance: float, seeds: Sequence[int]) -> Tensor:
        """Clean latents (B, 3, C, p, p): the end of :meth:`denoise`, which says what its parameters mean."""
        *_, (_, latents) = self.denoise(conditions, steps, guidance, seeds)
        return latents

    @torch.no_grad()
    def denoise(
        self, conditions: Tensor, steps: int, guidance: float, seeds: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Unit vectors (B, D), one seed each: after each step of Euler's method the present estimate of the clean
        latents and the latents themselves, (B, 3, C, p, p) both.

        ``guidance`` is classifier-free; 1 means none. A shape depends on its condition and seed alone: noise is drawn
        on the CPU, one generator a shape.

        Raises :class:`ValueError` for conditions that are no unit vectors and for numbers out of range.
        """
        self._require(conditions, steps, guidance, seeds)
        noise = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise).to(conditions.device)
        times = shifted(torch.linspace(0, 1, steps + 1, dtype=torch.float64)).tolist()
        for time, later in pairwise(times):
            velocity = self._guided(latents, time, conditions, guidance)
            clean = latents + (1 - time) * velocity
            latents = latents + (later - time) * velocity
            yield clean, latents

    def _guided(self, latents: Tensor, time: float, conditions: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598): from the null condition's velocity through the condition's."""
        times = torch.full((len(latents),), time, device=latents.device)
        if guidance == 1:
            return self(latents, times, conditions)
        both = torch.cat([self.null_condition.expand_as(conditions), conditions])
        null, conditional = self(torch.cat([latents, latents]), times.repeat(2), both).chunk(2)
        return cast(Tensor, null + guidance * (conditional - null))

    def _require(self, conditions: Tensor, steps: int, guidance: float, seeds: Sequence[int]) -> None:
        dimensions = self.config.condition_width
        if conditions.ndim != 2 or conditions.shape[1] != dimensions or len(conditions) != len(seeds) or not len(seeds):
            raise ValueError(f"expected ({len(seeds)} > 0, {dimensions}), not {tuple(conditions.shape)}")
        if not ((conditions.norm(dim=1) - 1).abs() < 1e-2).all():
            raise ValueError("the conditions are no unit vectors")
        if not 1 <= steps <= MOST_STEPS or not math.isfinite(guidance):
            raise ValueError(f"expected 1 to {MOST_STEPS} steps and a finite guidance, not {steps} and {guidance}")

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors``, large tensors as int8 rows (:mod:`models.packing`)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps({"_class_name": KIND, **asdict(self.config)}, indent=2) + "\n")
        save_file(pack_int8(self.state_dict()), folder / WEIGHTS)


def load_shape_generator(folder: Path) -> ShapeGenerator:
    """A folder as :meth:`ShapeGenerator.save_pretrained` writes it; float32 on the CPU.

    Raises :class:`UserError` if it holds something else.
    """
    config = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    if config.pop("_class_name", None) != KIND:
        raise UserError(f"The weights in '{folder}' are no shape generator.", f"It must be a {KIND}.")
    model = ShapeGenerator(ShapeGeneratorConfig(**config))
    model.load_state_dict(unpack_int8(load_file(folder / WEIGHTS)))
    return model.eval()


def shifted(times: Tensor) -> Tensor:
    """Times in [0, 1] moved towards the noise by ``SHIFT``; 0 and 1 stay."""
    return times / (SHIFT + (1 - SHIFT) * times)


def _waves(times: Tensor) -> Tensor:
    """Times (B,) in [0, 1] as cosines and sines of many lengths, (B, WAVES) float32 (arXiv 1706.03762, section 3.5)."""
    half = WAVES // 2
    exponents = torch.arange(half, device=times.device, dtype=torch.float32) / half
    angles = TIME_SCALE * times.float()[:, None] * LONGEST_WAVE**-exponents
    return torch.cat([angles.cos(), angles.sin()], 1)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
