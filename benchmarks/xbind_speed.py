"""The step time of XBind's renderer and guidance against a straightforward loop that computes the same.

The loop does what one writes first: camera by camera, place by place along the rays from front to back, every place
read; then the prior is asked once for each camera and each thing that is given. Resolution, places, cameras and
gradients are those of the real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.nets.view_diffusion import Given, ViewDiffusion, clean_of, mixed
from pipelines.xbind.rendering import (
    PLACES,
    SHARPEST,
    UNIT,
    Cameras,
    Framing,
    density,
    normals,
    rays,
    read,
    render,
    slopes,
)

RUNS, TIME = 3, 0.5
CAMERAS = Cameras.of((30.0, 15.0), (100.0, 0.0), (200.0, 30.0), (300.0, -5.0))
GUIDANCE = 3.0


def render_by_loop(grid: Tensor, cameras: Cameras, framing: Framing, side: int) -> Tensor:
    """What :func:`pipelines.xbind.rendering.render` gives, but for what that leaves out: (B, 7, S, S)."""
    volume = torch.cat([grid, slopes(grid[0])])
    views = []
    for index in range(len(cameras)):
        camera = cameras[[index]]
        origins, ways = (values[0] for values in rays(camera, framing, side))
        length = (ways[0] - ways[1]).norm() / UNIT
        light, seen, covered = torch.ones(side**2), torch.zeros(6, side**2), torch.zeros(side**2)
        for way in ways:
            points = origins + way
            values = read(volume, points)
            inside_grid = points.abs().amax(1) < 1
            taken = 1 - (-density(values[0], SHARPEST) * length * inside_grid).exp()
            weight = light * taken
            seen = seen + weight * torch.cat([values[1:4], normals(values[4:7])])
            covered, light = covered + weight, light * (1 - taken)
        colors, turned = seen[:3] + 1 - covered, camera.axes()[0] @ seen[3:]
        views.append(torch.cat([2 * colors - 1, turned, 2 * covered[None] - 1]).view(-1, side, side))
    return torch.stack(views)


def step(prior: ViewDiffusion, grid: Tensor, framing: Framing, condition: Tensor) -> Tensor:
    """The gradient (4, R, R, R) of one step as the optimisation takes it: all cameras at once, all asked at once."""
    grid = grid.detach().requires_grad_()
    views = render(grid, CAMERAS, framing, prior.config.side)
    parts = _asked(prior, views.detach(), condition, CAMERAS)
    free, *answers = _answers(prior, views.detach().repeat(len(parts), 1, 1, 1), Given.joined(parts)).chunk(len(parts))
    [slope] = torch.autograd.grad(views, grid, _away(views.detach(), free, answers))
    return slope


def step_by_loop(prior: ViewDiffusion, grid: Tensor, framing: Framing, condition: Tensor) -> Tensor:
    """The same, one after the other."""
    grid = grid.detach().requires_grad_()
    views = render_by_loop(grid, CAMERAS, framing, prior.config.side)
    ways = []
    for index in range(len(CAMERAS)):
        [view], first = views.detach()[[index]], views.detach()[:1]
        free, *answers = (
            _answers(prior, view[None], given) for given in _asked(prior, first, condition, CAMERAS[[index]])
        )
        ways.append(_away(view[None], free, answers))
    [slope] = torch.autograd.grad(views, grid, torch.cat(ways))
    return slope


def _asked(prior: ViewDiffusion, views: Tensor, condition: Tensor, cameras: Cameras) -> list[Given]:
    """Nothing, a condition, the first of the views as seen from the first camera."""
    angles, count = (cameras.azimuths, cameras.elevations), len(cameras)
    first = CAMERAS.azimuths[:1], CAMERAS.elevations[:1]
    return [
        prior.free(*angles),
        prior.planar(condition.expand(count, -1), *angles),
        prior.stereoscopic(views[:1].expand(count, -1, -1, -1), first, *angles),
    ]


@torch.no_grad()
def _answers(prior: ViewDiffusion, views: Tensor, given: Given) -> Tensor:
    """What the views should have looked like; without noise, so that both ways can be compared."""
    times = torch.full((len(views),), TIME)
    noisy = mixed(views, torch.zeros_like(views), times)
    return clean_of(noisy, prior(noisy, times, given), times)


def _away(views: Tensor, free: Tensor, answers: Sequence[Tensor]) -> Tensor:
    return sum(((views - (free + GUIDANCE * (answer - free))) for answer in answers), torch.zeros_like(views))


def speed(prior: ViewDiffusion, grid: Tensor, condition: Tensor) -> list[dict[str, Any]]:
    """Seconds of a step of either, and how far their gradients agree: the cosine between them."""
    framing = Framing.of(grid[0])
    ways = [partial(way, prior, grid, framing, condition) for way in (step, step_by_loop)]
    real, plain = (way().flatten() for way in ways)  # and warms up
    seconds = [median_seconds(way) for way in ways]
    return [
        {
            "side": prior.config.side,
            "cameras": len(CAMERAS),
            "places": PLACES,
            "seconds": seconds[0],
            "seconds_by_loop": seconds[1],
            "ratio": seconds[1] / seconds[0],
            "gradients_cosine": float(torch.cosine_similarity(real, plain, dim=0)),
        }
    ]


def median_seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))
