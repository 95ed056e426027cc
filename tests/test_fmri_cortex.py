"""Pictures of scans: where the voxels of simulated brains lie, what is drawn of them, and of all that is no such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageDraw

from models.errors import UserError
from pipelines.fmri import flat_map
from pipelines.fmri.canvas import BLANK, HEADING, colours, limit_of
from pipelines.fmri.cortex import MAP_HEIGHT, cells_of, draw_scan, measured_slice, places_for
from pipelines.fmri.pipeline import Without
from pipelines.formats.scans.files import PERCENT, RAW, SIMULATED, Z_SCORED
from pipelines.formats.scans.subjects import SUBJECTS
from pipelines.media import BrainScan
from training import brain_places

EXAMPLES = Path("assets/examples/scans")
SIMULATED_SUBJECTS = [subject for subject in SUBJECTS if subject.dataset == flat_map.SIMULATOR]


def scan_of(name: str, values: np.ndarray, units: str = Z_SCORED) -> BrainScan:
    return BrainScan(values.astype(np.float32), "voxels", name, units, SIMULATED)


def share_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Of the map's pixels."""
    return float((pixels[HEADING : HEADING + MAP_HEIGHT] == colour).all(-1).mean())


def test_the_shipped_places_are_those_of_the_simulator() -> None:
    made = brain_places.places()
    with np.load(flat_map.FILE) as shipped:
        assert set(shipped.files) == set(made)
        assert all(np.array_equal(shipped[name], value) for name, value in made.items())


def test_the_places_are_those_of_the_masks_that_subjects_are_known_by() -> None:
    known = flat_map.known_places()
    assert list(known) == [subject.name for subject in SIMULATED_SUBJECTS]
    for subject in SIMULATED_SUBJECTS:
        places = known[subject.name]
        assert len(places.area) == subject.voxels and places.mask_hash == subject.mask_hash
        assert {len(getattr(places, name)) for name in ("region", "flat", "left")} == {subject.voxels}


def test_regions_lie_beside_each_other_and_hold_their_voxels() -> None:
    taken = np.zeros((400, 400), int)
    for region in flat_map.REGIONS:
        drawn = PillowImage.new("1", taken.shape)
        ImageDraw.Draw(drawn).polygon([(200 + 110 * x, 200 + 110 * y) for x, y in region.outline()], 1)
        taken += np.asarray(drawn)
    assert (taken > 1).sum() < 0.03 * (taken > 0).sum(), "regions overlap"
    for places in flat_map.known_places().values():
        for number, region in enumerate(flat_map.REGIONS):
            own = places.region == number
            assert own.any() and set(places.area[own]) == {region.area}
            low, high = region.outline().min(0) - 0.05, region.outline().max(0) + 0.05
            assert ((low <= places.flat[own]) & (places.flat[own] <= high)).all()


def test_neighbouring_areas_meet_at_the_same_angle_of_view() -> None:
    """Where V1 ends at the upper field, ventral V2 begins with it; where V2 ends at the horizontal, V3 begins."""
    areas = {(region.area, region.lower): region for region in flat_map.REGIONS}
    out = np.linspace(0.1, 1, 10)

    def side(area: str, lower: float, up: float) -> np.ndarray:
        return areas[area, lower].position(out, np.full(10, up))

    for one, other in (
        (side("V1", -1, 1), side("V2", 0, 1)),
        (side("V1", -1, -1), side("V2", -1, -1)),
        (side("V2", 0, 0), side("V3", 0, 0)),
        (side("V2", -1, 0), side("V3", -1, 0)),
        (side("V3", 0, 1), side("V4", -1, 1)),
    ):
        assert np.abs(one - other).max() < 0.01


@pytest.mark.parametrize("name", ["S1", "S8"])
def test_every_voxel_is_seen_in_its_own_colour(name: str) -> None:
    places = flat_map.known_places()[name]
    left, right = cells_of(name)
    assert set(np.unique(left)) - {-1} == set(np.flatnonzero(places.left))
    assert set(np.unique(right)) - {-1} == set(np.flatnonzero(~places.left))
    values = np.where(places.area == "V4", 2.0, np.where(places.area == "LO", -2.0, 0.0))
    pixels = draw_scan(scan_of(name, values)).pixels
    for value in (2.0, -2.0):
        expected = np.mean([np.isin(half, np.flatnonzero(values == value)).mean() for half in (left, right)])
        found = share_of(pixels, tuple(colours(np.array(value), 2.0).tolist()))
        assert 0.75 * expected < found <= expected, "outlines and names cover a part, not more"


def test_what_is_left_out_is_blank_and_nothing_else_is() -> None:
    scan = BrainScan.load(next(EXAMPLES.glob("S1-*.npz")))
    whole, early = draw_scan(scan), draw_scan(scan, without="early")
    places = flat_map.known_places()["S1"]
    gone = np.flatnonzero(places.within("early"))
    expected = np.mean([np.isin(half, gone).mean() for half in cells_of("S1")])
    assert share_of(whole.pixels, BLANK) < 0.001 < 0.8 * expected < share_of(early.pixels, BLANK) <= expected
    assert "Simulated brain (sim-v1)" in whole.words and "mean of 3 trials" in whole.words


def test_groups_are_of_areas_that_there_are_and_all_can_be_chosen() -> None:
    areas = {region.area for region in flat_map.REGIONS}
    assert {area for group in flat_map.GROUPS.values() for area in group} == areas
    assert set(flat_map.GROUPS["early"]).isdisjoint(flat_map.GROUPS["higher"])
    assert Without.__args__ == ("none", *flat_map.GROUPS)  # type: ignore[attr-defined]


def test_trials_and_units_are_heeded() -> None:
    values = np.stack([np.full(976, 1.0), np.full(976, -3.0)])
    mean, first = (draw_scan(scan_of("S7", values), trial=trial) for trial in (0, 1))
    assert share_of(mean.pixels, tuple(colours(np.array(-1.0), 1.0).tolist())) > 0.1
    assert share_of(first.pixels, tuple(colours(np.array(1.0), 1.0).tolist())) > 0.1
    assert "S7, mean of 2 trials" in mean.words and "S7, trial 1" in first.words
    raw, percent = (
        draw_scan(scan_of("S7", values * factor, units=units)) for factor, units in ((300, RAW), (1, PERCENT))
    )
    assert np.array_equal(raw.pixels, percent.pixels) and "-1 to +1, % signal change" in raw.words
    with pytest.raises(UserError, match="no trial 3, only 2"):
        draw_scan(scan_of("S7", values), trial=3)


def test_a_scan_without_a_name_is_drawn_as_whom_the_decoder_takes_it_for() -> None:
    scan = BrainScan(np.ones((2, 976), np.float32), "unknown", "unknown")
    assert "Taken for the simulated brain S7" in draw_scan(scan).words
    for subject in ("Ann", "S1"):  # somebody else with as many voxels
        assert places_for(subject, 976) is None
        assert "976 values belong is not known" in draw_scan(scan, subject=subject).words


def test_the_measured_slice_is_drawn_with_its_voxels_where_they_are() -> None:
    found = measured_slice()
    assert found.mask.sum() == 530 and found.steps[0] < 0 < found.steps[1]
    scan = BrainScan.load(EXAMPLES / "measured-house.npz")
    front_left = np.zeros(found.mask.shape)
    front_left[20:, 10:] = 4.0  # the first axis goes to the left, the second to the front
    drawn = draw_scan(replace(scan, values=front_left[found.mask].astype(np.float32)))
    rows, columns = np.nonzero((drawn.pixels[:-140] == colours(np.array(4.0), 4.0)).all(-1))
    assert "Measured (Haxby et al. 2001)" in drawn.words
    assert columns.min() >= 640 and columns.max() <= 905, "the left of the right panel"
    assert rows.min() > HEADING and rows.max() < HEADING + 72 + 170, "its upper half"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.random.default_rng(0).normal(size=(2, 59_412)), "59,412 values belong is not known"),
        (np.random.default_rng(0).normal(size=(9, 10, 11, 2)), "Slices along the third axis"),
        (np.random.default_rng(0).normal(size=(3, 1, 256, 256)), "A map of the cortex"),
        (np.zeros((9, 10, 11)), "Slices along the third axis"),
        (np.zeros(3), "3 values belong"),
    ],
)
def test_of_other_scans_is_drawn_what_is_known_of_them(values: np.ndarray, said: str) -> None:
    drawn = draw_scan(BrainScan(values.astype(np.float32), "unknown", "unknown"))
    assert said in drawn.words and "unknown units" in drawn.words
    assert drawn.pixels.shape[1] == 1200 and drawn.pixels.dtype == np.uint8 and drawn.pixels.std() > 5


def test_a_mirrored_volume_is_drawn_mirrored() -> None:
    values = np.zeros((10, 10, 1), np.float32)
    values[8:, 8:] = 2.0  # to the right and up
    pixels = draw_scan(BrainScan(values, "unknown", "unknown")).pixels
    rows, columns = np.nonzero((pixels[:-140] == colours(np.array(2.0), 2.0)).all(-1))
    assert columns.min() > 600 and rows.max() < pixels.shape[0] / 2


@pytest.mark.parametrize("subject", ["Haxby2001-S1", "Ann", "unknown"])
def test_of_unknown_regions_none_is_left_out(subject: str) -> None:
    with pytest.raises(UserError, match="lie in which region is not known") as refused:
        draw_scan(scan_of(subject, np.ones(530)), without="ventral")
    assert "'none'" in refused.value.hint


def test_the_scale_is_round_and_holds_nearly_all() -> None:
    rng = np.random.default_rng(0)
    for size in (0.003, 1, 700):
        values = rng.normal(size=5000) * size
        limit = limit_of(values)
        assert (np.abs(values) <= limit).mean() >= 0.98 and limit < 6 * size
    assert limit_of(np.zeros(5)) == 1.0 and limit_of(np.array([np.nan])) == 1.0
    ends = colours(np.array([-9.0, 0.0, 9.0, np.nan]), 1.0)
    assert ends[0, 2] > ends[0, 0] + 50 and ends[2, 0] > ends[2, 2] + 50
    assert ends[1].min() > 235 and tuple(ends[3]) == BLANK
