"""Activity on the inflated cortex: which numbers belong on it, where they land, and how they look."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from models.errors import UserError
from pipelines.fmri import inflated
from pipelines.fmri.canvas import FOOT, HEADING, colours
from pipelines.fmri.cortex import draw_scan
from pipelines.formats.scans.files import Z_SCORED
from pipelines.media import BrainScan, load_artifact
from tests.scan_files import cifti, cortex, gifti, mgh

V = inflated.VERTICES_DRAWN


def back_of_the_head() -> tuple[np.ndarray, np.ndarray]:
    """1 at the occipital pole of either hemisphere, 0 elsewhere."""
    left, right = ((side.pial[:, 1] < -85).astype(np.float32) for side in inflated.fsaverage5().values())
    return left, right


def coloured(pixels: np.ndarray) -> np.ndarray:
    """(H, W) bool: where a picture is neither grey nor white, above its scale."""
    return np.ptp(pixels[:-FOOT].astype(int), axis=2) > 60


def test_the_surface_is_two_hemispheres_with_folds() -> None:
    for side, sign in zip(inflated.fsaverage5().values(), (-1, 1), strict=True):
        assert side.white.shape == side.pial.shape == side.inflated.shape == (V, 3) and side.depth.shape == (V,)
        assert side.faces.shape == (2 * V - 4, 3) and side.faces.max() == V - 1  # a closed surface
        assert np.sign(side.pial[:, 0].mean()) == sign
        thickness = np.linalg.norm(side.pial - side.white, axis=1)
        assert 1.5 < np.median(thickness) < 3.5  # millimetres
        out = np.linalg.norm(side.pial - side.pial.mean(0), axis=1)
        assert out[side.depth > 0.3].mean() < out[side.depth < -0.3].mean() - 3, "valleys lie deeper than hills"


@pytest.mark.parametrize(("space", "count"), [("fsaverage5", V), ("fsaverage6", 40_962), ("fsaverage7", 163_842)])
def test_the_coarse_vertices_come_first_in_finer_surfaces(space: str, count: int) -> None:
    left, right = np.arange(count, dtype=np.float32), -np.arange(count, dtype=np.float32)
    found = inflated.on_surface(space, np.concatenate([left, right]))
    assert found is not None and [*found] == ["left", "right"]
    assert np.array_equal(found["left"], left[:V]) and np.array_equal(found["right"], right[:V])
    assert inflated.on_surface(space, left) is None
    for side, values in (("left", left), ("right", right)):
        alone = inflated.on_surface(f"{space} {side}", values)
        assert alone is not None and [*alone] == [side] and np.array_equal(alone[side], values[:V])
    with pytest.raises(UserError, match=rf"Which hemisphere these {count:,} numbers are of.*'lh\.' or 'rh\.'"):
        inflated.on_surface(f"{space}, one hemisphere", left)


def test_other_surfaces_are_not_drawn_as_if_they_were_this_one() -> None:
    for space, count in (("fs_LR 59k", 2 * V), ("unknown", 2 * V), ("fs_LR 32k", 59_412)):
        assert inflated.on_surface(space, np.zeros(count)) is None
        scan = BrainScan(np.ones(count, np.float32), space, "unknown")
        assert "values belong is not known" in draw_scan(scan).words


def test_fs_lr_lies_on_fsaverage_as_its_two_sides_say() -> None:
    """A number of a vertex means the same place in both hemispheres of fs_LR, which those of fsaverage know nothing of:
    so a vertex that is the nearest on either side must be at mirrored places there."""
    chosen = {side: inflated.chosen_vertices(inflated.FS_LR, side) for side in ("left", "right")}
    for vertices in chosen.values():
        assert vertices.shape == (V,) and len(set(vertices)) == V and 0 <= vertices.min() <= vertices.max() < 32_492
    common, left, right = np.intersect1d(chosen["left"], chosen["right"], return_indices=True)
    surface = inflated.fsaverage5()
    mirrored = surface["right"].pial[right] * (-1, 1, 1)
    apart = np.linalg.norm(surface["left"].pial[left] - mirrored, axis=1)  # millimetres
    assert len(common) > 3000 and np.median(apart) < 5 and np.percentile(apart, 95) < 10
    values = np.arange(2 * 32_492, dtype=np.float32)
    found = inflated.on_surface("fs_LR 32k", values)
    assert found is not None and np.array_equal(found["right"], chosen["right"] + 32_492)


def test_cifti_without_the_medial_wall_is_drawn_on_the_surface(tmp_path: Path) -> None:
    """As the HCP saves: some vertices have no number, and voxels stand between the hemispheres."""
    surface = inflated.fsaverage5()
    medial = {side: surface[side].inflated[:, 0] * sign < -10 for side, sign in (("left", -1), ("right", 1))}
    vertices, values = [], []
    for side in ("left", "right"):
        active = np.zeros(32_492, np.float32)
        behind = surface[side].pial[:, 1] < -75
        active[inflated.chosen_vertices(inflated.FS_LR, side)[behind]] = 2
        kept = np.setdiff1d(np.arange(32_492), inflated.chosen_vertices(inflated.FS_LR, side)[medial[side]][:2796])
        vertices.append(kept)
        values.append(active[kept])
    inside = np.full(100, 9, np.float32)
    row = np.concatenate([values[0], inside, values[1]])[None]
    path = cifti(tmp_path / "it.dscalar.nii", np.repeat(row, 2, 0), cortex(vertices, 32_492, 100))
    scan = load_artifact(path)
    assert isinstance(scan, BrainScan) and scan.space == "fs_LR 32k" and scan.values.shape == (2, 64_984)
    assert set(scan.values.ravel()) == {0, 2}
    drawn = draw_scan(scan)
    assert "Average inflated cortex (fsaverage5), from fs_LR 32k. Colours from -2 to +2" in drawn.words
    found = coloured(drawn.pixels)
    assert found[:, 430:770].sum() > 5000 and not found[:, 100:400][: HEADING + 430].any()
    scan.save(tmp_path / "again.npz")
    assert np.array_equal(draw_scan(BrainScan.load(tmp_path / "again.npz")).pixels, drawn.pixels)


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("lh.betas.mgh", "fsaverage5 left"),
        ("sub-1_hemi-R.mgz", "fsaverage5 right"),
        ("rh.func.gii", "fsaverage5 right"),
        ("rh.it.npy", "fsaverage5 right"),
        ("betas.mgh", "fsaverage5, one hemisphere"),
    ],
)
def test_one_hemisphere_is_read_and_drawn(tmp_path: Path, name: str, space: str) -> None:
    """Which it is, its name says."""
    values = np.stack([back_of_the_head()["right" in space]] * 2)
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, values)
    else:
        (gifti if name.endswith(".gii") else mgh)(path, values)
    scan = load_artifact(path)
    assert isinstance(scan, BrainScan) and scan.space == space and np.array_equal(scan.values, values)
    if "one" in space:
        with pytest.raises(UserError, match="Which hemisphere"):
            draw_scan(scan)
        return
    drawn = draw_scan(scan)
    assert f"from {space}" in drawn.words and drawn.pixels.shape[0] < 800
    found = coloured(drawn.pixels)
    assert found[:, :600].sum() > 500 and found[:, 600:].sum() > 500


def test_gifti_says_its_side_whatever_its_name(tmp_path: Path) -> None:
    scan = load_artifact(gifti(tmp_path / "lh.it.gii", np.ones((1, 32_492), np.float32), "CortexRight"))
    assert isinstance(scan, BrainScan) and scan.space == "fs_LR 32k right"


def test_both_hemispheres_in_one_array_are_known_by_their_number(tmp_path: Path) -> None:
    for count, space in ((2 * V, "fsaverage5"), (64_984, "fs_LR 32k"), (2 * V + 1, "unknown")):
        np.save(tmp_path / "it.npy", np.ones((1, count), np.float32))
        scan = load_artifact(tmp_path / "it.npy")
        assert isinstance(scan, BrainScan) and scan.space == space


def test_volumes_of_mni_space_are_known_by_their_size() -> None:
    two = np.diag([-2.0, 2, 2, 1])
    assert inflated.is_mni((91, 109, 91), two) and inflated.is_mni((61, 73, 61), np.diag([3.0, 3, 3, 1]))
    assert not inflated.is_mni((91, 109, 91), np.diag([1.0, 1, 1, 1])), "another size of voxels"
    assert not inflated.is_mni((81, 104, 83), two) and not inflated.is_mni((91, 109, 91), two[[1, 0, 2, 3]])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_volume_is_read_where_the_grey_matter_is_whichever_way_its_axes_go(sign: int) -> None:
    affine = np.diag([2.0 * sign, 2, 2, 1])
    affine[:3, 3] = (-90 * sign, -126, -72)
    axes = [affine[axis, axis] * np.arange(size) + affine[axis, 3] for axis, size in enumerate((91, 109, 91))]
    for axis, along in enumerate(np.meshgrid(*axes, indexing="ij")):  # every voxel says where it is
        for name, values in inflated.from_volume(along, affine).items():
            side = inflated.fsaverage5()[name]
            expected = (side.white[:, axis] + side.pial[:, axis]) / 2
            np.testing.assert_allclose(values, expected, atol=0.05)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # nilearn's, of just those
def test_what_leaves_the_volume_has_no_number() -> None:
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (0, -126, -72)  # only the right half
    left, right = inflated.from_volume(np.ones((91, 109, 91)), affine).values()
    assert np.isnan(left).mean() > 0.9 and np.isfinite(right).mean() > 0.9
    greys = inflated.painted(np.zeros(V), left, 1.0)[np.isnan(left)]
    assert (np.ptp(greys.astype(int), axis=1) == 0).all()


def test_activity_at_the_back_is_drawn_at_the_back() -> None:
    scan = BrainScan(np.stack([np.concatenate(back_of_the_head())] * 2), "fsaverage5", "Ann", Z_SCORED)
    drawn = draw_scan(scan)
    assert "Ann, mean of 2 trials. Average inflated cortex (fsaverage5)" in drawn.words
    assert "Colours from -1 to +1, z-score" in drawn.words and drawn.pixels.shape[1] == 1200
    found, middle = coloured(drawn.pixels), HEADING + 20 + inflated.ROW
    outside, inside = np.nonzero(found[:middle])[1], np.nonzero(found[middle:])[1]
    for seen, left, right in ((outside, (300, 600), (600, 900)), (inside, (0, 300), (900, 1200))):
        in_left, in_right = ((low < seen) & (seen < high) for low, high in (left, right))
        assert in_left.sum() > 500 and in_right.sum() > 500 and (in_left | in_right).mean() > 0.95


def test_one_hemisphere_alone_lights_up_where_it_is_named() -> None:
    left, _ = back_of_the_head()
    found = coloured(draw_scan(BrainScan(np.concatenate([left, 0 * left]), "fsaverage5", "unknown")).pixels)
    assert found[:, :600].sum() > 1000 and not found[:, 600:].any()


def test_faint_activity_lets_the_folds_through_and_strong_hides_them() -> None:
    depth = np.array([-1.0, 1.0] * 3)
    hill, valley, faint_hill, faint_valley, hot, also_hot = inflated.painted(
        depth, np.array([0, 0, 0.1, 0.1, 0.9, 0.9]), 1.0
    ).astype(int)
    assert np.ptp(hill) == np.ptp(valley) == 0 and hill[0] > valley[0] + 50
    assert (faint_hill != faint_valley).any() and faint_hill[0] > faint_hill[2]
    assert (hot == also_hot).all() and (hot == colours(np.array(0.9), 1.0)).all()


def turned(degrees: float, side: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = side * np.array([[-cosine, sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1 / side]])
    affine[:3, 3] = (90.3, -126.1, -72.7)
    return affine


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".npz"])
@pytest.mark.parametrize("affine", [turned(0, 2.1), turned(17, 3.0)], ids=["odd", "oblique"])
@pytest.mark.parametrize("code", ["qform", "sform"])
def test_a_scan_is_the_same_once_more(tmp_path: Path, suffix: str, affine: np.ndarray, code: str) -> None:
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32), None)
    (image.set_qform if code == "qform" else image.set_sform)(affine, 1)
    image.to_filename(tmp_path / "map.nii")
    scan = BrainScan.load(tmp_path / "map.nii")
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    scan.save(tmp_path / f"again{suffix}")
    assert BrainScan.load(tmp_path / f"again{suffix}").content_hash() == scan.content_hash()


@pytest.mark.parametrize("value", [0.0, 1e300, 1e-300, np.nan])
def test_an_affine_that_places_nothing_is_none(tmp_path: Path, value: float) -> None:
    affine = np.full((4, 4), value)
    np.savez(
        tmp_path / "map.npz", values=np.ones((4, 5, 6), np.float32) * np.arange(6, dtype=np.float32), affine=affine
    )
    scan = BrainScan.load(tmp_path / "map.npz")
    assert scan.affine is None
    scan.save(tmp_path / "again.nii.gz")
    assert BrainScan.load(tmp_path / "again.nii.gz").content_hash() == scan.content_hash()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".npz"])
def test_a_volume_of_mni_space_is_drawn_on_the_surface_and_keeps_its_affine(tmp_path: Path, suffix: str) -> None:
    affine = np.diag([-3.0, 3, 3, 1])
    affine[:3, 3] = (90, -126, -72)
    across = affine[0, 0] * np.arange(61) + affine[0, 3]
    values = 2.5 * np.broadcast_to((across > 0)[:, None, None], (61, 73, 61)).astype(np.float32)  # the right half
    nibabel.Nifti1Image(values, affine).to_filename(tmp_path / "map.nii.gz")
    scan = BrainScan.load(tmp_path / "map.nii.gz")
    assert scan.affine is not None and np.array_equal(scan.affine, affine)
    scan.save(tmp_path / f"again{suffix}")
    again = BrainScan.load(tmp_path / f"again{suffix}")
    assert again.content_hash() == scan.content_hash() != replace(scan, affine=None).content_hash()
    drawn = draw_scan(again)
    assert "assumes the volume is in MNI space" in drawn.words
    found = coloured(drawn.pixels)
    assert found[:, 640:].mean() > 0.2 and found[:, :560].mean() < 0.02
    assert "Slices along the third axis" in draw_scan(replace(scan, affine=None)).words


def test_where_a_file_does_not_say_which_side_is_left_nothing_is_guessed(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.full((91, 109, 91), 2.5, np.float32), np.diag([2.0, 2, 2, 1]))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.to_filename(tmp_path / "map.nii")
    assert BrainScan.load(tmp_path / "map.nii").affine is None


def test_nilearn_is_imported_only_for_a_surface() -> None:
    program = (
        "import sys, numpy as np\n"
        "from pipelines.base import installed_registry\n"
        "from pipelines.fmri.cortex import draw_scan\n"
        "from pipelines.media import BrainScan\n"
        "installed_registry()\n"
        "draw_scan(BrainScan(np.ones((9, 9, 9), np.float32), 'unknown', 'unknown'))\n"
        "assert 'nilearn' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
