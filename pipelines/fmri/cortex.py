"""A picture of what a scan says, before anything is decoded of it: each voxel where it lies, as far as that is known.

- A simulated brain: a flat map of its visual cortex, each voxel a cell (:mod:`pipelines.fmri.flat_map`).
- The measured one (Haxby et al. 2001): its slice.
- Numbers on the vertices of fsaverage5, 6 or 7 or of fs_LR 32k, of both hemispheres or of one, or a volume that is of
  MNI space by its size: the inflated surface (:mod:`pipelines.fmri.inflated`).
- A map of the cortex, or another volume: itself, and slices of it.
- Any other: of its values how many are how large. Where they belong, nothing here knows.

Values are drawn as they are, the mean over the chosen trials; nothing is smoothed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import nibabel
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw
from scipy.spatial import cKDTree

from models.errors import UserError
from models.nets.category_decoder import SUBJECT as MEASURED_SUBJECT
from pipelines.base import EXAMPLES
from pipelines.fmri import flat_map, inflated
from pipelines.fmri.canvas import FAINT, HEADING, INK, LABEL, MARGIN, PAPER, WIDTH, Sheet, colours, limit_of, signed
from pipelines.fmri.trials import AS_SAID, check_trial, units_of, whose
from pipelines.formats.scans.checks import SCALE
from pipelines.formats.scans.files import MAP_SHAPE, PERCENT, RAW, SIMULATED, UNKNOWN, Z_SCORED
from pipelines.media import BrainScan

NOTHING = "none"
FINER = 2  # outlines are drawn as many times larger, so that they are smooth
UNIT = 186  # pixels of the flat map's unit
MAP_HEIGHT, MIDDLE = 640, (300, 322)  # of a hemisphere's map, 600 wide
SLICES = 8
BARS = 40
HAXBY = EXAMPLES / "haxby2001"
SAID_UNITS = {PERCENT: "% signal change", RAW: "% signal change", Z_SCORED: "z-score"}
SHORT = {"parahippocampal": "PHC"}


class Drawing(NamedTuple):
    """``pixels`` (H, 1200, 3) uint8; ``words``: what they show."""

    pixels: np.ndarray
    words: str


def draw_scan(
    scan: BrainScan, trial: int = 0, subject: str = "", units: str = AS_SAID, without: str = NOTHING
) -> Drawing:
    """``trial``: from 1, 0 for the mean of all; ``subject`` and ``units``: instead of what the scan says; ``without``:
    one of :data:`~pipelines.fmri.flat_map.GROUPS`, left blank.

    Raises :class:`UserError` for a trial that is not there, and for regions to leave out where none are known.
    """
    values, trials = _mean(scan, trial)
    units = units_of(scan, units)
    values = values / SCALE if units == RAW else values
    subject = subject.strip() or scan.subject
    places = places_for(subject, values.size) if values.ndim == 1 else None
    name = places[0] if places else subject
    title = whose("A scan" if name == UNKNOWN else name, trial, trials)
    shown = _Shown(values, title, SAID_UNITS.get(units, "unknown units"))
    if places:
        return _flat(shown, *places, without, scan.origin == SIMULATED)
    if without != NOTHING:
        raise unknown_regions(subject)
    if sides := inflated.on_surface(scan.space, values):
        return _inflated(shown, sides, f"Average inflated cortex (fsaverage5), from {scan.space}")
    if values.shape == MAP_SHAPE:
        return _slices(shown, values, "A map of the cortex, as it is stored")
    if values.ndim == 3 and scan.affine is not None and inflated.is_mni(values.shape, scan.affine):
        sides = inflated.from_volume(values, scan.affine)
        return _inflated(shown, sides, "Average inflated cortex; assumes the volume is in MNI space")
    if values.ndim == 3:
        return _slices(shown, np.moveaxis(values, 2, 0), "Slices along the third axis, as they are stored")
    if subject == MEASURED_SUBJECT and values.size == measured_slice().mask.sum():
        return _measured(shown)
    return _distribution(shown)


def places_for(subject: str, voxels: int) -> tuple[str, flat_map.Places] | None:
    """Of a simulated brain, by its name or, where nobody says it, by the number of its voxels."""
    for name, places in flat_map.known_places().items():
        if len(places.area) == voxels and subject in (name, UNKNOWN):
            return name, places
    return None


def unknown_regions(subject: str) -> UserError:
    named = f"the brain of {subject[:40]}" if subject != UNKNOWN else "this brain"
    return UserError(
        f"Which voxels of {named} lie in which region is not known, so none can be left out.",
        f"Set 'without' to '{NOTHING}', or choose a simulated scan.",
    )


class _Shown(NamedTuple):
    values: np.ndarray
    title: str
    units: str

    def drawn(self, sheet: Sheet, note: str, limit: float) -> Drawing:
        words = f"{self.title}. {note}. Colours from {signed(-limit)} to {signed(limit)}, {self.units}."
        return Drawing(sheet.pixels, words)


def _mean(scan: BrainScan, trial: int) -> tuple[np.ndarray, int]:
    """The chosen trial or the mean of all, (V,), (1, 256, 256) or (X, Y, Z), and how many trials there are."""
    values = scan.values
    if values.shape[-3:] == MAP_SHAPE:
        axis = 0 if values.ndim == 4 else None
    else:
        axis = {1: None, 2: 0, 3: None, 4: 3}[values.ndim]
    if axis is None:
        check_trial(trial, 1)
        return values, 1
    check_trial(trial, values.shape[axis])
    if trial:
        return values.take(trial - 1, axis), values.shape[axis]
    return values.mean(axis, dtype=np.float64), values.shape[axis]


# ------------------------------------------------------------------------------------------------------- simulated


def _flat(shown: _Shown, name: str, places: flat_map.Places, without: str, simulated: bool) -> Drawing:
    limit = limit_of(shown.values)
    values = shown.values if without == NOTHING else np.where(places.within(without), np.nan, shown.values)
    whose_map = "Simulated brain (sim-v1)" if simulated else f"Taken for the simulated brain {name} (sim-v1)"
    note = f"{whose_map}: a scheme, not anatomy"
    sheet = Sheet(MAP_HEIGHT, shown.title, note)
    painted = np.concatenate([colours(values, limit), [PAPER]]).astype(np.uint8)
    outlines = _outlines()
    for left, cells in zip((True, False), cells_of(name), strict=True):
        side = PillowImage.fromarray(painted[cells])
        side = side.resize((side.width * FINER, side.height * FINER), PillowImage.Resampling.NEAREST)
        draw = ImageDraw.Draw(side)
        for outline in outlines:
            corners = _on_sheet(outline, left) * FINER
            draw.line([tuple(corner) for corner in [*corners, corners[0]]], INK, 3 * FINER, "curve")
        side = side.resize((side.width // FINER, side.height // FINER), PillowImage.Resampling.BOX)
        sheet.paste(np.asarray(side), 0 if left else WIDTH // 2, HEADING)
    gone = flat_map.GROUPS.get(without, ())
    for region in flat_map.REGIONS:
        middle = _middle(region)
        for left in (True, False):
            x, y = _on_sheet(middle[None], left)[0] + (0 if left else WIDTH // 2, HEADING)
            colour = FAINT if region.area in gone else INK
            sheet.write((x, y), SHORT.get(region.area, region.area), LABEL, colour, "mm", halo=5)
    for x, words, anchor in ((MARGIN, "left", "ls"), (WIDTH - MARGIN, "right", "rs")):
        sheet.write((x, sheet.foot - 8), words, LABEL, FAINT, anchor)
    sheet.scale(limit, shown.units)
    return shown.drawn(sheet, note, limit)


@cache
def _outlines() -> tuple[np.ndarray, ...]:
    return tuple(region.outline() for region in flat_map.REGIONS)


def _middle(region: flat_map.Region) -> np.ndarray:
    """Where its name stands, (2,)."""
    out = 0.5 if region.height else 0.45
    return region.position(np.array([out]), np.array([(region.lower + region.upper) / 2]))[0]


def _on_sheet(flat: np.ndarray, left: bool) -> np.ndarray:
    """(N, 2) of the map -> pixels of its hemisphere's half; the midline is between the two."""
    across = flat[:, 0] if left else -flat[:, 0]
    return np.stack([MIDDLE[0] + UNIT * across, MIDDLE[1] - UNIT * flat[:, 1]], 1)


@lru_cache(8)
def cells_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel of the left and of the right hemisphere's half, (H, W): the nearest voxel of its region, or -1."""
    places = flat_map.known_places()[name]
    halves = []
    for left in (True, False):
        cells = np.full((MAP_HEIGHT, WIDTH // 2), -1, np.int16)
        centres = _on_sheet(places.flat, left)
        for number, outline in enumerate(_outlines()):
            inside = PillowImage.new("1", cells.shape[::-1])
            ImageDraw.Draw(inside).polygon([tuple(corner) for corner in _on_sheet(outline, left)], 1)
            rows, columns = np.nonzero(np.asarray(inside))
            own = np.flatnonzero((places.region == number) & (places.left == left))
            _, nearest = cKDTree(centres[own]).query(np.stack([columns, rows], 1))
            cells[rows, columns] = own[nearest]
        halves.append(cells)
    return halves[0], halves[1]


# -------------------------------------------------------------------------------------------------------- measured


class _Slice(NamedTuple):
    """``mask`` (X, Y) bool and ``anatomy`` (X, Y), the mean of all volumes; ``steps``: millimetres, signed."""

    mask: np.ndarray
    anatomy: np.ndarray
    steps: tuple[float, float]


@cache
def measured_slice() -> _Slice:
    mask = nibabel.load(HAXBY / "mask.nii.gz")
    volumes = np.asarray(nibabel.load(HAXBY / "bold.nii.gz").dataobj, np.float32)  # type: ignore[attr-defined]
    steps = np.diag(mask.affine)[:2]  # type: ignore[attr-defined]
    return _Slice(np.asarray(mask.dataobj)[:, :, 0] > 0, volumes[:, :, 0].mean(-1), (float(steps[0]), float(steps[1])))  # type: ignore[attr-defined]


def _measured(shown: _Shown) -> Drawing:
    found = measured_slice()
    limit = limit_of(shown.values)
    values = np.full(found.mask.shape, np.nan)
    values[found.mask] = shown.values
    grey = np.clip(found.anatomy / np.percentile(found.anatomy, 99) * 255, 0, 255)[..., None]
    note = "Measured (Haxby et al. 2001): the back half of one slice"
    sheet = Sheet(460, shown.title, note)
    wide, high = 520, round(520 * found.mask.shape[1] / found.mask.shape[0] * abs(found.steps[1] / found.steps[0]))
    top = HEADING + 72
    for left, part, words in (
        (MARGIN, grey, "as scanned, mean"),
        (WIDTH - MARGIN - wide, colours(values, limit), "what this scan says"),
    ):
        inside = np.where(found.mask[..., None], part, PAPER).astype(np.uint8)
        ways = [1 if step > 0 else -1 for step in found.steps]  # to the right and to the front
        sheet.paste(_upright(inside[:: ways[0], :: ways[1]], (wide, high)), left, top)
        sheet.write((left + wide / 2, top - 20), words, LABEL, FAINT, "ms")
        sheet.write((left, top + high + 44), "left", LABEL, FAINT, "ls")
        sheet.write((left + wide, top + high + 44), "right", LABEL, FAINT, "rs")
    sheet.scale(limit, shown.units)
    return shown.drawn(sheet, note, limit)


# --------------------------------------------------------------------------------------------------------- surfaces


def _inflated(shown: _Shown, sides: inflated.Sides, note: str) -> Drawing:
    """``sides``: numbers on fsaverage5."""
    limit = limit_of(np.concatenate([*sides.values()]))
    sheet = Sheet(inflated.height_of(sides), shown.title, note)
    inflated.paint(sheet, sides, limit)
    sheet.scale(limit, shown.units)
    return shown.drawn(sheet, note, limit)


# ---------------------------------------------------------------------------------------------------------- others


def _slices(shown: _Shown, slices: np.ndarray, note: str) -> Drawing:
    """``slices`` (Z, X, Y): up to eight of those with something in them, side by side; blank where there is zero."""
    slices = np.where(slices == 0, np.nan, slices)
    filled = np.flatnonzero(np.isfinite(slices).any((1, 2)))
    filled = filled if len(filled) else np.arange(len(slices))
    chosen = filled[np.linspace(0, len(filled) - 1, min(SLICES, len(filled))).round().astype(int)]
    limit = limit_of(slices)
    columns = min(4, len(chosen))
    room = (WIDTH - 2 * MARGIN) // columns
    scale = min((room - 16) / slices.shape[1], (640 if columns == 1 else 300) / slices.shape[2])
    wide, high = (max(1, round(side * scale)) for side in slices.shape[1:])
    sheet = Sheet(-(-len(chosen) // columns) * (high + 60), shown.title, note)
    for place, index in enumerate(chosen):
        left = MARGIN + (place % columns) * room + (room - wide) // 2
        top = HEADING + 52 + (place // columns) * (high + 60)
        sheet.paste(_upright(colours(slices[index], limit), (wide, high)), left, top)
        if len(slices) > 1:
            sheet.write((left + wide / 2, top - 8), str(index + 1), LABEL, FAINT, "ms")
    sheet.scale(limit, shown.units)
    return shown.drawn(sheet, note, limit)


def _upright(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(X, Y, 3), x to the right and y up -> (H, W, 3) of that size, each voxel a rectangle."""
    turned = np.ascontiguousarray(pixels[:, ::-1].transpose(1, 0, 2))
    return np.asarray(PillowImage.fromarray(turned).resize(size, PillowImage.Resampling.NEAREST))


def _distribution(shown: _Shown) -> Drawing:
    limit = limit_of(shown.values)
    counts, edges = np.histogram(np.clip(shown.values, -limit, limit), BARS, (-limit, limit))
    note = f"Where these {shown.values.size:,} values belong is not known"
    sheet = Sheet(460, shown.title, note)
    left, wide, top, high = MARGIN + 60, (WIDTH - 2 * MARGIN - 120) / BARS, HEADING + 80, 380
    sheet.write((WIDTH / 2, top - 24), "how many have which value", LABEL, FAINT, "ms")
    for place, count in enumerate(counts):
        red, green, blue = colours(edges[place : place + 2].mean(), limit).tolist()
        x = left + place * wide
        sheet.draw.rectangle(
            (x, top + high * (1 - count / counts.max()), x + wide - 3, top + high), (red, green, blue), FAINT
        )
    for value, x in ((-limit, left), (0.0, left + BARS * wide / 2), (limit, left + BARS * wide)):
        sheet.write((x, top + high + 12), signed(value), LABEL, anchor="ma")
    sheet.write((WIDTH / 2, top + high + 62), shown.units, LABEL, FAINT, "ma")
    return shown.drawn(sheet, note, limit)
