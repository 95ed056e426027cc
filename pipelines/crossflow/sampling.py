"""What both CrossFlow pipelines do: words to source latents, source latents to pictures, with previews on the way."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from models.nets import flow_matching as fm
from models.nets.crossflow import CrossFlow
from pipelines.base import Progress, Runtime, is_preview, precision
from pipelines.crossflow.prompts import fitted
from pipelines.media import Image

if TYPE_CHECKING:  # they import diffusers and transformers, which takes seconds that a mere listing need not spend
    from models.autoencoder import ImageAutoencoder
    from models.text_encoder import TextEncoder

MODELS = ("text-encoder", "crossflow", "autoencoder")


def to_pixels(pictures: Tensor) -> np.ndarray:
    """(B, 3, H, W) float in [-1, 1] -> (B, H, W, 3) uint8."""
    return pictures.float().add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1).byte().cpu().numpy()


@dataclass
class Painter:
    """The three leased models, for the length of one run."""

    encoder: TextEncoder
    flow: CrossFlow
    autoencoder: ImageAutoencoder
    runtime: Runtime

    @classmethod
    def lease(cls, runtime: Runtime, stack: ExitStack) -> Self:
        encoder, flow, autoencoder = (stack.enter_context(runtime.lease(key)) for key in MODELS)
        return cls(encoder, flow, autoencoder, runtime)

    def sources(self, prompt: str, style: str | None, seeds: Sequence[int]) -> tuple[Tensor, bool]:
        """One z0 per seed, (len(seeds), C, H, W), and whether the prompt was cut."""
        mean, log_variance, cut = self.encode(prompt, style)
        return self.drawn(mean, log_variance, seeds), cut

    def encode(self, prompt: str, style: str | None) -> tuple[Tensor, Tensor, bool]:
        """Mean and logarithm of the variance of z0, (1, C, H, W) float32, and whether the prompt was cut."""
        device = self.runtime.models.device
        caption, cut = fitted(prompt, style, self.encoder, self.flow)
        with precision(self.runtime.models):
            encoded = self.encoder.encode([caption], self.flow.config.tokens)
            mean, log_variance = self.flow.encode_text(encoded.states.to(device), encoded.mask.to(device))
        return mean.float(), log_variance.float(), cut

    def drawn(self, mean: Tensor, log_variance: Tensor, seeds: Sequence[int]) -> Tensor:
        """One z0 per seed. The noise is drawn on the CPU, one generator a picture, so that it depends neither on
        device nor on batch."""
        noise = torch.stack([torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
        return fm.sample_source(mean, log_variance, noise.to(mean.device))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents (B, C, h, w) -> (B, H, W, 3) uint8."""
        with precision(self.runtime.models):
            return to_pixels(self.autoencoder.decode(latents))

    def paint(
        self, source: Tensor, steps: int, guidance_scale: float, note: str
    ) -> Generator[Progress, None, np.ndarray]:
        """Yields progress after every step, with a few previews; returns the pictures, (B, H, W, 3) uint8."""
        chunks = source.split(self.runtime.micro_batch)
        total, painted = steps * len(chunks), []
        for index, chunk in enumerate(chunks):
            sampler = fm.euler_steps(self._velocity, chunk, steps, guidance_scale)
            for step, state in enumerate(sampler, 1):
                self.runtime.raise_if_cancelled()
                preview = self._preview(state.prediction) if is_preview(step, steps) else None
                yield Progress(index * steps + step, total, note, preview)
            painted.append(self.decode(state.latents))
        return np.concatenate(painted)

    def _velocity(self, z: Tensor, t: Tensor, null: Tensor) -> list[Tensor]:
        with precision(self.runtime.models):
            velocities: list[Tensor] = self.flow(z, t, null)
        return velocities

    def _preview(self, prediction: Tensor) -> Image:
        """The first four pictures side by side, as the current velocity would end them."""
        return Image(np.concatenate(list(self.decode(prediction[:4])), axis=1))
