"""Muon (Keller Jordan, 2024) with updates of AdamW's size (arXiv 2502.16982): momentum, made orthogonal, is the step.

torch.optim.Muon does the same in bfloat16 always, which takes twice as long as float32 on a CPU slow at it, a third
of a training step of CrossFlow; here the iteration runs in the precision that is fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.machine import compute_dtype

# Quintic Newton-Schulz: five rounds bring every singular value near one.
A, B, C, ROUNDS = 3.4445, -4.7750, 2.0315, 5


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end in about [0.7, 1.2]; (m, n) -> (m, n)."""
    x = matrix.to(dtype)
    if tall := len(x) > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(Optimizer):
    """For matrices inside a network, ``(m, n)`` each; embeddings, heads, norms and convolutions belong to AdamW."""

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            dtype = compute_dtype(group["params"][0].device)
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                average = self.state[parameter].setdefault("momentum", torch.zeros_like(gradient))
                average.lerp_(gradient, 1 - group["momentum"])
                update = orthogonalised(gradient.lerp(average, group["momentum"]), dtype)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)
