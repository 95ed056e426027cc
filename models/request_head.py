"""The linear head that reads a request from a language model's state: which media are wanted, and which act it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class RequestHead(nn.Module):
    """State (B, d) float32 -> logits (B, outputs + acts): the outputs each for itself, the acts against each other.

    ``temperature`` (2,), one for the outputs and one for the acts, makes their probabilities honest (arXiv 1706.04599).
    ``least``: how probable a whole reading has to be for something to be made of it; below, it is better to ask.
    """

    def __init__(self, width: int, outputs: Sequence[str], acts: Sequence[str], least: float = 0.0) -> None:
        super().__init__()
        self.outputs, self.acts, self.least = tuple(outputs), tuple(acts), least
        self.linear = nn.Linear(width, len(outputs) + len(acts))
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(2))

    def forward(self, state: Tensor) -> Tensor:
        logits: Tensor = self.linear(state)
        return logits

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the outputs (B, outputs) and of the acts (B, acts), at their temperatures."""
        count = len(self.outputs)
        return logits[:, :count] / self.temperature[0], logits[:, count:] / self.temperature[1]

    @torch.no_grad()
    def probabilities(self, state: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Of one state (d,): each output's probability, and each act's."""
        outputs, acts = self.split(self(state[None]))
        return (
            dict(zip(self.outputs, outputs[0].sigmoid().tolist(), strict=True)),
            dict(zip(self.acts, acts[0].softmax(0).tolist(), strict=True)),
        )

    def calibrate(self, logits: Tensor, outputs: Tensor, acts: Tensor) -> None:
        """Set the temperatures that make ``outputs`` (N, outputs), 0 or 1, and ``acts`` (N,) likeliest."""
        grid = torch.logspace(-1, 1, 81)
        wanted, act = logits[:, : len(self.outputs)], logits[:, len(self.outputs) :]
        losses = [
            torch.stack([nn.functional.binary_cross_entropy_with_logits(wanted / t, outputs) for t in grid]),
            torch.stack([nn.functional.cross_entropy(act / t, acts) for t in grid]),
        ]
        self.temperature.copy_(torch.stack([grid[loss.argmin()] for loss in losses]))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        labels = {"outputs": self.outputs, "acts": self.acts, "least": self.least}
        (folder / "head.json").write_text(json.dumps(labels, indent=2) + "\n")
        save_file(
            {name: value.detach().contiguous() for name, value in self.state_dict().items()},
            folder / "head.safetensors",
        )


def load_request_head(folder: Path) -> RequestHead:
    """What :meth:`RequestHead.save` wrote; raises ``OSError``, ``KeyError`` or ``RuntimeError`` where it is none."""
    labels = json.loads((folder / "head.json").read_text())
    tensors = load_file(folder / "head.safetensors")
    head = RequestHead(tensors["linear.weight"].shape[1], labels["outputs"], labels["acts"], labels["least"])
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
