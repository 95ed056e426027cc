"""The three phases of XBind's optimisation (arXiv 2411.14715, method figure): coarse field, geometry, texture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from models.nets.view_diffusion import CHANNELS
from pipelines.xbind.rendering import SHARPEST, SOFTEST

DISTANCES, COLORS = slice(0, 1), slice(1, 4)  # of a grid
Distillation = Literal["sds", "cds"]


@dataclass(frozen=True)
class Phase:
    """``changed``: the channels of the grid that are optimised, at half its resolution if ``coarse``, by the channels
    ``seen`` of its views. ``times`` of the noise and ``softness`` of the surface go from the first number to the
    second; ``planar`` is multiplied with that weight; ``similarity``: whether that loss has a say; ``distillation``:
    how a view is told from what it should look like (:mod:`pipelines.xbind.supervision`)."""

    name: str
    coarse: bool
    changed: slice
    seen: slice
    times: tuple[float, float]
    softness: tuple[float, float]
    planar: float
    similarity: bool
    distillation: Distillation = "sds"


PHASES = (
    Phase("coarse field", True, slice(0, 4), slice(0, CHANNELS), (0.45, 0.2), (SOFTEST, SHARPEST), 0.5, True),
    # By normals and outline alone, and mostly by the prior that knows the sides; an image encoder knows no normals.
    Phase("geometry", False, DISTANCES, slice(3, CHANNELS), (0.35, 0.05), (SHARPEST, SHARPEST), 0.25, False),
    Phase("texture", False, COLORS, slice(0, 3), (0.35, 0.02), (SHARPEST, SHARPEST), 1.0, True),
)
# What begins with no object needs one first. What begins with a preview loses what its prior does not know.
PHASES_FROM_NOTHING = (replace(PHASES[0], times=(0.85, 0.35)), *PHASES[1:])
