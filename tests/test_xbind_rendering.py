"""Views of a grid: where things are in them, and that what the renderer leaves out changes nothing that matters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.xbind_speed import render_by_loop
from models.nets.view_diffusion import COLORS, MASK, NORMALS
from pipelines.xbind import rendering
from pipelines.xbind.rendering import PLACES, UNIT, Cameras, Framing, Frozen, find, lit, render
from pipelines.xbind.views import AMBIENT, shaded
from tests.box_shapes import arms, boxes
from tests.tiny_shapes import ball

AROUND = Cameras.of((0.0, 0.0), (75.0, 30.0), (190.0, -10.0), (310.0, 40.0))
SIDE = 24


def grey(distances: Tensor) -> Tensor:
    return torch.cat([distances, torch.full((3, *distances.shape[1:]), 0.5)])


def views(grid: Tensor, *degrees: tuple[float, float], side: int = SIDE) -> Tensor:
    return render(grid, Cameras.of(*degrees), Framing.of(grid[0]), side)


def middle_of(colored: Tensor, channel: int) -> tuple[float, float]:
    """Where in (3, S, S) one colour is more than the others: to the right and to the top, from -1 to 1."""
    others = [other for other in range(3) if other != channel]
    there = (colored[channel] > colored[others].amax(0) + 0.5).nonzero().float().mean(0)
    return float(2 * there[1] / colored.shape[2] - 1), float(1 - 2 * there[0] / colored.shape[1])


def test_right_is_right_and_up_is_up_from_every_side() -> None:
    front, right, back, above = views(arms(48), (0, 0), (90, 0), (180, 0), (0, 89.9))[:, COLORS]
    assert middle_of(front, 0)[0] > 0.3 and middle_of(front, 1)[1] > 0.3
    assert middle_of(right, 2)[0] < -0.3 and middle_of(right, 1)[1] > 0.3
    assert middle_of(back, 0)[0] < -0.3
    assert middle_of(above, 0)[0] > 0.3 and middle_of(above, 2)[1] < -0.3


def test_normals_are_those_of_the_viewer() -> None:
    [turned] = views(grey(ball(48)), (130, 25), side=31)
    normals = turned[NORMALS]
    assert normals[:, 15, 15].tolist() == pytest.approx([0, 0, 1], abs=0.05)
    assert normals[0, 15, 24] > 0.5 and normals[0, 15, 6] < -0.5 and normals[1, 6, 15] > 0.5
    assert turned[MASK][0, 15, 15] == pytest.approx(1, abs=0.03) and not normals[:, 0, 0].any()


def test_nothing_is_white_and_has_no_slope() -> None:
    grid = grey(ball(24, 0.3))
    framing = Framing.of(grid[0])
    empty = grid.clone()
    empty[0] = 1
    empty.requires_grad_()
    seen = render(empty, AROUND, framing, SIDE)
    assert (seen[:, COLORS] == 1).all() and (seen[:, MASK] == -1).all() and not seen[:, NORMALS].any()
    [slope] = torch.autograd.grad(seen.sum(), empty)
    assert not slope.any()
    with pytest.raises(ValueError, match="nothing inside"):
        Framing.of(empty[0])


@pytest.mark.parametrize("size", [16, 40])
def test_what_is_left_out_changes_neither_views_nor_gradients(size: int) -> None:
    grid = arms(size).requires_grad_()
    framing = Framing.of(grid[0].detach())
    weights = torch.randn(4, 7, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    real, plain = render(grid, AROUND, framing, SIDE), render_by_loop(grid, AROUND, framing, SIDE)
    assert (real - plain).abs().max() < 0.15 and (real - plain).abs().mean() < 3e-3
    slope, expected = (torch.autograd.grad((seen * weights).sum(), grid)[0] for seen in (real, plain))
    assert torch.cosine_similarity(slope.flatten(), expected.flatten(), dim=0) > 0.97


def test_little_is_left_of_what_the_loop_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = arms(48)
    places = find(grid[0], AROUND, Framing.of(grid[0]), SIDE, rendering.SHARPEST)
    assert 0 < len(places.rays) < len(AROUND) * SIDE**2 * PLACES / 8
    # No place is lost to the blocks: with every block looked into, the same are found.
    monkeypatch.setattr(rendering, "BLOCKS", 1)
    again = find(grid[0], AROUND, Framing.of(grid[0]), SIDE, rendering.SHARPEST)
    torch.testing.assert_close(again.points, places.points)


def test_an_outline_may_grow() -> None:
    """Where a ray only just misses the object it must feel it, or nothing would ever get larger."""
    grid = grey(ball(32, 0.5)).requires_grad_()
    seen = render(grid, AROUND, Framing(0.9, 0.9), SIDE, rendering.SOFTEST)
    [slope] = torch.autograd.grad(seen[:, MASK].sum(), grid)
    outside = grid.detach()[0] > 0.1
    assert (slope[0][outside] < 0).sum() > 100 and (slope[0] <= 1e-4).all()


def test_an_outline_is_as_large_as_the_object() -> None:
    radius, half = 0.6, 0.9
    seen = render(grey(ball(64, radius)), AROUND, Framing(half, half), 64)
    covered = seen[:, MASK].add(1).div(2).mean((1, 2, 3))
    for share, elevation in zip(covered.tolist(), AROUND.elevations.tolist(), strict=True):
        extent = max(half, half * math.cos(elevation) + half * abs(math.sin(elevation)))
        assert math.sqrt(share * 4 / math.pi) * extent == pytest.approx(radius, abs=0.4 * UNIT)


def test_painting_what_is_frozen_is_rendering() -> None:
    grid = arms(32)
    framing = Framing.of(grid[0])
    colors = torch.rand(3, 32, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    painted = Frozen.of(grid[0], AROUND, framing, SIDE).paint(colors)
    seen = render(torch.cat([grid[:1], colors]), AROUND, framing, SIDE)
    torch.testing.assert_close(painted, seen)
    slopes = [torch.autograd.grad(views[:, COLORS].square().sum(), colors)[0] for views in (painted, seen)]
    torch.testing.assert_close(*slopes)


def test_the_light_is_that_of_the_previews() -> None:
    grid = boxes(64, ((0, 0, 0), (0.5, 0.5, 0.5), (1.0, 0.5, 0.0)))
    picture = lit(views(grid, (0, 0), side=33))[0].add(1).div(2)
    expected = shaded(grid, 0, 0, 33).permute(2, 0, 1) / 255
    assert (picture[:, 16, 16] - expected[:, 16, 16]).abs().max() < 0.02
    assert AMBIENT < picture[0, 16, 16] < 1 and (picture[:, 0, 0] == 1).all()
