"""Which numbers of a scan are meant: a trial or the mean of all, and what they are."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from models.errors import UserError
from pipelines.formats.scans.files import UNKNOWN
from pipelines.media import BrainScan

AS_SAID: Final = "as the scan says"
Units = Literal["as the scan says", "percent signal change", "percent signal change x 300", "z-scored"]


def trials_of(scan: BrainScan) -> Tensor:
    """(N, V) float32. Raises :class:`UserError` unless the scan is of voxels."""
    values = torch.tensor(scan.values)
    if values.ndim > 2:
        raise UserError(
            f"The scan has {values.ndim} axes, and the decoder reads voxels, or trials and voxels.",
            "Apply the subject's mask to it first.",
        )
    return values[None] if values.ndim == 1 else values


def check_trial(trial: int, count: int) -> None:
    """Raises :class:`UserError` for one that is not there; 0 means all."""
    if trial > count:
        raise UserError(f"The scan has no trial {trial}, only {count}.", "Choose one of them, or 0 for all.")


def chosen_trials(scan: BrainScan, trial: int, units: str) -> tuple[Tensor, str]:
    """The chosen trial or, for 0, all of them, (N, V), and what their numbers are.

    Raises :class:`UserError` for a trial that is not there, and where nobody says the units.
    """
    values = trials_of(scan)
    check_trial(trial, len(values))
    if trial:
        values = values[trial - 1 : trial]
    units = units_of(scan, units)
    if units == UNKNOWN:
        raise UserError(
            "The scan does not say whether its numbers are percent signal change or z-scores.",
            "Say it by 'units'.",
        )
    return values, units


def units_of(scan: BrainScan, units: str) -> str:
    return scan.units if units == AS_SAID else units


def whose(subject: str, trial: int, count: int) -> str:
    """ "S1, mean of 3 trials"."""
    return f"{subject}, " + (f"mean of {count} trials" if trial == 0 and count > 1 else f"trial {max(1, trial)}")
