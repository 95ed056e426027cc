"""NeuroPictor in small, as the pipeline uses it: a decoder of maps before the lite profile's CrossFlow.

It does what the published one (:class:`models.neuropictor.NeuroPictor`) does, by what the lite profile has. What is
seen, by the map, becomes the name of the nearest concept, which CrossFlow flows from; where, moves that source towards
the decoded look, and this is the control: at scale 1 half of the way, at 2 all of it. Only the decoder is its own; all
else are models that other pipelines lease too.

Shapes: B pictures, latents (C, s, s).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.nets import flow_matching as fm
from models.nets.crossflow import FAINT

if TYPE_CHECKING:
    from models.autoencoder import ImageAutoencoder
    from models.nets.brain_decoder import BrainDecoder
    from models.nets.crossflow import CrossFlow
    from models.nets.map_decoder import MapDecoder
    from models.text_encoder import TextEncoder

MOST_CONTROL = 2.0  # the scale at which the decoded look is all that the picture starts from


@dataclass(frozen=True)
class SmallNeuroPictor:
    """Of models by their keys in :attr:`models`. ``names``: the decoder of voxels, which knows what its vectors, the
    same as those of maps, are called.

    It was trained on simulated brains; by a ``guidance_scale`` of 1.5 the lite CrossFlow paints best.
    """

    models: ClassVar[tuple[str, ...]] = ("neuropictor", "brain-decoder", "text-encoder", "crossflow", "autoencoder")
    learnt_from: ClassVar[Literal["measured", "simulated"]] = "simulated"
    guidance_scale: ClassVar[float] = 1.5

    decoder: MapDecoder
    names: BrainDecoder
    encoder: TextEncoder
    flow: CrossFlow
    autoencoder: ImageAutoencoder

    @torch.no_grad()
    def denoise(
        self, maps: Tensor, steps: int, guidance: float, control_scale: float, seeds: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As :meth:`models.neuropictor.NeuroPictor.denoise`: after each step of the flow the present estimate of its
        end, and where it is, (B, C, s, s) both; ``control_scale`` in [0, 2]."""
        if len(maps) != len(seeds):
            raise ValueError(f"{len(maps)} maps and {len(seeds)} seeds do not go together")
        seen = self.decoder.decode(maps)
        said = [concepts[0].sentence for concepts in self.names.nearest(seen.semantic, 1)]
        words = self.encoder.encode(said, self.flow.config.tokens)
        mean, log_variance = (
            part.float() for part in self.flow.encode_text(words.states.to(maps.device), words.mask.to(maps.device))
        )
        look = FAINT * F.interpolate(seen.low_level, scale_factor=2, mode="bilinear")
        noise = [torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        mean = torch.lerp(mean, look.to(mean), control_scale / MOST_CONTROL)
        source = fm.sample_source(mean, log_variance, torch.stack(noise).to(maps.device))
        for step in fm.euler_steps(self.flow, source, steps, guidance):
            yield step.prediction, step.latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, s, s) -> pictures (B, 3, H, W) in [-1, 1]."""
        return self.autoencoder.decode(latents)
