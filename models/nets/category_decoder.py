"""A decoder of categories: which of a few kinds of thing was looked at, by ridge regression on voxels.

It is fitted in closed form on the means of blocks. Shapes: N scans, V voxels, K categories.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUBJECT = "Haxby2001-S1"  # the one whose measured scans ship
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # times the mean variance of a scan


class CategoryDecoder(nn.Module):
    """``names`` (K,) of the categories. ``accuracy``: how many of all scans one like it got right, each decoder being
    fitted without the run of the scan; ``subject``: whose voxels it reads."""

    def __init__(self, names: Sequence[str], voxels: int, subject: str, accuracy: float) -> None:
        super().__init__()
        self.names = tuple(names)
        self.voxels = voxels
        self.subject = subject
        self.accuracy = accuracy
        self.linear = nn.Linear(voxels, len(names)).requires_grad_(False)

    def forward(self, values: Tensor) -> Tensor:
        """Scores (N, K) of z-scored voxels (N, V): about 1 for what was seen and 0 for what was not."""
        return cast(Tensor, self.linear(values.float()))

    def save_pretrained(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors`` in float32: they are small."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, "names": self.names, "voxels": self.voxels}
        config |= {"subject": self.subject, "accuracy": self.accuracy}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)


def load_category_decoder(folder: Path) -> CategoryDecoder:
    """A folder as :meth:`CategoryDecoder.save_pretrained` writes it. Raises :class:`UserError` for anything else."""
    path = folder / CONFIG
    values = json.loads(path.read_text()) if path.is_file() else {}
    if values.pop("_class_name", None) != CategoryDecoder.__name__:
        raise UserError(f"The weights in '{folder}' are no category decoder.", "Choose a folder that was saved as one.")
    decoder = CategoryDecoder(**values)
    decoder.load_state_dict(load_file(folder / WEIGHTS))
    return decoder.eval()


def fit_ridge(values: Tensor, labels: Tensor, count: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights (count, V) and bias (count,) from scans (N, V) to the one-hot ``labels`` (N,), by the dual solution."""
    values = values.double()
    targets = F.one_hot(labels, count).double()
    mean, level = values.mean(0), targets.mean(0)
    kernel = (values - mean) @ (values - mean).T
    ridge = penalty * kernel.trace() / len(kernel) * torch.eye(len(kernel), dtype=torch.float64)
    weight = torch.linalg.solve(kernel + ridge, targets - level).T @ (values - mean)
    return weight.float(), (level - weight @ mean).float()


def leave_one_run_out(
    values: Tensor, labels: Tensor, runs: Tensor, count: int, penalties: Sequence[float] = PENALTIES
) -> Tensor:
    """What is said of each of the scans (N, V) by a decoder fitted on all other runs, (N,). Its penalty is the one
    that does best when left-out runs of those others are decoded, so nothing of a scan's run has any say in it."""
    said = torch.empty_like(labels)
    for run in runs.unique():
        others = runs != run
        penalty = best_penalty(values[others], labels[others], runs[others], count, penalties)
        weight, bias = fit_ridge(values[others], labels[others], count, penalty)
        said[~others] = (values[~others] @ weight.T + bias).argmax(1)
    return said


def best_penalty(
    values: Tensor, labels: Tensor, runs: Tensor, count: int, penalties: Sequence[float] = PENALTIES
) -> float:
    """The one by which most scans of left-out runs are decoded right; of several, the largest."""
    if len(penalties) == 1:
        return penalties[0]
    right = [int((leave_one_run_out(values, labels, runs, count, (penalty,)) == labels).sum()) for penalty in penalties]
    return max(zip(right, penalties, strict=True))[1]
