"""A decoder of categories: which of a few kinds of thing was looked at, linear in its voxels.

``training/haxby.py`` fits it. Shapes: N scans, V voxels, K categories.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SUBJECT = "Haxby2001-S1"  # the one whose measured scans ship


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
