"""Maps of simulated brains, the small decoder that reads them, and its recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import training.brain_decoder
from models.errors import UserError
from models.nets.brain_decoder import LOW_LEVEL
from models.nets.map_decoder import MapDecoder, MapDecoderConfig, load_map_decoder
from pipelines.fmri.flat_map import known_places
from pipelines.neuropictor.maps import SIDE, maps_of, pixels_of, rectangles
from tests.tiny_brains import tiny_world
from training.brain_decoder import Recording, World, batches, record, score
from training.loop import optimizer_groups
from training.neuropictor import compare_routes, map_loss, read_flat, read_maps, ridge_on_maps, untrained

TINY = MapDecoderConfig(width=32, blocks=1, heads=2, dropout=0.0)


# ---------------------------------------------------------------------------------------------------------------- maps


def test_nearly_every_voxel_is_seen_in_its_own_area_and_hemisphere() -> None:
    shown, places = pixels_of("S1"), known_places()["S1"]
    within = shown >= 0
    assert shown.shape == (SIDE, SIDE) and 0.7 < within.mean() < 0.8
    assert len(np.unique(shown[within])) > 0.98 * len(places.area)
    rows, columns = np.nonzero(within)
    voxels = shown[rows, columns]
    assert (places.left[voxels] == (columns < SIDE // 2)).all()
    right_of_the_middle = places.sees[voxels, 0] * np.where(columns < SIDE // 2, 1, -1)
    assert (right_of_the_middle >= 0).all()  # the left half sees what is on the right
    for area, (down, out) in rectangles().items():
        for side in (shown[:, SIDE // 2 :], shown[:, : SIDE // 2][:, ::-1]):
            assert set(places.area[side[down, out]].flat) == {area}
    assert set(places.area[shown[SIDE // 2, SIDE // 2 - 2 : SIDE // 2 + 2]]) == {"V1"}  # its borders face each other


def test_areas_lie_beside_each_other_and_are_as_large_as_in_the_cortex() -> None:
    taken, places = np.zeros((SIDE, SIDE // 2), int), known_places()["S1"]
    for where in rectangles().values():
        taken[where] += 1
    assert taken.max() == 1
    for area, where in rectangles().items():
        assert abs(taken[where].sum() / taken.sum() - (places.area == area).mean()) < 0.015, area


def test_neighbours_see_neighbouring_parts_of_the_picture() -> None:
    far = np.log(np.hypot(*known_places()["S1"].sees.T))
    columns = pixels_of("S1")[:, SIDE // 2 : SIDE // 2 + 4]  # of V1, from the fovea at the top outwards
    within = (columns >= 0).all(1)
    assert np.corrcoef(np.flatnonzero(within), far[columns[within]].mean(1))[0, 1] > 0.99


def test_painted_maps_show_what_the_voxels_say_and_nothing_around() -> None:
    shown = torch.from_numpy(pixels_of("S1"))
    values = torch.randn(3, len(known_places()["S1"].area))
    maps = maps_of(values, shown)
    assert maps.shape == (3, 1, SIDE, SIDE) and (maps[:, 0, shown < 0] == 0).all()
    row, column = 20, 40
    assert torch.equal(maps[:, 0, row, column], values[:, shown[row, column]])


# ------------------------------------------------------------------------------------------------------------- decoder


def test_a_decoder_starts_from_the_mean_look_and_is_saved_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = MapDecoder(TINY).eval()
    decoder.low_level_center.normal_()
    decoded = decoder.decode(torch.randn(2, 1, 256, 256))
    assert decoded.semantic.shape == (2, 256) and decoded.low_level.shape == (2, *LOW_LEVEL)
    torch.testing.assert_close(decoded.semantic.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(decoded.low_level, decoder.low_level_center.expand(2, -1, -1, -1))
    torch.nn.init.normal_(decoder.low_level.out.weight)
    decoder.save_pretrained(tmp_path)
    again, maps = load_map_decoder(tmp_path), torch.randn(2, 1, 64, 64)
    assert again.config == TINY
    for ours, theirs in zip(decoder.decode(maps), again.decode(maps), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)  # float16
    larger = F.interpolate(maps, 256, mode="nearest")
    torch.testing.assert_close(again.decode(larger).semantic, again.decode(maps).semantic, atol=1e-4, rtol=1e-4)


def test_what_a_decoder_cannot_read_is_refused(tmp_path: Path) -> None:
    decoder = MapDecoder(TINY)
    for shape in ((0, 1, 64, 64), (1, 64, 64), (1, 3, 64, 64)):
        with pytest.raises(ValueError, match="expected"):
            decoder.decode(torch.zeros(shape))
    with pytest.raises(UserError, match="no numbers"):
        decoder.decode(torch.full((1, 1, 64, 64), float("nan")))
    with pytest.raises(UserError, match="no decoder of maps"):
        load_map_decoder(tmp_path)


# -------------------------------------------------------------------------------------------------------------- recipe


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world(400)


@pytest.fixture(scope="module")
def recordings(world: World) -> list[Recording]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.brain_decoder, "TRAINING_IMAGES", 200)
        return [record(world, name) for name in ("S1", "S2")]


def test_a_few_steps_teach_what_brains_say_and_shuffled_ones_do_not(
    world: World, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.brain_decoder, "BATCH", 32)

    def taught(recording: Recording) -> MapDecoder:
        decoder = untrained(world, TINY)
        for parameter in decoder.refining:
            parameter.requires_grad_(False)
        optimizer = torch.optim.AdamW(optimizer_groups(decoder, 2e-3, 0.1))
        stream = batches([len(recording.values)], 0)
        shown = [torch.from_numpy(pixels_of(recording.subject.name))]
        for step in range(60):
            loss, _ = map_loss(decoder, [recording.pairs(world)], shown, next(stream), step < 20)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(parameter.grad is None for parameter in decoder.refining)
        return decoder.eval()

    learnt, by_chance = (
        score(world, recordings[0], read_maps(taught(one), recordings[0]))
        for one in (recordings[0], recordings[0].shuffled())
    )
    assert learnt["two_way_of_3"] > 0.65 > 0.6 > by_chance["two_way_of_3"] > 0.4
    assert learnt["low_level_r_of_3"] > by_chance["low_level_r_of_3"] + 0.03


def test_both_routes_are_measured_alike(world: World, recordings: list[Recording]) -> None:
    adapters = training.brain_decoder.untrained(recordings[:1], world)
    decoder = untrained(world, TINY)
    rows = compare_routes(world, recordings, adapters.eval(), decoder.eval(), {"S2": decoder})
    assert {name: list(ways) for name, ways in rows.items()} == {
        "S1": ["maps", "adapter", "maps, shuffled"],
        "S2": ["maps", "maps, refined", "maps, shuffled"],
    }
    assert rows["S2"]["maps"] == rows["S2"]["maps, refined"] != rows["S2"]["maps, shuffled"]
    assert rows["S1"]["maps"].keys() == rows["S1"]["adapter"].keys() >= {"top1_of_1", "two_way_of_3"}


def test_a_straight_line_on_maps_learns_too(world: World, recordings: list[Recording]) -> None:
    ridge = ridge_on_maps(world, recordings)
    found = score(world, recordings[1], read_flat(ridge, recordings[1]))
    assert found["two_way_of_3"] > 0.7 and found["low_level_r_of_3"] > 0.1
