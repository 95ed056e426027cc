"""What the readers of scans share: limits, errors with a code, and files of which only the header has been read."""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from models.errors import UserError

MAX_FILE_BYTES = 200 * 2**20
MAX_LAZY_BYTES = 4 * 2**30  # of an HDF5 file, which is never read whole
MAX_UNPACKED_BYTES = 2**30
MAX_VALUES = 64 * 2**20  # at once
MAX_TRIALS = 64

PERCENT, RAW, Z_SCORED, UNKNOWN = "percent signal change", "percent signal change x 300", "z-scored", "unknown"
SIMULATED, MEASURED, UPLOADED = "simulated", "measured", "uploaded"
MAP, MAP_SHAPE = "map", (1, 256, 256)
# The vertices of one hemisphere of the surfaces that are known.
VERTICES = {10_242: "fsaverage5", 40_962: "fsaverage6", 163_842: "fsaverage7", 32_492: "fs_LR 32k"}

_ONE_SIDE = ", one hemisphere"  # behind the surface's name, where nobody says which

_STRIP_BYTES = 4 * 2**20
_SAID = ("space", "subject", "units", "origin", "provenance")

_logger = logging.getLogger(__name__)

# What the axes mean: (V,) or (N, V); (N, R, V); (1, 256, 256) or (N, 1, 256, 256); (X, Y, Z) or (X, Y, Z, N); (N, V) of
# one hemisphere; (N, V) of both, the left one first.
Layout = Literal["voxels", "repeats", "map", "volume", "hemisphere", "cortex", "other"]


class ScanError(UserError):
    """A scan that cannot be used; ``code``: "E1" to "E9", as in section 7.2 of the fMRI sheet."""

    def __init__(self, code: str, sentence: str, hint: str) -> None:
        super().__init__(sentence, hint)
        self.code = code


@dataclass(frozen=True)
class Label:
    """What a file says about its numbers. ``note``: the provenance of an artifact of ours, as JSON; ``origin``:
    "simulated", "measured", or "uploaded" where the file does not say."""

    space: str = UNKNOWN
    subject: str = UNKNOWN
    units: str = UNKNOWN
    note: str | None = None
    origin: str = UPLOADED


@dataclass(frozen=True, eq=False)
class ScanFile:
    """A scan whose header has been read and checked, and whose numbers are still in the open file.

    ``read(start, stop)`` gives the stored numbers of these trials, with the axes of ``shape``, of which ``axis`` counts
    the trials (``None``: there is one, without an axis); ``dtype`` is theirs. Times ``slope`` plus ``inter`` they are
    the values. ``arrays``: what an archive has besides: ``mask``, ``image_id``, ``repeat``, ``mean``, ``std``. Of
    surfaces: the ``side`` ("left" or "right", ``None`` if the file does not say), and the ``vertices`` (V,) of both
    hemispheres that the columns stand for.
    """

    format: str
    layout: Layout
    shape: tuple[int, ...]
    axis: int | None
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    name: str = ""
    slope: float = 1.0
    inter: float = 0.0
    affine: np.ndarray | None = None
    label: Label = Label()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    side: str | None = None
    vertices: np.ndarray | None = None

    @property
    def trials(self) -> int:
        return 1 if self.axis is None else self.shape[self.axis]

    def stored(self, start: int, stop: int) -> np.ndarray:
        """The stored numbers of these trials. Raises :class:`ScanError` if they are too many, or not all there."""
        check_amount(math.prod(self.shape) // self.trials * (stop - start))
        with damage_is_plain(self.name):
            return self.read(start, stop)

    def values(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers as float32; what does not fit becomes infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            if (self.slope, self.inter) != (1.0, 0.0):
                kind = np.result_type(stored.dtype, np.float32).type
                stored = stored.astype(kind) * kind(self.slope) + kind(self.inter)
            return stored.astype(np.float32)

    def named(self, name: str) -> ScanFile:
        return replace(self, name=name)


def hemisphere_space(surface: str, side: str | None) -> str:
    """What the numbers on one hemisphere index: "fsaverage5 left"; where nobody says which, "fsaverage5, one
    hemisphere"."""
    return f"{surface} {side}" if side else surface + _ONE_SIDE


def surface_of(space: str) -> tuple[str, str | None] | None:
    """The surface, and "left", "right" or "both", ``None`` where nobody says which; of other spaces ``None``."""
    for name in VERTICES.values():
        if space == name:
            return name, "both"
        if space == name + _ONE_SIDE:
            return name, None
        for side in ("left", "right"):
            if space == f"{name} {side}":
                return name, side
    return None


@contextmanager
def damage_is_plain(name: str) -> Iterator[None]:
    """Decoders of damaged files raise anything; here it becomes one :class:`ScanError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        _logger.info("cannot read the scan %s", name, exc_info=True)
        called = f"'{name[:60]}'" if name else "The scan"
        raise ScanError("E1", f"{called} is damaged, or not of a kind that is read.", "Export it again.") from error


def parse_label(text: str | bytes) -> Label:
    """What :func:`pipelines.formats.scans.artifact.encode_scan` wrote; an empty label for other programs' comments."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return Label()
    known = {key: value for key, value in found.items() if key in _SAID}
    texts = {key.replace("provenance", "note"): value for key, value in known.items() if isinstance(value, str)}
    return Label(**texts)


def check_numbers(dtype: np.dtype) -> None:
    """Whether these are plain numbers; objects are never unpickled."""
    if dtype.hasobject:
        raise ScanError("E1", "The file holds Python objects, which are never opened.", "Save plain numbers instead.")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ScanError("E1", f"The file holds '{dtype.str[:20]}', not plain numbers.", "Save float32 or int16.")


def check_shape(shape: tuple[int, ...]) -> None:
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        sizes = " x ".join(map(str, shape[:8])) or "a single number"
        raise ScanError("E1", f"A scan cannot have the shape {sizes}.", "Save 1 to 4 axes, none of them empty.")


def check_amount(count: int) -> None:
    if count > MAX_VALUES:
        raise ScanError(
            "E2", f"The scan has too many values ({count:,}).", f"Choose fewer trials: at most {MAX_VALUES:,} values."
        )


def check_promise(file: io.BufferedIOBase, end: int) -> None:
    """Whether the file can hold the ``end`` bytes that its header speaks of; nothing is unpacked for it."""
    if isinstance(file, gzip.GzipFile | zipfile.ZipExtFile):
        if end > MAX_UNPACKED_BYTES:
            raise ScanError(
                "E2",
                f"The packed scan has too many values: it would unpack to {end / 2**20:,.0f} MB.",
                f"Use one of at most {MAX_UNPACKED_BYTES // 2**20} MB.",
            )
    elif end > (size := file.seek(0, os.SEEK_END)):
        raise ScanError(
            "E1", f"The file breaks off: it promises {end:,} bytes, and has {size:,}.", "Download or export it again."
        )


def read_exactly(file: io.BufferedIOBase, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ScanError("E1", "The file breaks off in the middle.", "Download or export it again.")
    return data


def read_block(
    file: io.BufferedIOBase,
    offset: int,
    dtype: np.dtype,
    shape: tuple[int, ...],
    order: Literal["C", "F"],
    axis: int | None,
    start: int,
    stop: int,
) -> np.ndarray:
    """``start`` to ``stop`` along ``axis`` (all if it is ``None``) of an array that begins at ``offset``.

    Only that much of it is ever in memory.
    """
    slowest = 0 if order == "C" else len(shape) - 1
    size = dtype.itemsize * math.prod(shape) // shape[slowest]  # of one row along the slowest axis
    first, last, rows = 0, shape[slowest], shape[slowest]
    if axis == slowest:
        first, last = start, stop
    elif axis is not None:
        rows = max(1, _STRIP_BYTES // size)
    file.seek(offset + first * size)
    parts = []
    for row in range(first, last, rows):
        count = min(rows, last - row)
        some = [*shape]
        some[slowest] = count
        part = np.frombuffer(read_exactly(file, count * size), dtype).reshape(some, order=order)
        parts.append(part if axis in (None, slowest) else part.take(range(start, stop), axis))
    if last == shape[slowest]:
        file.read(2**16)  # the end of a packed file has a checksum, which is compared when it is reached
    return parts[0] if len(parts) == 1 else np.concatenate(parts, slowest)
