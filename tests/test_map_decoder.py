"""Maps of simulated brains, the small decoder that reads them, its recipe, and pictures of what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import training.brain_decoder
from models.errors import UserError
from models.manager import ModelManager
from models.nets.brain_decoder import LOW_LEVEL, load_brain_decoder
from models.nets.map_decoder import MapDecoder, MapDecoderConfig, load_map_decoder
from models.neuropictor_lite import PARTS, SmallNeuroPictor, load_small_neuropictor
from pipelines.base import Produced, Runtime
from pipelines.fmri.pipeline import GUIDED, OF_SIMULATION
from pipelines.formats.scans.files import MAP, SIMULATED, Z_SCORED
from pipelines.media import BrainScan, Image
from pipelines.neuropictor.pipeline import READ_BY, NeuroPictorParams, NeuroPictorPipeline, chosen_map
from tests.tiny_brains import tiny_world
from tests.tiny_models import CPU, spec_of
from training.brain_decoder import Recording, World, batches, record, score
from training.brain_features import CELLS, CHANNELS, SEMANTIC, Features
from training.brain_maps import SIDE, as_uploaded, map_places, painted, pixels_of
from training.brain_simulator import AREAS, VOXELS, Subject, make_subject, model_cortex
from training.loop import optimizer_groups
from training.neuropictor import compare_routes, map_loss, read_maps, untrained

TINY = MapDecoderConfig(width=32, blocks=1, heads=2, dropout=0.0)


@pytest.fixture(scope="module")
def subject() -> Subject:
    nothing = Features(np.zeros((1, SEMANTIC)), np.zeros((1, CHANNELS * CELLS**2)), np.array([0]))
    return make_subject("S1", nothing)


# ---------------------------------------------------------------------------------------------------------------- maps


def test_nearly_every_voxel_is_seen_in_its_own_area_and_hemisphere(subject: Subject) -> None:
    shown = pixels_of(subject)
    within = shown >= 0
    assert shown.shape == (SIDE, SIDE) and 0.7 < within.mean() < 0.8
    assert len(np.unique(shown[within])) > 0.98 * VOXELS["S1"]
    x = model_cortex().x[np.flatnonzero(subject.mask)]
    rows, columns = np.nonzero(within)
    voxels = shown[rows, columns]
    assert ((x[voxels] > 0) == (columns < SIDE // 2)).all()  # the left half sees what is on the right
    pixels, _ = map_places()
    names = np.array([area.name for area in AREAS] * 2)
    assert (names[pixels.area[rows, columns]] == subject.areas[voxels]).all()
    assert set(subject.areas[shown[SIDE // 2, SIDE // 2 - 2 : SIDE // 2 + 2]]) == {"V1"}  # its borders face each other


def test_neighbours_see_neighbouring_parts_of_the_picture(subject: Subject) -> None:
    cortex, places = model_cortex(), np.flatnonzero(subject.mask)
    far = np.log(np.hypot(cortex.x, cortex.y))[places]
    shown = pixels_of(subject)
    columns = shown[:, SIDE // 2 : SIDE // 2 + 4]  # of V1, from the fovea at the top outwards
    within = (columns >= 0).all(1)
    assert np.corrcoef(np.flatnonzero(within), far[columns[within]].mean(1))[0, 1] > 0.99


def test_painted_maps_show_what_the_voxels_say_and_nothing_around(subject: Subject) -> None:
    shown = torch.from_numpy(pixels_of(subject))
    values = torch.randn(3, subject.voxels)
    maps = painted(values, shown)
    assert maps.shape == (3, 1, SIDE, SIDE) and (maps[:, 0, shown < 0] == 0).all()
    row, column = 20, 40
    assert torch.equal(maps[:, 0, row, column], values[:, shown[row, column]])
    larger = as_uploaded(maps)
    assert larger.shape == (3, 1, 256, 256)
    torch.testing.assert_close(F.adaptive_avg_pool2d(torch.from_numpy(larger), SIDE), maps)


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
        shown = [torch.from_numpy(pixels_of(recording.subject))]
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
        "S1": ["maps", "adapter"],
        "S2": ["maps", "maps, refined"],
    }
    assert rows["S2"]["maps"] == rows["S2"]["maps, refined"]
    assert rows["S1"]["maps"].keys() == rows["S1"]["adapter"].keys() >= {"top1_of_1", "two_way_of_3"}


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallNeuroPictor:
    folder = tmp_path_factory.mktemp("map-decoder")
    torch.manual_seed(1)
    decoder = MapDecoder(TINY)
    decoder.center.copy_(load_brain_decoder(PARTS[1].path).center)
    torch.nn.init.normal_(decoder.low_level.out.weight, std=0.1)
    decoder.save_pretrained(folder)
    return load_small_neuropictor(folder)


def test_a_simulated_map_becomes_a_picture_of_the_lite_profile(
    small: SmallNeuroPictor, subject: Subject, tmp_path: Path
) -> None:
    shown = torch.from_numpy(pixels_of(subject))
    values = as_uploaded(painted(torch.randn(1, subject.voxels), shown))
    scan = BrainScan(values, MAP, "S1", Z_SCORED, SIMULATED)
    manager = ModelManager({"neuropictor": spec_of("neuropictor", tmp_path, load=lambda _: small)}, CPU, 10**9)
    pipeline = NeuroPictorPipeline()
    made = {}
    for control_scale in (0.0, 2.0):
        params = pipeline.parse_params({"num_inference_steps": 2, "control_scale": control_scale})
        [made[control_scale]] = [
            one.artifact for one in pipeline.run([scan], params, Runtime(manager)) if isinstance(one, Produced)
        ]
    first, second = made.values()
    assert isinstance(first, Image) and isinstance(second, Image) and first.provenance
    assert first.pixels.shape == (128, 128, 3) and not np.array_equal(first.pixels, second.pixels)
    assert first.provenance.badge == f"{OF_SIMULATION} {READ_BY['simulated']} {GUIDED}"
    steps = [*small.denoise(chosen_map(scan, NeuroPictorParams()), 2, 1.0, 2.0, [0])]
    assert len(steps) == 2 and all(part.shape == (1, 8, 16, 16) and part.isfinite().all() for part in steps[-1])


def test_maps_and_seeds_go_together(small: SmallNeuroPictor) -> None:
    with pytest.raises(ValueError, match="2 maps and 1 seeds"):
        next(iter(small.denoise(torch.zeros(2, 1, 64, 64), 1, 1.0, 1.0, [0])))
