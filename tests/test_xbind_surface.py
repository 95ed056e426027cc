"""From a grid to a finished object: closed, right side out, coloured, within its budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.media import Mesh
from pipelines.xbind.surface import NoSurfaceError, is_one_piece, surface
from tests.box_shapes import boxes
from tests.tiny_shapes import ball, cube, truncated

MANY = 100_000
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def shape_of(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def is_closed(mesh: Mesh) -> bool:
    """Also for a program that merges vertices at one place."""
    return shape_of(mesh).is_watertight and trimesh.Trimesh(mesh.vertices, mesh.faces, process=True).is_watertight


def painted(distances: Tensor, colors: Tensor | None = None) -> Tensor:
    """(1, R, R, R) -> a grid (4, R, R, R), grey unless told."""
    return torch.cat([distances, torch.full((3, *distances.shape[1:]), 0.5) if colors is None else colors])


def box(resolution: int, low: tuple[float, float, float], high: tuple[float, float, float]) -> Tensor:
    """(1, R, R, R): signed distance to a box, but for what is beyond its edges."""
    places = cube(resolution)
    lows, highs = (torch.tensor(corner).view(3, 1, 1, 1) for corner in (low, high))
    return torch.maximum(lows - places, places - highs).amax(0, keepdim=True)


def angle_iron(resolution: int = 64) -> Tensor:
    """An L that differs in every direction: a long foot to the right, a shorter post up at the left, all at the front.

    Its left half is red and its right half blue.
    """
    foot = box(resolution, (-0.7, -0.6, 0.1), (0.7, -0.3, 0.5))
    post = box(resolution, (-0.7, -0.6, 0.1), (-0.4, 0.4, 0.5))
    left = cube(resolution)[:1] < 0
    colors = torch.where(left, torch.tensor(RED).view(3, 1, 1, 1), torch.tensor(BLUE).view(3, 1, 1, 1))
    return painted(truncated(torch.minimum(foot, post)), colors)


ANGLE_VOLUME = 1.4 * 0.3 * 0.4 + 0.3 * 0.7 * 0.4


# ---------------------------------------------------------------------------------------------------------- the shape


def test_a_ball_is_a_ball() -> None:
    mesh = surface(painted(ball()), MANY, 2.0)
    solid = shape_of(mesh)
    assert is_closed(mesh) and solid.body_count == 1 and solid.is_winding_consistent
    assert solid.volume == pytest.approx(4 / 3 * np.pi, rel=0.05)
    assert solid.euler_number == 2
    assert np.linalg.norm(mesh.vertices - [0, 1, 0], axis=1) == pytest.approx(1, rel=0.03)


def test_faces_look_outwards() -> None:
    solid = shape_of(surface(painted(ball()), MANY, 1.0))
    outwards = solid.triangles_center - [0, 0.5, 0]
    assert ((solid.face_normals * outwards).sum(axis=1) > 0).all()


def test_up_is_up_right_is_right_and_the_front_is_the_front() -> None:
    mesh = surface(angle_iron(), MANY, 1.4)
    assert is_closed(mesh) and shape_of(mesh).volume == pytest.approx(ANGLE_VOLUME, rel=0.05)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    np.testing.assert_allclose(low, [-0.7, 0, -0.2], atol=0.02)
    np.testing.assert_allclose(high, [0.7, 1.0, 0.2], atol=0.02)
    upper = mesh.vertices[mesh.vertices[:, 1] > 0.5]
    assert upper[:, 0].min() == pytest.approx(-0.7, abs=0.02) and upper[:, 0].max() == pytest.approx(-0.4, abs=0.03)
    deep = angle_iron().clone()
    deep[0] = torch.minimum(deep[0], truncated(box(64, (-0.7, -0.6, -0.5), (-0.4, -0.3, 0.5)))[0])
    behind = surface(deep, MANY, 1.4).vertices
    assert behind[behind[:, 2] < 0.0][:, 0].max() < -0.3  # the new foot, at the left, goes to the back


@pytest.mark.parametrize("num_faces", [MANY, 3000, 400])
def test_colours_are_where_they_belong(num_faces: int) -> None:
    mesh = surface(angle_iron(), num_faces, 1.4)
    assert mesh.vertex_colors is not None
    side = mesh.vertices[:, 0]
    assert (mesh.vertex_colors[side < -0.05] == (255, 0, 0)).all()
    assert (mesh.vertex_colors[side > 0.05] == (0, 0, 255)).all()


def test_colours_are_read_between_voxels() -> None:
    ramp = (cube(48)[:1] + 1).expand(3, -1, -1, -1) / 2  # from black at the left to white at the right
    mesh = surface(painted(ball(), ramp), MANY, 2.0)
    assert mesh.vertex_colors is not None
    expected = (mesh.vertices[:, 0] * 0.6 + 1) / 2 * 255
    assert np.abs(mesh.vertex_colors[:, 1] - expected).max() < 4


@settings(max_examples=10)
@given(st.floats(0.01, 100), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_it_stands_on_the_ground_in_the_middle_as_large_as_asked(size: float, x: float, y: float) -> None:
    vertices = surface(painted(ball(32, 0.5, (x, y, -x))), MANY, size).vertices
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    assert low[1] == 0 and (high - low).max() == pytest.approx(size, rel=1e-5)
    np.testing.assert_allclose((low + high)[[0, 2]], 0, atol=1e-5 * size)


def test_a_shape_beyond_the_grid_is_closed_at_its_sides() -> None:
    mesh = surface(painted(ball(radius=1.2)), MANY, 1.0)
    caps = 6 * np.pi * 0.2**2 * (1.2 - 0.2 / 3)  # of the ball, which the six sides of the cube cut off
    assert is_closed(mesh)
    assert shape_of(mesh).volume == pytest.approx((4 / 3 * np.pi * 1.2**3 - caps) / 2**3, rel=0.05)


def test_distances_of_nothing_leave_no_slivers() -> None:
    """Everything as on a chessboard of whole voxels: many grid points lie exactly on the surface."""
    solid = torch.ones(1, 16, 16, 16)
    solid[:, 4:12, 4:12, 4:12] = -1
    solid[:, 3, 4:12, 4:12] = solid[:, 6:9, 12, 6:9] = 0
    mesh = surface(painted(solid), MANY, 1.0)
    assert is_closed(mesh) and shape_of(mesh).area_faces.min() > 0


# --------------------------------------------------------------------------------------------------- pieces, cavities


def test_what_hangs_in_the_air_is_dropped_and_what_is_large_stays() -> None:
    speck, moon = ball(64, 0.05, (-0.8, 0.8, 0.0)), ball(64, 0.25, (-0.7, 0.0, 0.0))
    planet = ball(64, 0.5, (0.3, 0.0, 0.0))
    alone = surface(painted(torch.minimum(planet, moon)), MANY, 1.0)
    assert shape_of(alone).body_count == 2
    with_speck = surface(painted(torch.stack([planet, moon, speck]).amin(0)), MANY, 1.0)
    np.testing.assert_array_equal(with_speck.vertices, alone.vertices)
    np.testing.assert_array_equal(with_speck.faces, alone.faces)


def test_one_piece_is_what_the_finished_object_is() -> None:
    planet, moon = ball(64, 0.5, (0.3, 0.0, 0.0)), ball(64, 0.25, (-0.7, 0.0, 0.0))
    speck = ball(64, 0.05, (-0.8, 0.8, 0.0))
    assert is_one_piece(painted(torch.minimum(planet, speck)))
    assert is_one_piece(painted(torch.maximum(ball(), -ball(radius=0.4))))
    assert not is_one_piece(painted(torch.minimum(planet, moon)))
    for value in (1.0, -1.0, float("nan")):
        assert not is_one_piece(torch.full((4, 16, 16, 16), value))


def test_a_cavity_is_filled() -> None:
    hollow = torch.maximum(ball(), -ball(radius=0.4))
    mesh = surface(painted(hollow), MANY, 2.0)
    assert shape_of(mesh).body_count == 1 and shape_of(mesh).volume == pytest.approx(4 / 3 * np.pi, rel=0.05)


# ----------------------------------------------------------------------------------------------------------- budgets


def lattice() -> Tensor:
    """Bars in all three directions, thin and close: hard to make of a few faces."""
    x, y, z = cube(64)
    bars = [torch.hypot((u * 9).sin(), (v * 9).sin()) / 9 - 0.045 for u, v in ((x, y), (y, z), (z, x))]
    return torch.maximum(truncated(torch.stack(bars).amin(0)[None]), ball(64, 0.85))


@pytest.mark.parametrize("num_faces", [200, 1000, 5000])
def test_a_budget_is_kept_and_the_shape_with_it(num_faces: int) -> None:
    full, fewer = surface(angle_iron(), MANY, 1.4), surface(angle_iron(), num_faces, 1.4)
    assert len(full.faces) > 5000 and num_faces / 2 < len(fewer.faces) <= num_faces
    assert is_closed(fewer) and shape_of(fewer).volume == pytest.approx(ANGLE_VOLUME, rel=0.05)


def test_a_budget_beyond_the_mesh_changes_nothing() -> None:
    full = surface(painted(ball()), MANY, 1.0)
    np.testing.assert_array_equal(surface(painted(ball()), len(full.faces), 1.0).vertices, full.vertices)


@pytest.mark.parametrize("num_faces", [3000, 6000, 12_000])
def test_sheets_that_simplification_presses_together_come_apart(num_faces: int) -> None:
    mesh = surface(painted(lattice()), num_faces, 1.0)
    assert len(mesh.faces) <= num_faces and is_closed(mesh) and shape_of(mesh).is_winding_consistent


# -------------------------------------------------------------------------------------------------------- no surface


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0, float("nan"), float("inf")])
def test_a_grid_without_a_surface_is_refused(value: float) -> None:
    with pytest.raises(NoSurfaceError):
        surface(torch.full((4, 16, 16, 16), value), 1000, 1.0)


def test_a_colour_that_is_no_number_is_refused() -> None:
    grid = painted(ball())
    grid[2, 5, 5, 5] = torch.nan
    with pytest.raises(NoSurfaceError):
        surface(grid, 1000, 1.0)


def test_the_smallest_shape_is_one() -> None:
    one = torch.ones(1, 16, 16, 16)
    one[0, 3, 5, 7] = -0.5
    mesh = surface(painted(one), 1000, 1.0)
    assert len(mesh.faces) == 8 and is_closed(mesh)


def test_pieces_that_nearly_touch_become_one_and_others_stay_apart() -> None:
    parts = ((-0.5, 0.0, 0.0), (0.3, 0.3, 0.3), RED)
    near, far = (boxes(64, parts, ((-0.2 + gap + 0.3, 0.0, 0.0), (0.3, 0.3, 0.3), RED)) for gap in (0.06, 0.3))
    joined, apart = (surface(grid, 20_000, 1.0) for grid in (near, far))
    counts = [trimesh.Trimesh(one.vertices, one.faces, process=True).body_count for one in (joined, apart)]
    assert counts == [1, 2]
    assert trimesh.Trimesh(joined.vertices, joined.faces).is_watertight
