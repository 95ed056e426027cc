"""NeuroPictor in small, as the pipeline uses it: a decoder of maps behind the lite CrossFlow.

It does what the published one (:class:`models.neuropictor.NeuroPictor`) does, by what the lite profile has. What is
seen, by the map, becomes the name of the nearest concept, which CrossFlow flows from; where, moves that source towards
the decoded look, and this is the control: at scale 1 half of the way, at 2 all of it.

Shapes: B pictures, latents (C, s, s).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.autoencoder import ImageAutoencoder, load_autoencoder
from models.errors import UserError
from models.nets import flow_matching as fm
from models.nets.brain_decoder import BrainDecoder, load_brain_decoder
from models.nets.crossflow import FAINT, CrossFlow, load_crossflow
from models.nets.map_decoder import MapDecoder, load_map_decoder
from models.sources import Bundled
from models.text_encoder import TextEncoder, load_text_encoder

MOST_CONTROL = 2.0  # the scale at which the decoded look is all that the picture starts from
# What it is made of, its own weights first.
PARTS = tuple(
    Bundled(name)
    for name in ("neuropictor-lite", "brain-decoder-lite", "text-encoder-lite", "crossflow-lite", "autoencoder-lite")
)


class SmallNeuroPictor(nn.Module):
    """``names``: the decoder of voxels, which knows what its vectors, the same as those of maps, are called.

    It was trained on simulated brains; by a ``guidance_scale`` of 1.5 the lite CrossFlow paints best.
    """

    learnt_from: ClassVar[Literal["measured", "simulated"]] = "simulated"
    guidance_scale: ClassVar[float] = 1.5

    def __init__(
        self,
        decoder: MapDecoder,
        names: BrainDecoder,
        encoder: TextEncoder,
        flow: CrossFlow,
        autoencoder: ImageAutoencoder,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.names = names
        self.encoder = encoder
        self.flow = flow
        self.autoencoder = autoencoder

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


def load_small_neuropictor(folder: Path) -> SmallNeuroPictor:
    """The decoder of maps in ``folder``, with the other :data:`PARTS` of this repository; float32 on the CPU.

    Raises :class:`UserError` if the folder holds something else.
    """
    names, words, flow, pictures = (part.path for part in PARTS[1:])
    named = load_brain_decoder(names)
    if not named.sentences:
        raise UserError(f"'{names.name}' has no names for what is decoded.", "Run training.brain_concepts.")
    return SmallNeuroPictor(
        load_map_decoder(folder), named, load_text_encoder(words), load_crossflow(flow), load_autoencoder(pictures)
    ).eval()
