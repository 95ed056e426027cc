"""Brain scans that cannot be used: each gets its code and one plain sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import UserError
from pipelines.formats.scans.files import PERCENT
from pipelines.formats.scans.subjects import NEW_SUBJECT
from pipelines.media import load_artifact
from tests import media_examples
from tests.scan_files import (
    AFFINE,
    GRID,
    KNOWN,
    MASK,
    VERTICES,
    VOXELS,
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
    read,
    refuse,
    session,
    zlib_packed,
)


def spoilt(share: float, value: float, *shape: int) -> np.ndarray:
    """Normal numbers of which ``share`` are ``value``."""
    values = normal(*shape)
    values.flat[: round(share * values.size)] = value
    return values


# E1: what it is.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG"),
        (b"%PDF-1.7", "PDF"),
        (b"MATLAB 5.0 MAT-file", "MATLAB"),
        (b"\x80\x04\x95" + bytes(40), "pickle"),
        (b"trial,voxel\n1,2\n", "text"),
        (bytes(range(256)) * 4, "unknown"),
        (zlib_packed(bytes(257) + b"ustar" + bytes(300)), "tar archive inside"),
        (bytes(344) + b"ni1\0" + bytes(8), "pair"),
    ],
)
def test_other_files_are_named(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "it.nii"
    path.write_bytes(data)
    error = refuse("E1", path)
    assert words in error.sentence and ".npy" in error.hint


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    archive = npz(tmp_path / "it.npz", normal(2, 976))
    for path in tmp_path / "none.npy", tmp_path, archive / "betas.npy", Path("a\0b.npy"):
        refuse("E1", path)
    refuse("E1")
    refuse("E1", archive, archive, archive)


def test_objects_texts_and_complex_numbers_are_never_opened(tmp_path: Path) -> None:
    thing = np.array([{"code": 1}] * 976, dtype=object)
    np.save(tmp_path / "it.npy", thing)
    assert "objects" in refuse("E1", tmp_path / "it.npy").sentence
    for name in "betas", "mask", "subject", "image_id":
        arrays: dict[str, Any] = {"betas": normal(2, 976), name: thing}
        np.savez(tmp_path / "it.npz", **arrays)
        refuse("E1", tmp_path / "it.npz")
    for array in np.zeros(976, complex), np.array(["a"] * 976), np.zeros(976, [("a", "f4")]), np.array(3.0):
        refuse("E1", npy(tmp_path / "it.npy", array))
    refuse("E1", npy(tmp_path / "it.npy", normal(2, 3, 4, 5)))
    refuse("E1", npy(tmp_path / "it.npy", normal(0, 976)))


# E2: how much.


def test_too_many_trials_and_ranges_that_are_none(tmp_path: Path) -> None:
    path = npy(tmp_path / "it.npy", normal(65, 976))
    error = refuse("E2", path)
    assert "65 trials" in error.sentence and "up to 64" in error.hint
    for trials in (0, 65), (3, 3), (-1, 2), (60, 66), (5, 2):
        refuse("E2", path, trials=trials)
    assert read(path, trials=(1, 65)).values.shape == (64, 976)
    assert read(path, max_trials=65).values.shape == (65, 976)


def test_too_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npy(tmp_path / "it.npy", normal(2, 976))
    monkeypatch.setattr("pipelines.formats.scans.sniff.MAX_FILE_BYTES", 7000)
    assert "larger" in refuse("E2", path).sentence
    session_file = hdf5(tmp_path / "it.hdf5", session())  # of which only a part is read
    assert read(session_file, mask_file(tmp_path / "mask.nii"), trials=(0, 3)).units == PERCENT


# E3 and E4: whose.


def test_voxels_of_nobody_and_of_somebody_else(tmp_path: Path) -> None:
    error = refuse("E3", npy(tmp_path / "it.npy", normal(2, 12_345)))
    assert "12,345 voxels" in error.sentence and "15724 = S1" in error.sentence and NEW_SUBJECT in error.hint
    error = refuse("E3", npz(tmp_path / "it.npz", normal(2, 976), subject="S1"))
    assert "sim-v1 S7" in error.sentence and "'S1'" in error.sentence
    assert str(read(tmp_path / "it.npz", subject="S7").subject) == "sim-v1 S7"  # what the user says counts
    refuse("E3", tmp_path / "it.npz", subject="CSI1")


def test_the_same_number_of_voxels_in_other_places(tmp_path: Path) -> None:
    other = np.roll(MASK, 1)
    assert other.sum() == VOXELS
    path = npz(tmp_path / "it.npz", normal(2, VOXELS), mask=other)
    assert "meaningless" in refuse("E4", path).sentence
    assert read(path, subject=NEW_SUBJECT).subject is None
    twins = (*KNOWN, KNOWN[-1].__class__("twin", "S9", VOXELS))
    error = refuse("E4", npy(tmp_path / "it.npy", normal(2, VOXELS)), known=twins)
    assert "twin S9" in error.sentence and "Say which" in error.hint


# E5: where.


def test_volumes_and_masks_that_do_not_fit(tmp_path: Path) -> None:
    volumes = nifti(tmp_path / "it.nii", normal(*GRID, 3))
    assert "the grid of tiny S1" in refuse("E5", volumes).sentence
    other = nifti(tmp_path / "other.nii", np.ones((30, 20, 10), np.uint8))
    sentence = refuse("E5", volumes, other).sentence
    assert "6 x 5 x 4" in sentence and "30 x 20 x 10" in sentence and "the grid of tiny S2" in sentence
    assert "-1.8 0 0 90" in sentence
    near, far = AFFINE.copy(), AFFINE.copy()
    near[0, 3] += 0.0005
    far[0, 3] += 0.5
    read(volumes, mask_file(tmp_path / "near.nii", near))
    assert "90.5" in refuse("E5", volumes, mask_file(tmp_path / "far.nii", far)).sentence
    refuse("E5", volumes, nifti(tmp_path / "zero.nii", np.zeros(GRID, np.uint8)))
    refuse("E5", volumes, nifti(tmp_path / "twice.nii", normal(*GRID, 2)))
    refuse("E5", volumes, npy(tmp_path / "turned.npy", MASK.T))


def test_masks_alone_and_with_what_needs_none(tmp_path: Path) -> None:
    masks = mask_file(tmp_path / "mask.nii"), npy(tmp_path / "mask.npy", MASK), npy(tmp_path / "flat.npy", MASK.ravel())
    for path in masks:
        assert "mask alone" in refuse("E5", path).sentence
    refuse("E5", masks[0], masks[1])
    refuse("E5", npy(tmp_path / "map.npy", normal(1, 256, 256)), masks[0])
    refuse("E5", npz(tmp_path / "it.npz", normal(2, VOXELS), mask=MASK), masks[0])
    assert "mask has" in refuse("E5", npy(tmp_path / "few.npy", normal(2, VOXELS - 1)), masks[0]).sentence
    with pytest.raises(UserError, match="mask alone"):
        load_artifact(masks[0])


# E6 and E7: how large.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_few_bad_values_are_filled_if_asked_for(value: float, tmp_path: Path) -> None:
    values = normal(10, 976).astype(np.float64)
    values[3, :50] = value
    path = npy(tmp_path / "it.npy", values)
    error = refuse("E6", path)
    assert "0.51%" in error.sentence and "fill" in error.hint
    betas = read(path, fill=True)
    np.testing.assert_allclose(betas.values[3, :50], np.delete(values[:, :50], 3, 0).mean(0), rtol=1e-5, atol=1e-6)
    assert [remark.code for remark in betas.remarks] == ["E6"] and "50 values" in betas.remarks[0].sentence
    values[4, :50] = value
    assert "1.0%" in refuse("E6", npy(path, values), fill=True).sentence


def test_voxels_that_never_change(tmp_path: Path) -> None:
    values = normal(10, 976)
    values[:, :195] = 1.5
    read(npy(tmp_path / "it.npy", values))
    values[:, :244] = 1.5
    assert "25% of the voxels never change" in refuse("E6", npy(tmp_path / "it.npy", values)).sentence
    assert "25% of the voxels are zero" in refuse("E6", npy(tmp_path / "it.npy", spoilt(0.25, 0, 976))).sentence
    refuse("E6", npy(tmp_path / "it.npy", np.zeros((3, 976))))
    refuse("E6", npy(tmp_path / "it.npy", spoilt(0.85, 0, 1, 256, 256)))


def test_statistics_that_cannot_be_used(tmp_path: Path) -> None:
    values, ones = normal(3, 976), np.ones(976)
    for others in {"mean": ones}, {"mean": ones, "std": ones * 0}, {"mean": ones * np.nan, "std": ones}:
        refuse("E6", npz(tmp_path / "it.npz", values, **others))
    refuse("E6", npz(tmp_path / "it.npz", values, mean=ones[:-1], std=ones[:-1]))
    refuse("E7", npz(tmp_path / "it.npz", values), z_score=True)
    tiny = npz(tmp_path / "it.npz", values, mean=ones, std=ones * 1e-40)
    assert "too small" in refuse("E6", tiny, z_score=True, divide_by_300=False).sentence


def test_an_unlikely_scale_is_never_put_right_silently(tmp_path: Path) -> None:
    raw = np.rint(normal(8, 976) * 330 + 30).astype(np.int16)
    path = npz(tmp_path / "it.npz", raw, mean=np.full(976, 0.1), std=np.full(976, 1.1))
    error = refuse("E7", path)
    assert "deviation 331" in error.sentence and "deviation 1.1" in error.hint and "z-score" in error.hint
    divided = read(path, divide_by_300=True)
    np.testing.assert_allclose(divided.values, raw / 300, rtol=1e-5)
    assert divided.units == PERCENT and divided.remarks == () and divided.steps == ("divided by 300",)
    kept = read(path, divide_by_300=False)
    np.testing.assert_array_equal(kept.values, raw)
    assert [remark.code for remark in kept.remarks] == ["E7"]
    for values in normal(8, 976) + 6, normal(8, 976) * 4, normal(8, 976) * 0.2:
        refuse("E7", npy(tmp_path / "it.npy", values))
    twice = read(npy(tmp_path / "it.npy", normal(8, 976)), divide_by_300=True)
    assert [remark.code for remark in twice.remarks] == ["E7"]
    peak = np.rint(normal(40, 976) * 0.8).astype(np.int16)
    peak[0, 0] = 201  # integers as large are no percent, however seldom
    refuse("E7", npy(tmp_path / "it.npy", peak))


# E8 and E9: what does not go together.


@pytest.mark.parametrize(
    "others",
    [
        {"image_id": [1.0, np.nan, 2]},
        {"image_id": [1, 2]},
        {"image_id": [1, 2, 2.5]},
        {"repeat": [0, 1, 2, 3]},
        {"image_id": [[1, 2, 3]]},
    ],
)
def test_picture_numbers_that_are_none(others: dict[str, Any], tmp_path: Path) -> None:
    assert "averaged" in refuse("E8", npz(tmp_path / "it.npz", normal(3, 976), **others)).sentence


def test_repeats_that_are_not_there(tmp_path: Path) -> None:
    repeats = normal(4, 3, 976)
    repeats[2, 1:] = np.nan
    assert "Picture 2 has only 1 of 3" in refuse("E8", npy(tmp_path / "it.npy", repeats), fill=True).sentence
    refuse("E8", npy(tmp_path / "it.npy", normal(3, 976)), average=True)


def test_hemispheres_that_do_not_make_a_brain(tmp_path: Path) -> None:
    left, right = (mgh(tmp_path / f"{side}h.it.mgh", normal(2, VERTICES)) for side in "lr")
    assert "left" in refuse("E9", left).sentence and "right one is missing" in refuse("E9", left).sentence
    assert "left one is missing" in refuse("E9", right).sentence
    mask = mask_file(tmp_path / "mask.nii")
    refuse("E9", left, mask)
    for paths, words in (
        ((left, mgh(tmp_path / "lh.2.mgh", normal(2, VERTICES))), "both the left"),
        ((left, mgh(tmp_path / "rh.long.mgh", normal(3, VERTICES))), "3 trials"),
        ((left, mgh(tmp_path / "rh.fine.mgh", normal(2, 40_962))), "40,962"),
        ((gifti(tmp_path / "a.gii", normal(1, VERTICES)), gifti(tmp_path / "b.gii", normal(1, VERTICES))), "which"),
        ((gifti(tmp_path / "lh.gii", normal(1, 999)), right), "999 vertices"),
    ):
        assert words in refuse("E9", *paths).sentence
    some = np.arange(100)
    lone = cifti(tmp_path / "it.dscalar.nii", normal(2, 100), cortex([some]))
    assert "right cortex is missing" in refuse("E9", lone).sentence
    odd = cifti(tmp_path / "it.dscalar.nii", normal(2, 200), cortex([some, some], 500))
    assert "500" in refuse("E9", odd).sentence
    assert "999 vertices" in media_examples.refuse(gifti(tmp_path / "it.gii", normal(1, 999), "CortexLeft")).sentence
