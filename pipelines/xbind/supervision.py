"""What tells XBind's optimisation how an object should look: Hybrid Diffusion Supervision and Modality Similarity.

A diffusion model of views looks at rendered ones, made noisy, and says what they should have looked like: given the
condition (planar supervision), and given one reference view, drawn once from it (stereoscopic supervision). That
is SDS in its form for clean views, steady at a small scale. The paper's other choice, CDS, needs a prior that is not
sure of its answer: on the straight paths of a small one its gradient is zero (measured in the fact sheet).

Shapes: B views, D dimensions of a condition, S side of a view, as in ``models/nets/view_diffusion.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import UserError
from models.nets.view_diffusion import Given, ViewDiffusion, clean_of, mixed
from pipelines.base import MAX_SEED, Runtime, precision
from pipelines.xbind.rendering import Cameras, lit

REFERENCE = Cameras.of((30.0, 15.0))
DRAWS, DRAWING_STEPS, DRAWING_LEVEL = 3, 12, 0.6  # of the reference; what is larger than this noise stays
PLANAR_GUIDANCE, STEREOSCOPIC_GUIDANCE = 4.0, 2.0


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
        self.noise = torch.Generator().manual_seed(seed)
        self.reference = condition.new_zeros(prior.view_shape)

    @torch.no_grad()
    def draw_reference(self, seen: Tensor) -> Tensor:
        """Choose and return the reference (7, S, S): of what the preview looks like from :data:`REFERENCE`, ``seen``,
        and of views drawn from that for the condition, the nearest to the condition."""
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
        return self.reference

    @torch.no_grad()
    def slope(self, views: Tensor, cameras: Cameras, time: float, planar: float) -> Tensor:
        """Where views (B, 7, S, S) should go less: the gradient of the weighted mean squared error to what they should
        have looked like. The first of ``cameras`` is :data:`REFERENCE`; ``planar`` is multiplied with its weight.

        Zero, and nothing is computed, if both diffusion weights are.
        """
        angles = cameras.azimuths, cameras.elevations
        asked: list[tuple[Given, float, float]] = []
        if self.weights.planar * planar > 0:
            given = self.prior.planar(self.condition.expand(len(views), -1), *angles)
            asked.append((given, self.weights.planar * planar, PLANAR_GUIDANCE))
        if self.weights.stereoscopic > 0:
            reference = REFERENCE.azimuths.to(views.device), REFERENCE.elevations.to(views.device)
            given = self.prior.stereoscopic(self.reference.expand_as(views), reference, *angles)
            asked.append((given, self.weights.stereoscopic, STEREOSCOPIC_GUIDANCE))
        total = torch.zeros_like(views)
        if not asked:
            return total
        noise = torch.randn(views.shape, generator=self.noise).to(views.device)
        noisy = mixed(views, noise, views.new_tensor([time]))
        times = views.new_full((len(views),), time)
        parts = [self.prior.free(*angles), *(given for given, _, _ in asked)]
        copies = len(parts)
        with precision(self.runtime.models):
            velocity = self.prior(noisy.repeat(copies, 1, 1, 1), times.repeat(copies), Given.joined(parts))
        free, *answers = clean_of(noisy.repeat(copies, 1, 1, 1), velocity, times.repeat(copies)).chunk(copies)
        for answer, (given, weight, guidance) in zip(answers, asked, strict=True):
            wanted = (free + guidance * (answer - free)).clamp(-1, 1)
            if given.references.any():
                wanted[0] = self.reference  # there is no need to ask what it looks like from where it was seen
            total += weight * (views - wanted)
        return total * (2 / (len(views) * views.shape[-1] ** 2))

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
