"""What tests do to networks that are trained for a few steps only."""

from __future__ import annotations

from torch import nn


def begin_statistics(model: nn.Module) -> None:
    """Let batch norms take the mean of what comes next: a thousand steps would have let them follow the weights."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
