"""Edits of pictures and of objects: undone exactly, as large as asked, valid, and refused where impossible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from pipelines.edits import colour as colours_of_edits
from pipelines.media import Image, Mesh
from tests.edit_examples import closed, edited, picture, refused, same, seeds, sphere
from tests.media_examples import few

sides = st.integers(1, 40)


# Pictures


@few
@given(seeds, sides, sides)
def test_pictures_come_back_from_turns_and_flips_exactly(seed: int, width: int, height: int) -> None:
    start = picture(seed, width, height)
    turned = start
    for _ in range(4):
        turned = edited("image-rotate", turned, degrees=90)
    assert same(turned, start)
    assert same(edited("image-rotate", edited("image-rotate", start, degrees=-90), degrees=450 - 360), start)
    for direction in ("horizontal", "vertical"):
        flipped = edited("image-flip", start, direction=direction)
        assert same(edited("image-flip", flipped, direction=direction), start)
    assert same(edited("image-invert", edited("image-invert", start)), start)
    assert same(edited("image-adjust", start), start) and same(edited("image-resize", start), start)
    assert same(edited("image-crop", start), start)


def test_clockwise_horizontal_and_vertical_are_what_people_mean() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255  # top left
    corner = Image(pixels)
    assert edited("image-rotate", corner, degrees=90).pixels[0, -1].all()
    assert edited("image-rotate", corner, degrees=180).pixels[-1, -1].all()
    assert edited("image-flip", corner).pixels[0, -1].all()
    assert edited("image-flip", corner, direction="vertical").pixels[-1, 0].all()


@few
@given(seeds, st.floats(-359, 359).filter(lambda degrees: abs(degrees % 90 - 45) < 44))
def test_other_angles_grow_the_picture_onto_white(seed: int, degrees: float) -> None:
    start = Image(np.full((20, 30, 3), 128, np.uint8))
    turned = edited("image-rotate", start, degrees=degrees).pixels
    across, down = np.abs([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
    assert np.abs(np.array(turned.shape[:2]) - [20 * across + 30 * down, 30 * across + 20 * down]).max() <= 5
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() or min(across, down) < 0.1
    assert np.abs(turned[turned.shape[0] // 2, turned.shape[1] // 2].astype(int) - 128).max() <= 1
    assert abs((turned < 192).any(axis=2).sum() - 600) < 60


@few
@given(sides, sides, st.integers(1, 100), st.integers(1, 100))
def test_pictures_get_the_size_that_is_asked_for(width: int, height: int, across: int, down: int) -> None:
    start = picture(0, width, height)

    def size(**params: Any) -> tuple[int, int]:
        pixels = edited("image-resize", start, **params).pixels
        return pixels.shape[1], pixels.shape[0]

    assert size(width=across, height=down) == (across, down)
    assert size(width=across) == (across, max(1, round(height * across / width)))
    assert size(height=down)[1] == down
    assert max(size(longest_side=across)) == across
    assert size(factor=2) == (2 * width, 2 * height)


def test_a_picture_of_another_shape_is_cut_not_stretched() -> None:
    pixels = np.full((40, 120, 3), 255, np.uint8)
    pixels[:, 40:80] = 0
    assert edited("image-resize", Image(pixels), width=20, height=20).pixels.max() < 20  # white lies next to it


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"width": 4097}, "'width' cannot be '4097'"),
        ({"width": -1}, "'width' cannot be '-1'"),
        ({"factor": 0}, "'factor' cannot be '0'"),
        ({"width": 4000, "factor": 2}, "8000 x 4000 pixels"),
        ({"width": 4096}, ""),
        ({"height": 4096}, "8192 x 4096 pixels"),
        ({"longest_side": 10, "width": 10}, "Both"),
    ],
)
def test_sizes_beyond_the_bounds_are_refused(params: dict[str, float], words: str) -> None:
    if words:
        assert words in refused("image-resize", picture(0, 6, 3), **params)
    else:
        assert edited("image-resize", picture(0, 6, 3), **params).pixels.shape == (2048, 4096, 3)


def test_a_turned_picture_that_would_be_too_large_is_refused() -> None:
    huge = Image(np.zeros((8192, 8191, 3), np.uint8))
    assert "too large" in refused("image-rotate", huge, degrees=45)


@few
@given(seeds, sides, sides, *[st.floats(0, 0.999)] * 4, st.booleans())
def test_crops_are_parts_of_the_picture_or_refused(
    seed: int, width: int, height: int, left: float, top: float, right: float, bottom: float, square: bool
) -> None:
    start = picture(seed, width, height)
    params = {"left": left, "top": top, "right": right, "bottom": bottom, "square": square}
    columns = width - round(left * width) - round(right * width)
    rows = height - round(top * height) - round(bottom * height)
    if columns <= 0 or rows <= 0:
        assert "Nothing" in refused("image-crop", start, **params)
        return
    kept = edited("image-crop", start, **params).pixels
    assert kept.shape[:2] == ((min(rows, columns),) * 2 if square else (rows, columns))
    y, x = round(top * height) + (rows - kept.shape[0]) // 2, round(left * width) + (columns - kept.shape[1]) // 2
    assert np.array_equal(kept, start.pixels[y : y + kept.shape[0], x : x + kept.shape[1]])


@few
@given(seeds, st.floats(-180, 180))
def test_a_turned_hue_turns_back_and_keeps_greys_light_and_dark(seed: int, hue: float) -> None:
    start = picture(seed, 16, 16)
    turned = edited("image-adjust", start, hue=hue)
    back = edited("image-adjust", turned, hue=-hue)
    assert np.abs(back.pixels.astype(int) - start.pixels).max() <= 3
    assert np.abs(turned.pixels.max(axis=2).astype(int) - start.pixels.max(axis=2)).max() <= 1
    grey = Image(np.repeat(start.pixels[:, :, :1], 3, axis=2))
    assert same(edited("image-adjust", grey, hue=hue), grey)


def test_adjustments_go_the_way_their_names_say() -> None:
    red = Image(np.full((4, 4, 3), (200, 40, 40), np.uint8))
    assert edited("image-adjust", red, hue=120).pixels[0, 0].tolist() == [40, 200, 40]
    assert edited("image-adjust", red, brightness=1.2).pixels.mean() > red.pixels.mean()
    assert not edited("image-adjust", red, brightness=0).pixels.any()
    grey = edited("image-adjust", picture(0, 9, 9), saturation=0).pixels
    assert (grey == grey[:, :, :1]).all()
    rough = picture(1, 32, 32)
    assert edited("image-adjust", rough, contrast=0).pixels.std() == 0
    softer, sharper = (edited("image-adjust", rough, sharpness=value).pixels.std() for value in (0, 2))
    assert edited("image-blur", rough, radius=3).pixels.std() < softer < rough.pixels.std() < sharper


# Objects


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_an_object_turns_round_about_its_middle(axis: str) -> None:
    vertices = sphere(2).vertices * np.array([1, 2, 3]) + np.array([5, 0, 1])
    start = replace(sphere(2), vertices=vertices.astype(np.float32))
    turned = start
    for _ in range(4):
        turned = edited("mesh-rotate", turned, axis=axis)
        assert np.allclose((turned.vertices.min(0) + turned.vertices.max(0)) / 2, [5, 0, 1], atol=1e-5)
    assert np.allclose(turned.vertices, start.vertices, atol=1e-5)
    assert same(replace(turned, vertices=start.vertices), start)


def test_a_turn_about_the_upright_axis_brings_the_front_to_the_right() -> None:
    vertices = np.array([[0, 0, 1], [0, 0, -1], [0, 1, 0]], np.float32)
    flat = Mesh(vertices, np.array([[0, 1, 2]], np.int32))
    assert np.allclose(edited("mesh-rotate", flat).vertices[0], [1, 0, 0], atol=1e-6)


@few
@given(st.floats(0.1, 10), st.floats(0.01, 100))
def test_an_object_gets_the_size_that_is_asked_for(factor: float, size: float) -> None:
    start = sphere(1)
    larger = edited("mesh-scale", start, factor=factor)
    assert np.allclose(np.ptp(larger.vertices, axis=0), factor * np.ptp(start.vertices, axis=0), rtol=1e-4)
    sized = edited("mesh-scale", start, size=size)
    assert np.isclose(np.ptp(sized.vertices, axis=0).max(), size, rtol=1e-4)


def test_a_point_cannot_be_given_a_size() -> None:
    point = Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]], np.int32))
    assert "single point" in refused("mesh-scale", point, size=1)
    assert same(edited("mesh-scale", point, factor=2), point)


@few
@given(st.integers(12, 5000), st.integers(0, 100))
def test_a_simpler_object_stays_valid_and_keeps_its_colours(num_faces: int, seed: int) -> None:
    start = sphere()
    bumps = 1 + np.random.default_rng(seed).normal(scale=0.02, size=(len(start.vertices), 1))
    start = replace(start, vertices=(start.vertices * bumps).astype(np.float32))
    made = edited("mesh-simplify", start, num_faces=num_faces)
    assert 0 < len(made.faces) <= num_faces
    corners = np.sort(made.faces, axis=1)
    assert (np.diff(corners, axis=1) > 0).all(), "a face without area"
    assert set(made.faces.ravel()) == set(range(len(made.vertices))), "a vertex of no face"
    assert set(map(tuple, made.vertex_colors)) <= {(255, 0, 0), (0, 0, 255)}
    above = made.vertices[:, 1] > 0.3
    assert (made.vertex_colors[above] == [255, 0, 0]).all()
    assert (np.abs(made.vertices) <= np.abs(start.vertices).max(axis=0)).all()


def test_a_closed_surface_keeps_its_volume_and_stays_closed_at_half_its_faces() -> None:
    made = closed(edited("mesh-simplify", sphere()))
    assert 0.4 <= len(made.faces) / len(sphere().faces) <= 0.5
    assert made.is_watertight and made.is_winding_consistent
    assert abs(made.volume / closed(sphere()).volume - 1) < 0.01


def test_flat_sides_and_sharp_edges_survive() -> None:
    box = trimesh.creation.box((1, 2, 3))
    for _ in range(4):
        box = box.subdivide()
    made = edited("mesh-simplify", Mesh(box.vertices.astype(np.float32), box.faces.astype(np.int32)), share=0.05)
    assert closed(made).is_watertight and abs(closed(made).volume - 6) < 1e-4


def test_an_object_that_is_simple_enough_is_left_as_it_is() -> None:
    assert same(edited("mesh-simplify", sphere(1), num_faces=10_000), sphere(1))


def test_an_object_that_would_vanish_is_refused() -> None:
    box = trimesh.creation.box()
    mesh = Mesh(box.vertices.astype(np.float32), box.faces.astype(np.int32))
    assert "made of 4 triangles" in refused("mesh-simplify", mesh, num_faces=4)


@few
@given(st.integers(1, 60), st.integers(0, 100))
def test_smoothing_takes_out_bumps_and_keeps_size_faces_and_colours(num_iterations: int, seed: int) -> None:
    start = sphere()
    bumps = 1 + np.random.default_rng(seed).normal(scale=0.03, size=(len(start.vertices), 1))
    rough = replace(start, vertices=(start.vertices * bumps).astype(np.float32))
    smooth = edited("mesh-smooth", rough, num_iterations=num_iterations)
    deviation = [np.linalg.norm(mesh.vertices, axis=1).std() for mesh in (rough, smooth)]
    assert deviation[1] < 0.9 * deviation[0]
    assert np.array_equal(smooth.faces, rough.faces) and (smooth.vertex_colors == rough.vertex_colors).all()
    assert closed(smooth).is_watertight and abs(closed(smooth).volume / closed(start).volume - 1) < 0.03


def test_seams_stay_shut() -> None:
    """Faces that share places but no vertices, as files with hard edges have them."""
    start = sphere(2)
    loose = Mesh(
        start.vertices[start.faces].reshape(-1, 3), np.arange(3 * len(start.faces), dtype=np.int32).reshape(-1, 3)
    )
    smooth = edited("mesh-smooth", loose)
    assert len(np.unique(smooth.vertices, axis=0)) == len(start.vertices)


def test_vertices_of_no_face_stay_where_they_are() -> None:
    start = sphere(1)
    lone = Mesh(np.concatenate([start.vertices, np.full((1, 3), 9, np.float32)]), start.faces)
    assert np.array_equal(edited("mesh-smooth", lone).vertices[-1], [9, 9, 9])


def test_objects_are_painted_or_their_colours_turned() -> None:
    assert (edited("mesh-recolour", sphere(1), colour="#0a141e").vertex_colors == [10, 20, 30]).all()
    turned = edited("mesh-recolour", sphere(1), hue=120).vertex_colors
    assert set(map(tuple, turned)) == {(0, 255, 0), (255, 0, 0)}
    bare = Mesh(sphere(1).vertices, sphere(1).faces)
    assert (edited("mesh-recolour", bare, colour="red", hue=120).vertex_colors == [0, 255, 0]).all()
    assert "no colours" in refused("mesh-recolour", bare, hue=120)


def test_many_colours_are_turned_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)[:, ::2]
    whole = colours_of_edits.turn_hue(colours, 50.0)
    assert not np.array_equal(whole, colours)
    monkeypatch.setattr(colours_of_edits, "AT_ONCE", 3)
    assert np.array_equal(colours_of_edits.turn_hue(colours, 50.0), whole)


@pytest.mark.parametrize("colour", ["reddish", "", "rgb(300,0,0)", "#12", "x" * 41])
def test_what_is_no_colour_is_refused(colour: str) -> None:
    assert "'colour' cannot be" in refused("mesh-recolour", sphere(1), colour=colour)
