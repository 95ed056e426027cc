"""The pipeline of maps, on a tiny NeuroPictor of random weights in the published layout."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import Cancelled, UserError
from models.manager import ModelManager
from models.neuropictor import NeuroPictor, sized
from models.neuropictor_files import load_neuropictor
from pipelines.base import Event, Produced, Progress, Runtime
from pipelines.fmri.pipeline import GUIDED, OF_SIMULATION
from pipelines.formats.scans.files import MAP, PERCENT, SIMULATED, UNKNOWN, Z_SCORED
from pipelines.media import Artifact, BrainScan, Image, Text, load_artifact
from pipelines.neuropictor.pipeline import OF_NOTHING, READ_BY, NeuroPictorParams, NeuroPictorPipeline, chosen_map
from tests.tiny_models import CPU, spec_of
from tests.tiny_neuropictor import write_neuropictor

PIPELINE = NeuroPictorPipeline()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuroPictor:
    return load_neuropictor(write_neuropictor(tmp_path_factory.mktemp("files")))


@pytest.fixture
def manager(model: NeuroPictor, tmp_path: Path) -> ModelManager:
    return ModelManager({"neuropictor": spec_of("neuropictor", tmp_path, load=lambda _: model)}, CPU, 10**9)


def maps(count: int = 1, seed: int = 0) -> np.ndarray:
    """Smooth activity in two patches of cortex, 0 around them."""
    coarse = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    activity = torch.nn.functional.interpolate(coarse, 256, mode="nearest")
    activity[..., :60, :] = activity[..., 120:136] = 0
    return activity.numpy()


def scan(seed: int = 0, count: int = 1, **said: Any) -> BrainScan:
    return BrainScan(maps(count, seed), **{"space": MAP, "subject": "unknown", "units": Z_SCORED, **said})


def events(manager: ModelManager, *scans: Artifact, **params: Any) -> list[Event]:
    values = PIPELINE.parse_params({"num_inference_steps": 3, **params})
    return list(PIPELINE.run_batch([[one] for one in scans], values, Runtime(manager)))


def pictures(manager: ModelManager, *scans: Artifact, **params: Any) -> list[np.ndarray]:
    made = [event.artifact for event in events(manager, *scans, **params) if isinstance(event, Produced)]
    assert all(isinstance(one, Image) for one in made)
    return [one.pixels.astype(float) for one in made if isinstance(one, Image)]


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def test_a_map_of_a_file_becomes_a_picture(manager: ModelManager, tmp_path: Path) -> None:
    for shape in ((1, 256, 256), (1, 1, 256, 256)):
        np.save(tmp_path / "map.npy", maps().reshape(shape))
        loaded = load_artifact(tmp_path / "map.npy")
        assert isinstance(loaded, BrainScan) and (loaded.space, loaded.units) == (MAP, UNKNOWN)
        [made] = pictures(manager, loaded)
        assert made.shape == (16, 16, 3) and made.std() > 1
        assert apart(made, pictures(manager, scan())[0]) == 0


def test_another_map_or_seed_is_another_picture_and_the_same_is_the_same(manager: ModelManager) -> None:
    [first, second] = pictures(manager, scan(), num_images=2, seed=4)
    again = pictures(manager, scan(), num_images=2, seed=4)
    assert apart(first, again[0]) == apart(second, again[1]) == 0
    for one, seed in ((first, 4), (second, 5)):  # but for the order in which a batch is summed
        assert apart(one, pictures(manager, scan(), seed=seed)[0]) < 0.5
    assert apart(first, second) > 1 and apart(first, pictures(manager, scan(1), seed=4)[0]) > 1


def test_both_knobs_change_the_picture(manager: ModelManager) -> None:
    usual = pictures(manager, scan())[0]
    assert apart(usual, pictures(manager, scan(), guidance_scale=5.0)[0]) == 0  # what its authors use
    for params in ({"control_scale": 0.0}, {"control_scale": 2.0}, {"guidance_scale": 1.0}, {"guidance_scale": 9.0}):
        assert apart(usual, pictures(manager, scan(), **params)[0]) > 0.5, params


@torch.no_grad()
def test_without_control_the_map_only_says_what_is_seen(model: NeuroPictor) -> None:
    activity, latents = torch.from_numpy(maps()), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = model.encoder(sized(activity, model.side))
    context, _ = model.semantic(tokens)
    step = torch.tensor(501)
    alone = model.unet(latents, step, context).sample
    torch.testing.assert_close(model.predict(latents, step, tokens, context, 0.0), alone)
    assert (model.predict(latents, step, tokens, context, 1.0) - alone).abs().max() > 1e-2
    torch.testing.assert_close(
        model.predict(latents, step, 0 * tokens, context, 0.0), alone
    )  # which is not read where nothing is added


def test_trials_are_averaged_or_chosen(manager: ModelManager) -> None:
    both = scan(count=2)
    means = [chosen_map(both, NeuroPictorParams(trial=trial)).numpy() for trial in (0, 1, 2)]
    np.testing.assert_allclose(means[0], both.values.mean(0, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(np.concatenate(means[1:]), both.values)
    with pytest.raises(UserError, match="no trial 3, only 2"):
        pictures(manager, both, trial=3)


def test_shuffled_pixels_stay_in_the_cortex(manager: ModelManager) -> None:
    runtime = Runtime(manager)
    usual, mixed = (PIPELINE.read(scan(), NeuroPictorParams(shuffled=on), runtime).numpy() for on in (False, True))
    assert ((usual == 0) == (mixed == 0)).all() and not np.array_equal(usual, mixed)
    np.testing.assert_array_equal(np.sort(usual.ravel()), np.sort(mixed.ravel()))
    [event] = [one for one in events(manager, scan(), shuffled=True) if isinstance(one, Produced)]
    assert event.artifact.provenance and event.artifact.provenance.badge.startswith(OF_NOTHING)


def test_every_picture_says_what_kind_of_data_it_is_of(manager: ModelManager) -> None:
    for origin, first in (("uploaded", READ_BY["measured"]), (SIMULATED, OF_SIMULATION)):
        made = [one.artifact for one in events(manager, scan(origin=origin), num_images=2) if isinstance(one, Produced)]
        assert [one.provenance.index for one in made if one.provenance] == [0, 1]
        for one in made:
            assert one.provenance and one.provenance.badge.startswith(first) and one.provenance.badge.endswith(GUIDED)
            assert [used.key for used in one.provenance.models] == ["neuropictor"]
    [one] = [
        one.artifact for one in events(manager, scan(origin=SIMULATED), shuffled=True) if isinstance(one, Produced)
    ]
    assert one.provenance and all(words in one.provenance.badge for words in (OF_NOTHING, OF_SIMULATION, GUIDED))


def test_the_map_is_seen_first_and_pictures_are_seen_coming(manager: ModelManager) -> None:
    seen = [one for one in events(manager, scan(), num_inference_steps=12, num_images=2) if isinstance(one, Progress)]
    assert seen[0].preview is not None and seen[0].preview.pixels.shape[1] > 256
    assert [one.step for one in seen] == [*range(13)] and all(one.total == 12 for one in seen)
    previews = [one.preview.pixels for one in seen[1:] if one.preview]
    assert len(previews) >= 3 and all(one.shape == (16, 32, 3) for one in previews)


def test_a_batch_is_computed_in_parts_and_keeps_its_order(manager: ModelManager) -> None:
    values = PIPELINE.parse_params({"num_inference_steps": 2, "num_images": 3})
    small = Runtime(manager, micro_batch=2)
    made = [
        one.artifact.pixels.astype(float)
        for one in PIPELINE.run_batch([[scan(1)], [scan(2)]], values, small)
        if isinstance(one, Produced) and isinstance(one.artifact, Image)
    ]
    whole = pictures(manager, scan(1), scan(2), num_inference_steps=2, num_images=3)
    assert len(made) == len(whole) == 6 and max(map(apart, made, whole)) < 0.5


def test_a_run_stops_when_told(manager: ModelManager) -> None:
    runtime = Runtime(manager, threading.Event())
    run = PIPELINE.run([scan()], PIPELINE.parse_params({}), runtime)
    assert [next(run) for _ in range(3)]
    runtime.cancelled.set()
    with pytest.raises(Cancelled):
        list(run)
    assert all(row.leases == 0 for row in manager.status())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (Text("a scan"), "A brain scan is needed here, not text"),
        (BrainScan(np.ones(1210, np.float32), "voxels", "S1", Z_SCORED), r"no map of the cortex but 1210 values"),
        (BrainScan(np.ones((3, 64, 64), np.float32), "MNI152", "S1"), r"3 x 64 x 64 values \(MNI152\)"),
        (scan(units=PERCENT), "are percent signal change, and the model reads z-scores"),
        (replace(scan(), values=300 * maps()), "a standard deviation of"),
        (replace(scan(), values=np.where(maps() > 2, maps(), 0)), r"\d+ % of the map's pixels are 0"),
    ],
)
def test_what_is_no_map_is_refused_before_anything_is_loaded(
    manager: ModelManager, given: Artifact, problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        events(manager, scan(), given)
    assert refused.value.hint and not manager.status()


def test_settings_out_of_range_are_refused() -> None:
    for values in ({"control_scale": 2.5}, {"guidance_scale": 0.5}, {"num_inference_steps": 0}, {"num_images": 17}):
        with pytest.raises(UserError, match=re.escape(f"'{next(iter(values))}' cannot be")):
            PIPELINE.parse_params(values)
