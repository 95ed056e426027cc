"""XBind's optimisation (arXiv 2411.14715) of an object, from its preview or a ball, in three phases.

What is optimised is an addition to the preview's grid, not its latents. A place in a grid is read by one look-up, where
latents would need the decoder at every place and a way back through it; a grid's gradients are local, so that geometry
and texture can be phases of their own; the fact sheet's recipe and measurements are for dense grids; and the preview
loses nothing of its finer detail, because the addition can be read at any resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.base import Progress
from pipelines.media import Image
from pipelines.xbind.phases import COLORS, DISTANCES, PHASES, Phase
from pipelines.xbind.rendering import UNIT, Cameras, Framing, Frozen, render
from pipelines.xbind.supervision import Supervises
from pipelines.xbind.surface import is_one_piece
from pipelines.xbind.views import shaded

CAMERAS = 4  # of a step; the first of them is the reference's
LOWEST, HIGHEST = -10.0, 40.0  # degrees of elevation, as of the views that the network has learned from
FROZEN = 24  # cameras of the phase that changes colours alone
JUDGED = Cameras.of((-30.0, 20.0), (60.0, 20.0), (150.0, 20.0), (240.0, 20.0))
JUDGED_SIDE, SHOWN_SIDE = 96, 96
SHOWN_AZIMUTHS = (30.0, 120.0, 210.0, 300.0)
PREVIEWS = 4  # of a phase
# Of the gradient's norm at weight 1 (fact sheet: 5 to 20 %). An image encoder takes as long as all else in a step, so
# it is asked now and then, and weighs the more there.
SIMILARITY_SHARE, SIMILARITY_EVERY, SIMILARITY_VIEWS = 0.1, 4, 2
BALL = 0.6  # radius
SMOOTHNESS = 5e-4  # of the addition, beside the mean squared error of views
RATE, MOMENTA = 0.02, (0.9, 0.99)  # of Adam, in distances and in colours
Draw = Callable[[Tensor, float], tuple[Tensor, Cameras]]  # a grid and its softness -> views of it and their cameras


class NoNumberError(ArithmeticError):
    """A gradient is infinite or not a number."""


class Refinement:
    """One object. ``start``: the grid (4, R, R, R) of its preview, or of anything else to begin with, which has a
    surface; ``steps`` of each of the ``phases``; ``most``: steps after which it ends, whatever is left; ``may_stay``:
    whether the start may be the best that there is, which a mere ball may not; then, if it is one piece, so is all that
    comes of it, since of several only the largest would be kept.

    :meth:`run` does the work. At any time :attr:`addition` (4, R, R, R) is the best that came of it so far, which is
    zero if that is the start, and :attr:`notes` say what went wrong. Same seed, same steps: same result.
    """

    def __init__(
        self,
        start: Tensor,
        supervision: Supervises,
        seed: int,
        steps: tuple[int, int, int],
        most: int = 10**9,
        phases: tuple[Phase, Phase, Phase] = PHASES,
        *,
        may_stay: bool = True,
    ) -> None:
        self.start, self.supervision, self.steps, self.phases = start, supervision, steps, phases
        self.total, self.done = min(sum(steps), most), 0
        self.framing = Framing.of(start[0])
        self.chance = torch.Generator().manual_seed(seed)  # of cameras alone
        self.current = torch.zeros_like(start)
        self.addition, self.score = self.current, self._score(self.current) if may_stay else -math.inf
        self.start_score = self.score
        self.whole = may_stay and is_one_piece(start)
        self.notes: list[str] = []

    def run(self) -> Iterator[Progress]:
        """Yields after every step, now and then with a turntable; first with the reference view."""
        if self.supervision.weights.stereoscopic:
            with torch.no_grad():
                [seen] = render(self.start, self._on_device(self.supervision.camera), self.framing, self._side)
            yield Progress(0, self.total, "Drew the view to go by", self.supervision.draw_reference(seen))
        for phase, steps in zip(self.phases, self.steps, strict=True):
            count = min(steps, self.total - self.done)
            if count:
                yield from self._phase(phase, steps, count)
        better = self.score > self.start_score
        verdict = "Refined." if better else "What it began with is nearer to what is asked for, so it stays."
        yield Progress(self.total, self.total, " ".join([verdict, *self.notes]))

    def settle(self) -> None:
        """Judge what there is now, and keep it if it is the best so far."""
        score = self._score(self.current) if self._holds() else -math.inf
        if score > self.score:
            self.addition, self.score = self.current, score

    # ---------------------------------------------------------------------------------------------------------- phases

    def _phase(self, phase: Phase, steps: int, count: int) -> Iterator[Progress]:
        """The first ``count`` of ``steps``."""
        before, first = self.current, self.done
        sound = before  # the last that was shown and held together
        size = len(before[0]) // 2 if phase.coarse else len(before[0])
        parameter = before.new_zeros(len(before[phase.changed]), size, size, size, requires_grad=True)
        good = parameter.detach().clone()
        optimizer = torch.optim.Adam([parameter], RATE, MOMENTA)
        draw = self._draw_frozen() if phase.changed == COLORS else self._draw_anew
        for step in range(count):
            try:
                self._step(phase, step / steps, before, parameter, draw, step % SIMILARITY_EVERY == 0)
            except NoNumberError:
                self.notes.append(f"The {phase.name} met what is no number and was stopped; the last good state stays.")
                self.current = self._added(before, good, phase)
                break
            good.copy_(parameter.detach())
            optimizer.step()
            optimizer.zero_grad()
            self.current, self.done = self._added(before, parameter.detach(), phase), first + step + 1
            shown = (step + 1) % max(1, steps // PREVIEWS) == 0
            if shown and not has_surface(refined(self.start, self.current)):
                break
            if step + 1 < count:
                if shown:
                    self.settle()
                    sound = self.current if self._holds() else sound
                yield Progress(self.done, self.total, self._said(phase), self._turntable() if shown else None)
        if not has_surface(refined(self.start, self.current)):
            self.notes.append(f"The {phase.name} left nothing of the object and was undone.")
            self.current = before
        elif not self._holds():
            self.notes.append(f"The {phase.name} broke the object apart and went back to where it was whole.")
            self.current = sound
        self.done = first + count
        self.settle()
        yield Progress(self.done, self.total, self._said(phase), self._turntable())

    def _step(self, phase: Phase, share: float, before: Tensor, parameter: Tensor, draw: Draw, asks: bool) -> None:
        """Give ``parameter`` its gradient. Raises :class:`NoNumberError`."""
        placed = _at_size(parameter, len(before[0]))
        addition = before.clone()
        addition[phase.changed] += placed.detach()
        grid = refined(self.start, addition).requires_grad_()
        views, cameras = draw(grid, _between(phase.softness, share))
        wanted = self.supervision.slope(views.detach(), cameras, _between(phase.times, share), phase)
        [slope] = torch.autograd.grad(views, grid, wanted)
        if phase.similarity and asks and self.supervision.weights.similarity:
            slope = _joined(slope, self._similarity(grid), phase, self.supervision.weights.similarity)
        torch.autograd.backward([placed, _roughness(placed)], [slope[phase.changed], None])
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise NoNumberError(phase.name)

    def _similarity(self, grid: Tensor) -> Tensor:
        """The gradient of the Modality Similarity loss of a few views, (4, R, R, R)."""
        views = render(grid, self._cameras(SIMILARITY_VIEWS), self.framing, JUDGED_SIDE)
        [slope] = torch.autograd.grad((1 - self.supervision.likeness(views)).mean(), grid)
        return slope

    def _draw_anew(self, grid: Tensor, softness: float) -> tuple[Tensor, Cameras]:
        """From the reference's camera and others all around."""
        others = self._cameras(CAMERAS - 1)
        first = self._on_device(self.supervision.camera)
        cameras = Cameras(
            torch.cat([first.azimuths, others.azimuths]), torch.cat([first.elevations, others.elevations])
        )
        return render(grid, cameras, self.framing, self._side, softness), cameras

    def _draw_frozen(self) -> Draw:
        """As long as the geometry stays, what the cameras see of it is found once."""
        distances = refined(self.start, self.current)[0]
        others = self._cameras(FROZEN - 1)
        known = [self._on_device(self.supervision.camera), *(others[[index]] for index in range(len(others)))]
        frozen = [Frozen.of(distances, one, self.framing, self._side) for one in known]

        def draw(grid: Tensor, _: float) -> tuple[Tensor, Cameras]:
            order = torch.randperm(FROZEN - 1, generator=self.chance)[: CAMERAS - 1] + 1
            chosen = [frozen[index] for index in (0, *order.tolist())]
            azimuths = torch.cat([one.cameras.azimuths for one in chosen])
            elevations = torch.cat([one.cameras.elevations for one in chosen])
            return torch.cat([one.paint(grid[COLORS]) for one in chosen]), Cameras(azimuths, elevations)

        return draw

    # --------------------------------------------------------------------------------------------------------- helpers

    def _holds(self) -> bool:
        """Whether there is a surface now, in one piece if that is asked."""
        grid = refined(self.start, self.current)
        return is_one_piece(grid) if self.whole else has_surface(grid)

    @property
    def _side(self) -> int:
        return self.supervision.side

    def _cameras(self, count: int) -> Cameras:
        """Evenly around from a random beginning, at random heights."""
        azimuths = (torch.rand((), generator=self.chance) + torch.arange(count) / count) * 2 * math.pi
        share = torch.rand(count, generator=self.chance)
        elevations = torch.deg2rad(LOWEST + (HIGHEST - LOWEST) * share)
        return self._on_device(Cameras(azimuths, elevations))

    def _on_device(self, cameras: Cameras) -> Cameras:
        return Cameras(cameras.azimuths.to(self.start.device), cameras.elevations.to(self.start.device))

    def _added(self, before: Tensor, parameter: Tensor, phase: Phase) -> Tensor:
        addition = before.clone()
        addition[phase.changed] += _at_size(parameter, len(before[0]))
        return addition

    @torch.no_grad()
    def _score(self, addition: Tensor) -> float:
        """How near lit views of it are to what is asked for."""
        views = render(refined(self.start, addition), self._on_device(JUDGED), self.framing, JUDGED_SIDE)
        return float(self.supervision.likeness(views).mean())

    def _said(self, phase: Phase) -> str:
        return " ".join([f"Refining: {phase.name}.", *self.notes])

    def _turntable(self) -> Image:
        grid = refined(self.start, self.current).cpu()
        views = [shaded(grid, azimuth, 20.0, SHOWN_SIDE) for azimuth in SHOWN_AZIMUTHS]
        return Image(torch.cat(views, 1).numpy())


def refined(grid: Tensor, addition: Tensor) -> Tensor:
    """A grid (4, R, R, R) and what is added to it, at any resolution, (4, r, r, r)."""
    total = grid + _at_size(addition, len(grid[0]))
    return torch.cat([total[DISTANCES].clamp(-1, 1), total[COLORS].clamp(0, 1)])


def grey_ball(size: int) -> Tensor:
    """The grid (4, R, R, R) of what an optimisation from scratch begins with."""
    along = (torch.arange(size) + 0.5) / size * 2 - 1
    away = torch.stack(torch.meshgrid(along, along, along, indexing="ij")).norm(dim=0, keepdim=True)
    return torch.cat([((away - BALL) / UNIT).clamp(-1, 1), torch.full((3, size, size, size), 0.5)])


def has_surface(grid: Tensor) -> bool:
    """Whether some of (4, R, R, R) is inside and some outside."""
    return bool(grid[0].amin() < 0 < grid[0].amax())


def _at_size(values: Tensor, size: int) -> Tensor:
    """(C, r, r, r) -> (C, size, size, size), trilinearly."""
    if values.shape[1] == size:
        return values
    return F.interpolate(values[None], (size, size, size), mode="trilinear", align_corners=False)[0]


def _joined(slope: Tensor, similarity: Tensor, phase: Phase, weight: float) -> Tensor:
    """The Modality Similarity loss gets a share of the gradient by its norm, whatever the scale of either."""
    norm, other = slope[phase.changed].norm(), similarity[phase.changed].norm()
    share = weight * SIMILARITY_SHARE * SIMILARITY_EVERY
    return slope + similarity * (share * norm / other.clamp(min=1e-12) if norm > 0 else weight)


def _roughness(placed: Tensor) -> Tensor:
    """Of what is added: without it, single voxels would follow the noise of a step."""
    differences = [placed.diff(dim=axis).square().sum() for axis in (1, 2, 3)]
    return SMOOTHNESS * torch.stack(differences).sum()


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share
