"""Uploads to betas: one or two files in, checked numbers out, with all that is known about them said aloud."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.formats.scans.checks import (
    MAX_BACKGROUND,
    MAX_CONSTANT,
    Choices,
    Remark,
    Statistics,
    averaged,
    check_statistics,
    check_values,
    chosen_trials,
    picture_numbers,
    refuse_missing_repeats,
    scaled,
)
from pipelines.formats.scans.files import MAP, MAP_SHAPE, UNKNOWN, VERTICES, Z_SCORED, ScanError, ScanFile
from pipelines.formats.scans.roles import Roles, mask_of, roles_of
from pipelines.formats.scans.sniff import ACCEPTED, inspect
from pipelines.formats.scans.subjects import SUBJECTS, Subject, hash_of_mask, recognise
from pipelines.formats.scans.volumes import describe_grid

VOXELS = "voxels"

_VOXEL_LAYOUTS = ("voxels", "repeats", "volume")


@dataclass(frozen=True, eq=False)
class Betas:
    """Responses to pictures, ready to be decoded or drawn.

    ``values``: finite float32, (N, V), or (N, 1, 256, 256) for a map. ``space``: "voxels", "map", or the surface, whose
    ``vertices`` (V,) the columns are, those of the right hemisphere counted on from the left one's. ``subject``: as
    recognised, ``None`` for a new one, for maps and for surfaces. ``units``: "percent signal change", the same "x 300",
    "z-scored" or "unknown"; ``steps``: what was done to the numbers of the file, in order. ``origin``: "simulated",
    "measured" or "uploaded". ``trials``: the first and the one after the last in the file. ``image_id`` (N,) and
    ``repeat`` (N,) int64, the ``statistics`` and the ``mask_hash``: where the file has them. ``remarks``: what the user
    should know besides.
    """

    values: np.ndarray
    format: str
    space: str
    subject: Subject | None
    units: str
    steps: tuple[str, ...]
    origin: str
    trials: tuple[int, int]
    image_id: np.ndarray | None
    repeat: np.ndarray | None
    statistics: Statistics | None
    mask_hash: str | None
    vertices: np.ndarray | None
    remarks: tuple[Remark, ...]


def read_betas(
    paths: Sequence[Path | str], choices: Choices | None = None, known: Sequence[Subject] = SUBJECTS
) -> Betas:
    """One file, betas and their mask, or a left and a right hemisphere, in any order.

    ``known``: the subjects that may be recognised. Only the chosen trials are read. Raises :class:`ScanError` with the
    codes of section 7.2 of the fMRI sheet.
    """
    choices = choices or Choices()
    if not 1 <= len(paths) <= 2:
        raise ScanError("E1", f"{len(paths)} files are no scan.", f"Choose one, or two that go together. {ACCEPTED}")
    with ExitStack() as stack:
        scans = [inspect(stack.enter_context(_open(Path(path))), Path(path).name) for path in paths]
        return _betas_of(roles_of(scans), choices, known)


def _open(path: Path) -> io.BufferedReader:
    name = path.name[:60]
    try:
        if path.is_file():
            return path.open("rb")
        reason = "it is a folder" if path.is_dir() else "there is no such file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise ScanError("E1", f"'{name}' cannot be read: {reason.lower()}.", "Check its name and folder.")


def _betas_of(roles: Roles, choices: Choices, known: Sequence[Subject]) -> Betas:
    scan = roles.betas[0]
    mask = _mask_for(scan, roles.mask, known)
    start, stop = chosen_trials(scan.trials, choices)
    values = np.concatenate([_masked(part, part.stored(start, stop), mask) for part in roles.betas], -1)
    voxels, is_map = values.shape[-1], scan.layout == "map"
    mask_hash = None if mask is None else hash_of_mask(mask)
    subject = None
    if scan.layout in _VOXEL_LAYOUTS:
        said = None if scan.label.subject == UNKNOWN else scan.label.subject
        subject = recognise(voxels, mask_hash, choices.subject or said, known)
    image_id, repeat = (picture_numbers(scan.arrays, name, scan.trials, start, stop) for name in ("image_id", "repeat"))
    statistics = _statistics(scan, mask, voxels)
    if scan.layout == "repeats":
        refuse_missing_repeats(values)
    flat = values.reshape(-1, math.prod(MAP_SHAPE) if is_map else voxels)
    flat, remarks = check_values(flat, choices.fill, MAX_BACKGROUND if is_map else MAX_CONSTANT)
    values = flat.reshape(values.shape)
    steps = ["filled NaN and infinity with the mean of the voxel"] if remarks else []
    if scan.layout == "repeats":
        values = values.mean(1, dtype=np.float64).astype(np.float32)
        steps.append(f"mean of {scan.shape[1]} repeats")
    result = scaled(values, scan.label.units, scan.dtype, choices, statistics)
    values = result.values
    steps += result.steps
    remarks += result.remarks
    if choices.average:
        values, image_id = averaged(values, image_id)
        repeat = None
        steps.append("mean of the trials of each picture")
    if stop - start == 1 and statistics is None and result.units != Z_SCORED:
        remarks.append(Remark("W1", "A single trial cannot be z-scored by itself: stored statistics are needed."))
    paired = scan.layout == "hemisphere"
    return Betas(
        values=values,
        format=scan.format,
        space=_space(scan),
        subject=subject,
        units=result.units,
        steps=tuple(steps),
        origin=scan.label.origin,
        trials=(start, stop),
        image_id=image_id,
        repeat=repeat,
        statistics=statistics,
        mask_hash=mask_hash,
        vertices=np.arange(voxels) if paired else scan.vertices,
        remarks=tuple(remarks),
    )


def _mask_for(scan: ScanFile, file: ScanFile | None, known: Sequence[Subject]) -> np.ndarray | None:
    """(V,) or (X, Y, Z) bool, from its own file or from the archive of the betas. E5: it is missing or does not fit."""
    if scan.layout == "other":
        sizes = " x ".join(map(str, scan.shape))
        raise ScanError("E1", f"An array of {sizes} is neither betas nor a map.", "Save (N, V) or (N, 1, 256, 256).")
    grid = scan.shape[:3]
    if file is None and "mask" not in scan.arrays:
        if scan.layout == "volume":
            what = f"{describe_grid(grid, None)}{_owner(grid, known)}"
            raise ScanError(
                "E5", f"A volume of {what} does not say which of them to use.", "Choose its mask together with it."
            )
        return None
    if file is not None and "mask" in scan.arrays:
        raise ScanError("E5", "The archive has a mask already.", "Choose it without the other one.")
    if scan.layout not in _VOXEL_LAYOUTS:
        raise ScanError("E5", f"Masks do not go with a {scan.layout}.", "Choose the scan alone.")
    mask = scan.arrays["mask"] > 0 if file is None else mask_of(file)
    if not mask.any():
        raise ScanError("E5", "No voxel is chosen in the mask.", "Use a mask that is above zero where voxels are.")
    if scan.layout == "volume":
        _check_grids(scan, mask, None if file is None else file.affine, known)
    elif scan.shape[-1] not in (mask.size, mask.sum()):
        raise ScanError(
            "E5",
            f"The betas have {scan.shape[-1]:,} voxels, but the mask has {mask.sum():,} of {mask.size:,}.",
            "Use the mask that the betas were made with.",
        )
    return mask


def _check_grids(scan: ScanFile, mask: np.ndarray, affine: np.ndarray | None, known: Sequence[Subject]) -> None:
    """E5: not the same shape, or affines that differ by more than 1e-3."""
    shapes, affines = (scan.shape[:3], mask.shape), (scan.affine, affine)
    if scan.affine is None or affine is None:
        affines = (None, None)
    same = scan.affine is None or affine is None or np.allclose(scan.affine, affine, rtol=0, atol=1e-3)
    if shapes[0] == shapes[1] and same:
        return
    owners = ["", ""] if shapes[0] == shapes[1] else [_owner(shape, known) for shape in shapes]
    grids = [describe_grid(shape, affine) for shape, affine in zip(shapes, affines, strict=True)]
    sentence = f"The betas have {grids[0]}{owners[0]}, but the mask has {grids[1]}{owners[1]}."
    raise ScanError("E5", sentence, "Use the mask of the betas' grid.")


def _space(scan: ScanFile) -> str:
    if scan.layout == "hemisphere":
        return VERTICES[scan.shape[1]]
    return {"map": MAP, "cortex": scan.label.space}.get(scan.layout, VOXELS)


def _owner(grid: tuple[int, ...], known: Sequence[Subject]) -> str:
    owner = next((subject for subject in known if subject.grid == grid), None)
    return f" (the grid of {owner})" if owner else ""


def _masked(scan: ScanFile, stored: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Float32, trials first, of the voxels in the mask."""
    stored = stored[None] if scan.axis is None else np.moveaxis(stored, scan.axis, 0)
    if scan.layout == "volume":
        stored = stored[:, mask]
    elif mask is not None:
        stored = _within(stored, mask)
    return scan.values(stored)


def _within(numbers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Along the last axis, what the mask chooses, unless it was applied before."""
    return numbers if numbers.shape[-1] == mask.sum() else numbers[..., mask.ravel()]


def _statistics(scan: ScanFile, mask: np.ndarray | None, voxels: int) -> Statistics | None:
    mean, std = (scan.arrays.get(name) for name in ("mean", "std"))
    if mask is not None and mean is not None and std is not None and mean.shape == std.shape == (mask.size,):
        mean, std = _within(mean, mask), _within(std, mask)
    return check_statistics(mean, std, voxels)
