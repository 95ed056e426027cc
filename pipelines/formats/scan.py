"""Brain scans (NIfTI-1, NumPy), by nibabel and numpy."""

from __future__ import annotations

import gzip
import io
import json
import math
import zipfile

import nibabel
import numpy as np

from models.errors import UserError

MAX_VALUES = 64 * 2**20

_HEADER_BYTES = 348
_MAX_AXIS = 32_767
_COMMENT = 6  # NIfTI header extension of plain text


def encode_scan(values: np.ndarray, space: str, subject: str, suffix: str, note: str | None) -> bytes:
    """``values``: float32, 1 to 4 axes. The rest is JSON: in NIfTI a comment extension, in NumPy a text."""
    label = json.dumps({"space": space, "subject": subject, "provenance": note})
    if suffix == ".npz":
        file = io.BytesIO()
        np.savez_compressed(file, values=values, label=label)
        return file.getvalue()
    if max(values.shape) > _MAX_AXIS:
        raise UserError(f"A NIfTI file has at most {_MAX_AXIS} values along an axis.", "Save the scan as .npz.")
    scan = nibabel.Nifti1Image(values, np.eye(4))
    scan.header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, label.encode()))
    data = scan.to_bytes()
    return gzip.compress(data, mtime=0) if suffix == ".nii.gz" else data


def decode_scan(data: bytes, suffix: str) -> tuple[np.ndarray, str, str, str | None]:
    """Float32 values, space, subject (``"unknown"`` where the file does not say), and the embedded note."""
    values, label = _decode_npz(data) if suffix == ".npz" else _decode_nifti(data, suffix)
    return values, label.get("space", "unknown"), label.get("subject", "unknown"), label.get("provenance")


def _decode_npz(data: bytes) -> tuple[np.ndarray, dict[str, str]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_size((sum(member.file_size for member in archive.infolist()) // 8,))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        label = _parse_label(str(arrays["label"])) if "label" in arrays else {}
        return arrays["values"].astype(np.float32), label


def _decode_nifti(data: bytes, suffix: str) -> tuple[np.ndarray, dict[str, str]]:
    if suffix == ".nii.gz":
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            head = file.read(_HEADER_BYTES)
            _check_header(head)
            data = head + file.read(_HEADER_BYTES + 8 * MAX_VALUES)
    _check_header(data[:_HEADER_BYTES])
    scan = nibabel.Nifti1Image.from_bytes(data)
    label: dict[str, str] = {}
    for extension in scan.header.extensions:
        if extension.get_code() == _COMMENT:
            label |= _parse_label(extension.get_content().rstrip(b"\0"))
    return np.asarray(scan.dataobj, dtype=np.float32), label


def _parse_label(text: str | bytes) -> dict[str, str]:
    """What :func:`encode_scan` wrote; nothing for the comments of other programs."""
    try:
        label = json.loads(text)
    except ValueError:
        return {}
    return {key: value for key, value in label.items() if isinstance(value, str)} if isinstance(label, dict) else {}


def _check_header(head: bytes) -> None:
    _check_size(nibabel.Nifti1Header(head, check=False).get_data_shape())


def _check_size(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise UserError("The scan has too many values.", f"Use one with at most {MAX_VALUES:,}.")
