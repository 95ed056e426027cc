"""Pixels to tensors, and contact sheets: many pictures on one PNG, to be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.crossflow.sampling import to_pixels


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float in [-1, 1], channels last in memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def save_sheet(pictures: Tensor, path: Path, columns: int, gap: int = 2) -> None:
    """Write ``pictures`` (B, 3, H, W) in [-1, 1] row by row."""
    pixels = to_pixels(pictures)
    height, width = pixels.shape[1] + gap, pixels.shape[2] + gap
    rows = -(-len(pixels) // columns)
    sheet = np.full((rows * height, columns * width, 3), 190, np.uint8)
    for index, picture in enumerate(pixels):
        y, x = divmod(index, columns)
        sheet[y * height : y * height + height - gap, x * width : x * width + width - gap] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
