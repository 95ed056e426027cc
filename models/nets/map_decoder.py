"""NeuroPictor (arXiv 2403.18211) in small: what was seen, from a map of the cortex, whoever's it is.

The same three parts as the published one's, at another size and for other targets. The semantic head's few tokens give
a unit vector of CLIP-lite's space, their mean, and the control mapper's grid is the low-level latents from which the
painter starts: what ``models.nets.brain_decoder`` reads from voxels by an adapter for each subject. Here there is none.

Shapes: B maps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.errors import UserError
from models.nets.brain_decoder import LOW_LEVEL, SEMANTIC
from models.nets.brain_subjects import CONFIG, WEIGHTS, Decoded
from models.nets.neuropictor import (
    ControlMapper,
    ControlMapperConfig,
    MapEncoder,
    MapEncoderConfig,
    SemanticHead,
    SemanticHeadConfig,
)
from models.packing import save_half


@dataclass(frozen=True)
class MapDecoderConfig:
    """``side`` of a map and of its patches in pixels; ``width``, ``blocks``, ``heads`` and ``dropout`` of the encoder;
    ``context``: how many tokens the semantic vector is the mean of."""

    side: int = 64
    patch: int = 8
    width: int = 128
    blocks: int = 3
    heads: int = 4
    dropout: float = 0.1
    context: int = 8

    @property
    def encoder(self) -> MapEncoderConfig:
        return MapEncoderConfig(self.side, self.patch, self.width, self.blocks, self.heads, self.dropout)


class MapDecoder(nn.Module):
    """``center`` (256,) and ``low_level_center`` (8, 8, 8): of the training pictures; what is decoded are differences.

    Untrained, it takes every map for the mean of all pictures, but for their meaning, which is drawn at random.
    """

    center: Tensor
    low_level_center: Tensor

    def __init__(self, config: MapDecoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, side, _ = LOW_LEVEL
        tokens = config.encoder.tokens
        self.encoder = MapEncoder(config.encoder)
        self.semantic = SemanticHead(tokens, config.width, SemanticHeadConfig(config.context, SEMANTIC, tokens // 2))
        self.low_level = ControlMapper(tokens, config.width, ControlMapperConfig(channels, side, 2 * tokens))
        self.register_buffer("center", torch.zeros(SEMANTIC))
        self.register_buffer("low_level_center", torch.zeros(LOW_LEVEL))

    @property
    def refining(self) -> list[nn.Parameter]:
        """Of the second branch, which stays silent until the decoder is refined for somebody."""
        return [*self.semantic.extra_clip.parameters(), *self.semantic.extra_clip_out.parameters()]

    def forward(self, maps: Tensor) -> Decoded:
        """(B, 1, side, side) z-scored, 0 around the cortex."""
        tokens = self.encoder(maps)
        context, _ = self.semantic(tokens)
        semantic = F.normalize(self.center + context.float().mean(1), dim=-1)
        return Decoded(semantic, self.low_level_center + self.low_level(tokens).float())

    @torch.no_grad()
    def decode(self, maps: Tensor) -> Decoded:
        """What was seen in maps (B, 1, H, W) of any size, B > 0; what lies within a pixel is averaged.

        Raises :class:`ValueError` for other shapes, and :class:`UserError` for values that are no numbers.
        """
        if maps.ndim != 4 or maps.shape[1] != 1 or not len(maps):
            raise ValueError(f"expected (B, 1, H, W) with B > 0, not {tuple(maps.shape)}")
        if not maps.isfinite().all():
            raise UserError("The map has values that are no numbers.", "Fill them, or leave this map out.")
        own = self.config.side
        sized = maps if maps.shape[-2:] == (own, own) else F.adaptive_avg_pool2d(maps, own)
        return Decoded(*self(sized.float()))

    def save_pretrained(self, folder: Path) -> None:
        """``config.json``, and ``model.safetensors`` in float16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self).__name__, **asdict(self.config)}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_half(self.state_dict(), folder / WEIGHTS)


def load_map_decoder(folder: Path) -> MapDecoder:
    """A folder as :meth:`MapDecoder.save_pretrained` writes it; float32 on the CPU, ready to decode.

    Raises :class:`UserError` if it holds something else.
    """
    path = folder / CONFIG
    values = json.loads(path.read_text()) if path.is_file() else {}
    if values.pop("_class_name", None) != MapDecoder.__name__:
        raise UserError(f"The weights in '{folder}' are no decoder of maps.", "Choose a folder that was saved as one.")
    decoder = MapDecoder(MapDecoderConfig(**values))
    decoder.load_state_dict(load_file(folder / WEIGHTS))
    return decoder.eval()
