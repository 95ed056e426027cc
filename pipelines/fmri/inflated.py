"""Activity on an inflated cortex, from outside and from between the hemispheres: the average of forty people's brains.

The surface is fsaverage5, 10,242 vertices a hemisphere, which the package nilearn carries; the finer fsaverage6 and 7
begin with the same vertices. Of the other common surface, fs_LR 32k, it is known which vertex lies nearest to each of
these when both are spheres, folds upon folds (``training.fs_lr_places``). A volume in MNI space lies close to it: each
vertex gets the mean along the way through the grey matter, from the white to the pial surface. Grey is the depth of the
folds, dark in the valleys.

Shapes: V = 10,242 vertices of one hemisphere.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from models.errors import UserError
from pipelines.fmri.canvas import HEADING, LABEL, MARGIN, WIDTH, Sheet, colours
from pipelines.formats.mesh_views import Frame, MeshViews
from pipelines.formats.scans.files import VERTICES, surface_of

VERTICES_DRAWN = 10_242
COUNTS = {name: count for count, name in VERTICES.items()}  # of one hemisphere
FS_LR = "fs_LR 32k"
NEAREST = Path(__file__).parents[2] / "assets" / "cortex" / "fs-lr-32k.npz"
# Volumes that programs resample to MNI space, and the sides of their voxels in millimetres: FSL and SPM, fMRIPrep's
# (2009c), nilearn's.
MNI_GRIDS: dict[tuple[int, ...], float] = {
    (182, 218, 182): 1.0,
    (91, 109, 91): 2.0,
    (79, 95, 79): 2.0,
    (79, 95, 68): 2.0,
    (61, 73, 61): 3.0,
    (53, 63, 46): 3.0,
    (193, 229, 193): 1.0,
    (97, 115, 97): 2.0,
    (65, 77, 65): 3.0,
    (197, 233, 189): 1.0,
    (99, 117, 95): 2.0,
    (67, 79, 64): 3.0,
}
DEPTHS = 5  # samples on the way through the grey matter
VALLEY, HILL = 128, 206  # greys
ROOM = 560  # pixels of a view, square
ROW = 400  # of it, as much as has a brain in it
OPAQUE = 0.4  # of the scale's end: fainter activity lets the folds through
FOLDED = 0.35  # sulcal depth from which on a valley is as dark as can be


class Hemisphere(NamedTuple):
    """Places (V, 3) in millimetres, MNI's axes: ``inflated``, and what lies within and upon the grey matter, ``white``
    and ``pial``; ``faces`` (F, 3); ``depth`` (V,) of the folds, above zero in valleys."""

    inflated: np.ndarray
    white: np.ndarray
    pial: np.ndarray
    faces: np.ndarray
    depth: np.ndarray


@cache
def fsaverage5() -> dict[str, Hemisphere]:
    """ "left" and "right", out of nilearn; a second the first time."""
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    meshes = load_fsaverage("fsaverage5")
    depths = load_fsaverage_data(mesh="fsaverage5", data_type="sulcal").data.parts

    def hemisphere(side: str) -> Hemisphere:
        inflated, white, pial = (
            np.asarray(meshes[name].parts[side].coordinates, np.float64)
            for name in ("inflated", "white_matter", "pial")
        )
        faces = np.asarray(meshes["inflated"].parts[side].faces)
        return Hemisphere(inflated, white, pial, faces, np.asarray(depths[side], np.float64))

    return {side: hemisphere(side) for side in ("left", "right")}


Sides = dict[str, np.ndarray]  # "left", "right" or both: numbers (V,), NaN where there are none


def on_surface(space: str, values: np.ndarray) -> Sides | None:
    """Of numbers on a surface's vertices, those on fsaverage5. Both hemispheres' stand one after the other, the left
    one's first. ``None`` for what is no surface, and where some vertices are missing.

    Raises :class:`UserError` for one hemisphere of which nobody says which it is.
    """
    known = surface_of(space)
    if known is None:
        return None
    surface, side = known
    count = COUNTS[surface]
    if values.shape != ((2 if side == "both" else 1) * count,):
        return None
    if side is None:
        raise UserError(
            f"Which hemisphere these {count:,} numbers are of is not said.",
            "Begin the file's name with 'lh.' or 'rh.'.",
        )
    halves = {"left": values[:count], "right": values[-count:]}
    return {name: half[chosen_vertices(surface, name)] for name, half in halves.items() if side in ("both", name)}


@cache
def chosen_vertices(surface: str, side: str) -> np.ndarray:
    """(V,): which of a hemisphere's vertices are drawn, those of fsaverage5 or the nearest."""
    if surface != FS_LR:
        return np.arange(VERTICES_DRAWN)
    with np.load(NEAREST, allow_pickle=False) as stored:
        return stored[side].astype(np.int64)


def is_mni(shape: tuple[int, ...], affine: np.ndarray) -> bool:
    """Whether a volume of ``shape`` is by its size one in MNI space, whichever way its axes go; ``affine`` (4, 4)."""
    side = MNI_GRIDS.get(shape)
    return side is not None and np.allclose(np.abs(affine[:3, :3]), side * np.eye(3), atol=1e-3)


def from_volume(values: np.ndarray, affine: np.ndarray) -> Sides:
    """A volume (X, Y, Z) in MNI space on fsaverage5, NaN where the surface leaves the volume."""
    from nilearn.surface import InMemoryMesh, vol_to_surf

    image = nibabel.Nifti1Image(np.asarray(values, np.float32), affine)
    return {
        name: vol_to_surf(
            image,
            InMemoryMesh(side.pial, side.faces),
            inner_mesh=InMemoryMesh(side.white, side.faces),
            depth=np.linspace(0, 1, DEPTHS),
        )
        for name, side in fsaverage5().items()
    }


def height_of(sides: Sides) -> int:
    """Of what :func:`paint` draws, in pixels."""
    return 40 + len(sides) * ROW


def paint(sheet: Sheet, sides: Sides, limit: float) -> None:
    """Two views of each hemisphere that there is, from outside and from between the two: of both, one below the other;
    of one, side by side."""
    for place, (name, values) in enumerate(sides.items()):
        hemisphere = fsaverage5()[name]
        x, y, z = hemisphere.inflated.T
        views = MeshViews(np.stack([x, z, -y], 1), hemisphere.faces, painted(hemisphere.depth, values, limit))
        frame = Frame(np.zeros(2), 2 * float(np.abs(y).max()))
        for number, (azimuth, seen) in enumerate(((270, "outside"), (90, "inside"))):
            drawn = views.drawn(ROOM, azimuth if name == "left" else azimuth - 180, 0, frame)
            column, row = (place, number) if len(sides) > 1 else (number, 0)
            left, top = MARGIN + column * (WIDTH - 2 * MARGIN - ROOM), HEADING + 40 + row * ROW
            edge = (ROOM - ROW) // 2
            sheet.paste(drawn[edge : edge + ROW], left, top)
            sheet.write((left + ROOM / 2, top + 10), f"{name}, {seen}", LABEL, anchor="ms", halo=4)


def painted(depth: np.ndarray, values: np.ndarray, limit: float) -> np.ndarray:
    """Colours of vertices, (V, 3) uint8: what ``values`` say, the fainter they are the more of the folds behind."""
    valley = np.clip((depth + FOLDED) / (2 * FOLDED), 0, 1)[:, None]
    grey = HILL + (VALLEY - HILL) * valley
    seen = np.clip(np.abs(np.nan_to_num(values)) / (OPAQUE * limit), 0, 1)[:, None]
    mixed: np.ndarray = grey + seen * (colours(np.nan_to_num(values), limit) - grey)
    return mixed.round().astype(np.uint8)
