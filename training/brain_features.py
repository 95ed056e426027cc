"""What a simulated brain answers to (``sim-v1``): of every picture what it means, and how it looks on a coarse grid.

Shapes: N pictures; 64 semantic dimensions; 7 channels of 8 x 8 cells, flattened channel by channel to 448.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SEMANTIC, LENGTH = 64, 8.0
CELLS = 8
ORIENTATIONS = (0, 45, 90, 135)  # degrees, of the gradient: 0 is a vertical edge
CHANNELS = 3 + len(ORIENTATIONS)
REFERENCE = 2000


@dataclass(frozen=True)
class Features:
    """``semantic`` (N, 64), each of length 8, and ``grid`` (N, 448), both float32.

    ``reference``: rows of at most 2,000 training pictures, over which every voxel's signal has unit variance.
    """

    semantic: np.ndarray
    grid: np.ndarray
    reference: np.ndarray


def make_features(vectors: Tensor, pixels: np.ndarray, training: np.ndarray) -> Features:
    """From CLIP-lite vectors (N, D), D >= 64, and pictures (N, H, W, 3) uint8, whose sides are multiples of 8.

    ``training``: the rows that the principal components and the channels' means and deviations are taken from.
    """
    grid = grid_features(pixels)
    of_training = grid[training]
    mean, deviation = of_training.mean((0, 2, 3), keepdims=True), of_training.std((0, 2, 3), keepdims=True)
    standardised = ((grid - mean) / np.maximum(deviation, 1e-6)).reshape(len(grid), -1)
    spread = np.unique(np.linspace(0, len(training) - 1, REFERENCE).astype(int))
    return Features(semantic_features(vectors, training), standardised, training[spread])


def semantic_features(vectors: Tensor, training: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, 64): the first principal components, not whitened, scaled to length 8."""
    centred = vectors.double() - vectors[training].double().mean(0)
    _, directions = torch.linalg.eigh(centred[training].T @ centred[training])
    directions = directions.flip(1)[:, :SEMANTIC]
    # An eigenvector's sign is the solver's whim: its largest entry is made positive.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    projected = centred @ (directions * largest.sign())
    return (LENGTH * F.normalize(projected, dim=-1)).float().numpy()


def grid_features(pixels: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, 7, 8, 8): luminance, red-green, blue-yellow, and the edges of four orientations."""
    return torch.cat([_grid(torch.from_numpy(pixels[i : i + 128])) for i in range(0, len(pixels), 128)]).numpy()


def _grid(pixels: Tensor) -> Tensor:
    red, green, blue = (pixels.float() / 255).unbind(-1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    across = F.pad(luminance[:, :, 2:] - luminance[:, :, :-2], (1, 1))
    down = F.pad(luminance[:, 2:] - luminance[:, :-2], (0, 0, 1, 1))
    strength = (across.square() + down.square()).sqrt()
    direction = torch.atan2(down, across)
    # The fourth power tells four orientations apart; with squares the fourth would follow from the other three.
    edges = [strength * (direction - math.radians(angle)).cos() ** 4 for angle in ORIENTATIONS]
    channels = torch.stack([luminance, red - green, blue - (red + green) / 2, *edges], 1)
    return F.adaptive_avg_pool2d(channels, CELLS)
