"""Activity on an inflated cortex, from outside and from between the hemispheres: the average of forty people's brains.

The surface is fsaverage5, 10,242 vertices a hemisphere, which the package nilearn carries; the finer fsaverage6 and 7
begin with the same vertices. A volume in MNI space lies close to it: each vertex gets the mean along the way through
the grey matter, from the white to the pial surface. Grey is the depth of the folds, dark in the valleys.

Shapes: V = 10,242 vertices of one hemisphere.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import nibabel
import numpy as np

from pipelines.fmri.canvas import HEADING, LABEL, MARGIN, WIDTH, Sheet, colours
from pipelines.formats.mesh_views import Frame, MeshViews
from pipelines.formats.scans.files import VERTICES

VERTICES_DRAWN = 10_242
SURFACES = {name: count for count, name in VERTICES.items() if name.startswith("fsaverage")}
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
HEIGHT = 40 + 2 * ROW  # of all four
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
def fsaverage5() -> tuple[Hemisphere, Hemisphere]:
    """The left and the right one, out of nilearn; a second the first time."""
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

    return hemisphere("left"), hemisphere("right")


def on_surface(space: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Of numbers on both hemispheres of a surface, the left one first, those on fsaverage5: (V,) each. ``None`` for
    other surfaces, and where some vertices are missing."""
    count = SURFACES.get(space)
    if count is None or values.shape != (2 * count,):
        return None
    return values[:VERTICES_DRAWN], values[count : count + VERTICES_DRAWN]


def is_mni(shape: tuple[int, ...], affine: np.ndarray) -> bool:
    """Whether a volume of ``shape`` is by its size one in MNI space, whichever way its axes go; ``affine`` (4, 4)."""
    side = MNI_GRIDS.get(shape)
    return side is not None and np.allclose(np.abs(affine[:3, :3]), side * np.eye(3), atol=1e-3)


def from_volume(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume (X, Y, Z) in MNI space on fsaverage5: (V,) each, NaN where the surface leaves the volume."""
    from nilearn.surface import InMemoryMesh, vol_to_surf

    image = nibabel.Nifti1Image(np.asarray(values, np.float32), affine)
    left, right = (
        vol_to_surf(
            image,
            InMemoryMesh(side.pial, side.faces),
            inner_mesh=InMemoryMesh(side.white, side.faces),
            depth=np.linspace(0, 1, DEPTHS),
        )
        for side in fsaverage5()
    )
    return left, right


def paint(sheet: Sheet, sides: tuple[np.ndarray, np.ndarray], limit: float) -> None:
    """Four views of numbers (V,) on the left and the right hemisphere, NaN where there are none: from outside above,
    from between them below."""
    for column, (hemisphere, values, name) in enumerate(zip(fsaverage5(), sides, ("left", "right"), strict=True)):
        x, y, z = hemisphere.inflated.T
        views = MeshViews(np.stack([x, z, -y], 1), hemisphere.faces, painted(hemisphere.depth, values, limit))
        frame = Frame(np.zeros(2), 2 * float(np.abs(y).max()))
        for row, (azimuth, seen) in enumerate(((270, "outside"), (90, "inside"))):
            drawn = views.drawn(ROOM, azimuth if name == "left" else azimuth - 180, 0, frame)
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
