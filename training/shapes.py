"""The named 3D shapes that XBind's feed-forward networks learn from, and the split that they are judged on.

Two tables, made by the builders in ``training/data``, of coloured 64^3 voxel shells: ``shapes64``, furniture and other
things, and ``shapes64-sharealike``, animals, plants, buildings, ships and more, whose licences ask that what is made of
them is shared alike. A recipe reads a shape as a grid of signed distances and colours (:func:`grid_of`) whose axes are
glTF's, (x, y, z) = (right, up, towards the viewer). The tables' are (right, away from the viewer, up).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from models.nets.shape_autoencoder import TRUNCATION
from training.loop import STATE
from training.picture_text import cached
from training.pictures import CHECKSUMS, concept_name
from training.tables import add_continue_from, in_held_out_tenth, recipe_arguments, tell_checksum

Split = Literal["train", "heldout-name"]
TABLE, SHARE_ALIKE_TABLE = "shapes64.parquet", "shapes64-sharealike.parquet"
SIZE = 64
# Tags that say where a model is from or what a floor planner may do with it, not what it shows.
NO_WORDS = {"blend swap", "scpts", "adjustable"}


@dataclass(frozen=True, eq=False)
class Shape:
    """One shape. ``row`` is its index in :attr:`Shapes.grids`; ``name`` is lower case and the key of the split.

    ``names``: the name, then other words for it, none of them a held-out name if the shape is trained on; ``size_m``:
    width, height and depth of the real thing in metres; ``icon``: (128, 128, 3) uint8; ``mask`` and ``rgb``: the
    table's.
    """

    row: int
    name: str
    names: tuple[str, ...]
    category: str
    creator: str
    licence: str
    library: str
    size_m: tuple[float, float, float]
    icon: np.ndarray
    split: Split
    mask: bytes
    rgb: bytes


@dataclass(frozen=True)
class Shapes:
    """``grids``: (N, 4, 64, 64, 64) uint8 as :func:`pack` makes it; ``items``: one :class:`Shape` per row."""

    grids: Tensor
    items: list[Shape]

    def select(self, *splits: Split) -> list[Shape]:
        return [item for item in self.items if item.split in splits]

    def batch(self, items: Sequence[Shape]) -> Tensor:
        """(B, 4, 64, 64, 64) float32: what :func:`grid_of` says of each, within half a 255th of the range."""
        return unpack(self.grids[[item.row for item in items]])


def split_of(name: str) -> Split:
    """Where a shape belongs: a tenth of the names is held out, with every shape that has one of them."""
    return "heldout-name" if in_held_out_tenth(name) else "train"


def load_shapes(folder: Path, share_alike: bool = False) -> Shapes:
    """All shapes but the flat ones (rugs, rails), in the order of the table, then those of the share-alike table if it
    is asked for; their grids are made once and cached.

    Says of each table whether it is the one that the shipped weights were trained on, and ends if it is missing.
    """
    path, extra = folder / TABLE, folder / SHARE_ALIKE_TABLE
    if share_alike and path.is_file() and not extra.is_file():
        raise SystemExit(
            f"{extra} is missing: build it with 'python -m training.data WORK {folder} --only shapes-sharealike', "
            "or give a recipe --permissive-only to do without."
        )
    items: list[Shape] = []
    grids = []
    for table in (path, extra) if share_alike else (path,):
        found = _read(table, len(items))
        items += found
        grids.append(_grids(found))
    return Shapes(torch.cat(grids), items)


def _read(path: Path, first: int) -> list[Shape]:
    """The shapes of one table, whose rows are counted from ``first``."""
    tell_checksum(path, json.loads(CHECKSUMS.read_text())[path.name])
    rows = (row for row in pq.read_table(path).to_pylist() if not row["flat"])
    return [_shape(index, row) for index, row in enumerate(rows, first)]


def key_of(contents: Iterable[bytes]) -> str:
    """The beginning of a checksum, by which what is computed of ``contents`` is kept."""
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def _grids(items: Sequence[Shape]) -> Tensor:
    """(N, 4, 64, 64, 64) uint8."""
    key = key_of(item.mask + item.rgb for item in items)

    def make() -> Tensor:
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(lambda item: pack(grid_of(item)), items)))

    return cached(STATE / "cache" / f"shapes-{key}.pt", make)


def _shape(index: int, row: dict[str, Any]) -> Shape:
    name = concept_name(row["name"])
    split = split_of(name)
    tags = [tag.strip().lower() for tag in row["tags"].split(",")]
    words = [tag for tag in tags if tag and tag not in NO_WORDS and (split != "train" or not in_held_out_tenth(tag))]
    width, depth, height = (size / 100 for size in row["size_cm"])
    return Shape(
        row=index,
        name=name,
        names=tuple(dict.fromkeys([name, *words])),
        category=row["category"],
        creator=row["creator"],
        licence=row["licence"],
        library=row["library"],
        size_m=(width, height, depth),
        icon=np.asarray(Image.open(io.BytesIO(row["icon"])).convert("RGB")),
        split=split,
        mask=row["mask"],
        rgb=row["rgb"],
    )


def shape_arguments(description: str | None, steps: int, batch: int | None = None) -> argparse.ArgumentParser:
    """The command line that the recipes of shapes share; with ``batch``, its size can be chosen."""
    return add_continue_from(recipe_arguments(description, steps, batch, "do without the share-alike table"))


# ---------------------------------------------------------------------------------------------------------- grids


def grid_of(shape: Shape) -> Tensor:
    """(4, 64, 64, 64) float32, indexed by x, y and z; voxel i lies at (2 i + 1) / 64 - 1.

    First the signed distance to the surface, negative inside, in units of :data:`TRUNCATION` voxels and cut off at -1
    and 1: a voxel at the surface is half a voxel away from it. Then red, green and blue in [0, 1] of the nearest voxel
    of the table. Inside are the table's voxels and what cannot be reached from outside through the faces of others.
    """
    occupied = np.unpackbits(np.frombuffer(zlib.decompress(shape.mask), np.uint8)).astype(bool)
    colors = np.zeros((SIZE**3, 3), np.float32)
    colors[occupied] = np.frombuffer(zlib.decompress(shape.rgb), np.uint8).reshape(-1, 3) / np.float32(255)
    occupied, colors = _to_gltf_axes(occupied), _to_gltf_axes(colors)
    regions, _ = ndimage.label(~without_pinholes(occupied))
    inside = regions != regions[0, 0, 0]  # the builder leaves a margin, so a corner is outside
    to_inside, to_outside = ndimage.distance_transform_edt(~inside), ndimage.distance_transform_edt(inside)
    distances = (np.where(inside, 0.5 - to_outside, to_inside - 0.5) / TRUNCATION).clip(-1, 1)[None]
    nearest = ndimage.distance_transform_edt(~occupied, return_distances=False, return_indices=True)
    return torch.from_numpy(np.concatenate([distances, np.moveaxis(colors[tuple(nearest)], 3, 0)]).astype(np.float32))


def without_pinholes(shell: np.ndarray) -> np.ndarray:
    """(S, S, S) bool and the voxels that at least seven of the eight around them in one plane of the axes surround.

    These are places on a surface that none of the builder's points happened to fall on; through one of them a box
    would be hollow.
    """
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    counts = [
        ndimage.correlate(shell.astype(np.uint8), np.expand_dims(ring, axis), mode="constant") for axis in range(3)
    ]
    return cast(np.ndarray, shell | (np.maximum.reduce(counts) >= 7))


def _to_gltf_axes(cells: np.ndarray) -> np.ndarray:
    """(64^3, ...) of index (up * 64 + away) * 64 + right -> (64, 64, 64, ...) of right, up, towards the viewer."""
    return np.moveaxis(cells.reshape(SIZE, SIZE, SIZE, *cells.shape[1:]), 2, 0)[:, :, ::-1]


def pack(grids: Tensor) -> Tensor:
    """Grids (..., 4, S, S, S) as uint8, a quarter of the memory: -1 to 1 and 0 to 1 become 0 to 255."""
    lowest, highest = _range(grids)
    return ((grids - lowest) / (highest - lowest) * 255).round().to(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """The float32 grids that :func:`pack` made (..., 4, S, S, S) uint8 of."""
    lowest, highest = _range(packed)
    return torch.addcmul(lowest, packed.float(), (highest - lowest) / 255)


def _range(grids: Tensor) -> tuple[Tensor, Tensor]:
    lowest = torch.tensor([-1.0, 0, 0, 0], device=grids.device).view(4, 1, 1, 1)
    return lowest, torch.ones_like(lowest)
