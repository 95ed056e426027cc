"""CrossFlow's mathematics: path, targets, losses and the sampler (paper sections 3.1-3.3; time grid as in the code)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SIGMA_MIN = 1e-5
Velocity = Callable[[Tensor, Tensor, Tensor], list[Tensor]]


def sample_source(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """z0, drawn from the variational encoder's Gaussian; this draw is the only randomness of generation."""
    return mean + torch.exp(0.5 * log_variance) * noise


def interpolate(source: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """z_t on the straight path from ``source`` (t = 0) to ``target`` (t = 1); latents (B, C, H, W), ``t`` (B,)."""
    t = t.view(-1, 1, 1, 1)
    return (1 - (1 - SIGMA_MIN) * t) * source + t * target


def velocity_target(source: Tensor, target: Tensor) -> Tensor:
    return target - (1 - SIGMA_MIN) * source


def exchange_null_targets(target: Tensor, null: Tensor) -> Tensor:
    """Give each null sample the target of the next null sample, which makes its velocity unconditional."""
    where = torch.nonzero(null).flatten()
    exchanged = target.clone()
    exchanged[where] = target[where.roll(-1)]
    return exchanged


def flow_matching_loss(predictions: list[Tensor], velocity: Tensor) -> Tensor:
    """Multi-scale squared error, coarse to fine with weights ..., 1/4, 1 by resolution; (B,).

    A coarse stage's target is the average-pooled velocity times the ratio, which keeps its variance near one.
    """
    total = velocity.new_zeros(len(velocity))
    coefficients = _coefficients(len(predictions))
    for prediction, coefficient in zip(predictions, coefficients, strict=True):
        ratio = velocity.shape[-1] // prediction.shape[-1]
        target = F.avg_pool2d(velocity, ratio) * ratio
        total = total + coefficient * (prediction.float() - target).square().mean((1, 2, 3))
    return total


def _coefficients(stages: int) -> tuple[float, ...]:
    return {1: (1.0,), 2: (0.25, 1.0), 3: (0.25, 0.5, 1.0)}[stages]


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The released code's KL: the sixth power leaves ``mean`` nearly free below 1 and pins the deviation at 1; (B,)."""
    terms = 0.5 * ((0.3 * mean) ** 6 + log_variance.exp() - 1 - log_variance)
    return terms.flatten(1).sum(1)


def contrastive_loss(pictures: Tensor, sources: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross-entropy between picture embeddings and sampled z0, both (B, D).

    ``same`` (B, B) bool marks other pairs with an equal caption: they are no negatives and are left out.
    """
    logits = scale * F.normalize(pictures.float(), dim=-1) @ F.normalize(sources.float(), dim=-1).T
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    logits = logits.masked_fill(others, -1e4)
    labels = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))


def time_grid(steps: int) -> Tensor:
    """Network times of the Euler sampler: both ends are included, t_i = i / (N - 1) * (1 - 1e-5)."""
    return torch.linspace(0, 1, steps, dtype=torch.float64).mul(1 - SIGMA_MIN).float()


class EulerStep(NamedTuple):
    """``latents``: z after the step; ``prediction``: the z1 that the velocity points at; both (B, C, H, W)."""

    latents: Tensor
    prediction: Tensor


def euler_steps(velocity: Velocity, source: Tensor, steps: int, guidance_scale: float) -> Iterator[EulerStep]:
    """Integrate z0 to z1 in ``steps`` Euler steps of constant size; latents (B, C, H, W).

    ``guidance_scale`` w: v = v_null + w (v_text - v_null), two evaluations of the same z; at 1 the second is skipped.
    Yields after every step; the last latents are the sample.
    """
    z, size = source.float(), (1 - SIGMA_MIN) / steps
    count, guided = len(z), guidance_scale != 1
    null = torch.arange(2 * count if guided else count, device=z.device) >= count
    for time in time_grid(steps).tolist():
        times = torch.full((len(null),), time, device=z.device)
        with torch.no_grad():
            v = velocity(torch.cat([z, z]) if guided else z, times, null)[-1].float()
        if guided:
            text, unconditional = v.chunk(2)
            v = unconditional + guidance_scale * (text - unconditional)
        prediction = z + (1 - time) * v
        z = z + size * v
        yield EulerStep(z, prediction)


def euler_sample(velocity: Velocity, source: Tensor, steps: int, guidance_scale: float) -> Tensor:
    """The end of :func:`euler_steps`."""
    *_, last = euler_steps(velocity, source, steps, guidance_scale)
    return last.latents


def latent_arithmetic(base: Tensor, added: Tensor | None, removed: Tensor | None, strength: float) -> Tensor:
    """z0(prompt) + strength * (z0(add) - z0(remove)), standardised per sample over all elements (paper section 4.5)."""
    z = base
    z = z + strength * added if added is not None else z
    z = z - strength * removed if removed is not None else z
    flat = z.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(z)
