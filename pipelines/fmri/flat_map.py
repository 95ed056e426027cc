"""A flat map of the simulator's visual cortex: what there is of it to draw, without a surface.

The simulated brains (``sim-v1``) have no folds, but every place has an area and a part of the picture that it sees. The
map is drawn from these as atlases draw visual cortex: V1, V2, V3, V4 and LO lie like petals around the fovea, each from
the middle of the picture outwards; V2 and V3 in two halves, above V1 for the lower field and below it for the upper
one, each a mirror image of its neighbour; the others are lobes at the rim. It is a scheme, not anybody's anatomy.

Units: degrees around the fovea, from V1's middle over the top; one is about the radius of the petals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipelines.formats.scans.subjects import hash_of_mask

FILE = Path(__file__).parents[2] / "assets" / "cortex" / "sim-v1.npz"
SIMULATOR = "sim-v1"
FOVEA, EDGE = 0.3, 4.2  # degrees: the least and the greatest eccentricity
EDGE_POINTS = 80  # along each side of a region's outline

# Groups of areas by what people call them.
GROUPS = {
    "early": ("V1", "V2", "V3"),
    "higher": ("V4", "LO", "ventral", "parahippocampal", "dorsal"),
    "V4": ("V4",),
    "lateral": ("LO",),
    "ventral": ("ventral", "parahippocampal"),
    "dorsal": ("dorsal",),
}


@dataclass(frozen=True, eq=False)
class Places:
    """Of a subject's V voxels: ``area`` (V,) names, ``sees`` (V, 2) degrees of the picture from its middle, right and
    up, ``region`` (V,) into :data:`REGIONS`, ``flat`` (V, 2) on the map of their hemisphere, x towards the midline and
    y up, ``left`` (V,) whether that is the left one. ``mask_hash``: of the voxels' mask."""

    area: np.ndarray
    sees: np.ndarray
    region: np.ndarray
    flat: np.ndarray
    left: np.ndarray
    mask_hash: str

    def within(self, group: str) -> np.ndarray:
        """(V,) bool: the voxels of one of :data:`GROUPS`."""
        return np.isin(self.area, GROUPS[group])


@cache
def known_places() -> dict[str, Places]:
    """By the simulator's subjects, "S1" to "S8"."""
    arrays = dict(_stored())
    areas, left = arrays.pop("areas"), int(arrays.pop("left"))
    area, x, y = areas[arrays.pop("area")], arrays.pop("x").astype(float), arrays.pop("y").astype(float)
    region, flat = _placed(area, np.abs(x), y)
    sees = np.stack([x, y], 1)
    found = {}
    for name, chosen in arrays.items():
        mask = np.zeros(len(area), bool)
        mask[chosen] = True
        found[name] = Places(
            area[chosen], sees[chosen], region[chosen], flat[chosen], chosen < left, hash_of_mask(mask)
        )
    return found


def area_shares() -> dict[str, float]:
    """Of the whole cortex, by the areas' names."""
    stored = _stored()
    counts = np.bincount(stored["area"], minlength=len(stored["areas"]))
    return dict(zip(stored["areas"].tolist(), (counts / counts.sum()).tolist(), strict=True))


@cache
def _stored() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _placed(area: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) area names, and degrees of the picture away from the midline and up -> regions (P,), places (P, 2)."""
    out = np.log(np.hypot(x, y) / FOVEA) / np.log(EDGE / FOVEA)
    up = np.arctan2(y, x) / (np.pi / 2)
    regions, flat = np.empty(len(area), int), np.empty((len(area), 2))
    for number, region in enumerate(REGIONS):
        chosen = (area == region.area) & (region.lower <= up) & (up < region.upper)
        regions[chosen], flat[chosen] = number, region.position(out[chosen], up[chosen])
    return regions, flat


@dataclass(frozen=True)
class Region:
    """A part of an area that sees the angles from ``lower`` to ``upper``, of a quarter turn, -1 to 1.

    They lie between ``first`` and ``last`` degrees on the map. A petal begins at the fovea; a lobe, of some ``height``,
    at the petals' rim.
    """

    area: str
    lower: float
    upper: float
    first: float
    last: float
    height: float = 0.0

    def position(self, out: np.ndarray, up: np.ndarray) -> np.ndarray:
        """(N,) from the fovea, 0, to the edge of the picture, 1; (N,) from the lower to the upper field -> (N, 2)."""
        share = (up - self.lower) / (self.upper - self.lower)
        out = np.clip(out, 0, 1)
        if self.height:
            turn = self.first + (self.last - self.first) * out
            dome = self.height * np.sin(np.pi * (0.06 + 0.88 * out)) ** 0.55
            radius = _rim(turn) + dome * share
        else:
            turn = self.first + (self.last - self.first) * share
            radius = _rim(turn) * np.sqrt(out)  # equal areas for equal numbers of places
        return _bent(radius * np.cos(np.radians(turn)), radius * np.sin(np.radians(turn)))

    def outline(self) -> np.ndarray:
        """(4 * EDGE_POINTS, 2), once around it."""
        along = np.linspace(0, 1, EDGE_POINTS)
        ends = self.lower + (self.upper - self.lower) * along
        one, zero = np.ones(EDGE_POINTS), np.zeros(EDGE_POINTS)
        sides = [(along, self.lower * one), (one, ends), (along[::-1], self.upper * one), (zero, ends[::-1])]
        return np.concatenate([self.position(out, up) for out, up in sides])


# Petals take as much of the circle as their areas have places; V2 and V3 begin where V1 and V2 end.
REGIONS = (
    Region("V1", -1, 1.001, 58, -58),
    Region("V2", -1, 0, 58, 101.5),
    Region("V2", 0, 1.001, -101.5, -58),
    Region("V3", -1, 0, 125.5, 101.5),
    Region("V3", 0, 1.001, -101.5, -125.5),
    Region("V4", -1, 1.001, -170.5, -125.5),
    Region("LO", -1, 1.001, 125.5, 189.5),
    Region("dorsal", -1, 1.001, 62, 152, 0.62),
    Region("ventral", -1, 1.001, 212, 272, 0.66),
    Region("parahippocampal", -1, 1.001, 272, 306, 0.5),
)


def _rim(turn: np.ndarray) -> np.ndarray:
    from_v1 = (turn + 180) % 360 - 180
    return 1 + 0.3 * np.exp(-((from_v1 / 50) ** 2))


def _bent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Nothing in a brain is round."""
    return np.stack([1.12 * x + 0.05 * np.sin(2.4 * y + 0.6), y + 0.06 * np.sin(2.1 * x - 0.5)], -1)
