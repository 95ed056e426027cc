"""The renderer of grids: from where it looks, framing, light and background."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.xbind.views import shaded
from tests.box_shapes import arms, boxes

CUBE = ((0, 0, 0), (0.9, 0.9, 0.9), (0.5, 0.5, 0.5))
RED, GREEN, BLUE = range(3)


def middle_of(picture: Tensor, channel: int) -> tuple[float, float]:
    """Where what is purely of one colour lies on a picture: x to the right and y down, in [-1, 1]."""
    values = picture.float()
    others = values.sum(-1) - values[..., channel]
    rows, columns = ((values[..., channel] > 60) & (others < 30)).nonzero(as_tuple=True)
    half = len(picture) / 2
    return float(columns.float().mean() + 0.5) / half - 1, float(rows.float().mean() + 0.5) / half - 1


@pytest.mark.parametrize(
    ("azimuth", "elevation", "right", "above", "middle"),
    [(0, 0, (RED, 1), (GREEN, 1), BLUE), (90, 0, (BLUE, -1), (GREEN, 1), RED), (0, 90, (RED, 1), (BLUE, -1), GREEN)],
)
def test_the_viewer_stands_where_it_says(
    azimuth: float, elevation: float, right: tuple[int, int], above: tuple[int, int], middle: int
) -> None:
    picture = shaded(arms(32), azimuth, elevation, 64)
    x, y = middle_of(picture, right[0])
    assert x * right[1] > 0.3 and abs(y) < 0.1
    x, y = middle_of(picture, above[0])
    assert -y * above[1] > 0.3 and abs(x) < 0.1
    x, y = middle_of(picture, middle)
    assert abs(x) < 0.1 and abs(y) < 0.1


def test_a_raised_viewer_sees_the_lid_above_the_front() -> None:
    lid, front = ((0, 0.3, 0), (0.5, 0.05, 0.5), (1.0, 0, 0)), ((0, 0, 0), (0.5, 0.25, 0.5), (0, 0, 1.0))
    picture = shaded(boxes(32, lid, front), 0, 40, 64)
    assert middle_of(picture, RED)[1] < -0.2 < 0.2 < middle_of(picture, BLUE)[1]


@settings(max_examples=15)
@given(st.floats(-360, 360), st.floats(-90, 90), st.sampled_from([9, 32]))
def test_a_shape_fills_the_picture_and_is_never_cut_off(azimuth: float, elevation: float, side: int) -> None:
    picture = shaded(boxes(24, CUBE), azimuth, elevation, side)
    assert picture.shape == (side, side, 3) and picture.dtype == torch.uint8
    shown = picture.float().mean(-1) < 250
    corners = torch.stack([shown[0, 0], shown[0, -1], shown[-1, 0], shown[-1, -1]])
    assert shown.float().mean() > 0.35 and not corners.any()


def test_a_small_shape_is_shown_large_and_equally_large_all_around() -> None:
    small = boxes(48, ((0, 0, 0), (0.1, 0.2, 0.1), (0.5, 0.5, 0.5)))
    heights = []
    for azimuth in range(0, 360, 45):
        rows = (shaded(small, azimuth, 0, 96).float().mean(-1) < 250).any(1).nonzero()
        heights.append(int(rows.max() - rows.min()) + 1)
    assert min(heights) > 70 and max(heights) - min(heights) <= 2


def test_light_comes_from_above_on_the_left() -> None:
    picture = shaded(arms(32), 0, 0, 64).float().mean(-1)
    ball = grey_ball(32)
    picture = shaded(ball, 40, 10, 64).float().mean(-1)
    upper_left, lower_right = picture[16:28, 16:28].mean(), picture[36:48, 36:48].mean()
    assert lower_right + 25 < upper_left < 130


def grey_ball(size: int) -> Tensor:
    ticks = (2 * torch.arange(size) + 1) / size - 1
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"))
    distances = ((points.norm(dim=0) - 0.8) * 8).clamp(-1, 1)
    return torch.cat([distances[None], torch.full((3, size, size, size), 0.5)])


def test_a_ball_is_as_large_as_it_is() -> None:
    shown = 255 - shaded(grey_ball(64), 20, 0, 96).float().mean(-1)
    columns = (shown > 128 / 2).any(0).sum()  # the picture's side is the ball's diameter and a voxel on either side
    assert abs(int(columns) - 96 * 0.8 / (0.8 + 1 / 32)) <= 2


def test_what_reaches_the_edge_of_the_grid_ends_there() -> None:
    picture = shaded(boxes(32, ((0, 0, 0.9), (0.3, 0.3, 0.4), (0.5, 0.5, 0.5))), 90, 0, 64)
    shown = (picture.float().mean(-1) < 250).any(0).nonzero()[:, 0]
    assert shown.max() < 26  # from the right, the front is on the left


def test_nothing_is_white() -> None:
    assert (shaded(torch.ones(4, 16, 16, 16), 30, 20, 24) == 255).all()
