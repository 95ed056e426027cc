"""Brain scans as other programs save them, as small as they can be, and what the tests of uploads share."""

from __future__ import annotations

import base64
import io
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes

from pipelines.formats.scans.betas import Betas, read_betas
from pipelines.formats.scans.checks import Choices
from pipelines.formats.scans.files import ScanError
from pipelines.formats.scans.subjects import SUBJECTS, Subject, hash_of_mask
from tests.media_examples import assert_plain

GRID = (6, 5, 4)
MASK = np.random.default_rng(1).random(GRID) < 0.4
AFFINE = np.array([[-1.8, 0, 0, 90], [0, 1.8, 0, -126], [0, 0, 1.8, -72], [0, 0, 0, 1.0]])
VOXELS = int(MASK.sum())
VERTICES = 10_242
# Two with so few voxels that their files are quick to make, beside those that are known.
KNOWN = (
    *SUBJECTS,
    Subject("tiny", "S1", VOXELS, hash_of_mask(MASK), GRID, adapter=True),
    Subject("tiny", "S2", 30, None, (30, 20, 10)),
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def read(*paths: Path, known: Sequence[Subject] = KNOWN, **choices: Any) -> Betas:
    """What is read from the files, which is always finite float32, one row a trial."""
    betas = read_betas(paths, Choices(**choices), known)
    assert betas.values.dtype == np.float32 and np.isfinite(betas.values).all()
    assert betas.image_id is None or len(betas.image_id) == len(betas.values)
    return betas


def refuse(code: str, *paths: Path, **choices: Any) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read(*paths, **choices)
    assert_plain(caught.value)
    assert caught.value.code == code, caught.value
    return caught.value


def peak_of(action: Callable[[], object]) -> float:
    """Megabytes that Python and NumPy held at most, over those before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def npz(path: Path, betas: np.ndarray, **others: Any) -> Path:
    np.savez_compressed(path, betas=betas, **others)
    return path


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, order: str = "<", **header: float) -> Path:
    """``header``: of its fields; a ``scl_slope`` says what the stored numbers are to be multiplied by."""
    image = nibabel.Nifti1Image(array, affine, nibabel.Nifti1Header(endianness=order))
    image.set_data_dtype(array.dtype)
    data = bytearray(image.to_bytes())
    found = nibabel.Nifti1Header(bytes(data[:348]))
    for name, value in header.items():
        found[name] = value
    data[:348] = found.binaryblock
    path.write_bytes(zlib_packed(bytes(data)) if path.name.endswith(".gz") else data)
    return path


def zlib_packed(data: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(data) + packer.flush()


def mask_file(path: Path, affine: np.ndarray = AFFINE, mask: np.ndarray = MASK) -> Path:
    return nifti(path, mask.astype(np.uint8), affine)


def hdf5(path: Path, volumes: np.ndarray, matlab: bool = True, **options: Any) -> Path:
    """``volumes``: (X, Y, Z, 750), as MATLAB or as Python writes them."""
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=volumes.T if matlab else volumes, **options)
    return path


def session(grid: tuple[int, int, int] = GRID) -> np.ndarray:
    """(X, Y, Z, 750) int16: percent signal change times 300."""
    return np.rint(normal(*grid, 750) * 300).astype(np.int16)


def mgh(path: Path, rows: np.ndarray) -> Path:
    """``rows``: (N, V) on a surface; ``.mgz`` is packed."""
    columns = rows.T[:, None, None, :]
    nibabel.MGHImage(columns if len(rows) > 1 else columns[..., 0], np.eye(4)).to_filename(path)
    return path


def gifti(path: Path, rows: np.ndarray, side: str = "", encoding: str = "GZipBase64Binary", order: str = "<") -> Path:
    """``rows``: (N, V), one array each; ``side``: "CortexLeft" or "CortexRight"."""
    arrays = []
    for row in rows:
        data = row.astype(f"{order}f4").tobytes()
        text = {
            "ASCII": " ".join(map(repr, map(float, row))),
            "Base64Binary": base64.b64encode(data).decode(),
            "GZipBase64Binary": base64.b64encode(zlib.compress(data, 1)).decode(),
        }[encoding]
        arrays.append(gifti_array(len(row), text, encoding, "BigEndian" if order == ">" else "LittleEndian"))
    path.write_text(gifti_text("".join(arrays), side))
    return path


def gifti_array(count: int, text: str, encoding: str = "GZipBase64Binary", endian: str = "LittleEndian") -> str:
    return (
        '<DataArray Intent="NIFTI_INTENT_NONE" DataType="NIFTI_TYPE_FLOAT32" ArrayIndexingOrder="RowMajorOrder" '
        f'Dimensionality="1" Dim0="{count}" Encoding="{encoding}" Endian="{endian}" ExternalFileName="">'
        f"<Data>{text}</Data></DataArray>"
    )


def gifti_text(arrays: str, side: str = "", before: str = "") -> str:
    about = f"<MD><Name>AnatomicalStructurePrimary</Name><Value>{side}</Value></MD>" if side else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<GIFTI Version="1.0">'
        f"<MetaData>{about}</MetaData>{arrays}</GIFTI>"
    )


def cortex(vertices: Sequence[np.ndarray], total: int = VERTICES, inside: int = 0) -> Any:
    """A CIFTI axis: these vertices of the left and of the right cortex, and ``inside`` voxels of the brain stem before
    and after the right one."""
    models = [
        cifti2_axes.BrainModelAxis.from_surface(chosen, total, name)
        for chosen, name in zip(vertices, ("CortexLeft", "CortexRight"), strict=False)
    ]
    if inside:
        deep = np.zeros((40, 40, 40), bool)
        deep.flat[:inside] = True
        stem = cifti2_axes.BrainModelAxis.from_mask(deep, name="brain_stem", affine=np.eye(4))
        models.insert(1, stem)
    return sum(models[1:], models[0])


def cifti(path: Path, values: np.ndarray, axis: Any, series: bool = False) -> Path:
    """``values``: (N, V)."""
    names = [f"trial {index}" for index in range(len(values))]
    maps = cifti2_axes.SeriesAxis(0, 1.6, len(values)) if series else cifti2_axes.ScalarAxis(names)
    image = nibabel.Cifti2Image(values, (maps, axis))
    image.nifti_header.set_intent(
        "NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES" if series else "NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS"
    )
    image.to_filename(path)
    return path


class CountedBytes(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        size = super().readinto(buffer)
        self.count += size
        return size
