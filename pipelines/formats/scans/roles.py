"""Which file is what: betas and their mask, or two hemispheres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.formats.scans.files import MAX_VALUES, VERTICES, ScanError, ScanFile
from pipelines.formats.scans.surfaces import known_surfaces, side_of_name


class Roles(NamedTuple):
    """``betas``: one file, or the left and the right hemisphere."""

    betas: tuple[ScanFile, ...]
    mask: ScanFile | None


def roles_of(scans: Sequence[ScanFile]) -> Roles:
    """One or two files. Raises :class:`ScanError` where something is missing or does not go together."""
    surfaces = [scan for scan in scans if scan.layout == "hemisphere"]
    if len(scans) == 1:
        if surfaces:
            raise lone_hemisphere(surfaces[0])
        if _is_mask(scans[0]):
            raise lone_mask()
        return Roles((scans[0],), None)
    if len(surfaces) == 1:
        raise lone_hemisphere(surfaces[0])
    if surfaces:
        return Roles(_pair(*surfaces), None)
    masks = [scan for scan in scans if _is_mask(scan)]
    if len(masks) == 2:
        raise ScanError("E5", "Both files are masks.", "Add the betas instead of one of them.")
    if not masks:  # some masks have numbers of areas in them
        masks = [scan for scan in scans if scan.layout == "volume" and scan.axis is None]
    if len(masks) != 1:
        raise ScanError("E5", "Neither of the two files is a mask for the other.", "Choose betas and their mask.")
    return Roles(tuple(scan for scan in scans if scan is not masks[0]), masks[0])


def lone_hemisphere(scan: ScanFile) -> ScanError:
    unknown = unknown_surface(scan)
    if unknown:
        return unknown
    side = _side(scan)
    missing = {"left": "the right one", "right": "the left one", None: "the other one"}[side]
    return ScanError(
        "E9", f"This is only {f'the {side}' if side else 'one'} hemisphere; {missing} is missing.", "Choose both files."
    )


def lone_mask() -> ScanError:
    return ScanError("E5", "This is a mask alone, without a scan.", "Choose the betas together with it.")


def looks_like_mask(values: np.ndarray) -> bool:
    """Whether all is 1 or 0 (or -1, outside of the brain), and something is 1."""
    ones = values == 1
    return bool(ones.any() and (ones | (values == 0) | (values == -1)).all())


def mask_of(scan: ScanFile) -> np.ndarray:
    """(V,) or (X, Y, Z) bool: where the numbers are above zero."""
    values = scan.values(scan.stored(0, scan.trials)) > 0
    return values[..., 0] if values.ndim == 4 else values


def _is_mask(scan: ScanFile) -> bool:
    """A volume in NumPy's format looks like repeats, but only a mask has so small numbers."""
    is_small = scan.layout == "repeats" and scan.dtype.itemsize == 1
    if not is_small and (scan.trials > 1 or scan.layout not in ("voxels", "volume")):
        return False
    return math.prod(scan.shape) <= MAX_VALUES and looks_like_mask(scan.values(scan.stored(0, scan.trials)))


def _pair(one: ScanFile, other: ScanFile) -> tuple[ScanFile, ScanFile]:
    """The left and the right hemisphere, of one surface and the same trials."""
    for scan in (one, other):
        unknown = unknown_surface(scan)
        if unknown:
            raise unknown
    sides = (_side(one), _side(other))
    if sides[0] == sides[1]:
        what = "do not say which hemisphere they are" if sides[0] is None else f"are both the {sides[0]} hemisphere"
        raise ScanError("E9", f"The two files {what}.", "Choose one whose name begins with 'lh.', and one with 'rh.'.")
    left, right = (one, other) if sides[0] == "left" or sides[1] == "right" else (other, one)
    if left.shape != right.shape:
        sizes = [f"{scan.shape[1]:,} vertices and {scan.trials} trials" for scan in (left, right)]
        raise ScanError(
            "E9", f"The left hemisphere has {sizes[0]}, the right one {sizes[1]}.", "Choose two files of one scan."
        )
    return left, right


def _side(scan: ScanFile) -> str | None:
    return scan.side or side_of_name(scan.name)


def unknown_surface(scan: ScanFile) -> ScanError | None:
    if scan.shape[1] in VERTICES:
        return None
    return ScanError(
        "E9", f"A surface of {scan.shape[1]:,} vertices is not known.", f"Resample to one of {known_surfaces()}."
    )
