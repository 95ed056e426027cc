"""Brain decoder after STTM (arXiv 2403.06361), in small: an adapter for each subject, and one core for all.

A subject's voxels become 256 numbers that mean the same in every subject: the leading components of what was seen, as
they stand in that brain. From them the core reads:

- ``semantic``: a unit vector of CLIP-lite's space, 256-d;
  What it is called is the concept whose pictures are nearest to it on average (:meth:`BrainDecoder.nearest`);
- ``low_level``: latents of the lite image autoencoder, averaged over 2 x 2: (8, 8, 8) instead of (8, 16, 16) for a
  picture of 128 x 128. That is about as fine as voxels tell; a generator starts from them, doubled.

Shapes: B scans of V voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.nets.brain_subjects import Decoded as Decoded
from models.nets.brain_subjects import (
    ResidualBlock,
    SubjectAdapter,
    SubjectDecoder,
    damaged_config,
    no_decoder,
    read_config,
)

SEMANTIC = 256
LOW_LEVEL = (8, 8, 8)  # channels, rows, columns
LATENTS = 512


@dataclass(frozen=True)
class BrainDecoderConfig:
    """``width`` of what adapters give, a multiple of 4; ``blocks`` of the core; ``dropout`` behind every layer."""

    width: int = 256
    blocks: int = 3
    dropout: float = 0.3


class BrainDecoder(SubjectDecoder):
    """The first layer of an adapter is solved, as ridge regression; only what follows is trained by descent.

    ``components`` (K, 256 + 512) of vectors and latents, each of unit length, and their ``deviations`` (K,) over those
    pictures, K = width / 2: a quarter of the width for the vectors, a quarter for the latents. Adapters give each
    component twice, once with the other sign, because GELU forgets what is below zero. ``low_level_center`` (512,).
    """

    learnt_from: ClassVar[Literal["measured", "simulated"]] = "simulated"

    low_level_center: Tensor
    components: Tensor
    deviations: Tensor

    def __init__(self, config: BrainDecoderConfig) -> None:
        super().__init__(SEMANTIC)
        self.config = config
        self.core = nn.Sequential(*(ResidualBlock(config.width, config.dropout) for _ in range(config.blocks)))
        self.semantic = nn.Linear(config.width, SEMANTIC)
        self.low_level = nn.Linear(config.width, LATENTS)
        self.register_buffer("low_level_center", torch.zeros(LATENTS))
        self.register_buffer("components", torch.zeros(config.width // 2, SEMANTIC + LATENTS))
        self.register_buffer("deviations", torch.ones(config.width // 2))

    @property
    def heads(self) -> tuple[nn.Linear, nn.Linear]:
        return self.semantic, self.low_level

    @torch.no_grad()
    def learn_components(self, semantic: Tensor, low_level: Tensor) -> None:
        """From unit vectors (N, 256) and latents (N, 8, 8, 8) of at least width / 4 pictures. The heads then begin as
        what puts components together again."""
        half = len(self.components) // 2
        for part, center, columns, head, targets in (
            (slice(None, half), self.center, slice(None, SEMANTIC), self.semantic, semantic),
            (slice(half, None), self.low_level_center, slice(SEMANTIC, None), self.low_level, low_level.flatten(1)),
        ):
            mean = targets.double().mean(0)
            values, directions = torch.linalg.eigh((targets - mean).T @ (targets - mean) / len(targets))
            center.copy_(mean)
            self.components[part, columns] = directions.flip(1)[:, :half].T.float()
            self.deviations[part] = values.flip(0)[:half].clamp(min=1e-8).sqrt().float()
            readout = (self.components[:, columns] * self.deviations[:, None]).T
            head.weight.copy_(torch.cat([readout, -readout], 1))
            head.bias.copy_(mean)

    def scores(self, semantic: Tensor, low_level: Tensor) -> Tensor:
        """The components of unit vectors (N, 256) and latents (N, 8, 8, 8), not divided by deviations: (N, K)."""
        both = torch.cat([semantic - self.center, low_level.flatten(1) - self.low_level_center], 1)
        return both @ self.components.T

    def new_adapter(self, voxels: int, mask_hash: str) -> SubjectAdapter:
        width, dropout = self.config.width, self.config.dropout
        adapter = SubjectAdapter(voxels, mask_hash, width, (dropout, dropout))
        adapter.linear.requires_grad_(False)
        return adapter

    @torch.no_grad()
    def decode(self, subject: str, values: Tensor) -> Decoded:
        self.check(subject, values)
        return self.read(self.adapters[subject](values.float()))

    def read(self, hidden: Tensor) -> Decoded:
        """What adapters give (B, width), of one or several subjects -> what was seen."""
        hidden = self.core(hidden)
        semantic, low_level = self.semantic(hidden).float(), self.low_level(hidden).float()
        return Decoded(F.normalize(semantic, dim=-1), low_level.unflatten(1, LOW_LEVEL))


def load_brain_decoder(folder: Path) -> BrainDecoder:
    """A folder as :meth:`BrainDecoder.save_pretrained` writes it; float32 on the CPU, ready to decode.

    Raises :class:`UserError` if it holds something else.
    """
    values = read_config(folder)
    kind = values.pop("_class_name", None)
    if kind == "TokenDecoder":
        raise UserError("This brain decoder is of the published size.", "Choose it in the full profile.")
    if kind != BrainDecoder.__name__:
        raise no_decoder(folder)
    with damaged_config(folder):
        subjects = values.pop("subjects")
        decoder = BrainDecoder(BrainDecoderConfig(**values))
        decoder.add_subjects(subjects)
    decoder.read_pretrained(folder)
    return decoder
