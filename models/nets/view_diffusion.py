"""A diffusion model of what an object looks like from a camera, at the size of a thumbnail: XBind's two priors in one.

A view is asked for by a vector of a space that words and pictures share ("planar", the paper's Stable unCLIP), or by
another view of the same object and how far the camera goes round from it ("stereoscopic", its Zero-1-to-3). The network
is a U-Net over patches. It predicts velocity (arXiv 2202.00512) on a cosine schedule that ends in pure noise
(arXiv 2305.08891), so that the predicted clean view means something at any time.

Shapes: B views, D dimensions of a condition, S side of a view in pixels. A view (B, 7, S, S) holds red, green and blue
on white, then the normal to the right, upwards and towards the viewer (zero where there is nothing), then where the
object is; all in [-1, 1]. Times (B,) go from 0, clean, to 1, noise. Angles are in radians.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.nets.attention import attention
from models.packing import pack_int8, unpack_int8

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "ViewDiffusion"
CHANNELS = 7
COLORS, NORMALS, MASK = slice(0, 3), slice(3, 6), slice(6, 7)
CAMERA = 5  # numbers that say where a camera is
GROUPS = 8  # of a norm
WAVES = 128  # of the embedding of a time
LONGEST_WAVE, TIME_SCALE = 10_000.0, 1000.0
MOST_STEPS = 1000
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class ViewDiffusionConfig:
    """``side`` of a view and ``patch`` of a cell in pixels; ``condition_width``: D; ``widths`` of the network by level,
    each at half the resolution of the one before; ``heads`` of its attention, which all levels but the first have."""

    side: int = 48
    patch: int = 2
    condition_width: int = 256
    widths: tuple[int, ...] = (64, 128, 192)
    heads: int = 4


@dataclass(frozen=True)
class Given:
    """What is known of views: ``conditions`` (B, D), unit vectors or the null condition; ``cameras`` (B, 5), as
    :func:`camera_numbers` makes them; ``references`` (B, 7, S, S), other views of the objects, or zeros."""

    conditions: Tensor
    cameras: Tensor
    references: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One after the other, along B."""
        return cls(
            torch.cat([part.conditions for part in parts]),
            torch.cat([part.cameras for part in parts]),
            torch.cat([part.references for part in parts]),
        )


class ResidualBlock(nn.Module):
    """Two convolutions, the second scaled and shifted by a context; at first it changes nothing but the width."""

    def __init__(self, before: int, after: int, context: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(GROUPS, before)
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.modulation = nn.Linear(context, 2 * after)
        self.second_norm = nn.GroupNorm(GROUPS, after)
        self.second = _zero(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, before, h, w) and (B, context) -> (B, after, h, w)."""
        hidden = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.modulation(context)[:, :, None, None].chunk(2, 1)
        hidden = self.second_norm(hidden) * (1 + scale) + shift
        return cast(Tensor, self.shortcut(x) + self.second(F.silu(hidden)))


class AttentionBlock(nn.Module):
    """Every cell looks at all others: what a camera sees elsewhere in the reference has moved far."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mix = _zero(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        cells = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.query_key_value(cells).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.mix(attention(q, k, v).transpose(1, 2).flatten(2))
        return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class Level(nn.Module):
    """A residual block and, unless ``heads`` is 0, attention."""

    def __init__(self, before: int, after: int, context: int, heads: int) -> None:
        super().__init__()
        self.block = ResidualBlock(before, after, context)
        self.look = AttentionBlock(after, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, before, h, w) and (B, context) -> (B, after, h, w)."""
        return cast(Tensor, self.look(self.block(x, context)))


class ViewDiffusion(nn.Module):
    """``null_condition`` (D,), learned, stands for "anything"."""

    def __init__(self, config: ViewDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        widths, context = config.widths, 2 * config.widths[-1]
        heads = [0, *(config.heads for _ in widths[1:])]
        self.null_condition = nn.Parameter(torch.zeros(config.condition_width))
        self.condition = nn.Linear(config.condition_width, context)
        self.camera = nn.Sequential(nn.Linear(CAMERA, context), nn.SiLU(), nn.Linear(context, context))
        self.time = nn.Sequential(nn.Linear(WAVES, context), nn.SiLU(), nn.Linear(context, context))
        self.enter = nn.Conv2d(2 * CHANNELS * config.patch**2, widths[0], 3, padding=1)
        befores = [widths[0], *widths[:-1]]
        self.downs = nn.ModuleList(
            Level(before, width, context, head) for before, width, head in zip(befores, widths, heads, strict=True)
        )
        self.coarser = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for width in widths[:-1])
        self.middle = Level(widths[-1], widths[-1], context, config.heads)
        self.ups = nn.ModuleList(
            Level(2 * width, width, context, head) for width, head in zip(widths[::-1], heads[::-1], strict=True)
        )
        self.finer = nn.ModuleList(nn.Conv2d(coarse, fine, 3, padding=1) for coarse, fine in pairwise(widths[::-1]))
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.leave = _zero(nn.Conv2d(widths[0], CHANNELS * config.patch**2, 3, padding=1))

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """Of one view: (7, S, S)."""
        return CHANNELS, self.config.side, self.config.side

    def forward(self, noisy: Tensor, times: Tensor, given: Given) -> Tensor:
        """The velocity (B, 7, S, S) float32 of noisy views of that shape at times (B,)."""
        # A unit vector's entries are about 1 / sqrt(D): brought to unit deviation, as the others are.
        vectors = self.condition(given.conditions * math.sqrt(self.config.condition_width))
        context = F.silu(self.time(_waves(times)) + vectors + self.camera(given.cameras))
        x = F.pixel_unshuffle(torch.cat([noisy, given.references], 1), self.config.patch)
        x = self.enter(x.contiguous(memory_format=torch.channels_last))
        passed = []
        for number, level in enumerate(self.downs):
            x = level(x if number == 0 else self.coarser[number - 1](x), context)
            passed.append(x)
        x = self.middle(x, context)
        for number, level in enumerate(self.ups):
            if number:
                x = self.finer[number - 1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = level(torch.cat([x, passed.pop()], 1), context)
        velocity = F.pixel_shuffle(self.leave(F.silu(self.norm(x))), self.config.patch)
        return velocity.float().contiguous()

    # ------------------------------------------------------------------------------------------ what is asked for

    def free(self, azimuths: Tensor, elevations: Tensor) -> Given:
        """Nothing but where the cameras are, (B,) both."""
        nothing = azimuths.new_zeros(len(azimuths), *self.view_shape)
        return Given(self.null_condition.expand(len(azimuths), -1), camera_numbers(azimuths, elevations), nothing)

    def planar(self, conditions: Tensor, azimuths: Tensor, elevations: Tensor) -> Given:
        """Views of what conditions (B, D) mean, from cameras (B,) counted from the object's front."""
        free = self.free(azimuths, elevations)
        return Given(conditions, free.cameras, free.references)

    def stereoscopic(
        self, references: Tensor, of_references: tuple[Tensor, Tensor], azimuths: Tensor, elevations: Tensor
    ) -> Given:
        """Views of what ``references`` (B, 7, S, S) show from azimuths and elevations ``of_references``, (B,) both."""
        cameras = camera_numbers(azimuths, elevations, of_references)
        return Given(self.null_condition.expand(len(azimuths), -1), cameras, references)

    # -------------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self,
        given: Given,
        free: Given,
        steps: int,
        guidance: float,
        seeds: Sequence[int],
        start: Tensor | None = None,
        level: float = 1.0,
    ) -> Tensor:
        """Clean views (B, 7, S, S), one seed each, by DDIM without fresh noise and classifier-free guidance.

        ``free`` is what guidance leads away from; 1 means none. Given ``start``, views (B, 7, S, S), the sampling sets
        out from them, noisy as they are at the time ``level``: what is larger than the noise stays (arXiv 2108.01073).
        A view depends on what is given and its seed alone: noise is drawn on the CPU, one generator a view.

        Raises :class:`ValueError` for numbers out of range.
        """
        if not 1 <= steps <= MOST_STEPS or not 0 < level <= 1 or not math.isfinite(guidance):
            raise ValueError(f"expected 1 to {MOST_STEPS} steps from a level in (0, 1], not {steps} from {level}")
        drawn = [torch.randn(self.view_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        noise = torch.stack(drawn).to(given.cameras.device)
        times = torch.linspace(level, 0, steps + 1, device=noise.device)
        noisy = mixed(torch.zeros_like(noise) if start is None else start, noise, times[:1])
        clean = noisy
        for time, later in pairwise(times):
            at = time.expand(len(noisy))
            velocity = self(noisy, at, given)
            if guidance != 1:
                without = self(noisy, at, free)
                velocity = without + guidance * (velocity - without)
            clean = clean_of(noisy, velocity, at).clamp(-1, 1)
            noisy = mixed(clean, noise_of(noisy, velocity, at), later[None])
        return clean

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors``, whose large tensors are int8 rows (:mod:`models.packing`)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps({"_class_name": KIND, **asdict(self.config)}, indent=2) + "\n")
        save_file(pack_int8(self.state_dict()), folder / WEIGHTS)


def load_view_diffusion(folder: Path) -> ViewDiffusion:
    """A folder as :meth:`ViewDiffusion.save_pretrained` writes it; float32 on the CPU.

    Raises :class:`UserError` if it holds something else.
    """
    config = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    if config.pop("_class_name", None) != KIND:
        raise UserError(f"The weights in '{folder}' are no view diffusion model.", f"It must be a {KIND}.")
    model = ViewDiffusion(ViewDiffusionConfig(**{**config, "widths": tuple(config["widths"])}))
    model.load_state_dict(unpack_int8(load_file(folder / WEIGHTS)))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval()


def camera_numbers(azimuths: Tensor, elevations: Tensor, of_references: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(B, 5) of angles (B,): sine and cosine of the azimuth, and the sine of the elevation, as Zero-1-to-3's
    (arXiv 2303.11328, section 3.2). With a reference the azimuth counts from the reference's, and that view's elevation
    and a 1 are told too; without, it counts from the object's front."""
    nothing = torch.zeros_like(azimuths)
    if of_references is None:
        return torch.stack([azimuths.sin(), azimuths.cos(), elevations.sin(), nothing, nothing], 1)
    turned = azimuths - of_references[0]
    told = of_references[1].sin().expand_as(turned)
    return torch.stack([turned.sin(), turned.cos(), elevations.sin(), told, nothing + 1], 1)


def mixed(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Views (B, 7, S, S) made noisy as they are at times (B,)."""
    signal, rest = _shares(times)
    return signal * clean + rest * noise


def velocity_of(clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the network is to predict of :func:`mixed` of the same."""
    signal, rest = _shares(times)
    return signal * noise - rest * clean


def clean_of(noisy: Tensor, velocity: Tensor, times: Tensor) -> Tensor:
    """The clean views that a velocity means."""
    signal, rest = _shares(times)
    return signal * noisy - rest * velocity


def noise_of(noisy: Tensor, velocity: Tensor, times: Tensor) -> Tensor:
    """The noise that a velocity means."""
    signal, rest = _shares(times)
    return rest * noisy + signal * velocity


def _shares(times: Tensor) -> tuple[Tensor, Tensor]:
    angles = times[:, None, None, None] * (math.pi / 2)
    return angles.cos(), angles.sin()


def _waves(times: Tensor) -> Tensor:
    """Times (B,) as cosines and sines of many lengths, (B, WAVES) float32 (arXiv 1706.03762, section 3.5)."""
    half = WAVES // 2
    exponents = torch.arange(half, device=times.device, dtype=torch.float32) / half
    angles = TIME_SCALE * times.float()[:, None] * LONGEST_WAVE**-exponents
    return torch.cat([angles.cos(), angles.sin()], 1)


def _zero(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
