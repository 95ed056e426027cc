"""How a brain decoder learns: the losses of STTM (arXiv 2403.06361), and the fit of an adapter for a new subject.

The first layer of an adapter has more weights than a subject has trials: by descent it learns them by heart, and loses
to ridge regression by far. So it *is* ridge regression (as in MindEye2, arXiv 2403.11207), solved, and everything
behind it is trained on what it makes of scans that it has not seen.

First BiMixCo (MindEye, arXiv 2305.18274): scans are mixed in pairs, and each mixture must find both its pictures. Then
SoftCLIP: each scan must find its picture, and a little also the pictures that are like it.

Shapes: B scans of V voxels; 256 semantic dimensions; low-level latents (8, 8, 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.nets.brain_decoder import BrainDecoder
from models.nets.brain_subjects import Decoded, SubjectAdapter, similarities

TEMPERATURE = 0.07
MIX_SHARE, MIX_SHAPE = 0.5, 0.15  # of the scans that are mixed; of the beta distribution of the weights
SEMANTIC_WEIGHT, LOW_LEVEL_WEIGHT = 3.0, 3.0

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of ridge regression, times the number of voxels

MIN_IMAGES = 30
HELD_BACK = 0.2
BATCH, RATE, WEIGHT_DECAY = 128, 3e-4, 0.1
MOST_STEPS, CHECK_EVERY, PATIENCE = 600, 10, 8


class Pairs(NamedTuple):
    """Scans and what was seen: ``values`` (B, V), ``semantic`` (B, 256), ``low_level`` (B, 8, 8, 8)."""

    values: Tensor
    semantic: Tensor
    low_level: Tensor

    def rows(self, rows: Tensor) -> Pairs:
        return Pairs(*(part[rows] for part in self))


# ------------------------------------------------------------------------------------------------------------ losses


def mix(pairs: Pairs) -> tuple[Pairs, Tensor]:
    """BiMixCo: half of the scans, and what was seen, mixed with another one; and (B, B) how much each scan is of each
    picture. Drawn from torch's generator."""
    count = len(pairs.values)
    others = torch.randperm(count)
    weights = torch.distributions.Beta(MIX_SHAPE, MIX_SHAPE).sample((count,))
    weights = torch.where(torch.rand(count) < MIX_SHARE, weights, 1.0)
    shares = torch.diag(weights)
    shares[torch.arange(count), others] += 1 - weights
    return Pairs(*((shares @ part.flatten(1)).view_as(part) for part in pairs)), shares


def soft_shares(semantic: Tensor, center: Tensor) -> Tensor:
    """SoftCLIP: how much each picture (B, 256) is like each, (B, B); rows sum to 1."""
    return (similarities(semantic, semantic, center) / TEMPERATURE).softmax(-1)


def contrastive_loss(made: Tensor, true: Tensor, shares: Tensor, center: Tensor) -> Tensor:
    """Cross-entropy between ``shares`` (B, B) and which of ``true`` (B, 256) the scans' ``made`` find, both ways."""
    logits = similarities(made, true, center) / TEMPERATURE
    of_scans, of_pictures = (shares * logits.log_softmax(-1)).sum(-1), (shares * logits.log_softmax(0)).sum(0)
    return -(of_scans.mean() + of_pictures.mean()) / 2


def regression_loss(decoded: Decoded, semantic: Tensor, low_level: Tensor) -> Tensor:
    """One minus the cosine of the vectors, and the absolute error of the latents."""
    apart = 1 - F.cosine_similarity(decoded.semantic, semantic, dim=-1).mean()
    return SEMANTIC_WEIGHT * apart + LOW_LEVEL_WEIGHT * F.l1_loss(decoded.low_level, low_level)


# ---------------------------------------------------------------------------------------------------- the first layer


@torch.no_grad()
def solve_linear(decoder: BrainDecoder, subject: str, pairs: Pairs) -> Pairs:
    """Solve the first layer of a subject's adapter, and give ``pairs``, no two of one picture, as that layer sees them.

    It is ridge regression from the voxels to the components of what was seen, with the penalties that predict left-out
    scans best. The ``values`` (B, width) that come back are of each scan what the layer makes of it when solved without
    it: what follows learns from these, because a layer solved on hundreds of scans of a thousand voxels knows half of
    each by heart.
    """
    scores = decoder.scores(pairs.semantic, pairs.low_level)
    mean, bias = pairs.values.mean(0), scores.mean(0)
    left, lengths, right = torch.linalg.svd((pairs.values - mean).double(), full_matrices=False)
    turned = left.T @ (scores - bias).double()
    weights, left_out = [], []
    for part in range(2):  # of the vectors, and of the latents
        half = slice(part * scores.shape[1] // 2, (part + 1) * scores.shape[1] // 2)
        tried = []
        for penalty in PENALTIES:
            shrunk = lengths / (lengths.square() + penalty * len(mean))
            kept = lengths * shrunk
            fitted = left @ (kept[:, None] * turned[:, half]) + bias[half]
            leverage = ((left.square() * kept).sum(1) + 1 / len(left)).clamp(max=0.999)[:, None]
            without = (fitted - leverage * scores[:, half]) / (1 - leverage)
            error = float((without - scores[:, half]).square().mean())
            tried.append((error, penalty, right.T @ (shrunk[:, None] * turned[:, half]), without))
        _, _, weight, without = min(tried, key=lambda one: one[:2])
        weights.append(weight)
        left_out.append(without)
    weight, without = torch.cat(weights, 1).float() / decoder.deviations, torch.cat(left_out, 1).float()
    linear = decoder.adapter(subject).linear
    linear.weight.copy_(torch.cat([weight, -weight], 1).T)
    offset = bias / decoder.deviations - mean @ weight
    linear.bias.copy_(torch.cat([offset, -offset]))
    values = without / decoder.deviations
    return pairs._replace(values=torch.cat([values, -values], 1))


def by_picture(pairs: Pairs, image_ids: Tensor) -> Pairs:
    """Scans of one picture averaged, in the order of their numbers."""
    images, number = image_ids.unique(return_inverse=True)
    share = F.one_hot(number, len(images)).T.float()
    share = share / share.sum(1, keepdim=True)
    return Pairs(*((share @ part.flatten(1)).unflatten(1, part.shape[1:]) for part in pairs))


# ------------------------------------------------------------------------------------------------------- new subjects


@dataclass(frozen=True)
class Fit:
    """What :func:`fit_adapter` did: ``curve``, of every check the step, the loss on the pictures learnt from and on
    those held back; ``best_step``, whose weights were kept; how many pictures were learnt from and held back."""

    curve: tuple[tuple[int, float, float], ...]
    best_step: int
    learnt_from: int
    held_back: int


def fit_adapter(
    decoder: BrainDecoder, subject: str, pairs: Pairs, image_ids: Tensor, *, core_frozen: bool = True, seed: int = 0
) -> Fit:
    """Fit the adapter that ``decoder`` has for ``subject``, and with ``core_frozen`` nothing else.

    ``image_ids`` (B,): scans of one picture are averaged. The first layer is solved; what follows begins as the mean of
    the other subjects' and is trained, by BiMixCo, until a fifth of the pictures gets worse, by SoftCLIP; at least it
    stays as it began. The same for the same ``seed``.
    Raises :class:`UserError` for less than 30 pictures and another number of voxels.
    """
    decoder.check(subject, pairs.values)
    pictures = by_picture(pairs, image_ids)
    count = len(pictures.values)
    if count < MIN_IMAGES:
        raise UserError(
            f"{count} pictures are too few to fit an adapter.", f"Use at least {MIN_IMAGES}, better 50 or more."
        )
    adapter = decoder.adapter(subject)
    adapter.rest.load_state_dict(_mean_rest(decoder, subject))
    solved = solve_linear(decoder, subject, pictures)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    split = round(HELD_BACK * count)
    trainees: list[nn.Module] = [adapter.rest] if core_frozen else [adapter.rest, decoder.core, *decoder.heads]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        curve, best_step = _train(
            decoder, adapter, nn.ModuleList(trainees), solved.rows(order[split:]), solved.rows(order[:split])
        )
    return Fit(tuple(curve), best_step, count - split, split)


def _mean_rest(decoder: BrainDecoder, subject: str) -> dict[str, Tensor]:
    """Of all subjects but this one; its own if it is the only one."""
    names = [name for name in decoder.subjects if name != subject] or [subject]
    states = [decoder.adapter(name).rest.state_dict() for name in names]
    return {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}


def _train(
    decoder: BrainDecoder, adapter: SubjectAdapter, trainees: nn.ModuleList, learnt: Pairs, held_back: Pairs
) -> tuple[list[tuple[int, float, float]], int]:
    parameters = [parameter.requires_grad_() for parameter in trainees.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=WEIGHT_DECAY)
    decoder.eval()
    curve: list[tuple[int, float, float]] = []
    best_step, least, best = 0, float("inf"), _copy(trainees)
    for step in range(MOST_STEPS + 1):
        if step % CHECK_EVERY == 0:
            trainees.eval()
            with torch.no_grad():
                found = [_loss(decoder, adapter, part, mixed=False).item() for part in (learnt, held_back)]
            curve.append((step, found[0], found[1]))
            if found[1] < least:
                best_step, least, best = step, found[1], _copy(trainees)
            elif step - best_step >= PATIENCE * CHECK_EVERY:
                break
        trainees.train()
        loss = _loss(decoder, adapter, learnt.rows(torch.randperm(len(learnt.values))[:BATCH]), mixed=True)
        # Not loss.backward(): nothing is to be left behind in the frozen core.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    trainees.load_state_dict(best)
    optimizer.zero_grad(set_to_none=True)
    decoder.eval()
    return curve, best_step


def _loss(decoder: BrainDecoder, adapter: SubjectAdapter, pairs: Pairs, mixed: bool) -> Tensor:
    shown, shares = mix(pairs) if mixed else (pairs, soft_shares(pairs.semantic, decoder.center))
    decoded = decoder.read(adapter.rest(shown.values))
    contrast = contrastive_loss(decoded.semantic, pairs.semantic, shares, decoder.center)
    return contrast + regression_loss(decoded, shown.semantic, shown.low_level)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
