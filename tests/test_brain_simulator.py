"""The simulated brains: tuning, noise, sessions, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_brains import tiny_world
from training import brain_simulator
from training.brain_features import Features, grid_features, semantic_features
from training.brain_simulator import (
    AREAS,
    LEFT,
    SCALE,
    VOXELS,
    Subject,
    averaged,
    make_subject,
    model_cortex,
    normalised,
    signals_of,
    simulate,
    write_scan,
)

V = 300
IMAGES = np.arange(250)


@pytest.fixture(scope="module")
def features() -> Features:
    return tiny_world(500).features


@pytest.fixture(autouse=True)
def few_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("S1", "S2"):
        monkeypatch.setitem(brain_simulator.VOXELS, name, V)


@pytest.fixture
def subject(features: Features) -> Subject:
    return make_subject("S1", features)


# ------------------------------------------------------------------------------------------------------------ features


def test_semantic_features_keep_their_spectrum_and_do_not_know_other_pictures() -> None:
    vectors = torch.randn(400, 96, generator=torch.Generator().manual_seed(0)) / (1 + torch.arange(96)) ** 0.5
    found = semantic_features(vectors, np.arange(300))
    assert found.shape == (400, 64) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 8, rtol=1e-5)
    variance = found[:300].var(0)
    assert variance[0] > 2 * variance[5] > 4 * variance[50]
    others = torch.cat([vectors[:300], torch.ones(100, 96)])
    np.testing.assert_allclose(semantic_features(others, np.arange(300))[:300], found[:300], atol=1e-5)


def test_the_grid_tells_colours_places_and_orientations_apart() -> None:
    pictures = np.full((4, 64, 64, 3), 128, np.uint8)
    pictures[0, :8, 56:] = (255, 0, 0)  # red at the top right
    pictures[1, :, ::4] = 255  # vertical stripes
    pictures[2, ::4] = 255  # horizontal ones
    pictures[3] = np.where(np.add.outer(np.arange(64), np.arange(64)) % 6 < 3, 0, 255)[..., None]  # diagonal ones
    grid = grid_features(pictures)
    assert grid.shape == (4, 7, 8, 8)
    assert grid[0, 1].argmax() == 7 and grid[0, 1, 0, 7] == pytest.approx(1) and np.abs(grid[0, 1, 1:]).max() < 1e-6
    middle = grid[1:, 3:, 4, 4]  # energies at 0, 45, 90 and 135 degrees
    assert middle.argmax(1).tolist() == [0, 2, 1]
    assert middle[0, 0] > 3 * middle[0, 1] and middle[2, 1] > 3 * middle[2, 3]


# -------------------------------------------------------------------------------------------------------------- tuning


def test_a_subject_depends_on_its_name_alone(features: Features, subject: Subject) -> None:
    other = make_subject("S2", features)
    again = make_subject("S1", features)
    for name in ("mask", "low", "high", "bias", "snr", "factors", "signals"):
        np.testing.assert_array_equal(getattr(again, name), getattr(subject, name))
        assert not np.array_equal(getattr(other, name), getattr(subject, name))
    assert again.mask_hash == subject.mask_hash != other.mask_hash
    assert subject.voxels == subject.mask.sum() == V


def test_areas_have_their_shares_and_ceilings(features: Features) -> None:
    subject = make_subject("S6", features)
    assert subject.voxels == VOXELS["S6"] == 1377
    share = {area.name: (subject.areas == area.name).mean() for area in AREAS}
    assert share["V1"] + share["V2"] + share["V3"] == pytest.approx(0.39, abs=0.01)
    assert share["V4"] == pytest.approx(0.07, abs=0.01)
    ceilings = subject.noise_ceiling(3)
    assert ceilings.mean() == pytest.approx(0.25, abs=0.03)
    assert ceilings[subject.areas == "V1"].mean() > ceilings[subject.areas == "dorsal"].mean() + 0.05


def test_a_hemisphere_sees_the_other_half_and_neighbours_see_neighbouring_places(features: Features) -> None:
    subject = make_subject("S6", features)
    strength = (subject.low.reshape(7, 8, 8, -1) ** 2).sum(0)
    right = strength[:, 4:].sum((0, 1)) / strength.sum((0, 1))
    in_left_hemisphere = np.flatnonzero(subject.mask) < LEFT
    early = np.isin(subject.areas, ["V1", "V2"])
    assert right[early & in_left_hemisphere].mean() > 0.8 and right[early & ~in_left_hemisphere].mean() < 0.2
    cortex = model_cortex()
    steps = np.hypot(np.diff(cortex.x), np.diff(cortex.y))[np.diff(cortex.area) == 0]
    assert steps.max() < 1.0 < np.ptp(cortex.x)


# --------------------------------------------------------------------------------------------------------------- noise


def test_noise_ceilings_are_those_asked_for(features: Features, subject: Subject) -> None:
    trials = simulate(subject, features, IMAGES, 3, seed=1)
    values = normalised(trials)
    by_picture = np.stack([values[trials.image_id == image] for image in IMAGES])
    noise = by_picture.var(1, ddof=1).mean(0)
    signal = np.clip(by_picture.reshape(-1, V).var(0) - noise, 0, None)
    found, asked = signal / (signal + noise / 3), subject.noise_ceiling(3)
    assert found.mean() == pytest.approx(asked.mean(), abs=0.03)
    assert np.corrcoef(found, asked)[0, 1] > 0.85


def test_repeats_average_out(features: Features, subject: Subject) -> None:
    trials = simulate(subject, features, IMAGES, 3, seed=1)
    signals = signals_of(subject, features, IMAGES)
    values = normalised(trials)
    for repeats in (1, 3):
        mean = averaged(trials, values, IMAGES, repeats)
        explained = [np.corrcoef(mean[:, voxel], signals[:, voxel])[0, 1] ** 2 for voxel in range(V)]
        assert np.mean(explained) == pytest.approx(subject.noise_ceiling(repeats).mean(), abs=0.03)


def test_half_of_the_noise_is_shared_and_looks_like_signal(features: Features, subject: Subject) -> None:
    trials = simulate(subject, features, IMAGES, 3, seed=1)
    values = normalised(trials)
    residual = np.concatenate([values[trials.image_id == i] - values[trials.image_id == i].mean(0) for i in IMAGES])
    private = np.random.default_rng(0).permuted(residual, axis=0)  # each voxel's noise from a trial of its own

    def between_voxels(values: np.ndarray) -> np.ndarray:
        return np.corrcoef(values.T)[~np.eye(V, dtype=bool)]

    of_noise, of_signal = between_voxels(residual), between_voxels(subject.signals)
    assert of_noise.std() > 1.5 * between_voxels(private).std()
    assert np.corrcoef(of_noise, of_signal)[0, 1] > 0.5
    assert abs(np.corrcoef(between_voxels(private), of_signal)[0, 1]) < 0.1


def test_the_noise_of_a_trial_depends_on_picture_and_repeat_alone(features: Features, subject: Subject) -> None:
    def betas(image_ids: np.ndarray, repeats: int, seed: int) -> dict[tuple[int, int], np.ndarray]:
        trials = simulate(subject, features, image_ids, repeats, seed)
        return dict(zip(zip(trials.image_id.tolist(), trials.repeat.tolist(), strict=True), trials.betas, strict=True))

    some, all_reversed, other = betas(IMAGES[:5], 2, 1), betas(IMAGES[::-1], 3, 1), betas(IMAGES[:5], 2, 2)
    assert set(some) == {(image, repeat) for image in range(5) for repeat in range(2)}
    assert all(np.array_equal(some[key], all_reversed[key]) for key in some)
    assert not any(np.array_equal(some[key], other[key]) for key in some)
    assert not np.array_equal(some[0, 0], some[0, 1])


# ------------------------------------------------------------------------------------------------------------ sessions


def test_sessions_drift_and_normalising_removes_it_by_the_learnt_trials_alone(
    features: Features, subject: Subject
) -> None:
    trials = simulate(subject, features, np.arange(800), np.repeat([1, 2], 400), seed=3)
    assert trials.betas.dtype == np.int16 and trials.betas.shape == (1200, V)
    assert np.bincount(trials.session).tolist() == [600, 600] and (np.diff(trials.session) >= 0).all()
    raw = trials.betas / SCALE
    apart = raw[:600].mean(0) - raw[600:].mean(0)
    assert apart.std() > 0.3
    learnt = trials.image_id < 400
    values = normalised(trials, learnt)
    for session in range(2):
        chosen = values[learnt & (trials.session == session)]
        np.testing.assert_allclose(chosen.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(chosen.std(0, ddof=1), 1, atol=1e-4)
    changed = trials.select(np.arange(1200))
    changed.betas[~learnt] = 0
    np.testing.assert_array_equal(normalised(changed, learnt)[learnt], values[learnt])
    with pytest.raises(ValueError, match="session 1 has less than two trials"):
        normalised(trials, trials.session == 0)


def test_a_written_scan_says_what_it_is(features: Features, subject: Subject, tmp_path: Path) -> None:
    trials = simulate(subject, features, IMAGES[:4], 3, seed=5)
    for name in ("one", "two"):
        write_scan(tmp_path / f"{name}.npz", subject, trials, seed=5)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as found:
        assert set(found) >= {"betas", "mask", "subject", "image_id", "repeat", "mean", "std"}
        assert (str(found["subject"]), str(found["provenance"]), str(found["simulator"]), int(found["seed"])) == (
            "S1",
            "simulated",
            "sim-v1",
            5,
        )
        np.testing.assert_array_equal(found["betas"], trials.betas)
        assert found["mask"].sum() == V == len(found["mean"])
        np.testing.assert_allclose(found["std"] * SCALE, trials.betas.std(0, ddof=1), rtol=1e-3)
