"""The lite profile's pipeline of maps: simulated scans, painted on a map and read by the shipped models."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from models.catalog import catalog
from models.errors import UserError
from models.manager import ModelManager
from models.nets.brain_subjects import similarities
from models.nets.map_decoder import MapDecoder
from models.neuropictor_lite import SmallNeuroPictor
from pipelines.base import Produced, Runtime, installed_registry
from pipelines.fmri.flat_map import known_places
from pipelines.fmri.pipeline import GUIDED, OF_SIMULATION
from pipelines.formats.scans.files import MAP, PERCENT, SIMULATED, Z_SCORED
from pipelines.media import Artifact, BrainScan, Image, Text
from pipelines.neuropictor.maps import SIDE, maps_of, pixels_of
from pipelines.neuropictor.pipeline import OF_NOTHING, READ_BY, NeuroPictorParams
from pipelines.neuropictor.small import SmallNeuroPictorPipeline, activity_in
from tests.tiny_models import CPU
from training.images import to_tensor

PIPELINE = SmallNeuroPictorPipeline()
EXAMPLE = Path("assets/examples/scans/S1-ogre.npz")
Made = Callable[..., list[Artifact]]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    specs = {key: spec for key, spec in catalog("lite").items() if key in (*PIPELINE.models, "picture-text")}
    return Runtime(ModelManager(specs, CPU, 2 * 10**9))


@pytest.fixture(scope="module")
def made(runtime: Runtime) -> Made:
    def run(*scans: Artifact, **params: Any) -> list[Artifact]:
        values = PIPELINE.parse_params({"num_inference_steps": 2, **params})
        events = PIPELINE.run_batch([[scan] for scan in scans], values, runtime)
        return [event.artifact for event in events if isinstance(event, Produced)]

    return run


def example() -> BrainScan:
    return BrainScan.load(EXAMPLE)


def as_map(values: torch.Tensor) -> np.ndarray:
    """Voxels of S1 (N, V) as files have maps: (N, 1, 256, 256), each pixel four times as high and wide."""
    maps = maps_of(values, torch.from_numpy(pixels_of("S1")))
    return torch.nn.functional.interpolate(maps, 256, mode="nearest").numpy()


def pixels(artifact: Artifact) -> np.ndarray:
    assert isinstance(artifact, Image)
    return artifact.pixels.astype(float)


def test_it_is_the_lite_profiles_and_shares_its_models_with_others() -> None:
    lite, full = (installed_registry(profile).get("neuropictor") for profile in ("lite", "full"))
    assert isinstance(lite, SmallNeuroPictorPipeline) and not isinstance(full, SmallNeuroPictorPipeline)
    assert lite.params_type is full.params_type and set(full.models) < set(lite.models) <= catalog("lite").keys()
    shared = set(lite.models) - set(full.models)
    assert shared <= set(installed_registry().get("fmri").models)
    assert len(lite.example_files) == 6


def test_a_shipped_scan_becomes_a_picture_and_words_that_say_what_they_are(made: Made) -> None:
    picture, words = made(example())
    assert pixels(picture).shape == (128, 128, 3) and pixels(picture).std() > 5
    badge = f"{OF_SIMULATION} {READ_BY['simulated']} {GUIDED}"
    assert picture.provenance and picture.provenance.badge == badge
    assert [used.key for used in picture.provenance.models] == list(SmallNeuroPictor.models)
    assert isinstance(words, Text)
    first, nearest, whose, said = words.text.splitlines()
    assert first.startswith("Perhaps a") and nearest.count(",") == 4 and said == badge
    assert re.fullmatch(
        r"S1, mean of 3 trials; nearer to a concept than \d+ % of 200 scans of shuffled voxels\.", whose
    )


def test_a_map_is_read_as_the_scan_that_it_was_painted_of(made: Made, runtime: Runtime) -> None:
    params = NeuroPictorParams()
    of_voxels = activity_in(example(), params, runtime)
    z_scored = BrainScan(of_voxels.values.numpy(), "voxels", "S1", Z_SCORED, SIMULATED)
    of_map = BrainScan(as_map(of_voxels.values), MAP, "unknown", Z_SCORED, SIMULATED)
    expected = of_voxels.on_map()
    for scan in (z_scored, of_map):
        torch.testing.assert_close(PIPELINE.read(scan, params, runtime), expected, atol=1e-5, rtol=0)
    assert expected.shape == (1, 1, SIDE, SIDE)
    pictures = [pixels(made(scan)[0]) for scan in (example(), z_scored, of_map)]
    assert max(np.abs(one - pictures[0]).max() for one in pictures) <= 1
    assert "A map, trial 1;" in made(of_map)[1].text  # type: ignore[attr-defined]


def test_control_moves_the_picture_to_the_decoded_look(made: Made) -> None:
    pictures = [pixels(made(example(), control_scale=scale)[0]) for scale in (0.0, 1.0, 2.0)]
    assert all(np.abs(one - other).mean() > 1 for one, other in pairwise(pictures))
    assert np.abs(pixels(made(example(), seed=5)[0]) - pictures[1]).mean() > 1


def test_trials_are_chosen_or_averaged(runtime: Runtime) -> None:
    scan = example()
    one, mean = (PIPELINE.read(scan, NeuroPictorParams(trial=trial), runtime) for trial in (2, 0))
    all_trials = [PIPELINE.read(scan, NeuroPictorParams(trial=trial), runtime) for trial in (1, 2, 3)]
    torch.testing.assert_close(torch.stack(all_trials).mean(0), mean, atol=1e-5, rtol=0)
    assert (one - mean).abs().mean() > 0.1
    with pytest.raises(UserError, match="no trial 4, only 3"):
        PIPELINE.read(scan, NeuroPictorParams(trial=4), runtime)


def test_shuffled_pixels_of_a_map_are_the_same_ones_elsewhere(runtime: Runtime) -> None:
    voxels = activity_in(example(), NeuroPictorParams(), runtime).values
    of_map = BrainScan(as_map(voxels), MAP, "unknown", Z_SCORED, SIMULATED)
    as_it_is, shuffled = (PIPELINE.read(of_map, NeuroPictorParams(shuffled=on), runtime) for on in (False, True))
    assert not torch.equal(as_it_is, shuffled)
    torch.testing.assert_close(as_it_is.flatten().sort().values, shuffled.flatten().sort().values)


def test_shuffled_voxels_are_the_same_ones_elsewhere(made: Made, runtime: Runtime) -> None:
    usual, mixed = (activity_in(example(), NeuroPictorParams(), runtime).values for _ in range(2))
    assert torch.equal(usual, mixed)
    maps = [PIPELINE.read(example(), NeuroPictorParams(shuffled=on), runtime) for on in (False, True)]
    assert not torch.equal(*maps) and torch.equal(maps[0] == 0, maps[1] == 0)
    assert set(maps[1].unique().tolist()) <= {0.0, *usual.flatten().tolist()}
    picture, words = made(example(), shuffled=True)
    assert picture.provenance and picture.provenance.badge.startswith(OF_NOTHING)
    assert isinstance(words, Text) and OF_NOTHING in words.text


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (Text("a scan"), "A brain scan is needed here, not text"),
        (BrainScan(np.ones(1211, np.float32), "voxels", "S1"), "these 1211 values of S1 lie on a map"),
        (BrainScan(np.ones((9, 9, 9), np.float32), "MNI152", "unknown"), "these 9 x 9 x 9 values lie on a map"),
        (BrainScan(np.ones(1210, np.float32), "voxels", "Ann", Z_SCORED), "values of Ann lie on a map"),
        (BrainScan(np.ones(1210, np.float32), "voxels", "S1"), "does not say whether its numbers are"),
        (BrainScan(np.ones(1107, np.float32), "voxels", "S8", PERCENT), "By what to z-score scans of S8"),
        (BrainScan(np.zeros((1, 256, 256), np.float32), MAP, "unknown", Z_SCORED), "100 % of the map's pixels are 0"),
    ],
)
def test_what_has_no_place_on_the_map_is_refused_plainly(made: Made, given: Artifact, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        made(given)
    assert refused.value.hint


def test_a_new_brain_needs_no_adapter_where_it_is_z_scored(made: Made) -> None:
    values = np.random.default_rng(0).normal(size=len(known_places()["S8"].area)).astype(np.float32)
    picture, words = made(BrainScan(values, "voxels", "S8", Z_SCORED, SIMULATED))
    assert pixels(picture).shape == (128, 128, 3) and isinstance(words, Text) and "S8, trial 1;" in words.text


def test_the_shipped_decoder_finds_the_pictures_of_the_shipped_scans_better_than_chance(runtime: Runtime) -> None:
    scans = [BrainScan.load(path) for path in PIPELINE.example_files]
    maps = torch.cat([PIPELINE.read(scan, NeuroPictorParams(), runtime) for scan in scans])
    seen = np.stack([np.asarray(PillowImage.open(path.with_suffix(".png"))) for path in PIPELINE.example_files])
    with runtime.lease("neuropictor") as decoder, runtime.lease("picture-text") as space:
        assert isinstance(decoder, MapDecoder)
        near = similarities(decoder.decode(maps).semantic, space.embed_pictures(to_tensor(seen)), decoder.center)
    assert (near < near.diagonal()[:, None]).sum() / 30 > 0.65  # of pairs; chance is a half


def test_maps_and_seeds_go_together(runtime: Runtime) -> None:
    with ExitStack() as stack, pytest.raises(ValueError, match="2 maps and 1 seeds"):
        next(iter(PIPELINE.lease(runtime, stack).denoise(torch.zeros(2, 1, 64, 64), 1, 1.0, 1.0, [0])))


def test_another_origin_is_not_called_simulated(made: Made) -> None:
    picture, _ = made(replace(example(), origin="uploaded"))
    assert picture.provenance and picture.provenance.badge == f"{READ_BY['simulated']} {GUIDED}"
