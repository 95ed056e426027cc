"""NIfTI-1, NIfTI-2 and MGH, plain or packed with gzip: nibabel reads their headers, the numbers come trial by trial."""

from __future__ import annotations

import io
import math
import struct
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader

from pipelines.formats.scans.arrays import layout_of
from pipelines.formats.scans.files import (
    MAP,
    UNKNOWN,
    VERTICES,
    Label,
    ScanFile,
    check_numbers,
    check_promise,
    check_shape,
    parse_label,
    read_block,
    read_exactly,
)

_MAX_EXTENSION_BYTES = 64 * 2**20
COMMENT = 6  # NIfTI header extension of plain text


class Nifti(NamedTuple):
    """``extensions``: codes and contents; ``offset``: where the numbers begin."""

    header: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    extensions: tuple[tuple[int, bytes], ...]

    @property
    def scaling(self) -> tuple[float, float]:
        slope, inter = self.header.get_slope_inter()
        return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def begins_nifti(head: bytes) -> bool:
    return head[344:347] == b"n+1" or head[4:7] == b"n+2"


def begins_mgh(head: bytes) -> bool:
    return len(head) >= DATA_OFFSET and head.startswith(b"\0\0\0\1")


def read_nifti_header(file: io.BufferedIOBase, head: bytes) -> Nifti:
    kind: Any = nibabel.Nifti2Header if head[4:7] == b"n+2" else nibabel.Nifti1Header
    header = kind(head[: kind.sizeof_hdr])
    shape, dtype = tuple(map(int, header.get_data_shape())), header.get_data_dtype()
    if not shape or min(shape) < 1:
        check_shape(())
    check_numbers(dtype)
    offset = int(header["vox_offset"]) or kind.single_vox_offset
    check_promise(file, offset + math.prod(shape) * dtype.itemsize)
    if offset > _MAX_EXTENSION_BYTES:
        raise ValueError("the numbers begin too far behind the header")
    file.seek(kind.sizeof_hdr)
    block = read_exactly(file, offset - kind.sizeof_hdr)
    return Nifti(header, shape, dtype, offset, tuple(_extensions(block, header.endianness)))


def _extensions(block: bytes, order: str) -> list[tuple[int, bytes]]:
    found = []
    at = 4
    while block[:1] != b"\0" and at + 8 <= len(block):
        size, code = struct.unpack_from(f"{order}ii", block, at)
        if size < 8:
            break
        found.append((code, block[at + 8 : at + size].rstrip(b"\0")))
        at += size
    return found


def inspect_nifti(file: io.BufferedIOBase, nifti: Nifti) -> ScanFile:
    """(X, Y, Z) or (X, Y, Z, N); what :class:`BrainScan` saved has the axes that it had."""
    comments = [parse_label(content) for code, content in nifti.extensions if code == COMMENT]
    label = next((label for label in comments if label != Label()), Label())
    shape = nifti.shape
    if len(shape) == 5 and shape[3] == 1:  # some programs leave an axis of time before that of the trials
        shape = (*shape[:3], shape[4])
    slope, inter = nifti.scaling
    says = nifti.header["sform_code"] or nifti.header["qform_code"]
    affine = nifti.header.get_best_affine() if says else None  # nibabel would guess which side is left
    return _volume("NIfTI", file, nifti.offset, nifti.dtype, shape, affine, label, slope, inter)


def inspect_mgh(file: io.BufferedIOBase, head: bytes) -> ScanFile:
    """(X, Y, Z) or (X, Y, Z, N), or numbers on the vertices of one hemisphere."""
    header = MGHHeader(head[:DATA_OFFSET])
    dims = tuple(map(int, header["dims"]))
    shape = dims[:3] if dims[3] == 1 else dims
    if min(shape) < 1:
        check_shape(())
    dtype = header.get_data_dtype()
    check_promise(file, DATA_OFFSET + math.prod(shape) * dtype.itemsize)
    return _volume("MGH", file, DATA_OFFSET, dtype, shape, header.get_affine(), Label())


def _volume(
    name: str,
    file: io.BufferedIOBase,
    offset: int,
    dtype: np.dtype,
    shape: tuple[int, ...],
    affine: np.ndarray | None,
    label: Label,
    slope: float = 1.0,
    inter: float = 0.0,
) -> ScanFile:
    check_shape(shape)
    axis = 3 if len(shape) == 4 else None
    ours = label.space != UNKNOWN
    if not ours and len(shape) > 2 and shape[1] == 1 and math.prod(shape[:3]) in VERTICES:
        places, trials = math.prod(shape[:3]), 1 if axis is None else shape[3]

        def read_surface(start: int, stop: int) -> np.ndarray:
            return read_block(file, offset, dtype, (places, trials), "F", 1, start, stop).T

        return ScanFile(
            name,
            "hemisphere",
            (trials, places),
            0,
            dtype,
            read_surface,
            slope=slope,
            inter=inter,
            affine=affine,
            label=label,
        )
    if len(shape) < 3 or (ours and label.space == MAP):
        layout, axis = layout_of(shape)
    else:
        layout = "volume"

    def read(start: int, stop: int) -> np.ndarray:
        return read_block(file, offset, dtype, shape, "F", axis, start, stop)

    return ScanFile(name, layout, shape, axis, dtype, read, slope=slope, inter=inter, affine=affine, label=label)


def describe_grid(shape: tuple[int, ...], affine: np.ndarray | None) -> str:
    """As a person reads it: "81 x 104 x 83 voxels with the affine [...]"."""
    sizes = " x ".join(map(str, shape))
    if affine is None:
        return f"{sizes} voxels"
    rows = "; ".join(" ".join(f"{value:.4g}" for value in row) for row in affine[:3])
    return f"{sizes} voxels with the affine [{rows}]"
