"""24 objects from four sides each, nothing picked by hand: the names that come first by their hash, seed 0.

    python -m benchmarks.xbind_turntables --data FOLDER [--preset PRESET]

Sixteen are names of training shapes, eight are held out (marked). What is drawn is the finished mesh.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.settings import load_settings
from app.studio import build_manager
from models.manager import ModelManager
from pipelines.base import Produced, Runtime
from pipelines.formats.mesh_views import MeshViews
from pipelines.media import Mesh, Text
from pipelines.xbind.pipeline import REFINING, XBind, XBindParams
from training.pictures import data_folder
from training.shapes import Shapes, Split, load_shapes

TARGET = Path("docs/xbind.png")
KNOWN, HELD_OUT = 16, 8
AZIMUTHS, ELEVATION, SIDE = (30.0, 120.0, 210.0, 300.0), 20.0, 80
COLUMNS, LABEL, GAP = 3, 16, 8
COLORS = 160  # of the file: shades of a few colours, which take a third of the room so


def first_by_hash(shapes: Shapes, split: Split, count: int) -> list[str]:
    """``count`` names of the split, whichever have the smallest SHA-256."""
    names = {item.name for item in shapes.select(split)}
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]


def made(manager: ModelManager, names: Sequence[str], params: XBindParams) -> Iterator[Mesh]:
    """One object for each name, as a person who types it gets it."""
    for event in XBind().run_batch([[Text(name)] for name in names], params, Runtime(manager)):
        if isinstance(event, Produced):
            assert isinstance(event.artifact, Mesh)
            yield event.artifact


def turntable(mesh: Mesh) -> np.ndarray:
    """(S, 4 S, 3) uint8."""
    views = MeshViews(mesh.vertices, mesh.faces, mesh.vertex_colors)
    frame = views.turning_frame(ELEVATION)
    return np.concatenate([views.drawn(SIDE, azimuth, ELEVATION, frame) for azimuth in AZIMUTHS], axis=1)


def page(labels: Sequence[str], turntables: Sequence[np.ndarray]) -> Image.Image:
    width, height = len(AZIMUTHS) * SIDE + GAP, SIDE + LABEL + GAP
    sheet = Image.new("RGB", (COLUMNS * width + GAP, -(-len(labels) // COLUMNS) * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (label, views) in enumerate(zip(labels, turntables, strict=True)):
        row, column = divmod(index, COLUMNS)
        x, y = GAP + column * width, GAP + row * height
        sheet.paste(Image.fromarray(views), (x, y))
        pen.text((x + 2, y + SIDE), label, fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the table of shapes")
    parser.add_argument("--preset", choices=REFINING, default="preview")
    arguments = parser.parse_args()
    shapes = load_shapes(data_folder(arguments.data), share_alike=True)
    known = first_by_hash(shapes, "train", KNOWN)
    held_out = first_by_hash(shapes, "heldout-name", HELD_OUT)
    params = XBindParams(preset=arguments.preset, seed=0)
    objects = made(build_manager(load_settings(profile="lite")), [*known, *held_out], params)
    sheet = page([*known, *(f"{name} (held out)" for name in held_out)], [turntable(mesh) for mesh in objects])
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(COLORS).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
