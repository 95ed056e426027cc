"""NumPy's ``.npy`` and ``.npz``, read part by part and without pickles."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np

from pipelines.formats.scans.files import (
    MAP_SHAPE,
    MEASURED,
    RAW,
    SIMULATED,
    Label,
    Layout,
    ScanError,
    ScanFile,
    check_amount,
    check_numbers,
    check_promise,
    check_shape,
    parse_label,
    read_block,
)

_BETAS = ("betas", "values")  # what others, and what we ourselves, call the numbers of a scan
_BESIDES = ("mask", "image_id", "repeat", "mean", "std", "affine")
_TEXTS = ("subject", "label", "provenance", "simulator")
_MAX_HEADER_BYTES = 10_000
_MAX_TEXT_BYTES = 16 * 2**20
_MAX_MEMBERS = 64
_END_BYTES, _LOCATOR_BYTES = 22, 20  # of a zip archive's end record, and of what stands before it in huge ones


def layout_of(shape: tuple[int, ...]) -> tuple[Layout, int | None]:
    """What the axes of an array without further explanation are, and which of them counts the trials."""
    check_shape(shape)
    if shape[-3:] == MAP_SHAPE:
        return "map", 0 if len(shape) == 4 else None
    layouts: tuple[tuple[Layout, int | None], ...] = (("voxels", None), ("voxels", 0), ("repeats", 0), ("other", None))
    return layouts[len(shape) - 1]


def inspect_npy(file: io.BufferedIOBase) -> ScanFile:
    """(V,), (N, V), (N, R, V), (1, 256, 256) or (N, 1, 256, 256)."""
    file.seek(0)
    header = _read_header(file)
    check_numbers(header.dtype)
    layout, axis = layout_of(header.shape)
    check_promise(file, header.end)
    return ScanFile(
        "NumPy", layout, header.shape, axis, header.dtype, lambda start, stop: header.read(file, axis, start, stop)
    )


def inspect_npz(file: io.BufferedIOBase) -> ScanFile:
    """``betas``, shaped as in :func:`inspect_npy`, and what the archive says about them."""
    with _archive(file) as archive:
        names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
        key = next((name for name in _BETAS if name in names), None)
        if key is None:
            found = ", ".join(sorted(names))[:100]
            raise ScanError("E1", f"The archive has no array 'betas' (it has {found!r}).", "Name the scan 'betas'.")
        with _member(archive, key) as member:
            header = _read_header(member)
            check_numbers(header.dtype)
            layout, axis = layout_of(header.shape)
            check_promise(member, header.end)
        arrays = {name: _numbers(archive, name) for name in _BESIDES if name in names}
        texts = {name: _text(archive, name) for name in _TEXTS if name in names}

    def read(start: int, stop: int) -> np.ndarray:
        with _archive(file) as archive, _member(archive, key) as member:
            return header.read(member, axis, start, stop)

    label = _label(texts, header.dtype)
    return ScanFile("NumPy archive", layout, header.shape, axis, header.dtype, read, label=label, arrays=arrays)


def _label(texts: dict[str, str], dtype: np.dtype) -> Label:
    if "label" in texts:
        return parse_label(texts["label"])
    known: dict[str, Any] = {"subject": texts["subject"]} if "subject" in texts else {}
    if texts.get("provenance") in (SIMULATED, MEASURED):
        known["origin"] = texts["provenance"]
    if "simulator" in texts and dtype.kind == "i" and dtype.itemsize == 2:
        known["units"] = RAW
    return Label(**known)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.dtype.itemsize * math.prod(self.shape)

    def read(self, file: io.BufferedIOBase, axis: int | None, start: int, stop: int) -> np.ndarray:
        return read_block(file, self.offset, self.dtype, self.shape, self.order, axis, start, stop)


def _read_header(file: io.BufferedIOBase) -> _Header:
    """Of a file that stands at its beginning."""
    head = io.BytesIO(file.read(_MAX_HEADER_BYTES))
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        shape, in_fortran, dtype = np.lib.format.read_array_header_1_0(head)
    elif version == (2, 0):
        shape, in_fortran, dtype = np.lib.format.read_array_header_2_0(head)
    else:
        raise ScanError("E1", "The array has named columns, not plain numbers.", "Save float32 or int16.")
    return _Header(tuple(map(int, shape)), "F" if in_fortran else "C", dtype, head.tell())


@contextmanager
def _archive(file: io.BufferedIOBase) -> Iterator[zipfile.ZipFile]:
    """A zip archive of a few arrays, all of them at its top. Its end says how many there are."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    end = tail[-_END_BYTES:]
    if not end.startswith(b"PK\5\6") or end[-2:] != b"\0\0":
        raise ScanError("E1", "The archive breaks off in the middle.", "Download or export it again.")
    if tail.startswith(b"PK\6\7") or int.from_bytes(end[10:12], "little") > _MAX_MEMBERS:
        raise ScanError("E1", f"The archive has more than {_MAX_MEMBERS} parts.", "Save one scan in it.")
    with zipfile.ZipFile(cast(IO[bytes], file)) as archive:
        for info in archive.infolist():
            if re.search(r"[/\\:\0]|^\.", info.filename):
                raise ScanError(
                    "E1", f"The archive has a folder or a path in it ({info.filename[:40]!r}).", "Save arrays only."
                )
        yield archive


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[io.BufferedIOBase]:
    info = next(info for info in archive.infolist() if info.filename.removesuffix(".npy") == name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ScanError("E1", "The archive is packed in a way that is not read.", "Save it with NumPy.")
    if info.flag_bits & 1:
        raise ScanError("E1", "The archive is locked with a password.", "Save it without.")
    with archive.open(info) as member:
        yield cast(io.BufferedIOBase, member)


def _numbers(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with _member(archive, name) as member:
        header = _read_header(member)
        check_numbers(header.dtype)
        check_amount(math.prod(header.shape))
        if not math.prod(header.shape):
            raise ScanError("E1", f"The array '{name}' is empty.", "Leave it out.")
        return header._replace(shape=header.shape or (1,)).read(member, None, 0, 1)


def _text(archive: zipfile.ZipFile, name: str) -> str:
    with _member(archive, name) as member:
        header = _read_header(member)
        if header.dtype.kind not in "US" or math.prod(header.shape) != 1 or header.dtype.itemsize > _MAX_TEXT_BYTES:
            raise ScanError("E1", f"The array '{name}' is no text.", "Save one text there, such as 'S1'.")
        text = header._replace(shape=(1,)).read(member, None, 0, 1)[0] if header.dtype.itemsize else ""
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
