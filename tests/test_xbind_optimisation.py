"""XBind's optimisation: that it goes where its supervisions say, keeps the best, and says what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets.view_diffusion import CHANNELS, COLORS, MASK, Given, ViewDiffusion, ViewDiffusionConfig
from pipelines.base import Progress, Runtime
from pipelines.crossflow.sampling import to_pixels
from pipelines.xbind import optimisation
from pipelines.xbind.optimisation import JUDGED, Refinement, has_surface, refined
from pipelines.xbind.phases import PHASES
from pipelines.xbind.rendering import Cameras, Framing, lit, render
from pipelines.xbind.supervision import REFERENCE, Chance, Supervision, Weights
from pipelines.xbind.surface import is_one_piece
from tests.box_shapes import boxes
from tests.tiny_models import manager_of
from tests.tiny_shapes import ball

SIZE, WIDTH = 24, 192
CONFIG = ViewDiffusionConfig(side=24, condition_width=WIDTH, widths=(8,), heads=2)
STEPS = (40, 20, 20)

SMALL = 24  # pixels of a side
EVERYTHING = replace(PHASES[0], planar=1.0)


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """What is judged and shown costs more than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUDGED_SIDE", "SHOWN_SIDE"):
            patch.setattr(optimisation, name, SMALL)
        yield


# ------------------------------------------------------------------------------------------- what knows the truth


class Knowing(ViewDiffusion):
    """Knows what the truth looks like from every camera, given a condition or a reference; given nothing it is sure
    of it too. After ``spoiled_from`` calls its answers are no numbers."""

    def __init__(self, truth: Tensor, framing: Framing, spoiled_from: int = 10**9) -> None:
        super().__init__(CONFIG)
        self.truth, self.framing, self.spoiled_from, self.calls = truth, framing, spoiled_from, 0

    def forward(self, noisy: Tensor, times: Tensor, given: Given) -> Tensor:
        self.calls += 1
        azimuths = torch.atan2(given.cameras[:, 0], given.cameras[:, 1]) + given.cameras[:, 4] * REFERENCE.azimuths
        clean = render(self.truth, Cameras(azimuths, given.cameras[:, 2].asin()), self.framing, self.config.side)
        if self.calls > self.spoiled_from:
            clean = clean * float("nan")
        angle = times[:, None, None, None] * torch.pi / 2
        return (angle.cos() * noisy - clean) / angle.sin()


class Patches:
    """A picture as the colours of its 64 patches."""

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        return F.normalize((1 - F.adaptive_avg_pool2d(pixels, 8)).flatten(1), dim=1)


def a_start() -> Tensor:
    return torch.cat([ball(SIZE, 0.6), torch.full((3, SIZE, SIZE, SIZE), 0.5)])


def a_truth() -> Tensor:
    """As wide as the start and lower, with a red and a blue end."""
    return boxes(
        SIZE,
        ((-0.275, 0, 0), (0.275, 0.35, 0.35), (0.9, 0.1, 0.1)),
        ((0.275, 0, 0), (0.275, 0.35, 0.35), (0.1, 0.1, 0.9)),
    )


def refinement(
    weights: Weights | None = None,
    truth: Tensor | None = None,
    steps: tuple[int, int, int] = STEPS,
    start: Tensor | None = None,
    spoiled_from: int = 10**9,
    seed: int = 0,
    most: int = 10**9,
    may_stay: bool = True,
) -> Refinement:
    start = a_start() if start is None else start
    truth = a_truth() if truth is None else truth
    framing = Framing.of(start[0])
    with torch.no_grad():
        condition = Patches().embed_pictures(lit(render(a_truth(), JUDGED, framing, SMALL))).mean(0)
    runtime = Runtime(manager_of(10))
    prior = Knowing(truth, framing, spoiled_from)
    supervision = Supervision(prior, Patches(), F.normalize(condition, dim=0), weights or Weights(), seed, runtime)
    return Refinement(start, supervision, seed, steps, most, may_stay=may_stay)


def supervision_of(made: Refinement) -> Supervision:
    assert isinstance(made.supervision, Supervision)
    return made.supervision


def overlap(grid: Tensor, truth: Tensor) -> float:
    one, other = grid[0] < 0, truth[0] < 0
    return float((one & other).sum() / (one | other).sum())


def colour_error(grid: Tensor, truth: Tensor) -> float:
    """Where the truth's surface is."""
    return float((grid[1:] - truth[1:])[:, truth[0].abs() < 0.3].abs().mean())


@pytest.fixture(scope="module")
def usual() -> tuple[Refinement, list[Progress]]:
    made = refinement()
    return made, list(made.run())


# -------------------------------------------------------------------------------------------------------- optimisation


def test_it_goes_where_the_priors_say(usual: tuple[Refinement, list[Progress]]) -> None:
    made, _ = usual
    before, after, truth = a_start(), refined(a_start(), made.addition), a_truth()
    assert overlap(after, truth) > overlap(before, truth) + 0.03
    assert colour_error(after, truth) < 0.75 * colour_error(before, truth)
    assert made.score > made.start_score and not made.notes
    assert after[0].abs().max() <= 1 and after[1:].min() >= 0 and after[1:].max() <= 1


@pytest.mark.parametrize("weights", [Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1)])
def test_every_supervision_alone_says_something(weights: Weights) -> None:
    made = refinement(weights, steps=(10, 6, 6))
    list(made.run())
    assert made.score > made.start_score


def test_nothing_is_changed_if_nothing_supervises() -> None:
    made = refinement(Weights(0, 0, 0), steps=(2, 2, 2))
    events = list(made.run())
    prior = supervision_of(made).prior
    assert not made.addition.any() and isinstance(prior, Knowing) and not prior.calls
    assert "it stays" in events[-1].message


def test_every_step_is_told_and_every_phase_shown(usual: tuple[Refinement, list[Progress]]) -> None:
    _, events = usual
    assert [event.step for event in events] == [*range(sum(STEPS) + 1), sum(STEPS)]
    assert {event.total for event in events} == {sum(STEPS)}
    assert events[0].preview is not None and events[0].preview.pixels.shape == (24, 24, 3)
    ends = np.cumsum(STEPS)
    for phase, end in zip(PHASES, ends, strict=True):
        last = events[end]
        assert (
            phase.name in last.message
            and last.preview is not None
            and last.preview.pixels.shape == (SMALL, 4 * SMALL, 3)
        )
    assert 9 <= sum(event.preview is not None for event in events) <= 20
    assert events[-1].message == "Refined."


def test_each_phase_changes_what_it_is_named_after() -> None:
    made = refinement(Weights(1, 1, 0), steps=(4, 3, 3))
    states = [made.current]
    for event in made.run():
        if event.step in (4, 7, 10) and len(states) < 1 + (4, 7, 10).index(event.step) + 1:
            states.append(made.current)
    coarse, geometry, texture = (after - before for before, after in pairwise(states))
    assert coarse[0].any() and coarse[1:].any()
    assert geometry[0].any() and not geometry[1:].any()
    assert texture[1:].any() and not texture[0].any()


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    one, again, other = (refinement(steps=(3, 2, 2), seed=seed) for seed in (0, 0, 1))
    for made in (one, again, other):
        list(made.run())
    assert torch.equal(one.current, again.current) and not torch.equal(one.current, other.current)


def test_stopping_is_ending_earlier() -> None:
    """What was told to stop after some steps is what was asked for so many, at any point of any phase."""
    for count in (1, 5, 6, 8):
        stopped, shorter = refinement(steps=(5, 3, 3)), refinement(steps=(5, 3, 3), most=count)
        for event in stopped.run():
            if event.step == count:
                break
        stopped.settle()
        assert [event.step for event in shorter.run()][-1] == count
        assert stopped.done == shorter.done == count
        assert torch.equal(stopped.addition, shorter.addition)


def test_what_got_worse_is_not_kept() -> None:
    """A prior of another object leads away from what is asked for."""
    wrong = torch.cat([ball(SIZE, 0.25), torch.ones(3, SIZE, SIZE, SIZE)])
    made = refinement(Weights(1, 1, 0), truth=wrong, start=a_truth(), steps=(6, 3, 3))
    events = list(made.run())
    assert not made.addition.any() and made.current.any()
    assert events[-1].message.startswith("What it began with is nearer to what is asked for")


@pytest.mark.parametrize(("calls", "phase"), [(1, "coarse field"), (5, "geometry"), (8, "texture")])
def test_what_is_no_number_stops_its_phase_and_the_last_good_state_stays(calls: int, phase: str) -> None:
    made = refinement(Weights(1, 0, 0), steps=(4, 3, 3), spoiled_from=calls)
    events = list(made.run())
    assert any(f"The {phase} met what is no number" in note for note in made.notes)
    assert made.addition.isfinite().all() and made.current.isfinite().all()
    assert made.notes[0] in events[-1].message and events[-1].step == 10
    first = [one.name for one in PHASES].index(phase)
    assert len(made.notes) == 3 - first  # phases before it are not blamed


def test_after_a_number_that_is_none_the_state_is_that_of_good_steps() -> None:
    spoiled, good = (
        refinement(Weights(1, 0, 0), steps=(20, 0, 0), spoiled_from=spoiled_from, most=most)
        for spoiled_from, most in ((3, 20), (99, 2))
    )
    for made in (spoiled, good):
        list(made.run())
    assert good.current.any() and torch.equal(spoiled.current, good.current)


def test_a_phase_that_leaves_nothing_is_undone() -> None:
    start = a_start()
    start[0].clamp_(min=-0.1)
    nothing = start.clone()
    nothing[0] = 1
    made = refinement(Weights(1, 0, 0), truth=nothing, start=start, steps=(60, 0, 0))
    events = list(made.run())
    assert made.notes == ["The coarse field left nothing of the object and was undone."]
    assert has_surface(refined(start, made.addition)) and not made.current.any()
    assert made.notes[0] in events[-1].message


@pytest.mark.parametrize("may_stay", [True, False])
def test_a_preview_in_one_piece_stays_in_one(may_stay: bool) -> None:
    ends = [((x, 0, 0), (0.25, 0.4, 0.4), (1, 0, 0)) for x in (-0.5, 0.5)]
    start, truth = boxes(SIZE, *ends, ((0, 0, 0), (0.5, 0.09, 0.09), (1, 0, 0))), boxes(SIZE, *ends)
    assert is_one_piece(start) and not is_one_piece(truth)
    made = refinement(Weights(1, 0, 0), truth=truth, start=start, steps=(80, 0, 0), may_stay=may_stay)
    *_, last = made.run()
    assert is_one_piece(refined(start, made.current)) == may_stay
    assert is_one_piece(refined(start, made.addition)) or not may_stay
    assert ("The coarse field broke the object apart" in last.message) == may_stay


def test_the_reference_is_the_nearest_of_those_drawn() -> None:
    made = refinement()
    [seen] = render(made.start, REFERENCE, made.framing, 24)
    [true] = render(a_truth(), REFERENCE, made.framing, 24)
    supervision = supervision_of(made)
    for beginning in (seen, true):
        shown = supervision.draw_reference(beginning)
        torch.testing.assert_close(supervision.reference, true.clamp(-1, 1), atol=0.02, rtol=0)
        assert np.array_equal(shown.pixels, to_pixels(lit(supervision.reference[None]))[0])


def test_views_as_they_should_be_are_left_alone() -> None:
    made = refinement()
    cameras = Cameras(
        torch.cat([REFERENCE.azimuths, torch.tensor([2.0])]), torch.cat([REFERENCE.elevations, torch.tensor([0.3])])
    )
    true = render(a_truth(), cameras, made.framing, 24)
    supervision_of(made).reference = true[0]
    assert made.supervision.slope(true, cameras, 0.5, EVERYTHING).abs().max() < 1e-4
    empty = torch.full((2, CHANNELS, 24, 24), -1.0)
    slope = made.supervision.slope(empty, cameras, 0.5, EVERYTHING)
    assert slope[:, MASK].sum() < 0 and slope[1, COLORS].abs().sum() > 0


class Unsure(ViewDiffusion):
    """Takes everything for a grey as light as its noise is strong."""

    def forward(self, noisy: Tensor, times: Tensor, given: Given) -> Tensor:
        angle = times[:, None, None, None] * torch.pi / 2
        clean = times[:, None, None, None].expand_as(noisy) / 2
        return (angle.cos() * noisy - clean) / angle.sin()


def test_consistency_distillation_is_what_it_takes_it_for_nearer_to_clean_less_what_it_takes_it_for() -> None:
    made = refinement(Weights(2, 0, 0))
    supervision = supervision_of(made)
    phase, cameras = replace(EVERYTHING, distillation="cds"), Cameras.of((0, 0))
    views = torch.zeros(1, CHANNELS, 24, 24)
    supervision.prior = Unsure(CONFIG)
    slopes = [supervision.slope(views, cameras, 0.3, phase) for _ in range(3)]
    scale = 2 * 2 / 24**2
    for slope in slopes:
        gap = -slope / scale * 2
        assert gap.std() < 1e-4 and 0.1 <= gap.mean() <= 0.3  # of the times of the two
    assert len({round(float(slope.mean()), 9) for slope in slopes}) == 3


def test_of_a_prior_that_is_sure_consistency_distillation_learns_nothing() -> None:
    """The fact sheet's finding; what still moves is the reference's own view."""
    phases = tuple(replace(phase, distillation="cds") for phase in PHASES)
    sure = refinement(Weights(1, 0, 0), steps=(3, 2, 2))
    sure.phases = phases  # type: ignore[assignment]
    list(sure.run())
    usual = refinement(Weights(1, 0, 0), steps=(3, 2, 2))
    list(usual.run())
    assert sure.score - sure.start_score < 0.2 * (usual.score - usual.start_score)


def test_noise_of_consistency_distillation_stays_and_that_of_scores_does_not() -> None:
    chance, views = Chance(3), torch.zeros(1, 2)
    fixed, scores = replace(EVERYTHING, distillation="cds"), EVERYTHING
    assert torch.equal(chance.noise(views, fixed), chance.noise(views, fixed))
    assert not torch.equal(chance.noise(views, scores), chance.noise(views, scores))
    assert chance.later(0.97) == 0.98 and 0.3 < chance.later(0.2) < 0.5


def test_gradients_that_a_space_cannot_give_are_asked_for_in_vain() -> None:
    made = refinement()

    class Blind(Patches):
        @torch.no_grad()
        def embed_pictures(self, pixels: Tensor) -> Tensor:
            return super().embed_pictures(pixels)

    supervision_of(made).space = Blind()
    with pytest.raises(UserError, match="no gradients") as refusal:
        list(made.run())
    assert "similarity_weight" in refusal.value.hint


def test_an_addition_is_read_at_any_resolution() -> None:
    grid, addition = a_start(), torch.randn(4, 12, 12, 12)
    assert refined(grid, addition).shape == grid.shape
    assert torch.equal(refined(grid, torch.zeros(4, 12, 12, 12)), grid)
