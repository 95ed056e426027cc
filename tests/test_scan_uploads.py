"""Uploads of brain scans: every format gives the numbers that were put in, and says what is known about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.gifti import gifti as gifti_images

from app.ui.inputs import component_for
from pipelines.formats.scans import hdf5_child
from pipelines.formats.scans.files import PERCENT, RAW, UNKNOWN, Z_SCORED
from pipelines.formats.scans.subjects import NEW_SUBJECT, SUBJECTS, hash_of_mask
from pipelines.media import BrainScan, load_artifact, medium_of_suffix, suffixes_of
from tests.media_examples import few
from tests.scan_files import (
    AFFINE,
    GRID,
    MASK,
    VERTICES,
    VOXELS,
    CountedBytes,
    cifti,
    cortex,
    gifti,
    hdf5,
    mask_file,
    mgh,
    nifti,
    normal,
    npy,
    npz,
    peak_of,
    read,
    session,
)
from training.brain_features import Features
from training.brain_simulator import VOXELS as SIMULATED
from training.brain_simulator import make_subject, simulate, statistics_of, write_scan

BOTH = normal(3, 2 * VERTICES)


# NumPy.


@few
@given(
    dtype=st.sampled_from(["<f2", "<f4", ">f4", "<f8", ">f8"]),
    in_fortran=st.booleans(),
    count=st.integers(1, 60),
    place=st.floats(0, 0.999),
    packed=st.booleans(),
    strip=st.sampled_from([1000, 2**22]),
)
def test_arrays_come_back_trial_by_trial(
    dtype: str, in_fortran: bool, count: int, place: float, packed: bool, strip: int, tmp_path: Path
) -> None:
    rows = normal(count, 976).astype(dtype)
    array = np.asarray(rows, order="F" if in_fortran else "C")
    path = npz(tmp_path / "it.npz", array) if packed else npy(tmp_path / "it.npy", array)
    start = int(place * count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.formats.scans.files._STRIP_BYTES", strip)
        betas = read(path, trials=(start, count))
    np.testing.assert_array_equal(betas.values, rows[start:].astype(np.float32))
    assert (str(betas.subject), betas.space, betas.units) == ("sim-v1 S7", "voxels", UNKNOWN)
    assert betas.trials == (start, count) and betas.steps == () and betas.origin == "uploaded"
    assert [remark.code for remark in betas.remarks] == (["W1"] if count - start == 1 else [])


def test_a_single_trial_repeats_and_maps(tmp_path: Path) -> None:
    one = normal(976)
    assert read(npy(tmp_path / "one.npy", one)).values.tolist() == [one.tolist()]
    repeats = normal(4, 3, 976) * 2
    betas = read(npy(tmp_path / "repeats.npy", repeats))
    np.testing.assert_allclose(betas.values, repeats.mean(1), atol=1e-6)
    assert betas.steps == ("mean of 3 repeats",)
    maps = np.zeros((2, 1, 256, 256), np.float32)
    maps[:, :, 50:200, 50:250] = normal(2, 1, 150, 200)
    for array, count in (maps, 2), (maps[0], 1):
        betas = read(npy(tmp_path / "map.npy", array))
        assert betas.values.shape == (count, 1, 256, 256) and (betas.space, betas.subject) == ("map", None)
        np.testing.assert_array_equal(betas.values, maps[:count])


def test_an_archive_says_who_and_which_pictures(tmp_path: Path) -> None:
    mean, std = normal(VOXELS), np.abs(normal(VOXELS, seed=2)) + 0.5
    about = {
        "mask": MASK,
        "subject": "S1",
        "image_id": [5, 3, 5, 9.0],
        "repeat": [0, 0, 1, 0],
        "mean": mean,
        "std": std,
    }
    values = normal(4, VOXELS)
    betas = read(npz(tmp_path / "it.npz", values, **about), trials=(1, 4))
    assert str(betas.subject) == "tiny S1" and betas.mask_hash == hash_of_mask(MASK)
    assert betas.image_id is not None and betas.repeat is not None and betas.statistics is not None
    assert betas.image_id.tolist() == [3, 5, 9] and betas.repeat.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(betas.statistics.mean, mean)
    scored = read(tmp_path / "it.npz", z_score=True)
    np.testing.assert_allclose(scored.values, (values - mean) / std, rtol=1e-5, atol=1e-6)
    assert scored.units == Z_SCORED and len(scored.steps) == 1
    averaged = read(tmp_path / "it.npz", average=True)
    assert averaged.image_id is not None and averaged.image_id.tolist() == [5, 3, 9] and averaged.repeat is None
    np.testing.assert_allclose(averaged.values[0], (values[0] + values[2]) / 2, rtol=1e-5, atol=1e-6)
    for kind in np.uint8, np.int8, np.float64:  # MATLAB saves all numbers as floats
        small = read(npz(tmp_path / "it.npz", values, **about | {"image_id": np.array([1, 2, 3, 120], kind)}))
        assert small.image_id is not None and small.image_id.tolist() == [1, 2, 3, 120]
    # One trial that brings its statistics needs no others.
    assert read(tmp_path / "it.npz", trials=(0, 1)).remarks == ()


def test_a_mask_is_applied_unless_it_was(tmp_path: Path) -> None:
    whole = normal(3, MASK.size)
    chosen = whole[:, MASK.ravel()]
    mask = npy(tmp_path / "mask.npy", MASK)
    for array in whole, chosen:
        betas = read(npy(tmp_path / "it.npy", array), mask)
        np.testing.assert_array_equal(betas.values, chosen)
        assert str(betas.subject) == "tiny S1"
    both = npz(tmp_path / "it.npz", whole, mask=MASK, mean=whole.mean(0), std=whole.std(0))
    statistics = read(both).statistics
    assert statistics is not None
    np.testing.assert_array_equal(statistics.std, whole.std(0)[MASK.ravel()])


# Simulated subjects.


def test_what_the_simulator_writes_is_recognised(tmp_path: Path) -> None:
    rows = np.arange(80)
    semantic = normal(80, 64, seed=3)
    features = Features(8 * semantic / np.linalg.norm(semantic, axis=1, keepdims=True), normal(80, 448, seed=4), rows)
    for name in SIMULATED:
        subject = make_subject(name, features)
        known = next(one for one in SUBJECTS if str(one) == f"sim-v1 {name}")
        assert (known.voxels, known.mask_hash) == (subject.voxels, subject.mask_hash)
    trials = simulate(subject, features, rows[:4], 3, seed=1)
    write_scan(tmp_path / "it.npz", subject, trials, 1)
    betas = read(tmp_path / "it.npz")
    np.testing.assert_array_equal(betas.values, trials.betas.astype(np.float32) / np.float32(300))
    assert str(betas.subject) == "sim-v1 S8" and betas.subject is not None and not betas.subject.adapter
    assert (betas.units, betas.steps, betas.origin) == (PERCENT, ("divided by 300",), "simulated")
    assert betas.image_id is not None and betas.image_id.tolist() == trials.image_id.tolist()
    mean, deviation = statistics_of(betas.values)
    scored = read(tmp_path / "it.npz", z_score=True)
    np.testing.assert_allclose(scored.values, (betas.values - mean) / deviation, rtol=1e-4, atol=1e-5)
    scan = load_artifact(tmp_path / "it.npz")
    assert isinstance(scan, BrainScan) and (scan.subject, scan.units) == ("S8", RAW)
    np.testing.assert_array_equal(scan.values, trials.betas)


@pytest.mark.parametrize("name", ["S7", "s7", "subj07", "sub-7", "sim-v1 S7", "Subject 7"])
def test_a_subject_may_be_spelled_in_many_ways(name: str, tmp_path: Path) -> None:
    assert str(read(npz(tmp_path / "it.npz", normal(2, 976), subject=name)).subject) == "sim-v1 S7"


def test_nsd_is_known_without_an_adapter_and_new_subjects_are_nobody(tmp_path: Path) -> None:
    subject = read(npy(tmp_path / "it.npy", normal(2, 15_724))).subject
    assert subject is not None and (str(subject), subject.adapter) == ("NSD S1", False)
    assert read(npy(tmp_path / "it.npy", normal(2, 500)), subject=NEW_SUBJECT).subject is None


# Volumes.


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_volume_and_its_mask(suffix: str, order: str, tmp_path: Path) -> None:
    volumes = normal(*GRID, 5)
    path = nifti(tmp_path / f"it{suffix}", volumes, order=order)
    mask = mask_file(tmp_path / f"mask{suffix}")
    for paths in (path, mask), (mask, path):
        betas = read(*paths, trials=(1, 4))
        np.testing.assert_array_equal(betas.values, volumes[MASK].T[1:4])
        assert (str(betas.subject), betas.format) == ("tiny S1", "NIfTI")


def test_scale_factors_of_the_header_are_applied(tmp_path: Path) -> None:
    stored = session()[..., :4]
    path = nifti(tmp_path / "it.nii", stored, scl_slope=1 / 300, scl_inter=0.5)
    betas = read(path, mask_file(tmp_path / "mask.nii"))
    np.testing.assert_allclose(betas.values, stored[MASK].T / 300 + 0.5, rtol=1e-5, atol=1e-6)


def test_a_mask_with_numbers_of_areas_and_a_single_volume(tmp_path: Path) -> None:
    areas = np.where(MASK, 3, -1).astype(np.float32)
    areas[MASK.nonzero()[0][0], MASK.nonzero()[1][0], MASK.nonzero()[2][0]] = 7
    volumes = normal(*GRID, 2)
    betas = read(nifti(tmp_path / "areas.nii", areas), nifti(tmp_path / "it.nii", volumes))
    np.testing.assert_array_equal(betas.values, volumes[MASK].T)
    single = read(nifti(tmp_path / "one.nii", volumes[..., 0]), mask_file(tmp_path / "mask.nii"))
    assert single.values.shape == (1, VOXELS) and [remark.code for remark in single.remarks] == ["W1"]
    packed = tmp_path / "volume.mgz"
    nibabel.MGHImage(volumes, AFFINE).to_filename(packed)
    np.testing.assert_array_equal(read(packed, tmp_path / "mask.nii").values, volumes[MASK].T)


# HDF5.


@pytest.mark.parametrize(
    ("matlab", "options"),
    [
        (True, {}),
        (False, {}),
        (True, {"chunks": (7, 3, 2, 6), "compression": "gzip", "shuffle": True}),
        (False, {"chunks": (6, 2, 3, 7), "compression": "lzf"}),
        (True, {"dtype": ">i2", "chunks": (750, 1, 1, 1)}),
    ],
)
def test_a_session_of_nsd(matlab: bool, options: dict[str, Any], tmp_path: Path) -> None:
    volumes = session()
    path = hdf5(tmp_path / "betas_session01.hdf5", volumes, matlab, **options)
    betas = read(path, mask_file(tmp_path / "mask.nii.gz"), trials=(400, 431))
    np.testing.assert_array_equal(betas.values, volumes[MASK].T[400:431].astype(np.float32) / np.float32(300))
    assert (betas.units, betas.steps, str(betas.subject)) == (PERCENT, ("divided by 300",), "tiny S1")


def test_a_session_may_be_kept_as_it_is(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "it.h5", session())
    raw = read(path, mask_file(tmp_path / "mask.nii.gz"), trials=(0, 2), divide_by_300=False)
    assert (raw.units, raw.steps, [remark.code for remark in raw.remarks]) == (RAW, (), ["E7"])


@pytest.mark.parametrize("options", [{}, {"chunks": (10, 8, 16, 16), "compression": "gzip"}])
def test_three_trials_of_a_session_cost_three_trials(options: dict[str, Any], tmp_path: Path) -> None:
    volumes = session((16, 16, 8))
    path = hdf5(tmp_path / "it.hdf5", volumes, **options)
    file = CountedBytes(path.read_bytes())
    assert hdf5_child.describe(file)["axis"] == 0
    np.testing.assert_array_equal(hdf5_child.read(file, 740, 743).T, volumes[..., 740:743])
    assert file.count < len(file.getvalue()) / 20
    mask = npy(tmp_path / "mask.npy", np.ones((16, 16, 8), bool))
    assert peak_of(lambda: read(path, mask, trials=(740, 743), subject=NEW_SUBJECT)) < volumes.nbytes / 2**20 / 4


# Surfaces.


@pytest.mark.parametrize("count", [29_696, 1000])
@pytest.mark.parametrize("inside", [0, 31_870])
def test_the_cortex_is_found_wherever_it_stands_in_cifti(count: int, inside: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vertices = [np.sort(rng.permutation(32_492)[:size]) for size in (count, count + 20)]
    values = normal(2, 2 * count + 20 + inside)
    columns = np.r_[0:count, count + inside : values.shape[1]]
    betas = read(cifti(tmp_path / "it.dscalar.nii", values, cortex(vertices, 32_492, inside)))
    np.testing.assert_array_equal(betas.values, values[:, columns])
    assert (betas.space, betas.subject, betas.format) == ("fs_LR 32k", None, "CIFTI-2")
    assert betas.vertices is not None
    np.testing.assert_array_equal(betas.vertices, np.concatenate([vertices[0], vertices[1] + 32_492]))


def test_trials_of_a_cifti_series_and_its_artifact(tmp_path: Path) -> None:
    every = np.arange(VERTICES)
    path = cifti(tmp_path / "it.dtseries.nii", BOTH, cortex([every, every]), series=True)
    np.testing.assert_array_equal(read(path, trials=(1, 2)).values, BOTH[1:2])
    scan = load_artifact(path)
    assert isinstance(scan, BrainScan) and scan.space == "fsaverage5"
    np.testing.assert_array_equal(scan.values, BOTH)


@pytest.mark.parametrize("suffix", [".mgh", ".mgz", ".gii"])
def test_two_hemispheres_in_either_order(suffix: str, tmp_path: Path) -> None:
    write = gifti if suffix == ".gii" else mgh
    left = write(tmp_path / f"lh.betas{suffix}", BOTH[:, :VERTICES])
    right = write(tmp_path / f"rh.betas{suffix}", BOTH[:, VERTICES:])
    for paths in (left, right), (right, left):
        betas = read(*paths, trials=(0, 2))
        np.testing.assert_array_equal(betas.values, BOTH[:2])
        assert (betas.space, betas.subject) == ("fsaverage5", None)
        assert betas.vertices is not None and betas.vertices.tolist() == list(range(2 * VERTICES))


@pytest.mark.parametrize("encoding", ["ASCII", "Base64Binary", "GZipBase64Binary"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_gifti_says_its_side_and_its_byte_order(encoding: str, order: str, tmp_path: Path) -> None:
    one = gifti(tmp_path / "one.gii", BOTH[:1, VERTICES:], "CortexRight", encoding, order)
    other = gifti(tmp_path / "other.gii", BOTH[:1, :VERTICES], "CortexLeft", encoding, order)
    np.testing.assert_array_equal(read(one, other).values, BOTH[:1])


def test_gifti_as_nibabel_writes_it(tmp_path: Path) -> None:
    for name, half in ("sub-1.L.func.gii", BOTH[:, :VERTICES]), ("sub-1.R.func.gii", BOTH[:, VERTICES:]):
        arrays = [gifti_images.GiftiDataArray(row, intent="NIFTI_INTENT_TIME_SERIES") for row in half]
        gifti_images.GiftiImage(darrays=arrays).to_filename(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / "sub-1.L.func.gii", tmp_path / "sub-1.R.func.gii").values, BOTH)
    for name, half in ("l.gii", BOTH[:, :VERTICES]), ("r.gii", BOTH[:, VERTICES:]):  # trials side by side
        one = gifti_images.GiftiDataArray(np.ascontiguousarray(half.T))
        gifti_images.GiftiImage(darrays=[one]).to_filename(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / "l.gii", tmp_path / "r.gii", trials=(1, 3)).values, BOTH[1:])


# Artifacts.


def test_units_are_kept_in_files_and_told_apart(tmp_path: Path) -> None:
    values = normal(4, 976)
    scan = BrainScan(values, "voxels", "S7", Z_SCORED)
    for suffix in BrainScan.suffixes:
        scan.save(tmp_path / f"it{suffix}")
        loaded = load_artifact(tmp_path / f"it{suffix}")
        assert isinstance(loaded, BrainScan) and loaded.units == Z_SCORED
        assert loaded.content_hash() == scan.content_hash() != BrainScan(values, "voxels", "S7").content_hash()
        betas = read(tmp_path / f"it{suffix}")
        np.testing.assert_array_equal(betas.values, values)
        assert (betas.units, str(betas.subject)) == (Z_SCORED, "sim-v1 S7")
    label = json.dumps({"space": "voxels", "subject": "S7", "provenance": None})  # as earlier versions wrote it
    np.savez(tmp_path / "old.npz", values=values, label=label)
    old = load_artifact(tmp_path / "old.npz")
    assert isinstance(old, BrainScan) and (old.space, old.units) == ("voxels", UNKNOWN)


def test_the_general_door_takes_single_files(tmp_path: Path) -> None:
    volumes = session()
    loaded = {
        "it.npy": (npy(tmp_path / "it.npy", normal(3, 976).astype(">f4")), normal(3, 976)),
        "it.npz": (npz(tmp_path / "it.npz", normal(3, 976), subject="S7"), normal(3, 976)),
        "it.h5": (hdf5(tmp_path / "it.h5", volumes), volumes[..., :64]),
        "it.nii": (nifti(tmp_path / "it.nii", normal(*GRID, 2)), normal(*GRID, 2)),
    }
    for path, wanted in loaded.values():
        scan = load_artifact(path)
        assert isinstance(scan, BrainScan) and scan.provenance is None
        np.testing.assert_array_equal(scan.values, wanted)


def test_every_suffix_is_offered() -> None:
    suffixes = {".nii.gz", ".nii", ".npz", ".npy", ".hdf5", ".h5", ".gii", ".mgh", ".mgz"}
    assert set(suffixes_of("scan")) == suffixes and {medium_of_suffix(suffix) for suffix in suffixes} == {"scan"}
    component: Any = component_for("scan", "Brain scan")
    assert set(component.file_types) == suffixes
