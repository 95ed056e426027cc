"""Whether betas can be decoded: their values, their scale, their repeats. Nothing is changed that was not asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.formats.scans.files import MAX_TRIALS, PERCENT, RAW, UNKNOWN, Z_SCORED, ScanError

SCALE = 300  # steps of NSD's integers per percent signal change
MAX_FILLED, MAX_CONSTANT, MAX_BACKGROUND = 0.01, 0.2, 0.8  # shares; the last of the pixels of a map
MAX_MEAN, MIN_DEVIATION, MAX_DEVIATION = 5.0, 0.3, 3.0
MAX_INTEGER = 200


class Remark(NamedTuple):
    """What does not keep a scan from being used; ``code`` as of :class:`ScanError`, and "W1"."""

    code: str
    sentence: str


@dataclass(frozen=True)
class Choices:
    """What a user decides about an upload.

    ``trials``: the first and the one after the last, from 0, at most ``max_trials`` of them; ``None``: all.
    ``divide_by_300``: whether to; ``None``: only where the file's format says that it has to be, and values of an
    unlikely scale are then refused. ``z_score``: by the mean and deviation in the file. ``fill``: NaN and infinity by
    their voxel's mean. ``average``: trials of one picture. ``subject``: who it is, or
    :data:`~pipelines.formats.scans.subjects.NEW_SUBJECT`, against what the file says.
    """

    trials: tuple[int, int] | None = None
    divide_by_300: bool | None = None
    z_score: bool = False
    fill: bool = False
    average: bool = False
    subject: str | None = None
    max_trials: int = MAX_TRIALS


class Statistics(NamedTuple):
    """Of every voxel (V,) float32, in percent signal change."""

    mean: np.ndarray
    std: np.ndarray


def chosen_trials(count: int, choices: Choices) -> tuple[int, int]:
    """E2: more trials than at most, or a range that is none."""
    if choices.trials is None:
        if count > choices.max_trials:
            raise ScanError(
                "E2", f"The file has {count:,} trials.", f"Choose up to {choices.max_trials} with the trial range."
            )
        return 0, count
    start, stop = choices.trials
    if not 0 <= start < stop <= count:
        raise ScanError(
            "E2",
            f"The trials {start} to {stop} are not in the file, which has {count:,}.",
            f"Choose from 0 to {count}.",
        )
    if stop - start > choices.max_trials:
        raise ScanError("E2", f"The range has {stop - start:,} trials.", f"Choose up to {choices.max_trials}.")
    return start, stop


def picture_numbers(
    arrays: Mapping[str, np.ndarray], name: str, count: int, start: int, stop: int
) -> np.ndarray | None:
    """``image_id`` or ``repeat`` of the chosen trials, int64. E8: they are not whole numbers, or not one per trial."""
    if name not in arrays:
        return None
    found = arrays[name]
    if found.shape != (count,):
        sizes = " x ".join(map(str, found.shape)) or "1"
        raise ScanError(
            "E8", f"'{name}' has {sizes} entries for {count} trials: repeats cannot be averaged.", "Save one per trial."
        )
    chosen = found[start:stop]
    if not np.isfinite(chosen).all() or (chosen != np.rint(chosen)).any() or (np.abs(chosen) > 2**53).any():
        raise ScanError("E8", f"'{name}' has NaN or fractions: repeats cannot be averaged.", "Save whole numbers.")
    return chosen.astype(np.int64)


def check_values(values: np.ndarray, fill: bool, max_constant: float) -> tuple[np.ndarray, list[Remark]]:
    """``values``: (N, V). E6: NaN or infinity, filled only where that is asked for, and voxels that never change."""
    remarks = []
    bad = ~np.isfinite(values)
    share = float(bad.mean())
    if share > MAX_FILLED:
        raise ScanError(
            "E6",
            f"{share:.1%} of the values are NaN or infinite.",
            f"Leave out these voxels by the mask; up to {MAX_FILLED:.0%} can be filled with their voxel's mean.",
        )
    if share and not fill:
        raise ScanError(
            "E6",
            f"{bad.sum():,} values ({share:.2%}) are NaN or infinite.",
            "Choose to fill them with their voxel's mean.",
        )
    if share:
        means = np.where(bad, 0, values).sum(0, np.float64) / np.maximum((~bad).sum(0), 1)
        values = np.where(bad, means.astype(np.float32), values)
        remarks.append(Remark("E6", f"{bad.sum():,} values ({share:.2%}) were filled with their voxel's mean."))
    same = (values == values[0]).all(0) if len(values) > 1 else values[0] == 0
    constant = float(same.mean())
    if constant > max_constant:
        what = "never change" if len(values) > 1 else "are zero"
        raise ScanError("E6", f"{constant:.0%} of the voxels {what}.", "Use a mask of the voxels that were measured.")
    return values, remarks


def refuse_missing_repeats(values: np.ndarray) -> None:
    """``values``: (N, R, V). E8: some repeats are not there, and NaN stands in their place."""
    missing = ~np.isfinite(values).any(-1)
    if missing.any():
        row = int(np.flatnonzero(missing.any(1))[0])
        raise ScanError(
            "E8",
            f"Picture {row} has only {int((~missing[row]).sum())} of {values.shape[1]} repeats: cannot average them.",
            "Save single trials with their image_id instead.",
        )


def check_statistics(mean: np.ndarray | None, std: np.ndarray | None, voxels: int) -> Statistics | None:
    """E6: not a mean and a deviation above zero of each voxel; nothing where the file has neither."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ScanError("E6", "The file has one of 'mean' and 'std', but not the other.", "Save both, or none.")
    if mean.shape != (voxels,) or std.shape != (voxels,):
        raise ScanError("E6", f"'mean' and 'std' are not of the {voxels:,} voxels.", "Save one number for each voxel.")
    with np.errstate(over="ignore"):
        mean, std = mean.astype(np.float32), std.astype(np.float32)
    if not np.isfinite(mean).all() or not np.isfinite(std).all() or not (std > 0).all():
        raise ScanError("E6", "'mean' or 'std' has NaN, infinity or deviations of zero.", "Leave out these voxels.")
    return Statistics(mean, std)


class Scaled(NamedTuple):
    values: np.ndarray
    units: str
    steps: list[str]
    remarks: list[Remark]


def scaled(values: np.ndarray, units: str, dtype: np.dtype, choices: Choices, statistics: Statistics | None) -> Scaled:
    """Divided and z-scored as the format says and the user chose. E7: then of a scale that no decoder was made for.

    ``dtype``: as they were stored. Whoever chose whether to divide is not refused, but told.
    """
    steps = []
    divide = units == RAW if choices.divide_by_300 is None else choices.divide_by_300
    if divide:
        values, units = values / np.float32(SCALE), PERCENT
        steps.append(f"divided by {SCALE}")
    if choices.z_score:
        if statistics is None:
            raise ScanError("E7", "The file has no 'mean' and 'std' to z-score by.", "Save them in it, or do without.")
        if units == RAW:
            raise ScanError("E7", "The 'mean' and 'std' are of values divided by 300.", "Choose to divide by 300 too.")
        with np.errstate(over="ignore"):
            values, units = (values - statistics.mean) / statistics.std, Z_SCORED
        if not np.isfinite(values).all():
            raise ScanError("E6", "Some deviations in the file are too small to divide by.", "Leave out these voxels.")
        steps.append("z-scored by the mean and deviation in the file")
    mean, deviation = _moments(values)
    integers = units == UNKNOWN and dtype.kind == "i" and dtype.itemsize == 2 and np.abs(values).max() > MAX_INTEGER
    if abs(mean) <= MAX_MEAN and MIN_DEVIATION <= deviation <= MAX_DEVIATION and not integers:
        return Scaled(values, units, steps, [])
    sentence = (
        f"The values look like raw betas x 300, or are not normalised: mean {mean:.3g}, deviation {deviation:.3g}."
    )
    if choices.divide_by_300 is not None:
        return Scaled(values, units, steps, [Remark("E7", sentence)])
    raise ScanError("E7", sentence, _what_a_choice_would_do(values, mean, deviation, divide, choices, statistics))


def _what_a_choice_would_do(
    values: np.ndarray, mean: float, deviation: float, divided: bool, choices: Choices, statistics: Statistics | None
) -> str:
    options = []
    if not divided and not choices.z_score:
        options.append(f"divide by 300 (mean {mean / SCALE:.3g}, deviation {deviation / SCALE:.3g})")
    if statistics is not None and not choices.z_score:
        parts = values if divided else values / np.float32(SCALE)
        scored, spread = _moments((parts - statistics.mean) / statistics.std)
        also = "" if divided else "divide by 300 and "
        options.append(f"{also}z-score by the file's mean and std (mean {scored:.3g}, deviation {spread:.3g})")
    return f"Choose: {', '.join([*options, 'or not to divide and take them as they are'])}."


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of what is not exactly zero, as the background of a map is."""
    inside = values[values != 0]
    return (float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))) if inside.size else (0.0, 0.0)


def averaged(values: np.ndarray, image_id: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the trials of each picture, (M, ...), and whose it is (M,), in the order of their first trials."""
    if image_id is None:
        raise ScanError(
            "E8", "The file does not say which trials show the same picture: cannot average repeats.", "Add 'image_id'."
        )
    found, first, inverse = np.unique(image_id, return_index=True, return_inverse=True)
    order = np.argsort(first)
    means = np.stack([values[inverse == index].mean(0, dtype=np.float64) for index in order])
    return means.astype(np.float32), found[order]
