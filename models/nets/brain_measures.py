"""How well a scan is decoded: retrieval, two-way identification, low-level correlation; and ridge, to compare with.

All measures are of vectors and latents, in the spaces that the decoder was trained for, not of finished pictures.

Shapes: N scans of N different pictures; V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.nets.brain_decoder import LOW_LEVEL, SEMANTIC
from models.nets.brain_fitting import HELD_BACK, PENALTIES, Pairs
from models.nets.brain_subjects import Decoded, similarities


@dataclass(frozen=True)
class Means:
    """Of the training pictures, from where nearness is measured: ``semantic`` (256,), ``low_level`` (8, 8, 8)."""

    semantic: Tensor
    low_level: Tensor


def measure(decoded: Decoded, semantic: Tensor, low_level: Tensor, means: Means) -> dict[str, float]:
    """Shares in [0, 1] and a correlation, of N > 1 scans, among whose N pictures each is looked for.

    ``top1``, ``top5``: the scan's own picture is among the nearest; chance 1 / N and 5 / N. ``picture_top1``: the
    picture's own scan is. ``two_way``: the own picture is nearer than another; chance 0.5. ``low_level_r``: Pearson's
    between latents, both without the mean picture; chance 0.
    """
    near = similarities(decoded.semantic.float(), semantic, means.semantic)
    own = near.diagonal()
    nearer = (near > own[:, None]).sum(1)
    differences = (decoded.low_level.float() - means.low_level, low_level - means.low_level)
    made, true = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in differences)
    return {
        "top1": float((nearer == 0).float().mean()),
        "top5": float((nearer < 5).float().mean()),
        "picture_top1": float(((near > own[None, :]).sum(0) == 0).float().mean()),
        "two_way": float((near < own[:, None]).float().sum() / (len(near) * (len(near) - 1))),
        "low_level_r": float(F.cosine_similarity(made, true, dim=1).mean()),
    }


def chance(count: int) -> dict[str, float]:
    """What :func:`measure` gives on average for guesses among ``count`` pictures."""
    return {"top1": 1 / count, "top5": 5 / count, "picture_top1": 1 / count, "two_way": 0.5, "low_level_r": 0.0}


class Ridge:
    """Linear regression with a penalty, from voxels to the vector and the latents.

    Each of the two gets the penalty with the least squared error on a fifth of the pictures, of those that the decoder
    chooses from too.
    """

    def __init__(self, pairs: Pairs, image_ids: Tensor, seed: int = 0) -> None:
        images = image_ids.unique()
        order = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
        held_back = torch.isin(image_ids, order[: round(HELD_BACK * len(images))])
        self.semantic = _best_fit(pairs.values, pairs.semantic, held_back)
        self.low_level = _best_fit(pairs.values, pairs.low_level.flatten(1), held_back)

    def decode(self, values: Tensor) -> Decoded:
        """(N, V) z-scored."""
        made = self.semantic.answer(values).view(-1, SEMANTIC), self.low_level.answer(values).view(-1, *LOW_LEVEL)
        return Decoded(*made)


@dataclass(frozen=True)
class _Linear:
    weights: Tensor
    mean: Tensor
    bias: Tensor

    def answer(self, values: Tensor) -> Tensor:
        return (values - self.mean) @ self.weights + self.bias


def _best_fit(values: Tensor, targets: Tensor, held_back: Tensor) -> _Linear:
    tried = _fits(values[~held_back], targets[~held_back], PENALTIES)
    errors = [float(F.mse_loss(fit.answer(values[held_back]), targets[held_back])) for fit in tried]
    return _fits(values, targets, [PENALTIES[errors.index(min(errors))]])[0]


def _fits(values: Tensor, targets: Tensor, penalties: Sequence[float]) -> list[_Linear]:
    mean, bias = values.mean(0), targets.mean(0)
    centred = (values - mean).double()
    left, lengths, right = torch.linalg.svd(centred, full_matrices=False)
    turned = left.T @ (targets - bias).double()
    shrunk = [lengths / (lengths.square() + penalty * values.shape[1]) for penalty in penalties]
    return [_Linear((right.T @ (factor[:, None] * turned)).float(), mean, bias) for factor in shrunk]
