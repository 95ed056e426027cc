"""NeuroPictor (arXiv 2403.18211): a picture from a map of the visual cortex, by Stable Diffusion 2.1-base.

The map's tokens act twice. The semantic head makes of them what stands where the states of a prompt's tokens would.
The control mapper makes of them a grid of features, which is added once behind the first layer of a copy of the frozen
network's encoder, a ControlNet (arXiv 2302.05543), and what that copy says is added to the frozen network's skips.

Guidance goes from the picture of no words, under the same control, through that of the decoded ones. Here the networks
are diffusers' classes; :mod:`models.neuropictor_files` fills them from the published checkpoint.

Shapes: B pictures, S tokens of a map, L tokens of a prompt, D their width, latents (4, s, s), s = 64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, cast

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from models.nets.neuropictor import MapEncoder, SemanticHead

LATENT_SCALE = 0.18215
# As Stable Diffusion 2.1-base was trained; its "linear" schedule is linear in the roots. The sampler's steps are those
# of the authors': from step 1 of the training schedule on, and the last one ends at its very first noise level.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


class NeuroPictor(nn.Module):
    """``empty_context`` (1, L, D): the states of the prompt without words. The hint of ``control`` is a map's tokens.

    It was trained on brains that were measured, and its authors sample with a ``guidance_scale`` of 5.
    """

    learnt_from: ClassVar[Literal["measured", "simulated"]] = "measured"
    guidance_scale: ClassVar[float] = 5.0

    empty_context: Tensor

    def __init__(
        self,
        encoder: MapEncoder,
        semantic: SemanticHead,
        control: ControlNetModel,
        unet: UNet2DConditionModel,
        autoencoder: AutoencoderKL,
        empty_context: Tensor,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.semantic = semantic
        self.control = control
        self.unet = unet
        self.autoencoder = autoencoder
        self.register_buffer("empty_context", empty_context)

    @property
    def side(self) -> int:
        """Of a map, in pixels."""
        return self.encoder.config.side

    def predict(
        self, noisy: Tensor, timestep: Tensor, tokens: Tensor, context: Tensor, control_scale: float = 1.0
    ) -> Tensor:
        """The noise in latents (B, 4, s, s) at a step () of the training schedule, for a map's tokens (B, S, W) and
        under what is told (B, L, D): (B, 4, s, s). Everything that the control says is multiplied by its scale."""
        said = self.control(noisy, timestep, context, tokens, conditioning_scale=control_scale)
        made = self.unet(
            noisy,
            timestep,
            context,
            down_block_additional_residuals=said.down_block_res_samples,
            mid_block_additional_residual=said.mid_block_res_sample,
        )
        return cast(Tensor, made.sample.float())

    @torch.no_grad()
    def denoise(
        self, maps: Tensor, steps: int, guidance: float, control_scale: float, seeds: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Maps (B, 1, H, W), one seed each: after each step of DDIM without fresh noise, the present estimate of the
        clean latents and the latents themselves, (B, 4, s, s) both.

        ``guidance`` is classifier-free; 1 means none. ``control_scale``: 0 lets the map say what is seen, and nothing
        of where. A picture depends on its map and seed alone: noise is drawn on the CPU, one generator a picture.
        Raises :class:`ValueError` for other shapes and numbers out of range.
        """
        scheduler = DDIMScheduler(**SCHEDULE)
        most = scheduler.config.num_train_timesteps
        if maps.ndim != 4 or maps.shape[1] != 1 or len(maps) != len(seeds) or not len(seeds) or not 1 <= steps < most:
            raise ValueError(f"expected ({len(seeds)} > 0, 1, H, W) and 1 to {most - 1} steps, not {tuple(maps.shape)}")
        tokens = self.encoder(sized(maps, self.side))
        context, _ = self.semantic(tokens)
        shape = (self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.stack(noise).to(maps.device)
        guided = guidance != 1
        if guided:
            context = torch.cat([self.empty_context.to(context).expand_as(context), context])
            tokens = tokens.repeat(2, 1, 1)
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps.to(maps.device):
            both = latents.repeat(2, 1, 1, 1) if guided else latents
            noise_in_it = self.predict(both, timestep, tokens, context, control_scale)
            if guided:
                free, told = noise_in_it.chunk(2)
                noise_in_it = free + guidance * (told - free)
            step = scheduler.step(noise_in_it, timestep, latents)
            latents = step.prev_sample
            yield step.pred_original_sample, latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, s, s) -> pictures (B, 3, 8 s, 8 s), clamped to [-1, 1]."""
        return cast(Tensor, self.autoencoder.decode(latents / LATENT_SCALE).sample.float().clamp(-1, 1))


def sized(maps: Tensor, side: int) -> Tensor:
    """Maps (B, 1, H, W) as (B, 1, side, side): what lies within a pixel is averaged."""
    return maps if maps.shape[-2:] == (side, side) else F.adaptive_avg_pool2d(maps, side)
