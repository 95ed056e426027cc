"""CIFTI-2 ``.dscalar.nii`` and ``.dtseries.nii``: maps of grayordinates, of which the cortex is taken."""

from __future__ import annotations

import io
from typing import Any
from xml.parsers import expat

import numpy as np
from nibabel.cifti2.cifti2_axes import BrainModelAxis, ScalarAxis, SeriesAxis
from nibabel.cifti2.parse_cifti2 import Cifti2Extension

from pipelines.formats.scans.files import VERTICES, Label, ScanError, ScanFile, read_block
from pipelines.formats.scans.surfaces import known_surfaces, refuse_entities
from pipelines.formats.scans.volumes import Nifti

INTENTS = range(3000, 3100)


def inspect_cifti(file: io.BufferedIOBase, nifti: Nifti) -> ScanFile:
    """(N, V): both hemispheres, the left one first, as many vertices of each as the file has."""
    xml = next((content for code, content in nifti.extensions if code == Cifti2Extension.code), b"")
    if len(nifti.shape) != 6 or nifti.shape[:4] != (1, 1, 1, 1):
        raise ScanError("E1", "The CIFTI file has other axes than maps and places.", "Save a .dscalar or .dtseries.")
    trials, places = nifti.shape[4:]
    _check_models(xml, places)
    header = Cifti2Extension.from_bytes(xml).get_object()
    maps, models = header.get_axis(0), header.get_axis(1)
    if not isinstance(maps, ScalarAxis | SeriesAxis) or not isinstance(models, BrainModelAxis):
        raise ScanError(
            "E1", "The CIFTI file holds parcels, labels or connections.", "Use a .dscalar or .dtseries of betas."
        )
    columns, vertices, space = _cortex(models)

    def read(start: int, stop: int) -> np.ndarray:
        # Of one place all maps lie side by side.
        return read_block(file, nifti.offset, nifti.dtype, (trials, places), "F", 0, start, stop)[:, columns]

    slope, inter = nifti.scaling
    label = Label(space=space)
    shape = (trials, len(columns))
    return ScanFile(
        "CIFTI-2",
        "cortex",
        shape,
        0,
        nifti.dtype,
        read,
        slope=slope,
        inter=inter,
        label=label,
        vertices=vertices,
    )


def _check_models(xml: bytes, places: int) -> None:
    """The header repeats how many places there are; nibabel would make room for any number."""
    promised = 0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal promised
        if name == "BrainModel":
            count, offset = int(attributes["IndexCount"]), int(attributes["IndexOffset"])
            if count < 0 or not 0 <= offset <= places - count:
                raise ValueError("a structure lies outside the file")
            promised += count

    parser = expat.ParserCreate()
    refuse_entities(parser)
    parser.StartElementHandler = begin
    parser.Parse(xml, True)
    if promised > places:
        raise ValueError("more places in the header than in the file")


def _cortex(models: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """The columns (V,) of the cortex, their vertices, the right hemisphere's counted on from the left one's, and the
    surface."""
    columns, sizes = {}, {}
    for side in ("left", "right"):
        structure = f"CIFTI_STRUCTURE_CORTEX_{side.upper()}"
        columns[side] = np.flatnonzero(models.name == structure) if structure in models.nvertices else np.zeros(0, int)
        sizes[side] = int(models.nvertices.get(structure, 0))
    missing = [side for side in columns if not len(columns[side])]
    if missing:
        both = " and the ".join(missing)
        raise ScanError("E9", f"The {both} cortex is missing in the file.", "Use a file with both hemispheres.")
    size = sizes["left"]
    if size != sizes["right"] or size not in VERTICES:
        raise ScanError(
            "E9",
            f"Surfaces of {size:,} and {sizes['right']:,} vertices are not known.",
            f"Resample to one of {known_surfaces()}.",
        )
    vertices = [models.vertex[columns[side]] for side in columns]
    for chosen in vertices:
        if chosen.min() < 0 or chosen.max() >= size or len(np.unique(chosen)) < len(chosen):
            raise ValueError("vertices that the surface does not have, or twice")
    return np.concatenate([*columns.values()]), np.concatenate([vertices[0], vertices[1] + size]), VERTICES[size]
