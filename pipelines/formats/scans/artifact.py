"""The files of :class:`pipelines.media.BrainScan`: NIfTI-1 and NumPy to write, and every single file to read."""

from __future__ import annotations

import gzip
import io
import json
import math
from typing import Any, NamedTuple

import nibabel
import numpy as np

from models.errors import UserError
from pipelines.formats.scans.files import (
    MAP,
    MAX_TRIALS,
    MAX_VALUES,
    UNKNOWN,
    VERTICES,
    Label,
    ScanFile,
    check_amount,
    hemisphere_space,
)
from pipelines.formats.scans.roles import lone_mask, looks_like_mask, unknown_surface
from pipelines.formats.scans.sniff import inspect
from pipelines.formats.scans.volumes import COMMENT

MAX_AXIS = 32_767


class Decoded(NamedTuple):
    """Float32 ``values`` of 1 to 4 axes; "unknown" where the file does not say, and "uploaded" for the ``origin``;
    ``note``: the embedded one; ``affine`` (4, 4): a volume's, if its file says."""

    values: np.ndarray
    space: str
    subject: str
    units: str
    origin: str
    note: str | None
    affine: np.ndarray | None


def encode_scan(values: np.ndarray, label: dict[str, str | None], suffix: str, affine: np.ndarray | None) -> bytes:
    """``values``: float32, 1 to 4 axes. The ``label`` is JSON: in NIfTI a comment extension, in NumPy a text. Without
    an ``affine`` (4, 4) NIfTI gets the identity, which says nothing."""
    text = json.dumps(label)
    if suffix == ".npz":
        file = io.BytesIO()
        arrays: dict[str, Any] = {"values": values, "label": text}
        np.savez_compressed(file, **arrays if affine is None else {**arrays, "affine": affine})
        return file.getvalue()
    if max(values.shape) > MAX_AXIS:
        raise UserError(f"A NIfTI file has at most {MAX_AXIS} values along an axis.", "Save the scan as .npz.")
    scan = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    scan.header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, text.encode()))
    data = scan.to_bytes()
    return gzip.compress(data, mtime=0) if suffix == ".nii.gz" else data


def decode_scan(data: bytes) -> Decoded:
    """Any file that is a scan by itself, whatever its name: of NSD's HDF5 the first 64 trials, of others all.

    Numbers on a part of a surface's vertices become numbers on all, 0 on the others; an array is taken for one of a
    surface by its size. Raises :class:`ScanError` also for an unknown surface or a mask alone.
    """
    scan = inspect(io.BytesIO(data))
    if scan.layout == "hemisphere" and (unknown := unknown_surface(scan)):
        raise unknown
    stop = scan.trials
    if scan.format == "HDF5":
        stop = max(1, min(MAX_TRIALS, MAX_VALUES // (math.prod(scan.shape) // scan.trials)))
    values = scan.values(scan.stored(0, stop))
    label = scan.label
    if scan.layout == "volume" and label == Label() and looks_like_mask(values):
        raise lone_mask()
    if scan.layout == "cortex":
        values = _on_all_vertices(values, scan)
    space = _space_of(scan) if label.space == UNKNOWN else label.space
    return Decoded(values, space, label.subject, label.units, label.origin, label.note, _affine(scan))


def _on_all_vertices(values: np.ndarray, scan: ScanFile) -> np.ndarray:
    """(N, V) of the file -> (N, all vertices of both hemispheres)."""
    size = next(count for count, name in VERTICES.items() if name == scan.label.space)
    check_amount(len(values) * 2 * size)
    everywhere = np.zeros((len(values), 2 * size), np.float32)
    everywhere[:, scan.vertices] = values
    return everywhere


def _space_of(scan: ScanFile) -> str:
    if scan.layout == "map":
        return MAP
    count = scan.shape[-1]
    if scan.layout == "hemisphere" or (scan.layout == "voxels" and count in VERTICES):
        return hemisphere_space(VERTICES[count], scan.side)
    both = {2 * size: name for size, name in VERTICES.items()}
    return both.get(count, UNKNOWN) if scan.layout == "voxels" else UNKNOWN


def _affine(scan: ScanFile) -> np.ndarray | None:
    """As NIfTI stores it, in float32; ``None`` where the file has none, the identity, or no placing of a volume."""
    given = scan.arrays.get("affine", scan.affine if scan.layout == "volume" else None)
    if given is None or given.shape != (4, 4) or given.dtype.kind not in "fiu":
        return None
    with np.errstate(over="ignore"):
        affine = given.astype(np.float32)
    says = np.isfinite(affine).all() and not np.array_equal(affine, np.eye(4))
    sizes = np.linalg.norm(affine[:3, :3].astype(np.float64), axis=0)  # of a voxel, in millimetres
    places = says and np.array_equal(affine[3], (0, 0, 0, 1)) and ((sizes > 1e-3) & (sizes < 1e6)).all()
    return affine if places and np.linalg.matrix_rank(affine[:3, :3] / sizes) == 3 else None
