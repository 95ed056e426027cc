"""Zero-1-to-3 (arXiv 2303.11328) as it is published: what an object looks like from elsewhere, given one picture.

XBind's stereoscopic prior (arXiv 2411.14715). A folder of ``ashawkey/zero123-xl-diffusers``. Diffusers has the
parts and no pipeline of them; here they are put together.

Shapes: B views, D dimensions of a picture's vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from models.errors import UserError
from models.latent_prior import Asked, LatentPrior, load_schedule, read_reading, require_index, standardised
from models.pretrained import pretrained

CAMERA = 4  # numbers that say how far the camera goes


class CameraProjection(ModelMixin, ConfigMixin):
    """A picture's vector and how far the camera goes, to what the network attends to."""

    @register_to_config
    def __init__(self, embedding_dim: int = 768, additional_embeddings: int = CAMERA) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding_dim + additional_embeddings, embedding_dim)

    def forward(self, vectors: Tensor) -> Tensor:
        return cast(Tensor, self.proj(vectors))


@dataclass(frozen=True)
class Seen:
    """One picture: its ``vector`` (1, D), and its ``latents`` (1, 4, s, s), which are not scaled, as at training."""

    vector: Tensor
    latents: Tensor


class Zero123(LatentPrior):
    """``eyes`` give the vector of a picture, and ``reading`` is how they see it; ``camera`` joins it with where to."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        schedule: DDIMScheduler,
        eyes: CLIPVisionModelWithProjection,
        reading: dict[str, Any],
        camera: CameraProjection,
    ) -> None:
        super().__init__(unet, vae, schedule)
        self.eyes = eyes
        self.reading = reading
        self.camera = camera

    @torch.no_grad()
    def look(self, pixels: Tensor) -> Seen:
        """At a square picture (1, 3, S, S) in [-1, 1] of an object on white that fills most of it."""
        side = self.latent_side * self.factor
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        vector = self.eyes(pixel_values=standardised(pixels, self.eyes.config.image_size, self.reading)).image_embeds
        return Seen(vector.float(), self.vae.encode(pixels).latent_dist.mode().float())

    @torch.no_grad()
    def asked(self, seen: Seen, turned: Tensor, raised: Tensor) -> Asked:
        """From cameras that go ``turned`` (B,) radians round the object, to their right, and are ``raised`` (B,)
        radians: the paper counts the polar angle from the top. They stay as far away."""
        camera = torch.stack([-raised, turned.sin(), turned.cos(), torch.zeros_like(turned)], 1)
        vectors = torch.cat([seen.vector.expand(len(camera), -1), camera.to(seen.vector)], 1)
        return Asked(self.camera(vectors)[:, None].float(), beside=seen.latents.expand(len(camera), -1, -1, -1))

    def free(self, count: int) -> Asked:
        """Of ``count`` views of anything, as it was trained: zeros."""
        weight = self.camera.proj.weight
        states = torch.zeros(count, 1, self.camera.config.embedding_dim, device=weight.device)
        return Asked(states, beside=states.new_zeros(count, self.channels, self.latent_side, self.latent_side))


def load_zero123(folder: Path) -> Zero123:
    """A folder of ``ashawkey/zero123-xl-diffusers`` or its kin; float32 on the CPU.

    Weights may be safetensors or ``.bin`` files, of which tensors alone are read. Raises :class:`UserError` if the
    folder holds something else, or parts of different sizes.
    """
    require_index(folder, ("Zero123Pipeline",), "Zero-1-to-3", "It must be ashawkey/zero123-xl-diffusers or its kin.")
    unet = pretrained(UNet2DConditionModel, folder / "unet")
    vae = pretrained(AutoencoderKL, folder / "vae")
    eyes = pretrained(CLIPVisionModelWithProjection, folder / "image_encoder")
    camera = pretrained(CameraProjection, folder / "clip_camera_projection")
    needed = (eyes.config.projection_dim, CAMERA, 2 * vae.config.latent_channels)
    given = (camera.config.embedding_dim, camera.config.additional_embeddings, unet.config.in_channels)
    if needed != given:
        raise UserError(f"The parts in '{folder}' do not fit together.", "Take them all from one model.")
    reading = read_reading(folder / "feature_extractor")
    return Zero123(unet, vae, load_schedule(folder / "scheduler"), eyes, reading, camera).eval()
