"""What tells XBind's optimisation how an object should look: Hybrid Diffusion Supervision and Modality Similarity.

A diffusion model of views looks at rendered ones, made noisy, and says what they should have looked like: given the
condition (planar supervision), and given one reference view, drawn once from it (stereoscopic supervision). A phase of
the optimisation says how the two are told apart, both in their form for clean views, which is steady at a small scale:

- ``sds`` (arXiv 2209.14988): what is there now, less what the model takes it for; new noise at every step.
- ``cds`` (arXiv 2401.09050): what the model takes it for a step nearer to clean, less what it takes it for; the same
  noise at all steps. It needs a prior that is not sure of its answer: on the straight paths of a small one, such as
  ours, it is about zero (measured in the fact sheet), so ours learns by ``sds`` unless asked otherwise.

Shapes: B views, D dimensions of a condition, S side of a view, as in ``models/nets/view_diffusion.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets.view_diffusion import Given, ViewDiffusion, clean_of, mixed, noise_of
from pipelines.base import MAX_SEED, Runtime, precision
from pipelines.crossflow.sampling import to_pixels
from pipelines.media import Image
from pipelines.xbind.phases import Phase
from pipelines.xbind.rendering import Cameras, lit

REFERENCE = Cameras.of((30.0, 15.0))
DRAWS, DRAWING_STEPS, DRAWING_LEVEL = 3, 12, 0.6  # of the reference; what is larger than this noise stays
PLANAR_GUIDANCE, STEREOSCOPIC_GUIDANCE = 4.0, 2.0
NEAREST_GAP, FARTHEST_GAP, NOISIEST = 0.1, 0.3, 0.98  # of CDS: from one time to the other, and the later at most


@dataclass(frozen=True)
class Weights:
    """Of each supervision, at least 0; 1 is usual."""

    planar: float = 1.0
    stereoscopic: float = 1.0
    similarity: float = 1.0


class Space(Protocol):
    """What is needed of the space that the condition is of."""

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> unit vectors (B, D)."""


class Supervises(Protocol):
    """What an optimisation is told by. ``camera``: that of the reference, the first of all; ``side``: of its views."""

    weights: Weights
    camera: Cameras
    side: int

    def draw_reference(self, seen: Tensor) -> Image:
        """Choose what the object looks like from ``camera``, where the start looks like ``seen`` (7, S, S)."""

    def slope(self, views: Tensor, cameras: Cameras, time: float, phase: Phase) -> Tensor:
        """Where views (B, 7, S, S) should go less, in the channels that the phase goes by."""

    def likeness(self, views: Tensor) -> Tensor:
        """The cosine of each of views (B, 7, S, S), lit, to the condition, (B,)."""


@dataclass(frozen=True)
class Answer:
    """What a prior takes noisy things for: ``clean``, and the ``noise`` in them."""

    clean: Tensor
    noise: Tensor


class Supervision:
    """Of one object, for which ``condition`` (D,) asks.

    Raises :class:`UserError` if the view diffusion model was trained for another space.
    """

    def __init__(
        self,
        prior: ViewDiffusion,
        space: Space,
        condition: Tensor,
        weights: Weights,
        seed: int,
        runtime: Runtime,
    ) -> None:
        if condition.shape != (prior.config.condition_width,):
            raise UserError(
                "The view diffusion model was trained for another space of words and pictures.",
                "Take both from the same training, or use the preset 'preview'.",
            )
        self.prior, self.space, self.condition = prior, space, condition
        self.weights, self.seed, self.runtime = weights, seed, runtime
        self.camera, self.side = REFERENCE, prior.config.side
        self.chance = Chance(seed)
        self.reference = condition.new_zeros(prior.view_shape)

    @torch.no_grad()
    def draw_reference(self, seen: Tensor) -> Image:
        """Choose :attr:`reference` (7, S, S), and show it lit: of what the preview looks like from :data:`REFERENCE`,
        ``seen``, and of views drawn from that for the condition, the nearest to the condition."""
        cameras = [values.expand(DRAWS).to(seen.device) for values in (REFERENCE.azimuths, REFERENCE.elevations)]
        given = self.prior.planar(self.condition.expand(DRAWS, -1), *cameras)
        seeds = [(self.seed + index) % (MAX_SEED + 1) for index in range(DRAWS)]
        with precision(self.runtime.models):
            drawn = self.prior.sample(
                given,
                self.prior.free(*cameras),
                DRAWING_STEPS,
                PLANAR_GUIDANCE,
                seeds,
                seen.expand(DRAWS, -1, -1, -1),
                DRAWING_LEVEL,
            )
        candidates = torch.cat([seen[None], drawn])
        self.reference = candidates[self.likeness(candidates).argmax()]
        return Image(to_pixels(lit(self.reference[None]))[0])

    @torch.no_grad()
    def slope(self, views: Tensor, cameras: Cameras, time: float, phase: Phase) -> Tensor:
        """Where views (B, 7, S, S) should go less, in the channels that ``phase`` goes by: the gradient of the weighted
        mean squared error to what they should have looked like, at the ``time`` of the noise in [0, 1]. The first of
        ``cameras`` is :data:`REFERENCE`.

        Zero, and nothing is computed, if both diffusion weights are.
        """
        angles = cameras.azimuths, cameras.elevations
        asked: list[tuple[Given, float, float]] = []  # with its guidance and its weight
        if self.weights.planar * phase.planar > 0:
            given = self.prior.planar(self.condition.expand(len(views), -1), *angles)
            asked.append((given, PLANAR_GUIDANCE, self.weights.planar * phase.planar))
        if self.weights.stereoscopic > 0:
            reference = REFERENCE.azimuths.to(views.device), REFERENCE.elevations.to(views.device)
            given = self.prior.stereoscopic(self.reference.expand_as(views), reference, *angles)
            asked.append((given, STEREOSCOPIC_GUIDANCE, self.weights.stereoscopic))
        total = torch.zeros_like(views)
        if not asked:
            return total
        free = self.prior.free(*angles)
        earlier = time
        if phase.distillation == "cds":
            time = self.chance.later(time)
        noise = self.chance.noise(views, phase)
        noisy = mixed(views, noise, views.new_tensor([time]))
        answers = self._answers(noisy, time, free, [(given, guidance) for given, guidance, _ in asked])
        for answer, (given, guidance, weight) in zip(answers, asked, strict=True):
            present = views
            if phase.distillation == "cds":
                nearer = mixed(answer.clean, answer.noise, views.new_tensor([earlier]))
                [better] = self._answers(nearer, earlier, free, [(given, guidance)])
                present = better.clean
            away = present - answer.clean
            if given.references.any():
                # There is no need to ask what it looks like from where it was seen.
                away[0] = views[0] - self.reference
            total[:, phase.seen] += weight * away[:, phase.seen]
        return total * (2 / (len(views) * views.shape[-1] ** 2))

    def _answers(self, noisy: Tensor, time: float, free: Given, asked: list[tuple[Given, float]]) -> list[Answer]:
        """Of (B, 7, S, S) at a time, for each that is asked by with a guidance; one pass for all."""
        copies = 1 + len(asked)
        parts = Given.joined([free, *(given for given, _ in asked)])
        times = noisy.new_full((len(noisy),), time)
        with precision(self.runtime.models):
            velocities = self.prior(noisy.repeat(copies, 1, 1, 1), times.repeat(copies), parts)
        without, *told = velocities.chunk(copies)
        answers = []
        for velocity, (_, guidance) in zip(told, asked, strict=True):
            guided = without + guidance * (velocity - without)
            answers.append(Answer(clean_of(noisy, guided, times).clamp(-1, 1), noise_of(noisy, guided, times)))
        return answers

    def likeness(self, views: Tensor) -> Tensor:
        """The cosine of each of views (B, 7, S, S), lit, to the condition, (B,): what Modality Similarity is of.

        Raises :class:`UserError` if gradients are wanted and the space gives none.
        """
        with precision(self.runtime.models):
            vectors = self.space.embed_pictures(lit(views)).float()
        if views.requires_grad and not vectors.requires_grad:
            raise UserError(
                "This space of words and pictures gives no gradients for the Modality Similarity loss.",
                "Set 'similarity_weight' to 0.",
            )
        return F.normalize(vectors, dim=-1) @ self.condition


class Chance:
    """What an optimisation draws: by ``seed``, apart from all other generators."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed

    def noise(self, like: Tensor, phase: Phase) -> Tensor:
        """Of the shape (B, ...); for CDS one for all, and always the same."""
        if phase.distillation == "sds":
            return torch.randn(like.shape, generator=self.generator).to(like.device)
        one = torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        return one.to(like.device).expand(like.shape)

    def later(self, time: float) -> float:
        """A time that is noisier."""
        gap = NEAREST_GAP + (FARTHEST_GAP - NEAREST_GAP) * float(torch.rand((), generator=self.generator))
        return min(time + gap, NOISIEST)
