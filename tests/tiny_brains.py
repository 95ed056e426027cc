"""A small world for simulated brains: smooth pictures, vectors of a falling spectrum, latents after the colours."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from training.brain_decoder import Part, World, make_world
from training.brain_features import grid_features

TEST = 300
VALIDATION = 20


def tiny_world(training: int) -> World:
    """``training`` pictures of 32 x 32 to learn from, and 320 others."""
    rng = np.random.default_rng(0)
    corners = torch.from_numpy(rng.integers(0, 256, (training + VALIDATION + TEST, 3, 3, 3))).float()
    pixels = F.interpolate(corners, (32, 32), mode="bilinear").permute(0, 2, 3, 1).byte().numpy()
    vectors = torch.from_numpy(rng.standard_normal((len(pixels), 256)) / (1 + np.arange(256)) ** 0.5 + 0.1).float()
    grid = grid_features(pixels)
    grid = (grid - grid.mean(0)) / grid.std((0, 2, 3), keepdims=True)
    mixed = np.einsum("lc,ncyx->nlyx", rng.standard_normal((8, grid.shape[1])), grid)
    rows = np.arange(len(pixels))
    latents = torch.from_numpy(mixed).float() / 2
    held_out: dict[Part, np.ndarray] = {"validation": rows[training:-TEST], "test": rows[-TEST:]}
    return make_world(F.normalize(vectors, dim=-1), latents, pixels, rows[:training], held_out)
