"""Shapes of a few coloured boxes, as grids and as a table in the encoding of ``shapes64.parquet``."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from training.shapes import SIZE, TABLE

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def row(occupied: np.ndarray, colors: np.ndarray, **values: Any) -> dict[str, Any]:
    """The table's row of a shell. ``occupied``: (64, 64, 64) bool indexed by up, away and right; ``colors``: (64, 64,
    64, 3) uint8; ``values``: columns that differ from the usual."""
    picture = io.BytesIO()
    Image.new("RGB", (128, 128), "white").save(picture, "WEBP")
    return {
        "library": "Blocks",
        "id": "Blocks#1",
        "name": "Block",
        "tags": "",
        "category": "Toys",
        "creator": "Somebody",
        "licence": "Public domain",
        "size_cm": [50.0, 30.0, 80.0],
        "is_door_or_window": False,
        "names": json.dumps({"fr": "Bloc"}),
        "icon": picture.getvalue(),
        "flat": False,
        "voxels": int(occupied.sum()),
        "mask": zlib.compress(np.packbits(occupied.reshape(-1)).tobytes()),
        "rgb": zlib.compress(colors.reshape(-1, 3)[occupied.reshape(-1)].tobytes()),
    } | values


def box_row(half: Sequence[int], color: Sequence[int], **values: Any) -> dict[str, Any]:
    """A hollow box of one colour; ``half`` its half sides in voxels to the right, up and towards the viewer."""
    occupied = np.zeros((SIZE, SIZE, SIZE), bool)
    middle = SIZE // 2
    right, up, near = half
    bounds = [slice(middle - extent, middle + extent) for extent in (up, near, right)]
    occupied[tuple(bounds)] = True
    occupied[tuple(slice(part.start + 1, part.stop - 1) for part in bounds)] = False
    return row(occupied, np.broadcast_to(np.array(color, np.uint8), (*occupied.shape, 3)), **values)


def write_table(folder: Path, rows: list[dict[str, Any]], table: str = TABLE) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / table)


def boxes(size: int, *parts: tuple[Sequence[float], Sequence[float], Sequence[float]]) -> Tensor:
    """A grid (4, size, size, size) of solid boxes: middle and half sides (x, y, z) within [-1, 1], colour in [0, 1]."""
    ticks = (2 * torch.arange(size) + 1) / size - 1
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)
    distances = []
    for middle, half, _ in parts:
        beyond = (points - torch.tensor(middle)).abs() - torch.tensor(half)
        distances.append(beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0))
    nearest = torch.stack(distances).min(0)
    colors = torch.tensor([tuple(map(float, color)) for _, _, color in parts])[nearest.indices]
    # In units of four voxels of a grid of 64, as the networks have it.
    return torch.cat([(nearest.values * 8).clamp(-1, 1)[None], colors.permute(3, 0, 1, 2)])


def arms(size: int) -> Tensor:
    """Unlike itself in every mirror: red to the right, green up, blue towards the viewer, grey in the middle."""
    return boxes(
        size,
        ((0, 0, 0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)),
        ((0.5, 0, 0), (0.4, 0.2, 0.2), (1, 0, 0)),
        ((0, 0.5, 0), (0.2, 0.35, 0.2), (0, 1, 0)),
        ((0, 0, 0.5), (0.2, 0.2, 0.3), (0, 0, 1)),
    )
