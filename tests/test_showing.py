"""3-D objects shown in clips and pictures: whole, centred, as large as can be, and the same from wherever they come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.target import Target, choose_route
from models.errors import Cancelled, UserError
from pipelines.base import Progress, Runtime
from pipelines.edits.showing import FRAME_RATE
from pipelines.formats.mesh_views import MARGIN, MeshViews
from pipelines.media import Image, Mesh, Video, load_artifact
from tests.edit_examples import REGISTRY, NoModels, clip, edited, refused, sphere
from tests.test_objects import BLUE, RED, share, two_boxes


def extents(frames: np.ndarray, background: int | np.ndarray = 255) -> np.ndarray:
    """(T, 4): the first and last row and column of each frame that is not background."""
    found = []
    for drawn in (np.abs(frames.astype(int) - background) > 16).any(3):
        rows, columns = drawn.any(1).nonzero()[0], drawn.any(0).nonzero()[0]
        found.append((rows[0], rows[-1], columns[0], columns[-1]))
    return np.array(found)


# --------------------------------------------------------------------------------------------------------- turntables


@pytest.mark.parametrize("elevation", [0, 35, -60])
def test_it_fills_the_clip_in_one_scale_and_never_leaves_it(elevation: float) -> None:
    side = 96
    made = edited("mesh-turntable", two_boxes(), seconds=2, side=side, elevation=elevation)
    assert made.frames.shape == (2 * FRAME_RATE, side, side, 3) and made.frame_rate == FRAME_RATE
    top, bottom, left, right = extents(made.frames).T
    margin = MARGIN * side
    assert min(top.min(), left.min()) >= margin - 1 and max(bottom.max(), right.max()) <= side - margin
    # Some frame touches each end of the longer way, and the middle stays in the middle.
    reach = max(right.max() - left.min(), bottom.max() - top.min())
    assert reach >= side - 2 * margin - 2
    assert abs(left.min() + right.max() + 1 - side) <= 2 and abs(top.min() + bottom.max() + 1 - side) <= 2


def test_it_turns_evenly_and_comes_round() -> None:
    ball = replace(sphere(3), vertex_colors=None)
    frames = edited("mesh-turntable", ball, seconds=1, side=64).frames.astype(int)
    changes = np.abs(np.diff(np.concatenate([frames, frames[:1]]), axis=0)).mean((1, 2, 3))
    assert changes.max() < 1, "a ball looks the same from all around"
    boxes = edited("mesh-turntable", two_boxes(), seconds=1, side=64).frames
    steps = np.abs(np.diff(np.concatenate([boxes, boxes[:1]]).astype(int), axis=0)).mean((1, 2, 3))
    assert steps.min() > 0 and steps[-1] <= steps[:-1].max()
    assert share(boxes[0], 0) > 0.1 and share(boxes[len(boxes) // 2], 2) > share(boxes[0], 2)


def test_place_and_size_do_not_matter_and_the_background_does() -> None:
    here = two_boxes()
    there = replace(here, vertices=here.vertices * np.float32(1e-3) + np.array([0.5, -2, 0.25], np.float32))
    options = {"seconds": 1, "side": 64}
    first, other = (edited("mesh-turntable", one, **options).frames.astype(int) for one in (here, there))
    assert np.abs(first - other).mean() < 1
    dark = edited("mesh-turntable", here, background="#102030", **options).frames
    assert (dark[:, 0, 0] == [16, 32, 48]).all() and (extents(dark, np.array([16, 32, 48])) == extents(first)).all()


def test_progress_is_told_and_a_stop_is_heeded() -> None:
    turntable = REGISTRY.get("mesh-turntable")
    runtime = Runtime(NoModels())  # type: ignore[arg-type]
    events = turntable.run([two_boxes()], turntable.parse_params({"seconds": 1, "side": 64}), runtime)
    first = next(events)
    assert isinstance(first, Progress) and (first.step, first.total) == (1, FRAME_RATE)
    runtime.cancelled.set()
    with pytest.raises(Cancelled):
        next(events)


# -------------------------------------------------------------------------------------------------------------- sheets


def test_the_six_views_stand_where_their_names_say() -> None:
    side = 128
    sheet = edited("mesh-views", two_boxes(), side=side)
    assert isinstance(sheet, Image) and sheet.pixels.shape[1] == 3 * side
    height = sheet.pixels.shape[0] // 2
    front, right, top, back, left, bottom = (
        sheet.pixels[row * height : row * height + side, column * side : (column + 1) * side]
        for row in (0, 1)
        for column in (0, 1, 2)
    )
    assert share(front, 0) > 0.05 and share(back, 0) == 0 < share(back, 2)
    assert share(right[:, : side // 2], 0) > 0 == share(right[:, side // 2 :], 0)  # the front is to the left
    assert share(left[:, side // 2 :], 0) > 0 == share(left[:, : side // 2], 0)
    assert share(top[side // 2 :], 0) > 0 == share(top[: side // 2], 0)
    assert share(bottom[: side // 2], 0) > 0 == share(bottom[side // 2 :], 0)
    # At one scale: as high from the front as from the right, as wide from above as from the front.
    (a, b, *_), (c, d, *_) = extents(np.stack([front, right]))
    assert abs((b - a) - (d - c)) <= 1
    for row in (0, 1):
        label = sheet.pixels[row * height + side : (row + 1) * height]
        names = [label[:, column * side : (column + 1) * side] for column in (0, 1, 2)]
        assert all((name < 100).any() for name in names)
        assert not np.array_equal(names[0], names[1]) and not np.array_equal(names[1], names[2])


def test_names_can_be_read_on_any_background() -> None:
    for background, ink in (("black", 255), ("white", 0), ("#203040", 255), ("yellow", 0)):
        pixels = edited("mesh-views", sphere(1), side=64, background=background).pixels
        assert (np.abs(pixels[64:76].astype(int) - ink) < 64).all(2).any()


# ---------------------------------------------------------------------------------------------------------- rasteriser


def test_large_faces_hide_what_is_behind_them_at_every_pixel() -> None:
    """A long wall that comes nearer to one side, and a small patch: the painter's order by middles is wrong here."""
    wall = [[-1, -1, -2], [1, -1, 2], [1, 1, 2], [-1, 1, -2]]
    patch = [[-0.9, -0.1, -1], [-0.7, -0.1, -1], [-0.7, 0.1, -1]]
    behind = [[0.7, -0.1, 0.5], [0.9, -0.1, 0.5], [0.9, 0.1, 0.5]]
    vertices = np.array([*wall, *patch, *behind], np.float32)
    colors = np.array([RED] * 4 + [BLUE] * 3 + [BLUE] * 3, np.uint8)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [7, 8, 9]], np.int32)
    pixels = MeshViews(vertices, faces, colors).drawn(64, 0, 0)
    assert share(pixels[:, :32], 2) > 0 == share(pixels[:, 32:], 2)


def test_round_things_are_lit_smoothly_and_edges_stay_edges() -> None:
    ball = MeshViews(sphere(2).vertices, sphere(2).faces, None).drawn(128, 20, 20).astype(int)[:, :, 0]
    inner = ball[40:88, 40:88]
    assert np.abs(np.diff(inner, axis=1)).max() <= 4, "single faces are seen"
    box = two_boxes()
    views = MeshViews(box.vertices, box.faces, None)
    assert (views.corner_normals == views.face_normals[:, None]).all()
    assert np.allclose(np.linalg.norm(views.corner_normals, axis=2), 1)


def test_a_closed_surface_has_no_holes() -> None:
    pixels = MeshViews(sphere(4).vertices, sphere(4).faces, None).drawn(200, 10, 30)
    drawn = np.asarray((pixels < 250).any(2))
    for row in drawn[np.asarray(drawn.any(1))]:
        columns = row.nonzero()[0]
        assert len(columns) == np.ptp(columns) + 1


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["mesh-turntable", "mesh-views"])
def test_what_has_no_surface_is_refused(name: str) -> None:
    point = Mesh(np.ones((3, 3), np.float32), np.array([[0, 1, 2]], np.int32))
    line = Mesh(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], np.float32), np.array([[0, 1, 2]], np.int32))
    for empty in (point, line):
        assert "no surface" in refused(name, empty)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"seconds": 0}, "'seconds' cannot be '0'"),
        ({"seconds": 60}, "'seconds' cannot be '60'"),
        ({"side": 65}, "'side' cannot be '65'"),
        ({"side": 10**9}, "'side' cannot be '1000000000'"),
        ({"elevation": 91}, "'elevation' cannot be '91'"),
        ({"background": "see-through"}, "'background' cannot be 'see-through'"),
    ],
)
def test_what_no_clip_can_be_is_refused(params: dict[str, object], words: str) -> None:
    assert words in refused("mesh-turntable", two_boxes(), **params)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("ending", "chosen"), [("mp4", "mesh-turntable"), ("gif", "mesh-turntable"), ("png", "mesh-views")]
)
def test_the_ending_says_how_an_object_is_shown(ending: str, chosen: str, tmp_path: Path) -> None:
    target = Target.parse(str(tmp_path / f"it.{ending}"))
    pipeline, route = choose_route(REGISTRY, None, ["mesh"], target)
    assert pipeline.name == chosen and route.output in target.media


def test_changes_within_a_medium_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Nothing here turns mesh into"):
        choose_route(REGISTRY, None, ["mesh"], Target.parse(str(tmp_path / "it.glb")))


# ----------------------------------------------------------------------------------------------------------------- GIF


@pytest.mark.parametrize(("rate", "kept_rate"), [(20.0, 20.0), (24.0, 24.0), (60.0, 30.0), (240.0, 48.0)])
def test_a_gif_lasts_as_long_in_as_many_frames_as_browsers_show(rate: float, kept_rate: float, tmp_path: Path) -> None:
    frames = np.repeat(np.arange(48, dtype=np.uint8) * 5, 16 * 16 * 3).reshape(48, 16, 16, 3)
    Video(frames, rate).save(tmp_path / "it.gif")
    made = load_artifact(tmp_path / "it.gif")
    assert isinstance(made, Video)
    assert len(made.frames) / made.frame_rate == pytest.approx(48 / rate, abs=0.011)
    assert len(made.frames) == pytest.approx(48 * kept_rate / rate, rel=0.1)
    assert np.abs(made.frames[0].astype(int) - frames[0]).max() <= 3


def test_the_colours_of_a_gif_are_near_and_do_not_flicker(tmp_path: Path) -> None:
    turning = edited("mesh-turntable", two_boxes(), seconds=1, side=64)
    turning.save(tmp_path / "it.gif")
    made = load_artifact(tmp_path / "it.gif")
    assert isinstance(made, Video) and made.provenance == turning.provenance
    assert np.abs(made.frames.astype(int) - turning.frames).mean() < 1
    still = Video(np.repeat(clip().frames[:1], 3, axis=0), 10.0)
    still.save(tmp_path / "still.gif")
    again = load_artifact(tmp_path / "still.gif", "video")
    assert (again.frames == again.frames[0]).all()  # type: ignore[attr-defined]
