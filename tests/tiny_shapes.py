"""The models of XBind's pipeline, real and tiny and untrained, behind a real manager; grids of simple objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.manager import ModelManager
from models.nets.shape_autoencoder import ShapeAutoencoder, ShapeAutoencoderConfig
from models.nets.shape_generator import ShapeGenerator, ShapeGeneratorConfig
from tests.tiny_sounds import WIDTH, sound_manager

AUTOENCODER = ShapeAutoencoderConfig(size=16, channels=4, plane=4, width=16, layers=1, heads=2, features=4, hidden=8)
GENERATOR = ShapeGeneratorConfig(channels=4, plane=4, condition_width=WIDTH, width=16, layers=2, heads=2)


def cube(resolution: int) -> Tensor:
    """(3, R, R, R): x, y and z of the middles of the voxels of [-1, 1]."""
    along = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    return torch.stack(torch.meshgrid(along, along, along, indexing="ij"))


def ball(resolution: int = 48, radius: float = 0.6, middle: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """(1, R, R, R): signed distance to a ball, as a grid holds it."""
    away = cube(resolution) - torch.tensor(middle).view(3, 1, 1, 1)
    return truncated(away.norm(dim=0, keepdim=True) - radius)


def truncated(distances: Tensor) -> Tensor:
    """Distances in [-1, 1]'s units to those of a grid: at most four voxels of 64."""
    return (distances * 8).clamp(-1, 1)


class Ball(ShapeAutoencoder):
    """A ball with bumps as the latents have them: an untrained decoder alone may leave its grid empty."""

    @torch.no_grad()
    def grid(self, latents: Tensor, resolution: int) -> Tensor:
        grid = super().grid(latents, resolution)
        grid[:, :1] = ball(resolution) + 0.9 * grid[:, :1]
        return grid


class Nothing(ShapeAutoencoder):
    """Has no surface."""

    @torch.no_grad()
    def grid(self, latents: Tensor, resolution: int) -> Tensor:
        return super().grid(latents, resolution).abs()


def tiny_generator(config: ShapeGeneratorConfig = GENERATOR) -> ShapeGenerator:
    """One that listens to its condition; as it begins, its velocity is zero."""
    model = ShapeGenerator(config)
    for name, parameter in model.named_parameters():
        if "modulation" in name or "leave" in name or name == "null_condition":
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def shape_manager(
    folder: Path,
    autoencoder: type[ShapeAutoencoder] = Ball,
    plane: int = AUTOENCODER.plane,
    instead: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> ModelManager:
    """Everything that the pipeline may lease. ``plane``: of the generator's latents; ``instead``: as
    :func:`~tests.tiny_sounds.sound_manager` takes it."""
    config = ShapeGeneratorConfig(**{**vars(GENERATOR), "plane": plane})
    return sound_manager(
        folder,
        instead={
            "shape-generator": lambda: tiny_generator(config),
            "shape-autoencoder": lambda: autoencoder(AUTOENCODER),
            **(instead or {}),
        },
    )
